//! The generator of inputs: SplitMix64 (Steele, Lea and Flood, 2014), the same on every machine.

/// What values are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Dist {
    /// Uniform in `[-1, 1)`.
    Uniform,
    /// Normal with mean 0 and that standard deviation.
    Normal(f32),
    /// Normal with that mean and standard deviation.
    Shifted(f32, f32),
}

impl std::fmt::Display for Dist {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dist::Uniform => f.write_str("uniform"),
            Dist::Normal(std) => write!(f, "normal({std})"),
            Dist::Shifted(mean, std) => write!(f, "normal({mean}, {std})"),
        }
    }
}

impl Dist {
    /// Root of the mean square.
    pub(crate) fn rms(self) -> f64 {
        match self {
            Dist::Uniform => f64::sqrt(1.0 / 3.0),
            Dist::Normal(std) => f64::from(std),
            Dist::Shifted(mean, std) => f64::from(mean).hypot(f64::from(std)),
        }
    }
}

/// A seeded stream of numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An index below `n`, which is at least 1.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// A sum of twelve uniform values: normal to within the needs of a test, and made of exact
    /// arithmetic, so that no mathematical library has a say in it.
    fn normal(&mut self) -> f32 {
        let sixteenths = |bits: u64| (0..4).map(move |i| (bits >> (16 * i)) & 0xffff);
        let sum: u64 = (0..3).flat_map(|_| sixteenths(self.bits())).sum();
        (sum as f32 + 6.0) / 65536.0 - 6.0
    }

    /// One value of `dist`.
    pub(crate) fn value(&mut self, dist: Dist) -> f32 {
        match dist {
            Dist::Uniform => 2.0 * self.unit() - 1.0,
            Dist::Normal(std) => std * self.normal(),
            Dist::Shifted(mean, std) => mean + std * self.normal(),
        }
    }

    /// `count` values of `dist`.
    pub(crate) fn values(&mut self, count: usize, dist: Dist) -> Vec<f32> {
        (0..count).map(|_| self.value(dist)).collect()
    }
}

/// A seed that depends on a name alone (FNV-1a).
pub(crate) fn seed_of(name: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, fold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_both_signs_and_the_right_spread() {
        for dist in [Dist::Uniform, Dist::Normal(2.0), Dist::Shifted(3.0, 0.5)] {
            let values = Rng::new(7).values(20_000, dist);
            let mean: f64 = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 2e4;
            let square: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 2e4;
            let expected = if let Dist::Shifted(mean, _) = dist { f64::from(mean) } else { 0.0 };
            assert!((mean - expected).abs() < 0.05, "{dist}: mean {mean}");
            assert!((square.sqrt() / dist.rms() - 1.0).abs() < 0.02, "{dist}: rms {square}");
        }
        let values = Rng::new(1).values(1000, Dist::Uniform);
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(values.iter().any(|&v| v < -0.9) && values.iter().any(|&v| v > 0.9));
    }
}

//! A small seeded generator for sampling and synthetic weights.

/// SplitMix64 (Steele et al., 2014). Equal seeds give equal numbers on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-24.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Standard normal (Box and Muller, 1958).
    pub(crate) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_stay_below_one_and_fill_the_range() {
        let mut random = Random::new(7);
        let values: Vec<f32> = (0..10_000).map(|_| random.uniform()).collect();
        assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
        let mean = values.iter().sum::<f32>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }

    #[test]
    fn normal_numbers_have_unit_variance() {
        let mut random = Random::new(8);
        let values: Vec<f32> = (0..10_000).map(|_| random.normal()).collect();
        let variance = values.iter().map(|value| value * value).sum::<f32>() / 10_000.0;
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let [mut a, mut b, mut c] = [1, 1, 2].map(Random::new);
        let [a, b, c] = [&mut a, &mut b, &mut c].map(|random| [random.next(), random.next()]);
        assert_eq!(a, b);
        assert_ne!(a, c);
    }
}

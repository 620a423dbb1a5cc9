//! Instruction sets, chosen at run time. Holding a token proves that the set is there.
//!
//! Kernels are written once over [`Simd`], whose vectors have 16 lanes of f32 or i32, or 64 bytes,
//! on every instruction set. A kernel runs inside [`Simd::run`], where the compiler may use the
//! instructions of the token; all of it must be inlined there.

/// Wraps intrinsics that only compute.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! compute {
    ($e:expr) => {{
        // SAFETY: the token proves that the instructions are there; no memory is touched.
        unsafe { $e }
    }};
}

#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), path = "no_amx.rs")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_rows;
mod rows;
mod scalar;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86_rows;

#[cfg(test)]
pub(crate) use matrix::Plain;
pub(crate) use matrix::{B, MatrixUnit, TILE, TILE_BYTES, TILE_DEPTH, Units, with_unit};
pub(crate) use rows::Rows;
pub(crate) use scalar::Scalar;
pub(crate) use tiles::Tiles;

/// Lanes of a vector of f32 or i32.
pub(crate) const LANES: usize = 16;

/// How activations of up to 15 bits lie in two planes of one byte per value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planes {
    /// Signed bytes of `128 * high + low`: the high ones, then the low ones.
    Bytes,
    /// 16-bit values: the even ones, then the odd ones. For sets that multiply words, not bytes.
    Words,
}

/// Vector operations of one instruction set.
///
/// Every method is inlined into its caller, which runs inside [`Simd::run`].
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;

    /// Name for people.
    const NAME: &'static str;

    /// Columns of a matrix-product tile: what fits the registers.
    const COLUMNS: usize;

    /// How activations of the integer routes are stored for [`Simd::dot_plane`].
    const PLANES: Planes = Planes::Bytes;

    /// The token, in code that is only reached with one.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn assume() -> Self;

    /// Calls `work` with the instruction set enabled. Pass a closure marked `#[inline(always)]`: code
    /// that is not inlined here is compiled without the instructions.
    fn run<R>(self, work: impl FnOnce() -> R) -> R;

    fn splat(self, value: f32) -> Self::F;
    /// # Safety
    /// 16 readable values.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// # Safety
    /// 16 writable values.
    unsafe fn store(self, to: *mut f32, v: Self::F);
    /// # Safety
    /// 16 readable f16.
    unsafe fn load_f16(self, from: *const u16) -> Self::F;
    /// # Safety
    /// 16 readable bf16.
    unsafe fn load_bf16(self, from: *const u16) -> Self::F;
    /// # Safety
    /// 16 readable bytes.
    unsafe fn load_i8(self, from: *const i8) -> Self::F;
    /// Lane `l` is `values[l / 4]`.
    fn spread(self, values: [f32; 4]) -> Self::F;
    /// The lower 8 lanes are `low`, the upper `high`.
    #[inline(always)]
    fn spread_halves(self, low: f32, high: f32) -> Self::F {
        self.spread([low, low, high, high])
    }
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, v: Self::F) -> Self::F;
    /// `2^v` of integers in `-126..=127`; 0 for -127.
    fn exp2_int(self, v: Self::F) -> Self::F;
    fn to_array(self, v: Self::F) -> [f32; LANES];

    /// `a * b + c` of scalars, fused where the hardware can.
    fn fma1(self, a: f32, b: f32, c: f32) -> f32;

    /// One f16.
    fn half_to_float(self, bits: u16) -> f32;

    /// Four f16.
    #[inline(always)]
    fn halves_to_floats(self, [a, b, c, d]: [u16; 4]) -> [f32; 4] {
        [self.half_to_float(a), self.half_to_float(b), self.half_to_float(c), self.half_to_float(d)]
    }

    /// One f16 in every lane.
    #[inline(always)]
    fn splat_f16(self, bits: u16) -> Self::F {
        self.splat(self.half_to_float(bits))
    }

    /// The sum of the lanes, as a tree of halves.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        tree(self.to_array(v), |a, b| a + b)
    }

    /// The largest lane.
    #[inline(always)]
    fn maximum(self, v: Self::F) -> f32 {
        tree(self.to_array(v), f32::max)
    }

    /// Lane `i` is the sum of the lanes of `v[i]`.
    #[inline(always)]
    fn sums(self, v: [Self::F; LANES]) -> Self::F {
        let sums = v.map(|v| self.sum(v));
        // SAFETY: the array has 16 values.
        unsafe { self.load(sums.as_ptr()) }
    }

    /// Lane `j` of vector `i` is lane `i` of `rows[j]`.
    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let rows = rows.map(|row| self.to_array(row));
        std::array::from_fn(|i| {
            let column: [f32; LANES] = std::array::from_fn(|j| rows[j][i]);
            // SAFETY: the array has 16 values.
            unsafe { self.load(column.as_ptr()) }
        })
    }

    /// The smaller of each pair of lanes.
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        let zero = self.splat(0.0);
        self.sub(zero, self.max(self.sub(zero, a), self.sub(zero, b)))
    }

    /// `e^v`, relative error below 2e-7; 0 below -87.3, clamped above 88.
    #[inline(always)]
    fn exp(self, v: Self::F) -> Self::F {
        let clamped = self.min(self.max(v, self.splat(-87.33)), self.splat(88.0));
        let n = self.round(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, so that the reduced argument keeps all its bits.
        let r = self.fma(n, self.splat(-355.0 / 512.0), clamped);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(EXP_COEFFICIENTS[0]);
        for coefficient in &EXP_COEFFICIENTS[1..] {
            p = self.fma(p, r, self.splat(*coefficient));
        }
        let value = self.mul(p, self.exp2_int(n));
        self.zero_below(v, -87.33, value)
    }

    /// `v` within `-limit..=limit`; NaN stays.
    #[inline(always)]
    fn clamp(self, v: Self::F, limit: f32) -> Self::F {
        let (zero, lowest) = (self.splat(0.0), self.splat(-limit));
        // The limit as first argument: of a NaN, the second is the result.
        let negated = self.sub(zero, self.max(lowest, v));
        self.sub(zero, self.max(lowest, negated))
    }

    /// `tanh(v)`, relative error below 5e-7, exactly 1 and -1 from 9 on.
    #[inline(always)]
    fn tanh(self, v: Self::F) -> Self::F {
        let u = self.clamp(v, TANH_LIMIT);
        let z = self.mul(u, u);
        let [p, q] = TANH_COEFFICIENTS[0];
        let (mut p, mut q) = (self.splat(p), self.splat(q));
        for [numerator, denominator] in &TANH_COEFFICIENTS[1..] {
            p = self.fma(p, z, self.splat(*numerator));
            q = self.fma(q, z, self.splat(*denominator));
        }
        let t = self.div(self.mul(u, p), q);
        let (one, negated) = (self.splat(1.0), self.sub(self.splat(0.0), v));
        let up = self.zero_below(v, TANH_LIMIT, self.sub(one, t));
        let down = self.zero_below(negated, TANH_LIMIT, self.add(one, t));
        self.sub(self.add(t, up), down)
    }

    /// `value` where `v >= limit`, else 0.
    fn zero_below(self, v: Self::F, limit: f32, value: Self::F) -> Self::F;

    fn splat_int(self, value: i32) -> Self::I;
    fn shl_int<const N: u32>(self, v: Self::I) -> Self::I;
    fn to_float(self, v: Self::I) -> Self::F;
    /// Adds to each lane the dot product of 4 unsigned bytes of `w` and 4 signed bytes of `y`.
    fn dot(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I;

    /// Adds to each lane the part that plane `P` of [`Simd::PLANES`] has in the dot product of 4
    /// unsigned bytes of `w` with 4 activations. Plane 0 comes first, then [`Simd::next_plane`].
    #[inline(always)]
    fn dot_plane<const P: usize>(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        self.dot(acc, w, y)
    }

    /// Makes sums over plane 0 ready for plane 1.
    #[inline(always)]
    fn next_plane(self, acc: Self::I) -> Self::I {
        self.shl_int::<7>(acc)
    }

    /// # Safety
    /// 64 readable bytes.
    unsafe fn load_bytes(self, from: *const u8) -> Self::B;
    /// # Safety
    /// 64 writable bytes.
    unsafe fn store_bytes(self, to: *mut u8, v: Self::B);
    /// The 4 bytes at `from`, 16 times.
    ///
    /// # Safety
    /// 4 readable bytes.
    unsafe fn splat_bytes4(self, from: *const u8) -> Self::B;
    /// 32 bytes twice.
    ///
    /// # Safety
    /// 32 readable bytes.
    unsafe fn twice_bytes32(self, from: *const u8) -> Self::B;
    /// 32 bytes of `a`, then of `b`.
    ///
    /// # Safety
    /// 32 readable bytes at each.
    unsafe fn join_bytes32(self, a: *const u8, b: *const u8) -> Self::B;
    /// 16 bytes of `a` twice, then of `b` twice.
    ///
    /// # Safety
    /// 16 readable bytes at each.
    unsafe fn twice_bytes16(self, a: *const u8, b: *const u8) -> Self::B;
    /// Shifts the bytes of each quarter right by its count. Bits from the neighbouring byte may
    /// come in at the top: mask them off with [`Simd::and_bytes`].
    fn shr_bytes(self, v: Self::B, counts: [u32; 4]) -> Self::B;
    /// Shifts bytes left, whose upper `N` bits are zero.
    fn shl_bytes<const N: u32>(self, v: Self::B) -> Self::B;
    fn and_bytes(self, v: Self::B, mask: u8) -> Self::B;
    fn xor_bytes(self, v: Self::B, mask: u8) -> Self::B;
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B;
    /// Byte `i` is bit `i` of `bits`.
    fn bytes_of_bits(self, bits: u64) -> Self::B;
    /// `table[v]` of bytes below 16.
    fn lookup(self, v: Self::B, table: &[u8; 16]) -> Self::B;
    /// Unsigned bytes as f32, by quarters.
    fn widen_bytes(self, v: Self::B) -> [Self::F; 4];
}

/// `e^r` for `|r| <= ln(2) / 2`, highest power first: minimax, relative error below 1e-7.
const EXP_COEFFICIENTS: [f32; 7] =
    [1.390_682_4e-3, 8.332_854e-3, 4.166_671e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0];

/// Beyond, `tanh` is 1 in f32.
const TANH_LIMIT: f32 = 9.0;

/// Numerator and denominator of `tanh(u) / u` in `u^2` up to [`TANH_LIMIT`], highest power first:
/// minimax, relative error below 3e-8.
const TANH_COEFFICIENTS: [[f32; 2]; 5] = [
    [1.335_341e-8, 7.776_046e-7],
    [2.060_818_3e-5, 3.285_546e-4],
    [3.495_534_4e-3, 2.587_678e-2],
    [1.338_098e-1, 4.671_429_7e-1],
    [1.0, 1.0],
];

#[inline(always)]
fn tree(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// The best instruction set of this machine, or a chosen one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Isa {
    pub(crate) vectors: Vectors,
    /// What multiplies tiles, where there is such a unit.
    pub(crate) unit: Option<Units>,
}

/// A token of vector instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Vectors {
    /// Plain Rust.
    Scalar(Scalar),
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2<false>),
    /// AVX2 with AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::Avx2<true>),
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(avx512::Avx512Vnni),
    /// Advanced SIMD.
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon<neon::Widening>),
    /// Advanced SIMD with DotProd.
    #[cfg(target_arch = "aarch64")]
    NeonDotProd(neon::Neon<neon::DotProd>),
    /// Advanced SIMD with I8MM.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(neon::Neon<neon::I8mm>),
}

impl Isa {
    /// Every instruction set of this machine, the fastest first.
    pub(crate) fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        all.extend(
            amx::Amx::new().map(|amx| Isa { vectors: amx.token(), unit: Some(Units::Amx(amx)) }),
        );
        all.extend(Vectors::available().into_iter().map(|vectors| Isa { vectors, unit: None }));
        all
    }

    /// Name for people and for the choice of one.
    pub(crate) fn name(self) -> &'static str {
        fn name<S: Simd>(_: S) -> &'static str {
            S::NAME
        }
        match self.unit {
            Some(unit) => with_unit!(unit, unit => matrix::name(unit)),
            None => with_simd!(self, simd => name(simd)),
        }
    }
}

impl Vectors {
    /// Those of this machine, the fastest first.
    fn available() -> Vec<Vectors> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx512::Avx512Vnni::new().map(Vectors::Avx512Vnni));
            all.extend(avx2::Avx2::<true>::new().map(Vectors::AvxVnni));
            all.extend(avx2::Avx2::<false>::new().map(Vectors::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(neon::Neon::new().map(Vectors::NeonI8mm));
            all.extend(neon::Neon::new().map(Vectors::NeonDotProd));
            all.extend(neon::Neon::new().map(Vectors::Neon));
        }
        all.push(Vectors::Scalar(Scalar));
        all
    }

    /// The set without instructions that float kernels have no use for.
    pub(crate) fn floats(self) -> Self {
        match self {
            #[cfg(target_arch = "x86_64")]
            Vectors::AvxVnni(simd) => Vectors::Avx2(simd.floats()),
            #[cfg(target_arch = "aarch64")]
            Vectors::NeonDotProd(simd) => Vectors::Neon(simd.floats()),
            #[cfg(target_arch = "aarch64")]
            Vectors::NeonI8mm(simd) => Vectors::Neon(simd.floats()),
            other => other,
        }
    }
}

/// Four f16 by F16C, moved at once: a move of one waits for its target's old value.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn halves_to_floats(bits: [u16; 4]) -> [f32; 4] {
    use std::arch::x86_64::{_mm_cvtph_ps, _mm_cvtsi64_si128, _mm_storeu_ps};
    let [a, b, c, d] = bits.map(u64::from);
    let mut out = [0.0; 4];
    // SAFETY: only called through tokens of sets with F16C; the array has four values.
    unsafe {
        let bits = _mm_cvtsi64_si128((a | b << 16 | c << 32 | d << 48) as i64);
        _mm_storeu_ps(out.as_mut_ptr(), _mm_cvtph_ps(bits));
    }
    out
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Asks for the cache line of an address that will be read soon. Any address is fine.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint, which cannot fault.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{address}]", address = in(reg) address,
            options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// As [`prefetch`], into the second cache, for what will be read later.
#[inline(always)]
pub(crate) fn prefetch_far(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint, which cannot fault.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{address}]", address = in(reg) address,
            options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Whether [`prefetch`] alone streams from memory as fast as with [`prefetch_far`] before it: on
/// processors of AMD, which alone have SSE4a.
#[inline(always)]
pub(crate) fn has_one_hint() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("sse4a");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Evaluates an expression, generic over the token, for the chosen instruction set.
macro_rules! with_simd {
    ($isa:expr, $simd:ident => $work:expr) => {
        match $isa.vectors {
            $crate::isa::Vectors::Scalar($simd) => $work,
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Vectors::Avx2($simd) => $work,
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Vectors::AvxVnni($simd) => $work,
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Vectors::Avx512Vnni($simd) => $work,
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Vectors::Neon($simd) => $work,
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Vectors::NeonDotProd($simd) => $work,
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Vectors::NeonI8mm($simd) => $work,
        }
    };
}
pub(crate) use with_simd;

/// As [`with_simd`], for kernels without byte products: compiled for fewer sets.
macro_rules! with_float_simd {
    ($isa:expr, $simd:ident => $work:expr) => {
        match $isa.vectors.floats() {
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Vectors::Avx2($simd) => $work,
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Vectors::Avx512Vnni($simd) => $work,
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Vectors::Neon($simd) => $work,
            _ => {
                let $simd = $crate::isa::Scalar;
                $work
            }
        }
    };
}
pub(crate) use with_float_simd;

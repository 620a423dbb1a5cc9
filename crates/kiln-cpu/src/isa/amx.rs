//! AMX with bf16, beside AVX-512. The compiler has no intrinsics for it that are stable: products are
//! written as instructions, and no tile lives from one block of them to the next.

use super::avx512::Avx512Vnni;
use super::matrix::{MatrixUnit, PairScales};
use super::{LANES, LINE, Simd, Vectors};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Proof that AMX with bf16, AVX-512 VBMI and BF16 are there, and that the process may use tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(Avx512Vnni);

impl Amx {
    /// The token, where the machine has the instructions and the system lets the process use them.
    pub(crate) fn new() -> Option<Self> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        let vectors = Avx512Vnni::new()?;
        let there = is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("xsave")
            // SAFETY: `xsave` is there, and so is AVX-512.
            && unsafe { tiles_of_bf16() }
            && *PERMITTED.get_or_init(ask_for_tiles);
        there.then_some(Self(vectors))
    }

    /// The vector instructions beside it.
    pub(super) fn token(self) -> Vectors {
        Vectors::Avx512Vnni(self.0)
    }
}

/// Whether the processor has tiles of bf16, and the system saves them.
#[target_feature(enable = "xsave")]
fn tiles_of_bf16() -> bool {
    const LEAF: u32 = 7;
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    // SAFETY: every processor with AVX-512 has `cpuid` and, saved by the system, register 0.
    let (most, features, saved) =
        unsafe { (__get_cpuid_max(0).0, __cpuid_count(LEAF, 0).edx, _xgetbv(0)) };
    most >= LEAF && features & BF16_AND_TILES == BF16_AND_TILES && saved & TILE_STATE == TILE_STATE
}

/// Asks the system to let this process use tiles: all its threads, from now on.
fn ask_for_tiles() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: u64;
    // SAFETY: a system call that touches no memory of the process.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// All tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512bf16,avx2,fma,f16c"
)]
fn enabled<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Bytes of the sums of a column.
const SUMS: usize = 2 * LANES * size_of::<f32>();

/// Instructions that ask for lines at places behind the sum of two registers.
macro_rules! ask {
    ($base:literal, $index:literal, $($place:literal),*) => {
        concat!($("prefetcht0 [{", $base, "} + {", $index, "}*1 + ", $place, "]\n"),*)
    };
}

impl MatrixUnit for Amx {
    type Vectors = Avx512Vnni;

    const NAME: &'static str = "amx-bf16";

    #[inline(always)]
    unsafe fn assume() -> Self {
        // SAFETY: the unit is only there with the vectors.
        Self(unsafe { Avx512Vnni::assume() })
    }

    #[inline(always)]
    fn vectors(self) -> Avx512Vnni {
        self.0
    }

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the token proves that the instructions are there.
        unsafe { enabled(work) }
    }

    #[inline(always)]
    fn with_tiles<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the token proves that tiles are there; the configuration is a valid one.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, preserves_flags));
        }
        let result = work();
        // SAFETY: as above. Without tiles in use, the system has none to save.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
        result
    }

    #[inline(always)]
    unsafe fn multiply<const COLUMNS: usize>(
        self,
        columns: *const u8,
        rows: *const u8,
        len: usize,
        sums: *mut f32,
        first: bool,
    ) {
        if const { COLUMNS == 2 } {
            // Columns are loaded once for a panel, with the hint not to keep them in the nearest cache.
            // SAFETY: by the contract.
            unsafe {
                asm!(
                    "test {first:e}, {first:e}",
                    "jz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{sums} + {step}*1]",
                    "tileloadd tmm1, [{sums} + {step}*1 + 64]",
                    "tileloadd tmm2, [{next} + {step}*1]",
                    "tileloadd tmm3, [{next} + {step}*1 + 64]",
                    "3:",
                    "tileloaddt1 tmm4, [{columns} + {line}*1]",
                    "tileloadd tmm6, [{rows} + {line}*1]",
                    "tileloadd tmm7, [{rows} + {line}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloaddt1 tmm5, [{columns} + {line}*1 + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    ask!("sums_ahead", "line", 0, 64, 128, 192),
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {columns}, 2048",
                    "add {rows}, 2048",
                    "add {sums_ahead}, 256",
                    "dec {len}",
                    "jnz 3b",
                    "tilestored [{sums} + {step}*1], tmm0",
                    "tilestored [{sums} + {step}*1 + 64], tmm1",
                    "tilestored [{next} + {step}*1], tmm2",
                    "tilestored [{next} + {step}*1 + 64], tmm3",
                    first = in(reg) u32::from(first),
                    sums = in(reg) sums,
                    next = in(reg) sums.wrapping_byte_add(LANES * SUMS),
                    sums_ahead = inout(reg) sums.wrapping_byte_add(2 * LANES * SUMS - LINE) => _,
                    step = in(reg) SUMS,
                    line = in(reg) LINE,
                    columns = inout(reg) columns => _,
                    rows = inout(reg) rows => _,
                    len = inout(reg) len => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        } else {
            // SAFETY: by the contract.
            unsafe {
                asm!(
                    "test {first:e}, {first:e}",
                    "jz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{sums} + {step}*1]",
                    "tileloadd tmm1, [{sums} + {step}*1 + 64]",
                    "3:",
                    "tileloadd tmm4, [{columns} + {line}*1]",
                    "tileloadd tmm6, [{rows} + {line}*1]",
                    "tileloadd tmm7, [{rows} + {line}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {columns}, 1024",
                    "add {rows}, 2048",
                    "dec {len}",
                    "jnz 3b",
                    "tilestored [{sums} + {step}*1], tmm0",
                    "tilestored [{sums} + {step}*1 + 64], tmm1",
                    first = in(reg) u32::from(first),
                    sums = in(reg) sums,
                    step = in(reg) SUMS,
                    line = in(reg) LINE,
                    columns = inout(reg) columns => _,
                    rows = inout(reg) rows => _,
                    len = inout(reg) len => _,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }

    #[inline(always)]
    fn to_bf16(self, [low, high]: [__m512; 2]) -> __m512i {
        // SAFETY: the token proves that the instructions are there; both types are 64 bytes.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }

    #[inline(always)]
    fn pair_scales(self, bits: u32, scale: __m512, minimum: __m512) -> PairScales<Self> {
        // Bytes become the numbers `offset + q` without a conversion; the minima take the offset back.
        let offset = if bits < 8 { NARROW_OFFSET } else { WIDE_OFFSET };
        compute!({
            let minimum = _mm512_fnmadd_ps(scale, _mm512_set1_ps(offset), minimum);
            let low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            let high =
                _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
            [
                [_mm512_permutexvar_ps(low, scale), _mm512_permutexvar_ps(high, scale)],
                [_mm512_permutexvar_ps(low, minimum), _mm512_permutexvar_ps(high, minimum)],
            ]
        })
    }

    #[inline(always)]
    fn pairs(self, bits: u32, q: __m512i, scales: &PairScales<Self>) -> [__m512i; 2] {
        let [a, b] = [numbers(bits, q, 0), numbers(bits, q, 32)];
        let [c, d] = [numbers(bits, q, 2), numbers(bits, q, 34)];
        let [[scale0, scale1], [minimum0, minimum1]] = *scales;
        compute!([
            self.to_bf16([
                _mm512_fmadd_ps(a, scale0, minimum0),
                _mm512_fmadd_ps(b, scale1, minimum1),
            ]),
            self.to_bf16([
                _mm512_fmadd_ps(c, scale0, minimum0),
                _mm512_fmadd_ps(d, scale1, minimum1),
            ]),
        ])
    }
}

/// Bytes `4 * row + i` from `first` on, for `i` of 0 and 1 and eight rows, plus the offset of their bits.
#[inline(always)]
fn numbers(bits: u32, q: __m512i, first: i32) -> __m512 {
    compute!({
        let rows = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
        let from = _mm512_add_epi32(rows, _mm512_set1_epi32(first));
        // To the byte of the mantissa whose last bit counts ones.
        let number = if bits < 8 {
            let number = _mm512_castps_si512(_mm512_set1_ps(NARROW_OFFSET));
            put_bytes(number, 0x4444_4444_4444_4444, _mm512_slli_epi32::<16>(from), q)
        } else {
            let number = _mm512_castps_si512(_mm512_set1_ps(WIDE_OFFSET));
            put_bytes(number, 0x2222_2222_2222_2222, _mm512_slli_epi32::<8>(from), q)
        };
        _mm512_castsi512_ps(number)
    })
}

/// `to`, with bytes `from` of `q` at the places of a mask. The compiler would make it a permutation of
/// two vectors, which is several instructions to the processor.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn put_bytes(mut to: __m512i, at: u64, from: __m512i, q: __m512i) -> __m512i {
    // SAFETY: an instruction that only computes.
    unsafe {
        asm!(
            "vpermb {to}{{{at}}}, {from}, {q}",
            to = inout(zmm_reg) to,
            at = in(kreg) at,
            from = in(zmm_reg) from,
            q = in(zmm_reg) q,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    to
}

/// 7 bits below its leading bit count ones at bit 16.
const NARROW_OFFSET: f32 = 128.0;

/// 15 bits below its leading bit count ones at bit 8.
const WIDE_OFFSET: f32 = 32768.0;

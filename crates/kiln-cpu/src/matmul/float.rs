//! Weights as f32, 64 values at a time: plain types, and blocks dequantised.

use super::format::{CHUNK, Format, with_format};
use crate::isa::{Isa, LANES, Simd, with_simd};
use kiln_core::DType;

/// Reads chunk `index` of a row as f32, of which the first `valid` values exist; the others are any
/// finite values.
///
/// # Safety
/// The row has those values.
pub(crate) type ReadChunk =
    unsafe fn(row: *const u8, index: usize, valid: usize, out: &mut [f32; CHUNK]);

/// The reader of a weight type.
pub(crate) fn reader(isa: Isa, dtype: DType) -> ReadChunk {
    fn blocks<S: Simd, F: Format>(_: S) -> ReadChunk {
        read_blocks::<S, F>
    }
    fn plain<S: Simd, P: Plain>(_: S) -> ReadChunk {
        read_plain::<S, P>
    }
    with_simd!(isa, s => with_format!(dtype, F => blocks::<_, F>(s), else => match dtype {
        DType::F16 => plain::<_, F16>(s),
        DType::BF16 => plain::<_, Bf16>(s),
        _ => plain::<_, F32>(s),
    }))
}

unsafe fn read_blocks<S: Simd, F: Format>(
    row: *const u8,
    index: usize,
    valid: usize,
    out: &mut [f32; CHUNK],
) {
    // SAFETY: a reader is only given out for an instruction set that is there.
    let s = unsafe { S::assume() };
    s.run(
        #[inline(always)]
        || {
            // SAFETY: by the contract; `out` has four vectors.
            unsafe {
                let chunk = F::chunk(s, row, index, valid < CHUNK);
                for (quarter, q) in s.widen_bytes(chunk.q).into_iter().enumerate() {
                    let minimum = s.splat(chunk.minimum[quarter]);
                    let value = s.fma(q, s.splat(chunk.scale[quarter]), minimum);
                    s.store(out.as_mut_ptr().add(quarter * LANES), value);
                }
            }
        },
    );
}

/// A plain type: how 16 values are loaded.
trait Plain {
    const BYTES: usize;
    /// # Safety
    /// 16 readable values.
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F;
}

macro_rules! plain {
    ($Name:ident, $bytes:literal, $load:ident) => {
        struct $Name;

        impl Plain for $Name {
            const BYTES: usize = $bytes;

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F {
                // SAFETY: by the contract.
                unsafe { s.$load(from.cast()) }
            }
        }
    };
}

plain!(F32, 4, load);
plain!(F16, 2, load_f16);
plain!(Bf16, 2, load_bf16);

unsafe fn read_plain<S: Simd, P: Plain>(
    row: *const u8,
    index: usize,
    valid: usize,
    out: &mut [f32; CHUNK],
) {
    // SAFETY: a reader is only given out for an instruction set that is there.
    let s = unsafe { S::assume() };
    let mut from = row.wrapping_add(index * CHUNK * P::BYTES);
    let mut padded = [0u8; CHUNK * 4];
    if valid < CHUNK {
        // SAFETY: the valid part of the chunk is inside the row.
        unsafe { std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), valid * P::BYTES) };
        from = padded.as_ptr();
    }
    s.run(
        #[inline(always)]
        || {
            for quarter in 0..CHUNK / LANES {
                // SAFETY: a whole chunk is readable; `out` has four vectors.
                unsafe {
                    let value = P::load(s, from.add(quarter * LANES * P::BYTES));
                    s.store(out.as_mut_ptr().add(quarter * LANES), value);
                }
            }
        },
    );
}

//! Weights as f32, 64 values at a time: plain types, and blocks dequantised.

use super::format::{CHUNK, Format, bias};
use crate::isa::{LANES, Simd};
use std::marker::PhantomData;

/// A weight type read as f32.
pub(crate) trait FloatSource: 'static {
    /// Chunk `index` of a row, of which the first `valid` values exist; the others are any finite
    /// values.
    ///
    /// # Safety
    /// `row` is a row with those values.
    unsafe fn floats<S: Simd>(s: S, row: *const u8, index: usize, valid: usize) -> [S::F; 4];
}

/// Blocks, dequantised.
pub(crate) struct Dequantized<F>(PhantomData<F>);

impl<F: Format> FloatSource for Dequantized<F> {
    #[inline(always)]
    unsafe fn floats<S: Simd>(s: S, row: *const u8, index: usize, valid: usize) -> [S::F; 4] {
        // SAFETY: by the contract.
        let chunk = unsafe { F::chunk(s, row, index, valid < CHUNK) };
        let mut out = s.widen_bytes(chunk.q);
        for (quarter, v) in out.iter_mut().enumerate() {
            let signed = s.sub(*v, s.splat(bias::<F>() as f32));
            let minimum = s.splat(chunk.minimum[quarter]);
            *v = s.fma(signed, s.splat(chunk.scale[quarter]), minimum);
        }
        out
    }
}

/// A plain type: how 16 values are loaded.
trait Plain: 'static {
    const BYTES: usize;
    /// # Safety
    /// 16 readable values.
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F;
}

macro_rules! plain {
    ($Name:ident, $bytes:literal, $load:ident) => {
        pub(crate) struct $Name;

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

impl<P: Plain> FloatSource for P {
    #[inline(always)]
    unsafe fn floats<S: Simd>(s: S, row: *const u8, index: usize, valid: usize) -> [S::F; 4] {
        let from = row.wrapping_add(index * CHUNK * P::BYTES);
        // SAFETY: a whole chunk is inside the row; of a part, only that part is copied.
        unsafe {
            if valid >= CHUNK {
                return std::array::from_fn(|quarter| {
                    P::load(s, from.wrapping_add(quarter * LANES * P::BYTES))
                });
            }
            let mut padded = [0u8; CHUNK * 4];
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), valid * P::BYTES);
            std::array::from_fn(|quarter| {
                P::load(s, padded.as_ptr().wrapping_add(quarter * LANES * P::BYTES))
            })
        }
    }
}

/// Evaluates an expression, generic over the [`FloatSource`], for a weight type.
macro_rules! with_float_source {
    ($dtype:expr, $Source:ident => $work:expr) => {
        $crate::matmul::format::with_format!($dtype, BlockFormat => {
            type $Source = $crate::matmul::float::Dequantized<BlockFormat>;
            $work
        }, else => match $dtype {
            kiln_core::DType::F16 => {
                type $Source = $crate::matmul::float::F16;
                $work
            }
            kiln_core::DType::BF16 => {
                type $Source = $crate::matmul::float::Bf16;
                $work
            }
            _ => {
                type $Source = $crate::matmul::float::F32;
                $work
            }
        })
    };
}
pub(crate) use with_float_source;

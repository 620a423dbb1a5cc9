//! Element types of queries, keys and values.

use crate::isa::{LANES, Simd};

/// How 16 neighbours of a row become f32.
pub(super) trait Element: 'static {
    /// Values `16 * index..16 * index + 16` of a row.
    ///
    /// # Safety
    /// The row has them.
    unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> S::F;

    /// As [`Element::load`] where the row ends after 8 values; zeros follow.
    ///
    /// # Safety
    /// The row has 8 values there.
    unsafe fn load_half<S: Simd>(s: S, row: *const u8, index: usize) -> S::F;
}

macro_rules! plain {
    ($Name:ident, $T:ty, $load:ident) => {
        pub(super) struct $Name;

        impl Element for $Name {
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> S::F {
                // SAFETY: by the contract.
                unsafe { s.$load(row.cast::<$T>().add(index * LANES)) }
            }

            #[inline(always)]
            unsafe fn load_half<S: Simd>(s: S, row: *const u8, index: usize) -> S::F {
                let mut part = [<$T>::default(); LANES];
                // SAFETY: 8 values of the row, and 16 of the array.
                unsafe {
                    let from = row.cast::<$T>().add(index * LANES);
                    std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), LANES / 2);
                    s.$load(part.as_ptr())
                }
            }
        }
    };
}

plain!(F32, f32, load);
plain!(F16, u16, load_f16);
plain!(Bf16, u16, load_bf16);

/// Blocks of 32 signed bytes with an f16 scale before them.
pub(super) struct Q8_0;

impl Q8_0 {
    const BLOCK_BYTES: usize = 34;
}

impl Element for Q8_0 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> S::F {
        // SAFETY: the block and its half are inside the row.
        unsafe {
            let block = row.add(index / 2 * Self::BLOCK_BYTES);
            let scale = u16::from_le_bytes(block.cast::<[u8; 2]>().read());
            let codes = s.load_i8(block.add(2 + index % 2 * LANES).cast());
            s.mul(s.splat(s.half_to_float(scale)), codes)
        }
    }

    /// Rows are whole blocks: never asked for.
    #[inline(always)]
    unsafe fn load_half<S: Simd>(s: S, _: *const u8, _: usize) -> S::F {
        s.splat(0.0)
    }
}

/// Converts a row of `dim` values; zeros follow up to a whole vector. Returns what differs from zero
/// in some lane where a value is not finite.
///
/// # Safety
/// The row is there, and room for whole vectors.
#[inline(always)]
pub(super) unsafe fn convert<S: Simd, E: Element>(
    s: S,
    row: *const u8,
    dim: usize,
    to: *mut f32,
) -> S::F {
    let mut nan = s.splat(0.0);
    for vector in 0..dim.div_ceil(LANES) {
        // SAFETY: by the contract.
        unsafe {
            let v = load_part::<S, E>(s, row, dim, vector);
            s.store(to.add(vector * LANES), v);
            nan = s.add(nan, s.sub(v, v));
        }
    }
    nan
}

/// Vector `vector` of a row of `dim` values, the last one with zeros behind them.
///
/// # Safety
/// The row is there and has some of these values.
#[inline(always)]
pub(super) unsafe fn load_part<S: Simd, E: Element>(
    s: S,
    row: *const u8,
    dim: usize,
    vector: usize,
) -> S::F {
    // SAFETY: by the contract.
    unsafe {
        if dim - vector * LANES < LANES {
            E::load_half(s, row, vector)
        } else {
            E::load(s, row, vector)
        }
    }
}

/// Evaluates an expression, generic over the [`Element`], for a type of keys and values.
macro_rules! with_element {
    ($dtype:expr, $Element:ident => $work:expr) => {
        match $dtype {
            kiln_core::DType::F16 => {
                type $Element = $crate::ops::attention::element::F16;
                $work
            }
            kiln_core::DType::BF16 => {
                type $Element = $crate::ops::attention::element::Bf16;
                $work
            }
            kiln_core::DType::Q8_0 => {
                type $Element = $crate::ops::attention::element::Q8_0;
                $work
            }
            _ => {
                type $Element = $crate::ops::attention::element::F32;
                $work
            }
        }
    };
}
pub(super) use with_element;

//! Element types of queries, keys and values.

use crate::isa::{LANES, Simd};

/// How 16 neighbours of a row become f32.
pub(super) trait Element: 'static {
    /// Bytes of 16 values.
    const VECTOR_BYTES: usize;

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

    /// Converts a row of `dim` values; zeros follow up to a whole vector. Returns what differs from
    /// zero in some lane where a value is not finite.
    ///
    /// # Safety
    /// The row is there, and room for whole vectors.
    #[inline(always)]
    unsafe fn convert<S: Simd>(s: S, row: *const u8, dim: usize, to: *mut f32) -> S::F {
        let mut nan = s.splat(0.0);
        let whole = dim / LANES;
        // SAFETY: by the contract.
        unsafe {
            for vector in 0..whole {
                let v = Self::load(s, row, vector);
                s.store(to.add(vector * LANES), v);
                nan = s.add(nan, s.sub(v, v));
            }
            if !dim.is_multiple_of(LANES) {
                let v = Self::load_half(s, row, whole);
                s.store(to.add(whole * LANES), v);
                nan = s.add(nan, s.sub(v, v));
            }
        }
        nan
    }
}

macro_rules! plain {
    ($Name:ident, $T:ty, $load:ident) => {
        pub(super) struct $Name;

        impl Element for $Name {
            const VECTOR_BYTES: usize = LANES * size_of::<$T>();

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
    const BLOCK_LEN: usize = 2 * LANES;
    const BLOCK_BYTES: usize = 2 + Self::BLOCK_LEN;

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, block: *const u8) -> S::F {
        // SAFETY: a block starts with its scale.
        let bytes = unsafe { block.cast::<[u8; 2]>().read() };
        s.splat_f16(u16::from_le_bytes(bytes))
    }
}

impl Element for Q8_0 {
    const VECTOR_BYTES: usize = Self::BLOCK_BYTES / 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> S::F {
        // SAFETY: the block and its half are inside the row.
        unsafe {
            let block = row.add(index / 2 * Self::BLOCK_BYTES);
            let codes = s.load_i8(block.add(2 + index % 2 * LANES).cast());
            s.mul(Self::scale(s, block), codes)
        }
    }

    /// Rows are whole blocks: never asked for.
    #[inline(always)]
    unsafe fn load_half<S: Simd>(s: S, _: *const u8, _: usize) -> S::F {
        s.splat(0.0)
    }

    #[inline(always)]
    unsafe fn convert<S: Simd>(s: S, row: *const u8, dim: usize, to: *mut f32) -> S::F {
        let mut nan = s.splat(0.0);
        for index in 0..dim / Self::BLOCK_LEN {
            // SAFETY: whole blocks of the row.
            unsafe {
                let block = row.add(index * Self::BLOCK_BYTES);
                let to = to.add(index * Self::BLOCK_LEN);
                let scale = Self::scale(s, block);
                s.store(to, s.mul(scale, s.load_i8(block.add(2).cast())));
                s.store(to.add(LANES), s.mul(scale, s.load_i8(block.add(2 + LANES).cast())));
                nan = s.add(nan, s.sub(scale, scale));
            }
        }
        nan
    }
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

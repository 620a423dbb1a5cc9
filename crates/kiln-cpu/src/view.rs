//! Resolved operands: raw memory with a shape.

use half::{bf16, f16};
use kiln_core::{DType, Element, MAX_RANK, Shape};

/// An operand of a compiled step. The executable keeps its memory alive.
///
/// Kernels get rows through it. The planner's hazards and the kernels' division of rows among
/// threads keep a written row from being seen by anybody else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    start: *mut u8,
    dtype: DType,
    shape: Shape,
    strides: [usize; MAX_RANK],
}

// SAFETY: a view is an address with a shape; all access is through unsafe methods whose callers
// keep the threads apart.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// A view of the memory at `start` laid out like `tensor`.
    pub(crate) fn new(start: *mut u8, tensor: &kiln_core::Tensor) -> Self {
        let mut strides = [0; MAX_RANK];
        for (axis, stride) in strides.iter_mut().enumerate().take(tensor.rank()) {
            *stride = tensor.stride_bytes(axis);
        }
        Self { start, dtype: tensor.dtype(), shape: tensor.shape(), strides }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn extent(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    pub(crate) fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Extent of the last axis.
    pub(crate) fn last(&self) -> usize {
        self.shape.last()
    }

    /// Bytes between neighbours along an outer axis.
    pub(crate) fn stride(&self, axis: usize) -> usize {
        self.strides[axis]
    }

    /// First byte of the view.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Address of the row at the indices of the outer axes.
    pub(crate) fn row_ptr<const N: usize>(&self, index: [usize; N]) -> *mut u8 {
        debug_assert_eq!(N + 1, self.rank());
        let mut offset = 0;
        for axis in 0..N {
            debug_assert!(index[axis] < self.shape[axis], "row {index:?} of {:?}", self.shape);
            offset += index[axis] * self.strides[axis];
        }
        self.start.wrapping_add(offset)
    }

    /// The row as a slice of its elements.
    ///
    /// # Safety
    /// `T` is the view's type, the indices are inside the shape, and nobody writes the row meanwhile.
    pub(crate) unsafe fn row<'a, T: Element, const N: usize>(&self, index: [usize; N]) -> &'a [T] {
        debug_assert_eq!(T::DTYPE, self.dtype);
        // SAFETY: the row is inside the memory of the view, and elements are aligned: buffers start
        // at multiples of 4 bytes and offsets are whole elements.
        unsafe { std::slice::from_raw_parts(self.row_ptr(index).cast(), self.last()) }
    }

    /// The row as a mutable slice of its elements.
    ///
    /// # Safety
    /// As [`View::row`], and nobody else reads the row meanwhile.
    pub(crate) unsafe fn row_mut<'a, T: Element, const N: usize>(
        &self,
        index: [usize; N],
    ) -> &'a mut [T] {
        debug_assert_eq!(T::DTYPE, self.dtype);
        // SAFETY: as in `row`; the caller has the row alone.
        unsafe { std::slice::from_raw_parts_mut(self.row_ptr(index).cast(), self.last()) }
    }

    /// Reads the part of a row of a float type from `start` on that is as long as `out`, as f32.
    ///
    /// # Safety
    /// As [`View::row`], for a float type, and the row has that part.
    #[inline(always)]
    pub(crate) unsafe fn load<const N: usize>(
        &self,
        index: [usize; N],
        start: usize,
        out: &mut [f32],
    ) {
        let part = start..start + out.len();
        debug_assert!(part.end <= self.last());
        // SAFETY: the type is matched, the rest is the caller's.
        unsafe {
            match self.dtype {
                DType::F32 => {
                    out.copy_from_slice(self.row::<f32, N>(index).get_unchecked(part));
                }
                DType::F16 => widen(self.row::<f16, N>(index).get_unchecked(part), out),
                _ => widen(self.row::<bf16, N>(index).get_unchecked(part), out),
            }
        }
    }

    /// Writes a row of a float type from f32, rounding to nearest.
    ///
    /// # Safety
    /// As [`View::row_mut`], for a float type.
    #[inline(always)]
    pub(crate) unsafe fn store<const N: usize>(&self, index: [usize; N], values: &[f32]) {
        debug_assert_eq!(values.len(), self.last());
        // SAFETY: the type is matched, the rest is the caller's.
        unsafe {
            match self.dtype {
                DType::F32 => self.row_mut::<f32, N>(index).copy_from_slice(values),
                DType::F16 => narrow(values, self.row_mut::<f16, N>(index)),
                _ => narrow(values, self.row_mut::<bf16, N>(index)),
            }
        }
    }
}

/// A half type.
pub(crate) trait Half: Element {
    fn widen(self) -> f32;
    fn narrow(value: f32) -> Self;
}

impl Half for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f16_bits_to_f32(self.to_bits())
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_bits(f32_to_f16_bits(value))
    }
}

impl Half for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let nan = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { nan as u16 } else { rounded as u16 })
    }
}

#[inline(always)]
fn widen<T: Half>(row: &[T], out: &mut [f32]) {
    out.iter_mut().zip(row).for_each(|(out, value)| *out = value.widen());
}

#[inline(always)]
fn narrow<T: Half>(values: &[f32], row: &mut [T]) {
    row.iter_mut().zip(values).for_each(|(out, value)| *out = T::narrow(*value));
}

/// f16 to f32 without branches, so that loops over it vectorise on any instruction set.
#[inline(always)]
pub(crate) fn f16_bits_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let sign = (bits & 0x8000) << 16;
    let magnitude = (bits & 0x7fff) << 13;
    // Multiplying by 2^112 moves the exponent bias and makes subnormals normal.
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = f32::from_bits(magnitude | 0x7f80_0000);
    let value = if magnitude >= 0x0f80_0000 { special } else { scaled };
    f32::from_bits(value.to_bits() | sign)
}

/// f32 to f16, to nearest even.
#[inline(always)]
pub(crate) fn f32_to_f16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Adding 0.5 rounds a subnormal result at bit 0 of the sum.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add(odd) >> 13;
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let result = if magnitude >= 0x4780_0000 { special } else { finite };
    (sign | result) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_conversion_agrees_with_the_half_crate() {
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits).to_f32();
            let got = f16_bits_to_f32(bits);
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan());
            if !expected.is_nan() {
                assert_eq!(f32_to_f16_bits(expected), bits);
            }
        }
        let mut state = 1u32;
        for _ in 0..200_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(state);
            let got = f32_to_f16_bits(value);
            let expected = f16::from_f32(value);
            assert!(
                got == expected.to_bits() || value.is_nan() && f16::from_bits(got).is_nan(),
                "{value:e}: {got:#06x}, expected {:#06x}",
                expected.to_bits()
            );
            let got = <bf16 as Half>::narrow(value);
            let expected = bf16::from_f32(value);
            assert!(got == expected || value.is_nan() && got.is_nan());
        }
    }
}

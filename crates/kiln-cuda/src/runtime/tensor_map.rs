//! Tensor maps: what bulk tensor copies need to know of a tensor.

use super::driver::Driver;
use kiln_core::{DType, Result};

/// A `CUtensorMap`.
#[repr(C, align(64))]
struct TensorMap([u8; 128]);

/// Rows of heads, f16 or bf16, of which boxes of 64 columns are copied to shared memory in the
/// 128-byte swizzle. Columns and rows outside are zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Heads {
    pub(crate) address: u64,
    pub(crate) dtype: DType,
    /// Columns, rows, heads, batches.
    pub(crate) extents: [u64; 4],
    /// Bytes from row to row, from head to head and from batch to batch, multiples of 16.
    pub(crate) strides: [u64; 3],
    /// Rows of a box.
    pub(crate) box_rows: u32,
}

impl Heads {
    pub(crate) fn encode(&self, driver: &Driver) -> Result<Vec<u8>> {
        encode(
            driver,
            self.dtype,
            self.address,
            self.extents,
            self.strides,
            [64, self.box_rows, 1, 1],
        )
    }
}

/// The bytes of a map for boxes in the 128-byte swizzle: `M` is `N - 1`, as the first axis has no gaps.
pub(crate) fn encode<const N: usize, const M: usize>(
    driver: &Driver,
    dtype: DType,
    address: u64,
    extents: [u64; N],
    strides: [u64; M],
    boxes: [u32; N],
) -> Result<Vec<u8>> {
    const { assert!(M + 1 == N) };
    // `CU_TENSOR_MAP_DATA_TYPE_FLOAT16` and `CU_TENSOR_MAP_DATA_TYPE_BFLOAT16`
    let element = if dtype == DType::F16 { 6 } else { 9 };
    /// `CU_TENSOR_MAP_SWIZZLE_128B`
    const SWIZZLE: i32 = 3;
    /// `CU_TENSOR_MAP_L2_PROMOTION_L2_256B`
    const PROMOTION: i32 = 3;
    let mut map = TensorMap([0; 128]);
    // SAFETY: a map to write to, aligned as it must be; `N` extents, boxes and steps, `N - 1` strides.
    let status = unsafe {
        (driver.encode_tiled)(
            map.0.as_mut_ptr().cast(),
            element,
            N as u32,
            address,
            extents.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            [1; N].as_ptr(),
            0,
            SWIZZLE,
            PROMOTION,
            0,
        )
    };
    driver.check("cuTensorMapEncodeTiled", status)?;
    Ok(map.0.to_vec())
}

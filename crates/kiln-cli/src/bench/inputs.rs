//! Tensors for the cases of `kiln bench ops`.

use kiln::ops::Precision;
use kiln::prelude::*;
use kiln::quant::quantize_row;
use kiln::{Result, Shape, SharedBytes};

/// Bytes that no cache holds.
pub(super) const BEYOND_CACHES: usize = 256 << 20;

/// Whether a device is one for which a CPU's cases are too small.
pub(super) fn is_gpu(device: &Device) -> bool {
    matches!(device.name(), "cuda" | "metal")
}

/// Makes tensors with random values.
pub(super) struct Inputs {
    pub(super) device: Device,
    pub(super) precision: Precision,
    pub(super) use_for: Use,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To be timed.
    Speed,
    /// To compare with: large attentions have the last of their queries alone.
    Reference,
}

impl Inputs {
    /// Whether a plan has many steps of the operation.
    pub(super) fn repeats(&self) -> bool {
        self.use_for == Use::Speed && is_gpu(&self.device)
    }

    /// How many weights of so many bytes a plan of one row goes through.
    pub(super) fn weights(&self, bytes: usize) -> usize {
        if self.use_for == Use::Speed { BEYOND_CACHES.div_ceil(bytes) } else { 1 }
    }

    /// Bytes of values between -1 and 1; rows repeat after some.
    fn bytes(&self, dtype: DType, shape: Shape) -> Result<Vec<u8>> {
        // No divisor of a tile, and fewer where it takes long to quantise.
        let distinct = if dtype.is_quantized() { 17 } else { 509 };
        let row = shape.last();
        let rows = shape.values().unwrap_or(0) / row.max(1);
        let possible = || kiln::Error::Shape {
            shape: shape.to_string(),
            dtype,
            problem: "its rows are not whole blocks",
        };
        let row_bytes = dtype.row_bytes(row).ok_or_else(possible)?;
        let mut state = 0x9e37_79b9_u32;
        let mut tile = vec![0; distinct.min(rows) * row_bytes];
        for bytes in tile.chunks_exact_mut(row_bytes) {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            let values: Vec<f32> = (0..row).map(|_| next()).collect();
            quantize_row(dtype, &values, bytes).map_err(|_| possible())?;
        }
        let mut all = tile.repeat(rows.div_ceil(distinct));
        all.truncate(rows * row_bytes);
        Ok(all)
    }

    pub(super) fn tensor(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        self.device.upload_bytes(dtype, shape, &self.bytes(dtype, shape)?)
    }

    pub(super) fn floats(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.tensor(DType::F32, shape)
    }

    pub(super) fn weight(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        self.device.import(dtype, shape, SharedBytes::from_vec(self.bytes(dtype, shape)?))
    }

    pub(super) fn integers(&self, values: &[u32]) -> Result<Tensor> {
        self.device.upload(values, [values.len()])
    }

    pub(super) fn output(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.device.tensor(DType::F32, shape)
    }
}

//! Matrix products against quantised or plain weights.
//!
//! Weights are `[n, k]` in the block stream of the file; every type of [`DType::WEIGHTS`]. Both a
//! route for few rows (mat-vec) and one for many (mat-mat) exist for every type.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

/// How the rows of the input lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputLayout {
    /// `[m, k]`
    RowMajor,
    /// `[H, m, D]`, read as logical rows of `k = H * D`: the output of an attention.
    HeadMajor,
}

/// Which arithmetic a backend may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// The fastest route within the bounds of `docs/numerics.md`: activations may be quantised
    /// by blocks.
    Fast,
    /// Weights dequantised to f32, products and sums in f32.
    Exact,
}

/// The non-linearity of a gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
    GeluTanh,
}

op! {
    /// `output[m, n] = sum over k of weight[n, k] * input[m, k]`
    ///
    /// ```
    /// use kiln_core::ops::{InputLayout, Matmul, Precision};
    /// # fn example(rec: &mut kiln_core::Recording, x: &kiln_core::Tensor, w: &kiln_core::Tensor,
    /// #            y: &kiln_core::Tensor) -> kiln_core::Result<()> {
    /// let input_layout = InputLayout::RowMajor;
    /// rec.push(Matmul { input: x, weight: w, output: y, input_layout, precision: Precision::Fast })?;
    /// # Ok(()) }
    /// ```
    Matmul = "matmul", in_place: [],
    tensors {
        /// `[m, k]` or `[H, m, D]` by `input_layout`; f32, f16 or bf16
        Read input,
        /// `[n, k]`, contiguous rows
        Read weight,
        /// `[m, n]` f32
        Write output,
    }
    params {
        /// How `input` lies in memory.
        input_layout: InputLayout,
        /// Which arithmetic may be used.
        precision: Precision,
    }
}

op! {
    /// The gated half of a feed-forward layer:
    /// `output = activation(input * gate^T) * (input * up^T)`, elementwise product.
    GatedMatmul = "gated_matmul", in_place: [],
    tensors {
        /// `[m, k]` f32, f16 or bf16
        Read input,
        /// `[n, k]`
        Read gate,
        /// `[n, k]`; its type may differ from that of `gate`
        Read up,
        /// `[m, n]` f32
        Write output,
    }
    params {
        /// Applied to the gate.
        activation: Activation,
        /// Which arithmetic may be used.
        precision: Precision,
    }
}

op! {
    /// Expert-routed product: `output[m, s] = weight[ids[m, s]] * input[m, s]` for each slot `s`.
    ///
    /// Ids may repeat; an expert may get no row or all of them. A row whose id is not below `E`
    /// becomes NaN.
    MatmulId = "matmul_id", in_place: [],
    tensors {
        /// `[m, k]`, shared by all slots, or `[m, top_k, k]`; f32, f16 or bf16
        Read input,
        /// `[E, n, k]`
        Read weight,
        /// `[m, top_k]` u32
        Read ids,
        /// `[m, top_k, n]` f32
        Write output,
    }
    params {
        /// Which arithmetic may be used.
        precision: Precision,
    }
}

fn weight_check(
    check: Check,
    name: &'static str,
    weight: &Tensor,
    k: usize,
) -> Result<(), OpError> {
    check.dtype(name, weight, &DType::WEIGHTS)?;
    check.extent(name, weight, weight.rank() - 1, k)?;
    check.contiguous(name, weight)
}

impl Contract for Matmul<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let (m, k) = match self.input_layout {
            InputLayout::RowMajor => {
                let [m, k] = check.dims("input", &self.input)?;
                (m, k)
            }
            InputLayout::HeadMajor => {
                let [heads, m, dim] = check.dims("input", &self.input)?;
                (m, heads * dim)
            }
        };
        check.dtype("input", &self.input, &DType::FLOATS)?;
        let [n, _] = check.dims("weight", &self.weight)?;
        weight_check(check, "weight", &self.weight, k)?;
        check.shape("output", &self.output, &[m, n])?;
        check.dtype("output", &self.output, &[DType::F32])
    }

    fn flops(&self) -> u64 {
        2 * self.output.values() as u64 * self.weight.extent(1) as u64
    }
}

impl Contract for GatedMatmul<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [m, k] = check.dims("input", &self.input)?;
        check.dtype("input", &self.input, &DType::FLOATS)?;
        let [n, _] = check.dims("gate", &self.gate)?;
        check.dims::<2>("up", &self.up)?;
        weight_check(check, "gate", &self.gate, k)?;
        check.shape("up", &self.up, &[n, k])?;
        weight_check(check, "up", &self.up, k)?;
        check.shape("output", &self.output, &[m, n])?;
        check.dtype("output", &self.output, &[DType::F32])
    }

    fn flops(&self) -> u64 {
        4 * self.output.values() as u64 * self.gate.extent(1) as u64
    }
}

impl Contract for MatmulId<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [m, top_k] = check.dims("ids", &self.ids)?;
        check.dtype("ids", &self.ids, &[DType::U32])?;
        let k = self.input.shape().last();
        if self.input.rank() == 2 {
            check.dims::<2>("input", &self.input)?;
            check.shape("input", &self.input, &[m, k])?;
        } else {
            check.dims::<3>("input", &self.input)?;
            check.shape("input", &self.input, &[m, top_k, k])?;
        }
        check.dtype("input", &self.input, &DType::FLOATS)?;
        let [_, n, _] = check.dims("weight", &self.weight)?;
        weight_check(check, "weight", &self.weight, k)?;
        check.shape("output", &self.output, &[m, top_k, n])?;
        check.dtype("output", &self.output, &[DType::F32])
    }

    fn flops(&self) -> u64 {
        2 * self.output.values() as u64 * self.weight.extent(2) as u64
    }

    fn bytes(&self) -> Option<u64> {
        // At most one pass over each expert that a slot can name.
        let experts = self.weight.extent(0).min(self.ids.values());
        let weights = self.weight.bytes() / self.weight.extent(0) * experts;
        let rest = self.input.bytes() + self.ids.bytes() + self.output.bytes();
        Some((weights + rest) as u64)
    }
}

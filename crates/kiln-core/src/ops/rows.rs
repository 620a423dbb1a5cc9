//! Gathering, copying and pooling of rows.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

op! {
    /// Gathers rows: `output[i] = weight[ids[i]] * scale`. The embedding of tokens, from every
    /// weight type, and the choice of rows of any float tensor.
    ///
    /// A row whose id is not below `n` becomes NaN.
    Embed = "embed", in_place: [],
    tensors {
        /// `[n, dim]`
        Read weight,
        /// `[rows]` u32
        Read ids,
        /// `[rows, dim]` f32, f16 or bf16
        Write output,
    }
    params {
        /// Multiplies every value; 1 for most models.
        scale: f32,
    }
}

op! {
    /// Copies values of any strides, converting between float types: cast, permute, pack.
    Copy = "copy", in_place: [],
    tensors {
        /// Any shape; f32, f16, bf16, u32 or u8
        Read input,
        /// The same shape; a float type where the input is one, otherwise the same type
        Write output,
    }
    params {}
}

/// What stands for a sequence of encoder states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolMode {
    /// The mean over the valid tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last valid token.
    Last,
}

op! {
    /// One row per sequence: its mean, first or last token, of the first `lengths[b]` tokens.
    ///
    /// A length of 0 or above `T` gives a row of NaN.
    Pool = "pool", in_place: [],
    tensors {
        /// `[B, T, dim]` f32, f16 or bf16
        Read input,
        /// `[B]` u32
        Read lengths,
        /// `[B, dim]`, the type of `input`
        Write output,
    }
    params {
        /// What stands for the sequence.
        mode: PoolMode,
    }
}

impl Contract for Embed<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [_, dim] = check.dims("weight", &self.weight)?;
        check.dtype("weight", &self.weight, &DType::WEIGHTS)?;
        let [rows] = check.dims("ids", &self.ids)?;
        check.dtype("ids", &self.ids, &[DType::U32])?;
        check.shape("output", &self.output, &[rows, dim])?;
        check.dtype("output", &self.output, &DType::FLOATS)?;
        check.param(self.scale.is_finite(), "scale", "finite", self.scale)
    }

    fn flops(&self) -> u64 {
        self.output.values() as u64
    }

    fn bytes(&self) -> Option<u64> {
        let gathered = self.weight.row_bytes() * self.ids.values();
        Some((gathered + self.ids.bytes() + self.output.bytes()) as u64)
    }
}

impl Contract for Copy<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        const PLAIN: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::U32, DType::U8];
        check.dtype("input", &self.input, &PLAIN)?;
        if let Some(axis) = self.input.shape().iter().position(|&extent| extent == 0) {
            return check.extent_rule("input", axis, "at least 1", 0);
        }
        check.shape("output", &self.output, &self.input.shape())?;
        if self.input.dtype().is_float() {
            check.dtype("output", &self.output, &DType::FLOATS)
        } else {
            check.dtype_like("output", &self.output, ("input", &self.input))
        }
    }

    fn flops(&self) -> u64 {
        0
    }
}

impl Contract for Pool<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [batch, _, dim] = check.dims("input", &self.input)?;
        check.dtype("input", &self.input, &DType::FLOATS)?;
        check.shape("lengths", &self.lengths, &[batch])?;
        check.dtype("lengths", &self.lengths, &[DType::U32])?;
        check.shape("output", &self.output, &[batch, dim])?;
        check.dtype_like("output", &self.output, ("input", &self.input))
    }

    fn flops(&self) -> u64 {
        if self.mode == PoolMode::Mean { self.input.values() as u64 } else { 0 }
    }
}

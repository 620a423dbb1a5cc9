//! From logits to tokens.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

op! {
    /// `output = softmax(scale * input)` over the last axis, the maximum subtracted first.
    Softmax = "softmax", in_place: [(output, input)],
    tensors {
        /// `[rows, n]` f32, f16 or bf16
        Read input,
        /// `[rows, n]`, the type of `input`
        Write output,
    }
    params {
        /// Multiplies the input.
        scale: f32,
    }
}

op! {
    /// The index of the largest value of each row; ties go to the lowest index, NaN never wins, and
    /// a row of NaN gives 0.
    Argmax = "argmax", in_place: [],
    tensors {
        /// `[rows, n]` f32
        Read input,
        /// `[rows]` u32
        Write output,
    }
    params {}
}

op! {
    /// Draws a token from each row of logits.
    ///
    /// Candidates are ordered by falling logit, ties by rising index. The first `top_k` are kept
    /// (0 keeps all), their softmax at `temperature` is taken, and of those the shortest prefix
    /// whose probability reaches `top_p` (nucleus; Holtzman et al., 2019), at least one. The result
    /// is the first candidate at which the running sum of the renormalised prefix exceeds
    /// `random`. `temperature = 0` is [`Argmax`].
    Sample = "sample", in_place: [],
    tensors {
        /// `[rows, n]` f32
        Read logits,
        /// `[rows]` f32, uniform in `[0, 1)`
        Read random,
        /// `[rows]` u32
        Write output,
    }
    params {
        /// Divides the logits.
        temperature: f32,
        /// Candidates kept; 0 for all.
        top_k: usize,
        /// Probability kept, in `(0, 1]`.
        top_p: f32,
    }
}

impl Contract for Softmax<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        check.dims::<2>("input", &self.input)?;
        check.dtype("input", &self.input, &DType::FLOATS)?;
        check.shape("output", &self.output, &self.input.shape())?;
        check.dtype_like("output", &self.output, ("input", &self.input))?;
        check.param(self.scale.is_finite(), "scale", "finite", self.scale)
    }

    fn flops(&self) -> u64 {
        5 * self.input.values() as u64
    }
}

impl Contract for Argmax<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [rows, _] = check.dims("input", &self.input)?;
        check.dtype("input", &self.input, &[DType::F32])?;
        check.shape("output", &self.output, &[rows])?;
        check.dtype("output", &self.output, &[DType::U32])
    }

    fn flops(&self) -> u64 {
        self.input.values() as u64
    }
}

impl Contract for Sample<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [rows, _] = check.dims("logits", &self.logits)?;
        check.dtype("logits", &self.logits, &[DType::F32])?;
        check.shape("random", &self.random, &[rows])?;
        check.dtype("random", &self.random, &[DType::F32])?;
        check.shape("output", &self.output, &[rows])?;
        check.dtype("output", &self.output, &[DType::U32])?;
        let t = self.temperature;
        check.param(t.is_finite() && t >= 0.0, "temperature", "finite and not negative", t)?;
        let p = self.top_p;
        check.param(p > 0.0 && p <= 1.0, "top_p", "above 0 and at most 1", p)
    }

    fn flops(&self) -> u64 {
        5 * self.logits.values() as u64
    }
}

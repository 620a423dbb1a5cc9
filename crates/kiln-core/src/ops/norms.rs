//! The RMS normalisation family and layer normalisation.
//!
//! `rms(x) = x * rsqrt(mean(x^2) + eps)`, the mean over the last axis (Zhang and Sennrich, 2019).
//! Activations are f32, f16 or bf16, all of one type; weights are `[dim]` of that type or f32.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

op! {
    /// `output = rms(input) * weight`
    ///
    /// ```
    /// use kiln_core::ops::RmsNorm;
    /// # fn example(rec: &mut kiln_core::Recording, x: &kiln_core::Tensor, w: &kiln_core::Tensor,
    /// #            y: &kiln_core::Tensor) -> kiln_core::Result<()> {
    /// rec.push(RmsNorm { input: x, weight: Some(w), output: y, eps: 1e-6 })?;
    /// # Ok(()) }
    /// ```
    RmsNorm = "rms_norm", in_place: [(output, input)],
    tensors {
        /// `[rows, dim]`
        Read input,
        /// `[dim]`; without it the rows are only normalised
        MaybeRead weight,
        /// `[rows, dim]`
        Write output,
    }
    params {
        /// Added to the mean of squares.
        eps: f32,
    }
}

op! {
    /// `output = rms(input) * weight * scale`
    RmsNormMul = "rms_norm_mul", in_place: [(output, input), (output, scale)],
    tensors {
        /// `[rows, dim]`
        Read input,
        /// `[dim]`
        MaybeRead weight,
        /// `[rows, dim]`
        Read scale,
        /// `[rows, dim]`
        Write output,
    }
    params {
        /// Added to the mean of squares.
        eps: f32,
    }
}

op! {
    /// Three outputs from one statistic: `output_i = rms(input) * weight_i`
    RmsNormTriple = "rms_norm_triple", in_place: [],
    tensors {
        /// `[rows, dim]`, read once
        Read input,
        /// `[dim]`
        Read weight_a,
        /// `[dim]`
        Read weight_b,
        /// `[dim]`
        Read weight_c,
        /// `[rows, dim]`
        Write output_a,
        /// `[rows, dim]`
        Write output_b,
        /// `[rows, dim]`
        Write output_c,
    }
    params {
        /// Added to the mean of squares.
        eps: f32,
    }
}

op! {
    /// `residual = hidden + rms(attn) * weight_post`, then `output_i = rms(residual) * weight_i`.
    ///
    /// The second statistic is taken before `residual` is rounded to its type.
    PostAttnTripleNorm = "post_attn_triple_norm", in_place: [(residual, hidden)],
    tensors {
        /// `[rows, dim]`
        Read hidden,
        /// `[rows, dim]`
        Read attn,
        /// `[dim]`
        Read weight_post,
        /// `[dim]`
        Read weight_a,
        /// `[dim]`
        Read weight_b,
        /// `[dim]`
        Read weight_c,
        /// `[rows, dim]`; may be `hidden`
        Write residual,
        /// `[rows, dim]`
        Write output_a,
        /// `[rows, dim]`
        Write output_b,
        /// `[rows, dim]`
        Write output_c,
    }
    params {
        /// Added to both means of squares.
        eps: f32,
    }
}

op! {
    /// The end of a layer with a parallel mixture of experts:
    /// `mlp = attn + rms(moe) * weight_moe`,
    /// `output = (residual + rms(mlp) * weight_mlp) * layer_scalar`.
    ///
    /// The second statistic is taken before `mlp` is rounded to its type.
    PostFfNormEndLayer = "post_ff_norm_end_layer", in_place: [(output, residual)],
    tensors {
        /// `[rows, dim]`: the dense feed-forward branch
        Read attn,
        /// `[rows, dim]`: the expert branch
        Read moe,
        /// `[dim]`
        Read weight_moe,
        /// `[rows, dim]`
        Read residual,
        /// `[dim]`
        Read weight_mlp,
        /// `[1]` or `[dim]`
        Read layer_scalar,
        /// `[rows, dim]`
        Write mlp,
        /// `[rows, dim]`; may be `residual`
        Write output,
    }
    params {
        /// Added to both means of squares.
        eps: f32,
    }
}

op! {
    /// `moe[r] = sum over k of route[r, k] * experts[r, k]` in f32, then as [`PostFfNormEndLayer`],
    /// without a round trip of `moe` through memory.
    MoePostFfNormEndLayer = "moe_post_ff_norm_end_layer", in_place: [(output, residual)],
    tensors {
        /// `[rows, dim]`: the dense feed-forward branch
        Read attn,
        /// `[rows, top_k, dim]`
        Read experts,
        /// `[rows, top_k]` f32
        Read route,
        /// `[dim]`
        Read weight_moe,
        /// `[rows, dim]`
        Read residual,
        /// `[dim]`
        Read weight_mlp,
        /// `[1]` or `[dim]`
        Read layer_scalar,
        /// `[rows, dim]`
        Write mlp,
        /// `[rows, dim]`; may be `residual`
        Write output,
    }
    params {
        /// Added to both means of squares.
        eps: f32,
    }
}

op! {
    /// The pre-norm residual step: `residual = a + b`, `output = rms(residual) * weight`.
    ///
    /// The statistic is taken after `residual` is rounded to its type, as the separate operations
    /// would.
    AddRmsNorm = "add_rms_norm", in_place: [(residual, a)],
    tensors {
        /// `[rows, dim]`
        Read a,
        /// `[rows, dim]`
        Read b,
        /// `[dim]`
        MaybeRead weight,
        /// `[rows, dim]`; may be `a`
        Write residual,
        /// `[rows, dim]`
        Write output,
    }
    params {
        /// Added to the mean of squares.
        eps: f32,
    }
}

op! {
    /// `output = (input - mean) * rsqrt(variance + eps) * weight + bias` (Ba et al., 2016), the
    /// biased variance.
    LayerNorm = "layer_norm", in_place: [(output, input)],
    tensors {
        /// `[rows, dim]`
        Read input,
        /// `[dim]`
        Read weight,
        /// `[dim]`
        MaybeRead bias,
        /// `[rows, dim]`
        Write output,
    }
    params {
        /// Added to the variance.
        eps: f32,
    }
}

/// The first activation argument of a norm, which sets shape and type of the others.
struct Rows<'a> {
    check: Check,
    name: &'static str,
    tensor: &'a Tensor,
    rows: usize,
    dim: usize,
}

impl<'a> Rows<'a> {
    fn new(op: &'static str, name: &'static str, tensor: &'a Tensor) -> Result<Self, OpError> {
        let check = Check(op);
        let [rows, dim] = check.dims(name, tensor)?;
        check.dtype(name, tensor, &DType::FLOATS)?;
        Ok(Self { check, name, tensor, rows, dim })
    }

    fn like(&self, name: &'static str, t: &Tensor) -> Result<(), OpError> {
        self.check.shape(name, t, &[self.rows, self.dim])?;
        self.check.dtype_like(name, t, (self.name, self.tensor))
    }

    fn weight(&self, name: &'static str, t: &Tensor) -> Result<(), OpError> {
        self.check.vector(name, t, self.dim, (self.name, self.tensor))
    }

    fn layer_scalar(&self, t: &Tensor) -> Result<(), OpError> {
        let dim = if t.values() == 1 { 1 } else { self.dim };
        self.check.vector("layer_scalar", t, dim, (self.name, self.tensor))
    }
}

fn values(t: &Tensor) -> u64 {
    t.values() as u64
}

impl Contract for RmsNorm<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let rows = Rows::new(Self::NAME, "input", &self.input)?;
        if let Some(weight) = &self.weight {
            rows.weight("weight", weight)?;
        }
        rows.like("output", &self.output)?;
        rows.check.eps(self.eps)
    }

    fn flops(&self) -> u64 {
        4 * values(&self.input)
    }
}

impl Contract for RmsNormMul<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let rows = Rows::new(Self::NAME, "input", &self.input)?;
        if let Some(weight) = &self.weight {
            rows.weight("weight", weight)?;
        }
        rows.like("scale", &self.scale)?;
        rows.like("output", &self.output)?;
        rows.check.eps(self.eps)
    }

    fn flops(&self) -> u64 {
        5 * values(&self.input)
    }
}

impl Contract for RmsNormTriple<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let rows = Rows::new(Self::NAME, "input", &self.input)?;
        rows.weight("weight_a", &self.weight_a)?;
        rows.weight("weight_b", &self.weight_b)?;
        rows.weight("weight_c", &self.weight_c)?;
        rows.like("output_a", &self.output_a)?;
        rows.like("output_b", &self.output_b)?;
        rows.like("output_c", &self.output_c)?;
        rows.check.eps(self.eps)
    }

    fn flops(&self) -> u64 {
        8 * values(&self.input)
    }
}

impl Contract for PostAttnTripleNorm<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let rows = Rows::new(Self::NAME, "hidden", &self.hidden)?;
        rows.like("attn", &self.attn)?;
        rows.weight("weight_post", &self.weight_post)?;
        rows.weight("weight_a", &self.weight_a)?;
        rows.weight("weight_b", &self.weight_b)?;
        rows.weight("weight_c", &self.weight_c)?;
        rows.like("residual", &self.residual)?;
        rows.like("output_a", &self.output_a)?;
        rows.like("output_b", &self.output_b)?;
        rows.like("output_c", &self.output_c)?;
        rows.check.eps(self.eps)
    }

    fn flops(&self) -> u64 {
        13 * values(&self.hidden)
    }
}

impl Contract for PostFfNormEndLayer<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let rows = Rows::new(Self::NAME, "attn", &self.attn)?;
        rows.like("moe", &self.moe)?;
        rows.weight("weight_moe", &self.weight_moe)?;
        rows.like("residual", &self.residual)?;
        rows.weight("weight_mlp", &self.weight_mlp)?;
        rows.layer_scalar(&self.layer_scalar)?;
        rows.like("mlp", &self.mlp)?;
        rows.like("output", &self.output)?;
        rows.check.eps(self.eps)
    }

    fn flops(&self) -> u64 {
        11 * values(&self.attn)
    }
}

impl Contract for MoePostFfNormEndLayer<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let rows = Rows::new(Self::NAME, "attn", &self.attn)?;
        let check = rows.check;
        let [_, top_k, _] = check.dims("experts", &self.experts)?;
        check.shape("experts", &self.experts, &[rows.rows, top_k, rows.dim])?;
        check.dtype_like("experts", &self.experts, ("attn", &self.attn))?;
        check.shape("route", &self.route, &[rows.rows, top_k])?;
        check.dtype("route", &self.route, &[DType::F32])?;
        rows.weight("weight_moe", &self.weight_moe)?;
        rows.like("residual", &self.residual)?;
        rows.weight("weight_mlp", &self.weight_mlp)?;
        rows.layer_scalar(&self.layer_scalar)?;
        rows.like("mlp", &self.mlp)?;
        rows.like("output", &self.output)?;
        check.eps(self.eps)
    }

    fn flops(&self) -> u64 {
        11 * values(&self.attn) + 2 * values(&self.experts)
    }
}

impl Contract for AddRmsNorm<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let rows = Rows::new(Self::NAME, "a", &self.a)?;
        rows.like("b", &self.b)?;
        if let Some(weight) = &self.weight {
            rows.weight("weight", weight)?;
        }
        rows.like("residual", &self.residual)?;
        rows.like("output", &self.output)?;
        rows.check.eps(self.eps)
    }

    fn flops(&self) -> u64 {
        5 * values(&self.a)
    }
}

impl Contract for LayerNorm<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let rows = Rows::new(Self::NAME, "input", &self.input)?;
        rows.weight("weight", &self.weight)?;
        if let Some(bias) = &self.bias {
            rows.weight("bias", bias)?;
        }
        rows.like("output", &self.output)?;
        rows.check.eps(self.eps)
    }

    fn flops(&self) -> u64 {
        7 * values(&self.input)
    }
}

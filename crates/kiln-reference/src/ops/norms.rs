//! The RMS normalisation family and layer normalisation.

use crate::array::{Array, add, mul};
use crate::round::round;
use crate::view::View;
use kiln_core::ops::{
    AddRmsNorm, LayerNorm, MoePostFfNormEndLayer, PostAttnTripleNorm, PostFfNormEndLayer, RmsNorm,
    RmsNormMul, RmsNormTriple,
};
use kiln_core::{DType, Result};

/// `x * rsqrt(mean(x^2) + eps)`
pub(super) fn rms(x: &[f64], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let r = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().map(|x| x * r).collect()
}

/// `rms(x) * weight`, row by row.
fn normed(x: &Array, weight: &[f64], eps: f32) -> Array {
    x.map_rows(|_, row| mul(&rms(row, eps), weight))
}

/// The values of a vector `[dim]`, or ones without it.
pub(super) fn weight_or_ones(weight: &Option<View>, dim: usize) -> Result<Vec<f64>> {
    match weight {
        Some(weight) => Ok(weight.load()?.data),
        None => Ok(vec![1.0; dim]),
    }
}

pub(super) fn rms_norm(op: &RmsNorm<View>) -> Result<()> {
    let x = op.input.load()?;
    let weight = weight_or_ones(&op.weight, x.shape.last())?;
    op.output.store(&normed(&x, &weight, op.eps))
}

pub(super) fn rms_norm_mul(op: &RmsNormMul<View>) -> Result<()> {
    let x = op.input.load()?;
    let scale = op.scale.load()?;
    let weight = weight_or_ones(&op.weight, x.shape.last())?;
    let normed = normed(&x, &weight, op.eps).map(|x| round(x, DType::F32));
    op.output.store(&normed.zip(&scale, |x, s| x * s))
}

pub(super) fn rms_norm_triple(op: &RmsNormTriple<View>) -> Result<()> {
    let x = op.input.load()?;
    let a = normed(&x, &op.weight_a.load()?.data, op.eps);
    let b = normed(&x, &op.weight_b.load()?.data, op.eps);
    let c = normed(&x, &op.weight_c.load()?.data, op.eps);
    op.output_a.store(&a)?;
    op.output_b.store(&b)?;
    op.output_c.store(&c)
}

pub(super) fn post_attn_triple_norm(op: &PostAttnTripleNorm<View>) -> Result<()> {
    let hidden = op.hidden.load()?;
    let attn = normed(&op.attn.load()?, &op.weight_post.load()?.data, op.eps);
    let residual = hidden.zip(&attn, |h, a| h + a);
    let a = normed(&residual, &op.weight_a.load()?.data, op.eps);
    let b = normed(&residual, &op.weight_b.load()?.data, op.eps);
    let c = normed(&residual, &op.weight_c.load()?.data, op.eps);
    op.residual.store(&residual)?;
    op.output_a.store(&a)?;
    op.output_b.store(&b)?;
    op.output_c.store(&c)
}

pub(super) fn post_ff_norm_end_layer(op: &PostFfNormEndLayer<View>) -> Result<()> {
    let end = EndLayer {
        attn: &op.attn,
        weight_moe: &op.weight_moe,
        residual: &op.residual,
        weight_mlp: &op.weight_mlp,
        layer_scalar: &op.layer_scalar,
        eps: op.eps,
    };
    let (mlp, output) = end.compute(&op.moe.load()?)?;
    op.mlp.store(&mlp)?;
    op.output.store(&output)
}

pub(super) fn moe_post_ff_norm_end_layer(op: &MoePostFfNormEndLayer<View>) -> Result<()> {
    let experts = op.experts.load()?;
    let route = op.route.load()?;
    let mut moe = Array::zeros(op.attn.shape());
    for (r, weights) in route.rows().enumerate() {
        for (k, weight) in weights.iter().enumerate() {
            for (sum, x) in moe.row_mut(&[r]).iter_mut().zip(experts.row(&[r, k])) {
                *sum += weight * x;
            }
        }
    }
    let end = EndLayer {
        attn: &op.attn,
        weight_moe: &op.weight_moe,
        residual: &op.residual,
        weight_mlp: &op.weight_mlp,
        layer_scalar: &op.layer_scalar,
        eps: op.eps,
    };
    let (mlp, output) = end.compute(&moe)?;
    op.mlp.store(&mlp)?;
    op.output.store(&output)
}

/// What the two operations that end a layer have in common.
struct EndLayer<'a> {
    attn: &'a View,
    weight_moe: &'a View,
    residual: &'a View,
    weight_mlp: &'a View,
    layer_scalar: &'a View,
    eps: f32,
}

impl EndLayer<'_> {
    /// `mlp = attn + rms(moe) * weight_moe` and
    /// `output = (residual + rms(mlp) * weight_mlp) * layer_scalar`.
    fn compute(&self, moe: &Array) -> Result<(Array, Array)> {
        let moe = normed(moe, &self.weight_moe.load()?.data, self.eps);
        let mlp = self.attn.load()?.zip(&moe, |a, m| a + m);
        let mut scalar = self.layer_scalar.load()?.data;
        if scalar.len() == 1 {
            scalar = vec![scalar[0]; mlp.shape.last()];
        }
        let ffn = normed(&mlp, &self.weight_mlp.load()?.data, self.eps);
        let sum = self.residual.load()?.zip(&ffn, |r, f| r + f);
        let output = sum.map_rows(|_, row| mul(row, &scalar));
        Ok((mlp, output))
    }
}

pub(super) fn add_rms_norm(op: &AddRmsNorm<View>) -> Result<()> {
    let (a, b) = (op.a.load()?, op.b.load()?);
    let weight = weight_or_ones(&op.weight, a.shape.last())?;
    let residual = op.residual.rounded(&a.zip(&b, |a, b| a + b));
    let output = normed(&residual, &weight, op.eps);
    op.residual.store(&residual)?;
    op.output.store(&output)
}

pub(super) fn layer_norm(op: &LayerNorm<View>) -> Result<()> {
    let x = op.input.load()?;
    let weight = op.weight.load()?.data;
    let bias = match &op.bias {
        Some(bias) => bias.load()?.data,
        None => vec![0.0; weight.len()],
    };
    let output = x.map_rows(|_, row| {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let centred: Vec<f64> = row.iter().map(|x| x - mean).collect();
        let variance = centred.iter().map(|x| x * x).sum::<f64>() / n;
        let r = 1.0 / (variance + f64::from(op.eps)).sqrt();
        let normed: Vec<f64> = centred.iter().map(|x| x * r).collect();
        add(&mul(&normed, &weight), &bias)
    });
    op.output.store(&output)
}

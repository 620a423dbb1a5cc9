//! Elementwise operations.

use crate::array::Array;
use crate::view::View;
use kiln_core::Result;
use kiln_core::ops::{Add, GeluMul, Mul, Scale, SiluMul, Softcap};
use std::f64::consts::PI;

/// `x * sigmoid(x)`
pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
pub(super) fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// The values of `b`, a vector repeated for every row of `a`.
fn load_repeated(b: &View, a: &Array) -> Result<Array> {
    let b = b.load()?;
    Ok(if b.shape.len() == 1 { a.map_rows(|_, _| b.data.clone()) } else { b })
}

pub(super) fn add(op: &Add<View>) -> Result<()> {
    let a = op.a.load()?;
    let b = load_repeated(&op.b, &a)?;
    op.output.store(&a.zip(&b, |a, b| a + b))
}

pub(super) fn mul(op: &Mul<View>) -> Result<()> {
    let a = op.a.load()?;
    let b = load_repeated(&op.b, &a)?;
    op.output.store(&a.zip(&b, |a, b| a * b))
}

pub(super) fn scale(op: &Scale<View>) -> Result<()> {
    op.output.store(&op.input.load()?.map(|x| x * f64::from(op.factor)))
}

pub(super) fn softcap(op: &Softcap<View>) -> Result<()> {
    let cap = f64::from(op.cap);
    op.output.store(&op.input.load()?.map(|x| cap * (x / cap).tanh()))
}

pub(super) fn gelu_mul(op: &GeluMul<View>) -> Result<()> {
    op.output.store(&op.gate.load()?.zip(&op.up.load()?, |g, u| gelu_tanh(g) * u))
}

pub(super) fn silu_mul(op: &SiluMul<View>) -> Result<()> {
    op.output.store(&op.gate.load()?.zip(&op.up.load()?, |g, u| silu(g) * u))
}

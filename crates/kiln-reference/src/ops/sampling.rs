//! From logits to tokens.

use crate::array::Array;
use crate::view::View;
use kiln_core::Result;
use kiln_core::ops::{Argmax, Sample, Softmax};
use std::cmp::Ordering;

/// `exp(x - max)` over its sum.
pub(super) fn softmax_row(x: &[f64]) -> Vec<f64> {
    let max = x.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(x));
    let exps: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// Indices by falling value, ties by rising index, NaN after every number.
pub(super) fn ranked(x: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| match (x[a].is_nan(), x[b].is_nan()) {
        (false, false) => x[b].partial_cmp(&x[a]).unwrap_or(Ordering::Equal),
        (a_nan, b_nan) => a_nan.cmp(&b_nan),
    });
    order
}

pub(super) fn softmax(op: &Softmax<View>) -> Result<()> {
    let x = op.input.load()?.map(|x| x * f64::from(op.scale));
    op.output.store(&x.map_rows(|_, row| softmax_row(row)))
}

/// The first of the ranked indices; that of a row of NaN is 0.
fn largest(x: &[f64]) -> usize {
    ranked(x).first().copied().unwrap_or(0)
}

pub(super) fn argmax(op: &Argmax<View>) -> Result<()> {
    let x = op.input.load()?;
    let data = x.rows().map(|row| largest(row) as f64).collect();
    op.output.store(&Array { shape: op.output.shape(), data })
}

pub(super) fn sample(op: &Sample<View>) -> Result<()> {
    let logits = op.logits.load()?;
    let random = op.random.load()?.data;
    let draw = |(row, &random): (&[f64], &f64)| {
        if op.temperature == 0.0 { largest(row) } else { draw(op, row, random) }
    };
    let data = logits.rows().zip(&random).map(|pair| draw(pair) as f64).collect();
    op.output.store(&Array { shape: op.output.shape(), data })
}

/// One token from one row. A logit that is NaN is no candidate.
fn draw(op: &Sample<View>, logits: &[f64], random: f64) -> usize {
    let mut candidates = ranked(logits);
    candidates.retain(|&index| !logits[index].is_nan());
    let Some(&best) = candidates.first() else { return 0 };
    if op.top_k > 0 {
        candidates.truncate(op.top_k);
    }
    let weight = |index: usize| {
        // The equal case keeps infinite logits from giving NaN.
        let below = if logits[index] == logits[best] { 0.0 } else { logits[index] - logits[best] };
        (below / f64::from(op.temperature)).exp()
    };
    let mut weights: Vec<f64> = candidates.iter().map(|&index| weight(index)).collect();

    let nucleus = f64::from(op.top_p) * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= nucleus
    });
    weights.truncate(reached.map_or(weights.len(), |last| last + 1));

    let target = random * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let drawn = weights.iter().position(|weight| {
        sum += weight;
        sum > target
    });
    candidates[drawn.unwrap_or(weights.len() - 1)]
}

//! Per-head RMS normalisation and rotary position embedding.

use super::kv_cache::append;
use super::norms::{rms, weight_or_ones};
use crate::array::{Array, mul};
use crate::round::round;
use crate::view::View;
use kiln_core::ops::{HeadLayout, HeadNormRope, RopePairing};
use kiln_core::{DType, Result};

pub(super) fn head_norm_rope(op: &HeadNormRope<View>) -> Result<()> {
    let x = op.input.load()?;
    let [tokens, heads, dim] = [x.shape[0], x.shape[1], x.shape[2]];
    let weight = weight_or_ones(&op.weight, dim)?;
    let rotations = rotations(op, tokens, dim)?;
    let y = x.map_rows(|row, head| {
        let mut head = if op.normalize { mul(&rms(head, op.eps), &weight) } else { head.to_vec() };
        for (i, &(cos, sin)) in rotations[row / heads].iter().enumerate() {
            let (a, b) = pair(op.pairing, i, op.half, dim);
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
        head.into_iter().map(|x| round(x, DType::F32)).collect()
    });

    if let Some(output) = &op.output {
        output.store(&y)?;
    }
    if let Some(output) = &op.output_bf16 {
        match op.copy_layout {
            HeadLayout::TokenMajor => output.store(&y)?,
            HeadLayout::HeadMajor => output.store(&head_major(&y))?,
        }
    }
    if let Some(output) = &op.output_f32 {
        output.store(&head_major(&y))?;
    }
    if let (Some(cache), Some(start)) = (&op.cache, &op.cache_start) {
        append(&y, start.load_indices()?[0], cache, false)?;
    }
    Ok(())
}

/// The two elements of pair `i`.
fn pair(pairing: RopePairing, i: usize, half: usize, dim: usize) -> (usize, usize) {
    match pairing {
        RopePairing::Interleaved => (2 * i, 2 * i + 1),
        RopePairing::Leading => (i, i + half),
        RopePairing::Spanning => (i, i + dim / 2),
    }
}

/// Cosine and sine of every pair, by token.
fn rotations(op: &HeadNormRope<View>, tokens: usize, dim: usize) -> Result<Vec<Vec<(f64, f64)>>> {
    if op.half == 0 {
        return Ok(vec![Vec::new(); tokens]);
    }
    if let (Some(cos), Some(sin)) = (&op.cos, &op.sin) {
        let (cos, sin) = (cos.load()?, sin.load()?);
        let row = |table: &Array, t: usize| table.row(&[t.min(table.shape[0] - 1)]).to_vec();
        return Ok((0..tokens)
            .map(|t| row(&cos, t).into_iter().zip(row(&sin, t)).collect())
            .collect());
    }
    let positions = match &op.positions {
        Some(positions) => positions.load()?.data,
        None => vec![0.0; tokens],
    };
    let factors = weight_or_ones(&op.freq_factors, op.half)?;
    let turned = match op.pairing {
        RopePairing::Interleaved | RopePairing::Leading => 2 * op.half,
        RopePairing::Spanning => dim,
    };
    let angle = |position: f64, i: usize| {
        let exponent = -2.0 * i as f64 / turned as f64;
        position * f64::from(op.theta).powf(exponent) / factors[i]
    };
    Ok(positions
        .into_iter()
        .map(|p| (0..op.half).map(|i| (angle(p, i).cos(), angle(p, i).sin())).collect())
        .collect())
}

/// `[T, H, D]` to `[H, T, D]`.
fn head_major(y: &Array) -> Array {
    let [tokens, heads, dim] = [y.shape[0], y.shape[1], y.shape[2]];
    let mut out = Array::zeros([heads, tokens, dim]);
    for t in 0..tokens {
        for h in 0..heads {
            out.row_mut(&[h, t]).copy_from_slice(y.row(&[t, h]));
        }
    }
    out
}

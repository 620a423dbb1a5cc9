//! Matrix products. Each weight row is decoded once and used for every input row.

use super::elementwise::{gelu_tanh, silu};
use crate::array::{Array, dot};
use crate::round::round;
use crate::view::View;
use kiln_core::ops::{Activation, GatedMatmul, InputLayout, Matmul, MatmulId};
use kiln_core::{DType, Result};

pub(super) fn matmul(op: &Matmul<View>) -> Result<()> {
    let mut x = op.input.load()?;
    if op.input_layout == InputLayout::HeadMajor {
        x = concatenate_heads(&x);
    }
    op.output.store(&product(&x, &op.weight)?)
}

pub(super) fn gated_matmul(op: &GatedMatmul<View>) -> Result<()> {
    let x = op.input.load()?;
    let gate = product(&x, &op.gate)?.map(|x| round(x, DType::F32));
    let up = product(&x, &op.up)?.map(|x| round(x, DType::F32));
    let activation = match op.activation {
        Activation::Silu => silu,
        Activation::GeluTanh => gelu_tanh,
    };
    op.output.store(&gate.zip(&up, |g, u| activation(g) * u))
}

pub(super) fn matmul_id(op: &MatmulId<View>) -> Result<()> {
    let x = op.input.load()?;
    let ids = op.ids.load_indices()?;
    let [experts, n] = [op.weight.extent(0), op.weight.extent(1)];
    let [m, top_k] = [op.ids.extent(0), op.ids.extent(1)];
    let row = |slot: usize| match x.shape.len() {
        2 => x.row(&[slot / top_k]),
        _ => x.row(&[slot / top_k, slot % top_k]),
    };
    let mut output = Array::zeros([m, top_k, n]).map(|_| f64::NAN);
    for expert in 0..experts {
        let slots: Vec<usize> = (0..ids.len()).filter(|&slot| ids[slot] == expert).collect();
        if slots.is_empty() {
            continue;
        }
        for j in 0..n {
            let weight = op.weight.load_row(&[expert, j])?;
            for &slot in &slots {
                output.row_mut(&[slot / top_k, slot % top_k])[j] = dot(&weight, row(slot));
            }
        }
    }
    op.output.store(&output)
}

/// `[m, k]` by `[n, k]` to `[m, n]`.
fn product(x: &Array, weight: &View) -> Result<Array> {
    let [m, n] = [x.shape[0], weight.extent(0)];
    let mut output = Array::zeros([m, n]);
    for j in 0..n {
        let weight = weight.load_row(&[j])?;
        for i in 0..m {
            output.row_mut(&[i])[j] = dot(&weight, x.row(&[i]));
        }
    }
    Ok(output)
}

/// `[H, m, D]` to `[m, H * D]`.
fn concatenate_heads(x: &Array) -> Array {
    let [heads, m, dim] = [x.shape[0], x.shape[1], x.shape[2]];
    let mut out = Array::zeros([m, heads * dim]);
    for h in 0..heads {
        for i in 0..m {
            out.row_mut(&[i])[h * dim..(h + 1) * dim].copy_from_slice(x.row(&[h, i]));
        }
    }
    out
}

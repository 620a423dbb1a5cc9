//! Gathering, copying and pooling of rows.

use crate::array::Array;
use crate::view::View;
use kiln_core::Result;
use kiln_core::ops::{Copy, Embed, Pool, PoolMode};

pub(super) fn embed(op: &Embed<View>) -> Result<()> {
    let mut output = Array::zeros(op.output.shape());
    for (i, id) in op.ids.load_indices()?.into_iter().enumerate() {
        let output = output.row_mut(&[i]);
        if id < op.weight.extent(0) {
            let row = op.weight.load_row(&[id])?;
            output.iter_mut().zip(row).for_each(|(y, w)| *y = w * f64::from(op.scale));
        } else {
            output.fill(f64::NAN);
        }
    }
    op.output.store(&output)
}

pub(super) fn copy(op: &Copy<View>) -> Result<()> {
    op.output.store(&op.input.load()?)
}

pub(super) fn pool(op: &Pool<View>) -> Result<()> {
    let x = op.input.load()?;
    let tokens = x.shape[1];
    let mut output = Array::zeros(op.output.shape());
    for (b, length) in op.lengths.load_indices()?.into_iter().enumerate() {
        let output = output.row_mut(&[b]);
        if length == 0 || length > tokens {
            output.fill(f64::NAN);
            continue;
        }
        match op.mode {
            PoolMode::Cls => output.copy_from_slice(x.row(&[b, 0])),
            PoolMode::Last => output.copy_from_slice(x.row(&[b, length - 1])),
            PoolMode::Mean => {
                for t in 0..length {
                    output.iter_mut().zip(x.row(&[b, t])).for_each(|(sum, x)| *sum += x);
                }
                output.iter_mut().for_each(|sum| *sum /= length as f64);
            }
        }
    }
    op.output.store(&output)
}

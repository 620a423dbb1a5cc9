//! Routing of a mixture of experts.

use super::sampling::{ranked, softmax_row};
use crate::array::Array;
use crate::view::View;
use kiln_core::Result;
use kiln_core::ops::MoeRoute;

/// Least sum that chosen weights are divided by.
const MIN_SUM: f64 = 6.1e-5;

pub(super) fn moe_route(op: &MoeRoute<View>) -> Result<()> {
    let logits = op.logits.load()?;
    let top_k = op.ids.extent(1);
    let mut ids = Array::zeros(op.ids.shape());
    let mut weights = Array::zeros(op.weights.shape());
    for (r, row) in logits.rows().enumerate() {
        let probabilities = softmax_row(row);
        let chosen = &ranked(row)[..top_k];
        let sum: f64 = chosen.iter().map(|&expert| probabilities[expert]).sum();
        let divisor = if op.renormalize { sum.max(MIN_SUM) } else { 1.0 };
        for (k, &expert) in chosen.iter().enumerate() {
            ids.row_mut(&[r])[k] = expert as f64;
            weights.row_mut(&[r])[k] = probabilities[expert] / divisor;
        }
    }
    op.ids.store(&ids)?;
    op.weights.store(&weights)
}

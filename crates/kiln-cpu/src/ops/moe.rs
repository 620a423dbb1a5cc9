//! Routing of a mixture of experts.

use super::sampling::{exp, index_of, key, maximum};
use super::values::row_tasks;
use crate::exec::Lowering;
use crate::isa::{Simd, with_simd};
use crate::view::View;
use kiln_core::ops::MoeRoute;

/// Least sum that chosen weights are divided by.
const LEAST_SUM: f64 = 6.1e-5;

/// Cost of an expert, in simple values.
const EXPERT_COST: usize = 8;

/// Softmax over all experts, then the largest in falling order.
pub(super) fn moe_route(op: &MoeRoute<View>, lowering: &mut Lowering) {
    let MoeRoute { logits, ids, weights, renormalize } = *op;
    let (isa, experts, top_k) = (lowering.isa, logits.last(), ids.last());
    row_tasks(lowering, [logits.extent(0), EXPERT_COST * experts], move |rows, scratch| {
        let [keys, probabilities] = scratch.parts([experts * size_of::<u64>(); 2]);
        let keys: &mut [u64] = bytemuck::cast_slice_mut(keys);
        let probabilities: &mut [f64] = bytemuck::cast_slice_mut(probabilities);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            for row in rows {
                // SAFETY: types by the contract; the output rows are this task's alone.
                let (logits, ids, weights) = unsafe {
                    (
                        logits.row::<f32, 1>([row]),
                        ids.row_mut::<u32, 1>([row]),
                        weights.row_mut::<f32, 1>([row]),
                    )
                };
                softmax(logits, probabilities);
                let chosen = best(logits, top_k, keys);
                let chosen_sum: f64 =
                    chosen.iter().map(|key| probabilities[index_of(*key) as usize]).sum();
                let divisor = if renormalize { chosen_sum.max(LEAST_SUM) } else { 1.0 };
                for ((id, weight), key) in ids.iter_mut().zip(weights).zip(chosen) {
                    *id = index_of(*key);
                    *weight = (probabilities[*id as usize] / divisor) as f32;
                }
            }
        }));
    });
}

#[inline(always)]
fn softmax(logits: &[f32], probabilities: &mut [f64]) {
    let max = f64::from(maximum(logits, 1.0));
    for (probability, logit) in probabilities.iter_mut().zip(logits) {
        *probability = exp(f64::from(*logit) - max);
    }
    let sum: f64 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|probability| *probability /= sum);
}

/// Keys of the largest, in order.
#[inline(always)]
fn best<'a>(logits: &[f32], count: usize, keys: &'a mut [u64]) -> &'a [u64] {
    for (index, (slot, logit)) in keys.iter_mut().zip(logits).enumerate() {
        *slot = key(*logit, index);
    }
    if count < keys.len() {
        keys.select_nth_unstable(count);
    }
    let chosen = &mut keys[..count];
    chosen.sort_unstable();
    chosen
}

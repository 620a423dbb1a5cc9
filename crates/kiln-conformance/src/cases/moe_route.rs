//! Routing to experts.

use super::{Cases, turn, within};
use crate::bounds::Family;
use crate::program::{Agreement, Layout, Program};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "moe_route";

pub(super) fn add(cases: &mut Cases) {
    let sizes =
        [[1, 1], [2, 1], [4, 2], [8, 2], [32, 8], [60, 4], [64, 6], [128, 8], [257, 3], [8, 8]];
    for (i, [experts, top_k]) in sizes.into_iter().enumerate() {
        for renormalize in [false, true] {
            for rows in [1, 5, 33] {
                let dist = turn(&[Dist::Normal(1.0), Dist::Normal(5.0), Dist::Uniform], i + rows);
                let layout = Layout::turn(i + rows);
                let label = format!("[{rows}, {experts}] top_k {top_k}, {dist}, {layout}");
                cases.add(OP, route(renormalize), label, move |p| {
                    p.layout(layout);
                    let logits = p.rng.values(rows * experts, dist);
                    push(p, [rows, experts, top_k], &logits, renormalize);
                    Ok(())
                });
            }
            let label = format!("[6, {experts}] top_k {top_k}, ties");
            cases.add(OP, route(renormalize), label, move |p| {
                let mut logits = p.rng.values(6 * experts, Dist::Normal(2.0));
                for (row, logits) in logits.chunks_exact_mut(experts).enumerate() {
                    match row {
                        0 => logits.fill(0.5),
                        1 => logits.iter_mut().step_by(2).for_each(|v| *v = 3.0),
                        _ => logits.iter_mut().for_each(|v| *v = v.round()),
                    }
                }
                push(p, [6, experts, top_k], &logits, renormalize);
                Ok(())
            });
        }
    }
    for renormalize in [false, true] {
        cases.add(OP, route(renormalize), "experts at minus infinity", move |p| {
            let mut logits = p.rng.values(5 * 16, Dist::Normal(1.0));
            logits.iter_mut().step_by(3).for_each(|v| *v = f32::NEG_INFINITY);
            push(p, [5, 16, 4], &logits, renormalize);
            Ok(())
        });
        cases.add(OP, route(renormalize), "NaN never wins", move |p| {
            let mut logits = p.rng.values(5 * 16, Dist::Normal(1.0));
            logits.iter_mut().step_by(5).for_each(|v| *v = f32::NAN);
            push(p, [5, 16, 4], &logits, renormalize);
            Ok(())
        });
        cases.add(OP, route(renormalize), "large logits", move |p| {
            let logits = p.rng.values(5 * 16, Dist::Shifted(1000.0, 10.0));
            push(p, [5, 16, 4], &logits, renormalize);
            Ok(())
        });
    }
}

fn route(renormalize: bool) -> &'static str {
    if renormalize { "renormalized" } else { "plain" }
}

fn push(p: &mut Program, [rows, experts, top_k]: [usize; 3], logits: &[f32], renormalize: bool) {
    let logits = p.floats(DType::F32, [rows, experts], logits);
    let ids = p.output(DType::U32, [rows, top_k], Agreement::Exact);
    let agreement = within(Family::Transcendental, DType::F32, rows * top_k);
    let weights = p.output(DType::F32, [rows, top_k], agreement);
    p.push(Op::MoeRoute(MoeRoute { logits, ids, weights, renormalize }));
}

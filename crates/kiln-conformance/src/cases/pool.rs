//! One row for a sequence.

use super::{Cases, turn, within};
use crate::bounds::Family;
use crate::program::{Agreement, Layout};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "pool";

pub(super) fn add(cases: &mut Cases) {
    let shapes = [[1, 1, 1], [1, 7, 64], [3, 33, 100], [4, 128, 31], [2, 512, 384], [5, 2, 768]];
    let modes = [(PoolMode::Mean, "mean"), (PoolMode::Cls, "cls"), (PoolMode::Last, "last")];
    for (t, x) in DType::FLOATS.into_iter().enumerate() {
        for (i, [batch, tokens, dim]) in shapes.into_iter().enumerate() {
            for (mode, route) in modes {
                let layout = Layout::turn(t + i);
                let dist = turn(&[Dist::Normal(1.0), Dist::Shifted(3.0, 1.0)], i + t);
                let label = format!("{x} [{batch}, {tokens}, {dim}], {dist}, {layout}");
                cases.add(OP, route, label, move |p| {
                    p.layout(layout);
                    let input = p.float(x, [batch, tokens, dim], dist);
                    // The whole sequence, then any length, then lengths that give NaN.
                    let lengths: Vec<u32> = (0..batch)
                        .map(|b| match b {
                            0 => tokens as u32,
                            2 => 0,
                            3 => tokens as u32 + 1,
                            4 => u32::MAX,
                            _ => 1 + p.rng.below(tokens) as u32,
                        })
                        .collect();
                    let lengths = p.ints([batch], &lengths);
                    let agreement = match mode {
                        PoolMode::Mean => within(Family::Norm, x, batch * dim),
                        PoolMode::Cls | PoolMode::Last => Agreement::Exact,
                    };
                    let output = p.output(x, [batch, dim], agreement);
                    p.push(Op::Pool(Pool { input, lengths, output, mode }));
                    Ok(())
                });
            }
        }
    }
}

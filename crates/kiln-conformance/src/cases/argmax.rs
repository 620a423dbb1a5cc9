//! Largest values of rows.

use super::{Cases, turn};
use crate::program::{Agreement, Layout, Program};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "argmax";

pub(super) fn add(cases: &mut Cases) {
    let lengths = [1, 2, 31, 32, 33, 255, 256, 257, 1000, 4097, 32_000, 151_937, 262_144];
    for (i, n) in lengths.into_iter().enumerate() {
        for rows in [1, 3] {
            let layout = Layout::turn(i + rows);
            cases.add(OP, "rows", format!("[{rows}, {n}], {layout}"), move |p| {
                p.layout(layout);
                let values = p.rng.values(rows * n, Dist::Normal(1.0));
                argmax(p, rows, n, &values);
                Ok(())
            });
        }
        let dist = turn(&[Dist::Uniform, Dist::Shifted(-50.0, 1.0)], i);
        cases.add(OP, "ties", format!("[4, {n}] {dist}"), move |p| {
            let mut values = p.rng.values(4 * n, dist);
            for row in values.chunks_exact_mut(n) {
                // The same largest value at several places.
                let places = [p.rng.below(n), p.rng.below(n), n - 1];
                places.iter().for_each(|&place| row[place] = 2.0);
            }
            argmax(p, 4, n, &values);
            Ok(())
        });
    }
    for (i, n) in [1, 33, 1000, 4097].into_iter().enumerate() {
        cases.add(OP, "special values", format!("[8, {n}]"), move |p| {
            let mut values = p.rng.values(8 * n, Dist::Normal(1.0));
            let place = p.rng.below(n);
            for (row, values) in values.chunks_exact_mut(n).enumerate() {
                match row {
                    0 => values.fill(f32::NAN),
                    1 => values.fill(f32::NEG_INFINITY),
                    2 => values[0] = f32::NAN,
                    3 => values[n - 1] = f32::NAN,
                    4 => values[place] = f32::INFINITY,
                    5 => {
                        values.fill(f32::NAN);
                        values[place] = -3.0;
                    }
                    6 => values.iter_mut().step_by(2).for_each(|v| *v = f32::NAN),
                    _ => values.fill(if i % 2 == 0 { -1.5 } else { 0.0 }),
                }
            }
            argmax(p, 8, n, &values);
            Ok(())
        });
    }
}

fn argmax(p: &mut Program, rows: usize, n: usize, values: &[f32]) {
    let input = p.floats(DType::F32, [rows, n], values);
    let output = p.output(DType::U32, [rows], Agreement::Exact);
    p.push(Op::Argmax(Argmax { input, output }));
}

//! Softmax over rows.

use super::{Cases, turn, within};
use crate::bounds::Family;
use crate::program::{Layout, Program};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "softmax";
const SHAPES: [[usize; 2]; 14] = [
    [1, 1],
    [2, 2],
    [3, 7],
    [1, 31],
    [4, 32],
    [2, 33],
    [5, 64],
    [1, 100],
    [3, 255],
    [2, 256],
    [33, 257],
    [2, 1000],
    [1, 4097],
    [1, 32_000],
];

pub(super) fn add(cases: &mut Cases) {
    for (t, x) in DType::FLOATS.into_iter().enumerate() {
        for (i, [rows, n]) in SHAPES.into_iter().enumerate() {
            let dist =
                turn(&[Dist::Normal(8.0), Dist::Normal(1.0), Dist::Shifted(500.0, 8.0)], i + t);
            let scale = turn(&[1.0, 0.125, -0.5], i / 2 + t);
            let layout = Layout::turn(i + t);
            let in_place = (i + t) % 3 == 1;
            let place = if in_place { ", in place" } else { "" };
            let label = format!("{x} [{rows}, {n}] scale {scale}, {dist}, {layout}{place}");
            cases.add(OP, "rows", label, move |p| {
                p.layout(layout);
                let values = p.rng.values(rows * n, dist);
                softmax(p, x, [rows, n], &values, (scale, in_place));
                Ok(())
            });
        }
        cases.add(OP, "special values", format!("{x}, minus infinity but for some"), move |p| {
            let mut values = p.rng.values(5 * 100, Dist::Normal(3.0));
            for (index, value) in values.iter_mut().enumerate() {
                let masked = match index / 100 {
                    0 => index % 2 == 0,
                    1 => index % 100 != 42,
                    2 => index % 100 < 64,
                    3 => true,
                    _ => false,
                };
                if masked {
                    *value = f32::NEG_INFINITY;
                }
            }
            softmax(p, x, [5, 100], &values, (1.0, false));
            Ok(())
        });
        cases.add(OP, "special values", format!("{x}, rows of equal values"), move |p| {
            let values: Vec<f32> = (0..4 * 96).map(|i| [0.0, -80.0, 1e4, 3.5][i / 96]).collect();
            softmax(p, x, [4, 96], &values, (1.0, false));
            Ok(())
        });
    }
}

fn softmax(
    p: &mut Program,
    x: DType,
    [rows, n]: [usize; 2],
    values: &[f32],
    (scale, in_place): (f32, bool),
) {
    let input = p.floats(x, [rows, n], values);
    let agreement = within(Family::Transcendental, x, rows * n);
    let output =
        if in_place { p.agree(input, agreement) } else { p.output(x, [rows, n], agreement) };
    p.push(Op::Softmax(Softmax { input, output, scale }));
}

//! Elementwise operations.

use super::{Cases, turn, within};
use crate::bounds::Family;
use crate::program::{Layout, Program, Slot};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const SHAPES: [[usize; 2]; 12] = [
    [1, 1],
    [1, 3],
    [2, 4],
    [3, 31],
    [1, 32],
    [5, 33],
    [4, 64],
    [17, 255],
    [2, 256],
    [3, 1000],
    [64, 65],
    [1, 4096],
];

/// The second operand of a sum or a product.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Second {
    Rows,
    Vector,
    SingleVector,
}

type Binary = fn(Slot, Slot, Slot) -> Op<Slot>;
type Unary = fn(Slot, Slot, f32) -> Op<Slot>;

pub(super) fn add(cases: &mut Cases) {
    let add: Binary = |a, b, output| Op::Add(Add { a, b, output });
    let mul: Binary = |a, b, output| Op::Mul(Mul { a, b, output });
    let gelu: Binary = |gate, up, output| Op::GeluMul(GeluMul { gate, up, output });
    let silu: Binary = |gate, up, output| Op::SiluMul(SiluMul { gate, up, output });
    let seconds = [Second::Rows, Second::Vector, Second::SingleVector];
    binary(cases, ("add", Family::Arithmetic), &seconds, add);
    binary(cases, ("mul", Family::Arithmetic), &seconds, mul);
    binary(cases, ("gelu_mul", Family::Transcendental), &seconds[..1], gelu);
    binary(cases, ("silu_mul", Family::Transcendental), &seconds[..1], silu);
    let scale: Unary = |input, output, factor| Op::Scale(Scale { input, output, factor });
    let softcap: Unary = |input, output, cap| Op::Softcap(Softcap { input, output, cap });
    unary(cases, ("scale", Family::Arithmetic), [1.0, -0.125, 45.254_834], scale);
    unary(cases, ("softcap", Family::Transcendental), [30.0, 50.0, 1.0], softcap);
    special(cases, ("add", Family::Arithmetic), add);
    special(cases, ("mul", Family::Arithmetic), mul);
    saturated(cases, "gelu_mul", gelu);
    saturated(cases, "silu_mul", silu);
}

fn route(dim: usize) -> &'static str {
    if dim.is_multiple_of(4) { "vector" } else { "scalar" }
}

fn binary(
    cases: &mut Cases,
    (op, family): (&'static str, Family),
    seconds: &[Second],
    make: Binary,
) {
    for (t, x) in DType::FLOATS.into_iter().enumerate() {
        for (i, [rows, dim]) in SHAPES.into_iter().enumerate() {
            let places = ["", ", in place of the first", ", in place of the second"];
            for (k, place) in places.into_iter().enumerate() {
                let second = turn(seconds, i + t + k);
                // In place in half of the grid; a vector has another shape than the output.
                if k > 0 && (i + t) % 2 == 1 || k == 2 && second != Second::Rows {
                    continue;
                }
                let layout = Layout::turn(i + t + k);
                let dist = turn(&[Dist::Normal(1.0), Dist::Uniform, Dist::Normal(4.0)], i + t);
                let label = format!("{x} [{rows}, {dim}] {second:?}, {dist}, {layout}{place}");
                cases.add(op, route(dim), label, move |p| {
                    p.layout(layout);
                    let a = p.float(x, [rows, dim], dist);
                    let b = match second {
                        Second::Rows => p.float(x, [rows, dim], dist),
                        Second::Vector => p.float(x, [dim], dist),
                        Second::SingleVector => p.float(DType::F32, [dim], dist),
                    };
                    let agreement = within(family, x, rows * dim);
                    let output = match k {
                        0 => p.output(x, [rows, dim], agreement),
                        1 => p.agree(a, agreement),
                        _ => p.agree(b, agreement),
                    };
                    p.push(make(a, b, output));
                    Ok(())
                });
            }
        }
    }
}

fn unary(
    cases: &mut Cases,
    (op, family): (&'static str, Family),
    parameters: [f32; 3],
    make: Unary,
) {
    for (t, x) in DType::FLOATS.into_iter().enumerate() {
        for (i, [rows, dim]) in SHAPES.into_iter().enumerate() {
            let parameter = turn(&parameters, i + t);
            let in_place = (i + t) % 3 == 2;
            let layout = Layout::turn(i + t);
            let dist = turn(&[Dist::Normal(1.0), Dist::Normal(60.0), Dist::Uniform], i / 2 + t);
            let place = if in_place { ", in place" } else { "" };
            let label = format!("{x} [{rows}, {dim}] {parameter}, {dist}, {layout}{place}");
            cases.add(op, route(dim), label, move |p| {
                p.layout(layout);
                let input = p.float(x, [rows, dim], dist);
                let agreement = within(family, x, rows * dim);
                let output = if in_place {
                    p.agree(input, agreement)
                } else {
                    p.output(x, [rows, dim], agreement)
                };
                p.push(make(input, output, parameter));
                Ok(())
            });
        }
    }
}

/// Infinities and NaN among the inputs.
fn special(cases: &mut Cases, (op, family): (&'static str, Family), make: Binary) {
    for x in DType::FLOATS {
        cases.add(op, "special values", x.to_string(), move |p| {
            let mut values =
                [p.rng.values(256, Dist::Normal(1.0)), p.rng.values(256, Dist::Normal(1.0))];
            sprinkle(&mut values[0], &[f32::INFINITY, f32::NAN, f32::NEG_INFINITY, 0.0, -0.0], 7);
            sprinkle(&mut values[1], &[f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::NAN], 11);
            let a = p.floats(x, [4, 64], &values[0]);
            let b = p.floats(x, [4, 64], &values[1]);
            let output = p.output(x, [4, 64], within(family, x, 256));
            p.push(make(a, b, output));
            Ok(())
        });
    }
}

fn sprinkle(values: &mut [f32], special: &[f32], step: usize) {
    for (index, value) in values.iter_mut().step_by(step).enumerate() {
        *value = turn(special, index);
    }
}

/// Gates far out, where a careless exponential overflows.
fn saturated(cases: &mut Cases, op: &'static str, make: Binary) {
    for x in DType::FLOATS {
        for end in [9.0, 20.0, 88.0, 100.0, 1e4] {
            cases.add(op, "saturated", format!("{x} at {end}"), move |p: &mut Program| {
                // Not round: a product with a round number is often next to a rounding tie.
                let far = 0.987 * end;
                let ends = [-far, far, 0.0, -0.0, -0.9 * far];
                let gates: Vec<f32> = (0..96).map(|index| turn(&ends, index)).collect();
                let gate = p.floats(x, [2, 48], &gates);
                let up = p.float(x, [2, 48], Dist::Normal(1.0));
                let output = p.output(x, [2, 48], within(Family::Transcendental, x, 96));
                p.push(make(gate, up, output));
                Ok(())
            });
        }
    }
}

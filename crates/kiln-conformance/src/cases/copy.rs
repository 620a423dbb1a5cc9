//! Copies: cast, permute, pack.

use super::{Cases, turn};
use crate::program::{Agreement, Layout, Program, Slot};
use crate::rng::Dist;
use kiln_core::ops::*;
use kiln_core::{DType, Shape};

const OP: &str = "copy";

pub(super) fn add(cases: &mut Cases) {
    let shapes: [&[usize]; 10] = [
        &[1],
        &[37],
        &[3, 31],
        &[64, 64],
        &[2, 3, 5],
        &[4, 9, 64],
        &[1, 1, 1, 1],
        &[2, 3, 4, 5],
        &[2, 8, 7, 64],
        &[1000, 3],
    ];
    let pairs = DType::FLOATS.into_iter().flat_map(|a| DType::FLOATS.map(|b| (a, b)));
    let pairs = pairs.chain([(DType::U32, DType::U32), (DType::U8, DType::U8)]);
    for (t, (from, to)) in pairs.enumerate() {
        let route = if from == to { "same type" } else { "cast" };
        for (i, extents) in shapes.into_iter().enumerate() {
            let layouts = [Layout::turn(t + i), Layout::turn(t + i / 2 + 1)];
            let label = format!("{from} to {to} {extents:?}, {} to {}", layouts[0], layouts[1]);
            cases.add(OP, route, label, move |p| {
                let Some(shape) = Shape::from_slice(extents) else { return Ok(()) };
                p.layout(layouts[0]);
                let input = values(p, from, shape);
                p.layout(layouts[1]);
                let output = p.output(to, shape, Agreement::Exact);
                p.push(Op::Copy(Copy { input, output }));
                Ok(())
            });
        }
        cases.add(OP, "permute", format!("{from} to {to} [4, 9, 33] transposed"), move |p| {
            let input = values(p, from, [9, 4, 33].into());
            let input = p.transpose(input, 0, 1);
            let output = p.output(to, [4, 9, 33], Agreement::Exact);
            p.push(Op::Copy(Copy { input, output }));
            Ok(())
        });
        if from.is_float() {
            cases.add(OP, "special values", format!("{from} to {to}"), move |p| {
                let values = special(p);
                let input = p.floats(from, [4, 128], &values);
                let output = p.output(to, [4, 128], Agreement::Exact);
                p.push(Op::Copy(Copy { input, output }));
                Ok(())
            });
        }
    }
    for (layouts, label) in [
        ([Layout::Far, Layout::Guarded], "u8, input rows 1 Gi elements apart"),
        ([Layout::Guarded, Layout::Far], "u8, output rows 1 Gi elements apart"),
    ] {
        cases.add_large(OP, label, move |p| {
            p.layout(layouts[0]);
            let input = values(p, DType::U8, [4, 1000].into());
            p.layout(layouts[1]);
            let output = p.output(DType::U8, [4, 1000], Agreement::Exact);
            p.push(Op::Copy(Copy { input, output }));
            Ok(())
        });
    }
}

fn values(p: &mut Program, dtype: DType, shape: Shape) -> Slot {
    let count: usize = shape.iter().product();
    if dtype.is_float() {
        return p.float(dtype, shape, turn(&[Dist::Normal(1.0), Dist::Normal(1e4)], count));
    }
    let bytes = (0..count * dtype.block_bytes()).map(|_| p.rng.bits() as u8).collect();
    p.bytes(dtype, shape, bytes)
}

/// Ties, overflow, numbers that are subnormal in f16, infinities and NaN.
fn special(p: &mut Program) -> Vec<f32> {
    let mut values = vec![
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        65_504.0,
        65_519.9,
        65_520.0,
        -70_000.0,
        f32::MAX,
        6.1e-5,
        5.96e-8,
        2.98e-8,
        2.99e-8,
        -1e-6,
        1e-9,
        // Ties of f16 and of bf16, to even above and below.
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        f32::from_bits(0x3f80_8001),
        f32::from_bits(0x3f80_7fff),
    ];
    while values.len() < 512 {
        // Any finite exponent that is normal in f32.
        let bits = (p.rng.bits() as u32 & 0x807f_ffff) | ((1 + p.rng.below(254) as u32) << 23);
        values.push(f32::from_bits(bits));
    }
    values
}

//! Per-head norm and rotary embedding.

use super::{Cases, turn, within};
use crate::bounds::Family;
use crate::program::{Agreement, Check, Equality, Layout, Program, Slot, ints};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "head_norm_rope";

/// Tokens, heads, head dimension, rotated pairs.
const SHAPES: [[usize; 4]; 18] = [
    [1, 1, 2, 1],
    [1, 2, 8, 4],
    [5, 3, 8, 1],
    [2, 3, 40, 20],
    [3, 2, 64, 32],
    [7, 1, 64, 16],
    [2, 2, 80, 20],
    [1, 4, 96, 48],
    [4, 2, 128, 64],
    [3, 5, 128, 32],
    [17, 2, 64, 0],
    [2, 3, 256, 128],
    [33, 1, 256, 32],
    [2, 2, 512, 64],
    [2, 3, 7, 3],
    [2, 2, 264, 132],
    [3, 1, 521, 60],
    [1, 1, 12800, 64],
];

const PAIRINGS: [RopePairing; 3] =
    [RopePairing::Interleaved, RopePairing::Leading, RopePairing::Spanning];

/// Which outputs are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outputs {
    Plain,
    Bf16(HeadLayout),
    F32,
    Cache(DType),
    All(DType),
}

const OUTPUTS: [Outputs; 8] = [
    Outputs::Plain,
    Outputs::Bf16(HeadLayout::TokenMajor),
    Outputs::Bf16(HeadLayout::HeadMajor),
    Outputs::F32,
    Outputs::Cache(DType::F32),
    Outputs::Cache(DType::F16),
    Outputs::All(DType::BF16),
    Outputs::All(DType::F16),
];

/// Where the angles come from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Angles {
    /// Positions 0, 1, 2 and so on.
    First,
    /// Any positions up to 131071, and 131071 itself.
    Far,
    /// As `Far`, with divisors from 1 to 8 and 1e30.
    Factors,
    /// Tables with a row per token.
    Tables,
    /// Tables with one row for all tokens.
    OneRow,
}

const ANGLES: [Angles; 5] =
    [Angles::First, Angles::Far, Angles::Factors, Angles::Tables, Angles::OneRow];

/// Normalisation: none, without weight, with a weight of the input's type or f32.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Norm {
    None,
    Plain,
    Same,
    F32,
}

const NORMS: [Norm; 4] = [Norm::Same, Norm::None, Norm::F32, Norm::Plain];

#[derive(Clone, Copy)]
struct Spec {
    x: DType,
    shape: [usize; 4],
    pairing: RopePairing,
    outputs: Outputs,
    angles: Angles,
    norm: Norm,
    layout: Layout,
    theta: f32,
}

pub(super) fn add(cases: &mut Cases) {
    for (a, x) in DType::FLOATS.into_iter().enumerate() {
        for (b, pairing) in PAIRINGS.into_iter().enumerate() {
            for (c, shape) in SHAPES.into_iter().enumerate() {
                let index = a * 5 + b * 3 + c;
                add_one(
                    cases,
                    Spec {
                        x,
                        shape,
                        pairing,
                        outputs: turn(&OUTPUTS, index),
                        angles: turn(&ANGLES, index + c / 5),
                        norm: turn(&NORMS, index + c / 4 + a),
                        layout: Layout::turn(index + c / 4),
                        theta: turn(&[1e4, 5e5, 1e6], index / 2),
                    },
                );
            }
        }
    }
    // Every output and every source of angles against every pairing, in f32 at a partial rotation.
    for pairing in PAIRINGS {
        for (i, outputs) in OUTPUTS.into_iter().enumerate() {
            for (j, angles) in ANGLES.into_iter().enumerate() {
                add_one(
                    cases,
                    Spec {
                        x: turn(&DType::FLOATS, i + j),
                        shape: [3, 2, 72, 18],
                        pairing,
                        outputs,
                        angles,
                        norm: turn(&NORMS, i * 3 + j),
                        layout: Layout::turn(i + j),
                        theta: 1e4,
                    },
                );
            }
        }
    }
    identities(cases);
}

fn add_one(cases: &mut Cases, spec: Spec) {
    let Spec { x, shape, pairing, outputs, angles, norm, layout, theta } = spec;
    let [tokens, heads, dim, half] = shape;
    let route = match norm {
        Norm::None => "rope",
        _ if half == 0 => "norm",
        _ => "norm and rope",
    };
    let label = format!(
        "{x} [{tokens}, {heads}, {dim}] half {half} {pairing:?}, {angles:?} theta {theta:e}, \
         norm {norm:?}, {outputs:?}, {layout}"
    );
    cases.add(OP, route, label, move |p| {
        let op = build(p, &spec);
        p.push(Op::HeadNormRope(op));
        Ok(())
    });
}

fn agreement(dtype: DType, values: usize) -> Agreement {
    within(Family::Rope, dtype, values)
}

/// The operation without outputs.
fn base(p: &mut Program, s: &Spec) -> HeadNormRope<Slot> {
    let [tokens, heads, dim, half] = s.shape;
    let input = p.float(s.x, [tokens, heads, dim], Dist::Normal(1.0));
    let weight = match s.norm {
        Norm::None | Norm::Plain => None,
        Norm::Same => Some(s.x),
        Norm::F32 => Some(DType::F32),
    };
    HeadNormRope {
        weight: weight.map(|w| p.float(w, [dim], Dist::Normal(1.0))),
        theta: s.theta,
        normalize: s.norm != Norm::None,
        ..bare(input, s.pairing, half)
    }
}

fn build(p: &mut Program, s: &Spec) -> HeadNormRope<Slot> {
    p.layout(s.layout);
    let [tokens, heads, dim, half] = s.shape;
    let values = tokens * heads * dim;
    let mut op = base(p, s);
    add_angles(p, s, &mut op);

    let (plain, copy, single, cache) = match s.outputs {
        Outputs::Plain => (true, None, false, None),
        Outputs::Bf16(layout) => (false, Some(layout), false, None),
        Outputs::F32 => (false, None, true, None),
        Outputs::Cache(dtype) => (half % 2 == 1, None, false, Some(dtype)),
        Outputs::All(dtype) => (true, Some(HeadLayout::HeadMajor), true, Some(dtype)),
    };
    if plain {
        op.output = Some(p.output(s.x, [tokens, heads, dim], agreement(s.x, values)));
    }
    if let Some(layout) = copy {
        let shape = match layout {
            HeadLayout::TokenMajor => [tokens, heads, dim],
            HeadLayout::HeadMajor => [heads, tokens, dim],
        };
        op.copy_layout = layout;
        op.output_bf16 = Some(p.output(DType::BF16, shape, agreement(DType::BF16, values)));
    }
    if single {
        let shape = [heads, tokens, dim];
        op.output_f32 = Some(p.output(DType::F32, shape, agreement(DType::F32, values)));
    }
    if let Some(dtype) = cache {
        // Half of the cases run over the end of the cache.
        let start = p.rng.below(4);
        let capacity =
            if dim.is_multiple_of(16) { start + tokens + 2 } else { start + tokens.div_ceil(2) };
        let slot = p.float(dtype, [heads, capacity, dim], Dist::Normal(1.0));
        op.cache = Some(p.agree(slot, agreement(dtype, heads * capacity * dim)));
        op.cache_start = Some(p.ints([1], &[start as u32]));
    }
    op
}

fn add_angles(p: &mut Program, s: &Spec, op: &mut HeadNormRope<Slot>) {
    let [tokens, _, _, half] = s.shape;
    if half == 0 {
        return;
    }
    match s.angles {
        Angles::First | Angles::Far | Angles::Factors => {
            let mut positions: Vec<u32> = (0..tokens as u32).collect();
            if s.angles != Angles::First {
                positions.iter_mut().for_each(|t| *t = p.rng.below(131_072) as u32);
                positions[tokens / 2] = 131_071;
            }
            op.positions = Some(p.ints([tokens], &positions));
            if s.angles == Angles::Factors {
                let factor = |i: usize| if i % 3 == 2 { 1e30 } else { 1.0 + (i % 8) as f32 };
                let factors: Vec<f32> = (0..half).map(factor).collect();
                op.freq_factors = Some(p.floats(DType::F32, [half], &factors));
            }
        }
        Angles::Tables | Angles::OneRow => {
            let rows = if s.angles == Angles::OneRow { 1 } else { tokens };
            let angles = p.rng.values(rows * half, Dist::Normal(3.0));
            let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
            op.cos = Some(p.floats(DType::F32, [rows, half], &cos));
            op.sin = Some(p.floats(DType::F32, [rows, half], &sin));
        }
    }
}

/// Two ways to the same bits.
fn identities(cases: &mut Cases) {
    let spec = |pairing, shape| Spec {
        x: DType::F32,
        shape,
        pairing,
        outputs: Outputs::Plain,
        angles: Angles::Far,
        norm: Norm::None,
        layout: Layout::Guarded,
        theta: 1e4,
    };
    for pairing in PAIRINGS {
        let label = format!("position 0 is a copy, {pairing:?}");
        cases.add(OP, "identity", label, move |p| {
            let mut op = base(p, &spec(pairing, [3, 2, 64, 16]));
            op.positions = Some(p.ints([3], &[0; 3]));
            let output = p.output(DType::F32, [3, 2, 64], Agreement::Exact);
            op.output = Some(output);
            p.check = variant(Op::Copy(Copy { input: op.input, output }));
            p.push(Op::HeadNormRope(op));
            Ok(())
        });
        let label = format!("frequency factors of 1 are none, {pairing:?}");
        cases.add(OP, "identity", label, move |p| {
            let mut op = build(p, &spec(pairing, [5, 2, 64, 16]));
            p.push(Op::HeadNormRope(op.clone()));
            op.freq_factors = Some(p.floats(DType::F32, [16], &[1.0; 16]));
            p.check = variant(Op::HeadNormRope(op));
            Ok(())
        });
        let label = format!("half 0 is the norm alone, {pairing:?}");
        cases.add(OP, "identity", label, move |p| {
            let mut op = base(p, &Spec { norm: Norm::Same, ..spec(pairing, [5, 3, 64, 0]) });
            let output = p.output(DType::F32, [5, 3, 64], agreement(DType::F32, 5 * 3 * 64));
            op.output = Some(output);
            let rows = p.reshape(op.input, [15, 64]);
            let normed = p.reshape(output, [15, 64]);
            let norm = RmsNorm { input: rows, weight: op.weight, output: normed, eps: op.eps };
            p.push(Op::HeadNormRope(op));
            p.check = Check::Variant(vec![Op::RmsNorm(norm)], Equality::Bounds);
            Ok(())
        });
    }
    cases.add(OP, "identity", "leading and spanning coincide at a full rotation", move |p| {
        let mut op = build(p, &spec(RopePairing::Leading, [5, 2, 64, 32]));
        p.push(Op::HeadNormRope(op.clone()));
        op.pairing = RopePairing::Spanning;
        p.check = variant(Op::HeadNormRope(op));
        Ok(())
    });
    for start in [9, u32::MAX - 1] {
        let label = format!("nothing is written past the cache, 3 tokens at {start} of 8");
        cases.add(OP, "norm and rope", label, move |p| {
            let mut op = base(p, &spec(RopePairing::Leading, [3, 2, 64, 32]));
            op.positions = Some(p.ints([3], &[9, 10, 11]));
            op.cache_start = Some(p.ints([1], &[start]));
            let cache = p.float(DType::F32, [2, 8, 64], Dist::Normal(1.0));
            op.cache = Some(p.agree(cache, Agreement::Exact));
            p.push(Op::HeadNormRope(op));
            Ok(())
        });
    }
    cases.add(OP, "replay", "new positions without recording again", move |p| {
        let op = build(p, &spec(RopePairing::Leading, [4, 2, 64, 32]));
        let rounds = |positions: Slot| {
            let round = |start: u32| vec![(positions, ints(&[start, 7, 0, start + 9]))];
            [1, 4096, 100_000].map(round).to_vec()
        };
        if let Some(positions) = op.positions {
            p.check = Check::Replay(rounds(positions));
        }
        p.push(Op::HeadNormRope(op));
        Ok(())
    });
}

fn variant(op: Op<Slot>) -> Check {
    Check::Variant(vec![op], Equality::Bits)
}

/// The operation as part of a longer program: normalised, rotated, without an output yet.
pub(super) fn rope(
    p: &mut Program,
    input: Slot,
    positions: Slot,
    [dim, half]: [usize; 2],
) -> HeadNormRope<Slot> {
    HeadNormRope {
        weight: Some(p.float(DType::F32, [dim], Dist::Normal(1.0))),
        positions: Some(positions),
        normalize: true,
        ..bare(input, RopePairing::Leading, half)
    }
}

/// The operation without outputs, angles and norm.
fn bare(input: Slot, pairing: RopePairing, half: usize) -> HeadNormRope<Slot> {
    HeadNormRope {
        input,
        weight: None,
        positions: None,
        freq_factors: None,
        cos: None,
        sin: None,
        cache_start: None,
        output: None,
        output_bf16: None,
        output_f32: None,
        cache: None,
        pairing,
        half,
        theta: 1e4,
        normalize: false,
        eps: 1e-6,
        copy_layout: HeadLayout::TokenMajor,
    }
}

//! Whole plans: fusion, barriers, temporaries, and a layer of a transformer.

use super::gated_matmul::gated_bound;
use super::head_norm_rope::rope;
use super::matmul::{PRECISIONS, lengths, precision_name, product, row_norm};
use super::{Cases, turn, within};
use crate::bounds::{Bound, Family};
use crate::program::{Agreement, Broken, Check, Layout, Program, Slot};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

/// The name cases go by that are about no single operation.
pub(super) const OP: &str = "plan";

pub(super) fn add(cases: &mut Cases) {
    fused_norm_mul(cases);
    fused_add_norm(cases);
    fused_gated(cases);
    fused_append(cases);
    norms_and_products(cases);
    chains(cases);
    layers(cases);
}

fn fused_norm_mul(cases: &mut Cases) {
    for (i, [rows, dim]) in [[1, 64], [5, 33], [17, 1000], [2, 4096]].into_iter().enumerate() {
        for swapped in [false, true] {
            let order = if swapped { "scale first" } else { "norm first" };
            let label = format!("rms_norm and mul, f32 [{rows}, {dim}], {order}");
            cases.add("rms_norm_mul", "fused", label, move |p| {
                p.layout(Layout::turn(i));
                let shape = [rows, dim];
                let input = p.float(DType::F32, shape, Dist::Normal(1.0));
                let scale = p.float(DType::F32, shape, Dist::Normal(1.0));
                let weight = (i % 2 == 0).then(|| p.float(DType::F32, [dim], Dist::Normal(1.0)));
                let normed = p.temp(DType::F32, shape);
                let output =
                    p.output(DType::F32, shape, within(Family::Norm, DType::F32, rows * dim));
                p.push(Op::RmsNorm(RmsNorm { input, weight, output: normed, eps: 1e-6 }));
                let (a, b) = if swapped { (scale, normed) } else { (normed, scale) };
                p.push(Op::Mul(Mul { a, b, output }));
                p.check = Check::Fusion(RmsNormMul::<Slot>::NAME);
                Ok(())
            });
        }
    }
}

fn fused_add_norm(cases: &mut Cases) {
    for (i, x) in DType::FLOATS.into_iter().enumerate() {
        for (j, [rows, dim]) in [[1, 64], [5, 33], [17, 1000], [2, 4096]].into_iter().enumerate() {
            let in_place = (i + j) % 2 == 1;
            let between = (i + j) % 3 == 1;
            let place = if in_place { ", sum in place" } else { "" };
            let apart = if between { ", an operation between" } else { "" };
            let label = format!("add and rms_norm, {x} [{rows}, {dim}]{place}{apart}");
            cases.add("add_rms_norm", "fused", label, move |p| {
                p.layout(Layout::turn(i + j));
                let shape = [rows, dim];
                let agreement = within(Family::Norm, x, rows * dim);
                let a = p.float(x, shape, Dist::Normal(1.0));
                let b = p.float(x, shape, Dist::Normal(1.0));
                let weight = Some(p.float(DType::F32, [dim], Dist::Normal(1.0)));
                let sum =
                    if in_place { p.agree(a, agreement) } else { p.output(x, shape, agreement) };
                let output = p.output(x, shape, agreement);
                p.push(Op::Add(Add { a, b, output: sum }));
                if between {
                    let other = p.output(x, shape, within(Family::Arithmetic, x, rows * dim));
                    p.push(Op::Scale(Scale { input: b, output: other, factor: 0.5 }));
                }
                p.push(Op::RmsNorm(RmsNorm { input: sum, weight, output, eps: 1e-6 }));
                p.check = Check::Fusion(AddRmsNorm::<Slot>::NAME);
                Ok(())
            });
        }
    }
}

fn fused_gated(cases: &mut Cases) {
    let types = [DType::F32, DType::BF16, DType::Q4_0, DType::Q8_0, DType::Q4K, DType::Q6K];
    for (i, w) in types.into_iter().enumerate() {
        for precision in PRECISIONS {
            for (j, m) in [1, 5, 9, 33].into_iter().enumerate() {
                let silu = (i + j) % 2 == 0;
                let gated = if silu { "silu_mul" } else { "gelu_mul" };
                let k = lengths(w)[1];
                let label = format!(
                    "two products and {gated}, {} f32 x {w}, m {m} n 40 k {k}",
                    precision_name(precision)
                );
                cases.add("gated_matmul", "fused", label, move |p| {
                    let gate_weight = p.weight(w, [40, k])?;
                    let up_weight = p.weight(w, [40, k])?;
                    let dist = Dist::Normal((2.0 / row_norm(p, gate_weight)) as f32);
                    let input = p.float(DType::F32, [m, k], dist);
                    let bound = gated_bound(p, [gate_weight, up_weight], dist, precision);
                    let output = p.output(DType::F32, [m, 40], bound);
                    let [gate, up] = [(); 2].map(|()| p.temp(DType::F32, [m, 40]));
                    for (weight, output) in [(gate_weight, gate), (up_weight, up)] {
                        let input_layout = InputLayout::RowMajor;
                        p.push(Op::Matmul(Matmul {
                            input,
                            weight,
                            output,
                            input_layout,
                            precision,
                        }));
                    }
                    p.push(if silu {
                        Op::SiluMul(SiluMul { gate, up, output })
                    } else {
                        Op::GeluMul(GeluMul { gate, up, output })
                    });
                    p.check = Check::Fusion(GatedMatmul::<Slot>::NAME);
                    Ok(())
                });
            }
        }
    }
}

fn fused_append(cases: &mut Cases) {
    let types = [
        [DType::F32, DType::F32],
        [DType::F32, DType::F16],
        [DType::F32, DType::BF16],
        [DType::BF16, DType::BF16],
        [DType::F16, DType::F16],
    ];
    for (i, [x, cache]) in types.into_iter().enumerate() {
        for (tokens, start, capacity) in [(1, 3, 8), (5, 0, 5), (6, 4, 8)] {
            let label =
                format!("rope and append, {x} to {cache}, T {tokens} at {start} of {capacity}");
            cases.add("head_norm_rope", "fused", label, move |p| {
                let dim = turn(&[64, 128, 72], i);
                let (heads, half) = (3, dim / 4);
                let input = p.float(x, [tokens, heads, dim], Dist::Normal(1.0));
                let positions: Vec<u32> = (0..tokens as u32).map(|t| start + t).collect();
                let positions = p.ints([tokens], &positions);
                let start = p.ints([1], &[start]);
                let slot = p.float(cache, [heads, capacity, dim], Dist::Normal(1.0));
                p.agree(slot, within(Family::Rope, cache, heads * capacity * dim));
                let roped = p.temp(x, [tokens, heads, dim]);
                let op = rope(p, input, positions, [dim, half]);
                p.push(Op::HeadNormRope(HeadNormRope { output: Some(roped), ..op }));
                p.push(Op::KvAppend(KvAppend { input: roped, start, cache: slot, ring: false }));
                p.check = Check::Fusion(HeadNormRope::<Slot>::NAME);
                Ok(())
            });
        }
    }
}

/// A norm of one row and what multiplies it.
#[derive(Clone, Copy)]
struct NormedProducts {
    k: usize,
    weights: [DType; 3],
    /// Whether the row is a sum.
    add: bool,
    /// Whether the norm has a weight.
    scaled: bool,
    /// Whether the norm, or the sum, takes the place of its input.
    in_place: bool,
}

/// Norms of one row whose output products read: plain ones of one type or several, or gated ones.
fn norms_and_products(cases: &mut Cases) {
    const LENGTHS: [usize; 8] = [256, 512, 1280, 4096, 4352, 7936, 8448, 12544];
    const OTHER: [DType; 2] = [DType::Q6K, DType::Q8_0];
    let lengths = LENGTHS.into_iter().map(|k| (DType::Q8_0, k));
    let types = DType::QUANTIZED.into_iter().zip(LENGTHS.into_iter().cycle());
    for (i, (w, k)) in lengths.chain(types).enumerate() {
        let mixed = i % 3 == 1;
        let weights = [w, if mixed { turn(&OTHER, i) } else { w }, w];
        let (add, scaled, in_place) = (i % 4 != 3, i % 5 != 4, i % 6 == 5);
        let spec = NormedProducts { k, weights, add, scaled, in_place };
        let norm = if add { "sum and norm" } else { "norm" };
        let with = if scaled { "" } else { " without a weight" };
        let place = if in_place { " in place" } else { "" };
        let names = weights.map(|w| w.to_string()).join(" ");
        let label = format!("{norm}{with}{place}, then products by {names}, k {k}");
        cases.add(OP, "norm and products", label, move |p| {
            let input = spec.norm(p);
            for (w, n) in spec.weights.into_iter().zip([40, 24, 17]) {
                let bound = Bound::matmul(Precision::Fast, w);
                let output = p.output(DType::F32, [1, n], Agreement::Within(bound));
                product(p, w, [input, output], Precision::Fast)?;
            }
            p.check = Check::Barriers;
            Ok(())
        });
        if mixed {
            continue;
        }
        let label = format!("{norm}{with}{place}, then gated products by {w}, k {k}");
        cases.add(OP, "norm and products", label, move |p| {
            let input = spec.norm(p);
            let [gate, up] = [(); 2].map(|()| p.temp(DType::F32, [1, 40]));
            for output in [gate, up] {
                product(p, w, [input, output], Precision::Fast)?;
            }
            let output = p.output(DType::F32, [1, 40], within(Family::FastLayer, DType::F32, 40));
            p.push(Op::SiluMul(SiluMul { gate, up, output }));
            p.check = Check::Fusion(GatedMatmul::<Slot>::NAME);
            Ok(())
        });
    }
}

impl NormedProducts {
    /// The normalised row.
    fn norm(self, p: &mut Program) -> Slot {
        let Self { k, add, scaled, in_place, .. } = self;
        let agreement = within(Family::Norm, DType::F32, k);
        let mut row = p.float(DType::F32, [1, k], Dist::Normal(1.0));
        if add {
            let b = p.float(DType::F32, [1, k], Dist::Normal(1.0));
            let output = if in_place {
                p.agree(row, agreement)
            } else {
                p.output(DType::F32, [1, k], agreement)
            };
            p.push(Op::Add(Add { a: row, b, output }));
            row = output;
        }
        let weight = scaled.then(|| p.float(DType::F32, [k], Dist::Normal(1.0)));
        let output = if in_place && !add {
            p.agree(row, agreement)
        } else {
            p.output(DType::F32, [1, k], agreement)
        };
        p.push(Op::RmsNorm(RmsNorm { input: row, weight, output, eps: 1e-6 }));
        output
    }
}

/// Programs in which a missing barrier shows.
fn chains(cases: &mut Cases) {
    for [rows, dim] in [[1, 64], [64, 33], [256, 512]] {
        cases.add(
            OP,
            "barriers",
            format!("back and forth between two buffers, [{rows}, {dim}]"),
            move |p| {
                let shape = [rows, dim];
                let agreement = within(Family::Norm, DType::F32, rows * dim);
                let x = p.float(DType::F32, shape, Dist::Normal(1.0));
                p.agree(x, agreement);
                let y = p.output(DType::F32, shape, agreement);
                for step in 0..12 {
                    let (input, output) = if step % 2 == 0 { (x, y) } else { (y, x) };
                    p.push(Op::RmsNorm(RmsNorm { input, weight: None, output, eps: 1e-6 }));
                }
                p.check = Check::Barriers;
                Ok(())
            },
        );
        cases.add(
            OP,
            "barriers",
            format!("temporaries one after the other, [{rows}, {dim}]"),
            move |p| {
                let shape = [rows, dim];
                let input = p.float(DType::F32, shape, Dist::Normal(1.0));
                let output =
                    p.output(DType::F32, shape, within(Family::Norm, DType::F32, rows * dim));
                let mut last = input;
                for step in 0..10 {
                    let (a, b) = (p.temp(DType::F32, shape), p.temp(DType::F32, shape));
                    p.push(Op::Scale(Scale {
                        input: last,
                        output: a,
                        factor: 0.5 + step as f32 * 0.1,
                    }));
                    p.push(Op::Softcap(Softcap { input: last, output: b, cap: 3.0 }));
                    let sum = if step == 9 { output } else { p.temp(DType::F32, shape) };
                    p.push(Op::Add(Add { a, b, output: sum }));
                    last = sum;
                }
                p.check = Check::Barriers;
                Ok(())
            },
        );
        cases.add(
            OP,
            "barriers",
            format!("slices written apart, read together, [{rows}, {dim}]"),
            move |p| {
                let count = 6;
                let input = p.float(DType::F32, [rows, dim], Dist::Normal(1.0));
                let all = p.temp(DType::F32, [count * rows, dim]);
                for part in 0..count {
                    let output = p.slice(all, 0, part * rows..(part + 1) * rows);
                    let factor = 1.0 + part as f32;
                    p.push(Op::Scale(Scale { input, output, factor }));
                }
                let values = count * rows * dim;
                let output = p.output(
                    DType::F32,
                    [count * rows, dim],
                    within(Family::Norm, DType::F32, values),
                );
                p.push(Op::RmsNorm(RmsNorm { input: all, weight: None, output, eps: 1e-6 }));
                p.check = Check::Barriers;
                Ok(())
            },
        );
    }
}

const DIM: usize = 256;
const HEAD: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HIDDEN: usize = 512;

/// A layer of a transformer: every kind of hazard, most fusions, and temporaries that share memory.
fn layers(cases: &mut Cases) {
    for w in [DType::F32, DType::Q8_0, DType::Q4K] {
        for precision in PRECISIONS {
            for tokens in [1, 5, 40] {
                let label = format!("a layer, {} {w}, {tokens} tokens", precision_name(precision));
                cases.add(OP, "barriers", label, move |p| {
                    layer(p, w, precision, tokens)?;
                    p.check = Check::Barriers;
                    Ok(())
                });
                let label = format!("a layer, {} {w}, {tokens} tokens", precision_name(precision));
                cases.add(OP, "fused", label, move |p| {
                    layer(p, w, precision, tokens)?;
                    p.check = Check::Fusion(GatedMatmul::<Slot>::NAME);
                    Ok(())
                });
            }
        }
    }
}

fn layer(p: &mut Program, w: DType, precision: Precision, tokens: usize) -> Result<(), Broken> {
    let family = if precision == Precision::Exact { Family::ExactLayer } else { Family::FastLayer };
    let agreement = |values| within(family, DType::F32, values);
    let temp = |p: &mut Program, dim| p.temp(DType::F32, [tokens, dim]);
    let x = p.float(DType::F32, [tokens, DIM], Dist::Normal(1.0));
    let start = p.ints([1], &[0]);
    let kv_len = p.ints([1], &[tokens as u32]);
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let positions = p.ints([tokens], &positions);

    let normed = temp(p, DIM);
    let weight = Some(p.float(DType::F32, [DIM], Dist::Normal(0.1)));
    p.push(Op::RmsNorm(RmsNorm { input: x, weight, output: normed, eps: 1e-6 }));

    let attended = attention(p, (w, precision), normed, [start, kv_len, positions], agreement)?;
    let flat = p.reshape(attended, [tokens, HEADS * HEAD]);
    let projected = temp(p, DIM);
    product(p, w, [flat, projected], precision)?;

    let residual = p.output(DType::F32, [tokens, DIM], agreement(tokens * DIM));
    let normed = temp(p, DIM);
    let weight = Some(p.float(DType::F32, [DIM], Dist::Normal(0.1)));
    p.push(Op::Add(Add { a: x, b: projected, output: residual }));
    p.push(Op::RmsNorm(RmsNorm { input: residual, weight, output: normed, eps: 1e-6 }));

    let [gate, up, gated] = [(); 3].map(|()| temp(p, HIDDEN));
    product(p, w, [normed, gate], precision)?;
    product(p, w, [normed, up], precision)?;
    p.push(Op::SiluMul(SiluMul { gate, up, output: gated }));
    let down = temp(p, DIM);
    product(p, w, [gated, down], precision)?;
    let output = p.output(DType::F32, [tokens, DIM], agreement(tokens * DIM));
    p.push(Op::Add(Add { a: residual, b: down, output }));
    Ok(())
}

/// Projections, rotation, caches and attention of a layer.
fn attention(
    p: &mut Program,
    (w, precision): (DType, Precision),
    normed: Slot,
    [start, kv_len, positions]: [Slot; 3],
    agreement: impl Fn(usize) -> Agreement,
) -> Result<Slot, Broken> {
    let tokens = p.operands[normed.0].shape[0];
    let capacity = tokens + 3;
    let heads = |p: &mut Program, count| {
        let flat = p.temp(DType::F32, [tokens, count * HEAD]);
        product(p, w, [normed, flat], precision)?;
        Ok::<_, Broken>(p.reshape(flat, [tokens, count, HEAD]))
    };
    let q = heads(p, HEADS)?;
    let k = heads(p, KV_HEADS)?;
    let v = heads(p, KV_HEADS)?;
    let [k_cache, v_cache] = [(); 2].map(|()| {
        let values = KV_HEADS * capacity * HEAD;
        p.output(DType::F32, [KV_HEADS, capacity, HEAD], agreement(values))
    });
    let roped = |p: &mut Program, input, heads| {
        let output = p.temp(DType::F32, [tokens, heads, HEAD]);
        let op = rope(p, input, positions, [HEAD, HEAD / 2]);
        p.push(Op::HeadNormRope(HeadNormRope { output: Some(output), ..op }));
        output
    };
    let q = roped(p, q, HEADS);
    let k = roped(p, k, KV_HEADS);
    for (input, cache) in [(k, k_cache), (v, v_cache)] {
        p.push(Op::KvAppend(KvAppend { input, start, cache, ring: false }));
    }
    let output = p.temp(DType::F32, [tokens, HEADS, HEAD]);
    p.push(Op::CachedAttention(CachedAttention {
        q,
        k_cache,
        v_cache,
        kv_len,
        sinks: None,
        output,
        scale: 1.0 / (HEAD as f32).sqrt(),
        window: None,
        softcap: None,
        ring: false,
    }));
    Ok(output)
}

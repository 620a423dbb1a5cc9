//! Products against every weight type, by both routes and in both precisions.

use super::{Cases, rows_route, turn};
use crate::bounds::Bound;
use crate::host::Blocks;
use crate::program::{Agreement, Broken, Check, Equality, Layout, Program, Slot, WeightSource};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "matmul";

const ROWS: [usize; 12] = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 65];
const COLUMNS: [usize; 7] = [1, 2, 7, 33, 64, 72, 100];
const INPUTS: [DType; 4] = [DType::F32, DType::F32, DType::BF16, DType::F16];
const DISTS: [Dist; 4] =
    [Dist::Normal(1.0), Dist::Uniform, Dist::Normal(100.0), Dist::Normal(1e-3)];
pub(super) const PRECISIONS: [Precision; 2] = [Precision::Fast, Precision::Exact];

/// Row lengths of a weight type: one block, two, and lengths of real models.
pub(super) fn lengths(dtype: DType) -> &'static [usize] {
    match dtype.block_len() {
        1 => &[1, 704, 3, 64, 2112, 31, 768, 100, 512],
        32 => &[32, 704, 64, 512, 2112, 96, 768],
        _ => &[256, 512, 768, 1536, 1024],
    }
}

pub(super) fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::Fast => "fast",
        Precision::Exact => "exact",
    }
}

/// One case of a product.
#[derive(Clone, Copy)]
struct Spec {
    x: DType,
    w: DType,
    precision: Precision,
    mnk: [usize; 3],
    dist: Dist,
    layout: Layout,
    source: WeightSource,
    blocks: Blocks,
    zero_row: bool,
}

pub(super) fn add(cases: &mut Cases) {
    // More rows than any kernel keeps the sums of at once.
    tall(cases, DType::Q4_0, 90_001);
    for (t, w) in DType::WEIGHTS.into_iter().enumerate() {
        for (q, precision) in PRECISIONS.into_iter().enumerate() {
            for (r, m) in ROWS.into_iter().enumerate() {
                for second in 0..2 {
                    // Steps prime to the lengths of the lists: either route meets every extent.
                    let index = t + q + r * 2 + second;
                    let spec = Spec {
                        x: turn(&INPUTS, index + r),
                        w,
                        precision,
                        mnk: [m, turn(&COLUMNS, index * 3), turn(lengths(w), index)],
                        dist: turn(&DISTS, index + r / 2),
                        layout: Layout::turn(index / 2),
                        source: WeightSource::turn(r + second),
                        blocks: Blocks::Mixed,
                        zero_row: m > 2 && second == 1,
                    };
                    plain(cases, spec);
                }
            }
            if w.is_quantized() && precision == Precision::Fast {
                tall(cases, w, 15_033);
                many_rows(cases, w, t);
                in_chunks(cases, w, t);
            }
            if w.is_quantized() {
                plain(
                    cases,
                    Spec {
                        x: DType::F32,
                        w,
                        precision,
                        mnk: [turn(&[3, 17], t), 33, lengths(w)[1]],
                        dist: Dist::Normal(1.0),
                        layout: Layout::Guarded,
                        source: WeightSource::Imported,
                        blocks: Blocks::Subnormal,
                        zero_row: false,
                    },
                );
            }
            head_major(cases, w, precision, t);
            both_routes(cases, w, precision, t);
        }
    }
    cases.add_large(OP, "f32, input rows 1 GiB apart", |p| {
        p.layout(Layout::Far);
        let input = p.float(DType::F32, [4, 704], Dist::Normal(1.0));
        p.layout(Layout::Guarded);
        let weight = p.weight(DType::Q4_0, [33, 704])?;
        let bound = dot_bound(p, weight, Precision::Exact, Dist::Normal(1.0));
        let output = p.output(DType::F32, [4, 33], bound);
        p.push(row_major(input, weight, output, Precision::Exact));
        Ok(())
    });
}

fn row_major(input: Slot, weight: Slot, output: Slot, precision: Precision) -> Op<Slot> {
    let input_layout = InputLayout::RowMajor;
    Op::Matmul(Matmul { input, weight, output, input_layout, precision })
}

/// The bounds of a product with inputs of `dist`: errors count in units of at least the size that
/// a sum of such products has, as a single sum may well be near zero.
pub(super) fn dot_bound(p: &Program, weight: Slot, precision: Precision, dist: Dist) -> Agreement {
    let operand = &p.operands[weight.0];
    let floor = dist.rms() * row_norm(p, weight);
    Agreement::Within(Bound::matmul(precision, operand.dtype).with_floor(floor))
}

/// Root of the mean squared length of the rows of a weight.
pub(super) fn row_norm(p: &Program, weight: Slot) -> f64 {
    let values = p.host_values(weight);
    let rows = values.len() / p.operands[weight.0].shape.last().max(1);
    (values.iter().map(|w| w * w).sum::<f64>() / rows.max(1) as f64).sqrt()
}

fn plain(cases: &mut Cases, spec: Spec) {
    let Spec { x, w, precision, mnk: [m, n, k], dist, layout, source, blocks, zero_row } = spec;
    let route = format!("{} {}", precision_name(precision), rows_route(m));
    let zero = if zero_row { ", a zero row" } else { "" };
    let subnormal = if blocks == Blocks::Subnormal { " subnormal" } else { "" };
    let label = format!("{x} x {w}{subnormal} {source}, m {m} n {n} k {k}, {dist}{zero}, {layout}");
    cases.add(OP, route, label, move |p| {
        p.layout(layout);
        let mut values = p.rng.values(m * k, dist);
        if zero_row {
            values[k..2 * k].fill(0.0);
        }
        let input = p.floats(x, [m, k], &values);
        let weight = p.weight_from(w, [n, k], source, blocks)?;
        let bound = dot_bound(p, weight, precision, dist);
        let output = p.output(DType::F32, [m, n], bound);
        p.push(row_major(input, weight, output, precision));
        Ok(())
    });
}

/// One row by a weight with more rows than all processors of a device have at once.
fn tall(cases: &mut Cases, w: DType, n: usize) {
    let spec = Spec {
        x: DType::F32,
        w,
        precision: Precision::Fast,
        mnk: [1, n, 2304],
        dist: Dist::Normal(1.0),
        layout: Layout::turn(0),
        source: WeightSource::Imported,
        blocks: Blocks::Mixed,
        zero_row: false,
    };
    plain(cases, spec);
    cases.mark_large();
}

/// Rows as prompts have them, by imported weights: every form of tiles, ends inside of them.
fn many_rows(cases: &mut Cases, w: DType, t: usize) {
    // Rows, columns and which length: small enough for a device without hardware.
    const SHAPES: [[usize; 3]; 5] =
        [[16, 77, 3], [48, 33, 1], [80, 17, 1], [129, 33, 0], [272, 17, 0]];
    for (i, [m, n, length]) in SHAPES.into_iter().enumerate() {
        let spec = Spec {
            x: turn(&INPUTS, t + i),
            w,
            precision: Precision::Fast,
            mnk: [m, n, turn(lengths(w), length)],
            dist: Dist::Normal(1.0),
            layout: Layout::turn(t + i),
            source: WeightSource::Imported,
            blocks: Blocks::Mixed,
            zero_row: i % 2 == 1,
        };
        plain(cases, spec);
    }
}

/// A prompt in one piece and in chunks of several lengths: the same bits.
fn in_chunks(cases: &mut Cases, w: DType, t: usize) {
    let chunks: [(&[usize], usize); 2] = [(&[16, 64], 33), (&[144, 16], 18)];
    let (chunks, n) = turn(&chunks, t);
    // Some more than any kernel keeps of a row at once.
    let k = if t % 6 < 2 { 3328 } else { 768 };
    let m = chunks.iter().sum::<usize>();
    let label = format!("f32 x {w} imported, {m} rows at once and {chunks:?}, n {n} k {k}");
    cases.add(OP, "fast chunks", label, move |p| {
        let input = p.float(DType::F32, [m, k], Dist::Normal(1.0));
        let weight = p.weight_from(w, [n, k], WeightSource::Imported, Blocks::Mixed)?;
        let bound = dot_bound(p, weight, Precision::Fast, Dist::Normal(1.0));
        let output = p.output(DType::F32, [m, n], bound);
        p.push(row_major(input, weight, output, Precision::Fast));
        let (mut ops, mut start) = (Vec::new(), 0);
        for chunk in chunks {
            let rows = start..start + chunk;
            start = rows.end;
            let x = p.slice(input, 0, rows.clone());
            let y = p.slice(output, 0, rows);
            ops.push(row_major(x, weight, y, Precision::Fast));
        }
        p.check = Check::Variant(ops, Equality::Bits);
        Ok(())
    });
}

/// Input as an attention leaves it, by head; blocks may span two heads.
fn head_major(cases: &mut Cases, w: DType, precision: Precision, t: usize) {
    let shapes: &[[usize; 2]] = match w.block_len() {
        1 => &[[3, 5], [4, 64], [2, 40]],
        32 => &[[4, 24], [4, 72], [2, 128]],
        _ => &[[4, 64], [8, 96], [3, 256]],
    };
    for (i, m) in [1, 4, 9, 33].into_iter().enumerate() {
        let [heads, dim] = turn(shapes, i + t);
        let n = turn(&COLUMNS, i + t + 2);
        let x = turn(&[DType::F32, DType::BF16, DType::F16], i + t);
        let layout = Layout::turn(i + 1);
        let route = format!("{} {} head-major", precision_name(precision), rows_route(m));
        let label = format!("{x} x {w}, H {heads} m {m} D {dim} n {n}, {layout}");
        cases.add(OP, route, label, move |p| {
            p.layout(layout);
            let dist = Dist::Normal(1.0);
            let input = p.float(x, [heads, m, dim], dist);
            let weight = p.weight(w, [n, heads * dim])?;
            let bound = dot_bound(p, weight, precision, dist);
            let output = p.output(DType::F32, [m, n], bound);
            let input_layout = InputLayout::HeadMajor;
            p.push(Op::Matmul(Matmul { input, weight, output, input_layout, precision }));
            Ok(())
        });
    }
}

/// Many rows at once and the same rows in pieces of 1 and of 8, which take the other route.
fn both_routes(cases: &mut Cases, w: DType, precision: Precision, t: usize) {
    for (i, m) in [7, 8, 9, 10, 17, 33].into_iter().enumerate() {
        if (i + t) % 2 == 1 && m != 8 && m != 9 {
            continue;
        }
        let piece = turn(&[1, 8], i);
        let k = lengths(w)[1];
        let route = format!("{} both routes", precision_name(precision));
        let label = format!("f32 x {w}, {m} rows at once and {piece} at a time, n 40 k {k}");
        cases.add(OP, route, label, move |p| {
            let input = p.float(DType::F32, [m, k], Dist::Uniform);
            let weight = p.weight(w, [40, k])?;
            let bound = dot_bound(p, weight, precision, Dist::Uniform);
            let output = p.output(DType::F32, [m, 40], bound);
            p.push(row_major(input, weight, output, precision));
            let pieces = pieces(p, [input, weight, output], piece, precision);
            p.check = Check::Variant(pieces, Equality::Bounds);
            Ok(())
        });
    }
}

fn pieces(
    p: &mut Program,
    [input, weight, output]: [Slot; 3],
    piece: usize,
    precision: Precision,
) -> Vec<Op<Slot>> {
    let m = p.operands[input.0].shape[0];
    let mut ops = Vec::new();
    for start in (0..m).step_by(piece) {
        let rows = start..m.min(start + piece);
        let x = p.slice(input, 0, rows.clone());
        let y = p.slice(output, 0, rows);
        ops.push(row_major(x, weight, y, precision));
    }
    ops
}

/// A product as part of a longer program: an f32 input, a fresh weight, a given output.
pub(super) fn product(
    p: &mut Program,
    w: DType,
    [input, output]: [Slot; 2],
    precision: Precision,
) -> Result<(), Broken> {
    let k = p.operands[input.0].shape.last();
    let n = p.operands[output.0].shape.last();
    let weight = p.weight(w, [n, k])?;
    p.push(row_major(input, weight, output, precision));
    Ok(())
}

//! The RMS norm family and layer normalisation.

use super::{Cases, turn, within};
use crate::bounds::Family;
use crate::program::{Agreement, Broken, Layout, Program, Slot};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const SHAPES: [[usize; 2]; 16] = [
    [1, 1],
    [1, 3],
    [2, 4],
    [3, 31],
    [1, 32],
    [5, 33],
    [4, 64],
    [2, 65],
    [3, 100],
    [1, 255],
    [2, 256],
    [17, 257],
    [2, 1000],
    [1, 2816],
    [2, 4096],
    [33, 96],
];

/// Types of activations and of weights.
const TYPES: [(DType, Option<DType>); 8] = [
    (DType::F32, Some(DType::F32)),
    (DType::F16, Some(DType::F16)),
    (DType::F16, Some(DType::F32)),
    (DType::BF16, Some(DType::BF16)),
    (DType::BF16, Some(DType::F32)),
    (DType::F32, None),
    (DType::F16, None),
    (DType::BF16, None),
];

const DISTS: [Dist; 5] = [
    Dist::Normal(1.0),
    Dist::Uniform,
    Dist::Normal(300.0),
    Dist::Normal(1e-3),
    Dist::Shifted(2.0, 0.5),
];

/// One case of a norm.
#[derive(Clone, Copy)]
struct Spec {
    x: DType,
    w: Option<DType>,
    rows: usize,
    dim: usize,
    dist: Dist,
    eps: f32,
    layout: Layout,
    in_place: bool,
    /// The first row is zero.
    zero_row: bool,
    index: usize,
}

type Build = fn(&mut Program, &Spec) -> Result<(), Broken>;

pub(super) fn add(cases: &mut Cases) {
    family(cases, "rms_norm", true, 2, rms_norm);
    family(cases, "rms_norm_mul", true, 4, rms_norm_mul);
    family(cases, "rms_norm_triple", false, 2, rms_norm_triple);
    family(cases, "post_attn_triple_norm", false, 2, post_attn_triple_norm);
    family(cases, "post_ff_norm_end_layer", false, 2, post_ff_norm_end_layer);
    family(cases, "moe_post_ff_norm_end_layer", false, 2, moe_post_ff_norm_end_layer);
    family(cases, "add_rms_norm", true, 4, add_rms_norm);
    family(cases, "layer_norm", false, 2, layer_norm);
    many_rows(cases, "rms_norm", rms_norm);
    many_rows(cases, "rms_norm_mul", rms_norm_mul);
    many_rows(cases, "post_ff_norm_end_layer", post_ff_norm_end_layer);
    many_rows(cases, "layer_norm", layer_norm);
    far(cases);
}

/// More rows than a device works on at once: each of its blocks may take several.
fn many_rows(cases: &mut Cases, op: &'static str, build: Build) {
    let shapes = [(DType::F32, 1100, 4104), (DType::BF16, 1100, 2056)];
    for (index, (x, rows, dim)) in shapes.into_iter().enumerate() {
        let (w, dist, layout, in_place) = (Some(x), DISTS[0], Layout::Guarded, index == 0);
        let spec =
            Spec { x, w, rows, dim, dist, eps: 1e-5, layout, in_place, zero_row: true, index };
        let label = format!("{x} [{rows}, {dim}]");
        cases.add(op, "many rows", label, move |p| build(p, &spec));
    }
}

/// Every `stride`-th shape, by turns, for every combination of types.
fn family(cases: &mut Cases, op: &'static str, weight_optional: bool, stride: usize, build: Build) {
    let types = TYPES.iter().filter(|(_, w)| w.is_some() || weight_optional);
    for (row, &(x, w)) in types.enumerate() {
        for (column, [rows, dim]) in SHAPES.into_iter().enumerate() {
            if (row + column) % stride != 0 && row != 0 {
                continue;
            }
            let index = row * 3 + column;
            let eps = turn(&[1e-6, 1e-5, 1e-12, 0.0], column);
            let zero_row = eps > 1e-9 && rows > 2;
            let in_place = column % 3 == 1;
            let layout = Layout::turn(index);
            let dist = turn(&DISTS, index);
            let spec = Spec { x, w, rows, dim, dist, eps, layout, in_place, zero_row, index };
            let weight = w.map_or("no weight".to_owned(), |w| format!("weight {w}"));
            let route = if dim % 4 == 0 { "vector" } else { "scalar" };
            let place = if in_place { ", in place" } else { "" };
            let label = format!("{x} [{rows}, {dim}] {weight}, {dist}, eps {eps}, {layout}{place}");
            cases.add(op, route, label, move |p| build(p, &spec));
        }
    }
}

/// Rows past 2^31 bytes.
fn far(cases: &mut Cases) {
    cases.add_large("rms_norm", "f32, input rows 1 GiB apart", |p| {
        p.layout(Layout::Far);
        let input = p.float(DType::F32, [4, 100], Dist::Normal(1.0));
        p.layout(Layout::Guarded);
        let output = p.output(DType::F32, [4, 100], within(Family::Norm, DType::F32, 400));
        p.push(Op::RmsNorm(RmsNorm { input, weight: None, output, eps: 1e-6 }));
        Ok(())
    });
    cases.add_large("rms_norm", "f32, output rows 1 GiB apart", |p| {
        let input = p.float(DType::F32, [4, 100], Dist::Normal(1.0));
        p.layout(Layout::Far);
        let output = p.output(DType::F32, [4, 100], within(Family::Norm, DType::F32, 400));
        p.push(Op::RmsNorm(RmsNorm { input, weight: None, output, eps: 1e-6 }));
        Ok(())
    });
}

impl Spec {
    fn agreement(&self, family: Family) -> Agreement {
        within(family, self.x, self.rows * self.dim)
    }

    /// Activations `[rows, dim]`.
    fn rows(&self, p: &mut Program) -> Slot {
        p.layout(self.layout);
        let mut values = p.rng.values(self.rows * self.dim, self.dist);
        if self.zero_row {
            values[..self.dim].fill(0.0);
        }
        p.floats(self.x, [self.rows, self.dim], &values)
    }

    fn weight(&self, p: &mut Program) -> Slot {
        p.float(self.w.unwrap_or(self.x), [self.dim], Dist::Normal(1.0))
    }

    fn output(&self, p: &mut Program) -> Slot {
        p.output(self.x, [self.rows, self.dim], self.agreement(Family::Norm))
    }

    /// An output, which is `input` where the case is in place.
    fn output_or(&self, p: &mut Program, input: Slot) -> Slot {
        if self.in_place { p.agree(input, self.agreement(Family::Norm)) } else { self.output(p) }
    }

    fn layer_scalar(&self, p: &mut Program) -> Slot {
        let len = if self.index.is_multiple_of(2) { 1 } else { self.dim };
        p.float(self.w.unwrap_or(self.x), [len], Dist::Shifted(0.8, 0.3))
    }
}

fn rms_norm(p: &mut Program, s: &Spec) -> Result<(), Broken> {
    let input = s.rows(p);
    let weight = s.w.map(|_| s.weight(p));
    let output = s.output_or(p, input);
    p.push(Op::RmsNorm(RmsNorm { input, weight, output, eps: s.eps }));
    Ok(())
}

fn rms_norm_mul(p: &mut Program, s: &Spec) -> Result<(), Broken> {
    let input = s.rows(p);
    let weight = s.w.map(|_| s.weight(p));
    let scale = p.float(s.x, [s.rows, s.dim], Dist::Normal(1.0));
    let aliased = if s.index.is_multiple_of(2) { input } else { scale };
    let output = s.output_or(p, aliased);
    p.push(Op::RmsNormMul(RmsNormMul { input, weight, scale, output, eps: s.eps }));
    Ok(())
}

fn rms_norm_triple(p: &mut Program, s: &Spec) -> Result<(), Broken> {
    let input = s.rows(p);
    let [weight_a, weight_b, weight_c] = [(); 3].map(|()| s.weight(p));
    let [output_a, output_b, output_c] = [(); 3].map(|()| s.output(p));
    p.push(Op::RmsNormTriple(RmsNormTriple {
        input,
        weight_a,
        weight_b,
        weight_c,
        output_a,
        output_b,
        output_c,
        eps: s.eps,
    }));
    Ok(())
}

fn post_attn_triple_norm(p: &mut Program, s: &Spec) -> Result<(), Broken> {
    let hidden = s.rows(p);
    let attn = s.rows(p);
    let [weight_post, weight_a, weight_b, weight_c] = [(); 4].map(|()| s.weight(p));
    let residual = s.output_or(p, hidden);
    let [output_a, output_b, output_c] = [(); 3].map(|()| s.output(p));
    p.push(Op::PostAttnTripleNorm(PostAttnTripleNorm {
        hidden,
        attn,
        weight_post,
        weight_a,
        weight_b,
        weight_c,
        residual,
        output_a,
        output_b,
        output_c,
        eps: s.eps,
    }));
    Ok(())
}

fn post_ff_norm_end_layer(p: &mut Program, s: &Spec) -> Result<(), Broken> {
    let [attn, moe, residual] = [(); 3].map(|()| s.rows(p));
    let [weight_moe, weight_mlp] = [(); 2].map(|()| s.weight(p));
    let layer_scalar = s.layer_scalar(p);
    let mlp = s.output(p);
    let output = s.output_or(p, residual);
    p.push(Op::PostFfNormEndLayer(PostFfNormEndLayer {
        attn,
        moe,
        weight_moe,
        residual,
        weight_mlp,
        layer_scalar,
        mlp,
        output,
        eps: s.eps,
    }));
    Ok(())
}

fn moe_post_ff_norm_end_layer(p: &mut Program, s: &Spec) -> Result<(), Broken> {
    let top_k = turn(&[1, 2, 3, 8], s.index);
    let [attn, residual] = [(); 2].map(|()| s.rows(p));
    let experts = p.float(s.x, [s.rows, top_k, s.dim], s.dist);
    let route = p.float(DType::F32, [s.rows, top_k], Dist::Shifted(0.5, 0.3));
    let [weight_moe, weight_mlp] = [(); 2].map(|()| s.weight(p));
    let layer_scalar = s.layer_scalar(p);
    let mlp = s.output(p);
    let output = s.output_or(p, residual);
    p.push(Op::MoePostFfNormEndLayer(MoePostFfNormEndLayer {
        attn,
        experts,
        route,
        weight_moe,
        residual,
        weight_mlp,
        layer_scalar,
        mlp,
        output,
        eps: s.eps,
    }));
    Ok(())
}

fn add_rms_norm(p: &mut Program, s: &Spec) -> Result<(), Broken> {
    let a = s.rows(p);
    let b = s.rows(p);
    let weight = s.w.map(|_| s.weight(p));
    let residual = s.output_or(p, a);
    let output = s.output(p);
    p.push(Op::AddRmsNorm(AddRmsNorm { a, b, weight, residual, output, eps: s.eps }));
    Ok(())
}

fn layer_norm(p: &mut Program, s: &Spec) -> Result<(), Broken> {
    // A mean far from zero: the variance must not come from a difference of large numbers.
    let shifted = s.index.is_multiple_of(3) && s.dim > 4;
    let spec = if shifted { Spec { dist: Dist::Shifted(64.0, 1.0), ..*s } } else { *s };
    let input = spec.rows(p);
    let weight = s.weight(p);
    let bias = (!s.index.is_multiple_of(4)).then(|| s.weight(p));
    let output = s.output_or(p, input);
    p.agree(output, s.agreement(Family::LayerNorm));
    // A row of one value has no variance: its result is 0 / sqrt(eps).
    let eps = s.eps.max(1e-12);
    p.push(Op::LayerNorm(LayerNorm { input, weight, bias, output, eps }));
    Ok(())
}

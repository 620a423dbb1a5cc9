//! The gated half of a feed-forward layer.

use super::matmul::{PRECISIONS, lengths, precision_name, row_norm};
use super::{Cases, rows_route, turn};
use crate::bounds::Bound;
use crate::host::Blocks;
use crate::program::{Agreement, Layout, Program, Slot, WeightSource};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "gated_matmul";
const ROWS: [usize; 8] = [1, 9, 3, 33, 8, 16, 2, 17];
const COLUMNS: [usize; 6] = [2, 33, 7, 64, 100, 72];

/// Weight types that differ between gate and up.
const MIXED: [(DType, DType); 8] = [
    (DType::Q4K, DType::Q6K),
    (DType::Q6K, DType::Q4K),
    (DType::Q5K, DType::Q8_0),
    (DType::Q4_0, DType::Q5_1),
    (DType::F16, DType::Q4K),
    (DType::Iq4Xs, DType::Iq4Nl),
    (DType::Q2K, DType::Q3K),
    (DType::BF16, DType::F32),
];

struct Spec {
    types: [DType; 3],
    mnk: [usize; 3],
    activation: Activation,
    precision: Precision,
    layout: Layout,
    source: WeightSource,
}

/// One row by weights with more rows than all processors of a device have at once.
fn tall(cases: &mut Cases, w: DType) {
    let spec = Spec {
        types: [DType::F32, w, w],
        mnk: [1, 12_777, 2304],
        activation: Activation::Silu,
        precision: Precision::Fast,
        layout: Layout::turn(0),
        source: WeightSource::Imported,
    };
    add_one(cases, spec);
    cases.mark_large();
}

pub(super) fn add(cases: &mut Cases) {
    let activations = [Activation::Silu, Activation::GeluTanh];
    [DType::Q4_0, DType::Q8_0, DType::Q6K].into_iter().for_each(|w| tall(cases, w));
    let same = DType::WEIGHTS.into_iter().map(|w| (w, w));
    for (t, (gate, up)) in same.chain(MIXED).enumerate() {
        for (a, activation) in activations.into_iter().enumerate() {
            for (q, precision) in PRECISIONS.into_iter().enumerate() {
                for r in 0..2 {
                    let index = t + a * 3 + q + r * 4;
                    let x = turn(&[DType::F32, DType::F32, DType::BF16, DType::F16], index + t / 4);
                    let longer = if gate.block_len() > up.block_len() { gate } else { up };
                    let k = turn(lengths(longer), index + r);
                    add_one(
                        cases,
                        Spec {
                            types: [x, gate, up],
                            mnk: [turn(&ROWS, index), turn(&COLUMNS, index + r + t), k],
                            activation,
                            precision,
                            layout: Layout::turn(index + r),
                            source: WeightSource::turn(index),
                        },
                    );
                }
            }
            if gate == up && gate.is_quantized() {
                let k = turn(lengths(gate), (t + a) % 2);
                let spec = Spec {
                    types: [DType::F32, gate, up],
                    mnk: [turn(&[48, 80, 144], t + a), turn(&[34, 29, 32], t), k],
                    activation,
                    precision: Precision::Fast,
                    layout: Layout::turn(t + a),
                    source: WeightSource::Imported,
                };
                add_one(cases, spec);
            }
        }
    }
}

fn add_one(cases: &mut Cases, s: Spec) {
    let [x, gate, up] = s.types;
    let [m, n, k] = s.mnk;
    let route = format!("{} {}", precision_name(s.precision), rows_route(m));
    let label = format!(
        "{x} x {gate} and {up} {}, {:?}, m {m} n {n} k {k}, {}",
        s.source, s.activation, s.layout
    );
    cases.add(OP, route, label, move |p| {
        p.layout(s.layout);
        let gate = p.weight_from(gate, [n, k], s.source, Blocks::Mixed)?;
        let up = p.weight_from(up, [n, k], s.source, Blocks::Mixed)?;
        // Gates of size 2, so that the activation bends.
        let gate_norm = row_norm(p, gate);
        let dist = Dist::Normal((2.0 / gate_norm) as f32);
        let input = p.float(x, [m, k], dist);
        let bound = gated_bound(p, [gate, up], dist, s.precision);
        let output = p.output(DType::F32, [m, n], bound);
        p.push(Op::GatedMatmul(GatedMatmul {
            input,
            gate,
            up,
            output,
            activation: s.activation,
            precision: s.precision,
        }));
        Ok(())
    });
}

/// The looser of both products, in units of at least half the product of their sizes.
pub(super) fn gated_bound(
    p: &Program,
    weights: [Slot; 2],
    dist: Dist,
    precision: Precision,
) -> Agreement {
    let [gate, up] = weights.map(|w| Bound::matmul(precision, p.operands[w.0].dtype));
    let [gate_size, up_size] = weights.map(|w| dist.rms() * row_norm(p, w));
    let looser = if gate.nmse > up.nmse { gate } else { up };
    Agreement::Within(looser.with_floor(0.5 * gate_size * up_size))
}

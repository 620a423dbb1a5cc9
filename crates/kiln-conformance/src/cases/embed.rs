//! Gathering rows.

use super::{Cases, turn, within};
use crate::bounds::Family;
use crate::host::Blocks;
use crate::program::{Check, Layout, Program, Slot, WeightSource, ints};
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "embed";

struct Spec {
    w: DType,
    output: DType,
    n: usize,
    dim: usize,
    rows: usize,
    scale: f32,
    out_of_range: bool,
    blocks: Blocks,
    layout: Layout,
    source: WeightSource,
}

pub(super) fn add(cases: &mut Cases) {
    for (t, w) in DType::WEIGHTS.into_iter().enumerate() {
        let dims: &[usize] = match w.block_len() {
            1 => &[64, 1, 33, 704],
            32 => &[64, 32, 704, 96],
            _ => &[256, 768, 512, 1024],
        };
        for (o, output) in DType::FLOATS.into_iter().enumerate() {
            for i in 0..3 {
                let index = t + o + i;
                add_one(
                    cases,
                    Spec {
                        w,
                        output,
                        n: turn(&[50, 1, 7], index + o),
                        dim: turn(dims, index),
                        rows: turn(&[1, 5, 17, 64], index + i),
                        scale: turn(&[1.0, 8.0, 45.254_834], i + o),
                        out_of_range: i == 1,
                        // A result that is a normal number in every type of output.
                        blocks: if i == 2 && output == DType::F32 {
                            Blocks::Subnormal
                        } else {
                            Blocks::Mixed
                        },
                        layout: Layout::turn(index + t),
                        source: WeightSource::turn(index),
                    },
                );
            }
        }
    }
    cases.add(OP, "replay", "new ids without recording again", |p| {
        let weight = p.weight(DType::Q4K, [40, 256])?;
        let ids = p.ints([3], &[0, 1, 2]);
        push(p, weight, ids, [3, 256], (DType::F32, 1.0));
        let rounds = [[39, 0, 7], [5, 5, 5], [40, 1, u32::MAX]];
        p.check = Check::Replay(rounds.map(|round| vec![(ids, ints(&round))]).to_vec());
        Ok(())
    });
}

fn push(
    p: &mut Program,
    weight: Slot,
    ids: Slot,
    [rows, dim]: [usize; 2],
    (dtype, scale): (DType, f32),
) {
    let agreement = within(Family::Arithmetic, dtype, rows * dim);
    let output = p.output(dtype, [rows, dim], agreement);
    p.push(Op::Embed(Embed { weight, ids, output, scale }));
}

fn add_one(cases: &mut Cases, s: Spec) {
    let Spec { w, output, n, dim, rows, scale, .. } = s;
    let beyond = if s.out_of_range { ", ids out of range" } else { "" };
    let subnormal = if s.blocks == Blocks::Subnormal { " subnormal" } else { "" };
    let label = format!(
        "{w}{subnormal} {} [{n}, {dim}] to {output}, {rows} rows, scale {scale}{beyond}, {}",
        s.source, s.layout
    );
    cases.add(OP, "gather", label, move |p| {
        p.layout(s.layout);
        let weight = p.weight_from(w, [n, dim], s.source, s.blocks)?;
        let mut ids: Vec<u32> = (0..rows).map(|_| p.rng.below(n) as u32).collect();
        ids[rows - 1] = n as u32 - 1;
        if s.out_of_range {
            ids[0] = n as u32;
            ids[rows / 2] = u32::MAX;
        }
        let ids = p.ints([rows], &ids);
        push(p, weight, ids, [rows, dim], (output, scale));
        Ok(())
    });
}

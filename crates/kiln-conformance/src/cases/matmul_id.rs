//! Expert-routed products.

use super::matmul::{PRECISIONS, dot_bound, lengths, precision_name};
use super::{Cases, rows_route, turn};
use crate::host::Blocks;
use crate::program::{Check, Equality, Layout, Program, WeightSource};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "matmul_id";

/// Which experts the slots name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ids {
    /// Any, so that some repeat within a token and some experts stay empty.
    Any,
    /// All slots of a token the same.
    Repeated,
    /// The last expert takes every slot.
    One,
    /// Different within a token.
    Distinct,
    /// Some not below the number of experts.
    OutOfRange,
}

const PATTERNS: [Ids; 5] = [Ids::Any, Ids::Distinct, Ids::Repeated, Ids::OutOfRange, Ids::One];

#[derive(Clone, Copy)]
struct Spec {
    x: DType,
    w: DType,
    precision: Precision,
    tokens: usize,
    top_k: usize,
    experts: usize,
    n: usize,
    k: usize,
    ids: Ids,
    /// Input `[m, top_k, k]`.
    per_slot: bool,
    layout: Layout,
    source: WeightSource,
}

pub(super) fn add(cases: &mut Cases) {
    let tokens = [1, 2, 5, 17, 33];
    for (t, w) in DType::WEIGHTS.into_iter().enumerate() {
        for (q, precision) in PRECISIONS.into_iter().enumerate() {
            for i in 0..5 {
                let index = t + q * 2 + i;
                let experts = turn(&[8, 4, 1, 5], index + i);
                let short = lengths(w).len().min(4);
                let spec = Spec {
                    x: turn(&[DType::F32, DType::BF16, DType::F32, DType::F16], index),
                    w,
                    precision,
                    tokens: turn(&tokens, i + t),
                    top_k: turn(&[2, 1, 3, 8], index),
                    experts,
                    n: turn(&[33, 1, 7, 64, 2], index + q),
                    k: lengths(w)[index % short],
                    ids: turn(&PATTERNS, i),
                    per_slot: (index + t) % 3 == 1,
                    layout: Layout::turn(index + q),
                    source: WeightSource::turn(index + q),
                };
                add_one(cases, spec, false);
                if i == t % 5 || i == (t + 2) % 5 {
                    // A slot without an expert has no plain product.
                    let ids = if spec.ids == Ids::OutOfRange { Ids::Any } else { spec.ids };
                    add_one(cases, Spec { experts: experts.max(4), n: 24, ids, ..spec }, true);
                }
            }
        }
    }
    // Many experts, most of them empty; and a tile of rows that is not full.
    for w in [DType::Q4K, DType::Q8_0, DType::Q6K, DType::BF16] {
        for (tokens, experts, n) in [(16, 64, 16), (17, 8, 72), (65, 4, 33)] {
            for precision in PRECISIONS {
                let spec = Spec {
                    x: DType::F32,
                    w,
                    precision,
                    tokens,
                    top_k: 2,
                    experts,
                    n,
                    k: 256,
                    ids: Ids::Any,
                    per_slot: false,
                    layout: Layout::Guarded,
                    source: WeightSource::Imported,
                };
                add_one(cases, spec, false);
            }
        }
    }
}

fn ids(p: &mut Program, s: &Spec) -> Vec<u32> {
    let mut ids = Vec::new();
    for token in 0..s.tokens {
        let first = p.rng.below(s.experts);
        for slot in 0..s.top_k {
            let id = match s.ids {
                Ids::Any => p.rng.below(s.experts),
                Ids::Repeated => first,
                Ids::One => s.experts - 1,
                Ids::Distinct => (first + slot) % s.experts,
                Ids::OutOfRange => match (token + slot) % 3 {
                    0 => s.experts + p.rng.below(3),
                    1 if slot == 1 => u32::MAX as usize,
                    _ => p.rng.below(s.experts),
                },
            };
            ids.push(id as u32);
        }
    }
    ids
}

fn add_one(cases: &mut Cases, s: Spec, equals_plain: bool) {
    let Spec { x, w, tokens, top_k, experts, n, k, .. } = s;
    let routed = rows_route(tokens * top_k / experts);
    let route = if equals_plain {
        format!("{} against plain", precision_name(s.precision))
    } else {
        format!("{} {routed}", precision_name(s.precision))
    };
    let input = if s.per_slot { "input per slot" } else { "shared input" };
    let label = format!(
        "{x} x {w} {}, m {tokens} top_k {top_k} of {experts}, n {n} k {k}, {:?} ids, {input}, {}",
        s.source, s.ids, s.layout
    );
    cases.add(OP, route, label, move |p| {
        p.layout(s.layout);
        let dist = Dist::Normal(1.0);
        let input = if s.per_slot {
            p.float(x, [tokens, top_k, k], dist)
        } else {
            p.float(x, [tokens, k], dist)
        };
        let weight = p.weight_from(w, [experts, n, k], s.source, Blocks::Mixed)?;
        let chosen = ids(p, &s);
        let ids = p.ints([tokens, top_k], &chosen);
        let bound = dot_bound(p, weight, s.precision, dist);
        let output = p.output(DType::F32, [tokens, top_k, n], bound);
        p.push(Op::MatmulId(MatmulId { input, weight, ids, output, precision: s.precision }));
        if !equals_plain {
            return Ok(());
        }
        let mut ops = Vec::new();
        for (index, &id) in chosen.iter().enumerate() {
            let (token, slot) = (index / top_k, index % top_k);
            let mut x = p.slice(input, 0, token..token + 1);
            if s.per_slot {
                let row = p.slice(x, 1, slot..slot + 1);
                x = p.reshape(row, [1, k]);
            }
            let expert = p.slice(weight, 0, id as usize..id as usize + 1);
            let expert = p.reshape(expert, [n, k]);
            let row = p.slice(output, 0, token..token + 1);
            let row = p.slice(row, 1, slot..slot + 1);
            let row = p.reshape(row, [1, n]);
            ops.push(Op::Matmul(Matmul {
                input: x,
                weight: expert,
                output: row,
                input_layout: InputLayout::RowMajor,
                precision: s.precision,
            }));
        }
        p.check = Check::Variant(ops, Equality::Bounds);
        Ok(())
    });
}

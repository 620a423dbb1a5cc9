//! Rules of single operations: parameters, combinations, layouts.

use super::super::Cases;
use super::valid::*;
use super::{ROUTE, reject};
use crate::program::{Program, Slot};
use crate::reject::{Flaw, Kind};
use kiln_core::DType;
use kiln_core::ops::*;

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;
const BAD_EPS: [f32; 3] = [NAN, INF, -1e-6];
const NOT_POSITIVE: [f32; 4] = [0.0, -1.0, NAN, INF];

pub(super) fn add(cases: &mut Cases) {
    parameters(cases);
    rope(cases);
    attention(cases);
    layouts(cases);
    sampling(cases);
}

fn rule(
    cases: &mut Cases,
    (op, what): (&'static str, String),
    (kind, name): (&'static [Kind], &'static str),
    build: impl Fn(&mut Program) -> Op<Slot> + Send + Sync + 'static,
) {
    cases.add(op, ROUTE, what, move |p| {
        let op = build(p);
        p.push(op);
        reject(p, Flaw::None, kind, Some(name));
        Ok(())
    });
}

const PARAM: &[Kind] = &[Kind::Param];
const COMBINATION: &[Kind] = &[Kind::Combination];

fn parameters(cases: &mut Cases) {
    for (index, &valid) in ALL.iter().enumerate() {
        let name = valid(&mut Program::new(0)).name();
        for eps in BAD_EPS {
            if with_eps(valid(&mut Program::new(0)), eps).is_some() {
                let what = format!("eps {eps} (form {index})");
                rule(cases, (name, what), (PARAM, "eps"), move |p| {
                    let op = valid(p);
                    with_eps(op.clone(), eps).unwrap_or(op)
                });
            }
        }
    }
    for factor in [NAN, INF] {
        rule(cases, ("scale", format!("factor {factor}")), (PARAM, "factor"), move |p| {
            Op::Scale(Scale {
                input: t(p, DType::F32, [3, 8]),
                output: t(p, DType::F32, [3, 8]),
                factor,
            })
        });
        rule(cases, ("embed", format!("scale {factor}")), (PARAM, "scale"), move |p| {
            Op::Embed(Embed { scale: factor, ..embed(p) })
        });
        rule(cases, ("softmax", format!("scale {factor}")), (PARAM, "scale"), move |p| {
            let (input, output) = (t(p, DType::F32, [3, 8]), t(p, DType::F32, [3, 8]));
            Op::Softmax(Softmax { input, output, scale: factor })
        });
    }
    for cap in NOT_POSITIVE {
        rule(cases, ("softcap", format!("cap {cap}")), (PARAM, "cap"), move |p| {
            Op::Softcap(Softcap { cap, ..softcap(p) })
        });
    }
}

/// The operation with another epsilon, where it has one.
fn with_eps(op: Op<Slot>, eps: f32) -> Option<Op<Slot>> {
    Some(match op {
        Op::RmsNorm(op) => Op::RmsNorm(RmsNorm { eps, ..op }),
        Op::RmsNormMul(op) => Op::RmsNormMul(RmsNormMul { eps, ..op }),
        Op::RmsNormTriple(op) => Op::RmsNormTriple(RmsNormTriple { eps, ..op }),
        Op::PostAttnTripleNorm(op) => Op::PostAttnTripleNorm(PostAttnTripleNorm { eps, ..op }),
        Op::PostFfNormEndLayer(op) => Op::PostFfNormEndLayer(PostFfNormEndLayer { eps, ..op }),
        Op::MoePostFfNormEndLayer(op) => {
            Op::MoePostFfNormEndLayer(MoePostFfNormEndLayer { eps, ..op })
        }
        Op::AddRmsNorm(op) => Op::AddRmsNorm(AddRmsNorm { eps, ..op }),
        Op::LayerNorm(op) => Op::LayerNorm(LayerNorm { eps, ..op }),
        Op::HeadNormRope(op) => Op::HeadNormRope(HeadNormRope { eps, ..op }),
        _ => return None,
    })
}

fn rope(cases: &mut Cases) {
    type Change = fn(&mut Program, HeadNormRope<Slot>) -> HeadNormRope<Slot>;
    let changes: [(&str, &'static [Kind], &'static str, Change); 13] = [
        ("half above D / 2", PARAM, "half", |_, op| HeadNormRope { half: 5, ..op }),
        ("theta 0", PARAM, "theta", |_, op| HeadNormRope { theta: 0.0, ..op }),
        ("theta negative", PARAM, "theta", |_, op| HeadNormRope { theta: -1e4, ..op }),
        ("theta infinite", PARAM, "theta", |_, op| HeadNormRope { theta: INF, ..op }),
        ("theta NaN", PARAM, "theta", |_, op| HeadNormRope { theta: NAN, ..op }),
        ("weight without norm", COMBINATION, "weight", |_, op| HeadNormRope {
            normalize: false,
            ..op
        }),
        ("positions and tables", COMBINATION, "cos", |p, op| HeadNormRope {
            cos: Some(t(p, DType::F32, [3, 4])),
            sin: Some(t(p, DType::F32, [3, 4])),
            ..op
        }),
        ("cos without sin", COMBINATION, "sin", |p, op| HeadNormRope {
            positions: None,
            freq_factors: None,
            cos: Some(t(p, DType::F32, [3, 4])),
            ..op
        }),
        ("no angles", COMBINATION, "positions", |_, op| HeadNormRope {
            positions: None,
            freq_factors: None,
            ..op
        }),
        ("factors and tables", COMBINATION, "freq_factors", |p, op| HeadNormRope {
            positions: None,
            cos: Some(t(p, DType::F32, [1, 4])),
            sin: Some(t(p, DType::F32, [1, 4])),
            ..op
        }),
        ("cache without start", COMBINATION, "cache_start", |_, op| HeadNormRope {
            cache_start: None,
            ..op
        }),
        ("start without cache", COMBINATION, "cache_start", |_, op| HeadNormRope {
            cache: None,
            ..op
        }),
        ("no output", COMBINATION, "output", |_, op| HeadNormRope {
            output: None,
            output_bf16: None,
            output_f32: None,
            cache: None,
            cache_start: None,
            ..op
        }),
    ];
    for (what, kind, name, change) in changes {
        rule(cases, ("head_norm_rope", what.to_owned()), (kind, name), move |p| {
            let op = head_norm_rope(p);
            Op::HeadNormRope(change(p, op))
        });
    }
}

fn attention(cases: &mut Cases) {
    type Flash = fn(&mut Program, FlashAttention<Slot>) -> FlashAttention<Slot>;
    let rule_kind: &'static [Kind] = &[Kind::ExtentRule];
    let changes: [(&str, &'static [Kind], &'static str, Flash); 9] = [
        ("window 0", PARAM, "window", |_, op| FlashAttention { window: Some(0), ..op }),
        ("softcap 0", PARAM, "softcap", |_, op| FlashAttention { softcap: Some(0.0), ..op }),
        ("softcap NaN", PARAM, "softcap", |_, op| FlashAttention { softcap: Some(NAN), ..op }),
        ("scale NaN", PARAM, "scale", |_, op| FlashAttention { scale: NAN, ..op }),
        ("tiles of no rows", PARAM, "tile", |_, op| FlashAttention { tile: [0, 2], ..op }),
        ("blocks without a mask", COMBINATION, "blocks", |_, op| FlashAttention {
            mask: None,
            ..op
        }),
        ("more queries than keys without offset", PARAM, "q_offset", |p, op| FlashAttention {
            q: t(p, DType::BF16, [2, 7, 4, 16]),
            output: t(p, DType::BF16, [2, 7, 4, 16]),
            mask: None,
            blocks: None,
            ..op
        }),
        ("key heads that do not divide", rule_kind, "k", |p, op| FlashAttention {
            k: t(p, DType::BF16, [2, 6, 3, 16]),
            v: t(p, DType::BF16, [2, 6, 3, 16]),
            ..op
        }),
        ("a mask of the other 16-bit type", &[Kind::DTypeLike], "mask", |p, op| FlashAttention {
            mask: Some(t(p, DType::F16, [5, 6])),
            ..op
        }),
    ];
    for (what, kind, name, change) in changes {
        rule(cases, ("flash_attention", what.to_owned()), (kind, name), move |p| {
            let op = flash_attention(p);
            Op::FlashAttention(change(p, op))
        });
    }
    for dim in [4, 20, 65, 520, 1024] {
        let what = format!("head dimension {dim}");
        rule(cases, ("flash_attention", what.clone()), (rule_kind, "q"), move |p| {
            let op = flash_attention(p);
            let [q, output] = [(); 2].map(|()| t(p, DType::BF16, [2, 5, 4, dim]));
            let [k, v] = [(); 2].map(|()| t(p, DType::BF16, [2, 6, 2, dim]));
            Op::FlashAttention(FlashAttention { q, k, v, output, ..op })
        });
        rule(cases, ("cached_attention", what), (rule_kind, "q"), move |p| {
            let op = cached_attention(p);
            let [q, output] = [(); 2].map(|()| t(p, DType::F32, [3, 4, dim]));
            let [k_cache, v_cache] = [(); 2].map(|()| t(p, DType::F32, [2, 7, dim]));
            Op::CachedAttention(CachedAttention { q, k_cache, v_cache, output, ..op })
        });
    }
    rule(cases, ("flash_attention", "f32 queries".to_owned()), (&[Kind::DType], "q"), |p| {
        let op = flash_attention(p);
        let [q, output] = [(); 2].map(|()| t(p, DType::F32, [2, 5, 4, 16]));
        let [k, v] = [(); 2].map(|()| t(p, DType::F32, [2, 6, 2, 16]));
        Op::FlashAttention(FlashAttention { q, k, v, output, mask: None, blocks: None, ..op })
    });
    for tile in [[0, 2], [2, 0]] {
        let what = format!("tiles {tile:?}");
        rule(cases, ("flash_attention_blocks", what), (PARAM, "tile"), move |p| {
            let (mask, blocks) = (t(p, DType::F16, [4, 6]), t(p, DType::U8, [1, 1, 2, 3]));
            Op::FlashAttentionBlocks(FlashAttentionBlocks { mask, blocks, tile })
        });
    }
    cached(cases, rule_kind);
}

fn cached(cases: &mut Cases, rule_kind: &'static [Kind]) {
    type Cached = fn(&mut Program, CachedAttention<Slot>) -> CachedAttention<Slot>;
    let changes: [(&str, &'static [Kind], &'static str, Cached); 6] = [
        ("window 0", PARAM, "window", |_, op| CachedAttention { window: Some(0), ..op }),
        ("softcap negative", PARAM, "softcap", |_, op| CachedAttention {
            softcap: Some(-30.0),
            ..op
        }),
        ("scale infinite", PARAM, "scale", |_, op| CachedAttention { scale: INF, ..op }),
        ("key heads that do not divide", rule_kind, "k_cache", |p, op| CachedAttention {
            k_cache: t(p, DType::Q8_0, [3, 7, 32]),
            v_cache: t(p, DType::Q8_0, [3, 7, 32]),
            ..op
        }),
        ("caches of two types", &[Kind::DTypeLike], "v_cache", |p, op| CachedAttention {
            v_cache: t(p, DType::F16, [2, 7, 32]),
            ..op
        }),
        ("a cache of 4-bit blocks", &[Kind::DType], "k_cache", |p, op| CachedAttention {
            k_cache: t(p, DType::Q4_0, [2, 7, 32]),
            v_cache: t(p, DType::Q4_0, [2, 7, 32]),
            ..op
        }),
    ];
    for (what, kind, name, change) in changes {
        rule(cases, ("cached_attention", what.to_owned()), (kind, name), move |p| {
            let op = cached_attention(p);
            Op::CachedAttention(change(p, op))
        });
    }
    rule(
        cases,
        ("kv_append", "a cache of 4-bit blocks".to_owned()),
        (&[Kind::DType], "cache"),
        |p| {
            let cache = t(p, DType::Q4_0, [2, 7, 32]);
            Op::KvAppend(KvAppend { cache, ..kv_append(p) })
        },
    );
}

/// Weights with gaps, and operands that overlap in part.
fn layouts(cases: &mut Cases) {
    const LAYOUT: &[Kind] = &[Kind::Layout];
    for w in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4K] {
        let k = w.block_len().max(32);
        rule(cases, ("matmul", format!("{w} weight with gaps")), (LAYOUT, "weight"), move |p| {
            let wide = t(p, w, [5, 2 * k]);
            let weight = p.slice(wide, 1, 0..k);
            Op::Matmul(Matmul { weight, ..matmul(p, w) })
        });
        for gate in [false, true] {
            let name = if gate { "gate" } else { "up" };
            let what = format!("{w} {name} with gaps");
            rule(cases, ("gated_matmul", what), (LAYOUT, name), move |p| {
                let wide = t(p, w, [5, 2 * k]);
                let [whole, gaps] = [t(p, w, [5, k]), p.slice(wide, 1, k..2 * k)];
                Op::GatedMatmul(GatedMatmul {
                    input: t(p, DType::F32, [3, k]),
                    gate: if gate { gaps } else { whole },
                    up: if gate { whole } else { gaps },
                    output: t(p, DType::F32, [3, 5]),
                    activation: Activation::Silu,
                    precision: Precision::Fast,
                })
            });
        }
        rule(cases, ("matmul_id", format!("{w} weight with gaps")), (LAYOUT, "weight"), move |p| {
            let tall = t(p, w, [4, 6, k]);
            Op::MatmulId(MatmulId {
                input: t(p, DType::F32, [3, k]),
                weight: p.slice(tall, 1, 0..5),
                ids: t(p, DType::U32, [3, 2]),
                output: t(p, DType::F32, [3, 2, 5]),
                precision: Precision::Fast,
            })
        });
    }
    const ALIAS: &[Kind] = &[Kind::Alias];
    let row = |p: &mut Program, first: usize| {
        let all = t(p, DType::F32, [6, 8]);
        [p.slice(all, 0, first..first + 3), p.slice(all, 0, 0..3)]
    };
    for first in [1, 2] {
        rule(cases, ("rms_norm", format!("rows {first} on")), (ALIAS, "output"), move |p| {
            let [input, output] = row(p, first);
            Op::RmsNorm(RmsNorm { input, output, weight: None, eps: 1e-6 })
        });
    }
    rule(cases, ("softmax", "columns that interleave".to_owned()), (ALIAS, "output"), |p| {
        let all = t(p, DType::F32, [3, 16]);
        let (input, output) = (p.slice(all, 1, 0..8), p.slice(all, 1, 8..16));
        Op::Softmax(Softmax { input, output, scale: 1.0 })
    });
}

fn sampling(cases: &mut Cases) {
    for temperature in [-0.1, NAN, INF] {
        let what = format!("temperature {temperature}");
        rule(cases, ("sample", what), (PARAM, "temperature"), move |p| {
            Op::Sample(Sample { temperature, ..sample(p) })
        });
    }
    for top_p in [0.0, -0.5, 1.5, NAN] {
        rule(cases, ("sample", format!("top_p {top_p}")), (PARAM, "top_p"), move |p| {
            Op::Sample(Sample { top_p, ..sample(p) })
        });
    }
    let what = "more slots than experts".to_owned();
    rule(cases, ("moe_route", what), (&[Kind::ExtentRule], "ids"), |p| {
        let [ids, weights] = [DType::U32, DType::F32].map(|dtype| t(p, dtype, [3, 9]));
        Op::MoeRoute(MoeRoute { ids, weights, ..moe_route(p) })
    });
    for (input, output) in
        [(DType::F32, DType::U32), (DType::U32, DType::F32), (DType::U8, DType::U32)]
    {
        let kinds: &[Kind] = &[Kind::DType, Kind::DTypeLike];
        rule(cases, ("copy", format!("{input} to {output}")), (kinds, "output"), move |p| {
            Op::Copy(Copy { input: t(p, input, [3, 8]), output: t(p, output, [3, 8]) })
        });
    }
    rule(cases, ("copy", "of blocks".to_owned()), (&[Kind::DType], "input"), |p| {
        Op::Copy(Copy { input: t(p, DType::Q8_0, [3, 32]), output: t(p, DType::Q8_0, [3, 32]) })
    });
}

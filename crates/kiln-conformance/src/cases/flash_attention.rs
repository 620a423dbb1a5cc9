//! Attention over given keys and values.

use super::{Cases, attention_options, turn};
use crate::bounds::Bound;
use crate::program::{Agreement, Check, Equality, Layout, Program, Slot};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "flash_attention";

const DIMS: [usize; 12] = [8, 16, 40, 64, 72, 80, 96, 112, 128, 192, 256, 512];
const HALVES: [DType; 2] = [DType::F16, DType::BF16];
const LAYOUTS: [AttentionLayout; 2] = [AttentionLayout::HeadMajor, AttentionLayout::SeqMajor];
const HEADS: [[usize; 2]; 7] = [[4, 2], [2, 2], [8, 1], [6, 2], [20, 4], [12, 3], [1, 1]];

/// The mask of a case; some of its rows are masked throughout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum MaskKind {
    None,
    /// Of rank 2.
    Bool,
    /// Of rank 4.
    BoolPerHead,
    /// Of rank 2, zeros, finite biases and minus infinity.
    Added,
    /// Of rank 4.
    AddedPerHead,
}

const MASKS: [MaskKind; 5] = [
    MaskKind::None,
    MaskKind::Bool,
    MaskKind::Added,
    MaskKind::BoolPerHead,
    MaskKind::AddedPerHead,
];

#[derive(Clone, Copy)]
struct Spec {
    dtype: DType,
    batch: usize,
    /// Query heads and key-value heads.
    heads: [usize; 2],
    q_len: usize,
    kv_len: usize,
    dim: usize,
    layout: AttentionLayout,
    memory: Layout,
    causal: bool,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    mask: MaskKind,
    q_offset: Option<usize>,
    /// Standard deviation of the scores.
    spread: f32,
}

const BASE: Spec = Spec {
    dtype: DType::BF16,
    batch: 1,
    heads: [4, 2],
    q_len: 20,
    kv_len: 37,
    dim: 64,
    layout: AttentionLayout::HeadMajor,
    memory: Layout::Guarded,
    causal: false,
    window: None,
    softcap: None,
    sinks: false,
    mask: MaskKind::None,
    q_offset: None,
    spread: 4.0,
};

pub(super) fn add(cases: &mut Cases) {
    dims(cases);
    lengths(cases);
    many_tiles(cases);
    options(cases);
    identities(cases);
}

fn dims(cases: &mut Cases) {
    for (d, dim) in DIMS.into_iter().enumerate() {
        for (t, dtype) in HALVES.into_iter().enumerate() {
            for (l, layout) in LAYOUTS.into_iter().enumerate() {
                let index = d + t * 3 + l;
                let q_len = turn(&[33, 1, 17, 64, 8], index + d);
                add_one(
                    cases,
                    "head dims",
                    Spec {
                        dtype,
                        batch: 1 + index % 2,
                        heads: turn(&HEADS, index),
                        q_len,
                        kv_len: q_len + turn(&[0, 5, 31], index),
                        dim,
                        layout,
                        memory: Layout::turn(index + l),
                        causal: index.is_multiple_of(2),
                        spread: turn(&[4.0, 1.0, 8.0], index),
                        ..BASE
                    },
                );
            }
        }
    }
}

fn lengths(cases: &mut Cases) {
    let longer = [63, 64, 65, 96, 113, 127, 128, 129, 255, 300, 512, 1024];
    for (i, kv_len) in (1..=40usize).chain(longer).enumerate() {
        add_one(
            cases,
            "key lengths",
            Spec {
                dtype: turn(&HALVES, i),
                q_len: kv_len.min(3),
                kv_len,
                dim: turn(&[64, 128, 80], i / 2),
                causal: i % 3 == 0,
                layout: turn(&LAYOUTS, i / 3),
                spread: 1.0 + (i % 4) as f32,
                ..BASE
            },
        );
    }
    for (i, len) in
        [2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100].into_iter().enumerate()
    {
        for causal in [false, true] {
            add_one(
                cases,
                "query lengths",
                Spec {
                    dtype: turn(&HALVES, i),
                    heads: [2, 1],
                    q_len: len,
                    kv_len: len,
                    causal,
                    layout: turn(&LAYOUTS, i / 2),
                    ..BASE
                },
            );
        }
    }
    // Queries that begin before, at, within and after the keys.
    for (i, [q_len, kv_len, offset]) in
        [[20, 37, 0], [40, 37, 0], [5, 37, 2], [17, 37, 15], [9, 20, 40], [1, 64, 63]]
            .into_iter()
            .enumerate()
    {
        for window in [None, Some(8)] {
            add_one(
                cases,
                "query offsets",
                Spec {
                    dtype: turn(&HALVES, i),
                    q_len,
                    kv_len,
                    q_offset: Some(offset),
                    window,
                    causal: true,
                    ..BASE
                },
            );
        }
    }
}

/// More keys than a kernel holds tiles of at once.
fn many_tiles(cases: &mut Cases) {
    let lengths = [[64, 600], [80, 300], [96, 300], [128, 300], [256, 240], [512, 200]];
    for (d, [dim, kv_len]) in lengths.into_iter().enumerate() {
        for (m, mask) in
            [MaskKind::None, MaskKind::Bool, MaskKind::AddedPerHead].into_iter().enumerate()
        {
            add_one(
                cases,
                "many tiles",
                Spec {
                    dtype: turn(&HALVES, d + m),
                    heads: [1, 1],
                    q_len: 24,
                    kv_len,
                    dim,
                    layout: turn(&LAYOUTS, d),
                    causal: (d + m).is_multiple_of(3),
                    window: turn(&[None, None, Some(150)], d / 2),
                    mask,
                    ..BASE
                },
            );
        }
    }
}

fn options(cases: &mut Cases) {
    let mut index = 0;
    for mask in MASKS {
        for causal in [false, true] {
            for window in [None, Some(1), Some(16)] {
                for softcap in [None, Some(30.0), Some(50.0)] {
                    for sinks in [false, true] {
                        index += 1;
                        let route = if mask == MaskKind::None { "unmasked" } else { "masked" };
                        add_one(
                            cases,
                            route,
                            Spec {
                                dtype: turn(&HALVES, index / 2),
                                batch: 1 + index / 5 % 2,
                                q_len: turn(&[20, 33, 7], index),
                                kv_len: turn(&[37, 65, 40], index / 2),
                                dim: turn(&[64, 80, 128, 96], index / 3),
                                layout: turn(&LAYOUTS, index / 3),
                                memory: Layout::turn(index / 2),
                                // Scores that a softcap bends.
                                spread: if softcap.is_some() { 16.0 } else { 4.0 },
                                causal,
                                window,
                                softcap,
                                sinks,
                                mask,
                                ..BASE
                            },
                        );
                    }
                }
            }
        }
    }
}

fn add_one(cases: &mut Cases, route: &'static str, s: Spec) {
    cases.add(OP, route, label(&s), move |p| {
        let op = build(p, &s);
        p.push(Op::FlashAttention(op));
        Ok(())
    });
}

fn label(s: &Spec) -> String {
    let Spec { dtype, batch, heads: [heads, kv_heads], q_len, kv_len, dim, layout, .. } = *s;
    let mut label = format!(
        "{dtype} B {batch} H {heads}/{kv_heads} qL {q_len} kL {kv_len} D {dim} {layout:?}, \
         spread {}, {}",
        s.spread, s.memory
    );
    if s.causal {
        label.push_str(", causal");
    }
    label.push_str(&attention_options(s.window, s.softcap, s.sinks));
    if s.mask != MaskKind::None {
        label.push_str(&format!(", mask {:?}", s.mask));
    }
    if let Some(offset) = s.q_offset {
        label.push_str(&format!(", offset {offset}"));
    }
    label
}

fn build(p: &mut Program, s: &Spec) -> FlashAttention<Slot> {
    p.layout(s.memory);
    let Spec { dtype, batch, heads: [heads, kv_heads], q_len, kv_len, dim, layout, .. } = *s;
    let q_shape = layout.split([batch, heads, q_len, dim]);
    let kv_shape = layout.split([batch, kv_heads, kv_len, dim]);
    let q = p.float(dtype, q_shape, Dist::Normal(1.0));
    let k = p.float(dtype, kv_shape, Dist::Normal(1.0));
    let v = p.float(dtype, kv_shape, Dist::Uniform);
    let mask = mask(p, s.mask, dtype, [batch, heads, q_len, kv_len]);
    let sinks = s.sinks.then(|| p.float(DType::F32, [heads], Dist::Normal(s.spread)));
    let bound = Bound::attention(dtype, dtype, batch * heads * q_len * dim);
    FlashAttention {
        q,
        k,
        v,
        mask,
        blocks: None,
        sinks,
        output: p.output(dtype, q_shape, Agreement::Within(bound)),
        layout,
        scale: s.spread / (dim as f32).sqrt(),
        causal: s.causal,
        window: s.window,
        softcap: s.softcap,
        q_offset: s.q_offset,
        tile: [1, 1],
    }
}

/// A mask with a fully masked row, an all open and an all masked square, and random values.
pub(super) fn mask(
    p: &mut Program,
    kind: MaskKind,
    dtype: DType,
    [batch, heads, q_len, kv_len]: [usize; 4],
) -> Option<Slot> {
    let per_head = matches!(kind, MaskKind::BoolPerHead | MaskKind::AddedPerHead);
    let planes = if per_head { batch * heads } else { 1 };
    let mut open = Vec::with_capacity(planes * q_len * kv_len);
    for _ in 0..planes {
        for i in 0..q_len {
            for j in 0..kv_len {
                let square = (i < 16 && j < 16, (16..32).contains(&j) && i < 16, i % 11 == 3);
                open.push(match square {
                    (_, _, true) | (_, true, _) => false,
                    (true, _, _) => true,
                    _ => p.rng.below(10) < 7,
                });
            }
        }
    }
    let rank_4 = [batch, heads, q_len, kv_len];
    match kind {
        MaskKind::None => None,
        MaskKind::Bool | MaskKind::BoolPerHead => {
            let bytes: Vec<u8> = open.into_iter().map(u8::from).collect();
            Some(if per_head {
                p.bytes(DType::U8, rank_4, bytes)
            } else {
                p.bytes(DType::U8, [q_len, kv_len], bytes)
            })
        }
        MaskKind::Added | MaskKind::AddedPerHead => {
            let mut values = Vec::with_capacity(open.len());
            for (index, open) in open.into_iter().enumerate() {
                let in_square = index / kv_len % q_len < 16 && index % kv_len < 16;
                values.push(match open {
                    false => f32::NEG_INFINITY,
                    true if in_square => 0.0,
                    true => p.rng.value(Dist::Normal(2.0)),
                });
            }
            Some(if per_head {
                p.floats(dtype, rank_4, &values)
            } else {
                p.floats(dtype, [q_len, kv_len], &values)
            })
        }
    }
}

fn identities(cases: &mut Cases) {
    let tiles = [[32, 16], [16, 16], [8, 8], [64, 64], [1, 1], [5, 7]];
    for (i, tile) in tiles.into_iter().enumerate() {
        for (j, mask) in MASKS.into_iter().skip(1).enumerate() {
            let spec = Spec {
                dtype: turn(&HALVES, i + j),
                q_len: 50,
                kv_len: 70,
                dim: turn(&[64, 128], i),
                causal: (i + j).is_multiple_of(2),
                mask,
                ..BASE
            };
            let label = format!("tiles {tile:?}, {}", label(&spec));
            cases.add(OP, "blocks against none", label, move |p| {
                let plain = build(p, &spec);
                let [rows, columns] = [50usize.div_ceil(tile[0]), 70usize.div_ceil(tile[1])];
                let per_head = matches!(mask, MaskKind::BoolPerHead | MaskKind::AddedPerHead);
                let leading = if per_head { [1, 4] } else { [1, 1] };
                let blocks = p.temp(DType::U8, [leading[0], leading[1], rows, columns]);
                if let Some(mask) = plain.mask {
                    p.push(Op::FlashAttentionBlocks(FlashAttentionBlocks { mask, blocks, tile }));
                }
                let mapped = FlashAttention { blocks: Some(blocks), tile, ..plain.clone() };
                p.push(Op::FlashAttention(mapped));
                let plain = Op::FlashAttention(plain);
                p.check = Check::Variant(vec![plain], Equality::Bits);
                Ok(())
            });
        }
    }
    broadcast_mask(cases);
    causal_mask(cases);
    other_layout(cases);
    chunks(cases);
}

/// A mask of rank 2 and the same for every head.
fn broadcast_mask(cases: &mut Cases) {
    for mask in [MaskKind::Bool, MaskKind::Added] {
        for dtype in HALVES {
            let spec = Spec { dtype, batch: 2, mask, ..BASE };
            cases.add(OP, "rank 2 against rank 4", label(&spec), move |p| {
                let op = build(p, &spec);
                let Some(Slot(index)) = op.mask else { return Ok(()) };
                let operand = p.operands[index].clone();
                let crate::program::Source::Host(bytes, _) = operand.source else { return Ok(()) };
                let per_head = p.bytes(operand.dtype, [2, 4, 20, 37], bytes.repeat(8));
                p.push(Op::FlashAttention(op.clone()));
                let repeated = Op::FlashAttention(FlashAttention { mask: Some(per_head), ..op });
                p.check = Check::Variant(vec![repeated], Equality::Bits);
                Ok(())
            });
        }
    }
}

/// The causal flag and window, and a mask that says the same.
fn causal_mask(cases: &mut Cases) {
    for (i, dtype) in HALVES.into_iter().enumerate() {
        for (j, window) in [None, Some(5), Some(32)].into_iter().enumerate() {
            let spec = Spec { dtype, q_len: 33, kv_len: 50, causal: true, window, ..BASE };
            cases.add(OP, "causal against mask", label(&spec), move |p| {
                let op = build(p, &spec);
                let open = |i: usize, j: usize| {
                    j <= 17 + i && window.is_none_or(|window| 17 + i < j + window)
                };
                let cells = (0..33).flat_map(|i| (0..50).map(move |j| open(i, j)));
                let mask = if (i + j).is_multiple_of(2) {
                    p.bytes(DType::U8, [33, 50], cells.map(u8::from).collect())
                } else {
                    let bias = |open| if open { 0.0 } else { f32::NEG_INFINITY };
                    let values: Vec<f32> = cells.map(bias).collect();
                    p.floats(dtype, [33, 50], &values)
                };
                p.push(Op::FlashAttention(op.clone()));
                let masked = FlashAttention { mask: Some(mask), causal: false, window: None, ..op };
                p.check = Check::Variant(vec![Op::FlashAttention(masked)], Equality::Bounds);
                Ok(())
            });
        }
    }
}

/// The same memory, described by one layout and by the other.
fn other_layout(cases: &mut Cases) {
    for dtype in HALVES {
        for layout in LAYOUTS {
            let spec = Spec { dtype, batch: 2, layout, causal: true, ..BASE };
            cases.add(OP, "layout against layout", label(&spec), move |p| {
                let op = build(p, &spec);
                let [q, k, v, output] =
                    [op.q, op.k, op.v, op.output].map(|slot| p.transpose(slot, 1, 2));
                p.push(Op::FlashAttention(op.clone()));
                let layout = if layout == LAYOUTS[0] { LAYOUTS[1] } else { LAYOUTS[0] };
                let other = FlashAttention { q, k, v, output, layout, ..op };
                p.check = Check::Variant(vec![Op::FlashAttention(other)], Equality::Bounds);
                Ok(())
            });
        }
    }
}

/// A prompt in one piece and in chunks.
fn chunks(cases: &mut Cases) {
    let lists: [&[usize]; 6] =
        [&[2, 48], &[8, 42], &[15, 35], &[32, 18], &[16, 16, 18], &[1, 1, 48]];
    for (i, chunks) in lists.into_iter().enumerate() {
        for (j, layout) in LAYOUTS.into_iter().enumerate() {
            let spec = Spec {
                dtype: turn(&HALVES, i + j),
                heads: turn(&[[20, 4], [8, 2], [12, 3]], i),
                q_len: 50,
                kv_len: 50,
                dim: turn(&[64, 128, 256], i),
                layout,
                causal: true,
                window: turn(&[None, Some(9)], i / 2),
                ..BASE
            };
            let label = format!("chunks {chunks:?}, {}", label(&spec));
            cases.add(OP, "chunks against whole", label, move |p| {
                let whole = build(p, &spec);
                p.push(Op::FlashAttention(whole.clone()));
                let axis = if layout == AttentionLayout::HeadMajor { 2 } else { 1 };
                let mut ops = Vec::new();
                let mut start = 0;
                for &len in chunks {
                    let end = start + len;
                    ops.push(Op::FlashAttention(FlashAttention {
                        q: p.slice(whole.q, axis, start..end),
                        k: p.slice(whole.k, axis, 0..end),
                        v: p.slice(whole.v, axis, 0..end),
                        output: p.slice(whole.output, axis, start..end),
                        q_offset: Some(start),
                        ..whole.clone()
                    }));
                    start = end;
                }
                p.check = Check::Variant(ops, Equality::Bits);
                Ok(())
            });
        }
    }
}

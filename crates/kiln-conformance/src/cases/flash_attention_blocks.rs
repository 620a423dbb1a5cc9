//! Tile maps of masks.

use super::flash_attention::{MaskKind, mask};
use super::{Cases, turn};
use crate::program::{Agreement, Layout};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "flash_attention_blocks";
const TILES: [[usize; 2]; 7] = [[1, 1], [8, 8], [16, 16], [32, 16], [64, 64], [5, 7], [128, 3]];
const LENGTHS: [[usize; 2]; 6] = [[1, 1], [20, 37], [33, 65], [64, 64], [7, 200], [50, 16]];

pub(super) fn add(cases: &mut Cases) {
    let kinds = [
        (MaskKind::Bool, DType::U8),
        (MaskKind::BoolPerHead, DType::U8),
        (MaskKind::Added, DType::F16),
        (MaskKind::AddedPerHead, DType::BF16),
    ];
    for (i, tile) in TILES.into_iter().enumerate() {
        for (j, (kind, dtype)) in kinds.into_iter().enumerate() {
            for half in 0..2 {
                let [q_len, kv_len] = turn(&LENGTHS, i + j + half * 3);
                let layout = Layout::turn(i + j + half);
                let label =
                    format!("{dtype} {kind:?} qL {q_len} kL {kv_len}, tiles {tile:?}, {layout}");
                cases.add(OP, "map", label, move |p| {
                    p.layout(layout);
                    let rank_4 = matches!(kind, MaskKind::BoolPerHead | MaskKind::AddedPerHead);
                    let [batch, heads] = if rank_4 { [2, 3] } else { [1, 1] };
                    let tiles = [q_len.div_ceil(tile[0]), kv_len.div_ceil(tile[1])];
                    if let Some(mask) = mask(p, kind, dtype, [batch, heads, q_len, kv_len]) {
                        let shape = [batch, heads, tiles[0], tiles[1]];
                        let blocks = p.output(DType::U8, shape, Agreement::Exact);
                        p.push(Op::FlashAttentionBlocks(FlashAttentionBlocks {
                            mask,
                            blocks,
                            tile,
                        }));
                    }
                    Ok(())
                });
            }
        }
    }
    // Negative zero is open, the largest negative number is not masked.
    for dtype in [DType::F16, DType::BF16] {
        cases.add(OP, "map", format!("{dtype} zeros of both signs and large biases"), move |p| {
            let mut values = vec![0.0f32; 32 * 32];
            for (index, value) in values.iter_mut().enumerate() {
                *value = match (index / 32 / 16, index % 32 / 16) {
                    (0, 0) => -0.0,
                    (0, _) => -60_000.0,
                    (_, 0) => f32::NEG_INFINITY,
                    _ => p.rng.value(Dist::Uniform),
                };
            }
            let mask = p.floats(dtype, [32, 32], &values);
            let blocks = p.output(DType::U8, [1, 1, 2, 2], Agreement::Exact);
            p.push(Op::FlashAttentionBlocks(FlashAttentionBlocks { mask, blocks, tile: [16, 16] }));
            Ok(())
        });
    }
}

//! Attention of many queries on Hopper: `flash_attention_wgmma.cu`.

use super::attention::FlashArgs;
use crate::kernels::{HEAD_DIMS, Unit};
use crate::lower::{Kernel, Lowering};
use crate::runtime::graph::Param;
use crate::runtime::tensor_map::Heads;
use kiln_core::DType;

/// What a kernel does beside plain attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    /// A mask, and its map.
    Masked,
    /// Queries as a sum of two 16-bit values.
    Split,
}

impl Form {
    fn suffix(self) -> &'static str {
        match self {
            Form::Plain => "",
            Form::Masked => "_masked",
            Form::Split => "_split",
        }
    }
}

/// A tile; the instances in the kernel file say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WgmmaTile {
    /// Head dimension with padding.
    pub(crate) dim: u32,
    /// Blocks: those of a cluster.
    pub(crate) blocks: u64,
    /// Groups of 64 query rows.
    pub(crate) groups: u64,
    /// Keys.
    pub(crate) keys: u64,
    /// Tiles of keys and of values in shared memory.
    pub(crate) stages: u64,
}

/// The tile for a head dimension; registers and shared memory set the limits.
pub(crate) fn tile(dim: u64, form: Form) -> Option<WgmmaTile> {
    let dim = HEAD_DIMS.into_iter().find(|padded| u64::from(*padded) >= dim)?;
    let [blocks, groups, keys, stages] = match (dim, form) {
        (64, Form::Plain) => [1, 3, 128, 3],
        (64, _) => [1, 2, 128, 4],
        (256, Form::Split) => [1, 2, 48, 2],
        (256, _) => [1, 2, 80, 2],
        (512, Form::Split) => return None,
        (512, _) => [2, 2, 64, 1],
        _ => [1, 2, 128, 2],
    };
    Some(WgmmaTile { dim, blocks, groups, keys, stages })
}

impl WgmmaTile {
    /// Query rows.
    pub(crate) fn rows(self) -> u64 {
        self.groups * 64
    }

    /// Threads of a block: a warpgroup that copies, and one for each group of rows or, where
    /// they share one, for each half of the columns.
    fn threads(self) -> u32 {
        128 * (self.groups as u32 + 1)
    }

    /// Bytes of shared memory of a block, with room to align them: queries, stages of keys and of
    /// values in boxes of 64 columns; weights twice, where two warpgroups share rows.
    pub(crate) fn shared(self, form: Form) -> u64 {
        let parts = if form == Form::Split { 2 } else { 1 };
        let row = u64::from(self.dim).div_ceil(64) * 128;
        let weights = if self.blocks == 1 { 0 } else { 2 * 64 * self.keys * 2 };
        let rows = parts * self.rows() / self.blocks;
        (rows + 2 * self.stages * self.keys) * row + weights + 1024
    }
}

/// Positions that the kernel counts to.
const POSITIONS: i64 = 1 << 30;

/// Whether bulk tensor copies can read rows at an address: an axis of one step may have any stride.
fn copies(address: u64, strides: [u64; 3], extents: [u64; 3]) -> bool {
    let fits = |(stride, extent): (u64, u64)| {
        extent == 1 || (stride.is_multiple_of(16) && stride > 0 && stride < 1 << 40)
    };
    // How far the keys of a chunk reach must not choose the route: rows always count.
    address.is_multiple_of(16)
        && strides[0].is_multiple_of(16)
        && strides.into_iter().zip(extents).all(fits)
}

/// Bytes of keys and values that stay in the L2 cache while blocks go over them.
const RESIDENT: u64 = 32 << 20;

/// Key-value heads whose blocks run together: with a causal mask blocks of later rows start
/// first, and go over keys at different times.
pub(crate) fn heads_together(heads: u64, head_bytes: u64, causal: bool) -> u64 {
    let divides = |count: &u64| heads.is_multiple_of(*count);
    if !causal || heads * head_bytes <= RESIDENT {
        return heads;
    }
    (1..=heads).rev().filter(divides).find(|count| count * head_bytes <= RESIDENT).unwrap_or(1)
}

/// Launches an attention, where Hopper's kernels can.
pub(super) fn launch(
    [queries, keys]: [DType; 2],
    batch: u64,
    args: &FlashArgs,
    lowering: &mut Lowering,
) -> bool {
    let form = match (queries == keys, args.mask_kind) {
        (true, 0) => Form::Plain,
        (true, _) => Form::Masked,
        (false, 0) => Form::Split,
        (false, _) => return false,
    };
    let Some(tile) = tile(u64::from(args.dim), form).filter(|_| lowering.caps.hopper()) else {
        return false;
    };
    let (heads, group) = (u64::from(args.heads), u64::from(args.group));
    let rows = if args.kv_len_at == 0 { args.kv_len as u64 } else { args.capacity };
    let extents = [rows, heads / group, batch];
    let k_strides = [args.k_stride_l, args.k_stride_h, args.k_stride_b];
    let v_strides = [args.v_stride_l, args.v_stride_h, args.v_stride_b];
    let positions = (rows as i64).saturating_add(args.q_offset).saturating_add(args.q_len as i64);
    if args.ring != 0
        || positions >= POSITIONS
        || tile.shared(form) > u64::from(lowering.caps.shared)
        || !copies(args.k, k_strides, extents)
        || !copies(args.v, v_strides, extents)
    {
        return false;
    }
    let map = |address, strides: [u64; 3]| {
        let stride = |axis: usize| strides[if extents[axis] == 1 { 0 } else { axis }].max(16);
        Param::Heads(Heads {
            address,
            dtype: keys,
            extents: [u64::from(args.dim), extents[0], extents[1], extents[2]],
            strides: [0, 1, 2].map(stride),
            box_rows: tile.keys as u32,
        })
    };
    let head_bytes = rows * u64::from(args.dim) * 4;
    let together = group * heads_together(batch * heads / group, head_bytes, args.causal != 0);
    let kernel = format!("flash_attention_wgmma_{keys}_{}{}", tile.dim, form.suffix());
    let blocks = args.q_len.div_ceil(tile.rows()) * together * tile.blocks;
    let kernel = Kernel::new(Unit::FlashAttentionWgmma(tile.dim), kernel, 1, tile.threads())
        .grid([blocks, batch * heads / together, 1])
        .shared(tile.shared(form));
    let params = vec![
        Param::Bytes(bytemuck::bytes_of(args).to_vec()),
        map(args.k, k_strides),
        map(args.v, v_strides),
    ];
    lowering.launch_with(kernel, params);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_fits() {
        for dim in HEAD_DIMS {
            for form in [Form::Plain, Form::Masked, Form::Split] {
                let Some(tile) = tile(u64::from(dim), form) else {
                    assert_eq!((dim, form), (512, Form::Split));
                    continue;
                };
                assert_eq!(tile.dim, dim);
                // Barriers, and what two warpgroups tell each other.
                assert!(tile.shared(form) + 1024 <= 227 << 10, "{dim} {form:?}");
            }
        }
        assert_eq!(tile(520, Form::Plain), None);
        assert_eq!(tile(72, Form::Plain).map(|tile| tile.dim), Some(80));
    }

    #[test]
    fn rows_must_be_aligned() {
        assert!(copies(32, [256, 4096, 7], [8, 2, 1]));
        assert!(!copies(32, [256, 4096, 7], [8, 2, 2]));
        assert!(!copies(8, [256, 4096, 0], [8, 2, 1]));
        assert!(!copies(32, [18, 4096, 0], [1, 2, 1]));
    }

    #[test]
    fn causal_blocks_share_what_the_cache_holds() {
        assert_eq!(heads_together(8, 8 << 20, true), 4);
        assert_eq!(heads_together(8, 8 << 20, false), 8);
        assert_eq!(heads_together(6, 1 << 20, true), 6);
        assert_eq!(heads_together(7, 8 << 20, true), 1);
    }
}

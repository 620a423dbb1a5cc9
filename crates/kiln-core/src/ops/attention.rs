//! Attention: `O = softmax(scale * Q K^T + mask) V`, grouped-query.
//!
//! Query head `h` reads key-value head `h / (H / H_kv)`. The score is capped by
//! `c * tanh(s / c)` before the mask where a softcap is given. A masked score is minus infinity, a
//! fully masked row is exactly 0. A sliding window `w` masks a key iff `q - k >= w`. A sink adds
//! `exp(sink[h])` to the denominator and nothing to the numerator.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

/// Largest head dimension an attention takes.
pub const MAX_HEAD_DIM: usize = 512;

/// Order of the head and sequence axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionLayout {
    /// `[B, H, L, D]`
    HeadMajor,
    /// `[B, L, H, D]`
    SeqMajor,
}

op! {
    /// Attention over given keys and values: prefill and encoders.
    ///
    /// Head dimensions are multiples of 8 up to [`MAX_HEAD_DIM`]; 64, 80, 96, 128, 256 and 512 have
    /// kernels of their own. Row `i` of the queries is at absolute position `q_offset + i`, key
    /// `j` at `j`.
    FlashAttention = "flash_attention", in_place: [],
    tensors {
        /// `[B, H, qL, D]` or `[B, qL, H, D]` by `layout`; f16 or bf16
        Read q,
        /// `[B, H_kv, kL, D]` or `[B, kL, H_kv, D]`, the type of `q`
        Read k,
        /// as `k`
        Read v,
        /// `[qL, kL]` or `[B, H, qL, kL]`: added, of the type of `q`; or u8, 1 = attend
        MaybeRead mask,
        /// The tile map of [`FlashAttentionBlocks`] for this mask, `[B or 1, H or 1, tiles, tiles]`
        MaybeRead blocks,
        /// `[H]` f32
        MaybeRead sinks,
        /// as `q`
        Write output,
    }
    params {
        /// Layout of `q`, `k`, `v` and `output`.
        layout: AttentionLayout,
        /// Multiplies the scores.
        scale: f32,
        /// Masks keys after the query.
        causal: bool,
        /// Masks keys `window` or more before the query.
        window: Option<usize>,
        /// Soft limit of the scores.
        softcap: Option<f32>,
        /// Absolute position of query row 0, below 2^31; `None` is `kL - qL`.
        q_offset: Option<usize>,
        /// Rows and columns of a tile of `blocks`; ignored without it.
        tile: [usize; 2],
    }
}

op! {
    /// Classifies the tiles of a mask: 0 all masked, 1 mixed, 2 all open (bool: all 1; additive: all
    /// zero). An attention with the map is bit-identical to one without.
    FlashAttentionBlocks = "flash_attention_blocks", in_place: [],
    tensors {
        /// `[qL, kL]` or `[B, H, qL, kL]`, f16, bf16 or u8
        Read mask,
        /// `[1, 1, ceil(qL / tile[0]), ceil(kL / tile[1])]` or with `B`, `H` of a mask of rank 4; u8
        Write blocks,
    }
    params {
        /// Rows and columns of a tile.
        tile: [usize; 2],
    }
}

op! {
    /// Causal attention against a key-value cache: decode, chunks of a prompt, speculation.
    ///
    /// `kv_len` counts all positions appended so far, these `T` included: query row `i` is at
    /// position `kv_len - T + i`. A linear cache holds position `p` in slot `p`; a ring holds it in
    /// slot `p % capacity`, so that the keys are the last `capacity` positions. Where `kv_len` is
    /// below `T`, or above the capacity of a linear cache, the output is NaN.
    ///
    /// Lengths are read on the device when the operation runs: a recording made once replays for
    /// every token.
    CachedAttention = "cached_attention", in_place: [],
    tensors {
        /// `[T, H, D]` f32, f16 or bf16; `D` a multiple of 8 up to [`MAX_HEAD_DIM`]
        Read q,
        /// `[H_kv, capacity, D]` f32, f16, bf16 or q8_0
        Read k_cache,
        /// as `k_cache`
        Read v_cache,
        /// `[1]` u32
        Read kv_len,
        /// `[H]` f32
        MaybeRead sinks,
        /// `[T, H, D]`, the type of `q`
        Write output,
    }
    params {
        /// Multiplies the scores.
        scale: f32,
        /// Masks keys `window` or more before the query.
        window: Option<usize>,
        /// Soft limit of the scores.
        softcap: Option<f32>,
        /// Whether the cache wraps around.
        ring: bool,
    }
}

impl AttentionLayout {
    /// (B, heads, length, D) of a shape in this layout.
    pub fn split(self, dims: [usize; 4]) -> [usize; 4] {
        let [batch, a, b, dim] = dims;
        match self {
            AttentionLayout::HeadMajor => [batch, a, b, dim],
            AttentionLayout::SeqMajor => [batch, b, a, dim],
        }
    }
}

fn head_dim(check: Check, axis: usize, dim: usize) -> Result<(), OpError> {
    if dim.is_multiple_of(8) && dim <= MAX_HEAD_DIM {
        return Ok(());
    }
    check.extent_rule("q", axis, "a multiple of 8 up to 512", dim)
}

fn grouped(
    check: Check,
    name: &'static str,
    axis: usize,
    heads: [usize; 2],
) -> Result<(), OpError> {
    let [query, kv] = heads;
    if query.is_multiple_of(kv) {
        return Ok(());
    }
    check.extent_rule(name, axis, "a divisor of the query heads", kv)
}

fn options(
    check: Check,
    scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
) -> Result<(), OpError> {
    check.param(scale.is_finite(), "scale", "finite", scale)?;
    check.param(window != Some(0), "window", "at least 1", 0)?;
    let cap = softcap.unwrap_or(1.0);
    check.param(cap.is_finite() && cap > 0.0, "softcap", "positive", cap)
}

fn sinks_check(check: Check, sinks: Option<&Tensor>, heads: usize) -> Result<(), OpError> {
    let Some(sinks) = sinks else { return Ok(()) };
    check.shape("sinks", sinks, &[heads])?;
    check.dtype("sinks", sinks, &[DType::F32])
}

impl Contract for FlashAttention<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [batch, heads, q_len, dim] = self.layout.split(check.dims("q", &self.q)?);
        let [_, kv_heads, kv_len, _] = self.layout.split(check.dims("k", &self.k)?);
        check.dtype("q", &self.q, &[DType::F16, DType::BF16])?;
        head_dim(check, 3, dim)?;
        let head_axis = if self.layout == AttentionLayout::HeadMajor { 1 } else { 2 };
        let kv_shape = self.layout.split([batch, kv_heads, kv_len, dim]);
        for (name, t) in [("k", &self.k), ("v", &self.v)] {
            check.shape(name, t, &kv_shape)?;
            check.dtype_like(name, t, ("q", &self.q))?;
        }
        grouped(check, "k", head_axis, [heads, kv_heads])?;
        check.shape("output", &self.output, &self.q.shape())?;
        check.dtype_like("output", &self.output, ("q", &self.q))?;
        options(check, self.scale, self.window, self.softcap)?;
        sinks_check(check, self.sinks.as_ref(), heads)?;
        let offset = self.q_offset.is_some() || q_len <= kv_len;
        check.param(offset, "q_offset", "given where qL > kL", "none")?;
        let q_offset = self.q_offset.unwrap_or(0);
        check.param(q_offset <= i32::MAX as usize, "q_offset", "below 2^31", q_offset)?;
        if let Some(mask) = &self.mask {
            mask_check(check, mask, [batch, heads, q_len, kv_len])?;
            if mask.dtype() != DType::U8 {
                check.dtype_like("mask", mask, ("q", &self.q))?;
            }
        }
        let Some(blocks) = &self.blocks else { return Ok(()) };
        check.combination(
            self.mask.is_some(),
            "blocks",
            "is a map of a mask: give the mask too",
        )?;
        let [rows, columns] = tiles(check, self.tile, [q_len, kv_len])?;
        let leading = if self.mask.as_ref().is_some_and(|mask| mask.rank() == 4) {
            [batch, heads]
        } else {
            [1, 1]
        };
        check.shape("blocks", blocks, &[leading[0], leading[1], rows, columns])?;
        check.dtype("blocks", blocks, &[DType::U8])
    }

    fn flops(&self) -> u64 {
        let dims = |t: &Tensor| [t.extent(0), t.extent(1), t.extent(2), t.extent(3)];
        let [batch, heads, q_len, dim] = self.layout.split(dims(&self.q));
        let [_, _, kv_len, _] = self.layout.split(dims(&self.k));
        let offset = self.q_offset.unwrap_or(kv_len.saturating_sub(q_len));
        let mut scores = 0u64;
        for row in 0..q_len {
            let position = offset + row;
            let end = if self.causal { kv_len.min(position + 1) } else { kv_len };
            let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
            scores += end.saturating_sub(start) as u64;
        }
        4 * (batch * heads * dim) as u64 * scores
    }
}

fn mask_check(check: Check, mask: &Tensor, dims: [usize; 4]) -> Result<(), OpError> {
    let [_, _, q_len, kv_len] = dims;
    check.dtype("mask", mask, &[DType::F16, DType::BF16, DType::U8])?;
    if mask.rank() == 4 {
        check.shape("mask", mask, &dims)
    } else {
        check.shape("mask", mask, &[q_len, kv_len])
    }
}

fn tiles(check: Check, tile: [usize; 2], lengths: [usize; 2]) -> Result<[usize; 2], OpError> {
    check.param(!tile.contains(&0), "tile", "at least 1 by 1", format!("{tile:?}"))?;
    Ok([lengths[0].div_ceil(tile[0]), lengths[1].div_ceil(tile[1])])
}

impl Contract for FlashAttentionBlocks<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let dims = if self.mask.rank() == 4 {
            check.dims("mask", &self.mask)?
        } else {
            let [q_len, kv_len] = check.dims("mask", &self.mask)?;
            [1, 1, q_len, kv_len]
        };
        let [batch, heads, q_len, kv_len] = dims;
        mask_check(check, &self.mask, dims)?;
        let [rows, columns] = tiles(check, self.tile, [q_len, kv_len])?;
        check.shape("blocks", &self.blocks, &[batch, heads, rows, columns])?;
        check.dtype("blocks", &self.blocks, &[DType::U8])
    }

    fn flops(&self) -> u64 {
        self.mask.values() as u64
    }
}

impl Contract for CachedAttention<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [_, heads, dim] = check.dims("q", &self.q)?;
        check.dtype("q", &self.q, &DType::FLOATS)?;
        head_dim(check, 2, dim)?;
        let [kv_heads, capacity, _] = check.dims("k_cache", &self.k_cache)?;
        const CACHE: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0];
        check.dtype("k_cache", &self.k_cache, &CACHE)?;
        check.shape("k_cache", &self.k_cache, &[kv_heads, capacity, dim])?;
        check.shape("v_cache", &self.v_cache, &[kv_heads, capacity, dim])?;
        check.dtype_like("v_cache", &self.v_cache, ("k_cache", &self.k_cache))?;
        grouped(check, "k_cache", 0, [heads, kv_heads])?;
        check.shape("kv_len", &self.kv_len, &[1])?;
        check.dtype("kv_len", &self.kv_len, &[DType::U32])?;
        sinks_check(check, self.sinks.as_ref(), heads)?;
        check.shape("output", &self.output, &self.q.shape())?;
        check.dtype_like("output", &self.output, ("q", &self.q))?;
        options(check, self.scale, self.window, self.softcap)
    }

    /// Counted for a full cache: the true length is only known when it runs.
    fn flops(&self) -> u64 {
        let keys = self.k_cache.extent(1).min(self.window.unwrap_or(usize::MAX));
        4 * self.q.values() as u64 * keys as u64
    }
}

//! Per-head RMS normalisation and rotary position embedding in one pass.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

/// Which two elements of a head form a rotated pair, and the exponent of theta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopePairing {
    /// Pairs `(2i, 2i + 1)`, exponent `-2i / n_rot`: llama files, whose Q and K rows are permuted.
    Interleaved,
    /// Pairs `(i, i + half)`, exponent `-2i / n_rot`; the rest passes through: qwen, gemma 1 to 3.
    Leading,
    /// Pairs `(i, i + D/2)`, exponent `-2i / D`; the rest passes through: proportional RoPE.
    Spanning,
}

/// Order of the token and head axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadLayout {
    /// `[T, H, D]`
    TokenMajor,
    /// `[H, T, D]`
    HeadMajor,
}

op! {
    /// Normalises each head over `D`, then rotates `half` pairs of it (Su et al., 2021):
    /// `(a, b) -> (a cos - b sin, b cos + a sin)` with
    /// `angle = position * theta^exponent / freq_factors[i]`.
    ///
    /// `half = 0` is normalisation only; `normalize = false` is plain RoPE. Angles come from
    /// `positions` and `theta`, or from the tables `cos` and `sin`. At least one of the outputs is
    /// present; all get the same values, rounded to their types, in one pass over the input.
    ///
    /// `cache` receives the heads as [`KvAppend`](super::KvAppend) would, from slot
    /// `cache_start[0]`; rows past the capacity are not written.
    HeadNormRope = "head_norm_rope", in_place: [],
    tensors {
        /// `[T, H, D]` f32, f16 or bf16
        Read input,
        /// `[D]`
        MaybeRead weight,
        /// `[T]` u32
        MaybeRead positions,
        /// `[half]` f32, divisors of the angles; 1e30 leaves a pair as it is
        MaybeRead freq_factors,
        /// `[T, half]` or `[1, half]` f32
        MaybeRead cos,
        /// `[T, half]` or `[1, half]` f32
        MaybeRead sin,
        /// `[1]` u32, the slot of the first token
        MaybeRead cache_start,
        /// `[T, H, D]`, the type of `input`
        MaybeWrite output,
        /// bf16, `[T, H, D]` or `[H, T, D]` by `copy_layout`
        MaybeWrite output_bf16,
        /// `[H, T, D]` f32
        MaybeWrite output_f32,
        /// `[H, capacity, D]` f32, f16 or bf16
        MaybeUpdate cache,
    }
    params {
        /// Which elements form a pair.
        pairing: RopePairing,
        /// Number of rotated pairs, at most `D / 2`.
        half: usize,
        /// Base of the angles.
        theta: f32,
        /// Whether the heads are RMS-normalised first.
        normalize: bool,
        /// Added to the mean of squares.
        eps: f32,
        /// Layout of `output_bf16`.
        copy_layout: HeadLayout,
    }
}

impl Contract for HeadNormRope<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [tokens, heads, dim] = check.dims("input", &self.input)?;
        check.dtype("input", &self.input, &DType::FLOATS)?;
        if let Some(weight) = &self.weight {
            check.combination(self.normalize, "weight", "needs `normalize: true`")?;
            check.vector("weight", weight, dim, ("input", &self.input))?;
        }
        check.param(self.half <= dim / 2, "half", "at most D / 2", self.half)?;
        check.param(self.theta.is_finite() && self.theta > 0.0, "theta", "positive", self.theta)?;
        check.eps(self.eps)?;
        self.check_angles(check, tokens)?;
        self.check_outputs(check, [tokens, heads, dim])
    }

    fn flops(&self) -> u64 {
        let norm = if self.normalize { 4 } else { 0 };
        let [tokens, heads] = [self.input.extent(0) as u64, self.input.extent(1) as u64];
        norm * self.input.values() as u64 + 6 * tokens * heads * self.half as u64
    }

    fn bytes(&self) -> Option<u64> {
        let cache = self.cache.as_ref()?;
        let outside = |t: &Option<Tensor>| t.as_ref().map_or(0, |t| t.bytes() as u64);
        let written = self.input.values() / cache.dtype().block_len() * cache.dtype().block_bytes();
        let outputs = [&self.output, &self.output_bf16, &self.output_f32, &self.weight];
        Some(
            self.input.bytes() as u64
                + written as u64
                + outputs.into_iter().map(outside).sum::<u64>(),
        )
    }
}

impl HeadNormRope<Tensor> {
    fn check_angles(&self, check: Check, tokens: usize) -> Result<(), OpError> {
        let f32_only = &[DType::F32];
        if let Some(positions) = &self.positions {
            check.shape("positions", positions, &[tokens])?;
            check.dtype("positions", positions, &[DType::U32])?;
            check.combination(self.cos.is_none(), "cos", "excludes `positions`")?;
        }
        for (name, table) in [("cos", &self.cos), ("sin", &self.sin)] {
            let Some(table) = table else { continue };
            let rows = if table.extent(0) == 1 { 1 } else { tokens };
            check.shape(name, table, &[rows, self.half.max(1)])?;
            check.dtype(name, table, f32_only)?;
        }
        let both = self.cos.is_some() == self.sin.is_some();
        check.combination(both, "sin", "goes together with `cos`")?;
        let angles = self.half == 0 || self.positions.is_some() || self.cos.is_some();
        check.combination(angles, "positions", "or tables are needed where `half` is not 0")?;
        if let Some(factors) = &self.freq_factors {
            check.shape("freq_factors", factors, &[self.half.max(1)])?;
            check.dtype("freq_factors", factors, f32_only)?;
            check.combination(self.cos.is_none(), "freq_factors", "excludes tables")?;
        }
        Ok(())
    }

    fn check_outputs(&self, check: Check, dims: [usize; 3]) -> Result<(), OpError> {
        let [tokens, heads, dim] = dims;
        if let Some(output) = &self.output {
            check.shape("output", output, &dims)?;
            check.dtype_like("output", output, ("input", &self.input))?;
        }
        if let Some(copy) = &self.output_bf16 {
            let shape = match self.copy_layout {
                HeadLayout::TokenMajor => dims,
                HeadLayout::HeadMajor => [heads, tokens, dim],
            };
            check.shape("output_bf16", copy, &shape)?;
            check.dtype("output_bf16", copy, &[DType::BF16])?;
        }
        if let Some(copy) = &self.output_f32 {
            check.shape("output_f32", copy, &[heads, tokens, dim])?;
            check.dtype("output_f32", copy, &[DType::F32])?;
        }
        if let Some(cache) = &self.cache {
            let [_, capacity, _] = check.dims("cache", cache)?;
            check.shape("cache", cache, &[heads, capacity, dim])?;
            check.dtype("cache", cache, &DType::FLOATS)?;
        }
        if let Some(start) = &self.cache_start {
            check.shape("cache_start", start, &[1])?;
            check.dtype("cache_start", start, &[DType::U32])?;
        }
        let both = self.cache.is_some() == self.cache_start.is_some();
        check.combination(both, "cache_start", "goes together with `cache`")?;
        let any = self.output.is_some()
            || self.output_bf16.is_some()
            || self.output_f32.is_some()
            || self.cache.is_some();
        check.combination(any, "output", "or another output is needed")
    }
}

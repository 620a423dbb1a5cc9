//! Appending to a key-value cache.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

op! {
    /// Writes token `i` of the input into slot `start + i` of every head's cache; a ring wraps
    /// around at its capacity.
    ///
    /// In a linear cache, rows past the capacity are not written (the host checks the length before
    /// a run). In a ring, of a batch longer than the capacity the last `capacity` tokens are kept.
    KvAppend = "kv_append", in_place: [],
    tensors {
        /// `[T, H_kv, D]` f32, f16 or bf16
        Read input,
        /// `[1]` u32, the position of the first token
        Read start,
        /// `[H_kv, capacity, D]` f32, f16, bf16 or q8_0
        Update cache,
    }
    params {
        /// Whether the cache wraps around.
        ring: bool,
    }
}

impl Contract for KvAppend<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [_, heads, dim] = check.dims("input", &self.input)?;
        check.dtype("input", &self.input, &DType::FLOATS)?;
        check.shape("start", &self.start, &[1])?;
        check.dtype("start", &self.start, &[DType::U32])?;
        let [_, capacity, _] = check.dims("cache", &self.cache)?;
        check.shape("cache", &self.cache, &[heads, capacity, dim])?;
        const CACHE: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0];
        check.dtype("cache", &self.cache, &CACHE)
    }

    fn flops(&self) -> u64 {
        0
    }

    fn bytes(&self) -> Option<u64> {
        let dtype = self.cache.dtype();
        let written = self.input.values() / dtype.block_len() * dtype.block_bytes();
        Some((self.input.bytes() + written) as u64)
    }
}

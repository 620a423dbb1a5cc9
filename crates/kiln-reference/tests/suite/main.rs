//! The reference against formulas written out by hand, and the parts of `kiln-core` that need a
//! device to be tested.

mod attention;
mod cached_attention;
mod common;
mod contracts;
mod elementwise;
mod fusion;
mod head_norm_rope;
mod kv_cache;
mod matmul;
mod memory;
mod moe;
mod norms;
mod planner;
mod recording;
mod replay;
mod rows;
mod sampling;

//! The operations, one file per family, as in `kiln_core::ops`.
//!
//! Every function loads all inputs before it stores an output: an output may be the same memory as
//! an input.

mod attention;
mod elementwise;
mod head_norm_rope;
mod kv_cache;
mod matmul;
mod moe;
mod norms;
mod rows;
mod sampling;

use crate::view::View;
use kiln_core::Result;
use kiln_core::ops::Op;

/// Runs one operation.
pub(crate) fn execute(op: &Op<View>) -> Result<()> {
    match op {
        Op::RmsNorm(op) => norms::rms_norm(op),
        Op::RmsNormMul(op) => norms::rms_norm_mul(op),
        Op::RmsNormTriple(op) => norms::rms_norm_triple(op),
        Op::PostAttnTripleNorm(op) => norms::post_attn_triple_norm(op),
        Op::PostFfNormEndLayer(op) => norms::post_ff_norm_end_layer(op),
        Op::MoePostFfNormEndLayer(op) => norms::moe_post_ff_norm_end_layer(op),
        Op::AddRmsNorm(op) => norms::add_rms_norm(op),
        Op::LayerNorm(op) => norms::layer_norm(op),
        Op::HeadNormRope(op) => head_norm_rope::head_norm_rope(op),
        Op::Matmul(op) => matmul::matmul(op),
        Op::GatedMatmul(op) => matmul::gated_matmul(op),
        Op::MatmulId(op) => matmul::matmul_id(op),
        Op::FlashAttention(op) => attention::flash_attention(op),
        Op::FlashAttentionBlocks(op) => attention::flash_attention_blocks(op),
        Op::CachedAttention(op) => attention::cached_attention(op),
        Op::KvAppend(op) => kv_cache::kv_append(op),
        Op::Embed(op) => rows::embed(op),
        Op::GeluMul(op) => elementwise::gelu_mul(op),
        Op::SiluMul(op) => elementwise::silu_mul(op),
        Op::Add(op) => elementwise::add(op),
        Op::Mul(op) => elementwise::mul(op),
        Op::Scale(op) => elementwise::scale(op),
        Op::Softcap(op) => elementwise::softcap(op),
        Op::Copy(op) => rows::copy(op),
        Op::Softmax(op) => sampling::softmax(op),
        Op::Argmax(op) => sampling::argmax(op),
        Op::Sample(op) => sampling::sample(op),
        Op::MoeRoute(op) => moe::moe_route(op),
        Op::Pool(op) => rows::pool(op),
    }
}

//! The operations: which kernel, with which geometry and arguments. One file per family, as in
//! `kiln_core::ops`; pure functions, tested without a device.

pub(crate) mod activations;
pub(crate) mod attention;
pub(crate) mod dequant_matmul;
pub(crate) mod elementwise;
pub(crate) mod flash_attention_wgmma;
pub(crate) mod head_norm_rope;
pub(crate) mod kv_cache;
pub(crate) mod matmul;
pub(crate) mod matmul_id;
pub(crate) mod moe;
pub(crate) mod norms;
pub(crate) mod rows;
pub(crate) mod sampling;
pub(crate) mod stream_mat_vec;
pub(crate) mod weight;
pub(crate) mod wgmma_matmul;

use crate::lower::Lowering;
use crate::view::View;
use kiln_core::ops::Op;

/// Appends the launches of an operation.
pub(crate) fn lower(op: &Op<View>, lowering: &mut Lowering) {
    match op {
        Op::RmsNorm(op) => norms::rms_norm(op, lowering),
        Op::RmsNormMul(op) => norms::rms_norm_mul(op, lowering),
        Op::RmsNormTriple(op) => norms::rms_norm_triple(op, lowering),
        Op::PostAttnTripleNorm(op) => norms::post_attn_triple_norm(op, lowering),
        Op::PostFfNormEndLayer(op) => norms::post_ff_norm_end_layer(op, lowering),
        Op::MoePostFfNormEndLayer(op) => norms::moe_post_ff_norm_end_layer(op, lowering),
        Op::AddRmsNorm(op) => norms::add_rms_norm(op, lowering),
        Op::LayerNorm(op) => norms::layer_norm(op, lowering),
        Op::HeadNormRope(op) => head_norm_rope::head_norm_rope(op, lowering),
        Op::Matmul(op) => matmul::matmul(op, lowering),
        Op::GatedMatmul(op) => matmul::gated_matmul(op, lowering),
        Op::MatmulId(op) => matmul_id::matmul_id(op, lowering),
        Op::FlashAttention(op) => attention::flash_attention(op, lowering),
        Op::FlashAttentionBlocks(op) => attention::flash_attention_blocks(op, lowering),
        Op::CachedAttention(op) => attention::cached_attention(op, lowering),
        Op::KvAppend(op) => kv_cache::kv_append(op, lowering),
        Op::Embed(op) => rows::embed(op, lowering),
        Op::GeluMul(op) => elementwise::gelu_mul(op, lowering),
        Op::SiluMul(op) => elementwise::silu_mul(op, lowering),
        Op::Add(op) => elementwise::add(op, lowering),
        Op::Mul(op) => elementwise::mul(op, lowering),
        Op::Scale(op) => elementwise::scale(op, lowering),
        Op::Softcap(op) => elementwise::softcap(op, lowering),
        Op::Copy(op) => rows::copy(op, lowering),
        Op::Softmax(op) => sampling::softmax(op, lowering),
        Op::Argmax(op) => sampling::argmax(op, lowering),
        Op::Sample(op) => sampling::sample(op, lowering),
        Op::MoeRoute(op) => moe::moe_route(op, lowering),
        Op::Pool(op) => rows::pool(op, lowering),
    }
}

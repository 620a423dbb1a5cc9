//! The operations: each lowers itself to dispatches. Nothing here touches a device.

mod attention;
mod elementwise;
mod head_norm_rope;
mod kv_cache;
pub(crate) mod matmul;
mod moe;
mod norms;
mod row_groups;
mod rows;
mod sampling;

use crate::caps::Caps;
use crate::dispatch::{Lowering, Missing};
use crate::library::Library;
use crate::view::View;
use kiln_core::ops::Op;
use kiln_core::{Tensor, Unsupported};

/// Appends the dispatches of an operation.
///
/// # Errors
/// Where there is no kernel, or a limit of the device is exceeded.
pub(crate) fn lower(op: &Op<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    match op {
        Op::RmsNorm(op) => norms::rms_norm(op, lowering),
        Op::RmsNormMul(op) => norms::rms_norm_mul(op, lowering),
        Op::RmsNormTriple(op) => norms::rms_norm_triple(op, lowering),
        Op::PostAttnTripleNorm(op) => norms::post_attn_triple_norm(op, lowering),
        Op::PostFfNormEndLayer(op) => norms::post_ff_norm_end_layer(op, lowering),
        Op::MoePostFfNormEndLayer(op) => norms::moe_post_ff_norm_end_layer(op, lowering),
        Op::AddRmsNorm(op) => norms::add_rms_norm(op, lowering),
        Op::LayerNorm(op) => norms::layer_norm(op, lowering),
        Op::GeluMul(op) => elementwise::gelu_mul(op, lowering),
        Op::SiluMul(op) => elementwise::silu_mul(op, lowering),
        Op::Add(op) => elementwise::add(op, lowering),
        Op::Mul(op) => elementwise::mul(op, lowering),
        Op::Scale(op) => elementwise::scale(op, lowering),
        Op::Softcap(op) => elementwise::softcap(op, lowering),
        Op::HeadNormRope(op) => head_norm_rope::head_norm_rope(op, lowering),
        Op::KvAppend(op) => kv_cache::kv_append(op, lowering),
        Op::Embed(op) => rows::embed(op, lowering),
        Op::Copy(op) => rows::copy(op, lowering),
        Op::Pool(op) => rows::pool(op, lowering),
        Op::Softmax(op) => sampling::softmax(op, lowering),
        Op::Argmax(op) => sampling::argmax(op, lowering),
        Op::Sample(op) => sampling::sample(op, lowering),
        Op::MoeRoute(op) => moe::moe_route(op, lowering),
        Op::Matmul(op) => matmul::matmul(op, lowering),
        Op::GatedMatmul(op) => matmul::gated_matmul(op, lowering),
        Op::MatmulId(op) => matmul::matmul_id(op, lowering),
        Op::FlashAttention(op) => attention::flash_attention(op, lowering),
        Op::FlashAttentionBlocks(op) => attention::flash_attention_blocks(op, lowering),
        Op::CachedAttention(op) => attention::cached_attention(op, lowering),
    }
}

/// Whether an operation can be lowered, for a recording.
///
/// # Errors
/// [`Unsupported`], with the whole problem.
pub(crate) fn supports(
    op: &Op<Tensor>,
    caps: &Caps,
    backend: &'static str,
    view: fn(&Tensor) -> View,
) -> Result<(), Unsupported> {
    let mapped = op.try_map(|_, tensor| Ok::<_, Missing>(view(tensor)));
    let lowered = mapped.and_then(|mapped| lower(&mapped, &mut Lowering::new(caps)));
    lowered.map_err(|missing| unsupported(op, backend, &missing))
}

/// The error of an operation without a kernel.
pub(crate) fn unsupported(
    op: &Op<Tensor>,
    backend: &'static str,
    missing: &Missing,
) -> Unsupported {
    Unsupported { op: op.name(), problem: format!("{missing} ({})", op.describe()), backend }
}

/// Every library.
pub(crate) const LIBRARIES: &[&Library] = &[
    &attention::SPLIT,
    &attention::TILES,
    &elementwise::LIBRARY,
    &head_norm_rope::LIBRARY,
    &kv_cache::LIBRARY,
    &matmul::MAT_MAT,
    &matmul::MAT_VEC,
    &matmul::TENSOR,
    &moe::LIBRARY,
    &norms::LIBRARY,
    &rows::LIBRARY,
    &sampling::LIBRARY,
];

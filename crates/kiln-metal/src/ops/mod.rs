//! The operations: each lowers itself to dispatches. Nothing here touches a device.

mod elementwise;
mod norms;
mod row_groups;

use crate::caps::Caps;
use crate::dispatch::{Lowering, Missing};
use crate::view::View;
use kiln_core::ops::Op;
use kiln_core::{DType, Tensor, Unsupported};

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
        _ => Err(Missing("no kernel yet".to_owned())),
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

/// The name of a float type in the names of kernels, where the device has it.
fn float_name(dtype: DType, caps: &Caps) -> Result<&'static str, Missing> {
    match dtype {
        DType::BF16 if !caps.bfloat => Err(Missing("bf16 needs macOS 14 or later".to_owned())),
        _ => Ok(dtype.name()),
    }
}

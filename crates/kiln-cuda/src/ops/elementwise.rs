//! Elementwise operations on rows.

use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::view::View;
use kiln_core::ops::{Activation, Add, GeluMul, Mul, Scale, SiluMul, Softcap};

kiln_core::kernel_args! {
    /// Arguments of `elementwise.cu`.
    pub(crate) struct ElementwiseArgs {
        /// First operand.
        a: u64,
        /// Bytes from row to row.
        a_stride: u64,
        /// Second operand, unused by operations of one.
        b: u64,
        /// Bytes from row to row; 0 for a vector.
        b_stride: u64,
        /// Result.
        output: u64,
        /// Bytes from row to row.
        output_stride: u64,
        /// Rows.
        rows: u64,
        /// Length of a row.
        dim: u32,
        /// Whether all rows start at multiples of 16 bytes.
        wide: u32,
        /// Factor or limit.
        param: f32,
        /// Unused.
        reserved: u32,
    }
}

/// Threads of a block, four values each.
const THREADS: u32 = 256;
/// Most blocks along the rows.
const ROW_BLOCKS: u64 = 65535;

/// Operands of any of the operations.
struct Operands {
    name: &'static str,
    a: View,
    b: Option<View>,
    output: View,
    param: f32,
}

fn lower(operands: Operands, lowering: &mut Lowering) {
    let Operands { name, a, b, output, param } = operands;
    let second = b.unwrap_or(a);
    let vector = second.rank() == 1;
    let wide = [a, second, output].iter().all(View::is_wide);
    let args = ElementwiseArgs {
        a: a.address,
        a_stride: a.stride(0),
        b: second.address,
        b_stride: if vector { 0 } else { second.stride(0) },
        output: output.address,
        output_stride: output.stride(0),
        rows: a.extent(0),
        dim: a.last() as u32,
        wide: wide.into(),
        param,
        reserved: 0,
    };
    let kernel = format!("{name}_{}_{}", a.dtype(), second.dtype());
    let columns = a.last().div_ceil(4 * u64::from(THREADS));
    let kernel = Kernel::new(Unit::Elementwise, kernel, 1, THREADS);
    lowering.launch(kernel.grid([columns, a.extent(0).min(ROW_BLOCKS), 1]), &args);
}

pub(super) fn add(op: &Add<View>, lowering: &mut Lowering) {
    let Add { a, b, output } = *op;
    lower(Operands { name: "add", a, b: Some(b), output, param: 0.0 }, lowering);
}

pub(super) fn mul(op: &Mul<View>, lowering: &mut Lowering) {
    let Mul { a, b, output } = *op;
    lower(Operands { name: "mul", a, b: Some(b), output, param: 0.0 }, lowering);
}

pub(super) fn scale(op: &Scale<View>, lowering: &mut Lowering) {
    let Scale { input, output, factor } = *op;
    lower(Operands { name: "scale", a: input, b: None, output, param: factor }, lowering);
}

pub(super) fn softcap(op: &Softcap<View>, lowering: &mut Lowering) {
    let Softcap { input, output, cap } = *op;
    lower(Operands { name: "softcap", a: input, b: None, output, param: cap }, lowering);
}

pub(super) fn gelu_mul(op: &GeluMul<View>, lowering: &mut Lowering) {
    let GeluMul { gate, up, output } = *op;
    lower(Operands { name: "gelu_mul", a: gate, b: Some(up), output, param: 0.0 }, lowering);
}

pub(super) fn silu_mul(op: &SiluMul<View>, lowering: &mut Lowering) {
    let SiluMul { gate, up, output } = *op;
    lower(Operands { name: "silu_mul", a: gate, b: Some(up), output, param: 0.0 }, lowering);
}

/// The gated activation of f32 rows in the workspace, given by address and stride, as aligned ones.
pub(super) fn gated(
    activation: Activation,
    [gate, up]: [(u64, u64); 2],
    output: View,
    lowering: &mut Lowering,
) {
    let args = ElementwiseArgs {
        a: gate.0,
        a_stride: gate.1,
        b: up.0,
        b_stride: up.1,
        output: output.address,
        output_stride: output.stride(0),
        rows: output.extent(0),
        dim: output.last() as u32,
        wide: output.is_wide().into(),
        param: 0.0,
        reserved: 0,
    };
    let name = match activation {
        Activation::Silu => "silu_mul_f32_f32",
        Activation::GeluTanh => "gelu_mul_f32_f32",
    };
    let columns = output.last().div_ceil(4 * u64::from(THREADS));
    let kernel = Kernel::new(Unit::Elementwise, name, 1, THREADS);
    lowering.launch(kernel.grid([columns, output.extent(0).min(ROW_BLOCKS), 1]), &args);
}

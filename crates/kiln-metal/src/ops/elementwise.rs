//! Elementwise operations on rows.

use super::row_groups::{GROUP, aligned, cover};
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, FunctionConstant, Library, MSL_3_1};
use crate::view::View;
use kiln_core::ops::{Add, GeluMul, Mul, Scale, SiluMul, Softcap};
use kiln_core::{DType, KernelArgs, kernel_args};

kernel_args! {
    /// Arguments of a kernel of two inputs. Strides are elements between rows, 0 for a vector.
    struct BinaryArgs {
        a_stride: u64,
        b_stride: u64,
        output_stride: u64,
        rows: u32,
        dim: u32,
    }
}

kernel_args! {
    /// Arguments of a kernel of one input. Strides are elements between rows.
    struct UnaryArgs {
        input_stride: u64,
        output_stride: u64,
        rows: u32,
        dim: u32,
        parameter: f32,
        reserved: u32,
    }
}

/// The second input is f32, whatever the type of the first.
const SECOND_F32: FunctionConstant = FunctionConstant::flag("SECOND_F32", 1);

pub(super) static LIBRARY: Library = Library {
    name: "elementwise",
    texts: &[COMMON, include_str!("../../kernels/elementwise.metal")],
    arguments: || BinaryArgs::msl() + &UnaryArgs::msl(),
    sizes: &[],
    constants: &[ALIGNED, SECOND_F32],
    version: MSL_3_1,
};

/// Rows and row length; one long row where no view has gaps.
fn rows(output: &View, others: &[&View]) -> [usize; 2] {
    let dims = [output.extent(0), output.last()];
    let dense = output.is_contiguous()
        && others.iter().all(|view| view.rank() == output.rank() && view.is_contiguous());
    // Kernels index the values of a row in 32 bits.
    let fits = dims[0].checked_mul(dims[1]).is_some_and(|values| values <= i32::MAX as usize);
    if dense && fits { [1, dims[0] * dims[1]] } else { dims }
}

fn binary(
    name: &str,
    [a, b]: [&View; 2],
    output: &View,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let [rows, dim] = rows(output, &[a, b]);
    let arguments = BinaryArgs {
        a_stride: a.row_stride(),
        b_stride: b.row_stride(),
        output_stride: output.row_stride(),
        rows: rows as u32,
        dim: dim as u32,
    };
    let (threadgroups, threads) = cover(dim.div_ceil(GROUP), rows);
    let function = format!("{name}_{}", a.dtype());
    lowering.dispatch(
        Dispatch::new(&LIBRARY, function)
            .flag(ALIGNED, aligned(dim, [a, b, output]))
            .flag(SECOND_F32, b.dtype() == DType::F32)
            .arguments(&arguments)
            .read(a)
            .read(b)
            .write(output)
            .grid(threadgroups, threads),
    )
}

fn unary(
    name: &str,
    (input, output): (&View, &View),
    parameter: f32,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let [rows, dim] = rows(output, &[input]);
    let arguments = UnaryArgs {
        input_stride: input.row_stride(),
        output_stride: output.row_stride(),
        rows: rows as u32,
        dim: dim as u32,
        parameter,
        reserved: 0,
    };
    let (threadgroups, threads) = cover(dim.div_ceil(GROUP), rows);
    let function = format!("{name}_{}", input.dtype());
    lowering.dispatch(
        Dispatch::new(&LIBRARY, function)
            .flag(ALIGNED, aligned(dim, [input, output]))
            .arguments(&arguments)
            .read(input)
            .write(output)
            .grid(threadgroups, threads),
    )
}

/// `output = a + b`
pub(super) fn add(op: &Add<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    binary(Add::<()>::NAME, [&op.a, &op.b], &op.output, lowering)
}

/// `output = a * b`
pub(super) fn mul(op: &Mul<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    binary(Mul::<()>::NAME, [&op.a, &op.b], &op.output, lowering)
}

/// `output = gelu(gate) * up`
pub(super) fn gelu_mul(op: &GeluMul<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    binary(GeluMul::<()>::NAME, [&op.gate, &op.up], &op.output, lowering)
}

/// `output = gate * sigmoid(gate) * up`
pub(super) fn silu_mul(op: &SiluMul<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    binary(SiluMul::<()>::NAME, [&op.gate, &op.up], &op.output, lowering)
}

/// `output = input * factor`
pub(super) fn scale(op: &Scale<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    unary(Scale::<()>::NAME, (&op.input, &op.output), op.factor, lowering)
}

/// `output = cap * tanh(input / cap)`
pub(super) fn softcap(op: &Softcap<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    unary(Softcap::<()>::NAME, (&op.input, &op.output), op.cap, lowering)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::Caps;
    use crate::view::Memory;

    fn matrix(dtype: DType, offset: usize, dims: [usize; 2]) -> View {
        View::contiguous(Memory::Buffer(0), offset, dtype, dims)
    }

    fn lowered(op: &Add<View>) -> Dispatch {
        let mut lowering = Lowering::new(&Caps::APPLE7);
        add(op, &mut lowering).unwrap();
        lowering.phases[0][0].clone()
    }

    fn flags(dispatch: &Dispatch) -> Vec<(&str, u32)> {
        dispatch.kernel.constants.iter().map(|(c, value)| (c.name, *value)).collect()
    }

    #[test]
    fn matrices_without_gaps_are_one_row() {
        let [a, b, output] = [0, 256, 512].map(|offset| matrix(DType::F16, offset, [3, 5]));
        let dispatch = lowered(&Add { a, b, output });
        assert_eq!(dispatch.kernel.function, "add_f16");
        let args: &BinaryArgs = bytemuck::from_bytes(&dispatch.arguments);
        assert_eq!((args.rows, args.dim), (1, 15));
        assert_eq!(flags(&dispatch), [("ALIGNED", 0), ("SECOND_F32", 0)]);
    }

    #[test]
    fn a_vector_is_added_to_every_row() {
        let [a, output] = [0, 4096].map(|offset| matrix(DType::BF16, offset, [4, 64]));
        let b = View::contiguous(Memory::Buffer(1), 16, DType::F32, [64]);
        let dispatch = lowered(&Add { a, b, output });
        let args: &BinaryArgs = bytemuck::from_bytes(&dispatch.arguments);
        assert_eq!((args.rows, args.dim, args.a_stride, args.b_stride), (4, 64, 64, 0));
        assert_eq!(flags(&dispatch), [("ALIGNED", 1), ("SECOND_F32", 1)]);
        assert_eq!((dispatch.threadgroups, dispatch.threads), ([1, 1, 1], [16, 4, 1]));
        assert_eq!(
            dispatch.bindings.iter().map(|b| b.writes).collect::<Vec<_>>(),
            [false, false, true]
        );
    }

    #[test]
    fn an_odd_offset_is_not_aligned() {
        let [a, b] = [0, 256].map(|offset| matrix(DType::F32, offset, [1, 4]));
        let output = matrix(DType::F32, 37 * 4, [1, 4]);
        assert_eq!(flags(&lowered(&Add { a, b, output }))[0], ("ALIGNED", 0));
    }
}

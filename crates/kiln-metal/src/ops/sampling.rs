//! From logits to tokens: one threadgroup per row.

use super::row_groups::{KEPT_GROUPS, MAX_SIMDGROUPS, aligned, team};
use crate::caps::SIMD_WIDTH;
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, Library, MSL_3_1};
use crate::view::View;
use kiln_core::ops::{Argmax, Sample, Softmax};
use kiln_core::{KernelArgs, kernel_args};

kernel_args! {
    /// Elements between rows, the length of a row.
    struct ArgmaxArgs {
        input_stride: u64,
        n: u32,
        reserved: u32,
    }
}

kernel_args! {
    /// Elements between rows, the length of a row.
    struct SoftmaxArgs {
        input_stride: u64,
        output_stride: u64,
        n: u32,
        scale: f32,
    }
}

kernel_args! {
    /// Elements between rows, the length of a row, which candidates are kept.
    struct SampleArgs {
        logits_stride: u64,
        n: u32,
        top_k: u32,
        top_p: f32,
        temperature: f32,
    }
}

pub(super) static LIBRARY: Library = Library {
    name: "sampling",
    texts: &[COMMON, include_str!("../../kernels/sampling.metal")],
    arguments: || [ArgmaxArgs::msl(), SoftmaxArgs::msl(), SampleArgs::msl()].concat(),
    sizes: &[("KEPT_GROUPS", KEPT_GROUPS), ("MAX_SIMDGROUPS", MAX_SIMDGROUPS)],
    constants: &[ALIGNED],
    version: MSL_3_1,
};

/// Logits that a thread looks at, where there are threads enough.
const LOGITS_PER_THREAD: usize = 32;

/// Threads that search a row of logits.
fn searchers(n: usize) -> usize {
    n.div_ceil(LOGITS_PER_THREAD).clamp(1, 1024).next_multiple_of(SIMD_WIDTH)
}

/// `output = softmax(scale * input)`
pub(super) fn softmax(op: &Softmax<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let Softmax { input, output, scale } = op;
    let n = input.last();
    let arguments = SoftmaxArgs {
        input_stride: input.row_stride(),
        output_stride: output.row_stride(),
        n: n as u32,
        scale: *scale,
    };
    lowering.dispatch(
        Dispatch::new(&LIBRARY, format!("softmax_{}", input.dtype()))
            .flag(ALIGNED, aligned(n, [input, output]))
            .arguments(&arguments)
            .read(input)
            .write(output)
            .grid([input.extent(0), 1, 1], [team(n), 1, 1]),
    )
}

/// The index of the largest value of each row.
pub(super) fn argmax(op: &Argmax<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    greedy(&op.input, &op.output, lowering)
}

fn greedy(input: &View, output: &View, lowering: &mut Lowering) -> Result<(), Missing> {
    let n = input.last();
    let arguments = ArgmaxArgs { input_stride: input.row_stride(), n: n as u32, reserved: 0 };
    lowering.dispatch(
        Dispatch::new(&LIBRARY, "argmax_f32")
            .arguments(&arguments)
            .read(input)
            .write(output)
            .grid([input.extent(0), 1, 1], [searchers(n), 1, 1]),
    )
}

/// Draws a token from each row of logits; without a temperature the largest.
pub(super) fn sample(op: &Sample<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let Sample { logits, random, output, temperature, top_k, top_p } = op;
    if *temperature == 0.0 {
        return greedy(logits, output, lowering);
    }
    let n = logits.last();
    let arguments = SampleArgs {
        logits_stride: logits.row_stride(),
        n: n as u32,
        top_k: (*top_k).min(n) as u32,
        top_p: *top_p,
        temperature: *temperature,
    };
    lowering.dispatch(
        Dispatch::new(&LIBRARY, "sample_f32")
            .arguments(&arguments)
            .read(logits)
            .read(random)
            .write(output)
            .grid([logits.extent(0), 1, 1], [searchers(n), 1, 1]),
    )
}

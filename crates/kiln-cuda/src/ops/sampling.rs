//! From logits to tokens.

use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::view::View;
use kiln_core::ops::{Argmax, Sample, Softmax};

kiln_core::kernel_args! {
    /// Arguments of `softmax` in `sampling.cu`.
    pub(crate) struct SoftmaxArgs {
        /// `[rows, n]`
        input: u64,
        /// Bytes from row to row.
        input_stride: u64,
        /// `[rows, n]`
        output: u64,
        /// Bytes from row to row.
        output_stride: u64,
        /// Length of a row.
        n: u32,
        /// Multiplies the input.
        scale: f32,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `argmax` and `sample` in `sampling.cu`.
    pub(crate) struct SampleArgs {
        /// `[rows, n]` f32
        logits: u64,
        /// Bytes from row to row.
        logits_stride: u64,
        /// `[rows]` f32
        random: u64,
        /// `[rows]` u32
        output: u64,
        /// The best of every part of a row, u64.
        partial: u64,
        /// How many parts of a row are done, u32.
        counters: u64,
        /// Length of a row.
        n: u32,
        /// Candidates kept; 0 for all.
        top_k: u32,
        /// Divides the logits.
        temperature: f32,
        /// Probability kept.
        top_p: f32,
    }
}

/// Threads of a block, by the length of its row.
fn threads(n: u64) -> u32 {
    n.div_ceil(4).next_multiple_of(32).clamp(32, 1024) as u32
}

pub(super) fn softmax(op: &Softmax<View>, lowering: &mut Lowering) {
    let Softmax { input, output, scale } = *op;
    let args = SoftmaxArgs {
        input: input.address,
        input_stride: input.stride(0),
        output: output.address,
        output_stride: output.stride(0),
        n: input.last() as u32,
        scale,
    };
    let kernel = format!("softmax_{}", input.dtype());
    let kernel = Kernel::new(Unit::Sampling, kernel, input.extent(0), threads(input.last()));
    lowering.launch(kernel, &args);
}

fn args(logits: View, output: View) -> SampleArgs {
    SampleArgs {
        logits: logits.address,
        logits_stride: logits.stride(0),
        random: 0,
        output: output.address,
        partial: 0,
        counters: 0,
        n: logits.last() as u32,
        top_k: 0,
        temperature: 0.0,
        top_p: 1.0,
    }
}

/// Values of a part of a row, and most parts.
const PART: u64 = 4096;
const PARTS: u64 = 32;

fn largest(logits: View, output: View, lowering: &mut Lowering) {
    let (rows, parts) = (logits.extent(0), logits.last().div_ceil(PART).min(PARTS));
    let (partial, counters) = (lowering.workspace(rows * parts * 8), lowering.counters(rows));
    let args = SampleArgs { partial, counters, ..args(logits, output) };
    let kernel =
        Kernel::new(Unit::Sampling, "argmax_f32", 1, threads(logits.last().div_ceil(parts)));
    lowering.launch(kernel.grid([rows, parts, 1]), &args);
}

pub(super) fn argmax(op: &Argmax<View>, lowering: &mut Lowering) {
    largest(op.input, op.output, lowering);
}

pub(super) fn sample(op: &Sample<View>, lowering: &mut Lowering) {
    let Sample { logits, random, output, temperature, top_k, top_p } = *op;
    if temperature == 0.0 {
        return largest(logits, output, lowering);
    }
    let top_k = u32::try_from(top_k).unwrap_or(0);
    let args =
        SampleArgs { random: random.address, temperature, top_k, top_p, ..args(logits, output) };
    let threads = threads(logits.last());
    let kernel = Kernel::new(Unit::Sampling, "sample_f32", logits.extent(0), threads);
    lowering.launch(kernel, &args);
}

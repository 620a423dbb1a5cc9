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
    /// Arguments of `argmax`, `sample_best` and `sample` in `sampling.cu`.
    pub(crate) struct SampleArgs {
        /// `[rows, n]` f32
        logits: u64,
        /// Bytes from row to row.
        logits_stride: u64,
        /// `[rows]` f32
        random: u64,
        /// `[rows]` u32
        output: u64,
        /// The best candidates of every part of a row, u64.
        partial: u64,
        /// How many parts of a row are done, u32.
        counters: u64,
        /// Sums of weights, u64, then counts, u32, of the bins of every row; 0 where none are needed.
        histogram: u64,
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
        histogram: 0,
        n: logits.last() as u32,
        top_k: 0,
        temperature: 0.0,
        top_p: 1.0,
    }
}

/// Values of a part of a row in `argmax`, and most parts.
const PART: u64 = 4096;
const PARTS: u64 = 32;

/// Most candidates that `sample_best` keeps.
const BEST: u64 = 128;
/// Keys that a block of `sample_best` looks at: four for each thread.
const BLOCK_KEYS: u64 = 4 * 1024;

/// Bins of `sample`: four for each thread of a block.
const BINS: u64 = 4 * 1024;
/// Bytes of a bin.
const BIN_BYTES: u64 = 12;
/// Most candidates of a bin that `sample` puts in order.
const BIN_KEYS: u64 = 512;
/// Values of a part of a row in `sample`: two for each thread.
const SAMPLE_PART: u64 = 2 * 1024;

/// Sizes that `sampling.cu` shares.
pub(crate) fn define() -> String {
    format!("#define BEST {BEST}u\n#define BINS {BINS}u\n#define BIN_KEYS {BIN_KEYS}u\n")
}

fn largest(logits: View, output: View, histogram: u64, lowering: &mut Lowering) {
    let (rows, parts) = (logits.extent(0), logits.last().div_ceil(PART).min(PARTS));
    let (partial, counters) = (lowering.workspace(rows * parts * 8), lowering.counters(rows));
    let args = SampleArgs { partial, counters, histogram, ..args(logits, output) };
    let kernel =
        Kernel::new(Unit::Sampling, "argmax_f32", 1, threads(logits.last().div_ceil(parts)));
    lowering.launch(kernel.grid([rows, parts, 1]), &args);
}

pub(super) fn argmax(op: &Argmax<View>, lowering: &mut Lowering) {
    largest(op.input, op.output, 0, lowering);
}

pub(super) fn sample(op: &Sample<View>, lowering: &mut Lowering) {
    let Sample { logits, random, output, temperature, top_k, top_p } = *op;
    if temperature == 0.0 {
        return largest(logits, output, 0, lowering);
    }
    let (rows, n) = (logits.extent(0), logits.last());
    let top_k = u64::try_from(top_k).ok().filter(|top_k| *top_k < n).unwrap_or(0);
    let args = SampleArgs {
        random: random.address,
        temperature,
        top_k: top_k as u32,
        top_p,
        counters: lowering.counters(rows),
        ..args(logits, output)
    };
    if let Some(parts) = parts_with_best(n, top_k) {
        let args = SampleArgs { partial: lowering.workspace(rows * parts * top_k * 8), ..args };
        let threads = n.next_multiple_of(32).min(BLOCK_KEYS / 4);
        let kernel = Kernel::new(Unit::Sampling, "sample_best_f32", 1, threads as u32);
        return lowering.launch(kernel.grid([rows, parts, 1]), &args);
    }
    let histogram = lowering.workspace(rows * BINS * BIN_BYTES);
    largest(logits, output, histogram, lowering);
    let kernel = Kernel::new(Unit::Sampling, "sample_f32", 1, (BINS / 4) as u32)
        .grid([rows, n.div_ceil(SAMPLE_PART), 1])
        .shared(BINS * BIN_BYTES + BIN_KEYS * 16);
    lowering.launch(kernel, &SampleArgs { histogram, ..args });
}

/// Parts of a row of `n` of which one block can look at the best `top_k` of all.
fn parts_with_best(n: u64, top_k: u64) -> Option<u64> {
    let parts = n.div_ceil(BLOCK_KEYS);
    ((1..=BEST).contains(&top_k) && parts * top_k <= BLOCK_KEYS).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_usual_vocabularies_fit_into_a_block() {
        assert_eq!(parts_with_best(128_256, 40), Some(32));
        assert_eq!(parts_with_best(262_144, 64), Some(64));
        assert_eq!(parts_with_best(33, 2), Some(1));
        assert_eq!([parts_with_best(262_144, 65), parts_with_best(1000, 0)], [None; 2]);
        assert_eq!(parts_with_best(1000, 129), None);
    }
}

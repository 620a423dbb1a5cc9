//! Per-head RMS normalisation and rotation.

use super::attention;
use crate::kernels::Unit;
use crate::lower::{Has, Kernel, Lowering, Made, accessed};
use crate::runtime::graph::Param;
use crate::view::{View, element};
use bytemuck::Zeroable;
use kiln_core::DType;
use kiln_core::ops::{
    Access, CachedAttention, HeadLayout, HeadNormRope, KvAppend, Op, RopePairing,
};

kiln_core::kernel_args! {
    /// Arguments of a job of `rope.cuh`. Addresses of absent operands are 0.
    pub(crate) struct HeadNormRopeArgs {
        /// `[T, H, D]`
        input: u64,
        /// Bytes from token to token.
        input_stride_t: u64,
        /// Bytes from head to head.
        input_stride_h: u64,
        /// `[D]`
        weight: u64,
        /// `[T or 1, half]` f32
        cosines: u64,
        /// Bytes from row to row.
        cosines_stride: u64,
        /// `[T or 1, half]` f32
        sines: u64,
        /// Bytes from row to row.
        sines_stride: u64,
        /// Of the type of the input.
        output: u64,
        /// Bytes from token to token.
        output_stride_t: u64,
        /// Bytes from head to head.
        output_stride_h: u64,
        /// bf16
        copy_bf16: u64,
        /// Bytes from token to token.
        copy_bf16_stride_t: u64,
        /// Bytes from head to head.
        copy_bf16_stride_h: u64,
        /// f32
        copy_f32: u64,
        /// Bytes from token to token.
        copy_f32_stride_t: u64,
        /// Bytes from head to head.
        copy_f32_stride_h: u64,
        /// `[H, capacity, D]`
        cache: u64,
        /// Bytes from head to head.
        cache_stride_h: u64,
        /// Bytes from slot to slot.
        cache_stride_s: u64,
        /// `[1]` u32
        cache_start: u64,
        /// Slots of the cache.
        capacity: u64,
        /// H
        heads: u64,
        /// D
        dim: u32,
        /// Rotated pairs.
        half: u32,
        /// So many pairs have values that lie so far apart; those of the others are neighbours.
        apart: u32,
        /// Whether heads are normalised.
        normalize: u32,
        /// Whether the weight is f32.
        weight_single: u32,
        /// Rows of the tables.
        table_rows: u32,
        /// Type of the cache.
        cache_element: u32,
        /// Added to the mean of squares.
        eps: f32,
        /// Groups of heads, a block for each.
        groups: u32,
        /// Whether two neighbours may be read and written together.
        wide: u32,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `rope_table` in `head_norm_rope.cu`.
    pub(crate) struct RopeTableArgs {
        /// `[T]` u32
        positions: u64,
        /// `[half]` f32, or 0
        factors: u64,
        /// `[2, T, half]` f32: cosines, then sines.
        output: u64,
        /// f64 bits: the power of two by which the frequency grows from pair to pair.
        exponent: u64,
        /// T
        tokens: u64,
        /// Rotated pairs.
        half: u64,
    }
}

/// Warps of a block, a head each.
const WARPS: u64 = 4;
/// Threads of a block of the table.
const TABLE_THREADS: u64 = 128;
/// Most operations on heads in one launch.
pub(super) const JOBS: usize = 3;

/// Pairs of values that a lane has in registers.
const PAIRS: u64 = 4;
/// Values of a head that a warp has in registers.
pub(super) const WARP_VALUES: u64 = 2 * 32 * PAIRS;

/// Sizes that `rope.cuh` shares.
pub(crate) fn define() -> String {
    format!("#define PAIRS {PAIRS}\n#define JOBS {JOBS}\n")
}

/// Cosines and sines of all tokens, computed once for all operations that rotate alike: addresses and
/// bytes from row to row.
fn rope_table(op: &HeadNormRope<View>, lowering: &mut Lowering) -> [(u64, u64); 2] {
    let Some(positions) = op.positions.filter(|_| op.half > 0) else { return [(0, 0); 2] };
    let half = op.half as u64;
    let turned = match op.pairing {
        RopePairing::Interleaved | RopePairing::Leading => 2 * half,
        RopePairing::Spanning => op.input.last(),
    };
    let exponent = (-2.0 * f64::from(op.theta).log2() / turned.max(1) as f64).to_bits();
    let tokens = op.input.extent(0);
    let made = Made::new("rope", positions).with(op.freq_factors, [exponent, half]);
    let bytes = tokens * half * 4;
    let output = lowering.shared(made, 2 * bytes, |lowering, output| {
        let args = RopeTableArgs {
            positions: positions.address,
            factors: op.freq_factors.map_or(0, |factors| factors.address),
            output,
            exponent,
            tokens,
            half,
        };
        let blocks = (tokens * half).div_ceil(TABLE_THREADS);
        let unit = Unit::HeadNormRope;
        lowering.launch(Kernel::new(unit, "rope_table", blocks, TABLE_THREADS as u32), &args);
    });
    [output, output + bytes].map(|table| (table, half * 4))
}

/// Blocks of a job: few tokens have one for each group of heads, of many one goes through all heads.
fn groups(tokens: u64, heads: u64, warps: u64) -> u32 {
    let groups = heads.div_ceil(warps);
    (if tokens >= 1024 { groups.min(2) } else { groups }) as u32
}

fn job(op: &HeadNormRope<View>, lowering: &mut Lowering) -> HeadNormRopeArgs {
    let input = op.input;
    let [tokens, heads, dim] = [input.extent(0), input.extent(1), input.last()];
    let address = |view: &Option<View>| view.as_ref().map_or(0, |view| view.address);
    let stride = |view: &Option<View>, axis| view.as_ref().map_or(0, |view| view.stride(axis));
    // Axes of tokens and of heads in the bf16 copy.
    let [copy_t, copy_h] = match op.copy_layout {
        HeadLayout::TokenMajor => [0, 1],
        HeadLayout::HeadMajor => [1, 0],
    };
    let [(cosines, cosines_stride), (sines, sines_stride)] = match op.cos {
        Some(_) => [&op.cos, &op.sin].map(|table| (address(table), stride(table, 0))),
        None => rope_table(op, lowering),
    };
    HeadNormRopeArgs {
        input: input.address,
        input_stride_t: input.stride(0),
        input_stride_h: input.stride(1),
        weight: address(&op.weight),
        cosines,
        cosines_stride,
        sines,
        sines_stride,
        output: address(&op.output),
        output_stride_t: stride(&op.output, 0),
        output_stride_h: stride(&op.output, 1),
        copy_bf16: address(&op.output_bf16),
        copy_bf16_stride_t: stride(&op.output_bf16, copy_t),
        copy_bf16_stride_h: stride(&op.output_bf16, copy_h),
        copy_f32: address(&op.output_f32),
        copy_f32_stride_t: stride(&op.output_f32, 1),
        copy_f32_stride_h: stride(&op.output_f32, 0),
        cache: address(&op.cache),
        cache_stride_h: stride(&op.cache, 0),
        cache_stride_s: stride(&op.cache, 1),
        cache_start: address(&op.cache_start),
        capacity: op.cache.as_ref().map_or(0, |cache| cache.extent(1)),
        heads,
        dim: dim as u32,
        half: op.half as u32,
        apart: match op.pairing {
            RopePairing::Interleaved => 0,
            RopePairing::Leading => op.half as u32,
            RopePairing::Spanning => dim as u32 / 2,
        },
        normalize: op.normalize.into(),
        weight_single: op.weight.is_some_and(|weight| weight.dtype() == DType::F32).into(),
        table_rows: op.cos.as_ref().map_or(tokens, |cos| cos.extent(0)) as u32,
        cache_element: op.cache.as_ref().map_or(0, |cache| element(cache.dtype())),
        eps: op.eps,
        wide: wide([Some(input), op.output, op.output_bf16, op.output_f32, op.cache]).into(),
        ..HeadNormRopeArgs::zeroed()
    }
}

/// Whether pairs of neighbours lie at multiples of their size.
fn wide(views: [Option<View>; 5]) -> bool {
    views.iter().flatten().all(|view| view.is_wide() && view.last().is_multiple_of(2))
}

/// Appending to a cache without a rotation.
fn append(op: &KvAppend<View>) -> HeadNormRopeArgs {
    let KvAppend { input, start, cache, .. } = *op;
    HeadNormRopeArgs {
        input: input.address,
        input_stride_t: input.stride(0),
        input_stride_h: input.stride(1),
        cache: cache.address,
        cache_stride_h: cache.stride(0),
        cache_stride_s: cache.stride(1),
        cache_start: start.address,
        capacity: cache.extent(1),
        heads: input.extent(1),
        dim: input.last() as u32,
        cache_element: element(cache.dtype()),
        wide: wide([Some(input), Some(cache), None, None, None]).into(),
        ..HeadNormRopeArgs::zeroed()
    }
}

/// An operation on heads that shares a launch.
struct Job {
    op: Op<View>,
    args: HeadNormRopeArgs,
}

/// All that a job writes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Written {
    /// Heads, of the type of the input.
    Heads(View),
    /// Heads in a cache, and the slot of the first.
    Cache(View, View),
}

impl Job {
    /// What it writes, where that is one tensor.
    fn written(&self) -> Option<Written> {
        match &self.op {
            Op::HeadNormRope(op) if op.output_bf16.is_none() && op.output_f32.is_none() => {
                match (op.output, op.cache, op.cache_start) {
                    (Some(output), None, _) => Some(Written::Heads(output)),
                    (None, Some(cache), Some(start)) => Some(Written::Cache(cache, start)),
                    _ => None,
                }
            }
            Op::KvAppend(op) => Some(Written::Cache(op.cache, op.start)),
            _ => None,
        }
    }
}

/// The jobs of a kernel that attends too: those of the query, the new key and the new value, where they are all. Its
/// blocks do not wait for each other: what one reads no other may write, but for the query and the new slot of
/// the cache, which each block makes itself.
fn attended(op: &CachedAttention<View>, jobs: &[Job]) -> Option<[HeadNormRopeArgs; JOBS]> {
    let append = |cache: View| {
        jobs.iter().find_map(|job| match job.written()? {
            Written::Cache(to, start) if to == cache => Some((job, start)),
            _ => None,
        })
    };
    let query = jobs.iter().find(|job| job.written() == Some(Written::Heads(op.q)))?;
    let ((key, start), (value, value_start)) = (append(op.k_cache)?, append(op.v_cache)?);
    let touched = |how: fn(Access) -> bool, view: View| {
        jobs.iter().flat_map(|job| accessed(&job.op, how)).any(|other| other.overlaps(&view))
    };
    let unread = |view| !touched(Access::reads, view);
    let kept = |view| !touched(Access::writes, view);
    // A cache may be both that of keys and that of values.
    let pairs: [[&Job; 2]; 3] = [[query, key], [query, value], [key, value]];
    let fits = jobs.len() == JOBS
        && pairs.iter().all(|[a, b]| !std::ptr::eq(*a, *b))
        && start == value_start
        && attention::can_rotate(op)
        && unread(op.q)
        && unread(op.output)
        && kept(op.kv_len)
        && op.sinks.is_none_or(kept);
    fits.then(|| [query, key, value].map(|job| job.args))
}

/// The operation, and the next ones on the heads of the same tokens: rotations and appending to caches; and of a
/// single token the attention to them.
pub(super) fn head_norm_rope(op: &HeadNormRope<View>, lowering: &mut Lowering) {
    let (tokens, dtype) = (op.input.extent(0), op.input.dtype());
    let mut jobs = vec![Job { op: Op::HeadNormRope(op.clone()), args: job(op, lowering) }];
    let alike = |input: &View| input.extent(0) == tokens && input.dtype() == dtype;
    jobs.extend(lowering.join(JOBS - 1, Has::Nothing, |op, lowering| {
        let args = match op {
            Op::HeadNormRope(op) if alike(&op.input) => job(op, lowering),
            Op::KvAppend(op)
                if alike(&op.input) && !op.ring && !op.cache.dtype().is_quantized() =>
            {
                append(op)
            }
            _ => return None,
        };
        Some(Job { op: op.clone(), args })
    }));
    let attention = lowering.join(1, Has::Joined, |op, _| match op {
        Op::CachedAttention(op) => Some((op.clone(), attended(op, &jobs)?)),
        _ => None,
    });
    if let Some((op, jobs)) = attention.into_iter().next() {
        return attention::rope_cached_attention(&op, jobs, lowering);
    }
    let heads = jobs.iter().map(|job| job.args.heads).max().unwrap_or(1);
    let warps = WARPS.min(heads);
    let mut args = [HeadNormRopeArgs::zeroed(); JOBS];
    for (args, job) in args.iter_mut().zip(jobs) {
        *args = HeadNormRopeArgs { groups: groups(tokens, job.args.heads, warps), ..job.args };
    }
    let blocks = args.iter().map(|job| u64::from(job.groups)).sum();
    let kernel = format!("head_norm_rope_{dtype}");
    let kernel = Kernel::new(Unit::HeadNormRope, kernel, 1, 32 * warps as u32);
    let params = vec![Param::Bytes(bytemuck::cast_slice(&args).to_vec())];
    lowering.launch_with(kernel.grid([tokens, blocks, 1]), params);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::context::Caps;

    fn view(dtype: DType, shape: impl Into<kiln_core::Shape>, address: u64) -> View {
        let device = kiln_reference::device();
        View::new(address, 0, &device.tensor(dtype, shape).unwrap(), None)
    }

    type Steps = Vec<(Op<View>, Vec<usize>)>;

    const QUERY: usize = 0;
    const KEY: usize = 1;
    const VALUE: usize = 2;
    const ATTENTION: usize = 3;

    /// The heads of a layer as far as the output of its attention.
    fn layer(tokens: usize, dim: usize, cache: DType) -> Steps {
        let heads =
            |heads: usize, address: u64| view(DType::F32, [tokens, heads, dim], address << 20);
        let (q, raw_q, k, v) = (heads(8, 1), heads(8, 2), heads(2, 3), heads(2, 4));
        let caches = [5, 6].map(|at| view(cache, [2, 64, dim], at << 20));
        let positions = view(DType::U32, [tokens], 8 << 20);
        let start = view(DType::U32, [1], 9 << 20);
        let key = HeadNormRope {
            input: k,
            weight: None,
            positions: Some(positions),
            freq_factors: None,
            cos: None,
            sin: None,
            cache_start: Some(start),
            output: None,
            output_bf16: None,
            output_f32: None,
            cache: Some(caches[0]),
            pairing: RopePairing::Leading,
            half: dim / 2,
            theta: 1e4,
            normalize: false,
            eps: 1e-6,
            copy_layout: HeadLayout::TokenMajor,
        };
        let query = HeadNormRope {
            input: raw_q,
            output: Some(q),
            cache: None,
            cache_start: None,
            ..key.clone()
        };
        let value = KvAppend { input: v, start, cache: caches[1], ring: false };
        let attention = CachedAttention {
            q,
            k_cache: caches[0],
            v_cache: caches[1],
            kv_len: view(DType::U32, [1], 10 << 20),
            sinks: None,
            output: heads(8, 7),
            scale: 1.0,
            window: None,
            softcap: None,
            ring: false,
        };
        vec![
            (Op::HeadNormRope(query), vec![]),
            (Op::HeadNormRope(key), vec![]),
            (Op::KvAppend(value), vec![]),
            (Op::CachedAttention(attention), vec![QUERY, KEY, VALUE]),
        ]
    }

    fn names(steps: &Steps) -> Vec<Vec<String>> {
        let caps = Caps { compute: [9, 0], processors: 132, shared: 227 << 10 };
        let lowered = Lowering::run(caps, steps, [0; 2], Lowering::unlimited());
        let names = |step: &crate::runtime::graph::Launches| {
            step.launches.iter().map(|launch| launch.name.clone()).collect()
        };
        lowered.steps.iter().map(names).collect()
    }

    fn change(steps: &mut Steps, change: impl FnOnce(&mut CachedAttention<View>)) {
        let Op::CachedAttention(op) = &mut steps[ATTENTION].0 else { panic!() };
        change(op);
    }

    #[test]
    fn a_token_is_rotated_appended_and_attended_to_in_one_launch() {
        for (dim, cache, kernel) in [
            (128, DType::F16, "rope_cached_attention_f16_g4_c1"),
            (256, DType::BF16, "rope_cached_attention_bf16_g4_c1"),
            (80, DType::F32, "rope_cached_attention_f32_g4_c1"),
        ] {
            let mut steps = layer(1, dim, cache);
            assert_eq!(names(&steps), [&["rope_table", kernel][..], &[], &[], &[]]);
            // Any order of the three.
            steps.swap(QUERY, KEY);
            assert_eq!(names(&steps), [&["rope_table", kernel][..], &[], &[], &[]]);
        }
    }

    #[test]
    fn the_jobs_are_those_of_query_key_and_value() {
        let mut steps = layer(1, 128, DType::F16);
        steps.swap(QUERY, KEY);
        let caps = Caps { compute: [8, 0], processors: 108, shared: 163 << 10 };
        let lowered = Lowering::run(caps, &steps, [0; 2], Lowering::unlimited());
        let Param::Bytes(jobs) = &lowered.steps[0].launches[1].params[1] else { panic!() };
        let jobs: &[HeadNormRopeArgs] = bytemuck::cast_slice(jobs);
        let inputs = [jobs[0].input, jobs[1].input, jobs[2].input];
        assert_eq!(inputs, [2 << 20, 3 << 20, 4 << 20]);
        assert_eq!([jobs[0].cache, jobs[1].cache, jobs[2].cache], [0, 5 << 20, 6 << 20]);
    }

    /// The rotation and the attention in two launches.
    fn apart(steps: &Steps) -> bool {
        let names = names(steps);
        names[0].last().is_some_and(|name| name == "head_norm_rope_f32")
            && names[1..3].iter().all(Vec::is_empty)
            && names[ATTENTION..].iter().flatten().any(|name| name.starts_with("cached_attention"))
    }

    #[test]
    fn more_tokens_and_wide_heads_are_apart() {
        assert!(!apart(&layer(1, 128, DType::F16)));
        assert!(apart(&layer(2, 128, DType::F16)));
        assert!(apart(&layer(1, 264, DType::F16)));
    }

    #[test]
    fn an_output_in_the_place_of_what_is_read_is_apart() {
        for at in [2, 3, 4, 9] {
            let mut steps = layer(1, 128, DType::F16);
            change(&mut steps, |op| op.output.address = at << 20);
            assert!(apart(&steps), "{at}");
        }
        let mut steps = layer(1, 128, DType::F16);
        change(&mut steps, |op| op.kv_len.address = 1 << 20);
        assert!(apart(&steps));
    }

    #[test]
    fn an_attention_to_other_heads_or_after_other_steps_is_apart() {
        let mut steps = layer(1, 128, DType::F16);
        change(&mut steps, |op| op.q.address = 11 << 20);
        assert!(apart(&steps));
        let mut steps = layer(1, 128, DType::F16);
        change(&mut steps, |op| op.v_cache.address = 11 << 20);
        assert!(apart(&steps));
        let mut steps = layer(1, 128, DType::F16);
        change(&mut steps, |op| op.v_cache = op.k_cache);
        assert!(apart(&steps));
        let mut steps = layer(1, 128, DType::F16);
        let Op::HeadNormRope(query) = &mut steps[QUERY].0 else { panic!() };
        query.output_f32 = Some(view(DType::F32, [8, 1, 128], 11 << 20));
        assert!(apart(&steps));
        // A step in between that the attention waits for.
        let mut steps = layer(1, 128, DType::F16);
        let x = view(DType::F32, [1, 64], 12 << 20);
        let scale = kiln_core::ops::Scale { input: x, output: x, factor: 2.0 };
        steps.insert(ATTENTION, (Op::Scale(scale), vec![]));
        steps[ATTENTION + 1].1.push(ATTENTION);
        assert!(apart(&steps));
    }
}

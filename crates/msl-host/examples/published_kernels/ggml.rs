//! Kernels of ggml over rows: norms, softmax, activations, rotation, sorting, gathering.

use msl_host::Buffer;

use crate::support::{
    Argument::{Bytes, Memory},
    Launch, Outcome, Pack, Runner, distance, from_half, half, softmax, values,
};

pub(crate) const SOURCE: &str = "ggml/ggml-metal.metal";

const NAMES: [&str; 15] = [
    "kernel_rms_norm",
    "kernel_rms_norm_mul",
    "kernel_rms_norm_mul_add",
    "kernel_norm",
    "kernel_l2_norm",
    "kernel_soft_max_f32",
    "kernel_soft_max_f32_4",
    "kernel_soft_max_f16",
    "kernel_sum_rows",
    "kernel_mean",
    "kernel_swiglu",
    "kernel_geglu",
    "kernel_rope_norm_f32",
    "kernel_rope_neox_f32",
    "kernel_argsort_f32_i32_desc",
];

pub(crate) fn run(runner: &mut Runner) {
    let library = runner.library(SOURCE, &NAMES).map_err(|error| error.to_string());
    for name in NAMES {
        let outcome = match &library {
            Ok(library) => row_kernel(library, name),
            Err(error) => Err(error.clone().into()),
        };
        runner.report(name, outcome, 2e-5);
    }
}

const ROWS: usize = 3;
const D: usize = 200;
const EPS: f32 = 1e-5;

fn row_kernel(library: &msl_host::Library, name: &str) -> Outcome<f32> {
    let (input, other, third) = (values(ROWS * D), values(ROWS * D + 9)[9..].to_vec(), values(D));
    let (x, y) = (Buffer::from_slice(&input)?, Buffer::new(ROWS * D * 4)?);
    let (w, b) = (Buffer::from_slice(&other)?, Buffer::from_slice(&third)?);
    let halves: Vec<u16> = other.iter().map(|&v| half(v)).collect();
    let halves = Buffer::from_slice(&halves)?;
    let row = D * 4;
    let rows = input.chunks(D);
    let mut launch =
        Launch { groups: [ROWS, 1, 1], threads: [64, 1, 1], shared: &[128], ..Launch::default() };
    let want: Vec<f32> = match name {
        "kernel_rms_norm" | "kernel_rms_norm_mul" | "kernel_rms_norm_mul_add" => {
            // The factor has as many rows as the input, the summand has one.
            let arguments = Pack::new()
                .i32s(&[D, D / 4])
                .u64s(&[row, ROWS * row, ROWS * row])
                .f32s(&[EPS])
                .i32s(&[ROWS, ROWS, 1, 1, 1, 1, 1, 1, 1])
                .u64s(&[row, row, row, 0, 0, 0, 0, 0, 0])
                .done();
            launch.arguments =
                vec![Bytes(arguments), Memory(&x), Memory(&w), Memory(&b), Memory(&y)];
            let mut want = Vec::new();
            for (number, line) in rows.enumerate() {
                let mean = line.iter().map(|x| x * x).sum::<f32>() / D as f32;
                want.extend(line.iter().enumerate().map(|(i, x)| {
                    let normed = x / (mean + EPS).sqrt();
                    match name {
                        "kernel_rms_norm" => normed,
                        "kernel_rms_norm_mul" => normed * other[number * D + i],
                        _ => normed * other[number * D + i] + third[i],
                    }
                }));
            }
            want
        }
        "kernel_norm" | "kernel_l2_norm" => {
            let arguments = Pack::new().i32s(&[D, D / 4]).u64s(&[row]).f32s(&[EPS]).done();
            launch.arguments = vec![Bytes(arguments), Memory(&x), Memory(&y)];
            let mut want = Vec::new();
            for line in rows {
                let centre =
                    if name == "kernel_norm" { line.iter().sum::<f32>() / D as f32 } else { 0.0 };
                let squares = line.iter().map(|x| (x - centre).powi(2)).sum::<f32>();
                let factor = if name == "kernel_norm" {
                    1.0 / (squares / D as f32 + EPS).sqrt()
                } else {
                    1.0 / squares.max(EPS).sqrt()
                };
                want.extend(line.iter().map(|x| (x - centre) * factor));
            }
            want
        }
        "kernel_soft_max_f32" | "kernel_soft_max_f32_4" | "kernel_soft_max_f16" => {
            // Its scratch is cleared after a barrier that orders no memory.
            launch.detect_conflicts = false;
            let half_mask = name.ends_with("f16");
            let mask = if half_mask { &halves } else { &w };
            let mask_row = if half_mask { row / 2 } else { row };
            let arguments = Pack::new()
                .i32s(&[D, ROWS, 1])
                .u64s(&[row, ROWS * row, ROWS * row])
                .i32s(&[ROWS, 1, 1])
                .u64s(&[mask_row, ROWS * mask_row, ROWS * mask_row, row, ROWS * row, ROWS * row])
                .f32s(&[0.5, 0.0, 1.0, 1.0])
                .i32s(&[0])
                .done();
            launch.arguments =
                vec![Memory(&x), Memory(mask), Memory(&x), Memory(&y), Bytes(arguments)];
            let biased: Vec<f32> = input
                .iter()
                .zip(&other)
                .map(|(x, &m)| {
                    let m = if half_mask { from_half(half(m)) } else { m };
                    x * 0.5 + m
                })
                .collect();
            biased.chunks(D).flat_map(softmax).collect()
        }
        "kernel_sum_rows" | "kernel_mean" => {
            let arguments = Pack::new()
                .u64s(&[D, ROWS, 1, 1, 4, row, ROWS * row, ROWS * row])
                .u64s(&[1; 8])
                .u64s(&[1, ROWS, 1, 1, 4, 4, ROWS * 4, ROWS * 4])
                .done();
            let sums = Buffer::new(ROWS * 4)?;
            launch.arguments = vec![Bytes(arguments), Memory(&x), Memory(&sums)];
            launch.run(library, name)?;
            let divisor = if name == "kernel_mean" { D as f32 } else { 1.0 };
            let want: Vec<f32> = rows.map(|line| line.iter().sum::<f32>() / divisor).collect();
            return Ok(distance(&sums.to_vec::<f32>()?, &want));
        }
        "kernel_swiglu" | "kernel_geglu" => {
            let arguments = Pack::new()
                .i32s(&[D])
                .u64s(&[row])
                .i32s(&[D])
                .u64s(&[row])
                .i32s(&[D])
                .u64s(&[row])
                .i32s(&[0, 0])
                .f32s(&[0.0, 0.0])
                .done();
            launch.arguments = vec![Memory(&x), Memory(&w), Memory(&y), Bytes(arguments)];
            launch.shared = &[];
            let gate = |x: f32| match name {
                "kernel_swiglu" => x / (1.0 + (-x).exp()),
                _ => 0.5 * x * (1.0 + (0.797_884_6 * x * (1.0 + 0.044_715 * x * x)).tanh()),
            };
            input.iter().zip(&other).map(|(&x, y)| gate(x) * y).collect()
        }
        "kernel_rope_norm_f32" | "kernel_rope_neox_f32" => return rope(library, name),
        _ => return argsort(library, name),
    };
    launch.run(library, name)?;
    Ok(distance(&y.to_vec::<f32>()?, &want))
}

fn rope(library: &msl_host::Library, name: &str) -> Outcome<f32> {
    let (heads, tokens, d, rotated, base) = (2usize, 3usize, 64usize, 48usize, 10_000.0f32);
    let input = values(tokens * heads * d);
    let positions = [5i32, 900, 7];
    let (x, y) = (Buffer::from_slice(&input)?, Buffer::new(input.len() * 4)?);
    let at = Buffer::from_slice(&positions)?;
    let strides = [4, d * 4, heads * d * 4, tokens * heads * d * 4];
    let arguments = Pack::new()
        .i32s(&[d, heads, tokens, 1])
        .u64s(&strides)
        .i32s(&[d, heads, tokens, 1])
        .u64s(&strides)
        .i32s(&[0, rotated, 4096])
        .f32s(&[base, 1.0, 0.0, 1.0, 32.0, 1.0])
        .i32s(&[0; 4])
        .done();
    Launch {
        groups: [heads, tokens, 1],
        threads: [32, 1, 1],
        arguments: vec![Bytes(arguments), Memory(&x), Memory(&at), Memory(&x), Memory(&y)],
        ..Launch::default()
    }
    .run(library, name)?;
    let mut want = input.clone();
    for (token, position) in positions.iter().enumerate() {
        for head in 0..heads {
            let line = &mut want[(token * heads + head) * d..][..d];
            for i in 0..rotated / 2 {
                let angle = *position as f32 * base.powf(-2.0 * i as f32 / rotated as f32);
                let pair =
                    if name.contains("neox") { (i, i + rotated / 2) } else { (2 * i, 2 * i + 1) };
                let (a, b) = (line[pair.0], line[pair.1]);
                line[pair.0] = a * angle.cos() - b * angle.sin();
                line[pair.1] = a * angle.sin() + b * angle.cos();
            }
        }
    }
    // Angles up to 900 are known to 900 * 2^-24.
    Ok(distance(&y.to_vec::<f32>()?, &want) / 10.0)
}

fn argsort(library: &msl_host::Library, name: &str) -> Outcome<f32> {
    let (columns, padded) = (100usize, 128usize);
    let input: Vec<f32> = (0..ROWS * columns).map(|i| ((i * 29) % 307) as f32).collect();
    let (x, y) = (Buffer::from_slice(&input)?, Buffer::new(input.len() * 4)?);
    Launch {
        groups: [1, ROWS, 1],
        threads: [padded, 1, 1],
        arguments: vec![Memory(&x), Memory(&y), Bytes(Pack::new().u64s(&[columns, padded]).done())],
        shared: &[padded * 4],
        ..Launch::default()
    }
    .run(library, name)?;
    let mut want = Vec::new();
    for row in input.chunks(columns) {
        let mut order: Vec<i32> = (0..columns as i32).collect();
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        want.extend(order.into_iter().map(|i| i as f32));
    }
    let got: Vec<f32> = y.to_vec::<i32>()?.into_iter().map(|i| i as f32).collect();
    Ok(distance(&got, &want))
}

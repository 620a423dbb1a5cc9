//! Kernels of the package `candle-metal-kernels`, some of which are MLX's.

use msl_host::ConstantValue::{self, Bool};

use crate::support::{
    Argument::{Bytes, Memory, Nothing},
    Format, Launch, Pack, Runner, attention, distance, values,
};
use msl_host::Buffer;

type Plain = fn(f32) -> f32;

pub(crate) fn run(runner: &mut Runner) {
    unary(runner);
    binary_and_affine(runner);
    sort(runner);
    gemm(runner);
    vector_attention(runner);
}

fn size(value: usize) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

fn unary(runner: &mut Runner) {
    let list: [(&str, Plain); 6] = [
        ("exp", f32::exp),
        ("sin", f32::sin),
        ("sqr", |x| x * x),
        ("round", f32::round),
        ("tanh", f32::tanh),
        ("silu", |x| x / (1.0 + (-x).exp())),
    ];
    let names: Vec<String> = list.iter().map(|(name, _)| format!("{name}_f32")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let library = runner.library("candle/unary.metal", &names);
    let input = values(100);
    for (name, (_, plain)) in names.iter().zip(list) {
        let outcome = (|| {
            let library = library.as_ref().map_err(|error| error.to_string())?;
            let (x, y) = (Buffer::from_slice(&input)?, Buffer::new(400)?);
            Launch {
                groups: [4, 1, 1],
                arguments: vec![Bytes(size(100)), Memory(&x), Memory(&y)],
                ..Launch::default()
            }
            .run(library, name)?;
            let want: Vec<f32> = input.iter().map(|&x| plain(x)).collect();
            Ok(distance(&y.to_vec::<f32>()?, &want))
        })();
        runner.report(name, outcome, 1e-4);
    }
}

fn binary_and_affine(runner: &mut Runner) {
    let (a, b) = (values(64), values(80)[16..].to_vec());
    let outcome = (|| {
        let library = runner.library("candle/binary.metal", &["mul_f32"])?;
        let (x, y, z) = (Buffer::from_slice(&a)?, Buffer::from_slice(&b)?, Buffer::new(256)?);
        let arguments = vec![Bytes(size(64)), Memory(&x), Memory(&y), Memory(&z)];
        Launch { groups: [2, 1, 1], arguments, ..Launch::default() }.run(&library, "mul_f32")?;
        let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
        Ok(distance(&z.to_vec::<f32>()?, &want))
    })();
    runner.report("mul_f32", outcome, 0.0);
    let outcome = (|| {
        let library = runner.library("candle/affine.metal", &["affine_bf16"])?;
        let (x, a) = Format::Bf16.buffer(&a)?;
        let y = Format::Bf16.empty(64)?;
        let factor = |value: f32| Bytes(value.to_ne_bytes().to_vec());
        let arguments = vec![Bytes(size(64)), factor(2.0), factor(0.5), Memory(&x), Memory(&y)];
        Launch { groups: [2, 1, 1], arguments, ..Launch::default() }
            .run(&library, "affine_bf16")?;
        let want: Vec<f32> = a.iter().map(|a| a * 2.0 + 0.5).collect();
        Ok(distance(&Format::Bf16.read(&y)?, &want))
    })();
    runner.report("affine_bf16", outcome, 1e-2);
}

fn sort(runner: &mut Runner) {
    let outcome = (|| {
        let library = runner.library("candle/sort.metal", &["asort_asc_f32"])?;
        let (count, columns, padded) = (2usize, 50usize, 64usize);
        let input: Vec<f32> = (0..count * columns).map(|i| ((i * 29) % 97) as f32).collect();
        let (x, y) = (Buffer::from_slice(&input)?, Buffer::new(count * columns * 4)?);
        Launch {
            groups: [1, count, 1],
            threads: [padded, 1, 1],
            arguments: vec![Memory(&x), Memory(&y), Bytes(size(columns)), Bytes(size(padded))],
            shared: &[padded * 4],
            ..Launch::default()
        }
        .run(&library, "asort_asc_f32")?;
        let mut want = Vec::new();
        for row in input.chunks(columns) {
            let mut order: Vec<u32> = (0..columns as u32).collect();
            order.sort_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]));
            want.extend(order.into_iter().map(|i| i as f32));
        }
        let got: Vec<f32> = y.to_vec::<u32>()?.into_iter().map(|i| i as f32).collect();
        Ok(distance(&got, &want))
    })();
    runner.report("asort_asc_f32", outcome, 0.0);
}

/// The matrix product of MLX: templates, function constants, simdgroup matrices.
fn gemm(runner: &mut Runner) {
    let list = [
        ("gemm_nn_f32_f32_32_32_16_2_2", Format::F32, false, 1e-4),
        ("gemm_nt_f32_f32_32_32_16_2_2", Format::F32, true, 1e-4),
        ("gemm_nn_f16_f16_32_32_16_2_2", Format::F16, false, 2e-2),
        ("gemm_nt_bf16_bf16_32_32_16_2_2", Format::Bf16, true, 2e-1),
    ];
    let library = runner.library("candle/mlx_gemm.metal", &list.map(|(name, ..)| name));
    for (name, format, transposed, bound) in list {
        let outcome = (|| {
            let library = library.as_ref().map_err(|error| error.to_string())?;
            let (m, n, k) = (40usize, 50usize, 24usize);
            let (x, a) = format.buffer(&values(m * k))?;
            let (y, b) = format.buffer(&values(k * n))?;
            let z = format.empty(m * n)?;
            let (tiles_n, tiles_m) = (n.div_ceil(32), m.div_ceil(32));
            let ldb = if transposed { k } else { n };
            let params = Pack::new()
                .i32s(&[m, n, k, k, ldb, n, tiles_n, tiles_m])
                .u64s(&[m * k, k * n, m * n])
                .i32s(&[0, k / 16, 1, 0])
                .done();
            let off = |index| (index, Bool(false));
            let constants: [(u32, ConstantValue); 7] = [10, 100, 110, 200, 201, 202, 300].map(off);
            let one = Bytes(1i32.to_ne_bytes().to_vec());
            Launch {
                groups: [tiles_n, tiles_m, 1],
                threads: [32, 2, 2],
                arguments: vec![
                    Memory(&x),
                    Memory(&y),
                    Nothing,
                    Memory(&z),
                    Bytes(params),
                    // Read also where it is not used.
                    Bytes(Pack::new().u64s(&[0; 4]).done()),
                    one,
                    Bytes(Pack::new().u64s(&[0, 0]).done()),
                ],
                constants: &constants,
                ..Launch::default()
            }
            .run(library, name)?;
            let mut want = vec![0.0f32; m * n];
            for (at, value) in want.iter_mut().enumerate() {
                let (row, column) = (at / n, at % n);
                let other = |i| if transposed { b[column * k + i] } else { b[i * n + column] };
                *value = (0..k).map(|i| a[row * k + i] * other(i)).sum();
            }
            Ok(distance(&format.read(&z)?, &want))
        })();
        runner.report(name, outcome, bound);
    }
}

/// MLX's attention of one query, in one pass and in two: templates and a function constant.
fn vector_attention(runner: &mut Runner) {
    let names =
        ["sdpa_vector_float_64", "sdpa_vector_bfloat16_t_64", "sdpa_vector_2pass_2_float_64"];
    let library = runner.library("candle/scaled_dot_product_attention.metal", &names);
    let (heads, group, keys, d, scale) = (4usize, 2usize, 70usize, 64usize, 0.125f32);
    let without_mask = [(20, Bool(false))];
    let want = |q: &[f32], k: &[f32], v: &[f32]| -> Vec<f32> {
        (0..heads)
            .flat_map(|head| {
                let at = head / group * keys * d;
                let (k, v) = (&k[at..at + keys * d], &v[at..at + keys * d]);
                attention(&q[head * d..(head + 1) * d], k, v, d, &[], scale)
            })
            .collect()
    };
    let scalars = || {
        let mut list = vec![
            Bytes((group as i32).to_ne_bytes().to_vec()),
            Bytes((keys as i32).to_ne_bytes().to_vec()),
        ];
        list.extend([Bytes(size(keys * d)), Bytes(size(keys * d))]);
        list.extend([scale, 1.0f32].map(|v| Bytes(v.to_ne_bytes().to_vec())));
        list
    };
    for (name, format, bound) in [(names[0], Format::F32, 1e-5), (names[1], Format::Bf16, 1e-2)] {
        let outcome = (|| {
            let library = library.as_ref().map_err(|error| error.to_string())?;
            let (q, qs) = format.buffer(&values(heads * d))?;
            let (k, ks) = format.buffer(&values(heads / group * keys * d))?;
            let (v, vs) = format.buffer(&values(heads / group * keys * d + 7)[7..])?;
            let out = format.empty(heads * d)?;
            let mut arguments = vec![Memory(&q), Memory(&k), Memory(&v), Memory(&out)];
            arguments.extend(scalars());
            Launch {
                groups: [1, heads, 1],
                threads: [1024, 1, 1],
                arguments,
                constants: &without_mask,
                ..Launch::default()
            }
            .run(library, name)?;
            Ok(distance(&format.read(&out)?, &want(&qs, &ks, &vs)))
        })();
        runner.report(name, outcome, bound);
    }
    // The second pass alone: what the first leaves are any values here.
    let outcome = (|| {
        let library = library.as_ref().map_err(|error| error.to_string())?;
        let blocks = 32;
        let (part, weight, most) = (
            values(heads * blocks * d),
            values(heads * blocks + 3)[3..].to_vec(),
            values(heads * blocks),
        );
        let weight: Vec<f32> = weight.iter().map(|w| w + 2.0).collect();
        let (partial, sums) = (Buffer::from_slice(&part)?, Buffer::from_slice(&weight)?);
        let (mosts, out) = (Buffer::from_slice(&most)?, Buffer::new(heads * d * 4)?);
        Launch {
            groups: [1, heads, 1],
            threads: [1024, 1, 1],
            arguments: vec![Memory(&partial), Memory(&sums), Memory(&mosts), Memory(&out)],
            ..Launch::default()
        }
        .run(library, names[2])?;
        let mut want = Vec::new();
        for head in 0..heads {
            let most = &most[head * blocks..][..blocks];
            let top = most.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let factor: Vec<f32> = most.iter().map(|m| (m - top).exp()).collect();
            let sum: f32 = factor.iter().zip(&weight[head * blocks..]).map(|(f, w)| f * w).sum();
            want.extend((0..d).map(|i| {
                let parts =
                    factor.iter().enumerate().map(|(b, f)| f * part[(head * blocks + b) * d + i]);
                parts.sum::<f32>() / sum
            }));
        }
        Ok(distance(&out.to_vec::<f32>()?, &want))
    })();
    runner.report(names[2], outcome, 1e-5);
}

//! Flash attention of ggml: templates over types, functions and sizes, function constants, simdgroup matrices.

use msl_host::{Buffer, ConstantValue, Library};

use crate::ggml::SOURCE;
use crate::support::{
    Argument::{Bytes, Memory},
    Format, Launch, Outcome, Pack, Runner, attention, distance, half, values,
};

const TILES: [(&str, Format, usize); 3] = [
    ("kernel_flash_attn_ext_f16_dk64_dv64", Format::F16, 64),
    ("kernel_flash_attn_ext_f16_dk128_dv128", Format::F16, 128),
    ("kernel_flash_attn_ext_bf16_dk64_dv64", Format::Bf16, 64),
];
const MERGE: &str = "kernel_flash_attn_ext_vec_reduce";

pub(crate) fn run(runner: &mut Runner) {
    let names = [TILES[0].0, TILES[1].0, TILES[2].0, MERGE];
    let library = runner.library(SOURCE, &names).map_err(|error| error.to_string());
    let library = || library.as_ref().map_err(|error| error.clone().into());
    for (name, format, d) in TILES {
        for masked in [false, true] {
            let outcome = library().and_then(|library| tiles(library, name, format, d, masked));
            let text = if masked { "masked" } else { "open" };
            runner.report(&format!("{name} ({text})"), outcome, 1e-2);
        }
    }
    let outcome = library().and_then(merge);
    runner.report(MERGE, outcome, 1e-5);
}

/// Sizes of a call; one sequence.
struct Shape {
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
}

impl Shape {
    /// The struct of arguments that both kernels share. Queries are `[heads, queries, d]`, results `[queries, heads, d]`.
    fn arguments(&self, scale: f32) -> Vec<u8> {
        let Shape { heads, kv_heads, queries, keys, d } = *self;
        let (q_row, k_row) = (d * 4, d * 2);
        Pack::new()
            .i32s(&[queries, heads, 1])
            .u64s(&[q_row, queries * q_row, heads * queries * q_row])
            .i32s(&[keys, kv_heads, 1, d])
            .u64s(&[k_row, keys * k_row, kv_heads * keys * k_row])
            .i32s(&[d])
            .u64s(&[k_row, keys * k_row, kv_heads * keys * k_row])
            .i32s(&[1, 1])
            .u64s(&[keys * 2, queries * keys * 2, queries * keys * 2])
            .i32s(&[heads, queries, 1])
            .f32s(&[scale, 0.0, 1.0, 1.0])
            .i32s(&[0])
            .f32s(&[0.0])
            .done()
    }

    fn want(&self, q: &[f32], k: &[f32], v: &[f32], bias: &[f32], scale: f32) -> Vec<f32> {
        let Shape { heads, kv_heads, queries, keys, d } = *self;
        let mut want = vec![0.0; queries * heads * d];
        for head in 0..heads {
            let at = head / (heads / kv_heads) * keys * d;
            let rows = &q[head * queries * d..][..queries * d];
            let out = attention(rows, &k[at..at + keys * d], &v[at..at + keys * d], d, bias, scale);
            for (query, row) in out.chunks(d).enumerate() {
                want[(query * heads + head) * d..][..d].copy_from_slice(row);
            }
        }
        want
    }
}

fn constants(masked: bool, d: usize) -> Vec<(u32, ConstantValue)> {
    let mut list = vec![(100, ConstantValue::Bool(masked))];
    list.extend((101..104).map(|index| (index, ConstantValue::Bool(false))));
    list.extend([(120, d), (121, d), (122, 4)].map(|(i, v)| (i, ConstantValue::Int(v as i32))));
    list
}

fn tiles(library: &Library, name: &str, format: Format, d: usize, masked: bool) -> Outcome<f32> {
    let shape = Shape { heads: 4, kv_heads: 2, queries: 11, keys: 128, d };
    let scale = 1.0 / (d as f32).sqrt();
    let qs = values(shape.heads * shape.queries * d);
    let q = Buffer::from_slice(&qs)?;
    let (k, ks) = format.buffer(&values(shape.kv_heads * shape.keys * d))?;
    let (v, vs) = format.buffer(&values(shape.kv_heads * shape.keys * d + 5)[5..])?;
    // A causal mask of the last positions; masks have rows up to a whole tile of queries.
    let rows = shape.queries.next_multiple_of(8);
    let open = |row: usize, key: usize| key + shape.queries <= shape.keys + row;
    let mut mask = vec![0u16; rows * shape.keys];
    let mut bias = Vec::new();
    if masked {
        for row in 0..rows {
            for key in 0..shape.keys {
                let value =
                    if open(row, key) { 0.25 * (key % 3) as f32 } else { f32::NEG_INFINITY };
                mask[row * shape.keys + key] = if value.is_finite() { half(value) } else { 0xfc00 };
                bias.push(value);
            }
        }
    }
    let mask = Buffer::from_slice(&mask)?;
    let out = Buffer::new(shape.queries * shape.heads * d * 4)?;
    // As the host code of the package has it: 8 queries, 64 keys, 4 simdgroups.
    let shared = 8 * (d + 2 * d.next_multiple_of(64) + 2 * 128) * 2;
    Launch {
        groups: [shape.queries.div_ceil(8), shape.heads, 1],
        threads: [32, 4, 1],
        arguments: vec![
            Bytes(shape.arguments(scale)),
            Memory(&q),
            Memory(&k),
            Memory(&v),
            Memory(&mask),
            Memory(&q),
            Memory(&out),
        ],
        shared: &[shared],
        constants: &constants(masked, d),
        ..Launch::default()
    }
    .run(library, name)?;
    Ok(distance(&out.to_vec::<f32>()?, &shape.want(&qs, &ks, &vs, &bias, scale)))
}

/// The merge of one query's partial results; what the splits leave are any values here.
fn merge(library: &Library) -> Outcome<f32> {
    let (rows, d, groups) = (4usize, 128usize, 32usize);
    let sums: Vec<f32> = values(rows * groups).iter().map(|v| v + 2.0).collect();
    let (part, most) = (values(rows * d * groups), values(rows * groups + 3)[3..].to_vec());
    let mut partial = part.clone();
    partial.extend(sums.iter().zip(&most).flat_map(|(&s, &m)| [s, m]));
    let (partial, out) = (Buffer::from_slice(&partial)?, Buffer::new(rows * d * 4)?);
    Launch {
        groups: [rows, 1, 1],
        threads: [32 * groups, 1, 1],
        arguments: vec![Bytes(Pack::new().i32s(&[rows]).done()), Memory(&partial), Memory(&out)],
        constants: &[(300, ConstantValue::Int(d as i32)), (301, ConstantValue::Int(groups as i32))],
        ..Launch::default()
    }
    .run(library, MERGE)?;
    let mut want = Vec::new();
    for row in 0..rows {
        let at = row * groups;
        let top = most[at..at + groups].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let factor: Vec<f32> = most[at..at + groups].iter().map(|m| (m - top).exp()).collect();
        let sum: f32 = factor.iter().zip(&sums[at..]).map(|(f, s)| f * s).sum();
        // Groups lie inside, one vector of four values each.
        want.extend((0..d).map(|i| {
            let place = |group: usize| (row * d / 4 + i / 4) * groups * 4 + group * 4 + i % 4;
            factor.iter().enumerate().map(|(g, f)| f * part[place(g)]).sum::<f32>() / sum
        }));
    }
    Ok(distance(&out.to_vec::<f32>()?, &want))
}

//! Products of ggml with plain and quantised weights: one row at a time, and by simdgroup matrices.

use msl_host::{Buffer, Library};

use crate::ggml::SOURCE;
use crate::support::{
    Argument::{Bytes, Memory},
    Format, Launch, Outcome, Pack, Runner, distance, from_half, half, values,
};

/// Weights of a kernel: plain, or blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weights {
    Plain(Format),
    Q4_0,
    Q8_0,
    Q4K,
}

const LIST: [(&str, Weights); 14] = [
    ("kernel_mul_mv_f32_f32", Weights::Plain(Format::F32)),
    ("kernel_mul_mv_f16_f32", Weights::Plain(Format::F16)),
    ("kernel_mul_mv_bf16_f32", Weights::Plain(Format::Bf16)),
    ("kernel_mul_mv_q4_0_f32", Weights::Q4_0),
    ("kernel_mul_mv_q8_0_f32", Weights::Q8_0),
    ("kernel_mul_mv_q4_K_f32", Weights::Q4K),
    ("kernel_mul_mm_f32_f32", Weights::Plain(Format::F32)),
    ("kernel_mul_mm_f16_f32", Weights::Plain(Format::F16)),
    ("kernel_mul_mm_bf16_f32", Weights::Plain(Format::Bf16)),
    ("kernel_mul_mm_q4_0_f32", Weights::Q4_0),
    ("kernel_mul_mm_q8_0_f32", Weights::Q8_0),
    ("kernel_mul_mm_q4_K_f32", Weights::Q4K),
    ("kernel_get_rows_q4_0", Weights::Q4_0),
    ("kernel_get_rows_q4_K", Weights::Q4K),
];

pub(crate) fn run(runner: &mut Runner) {
    let library =
        runner.library(SOURCE, &LIST.map(|(name, _)| name)).map_err(|error| error.to_string());
    for (name, weights) in LIST {
        let outcome = match &library {
            Ok(library) if name.contains("get_rows") => get_rows(library, name, weights),
            Ok(library) => product(library, name, weights),
            Err(error) => Err(error.clone().into()),
        };
        // Matrices of a simdgroup hold the weights as halfs, or as bfloats.
        let bound = if name.contains("mul_mm") { 2e-2 } else { 1e-3 };
        runner.report(name, outcome, bound);
    }
}

impl Weights {
    /// Bytes of a row of `k` values.
    fn row(self, k: usize) -> usize {
        match self {
            Weights::Plain(Format::F32) => k * 4,
            Weights::Plain(_) => k * 2,
            Weights::Q4_0 => k / 32 * 18,
            Weights::Q8_0 => k / 32 * 34,
            Weights::Q4K => k / 256 * 144,
        }
    }

    /// A buffer of `n` rows of `k`, and the values in it.
    fn make(self, n: usize, k: usize) -> Outcome<(Buffer, Vec<f32>)> {
        if let Weights::Plain(format) = self {
            return format.buffer(&values(n * k));
        }
        let mut bytes: Vec<u8> =
            (0..n * self.row(k)).map(|i| (i * 151 + i / 251 * 7 + 3) as u8).collect();
        let mut out = Vec::with_capacity(n * k);
        let (block, scales) = match self {
            Weights::Q8_0 => (34, 1),
            Weights::Q4K => (144, 2),
            _ => (18, 1),
        };
        for (number, block) in bytes.chunks_mut(block).enumerate() {
            for at in 0..scales {
                let scale = (1 + (number + at) % 5) as f32
                    / if self == Weights::Q8_0 { 512.0 } else { 256.0 };
                block[at * 2..at * 2 + 2].copy_from_slice(&half(scale).to_le_bytes());
            }
            let scale = |at: usize| from_half(u16::from_le_bytes([block[at], block[at + 1]]));
            match self {
                Weights::Q8_0 => {
                    out.extend(block[2..].iter().map(|&q| scale(0) * f32::from(q as i8)))
                }
                Weights::Q4K => super_block(block, scale(0), scale(2), &mut out),
                _ => {
                    for shift in [0, 4] {
                        let nibble = |q: &u8| f32::from(q >> shift & 15) - 8.0;
                        out.extend(block[2..].iter().map(|q| scale(0) * nibble(q)));
                    }
                }
            }
        }
        Ok((Buffer::from_slice(&bytes)?, out))
    }
}

/// Values of a block of 256: eight groups of 32, each with a scale and a minimum of six bits.
fn super_block(block: &[u8], d: f32, dmin: f32, out: &mut Vec<f32>) {
    let s = &block[4..16];
    for group in 0..8 {
        let (scale, minimum) = if group < 4 {
            (s[group] & 63, s[group + 4] & 63)
        } else {
            let high = |at: usize| (s[at] >> 6) << 4;
            (s[group + 4] & 15 | high(group - 4), s[group + 4] >> 4 | high(group))
        };
        let quants = &block[16 + group / 2 * 32..][..32];
        out.extend(quants.iter().map(|q| {
            let q = if group % 2 == 0 { q & 15 } else { q >> 4 };
            d * f32::from(scale) * f32::from(q) - dmin * f32::from(minimum)
        }));
    }
}

fn product(library: &Library, name: &str, weights: Weights) -> Outcome<f32> {
    let many = name.contains("mul_mm");
    // 72 rows of weights and 33 of input: whole tiles of 64 x 32, and parts of tiles.
    let (n, m, k) = if many { (72usize, 33usize, 256usize) } else { (24, 3, 512) };
    let (w, ws) = weights.make(n, k)?;
    let xs: Vec<f32> = values(m * k).iter().map(|v| v * 0.25).collect();
    let (x, y) = (Buffer::from_slice(&xs)?, Buffer::new(n * m * 4)?);
    let row = weights.row(k);
    let launch = if many {
        let arguments = Pack::new()
            .i32s(&[k, 1])
            .u64s(&[row, n * row, n * row])
            .i32s(&[1])
            .u64s(&[4, k * 4, m * k * 4, m * k * 4])
            .i32s(&[n, m])
            .i16s(&[1, 1])
            .done();
        Launch {
            groups: [m.div_ceil(32), n.div_ceil(64), 1],
            threads: [128, 1, 1],
            arguments: vec![Bytes(arguments), Memory(&w), Memory(&x), Memory(&y)],
            shared: &[8192],
            ..Launch::default()
        }
    } else {
        let arguments = Pack::new()
            .i32s(&[k, n, 1])
            .u64s(&[4, row, n * row, n * row])
            .i32s(&[k, m, 1])
            .u64s(&[4, k * 4, m * k * 4, m * k * 4])
            .i32s(&[n, m])
            .i16s(&[1, 1])
            .done();
        // Rows of a threadgroup and its simdgroups, as the package's host code has them.
        let (rows, simdgroups) = match weights {
            Weights::Plain(_) => (1, 1),
            Weights::Q4_0 | Weights::Q4K => (8, 2),
            Weights::Q8_0 => (2, 4),
        };
        let columns = if let Weights::Plain(_) = weights { m.div_ceil(4) } else { m };
        Launch {
            groups: [n.div_ceil(rows), columns, 1],
            threads: [32, simdgroups, 1],
            arguments: vec![Bytes(arguments), Memory(&w), Memory(&x), Memory(&y)],
            shared: &[1024],
            ..Launch::default()
        }
    };
    launch.run(library, name)?;
    let mut want = Vec::with_capacity(m * n);
    for x in xs.chunks(k) {
        want.extend(ws.chunks(k).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum::<f32>()));
    }
    let largest = want.iter().fold(1.0f32, |most, v| most.max(v.abs()));
    Ok(distance(&y.to_vec::<f32>()?, &want) / largest)
}

fn get_rows(library: &Library, name: &str, weights: Weights) -> Outcome<f32> {
    let (n, k) = (9usize, 512usize);
    let (w, ws) = weights.make(n, k)?;
    let picked = [4i32, 0, 8, 4];
    let (rows, y) = (Buffer::from_slice(&picked)?, Buffer::new(picked.len() * k * 4)?);
    let row = weights.row(k);
    let arguments = Pack::new()
        .u64s(&[k, row, n * row, picked.len(), 4, picked.len() * 4, k * 4, picked.len() * k * 4])
        .done();
    Launch {
        groups: [picked.len(), 1, 1],
        arguments: vec![Bytes(arguments), Memory(&w), Memory(&rows), Memory(&y)],
        ..Launch::default()
    }
    .run(library, name)?;
    let want: Vec<f32> =
        picked.iter().flat_map(|&row| ws[row as usize * k..][..k].to_vec()).collect();
    Ok(distance(&y.to_vec::<f32>()?, &want))
}

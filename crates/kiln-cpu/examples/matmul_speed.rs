//! Times matrix products: `cargo run --release -p kiln-cpu --example matmul_speed [n k threads]`.

use kiln_core::ops::{InputLayout, Matmul, Precision};
use kiln_core::{DType, SharedBytes, quant};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let (n, k) =
        (numbers.first().copied().unwrap_or(2048), numbers.get(1).copied().unwrap_or(2048));
    let threads = numbers.get(2).copied().unwrap_or(2);
    let device =
        kiln_cpu::device(kiln_cpu::Config { threads: Some(threads), instruction_set: None })?;
    println!("{} n {n} k {k}", device.description());
    for dtype in DType::WEIGHTS {
        let Some(bytes) = dtype.row_bytes(k) else { continue };
        let row: Vec<f32> = (0..k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut packed = vec![0; bytes];
        quant::quantize_row(dtype, &row, &mut packed)?;
        // Enough copies that weights come from memory, as they do in a model.
        let copies = (256 << 20) / (n * bytes) + 1;
        let weights: Vec<_> = (0..copies.min(64))
            .map(|_| device.import(dtype, [n, k], SharedBytes::from_vec(packed.repeat(n))))
            .collect::<Result<_, _>>()?;
        for (m, precision) in [
            (1, Precision::Fast),
            (8, Precision::Fast),
            (512, Precision::Fast),
            (512, Precision::Exact),
        ] {
            let input = device.upload(&row.repeat(m), [m, k])?;
            let output = device.tensor(DType::F32, [m, n])?;
            let used = if m < 16 { weights.len() } else { 1 };
            let mut rec = device.record();
            for weight in &weights[..used] {
                let input_layout = InputLayout::RowMajor;
                rec.push(Matmul {
                    input: &input,
                    weight,
                    output: &output,
                    input_layout,
                    precision,
                })?;
            }
            let step = rec.finish()?;
            step.run()?;
            let mut times: Vec<f64> = (0..7)
                .map(|_| {
                    let start = Instant::now();
                    step.run().map(|()| start.elapsed().as_secs_f64() / used as f64)
                })
                .collect::<Result<_, _>>()?;
            times.sort_by(f64::total_cmp);
            let time = times[times.len() / 2];
            let gops = 2.0 * (m * n * k) as f64 / time / 1e9;
            let gbs = (n * bytes) as f64 / time / 1e9;
            println!(
                "{dtype:>7} m {m:4} {precision:?}: {:9.1} us {gops:8.1} GOPS {gbs:6.1} GB/s",
                time * 1e6
            );
        }
    }
    Ok(())
}

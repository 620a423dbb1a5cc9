//! Gathering, copying and pooling of rows.

use super::{DIMS, check};
use kiln_core::ops::{Copy, Embed, Pool, PoolMode};
use kiln_core::{DType, SharedBytes, quant};

#[test]
fn embed_every_weight_type() {
    for dtype in DType::WEIGHTS {
        let dims: &[usize] = match dtype.block_len() {
            1 => &[1, 15, 63, 64, 65, 576],
            32 => &[32, 96, 576],
            _ => &[256, 768],
        };
        for (&dim, output) in dims.iter().flat_map(|dim| DType::FLOATS.map(|y| (dim, y))) {
            check(&format!("embed {dtype} to {output} [7, {dim}]"), 2e-7, |make| {
                let row_bytes = dtype.row_bytes(dim).unwrap();
                let mut rows = vec![0; 7 * row_bytes];
                for row in rows.chunks_exact_mut(row_bytes) {
                    quant::quantize_row(dtype, &make.random.values(dim, 3.0), row).unwrap();
                }
                let weight = make.device.import(dtype, [7, dim], SharedBytes::from_vec(rows))?;
                let ids = make.device.upload(&[3u32, 0, 6, 7, 3, u32::MAX, 1], [7])?;
                let y = [make.output(output, [7, dim])?, make.output(output, [7, dim])?];
                let mut rec = make.device.record();
                rec.push(Embed { weight: &weight, ids: &ids, output: &y[0], scale: 1.0 })?;
                rec.push(Embed { weight: &weight, ids: &ids, output: &y[1], scale: 22.6 })?;
                rec.finish()?.run()?;
                Ok(y.into())
            });
        }
    }
}

#[test]
fn embed_from_strided_rows() {
    check("embed strided", 0.0, |make| {
        let weight = make.strided(DType::F32, [9, 63])?;
        let ids = make.device.upload(&[8u32, 2, 2], [3])?;
        let output = make.output(DType::F32, [3, 63])?;
        let mut rec = make.device.record();
        rec.push(Embed { weight: &weight, ids: &ids, output: &output, scale: 1.0 })?;
        rec.finish()?.run()?;
        Ok(vec![output])
    });
}

#[test]
fn copies_of_any_strides_and_types() {
    for (from, to) in DType::FLOATS.iter().flat_map(|from| DType::FLOATS.map(|to| (*from, to))) {
        check(&format!("copy {from} to {to}"), 0.0, |make| {
            let mut outputs = Vec::new();
            let mut rec = make.device.record();
            for dim in DIMS {
                let permuted = make.float(from, [2, 3, 4, dim + 1])?.slice(3, 1..dim + 1)?;
                let permuted = permuted.transpose(0, 2)?;
                let output = make.output(to, [4, 3, 2, dim])?;
                rec.push(Copy { input: &permuted, output: &output })?;
                outputs.push(output);
                let packed = make.float(from, [dim, 5])?;
                let output = make.output(to, [dim, 9])?.slice(1, 3..8)?;
                rec.push(Copy { input: &packed, output: &output })?;
                outputs.push(output);
            }
            for shape in [[1, 50_000], [500, 100]] {
                let long = make.float(from, shape)?;
                let output = make.output(to, shape)?;
                rec.push(Copy { input: &long, output: &output })?;
                outputs.push(output);
            }
            rec.finish()?.run()?;
            Ok(outputs)
        });
    }
}

#[test]
fn copies_of_integers() {
    check("copy u32 and u8", 0.0, |make| {
        let words: Vec<u32> = (0..3 * 5 * 7).map(|i| u32::MAX - i).collect();
        let bytes: Vec<u8> = (0..3 * 5 * 7).map(|i| i as u8).collect();
        let words = make.device.upload(&words, [3, 5, 7])?.transpose(0, 1)?;
        let bytes = make.device.upload(&bytes, [3, 5, 7])?.transpose(0, 1)?;
        let outputs = vec![
            make.device.tensor(DType::U32, [5, 3, 7])?,
            make.device.tensor(DType::U8, [5, 3, 7])?,
        ];
        let mut rec = make.device.record();
        rec.push(Copy { input: &words, output: &outputs[0] })?;
        rec.push(Copy { input: &bytes, output: &outputs[1] })?;
        rec.finish()?.run()?;
        Ok(outputs)
    });
}

#[test]
fn pools() {
    for (x, dim) in DType::FLOATS.iter().flat_map(|x| DIMS.map(|dim| (*x, dim))) {
        check(&format!("pool {x} {dim}"), 1e-6, |make| {
            let input = make.float(x, [6, 5, dim + 3])?.slice(2, 3..dim + 3)?;
            let lengths = make.device.upload(&[1u32, 5, 0, 6, u32::MAX, 3], [6])?;
            let mut outputs = Vec::new();
            let mut rec = make.device.record();
            for mode in [PoolMode::Mean, PoolMode::Cls, PoolMode::Last] {
                let output = make.output(x, [6, dim])?;
                rec.push(Pool { input: &input, lengths: &lengths, output: &output, mode })?;
                outputs.push(output);
            }
            rec.finish()?.run()?;
            Ok(outputs)
        });
    }
}

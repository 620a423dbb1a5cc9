//! Attention and the cache against the f64 reference, on every instruction set of this machine.

mod cached;
mod flash;
mod kv_append;

use half::{bf16, f16};
use kiln_core::ops::Op;
use kiln_core::quant::{dequantize_row, quantize_row};
use kiln_core::{DType, Device, Shape, Tensor};
use kiln_cpu::{Config, instruction_sets};

/// A seeded generator (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Values in -2..2.
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 * 4.0 - 2.0).collect()
    }
}

/// The CPU with an instruction set and a number of threads.
fn cpu(isa: &str, threads: usize) -> Device {
    let config = Config { threads: Some(threads), instruction_set: Some(isa.to_owned()) };
    kiln_cpu::device(config).unwrap()
}

/// A tensor of any type with these values.
fn tensor(device: &Device, dtype: DType, shape: impl Into<Shape>, values: &[f32]) -> Tensor {
    let tensor = device.tensor(dtype, shape).unwrap();
    tensor.write_bytes(&encode(dtype, values)).unwrap();
    tensor
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::U8 => values.iter().map(|&x| x as u8).collect(),
        dtype => {
            let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
            quantize_row(dtype, values, &mut bytes).unwrap();
            bytes
        }
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes()];
    tensor.read_bytes(&mut bytes).unwrap();
    bytes
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let mut values = vec![0.0; tensor.values()];
    dequantize_row(tensor.dtype(), &bytes(tensor), &mut values).unwrap();
    values
}

fn run(device: &Device, ops: Vec<Op<Tensor>>) {
    let mut rec = device.record();
    ops.into_iter().for_each(|op| rec.push(op).unwrap());
    rec.finish().unwrap().run().unwrap();
}

/// Compares with the reference: `tolerance` is for f32; rounding to a 16-bit type can end on either
/// side of a tie.
#[track_caller]
fn assert_close(got: &Tensor, expected: &[f64], tolerance: f64, what: &str) {
    let unit = got.dtype().unit_roundoff().unwrap();
    let largest = expected.iter().filter(|x| !x.is_nan()).fold(0.0f64, |max, x| max.max(x.abs()));
    for (index, (got, expected)) in values(got).iter().zip(expected).enumerate() {
        let close = (got.is_nan() && expected.is_nan())
            || (got - expected).abs() <= tolerance * largest + 2.02 * unit * expected.abs();
        assert!(close, "{what}: value {index}: {got}, expected {expected}");
        assert!(*expected != 0.0 || *got == 0.0, "{what}: value {index}: {got}, expected 0");
    }
}

/// A device of every instruction set.
fn every_set(threads: usize) -> Vec<Device> {
    instruction_sets().into_iter().map(|isa| cpu(isa, threads)).collect()
}

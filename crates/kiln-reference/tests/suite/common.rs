//! Devices, data and comparisons.

use half::{bf16, f16};
use kiln_core::ops::Op;
use kiln_core::quant::{dequantize_row, quantize_row};
use kiln_core::{DType, Device, OpError, Shape, Tensor};

/// A reference device with short ways to fill and read tensors.
pub(crate) struct Lab {
    pub(crate) device: Device,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { device: kiln_reference::device() }
    }

    /// A tensor of zeros.
    pub(crate) fn zeros(&self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        self.device.tensor(dtype, shape).unwrap()
    }

    /// A tensor of any weight type, or u8 or u32, with these values.
    pub(crate) fn of(&self, dtype: DType, values: &[f64], shape: impl Into<Shape>) -> Tensor {
        let tensor = self.zeros(dtype, shape);
        assert_eq!(values.len(), tensor.values());
        set(&tensor, values);
        tensor
    }

    pub(crate) fn f32(&self, values: &[f64], shape: impl Into<Shape>) -> Tensor {
        self.of(DType::F32, values, shape)
    }

    /// Ids, positions or lengths.
    pub(crate) fn u32(&self, values: &[u32]) -> Tensor {
        self.device.upload(values, [values.len()]).unwrap()
    }

    /// Records and runs one operation.
    pub(crate) fn run(&self, op: impl Into<Op<Tensor>>) {
        let mut rec = self.device.record();
        rec.push(op).unwrap();
        rec.finish().unwrap().run().unwrap();
    }

    /// The error with which an operation is refused.
    pub(crate) fn refused(&self, op: impl Into<Op<Tensor>>) -> OpError {
        match self.device.record().push(op) {
            Err(kiln_core::Error::Op(error)) => error,
            other => panic!("expected an OpError, got {other:?}"),
        }
    }
}

/// Writes values, rounded by way of f32, which is exact for the values that tests choose.
pub(crate) fn set(tensor: &Tensor, values: &[f64]) {
    let bytes = match tensor.dtype() {
        DType::U32 => values.iter().flat_map(|&x| (x as u32).to_le_bytes()).collect(),
        DType::U8 => values.iter().map(|&x| x as u8).collect(),
        DType::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f64(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
        dtype => {
            let mut bytes = vec![0; tensor.bytes()];
            let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
            quantize_row(dtype, &values, &mut bytes).unwrap();
            bytes
        }
    };
    tensor.write_bytes(&bytes).unwrap();
}

/// The bytes of a tensor: what "the same bits" compares.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes()];
    tensor.read_bytes(&mut bytes).unwrap();
    bytes
}

/// The exact values of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    let bytes = bits(tensor);
    match tensor.dtype() {
        DType::U8 => bytes.into_iter().map(f64::from).collect(),
        DType::U32 => tensor.to_vec::<u32>().unwrap().into_iter().map(f64::from).collect(),
        dtype => {
            let mut values = vec![0.0; tensor.values()];
            dequantize_row(dtype, &bytes, &mut values).unwrap();
            values
        }
    }
}

/// Checks values of a float tensor to one rounding of its type.
#[track_caller]
pub(crate) fn assert_close(tensor: &Tensor, expected: &[f64]) {
    let unit = tensor.dtype().unit_roundoff().unwrap();
    let got = values(tensor);
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let close = (got - expected).abs() <= 1.001 * unit * expected.abs() + 1e-7;
        assert!(close, "value {index}: {got}, expected {expected}");
    }
}

/// A seeded generator (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Values in -2..2 that f16 holds exactly.
    pub(crate) fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.below(4096) as f64 / 1024.0 - 2.0).collect()
    }

    /// Values in -2..2 with all bits of an f32 in use.
    pub(crate) fn full_values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0).collect()
    }
}

//! Operations on rows against the f64 reference, on every instruction set of this machine and
//! with one and two threads, which must give the same bits.

mod elementwise;
mod fusion;
mod head_norm_rope;
mod moe;
mod norms;
mod rows;
mod sampling;

use half::{bf16, f16};
use kiln_core::{DType, Device, Result, Shape, Tensor};
use kiln_cpu::{Config, instruction_sets};
use std::sync::LazyLock;

/// Row lengths around vectors, and ragged ones.
const DIMS: [usize; 9] = [1, 3, 15, 16, 17, 63, 64, 576, 1000];

/// Seeded values.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn below(&mut self, limit: u32) -> u32 {
        ((self.next() + 1.0) / 2.0 * limit as f32) as u32 % limit
    }

    fn values(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| self.next() * size).collect()
    }
}

/// What makes the tensors of a case on a device.
struct Maker<'a> {
    device: &'a Device,
    random: Random,
}

impl Maker<'_> {
    /// Values of a float type.
    fn put(&self, dtype: DType, shape: impl Into<Shape>, values: &[f32]) -> Result<Tensor> {
        let shape = shape.into();
        match dtype {
            DType::F16 => {
                let values: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
                self.device.upload(&values, shape)
            }
            DType::BF16 => {
                let values: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
                self.device.upload(&values, shape)
            }
            _ => self.device.upload(values, shape),
        }
    }

    /// Random values up to 2.
    fn float(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        self.sized(dtype, shape, 2.0)
    }

    /// Random values up to `size`.
    fn sized(&mut self, dtype: DType, shape: impl Into<Shape>, size: f32) -> Result<Tensor> {
        let shape = shape.into();
        let values = self.random.values(shape.iter().product(), size);
        self.put(dtype, shape, &values)
    }

    /// Random values as the middle of longer rows.
    fn strided(&mut self, dtype: DType, [rows, dim]: [usize; 2]) -> Result<Tensor> {
        self.float(dtype, [rows, dim + 5])?.slice(1, 2..dim + 2)
    }

    /// NaN.
    fn output(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        self.put(dtype, shape, &vec![f32::NAN; shape.iter().product()])
    }
}

/// Values of a tensor of any plain type.
fn values(tensor: &Tensor) -> Vec<f64> {
    fn all<T: kiln_core::Element>(tensor: &Tensor, to: impl Fn(T) -> f64) -> Vec<f64> {
        tensor.to_vec().unwrap().into_iter().map(to).collect()
    }
    match tensor.dtype() {
        DType::F16 => all(tensor, |x: f16| x.to_f64()),
        DType::BF16 => all(tensor, |x: bf16| x.to_f64()),
        DType::U32 => all(tensor, |x: u32| f64::from(x)),
        DType::U8 => all(tensor, |x: u8| f64::from(x)),
        _ => all(tensor, |x: f32| f64::from(x)),
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes()];
    tensor.read_bytes(&mut bytes).unwrap();
    bytes
}

/// Devices of every instruction set, of one and two threads.
static DEVICES: LazyLock<Vec<(&'static str, [Device; 2])>> = LazyLock::new(|| {
    let open = |name: &str, threads| {
        let config = Config { threads: Some(threads), instruction_set: Some(name.to_owned()) };
        kiln_cpu::device(config).unwrap()
    };
    instruction_sets().into_iter().map(|name| (name, [open(name, 1), open(name, 2)])).collect()
});

/// Runs a case, which makes its tensors, runs its operations and returns the outputs, on the
/// reference and on every device. Errors are at most `bound` times the largest value, or 1e-30, and
/// for half types one unit in the last place more.
fn check(case: &str, bound: f64, run: impl Fn(&mut Maker<'_>) -> Result<Vec<Tensor>>) {
    let on = |device: &Device| {
        run(&mut Maker { device, random: Random(7) }).unwrap_or_else(|e| panic!("{case}: {e}"))
    };
    let reference = kiln_reference::device();
    let expected = on(&reference);
    for (name, [one, two]) in DEVICES.iter() {
        let (one, two) = (on(one), on(two));
        for (index, (got, expected)) in one.iter().zip(&expected).enumerate() {
            let label = format!("{case}, {name}, output {index}");
            assert_eq!(bytes(got), bytes(&two[index]), "{label}: one and two threads");
            compare(&label, bound, got, expected);
        }
    }
}

fn compare(label: &str, bound: f64, got: &Tensor, expected: &Tensor) {
    let (got_values, expected) = (values(got), values(expected));
    let size = expected.iter().filter(|x| x.is_finite()).fold(0f64, |max, x| max.max(x.abs()));
    let roundoff = match got.dtype() {
        DType::F16 | DType::BF16 => got.dtype().unit_roundoff().unwrap_or(0.0),
        _ => 0.0,
    };
    for (index, (got, expected)) in got_values.iter().zip(&expected).enumerate() {
        let error = (got - expected).abs();
        let close = error <= bound * size + 2.0 * roundoff * expected.abs() + 1e-30;
        let same = got == expected || got.is_nan() && expected.is_nan();
        assert!(close || same, "{label}, value {index}: {got:e}, expected {expected:e}");
    }
}

//! Appending to a cache.

use crate::{Rng, bytes, every_set, run, tensor, values};
use kiln_core::ops::KvAppend;
use kiln_core::{DType, Device, Tensor};

const FLOATS: [DType; 3] = DType::FLOATS;
const CACHES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0];

/// Tokens appended to a cache.
#[derive(Clone, Copy, Debug)]
struct Append {
    tokens: usize,
    start: u32,
    capacity: usize,
    dim: usize,
    ring: bool,
    dtype: DType,
    cache: DType,
}

impl Append {
    /// Appends to a cache of ones.
    fn run(self, device: &Device) -> Tensor {
        const HEADS: usize = 3;
        let Self { tokens, capacity, dim, .. } = self;
        let input = Rng(11).values(tokens * HEADS * dim);
        let input = tensor(device, self.dtype, [tokens, HEADS, dim], &input);
        let ones = vec![1.0; HEADS * capacity * dim];
        let cache = tensor(device, self.cache, [HEADS, capacity, dim], &ones);
        let start = device.upload(&[self.start], [1]).unwrap();
        let op = KvAppend { input: &input, start: &start, cache: &cache, ring: self.ring };
        run(device, vec![op.into()]);
        cache
    }

    /// The bits of the reference.
    #[track_caller]
    fn check(self, devices: &[Device]) {
        let expected = bytes(&self.run(&kiln_reference::device()));
        for device in devices {
            let got = bytes(&self.run(device));
            assert!(got == expected, "{} {self:?}", device.description());
        }
    }
}

#[test]
fn every_pair_of_types() {
    let devices = every_set(1);
    for dtype in FLOATS {
        for cache in CACHES {
            for dim in [32, 64, 160] {
                for (tokens, start) in [(1, 0), (1, 8), (5, 2), (200, 10)] {
                    let (ring, capacity) = (false, 256);
                    let case = Append { tokens, start, capacity, dim, ring, dtype, cache };
                    case.check(&devices);
                }
            }
        }
    }
}

#[test]
fn ragged_heads() {
    let devices = every_set(2);
    for dtype in FLOATS {
        for cache in FLOATS {
            for dim in [1, 7, 24, 80] {
                let (tokens, start, capacity, ring) = (9, 3, 20, false);
                Append { tokens, start, capacity, dim, ring, dtype, cache }.check(&devices);
            }
        }
    }
}

#[test]
fn past_the_capacity_and_around_it() {
    let devices = every_set(1);
    for ring in [false, true] {
        for capacity in [1, 7, 50] {
            for tokens in [1, 7, 60] {
                for start in [0, 1, 6, 49, 1000, u32::MAX] {
                    for cache in [DType::F16, DType::Q8_0] {
                        let (dim, dtype) = (32, DType::F32);
                        let case = Append { tokens, start, capacity, dim, ring, dtype, cache };
                        case.check(&devices);
                    }
                }
            }
        }
    }
}

#[test]
fn values_that_are_not_finite() {
    let devices = every_set(1);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (dtype, cache) in [(DType::F32, DType::F16), (DType::BF16, DType::Q8_0)] {
            for device in &devices {
                let mut x = vec![1.0; 64];
                x[5] = special;
                let input = tensor(device, dtype, [1, 1, 64], &x);
                let cache = device.tensor(cache, [1, 1, 64]).unwrap();
                let start = device.upload(&[0u32], [1]).unwrap();
                let op = KvAppend { input: &input, start: &start, cache: &cache, ring: false };
                run(device, vec![op.into()]);
                let got = values(&cache);
                let whole_block = cache.dtype() == DType::Q8_0;
                for (i, got) in got.iter().enumerate() {
                    if i == 5 || whole_block && i < 32 {
                        let kept = !whole_block && special.is_infinite();
                        assert!(if kept { *got == f64::from(special) } else { got.is_nan() });
                    } else {
                        assert!((got - 1.0).abs() < 1e-3);
                    }
                }
            }
        }
    }
}

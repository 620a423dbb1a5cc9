//! Appending to a key-value cache.

use crate::common::*;
use half::f16;
use kiln_core::ops::*;
use kiln_core::{DType, Tensor};

/// A cache `[1, capacity, 8]` whose rows hold `fill`.
fn cache(lab: &Lab, capacity: usize, fill: f64) -> Tensor {
    lab.f32(&vec![fill; capacity * 8], [1, capacity, 8])
}

/// Tokens `[n, 1, 8]`, the values of a token all `first`, `first + 1`, ...
fn tokens(lab: &Lab, first: u32, n: usize) -> Tensor {
    let values: Vec<f64> = (0..n * 8).map(|i| f64::from(first) + (i / 8) as f64).collect();
    lab.f32(&values, [n, 1, 8])
}

fn append(lab: &Lab, input: &Tensor, start: u32, cache: &Tensor, ring: bool) {
    lab.run(KvAppend { input, start: &lab.u32(&[start]), cache, ring });
}

/// The first value of every slot.
fn slots(cache: &Tensor) -> Vec<f64> {
    values(cache).chunks(8).map(|row| row[0]).collect()
}

#[test]
fn linear_drops_what_is_past_the_capacity() {
    let lab = Lab::new();
    let cache = cache(&lab, 4, -1.0);
    append(&lab, &tokens(&lab, 10, 2), 1, &cache, false);
    assert_eq!(slots(&cache), [-1.0, 10.0, 11.0, -1.0]);
    append(&lab, &tokens(&lab, 20, 3), 3, &cache, false);
    assert_eq!(slots(&cache), [-1.0, 10.0, 11.0, 20.0]);
    append(&lab, &tokens(&lab, 30, 3), 4, &cache, false);
    append(&lab, &tokens(&lab, 30, 3), u32::MAX, &cache, false);
    assert_eq!(slots(&cache), [-1.0, 10.0, 11.0, 20.0]);
}

#[test]
fn ring_wraps_and_keeps_the_last_tokens() {
    let lab = Lab::new();
    let cache = cache(&lab, 4, -1.0);
    append(&lab, &tokens(&lab, 0, 3), 0, &cache, true);
    assert_eq!(slots(&cache), [0.0, 1.0, 2.0, -1.0]);
    append(&lab, &tokens(&lab, 3, 3), 3, &cache, true);
    assert_eq!(slots(&cache), [4.0, 5.0, 2.0, 3.0]);
    // Ten tokens at position 6: 12 to 15 stay, each in the slot of its position.
    append(&lab, &tokens(&lab, 6, 10), 6, &cache, true);
    assert_eq!(slots(&cache), [12.0, 13.0, 14.0, 15.0]);
    append(&lab, &tokens(&lab, 50, 1), 4_000_000_001, &cache, true);
    assert_eq!(slots(&cache), [12.0, 50.0, 14.0, 15.0]);
}

#[test]
fn heads_are_permuted_and_types_converted() {
    let (lab, mut rng) = (Lab::new(), Rng(30));
    let data = rng.values(3 * 2 * 8);
    let start = lab.u32(&[1]);
    for from in DType::FLOATS {
        for to in DType::FLOATS {
            let x = lab.of(from, &data, [3, 2, 8]);
            let cache = lab.zeros(to, [2, 5, 8]);
            lab.run(KvAppend { input: &x, start: &start, cache: &cache, ring: false });
            let x = values(&x);
            let mut expected = vec![0.0; 2 * 5 * 8];
            for t in 0..3 {
                for h in 0..2 {
                    let (to, from) = ((h * 5 + t + 1) * 8, (t * 2 + h) * 8);
                    expected[to..to + 8].copy_from_slice(&x[from..from + 8]);
                }
            }
            assert_close(&cache, &expected);
        }
    }
}

#[test]
fn q8_0_blocks_by_hand() {
    let lab = Lab::new();
    let mut x = [0.0; 64];
    // Scale 1, then scale 0.5 where -63.5 is the largest.
    (x[0], x[1], x[2], x[3]) = (127.0, -3.25, 0.5, 1.5);
    (x[32], x[33]) = (-63.5, 20.1);
    let cache = lab.zeros(DType::Q8_0, [1, 2, 64]);
    let start = lab.u32(&[1]);
    let input = lab.f32(&x, [1, 1, 64]);
    lab.run(KvAppend { input: &input, start: &start, cache: &cache, ring: false });
    let bytes = bits(&cache);
    assert!(bytes[..68].iter().all(|&b| b == 0), "slot 0 is kept");
    let blocks: Vec<_> = bytes[68..].chunks(34).collect();
    assert_eq!(blocks[0][..2], f16::from_f32(1.0).to_le_bytes());
    assert_eq!(blocks[0][2..6].iter().map(|&b| b as i8).collect::<Vec<_>>(), [127, -3, 0, 2]);
    assert_eq!(blocks[1][..2], f16::from_f32(0.5).to_le_bytes());
    assert_eq!(blocks[1][2..4].iter().map(|&b| b as i8).collect::<Vec<_>>(), [-127, 40]);
}

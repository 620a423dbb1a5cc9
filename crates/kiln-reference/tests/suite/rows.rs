//! Embedding, copies and pooling.

use crate::common::*;
use kiln_core::ops::*;
use kiln_core::{DType, SharedBytes};

#[test]
fn embed_gathers_from_every_weight_type() {
    let mut rng = Rng(10);
    for dtype in DType::WEIGHTS {
        let lab = Lab::new();
        let dim = dtype.block_len().max(4);
        let table = lab.of(dtype, &rng.values(3 * dim), [3, dim]);
        let decoded = values(&table);
        let output = lab.zeros(DType::F32, [4, dim]);
        let ids = lab.u32(&[2, 0, 2, 3]);
        lab.run(Embed { weight: &table, ids: &ids, output: &output, scale: 1.5 });
        let got = values(&output);
        for (row, id) in [2, 0, 2].into_iter().enumerate() {
            for c in 0..dim {
                assert_eq!(got[row * dim + c], (decoded[id * dim + c] * 1.5) as f32 as f64);
            }
        }
        assert!(got[3 * dim..].iter().all(|x| x.is_nan()), "an id of 3 rows is out of range");
    }
}

#[test]
fn embed_reads_an_imported_weight_and_any_id() {
    let lab = Lab::new();
    let bytes = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let table = lab.device.import(DType::F32, [2, 2], SharedBytes::from_vec(bytes)).unwrap();
    let ids = lab.u32(&[1, u32::MAX]);
    let output = lab.zeros(DType::BF16, [2, 2]);
    lab.run(Embed { weight: &table, ids: &ids, output: &output, scale: 1.0 });
    let got = values(&output);
    assert_eq!(got[..2], [3.0, 4.0]);
    assert!(got[2..].iter().all(|x| x.is_nan()));
}

#[test]
fn copy_casts_permutes_and_packs() {
    let lab = Lab::new();
    let x: Vec<f64> = (0..24).map(|i| i as f64 / 4.0).collect();
    for from in DType::FLOATS {
        for to in DType::FLOATS {
            let t = lab.of(from, &x, [2, 3, 4]);
            let y = lab.zeros(to, [3, 2, 4]);
            lab.run(Copy { input: &t.transpose(0, 1).unwrap(), output: &y });
            let expected: Vec<f64> = (0..3)
                .flat_map(|b| (0..2).flat_map(move |a| (0..4).map(move |c| (a, b, c))))
                .map(|(a, b, c)| x[12 * a + 4 * b + c])
                .collect();
            assert_eq!(values(&y), expected, "{from} to {to}");
        }
    }
    let t = lab.f32(&x, [4, 6]);
    let packed = lab.zeros(DType::F32, [4, 2]);
    lab.run(Copy { input: &t.slice(1, 3..5).unwrap(), output: &packed });
    assert_eq!(values(&packed), [0.75, 1.0, 2.25, 2.5, 3.75, 4.0, 5.25, 5.5]);
    // Into columns: the values beside them stay.
    lab.run(Copy { input: &packed, output: &t.slice(1, 0..2).unwrap() });
    assert_eq!(values(&t)[..6], [0.75, 1.0, 0.5, 0.75, 1.0, 1.25]);
}

#[test]
fn copy_keeps_integers_and_rounds_floats_once() {
    let lab = Lab::new();
    let ids = lab.device.upload(&[0u32, 1 << 31, u32::MAX], [3]).unwrap();
    let copy = lab.zeros(DType::U32, [3]);
    lab.run(Copy { input: &ids, output: &copy });
    assert_eq!(copy.to_vec::<u32>().unwrap(), [0, 1 << 31, u32::MAX]);
    let mask = lab.device.upload(&[0u8, 255, 1], [3]).unwrap();
    let copy = lab.zeros(DType::U8, [3]);
    lab.run(Copy { input: &mask, output: &copy });
    assert_eq!(copy.to_vec::<u8>().unwrap(), [0, 255, 1]);

    let edges = [65519.0, 65520.0, -1e9, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 2f64.powi(-25)];
    let x = lab.f32(&edges, [6]);
    let y = lab.zeros(DType::F16, [6]);
    lab.run(Copy { input: &x, output: &y });
    let (inf, u) = (f64::INFINITY, 1.0 / 1024.0);
    assert_eq!(values(&y), [65504.0, inf, -inf, 1.0, 1.0 + 2.0 * u, 0.0]);
}

#[test]
fn pool_modes_and_lengths() {
    let lab = Lab::new();
    let nan = f64::NAN;
    // The third token of the first sequence is padding and must not be read into a mean.
    let x = lab.f32(
        &[
            1.0, 2.0, 3.0, -4.0, nan, nan, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0,
            0.0,
        ],
        [3, 3, 2],
    );
    let lengths = lab.u32(&[2, 3, 1]);
    let y = lab.zeros(DType::F32, [3, 2]);
    for (mode, expected) in [
        (PoolMode::Mean, [2.0, -1.0, 7.0, 5.0, 0.0, 0.0]),
        (PoolMode::Cls, [1.0, 2.0, 5.0, 6.0, 0.0, 0.0]),
        (PoolMode::Last, [3.0, -4.0, 9.0, 1.0, 0.0, 0.0]),
    ] {
        lab.run(Pool { input: &x, lengths: &lengths, output: &y, mode });
        assert_eq!(values(&y), expected, "{mode:?}");
    }
    for mode in [PoolMode::Mean, PoolMode::Cls, PoolMode::Last] {
        let lengths = lab.u32(&[0, 4, 3]);
        lab.run(Pool { input: &x, lengths: &lengths, output: &y, mode });
        let got = values(&y);
        assert!(got[..4].iter().all(|x| x.is_nan()), "{mode:?}: {got:?}");
        assert_eq!(got[4..], [0.0, 0.0]);
    }
}

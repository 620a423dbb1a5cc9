//! Attention over given keys and values.

use crate::common::*;
use kiln_core::ops::*;
use kiln_core::{DType, Shape, Tensor};

const D: usize = 8;

/// Extents of a problem.
#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    q_len: usize,
    kv_len: usize,
}

struct Problem {
    lab: Lab,
    dims: Dims,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
}

impl Problem {
    fn new(seed: u64, dims: Dims) -> Self {
        Self::with_dtype(seed, dims, DType::F16)
    }

    fn with_dtype(seed: u64, dims: Dims, dtype: DType) -> Self {
        let (lab, mut rng) = (Lab::new(), Rng(seed));
        let Dims { batch, heads, kv_heads, q_len, kv_len } = dims;
        let mut random =
            |shape: [usize; 4]| lab.of(dtype, &rng.values(shape.iter().product()), shape);
        let q = random([batch, heads, q_len, D]);
        let [k, v] = [(); 2].map(|()| random([batch, kv_heads, kv_len, D]));
        let output = lab.zeros(dtype, [batch, heads, q_len, D]);
        Self { lab, dims, q, k, v, output }
    }

    fn op(&self) -> FlashAttention<&Tensor> {
        FlashAttention {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            mask: None,
            blocks: None,
            sinks: None,
            output: &self.output,
            layout: AttentionLayout::HeadMajor,
            scale: 0.35,
            causal: false,
            window: None,
            softcap: None,
            q_offset: None,
            tile: [1, 1],
        }
    }

    /// Checks the output against the formula: `score` turns `(b, h, i, j, scaled dot product)` into
    /// the masked score, `None` where the key is masked.
    #[track_caller]
    fn check(&self, sinks: &[f64], score: impl Fn([usize; 4], f64) -> Option<f64>) {
        let (q, k, v) = (values(&self.q), values(&self.k), values(&self.v));
        let Dims { batch, heads, kv_heads, q_len, kv_len } = self.dims;
        let mut expected = Vec::new();
        for (b, h, i) in
            (0..batch * heads * q_len).map(|n| (n / q_len / heads, n / q_len % heads, n % q_len))
        {
            let kv = (b * kv_heads + h * kv_heads / heads) * kv_len;
            let mut row = [0.0; D];
            let mut total = sinks.get(h).map_or(0.0, |sink| sink.exp());
            for j in 0..kv_len {
                let at = ((b * heads + h) * q_len + i) * D;
                let dot: f64 = (0..D).map(|d| q[at + d] * k[(kv + j) * D + d]).sum();
                let Some(score) = score([b, h, i, j], f64::from(0.35f32) * dot) else { continue };
                total += score.exp();
                (0..D).for_each(|d| row[d] += score.exp() * v[(kv + j) * D + d]);
            }
            expected.extend(row.map(|x| if x == 0.0 { 0.0 } else { x / total }));
        }
        assert_close(&self.output, &expected);
    }
}

const DIMS: Dims = Dims { batch: 2, heads: 4, kv_heads: 2, q_len: 5, kv_len: 9 };

#[test]
fn two_keys_by_hand() {
    let lab = Lab::new();
    let mut q = [0.0; D];
    q[0] = 1.0;
    let mut k = [0.0; 2 * D];
    k[D] = 2.0;
    let v: Vec<f64> = [vec![4.0; D], vec![-8.0; D]].concat();
    let output = lab.zeros(DType::F16, [1, 1, 1, D]);
    let shape = Shape::from([1, 1, 2, D]);
    let problem = Problem {
        dims: Dims { batch: 1, heads: 1, kv_heads: 1, q_len: 1, kv_len: 2 },
        q: lab.of(DType::F16, &q, [1, 1, 1, D]),
        k: lab.of(DType::F16, &k, shape),
        v: lab.of(DType::F16, &v, shape),
        output,
        lab,
    };
    // Scores 0 and 2 * (ln 3) / 2: weights 1/4 and 3/4.
    let scale = 3f32.ln() / 2.0;
    problem.lab.run(FlashAttention { scale, ..problem.op() });
    assert_close(&problem.output, &[-5.0; D]);
}

#[test]
fn unmasked_grouped_of_both_types() {
    for dtype in [DType::F16, DType::BF16] {
        let p = Problem::with_dtype(50, DIMS, dtype);
        p.lab.run(p.op());
        p.check(&[], |_, s| Some(s));
    }
}

#[test]
fn causal_with_default_and_given_offset() {
    let p = Problem::new(51, DIMS);
    p.lab.run(FlashAttention { causal: true, ..p.op() });
    p.check(&[], |[_, _, i, j], s| (j <= i + 4).then_some(s));
    for offset in [0, 2, 7, 100] {
        p.lab.run(FlashAttention { causal: true, q_offset: Some(offset), ..p.op() });
        p.check(&[], |[_, _, i, j], s| (j <= i + offset).then_some(s));
    }
    let tall = Problem::new(52, Dims { q_len: 9, kv_len: 3, ..DIMS });
    tall.lab.run(FlashAttention { causal: true, q_offset: Some(0), ..tall.op() });
    tall.check(&[], |[_, _, i, j], s| (j <= i).then_some(s));
}

#[test]
fn window_with_and_without_causality() {
    let p = Problem::new(53, DIMS);
    for window in [1, 3, 50] {
        let in_window = move |i: usize, j: usize| (i + 4) as isize - (j as isize) < window as isize;
        p.lab.run(FlashAttention { window: Some(window), ..p.op() });
        p.check(&[], |[_, _, i, j], s| in_window(i, j).then_some(s));
        p.lab.run(FlashAttention { window: Some(window), causal: true, ..p.op() });
        p.check(&[], |[_, _, i, j], s| (in_window(i, j) && j <= i + 4).then_some(s));
    }
}

#[test]
fn softcap_comes_before_the_mask() {
    let p = Problem::new(54, DIMS);
    let bias = Rng(55).values(5 * 9);
    let mask = p.lab.of(DType::F16, &bias, [5, 9]);
    let softcap = Some(0.75);
    p.lab.run(FlashAttention { softcap, mask: Some(&mask), causal: true, ..p.op() });
    p.check(&[], |[_, _, i, j], s| {
        (j <= i + 4).then_some(0.75 * (s / 0.75).tanh() + bias[9 * i + j])
    });
}

#[test]
fn bool_masks_of_rank_2_and_4() {
    let p = Problem::new(56, DIMS);
    let mut rng = Rng(57);
    let open: Vec<f64> = (0..2 * 4 * 5 * 9).map(|_| rng.below(2) as f64).collect();
    let mask = p.lab.of(DType::U8, &open, [2, 4, 5, 9]);
    for causal in [false, true] {
        p.lab.run(FlashAttention { mask: Some(&mask), causal, ..p.op() });
        p.check(&[], |[b, h, i, j], s| {
            let open = open[((b * 4 + h) * 5 + i) * 9 + j] == 1.0;
            (open && (!causal || j <= i + 4)).then_some(s)
        });
    }
    let shared = p.lab.of(DType::U8, &open[..45], [5, 9]);
    p.lab.run(FlashAttention { mask: Some(&shared), ..p.op() });
    p.check(&[], |[_, _, i, j], s| (open[9 * i + j] == 1.0).then_some(s));
}

#[test]
fn additive_masks_of_rank_2_and_4_with_infinite_and_finite_biases() {
    for dtype in [DType::F16, DType::BF16] {
        let p = Problem::with_dtype(58, DIMS, dtype);
        let mut rng = Rng(59);
        let bias: Vec<f64> = (0..2 * 4 * 5 * 9)
            .map(|_| match rng.below(4) {
                0 => f64::NEG_INFINITY,
                n => n as f64 - 2.5,
            })
            .collect();
        let mask = p.lab.of(dtype, &bias, [2, 4, 5, 9]);
        p.lab.run(FlashAttention { mask: Some(&mask), ..p.op() });
        p.check(&[], |[b, h, i, j], s| Some(s + bias[((b * 4 + h) * 5 + i) * 9 + j]));
        let shared = p.lab.of(dtype, &bias[..45], [5, 9]);
        p.lab.run(FlashAttention { mask: Some(&shared), ..p.op() });
        p.check(&[], |[_, _, i, j], s| Some(s + bias[9 * i + j]));
    }
}

#[test]
fn a_row_of_the_same_large_bias_is_not_masked() {
    let p = Problem::new(60, DIMS);
    p.lab.run(p.op());
    let open = bits(&p.output);
    let mask = p.lab.of(DType::F16, &[-65504.0; 45], [5, 9]);
    p.lab.run(FlashAttention { mask: Some(&mask), ..p.op() });
    assert_close(&p.output, &{
        let bytes = open.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64());
        bytes.collect::<Vec<_>>()
    });
}

#[test]
fn a_fully_masked_row_is_exactly_zero() {
    let p = Problem::new(61, DIMS);
    let sinks = p.lab.f32(&[0.5; 4], [4]);
    for dtype in [DType::U8, DType::F16] {
        let open = if dtype == DType::U8 { [0.0, 1.0] } else { [f64::NEG_INFINITY, 0.0] };
        let values: Vec<f64> = (0..45).map(|n| open[usize::from(n / 9 != 2)]).collect();
        let mask = p.lab.of(dtype, &values, [5, 9]);
        for sinks in [None, Some(&sinks)] {
            p.lab.run(FlashAttention { mask: Some(&mask), sinks, ..p.op() });
            for head in bits(&p.output).chunks(5 * D * 2) {
                let rows: Vec<_> = head.chunks(D * 2).collect();
                assert!(rows[2].iter().all(|&byte| byte == 0));
                assert!(rows[1].iter().any(|&byte| byte != 0));
            }
        }
    }
    // A window that ends before the first key.
    p.lab.run(FlashAttention { window: Some(1), q_offset: Some(20), ..p.op() });
    assert!(bits(&p.output).iter().all(|&byte| byte == 0));
}

#[test]
fn masked_keys_and_values_are_not_looked_at() {
    let p = Problem::new(62, DIMS);
    p.lab.run(FlashAttention { causal: true, q_offset: Some(0), ..p.op() });
    let expected = bits(&p.output);
    for t in [&p.k, &p.v] {
        let tail = t.slice(2, 5..9).unwrap();
        set(&tail, &vec![f64::NAN; tail.values()]);
    }
    p.lab.run(FlashAttention { causal: true, q_offset: Some(0), ..p.op() });
    assert_eq!(bits(&p.output), expected);
}

#[test]
fn sinks_add_to_the_denominator() {
    let p = Problem::new(63, DIMS);
    let sinks = [1.5, -2.0, 0.0, 3.0];
    let tensor = p.lab.f32(&sinks, [4]);
    p.lab.run(FlashAttention { sinks: Some(&tensor), causal: true, ..p.op() });
    p.check(&sinks, |[_, _, i, j], s| (j <= i + 4).then_some(s));
}

#[test]
fn sequence_major_gives_the_same_bits() {
    let p = Problem::new(64, DIMS);
    let sinks = p.lab.f32(&[0.5; 4], [4]);
    let op = FlashAttention { causal: true, sinks: Some(&sinks), ..p.op() };
    p.lab.run(op.clone());
    let seq_major = |t: &Tensor| {
        let view = t.transpose(1, 2).unwrap();
        let copy = p.lab.zeros(t.dtype(), view.shape());
        p.lab.run(Copy { input: &view, output: &copy });
        copy
    };
    let [q, k, v] = [&p.q, &p.k, &p.v].map(seq_major);
    let output = p.lab.zeros(DType::F16, q.shape());
    let layout = AttentionLayout::SeqMajor;
    p.lab.run(FlashAttention { q: &q, k: &k, v: &v, output: &output, layout, ..op });
    assert_eq!(bits(&output), bits(&seq_major(&p.output)));
}

#[test]
fn blocks_classify_tiles() {
    let lab = Lab::new();
    let inf = f64::NEG_INFINITY;
    let bias = [[0.0, 0.0, inf, inf, 0.0], [0.0, -0.0, inf, inf, 1.0], [inf, 0.0, 0.0, 0.0, inf]];
    let bools = bias.map(|row| row.map(|x| if x == inf { 0.0 } else { 1.0 }));
    let blocks = lab.zeros(DType::U8, [1, 1, 2, 3]);
    let additive = lab.of(DType::BF16, bias.as_flattened(), [3, 5]);
    lab.run(FlashAttentionBlocks { mask: &additive, blocks: &blocks, tile: [2, 2] });
    assert_eq!(values(&blocks), [2.0, 0.0, 1.0, 1.0, 2.0, 0.0]);
    let bools = lab.of(DType::U8, bools.as_flattened(), [3, 5]);
    lab.run(FlashAttentionBlocks { mask: &bools, blocks: &blocks, tile: [2, 2] });
    assert_eq!(values(&blocks), [2.0, 0.0, 2.0, 1.0, 2.0, 0.0]);

    let mask = lab.of(DType::U8, &[1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0], [2, 2, 1, 2]);
    let blocks = lab.zeros(DType::U8, [2, 2, 1, 1]);
    lab.run(FlashAttentionBlocks { mask: &mask, blocks: &blocks, tile: [32, 16] });
    assert_eq!(values(&blocks), [2.0, 0.0, 1.0, 1.0]);
}

#[test]
fn the_map_of_blocks_changes_nothing() {
    let p = Problem::new(65, DIMS);
    let mut rng = Rng(66);
    let open: Vec<f64> =
        (0..45).map(|n| if n % 9 < 4 { 0.0 } else { rng.below(2) as f64 }).collect();
    let mask = p.lab.of(DType::U8, &open, [5, 9]);
    let blocks = p.lab.zeros(DType::U8, [1, 1, 3, 3]);
    let tile = [2, 4];
    let op = FlashAttention { mask: Some(&mask), tile, ..p.op() };
    p.lab.run(op.clone());
    let expected = bits(&p.output);
    let mut rec = p.lab.device.record();
    rec.push(FlashAttentionBlocks { mask: &mask, blocks: &blocks, tile }).unwrap();
    rec.push(FlashAttention { blocks: Some(&blocks), ..op }).unwrap();
    rec.finish().unwrap().run().unwrap();
    assert_eq!(bits(&p.output), expected);
}

//! A recording made once serves every token.

use crate::common::*;
use kiln_core::ops::*;
use kiln_core::{DType, Executable, PlanOptions, Tensor};

const VOCAB: usize = 11;
const DIM: usize = 64;
const HEADS: usize = 2;
const CAPACITY: usize = 16;

/// A model of one layer whose sampled token feeds its next step on the device.
struct Model {
    lab: Lab,
    embedding: Tensor,
    projections: [Tensor; 4],
    ids: Tensor,
    positions: Tensor,
    start: Tensor,
    kv_len: Tensor,
    caches: [Tensor; 2],
}

impl Model {
    fn new() -> Self {
        let lab = Lab::new();
        let mut rng = Rng(80);
        let mut weight = |dtype, rows| lab.of(dtype, &rng.values(rows * DIM), [rows, DIM]);
        let embedding = weight(DType::Q8_0, VOCAB);
        let projections = [(); 4].map(|()| weight(DType::Q4_0, DIM));
        let [ids, positions, start, kv_len] = [(); 4].map(|()| lab.u32(&[0]));
        let caches = [(); 2].map(|()| lab.zeros(DType::F16, [HEADS, CAPACITY, DIM / HEADS]));
        Self { embedding, projections, ids, positions, start, kv_len, caches, lab }
    }

    fn record(&self, options: PlanOptions) -> Executable {
        let mut rec = self.lab.device.record();
        let [x, q, k, v, attended, projected, sum, normed] =
            [(); 8].map(|()| rec.temp(DType::F32, [1, DIM]).unwrap());
        let rotated = rec.temp(DType::F32, [1, HEADS, DIM / HEADS]).unwrap();
        let rotated_k = rec.temp(DType::F32, [1, HEADS, DIM / HEADS]).unwrap();
        let logits = rec.temp(DType::F32, [1, VOCAB]).unwrap();
        let heads = |t: &Tensor| t.reshape([1, HEADS, DIM / HEADS]).unwrap();
        let matmul = |input, weight, output| Matmul::<&Tensor> {
            input,
            weight,
            output,
            input_layout: InputLayout::RowMajor,
            precision: Precision::Exact,
        };
        rec.push(Embed { weight: &self.embedding, ids: &self.ids, output: &x, scale: 1.0 })
            .unwrap();
        for (weight, output) in self.projections.iter().zip([&q, &k, &v]) {
            rec.push(matmul(&x, weight, output)).unwrap();
        }
        for (input, output) in [(&q, &rotated), (&k, &rotated_k)] {
            rec.push(HeadNormRope {
                input: &heads(input),
                weight: None,
                positions: Some(&self.positions),
                freq_factors: None,
                cos: None,
                sin: None,
                cache_start: None,
                output: Some(output),
                output_bf16: None,
                output_f32: None,
                cache: None,
                pairing: RopePairing::Leading,
                half: 8,
                theta: 100.0,
                normalize: true,
                eps: 1e-6,
                copy_layout: HeadLayout::TokenMajor,
            })
            .unwrap();
        }
        for (input, cache) in [&rotated_k, &heads(&v)].into_iter().zip(&self.caches) {
            rec.push(KvAppend { input, start: &self.start, cache, ring: false }).unwrap();
        }
        rec.push(CachedAttention {
            q: &rotated,
            k_cache: &self.caches[0],
            v_cache: &self.caches[1],
            kv_len: &self.kv_len,
            sinks: None,
            output: &heads(&attended),
            scale: 0.2,
            window: None,
            softcap: None,
            ring: false,
        })
        .unwrap();
        rec.push(matmul(&attended, &self.projections[3], &projected)).unwrap();
        rec.push(Add { a: &x, b: &projected, output: &sum }).unwrap();
        rec.push(RmsNorm { input: &sum, weight: None, output: &normed, eps: 1e-6 }).unwrap();
        rec.push(matmul(&normed, &self.embedding, &logits)).unwrap();
        rec.push(Argmax { input: &logits, output: &self.ids }).unwrap();
        rec.finish_with(options).unwrap()
    }

    /// The tokens that follow `first`, with a step from `step` for each.
    fn generate<S: std::borrow::Borrow<Executable>>(
        &self,
        first: u32,
        step: impl Fn() -> S,
    ) -> Vec<u32> {
        self.ids.write(&[first]).unwrap();
        (0..CAPACITY as u32)
            .map(|position| {
                self.positions.write(&[position]).unwrap();
                self.start.write(&[position]).unwrap();
                self.kv_len.write(&[position + 1]).unwrap();
                step().borrow().run().unwrap();
                self.ids.to_vec::<u32>().unwrap()[0]
            })
            .collect()
    }
}

#[test]
fn one_recording_replays_for_every_token() {
    let model = Model::new();
    let options = PlanOptions::default();
    let once = model.record(options);
    assert!(once.plan().steps().len() < 15, "rope into the cache and the norm are fused");
    let unfused = model.record(PlanOptions { fuse: false, ..options });
    let mut seen = std::collections::BTreeSet::new();
    for first in 0..VOCAB as u32 {
        let replayed = model.generate(first, || &once);
        let cache = bits(&model.caches[0]);
        assert_eq!(model.generate(first, || model.record(options)), replayed);
        assert_eq!(model.generate(first, || &unfused), replayed);
        assert_eq!(bits(&model.caches[0]), cache);
        assert!(replayed.iter().all(|&id| id < VOCAB as u32));
        seen.insert(replayed);
    }
    assert!(seen.len() > 1, "the first token changes what follows");
}

#[test]
fn two_executables_share_tensors() {
    let lab = Lab::new();
    let x = lab.f32(&[1.0, 2.0], [1, 2]);
    let record = |factor| {
        let mut rec = lab.device.record();
        rec.push(Scale { input: &x, output: &x, factor }).unwrap();
        rec.finish().unwrap()
    };
    let (double, negate) = (record(2.0), record(-1.0));
    double.run().unwrap();
    negate.run().unwrap();
    double.run().unwrap();
    assert_eq!(values(&x), [-4.0, -8.0]);
    x.write(&[1.0f32, 0.5]).unwrap();
    double.run().unwrap();
    assert_eq!(values(&x), [2.0, 1.0]);
}

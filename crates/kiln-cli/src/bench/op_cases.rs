//! The operations that `kiln bench ops` measures, at the shapes of an 8-billion-parameter model.

use kiln::ops::{
    Activation, Add, AddRmsNorm, Argmax, AttentionLayout, CachedAttention, Embed, FlashAttention,
    GatedMatmul, GeluMul, HeadLayout, HeadNormRope, InputLayout, KvAppend, LayerNorm, Matmul,
    MatmulId, Op, Precision, RmsNorm, RmsNormMul, RopePairing, Sample, SiluMul, Softmax,
};
use kiln::prelude::*;
use kiln::quant::quantize_row;
use kiln::{Executable, PlanOptions, Recording, Result, Shape, SharedBytes};

const DIM: usize = 4096;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const VOCAB: usize = 128_256;
const EXPERTS: usize = 8;
/// Rows of a decode step and of a chunk of a prompt.
const ROWS: [usize; 2] = [1, 512];
/// Bytes of weights that no cache holds.
const BEYOND_CACHES: usize = 256 << 20;
const EPS: f32 = 1e-5;

type Build = dyn Fn(&Inputs) -> Result<Executable>;

/// An operation at a shape.
pub(super) struct OpCase {
    pub(super) op: &'static str,
    pub(super) label: String,
    /// Makes a plan whose steps are all this operation.
    pub(super) build: Box<Build>,
}

impl OpCase {
    fn new(
        op: &'static str,
        label: String,
        record: impl Fn(&Inputs, &mut Recording) -> Result<()> + 'static,
    ) -> Self {
        let build = Box::new(move |inputs: &Inputs| {
            let mut recording = inputs.device.record();
            record(inputs, &mut recording)?;
            recording.finish_with(PlanOptions { fuse: false, ..PlanOptions::default() })
        });
        Self { op, label, build }
    }
}

/// Makes tensors with random values.
pub(super) struct Inputs {
    device: Device,
    precision: Precision,
}

impl Inputs {
    pub(super) fn new(device: &Device, precision: Precision) -> Self {
        Self { device: device.clone(), precision }
    }

    /// Bytes of values between -1 and 1; rows repeat after a few.
    fn bytes(&self, dtype: DType, shape: Shape) -> Result<Vec<u8>> {
        const DISTINCT: usize = 16;
        let row = shape.last();
        let rows = shape.values().unwrap_or(0) / row.max(1);
        let possible = || kiln::Error::Shape {
            shape: shape.to_string(),
            dtype,
            problem: "its rows are not whole blocks",
        };
        let row_bytes = dtype.row_bytes(row).ok_or_else(possible)?;
        let mut state = 0x9e37_79b9_u32;
        let mut tile = vec![0; DISTINCT.min(rows) * row_bytes];
        for bytes in tile.chunks_exact_mut(row_bytes) {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            let values: Vec<f32> = (0..row).map(|_| next()).collect();
            quantize_row(dtype, &values, bytes).map_err(|_| possible())?;
        }
        Ok(tile.into_iter().cycle().take(rows * row_bytes).collect())
    }

    fn tensor(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        self.device.upload_bytes(dtype, shape, &self.bytes(dtype, shape)?)
    }

    fn floats(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.tensor(DType::F32, shape)
    }

    fn weight(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        self.device.import(dtype, shape, SharedBytes::from_vec(self.bytes(dtype, shape)?))
    }

    fn integers(&self, values: &[u32]) -> Result<Tensor> {
        self.device.upload(values, [values.len()])
    }

    fn output(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.device.tensor(DType::F32, shape)
    }
}

/// Every measurement, operations of one name together.
pub(super) fn cases() -> Vec<OpCase> {
    let mut cases = Vec::new();
    for dtype in DType::WEIGHTS {
        cases.extend(ROWS.map(|m| matmul(dtype, m)));
    }
    cases.extend(ROWS.map(gated_matmul));
    cases.extend(ROWS.map(matmul_id));
    cases.extend(ROWS.into_iter().flat_map(norms));
    cases.extend(ROWS.map(head_norm_rope));
    cases.extend([(1, 512), (1, 4096), (512, 512)].map(|(t, kv)| cached_attention(t, kv)));
    cases.push(flash_attention(512));
    cases.extend(ROWS.map(kv_append));
    cases.extend(ROWS.map(embed));
    cases.extend(elementwise());
    cases.extend(sampling());
    let place = |case: &OpCase| Op::<()>::NAMES.iter().position(|name| *name == case.op);
    cases.sort_by_key(place);
    cases
}

fn matmul(dtype: DType, m: usize) -> OpCase {
    let label = format!("{dtype} m={m} n={DIM} k={DIM}");
    OpCase::new(Matmul::<()>::NAME, label, move |inputs, recording| {
        let input = inputs.floats([m, DIM])?;
        let bytes = DIM * dtype.row_bytes(DIM).unwrap_or(DIM);
        let copies = if m == 1 { BEYOND_CACHES.div_ceil(bytes) } else { 1 };
        for _ in 0..copies {
            let weight = inputs.weight(dtype, [DIM, DIM])?;
            let output = inputs.output([m, DIM])?;
            let (input_layout, precision) = (InputLayout::RowMajor, inputs.precision);
            let (input, weight, output) = (&input, &weight, &output);
            recording.push(Matmul { input, weight, output, input_layout, precision })?;
        }
        Ok(())
    })
}

fn gated_matmul(m: usize) -> OpCase {
    let label = format!("q4_0 m={m} n={DIM} k={DIM}");
    OpCase::new(GatedMatmul::<()>::NAME, label, move |inputs, recording| {
        recording.push(GatedMatmul {
            input: &inputs.floats([m, DIM])?,
            gate: &inputs.weight(DType::Q4_0, [DIM, DIM])?,
            up: &inputs.weight(DType::Q4_0, [DIM, DIM])?,
            output: &inputs.output([m, DIM])?,
            activation: Activation::Silu,
            precision: inputs.precision,
        })
    })
}

fn matmul_id(m: usize) -> OpCase {
    const TOP_K: usize = 2;
    let label = format!("q4_0 m={m} n={DIM} k={DIM} experts={EXPERTS} top_k={TOP_K}");
    OpCase::new(MatmulId::<()>::NAME, label, move |inputs, recording| {
        let ids: Vec<u32> = (0..m * TOP_K).map(|slot| (slot * 3 % EXPERTS) as u32).collect();
        recording.push(MatmulId {
            input: &inputs.floats([m, DIM])?,
            weight: &inputs.weight(DType::Q4_0, [EXPERTS, DIM, DIM])?,
            ids: &inputs.device.upload(&ids, [m, TOP_K])?,
            output: &inputs.output([m, TOP_K, DIM])?,
            precision: inputs.precision,
        })
    })
}

fn norms(rows: usize) -> Vec<OpCase> {
    let label = || format!("f32 rows={rows} dim={DIM}");
    vec![
        OpCase::new(RmsNorm::<()>::NAME, label(), move |inputs, recording| {
            recording.push(RmsNorm {
                input: &inputs.floats([rows, DIM])?,
                weight: Some(&inputs.floats([DIM])?),
                output: &inputs.output([rows, DIM])?,
                eps: EPS,
            })
        }),
        OpCase::new(RmsNormMul::<()>::NAME, label(), move |inputs, recording| {
            recording.push(RmsNormMul {
                input: &inputs.floats([rows, DIM])?,
                weight: Some(&inputs.floats([DIM])?),
                scale: &inputs.floats([rows, DIM])?,
                output: &inputs.output([rows, DIM])?,
                eps: EPS,
            })
        }),
        OpCase::new(AddRmsNorm::<()>::NAME, label(), move |inputs, recording| {
            recording.push(AddRmsNorm {
                a: &inputs.floats([rows, DIM])?,
                b: &inputs.floats([rows, DIM])?,
                weight: Some(&inputs.floats([DIM])?),
                residual: &inputs.output([rows, DIM])?,
                output: &inputs.output([rows, DIM])?,
                eps: EPS,
            })
        }),
        OpCase::new(LayerNorm::<()>::NAME, label(), move |inputs, recording| {
            recording.push(LayerNorm {
                input: &inputs.floats([rows, DIM])?,
                weight: &inputs.floats([DIM])?,
                bias: Some(&inputs.floats([DIM])?),
                output: &inputs.output([rows, DIM])?,
                eps: EPS,
            })
        }),
    ]
}

fn head_norm_rope(tokens: usize) -> OpCase {
    let label = format!("f32 tokens={tokens} heads={HEADS} dim={HEAD_DIM}");
    OpCase::new(HeadNormRope::<()>::NAME, label, move |inputs, recording| {
        let positions: Vec<u32> = (0..tokens as u32).collect();
        recording.push(HeadNormRope {
            input: &inputs.floats([tokens, HEADS, HEAD_DIM])?,
            weight: Some(&inputs.floats([HEAD_DIM])?),
            positions: Some(&inputs.integers(&positions)?),
            freq_factors: None,
            cos: None,
            sin: None,
            cache_start: None,
            output: Some(&inputs.output([tokens, HEADS, HEAD_DIM])?),
            output_bf16: None,
            output_f32: None,
            cache: None,
            pairing: RopePairing::Leading,
            half: HEAD_DIM / 2,
            theta: 500_000.0,
            normalize: true,
            eps: EPS,
            copy_layout: HeadLayout::TokenMajor,
        })
    })
}

fn cached_attention(tokens: usize, keys: usize) -> OpCase {
    let label =
        format!("f16 cache tokens={tokens} keys={keys} heads={HEADS}/{KV_HEADS} dim={HEAD_DIM}");
    OpCase::new(CachedAttention::<()>::NAME, label, move |inputs, recording| {
        let cache = || inputs.tensor(DType::F16, [KV_HEADS, keys, HEAD_DIM]);
        recording.push(CachedAttention {
            q: &inputs.floats([tokens, HEADS, HEAD_DIM])?,
            k_cache: &cache()?,
            v_cache: &cache()?,
            kv_len: &inputs.integers(&[keys as u32])?,
            sinks: None,
            output: &inputs.output([tokens, HEADS, HEAD_DIM])?,
            scale: 1.0 / (HEAD_DIM as f32).sqrt(),
            window: None,
            softcap: None,
            ring: false,
        })
    })
}

fn flash_attention(tokens: usize) -> OpCase {
    let label = format!("f16 causal tokens={tokens} heads={HEADS}/{KV_HEADS} dim={HEAD_DIM}");
    OpCase::new(FlashAttention::<()>::NAME, label, move |inputs, recording| {
        let heads = |count| inputs.tensor(DType::F16, [1, count, tokens, HEAD_DIM]);
        recording.push(FlashAttention {
            q: &heads(HEADS)?,
            k: &heads(KV_HEADS)?,
            v: &heads(KV_HEADS)?,
            mask: None,
            blocks: None,
            sinks: None,
            output: &heads(HEADS)?,
            layout: AttentionLayout::HeadMajor,
            scale: 1.0 / (HEAD_DIM as f32).sqrt(),
            causal: true,
            window: None,
            softcap: None,
            q_offset: None,
            tile: [1, 1],
        })
    })
}

fn kv_append(tokens: usize) -> OpCase {
    let label = format!("f16 cache tokens={tokens} heads={KV_HEADS} dim={HEAD_DIM}");
    OpCase::new(KvAppend::<()>::NAME, label, move |inputs, recording| {
        recording.push(KvAppend {
            input: &inputs.floats([tokens, KV_HEADS, HEAD_DIM])?,
            start: &inputs.integers(&[0])?,
            cache: &inputs.tensor(DType::F16, [KV_HEADS, 4096, HEAD_DIM])?,
            ring: false,
        })
    })
}

fn embed(rows: usize) -> OpCase {
    let label = format!("q4_0 rows={rows} dim={DIM}");
    OpCase::new(Embed::<()>::NAME, label, move |inputs, recording| {
        let ids: Vec<u32> = (0..rows).map(|row| (row * 7919 % VOCAB) as u32).collect();
        recording.push(Embed {
            weight: &inputs.weight(DType::Q4_0, [VOCAB, DIM])?,
            ids: &inputs.integers(&ids)?,
            output: &inputs.output([rows, DIM])?,
            scale: 1.0,
        })
    })
}

fn elementwise() -> Vec<OpCase> {
    const SHAPE: [usize; 2] = [512, DIM];
    let label = || format!("f32 rows={} dim={}", SHAPE[0], SHAPE[1]);
    vec![
        OpCase::new(SiluMul::<()>::NAME, label(), |inputs, recording| {
            let (gate, up) = (&inputs.floats(SHAPE)?, &inputs.floats(SHAPE)?);
            recording.push(SiluMul { gate, up, output: &inputs.output(SHAPE)? })
        }),
        OpCase::new(GeluMul::<()>::NAME, label(), |inputs, recording| {
            let (gate, up) = (&inputs.floats(SHAPE)?, &inputs.floats(SHAPE)?);
            recording.push(GeluMul { gate, up, output: &inputs.output(SHAPE)? })
        }),
        OpCase::new(Add::<()>::NAME, label(), |inputs, recording| {
            let (a, b) = (&inputs.floats(SHAPE)?, &inputs.floats(SHAPE)?);
            recording.push(Add { a, b, output: &inputs.output(SHAPE)? })
        }),
        OpCase::new(Softmax::<()>::NAME, label(), |inputs, recording| {
            let input = &inputs.floats(SHAPE)?;
            recording.push(Softmax { input, output: &inputs.output(SHAPE)?, scale: 1.0 })
        }),
    ]
}

fn sampling() -> Vec<OpCase> {
    let label = || format!("f32 vocab={VOCAB}");
    let token = |inputs: &Inputs| inputs.device.tensor(DType::U32, [1]);
    vec![
        OpCase::new(Argmax::<()>::NAME, label(), move |inputs, recording| {
            let input = &inputs.floats([1, VOCAB])?;
            recording.push(Argmax { input, output: &token(inputs)? })
        }),
        OpCase::new(
            Sample::<()>::NAME,
            format!("{} top_k=40", label()),
            move |inputs, recording| {
                recording.push(Sample {
                    logits: &inputs.floats([1, VOCAB])?,
                    random: &inputs.device.upload(&[0.5f32], [1])?,
                    output: &token(inputs)?,
                    temperature: 0.8,
                    top_k: 40,
                    top_p: 0.95,
                })
            },
        ),
    ]
}

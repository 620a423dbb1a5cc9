//! The operations that `kiln bench ops` measures, at the shapes of an 8-billion-parameter model.

use kiln::ops::{
    Activation, Add, AddRmsNorm, Argmax, AttentionLayout, CachedAttention, Embed, FlashAttention,
    GatedMatmul, GeluMul, HeadLayout, HeadNormRope, InputLayout, KvAppend, LayerNorm, Matmul,
    MatmulId, MoePostFfNormEndLayer, Op, PostAttnTripleNorm, PostFfNormEndLayer, RmsNorm,
    RmsNormMul, RmsNormTriple, RopePairing, Sample, SiluMul, Softmax,
};
use kiln::prelude::*;
use kiln::{Barriers, Executable, PlanOptions, Recording, Result};

use super::inputs::{self, Inputs, Use};

const DIM: usize = 4096;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const VOCAB: usize = 128_256;
const EXPERTS: usize = 8;
/// Rows of a decode step and of a chunk of a prompt.
const ROWS: [usize; 2] = [1, 512];
/// Steps of a plan on a GPU: enough that its start and its end do not count, and no more copies of small
/// tensors than that.
const STEPS: [usize; 2] = [16, 64];
const EPS: f32 = 1e-5;

type Record = dyn Fn(&Inputs, &mut Recording) -> Result<()>;

/// An operation at a shape.
pub(super) struct OpCase {
    pub(super) op: &'static str,
    pub(super) label: String,
    /// Whether it takes a CPU minutes.
    pub(super) large: bool,
    record: Box<Record>,
}

impl OpCase {
    fn new(
        op: &'static str,
        label: String,
        record: impl Fn(&Inputs, &mut Recording) -> Result<()> + 'static,
    ) -> Self {
        Self { op, label, large: false, record: Box::new(record) }
    }

    fn large(self) -> Self {
        Self { large: true, ..self }
    }

    /// Makes a plan whose steps are all this operation. On a GPU they go through more tensors than
    /// caches hold, one after the other.
    pub(super) fn build(&self, inputs: &Inputs) -> Result<Executable> {
        let mut recording = inputs.device.record();
        (self.record)(inputs, &mut recording)?;
        let mut barriers = Barriers::Hazards;
        if inputs.repeats() {
            let [least, most] = STEPS;
            let operands = recording.ops().first().map(Op::operands).unwrap_or_default();
            let bytes = operands.iter().map(|(_, tensor)| tensor.bytes()).sum::<usize>();
            let copies = inputs::BEYOND_CACHES.div_ceil(bytes.max(1)).min(most);
            while recording.ops().len() < copies {
                (self.record)(inputs, &mut recording)?;
            }
            let ops = recording.ops().to_vec();
            for op in ops.iter().cycle().take(least.saturating_sub(ops.len())) {
                recording.push(op.clone())?;
            }
            barriers = Barriers::EveryStep;
        }
        recording.finish_with(PlanOptions { fuse: false, barriers })
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
    cases.push(matmul_id(4096).large());
    cases.extend(ROWS.into_iter().flat_map(|rows| norms(rows, DIM)));
    cases.extend(
        LARGE_NORMS.into_iter().flat_map(|[rows, dim]| norms(rows, dim)).map(OpCase::large),
    );
    cases.extend(ROWS.map(head_norm_rope));
    cases.extend(
        [(1, 512), (1, 4096), (1, 32_768), (512, 512)].map(|(t, kv)| cached_attention(t, kv)),
    );
    cases.push(flash_attention(
        DType::F16,
        Heads { tokens: 512, heads: [HEADS, KV_HEADS], dim: HEAD_DIM },
        true,
    ));
    let large = LARGE_ATTENTIONS.into_iter();
    let large = large
        .flat_map(|shape| [false, true].map(|causal| flash_attention(DType::BF16, shape, causal)));
    cases.extend(large.map(OpCase::large));
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
        let copies = if m == 1 { inputs.weights(bytes) } else { 1 };
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

/// Rows and their length: 128 and 512 MiB in f32.
const LARGE_NORMS: [[usize; 2]; 2] = [[8192, 4096], [16384, 8192]];

fn norms(rows: usize, dim: usize) -> Vec<OpCase> {
    const TOP_K: usize = 2;
    let label = || format!("f32 rows={rows} dim={dim}");
    let shape = [rows, dim];
    vec![
        OpCase::new(RmsNorm::<()>::NAME, label(), move |inputs, recording| {
            recording.push(RmsNorm {
                input: &inputs.floats(shape)?,
                weight: Some(&inputs.floats([dim])?),
                output: &inputs.output(shape)?,
                eps: EPS,
            })
        }),
        OpCase::new(RmsNormMul::<()>::NAME, label(), move |inputs, recording| {
            recording.push(RmsNormMul {
                input: &inputs.floats(shape)?,
                weight: Some(&inputs.floats([dim])?),
                scale: &inputs.floats(shape)?,
                output: &inputs.output(shape)?,
                eps: EPS,
            })
        }),
        OpCase::new(RmsNormTriple::<()>::NAME, label(), move |inputs, recording| {
            let weight = &inputs.floats([dim])?;
            recording.push(RmsNormTriple {
                input: &inputs.floats(shape)?,
                weight_a: weight,
                weight_b: weight,
                weight_c: weight,
                output_a: &inputs.output(shape)?,
                output_b: &inputs.output(shape)?,
                output_c: &inputs.output(shape)?,
                eps: EPS,
            })
        }),
        OpCase::new(PostAttnTripleNorm::<()>::NAME, label(), move |inputs, recording| {
            let weight = &inputs.floats([dim])?;
            recording.push(PostAttnTripleNorm {
                hidden: &inputs.floats(shape)?,
                attn: &inputs.floats(shape)?,
                weight_post: weight,
                weight_a: weight,
                weight_b: weight,
                weight_c: weight,
                residual: &inputs.output(shape)?,
                output_a: &inputs.output(shape)?,
                output_b: &inputs.output(shape)?,
                output_c: &inputs.output(shape)?,
                eps: EPS,
            })
        }),
        OpCase::new(PostFfNormEndLayer::<()>::NAME, label(), move |inputs, recording| {
            let weight = &inputs.floats([dim])?;
            recording.push(PostFfNormEndLayer {
                attn: &inputs.floats(shape)?,
                moe: &inputs.floats(shape)?,
                weight_moe: weight,
                residual: &inputs.floats(shape)?,
                weight_mlp: weight,
                layer_scalar: &inputs.floats([1])?,
                mlp: &inputs.output(shape)?,
                output: &inputs.output(shape)?,
                eps: EPS,
            })
        }),
        OpCase::new(
            MoePostFfNormEndLayer::<()>::NAME,
            format!("{} top_k={TOP_K}", label()),
            move |inputs, recording| {
                let weight = &inputs.floats([dim])?;
                recording.push(MoePostFfNormEndLayer {
                    attn: &inputs.floats(shape)?,
                    experts: &inputs.floats([rows, TOP_K, dim])?,
                    route: &inputs.floats([rows, TOP_K])?,
                    weight_moe: weight,
                    residual: &inputs.floats(shape)?,
                    weight_mlp: weight,
                    layer_scalar: &inputs.floats([1])?,
                    mlp: &inputs.output(shape)?,
                    output: &inputs.output(shape)?,
                    eps: EPS,
                })
            },
        ),
        OpCase::new(AddRmsNorm::<()>::NAME, label(), move |inputs, recording| {
            recording.push(AddRmsNorm {
                a: &inputs.floats(shape)?,
                b: &inputs.floats(shape)?,
                weight: Some(&inputs.floats([dim])?),
                residual: &inputs.output(shape)?,
                output: &inputs.output(shape)?,
                eps: EPS,
            })
        }),
        OpCase::new(LayerNorm::<()>::NAME, label(), move |inputs, recording| {
            recording.push(LayerNorm {
                input: &inputs.floats(shape)?,
                weight: &inputs.floats([dim])?,
                bias: Some(&inputs.floats([dim])?),
                output: &inputs.output(shape)?,
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

/// Queries, and keys and values, of an attention over a whole prompt.
#[derive(Clone, Copy)]
struct Heads {
    tokens: usize,
    /// Of queries, and of keys and values.
    heads: [usize; 2],
    dim: usize,
}

const LARGE_ATTENTIONS: [Heads; 5] = [
    Heads { tokens: 16384, heads: [32, 32], dim: 64 },
    Heads { tokens: 4096, heads: [32, 8], dim: 128 },
    Heads { tokens: 16384, heads: [32, 8], dim: 128 },
    Heads { tokens: 16384, heads: [16, 8], dim: 256 },
    Heads { tokens: 8192, heads: [8, 8], dim: 512 },
];

fn flash_attention(dtype: DType, shape: Heads, causal: bool) -> OpCase {
    /// Queries whose results are compared.
    const COMPARED: usize = 64;
    let Heads { tokens, heads: [heads, kv_heads], dim } = shape;
    let kind = if causal { "causal" } else { "full" };
    let label = format!("{dtype} {kind} tokens={tokens} heads={heads}/{kv_heads} dim={dim}");
    OpCase::new(FlashAttention::<()>::NAME, label, move |inputs, recording| {
        let tensor = |count| inputs.tensor(dtype, [1, count, tokens, dim]);
        let queries = match inputs.use_for {
            Use::Speed => 0..tokens,
            Use::Reference => tokens.saturating_sub(COMPARED)..tokens,
        };
        let rows = queries.len();
        recording.push(FlashAttention {
            q: &tensor(heads)?.slice(2, queries)?,
            k: &tensor(kv_heads)?,
            v: &tensor(kv_heads)?,
            mask: None,
            blocks: None,
            sinks: None,
            output: &inputs.device.tensor(dtype, [1, heads, rows, dim])?,
            layout: AttentionLayout::HeadMajor,
            scale: 1.0 / (dim as f32).sqrt(),
            causal,
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
    let argmax = OpCase::new(Argmax::<()>::NAME, label(), move |inputs, recording| {
        let input = &inputs.floats([1, VOCAB])?;
        recording.push(Argmax { input, output: &token(inputs)? })
    });
    let sample = |(top_k, top_p)| {
        let label = format!("{} top_k={top_k} top_p={top_p}", label());
        OpCase::new(Sample::<()>::NAME, label, move |inputs, recording| {
            recording.push(Sample {
                logits: &inputs.floats([1, VOCAB])?,
                random: &inputs.device.upload(&[0.5f32], [1])?,
                output: &token(inputs)?,
                temperature: 0.8,
                top_k,
                top_p,
            })
        })
    };
    let samples = [(40, 0.95), (0, 0.95), (0, 1.0)].map(sample);
    [argmax].into_iter().chain(samples).collect()
}

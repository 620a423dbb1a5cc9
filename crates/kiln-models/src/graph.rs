//! The decoder as a recording: one graph for every architecture, shaped by the configuration.

use kiln::ops::{
    Activation, Add, Argmax, CachedAttention, Embed, GeluMul, HeadLayout, HeadNormRope,
    InputLayout, KvAppend, Matmul, Precision, RmsNorm, Sample, SiluMul, Softcap,
};
use kiln::{DType, Executable, PlanOptions, Recording, Result, Tensor};

use crate::weights::{LayerWeights, Linear};
use crate::{LayerConfig, Model, ModelConfig, SamplerOptions};

/// Keys and values of one layer, `[H_kv, slots, D]` each.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

/// What changes from run to run, in device tensors.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// `[T]` u32, token ids
    pub(crate) ids: &'a Tensor,
    /// `[T]` u32
    pub(crate) positions: &'a Tensor,
    /// `[1]` u32, the position of the first token
    pub(crate) start: &'a Tensor,
    /// `[1]` u32, `start + T`
    pub(crate) kv_len: &'a Tensor,
}

/// Where a sampled token comes from and goes to.
#[derive(Clone, Copy)]
pub(crate) struct Sampling<'a> {
    pub(crate) options: SamplerOptions,
    /// `[1, vocab]` f32
    pub(crate) logits: &'a Tensor,
    /// `[1]` f32, uniform in `[0, 1)`
    pub(crate) random: &'a Tensor,
    /// `[1]` u32
    pub(crate) next: &'a Tensor,
}

/// What is computed behind the last layer.
#[derive(Clone, Copy)]
pub(crate) enum Head<'a> {
    /// Nothing: only the caches are filled.
    Caches,
    /// The token after row `row[0]`, or after the only row.
    Next { row: Option<&'a Tensor>, sampling: Sampling<'a> },
    /// The logits of all rows, `[T, vocab]` f32.
    Logits(&'a Tensor),
}

/// A decoder being recorded.
pub(crate) struct Graph<'a> {
    recording: Recording,
    model: &'a Model,
    caches: &'a [KvCache],
    inputs: Inputs<'a>,
    precision: Precision,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(
        model: &'a Model,
        caches: &'a [KvCache],
        inputs: Inputs<'a>,
        precision: Precision,
    ) -> Self {
        Self { recording: model.device().record(), model, caches, inputs, precision }
    }

    /// Records everything and compiles it.
    pub(crate) fn finish(mut self, head: Head, plan: PlanOptions) -> Result<Executable> {
        let config = self.model.config();
        let mut x = self.rows(config.dim)?;
        self.recording.push(Embed {
            weight: &self.model.weights().token_embd,
            ids: self.inputs.ids,
            output: &x,
            scale: config.embedding_scale,
        })?;
        for (index, cache) in self.caches.iter().enumerate() {
            let last = index + 1 == self.caches.len();
            match self.layer(index, cache, &x, last && matches!(head, Head::Caches))? {
                Some(output) => x = output,
                None => return self.recording.finish_with(plan),
            }
        }
        match head {
            Head::Caches => {}
            Head::Next { row, sampling } => self.next(x, row, sampling)?,
            Head::Logits(logits) => self.logits(&x, logits)?,
        }
        self.recording.finish_with(plan)
    }

    fn temp(&self, rows: usize, width: usize) -> Result<Tensor> {
        self.recording.temp(DType::F32, [rows, width])
    }

    /// A temporary with one row per token.
    fn rows(&self, width: usize) -> Result<Tensor> {
        self.temp(self.inputs.ids.extent(0), width)
    }

    /// One layer; `None` where only its cache was to be filled.
    fn layer(
        &mut self,
        index: usize,
        cache: &KvCache,
        x: &Tensor,
        only_cache: bool,
    ) -> Result<Option<Tensor>> {
        let model = self.model;
        let weights = &model.weights().layers[index];
        let h = self.norm(x, Some(&weights.attn_norm))?;
        let Some(q) = self.queries(index, cache, &h, only_cache)? else { return Ok(None) };
        let attn = self.attention(&q, cache, &model.config().layers[index])?;
        let attn = self.linear(&attn, &weights.attn_output)?;
        let attn = self.post_norm(attn, weights.post_attention_norm.as_ref())?;
        let x = self.add(x, &attn)?;
        let h = self.norm(&x, Some(&weights.ffn_norm))?;
        let ffn = self.feed_forward(&h, weights)?;
        let ffn = self.post_norm(ffn, weights.post_ffw_norm.as_ref())?;
        self.add(&x, &ffn).map(Some)
    }

    /// Appends keys and values to the cache and returns the queries `[T, H, D]`, unless only the
    /// cache was to be filled. Independent operations stand together, so that they share barriers.
    fn queries(
        &mut self,
        index: usize,
        cache: &KvCache,
        h: &Tensor,
        only_cache: bool,
    ) -> Result<Option<Tensor>> {
        let model = self.model;
        let (config, weights) = (model.config(), &model.weights().layers[index]);
        let k = self.product(h, &weights.k)?;
        let v = self.product(h, &weights.v)?;
        let q = if only_cache { None } else { Some(self.product(h, &weights.q)?) };
        self.bias(&k, &weights.k)?;
        self.bias(&v, &weights.v)?;
        let q = match q {
            Some(q) => {
                self.bias(&q, &weights.q)?;
                Some(self.rotate(index, &q, weights.q_norm.as_ref())?)
            }
            None => None,
        };
        let k = self.rotate(index, &k, weights.k_norm.as_ref())?;
        let v = v.reshape([v.extent(0), config.kv_heads, config.head_dim])?;
        let start = self.inputs.start;
        for (input, cache) in [(&k, &cache.k), (&v, &cache.v)] {
            self.recording.push(KvAppend { input, start, cache, ring: false })?;
        }
        Ok(q)
    }

    /// Queries `[T, H, D]` against the cache, as rows `[T, H * D]`.
    fn attention(&mut self, q: &Tensor, cache: &KvCache, layer: &LayerConfig) -> Result<Tensor> {
        let config = self.model.config();
        let output = self.recording.temp(DType::F32, q.shape())?;
        self.recording.push(CachedAttention {
            q,
            k_cache: &cache.k,
            v_cache: &cache.v,
            kv_len: self.inputs.kv_len,
            sinks: None,
            output: &output,
            scale: config.attention_scale,
            window: layer.window,
            softcap: config.attention_softcap,
            ring: false,
        })?;
        output.reshape([output.extent(0), config.heads * config.head_dim])
    }

    /// `[T, H * D]` to `[T, H, D]` with the norm of the heads, where there is one, and RoPE.
    fn rotate(&mut self, index: usize, x: &Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        let model = self.model;
        let config = model.config();
        let [rows, dim] = [x.extent(0), config.head_dim];
        let input = x.reshape([rows, x.extent(1) / dim, dim])?;
        let output = self.recording.temp(DType::F32, input.shape())?;
        self.recording.push(HeadNormRope {
            input: &input,
            weight: norm,
            positions: Some(self.inputs.positions),
            freq_factors: model.weights().layers[index].freq_factors.as_ref(),
            cos: None,
            sin: None,
            cache_start: None,
            output: Some(&output),
            output_bf16: None,
            output_f32: None,
            cache: None,
            pairing: config.rope_pairing,
            half: config.rope_dim / 2,
            theta: config.layers[index].rope_base,
            normalize: config.qk_norm,
            eps: config.norm_eps,
            copy_layout: HeadLayout::TokenMajor,
        })?;
        Ok(output)
    }

    fn feed_forward(&mut self, h: &Tensor, weights: &LayerWeights) -> Result<Tensor> {
        let gate = &self.product(h, &weights.gate)?;
        let up = &self.product(h, &weights.up)?;
        self.bias(gate, &weights.gate)?;
        self.bias(up, &weights.up)?;
        let output = &self.rows(gate.extent(1))?;
        match self.model.config().activation {
            Activation::Silu => self.recording.push(SiluMul { gate, up, output })?,
            Activation::GeluTanh => self.recording.push(GeluMul { gate, up, output })?,
        }
        self.linear(output, &weights.down)
    }

    fn norm(&mut self, x: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
        let output = self.temp(x.extent(0), x.extent(1))?;
        let eps = self.model.config().norm_eps;
        self.recording.push(RmsNorm { input: x, weight, output: &output, eps })?;
        Ok(output)
    }

    fn post_norm(&mut self, x: Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
        if weight.is_some() { self.norm(&x, weight) } else { Ok(x) }
    }

    fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let output = self.temp(a.extent(0), a.extent(1))?;
        self.recording.push(Add { a, b, output: &output })?;
        Ok(output)
    }

    fn matmul(&mut self, input: &Tensor, weight: &Tensor, output: &Tensor) -> Result<()> {
        let (input_layout, precision) = (InputLayout::RowMajor, self.precision);
        self.recording.push(Matmul { input, weight, output, input_layout, precision })
    }

    /// The projection without its bias.
    fn product(&mut self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        let output = self.rows(linear.weight.extent(0))?;
        self.matmul(x, &linear.weight, &output)?;
        Ok(output)
    }

    fn bias(&mut self, x: &Tensor, linear: &Linear) -> Result<()> {
        match &linear.bias {
            Some(bias) => self.recording.push(Add { a: x, b: bias, output: x }),
            None => Ok(()),
        }
    }

    fn linear(&mut self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        let output = self.product(x, linear)?;
        self.bias(&output, linear)?;
        Ok(output)
    }

    /// The logits of the rows of `x`.
    fn logits(&mut self, x: &Tensor, logits: &Tensor) -> Result<()> {
        let model = self.model;
        let ModelConfig { final_softcap, .. } = *model.config();
        let h = self.norm(x, Some(&model.weights().output_norm))?;
        self.matmul(&h, &model.weights().output, logits)?;
        match final_softcap {
            Some(cap) => self.recording.push(Softcap { input: logits, output: logits, cap }),
            None => Ok(()),
        }
    }

    fn next(&mut self, x: Tensor, row: Option<&Tensor>, sampling: Sampling) -> Result<()> {
        let x = match row {
            Some(ids) => {
                let output = self.temp(1, x.extent(1))?;
                self.recording.push(Embed { weight: &x, ids, output: &output, scale: 1.0 })?;
                output
            }
            None => x,
        };
        let Sampling { options, logits, random, next } = sampling;
        self.logits(&x, logits)?;
        if options.is_greedy() {
            return self.recording.push(Argmax { input: logits, output: next });
        }
        let SamplerOptions { temperature, top_k, top_p, .. } = options;
        self.recording.push(Sample { logits, random, output: next, temperature, top_k, top_p })
    }
}

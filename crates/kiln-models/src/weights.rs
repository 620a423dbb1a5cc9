//! The weights of a model on a device.

use std::collections::HashMap;
use std::ops::ControlFlow;

use kiln::format::Gguf;
use kiln::quant::dequantize_row;
use kiln::{DType, Device, Shape, Tensor};

use crate::tensors::{OUTPUT, OUTPUT_NORM, ROPE_FREQS, TOKEN_EMBD, TensorSpec, layer_name, specs};
use crate::{ModelConfig, ModelError, Problem};

/// A projection with its optional bias.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`
    pub(crate) weight: Tensor,
    /// `[out]` f32
    pub(crate) bias: Option<Tensor>,
}

/// The weights of one layer; norms are `[dim]` or `[head_dim]` f32.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) attn_norm: Tensor,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) q_norm: Option<Tensor>,
    pub(crate) k_norm: Option<Tensor>,
    pub(crate) attn_output: Linear,
    pub(crate) post_attention_norm: Option<Tensor>,
    pub(crate) ffn_norm: Tensor,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) post_ffw_norm: Option<Tensor>,
    /// Divisors of the RoPE angles, `[rope_dim / 2]` f32.
    pub(crate) freq_factors: Option<Tensor>,
}

/// All weights of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[vocab, dim]`
    pub(crate) token_embd: Tensor,
    pub(crate) layers: Vec<LayerWeights>,
    /// `[dim]` f32
    pub(crate) output_norm: Tensor,
    /// `[vocab, dim]`, the token embedding itself where it is tied.
    pub(crate) output: Tensor,
}

/// Tensors by name, on their way into [`Weights`].
pub(crate) type Named = HashMap<String, Tensor>;

/// Imports every tensor of a file that has passed its preflight. `progress` gets the bytes done and
/// the bytes in total.
pub(crate) fn import(
    device: &Device,
    file: &Gguf,
    config: &ModelConfig,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Named, ModelError> {
    let specs = specs(config);
    let infos = specs.iter().filter_map(|spec| Some((spec, file.find_tensor(&spec.name)?)));
    let total = infos.clone().map(|(_, info)| info.byte_len() as u64).sum();
    let (mut done, mut named) = (0, Named::new());
    for (spec, info) in infos {
        if progress(done, total).is_break() {
            return Err(ModelError::Cancelled);
        }
        let (dtype, bytes) = (info.dtype()?, file.bytes_of(info)?);
        let shape = shape_of(spec)?;
        let tensor = if spec.is_vector() && dtype != DType::F32 {
            let mut values = vec![0.0f32; info.elements()];
            dequantize_row(dtype, bytes.as_ref(), &mut values)?;
            device.upload(&values, shape)?
        } else {
            device.import(dtype, shape, bytes)?
        };
        named.insert(spec.name.clone(), tensor);
        done += info.byte_len() as u64;
    }
    match progress(done, total) {
        ControlFlow::Continue(()) => Ok(named),
        ControlFlow::Break(()) => Err(ModelError::Cancelled),
    }
}

pub(crate) fn shape_of(spec: &TensorSpec) -> Result<Shape, ModelError> {
    Shape::from_slice(&spec.shape).ok_or_else(|| missing(&spec.name))
}

fn missing(name: &str) -> ModelError {
    let problem = Problem::MissingTensor { tensor: name.to_owned(), shape: Vec::new() };
    ModelError::Problems { problems: vec![problem] }
}

impl Weights {
    /// Puts tensors into their places.
    pub(crate) fn assemble(
        device: &Device,
        config: &ModelConfig,
        mut named: Named,
    ) -> Result<Self, ModelError> {
        let mut take = |name: &str| named.remove(name);
        let rope_freqs = take(ROPE_FREQS).map(|tensor| tensor.to_vec::<f32>()).transpose()?;
        let token_embd = take(TOKEN_EMBD).ok_or_else(|| missing(TOKEN_EMBD))?;
        let output = match config.tied_output {
            true => token_embd.clone(),
            false => take(OUTPUT).ok_or_else(|| missing(OUTPUT))?,
        };
        let output_norm = take(OUTPUT_NORM).ok_or_else(|| missing(OUTPUT_NORM))?;
        let mut factors = FreqFactors { device, base: rope_freqs, made: Vec::new() };
        let mut layers = Vec::with_capacity(config.layers.len());
        for (index, layer) in config.layers.iter().enumerate() {
            let freq_factors = factors.get(layer.rope_factor, config.rope_dim / 2)?;
            layers.push(LayerWeights::assemble(index, freq_factors, &mut take)?);
        }
        Ok(Self { token_embd, layers, output_norm, output })
    }
}

impl LayerWeights {
    fn assemble(
        layer: usize,
        freq_factors: Option<Tensor>,
        take: &mut impl FnMut(&str) -> Option<Tensor>,
    ) -> Result<Self, ModelError> {
        let mut weight = |stem: &str| take(&layer_name(layer, stem, "weight"));
        let needed = |stem: &str, tensor: Option<Tensor>| {
            tensor.ok_or_else(|| missing(&layer_name(layer, stem, "weight")))
        };
        let attn_norm = needed("attn_norm", weight("attn_norm"))?;
        let ffn_norm = needed("ffn_norm", weight("ffn_norm"))?;
        let [q_norm, k_norm, post_attention_norm, post_ffw_norm] =
            ["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"].map(weight);
        let mut linear = |stem: &str| -> Result<Linear, ModelError> {
            let weight = needed(stem, take(&layer_name(layer, stem, "weight")))?;
            Ok(Linear { weight, bias: take(&layer_name(layer, stem, "bias")) })
        };
        Ok(Self {
            attn_norm,
            q: linear("attn_q")?,
            k: linear("attn_k")?,
            v: linear("attn_v")?,
            q_norm,
            k_norm,
            attn_output: linear("attn_output")?,
            post_attention_norm,
            ffn_norm,
            gate: linear("ffn_gate")?,
            up: linear("ffn_up")?,
            down: linear("ffn_down")?,
            post_ffw_norm,
            freq_factors,
        })
    }
}

/// Divisors of the RoPE angles: those of the file times a layer's linear factor, one tensor per
/// factor.
struct FreqFactors<'a> {
    device: &'a Device,
    base: Option<Vec<f32>>,
    made: Vec<(f32, Tensor)>,
}

impl FreqFactors<'_> {
    /// `None` where the angles are not divided.
    fn get(&mut self, factor: f32, half: usize) -> Result<Option<Tensor>, ModelError> {
        if half == 0 || (self.base.is_none() && factor == 1.0) {
            return Ok(None);
        }
        if let Some((_, tensor)) = self.made.iter().find(|(made, _)| *made == factor) {
            return Ok(Some(tensor.clone()));
        }
        let values: Vec<f32> = match &self.base {
            Some(base) => base.iter().map(|value| value * factor).collect(),
            None => vec![factor; half],
        };
        let tensor = self.device.upload(&values, [half])?;
        self.made.push((factor, tensor.clone()));
        Ok(Some(tensor))
    }
}

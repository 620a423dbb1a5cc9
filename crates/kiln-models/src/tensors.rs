//! The tensors of a decoder model by name, with their shapes: what a file must hold, what is
//! loaded, and what a synthetic model makes up.

use crate::{Architecture, ModelConfig};

pub(crate) const TOKEN_EMBD: &str = "token_embd.weight";
pub(crate) const OUTPUT: &str = "output.weight";
pub(crate) const OUTPUT_NORM: &str = "output_norm.weight";
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// One tensor that a model uses.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    /// `[out features, in features]` of a matrix, `[dim]` of a vector.
    pub(crate) shape: Vec<usize>,
    /// Whether there is no model without it.
    pub(crate) required: bool,
}

impl TensorSpec {
    /// True for norm weights, biases and frequency factors.
    pub(crate) fn is_vector(&self) -> bool {
        self.shape.len() == 1
    }
}

/// The name of a tensor of layer `layer`, for example `blk.0.attn_q.weight`.
pub(crate) fn layer_name(layer: usize, stem: &str, kind: &str) -> String {
    format!("blk.{layer}.{stem}.{kind}")
}

/// Every tensor the model uses, embedding first, then layer by layer.
pub(crate) fn specs(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut list = Specs(Vec::new());
    let dim = config.dim;
    list.add(TOKEN_EMBD, &[config.vocab, dim], true);
    list.add(OUTPUT_NORM, &[dim], true);
    if !config.tied_output {
        list.add(OUTPUT, &[config.vocab, dim], true);
    }
    if config.architecture == Architecture::Llama {
        list.add(ROPE_FREQS, &[config.rope_dim / 2], false);
    }
    for layer in 0..config.layers.len() {
        list.layer(config, layer);
    }
    list.0
}

struct Specs(Vec<TensorSpec>);

impl Specs {
    fn add(&mut self, name: impl Into<String>, shape: &[usize], required: bool) {
        self.0.push(TensorSpec { name: name.into(), shape: shape.to_vec(), required });
    }

    fn layer(&mut self, config: &ModelConfig, layer: usize) {
        let ModelConfig { dim, ff, head_dim, .. } = *config;
        let [q, kv] = [config.heads * head_dim, config.kv_heads * head_dim];
        let linears = [
            ("attn_q", [q, dim], config.qkv_bias),
            ("attn_k", [kv, dim], config.qkv_bias),
            ("attn_v", [kv, dim], config.qkv_bias),
            ("attn_output", [dim, q], false),
            ("ffn_gate", [ff, dim], false),
            ("ffn_up", [ff, dim], false),
            ("ffn_down", [dim, ff], false),
        ];
        for (stem, shape, bias) in linears {
            self.add(layer_name(layer, stem, "weight"), &shape, true);
            self.add(layer_name(layer, stem, "bias"), &shape[..1], bias);
        }
        let norms = [
            ("attn_norm", dim, true),
            ("attn_q_norm", head_dim, config.qk_norm),
            ("attn_k_norm", head_dim, config.qk_norm),
            ("post_attention_norm", dim, config.post_norms),
            ("ffn_norm", dim, true),
            ("post_ffw_norm", dim, config.post_norms),
        ];
        for (stem, len, used) in norms {
            if used {
                self.add(layer_name(layer, stem, "weight"), &[len], true);
            }
        }
    }
}

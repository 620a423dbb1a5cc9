//! What a decoder model is made of, from the metadata of its file.

use std::fmt;

use kiln::DType;
use kiln::format::Gguf;
use kiln::ops::{Activation, MAX_HEAD_DIM, RopePairing};

use crate::Problem;
use crate::keys::Keys;
use crate::tensors::TOKEN_EMBD;

/// The decoder architectures that can be run, by their `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama and Mistral models, and everything converted as such.
    Llama,
    /// Qwen 2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen 3: query and key heads are normalised.
    Qwen3,
    /// Gemma 3 (text): norms around every block, sliding windows, GeGLU.
    Gemma3,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Architecture; 4] =
        [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3, Architecture::Gemma3];

    /// The name in a file, which is also the prefix of its metadata keys.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma3 => "gemma3",
        }
    }

    /// The architecture of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// The names of all architectures, comma separated.
    pub fn supported() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A decoder model: `layers.len()` blocks of attention and a gated feed-forward layer.
///
/// With `H` query heads, `H_kv` key-value heads of dimension `D` and a residual stream of `dim`,
/// the projections are `[H * D, dim]`, `[H_kv * D, dim]` twice and `[dim, H * D]`, the
/// feed-forward weights `[ff, dim]` twice and `[dim, ff]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which conventions the model follows.
    pub architecture: Architecture,
    /// Tokens of context it was trained for.
    pub context_length: usize,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub ff: usize,
    /// Query heads `H`.
    pub heads: usize,
    /// Key-value heads `H_kv`, a divisor of `H`.
    pub kv_heads: usize,
    /// Dimension `D` of a head; not always `dim / heads`.
    pub head_dim: usize,
    /// Added to the mean of squares in every norm.
    pub norm_eps: f32,
    /// Which elements of a head RoPE rotates together.
    pub rope_pairing: RopePairing,
    /// Elements of a head that RoPE rotates; even, at most `head_dim`.
    pub rope_dim: usize,
    /// Whether query and key heads are RMS-normalised before RoPE.
    pub qk_norm: bool,
    /// Whether query, key and value have biases. Other biases are used where the file has them.
    pub qkv_bias: bool,
    /// Whether the outputs of attention and feed-forward are normalised before they are added.
    pub post_norms: bool,
    /// Multiplies the attention scores.
    pub attention_scale: f32,
    /// Soft limit of the attention scores.
    pub attention_softcap: Option<f32>,
    /// Soft limit of the logits.
    pub final_softcap: Option<f32>,
    /// Multiplies the token embeddings.
    pub embedding_scale: f32,
    /// Non-linearity of the feed-forward layer.
    pub activation: Activation,
    /// Whether the output projection is the token embedding.
    pub tied_output: bool,
    /// What differs between layers.
    pub layers: Vec<LayerConfig>,
}

/// What differs between the layers of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    /// Keys that many positions or more before the query are masked.
    pub window: Option<usize>,
    /// Base of the RoPE angles.
    pub rope_base: f32,
    /// Divides the RoPE angles: linear context extension.
    pub rope_factor: f32,
}

/// Layers of the only Gemma 3 size whose scores are scaled by the width of the model per head.
const GEMMA3_27B_LAYERS: usize = 62;
/// Gemma 3 repeats five sliding-window layers and a global one.
const GEMMA3_PATTERN: usize = 6;
const DEFAULT_ROPE_BASE: f32 = 10000.0;

impl ModelConfig {
    /// Reads and checks the metadata of a file; no tensor data is touched.
    ///
    /// # Errors
    /// Everything that is wrong: an unknown architecture, keys that are missing, of the wrong type
    /// or out of range, and features that are not supported.
    pub fn from_gguf(file: &Gguf) -> Result<Self, Vec<Problem>> {
        let name = file.architecture().map_err(|error| {
            vec![Problem::unreadable("general.architecture".to_owned(), &error)]
        })?;
        let architecture = Architecture::from_name(name).ok_or_else(|| {
            let (got, supported) = (name.to_owned(), Architecture::supported());
            vec![Problem::Architecture { got, supported }]
        })?;
        let mut keys = Keys::new(file.metadata(), architecture.name());
        let config = read(&mut keys, architecture, file);
        let problems = keys.into_problems();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }

    /// Number of weights, norms and biases not counted.
    pub fn parameters(&self) -> u64 {
        let [dim, ff, vocab] = [self.dim, self.ff, self.vocab].map(|n| n as u64);
        let heads = 2 * (self.heads + self.kv_heads) as u64 * self.head_dim as u64;
        let embeddings = if self.tied_output { 1 } else { 2 };
        self.layers.len() as u64 * dim * (heads + 3 * ff) + embeddings * vocab * dim
    }

    /// Slots of the key-value cache for a context of so many tokens: chunks of a prompt are padded,
    /// and the padding behind the last token needs a place too.
    pub(crate) fn cache_slots(context: usize) -> usize {
        context.next_multiple_of(crate::session::ROW_TILE) + crate::session::ROW_TILE
    }

    /// Bytes of the key-value caches of all layers for a context of so many tokens; saturates.
    pub fn kv_cache_bytes(&self, context: usize, dtype: DType) -> u64 {
        let padded = self.head_dim.next_multiple_of(dtype.block_len());
        let row = (padded / dtype.block_len() * dtype.block_bytes()) as u64;
        let slots = Self::cache_slots(context.min(u32::MAX as usize)) as u64;
        [2, self.layers.len() as u64, self.kv_heads as u64, slots]
            .into_iter()
            .fold(row, u64::saturating_mul)
    }

    /// An estimate of the bytes of intermediate results while so many tokens run at once.
    pub fn scratch_bytes(&self, tokens: usize) -> u64 {
        let tile = if tokens > 1 { crate::session::ROW_TILE } else { 1 };
        let rows = tokens.min(u32::MAX as usize).next_multiple_of(tile) as u64;
        let attention = 2 * self.head_dim * (self.heads + self.kv_heads);
        let width = 3 * self.dim + attention.max(self.ff);
        rows.saturating_mul(4 * width as u64) + 4 * self.vocab as u64
    }
}

/// `None` only after a problem was noted.
fn read(keys: &mut Keys, architecture: Architecture, file: &Gguf) -> Option<ModelConfig> {
    let gemma = architecture == Architecture::Gemma3;
    let layers = read_layer_count(keys, file);
    let dim = keys.required_count("embedding_length");
    let ff = keys.required_count("feed_forward_length");
    let heads = keys.required_count("attention.head_count");
    let kv_heads = keys.count_or("attention.head_count_kv", heads);
    let context_length = keys.required_count("context_length");
    let norm_eps = keys.required_number("attention.layer_norm_rms_epsilon");
    let per_head = dim.zip(heads).map(|(dim, heads)| dim / heads);
    let head_dim = keys.count_or("attention.key_length", per_head);
    let rope_dim = keys.count_or("rope.dimension_count", head_dim);
    let rope = read_rope(keys);
    let attention_scale = keys.positive("attention.scale");
    let attention_softcap = keys.positive("attn_logit_softcapping");
    let final_softcap = keys.positive("final_logit_softcapping");
    keys.only("expert_count", 0);

    let (dim, heads, head_dim) = (dim?, heads?, head_dim?);
    let (kv_heads, rope_dim, layers) = (kv_heads?, rope_dim?, layers?);
    check_heads(keys, [heads, kv_heads, head_dim, rope_dim]);
    let windows = if gemma { read_windows(keys, layers)? } else { vec![None; layers] };
    let local_base = keys.positive("rope.freq_base_swa").unwrap_or(DEFAULT_ROPE_BASE);
    let layer = |window: &Option<usize>| match window {
        Some(_) => LayerConfig { window: *window, rope_base: local_base, rope_factor: 1.0 },
        None => LayerConfig { window: None, ..rope },
    };
    let scale_dim = match gemma && layers == GEMMA3_27B_LAYERS {
        true => dim / heads,
        false => head_dim,
    };
    let vocab = match file.find_tensor(TOKEN_EMBD).map(|tensor| tensor.shape()) {
        Some(&[rows, _]) => rows,
        _ => keys.count_or_zero("vocab_size"),
    };
    Some(ModelConfig {
        architecture,
        context_length: context_length?,
        vocab,
        dim,
        ff: ff?,
        heads,
        kv_heads,
        head_dim,
        norm_eps: norm_eps?,
        rope_pairing: match architecture {
            Architecture::Llama => RopePairing::Interleaved,
            _ => RopePairing::Leading,
        },
        rope_dim,
        qk_norm: gemma || architecture == Architecture::Qwen3,
        qkv_bias: architecture == Architecture::Qwen2,
        post_norms: gemma,
        attention_scale: attention_scale.unwrap_or(1.0 / (scale_dim as f32).sqrt()),
        attention_softcap,
        final_softcap,
        embedding_scale: if gemma { (dim as f32).sqrt() } else { 1.0 },
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        tied_output: file.find_tensor(crate::tensors::OUTPUT).is_none(),
        layers: windows.iter().map(layer).collect(),
    })
}

/// The number of layers; every one has tensors, so the file bounds what is believed.
fn read_layer_count(keys: &mut Keys, file: &Gguf) -> Option<usize> {
    const KEY: &str = "block_count";
    let blocks = keys.required_count(KEY)?;
    let tensors = file.tensors().len();
    if blocks > tensors {
        keys.reject(KEY, format_args!("at most the file's {tensors} tensors"), blocks);
        return None;
    }
    let extra = keys.count_or_zero("nextn_predict_layers");
    if extra >= blocks {
        keys.reject("nextn_predict_layers", format_args!("less than {blocks} layers"), extra);
        return None;
    }
    Some(blocks - extra)
}

fn check_heads(keys: &mut Keys, [heads, kv_heads, head_dim, rope_dim]: [usize; 4]) {
    if !heads.is_multiple_of(kv_heads) {
        let expected = format_args!("a divisor of the {heads} heads");
        keys.reject("attention.head_count_kv", expected, kv_heads);
    }
    if !head_dim.is_multiple_of(8) || !(8..=MAX_HEAD_DIM).contains(&head_dim) {
        let expected = format_args!(
            "a multiple of 8 up to {MAX_HEAD_DIM} (default embedding_length / attention.head_count)"
        );
        keys.reject("attention.key_length", expected, head_dim);
    }
    if !rope_dim.is_multiple_of(2) || rope_dim > head_dim {
        let expected = format_args!("an even number up to {head_dim}");
        keys.reject("rope.dimension_count", expected, rope_dim);
    }
    keys.only("attention.value_length", head_dim);
    keys.only("attention.key_length_swa", head_dim);
    keys.only("attention.value_length_swa", head_dim);
    keys.only("rope.dimension_count_swa", rope_dim);
}

/// RoPE of the layers without a window.
fn read_rope(keys: &mut Keys) -> LayerConfig {
    let rope_base = keys.positive("rope.freq_base").unwrap_or(DEFAULT_ROPE_BASE);
    let factor = match keys.positive("rope.scaling.factor") {
        Some(factor) => Some(factor),
        None => keys.positive("rope.scale_linear"),
    };
    let rope_factor = match keys.text("rope.scaling.type") {
        None | Some("linear") => factor.unwrap_or(1.0),
        Some("none") => 1.0,
        Some(other) => {
            keys.reject("rope.scaling.type", "none or linear", other);
            1.0
        }
    };
    if let Some(factor) = keys.positive("rope.scaling.attn_factor")
        && factor != 1.0
    {
        keys.reject("rope.scaling.attn_factor", "1", factor);
    }
    LayerConfig { window: None, rope_base, rope_factor }
}

/// The sliding window of each layer of Gemma 3.
fn read_windows(keys: &mut Keys, layers: usize) -> Option<Vec<Option<usize>>> {
    let window = keys.count_or_zero("attention.sliding_window");
    if window == 0 {
        return Some(vec![None; layers]);
    }
    let pattern = keys.pattern("attention.sliding_window_pattern", layers, GEMMA3_PATTERN)?;
    Some(pattern.into_iter().map(|sliding| sliding.then_some(window)).collect())
}

//! Models made of random weights in the shapes of well-known ones, for measurements without a file.

use std::collections::HashMap;
use std::path::Path;

use kiln::format::{GgmlType, GgufWriter, TensorData};
use kiln::ops::{Activation, RopePairing};
use kiln::quant::quantize_row;
use kiln::{DType, Device, SharedBytes, Tensor};

use crate::random::Random;
use crate::tensors::{OUTPUT, ROPE_FREQS, TOKEN_EMBD, TensorSpec, specs};
use crate::weights::{Named, shape_of};
use crate::{Architecture, LayerConfig, Model, ModelConfig, ModelError};

/// The shape of a llama model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Its name, for example `llama-8b`.
    pub name: &'static str,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Dimension of a head.
    pub head_dim: usize,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Whether the output projection is the token embedding.
    pub tied_output: bool,
}

impl ModelShape {
    /// Every named shape.
    pub const ALL: [ModelShape; 3] = [
        ModelShape {
            name: "llama-8b",
            layers: 32,
            dim: 4096,
            ff: 14336,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocab: 128_256,
            tied_output: false,
        },
        ModelShape {
            name: "llama-1b",
            layers: 16,
            dim: 2048,
            ff: 8192,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            vocab: 32_000,
            tied_output: false,
        },
        ModelShape {
            name: "smollm2-135m",
            layers: 30,
            dim: 576,
            ff: 1536,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            vocab: 49_152,
            tied_output: true,
        },
    ];

    /// The shape of that name.
    ///
    /// ```
    /// use kiln_models::ModelShape;
    /// assert_eq!(ModelShape::from_name("llama-8b").map(|shape| shape.layers), Some(32));
    /// ```
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name == name)
    }

    /// The configuration of a llama model of this shape.
    pub fn config(&self) -> ModelConfig {
        let layer = LayerConfig { window: None, rope_base: 500_000.0, rope_factor: 1.0 };
        ModelConfig {
            architecture: Architecture::Llama,
            context_length: 8192,
            vocab: self.vocab,
            dim: self.dim,
            ff: self.ff,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            norm_eps: 1e-5,
            rope_pairing: RopePairing::Interleaved,
            rope_dim: self.head_dim,
            qk_norm: false,
            qkv_bias: false,
            post_norms: false,
            attention_scale: 1.0 / (self.head_dim as f32).sqrt(),
            attention_softcap: None,
            final_softcap: None,
            embedding_scale: 1.0,
            activation: Activation::Silu,
            tied_output: self.tied_output,
            layers: vec![layer; self.layers],
        }
    }

    /// Writes a GGUF file of [`Model::synthetic`], with a tokenizer that has made-up words, and
    /// returns its size in bytes: so that other programs can be measured on the same bytes.
    ///
    /// # Errors
    /// [`ModelError::Quant`] where `dtype` is no weight type, [`ModelError::Format`] where the file
    /// cannot be written.
    pub fn save(&self, dtype: DType, path: impl AsRef<Path>) -> Result<u64, ModelError> {
        let config = self.config();
        let matrices = matrices(&config, dtype);
        let mut tiles = Tiles::default();
        for (dtype, [_, k]) in matrices.values() {
            tiles.add(*dtype, *k)?;
        }
        let tiles = &tiles;
        let (words, types): (Vec<String>, Vec<i32>) = (0..self.vocab).map(word).unzip();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut writer = GgufWriter::new();
        self.insert_metadata(&mut writer)?;
        writer.insert("tokenizer.ggml.tokens", words)?;
        writer.insert("tokenizer.ggml.token_type", types)?;
        for (index, spec) in specs(&config).iter().enumerate() {
            if let Some(&(dtype, [n, k])) = matrices.get(&spec.name) {
                let data = TensorData::stream(move |out| {
                    tiles.rows([n, k], dtype, index).try_for_each(|rows| out.write_all(rows))
                });
                // Types without an id in files have been refused as tiles.
                let Some(ggml_type) = GgmlType::from_dtype(dtype) else { continue };
                writer.tensor(&*spec.name, ggml_type, &[n, k], data)?;
            } else if has_ones(spec) {
                let ones: Vec<u8> = 1f32.to_le_bytes().repeat(spec.shape[0]);
                writer.tensor(&*spec.name, GgmlType::F32, &spec.shape, ones)?;
            }
        }
        Ok(writer.write(path)?)
    }

    fn insert_metadata(&self, writer: &mut GgufWriter<'_>) -> Result<(), ModelError> {
        let config = self.config();
        writer.insert("general.architecture", "llama")?;
        writer.insert("general.name", self.name)?;
        writer.insert("general.quantization_version", 2u32)?;
        let counts = [
            ("block_count", self.layers),
            ("context_length", config.context_length),
            ("embedding_length", self.dim),
            ("feed_forward_length", self.ff),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("rope.dimension_count", config.rope_dim),
            ("vocab_size", self.vocab),
        ];
        for (key, count) in counts {
            writer.insert(format!("llama.{key}"), count as u32)?;
        }
        writer.insert("llama.attention.layer_norm_rms_epsilon", config.norm_eps)?;
        writer.insert("llama.rope.freq_base", config.layers[0].rope_base)?;
        let scores: Vec<f32> = (0..self.vocab).map(|id| -(id as f32)).collect();
        writer.insert("tokenizer.ggml.model", "llama")?;
        writer.insert("tokenizer.ggml.scores", scores)?;
        for (role, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
            writer.insert(format!("tokenizer.ggml.{role}_token_id"), id)?;
        }
        Ok(())
    }
}

/// Text and type of a made-up token: three of control, the bytes, then words.
fn word(id: usize) -> (String, i32) {
    const UNKNOWN: i32 = 2;
    const CONTROL: i32 = 3;
    const BYTE: i32 = 6;
    const NORMAL: i32 = 1;
    match id {
        0 => ("<unk>".to_owned(), UNKNOWN),
        1 => ("<s>".to_owned(), CONTROL),
        2 => ("</s>".to_owned(), CONTROL),
        3..259 => (format!("<0x{:02X}>", id - 3), BYTE),
        _ => (format!("\u{2581}{id}"), NORMAL),
    }
}

/// The matrices of a synthetic model by name: type and shape.
fn matrices(config: &ModelConfig, dtype: DType) -> HashMap<String, (DType, [usize; 2])> {
    let output = if config.tied_output { TOKEN_EMBD } else { OUTPUT };
    let matrix = |spec: TensorSpec| {
        let [n, k] = spec.shape[..] else { return None };
        let asked = if spec.name == output { output_type(dtype) } else { dtype };
        Some((spec.name, (fitting_type(asked, k), [n, k])))
    };
    specs(config).into_iter().filter_map(matrix).collect()
}

/// Whether a vector is there in a synthetic model, where it is all ones.
fn has_ones(spec: &TensorSpec) -> bool {
    spec.is_vector() && spec.required && spec.name != ROPE_FREQS
}

/// Random rows made per type and length; the rows of a matrix repeat them.
const TILE_ROWS: usize = 32;

impl Model {
    /// A model of that shape with random weights of a type, as large as a real one.
    ///
    /// Types are mixed as in files: a matrix whose rows are not whole blocks of a 256-value type
    /// gets the 32-value type that files use there, and the output projection is q6_k beside
    /// smaller types. Matrices repeat a few rows drawn from a normal distribution of variance
    /// `1 / k`.
    ///
    /// # Errors
    /// [`ModelError::Quant`] where `dtype` is no weight type, [`ModelError::Device`] where the
    /// memory does not suffice.
    pub fn synthetic(
        device: &Device,
        shape: &ModelShape,
        dtype: DType,
    ) -> Result<Self, ModelError> {
        let config = shape.config();
        let matrices = matrices(&config, dtype);
        let (mut tiles, mut named) = (Tiles::default(), Named::new());
        for (index, spec) in specs(&config).iter().enumerate() {
            let tensor = if let Some(&(dtype, [n, k])) = matrices.get(&spec.name) {
                tiles.add(dtype, k)?;
                tiles.matrix(device, [n, k], dtype, index)?
            } else if has_ones(spec) {
                ones(device, spec)?
            } else {
                continue;
            };
            named.insert(spec.name.clone(), tensor);
        }
        Model::assemble(device, config, named)
    }
}

fn ones(device: &Device, spec: &TensorSpec) -> Result<Tensor, ModelError> {
    let values = vec![1.0f32; spec.shape.iter().product()];
    Ok(device.upload(&values, shape_of(spec)?)?)
}

/// The type of the output projection beside weights of `dtype`.
fn output_type(dtype: DType) -> DType {
    match dtype {
        DType::Q8_0 => dtype,
        dtype if dtype.is_quantized() => DType::Q6K,
        dtype => dtype,
    }
}

/// `dtype`, or its stand-in for rows of `k` values that are not whole blocks of it.
fn fitting_type(dtype: DType, k: usize) -> DType {
    if k.is_multiple_of(dtype.block_len()) {
        return dtype;
    }
    match dtype {
        DType::Q2K | DType::Q3K | DType::Iq4Xs => DType::Iq4Nl,
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        dtype => dtype,
    }
}

/// Encoded random rows by type and length.
#[derive(Default)]
struct Tiles(HashMap<(DType, usize), Vec<u8>>);

impl Tiles {
    /// Makes the rows of a type and length.
    fn add(&mut self, dtype: DType, k: usize) -> Result<(), ModelError> {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.0.entry((dtype, k)) {
            entry.insert(tile(dtype, k)?);
        }
        Ok(())
    }

    /// The rows of an `[n, k]` matrix, piece by piece, beginning at another row for each `index`.
    fn rows(&self, [n, k]: [usize; 2], dtype: DType, index: usize) -> impl Iterator<Item = &[u8]> {
        let tile = self.0.get(&(dtype, k)).map_or(&[][..], Vec::as_slice);
        let row = tile.len() / TILE_ROWS;
        let first = index % TILE_ROWS * row;
        let (mut start, mut left) = (first, n * row);
        std::iter::from_fn(move || {
            let piece = &tile[start..tile.len().min(start + left)];
            (start, left) = (0, left - piece.len());
            (!piece.is_empty()).then_some(piece)
        })
    }

    fn matrix(
        &self,
        device: &Device,
        [n, k]: [usize; 2],
        dtype: DType,
        index: usize,
    ) -> Result<Tensor, ModelError> {
        let len = n * (k / dtype.block_len() * dtype.block_bytes());
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| kiln::Error::OutOfMemory {
            device: "the host".to_owned(),
            requested: len,
        })?;
        self.rows([n, k], dtype, index).for_each(|rows| bytes.extend_from_slice(rows));
        Ok(device.import(dtype, [n, k], SharedBytes::from_vec(bytes))?)
    }
}

fn tile(dtype: DType, k: usize) -> Result<Vec<u8>, ModelError> {
    let mut random = Random::new(k as u64);
    let deviation = 1.0 / (k as f32).sqrt();
    let row = k / dtype.block_len() * dtype.block_bytes();
    let mut bytes = vec![0; TILE_ROWS * row];
    for out in bytes.chunks_exact_mut(row) {
        let values: Vec<f32> = (0..k).map(|_| random.normal() * deviation).collect();
        quantize_row(dtype, &values, out)?;
    }
    Ok(bytes)
}

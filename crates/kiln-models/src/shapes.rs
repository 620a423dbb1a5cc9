//! Models made of random weights in the shapes of well-known ones, for measurements without a file.

use std::collections::HashMap;

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
        let output = if config.tied_output { TOKEN_EMBD } else { OUTPUT };
        let (mut tiles, mut named) = (Tiles::default(), Named::new());
        for (index, spec) in specs(&config).iter().enumerate() {
            let tensor = match spec.shape[..] {
                [n, k] => {
                    let asked = if spec.name == output { output_type(dtype) } else { dtype };
                    tiles.matrix(device, [n, k], fitting_type(asked, k), index)?
                }
                _ if spec.required && spec.name != ROPE_FREQS => ones(device, spec)?,
                _ => continue,
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
    /// An `[n, k]` matrix of the rows of its tile, beginning at another row for each `index`.
    fn matrix(
        &mut self,
        device: &Device,
        [n, k]: [usize; 2],
        dtype: DType,
        index: usize,
    ) -> Result<Tensor, ModelError> {
        let tile = match self.0.entry((dtype, k)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(tile(dtype, k)?),
        };
        let row = tile.len() / TILE_ROWS;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(n * row).map_err(|_| kiln::Error::OutOfMemory {
            device: "the host".to_owned(),
            requested: n * row,
        })?;
        bytes.extend_from_slice(&tile[index % TILE_ROWS * row..]);
        bytes.truncate(n * row);
        while bytes.len() < n * row {
            let rest = n * row - bytes.len();
            bytes.extend_from_slice(&tile[..rest.min(tile.len())]);
        }
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

//! Choices of a session.

use kiln::ops::Precision;
use kiln::{DType, Device, PlanOptions};

use crate::{ModelConfig, ModelError};

/// How a [`Session`](crate::Session) runs its model.
///
/// ```
/// use kiln_models::{SamplerOptions, SessionOptions};
/// let options = SessionOptions {
///     context: 8192,
///     sampler: SamplerOptions { temperature: 0.7, top_k: 40, top_p: 0.95, seed: 1 },
///     ..SessionOptions::default()
/// };
/// assert_eq!(options.chunk, 512);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionOptions {
    /// Tokens the context can hold. The caches are allocated for all of them at once; more than
    /// [`ModelConfig::context_length`] is possible, but not what the model was trained for.
    pub context: usize,
    /// Most tokens of a prompt that run at once. How a prompt is cut changes no bit of the result,
    /// only time and memory.
    pub chunk: usize,
    /// Type of the key-value caches: f32, f16, bf16, or q8_0 where the head dimension is a multiple
    /// of 32.
    pub kv_dtype: DType,
    /// Arithmetic of the matrix products.
    pub precision: Precision,
    /// How the next token is chosen.
    pub sampler: SamplerOptions,
    /// Choices of the planner.
    pub plan: PlanOptions,
}

impl Default for SessionOptions {
    /// 4096 tokens of f16 cache, chunks of 512, fast arithmetic, greedy.
    fn default() -> Self {
        Self {
            context: 4096,
            chunk: 512,
            kv_dtype: DType::F16,
            precision: Precision::Fast,
            sampler: SamplerOptions::default(),
            plan: PlanOptions::default(),
        }
    }
}

impl SessionOptions {
    /// The default options with the chunk that suits a device: 4096 on a GPU, where a chunk
    /// dequantises all weights once.
    pub fn for_device(device: &Device) -> Self {
        let chunk = if device.name() == "cpu" { 512 } else { 4096 };
        Self { chunk, ..Self::default() }
    }
}

/// How the next token is chosen from the logits; see [`Sample`](kiln::ops::Sample).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Most probable tokens kept; 0 for all.
    pub top_k: usize,
    /// Probability kept, in `(0, 1]`.
    pub top_p: f32,
    /// Start of the random numbers: equal seeds give equal choices.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// Greedy: the most probable token.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl SamplerOptions {
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let Self { temperature, top_p, .. } = *self;
        if !temperature.is_finite() || temperature < 0.0 {
            return Err(ModelError::option("temperature", "a number from 0", temperature));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(ModelError::option("top_p", "above 0 and at most 1", top_p));
        }
        Ok(())
    }
}

impl SessionOptions {
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        const MAX: usize = i32::MAX as usize;
        for (option, value) in [("context", self.context), ("chunk", self.chunk)] {
            if !(1..=MAX).contains(&value) {
                return Err(ModelError::option(option, format_args!("1 to {MAX} tokens"), value));
            }
        }
        let got = self.kv_dtype;
        match got {
            DType::F32 | DType::F16 | DType::BF16 => {}
            DType::Q8_0 if config.head_dim.is_multiple_of(DType::Q8_0.block_len()) => {}
            DType::Q8_0 => {
                let dim = config.head_dim;
                let expected = format_args!("f32, f16 or bf16 for a head dimension of {dim}");
                return Err(ModelError::option("kv_dtype", expected, got));
            }
            _ => return Err(ModelError::option("kv_dtype", "f32, f16, bf16 or q8_0", got)),
        }
        self.sampler.check()
    }
}

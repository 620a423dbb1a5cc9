//! Checking a model file by its header alone, before anything is loaded.

use kiln::DType;
use kiln::format::{GgmlType, Gguf};

use crate::tensors::{TensorSpec, specs};
use crate::{ModelConfig, ModelError, Problem, SessionOptions};

/// What the header of a model file says: whether the model can be run, and what it takes.
///
/// No tensor data is touched. A file without problems loads and runs on a device that has the
/// memory.
#[derive(Clone, Debug)]
pub struct Preflight {
    /// The model, where its metadata is complete.
    pub config: Option<ModelConfig>,
    /// Everything that keeps the model from being run.
    pub problems: Vec<Problem>,
    /// Tensors of the file that the model does not use, in the order of the file.
    pub extra_tensors: Vec<String>,
    /// Bytes of the tensors that the model uses, as they lie in the file; of all tensors where
    /// there is no configuration.
    pub weight_bytes: u64,
}

/// Bytes a model and one session take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Weights, as they lie in the file.
    pub weights: u64,
    /// Key-value caches.
    pub kv_cache: u64,
    /// Intermediate results of two prompt chunks and a step, an estimate.
    pub scratch: u64,
}

impl MemoryEstimate {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.scratch)
    }
}

impl Preflight {
    /// Checks architecture, metadata, and presence, shape and type of every tensor.
    pub fn of(file: &Gguf) -> Self {
        let config = match ModelConfig::from_gguf(file) {
            Ok(config) => config,
            Err(problems) => {
                return Self {
                    config: None,
                    problems,
                    extra_tensors: Vec::new(),
                    weight_bytes: file.tensors().iter().map(|t| t.byte_len() as u64).sum(),
                };
            }
        };
        let specs = specs(&config);
        let problems = specs.iter().flat_map(|spec| check(file, spec)).collect();
        let used: std::collections::HashSet<&str> = specs.iter().map(|spec| &*spec.name).collect();
        let (used, extra): (Vec<_>, Vec<_>) =
            file.tensors().iter().partition(|tensor| used.contains(tensor.name()));
        Self {
            config: Some(config),
            problems,
            extra_tensors: extra.into_iter().map(|tensor| tensor.name().to_owned()).collect(),
            weight_bytes: used.into_iter().map(|tensor| tensor.byte_len() as u64).sum(),
        }
    }

    /// Bytes the model and a session with these options take; `None` without a configuration.
    pub fn memory(&self, options: &SessionOptions) -> Option<MemoryEstimate> {
        let config = self.config.as_ref()?;
        let chunk = config.scratch_bytes(options.chunk.min(options.context));
        Some(MemoryEstimate {
            weights: self.weight_bytes,
            kv_cache: config.kv_cache_bytes(options.context, options.kv_dtype),
            scratch: chunk.saturating_mul(2).saturating_add(config.scratch_bytes(1)),
        })
    }

    /// The model, if it can be run.
    ///
    /// # Errors
    /// [`ModelError::Problems`] with all problems.
    pub fn into_config(self) -> Result<ModelConfig, ModelError> {
        match self.config {
            Some(config) if self.problems.is_empty() => Ok(config),
            _ => Err(ModelError::Problems { problems: self.problems }),
        }
    }
}

/// What is wrong with one tensor: its absence, or its shape and type.
fn check(file: &Gguf, spec: &TensorSpec) -> Vec<Problem> {
    let (tensor, expected) = (spec.name.clone(), spec.shape.clone());
    let Some(info) = file.find_tensor(&spec.name) else {
        let missing = Problem::MissingTensor { tensor, shape: expected };
        return spec.required.then_some(missing).into_iter().collect();
    };
    let mut problems = Vec::new();
    if info.shape() != spec.shape {
        let got = info.shape().to_vec();
        problems.push(Problem::Shape { tensor: tensor.clone(), expected, got });
    }
    let got = info.ggml_type();
    let types: &[DType] = if spec.is_vector() { &DType::FLOATS } else { &DType::WEIGHTS };
    if !got.dtype().is_some_and(|dtype| types.contains(&dtype)) {
        let names = types.iter().filter_map(|&dtype| GgmlType::from_dtype(dtype));
        let supported = names.map(GgmlType::name).collect::<Vec<_>>().join(", ");
        problems.push(Problem::Type { tensor, supported, got });
    }
    problems
}

//! The context of a session in a file: saved once, taken up again without running its tokens.
//!
//! The file is GGUF: the tokens and a description of the model as metadata, and the keys and values
//! of every layer, `[kv_heads, tokens, head_dim]` in the type of the cache.

use std::fmt;
use std::io;
use std::path::Path;

use kiln::Tensor;
use kiln::format::{Array, GgmlType, Gguf, GgufWriter, TensorData};

use super::Session;
use crate::ModelError;

const ARCHITECTURE_KEY: &str = "general.architecture";
const ARCHITECTURE: &str = "kiln-context";
const MODEL_KEY: &str = "kiln-context.model";
const TOKENS_KEY: &str = "kiln-context.tokens";

impl Session {
    /// Writes the tokens of the context and what the model remembers of them to a file, which is
    /// replaced in one step. Returns its size in bytes.
    ///
    /// # Errors
    /// [`ModelError::TooFewTokens`] for an empty context, [`ModelError::Format`] where the file
    /// cannot be written, [`ModelError::Device`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<u64, ModelError> {
        if self.tokens.is_empty() {
            let operation = "saving a context";
            return Err(ModelError::TooFewTokens { operation, needed: 1, got: 0 });
        }
        let mut writer = GgufWriter::new();
        writer.insert(ARCHITECTURE_KEY, ARCHITECTURE)?;
        writer.insert(MODEL_KEY, self.model_description()?)?;
        writer.insert(TOKENS_KEY, Array::from(self.tokens.clone()))?;
        for (name, view) in self.cache_views(self.position())? {
            let shape = view.shape();
            let ggml_type = ggml_type(&view)?;
            let data = TensorData::stream(move |out| {
                let mut bytes = vec![0; view.bytes()];
                view.read_bytes(&mut bytes).map_err(io::Error::other)?;
                out.write_all(&bytes)
            });
            writer.tensor(name, ggml_type, &shape, data)?;
        }
        Ok(writer.write(path)?)
    }

    /// Replaces the context by a saved one and returns its number of tokens. Continue with
    /// [`Session::prefill`], or with [`Session::rewind_to_common`] for a prompt that may share only
    /// its beginning.
    ///
    /// # Errors
    /// [`ModelError::Snapshot`] where the file is of another model, another type of cache, or no
    /// saved context, and [`ModelError::ContextFull`] where it is too long; [`ModelError::Format`].
    /// The context is then what it was. [`ModelError::Device`].
    pub fn restore(&mut self, path: impl AsRef<Path>) -> Result<usize, ModelError> {
        let file = Gguf::open(path)?;
        expect("contents", ARCHITECTURE, file.architecture().unwrap_or("no saved context"))?;
        let model = file.metadata().required_str(MODEL_KEY)?;
        expect("model", &self.model_description()?, model)?;
        let tokens = file.metadata().required_usizes(TOKENS_KEY)?;
        let tokens: Vec<u32> =
            tokens.into_iter().map(|token| u32::try_from(token).unwrap_or(u32::MAX)).collect();
        let held = std::mem::take(&mut self.tokens);
        let checked = self.check_tokens(&tokens);
        self.tokens = held;
        checked?;
        let mut parts = Vec::new();
        for (name, view) in self.cache_views(tokens.len())? {
            let info = file.tensor(&name)?;
            expect("type of the cache", ggml_type(&view)?, info.ggml_type())?;
            let shape = format!("{:?}", info.shape());
            expect("shape of the cache", format_args!("{:?}", &view.shape()[..]), shape)?;
            parts.push((view, file.bytes_of(info)?));
        }
        (self.tokens, self.next) = (Vec::new(), None);
        for (view, bytes) in parts {
            view.write_bytes(bytes.as_ref())?;
        }
        self.tokens = tokens;
        Ok(self.position())
    }

    /// Keys and values of the first tokens, layer by layer, with their names.
    fn cache_views(&self, tokens: usize) -> Result<Vec<(String, Tensor)>, ModelError> {
        let mut views = Vec::with_capacity(2 * self.caches.len());
        for (layer, cache) in self.caches.iter().enumerate() {
            for (name, cache) in [("k", &cache.k), ("v", &cache.v)] {
                views.push((format!("{name}.{layer}"), cache.slice(1, 0..tokens)?));
            }
        }
        Ok(views)
    }

    /// What tells a model from others of the same shape: its shape, and a hash of the weights of its
    /// last norm (FNV-1a).
    fn model_description(&self) -> Result<String, ModelError> {
        let norm = &self.model.weights().output_norm;
        let mut bytes = vec![0; norm.bytes()];
        norm.read_bytes(&mut bytes)?;
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let config = self.model.config();
        let [layers, heads, dim] = [config.layers.len(), config.kv_heads, config.head_dim];
        Ok(format!("{layers} layers of {heads} key-value heads of {dim}, weights {hash:016x}"))
    }
}

fn ggml_type(view: &Tensor) -> Result<GgmlType, ModelError> {
    GgmlType::from_dtype(view.dtype()).ok_or_else(|| ModelError::Snapshot {
        what: "type of the cache",
        expected: "one that GGUF has".to_owned(),
        got: view.dtype().to_string(),
    })
}

/// An error unless both print the same.
fn expect(
    what: &'static str,
    expected: impl fmt::Display,
    got: impl fmt::Display,
) -> Result<(), ModelError> {
    let (expected, got) = (expected.to_string(), got.to_string());
    if expected == got { Ok(()) } else { Err(ModelError::Snapshot { what, expected, got }) }
}

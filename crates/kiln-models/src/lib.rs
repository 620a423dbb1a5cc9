//! Language models as Kiln recordings: architectures, tokenizers, chat templates, generation.
//!
//! | | |
//! |---|---|
//! | [`Preflight`] | whether a file can be run and what it takes, from its header |
//! | [`Model`] | configuration and weights on a device |
//! | [`Session`] | caches and a place in the context: prompts, steps, logits |
//! | [`Generator`] | text, piece by piece |
//! | [`tokenizer`], [`chat`] | text to token ids and back |
//! | [`quantize`] | smaller weights: GGUF to GGUF |

pub mod chat;
pub mod quantize;
pub mod tokenizer;

mod config;
mod error;
mod evaluate;
mod generate;
mod graph;
mod keys;
mod model;
mod options;
mod preflight;
mod problem;
mod random;
mod session;
mod shapes;
mod tensors;
mod weights;

pub use config::{Architecture, LayerConfig, ModelConfig};
pub use error::ModelError;
pub use evaluate::Perplexity;
pub use generate::{Finish, GenerateOptions, Generation, GenerationStats, Generator, Piece};
pub use model::Model;
pub use options::{SamplerOptions, SessionOptions};
pub use preflight::{MemoryEstimate, Preflight};
pub use problem::Problem;
pub use session::Session;
pub use shapes::ModelShape;

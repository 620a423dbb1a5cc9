//! GGUF and safetensors readers and a GGUF writer for untrusted files.
//!
//! Model files are downloaded from strangers, so everything in them is checked before it is used:
//! a damaged, truncated or hostile file gives a [`FormatError`] of one clear line, never a panic,
//! an endless loop or more memory than a small multiple of the file's size. Tensor data is mapped
//! and handed out as [`SharedBytes`](kiln_core::SharedBytes) where it lies.
//!
//! | | |
//! |---|---|
//! | [`Gguf`] | opens GGUF versions 2 and 3, whole or split |
//! | [`Metadata`] | typed access to its key-value pairs |
//! | [`TensorInfo`], [`GgmlType`] | what a tensor is and how it is stored |
//! | [`GgufWriter`] | writes GGUF version 3, streaming and atomically |
//! | [`Safetensors`] | opens safetensors files |
//!
//! ```
//! use kiln_core::{DType, SharedBytes};
//! use kiln_format::{GgmlType, Gguf, GgufWriter};
//!
//! // Write a model with one tensor ...
//! let mut writer = GgufWriter::new();
//! writer.insert("general.architecture", "llama")?;
//! writer.insert("llama.block_count", 1u32)?;
//! writer.tensor("token_embd.weight", GgmlType::Q8_0, &[3, 64], vec![0; 3 * 2 * 34])?;
//! let mut bytes = Vec::new();
//! writer.write_to(&mut bytes)?;
//!
//! // ... and read it back; `Gguf::open(path)` does the same with a mapped file.
//! let file = Gguf::from_bytes(SharedBytes::from_vec(bytes))?;
//! file.check_types()?;
//! assert_eq!(file.architecture()?, "llama");
//! assert_eq!(file.metadata().required_usize("llama.block_count")?, 1);
//!
//! let tensor = file.tensor("token_embd.weight")?;
//! assert_eq!(tensor.shape(), [3, 64]);
//! assert_eq!(tensor.dtype()?, DType::Q8_0);
//! assert_eq!(file.bytes_of(tensor)?.len(), 3 * 2 * 34);
//! # Ok::<(), kiln_format::FormatError>(())
//! ```
//!
//! # Shapes
//! Shapes are row-major everywhere in Kiln: the last axis is contiguous. GGUF stores them the other
//! way round; the reader and the writer reverse them.

mod error;
mod ggml_type;
mod gguf;
mod map;
mod replace;
mod safetensors;

pub use error::FormatError;
pub use ggml_type::GgmlType;
pub use gguf::{
    Array, ElementType, Gguf, GgufWriter, Metadata, PerLayer, Strings, TensorData, TensorInfo,
    TypeTotal, Value, ValueType,
};
pub use safetensors::{Safetensors, SafetensorsInfo};

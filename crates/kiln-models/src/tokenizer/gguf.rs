//! Vocabularies from GGUF metadata.

use kiln::format::{Array, FormatError, Gguf, Metadata, Value};

use super::{ByteStrings, Tokenizer, TokenizerError, Vocabulary};

impl Vocabulary {
    /// Reads `tokenizer.ggml.*`.
    ///
    /// # Errors
    /// [`FormatError`] naming the key that is missing or has another type: `tokens` and `merges`
    /// are strings, `scores` are f32 (or i32), `token_type` is i32, ids are integers.
    pub fn from_gguf(file: &Gguf) -> Result<Self, FormatError> {
        let metadata = file.metadata();
        let strings = |key| -> Result<ByteStrings, FormatError> {
            Ok(metadata.strings_of(key)?.map(|list| list.iter().collect()).unwrap_or_default())
        };
        metadata.required_strings("tokenizer.ggml.tokens")?;
        let name = metadata.str_of("general.name").ok().flatten().unwrap_or_default();
        let name = name.to_ascii_lowercase();
        let mut ends = Vec::new();
        for role in ["fim_pad", "fim_rep", "fim_sep"] {
            ends.extend(id_of(metadata, &format!("tokenizer.ggml.{role}_token_id"))?);
        }
        Ok(Self {
            model: metadata.required_str("tokenizer.ggml.model")?.to_owned(),
            pre: metadata.str_of("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: strings("tokenizer.ggml.tokens")?,
            scores: scores(metadata)?,
            token_types: metadata.i32s_of("tokenizer.ggml.token_type")?.unwrap_or_default(),
            merges: strings("tokenizer.ggml.merges")?,
            bos: id_of(metadata, "tokenizer.ggml.bos_token_id")?,
            eos: id_of(metadata, "tokenizer.ggml.eos_token_id")?,
            eot: id_of(metadata, "tokenizer.ggml.eot_token_id")?,
            eom: id_of(metadata, "tokenizer.ggml.eom_token_id")?,
            unk: id_of(metadata, "tokenizer.ggml.unknown_token_id")?,
            pad: id_of(metadata, "tokenizer.ggml.padding_token_id")?,
            ends,
            add_bos: metadata.bool_of("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool_of("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.bool_of("tokenizer.ggml.add_space_prefix")?,
            strip_after_special: name.contains("phi-3") || name.contains("phi3"),
        })
    }
}

impl Tokenizer {
    /// Reads and checks the vocabulary of a model file.
    ///
    /// # Errors
    /// As [`Vocabulary::from_gguf`] and [`Tokenizer::new`].
    pub fn from_gguf(file: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(Vocabulary::from_gguf(file)?)
    }
}

fn scores(metadata: &Metadata) -> Result<Vec<f32>, FormatError> {
    let key = "tokenizer.ggml.scores";
    if let Some(Value::Array(Array::I32(scores))) = metadata.get(key) {
        return Ok(scores.iter().map(|&score| score as f32).collect());
    }
    Ok(metadata.f32s_of(key)?.unwrap_or_default())
}

/// A token id. One that no vocabulary can have becomes the largest, for the check of the range.
fn id_of(metadata: &Metadata, key: &str) -> Result<Option<u32>, FormatError> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let Some(integer) = value.as_integer() else {
        let (expected, got) = ("an integer", value.value_type());
        return Err(FormatError::WrongType { key: key.to_owned(), expected, got });
    };
    Ok(Some(u32::try_from(integer).unwrap_or(u32::MAX)))
}

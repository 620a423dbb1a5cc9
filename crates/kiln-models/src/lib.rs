//! Language models as Kiln recordings: architectures, tokenizers, chat templates, generation.

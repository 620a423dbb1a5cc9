//! GGUF and safetensors readers and a GGUF writer for untrusted files.

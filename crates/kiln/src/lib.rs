//! LLM inference kernels for Rust: GGUF weights as they lie in the file, one recorded graph, every device.

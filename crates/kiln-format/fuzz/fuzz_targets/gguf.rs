//! Any bytes are an error or a file: everything in an accepted file can be read, and writing it
//! again gives a file that reads the same.
//!
//! In `crates/kiln-format`, with new inputs kept outside the committed seeds:
//! `cargo +nightly fuzz run gguf fuzz/artifacts/corpus fuzz/corpus/gguf -- -malloc_limit_mb=64`
//! (create `fuzz/artifacts/corpus` first).

#![no_main]

use kiln_core::SharedBytes;
use kiln_format::{Gguf, GgufWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Gguf::from_bytes(SharedBytes::from_vec(data.to_vec())) else { return };
    let written = copy(&file);
    let again = Gguf::from_bytes(SharedBytes::from_vec(written.clone())).expect("a written file");
    assert_eq!(again.alignment(), file.alignment());
    assert_eq!(again.type_totals(), file.type_totals());
    for (tensor, other) in file.tensors().iter().zip(again.tensors()) {
        assert_eq!(tensor.name(), other.name());
        assert_eq!(tensor.shape(), other.shape());
        let (bytes, others) = (file.bytes_of(tensor), again.bytes_of(other));
        assert_eq!(bytes.expect("data").as_ref(), others.expect("data").as_ref());
    }
    assert_eq!(copy(&again), written);
});

fn copy(file: &Gguf) -> Vec<u8> {
    let metadata = file.metadata();
    let mut writer = GgufWriter::new();
    for (key, value) in metadata.iter() {
        // Accessors of every type, on values of every type.
        let _ = (metadata.usize_of(key), metadata.f32_of(key), metadata.bool_of(key));
        let _ = (metadata.str_of(key), metadata.strings_of(key), metadata.usizes_of(key));
        let _ = (metadata.f32s_of(key), metadata.i32s_of(key), metadata.bools_of(key));
        let _ = metadata.per_layer_of(key);
        writer.insert(key, value).expect("an accepted value");
    }
    for tensor in file.tensors() {
        let bytes = file.bytes_of(tensor).expect("data inside the file");
        let (name, shape) = (tensor.name(), tensor.shape());
        assert!(file.tensor(name).is_ok());
        writer.tensor(name, tensor.ggml_type(), shape, bytes).expect("an accepted tensor");
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).expect("memory to write to");
    bytes
}

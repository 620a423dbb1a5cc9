//! Model files that cannot be used.

use kiln::format::{GgmlType, Gguf, GgufWriter, Value};

use crate::support::{Run, fixture, kiln, text};

/// Runs `kiln generate` and `kiln inspect` on a file with these bytes.
fn with_bytes(bytes: &[u8]) -> [Run; 2] {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let path = text(&path);
    [kiln(&["generate", "-m", &path, "hi", "-t", "1"]), kiln(&["inspect", &path])]
}

fn llama() -> Vec<u8> {
    std::fs::read(fixture("llama.gguf")).unwrap()
}

/// The llama fixture without data, some metadata and the type of one tensor replaced.
fn changed(metadata: &[(&str, Value)], tensor: &str, ggml_type: GgmlType) -> Vec<u8> {
    let file = Gguf::open(fixture("llama.gguf")).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata().iter() {
        let replaced = metadata.iter().find(|(name, _)| *name == key);
        writer.insert(key, replaced.map_or(value, |(_, value)| value.clone())).unwrap();
    }
    for info in file.tensors() {
        let ty = if info.name() == tensor { ggml_type } else { info.ggml_type() };
        let bytes = info.elements() / ty.block_len() * ty.block_bytes();
        writer.tensor(info.name(), ty, info.shape(), vec![0u8; bytes]).unwrap();
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    bytes
}

#[test]
fn files_that_are_not_gguf_are_recognised() {
    for bytes in [&b"PK\x03\x04 a zip file"[..], b"{\"a\": 1}", b"GG", b""] {
        for run in with_bytes(bytes) {
            run.error_with(&["model.gguf"]);
        }
    }
    let [run, _] = with_bytes(b"PK\x03\x04 a zip file");
    run.error_with(&["not a GGUF file"]);
}

#[test]
fn truncated_files_are_recognised_wherever_they_end() {
    let whole = llama();
    for length in [5, 24, 100, 4000, whole.len() / 2, whole.len() - 1] {
        for run in with_bytes(&whole[..length]) {
            run.error_with(&["download it again"]);
        }
    }
}

#[test]
fn unknown_architectures_are_listed_with_the_known() {
    let bytes = changed(&[("general.architecture", Value::from("mamba"))], "", GgmlType::F32);
    let [generate, inspect] = with_bytes(&bytes);
    generate.error_with(&["mamba", "llama", "gemma3"]);
    let text = inspect.ok();
    assert!(text.contains("does not run: 1 problem") && text.contains("mamba"), "{text}");
}

#[test]
fn unsupported_types_name_the_tensor_and_the_choice() {
    // 8-bit integers have a size of their own for any row.
    let bytes = changed(&[], "blk.1.ffn_up.weight", GgmlType::I8);
    let [generate, inspect] = with_bytes(&bytes);
    generate.error_with(&["blk.1.ffn_up.weight", "I8", "Q4_K", "quantise"]);
    let text = inspect.ok();
    assert!(text.contains("does not run: 1 problem") && text.contains("I8"), "{text}");
}

#[test]
fn several_problems_are_one_line_for_generate_and_all_for_inspect() {
    let metadata = [("llama.attention.head_count_kv", Value::from(3u32))];
    let [generate, inspect] = with_bytes(&changed(&metadata, "output.weight", GgmlType::I32));
    generate.error();
    let text = inspect.ok();
    assert!(text.contains("does not run"), "{text}");
    let metadata = [("llama.embedding_length", Value::from(128u32))];
    let [generate, inspect] = with_bytes(&changed(&metadata, "", GgmlType::F32));
    generate.error_with(&["more problems", "kiln inspect"]);
    assert!(inspect.ok().lines().filter(|line| line.contains("expected")).count() > 3);
}

#[test]
fn names_cannot_steer_the_terminal() {
    let name = Value::from("evil\x1b[2Jname\n");
    let [_, inspect] = with_bytes(&changed(&[("general.architecture", name)], "", GgmlType::F32));
    let text = inspect.ok();
    assert!(text.contains("evil") && !text.contains('\x1b'), "{text:?}");
}

//! Quantising files: types, values, metadata, and what is refused.

use std::ops::ControlFlow;
use std::path::Path;

use kiln::format::{GgmlType, Gguf, GgufWriter, Value};
use kiln::quant::dequantize_row;
use kiln_models::quantize::{
    FileType, QuantizeError, QuantizeOptions, QuantizeReport, TensorReport, quantize,
};

use crate::support::{doctored, file};

fn options(file_type: FileType) -> QuantizeOptions {
    QuantizeOptions { threads: Some(2), measure: true, ..QuantizeOptions::new(file_type) }
}

fn run(source: &Gguf, options: &QuantizeOptions) -> Result<(QuantizeReport, Gguf), QuantizeError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let result = quantize(source, &path, options, |_, _| ControlFlow::Continue(()));
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, usize::from(result.is_ok()), "half a file is left, or too many");
    Ok((result?, Gguf::open(&path)?))
}

fn refused(source: &Gguf, options: &QuantizeOptions) -> QuantizeError {
    run(source, options).map(drop).unwrap_err()
}

/// Seeded values from -1 to 1.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / f32::exp2(23.0) - 1.0
    };
    (0..len).map(step).collect()
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn in_memory(writer: GgufWriter) -> Gguf {
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    Gguf::from_bytes(kiln::SharedBytes::from_vec(bytes)).unwrap()
}

/// A file of one matrix.
fn matrix(shape: [usize; 2], values: &[f32]) -> Gguf {
    let mut writer = GgufWriter::new();
    writer.insert("general.architecture", "llama").unwrap();
    writer.tensor("blk.0.ffn_up.weight", GgmlType::F32, &shape, le_bytes(values)).unwrap();
    in_memory(writer)
}

/// A model of the fixture that `tools/make_quantize_fixtures.py` writes.
fn described(model: &serde_json::Value) -> Gguf {
    let mut writer = GgufWriter::new();
    let architecture = model["architecture"].as_str().unwrap();
    writer.insert("general.architecture", architecture).unwrap();
    for (key, field) in [
        ("block_count", "layers"),
        ("attention.head_count", "heads"),
        ("attention.head_count_kv", "kv_heads"),
        ("expert_count", "experts"),
    ] {
        let value = model[field].as_u64().unwrap() as u32;
        writer.insert(format!("{architecture}.{key}"), value).unwrap();
    }
    for tensor in model["tensors"].as_array().unwrap() {
        let name = tensor[0].as_str().unwrap();
        let shape: Vec<usize> = serde_json::from_value(tensor[1].clone()).unwrap();
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        writer.tensor(name, GgmlType::F32, &shape, bytes).unwrap();
    }
    in_memory(writer)
}

#[test]
fn types_are_those_of_llama_quantize() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quantize.json");
    let models: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let models = models.as_object().unwrap();
    assert_eq!(models.len(), 7);
    for (name, model) in models {
        let source = described(model);
        let kinds = model["types"].as_object().unwrap();
        assert_eq!(kinds.len(), 2 * FileType::ALL.len());
        for (kind, expected) in kinds {
            let (file_type, pure) = match kind.split_once(' ') {
                Some((file_type, _)) => (file_type, true),
                None => (kind.as_str(), false),
            };
            let file_type = FileType::from_name(file_type).unwrap();
            let options = QuantizeOptions { pure, measure: false, ..options(file_type) };
            let (report, written) = run(&source, &options).unwrap();
            let expected = expected.as_str().unwrap().split(' ');
            for (tensor, expected) in report.tensors.iter().zip(expected) {
                let got = written.tensor(&tensor.name).unwrap().ggml_type();
                assert_eq!(got, tensor.to);
                assert_eq!(got.name().to_lowercase(), expected, "{name}, {kind}: {}", tensor.name);
            }
        }
    }
}

fn rmse(source: &[f32], written: &Gguf, tensor: &TensorReport) -> f64 {
    let info = written.tensor(&tensor.name).unwrap();
    let mut values = vec![0.0f64; source.len()];
    dequantize_row(info.dtype().unwrap(), written.bytes_of(info).unwrap().as_ref(), &mut values)
        .unwrap();
    let squares = source.iter().zip(&values).map(|(&x, &y)| (f64::from(x) - y).powi(2));
    (squares.sum::<f64>() / source.len() as f64).sqrt()
}

#[test]
fn values_come_back_with_the_reported_error() {
    let values = noise(8 * 512);
    let source = matrix([8, 512], &values);
    for &file_type in FileType::ALL {
        let pure = QuantizeOptions { pure: true, ..options(file_type) };
        let (report, written) = run(&source, &pure).unwrap();
        let [tensor] = &report.tensors[..] else { panic!("{report:?}") };
        assert_eq!(tensor.to.dtype(), Some(file_type.dtype()));
        let error = tensor.error.unwrap();
        let recomputed = rmse(&values, &written, tensor);
        assert!((error.rmse - recomputed).abs() <= 1e-12, "{file_type}: {error:?} {recomputed}");
        assert!(error.rmse <= 0.15 && error.largest >= error.rmse, "{file_type}: {error:?}");
        assert_eq!(written.file_bytes(), report.file_bytes);
        let info = written.tensor(&tensor.name).unwrap();
        assert_eq!((info.byte_len() as u64, info.shape()), (tensor.bytes_to, &[8, 512][..]));
    }
}

#[test]
fn the_result_does_not_depend_on_the_threads() {
    // More than one batch, the last of them short.
    let source = matrix([1030, 2048], &noise(1030 * 2048));
    let with = |threads| {
        let options = QuantizeOptions { threads: Some(threads), ..options(FileType::Q4_0) };
        let (report, written) = run(&source, &options).unwrap();
        (report.tensors[0].error, written.bytes_of(&written.tensors()[0]).unwrap())
    };
    let (one, three) = (with(1), with(3));
    assert!(one.1.as_ref() == three.1.as_ref());
    assert_eq!(one.0, three.0);
}

#[test]
fn other_sources_give_the_same_as_their_values() {
    let values = noise(4 * 256);
    for ggml_type in [GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0] {
        let file_type = FileType::from_name(ggml_type.name()).unwrap();
        let (_, small) = run(&matrix([4, 256], &values), &options(file_type)).unwrap();
        let (_, wide) = run(&small, &options_allowing(FileType::F32)).unwrap();
        let (_, direct) = run(&small, &options(FileType::Q4KS)).unwrap();
        let (_, detour) = run(&wide, &options(FileType::Q4KS)).unwrap();
        let bytes = |file: &Gguf| file.bytes_of(&file.tensors()[0]).unwrap();
        assert!(bytes(&direct).as_ref() == bytes(&detour).as_ref(), "{ggml_type}");
    }
}

fn options_allowing(file_type: FileType) -> QuantizeOptions {
    QuantizeOptions { allow_requantize: true, ..options(file_type) }
}

#[test]
fn metadata_is_kept_and_the_file_type_set() {
    let source = doctored("gemma3", |_| None, |_| None, &[("split.count", Value::from(1u16))]);
    let (_, written) = run(&source, &options(FileType::Q5KM)).unwrap();
    let metadata = written.metadata();
    assert_eq!(metadata.usize_of("general.file_type").unwrap(), Some(17));
    assert_eq!(metadata.usize_of("general.quantization_version").unwrap(), Some(2));
    assert!(metadata.get("split.count").is_none());
    for (key, value) in source.metadata().iter().filter(|(key, _)| *key != "split.count") {
        if !["general.file_type", "general.quantization_version"].contains(&key) {
            assert_eq!(metadata.get(key), Some(value), "{key}");
        }
    }
    let names = |file: &Gguf| -> Vec<String> {
        file.tensors().iter().map(|info| info.name().to_owned()).collect()
    };
    assert_eq!(names(&source), names(&written));
}

#[test]
fn few_bits_are_not_quantised_again_unless_allowed() {
    let (_, small) = run(&file("llama"), &options(FileType::Q4_0)).unwrap();
    let error = refused(&small, &options(FileType::Q5_0));
    let QuantizeError::Requantize { got: GgmlType::Q4_0, to: GgmlType::Q5_0, .. } = error else {
        panic!("{error}")
    };
    assert!(error.to_string().contains("allow_requantize"));
    run(&small, &options_allowing(FileType::Q5_0)).unwrap();
    // What has its type already is copied.
    let (_, again) = run(&small, &options(FileType::Q4_0)).unwrap();
    let bytes = |file: &Gguf| file.tensor_bytes("blk.0.ffn_up.weight").unwrap();
    assert!(bytes(&small).as_ref() == bytes(&again).as_ref());
}

#[test]
fn values_that_are_not_finite_are_named() {
    let mut values = noise(3 * 32768);
    values[70000] = f32::NAN;
    let error = refused(&matrix([96, 1024], &values), &options(FileType::Q8_0));
    let QuantizeError::NonFinite { tensor, index: 70000, value } = error else { panic!("{error}") };
    assert!(tensor == "blk.0.ffn_up.weight" && value.is_nan());
}

#[test]
fn types_without_decoding_are_copied_or_refused() {
    let with_type = |name: &str| {
        let mut writer = GgufWriter::new();
        writer.tensor(name, GgmlType::I32, &[2, 64], vec![0; 512]).unwrap();
        in_memory(writer)
    };
    let (report, _) =
        run(&with_type("blk.0.ffn_gate_inp.weight"), &options(FileType::Q8_0)).unwrap();
    assert_eq!(report.tensors[0].to, GgmlType::I32);
    let error = refused(&with_type("blk.0.ffn_up.weight"), &options(FileType::Q8_0));
    assert!(matches!(error, QuantizeError::Unreadable { got: GgmlType::I32, .. }), "{error}");
}

#[test]
fn hostile_metadata_is_harmless() {
    let mut writer = GgufWriter::new();
    writer.insert("general.architecture", "llama").unwrap();
    writer.insert("llama.block_count", u64::MAX).unwrap();
    writer.insert("llama.attention.head_count", vec![0u32; 0]).unwrap();
    writer.insert("llama.attention.head_count_kv", "many").unwrap();
    writer.insert("llama.expert_count", u64::MAX).unwrap();
    for name in ["blk.18446744073709551615.ffn_down.weight", "blk.x.attn_v.weight", "weight"] {
        writer.tensor(name, GgmlType::F32, &[2, 256], vec![0; 2048]).unwrap();
    }
    writer.tensor("empty.weight", GgmlType::F32, &[2, 0], vec![]).unwrap();
    let source = in_memory(writer);
    for &file_type in FileType::ALL {
        run(&source, &options(file_type)).unwrap();
    }
}

#[test]
fn cancelling_keeps_the_old_target() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    std::fs::write(&path, "old").unwrap();
    let source = file("llama");
    let options = options(FileType::Q8_0);
    let mut calls = 0;
    let result = quantize(&source, &path, &options, |done, total| {
        assert!(done <= total);
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(QuantizeError::Cancelled)));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn the_source_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.gguf");
    let write = |path: &Path| {
        let mut writer = GgufWriter::new();
        writer.tensor("x.weight", GgmlType::F32, &[2, 32], vec![0; 256]).unwrap();
        writer.write(path).unwrap();
    };
    write(&path);
    let source = Gguf::open(&path).unwrap();
    for target in [path.clone(), folder.path().join(".").join("in.gguf")] {
        let result =
            quantize(&source, target, &options(FileType::F16), |_, _| ControlFlow::Continue(()));
        assert!(matches!(result, Err(QuantizeError::SameFile { .. })));
    }
}

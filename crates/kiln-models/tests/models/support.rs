//! Fixtures and devices shared by the tests.

use std::path::PathBuf;

use kiln::format::{GgmlType, Gguf, GgufWriter, TensorInfo, Value};
use kiln::ops::Precision;
use kiln::{DType, Device, DeviceOpen, DeviceOptions, PlanOptions, SharedBytes};
use kiln_models::{Model, SamplerOptions, Session, SessionOptions};

pub(crate) const NAMES: [&str; 5] = ["llama", "llama_tied", "qwen2", "qwen3", "gemma3"];

/// The reference and every device of this build; one that this machine lacks is printed.
pub(crate) fn devices() -> Vec<Device> {
    let mut devices = vec![kiln_reference::device()];
    for name in kiln::devices() {
        match Device::open(name, &DeviceOptions::default()) {
            Ok(device) => devices.push(device),
            Err(error) => println!("skipped device {name}: {error}"),
        }
    }
    devices
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file)
}

pub(crate) fn file(name: &str) -> Gguf {
    Gguf::open(path(&format!("{name}.gguf"))).unwrap()
}

pub(crate) fn model(device: &Device, name: &str) -> Model {
    Model::load(device, &file(name)).unwrap()
}

/// Tokens and the logits that transformers computed for them.
pub(crate) struct Expected {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) vocab: usize,
}

pub(crate) fn expected(name: &str) -> Expected {
    let text = std::fs::read_to_string(path(&format!("{name}.json"))).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let integers = |key: &str| -> Vec<usize> { serde_json::from_value(json[key].clone()).unwrap() };
    let bytes = std::fs::read(path(json["logits_file"].as_str().unwrap())).unwrap();
    let logits = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Expected {
        tokens: integers("tokens").into_iter().map(|token| token as u32).collect(),
        logits,
        vocab: integers("logits_shape")[1],
    }
}

/// Exact arithmetic, f32 caches, a context of 64 tokens.
pub(crate) fn exact() -> SessionOptions {
    SessionOptions {
        context: 64,
        chunk: 64,
        kv_dtype: DType::F32,
        precision: Precision::Exact,
        sampler: SamplerOptions::default(),
        plan: PlanOptions::default(),
    }
}

pub(crate) fn session(model: &Model, options: SessionOptions) -> Session {
    Session::new(model, options).unwrap()
}

/// Mean of squared errors over mean of squares.
pub(crate) fn nmse(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let pairs = got.iter().zip(expected).map(|(&got, &want)| (f64::from(got), f64::from(want)));
    let (error, power) = pairs.fold((0.0, 0.0), |(error, power), (got, want)| {
        (error + (got - want).powi(2), power + want * want)
    });
    error / power
}

pub(crate) fn argmax(values: &[f32]) -> u32 {
    let best = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter().position(|&value| value == best).unwrap() as u32
}

/// The header of a fixture with changes; a tensor whose type or shape changes gets zeros as data.
pub(crate) fn doctored(
    name: &str,
    metadata: impl Fn(&str) -> Option<Value<'static>>,
    tensor: impl Fn(&TensorInfo) -> Option<(GgmlType, Vec<usize>)>,
    extra: &[(&str, Value<'static>)],
) -> Gguf {
    let original = file(name);
    let mut writer = GgufWriter::new();
    for (key, value) in original.metadata().iter() {
        let value = metadata(key).unwrap_or(value);
        if value != Value::from(REMOVED) {
            writer.insert(key, value).unwrap();
        }
    }
    for (key, value) in extra {
        writer.insert(*key, value.clone()).unwrap();
    }
    for info in original.tensors() {
        let same = (info.ggml_type(), info.shape().to_vec());
        let (ggml_type, shape) = tensor(info).unwrap_or(same.clone());
        if shape.is_empty() {
            continue;
        }
        if (ggml_type, shape.clone()) == same {
            writer
                .tensor(info.name(), ggml_type, &shape, original.bytes_of(info).unwrap())
                .unwrap();
            continue;
        }
        let row = ggml_type.row_bytes(shape[shape.len() - 1]).unwrap();
        let rows: usize = shape[..shape.len() - 1].iter().product();
        writer.tensor(info.name(), ggml_type, &shape, vec![0; rows * row]).unwrap();
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    Gguf::from_bytes(SharedBytes::from_vec(bytes)).unwrap()
}

/// The value that stands for a metadata entry to be left out.
pub(crate) const REMOVED: &str = "\u{0}removed";

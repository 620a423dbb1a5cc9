//! Preflight of doctored headers, and loading.

use std::ops::ControlFlow;

use crate::support::{NAMES, REMOVED, doctored, exact, file};
use kiln::format::{GgmlType, Gguf, TensorInfo, Value};
use kiln_models::{Model, ModelError, Preflight, Problem};

fn unchanged(_: &TensorInfo) -> Option<(GgmlType, Vec<usize>)> {
    None
}

fn with_key(name: &str, key: &'static str, value: Value<'static>) -> Gguf {
    doctored(name, |found| (found == key).then(|| value.clone()), unchanged, &[])
}

fn with_tensor(name: &str, tensor: &'static str, ggml_type: GgmlType, shape: &[usize]) -> Gguf {
    let change = (ggml_type, shape.to_vec());
    doctored(name, |_| None, |info| (info.name() == tensor).then(|| change.clone()), &[])
}

fn lines(file: &Gguf) -> Vec<String> {
    let lines: Vec<String> = Preflight::of(file).problems.iter().map(Problem::to_string).collect();
    assert!(lines.iter().all(|line| !line.contains('\n')));
    lines
}

#[test]
fn the_fixtures_have_no_problems() {
    for name in NAMES {
        let file = file(name);
        let preflight = Preflight::of(&file);
        assert_eq!(preflight.problems, [], "{name}");
        assert_eq!(preflight.extra_tensors, [""; 0], "{name}");
        let bytes: usize = file.tensors().iter().map(TensorInfo::byte_len).sum();
        assert_eq!(preflight.weight_bytes, bytes as u64);
        let config = preflight.config.as_ref().unwrap();
        assert_eq!(config.architecture.name(), file.architecture().unwrap());
        let memory = preflight.memory(&exact()).unwrap();
        let row = 4 * config.head_dim * config.kv_heads;
        assert_eq!(memory.kv_cache, (2 * config.layers.len() * 80 * row) as u64);
        assert_eq!(memory.total(), memory.weights + memory.kv_cache + memory.scratch);
    }
}

#[test]
fn gemma_windows_and_bases_differ_by_layer() {
    let config = Preflight::of(&file("gemma3")).config.unwrap();
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.window).collect();
    let w = Some(8);
    assert_eq!(windows, [w, w, w, w, w, None, w]);
    assert_eq!(config.layers[0].rope_factor, 1.0);
    assert_eq!(config.layers[5].rope_factor, 4.0);
    assert_eq!(config.layers[0].rope_base, 10000.0);
    assert_ne!(config.layers[5].rope_base, 10000.0);
    assert_eq!(config.embedding_scale, (config.dim as f32).sqrt());

    let pattern = |value: Value<'static>| {
        let key = "gemma3.attention.sliding_window_pattern";
        let replaced = with_key("gemma3", key, value.clone());
        let file = match replaced.metadata().get(key) {
            Some(_) => replaced,
            None => doctored("gemma3", |_| None, unchanged, &[(key, value)]),
        };
        Preflight::of(&file)
    };
    let sliding = |preflight: Preflight| -> Vec<bool> {
        preflight.config.unwrap().layers.iter().map(|layer| layer.window.is_some()).collect()
    };
    assert_eq!(sliding(pattern(Value::U32(3))), [true, true, false, true, true, false, true]);
    let array = vec![false, true, false, false, false, false, true];
    assert_eq!(sliding(pattern(Value::from(array.clone()))), array);
    let problems = pattern(Value::from(vec![true])).problems;
    assert_eq!(
        problems[0].to_string(),
        "metadata key \"gemma3.attention.sliding_window_pattern\": expected 7 booleans, one per \
         layer, got 1 booleans"
    );
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let file = with_key("llama", "general.architecture", Value::from("mamba"));
    let expected =
        r#"architecture "mamba" is not supported (supported: llama, qwen2, qwen3, gemma3)"#;
    assert_eq!(lines(&file), [expected]);
    let device = kiln_reference::device();
    let error = Model::load(&device, &file).unwrap_err();
    assert_eq!(error.to_string(), format!("the model cannot be run: {expected}"));

    let file = with_key("llama", "general.architecture", Value::from(REMOVED));
    assert_eq!(
        lines(&file),
        [r#"metadata key "general.architecture": expected a value, got nothing"#]
    );
}

#[test]
fn every_problem_of_the_tensors_is_listed() {
    let file = doctored(
        "llama",
        |_| None,
        |info| match info.name() {
            "blk.0.attn_k.weight" => Some((info.ggml_type(), Vec::new())),
            "blk.1.ffn_down.weight" => Some((GgmlType::Iq2Xxs, vec![64, 256])),
            "blk.1.attn_norm.weight" => Some((GgmlType::I32, vec![63])),
            _ => None,
        },
        &[],
    );
    let lines = lines(&file);
    assert_eq!(lines.len(), 5, "{lines:#?}");
    let found = |parts: &[&str]| {
        assert!(
            lines.iter().any(|line| parts.iter().all(|part| line.contains(part))),
            "{parts:?} in {lines:#?}"
        );
    };
    found(&["blk.0.attn_k.weight", "missing"]);
    found(&["blk.1.ffn_down.weight", "shape", "[64, 256]"]);
    found(&["blk.1.ffn_down.weight", "F32, F16, BF16, Q4_0", "IQ4_XS, got IQ2_XXS"]);
    found(&["blk.1.attn_norm.weight", "expected shape [64], got [63]"]);
    found(&["blk.1.attn_norm.weight", "expected type F32, F16, BF16, got I32"]);

    let device = kiln_reference::device();
    let error = Model::load(&device, &file).unwrap_err();
    let ModelError::Problems { problems } = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 5);
    assert_eq!(error.to_string().lines().count(), 6);
    assert_eq!(device.memory().weights, 0);
}

#[test]
fn every_problem_of_the_metadata_is_listed() {
    let file = doctored(
        "llama",
        |key| match key {
            "llama.embedding_length" => Some(Value::from(REMOVED)),
            "llama.feed_forward_length" => Some(Value::from("wide")),
            "llama.attention.layer_norm_rms_epsilon" => Some(Value::F32(f32::NAN)),
            "llama.context_length" => Some(Value::I32(-5)),
            _ => None,
        },
        unchanged,
        &[("llama.expert_count", Value::U32(8)), ("llama.rope.scaling.type", Value::from("yarn"))],
    );
    let lines = lines(&file);
    let expected = [
        r#"metadata key "llama.embedding_length": expected a positive integer, got nothing"#,
        r#"metadata key "llama.feed_forward_length": expected an integer, got string"#,
        r#"metadata key "llama.context_length": expected an integer from 0 that fits memory, got -5"#,
        r#"metadata key "llama.attention.layer_norm_rms_epsilon": expected a finite number that is not negative, got NaN"#,
        r#"metadata key "llama.rope.scaling.type": expected none or linear, got yarn"#,
        r#"metadata key "llama.expert_count": expected 0, got 8"#,
    ];
    assert_eq!(lines, expected);
}

#[test]
fn impossible_sizes_are_refused() {
    let one = |key, value, expected: &str| {
        let lines = lines(&with_key("llama", key, value));
        assert!(lines.iter().any(|line| line.contains(expected)), "{key}: {lines:#?}");
    };
    one("llama.block_count", Value::U64(1 << 40), "an integer from 1 to 2147483647");
    one("llama.block_count", Value::U32(1 << 30), "at most the file's");
    one("llama.block_count", Value::U32(0), "an integer from 1 to");
    one("llama.attention.head_count", Value::U32(0), "an integer from 1 to");
    one("llama.attention.head_count_kv", Value::U32(3), "a divisor of the 4 heads, got 3");
    one(
        "llama.attention.head_count_kv",
        Value::from(vec![2u32, 1]),
        "one value for all layers, got [2, 1]",
    );
    one("llama.embedding_length", Value::U32(1 << 30), "a multiple of 8 up to 512");
    one("llama.embedding_length", Value::U32(128), "expected shape [320, 128], got [320, 64]");
    assert_eq!(
        lines(&with_key("llama", "llama.attention.head_count_kv", Value::from(vec![2i32, 2]))),
        [""; 0]
    );
}

#[test]
fn every_kind_of_wrong_shape_names_the_tensor() {
    for (tensor, shape) in [
        ("token_embd.weight", &[320, 32][..]),
        ("blk.0.attn_q.weight", &[64]),
        ("output_norm.weight", &[1, 64]),
    ] {
        let lines = lines(&with_tensor("llama", tensor, GgmlType::F32, shape));
        assert!(lines[0].contains(tensor) && lines[0].contains("got ["), "{lines:#?}");
    }
}

#[test]
fn unknown_tensors_are_listed_and_ignored() {
    let original = file("llama");
    let mut writer = kiln::format::GgufWriter::new();
    for (key, value) in original.metadata().iter() {
        writer.insert(key, value).unwrap();
    }
    for info in original.tensors() {
        let bytes = original.bytes_of(info).unwrap();
        writer.tensor(info.name(), info.ggml_type(), info.shape(), bytes).unwrap();
    }
    writer.tensor("blk.0.mystery.weight", GgmlType::Iq2Xxs, &[256], vec![0; 66]).unwrap();
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    let file = Gguf::from_bytes(kiln::SharedBytes::from_vec(bytes)).unwrap();
    let preflight = Preflight::of(&file);
    assert_eq!(preflight.problems, []);
    assert_eq!(preflight.extra_tensors, ["blk.0.mystery.weight"]);
    assert_eq!(preflight.weight_bytes, Preflight::of(&original).weight_bytes);
    Model::load(&kiln_reference::device(), &file).unwrap();
}

#[test]
fn loading_reports_its_progress_and_can_be_stopped() {
    let device = kiln_reference::device();
    let file = file("llama");
    let mut seen = Vec::new();
    Model::load_with(&device, &file, |done, total| {
        seen.push((done, total));
        ControlFlow::Continue(())
    })
    .unwrap();
    let total = Preflight::of(&file).weight_bytes;
    assert_eq!(seen.len(), file.tensors().len() + 1);
    assert_eq!((seen[0], seen[seen.len() - 1]), ((0, total), (total, total)));
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0));

    let mut calls = 0;
    let result = Model::load_with(&device, &file, |_, _| {
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(ModelError::Cancelled)));
    assert_eq!(calls, 3);
}

#[test]
fn half_precision_vectors_are_converted() {
    let device = kiln_reference::device();
    let file = with_tensor("llama", "output_norm.weight", GgmlType::F16, &[64]);
    assert_eq!(lines(&file), [""; 0]);
    Model::load(&device, &file).unwrap();
}

#[test]
fn scales_factors_and_caps_come_from_the_metadata() {
    let config = |name: &str, extra: &[(&str, Value<'static>)]| {
        let changed = |key: &str| {
            extra.iter().find(|(extra, _)| *extra == key).map(|(_, value)| value.clone())
        };
        let original = file(name);
        let extra: Vec<_> = extra
            .iter()
            .filter(|(key, _)| original.metadata().get(key).is_none())
            .cloned()
            .collect();
        Preflight::of(&doctored(name, changed, unchanged, &extra)).config.unwrap()
    };
    let tiny = config("gemma3", &[]);
    assert_eq!(tiny.attention_scale, 1.0 / (tiny.head_dim as f32).sqrt());
    let large = config("gemma3", &[("gemma3.block_count", Value::U32(62))]);
    assert_eq!(large.attention_scale, 1.0 / ((large.dim / large.heads) as f32).sqrt());
    let base = config("gemma3", &[("gemma3.rope.freq_base_swa", Value::F32(5000.0))]);
    assert_eq!(base.layers[0].rope_base, 5000.0);
    assert_eq!(base.layers[5].rope_base, tiny.layers[5].rope_base);

    let factor = |extra: &[_]| config("llama", extra).layers[0].rope_factor;
    let scaling = ("llama.rope.scaling.factor", Value::F32(8.0));
    assert_eq!(factor(&[]), 1.0);
    assert_eq!(factor(std::slice::from_ref(&scaling)), 8.0);
    assert_eq!(factor(&[scaling, ("llama.rope.scaling.type", Value::from("none"))]), 1.0);
    assert_eq!(factor(&[("llama.rope.scale_linear", Value::F32(2.0))]), 2.0);
    let capped = config("llama", &[("llama.final_logit_softcapping", Value::F32(30.0))]);
    assert_eq!((capped.final_softcap, capped.attention_softcap), (Some(30.0), None));
    let scaled = config("llama", &[("llama.attention.scale", Value::F32(0.5))]);
    assert_eq!(scaled.attention_scale, 0.5);
}

//! `kiln bench` and `kiln profile`.

use crate::support::{fixture, json, kiln};

#[test]
fn speeds_of_a_model_are_json_on_request() {
    let model = fixture("llama.gguf");
    let options = ["-p", "16", "-n", "4", "-r", "3", "-t", "1", "--format", "json"];
    let report = json(&kiln(&[&["bench", "-m", &model], &options[..]].concat()).ok());
    for (part, tokens) in [("prefill", 16), ("decode", 4)] {
        let speed = &report[part];
        assert_eq!(speed["tokens"], tokens);
        assert_eq!(speed["runs"].as_array().unwrap().len(), 3);
        let [min, median, max] = ["min", "median", "max"].map(|key| speed[key].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{report}");
    }
    assert_eq!(report["device"], "cpu");
    assert!(report["weight_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn speeds_of_a_model_are_a_table_otherwise() {
    let model = fixture("qwen3.gguf");
    let text = kiln(&["bench", "-m", &model, "-p", "0", "-n", "2", "-r", "1", "-t", "1"]).ok();
    assert!(text.contains("decode") && !text.contains("prefill"), "{text}");
    assert!(text.contains("tokens/s"), "{text}");
}

#[test]
fn an_operation_is_measured() {
    let options = ["--op", "rms_norm", "-t", "1", "--format", "json"];
    let report = json(&kiln(&[&["bench", "ops"], &options[..]].concat()).ok());
    let rows = report["ops"].as_array().unwrap();
    assert!(!rows.is_empty(), "{report}");
    assert!(rows.iter().all(|row| row["op"] == "rms_norm" && row["gb_per_s"].as_f64() > Some(0.0)));
    kiln(&["bench", "ops", "--op", "juggle"]).error_with(&["matmul", "cached_attention"]);
}

#[test]
fn random_models_have_known_shapes_only() {
    kiln(&["bench", "--shape", "llama-9000b"]).error_with(&["llama-9000b", "llama-8b"]);
    kiln(&["bench", "--shape", "llama-8b", "--quant", "q9"]).error_with(&["q9", "q4_0"]);
    kiln(&["bench", "-m", "x", "--shape", "llama-8b"]).error_with(&["cannot be used with"]);
}

#[test]
fn a_profile_has_the_operations_and_their_sum() {
    let model = fixture("gemma3.gguf");
    let text = kiln(&["profile", "-m", &model, "-p", "8", "-n", "2", "-t", "1"]).ok();
    for part in ["prefill of 8 tokens", "decode", "matmul", "cached_attention", "total", "100.0 %"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

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
    let read = report["limits"]["read_gb_per_s"].as_f64().unwrap();
    let used = report["decode"]["median"].as_f64().unwrap()
        * report["weight_bytes"].as_f64().unwrap()
        / 1e9;
    let share = report["decode_share"].as_f64().unwrap();
    assert!((share * read / used - 1.0).abs() < 1e-9, "{report}");
}

#[test]
fn speeds_of_a_model_are_a_table_otherwise() {
    let model = fixture("qwen3.gguf");
    let text = kiln(&["bench", "-m", &model, "-p", "0", "-n", "2", "-r", "1", "-t", "1"]).ok();
    assert!(text.contains("decode") && !text.contains("prefill"), "{text}");
    assert!(text.contains("tokens/s") && text.contains("limits: "), "{text}");
}

#[test]
fn speeds_behind_a_context_are_measured() {
    let model = fixture("llama.gguf");
    let options = ["-p", "4", "-n", "2", "-d", "9", "-r", "2", "-t", "1"];
    let all = [&["bench", "-m", &model], &options[..]].concat();
    let text = kiln(&all).ok();
    assert!(text.contains("median of 2 runs behind 9 tokens"), "{text}");
    let report = json(&kiln(&[&all[..], &["--format", "json"]].concat()).ok());
    assert_eq!(report["depth"], 9);
    assert_eq!(report["prefill"]["runs"].as_array().unwrap().len(), 2);
    kiln(&["bench", "-m", &model, "-d", "18446744073709551615"]).error_with(&["context"]);
}

#[test]
fn a_peer_is_run_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let peer = dir.path().join("peer");
    let tests = r#"[{"n_prompt":16,"n_gen":0,"avg_ts":4.0},{"n_prompt":0,"n_gen":2,"avg_ts":2.0}]"#;
    std::fs::write(&peer, format!("echo '{tests}'; echo \"$@\" >> '{}.log'\n", peer.display()))
        .unwrap();
    let (model, command) = (fixture("llama.gguf"), format!("sh {} -fa 1", peer.display()));
    let options = ["-p", "16", "-n", "2", "-d", "3", "-r", "2", "-t", "1", "--compare", &command];
    let all = [&["bench", "-m", &model], &options[..]].concat();
    let text = kiln(&all).ok();
    assert!(text.contains("in turn with") && text.contains("ratio"), "{text}");
    let log = std::fs::read_to_string(dir.path().join("peer.log")).unwrap();
    let expected = format!("-fa 1 -m {model} -p 16 -n 2 -t 1 -d 3 -r 1 -o json");
    assert_eq!(log.lines().collect::<Vec<_>>(), vec![expected; 3]);
    let report = json(&kiln(&[&all[..], &["--format", "json"]].concat()).ok());
    let ratio = report["prefill"]["median"].as_f64().unwrap() / 4.0;
    let printed = report["peer"]["prefill"]["of_medians"].as_f64().unwrap();
    assert!((printed / ratio - 1.0).abs() < 1e-12, "{printed} {ratio}");
    let options = ["-r", "1", "-p", "16", "-n", "0", "-t", "1", "--compare", "/nowhere/peer"];
    kiln(&[&["bench", "-m", &model], &options[..]].concat()).error_with(&["/nowhere/peer"]);
}

#[test]
fn a_random_model_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shape.gguf").display().to_string();
    kiln(&["bench", "--shape", "smollm2-135m", "--quant", "q4_0", "--save", &file]).ok();
    let text = kiln(&["bench", "-m", &file, "-p", "4", "-n", "0", "-r", "1", "-t", "1"]).ok();
    assert!(text.contains("prefill"), "{text}");
    kiln(&["bench", "-m", &file, "--save", &file]).error_with(&["--shape"]);
}

#[test]
fn an_operation_is_measured() {
    let options = ["--op", "rms_norm", "-t", "1", "--format", "json"];
    let report = json(&kiln(&[&["bench", "ops"], &options[..]].concat()).ok());
    let rows = report["ops"].as_array().unwrap();
    assert!(!rows.is_empty(), "{report}");
    assert!(rows.iter().all(|row| row["op"] == "rms_norm" && row["gb_per_s"].as_f64() > Some(0.0)));
    assert!(rows.iter().all(|row| row["share"].as_f64() > Some(0.0)), "{report}");
    for limit in ["read_gb_per_s", "dot_gop_per_s"] {
        assert!(report["limits"][limit].as_f64() > Some(0.0), "{report}");
    }
    assert!(rows.iter().all(|row| row["error"].is_null()), "{report}");
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

#[test]
fn results_of_another_device_are_compared_with_the_cpu() {
    let options = ["--device", "metal-host", "--op", "kv_append", "--format", "json"];
    let report = json(&kiln(&[&["bench", "ops"], &options[..]].concat()).ok());
    let rows = report["ops"].as_array().unwrap();
    assert!(!rows.is_empty() && report["limits"].is_null(), "{report}");
    assert!(rows.iter().all(|row| row["error"] == 0.0), "{report}");
}

#[test]
fn cases_that_take_a_cpu_minutes_are_left_out() {
    let options = ["bench", "ops", "--device", "cpu", "--case", "tokens=16384"];
    kiln(&options).error_with(&["no measurement"]);
}

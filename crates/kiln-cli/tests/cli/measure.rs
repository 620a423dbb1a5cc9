//! `kiln logits` and `kiln perplexity` on a model whose logits transformers computed.

use std::path::Path;

use crate::support::{fixture, json, kiln, text};

/// Writes the tokens of a fixture as little-endian u32.
fn write_tokens(name: &str, path: &Path) -> usize {
    let fixture = json(&std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap());
    let tokens = fixture["tokens"].as_array().unwrap();
    let bytes = tokens.iter().flat_map(|token| (token.as_u64().unwrap() as u32).to_le_bytes());
    std::fs::write(path, bytes.collect::<Vec<u8>>()).unwrap();
    tokens.len()
}

#[test]
fn logits_agree_with_their_reference() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&directory.path().join(name));
    for name in ["llama", "qwen3", "gemma3"] {
        let count = write_tokens(name, Path::new(&path("tokens")));
        let (model, reference) =
            (fixture(&format!("{name}.gguf")), fixture(&format!("{name}.f32")));
        let common = ["-m", &model, "--tokens", &path("tokens"), "--exact", "-t", "1"];
        let with = |command: &str, options: &[&str]| {
            kiln(&[&[command], &common[..], &["--kv-type", "f32"], options].concat()).ok()
        };
        let options = ["--reference", &reference, "--format", "json"];
        let report = json(&with("perplexity", &options));
        assert_eq!(report["tokens"], count);
        assert_eq!(report["predicted"], count - 1);
        assert!(report["reference"]["nmse"].as_f64().unwrap() < 1e-5, "{report}");
        assert_eq!(report["reference"]["top1_agreement"], 1.0);

        assert_eq!(with("logits", &["--out", &path("logits")]), "");
        let options = ["--reference", &path("logits"), "--format", "json"];
        let same = json(&with("perplexity", &options));
        assert_eq!(same["reference"]["nmse"], 0.0, "{name}");
        assert_eq!(same["reference"]["mean_nll"], same["mean_nll"]);
    }
}

#[test]
fn references_of_another_size_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&directory.path().join(name));
    write_tokens("llama", Path::new(&path("tokens")));
    let model = fixture("llama.gguf");
    let arguments = ["perplexity", "-m", &model, "--tokens", &path("tokens"), "--reference"];
    kiln(&[&arguments[..], &[&path("tokens")]].concat()).error_with(&["160 bytes", "51200"]);

    std::fs::write(path("odd"), [1, 2, 3]).unwrap();
    let arguments = ["logits", "-m", &model, "--tokens", &path("odd"), "--out", &path("out")];
    kiln(&arguments).error_with(&["3 bytes", "4 bytes each"]);
    std::fs::write(path("large"), u32::MAX.to_le_bytes()).unwrap();
    let arguments = ["logits", "-m", &model, "--tokens", &path("large"), "--out", &path("out")];
    kiln(&arguments).error_with(&["4294967295", "320 tokens"]);
}

#[test]
fn a_text_is_cut_into_windows() {
    let directory = tempfile::tempdir().unwrap();
    let file = text(&directory.path().join("text"));
    std::fs::write(&file, "once upon a time there was a small model").unwrap();
    let model = fixture("llama.gguf");
    let report = |ctx| {
        let options = ["-f", &file, "--ctx", ctx, "-t", "1", "--format", "json"];
        json(&kiln(&[&["perplexity", "-m", &model], &options[..]].concat()).ok())
    };
    let (whole, windows) = (report("512"), report("8"));
    let tokens = whole["tokens"].as_u64().unwrap();
    assert_eq!(whole["predicted"], tokens - 1);
    assert_eq!(windows["predicted"], tokens - tokens.div_ceil(8));
    kiln(&["perplexity", "-m", &model, "-f", &file, "--ctx", "1"]).error_with(&["at least 2"]);
}

//! `kiln inspect`.

use crate::support::{fixture, kiln};

#[test]
fn a_model_that_runs_is_described() {
    let text = kiln(&["inspect", &fixture("gemma3.gguf")]).ok();
    for part in ["gemma3", "parameters", "tensors", "F32", "memory", "window", "runs: no problems"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("blk.0.attn_q.weight") && !text.contains('\x1b'));
}

#[test]
fn tensors_are_listed_on_request() {
    let text = kiln(&["inspect", "--tensors", &fixture("qwen3.gguf")]).ok();
    assert!(text.contains("blk.0.attn_q_norm.weight") && text.contains("token_embd.weight"));
}

#[test]
fn output_is_the_same_with_and_without_colours_off_a_terminal() {
    let model = fixture("llama.gguf");
    let mut command = crate::support::command(&["inspect", &model]);
    let plain = command.env("NO_COLOR", "1").output().unwrap().stdout;
    assert_eq!(String::from_utf8(plain).unwrap(), kiln(&["inspect", &model]).ok());
}

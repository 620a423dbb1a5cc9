//! What users get wrong: one line each, with the next step.

use crate::support::{fixture, kiln};

#[test]
fn without_a_model_the_one_that_ships_is_used_and_named() {
    let commands = [
        &["generate", "Once upon a time", "-n", "4"][..],
        &["bench", "-p", "4", "-n", "2", "-r", "1"],
        &["profile", "-p", "4", "-n", "1"],
        &["tokenize", "hi"],
        &["inspect"],
    ];
    for command in commands {
        let run = kiln(command);
        let first = run.stderr.lines().next().unwrap_or_default().to_owned();
        assert!(first.contains("ships with kiln") && first.contains("-m FILE"), "{run:?}");
        run.ok();
    }
}

#[test]
fn usage_errors_are_one_line_and_name_the_help() {
    kiln(&["generate", "--tmp", "0"]).error_with(&["--tmp", "--temp", "`kiln generate --help`"]);
    kiln(&["paint"]).error_with(&["paint", "`kiln --help`"]);
    kiln(&["generate", "-m", "x", "a", "-p", "b"]).error_with(&["cannot be used with"]);
    kiln(&["perplexity", "-m", "x"]).error_with(&["required", "--file"]);
    kiln(&["generate", "-m", "x", "-n", "some", "hi"]).error_with(&[
        "some",
        "--max-tokens",
        "`kiln generate --help`",
    ]);
    kiln(&["bench", "-m", "x", "-r", "0"]).error_with(&["--repeats", "`kiln bench --help`"]);
}

#[test]
fn without_a_prompt_the_error_says_how_to_give_one() {
    let model = fixture("llama.gguf");
    kiln(&["generate", "-m", &model]).error_with(&["no prompt", "-p TEXT", "--prompt-file"]);
}

#[test]
fn unknown_devices_and_threads_are_refused() {
    let model = fixture("llama.gguf");
    let with = |options: &[&str]| kiln(&[&["generate", "-m", &model, "hi"], options].concat());
    with(&["--device", "abacus"]).error_with(&["abacus", "cpu"]);
    with(&["-t", "0"]).error_with(&["at least 1 thread"]);
    with(&["-t", "many"]).error_with(&["many", "from 1 to"]);
    with(&["--instruction-set", "z80"]).error_with(&["z80", "choose from", "scalar"]);
    kiln(&["verify", "--device", "abacus"]).error_with(&["abacus", "cpu"]);
}

#[cfg(not(target_os = "macos"))]
#[test]
fn metal_elsewhere_is_refused_with_advice() {
    let advice = ["metal", "only on macOS", "metal-host"];
    kiln(&["generate", "--device", "metal", "hi"]).error_with(&advice);
    kiln(&["verify", "--device", "metal", "--require", "metal"]).error_with(&advice);
}

#[test]
fn wrong_paths_are_named() {
    kiln(&["generate", "-m", "nowhere.gguf", "hi"]).error_with(&["nowhere.gguf", "check the path"]);
    kiln(&["inspect", "."]).error_with(&["not a regular file"]);
    let model = fixture("llama.gguf");
    kiln(&["generate", "-m", &model, "--prompt-file", "no.txt"])
        .error_with(&["no.txt", "check the path"]);
    let arguments = ["logits", "-m", &model, "--tokens", "no.u32", "--out", "x.f32"];
    kiln(&arguments).error_with(&["no.u32", "check the path"]);
}

#[test]
fn prompts_beyond_the_context_are_measured_against_it() {
    let model = fixture("llama.gguf");
    let long = "hello ".repeat(500);
    let with = |options: &[&str]| kiln(&[&["generate", "-m", &model, &long], options].concat());
    with(&["--ctx", "8"]).error_with(&["the prompt needs ", "capacity of 8", "--ctx"]);
    with(&[]).error_with(&["the prompt needs ", "trained for", "--ctx"]);
}

#[test]
fn a_context_beyond_the_memory_is_refused_with_figures() {
    let model = fixture("llama.gguf");
    let run = kiln(&["generate", "-m", &model, "hi", "--ctx", "2147483647", "--kv-type", "f32"]);
    if std::path::Path::new("/proc/meminfo").exists() {
        run.error_with(&["2147483647 tokens", "GiB", "available", "give --ctx"]);
    } else {
        run.error();
    }
}

#[test]
fn sampling_options_out_of_range_are_refused() {
    let model = fixture("llama.gguf");
    let with = |options: &[&str]| kiln(&[&["generate", "-m", &model, "hi"], options].concat());
    with(&["--temp=-1"]).error_with(&["temperature", "-1"]);
    with(&["--top-p", "0"]).error_with(&["top_p"]);
    with(&["--kv-type", "q4_0"]).error_with(&["q4_0", "q8_0"]);
}

#[test]
fn chat_needs_a_template() {
    let model = fixture("qwen3.gguf");
    kiln(&["generate", "-m", &model, "--chat", "hi"]).error_with(&["chat template"]);
}

#[test]
fn help_has_examples_and_completions_work() {
    for command in
        ["generate", "inspect", "quantize", "bench", "verify", "profile", "tokenize", "perplexity"]
    {
        let help = kiln(&[command, "--help"]).ok();
        assert!(help.contains("Examples:") && help.contains(&format!("kiln {command}")), "{help}");
    }
    assert!(kiln(&["--help"]).ok().contains("Examples:"));
    assert!(kiln(&["--version"]).ok().starts_with("kiln "));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = kiln(&["completions", shell]).ok();
        assert!(script.contains("generate") && script.contains("prompt-file"), "{shell}");
    }
    let nothing = kiln(&[]);
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.stderr.contains("Examples:"));
}

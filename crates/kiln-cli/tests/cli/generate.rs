//! `kiln generate` and `kiln tokenize`.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Run, command, fixture, kiln};

fn generate(arguments: &[&str]) -> Run {
    let model = fixture("llama.gguf");
    kiln(&[&["generate", "-m", &model, "-t", "1"], arguments].concat())
}

#[test]
fn standard_output_is_the_text_and_standard_error_the_speeds() {
    let run = generate(&["-p", "hello", "-n", "8", "--temp", "0"]);
    assert!(run.stdout.ends_with('\n'));
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    for part in ["prompt ", "generated ", "tokens/s", "load "] {
        assert!(run.stderr.contains(part), "{run:?}");
    }
    assert!(!run.stderr.contains('\x1b') && !run.stdout.contains("tokens/s"));
    run.ok();
}

#[test]
fn greedy_text_repeats_on_any_number_of_threads() {
    let model = fixture("llama.gguf");
    let text = |threads| {
        let options = ["-n", "12", "--temp", "0", "-t", threads, "hello"];
        kiln(&[&["generate", "-m", &model], &options[..]].concat()).ok()
    };
    assert_eq!(text("1"), text("2"));
    assert_eq!(text("1"), text("1"));
}

#[test]
fn seeds_choose_the_text() {
    let text = |seed| generate(&["hello", "-n", "24", "--temp", "2", "--seed", seed]).ok();
    assert_eq!(text("1"), text("1"));
    let texts = ["1", "2", "3", "4"].map(text);
    assert!(texts.iter().any(|other| *other != texts[0]), "{texts:?}");
}

#[test]
fn a_prompt_comes_from_an_argument_a_file_or_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prompt.txt");
    std::fs::write(&path, "hello\n").unwrap();
    let options = ["-n", "6", "--temp", "0"];
    let text = |prompt: &[&str]| generate(&[prompt, &options[..]].concat()).ok();
    let expected = text(&["-p", "hello"]);
    assert_eq!(text(&["hello"]), expected);
    assert_eq!(text(&["--prompt-file", path.to_str().unwrap()]), expected);

    let model = fixture("llama.gguf");
    let arguments = ["generate", "-m", &model, "-t", "1", "--prompt-file", "-"];
    let mut child = command(&[&arguments[..], &options[..]].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(Run::from(child.wait_with_output().unwrap()).ok(), expected);
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let model = fixture("llama.gguf");
    let mut child = command(&["generate", "-m", &model, "-t", "1", "hello", "-n", "64"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run = Run::from(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:?}");
}

#[test]
fn a_full_context_ends_the_text_and_says_so() {
    let run = generate(&["hello", "-n", "200", "--ctx", "16", "--temp", "2"]);
    assert!(run.stderr.contains("the context of 16 tokens is full"), "{run:?}");
    run.ok();
}

#[test]
fn exact_arithmetic_and_other_caches_run() {
    for options in [&["--exact"][..], &["--kv-type", "f32"], &["--kv-type", "bf16"]] {
        generate(&[&["hello", "-n", "4"], options].concat()).ok();
    }
}

#[test]
fn a_prompt_cache_is_written_and_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache");
    let cache = ["--prompt-cache", path.to_str().unwrap(), "--ctx", "64"];
    let run = |prompt| generate(&[&[prompt, "-n", "6", "--temp", "0"], &cache[..]].concat());
    let first = run("hello hello hello");
    assert!(first.stderr.contains("| 0 tokens reused"), "{first:?}");
    let second = run("hello hello hello");
    assert!(!second.stderr.contains("| 0 tokens reused"), "{second:?}");
    assert_eq!(first.ok(), second.ok());
    run("hello there").ok();

    let other = fixture("qwen3.gguf");
    let arguments = [&["generate", "-m", &other, "hello"], &cache[..]].concat();
    kiln(&arguments).error_with(&["saved context", "model", "delete the file"]);
    std::fs::write(&path, "not a cache").unwrap();
    run("hello").error_with(&["cache"]);
}

#[test]
fn every_architecture_runs() {
    for name in ["llama", "llama_tied", "qwen2", "qwen3", "gemma3"] {
        let model = fixture(&format!("{name}.gguf"));
        kiln(&["generate", "-m", &model, "-t", "1", "hello", "-n", "4"]).ok();
    }
}

#[test]
fn tokens_are_listed_with_their_pieces() {
    let model = fixture("llama.gguf");
    let lines = kiln(&["tokenize", "-m", &model, "hello"]).ok();
    let ids = kiln(&["tokenize", "-m", &model, "--ids", "hello"]).ok();
    let first = lines.lines().map(|line| line.split_whitespace().next().unwrap());
    assert_eq!(first.collect::<Vec<_>>(), ids.split_whitespace().collect::<Vec<_>>());
    assert!(lines.lines().all(|line| line.trim_end().ends_with('"')), "{lines}");
    let bare = kiln(&["tokenize", "-m", &model, "--ids", "--bare", "hello"]).ok();
    assert!(ids.trim_end().ends_with(bare.trim_end()), "{ids} {bare}");
}

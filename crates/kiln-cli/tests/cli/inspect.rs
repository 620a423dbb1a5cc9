//! `kiln inspect`.

use kiln::format::{Gguf, GgufWriter};

use crate::support::{fixture, kiln, text};

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
    let plain = String::from_utf8(command.env("NO_COLOR", "1").output().unwrap().stdout).unwrap();
    // The machine's free memory moves between two runs.
    let lasting = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.contains("are available")).map(str::to_owned).collect()
    };
    assert_eq!(lasting(&plain), lasting(&kiln(&["inspect", &model]).ok()));
}

#[test]
fn parts_of_a_split_model_are_one_model() {
    let directory = tempfile::tempdir().unwrap();
    let part = |number| text(&directory.path().join(format!("m-0000{number}-of-00002.gguf")));
    let file = Gguf::open(fixture("llama.gguf")).unwrap();
    let (first, second) = file.tensors().split_at(5);
    for (number, tensors) in [(0u16, first), (1, second)] {
        let mut writer = GgufWriter::new();
        for (key, value) in file.metadata().iter().filter(|_| number == 0) {
            writer.insert(key, value).unwrap();
        }
        writer.insert("split.count", 2u16).unwrap();
        writer.insert("split.no", number).unwrap();
        for tensor in tensors {
            let bytes = file.bytes_of(tensor).unwrap();
            let bytes = bytes.as_ref().to_vec();
            writer.tensor(tensor.name(), tensor.ggml_type(), tensor.shape(), bytes).unwrap();
        }
        writer.write(part(number + 1)).unwrap();
    }
    let inspected = kiln(&["inspect", &part(1)]).ok();
    assert!(inspected.contains("in 2 parts") && inspected.contains("runs: no problems"));
    let generate = |model: &str| {
        kiln(&["generate", "-m", model, "-t", "1", "hello", "-n", "8", "--temp", "0"])
    };
    assert_eq!(generate(&part(1)).ok(), generate(&fixture("llama.gguf")).ok());

    kiln(&["inspect", &part(2)]).error_with(&["part 2", "open the first part"]);
    std::fs::remove_file(part(2)).unwrap();
    generate(&part(1)).error_with(&["part 2 of 2 is missing", "download"]);
}

//! The model in `assets/`: its logits against those of transformers, and the text it writes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use kiln::format::Gguf;
use kiln::{Device, DeviceOpen, DeviceOptions};
use kiln_models::tokenizer::{EncodeOptions, Tokenizer};
use kiln_models::{Finish, GenerateOptions, Generator, Model, SessionOptions};

use crate::support::{devices, exact, nmse, session};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn story() -> Gguf {
    Gguf::open(root().join("assets/story.gguf")).unwrap()
}

fn options() -> SessionOptions {
    SessionOptions { context: 512, chunk: 128, ..exact() }
}

/// Greedy text of at most so many tokens after "Once upon a time", and why it ended.
fn greedy(device: &Device, max_tokens: usize) -> (String, Finish) {
    let file = story();
    let model = Model::load(device, &file).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let prompt = tokenizer
        .encode("Once upon a time", EncodeOptions { add_special: true, ..Default::default() });
    let mut session = session(&model, options());
    let options = GenerateOptions { max_tokens, ..Default::default() };
    let generator = Generator::new(&mut session, &tokenizer, &prompt, options).unwrap();
    let generation = generator.run(|_| ControlFlow::Continue(())).unwrap();
    (generation.text, generation.finish)
}

#[test]
fn logits_of_the_story_model_are_those_of_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let text = std::fs::read_to_string(fixtures.join("story.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let prompts: Vec<Vec<u32>> = serde_json::from_value(json["prompts"].clone()).unwrap();
    let integer = |key: &str| json[key].as_u64().unwrap() as usize;
    let (last, vocab) = (integer("last"), integer("vocab"));
    let bytes = std::fs::read(fixtures.join(json["logits_file"].as_str().unwrap())).unwrap();
    let expected: Vec<f32> =
        bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    assert_eq!(expected.len(), prompts.len() * last * vocab);
    for device in devices() {
        let model = Model::load(&device, &story()).unwrap();
        for (prompt, expected) in prompts.iter().zip(expected.chunks_exact(last * vocab)) {
            let logits = session(&model, options()).logits_all(prompt).unwrap();
            let error = nmse(&logits[logits.len() - expected.len()..], expected);
            println!("{} {} tokens: NMSE {error:.2e}", device.name(), prompt.len());
            assert!(error <= 1e-5, "{} {} tokens: NMSE {error:e}", device.name(), prompt.len());
        }
    }
}

fn pinned() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/story.txt");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn metal_kernels_on_the_host_begin_the_same_story() {
    // The folder is that of the conformance tests, which have compiled most of the kernels.
    let kernel_cache = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    match Device::open("metal-host", &DeviceOptions { kernel_cache, ..Default::default() }) {
        Ok(device) => {
            let (text, finish) = greedy(&device, 5);
            assert_eq!(finish, Finish::MaxTokens);
            assert!(text.len() > 5 && pinned().starts_with(&text), "{text:?}");
        }
        Err(error) => println!("skipped device metal-host: {error}"),
    }
}

#[test]
fn greedy_text_of_the_story_model_is_pinned() {
    let expected = pinned();
    for name in kiln::devices() {
        match Device::open(name, &DeviceOptions::default()) {
            Ok(device) => {
                let (text, finish) = greedy(&device, 400);
                assert_eq!(text, expected.trim_end_matches('\n'), "{name}");
                assert_eq!(finish, Finish::EndOfText, "{name}");
            }
            Err(error) => println!("skipped device {name}: {error}"),
        }
    }
}

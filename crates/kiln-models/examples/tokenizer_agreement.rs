//! Compares the tokenizer of a model file with recorded token ids.
//!
//! `tokenizer_agreement MODEL.gguf CASES.json` reads `{"cases": [{"text", "tokens",
//! "tokens_special"}]}`: the ids of the text alone, and with special tokens parsed and added. Each
//! field of ids may be missing. It prints every text that differs, how many agree, and how many
//! decode to themselves.

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use kiln::format::Gguf;
use kiln_models::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::Value;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, cases] = arguments.as_slice() else {
        return Err("usage: tokenizer_agreement MODEL.gguf CASES.json".into());
    };
    let file = Gguf::open(model)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let loaded = start.elapsed();
    let document: Value = serde_json::from_slice(&std::fs::read(cases)?)?;
    let cases = document["cases"].as_array().ok_or("no list of cases")?;

    let (mut checked, mut agreed, mut round_trips, mut bytes) = (0, 0, 0, 0);
    let start = Instant::now();
    for case in cases {
        let text = case["text"].as_str().ok_or("a case without text")?;
        let plain = EncodeOptions::default();
        let special = EncodeOptions { add_special: true, parse_special: true };
        for (field, options) in [("tokens_special", special), ("tokens", plain)] {
            let Some(expected) = case[field].as_array() else { continue };
            let ids = tokenizer.encode(text, options);
            checked += 1;
            bytes += text.len();
            if expected.iter().map(Value::as_u64).eq(ids.iter().map(|&id| Some(id.into()))) {
                agreed += 1;
            } else {
                println!("{field} of {text:?}\n  expected {}\n  got      {ids:?}", case[field]);
            }
        }
        round_trips += usize::from(tokenizer.decode(&tokenizer.encode(text, plain)) == text);
    }
    for warning in tokenizer.warnings() {
        println!("warning: {warning}");
    }
    println!(
        "{model}: {agreed} of {checked} agree, {round_trips} of {} decode to themselves; \
         loaded in {loaded:?}, {bytes} bytes in {:?}",
        cases.len(),
        start.elapsed()
    );
    Ok(if agreed == checked { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

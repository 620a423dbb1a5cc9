//! The tokenizers of the fixture models against ids recorded from llama.cpp.

use kiln::format::Gguf;
use kiln_models::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::Value;

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn ids(list: &Value) -> Vec<u32> {
    let ids = list.as_array().unwrap().iter();
    ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn ids_agree_with_llama_cpp() {
    let recorded: Value =
        serde_json::from_slice(&std::fs::read(fixture("tokenizer.json")).unwrap()).unwrap();
    let texts = recorded["texts"].as_array().unwrap();
    let mut compared = 0;
    for (model, expected) in recorded["models"].as_object().unwrap() {
        let file = Gguf::open(fixture(&format!("{model}.gguf"))).unwrap();
        let tokenizer = Tokenizer::from_gguf(&file).unwrap();
        assert_eq!(tokenizer.warnings(), [], "{model}");
        for (index, text) in texts.iter().enumerate() {
            let text = text.as_str().unwrap();
            let plain = tokenizer.encode(text, EncodeOptions::default());
            assert_eq!(plain, ids(&expected["plain"][index]), "{model}, plain: {text:?}");
            assert_eq!(tokenizer.decode(&plain), text, "{model}");

            let options = EncodeOptions { add_special: true, parse_special: true };
            let mut special = ids(&expected["special"][index]);
            // llama.cpp adds the begin token to a text that begins with it.
            if special.len() > 1 && special[0] == special[1] && tokenizer.bos() == Some(special[0])
            {
                special.remove(0);
            }
            assert_eq!(tokenizer.encode(text, options), special, "{model}, special: {text:?}");
            compared += 2;
        }
    }
    assert_eq!(compared, 2 * 5 * texts.len());
}

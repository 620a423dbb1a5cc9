//! The seed files of the fuzzer.

use std::fs;
use std::path::Path;

use crate::builder::*;

#[test]
fn fuzz_seeds_are_what_their_names_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/gguf");
    let mut seen = [0, 0];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let valid = name.starts_with("valid-");
        if !valid && !name.starts_with("malformed-") {
            continue;
        }
        seen[usize::from(valid)] += 1;
        assert_eq!(open(fs::read(&path).unwrap()).is_ok(), valid, "{name}");
    }
    assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
}

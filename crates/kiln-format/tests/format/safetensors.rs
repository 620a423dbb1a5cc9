//! The safetensors reader, and what it guards beyond the `safetensors` crate.

use kiln_core::{DType, SharedBytes};
use kiln_format::{FormatError, Safetensors};

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn open(bytes: Vec<u8>) -> Result<Safetensors, FormatError> {
    Safetensors::from_bytes(SharedBytes::from_vec(bytes))
}

const SAMPLE: &str = r#"{"__metadata__":{"format":"pt"},
    "b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},
    "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
    "ids":{"dtype":"I64","shape":[1],"data_offsets":[12,20]}}"#;

#[test]
fn tensors_are_read_in_place() {
    let data: Vec<u8> = (0..20).collect();
    let file = open(file(SAMPLE, &data)).unwrap();
    let names: Vec<&str> = file.tensors().iter().map(|tensor| tensor.name()).collect();
    assert_eq!(names, ["a", "b", "ids"]);
    assert_eq!(file.metadata()["format"], "pt");
    let tensor = file.tensor("b").unwrap();
    assert_eq!(tensor.shape(), [2, 2]);
    assert_eq!(tensor.dtype().unwrap(), DType::BF16);
    assert_eq!(tensor.byte_len(), 8);
    assert_eq!(file.tensor_bytes("b").unwrap().as_ref(), &data[4..12]);
    assert_eq!(file.tensor("a").unwrap().dtype().unwrap(), DType::F32);
    assert!(matches!(file.tensor("c"), Err(FormatError::MissingTensor { .. })));
}

#[test]
fn types_without_kernels_are_refused_when_asked_for() {
    let file = open(file(SAMPLE, &[0; 20])).unwrap();
    assert_eq!(file.tensor("ids").unwrap().dtype_name(), "I64");
    let message = file.tensor("ids").unwrap().dtype().unwrap_err().to_string();
    assert!(message.contains(r#"tensor "ids" has type I64"#), "{message}");
    assert!(message.contains("F32, F16, BF16, U8, U32"), "{message}");
}

#[test]
fn each_supported_type_has_its_own() {
    for (name, bytes, dtype) in [
        ("F32", 4, DType::F32),
        ("F16", 2, DType::F16),
        ("BF16", 2, DType::BF16),
        ("U8", 1, DType::U8),
        ("U32", 4, DType::U32),
    ] {
        let header =
            format!(r#"{{"t":{{"dtype":"{name}","shape":[1],"data_offsets":[0,{bytes}]}}}}"#);
        let file = open(file(&header, &vec![0; bytes])).unwrap();
        assert_eq!(file.tensor("t").unwrap().dtype().unwrap(), dtype);
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = file(SAMPLE, &[0; 20]);
    for len in 0..bytes.len() {
        assert!(open(bytes[..len].to_vec()).is_err(), "cut to {len}");
    }
}

#[test]
fn malformed_headers_are_refused() {
    let one = |tensor: &str| format!(r#"{{"t":{tensor}}}"#);
    let huge = usize::MAX;
    let tensor = |shape: &str, start: usize, end: usize| {
        one(&format!(r#"{{"dtype":"U8","shape":{shape},"data_offsets":[{start},{end}]}}"#))
    };
    type Check = fn(&FormatError) -> bool;
    let invalid: Check = |error| matches!(error, FormatError::Safetensors { .. });
    let truncated: Check = |error| matches!(error, FormatError::Truncated { .. });
    let cases: Vec<(&str, Vec<u8>, Check)> = vec![
        ("no length", vec![1, 2, 3], truncated),
        ("length 2^64 - 1", [&[0xff; 8][..], b"{}"].concat(), truncated),
        ("not json", file("hello", &[]), invalid),
        ("not utf-8", [&2u64.to_le_bytes()[..], &[0xff, 0xff]].concat(), invalid),
        ("an array", file("[]", &[]), invalid),
        (
            "unknown dtype",
            file(&one(r#"{"dtype":"Q4","shape":[1],"data_offsets":[0,1]}"#), &[0]),
            invalid,
        ),
        ("missing offsets", file(&one(r#"{"dtype":"U8","shape":[1]}"#), &[0]), invalid),
        ("negative length", file(&tensor("[-1]", 0, 1), &[0]), invalid),
        (
            "unknown field",
            file(&one(r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":0}"#), &[0]),
            invalid,
        ),
        ("9 axes", file(&tensor("[1,1,1,1,1,1,1,1,1]", 0, 1), &[0]), invalid),
        ("shape overflows", file(&tensor(&format!("[{huge},2]"), 0, 1), &[0]), invalid),
        ("wrong size", file(&tensor("[2]", 0, 1), &[0]), invalid),
        ("end before start", file(&tensor("[1]", 1, 0), &[0]), invalid),
        ("does not begin at 0", file(&tensor("[1]", 1, 2), &[0, 0]), invalid),
        ("past the end", file(&tensor("[2]", 0, 2), &[0]), truncated),
        ("offset wraps", file(&tensor(&format!("[{huge}]"), 0, huge), &[0]), truncated),
        ("bytes left over", file(&tensor("[1]", 0, 1), &[0, 0]), invalid),
        (
            "duplicate name",
            file(
                r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                "t":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#,
                &[0],
            ),
            invalid,
        ),
        ("a GGUF file", b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), invalid),
        ("terminal codes", file(&one("{\"\x7f\u{9b}2J\":1}"), &[]), invalid),
        ("deep nesting", file(&"[".repeat(100_000), &[]), invalid),
    ];
    for (name, bytes, expected) in cases {
        let error = open(bytes).expect_err(name);
        assert!(expected(&error), "{name}: {error:?}");
        let message = error.to_string();
        assert!(message.chars().all(|c| !c.is_control()), "{name}: {message:?}");
    }
}

#[test]
fn a_length_that_makes_the_sum_wrap_is_refused() {
    // Offsets chosen so that data end + 8 + header length is the file's length modulo 2^64.
    let header = |end: usize| {
        format!(r#"{{"t":{{"dtype":"U8","shape":[{end}],"data_offsets":[0,{end}]}}}}"#)
    };
    let digits = header(usize::MAX).len();
    for data in 0..64 {
        let end = usize::MAX - data;
        let bytes = file(&header(end), &vec![0; data]);
        assert_eq!(bytes.len(), 8 + digits + data);
        assert!(matches!(open(bytes), Err(FormatError::Truncated { .. })));
    }
}

//! Values and tensors of well-formed files.

use kiln_core::DType;
use kiln_format::{
    Array, ElementType, FormatError, GgmlType, Gguf, PerLayer, TypeTotal, Value, ValueType,
};

use crate::builder::*;

fn sample_file() -> Gguf {
    open(sample().build()).unwrap()
}

#[test]
fn versions_2_and_3_are_read() {
    for version in [2, 3] {
        let file = open(Pieces { version, ..sample() }.build()).unwrap();
        assert_eq!(file.version(), version);
        assert_eq!(file.architecture().unwrap(), "llama");
        assert_eq!(file.parts(), 1);
        assert_eq!(file.alignment(), 32);
    }
}

#[test]
fn values_of_every_type() {
    let file = sample_file();
    let get = |key| file.metadata().get(key).unwrap();
    assert_eq!(get("u8"), Value::U8(200));
    assert_eq!(get("i8"), Value::I8(-3));
    assert_eq!(get("u16"), Value::U16(60000));
    assert_eq!(get("i16"), Value::I16(-30000));
    assert_eq!(get("u32"), Value::U32(4_000_000_000));
    assert_eq!(get("i32"), Value::I32(-5));
    assert_eq!(get("f32"), Value::F32(1.5));
    assert_eq!(get("bool"), Value::Bool(true));
    assert_eq!(get("u64"), Value::U64(1 << 40));
    assert_eq!(get("i64"), Value::I64(-(1 << 40)));
    assert_eq!(get("f64"), Value::F64(0.1));
    assert_eq!(get("general.architecture"), Value::from("llama"));
    assert_eq!(get("general.architecture").as_str(), Some("llama"));
    assert_eq!(get("raw"), Value::String(vec![0xff, 0xfe].into()));
    assert_eq!(get("raw").as_str(), None);
    assert_eq!(get("scores"), Value::from(vec![0.5f32, -1.0]));
    assert_eq!(get("types"), Value::from(vec![1i32, 2, -1]));
    assert_eq!(get("bools"), Value::from(vec![true, false, true]));
    assert_eq!(get("empty").value_type(), ValueType::Array(ElementType::U64));
    assert!(file.metadata().get("absent").is_none());
    assert_eq!(file.metadata().len(), 19);
    assert!(!file.metadata().is_empty());
}

#[test]
fn values_print_short_and_safe() {
    let file = sample_file();
    let shown = |key| file.metadata().get(key).unwrap().to_string();
    assert_eq!(shown("i64"), "-1099511627776");
    assert_eq!(shown("f32"), "1.5");
    assert_eq!(shown("bool"), "true");
    assert_eq!(shown("general.architecture"), r#""llama""#);
    assert_eq!(shown("raw"), r#""\xff\xfe""#);
    assert_eq!(shown("heads"), "[8, 4]");
    assert_eq!(shown("bools"), "[true, false, true]");
    assert_eq!(shown("tokens"), r#"["<s>", "", "\xf0\x9f", "▁a"]"#);
    assert_eq!(shown("empty"), "[]");
}

#[test]
fn entries_keep_the_order_of_the_file() {
    let file = sample_file();
    let keys: Vec<&str> = file.metadata().iter().map(|(key, _)| key).collect();
    assert_eq!(keys[..4], ["general.architecture", "u8", "i8", "u16"]);
    assert_eq!(keys.len(), file.metadata().len());
}

#[test]
fn tokens_are_bytes_by_index() {
    let file = sample_file();
    let tokens = file.metadata().required_strings("tokens").unwrap();
    assert_eq!(tokens.len(), 4);
    assert_eq!(tokens.get(0), Some(&b"<s>"[..]));
    assert_eq!(tokens.get(1), Some(&b""[..]));
    assert_eq!(tokens.get(2), Some(&b"\xf0\x9f"[..]));
    assert_eq!(tokens.str(2), None);
    assert_eq!(tokens.str(3), Some("\u{2581}a"));
    assert_eq!(tokens.get(4), None);
    assert_eq!(tokens.iter().count(), 4);
    assert_eq!(format!("{tokens:?}"), r#"["<s>", "", "\\xf0\\x9f", "\\xe2\\x96\\x81a"]"#);
}

#[test]
fn integers_of_any_type_are_counts() {
    let file = sample_file();
    let metadata = file.metadata();
    assert_eq!(metadata.required_usize("u8").unwrap(), 200);
    assert_eq!(metadata.required_usize("u16").unwrap(), 60000);
    assert_eq!(metadata.required_usize("u32").unwrap(), 4_000_000_000);
    assert_eq!(metadata.usize_of("absent").unwrap(), None);
    assert_eq!(metadata.required_usizes("heads").unwrap(), [8, 4]);
    assert_eq!(metadata.required_per_layer("heads").unwrap(), PerLayer::Each(vec![8, 4]));
    assert_eq!(metadata.required_per_layer("u8").unwrap().get(99), Some(200));
    assert_eq!(metadata.required_per_layer("heads").unwrap().get(2), None);
    assert_eq!(metadata.required_usizes("empty").unwrap(), [0; 0]);
}

#[test]
fn typed_accessors_convert_only_what_fits() {
    let file = sample_file();
    let metadata = file.metadata();
    assert_eq!(metadata.required_f32("f32").unwrap(), 1.5);
    assert_eq!(metadata.required_f32("f64").unwrap(), 0.1);
    assert!(metadata.required_bool("bool").unwrap());
    assert_eq!(metadata.required_f32s("scores").unwrap(), [0.5, -1.0]);
    assert_eq!(metadata.required_i32s("types").unwrap(), [1, 2, -1]);
    assert_eq!(metadata.required_bools("bools").unwrap(), [true, false, true]);

    let message = |error: FormatError| error.to_string();
    assert_eq!(
        message(metadata.required_usize("absent").unwrap_err()),
        r#"metadata key "absent" is missing"#
    );
    assert_eq!(
        message(metadata.required_usize("heads").unwrap_err()),
        r#"metadata key "heads": expected an integer, got array of u32"#
    );
    assert_eq!(
        message(metadata.usize_of("i32").unwrap_err()),
        r#"metadata key "i32": expected a non-negative integer that fits usize, got -5"#
    );
    assert_eq!(
        message(metadata.required_usizes("types").unwrap_err()),
        r#"metadata key "types": expected a non-negative integer that fits usize, got -1"#
    );
    assert_eq!(
        message(metadata.required_f32s("types").unwrap_err()),
        r#"metadata key "types": expected array of f32, got array of i32"#
    );
    assert_eq!(
        message(metadata.required_str("raw").unwrap_err()),
        r#"metadata key "raw": expected UTF-8 text, got other bytes"#
    );
    assert!(matches!(metadata.required_bool("u8"), Err(FormatError::WrongType { .. })));
    assert!(matches!(metadata.required_f32("u32"), Err(FormatError::WrongType { .. })));
    assert!(matches!(metadata.required_str("tokens"), Err(FormatError::WrongType { .. })));
    assert!(matches!(metadata.required_strings("raw"), Err(FormatError::WrongType { .. })));
    assert!(matches!(metadata.required_i32s("heads"), Err(FormatError::WrongType { .. })));
    assert!(matches!(metadata.required_bools("scores"), Err(FormatError::WrongType { .. })));
    assert!(matches!(metadata.usizes_of("scores"), Err(FormatError::WrongType { .. })));
}

#[test]
fn integers_out_of_range_are_refused() {
    let file = open(Pieces::default().entry("big", U64, u64::MAX.to_le_bytes()).build()).unwrap();
    let result = file.metadata().required_usize("big");
    if usize::BITS < 64 {
        assert!(matches!(result, Err(FormatError::OutOfRange { .. })));
    } else {
        assert_eq!(result.unwrap() as u64, u64::MAX);
    }
}

#[test]
fn unaligned_numbers_are_read() {
    for shift in 0..8 {
        let key = "k".repeat(1 + shift);
        let values = [1.0f64, -2.0, 3.5];
        let payload = array(F64, 3, values.map(f64::to_le_bytes).concat());
        let file = open(Pieces::default().entry(&key, ARRAY, payload).build()).unwrap();
        let Some(Value::Array(Array::F64(read))) = file.metadata().get(&key) else {
            panic!("not an array of f64");
        };
        assert_eq!(read[..], values);
    }
}

#[test]
fn tensors_are_row_major_and_in_place() {
    let bytes = sample().build();
    let file = open(bytes.clone()).unwrap();
    let tensor = file.tensor("token_embd.weight").unwrap();
    assert_eq!(tensor.name(), "token_embd.weight");
    assert_eq!(tensor.shape(), [3, 64]);
    assert_eq!(tensor.elements(), 192);
    assert_eq!(tensor.byte_len(), 204);
    assert_eq!(tensor.dtype().unwrap(), DType::Q8_0);
    assert_eq!(tensor.part(), 0);
    assert_eq!(tensor.file_offset() % 32, 0);

    let data_start = bytes.len() - 258;
    let range = |start: usize, len: usize| &bytes[data_start + start..][..len];
    assert_eq!(file.tensor_bytes("token_embd.weight").unwrap().as_ref(), range(0, 204));
    assert_eq!(file.tensor_bytes("output_norm.weight").unwrap().as_ref(), range(224, 20));
    assert_eq!(file.tensor_bytes("nothing").unwrap().as_ref(), range(0, 0));
    assert_eq!(file.tensor_bytes("scalar").unwrap().as_ref(), range(256, 2));
    assert_eq!(file.tensor("scalar").unwrap().shape(), [0; 0]);
    assert_eq!(file.tensor("scalar").unwrap().elements(), 1);
    assert_eq!(file.tensor("nothing").unwrap().shape(), [0, 32]);

    let names: Vec<&str> = file.tensors().iter().map(|tensor| tensor.name()).collect();
    assert_eq!(names, ["token_embd.weight", "output_norm.weight", "nothing", "scalar"]);
    assert!(file.find_tensor("absent").is_none());
    assert_eq!(
        file.tensor_bytes("absent").unwrap_err().to_string(),
        r#"tensor "absent" is missing"#
    );
}

#[test]
fn tensor_bytes_outlive_the_file() {
    let bytes = sample_file().tensor_bytes("scalar").unwrap();
    assert_eq!(bytes.as_ref(), [0, 1]);
}

#[test]
fn a_tensor_of_another_file_is_refused() {
    let other = sample_file();
    let file = open(Pieces::default().build()).unwrap();
    let tensor = other.tensor("scalar").unwrap();
    assert!(matches!(file.bytes_of(tensor), Err(FormatError::Truncated { .. })));
}

#[test]
fn totals_by_type() {
    let total = |ggml_type, tensors, bytes| TypeTotal { ggml_type, tensors, bytes };
    assert_eq!(
        sample_file().type_totals(),
        [
            total(GgmlType::F32, 1, 20),
            total(GgmlType::Q4_0, 1, 0),
            total(GgmlType::Q8_0, 1, 204),
            total(GgmlType::BF16, 1, 2),
        ]
    );
}

#[test]
fn every_named_type_can_be_listed() {
    for &ggml_type in GgmlType::ALL {
        let row = ggml_type.block_len() as u64;
        let file = Pieces::default()
            .tensor("w", &[row, 2], ggml_type.id(), 0)
            .data(2 * ggml_type.block_bytes())
            .build();
        let file = open(file).unwrap();
        let tensor = file.tensor("w").unwrap();
        assert_eq!(tensor.ggml_type(), ggml_type);
        assert_eq!(tensor.byte_len(), 2 * ggml_type.block_bytes());
        assert_eq!(GgmlType::from_name(ggml_type.name()), Some(ggml_type));
        assert_eq!(file.check_types().is_ok(), ggml_type.dtype().is_some());
    }
    assert_eq!(GgmlType::ALL.len(), 35);
}

#[test]
fn every_weight_type_of_the_core_is_stored() {
    for dtype in DType::WEIGHTS {
        let ggml_type = GgmlType::from_dtype(dtype).unwrap();
        assert_eq!(ggml_type.dtype(), Some(dtype));
        assert_eq!(ggml_type.name().to_ascii_lowercase(), dtype.name());
    }
}

#[test]
fn unsupported_types_are_named_with_what_to_use() {
    let file = open(Pieces::default().tensor("w", &[256], 16, 0).data(66).build()).unwrap();
    let message = file.check_types().unwrap_err().to_string();
    assert!(message.contains(r#"tensor "w" has type IQ2_XXS"#), "{message}");
    assert!(message.contains("Q4_K") && message.contains("IQ4_XS"), "{message}");
}

#[test]
fn other_alignments() {
    for alignment in [1usize, 8, 64, 4096] {
        let pieces = Pieces { alignment, ..Pieces::default() };
        let second = 12usize.next_multiple_of(alignment);
        let file = pieces
            .entry("general.alignment", U32, (alignment as u32).to_le_bytes())
            .tensor("a", &[3], 0, 0)
            .tensor("b", &[2], 0, second as u64)
            .data(second + 8)
            .build();
        let expected = file[file.len() - 8..].to_vec();
        let file = open(file).unwrap();
        assert_eq!(file.alignment() as usize, alignment);
        assert_eq!(file.tensor_bytes("b").unwrap().as_ref(), expected);
    }
}

#[test]
fn bytes_after_the_data_are_ignored() {
    let mut bytes = sample().build();
    bytes.extend([9; 100]);
    assert!(open(bytes).is_ok());
}

#[test]
fn parts_in_memory_are_one_model() {
    use kiln_core::SharedBytes;
    let part = |number: u16, name: &str, count: u16| {
        let pieces = Pieces::default()
            .entry("split.count", U16, count.to_le_bytes())
            .entry("split.no", U16, number.to_le_bytes())
            .entry("split.tensors.count", I32, 2i32.to_le_bytes());
        SharedBytes::from_vec(pieces.tensor(name, &[1], 0, 0).data(4).build())
    };
    let file = Gguf::from_parts([part(0, "a", 2), part(1, "b", 2)]).unwrap();
    assert_eq!(file.parts(), 2);
    assert_eq!(file.tensor("b").unwrap().part(), 1);
    assert_eq!(file.tensor_bytes("b").unwrap().as_ref(), [0, 1, 2, 3]);

    let refused = |parts: Vec<SharedBytes>| Gguf::from_parts(parts).unwrap_err();
    assert!(matches!(
        refused(vec![part(1, "b", 2), part(0, "a", 2)]),
        FormatError::SplitMismatch { part: 1, what: "split.no", expected: 0, got: 1 }
    ));
    assert!(matches!(
        refused(vec![part(0, "a", 2), part(1, "b", 3)]),
        FormatError::SplitMismatch { part: 2, what: "split.count", expected: 2, got: 3 }
    ));
    assert!(matches!(
        refused(vec![part(0, "a", 2), part(1, "a", 2)]),
        FormatError::DuplicateTensor { .. }
    ));
    assert!(matches!(
        refused(vec![part(0, "a", 3), part(1, "b", 3), part(2, "c", 3)]),
        FormatError::SplitMismatch { expected: 2, got: 3, .. }
    ));
    assert!(matches!(refused(vec![]), FormatError::Truncated { .. }));
}

//! Copies, and what the writer refuses.

use std::io;

use kiln_format::{FormatError, GgmlType, Gguf, GgufWriter, TensorData};

use crate::builder;

/// Writes everything of `file` again.
pub(crate) fn copy(file: &Gguf) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata().iter() {
        writer.insert(key, value).unwrap();
    }
    for tensor in file.tensors() {
        let data = file.bytes_of(tensor).unwrap();
        writer.tensor(tensor.name(), tensor.ggml_type(), tensor.shape(), data).unwrap();
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_copy_is_identical_up_to_the_last_padding() {
    let bytes = builder::sample().build();
    let copied = copy(&builder::open(bytes.clone()).unwrap());
    assert_eq!(copied[..bytes.len()], bytes);
    assert!(copied[bytes.len()..].iter().all(|&byte| byte == 0));
    assert_eq!(copied.len() % 32, 0);
}

#[test]
fn what_the_reader_refuses_is_not_written() {
    let mut writer = GgufWriter::new();
    writer.insert("a", 1u32).unwrap();
    let error = writer.insert("a", 2u32).unwrap_err();
    assert!(matches!(error, FormatError::DuplicateKey { .. }));
    let error = writer.insert("", 2u32).unwrap_err();
    assert!(matches!(error, FormatError::EmptyKey { index: 1 }));
    let error = writer.insert("k".repeat(65536), 2u32).unwrap_err();
    assert!(matches!(error, FormatError::WriteLength { what: "key", len: 65536, .. }));
    for alignment in [0u32, 24, 1 << 31] {
        let error = writer.insert("general.alignment", alignment).unwrap_err();
        assert!(matches!(error, FormatError::Alignment { .. }));
    }
    let error = writer.insert("general.alignment", 32u64).unwrap_err();
    assert!(matches!(error, FormatError::Alignment { .. }));

    let tensor = |name: &str, ggml_type, shape: &[usize], bytes: usize| {
        let mut writer = GgufWriter::new();
        writer.tensor("taken", GgmlType::F32, &[1], vec![0; 4]).unwrap();
        writer.tensor(name, ggml_type, shape, vec![0; bytes]).unwrap_err()
    };
    let f32 = GgmlType::F32;
    assert!(matches!(tensor("taken", f32, &[1], 4), FormatError::DuplicateTensor { .. }));
    assert!(matches!(tensor("", f32, &[1], 4), FormatError::TensorName { len: 0, .. }));
    assert!(matches!(tensor(&"n".repeat(64), f32, &[1], 4), FormatError::TensorName { .. }));
    assert!(matches!(tensor("t", f32, &[1; 5], 4), FormatError::TooManyAxes { axes: 5, .. }));
    assert!(matches!(tensor("t", GgmlType::Q4K, &[8], 0), FormatError::PartialBlock { .. }));
    assert!(matches!(tensor("t", f32, &[usize::MAX, 2], 0), FormatError::ShapeOverflow { .. }));
    assert!(matches!(
        tensor("t", f32, &[3], 8),
        FormatError::DataLength { expected: 12, got: 8, .. }
    ));
}

#[test]
fn streams_must_write_what_they_owe() {
    let stream = |bytes: usize| {
        let mut writer = GgufWriter::new();
        let data = TensorData::stream(move |out| (0..bytes).try_for_each(|_| out.write_all(&[1])));
        writer.tensor("t", GgmlType::F32, &[2], data).unwrap();
        writer.write_to(&mut Vec::new())
    };
    assert!(stream(8).is_ok());
    assert!(matches!(stream(7), Err(FormatError::DataLength { expected: 8, got: 7, .. })));
    assert!(matches!(stream(9), Err(FormatError::DataLength { expected: 8, got: 9, .. })));
}

#[test]
fn a_stream_that_hides_its_overrun_is_refused() {
    let mut writer = GgufWriter::new();
    let data = TensorData::stream(|out| {
        let _ = out.write_all(&[0; 9]);
        Ok(())
    });
    writer.tensor("t", GgmlType::F32, &[2], data).unwrap();
    let error = writer.write_to(&mut Vec::new()).unwrap_err();
    assert!(matches!(error, FormatError::DataLength { expected: 8, .. }));
}

#[test]
fn errors_of_streams_are_passed_on() {
    let mut writer = GgufWriter::new();
    let data = TensorData::stream(|_| Err(io::Error::other("no more")));
    writer.tensor("t", GgmlType::F32, &[2], data).unwrap();
    let error = writer.write_to(&mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "cannot write GGUF data: no more");
}

#[test]
fn a_full_output_is_an_error() {
    let mut writer = GgufWriter::new();
    writer.tensor("t", GgmlType::F32, &[2], vec![0; 8]).unwrap();
    let mut room = [0u8; 70];
    let error = writer.write_to(&mut &mut room[..]).unwrap_err();
    assert!(matches!(error, FormatError::Write { .. }));
}

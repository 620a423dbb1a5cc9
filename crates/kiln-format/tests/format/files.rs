//! Files on disk: mapping, split models, atomic writing.

use std::fs;
use std::path::Path;

use kiln_format::{FormatError, GgmlType, Gguf, GgufWriter, Safetensors, TensorData};

use crate::builder::*;

fn folder_is_clean(folder: &Path, expected: &[&str]) {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, expected);
}

#[test]
fn a_mapped_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.gguf");
    let bytes = sample().build();
    fs::write(&path, &bytes).unwrap();
    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.file_bytes(), bytes.len() as u64);
    let data = file.tensor_bytes("output_norm.weight").unwrap();
    assert_eq!(data.as_ref().as_ptr() as usize % 32, 0);
    drop(file);
    assert_eq!(data.as_ref(), &bytes[bytes.len() - 258 + 224..][..20]);
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("page.gguf");
    fs::write(&path, "<!DOCTYPE html>").unwrap();
    let error = Gguf::open(&path).unwrap_err();
    assert!(matches!(error, FormatError::File { .. }));
    assert!(matches!(error.cause(), FormatError::BadMagic { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "{path:?}: not a GGUF file: starts with \"<!DO\", expected \"GGUF\"; it looks like a \
             web page: download it again"
        )
    );

    fs::write(&path, "").unwrap();
    let error = Gguf::open(&path).unwrap_err();
    assert!(matches!(error.cause(), FormatError::Truncated { needs: 4, has: 0 }));

    assert!(matches!(Gguf::open(dir.path()), Err(FormatError::NotAFile { .. })));
    let error = Gguf::open(dir.path().join("absent.gguf")).unwrap_err();
    assert!(matches!(error, FormatError::Io { action: "open", .. }));
    assert!(error.to_string().contains("absent.gguf"));
}

/// The bytes of one part of a split model, with one tensor.
fn part(number: u16, count: u16, tensor: &str) -> Vec<u8> {
    Pieces::default()
        .entry("split.count", U16, count.to_le_bytes())
        .entry("split.no", U16, number.to_le_bytes())
        .entry("split.tensors.count", I32, i32::from(count).to_le_bytes())
        .tensor(tensor, &[2], 0, 0)
        .data(8)
        .build()
}

#[test]
fn the_first_part_opens_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = |part: usize| dir.path().join(format!("model-{part:05}-of-00003.gguf"));
    fs::write(path(1), part(0, 3, "a")).unwrap();
    fs::write(path(2), part(1, 3, "b")).unwrap();
    let error = Gguf::open(path(1)).unwrap_err();
    let FormatError::MissingSplit { part: 3, count: 3, path: missing } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(missing, &path(3));

    fs::write(path(3), part(2, 3, "c")).unwrap();
    let file = Gguf::open(path(1)).unwrap();
    assert_eq!(file.parts(), 3);
    let parts: Vec<usize> = file.tensors().iter().map(|tensor| tensor.part()).collect();
    assert_eq!(parts, [0, 1, 2]);
    assert_eq!(file.tensor_bytes("c").unwrap().as_ref(), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(file.file_bytes(), 3 * part(0, 3, "a").len() as u64);

    let error = Gguf::open(path(2)).unwrap_err();
    let FormatError::NotFirstSplit { part: 2, first } = error.cause() else { panic!("{error:?}") };
    assert_eq!(first, &path(1));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |part: usize| dir.path().join(format!("model-{part:05}-of-00002.gguf"));
    fs::write(path(1), part(0, 2, "a")).unwrap();

    fs::write(path(2), part(0, 2, "b")).unwrap();
    let error = Gguf::open(path(1)).unwrap_err();
    assert!(error.to_string().contains("00002-of-00002"), "{error}");
    assert!(matches!(error.cause(), FormatError::SplitMismatch { what: "split.no", .. }));

    fs::write(path(2), part(1, 5, "b")).unwrap();
    let error = Gguf::open(path(1)).unwrap_err();
    assert!(matches!(error.cause(), FormatError::SplitMismatch { what: "split.count", .. }));

    fs::write(path(2), &part(1, 2, "b")[..80]).unwrap();
    let error = Gguf::open(path(1)).unwrap_err();
    assert!(error.to_string().contains("00002-of-00002"), "{error}");

    fs::write(path(2), part(1, 2, "a")).unwrap();
    let error = Gguf::open(path(1)).unwrap_err();
    assert!(matches!(error.cause(), FormatError::DuplicateTensor { .. }));
}

#[test]
fn a_part_under_another_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, part(0, 2, "a")).unwrap();
    let error = Gguf::open(&path).unwrap_err();
    assert!(matches!(error.cause(), FormatError::SplitName { count: 2, .. }));
    assert!(error.to_string().contains("-00001-of-00002.gguf"), "{error}");

    let claim = Pieces::default().entry("split.count", U64, u64::MAX.to_le_bytes()).entry(
        "split.no",
        U64,
        u64::MAX.to_le_bytes(),
    );
    fs::write(&path, claim.build()).unwrap();
    let error = Gguf::open(&path).unwrap_err();
    assert!(matches!(error.cause(), FormatError::SplitName { .. }));
}

#[test]
fn a_written_file_replaces_its_target() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    for value in [1u8, 2] {
        let mut writer = GgufWriter::new();
        writer.tensor("t", GgmlType::I8, &[3], vec![value; 3]).unwrap();
        let bytes = writer.write(&path).unwrap();
        assert_eq!(bytes, fs::metadata(&path).unwrap().len());
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.tensor_bytes("t").unwrap().as_ref(), [value; 3]);
        folder_is_clean(dir.path(), &["out.gguf"]);
    }
}

#[test]
fn a_model_can_be_rewritten_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, sample().build()).unwrap();
    let file = Gguf::open(&path).unwrap();
    let mut writer = GgufWriter::new();
    for tensor in file.tensors() {
        let data = file.bytes_of(tensor).unwrap();
        writer.tensor(tensor.name(), tensor.ggml_type(), tensor.shape(), data).unwrap();
    }
    writer.write(&path).unwrap();
    let rewritten = Gguf::open(&path).unwrap();
    for tensor in file.tensors() {
        let name = tensor.name();
        let bytes = rewritten.tensor_bytes(name).unwrap();
        assert_eq!(bytes.as_ref(), file.tensor_bytes(name).unwrap().as_ref());
    }
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    fs::write(&path, "what was there").unwrap();
    let mut writer = GgufWriter::new();
    let data = TensorData::stream(|out| {
        out.write_all(&[0; 4])?;
        Err(std::io::Error::other("the source broke"))
    });
    writer.tensor("t", GgmlType::F32, &[2], data).unwrap();
    let error = writer.write(&path).unwrap_err();
    assert!(matches!(error.cause(), FormatError::Write { .. }));
    assert!(error.to_string().contains("out.gguf"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"what was there");
    folder_is_clean(dir.path(), &["out.gguf"]);
}

#[test]
fn targets_that_cannot_be_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(GgufWriter::new().write(dir.path()), Err(FormatError::NotAFile { .. })));
    let error = GgufWriter::new().write(dir.path().join("absent/out.gguf")).unwrap_err();
    assert!(matches!(error, FormatError::Io { action: "create", .. }));
    assert!(matches!(GgufWriter::new().write("/"), Err(FormatError::NotAFile { .. })));
}

#[test]
fn safetensors_are_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let header = r#"{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[7, 8, 9]].concat();
    fs::write(&path, &bytes).unwrap();
    let file = Safetensors::open(&path).unwrap();
    assert_eq!(file.tensor_bytes("x").unwrap().as_ref(), [7, 8, 9]);

    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let error = Safetensors::open(&path).unwrap_err();
    assert!(matches!(error, FormatError::File { .. }));
    assert!(matches!(error.cause(), FormatError::Truncated { .. }));
}

//! One malformed file per rule of the format.

use kiln_format::FormatError;

use crate::builder::*;

/// A malformed file, and whether an error is the right one.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    expected: &'static str,
    matches: fn(&FormatError) -> bool,
}

macro_rules! cases {
    ($($name:literal, $bytes:expr => $expected:pat,)*) => {
        vec![$(Case {
            name: $name,
            bytes: $bytes.into(),
            expected: stringify!($expected),
            matches: |error| matches!(error, $expected),
        },)*]
    };
}

fn empty() -> Pieces {
    Pieces::default()
}

/// A file with one Q4_0 tensor of 64 values, changed by `change`.
fn with_tensor(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut pieces = empty().tensor("t", &[64], 2, 0).data(36);
    change(&mut pieces.tensors[0]);
    pieces.build()
}

fn tensor(ne: &[u64], type_id: u32) -> Vec<u8> {
    empty().tensor("t", ne, type_id, 0).data(64).build()
}

fn alignment(type_id: u32, payload: &[u8]) -> Vec<u8> {
    empty().entry("general.alignment", type_id, payload).build()
}

pub(crate) fn cases() -> Vec<Case> {
    use FormatError as E;
    let huge = 1u64 << 62;
    cases! {
        "no bytes", [] => E::Truncated { needs: 4, has: 0 },
        "wrong magic", Pieces { magic: *b"GGML", ..empty() }.build() => E::BadMagic { hint: "", .. },
        "git lfs pointer", *b"version https://git-lfs" => E::BadMagic { .. },
        "version 0", Pieces { version: 0, ..empty() }.build() => E::UnsupportedVersion { version: 0 },
        "version 1", Pieces { version: 1, ..empty() }.build() => E::UnsupportedVersion { version: 1 },
        "version 4", Pieces { version: 4, ..empty() }.build() => E::UnsupportedVersion { version: 4 },
        "big-endian", Pieces { version: 3u32.swap_bytes(), ..empty() }.build() => E::BigEndian,

        "more entries than bytes", Pieces { entry_count: Some(1), ..empty() }.build() =>
            E::Count { what: "metadata entries", count: 1, limit: 0 },
        "entry count 2^62", Pieces { entry_count: Some(huge), ..empty() }.build() =>
            E::Count { what: "metadata entries", .. },
        "entry count -1", Pieces { entry_count: Some(u64::MAX), ..empty() }.build() =>
            E::Count { what: "metadata entries", .. },
        "more tensors than bytes", Pieces { tensor_count: Some(3), ..empty() }.data(8).build() =>
            E::Count { what: "tensors", count: 3, .. },
        "tensor count 2^62", Pieces { tensor_count: Some(huge), ..empty() }.build() =>
            E::Count { what: "tensors", .. },
        "tensor count -1", Pieces { tensor_count: Some(u64::MAX), ..empty() }.build() =>
            E::Count { what: "tensors", .. },

        "empty key", empty().entry("", U32, [0; 4]).build() => E::EmptyKey { index: 0 },
        "duplicate key", empty().entry("a", U8, [1]).entry("b", U8, [1]).entry("a", U16, [1, 0])
            .build() => E::DuplicateKey { .. },
        "key not utf-8", empty().entry([b'a', 0xff], U8, [1]).build() =>
            E::NameNotUtf8 { what: "metadata key", at: 24 },
        "key too long", empty().entry(vec![b'k'; 65536], U8, [1]).build() =>
            E::StringLength { len: 65536, .. },
        "key past the end", Pieces { entries: vec![[&999u64.to_le_bytes()[..], b"abcdefgh"]
            .concat()], ..empty() }.build() => E::Truncated { needs: 1031, .. },
        "string past the end", empty().entry("k", STRING, 1000u64.to_le_bytes()).build() =>
            E::Truncated { .. },
        "string over the limit", empty().entry("k", STRING, ((1u64 << 30) + 1).to_le_bytes())
            .build() => E::StringLength { .. },
        "string length 2^64 - 1", empty().entry("k", STRING, u64::MAX.to_le_bytes()).build() =>
            E::StringLength { len: u64::MAX, .. },
        "value type 13", empty().entry("k", 13, [0; 8]).build() => E::UnknownValueType { id: 13, .. },
        "value type -1", empty().entry("k", u32::MAX, [0; 8]).build() => E::UnknownValueType { .. },
        "element type 13", empty().entry("k", ARRAY, array(13, 1, [0; 8])).build() =>
            E::UnknownValueType { id: 13, .. },
        "array of arrays", empty().entry("k", ARRAY, array(ARRAY, 1, array(U8, 1, [7]))).build() =>
            E::NestedArray { .. },
        "array over the limit", empty().entry("k", ARRAY, array(U8, (1 << 30) + 1, [])).build() =>
            E::ArrayLength { .. },
        "array length overflows bytes", empty().entry("k", ARRAY, array(U64, 1 << 61, [0; 8]))
            .build() => E::ArrayLength { .. },
        "array past the end", empty().entry("k", ARRAY, array(F32, 3, [0; 8])).build() =>
            E::Count { what: "array elements", count: 3, limit: 2 },
        "strings past the end", empty().entry("k", ARRAY, array(STRING, 3, [0; 16])).build() =>
            E::Count { what: "array elements", count: 3, limit: 2 },
        "string of an array past the end", empty().entry("k", ARRAY, array(STRING, 2,
            [string("a"), 9u64.to_le_bytes().to_vec()].concat())).build() => E::Truncated { .. },
        "boolean 2", empty().entry("k", BOOL, [2]).build() => E::BoolByte { byte: 2, .. },
        "boolean 255 in an array", empty().entry("k", ARRAY, array(BOOL, 2, [1, 255])).build() =>
            E::BoolByte { byte: 255, .. },

        "alignment 0", alignment(U32, &[0; 4]) => E::Alignment { .. },
        "alignment 24", alignment(U32, &24u32.to_le_bytes()) => E::Alignment { .. },
        "alignment 2^31", alignment(U32, &(1u32 << 31).to_le_bytes()) => E::Alignment { .. },
        "alignment u64", alignment(U64, &32u64.to_le_bytes()) => E::Alignment { .. },
        "alignment string", alignment(STRING, &string("32")) => E::Alignment { .. },
        "alignment array", alignment(ARRAY, &array(U32, 1, 32u32.to_le_bytes())) =>
            E::Alignment { .. },

        "tensor name empty", empty().tensor("", &[1], 0, 0).data(4).build() =>
            E::TensorName { len: 0, .. },
        "tensor name of 64 bytes", empty().tensor([b'n'; 64], &[1], 0, 0).data(4).build() =>
            E::TensorName { len: 64, .. },
        "tensor name not utf-8", empty().tensor([0xc0], &[1], 0, 0).data(4).build() =>
            E::NameNotUtf8 { what: "tensor name", .. },
        "duplicate tensor", empty().tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32).data(36)
            .build() => E::DuplicateTensor { .. },
        "5 axes", tensor(&[1, 1, 1, 1, 1], 0) => E::TooManyAxes { axes: 5, .. },
        "2^32 - 1 axes", with_tensor(|t| t[9..13].copy_from_slice(&[0xff; 4])) =>
            E::TooManyAxes { axes: 0xffff_ffff, .. },
        "axis of length -1", tensor(&[4, u64::MAX], 0) => E::AxisLength { axis: 0, len: -1, .. },
        "axis of length -2^63", tensor(&[1 << 63], 0) => E::AxisLength { axis: 0, .. },
        "elements overflow", tensor(&[1 << 32, 1 << 31], 24) => E::ShapeOverflow { .. },
        "elements overflow behind 0", tensor(&[0, 1 << 62, 1 << 62], 24) => E::ShapeOverflow { .. },
        "bytes overflow", tensor(&[1 << 32, 1 << 30], 28) => E::ShapeOverflow { .. },
        "sum of sizes overflows", empty().tensor("a", &[1 << 60, 7], 24, 0)
            .tensor("b", &[1 << 60, 7], 24, 7 << 60).tensor("c", &[1 << 60, 7], 24, 14 << 60)
            .data(8).build() => E::ShapeOverflow { .. },
        "padding overflows", empty().tensor("a", &[i64::MAX as u64], 24, 0)
            .tensor("b", &[i64::MAX as u64], 24, 1 << 63).data(8).build() =>
            E::ShapeOverflow { .. },
        "tensor type 43", tensor(&[32], 43) => E::UnknownTensorType { id: 43, .. },
        "tensor type -1", tensor(&[32], u32::MAX) => E::UnknownTensorType { .. },
        "tensor type 4", tensor(&[32], 4) => E::RemovedTensorType { name: "Q4_2", .. },
        "tensor type 5", tensor(&[32], 5) => E::RemovedTensorType { name: "Q4_3", .. },
        "tensor type 31", tensor(&[32], 31) => E::RemovedTensorType { name: "Q4_0_4_4", .. },
        "tensor type 32", tensor(&[32], 32) => E::RemovedTensorType { name: "Q4_0_4_8", .. },
        "tensor type 33", tensor(&[32], 33) => E::RemovedTensorType { name: "Q4_0_8_8", .. },
        "tensor type 36", tensor(&[32], 36) => E::RemovedTensorType { name: "IQ4_NL_4_4", .. },
        "tensor type 37", tensor(&[32], 37) => E::RemovedTensorType { name: "IQ4_NL_4_8", .. },
        "tensor type 38", tensor(&[32], 38) => E::RemovedTensorType { name: "IQ4_NL_8_8", .. },
        "row of half a block", tensor(&[16, 2], 2) => E::PartialBlock { row: 16, .. },
        "row of 255", tensor(&[255, 256], 12) => E::PartialBlock { row: 255, .. },
        "scalar of blocks", tensor(&[], 8) => E::PartialBlock { row: 1, .. },
        "first offset not 0", empty().tensor("t", &[1], 0, 32).data(64).build() =>
            E::TensorOffset { expected: 0, got: 32, .. },
        "offset not padded", empty().tensor("a", &[1], 0, 0).tensor("b", &[1], 0, 4).data(64)
            .build() => E::TensorOffset { expected: 32, got: 4, .. },
        "tensors overlap", empty().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(64)
            .build() => E::TensorOffset { expected: 32, got: 0, .. },
        "gap between tensors", empty().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 64).data(96)
            .build() => E::TensorOffset { expected: 32, got: 64, .. },
        "offset 2^64 - 1", empty().tensor("t", &[1], 0, u64::MAX).data(64).build() =>
            E::TensorOffset { .. },
        "data short of one byte", empty().tensor("t", &[8], 0, 0).data(31).build() =>
            E::Truncated { needs: 96, has: 95 },
        "no data section", empty().tensor("t", &[8], 0, 0).build() => E::Truncated { .. },
        "empty tensor past the end", empty().tensor("a", &[1], 0, 0).tensor("b", &[0], 0, 32)
            .data(4).build() => E::Truncated { .. },

        "split without its number", empty().entry("split.count", U16, [3, 0]).build() =>
            E::MissingKey { .. },
        "one part of three", empty().entry("split.count", U16, [3, 0]).entry("split.no", U16, [0, 0])
            .build() => E::SplitMismatch { expected: 3, got: 1, .. },
        "split count a string", empty().entry("split.count", STRING, string("3")).build() =>
            E::WrongType { .. },
        "split count negative", empty().entry("split.count", I32, (-1i32).to_le_bytes()).build() =>
            E::OutOfRange { got: -1, .. },
    }
}

#[test]
fn each_malformed_file_gives_its_error() {
    for case in cases() {
        let error = open(case.bytes).expect_err(case.name);
        assert!((case.matches)(&error), "{}: expected {}, got {error:?}", case.name, case.expected);
        let message = error.to_string();
        assert!(!message.contains('\n'), "{}: {message}", case.name);
    }
}

#[test]
fn the_untouched_files_are_valid() {
    assert!(open(empty().build()).is_ok());
    assert!(open(with_tensor(|_| ())).is_ok());
    assert!(open(tensor(&[64], 0)[..].into()).is_err());
    assert!(open(tensor(&[16], 0)).is_ok());
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let file = sample().build();
    assert!(open(file.clone()).is_ok());
    for len in 0..file.len() {
        assert!(open(file[..len].to_vec()).is_err(), "cut to {len} of {} bytes", file.len());
    }
}

#[test]
fn any_byte_changed_never_panics() {
    let file = sample().build();
    let step = if cfg!(miri) { 61 } else { 1 };
    for at in (0..file.len()).step_by(step) {
        for value in [0, 1, 0x7f, 0x80, 0xff, file[at] ^ 1, file[at] ^ 0x80] {
            let mut changed = file.clone();
            changed[at] = value;
            if let Ok(file) = open(changed) {
                read_everything(&file);
            }
        }
    }
}

#[test]
fn random_damage_never_panics() {
    let file = sample().build();
    let mut random = Random(1);
    for _ in 0..if cfg!(miri) { 20 } else { 20_000 } {
        let mut damaged = file.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(damaged.len());
            damaged[at] = random.next() as u8;
        }
        damaged.truncate(damaged.len() - random.below(2) * random.below(damaged.len()));
        if let Ok(file) = open(damaged) {
            read_everything(&file);
        }
    }
}

fn read_everything(file: &kiln_format::Gguf) {
    for (key, value) in file.metadata().iter() {
        assert!(!format!("{key:?} {value:?}").is_empty());
    }
    for tensor in file.tensors() {
        assert_eq!(file.bytes_of(tensor).unwrap().len(), tensor.byte_len());
    }
    assert!(file.type_totals().iter().map(|total| total.bytes).sum::<u64>() <= file.file_bytes());
}

#[test]
fn control_characters_in_names_are_escaped() {
    let key = "\x1b[2J\nkey".to_owned() + &"x".repeat(1000);
    let file = empty().entry(&key, U8, [1]).entry(&key, U8, [1]).build();
    let message = open(file).unwrap_err().to_string();
    assert!(message.chars().all(|c| !c.is_control()), "{message:?}");
    assert!(message.len() < 200, "{message}");
}

//! What the writer writes, the reader reads back.

use kiln_format::{GgmlType, GgufWriter, TensorData, Value};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;

use crate::builder;
use crate::writing::copy;

#[derive(Clone, Debug)]
struct Tensor {
    ggml_type: GgmlType,
    shape: Vec<usize>,
    data: Vec<u8>,
    stream: bool,
}

/// A metadata value that owns its strings; `Value` borrows from it.
#[derive(Clone, Debug)]
enum Owned {
    Plain(Value<'static>),
    Strings(Vec<Vec<u8>>),
}

impl Owned {
    fn value(&self) -> Value<'_> {
        match self {
            Owned::Plain(value) => value.clone(),
            Owned::Strings(list) => list.iter().map(Vec::as_slice).collect::<Vec<&[u8]>>().into(),
        }
    }
}

fn plain<T>(strategy: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Owned>
where
    T: Into<Value<'static>> + Clone + std::fmt::Debug + 'static,
    Vec<T>: Into<Value<'static>>,
{
    let strategy = strategy.boxed();
    prop_oneof![
        strategy.clone().prop_map(|x| Owned::Plain(x.into())),
        vec(strategy, 0..5).prop_map(|x| Owned::Plain(x.into())),
    ]
    .boxed()
}

fn value() -> impl Strategy<Value = Owned> {
    // Finite floats only: a NaN does not equal itself.
    let f32s = prop::num::f32::NORMAL | prop::num::f32::ZERO;
    let f64s = prop::num::f64::NORMAL | prop::num::f64::ZERO;
    prop_oneof![
        plain(any::<u8>()),
        plain(any::<i8>()),
        plain(any::<u16>()),
        plain(any::<i16>()),
        plain(any::<u32>()),
        plain(any::<i32>()),
        plain(any::<u64>()),
        plain(any::<i64>()),
        plain(any::<bool>()),
        plain(f32s),
        plain(f64s),
        vec(any::<u8>(), 0..20).prop_map(|x| Owned::Plain(Value::String(x.into()))),
        vec(vec(any::<u8>(), 0..9), 0..9).prop_map(Owned::Strings),
    ]
}

fn tensor() -> impl Strategy<Value = Tensor> {
    (select(GgmlType::ALL), vec(0usize..4, 0..4), any::<u8>(), any::<bool>()).prop_map(
        |(ggml_type, mut shape, seed, stream)| {
            match shape.last_mut() {
                Some(row) => *row *= ggml_type.block_len(),
                None if ggml_type.block_len() > 1 => shape.push(ggml_type.block_len()),
                None => {}
            }
            let elements: usize = shape.iter().product();
            let bytes = elements / ggml_type.block_len() * ggml_type.block_bytes();
            let data = (0..bytes).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            Tensor { ggml_type, shape, data, stream }
        },
    )
}

fn config() -> Config {
    Config {
        cases: 512,
        failure_persistence: None,
        rng_seed: prop::test_runner::RngSeed::Fixed(7),
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn files_read_back_as_written(
        entries in btree_map("[a-z.]{1,12}", value(), 0..12),
        tensors in btree_map("[a-z0-9._]{1,20}", tensor(), 0..8),
        alignment in select(&[None, Some(1u32), Some(8), Some(32), Some(256)]),
    ) {
        let mut writer = GgufWriter::new();
        for (key, value) in &entries {
            writer.insert(key, value.value()).unwrap();
        }
        if let Some(alignment) = alignment {
            writer.insert("general.alignment", alignment).unwrap();
        }
        for (name, tensor) in &tensors {
            let data = if tensor.stream {
                TensorData::stream(|out| {
                    tensor.data.chunks(7).try_for_each(|chunk| out.write_all(chunk))
                })
            } else {
                TensorData::from(&tensor.data[..])
            };
            writer.tensor(name, tensor.ggml_type, &tensor.shape, data).unwrap();
        }
        let mut bytes = Vec::new();
        let written = writer.write_to(&mut bytes).unwrap();
        prop_assert_eq!(written, bytes.len() as u64);

        let file = builder::open(bytes.clone()).unwrap();
        prop_assert_eq!(file.version(), 3);
        prop_assert_eq!(file.alignment(), alignment.unwrap_or(32));
        prop_assert_eq!(file.metadata().len(), entries.len() + usize::from(alignment.is_some()));
        for (key, value) in &entries {
            prop_assert_eq!(file.metadata().get(key), Some(value.value()));
        }
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (name, tensor) in &tensors {
            let info = file.tensor(name).unwrap();
            prop_assert_eq!(info.ggml_type(), tensor.ggml_type);
            prop_assert_eq!(info.shape(), &tensor.shape[..]);
            prop_assert_eq!(info.file_offset() % u64::from(file.alignment()), 0);
            let data = file.tensor_bytes(name).unwrap();
            prop_assert_eq!(data.as_ref(), &tensor.data[..]);
        }
        prop_assert_eq!(copy(&file), bytes);
    }

    #[test]
    fn any_bytes_are_an_error_or_a_file(tail in vec(any::<u8>(), 0..200), version in 2u32..4) {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(tail);
        if let Ok(file) = builder::open(bytes) {
            copy(&file);
        }
    }
}

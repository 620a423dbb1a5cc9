//! Logits against those of transformers, for every architecture, device and cache type.

use kiln::format::{GgmlType, Gguf, GgufWriter, Value};
use kiln::ops::Precision;
use kiln::quant::{dequantize_row, quantize_row};
use kiln::{DType, PlanOptions};
use kiln_models::{Model, Preflight, SessionOptions};

use crate::support::{NAMES, devices, doctored, exact, expected, file, model, nmse, session};

#[test]
fn logits_are_those_of_transformers() {
    for device in devices() {
        for name in NAMES {
            let (model, expected) = (model(&device, name), expected(name));
            assert_eq!(model.config().vocab, expected.vocab);
            for (kv_dtype, bound) in
                [(DType::F32, 1e-9), (DType::F16, 1e-5), (DType::BF16, 1e-3), (DType::Q8_0, 1e-3)]
            {
                if kv_dtype == DType::Q8_0 && !model.config().head_dim.is_multiple_of(32) {
                    continue;
                }
                let options = SessionOptions { kv_dtype, ..exact() };
                let logits = session(&model, options).logits_all(&expected.tokens).unwrap();
                let error = nmse(&logits, &expected.logits);
                println!("{} {name} {kv_dtype}: NMSE {error:.2e}", device.name());
                assert!(error <= bound, "{} {name} {kv_dtype}: NMSE {error:e}", device.name());
            }
        }
    }
}

#[test]
fn the_token_embedding_serves_as_output_where_it_is_tied() {
    let device = kiln_reference::device();
    assert!(model(&device, "llama_tied").config().tied_output);
    assert!(!model(&device, "llama").config().tied_output);
    let before = device.memory().weights;
    let tied = file("llama_tied");
    let _model = Model::load(&device, &tied).unwrap();
    let bytes: usize = tied.tensors().iter().map(|tensor| tensor.byte_len()).sum();
    assert!(device.memory().weights - before <= bytes);
}

#[test]
fn perplexity_agrees_with_the_reference_logits() {
    let device = kiln_reference::device();
    let expected = expected("qwen3");
    let mut session = session(&model(&device, "qwen3"), exact());
    let got = session.perplexity(&expected.tokens).unwrap();
    let mut nll = 0.0;
    for (index, row) in expected.logits.chunks_exact(expected.vocab).enumerate() {
        assert_eq!(got.top1[index], crate::support::argmax(row));
        let Some(&target) = expected.tokens.get(index + 1) else { continue };
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        nll += sum.ln() - f64::from(row[target as usize]);
    }
    let mean = nll / (expected.tokens.len() - 1) as f64;
    assert!((got.mean_nll - mean).abs() < 1e-4, "{} {mean}", got.mean_nll);
    assert_eq!(got.perplexity, got.mean_nll.exp());
    assert!(session.perplexity(&[1]).is_err());
}

#[test]
fn the_final_softcap_bounds_the_logits() {
    let device = kiln_reference::device();
    let tokens = expected("gemma3").tokens;
    let cap = ("gemma3.final_logit_softcapping", Value::F32(0.5));
    let file = doctored("gemma3", |_| None, |_| None, &[cap]);
    let capped = Model::load(&device, &file).unwrap();
    let capped = session(&capped, exact()).logits_all(&tokens).unwrap();
    let plain = session(&model(&device, "gemma3"), exact()).logits_all(&tokens).unwrap();
    let by_hand: Vec<f32> = plain.iter().map(|logit| 0.5 * (logit / 0.5).tanh()).collect();
    assert!(plain.iter().any(|logit| logit.abs() > 0.5));
    assert!(nmse(&capped, &by_hand) < 1e-12);
}

/// A fixture with its matrices in another type, and the same with what that type stands for.
fn requantized(name: &str, ggml_type: GgmlType) -> [Gguf; 2] {
    let original = file(name);
    let dtype = ggml_type.dtype().unwrap();
    [true, false].map(|encoded| {
        let mut writer = GgufWriter::new();
        for (key, value) in original.metadata().iter() {
            writer.insert(key, value).unwrap();
        }
        for info in original.tensors() {
            let data = original.bytes_of(info).unwrap();
            let row = info.shape()[info.shape().len() - 1];
            let Some(row_bytes) = dtype.row_bytes(row).filter(|_| info.shape().len() == 2) else {
                writer.tensor(info.name(), GgmlType::F32, info.shape(), data).unwrap();
                continue;
            };
            let mut bytes = Vec::new();
            for floats in data.as_ref().chunks_exact(4 * row) {
                let mut values = vec![0.0f32; row];
                dequantize_row(DType::F32, floats, &mut values).unwrap();
                let mut blocks = vec![0; row_bytes];
                quantize_row(dtype, &values, &mut blocks).unwrap();
                if encoded {
                    bytes.extend(blocks);
                } else {
                    dequantize_row(dtype, &blocks, &mut values).unwrap();
                    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                }
            }
            let ggml_type = if encoded { ggml_type } else { GgmlType::F32 };
            writer.tensor(info.name(), ggml_type, info.shape(), bytes).unwrap();
        }
        let mut bytes = Vec::new();
        writer.write_to(&mut bytes).unwrap();
        Gguf::from_bytes(kiln::SharedBytes::from_vec(bytes)).unwrap()
    })
}

#[test]
fn quantised_weights_stand_for_their_values() {
    for device in devices() {
        for ggml_type in [GgmlType::Q8_0, GgmlType::Q5_1, GgmlType::Iq4Nl, GgmlType::BF16] {
            for name in ["llama_tied", "qwen2"] {
                let tokens = expected(name).tokens;
                let [blocks, values] = requantized(name, ggml_type).map(|file| {
                    assert_eq!(Preflight::of(&file).problems, []);
                    let model = Model::load(&device, &file).unwrap();
                    session(&model, exact()).logits_all(&tokens).unwrap()
                });
                let error = nmse(&blocks, &values);
                assert!(error < 1e-9, "{} {name} {ggml_type}: NMSE {error:e}", device.name());
            }
        }
    }
}

#[test]
fn fast_arithmetic_is_near_and_does_not_depend_on_chunks_or_fusion() {
    for device in devices() {
        for ggml_type in [GgmlType::Q8_0, GgmlType::Q4_0] {
            let [file, _] = requantized("qwen2", ggml_type);
            let (model, tokens) = (Model::load(&device, &file).unwrap(), expected("qwen2").tokens);
            let exact = session(&model, exact()).logits_all(&tokens).unwrap();
            let fast = SessionOptions { precision: Precision::Fast, ..crate::support::exact() };
            let whole = session(&model, fast).logits_all(&tokens).unwrap();
            let error = nmse(&whole, &exact);
            println!("{} {ggml_type}: NMSE {error:.2e} of fast arithmetic", device.name());
            assert!(error < 1e-3, "{} {ggml_type}: NMSE {error:e}", device.name());

            let parts = session(&model, SessionOptions { chunk: 11, ..fast });
            assert_eq!({ parts }.logits_all(&tokens).unwrap(), whole, "{}", device.name());
            let steps = |fuse| {
                let plan = PlanOptions { fuse, ..PlanOptions::default() };
                let mut session = session(&model, SessionOptions { plan, ..fast });
                session.prefill(&tokens).unwrap();
                session.step().unwrap();
                session.logits().unwrap()
            };
            assert_eq!(steps(true), steps(false), "{}", device.name());
        }
    }
}

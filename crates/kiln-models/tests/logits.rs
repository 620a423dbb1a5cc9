//! Logits against those of transformers, for every architecture, device and cache type.

mod support;

use kiln::DType;
use kiln_models::SessionOptions;
use support::{NAMES, devices, exact, expected, model, nmse, session};

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
    let tied = support::file("llama_tied");
    let _model = kiln_models::Model::load(&device, &tied).unwrap();
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
        assert_eq!(got.top1[index], support::argmax(row));
        let Some(&target) = expected.tokens.get(index + 1) else { continue };
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        nll += sum.ln() - f64::from(row[target as usize]);
    }
    let mean = nll / (expected.tokens.len() - 1) as f64;
    assert!((got.mean_nll - mean).abs() < 1e-4, "{} {mean}", got.mean_nll);
    assert_eq!(got.perplexity, got.mean_nll.exp());
    assert!(session.perplexity(&[1]).is_err());
}

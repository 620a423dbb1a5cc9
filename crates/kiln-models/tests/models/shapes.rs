//! Synthetic models, and the estimates of memory.

use kiln::DType;
use kiln_models::{Model, ModelError, ModelShape};

use crate::support::{NAMES, devices, exact, model, session};

const TINY: ModelShape = ModelShape {
    name: "tiny",
    layers: 2,
    dim: 256,
    ff: 320,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    vocab: 96,
    tied_output: false,
};

#[test]
fn every_weight_type_makes_a_model_that_runs() {
    for device in devices() {
        for dtype in DType::WEIGHTS {
            for tied_output in [false, true] {
                let shape = ModelShape { tied_output, ..TINY };
                let model = Model::synthetic(&device, &shape, dtype).unwrap();
                let mut session = session(&model, exact());
                session.prefill(&[1, 2, 3]).unwrap();
                session.step().unwrap();
                let logits = session.logits().unwrap();
                assert!(logits.iter().all(|logit| logit.is_finite()), "{dtype}");
                assert!(logits.iter().any(|logit| logit.abs() > 0.1), "{dtype}");
            }
        }
    }
}

#[test]
fn a_synthetic_model_is_as_large_as_a_real_one() {
    let device = kiln_reference::device();
    let model = Model::synthetic(&device, &TINY, DType::Q4K).unwrap();
    // Rows of 320 values are not whole q4_k blocks; the output projection is q6_k.
    let attention = 2 * (256 + 128) * 144;
    let ff = 2 * 320 * 144 + 256 * 320 / 32 * 22;
    assert_eq!(device.memory().weights, 2 * (attention + ff) + 96 * (144 + 210));
    let parameters = 2 * 256 * (2 * (256 + 128) + 3 * 320) + 2 * 96 * 256;
    assert_eq!(model.config().parameters(), parameters);
}

#[test]
fn a_saved_shape_is_the_synthetic_model() {
    let device = kiln_reference::device();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shape.gguf");
    for tied_output in [false, true] {
        let shape = ModelShape { tied_output, vocab: 320, ..TINY };
        let bytes = shape.save(DType::Q4K, &path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);
        let file = kiln::format::Gguf::open(&path).unwrap();
        kiln_models::tokenizer::Tokenizer::from_gguf(&file).unwrap();
        let models = [
            Model::load(&device, &file).unwrap(),
            Model::synthetic(&device, &shape, DType::Q4K).unwrap(),
        ];
        let [saved, made] = models.map(|model| {
            let mut session = session(&model, exact());
            session.prefill(&[1, 2, 300]).unwrap();
            session.logits().unwrap().to_vec()
        });
        assert_eq!(saved, made);
    }
}

#[test]
fn named_shapes_are_those_of_their_models() {
    let billions = |name| ModelShape::from_name(name).unwrap().config().parameters() as f64 / 1e9;
    assert!((billions("llama-8b") - 8.03).abs() < 0.01);
    assert!((billions("smollm2-135m") - 0.1345).abs() < 0.001);
    assert!((billions("llama-1b") - 1.10).abs() < 0.01);
    assert_eq!(ModelShape::from_name("llama"), None);
    let device = kiln_reference::device();
    let error = Model::synthetic(&device, &TINY, DType::U32).unwrap_err();
    assert!(matches!(error, ModelError::Quant(_)), "{error}");
}

#[test]
fn the_scratch_estimate_is_near_the_arena() {
    let device = kiln_reference::device();
    let mut configs: Vec<Model> = NAMES.iter().map(|name| model(&device, name)).collect();
    configs.push(Model::synthetic(&device, &TINY, DType::Q8_0).unwrap());
    for model in configs {
        let (mut session, config) = (session(&model, exact()), model.config());
        let arena = |run: &kiln::Executable| run.plan().arena_bytes() as u64;
        let step = arena(session.decode_executable().unwrap());
        let prompt = arena(session.prefill_executable(50).unwrap());
        for (tokens, arena) in [(1, step), (50, prompt)] {
            let estimate = config.scratch_bytes(tokens);
            println!("{} {tokens}: arena {arena}, estimate {estimate}", config.architecture);
            assert!((arena..=2 * arena + 4 * config.vocab as u64).contains(&estimate));
        }
    }
}

//! Sessions: chunks, replay, rewinding, limits, sampling.

use std::ops::ControlFlow;

use crate::support::{NAMES, argmax, devices, exact, expected, model, session};
use kiln::{Barriers, DType, PlanOptions};
use kiln_models::{Model, ModelError, SamplerOptions, Session, SessionOptions};

#[test]
fn handles_are_owned_and_can_be_sent() {
    fn check<T: Send + 'static>() {}
    check::<Model>();
    check::<Session>();
}

#[test]
fn chunks_of_a_prompt_give_the_bytes_of_one_piece() {
    for device in devices() {
        for name in NAMES {
            let (model, tokens) = (model(&device, name), expected(name).tokens);
            for kv_dtype in [DType::F32, DType::F16] {
                let options = |chunk| SessionOptions { chunk, kv_dtype, ..exact() };
                let whole = session(&model, options(64)).logits_all(&tokens).unwrap();
                for chunk in [1, 7, 16, 39] {
                    let parts = session(&model, options(chunk)).logits_all(&tokens).unwrap();
                    assert_eq!(parts, whole, "{} {name} chunk {chunk}", device.name());
                }
                let prefill = |chunk| {
                    let mut session = session(&model, options(chunk));
                    let next = session.prefill(&tokens).unwrap();
                    (next, session.logits().unwrap())
                };
                assert_eq!(prefill(13), prefill(64), "{} {name}", device.name());
            }
        }
    }
}

#[test]
fn greedy_steps_choose_what_a_prompt_would() {
    for device in devices() {
        for name in NAMES {
            let (model, tokens) = (model(&device, name), &expected(name).tokens[..5]);
            let mut replayed = session(&model, exact());
            let mut chosen = vec![replayed.prefill(tokens).unwrap()];
            chosen.extend((0..20).map(|_| replayed.step().unwrap()));
            assert_eq!(replayed.position(), tokens.len() + 20);

            let all = [tokens, &chosen[..]].concat();
            assert_eq!(replayed.tokens(), &all[..all.len() - 1]);
            let logits = session(&model, exact()).logits_all(&all).unwrap();
            let rows = logits.chunks_exact(model.config().vocab).skip(tokens.len() - 1);
            let expected: Vec<u32> = rows.take(chosen.len()).map(argmax).collect();
            assert_eq!(chosen, expected, "{} {name}", device.name());
        }
    }
}

#[test]
fn a_prompt_of_one_token_is_a_step() {
    let device = kiln_reference::device();
    let model = model(&device, "llama");
    let mut one = session(&model, exact());
    one.prefill(&[5]).unwrap();
    let one = one.logits().unwrap();
    let all = session(&model, exact()).logits_all(&[5]).unwrap();
    assert!(crate::support::nmse(&one, &all) < 1e-12);
}

#[test]
fn fusion_and_barriers_do_not_change_a_bit() {
    for device in devices() {
        for name in NAMES {
            let (model, tokens) = (model(&device, name), expected(name).tokens);
            let run = |plan, kv_dtype| {
                let mut session = session(&model, SessionOptions { plan, kv_dtype, ..exact() });
                let mut chosen = vec![session.prefill(&tokens).unwrap()];
                chosen.extend((0..4).map(|_| session.step().unwrap()));
                (chosen, session.logits().unwrap())
            };
            for kv_dtype in [DType::F32, DType::F16] {
                let fused = run(PlanOptions::default(), kv_dtype);
                for plan in [
                    PlanOptions { fuse: false, ..PlanOptions::default() },
                    PlanOptions { barriers: Barriers::EveryStep, ..PlanOptions::default() },
                ] {
                    assert_eq!(run(plan, kv_dtype), fused, "{} {name} {plan:?}", device.name());
                }
            }
        }
    }
}

#[test]
fn the_planner_fuses_what_it_can() {
    let device = kiln_reference::device();
    let mut session = session(&model(&device, "qwen3"), exact());
    let layers = session.model().config().layers.len();
    let plan = session.decode_executable().unwrap().plan();
    let count = |name: &str| plan.steps().iter().filter(|step| step.op.name() == name).count();
    for (name, expected) in [
        ("gated_matmul", layers),
        ("silu_mul", 0),
        ("add", 0),
        ("add_rms_norm", 2 * layers),
        ("rms_norm", 1),
        ("kv_append", layers),
        ("argmax", 1),
    ] {
        assert_eq!(count(name), expected, "{name}");
    }
}

#[test]
fn rewinding_forgets_what_came_after() {
    for device in devices() {
        let (model, tokens) = (model(&device, "gemma3"), expected("gemma3").tokens);
        let mut rewound = session(&model, exact());
        rewound.prefill(&tokens).unwrap();
        rewound.step().unwrap();
        rewound.rewind(20).unwrap();
        assert!(matches!(rewound.step(), Err(ModelError::NothingToContinue)));
        assert!(matches!(rewound.logits(), Err(ModelError::NothingToContinue)));
        rewound.prefill(&tokens[5..25]).unwrap();

        let mut fresh = session(&model, exact());
        fresh.prefill(&[&tokens[..20], &tokens[5..25]].concat()).unwrap();
        assert_eq!(rewound.logits().unwrap(), fresh.logits().unwrap());
        assert_eq!(rewound.tokens(), fresh.tokens());

        let error = rewound.rewind(41).unwrap_err();
        assert!(matches!(error, ModelError::Rewind { position: 41, held: 40 }));
        rewound.reset();
        assert_eq!(rewound.position(), 0);
        rewound.prefill(&tokens[..20]).unwrap();
        fresh.rewind(0).unwrap();
        fresh.prefill(&tokens[..20]).unwrap();
        assert_eq!(rewound.logits().unwrap(), fresh.logits().unwrap());
    }
}

#[test]
fn a_common_beginning_is_kept() {
    let device = kiln_reference::device();
    let mut session = session(&model(&device, "llama"), exact());
    session.prefill(&[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(session.rewind_to_common(&[1, 2, 3, 9]), 3);
    assert_eq!(session.tokens(), [1, 2, 3]);
    assert_eq!(session.rewind_to_common(&[1, 2, 3]), 2);
    assert_eq!(session.rewind_to_common(&[]), 0);
}

#[test]
fn the_context_is_checked_before_anything_runs() {
    for device in devices() {
        let model = model(&device, "llama");
        let mut session = session(&model, SessionOptions { context: 20, chunk: 7, ..exact() });
        let error = session.prefill(&[1; 21]).unwrap_err();
        assert!(matches!(error, ModelError::ContextFull { needed: 21, capacity: 20 }), "{error}");
        assert_eq!(session.position(), 0);
        session.prefill(&[1; 19]).unwrap();
        session.step().unwrap();
        assert_eq!(session.remaining(), 0);
        assert!(session.logits().unwrap().iter().all(|logit| logit.is_finite()));
        let error = session.step().unwrap_err();
        assert!(matches!(error, ModelError::ContextFull { needed: 21, capacity: 20 }), "{error}");
        assert_eq!(session.position(), 20);
        assert!(session.logits_all(&[1]).is_err());

        // The last chunk ends at the last position, its padding behind it.
        session.reset();
        session.prefill(&[1; 3]).unwrap();
        session.prefill(&[1; 17]).unwrap();
        assert!(session.logits().unwrap().iter().all(|logit| logit.is_finite()));
    }
}

#[test]
fn wrong_tokens_and_options_are_refused() {
    let device = kiln_reference::device();
    let model = model(&device, "llama");
    let mut session = session(&model, exact());
    let error = session.prefill(&[1, 2, 320]).unwrap_err();
    assert!(matches!(error, ModelError::Token { index: 2, token: 320, vocab: 320 }), "{error}");
    assert!(matches!(session.prefill(&[]), Err(ModelError::TooFewTokens { .. })));
    assert!(matches!(session.step(), Err(ModelError::NothingToContinue)));

    let greedy = SamplerOptions::default();
    let wrong = [
        SessionOptions { context: 0, ..exact() },
        SessionOptions { context: usize::MAX, ..exact() },
        SessionOptions { chunk: 0, ..exact() },
        SessionOptions { kv_dtype: DType::Q4K, ..exact() },
        SessionOptions { kv_dtype: DType::Q8_0, ..exact() },
        SessionOptions { sampler: SamplerOptions { temperature: -1.0, ..greedy }, ..exact() },
        SessionOptions { sampler: SamplerOptions { top_p: 0.0, ..greedy }, ..exact() },
    ];
    for options in wrong {
        let error = Session::new(&model, options).unwrap_err();
        assert!(matches!(error, ModelError::Option { .. }), "{error}");
    }
}

#[test]
fn a_prompt_can_be_stopped_between_chunks() {
    let device = kiln_reference::device();
    let model = model(&device, "llama");
    let mut session = session(&model, SessionOptions { chunk: 8, ..exact() });
    let mut seen = Vec::new();
    let result = session.prefill_with(&[1; 30], |done, total| {
        seen.push((done, total));
        if done >= 16 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(ModelError::Cancelled)));
    assert_eq!(seen, [(0, 30), (8, 30), (16, 30)]);
    assert_eq!(session.position(), 16);
    assert!(matches!(session.step(), Err(ModelError::NothingToContinue)));
}

#[test]
fn sampling_follows_its_seed() {
    for device in devices() {
        let model = model(&device, "llama");
        let sampler =
            |temperature, seed| SamplerOptions { temperature, top_k: 50, top_p: 0.9, seed };
        let draw = |sampler| {
            let mut session = session(&model, SessionOptions { sampler, ..exact() });
            let mut chosen = vec![session.prefill(&[1, 2, 3]).unwrap()];
            chosen.extend((0..12).map(|_| session.step().unwrap()));
            chosen
        };
        assert_eq!(draw(sampler(2.0, 1)), draw(sampler(2.0, 1)));
        assert_ne!(draw(sampler(2.0, 1)), draw(sampler(2.0, 2)));
        assert_eq!(draw(sampler(0.0, 1)), draw(SamplerOptions::default()));

        let mut session = session(&model, exact());
        session.prefill(&[1, 2, 3]).unwrap();
        session.reset();
        session.set_sampler(sampler(2.0, 1)).unwrap();
        let mut chosen = vec![session.prefill(&[1, 2, 3]).unwrap()];
        chosen.extend((0..12).map(|_| session.step().unwrap()));
        assert_eq!(chosen, draw(sampler(2.0, 1)));
    }
}

#[test]
fn every_operation_of_a_step_can_be_timed() {
    let device = kiln_reference::device();
    let mut session = session(&model(&device, "qwen2"), SessionOptions { chunk: 8, ..exact() });
    let prompt = session.profile_prefill(&[1; 12]).unwrap();
    let step = session.profile_step().unwrap();
    assert_eq!(session.position(), 13);
    assert_eq!(step.len(), session.decode_executable().unwrap().plan().steps().len());
    assert!(prompt.len() > step.len());
    assert!(step.iter().any(|step| step.name == "cached_attention" && step.flops > 0));
}

#[test]
fn what_was_prepared_is_not_compiled_again() {
    let device = kiln_reference::device();
    let model = model(&device, "llama");
    let mut session = session(&model, SessionOptions { chunk: 16, ..exact() });
    session.prepare(40).unwrap();
    let compiled = session.compile_time();
    session.prefill(&[1; 40]).unwrap();
    session.step().unwrap();
    session.reset();
    session.prefill(&[1]).unwrap();
    assert_eq!(session.compile_time(), compiled);
}

#[test]
fn prompts_of_many_lengths_take_turns() {
    for device in devices() {
        let (model, tokens) = (model(&device, "qwen2"), expected("qwen2").tokens);
        let tokens = [&tokens[..], &tokens[..24]].concat();
        let mut reused = session(&model, SessionOptions { chunk: 256, context: 200, ..exact() });
        for length in [64, 10, 40, 20, 50, 33, 3, 64, 10] {
            reused.reset();
            reused.prefill(&tokens[..length]).unwrap();
            let mut fresh = session(&model, exact());
            fresh.prefill(&tokens[..length]).unwrap();
            assert_eq!(reused.logits().unwrap(), fresh.logits().unwrap(), "{length}");
        }
    }
}

#[test]
fn a_session_gives_its_memory_back() {
    let device = kiln_reference::device();
    let model = model(&device, "llama");
    let before = device.memory().live;
    let mut dropped = session(&model, exact());
    dropped.prefill(&[1, 2, 3]).unwrap();
    dropped.step().unwrap();
    assert!(device.memory().live > before);
    drop(dropped);
    assert_eq!(device.memory().live, before);
}

#[test]
fn a_saved_context_continues_as_if_it_had_been_run() {
    let directory = tempfile::tempdir().unwrap();
    for device in devices() {
        for name in NAMES {
            let (model, tokens) = (model(&device, name), expected(name).tokens);
            for kv_dtype in [DType::F32, DType::F16, DType::BF16] {
                let options = SessionOptions { kv_dtype, chunk: 16, ..exact() };
                let path = directory.path().join(format!("{}-{name}-{kv_dtype}", device.name()));
                let go_on = |session: &mut Session| {
                    let mut chosen = vec![session.prefill(&tokens[16..]).unwrap()];
                    chosen.extend((0..6).map(|_| session.step().unwrap()));
                    (chosen, session.logits().unwrap(), session.tokens().to_vec())
                };
                let mut first = session(&model, options);
                first.prefill(&tokens[..16]).unwrap();
                first.save(&path).unwrap();
                let mut second = session(&model, SessionOptions { context: 50, ..options });
                second.prefill(&[3, 4, 5]).unwrap();
                assert_eq!(second.restore(&path).unwrap(), 16);
                assert_eq!(go_on(&mut second), go_on(&mut first), "{} {name}", device.name());
            }
        }
    }
}

#[test]
fn a_saved_context_that_does_not_fit_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("context");
    let device = kiln_reference::device();
    let mut saved = session(&model(&device, "llama"), exact());
    assert!(matches!(saved.save(&path), Err(ModelError::TooFewTokens { .. })));
    saved.prefill(&expected("llama").tokens[..20]).unwrap();
    let bytes = saved.save(&path).unwrap();
    assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());

    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama.gguf");
    let with = |name, options| session(&model(&device, name), options);
    let what = |session: &mut Session, path: &std::path::Path| {
        session.prefill(&[1, 2]).unwrap();
        let error = session.restore(path).unwrap_err();
        assert_eq!(session.tokens(), [1, 2]);
        assert!(session.step().is_ok());
        match error {
            ModelError::Snapshot { what, .. } => what,
            ModelError::ContextFull { .. } => "too long",
            other => panic!("{other}"),
        }
    };
    assert_eq!(what(&mut with("llama_tied", exact()), &path), "model");
    let short = SessionOptions { context: 19, ..exact() };
    assert_eq!(what(&mut with("llama", short), &path), "too long");
    let halves = SessionOptions { kv_dtype: DType::F16, ..exact() };
    assert_eq!(what(&mut with("llama", halves), &path), "type of the cache");
    assert_eq!(what(&mut with("llama", exact()), fixture.as_ref()), "contents");
    let mut cut = std::fs::read(&path).unwrap();
    cut.truncate(cut.len() / 2);
    std::fs::write(&path, cut).unwrap();
    let cut = with("llama", exact()).restore(&path);
    assert!(matches!(cut, Err(ModelError::Format(_))));
}

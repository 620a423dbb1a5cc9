//! Generating text.

use std::ops::ControlFlow;

use kiln_models::tokenizer::{ByteStrings, Tokenizer, Vocabulary};
use kiln_models::{Finish, GenerateOptions, Generator, ModelError, Session};

use crate::support::{exact, model, session};

/// Tokens of the fixtures' number, of which some ids end a text and the others are one byte of a
/// two-byte character each, so that pieces can be incomplete.
fn tokenizer(ends: &[u32]) -> Tokenizer {
    let mut tokens = ByteStrings::new();
    let mut token_types = Vec::new();
    for id in 0..320u32 {
        let (text, kind) = match id {
            id if ends.contains(&id) => (format!("<end{id}>"), 3),
            id if id % 2 == 0 => ("<0xC3>".to_owned(), 6),
            _ => ("<0xA9>".to_owned(), 6),
        };
        tokens.push(text.as_bytes());
        token_types.push(kind);
    }
    let eos = Some(ends.first().copied().unwrap_or(0));
    let scores = vec![0.0; 320];
    let model = "llama".to_owned();
    Tokenizer::new(Vocabulary { model, tokens, scores, token_types, eos, ..Default::default() })
        .unwrap()
}

fn new_session() -> Session {
    session(&model(&kiln_reference::device(), "llama"), exact())
}

const PROMPT: [u32; 3] = [7, 11, 13];

/// What greedy steps choose after the prompt.
fn chosen(count: usize) -> Vec<u32> {
    let mut session = new_session();
    let mut chosen = vec![session.prefill(&PROMPT).unwrap()];
    chosen.extend((1..count).map(|_| session.step().unwrap()));
    chosen
}

#[test]
fn pieces_are_the_text_of_the_chosen_tokens() {
    let (tokenizer, chosen) = (tokenizer(&[]), chosen(24));
    let options = GenerateOptions { max_tokens: 24, ignore_end: true };
    let mut session = new_session();
    let mut generator = Generator::new(&mut session, &tokenizer, &PROMPT, options).unwrap();
    let pieces: Vec<_> = generator.by_ref().map(Result::unwrap).collect();
    assert_eq!(generator.finish(), Some(Finish::MaxTokens));
    let stats = generator.stats();
    assert_eq!((stats.prompt_tokens, stats.steps), (3, 23));
    assert!(stats.compile > std::time::Duration::ZERO);
    assert!(generator.next().is_none());

    let tokens: Vec<u32> = pieces.iter().filter_map(|piece| piece.token).collect();
    assert_eq!(tokens, chosen);
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    assert_eq!(text, tokenizer.decode(&chosen));
    assert_eq!(session.position(), 3 + 23);

    let mut session = new_session();
    let generator = Generator::new(&mut session, &tokenizer, &PROMPT, options).unwrap();
    let mut streamed = String::new();
    let generation = generator
        .run(|piece| {
            streamed.push_str(piece);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((generation.text.as_str(), &generation.tokens), (text.as_str(), &chosen));
    assert_eq!(streamed, text);
    assert_eq!(generation.finish, Finish::MaxTokens);
}

#[test]
fn an_end_token_ends_the_text() {
    let chosen = chosen(24);
    let end = chosen.iter().position(|&token| token != chosen[0]).unwrap();
    let tokenizer = tokenizer(&[chosen[end]]);
    let mut session = new_session();
    let options = GenerateOptions::default();
    let generator = Generator::new(&mut session, &tokenizer, &PROMPT, options).unwrap();
    let generation = generator.run(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generation.finish, Finish::EndOfText);
    assert_eq!(generation.tokens, &chosen[..end]);
    assert_eq!(session.position(), 3 + end);
}

#[test]
fn a_full_context_ends_the_text() {
    let tokenizer = tokenizer(&[]);
    let mut session = new_session();
    let options = GenerateOptions { ignore_end: true, ..Default::default() };
    let generator = Generator::new(&mut session, &tokenizer, &PROMPT, options).unwrap();
    let generation = generator.run(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generation.finish, Finish::ContextFull);
    assert_eq!(session.remaining(), 0);
    assert_eq!(generation.tokens.len(), 64 - 3 + 1);
}

#[test]
fn callbacks_stop_the_prompt_and_the_text() {
    let tokenizer = tokenizer(&[]);
    let mut session = new_session();
    let options = GenerateOptions { ignore_end: true, ..Default::default() };
    let stopped = Generator::new_with(&mut session, &tokenizer, &PROMPT, options, |_, _| {
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(ModelError::Cancelled)));
    let generator = Generator::new(&mut session, &tokenizer, &PROMPT, options).unwrap();
    let generation = generator.run(|_| ControlFlow::Break(())).unwrap();
    assert_eq!(generation.finish, Finish::Cancelled);
    assert!(generation.tokens.len() < 60);
}

#[test]
fn nothing_is_generated_where_nothing_is_asked_for() {
    let tokenizer = tokenizer(&[]);
    let mut session = new_session();
    let options = GenerateOptions { max_tokens: 0, ..Default::default() };
    let mut generator = Generator::new(&mut session, &tokenizer, &PROMPT, options).unwrap();
    assert!(generator.next().is_none());
    assert_eq!(generator.finish(), Some(Finish::MaxTokens));
}

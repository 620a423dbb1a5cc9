//! Text from a prompt, piece by piece.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::tokenizer::{StreamDecoder, Tokenizer};
use crate::{ModelError, Session};

/// When a generation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Whether to go on past tokens that end a text: for measurements.
    pub ignore_end: bool,
}

impl Default for GenerateOptions {
    /// Until the model ends the text or the context is full.
    fn default() -> Self {
        Self { max_tokens: usize::MAX, ignore_end: false }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its text.
    EndOfText,
    /// [`GenerateOptions::max_tokens`] were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The callback asked to stop.
    Cancelled,
}

/// A token and the text that it completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token; `None` for the rest of the text at the end.
    pub token: Option<u32>,
    /// Whole characters; empty while a character is incomplete.
    pub text: String,
}

/// Figures of a generation. Compiling is counted by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time of the prompt; the first token is chosen at its end.
    pub prefill: Duration,
    /// Tokens chosen after the first.
    pub steps: usize,
    /// Time of the steps.
    pub decode: Duration,
    /// Time of recording, planning and compiling.
    pub compile: Duration,
}

impl GenerationStats {
    /// Tokens of the prompt per second; 0 where no time was measured.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        per_second(self.prompt_tokens, self.prefill)
    }

    /// Steps per second; 0 where no time was measured.
    pub fn decode_tokens_per_second(&self) -> f64 {
        per_second(self.steps, self.decode)
    }
}

fn per_second(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The tokens generated; the one that ended the text is not among them.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Figures.
    pub stats: GenerationStats,
}

/// An iterator over the pieces of a generated text.
///
/// Every item costs one step of the session. After the last item, or after an error, there are no
/// more.
///
/// ```no_run
/// use kiln_models::tokenizer::{EncodeOptions, Tokenizer};
/// use kiln_models::{GenerateOptions, Generator, ModelError, Session};
/// # fn example(session: &mut Session, tokenizer: &Tokenizer) -> Result<(), ModelError> {
/// let special = EncodeOptions { add_special: true, ..Default::default() };
/// let prompt = tokenizer.encode("The capital of France is", special);
/// let options = GenerateOptions { max_tokens: 64, ..Default::default() };
/// let mut generator = Generator::new(session, tokenizer, &prompt, options)?;
/// for piece in &mut generator {
///     print!("{}", piece?.text);
/// }
/// eprintln!("{:.1} tokens/s", generator.stats().decode_tokens_per_second());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Generator<'a> {
    session: &'a mut Session,
    tokenizer: &'a Tokenizer,
    decoder: StreamDecoder,
    options: GenerateOptions,
    stats: GenerationStats,
    /// The token to be given out next.
    pending: Option<u32>,
    generated: usize,
    finish: Option<Finish>,
}

impl<'a> Generator<'a> {
    /// Appends the prompt to the context of the session and chooses the first token.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn new(
        session: &'a mut Session,
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, ModelError> {
        Self::new_with(session, tokenizer, prompt, options, |_, _| ControlFlow::Continue(()))
    }

    /// As [`Generator::new`]; `progress` is called with the tokens of the prompt done and in total
    /// and may stop the run.
    ///
    /// # Errors
    /// As [`Session::prefill_with`].
    pub fn new_with(
        session: &'a mut Session,
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
        options: GenerateOptions,
        progress: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self, ModelError> {
        let clock = Clock::start(session);
        let first = session.prefill_with(prompt, progress)?;
        let (prefill, compile) = clock.stop(session);
        let stats =
            GenerationStats { prompt_tokens: prompt.len(), prefill, compile, ..Default::default() };
        Ok(Self {
            session,
            tokenizer,
            decoder: tokenizer.decoder(),
            options,
            stats,
            pending: Some(first),
            generated: 0,
            finish: None,
        })
    }

    /// Decodes to text with this decoder instead of [`Tokenizer::decoder`].
    #[must_use]
    pub fn with_decoder(mut self, decoder: StreamDecoder) -> Self {
        self.decoder = decoder;
        self
    }

    /// Figures so far.
    pub fn stats(&self) -> GenerationStats {
        self.stats
    }

    /// Why it ended; `None` while it has not.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Gives the pieces to `text` until the end, or until it asks to stop.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn run(
        mut self,
        mut text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation, ModelError> {
        let (mut tokens, mut all) = (Vec::new(), String::new());
        while let Some(piece) = self.next() {
            let piece = piece?;
            tokens.extend(piece.token);
            all.push_str(&piece.text);
            if !piece.text.is_empty() && text(&piece.text).is_break() {
                self.finish = Some(Finish::Cancelled);
                break;
            }
        }
        let finish = self.finish.unwrap_or(Finish::Cancelled);
        Ok(Generation { tokens, text: all, finish, stats: self.stats })
    }

    /// The next token, or why there is none.
    fn advance(&mut self) -> Result<Result<u32, Finish>, ModelError> {
        if self.generated >= self.options.max_tokens {
            return Ok(Err(Finish::MaxTokens));
        }
        let token = match self.pending.take() {
            Some(token) => token,
            None if self.session.remaining() == 0 => return Ok(Err(Finish::ContextFull)),
            None => self.step()?,
        };
        if self.tokenizer.is_end_of_generation(token) && !self.options.ignore_end {
            return Ok(Err(Finish::EndOfText));
        }
        self.generated += 1;
        Ok(Ok(token))
    }

    fn step(&mut self) -> Result<u32, ModelError> {
        let clock = Clock::start(self.session);
        let token = self.session.step()?;
        let (decode, compile) = clock.stop(self.session);
        self.stats.steps += 1;
        self.stats.decode += decode;
        self.stats.compile += compile;
        Ok(token)
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<Piece, ModelError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finish.is_some() {
            return None;
        }
        match self.advance() {
            Ok(Ok(token)) => {
                let text = self.decoder.push(token).to_owned();
                Some(Ok(Piece { token: Some(token), text }))
            }
            Ok(Err(finish)) => {
                self.finish = Some(finish);
                let text = self.decoder.finish().to_owned();
                (!text.is_empty()).then_some(Ok(Piece { token: None, text }))
            }
            Err(error) => {
                self.finish = Some(Finish::Cancelled);
                Some(Err(error))
            }
        }
    }
}

/// Measures a run without the time a session compiles in it.
struct Clock {
    started: Instant,
    compiled: Duration,
}

impl Clock {
    fn start(session: &Session) -> Self {
        Self { started: Instant::now(), compiled: session.compile_time() }
    }

    /// Time of running and time of compiling.
    fn stop(self, session: &Session) -> (Duration, Duration) {
        let compile = session.compile_time().saturating_sub(self.compiled);
        (self.started.elapsed().saturating_sub(compile), compile)
    }
}

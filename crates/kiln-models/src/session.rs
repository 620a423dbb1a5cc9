//! A session: a model, its caches and a place in the context.

mod snapshot;

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use kiln::{DType, Device, Executable, StepProfile, Tensor};

use crate::graph::{Graph, Head, Inputs, KvCache, Sampling};
use crate::random::Random;
use crate::{Model, ModelConfig, ModelError, SamplerOptions, SessionOptions};

/// Prompts run in multiples of this many rows, so that every chunk takes the matrix-matrix route of
/// every device.
pub(crate) const ROW_TILE: usize = 16;

/// Compiled prompts kept at once; each holds the intermediate results of its length.
const MAX_PROMPTS: usize = 4;

/// One sequence of tokens and what a model remembers of it.
///
/// A step is one replay of a compiled recording: the host writes the position, the token that was
/// chosen stays on the device and feeds the next step. Prompts run in chunks whose lengths are
/// padded to multiples of 16; how a prompt is cut into chunks does not change a bit of the result.
pub struct Session {
    model: Model,
    options: SessionOptions,
    caches: Vec<KvCache>,
    state: State,
    random: Random,
    decode: Option<Executable>,
    /// Least recently used first.
    prompts: Vec<Prompt>,
    /// What the caches hold.
    tokens: Vec<u32>,
    /// The token in `state.next`, where it is the one that follows.
    next: Option<u32>,
    compile_time: Duration,
}

/// Device tensors that all recordings of a session share.
struct State {
    /// `[2]` u32: position of the first token, keys that the last token sees.
    lengths: Tensor,
    /// The first of `lengths`, `[1]`.
    start: Tensor,
    /// The second of `lengths`, `[1]`.
    kv_len: Tensor,
    /// `[1]` u32, the token chosen last.
    next: Tensor,
    /// `[1]` f32
    random: Tensor,
    /// `[1, vocab]` f32
    logits: Tensor,
}

/// What a prompt is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// More of the prompt follows.
    Caches,
    /// The next token.
    Next,
    /// The logits of every token.
    Logits,
}

/// A compiled run of several tokens.
struct Prompt {
    goal: Goal,
    /// `[T]` u32
    ids: Tensor,
    /// `[T]` u32
    positions: Tensor,
    /// `[1]` u32, the last row that is no padding
    row: Tensor,
    /// `[T, vocab]` f32
    logits: Option<Tensor>,
    run: Executable,
}

/// How a compiled recording is run.
type Run<'a> = &'a mut dyn FnMut(&Executable) -> kiln::Result<()>;

impl State {
    fn new(device: &Device, vocab: usize) -> kiln::Result<Self> {
        let lengths = device.tensor(DType::U32, [2])?;
        Ok(Self {
            start: lengths.slice(0, 0..1)?,
            kv_len: lengths.slice(0, 1..2)?,
            lengths,
            next: device.tensor(DType::U32, [1])?,
            random: device.tensor(DType::F32, [1])?,
            logits: device.tensor(DType::F32, [1, vocab])?,
        })
    }

    fn sampling(&self, options: SamplerOptions) -> Sampling<'_> {
        Sampling { options, logits: &self.logits, random: &self.random, next: &self.next }
    }
}

impl Session {
    /// An empty context; allocates the caches. Recordings are compiled when they are first needed.
    ///
    /// # Errors
    /// [`ModelError::Option`], or [`ModelError::Device`] where the memory does not suffice.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self, ModelError> {
        let (config, device) = (model.config(), model.device());
        options.check(config)?;
        let slots = ModelConfig::cache_slots(options.context);
        let shape = [config.kv_heads, slots, config.head_dim];
        let cache = || device.tensor(options.kv_dtype, shape);
        let caches = (0..config.layers.len()).map(|_| Ok(KvCache { k: cache()?, v: cache()? }));
        Ok(Self {
            model: model.clone(),
            options,
            caches: caches.collect::<kiln::Result<_>>()?,
            state: State::new(device, config.vocab)?,
            random: Random::new(options.sampler.seed),
            decode: None,
            prompts: Vec::new(),
            tokens: Vec::new(),
            next: None,
            compile_time: Duration::ZERO,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The options it was made with, and the sampler set last.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// The tokens of the context, in order; the one chosen last is not yet among them.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens of the context: the position of the next one.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens the context still has room for.
    pub fn remaining(&self) -> usize {
        self.options.context - self.position()
    }

    /// Time spent so far on recording, planning and compiling.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Compiles what a prompt of so many tokens and the steps after it need.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn prepare(&mut self, prompt: usize) -> Result<(), ModelError> {
        let chunk = self.options.chunk;
        if prompt > chunk {
            self.compile_prompt(Goal::Caches, chunk)?;
        }
        if prompt > 1 {
            self.compile_prompt(Goal::Next, (prompt - 1) % chunk + 1)?;
        }
        self.compile_decode()
    }

    /// Appends tokens to the context and chooses the one that follows, which is returned but not
    /// yet part of the context.
    ///
    /// # Errors
    /// Before anything is run: [`ModelError::TooFewTokens`] for no tokens,
    /// [`ModelError::ContextFull`], [`ModelError::Token`]. Then [`ModelError::Device`].
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<u32, ModelError> {
        self.prefill_with(tokens, |_, _| ControlFlow::Continue(()))
    }

    /// As [`Session::prefill`]. `progress` is called with the tokens done and the tokens in total,
    /// before each chunk and at the end; it may stop the run, which leaves the chunks done in the
    /// context.
    ///
    /// # Errors
    /// As [`Session::prefill`], and [`ModelError::Cancelled`].
    pub fn prefill_with(
        &mut self,
        tokens: &[u32],
        mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<u32, ModelError> {
        self.run_prompt(tokens, &mut progress, &mut Executable::run)?;
        self.chosen()
    }

    /// As [`Session::prefill`], with the time of every operation.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn profile_prefill(&mut self, tokens: &[u32]) -> Result<Vec<StepProfile>, ModelError> {
        let mut steps = Vec::new();
        let mut run = |executable: &Executable| {
            steps.extend(executable.profile()?);
            Ok(())
        };
        self.run_prompt(tokens, &mut |_, _| ControlFlow::Continue(()), &mut run)?;
        Ok(steps)
    }

    /// Appends the token chosen last and chooses the one that follows.
    ///
    /// # Errors
    /// [`ModelError::NothingToContinue`] and [`ModelError::ContextFull`] before anything is run,
    /// [`ModelError::Device`].
    pub fn step(&mut self) -> Result<u32, ModelError> {
        self.run_step(&mut Executable::run)?;
        self.chosen()
    }

    /// As [`Session::step`], with the time of every operation.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn profile_step(&mut self) -> Result<Vec<StepProfile>, ModelError> {
        let mut steps = Vec::new();
        let mut run = |executable: &Executable| {
            steps = executable.profile()?;
            Ok(())
        };
        self.run_step(&mut run)?;
        Ok(steps)
    }

    /// The logits the last token was chosen from, one per token of the vocabulary.
    ///
    /// # Errors
    /// [`ModelError::NothingToContinue`], [`ModelError::Device`].
    pub fn logits(&self) -> Result<Vec<f32>, ModelError> {
        self.chosen()?;
        Ok(self.state.logits.to_vec()?)
    }

    /// Appends tokens to the context and hands the logits of each to `row`, with its index in
    /// `tokens`. Memory for one chunk of logits is needed, on the device and on the host.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn for_each_logits(
        &mut self,
        tokens: &[u32],
        mut row: impl FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        self.check_tokens(tokens)?;
        let vocab = self.model.config().vocab;
        let mut done = 0;
        for chunk in tokens.chunks(self.options.chunk) {
            let prompt = self.run_chunk(Goal::Logits, chunk, &mut Executable::run)?;
            let Some(logits) = &self.prompts[prompt].logits else { continue };
            let values = logits.slice(0, 0..chunk.len())?.to_vec::<f32>()?;
            for logits in values.chunks_exact(vocab) {
                row(done, logits);
                done += 1;
            }
        }
        Ok(())
    }

    /// Appends tokens to the context and returns the logits of each, `[tokens, vocab]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn logits_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let mut all = Vec::new();
        self.for_each_logits(tokens, |_, logits| all.extend_from_slice(logits))?;
        Ok(all)
    }

    /// Forgets the context and starts the random numbers again.
    pub fn reset(&mut self) {
        self.tokens.clear();
        self.next = None;
        self.random = Random::new(self.options.sampler.seed);
    }

    /// Forgets everything from `position` on; the random numbers go on.
    ///
    /// # Errors
    /// [`ModelError::Rewind`] where the context holds fewer tokens.
    pub fn rewind(&mut self, position: usize) -> Result<(), ModelError> {
        if position > self.position() {
            return Err(ModelError::Rewind { position, held: self.position() });
        }
        self.tokens.truncate(position);
        self.next = None;
        Ok(())
    }

    /// Rewinds to the longest beginning that the context shares with `tokens` and returns its
    /// length; the last of `tokens` is left to be run. Continue with
    /// `prefill(&tokens[length..])`: what was run before is not run again.
    pub fn rewind_to_common(&mut self, tokens: &[u32]) -> usize {
        let pairs = self.tokens.iter().zip(tokens);
        let common = pairs.take_while(|(held, token)| held == token).count();
        let common = common.min(tokens.len().saturating_sub(1));
        self.tokens.truncate(common);
        self.next = None;
        common
    }

    /// Chooses tokens in another way from now on, and starts the random numbers again.
    ///
    /// # Errors
    /// [`ModelError::Option`].
    pub fn set_sampler(&mut self, sampler: SamplerOptions) -> Result<(), ModelError> {
        sampler.check()?;
        self.random = Random::new(sampler.seed);
        let old = std::mem::replace(&mut self.options.sampler, sampler);
        if (SamplerOptions { seed: 0, ..old }) != (SamplerOptions { seed: 0, ..sampler }) {
            self.decode = None;
            self.prompts.retain(|prompt| prompt.goal != Goal::Next);
        }
        Ok(())
    }

    /// The compiled step, for a look at its plan.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn decode_executable(&mut self) -> Result<&Executable, ModelError> {
        self.compile_decode()?;
        self.decode.as_ref().ok_or(ModelError::NothingToContinue)
    }

    /// The compiled run of a prompt of so many tokens, at most a chunk, for a look at its plan.
    ///
    /// # Errors
    /// [`ModelError::Option`] for no tokens and for more than a chunk, [`ModelError::Device`].
    pub fn prefill_executable(&mut self, tokens: usize) -> Result<&Executable, ModelError> {
        let chunk = self.options.chunk;
        if !(1..=chunk).contains(&tokens) {
            return Err(ModelError::option("tokens", format_args!("1 to {chunk}"), tokens));
        }
        let index = self.compile_prompt(Goal::Next, tokens)?;
        Ok(&self.prompts[index].run)
    }

    /// The token chosen last.
    fn chosen(&self) -> Result<u32, ModelError> {
        self.next.ok_or(ModelError::NothingToContinue)
    }

    fn read_next(&mut self) -> kiln::Result<()> {
        let mut next = [0; 4];
        self.state.next.read_bytes(&mut next)?;
        self.next = Some(u32::from_ne_bytes(next));
        Ok(())
    }

    /// Checks that tokens exist and fit the context.
    fn check_tokens(&self, tokens: &[u32]) -> Result<(), ModelError> {
        if tokens.is_empty() {
            return Err(ModelError::TooFewTokens { operation: "a prompt", needed: 1, got: 0 });
        }
        self.check_room(tokens.len())?;
        let vocab = self.model.config().vocab;
        match tokens.iter().position(|&token| token as usize >= vocab) {
            Some(index) => Err(ModelError::Token { index, token: tokens[index], vocab }),
            None => Ok(()),
        }
    }

    fn check_room(&self, tokens: usize) -> Result<(), ModelError> {
        if tokens <= self.remaining() {
            return Ok(());
        }
        let needed = self.position().saturating_add(tokens);
        Err(ModelError::ContextFull { needed, capacity: self.options.context })
    }

    fn run_prompt(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
        run: Run,
    ) -> Result<(), ModelError> {
        self.check_tokens(tokens)?;
        let mut report = |done| match progress(done, tokens.len()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ModelError::Cancelled),
        };
        if let [token] = tokens {
            report(0)?;
            self.state.next.write(&[*token])?;
            self.next = Some(*token);
            self.run_step(run)?;
            return report(1);
        }
        let mut done = 0;
        for chunk in tokens.chunks(self.options.chunk) {
            report(done)?;
            done += chunk.len();
            let goal = if done == tokens.len() { Goal::Next } else { Goal::Caches };
            self.run_chunk(goal, chunk, run)?;
        }
        report(done)
    }

    fn run_step(&mut self, run: Run) -> Result<(), ModelError> {
        let token = self.chosen()?;
        self.check_room(1)?;
        self.compile_decode()?;
        self.write_lengths(1)?;
        self.draw()?;
        self.next = None;
        if let Some(decode) = &self.decode {
            run(decode)?;
        }
        self.tokens.push(token);
        Ok(self.read_next()?)
    }

    /// Runs one chunk and returns its place in `prompts`.
    fn run_chunk(&mut self, goal: Goal, tokens: &[u32], run: Run) -> Result<usize, ModelError> {
        let index = self.compile_prompt(goal, tokens.len())?;
        let rows = self.prompts[index].ids.extent(0);
        self.next = None;
        self.write_lengths(rows)?;
        if goal == Goal::Next {
            self.draw()?;
        }
        let mut ids = tokens.to_vec();
        ids.resize(rows, 0);
        let start = self.position() as u32;
        let positions: Vec<u32> = (start..start + rows as u32).collect();
        let prompt = &self.prompts[index];
        prompt.ids.write(&ids)?;
        prompt.positions.write(&positions)?;
        prompt.row.write(&[tokens.len() as u32 - 1])?;
        run(&prompt.run)?;
        self.tokens.extend_from_slice(tokens);
        if goal == Goal::Next {
            self.read_next()?;
        }
        Ok(index)
    }

    fn write_lengths(&self, rows: usize) -> kiln::Result<()> {
        let start = self.position();
        self.state.lengths.write(&[start as u32, (start + rows) as u32])
    }

    /// Gives the sampler its random number.
    fn draw(&mut self) -> kiln::Result<()> {
        if self.options.sampler.is_greedy() {
            return Ok(());
        }
        self.state.random.write(&[self.random.uniform()])
    }

    fn compile_decode(&mut self) -> Result<(), ModelError> {
        if self.decode.is_some() {
            return Ok(());
        }
        let started = Instant::now();
        let State { start, kv_len, next, .. } = &self.state;
        let inputs = Inputs { ids: next, positions: start, start, kv_len };
        let sampling = self.state.sampling(self.options.sampler);
        let graph = Graph::new(&self.model, &self.caches, inputs, self.options.precision);
        let head = Head::Next { row: None, sampling };
        self.decode = Some(graph.finish(head, self.options.plan)?);
        self.compile_time += started.elapsed();
        Ok(())
    }

    /// The place in `prompts` of the recording for a goal and a number of tokens.
    fn compile_prompt(&mut self, goal: Goal, tokens: usize) -> Result<usize, ModelError> {
        let rows = tokens.next_multiple_of(ROW_TILE);
        let fits = |prompt: &Prompt| prompt.goal == goal && prompt.ids.extent(0) == rows;
        let prompt = match self.prompts.iter().position(fits) {
            Some(index) => self.prompts.remove(index),
            None => {
                if self.prompts.len() == MAX_PROMPTS {
                    self.prompts.remove(0);
                }
                let started = Instant::now();
                let prompt = self.record_prompt(goal, rows)?;
                self.compile_time += started.elapsed();
                prompt
            }
        };
        self.prompts.push(prompt);
        Ok(self.prompts.len() - 1)
    }

    fn record_prompt(&self, goal: Goal, rows: usize) -> kiln::Result<Prompt> {
        let device = self.model.device();
        let ids = device.tensor(DType::U32, [rows])?;
        let positions = device.tensor(DType::U32, [rows])?;
        let row = device.tensor(DType::U32, [1])?;
        let logits = match goal {
            Goal::Logits => Some(device.tensor(DType::F32, [rows, self.model.config().vocab])?),
            _ => None,
        };
        let State { start, kv_len, .. } = &self.state;
        let inputs = Inputs { ids: &ids, positions: &positions, start, kv_len };
        let head = match (&logits, goal) {
            (Some(logits), _) => Head::Logits(logits),
            (None, Goal::Caches) => Head::Caches,
            (None, _) => {
                let sampling = self.state.sampling(self.options.sampler);
                Head::Next { row: Some(&row), sampling }
            }
        };
        let graph = Graph::new(&self.model, &self.caches, inputs, self.options.precision);
        let run = graph.finish(head, self.options.plan)?;
        Ok(Prompt { goal, ids, positions, row, logits, run })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("model", &self.model)
            .field("options", &self.options)
            .field("position", &self.position())
            .finish_non_exhaustive()
    }
}

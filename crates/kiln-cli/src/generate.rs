//! `kiln generate`: text from a prompt.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kiln_models::chat::{ChatOptions, ChatTemplate, CivilTime, Message};
use kiln_models::tokenizer::{EncodeOptions, Tokenizer};
use kiln_models::{
    Finish, GenerateOptions, Generation, Generator, ModelError, SamplerOptions, Session,
    SessionOptions,
};

use crate::args::{self, ArithmeticArgs, DeviceArgs, ModelArg};
use crate::error::CliError;
use crate::load::{self, Checked};
use crate::{memory, output};

const EXAMPLES: &str = "\
Examples:
  kiln generate -m model.gguf \"Once upon a time\"
  kiln generate -m model.gguf -p \"The capital of France is\" -n 24 --temp 0
  kiln generate -m model.gguf --chat -p \"Write a haiku about rain.\" --seed 7
  kiln generate -m model.gguf --prompt-file story.txt -n 512 --ctx 4096 > continued.txt
  echo \"To be, or not to\" | kiln generate -m model.gguf --prompt-file -
  kiln generate -m model.gguf --prompt-file long.txt --prompt-cache long.cache

Standard output gets the generated text only, piece by piece; standard error gets a line of speeds
at the end.

Without --chat the model continues the prompt as it stands; the names of special tokens in it,
such as <|im_end|>, count as those tokens. With --chat the prompt is a message and goes through
the chat template of the model; special tokens in it stay text.";

/// Generate text from a prompt
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The prompt
    #[arg(value_name = "PROMPT", group = "input")]
    positional: Option<String>,
    #[command(flatten)]
    model: ModelArg,
    /// The prompt, as an option
    #[arg(short, long, value_name = "TEXT", group = "input")]
    prompt: Option<String>,
    /// A file with the prompt, without its last line end; `-` reads standard input
    #[arg(long, value_name = "FILE", group = "input")]
    prompt_file: Option<PathBuf>,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 512)]
    max_tokens: u32,
    /// Answer the prompt as a message of a conversation
    #[arg(long)]
    chat: bool,
    /// What the model is told to be, with --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Tokens of context; enough for the prompt and -n if not given
    #[arg(long, value_name = "N", value_parser = args::context())]
    ctx: Option<usize>,
    /// Keep the context in this file: what a later prompt shares with it is not run again
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    arithmetic: ArithmeticArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(clap::Args)]
struct SamplingArgs {
    /// Temperature: higher is more varied, 0 always takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.8, help_heading = "Sampling")]
    temp: f32,
    /// Choose among this many of the most probable tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 40, help_heading = "Sampling")]
    top_k: u32,
    /// Choose among the most probable tokens that have this probability together
    #[arg(long, value_name = "P", default_value_t = 0.95, help_heading = "Sampling")]
    top_p: f32,
    /// Start of the random numbers; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,
}

impl SamplingArgs {
    fn options(&self) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temp,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            seed: self.seed,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let text = args.prompt()?;
    let started = Instant::now();
    let device = args.device.open()?;
    let model = load::open(&args.model)?;
    let tokenizer = model.tokenizer()?;
    let prompt = args.encode(&text, &model, &tokenizer)?;
    let options = SessionOptions {
        context: args.context(prompt.len(), model.trained)?,
        kv_dtype: args.arithmetic.kv_type,
        precision: args.arithmetic.precision(),
        sampler: args.sampling.options(),
        ..SessionOptions::for_device(&device)
    };
    let mut session = model.session(&device, options)?;
    session.prepare(prompt.len())?;
    let load = started.elapsed();

    let reused = args.restore(&mut session, &prompt)?;
    let prompt = &prompt[reused..];
    let bar = output::bar(prompt.len() as u64, "prompt [{bar:40}] {pos}/{len} tokens");
    let limits = GenerateOptions { max_tokens: args.max_tokens as usize, ignore_end: false };
    let generator = Generator::new_with(&mut session, &tokenizer, prompt, limits, |done, _| {
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let decoder = match args.chat {
        true => tokenizer.decoder(),
        false => tokenizer.decoder().continuing(),
    };
    let generation = stream(generator?.with_decoder(decoder))?;
    let mut line = summary(&generation, load, options.context);
    if let Some(path) = &args.prompt_cache {
        session.save(path)?;
        line = format!("{line} | {} reused", output::plural(reused, "token"));
    }
    eprintln!("{}", output::Style::of_stderr().quiet(&line));
    Ok(ExitCode::SUCCESS)
}

/// Prints the text as it comes and ends it with a line end.
fn stream(generator: Generator) -> Result<Generation, CliError> {
    let mut out = io::stdout().lock();
    let mut written = Ok(());
    let generation = generator.run(|piece| {
        written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    if !generation.text.ends_with('\n') {
        writeln!(out)?;
    }
    out.flush()?;
    Ok(generation)
}

/// The line of speeds.
fn summary(generation: &Generation, load: Duration, context: usize) -> String {
    let stats = generation.stats;
    let rate = |rate: f64| match rate {
        0.0 => String::new(),
        rate => format!(", {} tokens/s", output::figure(rate)),
    };
    let mut parts = vec![
        format!(
            "prompt {}{}",
            output::plural(stats.prompt_tokens, "token"),
            rate(stats.prefill_tokens_per_second())
        ),
        format!(
            "generated {}{}",
            output::plural(generation.tokens.len(), "token"),
            rate(stats.decode_tokens_per_second())
        ),
        format!("load {}", output::time(load)),
    ];
    parts.extend(memory::peak().map(|peak| format!("peak memory {}", output::bytes(peak))));
    if generation.finish == Finish::ContextFull {
        parts.push(format!("stopped: the context of {context} tokens is full (see --ctx)"));
    }
    parts.join(" | ")
}

impl Args {
    fn prompt(&self) -> Result<String, CliError> {
        if let Some(text) = self.positional.as_ref().or(self.prompt.as_ref()) {
            return Ok(text.clone());
        }
        let path = self.prompt_file.as_ref().ok_or_else(|| {
            CliError::new("no prompt: give it in quotes, with -p TEXT or with --prompt-file FILE")
        })?;
        let mut bytes = Vec::new();
        let read = match path.as_os_str() == "-" {
            true => io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
            false => std::fs::read(path).map(|file| bytes = file),
        };
        read.map_err(|error| CliError::file("read the prompt from", path, &error))?;
        let mut text = String::from_utf8(bytes).map_err(|_| {
            CliError::new(format_args!("the prompt in {path:?} is not UTF-8 text: convert it"))
        })?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(text)
    }

    /// Takes up a saved context; returns how many tokens of the prompt it holds.
    fn restore(&self, session: &mut Session, prompt: &[u32]) -> Result<usize, CliError> {
        match &self.prompt_cache {
            Some(path) if path.exists() => match session.restore(path) {
                Ok(_) => Ok(session.rewind_to_common(prompt)),
                // What was saved is longer than this run needs: it starts afresh.
                Err(ModelError::ContextFull { .. }) => Ok(0),
                Err(error) => Err(error.into()),
            },
            _ => Ok(0),
        }
    }

    fn encode(
        &self,
        text: &str,
        model: &Checked,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>, CliError> {
        let tokens = if self.chat {
            let template = ChatTemplate::from_gguf(&model.file, None)?;
            let mut messages: Vec<Message> = self.system.iter().map(Message::system).collect();
            messages.push(Message::user(text));
            let options =
                ChatOptions { add_generation_prompt: true, now: now(), ..ChatOptions::default() };
            tokenizer.encode_prompt(&template.prompt(&messages, &options, tokenizer)?)
        } else {
            let options = EncodeOptions { add_special: true, parse_special: true };
            tokenizer.encode(text, options)
        };
        if tokens.is_empty() {
            return Err(CliError::new("the prompt has no tokens: give some text"));
        }
        Ok(tokens)
    }

    /// Tokens of context, given that the prompt has so many and the model was trained for so many.
    fn context(&self, prompt: usize, trained: usize) -> Result<usize, CliError> {
        let wanted = prompt.saturating_add(self.max_tokens as usize);
        let capacity = self.ctx.unwrap_or(wanted.min(trained)).max(1);
        if prompt <= capacity {
            return Ok(capacity);
        }
        let beyond = match wanted > trained {
            true => format!(" (the model was trained for {trained})"),
            false => String::new(),
        };
        Err(CliError::new(format_args!(
            "the prompt needs {prompt} tokens, the context has a capacity of {capacity}: \
             shorten the prompt or give --ctx {wanted}{beyond}"
        )))
    }
}

/// The time for templates that print a date.
fn now() -> Option<CivilTime> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(CivilTime::from_unix_seconds(i64::try_from(since.as_secs()).ok()?))
}

//! `kiln bench`: speeds of models and of single operations.

mod compare;
mod inputs;
mod limits;
mod op_cases;
mod ops;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use kiln_models::{ModelError, Session};
use serde::Serialize;

use crate::args::{self, Format};
use crate::error::CliError;
use crate::load::SourceArgs;
use crate::output::{self, Table};
use limits::Limits;

const EXAMPLES: &str = "\
Examples:
  kiln bench -m model.gguf -p 512 -n 64 -t 2
  kiln bench --shape llama-8b --quant q4_0 -p 128 -n 16 -r 3
  kiln bench -m model.gguf -p 0 -n 64 -d 4096
  kiln bench -m model.gguf -t 2 --compare 'llama-bench -fa 1'
  kiln bench --shape llama-1b --quant q4_k --save 1b.gguf
  kiln bench -m model.gguf --format json > speeds.json
  kiln bench ops --op matmul

Prints tokens per second of the prompt (prefill) and of generation (decode): the median over the
repeats, the lowest and the highest. Both begin with an empty context, or behind -d tokens, which are
run once and not measured; a first run of each is not counted. The limits of the device come first:
what it reads or copies from its memory, and what it multiplies; the last column is the share of its
memory's bandwidth.

--compare runs another program's llama-bench in turn with each repeat, on the same file with the same
-p, -n, -d and -t, and prints the ratio of the medians with its spread.";

/// Measure how fast a model runs
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    source: SourceArgs,
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate; 0 leaves decode out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    decode: usize,
    /// Tokens of context before both
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Runs that are counted
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = args::at_least_one())]
    repeats: usize,
    /// A llama-bench to run in turn with ours; -m, -p, -n, -d, -t, -r and -o are added to it
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["shape", "save"])]
    compare: Option<String>,
    /// Write the random model of --shape to a GGUF file, and measure nothing
    #[arg(long, value_name = "FILE", requires = "shape")]
    save: Option<PathBuf>,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(clap::Subcommand)]
enum Command {
    Ops(ops::Args),
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    model: String,
    weight_bytes: usize,
    device: &'static str,
    description: String,
    precision: String,
    kv_type: &'static str,
    /// Tokens of context before each run.
    depth: usize,
    repeats: usize,
    /// What the device does at best, where that is measured.
    limits: Option<Limits>,
    prefill: Option<Speed>,
    decode: Option<Speed>,
    /// Bytes of weights that decode reads per second, over the memory's bandwidth.
    decode_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<compare::Comparison>,
}

/// Tokens per second over several runs.
#[derive(Serialize)]
struct Speed {
    tokens: usize,
    median: f64,
    min: f64,
    max: f64,
    runs: Vec<f64>,
}

impl Speed {
    fn new(tokens: usize, runs: Vec<f64>) -> Option<Self> {
        let (median, min, max) = spread(&runs);
        (!runs.is_empty()).then_some(Self { tokens, median, min, max, runs })
    }
}

/// Tokens per second of one run; `None` for no tokens.
fn rate(
    tokens: usize,
    run: impl FnOnce() -> Result<(), ModelError>,
) -> Result<Option<f64>, ModelError> {
    if tokens == 0 {
        return Ok(None);
    }
    let started = Instant::now();
    run()?;
    Ok(Some(tokens as f64 / started.elapsed().as_secs_f64()))
}

/// Median, lowest and highest of some numbers.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.first(), sorted.last()) {
        (Some(&min), Some(&max)) => {
            let half = sorted.len() / 2;
            let median = (sorted[(sorted.len() - 1) / 2] + sorted[half]) / 2.0;
            (median, min, max)
        }
        _ => (0.0, 0.0, 0.0),
    }
}

/// Token ids for a prompt: speeds do not depend on them.
pub(crate) fn prompt_tokens(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|index| (index * 7919 % vocab.max(1)) as u32).collect()
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    if let Some(Command::Ops(args)) = &args.command {
        return ops::run(args);
    }
    if let Some(path) = &args.save {
        let bytes = args.source.save(path)?;
        println!("{} in {path:?}", output::bytes(bytes));
        return Ok(ExitCode::SUCCESS);
    }
    let peer = args.compare.as_deref().map(|command| compare::Peer::new(command, args));
    let peer = peer.transpose()?;
    // Before the weights take the memory.
    let limits = Limits::measure(&args.source.device.open()?, &args.source.device)?;
    let longest = args.prompt.max(args.decode);
    let (mut session, model) = args.source.session(args.depth.saturating_add(longest))?;
    let vocab = session.model().config().vocab;
    let tokens = prompt_tokens(args.prompt.max(1), vocab);
    if args.depth > 0 {
        session.prefill(&prompt_tokens(args.depth, vocab))?;
    }
    let mut runs = [Vec::new(), Vec::new()];
    let mut peer_runs = [Vec::new(), Vec::new()];
    // The first run of each is not counted.
    for repeat in 0..=args.repeats {
        let prefill = rate(args.prompt, || {
            session.rewind(args.depth)?;
            session.prefill(&tokens).map(drop)
        })?;
        let decode = rate(args.decode, || decode(&mut session, args.depth, args.decode))?;
        let peer = peer.as_ref().map(compare::Peer::run).transpose()?.unwrap_or_default();
        if repeat > 0 {
            runs.iter_mut().zip([prefill, decode]).for_each(|(all, rate)| all.extend(rate));
            peer_runs.iter_mut().zip(peer).for_each(|(all, rate)| all.extend(rate));
        }
    }
    let [prefill, decode] = runs;
    let (prefill, decode) = (Speed::new(args.prompt, prefill), Speed::new(args.decode, decode));
    let peer = args
        .compare
        .clone()
        .map(|command| compare::Comparison::new(command, [&prefill, &decode], peer_runs));
    let device = session.model().device();
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model,
        weight_bytes: device.memory().weights,
        device: device.name(),
        description: device.description(),
        precision: format!("{:?}", args.source.arithmetic.precision()).to_lowercase(),
        kv_type: args.source.arithmetic.kv_type.name(),
        depth: args.depth,
        repeats: args.repeats,
        limits,
        prefill,
        decode,
        decode_share: None,
        peer,
    };
    report.decode_share =
        limits.zip(report.bandwidth()).map(|(limits, used)| limits.of_memory(used));
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => report.write(&mut io::stdout().lock())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one token after the other behind `depth` tokens, `count` in all.
fn decode(session: &mut Session, depth: usize, count: usize) -> Result<(), ModelError> {
    session.rewind(depth)?;
    session.prefill(&[0])?;
    (1..count).try_for_each(|_| session.step().map(drop))
}

impl Report {
    /// GB/s of weights in decode, where every token reads all of them.
    fn bandwidth(&self) -> Option<f64> {
        self.decode.as_ref().map(|speed| speed.median * self.weight_bytes as f64 / 1e9)
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let weights = output::bytes(self.weight_bytes as u64);
        writeln!(out, "{}, {weights} of weights", self.model)?;
        let Report { device, description, precision, kv_type, .. } = self;
        writeln!(out, "{device}: {description}, {precision} arithmetic, {kv_type} cache")?;
        if let Some(limits) = self.limits {
            writeln!(out, "limits: {limits}")?;
        }
        let mut table = Table::new("<>>>>>>");
        let names =
            ["", "tokens", "tokens/s", "lowest", "highest", "GB/s of weights", "of the limit"];
        table.row(names);
        for (name, speed) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            let Some(Speed { tokens, median, min, max, .. }) = speed else { continue };
            let figure = |value: &f64| output::figure(*value);
            let decode = name == "decode";
            let bandwidth = self.bandwidth().filter(|_| decode).map(output::figure);
            let share = self.decode_share.filter(|_| decode);
            let share = share.map(|share| format!("{:.0} %", 100.0 * share));
            let [bandwidth, share] = [bandwidth, share].map(Option::unwrap_or_default);
            let [median, min, max] = [median, min, max].map(figure);
            table.row([name, &tokens.to_string(), &median, &min, &max, &bandwidth, &share]);
        }
        table.write(out)?;
        let runs = output::plural(self.repeats, "run");
        match self.depth {
            0 => writeln!(out, "  median of {runs}")?,
            depth => writeln!(out, "  median of {runs} behind {}", output::plural(depth, "token"))?,
        }
        self.peer.as_ref().map_or(Ok(()), |peer| peer.write(out))
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0));
        assert_eq!(spread(&[]), (0.0, 0.0, 0.0));
    }
}

//! `kiln perplexity`: how well a model predicts a text, and how near it is to reference logits.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_models::SessionOptions;
use kiln_models::tokenizer::EncodeOptions;
use serde::Serialize;

use crate::args::{self, ArithmeticArgs, DeviceArgs, Format, ModelArg};
use crate::error::CliError;
use crate::load::{self, Checked};
use crate::logits::read_tokens;
use crate::output::{self, Table};

const EXAMPLES: &str = "\
Examples:
  kiln perplexity -m model.gguf -f text.txt
  kiln perplexity -m model.gguf --tokens text.u32 --reference text.f32 --exact

The text is cut into windows of --ctx tokens. Each is run by itself, and every token but the first
of a window is predicted from those before it. Reference logits are raw little-endian f32, one row
of the vocabulary per token, as `kiln logits` writes them.";

/// Measure how well a model predicts a text
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// The text, UTF-8
    #[arg(short, long, value_name = "FILE", required_unless_present = "tokens")]
    file: Option<PathBuf>,
    /// Token ids instead of a text, little-endian u32
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    tokens: Option<PathBuf>,
    /// Logits of the same tokens to compare with
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value = "512", value_parser = args::context())]
    ctx: usize,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    arithmetic: ArithmeticArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let model = load::open(&args.model)?;
    let tokens = args.tokens(&model)?;
    let device = args.device.open()?;
    let options = SessionOptions {
        context: args.ctx.min(tokens.len()),
        kv_dtype: args.arithmetic.kv_type,
        precision: args.arithmetic.precision(),
        ..SessionOptions::for_device(&device)
    };
    let mut session = model.session(&device, options)?;
    let vocab = session.model().config().vocab;
    let mut reference = match &args.reference {
        Some(path) => Some(Reference::open(path, tokens.len(), vocab)?),
        None => None,
    };
    let mut scores = Scores::default();
    let mut failed = None;
    let bar = output::bar(tokens.len() as u64, "[{bar:40}] {pos}/{len} tokens {eta}");
    for window in tokens.chunks(options.context) {
        session.reset();
        let result = session.for_each_logits(window, |index, logits| {
            bar.inc(1);
            let row = match &mut reference {
                Some(reference) if failed.is_none() => match reference.next() {
                    Ok(row) => Some(row),
                    Err(error) => {
                        failed = Some(error);
                        None
                    }
                },
                _ => None,
            };
            scores.add(logits, row, window.get(index + 1).copied());
        });
        result?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    bar.finish_and_clear();
    let report = scores.report(reference.is_some());
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => report.write(&mut io::stdout().lock())?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn tokens(&self, model: &Checked) -> Result<Vec<u32>, CliError> {
        let tokens = match (&self.tokens, &self.file) {
            (Some(path), _) => read_tokens(path)?,
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| CliError::file("read", path, &error))?;
                let options = EncodeOptions { add_special: true, parse_special: false };
                model.tokenizer()?.encode(&text, options)
            }
            (None, None) => Vec::new(),
        };
        if tokens.len() < 2 || self.ctx < 2 {
            let got = tokens.len().min(self.ctx);
            return Err(CliError::new(format_args!(
                "a perplexity needs at least 2 tokens, got {got}: give a longer text or --ctx"
            )));
        }
        Ok(tokens)
    }
}

/// Logits from a file, row by row.
struct Reference {
    path: PathBuf,
    file: BufReader<File>,
    bytes: Vec<u8>,
    row: Vec<f32>,
}

impl Reference {
    fn open(path: &Path, rows: usize, vocab: usize) -> Result<Self, CliError> {
        let failed = |error: io::Error| CliError::file("read", path, &error);
        let file = File::open(path).map_err(failed)?;
        let got = file.metadata().map_err(failed)?.len();
        let expected = rows as u64 * vocab as u64 * 4;
        if got != expected {
            return Err(CliError::new(format_args!(
                "{path:?} has {got} bytes, expected {expected}: \
                 {rows} rows of {vocab} f32 logits, one per token"
            )));
        }
        let (path, file) = (path.to_owned(), BufReader::new(file));
        Ok(Self { path, file, bytes: vec![0; vocab * 4], row: vec![0.0; vocab] })
    }

    fn next(&mut self) -> Result<&[f32], CliError> {
        let read = self.file.read_exact(&mut self.bytes);
        read.map_err(|error| CliError::file("read", &self.path, &error))?;
        for (value, &bytes) in self.row.iter_mut().zip(self.bytes.as_chunks().0) {
            *value = f32::from_le_bytes(bytes);
        }
        Ok(&self.row)
    }
}

/// Sums over positions.
#[derive(Default)]
struct Scores {
    positions: usize,
    predicted: usize,
    nll: f64,
    reference_nll: f64,
    error: f64,
    power: f64,
    agree: usize,
}

impl Scores {
    fn add(&mut self, logits: &[f32], reference: Option<&[f32]>, target: Option<u32>) {
        self.positions += 1;
        if let Some(target) = target {
            self.predicted += 1;
            self.nll -= log_probability(logits, target);
            self.reference_nll -= reference.map_or(0.0, |row| log_probability(row, target));
        }
        let Some(reference) = reference else { return };
        self.agree += usize::from(argmax(logits) == argmax(reference));
        for (&got, &want) in logits.iter().zip(reference) {
            let (got, want) = (f64::from(got), f64::from(want));
            self.error += (got - want) * (got - want);
            self.power += want * want;
        }
    }

    fn report(&self, compared: bool) -> Report {
        let mean = |sum: f64| sum / self.predicted as f64;
        let mean_nll = mean(self.nll);
        let reference = compared.then(|| {
            let reference_nll = mean(self.reference_nll);
            Comparison {
                mean_nll: reference_nll,
                perplexity: reference_nll.exp(),
                perplexity_ratio: (mean_nll - reference_nll).exp(),
                nmse: self.error / self.power,
                top1_agreement: self.agree as f64 / self.positions as f64,
            }
        });
        let (tokens, predicted) = (self.positions, self.predicted);
        Report { tokens, predicted, mean_nll, perplexity: mean_nll.exp(), reference }
    }
}

#[derive(Serialize)]
struct Report {
    tokens: usize,
    predicted: usize,
    mean_nll: f64,
    perplexity: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<Comparison>,
}

#[derive(Serialize)]
struct Comparison {
    mean_nll: f64,
    perplexity: f64,
    perplexity_ratio: f64,
    nmse: f64,
    top1_agreement: f64,
}

impl Report {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut table = Table::new("<>");
        table.row(["tokens", &self.tokens.to_string()]);
        table.row(["predicted", &self.predicted.to_string()]);
        table.row(["mean NLL", &format!("{:.5} nats", self.mean_nll)]);
        table.row(["perplexity", &format!("{:.4}", self.perplexity)]);
        if let Some(reference) = &self.reference {
            let Comparison { mean_nll, perplexity, perplexity_ratio, nmse, top1_agreement } =
                reference;
            table.row(["reference mean NLL", &format!("{mean_nll:.5} nats")]);
            table.row(["reference perplexity", &format!("{perplexity:.4}")]);
            let off = 100.0 * (perplexity_ratio - 1.0);
            table.row(["perplexity off by", &format!("{off:+.3} %")]);
            table.row(["NMSE of logits", &format!("{nmse:.3e}")]);
            table.row(["top-1 agreement", &format!("{:.2} %", 100.0 * top1_agreement)]);
        }
        table.write(out)
    }
}

/// `ln softmax(logits)[token]`; NaN for a token that has no logit.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NAN);
    f64::from(logit) - max - sum.ln()
}

/// The index of the largest value; ties go to the lowest.
fn argmax(values: &[f32]) -> usize {
    let best = |best: (usize, f32), (index, &value): (usize, &f32)| {
        if value > best.1 { (index, value) } else { best }
    };
    values.iter().enumerate().fold((0, f32::NEG_INFINITY), best).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_agree() {
        let mut scores = Scores::default();
        let row = [1.0, 3.0, -2.0];
        scores.add(&row, Some(&row), Some(1));
        scores.add(&row, Some(&row), None);
        let report = scores.report(true);
        let probability = 3f64.exp() / (1f64.exp() + 3f64.exp() + (-2f64).exp());
        assert!((report.perplexity - 1.0 / probability).abs() < 1e-12);
        let reference = report.reference.unwrap();
        assert_eq!((reference.nmse, reference.top1_agreement), (0.0, 1.0));
        assert_eq!(reference.perplexity, report.perplexity);
    }
}

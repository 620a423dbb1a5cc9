//! `kiln verify`: the conformance table on the user's own machine.

use std::io::{self, Write};
use std::process::ExitCode;

use kiln::OpenError;
use kiln::ops::Op;
use kiln_conformance::{CaseReport, Filter, Outcome, Summary, cases, run_all};
use serde::Serialize;

use crate::args::{DeviceArgs, Format};
use crate::error::CliError;
use crate::output::{self, Style};

/// Check every operation of a device against the reference
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kiln verify
  kiln verify --op matmul --format json > report.json
  kiln verify --case \"rms_norm/\" --verbose

Runs the conformance table: inputs from seeds, results compared with a slow computation in f64. The
last line counts what passed, failed and was skipped.

Exit status: 0 all passed, 1 a case failed, 2 an error.")]
pub(crate) struct Args {
    /// Only the cases of an operation
    #[arg(long, value_name = "NAME", hide_possible_values = true, value_parser = op_names())]
    op: Option<String>,
    /// Only the cases whose name contains a text
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Also the cases that need 4 GiB of memory each
    #[arg(long)]
    large: bool,
    /// Also print the cases that pass
    #[arg(short, long)]
    verbose: bool,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Fail where that device is not there; otherwise it is counted as skipped
    #[arg(long, value_name = "NAME")]
    require: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

fn op_names() -> clap::builder::PossibleValuesParser {
    Op::<()>::NAMES.into()
}

#[derive(Serialize)]
struct Report {
    device: &'static str,
    description: String,
    version: &'static str,
    #[serde(flatten)]
    summary: Summary,
    cases: Vec<CaseReport>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let device = match args.device.try_open() {
        Err(OpenError::Device(error)) if args.require.is_none() && args.device.name().is_some() => {
            return skip_device(args, &error);
        }
        opened => opened?,
    };
    if let Some(required) = args.require.as_deref().filter(|name| *name != device.name()) {
        return Err(CliError::new(format!(
            "device {required} is required, this is {}: use --device {required}",
            device.name()
        )));
    }
    let filter = Filter { op: args.op.clone(), name: args.case.clone(), large: args.large };
    let count = cases().iter().filter(|case| filter.accepts(case)).count();
    if count == 0 {
        return Err(CliError::new(
            "no case has that operation and name: `kiln verify --verbose` prints all names",
        ));
    }
    let (name, description) = (device.name(), device.description());
    let text = args.format == Format::Text;
    if text {
        writeln!(io::stdout(), "{name}: {description}, {}", output::plural(count, "case"))?;
    }
    let bar = output::bar(count as u64, "[{bar:40}] {pos}/{len} {msg}");
    let (mut reports, mut written) = (Vec::new(), Ok(()));
    let summary = run_all(&device, &filter, &mut |report| {
        bar.set_message(report.op);
        bar.inc(1);
        if text && written.is_ok() {
            written = bar.suspend(|| print(report, name, args.verbose));
        } else if !text {
            reports.push(report.clone());
        }
    });
    bar.finish_and_clear();
    written?;
    if text {
        writeln!(io::stdout(), "{summary}")?;
    } else {
        let version = env!("CARGO_PKG_VERSION");
        output::json(&Report { device: name, description, version, summary, cases: reports })?;
    }
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Says that a device is not there. Nothing was checked, which is no failure unless required.
fn skip_device(args: &Args, error: &kiln::Error) -> Result<ExitCode, CliError> {
    let summary = Summary { skipped: 1, ..Summary::default() };
    match args.format {
        Format::Text => {
            let mut out = io::stdout().lock();
            writeln!(out, "skip device {error}")?;
            writeln!(out, "{summary}")?;
        }
        Format::Json => output::json(&Report {
            device: "none",
            description: error.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            summary,
            cases: Vec::new(),
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One line for a case, three for one that failed.
fn print(report: &CaseReport, device: &str, verbose: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let style = Style::of_stdout();
    match &report.outcome {
        Outcome::Passed { .. } if !verbose => Ok(()),
        Outcome::Passed { .. } => writeln!(out, "{report}"),
        Outcome::Skipped { reason } => {
            writeln!(out, "skip {}: {reason} (see --large)", report.name())
        }
        Outcome::Failed(failure) => {
            let name = report.name();
            writeln!(out, "{} {name}\n     {failure}", style.error("FAIL"))?;
            writeln!(out, "     to repeat: kiln verify --device {device} --case {name:?}")
        }
    }
}

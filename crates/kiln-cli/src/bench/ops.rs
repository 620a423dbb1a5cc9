//! `kiln bench ops`: the speed of single operations.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kiln::Executable;
use serde::Serialize;

use super::op_cases::{Inputs, OpCase, cases};
use super::spread;
use crate::args::{self, DeviceArgs, Format};
use crate::error::CliError;
use crate::output::{self, Style, Table};

/// Measure single operations at typical shapes
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kiln bench ops
  kiln bench ops --op matmul --exact -t 2
  kiln bench ops --op rms_norm --format json

The CPU's limits come first: memory reads by all threads, and byte products on tiles in cache. The
last column is the larger of the shares of both; small operations that stay in caches exceed it.

Products are of one and of 512 rows with 4096 x 4096 weights of every type; those of one row go
through more weights than caches hold. Bytes and operations are those each operation declares.")]
pub(crate) struct Args {
    /// Only this operation
    #[arg(long, value_name = "NAME")]
    op: Option<String>,
    /// Only cases whose description contains a text, for example `q4_0`
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Multiply in f32 from dequantised weights
    #[arg(long)]
    exact: bool,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    device: &'static str,
    description: String,
    /// Of the CPU: what it reads and multiplies at best.
    limits: Option<MachineLimits>,
    ops: Vec<Row>,
    skipped: Vec<Skip>,
}

#[derive(Clone, Copy, Serialize)]
struct MachineLimits {
    read_gb_per_s: f64,
    dot_gop_per_s: f64,
}

#[derive(Serialize)]
struct Row {
    op: &'static str,
    case: String,
    seconds: f64,
    lowest_seconds: f64,
    highest_seconds: f64,
    gb_per_s: f64,
    gflop_per_s: f64,
    /// The larger of the shares of both limits.
    share: Option<f64>,
}

#[derive(Serialize)]
struct Skip {
    op: &'static str,
    case: String,
    reason: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let chosen = choose(args)?;
    let device = args.device.open()?;
    let inputs = Inputs::new(&device, args::precision(args.exact));
    let (description, name) = (device.description(), device.name());
    let version = env!("CARGO_PKG_VERSION");
    let limits = (name == "cpu").then(|| limits(&args.device)).transpose()?;
    let (ops, skipped) = (Vec::new(), Vec::new());
    let mut report = Report { version, device: name, description, limits, ops, skipped };
    let bar = output::bar(chosen.len() as u64, "[{bar:40}] {pos}/{len} {msg}");
    for case in chosen {
        bar.set_message(format!("{} {}", case.op, case.label));
        match (case.build)(&inputs) {
            Ok(executable) => {
                let mut row = measure(&case, &executable)?;
                row.share = limits.map(|limits| {
                    let read = row.gb_per_s / limits.read_gb_per_s;
                    read.max(row.gflop_per_s / limits.dot_gop_per_s)
                });
                report.ops.push(row);
            }
            Err(kiln::Error::Unsupported(problem)) => {
                let (op, case, reason) = (case.op, case.label, problem.to_string());
                report.skipped.push(Skip { op, case, reason });
            }
            Err(error) => return Err(error.into()),
        }
        device.trim();
        bar.inc(1);
    }
    bar.finish_and_clear();
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => report.write(&mut io::stdout().lock())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn limits(device: &DeviceArgs) -> Result<MachineLimits, CliError> {
    let kiln::cpu::Limits { read_gb_per_s, dot_gop_per_s } =
        kiln::cpu::limits(&device.cpu_config())?;
    Ok(MachineLimits { read_gb_per_s, dot_gop_per_s })
}

/// The cases asked for, at least one.
fn choose(args: &Args) -> Result<Vec<OpCase>, CliError> {
    let all = cases();
    let mut names: Vec<&str> = all.iter().map(|case| case.op).collect();
    names.dedup();
    let names = names.join(", ");
    let wanted = |case: &OpCase| {
        args.op.as_deref().is_none_or(|op| case.op == op)
            && args.case.as_deref().is_none_or(|text| case.label.contains(text))
    };
    let chosen: Vec<OpCase> = all.into_iter().filter(wanted).collect();
    if chosen.is_empty() {
        let text = format_args!("no measurement of that operation and case, there are: {names}");
        return Err(CliError::new(text));
    }
    Ok(chosen)
}

/// Runs a plan, whose steps are all the same operation, until the time is known.
fn measure(case: &OpCase, executable: &Executable) -> Result<Row, CliError> {
    const ENOUGH: Duration = Duration::from_millis(300);
    const RUNS: std::ops::RangeInclusive<usize> = 5..=100;
    let steps = executable.plan().steps();
    let sum = |amount: &dyn Fn(&kiln::Step) -> u64| steps.iter().map(amount).sum::<u64>() as f64;
    let (bytes, flops) = (sum(&|step| step.op.bytes()), sum(&|step| step.op.flops()));
    executable.run()?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    while times.len() < *RUNS.start() || (times.len() < *RUNS.end() && begun.elapsed() < ENOUGH) {
        let started = Instant::now();
        executable.run()?;
        times.push(started.elapsed().as_secs_f64());
    }
    let count = steps.len() as f64;
    let (median, lowest, highest) = spread(&times);
    Ok(Row {
        op: case.op,
        case: case.label.clone(),
        seconds: median / count,
        lowest_seconds: lowest / count,
        highest_seconds: highest / count,
        gb_per_s: bytes / median / 1e9,
        gflop_per_s: flops / median / 1e9,
        share: None,
    })
}

impl Report {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let title = format!("{}: {}", self.device, self.description);
        writeln!(out, "{}", Style::of_stdout().heading(&title))?;
        if let Some(MachineLimits { read_gb_per_s, dot_gop_per_s }) = self.limits {
            let [read, dot] = [read_gb_per_s, dot_gop_per_s].map(output::figure);
            writeln!(out, "limits: {read} GB/s read, {dot} GOP/s of 4-bit by 8-bit products")?;
        }
        let mut table = Table::new("<<>>>>");
        table.row(["operation", "case", "time", "GB/s", "GFLOP/s", "of the limit"]);
        for row in &self.ops {
            let time = output::time(Duration::from_secs_f64(row.seconds));
            let flops = match row.gflop_per_s {
                0.0 => "-".to_owned(),
                rate => output::figure(rate),
            };
            let share = row.share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
            let bytes = output::figure(row.gb_per_s);
            table.row([row.op, &row.case, &time, &bytes, &flops, &share]);
        }
        table.write(out)?;
        for Skip { op, case, reason } in &self.skipped {
            writeln!(out, "  skipped {op} {case}: {reason}")?;
        }
        Ok(())
    }
}

//! `kiln bench ops`: the speed of single operations.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kiln::prelude::*;
use kiln::{Executable, quant};
use serde::Serialize;

use super::inputs::{Inputs, Use, is_gpu};
use super::limits::Limits;
use super::op_cases::{OpCase, cases};
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

The limits come first. Of the CPU: memory reads by all threads, and products on tiles in cache.
Of a CUDA device: a copy inside its memory, and a bf16 product of 8192 x 8192 matrices. The last
column is the larger of the shares of both; small operations that stay in caches exceed it.

Products are of one and of 512 rows with 4096 x 4096 weights of every type; those of one row go
through more weights than caches hold. On a GPU every operation goes through more tensors than that,
up to 64 copies, one step after the other in one plan, and its results are compared with the CPU's
before it is timed. Bytes and operations are those each operation declares.")]
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
    /// What the device does at best, where that is measured.
    limits: Option<Limits>,
    ops: Vec<Row>,
    skipped: Vec<Skip>,
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
    /// Root mean square of the difference from the CPU's result, relative to that of the result.
    error: Option<f64>,
}

#[derive(Serialize)]
struct Skip {
    op: &'static str,
    case: String,
    reason: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let precision = args::precision(args.exact);
    let device = args.device.open()?;
    let chosen = choose(args, is_gpu(&device))?;
    let inputs = Inputs { device: device.clone(), precision, use_for: Use::Speed };
    let reference = (device.name() != "cpu")
        .then(|| kiln::cpu::device(args.device.cpu_config()))
        .transpose()?;
    let reference = reference.map(|device| Inputs { device, precision, use_for: Use::Reference });
    let (description, name) = (device.description(), device.name());
    let version = env!("CARGO_PKG_VERSION");
    let limits = Limits::measure(&device, &args.device)?;
    let (ops, skipped) = (Vec::new(), Vec::new());
    let mut report = Report { version, device: name, description, limits, ops, skipped };
    let bar = output::bar(chosen.len() as u64, "[{bar:40}] {pos}/{len} {msg}");
    for case in chosen {
        bar.set_message(format!("{} {}", case.op, case.label));
        match case.build(&inputs) {
            Ok(executable) => {
                executable.run()?;
                let error = reference.as_ref().map(|inputs| check(&case, &executable, inputs));
                let error = error.transpose()?;
                let row = measure(&case, &executable)?;
                let share = limits.map(|limits| limits.share(row.gb_per_s, row.gflop_per_s));
                report.ops.push(Row { share, error, ..row });
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

/// The largest relative difference of an output of the first step from that of the CPU.
fn check(case: &OpCase, executable: &Executable, reference: &Inputs) -> Result<f64, CliError> {
    /// Roundings of 8-bit activations and of bf16 stay below.
    const MOST: f64 = 0.02;
    let expected = case.build(reference)?;
    expected.run()?;
    let outputs = |executable: &Executable| -> Vec<Tensor> {
        let operands = executable.plan().steps().first().map(|step| step.op.operands());
        let written = operands.into_iter().flatten().filter(|(role, _)| role.access.writes());
        written.map(|(_, tensor)| tensor).collect()
    };
    let mut error = 0.0f64;
    for (got, expected) in outputs(executable).iter().zip(outputs(&expected)) {
        // The reference may have the last rows alone.
        let got = (0..got.rank()).try_fold(got.clone(), |got, axis| {
            let (all, some) = (got.extent(axis), expected.extent(axis));
            if all == some { Ok(got) } else { got.slice(axis, all.saturating_sub(some)..all) }
        })?;
        let (got, expected) = (values(&got)?, values(&expected)?);
        let squares = |value: &dyn Fn(f64, f64) -> f64| -> f64 {
            let pairs = got.iter().zip(&expected);
            pairs.map(|(&a, &b)| value(a.into(), b.into()).powi(2)).sum()
        };
        let (off, all) = (squares(&|a, b| a - b), squares(&|_, b| b));
        let relative = if off == 0.0 { 0.0 } else { (off / all).sqrt() };
        // Not a number is no result.
        error = if relative <= error { error } else { relative };
    }
    if error <= MOST {
        return Ok(error);
    }
    let OpCase { op, label, .. } = case;
    Err(CliError::new(format_args!(
        "the result of {op} {label} differs from the CPU's by {error:.1e} of its size: run `kiln verify --op {op}`"
    )))
}

/// The values of a tensor; integers too.
fn values(tensor: &Tensor) -> Result<Vec<f32>, CliError> {
    if tensor.dtype() == DType::U32 {
        return Ok(tensor.to_vec::<u32>()?.into_iter().map(|value| value as f32).collect());
    }
    let mut bytes = vec![0; tensor.bytes()];
    tensor.read_bytes(&mut bytes)?;
    let mut values = vec![0.0; tensor.values()];
    quant::dequantize_row(tensor.dtype(), &bytes, &mut values)?;
    Ok(values)
}

/// The cases asked for, at least one; those that take a CPU minutes are for GPUs.
fn choose(args: &Args, gpu: bool) -> Result<Vec<OpCase>, CliError> {
    let mut all = cases();
    all.retain(|case| gpu || !case.large);
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
        error: None,
    })
}

impl Report {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let title = format!("{}: {}", self.device, self.description);
        writeln!(out, "{}", Style::of_stdout().heading(&title))?;
        if let Some(limits) = self.limits {
            writeln!(out, "limits: {limits}")?;
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

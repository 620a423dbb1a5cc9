//! `kiln quantize`: a model with smaller weights.

use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kiln::format::{FormatError, Gguf};
use kiln_models::quantize::{
    FileType, QuantizeError, QuantizeOptions, QuantizeReport, TensorReport, quantize,
};
use serde::Serialize;

use crate::args::{self, Format};
use crate::error::CliError;
use crate::output::{self, Table, bytes, plural, printable};

/// Write a model with smaller weights
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kiln quantize model-f16.gguf model-q4_k_m.gguf q4_k_m
  kiln quantize model-f16.gguf model-q8_0.gguf q8_0 --report
  kiln quantize model-00001-of-00003.gguf small.gguf q3_k_m -t 4
  kiln quantize model-q4_1.gguf model-f32.gguf f32 --allow-requantize

Types, from many bits per weight to few: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0,
q4_k_m, q4_k_s, q4_1, q4_0, iq4_nl, iq4_xs, q3_k_l, q3_k_m, q3_k_s, q2_k. q4_k_m is a good start.

A type is a mix: the output and other sensitive matrices get more bits, as llama.cpp's do. Vectors
keep their type. A matrix whose rows are not whole blocks of its type gets another one.
The result appears under its name when it is complete, or not at all.")]
pub(crate) struct Args {
    /// The model, a GGUF file in F32, F16, BF16 or Q8_0; of a split model the first part
    #[arg(value_name = "IN")]
    source: PathBuf,
    /// The file to write; one that is there is replaced
    #[arg(value_name = "OUT")]
    target: PathBuf,
    /// What the result is made of, for example q4_k_m
    #[arg(value_name = "TYPE", value_parser = file_type)]
    file_type: FileType,
    /// Every matrix in this type, the sensitive ones too
    #[arg(long)]
    pure: bool,
    /// Also quantise what is quantised already: the errors add up
    #[arg(long)]
    allow_requantize: bool,
    /// Threads; one per core if not given. The result does not depend on it
    #[arg(short, long, value_name = "N", value_parser = args::threads)]
    threads: Option<usize>,
    /// Print type, size and error of every tensor
    #[arg(long)]
    report: bool,
    /// How to print the report
    #[arg(long, value_enum, default_value_t = Format::Text, requires = "report")]
    format: Format,
}

fn file_type(name: &str) -> Result<FileType, String> {
    FileType::from_name(name)
        .ok_or_else(|| format!("there is no such type; choose from {}", FileType::supported()))
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let source = Gguf::open(&args.source)?;
    let options = QuantizeOptions {
        file_type: args.file_type,
        pure: args.pure,
        allow_requantize: args.allow_requantize,
        threads: args.threads,
        measure: args.report,
    };
    // Without a handler the signal would end the process before the temporary file is removed.
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).map_err(CliError::new)?;

    let start = Instant::now();
    let bar = output::bar(0, "quantising [{bar:40}] {bytes}/{total_bytes} {eta}");
    let result = quantize(&source, &args.target, &options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    let report = result.map_err(|error| failure(error, args))?;
    let seconds = start.elapsed().as_secs_f64();
    match (args.report, args.format) {
        (false, _) => {}
        (true, Format::Text) => table(&report).write(&mut io::stdout().lock())?,
        (true, Format::Json) => output::json(&Report::new(args, &report, seconds))?,
    }
    let fallbacks = report.tensors.iter().filter(|tensor| tensor.instead_of.is_some()).count();
    let fallbacks = match fallbacks {
        0 => String::new(),
        n => {
            format!("; {} of another type, because of the length of the rows", plural(n, "tensor"))
        }
    };
    eprintln!(
        "{}: {} in {seconds:.1} s, {} -> {}, {:.2} bits per weight{fallbacks}",
        args.file_type,
        plural(report.tensors.len(), "tensor"),
        bytes(source.file_bytes()),
        bytes(report.file_bytes),
        bits_per_weight(&report),
    );
    Ok(ExitCode::SUCCESS)
}

/// A failure in terms of the command's options.
fn failure(error: QuantizeError, args: &Args) -> CliError {
    match error {
        QuantizeError::Requantize { tensor, got, to } => CliError::new(format_args!(
            "tensor {tensor:?} is quantised already ({got}), and {to} of that would add its error \
             to the first: start from an F32, F16, BF16 or Q8_0 file, or give --allow-requantize"
        )),
        QuantizeError::Cancelled => {
            CliError::new(format_args!("interrupted: {:?} was not written", args.target))
        }
        QuantizeError::Format(error) => match error.cause() {
            FormatError::Write { error: system } | FormatError::Io { error: system, .. }
                if no_space(system) =>
            {
                CliError::new(format_args!(
                    "cannot write {:?}: {system}: free some space or write to another disk",
                    args.target
                ))
            }
            _ => error.into(),
        },
        other => CliError::new(other),
    }
}

fn no_space(error: &io::Error) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn bits_per_weight(report: &QuantizeReport) -> f64 {
    let sum = |figure: fn(&TensorReport) -> f64| report.tensors.iter().map(figure).sum::<f64>();
    let weights = sum(|tensor| tensor.shape.iter().product::<usize>() as f64);
    8.0 * sum(|tensor| tensor.bytes_to as f64) / weights.max(1.0)
}

fn table(report: &QuantizeReport) -> Table {
    let mut table = Table::new("<<<<>>>>");
    table.row(["tensor", "shape", "from", "to", "bytes from", "bytes to", "RMSE", "max error"]);
    for tensor in &report.tensors {
        let to = match tensor.instead_of {
            Some(dtype) => format!("{} (for {dtype})", tensor.to),
            None => tensor.to.to_string(),
        };
        let figure = |get: fn(kiln_models::quantize::TensorError) -> f64| {
            tensor.error.map_or(String::new(), |error| format!("{:.3e}", get(error)))
        };
        table.row([
            &printable(&tensor.name),
            &format!("{:?}", tensor.shape),
            tensor.from.name(),
            &to,
            &tensor.bytes_from.to_string(),
            &tensor.bytes_to.to_string(),
            &figure(|error| error.rmse),
            &figure(|error| error.largest),
        ]);
    }
    table
}

#[derive(Serialize)]
struct Report<'a> {
    file_type: &'static str,
    pure: bool,
    seconds: f64,
    file_bytes: u64,
    bits_per_weight: f64,
    tensors: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    shape: &'a [usize],
    from: &'static str,
    to: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instead_of: Option<&'static str>,
    bytes_from: u64,
    bytes_to: u64,
    rmse: Option<f64>,
    max_error: Option<f64>,
}

impl<'a> Report<'a> {
    fn new(args: &Args, report: &'a QuantizeReport, seconds: f64) -> Self {
        let lines = report.tensors.iter().map(|tensor| Line {
            name: &tensor.name,
            shape: &tensor.shape,
            from: tensor.from.name(),
            to: tensor.to.name(),
            instead_of: tensor.instead_of.map(kiln::DType::name),
            bytes_from: tensor.bytes_from,
            bytes_to: tensor.bytes_to,
            rmse: tensor.error.map(|error| error.rmse),
            max_error: tensor.error.map(|error| error.largest),
        });
        Self {
            file_type: args.file_type.name(),
            pure: args.pure,
            seconds,
            file_bytes: report.file_bytes,
            bits_per_weight: bits_per_weight(report),
            tensors: lines.collect(),
        }
    }
}

//! `kiln logits`: the logits of given tokens, for comparisons with other implementations.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_models::SessionOptions;

use crate::args::{self, ArithmeticArgs, DeviceArgs, ModelArg};
use crate::error::CliError;
use crate::load;

/// Write the logits of every position of a token file (for developers)
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  kiln logits -m model.gguf --tokens text.u32 --out text.f32 --exact

Both files are raw and little-endian: u32 token ids in, f32 logits out, one row of the vocabulary
per token.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// Token ids, little-endian u32
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
    /// Where to write the logits, little-endian f32
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Tokens of context; as many as the file has if not given
    #[arg(long, value_name = "N", value_parser = args::context())]
    ctx: Option<usize>,
    #[command(flatten)]
    arithmetic: ArithmeticArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let model = load::open(&args.model)?;
    let tokens = read_tokens(&args.tokens)?;
    let device = args.device.open()?;
    let options = SessionOptions {
        context: args.ctx.unwrap_or(tokens.len()).max(1),
        kv_dtype: args.arithmetic.kv_type,
        precision: args.arithmetic.precision(),
        ..SessionOptions::for_device(&device)
    };
    let mut session = model.session(&device, options)?;
    let failed = |error: std::io::Error| CliError::file("write", &args.out, &error);
    let mut out = BufWriter::new(File::create(&args.out).map_err(failed)?);
    let mut written = Ok(());
    session.for_each_logits(&tokens, |_, logits| {
        for value in logits {
            if written.is_ok() {
                written = out.write_all(&value.to_le_bytes());
            }
        }
    })?;
    written.and_then(|()| out.flush()).map_err(failed)?;
    let vocab = session.model().config().vocab;
    eprintln!("{} rows of {vocab} logits in {:?}", tokens.len(), args.out);
    Ok(ExitCode::SUCCESS)
}

/// Reads a file of little-endian u32.
pub(crate) fn read_tokens(path: &Path) -> Result<Vec<u32>, CliError> {
    let bytes = std::fs::read(path).map_err(|error| CliError::file("read", path, &error))?;
    let (chunks, rest) = bytes.as_chunks::<4>();
    if chunks.is_empty() || !rest.is_empty() {
        return Err(CliError::new(format_args!(
            "{path:?} has {} bytes: expected token ids of 4 bytes each, at least one",
            bytes.len()
        )));
    }
    Ok(chunks.iter().map(|&chunk| u32::from_le_bytes(chunk)).collect())
}

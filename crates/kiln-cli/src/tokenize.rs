//! `kiln tokenize`: the token ids of a text.

use std::io::{self, Write};
use std::process::ExitCode;

use kiln_models::tokenizer::{EncodeOptions, Tokenizer};

use crate::args::ModelArg;
use crate::error::CliError;
use crate::output;

/// Show the tokens of a text, a line each: the id and the piece of text in quotes
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kiln tokenize -m model.gguf \"Hello, world\"
  kiln tokenize -m model.gguf --ids \"<|im_start|>user\" > prompt.ids")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// The text; the names of special tokens in it count as those tokens
    text: String,
    /// Print the ids alone, on one line
    #[arg(long)]
    ids: bool,
    /// Do not put the begin and end tokens around the text
    #[arg(long)]
    bare: bool,
    /// Read the names of special tokens as text
    #[arg(long)]
    literal: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let file = args.model.open()?;
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let options = EncodeOptions { add_special: !args.bare, parse_special: !args.literal };
    let tokens = tokenizer.encode(&args.text, options);
    let mut out = io::stdout().lock();
    if args.ids {
        let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
        writeln!(out, "{}", ids.join(" "))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = output::Table::new("><");
    for &token in &tokens {
        table.row([&token.to_string(), &piece(tokenizer.token_bytes_with_special(token))]);
    }
    table.write(&mut out)?;
    Ok(ExitCode::SUCCESS)
}

/// Text in quotes; bytes that are not UTF-8 as `\xff`.
pub(crate) fn piece(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        text.extend(chunk.valid().chars().flat_map(|c| match c {
            '\'' => vec![c],
            c if c.is_ascii() => c.escape_default().collect(),
            c => c.escape_debug().collect(),
        }));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::piece;

    #[test]
    fn pieces_are_quoted() {
        assert_eq!(piece(b" it's"), "\" it's\"");
        assert_eq!(piece("\n\"é\"".as_bytes()), "\"\\n\\\"é\\\"\"");
        assert_eq!(piece(&[0xe2, 0x82]), "\"\\xe2\\x82\"");
    }
}

//! The `kiln` command: generate text, inspect models, measure and verify devices.

mod args;
mod bench;
mod error;
mod generate;
mod inspect;
mod load;
mod logits;
mod memory;
mod output;
mod perplexity;
mod profile;
mod quantize;
mod tokenize;
mod verify;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use error::CliError;

const EXAMPLES: &str = "\
Examples:
  kiln generate -m model.gguf \"Once upon a time\"
  kiln generate -m model.gguf --chat -p \"What is the capital of France?\" --temp 0
  kiln inspect model.gguf
  kiln quantize model-f16.gguf model-q4_k_m.gguf q4_k_m
  kiln bench -m model.gguf -p 512 -n 64 -t 4
  kiln verify

Text goes to standard output; progress, speeds and errors go to standard error. Exit status:
0 success, 1 `verify` found a failure, 2 an error.";

/// Runs language models from GGUF files: text, inspection, measurements and proof that the
/// numbers are right.
#[derive(Parser)]
#[command(name = "kiln", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::Args),
    Inspect(inspect::Args),
    Quantize(quantize::Args),
    Bench(bench::Args),
    Verify(verify::Args),
    Profile(profile::Args),
    Tokenize(tokenize::Args),
    Perplexity(perplexity::Args),
    Logits(logits::Args),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  kiln completions bash > ~/.local/share/bash-completion/completions/kiln
  kiln completions zsh > ~/.zfunc/_kiln
  kiln completions fish > ~/.config/fish/completions/kiln.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let result = match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        Err(error) => usage(&error),
    };
    match result {
        Ok(code) => code,
        // Whoever reads the output has seen enough.
        Err(CliError::OutputClosed) => ExitCode::SUCCESS,
        Err(CliError::Message(message)) => {
            eprintln!("{} {message}", output::Style::of_stderr().error("kiln:"));
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
    std::io::Write::write_all(&mut std::io::stdout().lock(), &script)?;
    Ok(ExitCode::SUCCESS)
}

/// Help and version as clap prints them, its errors on one line.
fn usage(error: &clap::Error) -> Result<ExitCode, CliError> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            error.print()?;
            Ok(ExitCode::SUCCESS)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.print()?;
            Ok(ExitCode::from(2))
        }
        _ => Err(CliError::usage(&error.render().to_string(), &command_given())),
    }
}

/// The command and its subcommands as far as they were given, for example `kiln bench ops`.
fn command_given() -> String {
    let (mut command, mut given) = (Cli::command(), String::from("kiln"));
    for argument in std::env::args_os().skip(1) {
        let Some(next) = command.find_subcommand(&argument).cloned() else { break };
        given = format!("{given} {}", next.get_name());
        command = next;
    }
    given
}

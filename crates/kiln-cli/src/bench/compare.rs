//! `kiln bench --compare`: another program's `llama-bench` in turn with ours.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{Args, Speed, spread};
use crate::error::CliError;
use crate::output::{self, Table};

/// A `llama-bench` with its arguments.
pub(super) struct Peer {
    program: String,
    arguments: Vec<String>,
}

/// What `llama-bench -o json` says of one test.
#[derive(Deserialize)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    avg_ts: f64,
}

impl Peer {
    /// The command, which is split at spaces, with our file, sizes and threads.
    pub(super) fn new(command: &str, args: &Args) -> Result<Self, CliError> {
        let mut words = command.split_whitespace().map(str::to_owned);
        let Some(program) = words.next() else {
            return Err(CliError::new(
                "--compare needs a command, for example `llama-bench -fa 1`",
            ));
        };
        let Some(model) = args.source.path() else {
            return Err(CliError::new("--compare needs a model file that both can read: give -m"));
        };
        let mut arguments: Vec<String> = words.collect();
        let threads = args
            .source
            .threads()
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let [prompt, decode, depth, threads] =
            [args.prompt, args.decode, args.depth, threads].map(|number| number.to_string());
        let added = ["-m", model, "-p", &prompt, "-n", &decode, "-t", &threads];
        arguments.extend(added.map(str::to_owned));
        if args.depth > 0 {
            arguments.extend(["-d", &depth].map(str::to_owned));
        }
        arguments.extend(["-r", "1", "-o", "json"].map(str::to_owned));
        Ok(Self { program, arguments })
    }

    /// Tokens per second of a prompt and of generation in one run.
    pub(super) fn run(&self) -> Result<[Option<f64>; 2], CliError> {
        let Self { program, arguments } = self;
        let fail = |problem: String| CliError::new(format_args!("{program}: {problem}"));
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| fail(format!("{error}: check the command of --compare")))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("");
            return Err(fail(format!("{}: {}", output.status, output::printable(last))));
        }
        parse(&output.stdout).map_err(|error| {
            fail(format!("its output is not that of `llama-bench -o json`: {error}"))
        })
    }
}

fn parse(json: &[u8]) -> serde_json::Result<[Option<f64>; 2]> {
    let tests: Vec<Test> = serde_json::from_slice(json)?;
    let of = |wanted: fn(&Test) -> bool| tests.iter().find(|t| wanted(t)).map(|test| test.avg_ts);
    Ok([
        of(|test| test.n_prompt > 0 && test.n_gen == 0),
        of(|test| test.n_gen > 0 && test.n_prompt == 0),
    ])
}

/// The other program's speeds and the ratios to ours.
#[derive(Serialize)]
pub(super) struct Comparison {
    command: String,
    prefill: Option<Ratio>,
    decode: Option<Ratio>,
}

/// Our speed over the other's: of the medians, and of the runs that took turns.
#[derive(Serialize)]
struct Ratio {
    peer: Speed,
    of_medians: f64,
    lowest: f64,
    highest: f64,
}

impl Ratio {
    fn new(ours: &Speed, peer: Vec<f64>) -> Option<Self> {
        let pairs: Vec<f64> = ours.runs.iter().zip(&peer).map(|(a, b)| a / b).collect();
        let (_, lowest, highest) = spread(&pairs);
        let peer = Speed::new(ours.tokens, peer)?;
        Some(Self { of_medians: ours.median / peer.median, peer, lowest, highest })
    }
}

impl Comparison {
    pub(super) fn new(
        command: String,
        [prefill, decode]: [&Option<Speed>; 2],
        [peer_prefill, peer_decode]: [Vec<f64>; 2],
    ) -> Self {
        let prefill = prefill.as_ref().and_then(|ours| Ratio::new(ours, peer_prefill));
        let decode = decode.as_ref().and_then(|ours| Ratio::new(ours, peer_decode));
        Self { command, prefill, decode }
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "in turn with {}", output::printable(&self.command))?;
        let mut table = Table::new("<>>>>>>");
        table.row(["", "tokens/s", "lowest", "highest", "ratio", "lowest", "highest"]);
        for (name, ratio) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            let Some(Ratio { peer, of_medians, lowest, highest }) = ratio else { continue };
            let [median, min, max, ratio, low, high] =
                [peer.median, peer.min, peer.max, *of_medians, *lowest, *highest]
                    .map(output::figure);
            table.row([name, &median, &min, &max, &ratio, &low, &high]);
        }
        table.write(out)?;
        writeln!(out, "  ratio: our median over the other; lowest and highest of the pairs of runs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tests_of_an_output_are_found() {
        let json = br#"[{"n_prompt": 512, "n_gen": 0, "avg_ts": 12.5, "model_type": "x"},
            {"n_prompt": 0, "n_gen": 64, "avg_ts": 3.5}]"#;
        assert_eq!(parse(json).unwrap(), [Some(12.5), Some(3.5)]);
        assert_eq!(parse(b"[]").unwrap(), [None, None]);
        assert!(parse(b"| model | size |").is_err());
    }

    #[test]
    fn ratios_are_of_medians_and_of_pairs() {
        let ours = Speed::new(8, vec![10.0, 20.0, 30.0]).unwrap();
        let ratio = Ratio::new(&ours, vec![10.0, 10.0, 5.0]).unwrap();
        assert_eq!([ratio.of_medians, ratio.lowest, ratio.highest], [2.0, 1.0, 6.0]);
        assert!(Ratio::new(&ours, Vec::new()).is_none());
    }
}

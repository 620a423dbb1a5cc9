//! `kiln profile`: where the time of a model goes.

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use kiln::StepProfile;

use crate::bench::prompt_tokens;
use crate::error::CliError;
use crate::load::SourceArgs;
use crate::output::{self, Style, Table};

/// Show which operations of a model take how long
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kiln profile -m model.gguf
  kiln profile --shape llama-8b --quant q4_k -p 0 -n 8 --shapes

Operations run one after the other to be timed, so the sum is a little above the time of a normal
run. Bytes and operations are those each operation declares; attention counts as if the cache were
full.")]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Tokens of the prompt; 0 for none
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Steps after the prompt; 0 for none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 16)]
    steps: usize,
    /// Keep operations of different shapes apart
    #[arg(long)]
    shapes: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let context = args.prompt.saturating_add(args.steps).saturating_add(1);
    let (mut session, name) = args.source.session(context)?;
    let tokens = prompt_tokens(args.prompt.max(1), session.model().config().vocab);
    let (mut out, style) = (io::stdout().lock(), Style::of_stdout());
    let device = session.model().device();
    writeln!(out, "{name} on {}: {}", device.name(), device.description())?;
    // The first run pages the weights in.
    session.prefill(&tokens)?;
    session.reset();
    let prefill = session.profile_prefill(&tokens)?;
    if args.prompt > 0 {
        let title = format!("prefill of {} tokens", args.prompt);
        writeln!(out, "\n{}", style.heading(&title))?;
        totals(&prefill, 1, args.shapes).write(&mut out)?;
    }
    if args.steps > 0 {
        let mut steps = Vec::new();
        for _ in 0..args.steps {
            steps.extend(session.profile_step()?);
        }
        let title = format!("decode, per token over {}", output::plural(args.steps, "step"));
        writeln!(out, "\n{}", style.heading(&title))?;
        totals(&steps, args.steps, args.shapes).write(&mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Default)]
struct Total {
    count: usize,
    time: Duration,
    bytes: u64,
    flops: u64,
}

/// Sums by operation, the longest first, divided by the number of runs.
fn totals(steps: &[StepProfile], runs: usize, shapes: bool) -> Table {
    let mut by_name: HashMap<&str, Total> = HashMap::new();
    let mut all = Total::default();
    for step in steps {
        let name = if shapes { step.description.as_str() } else { step.name };
        for total in [by_name.entry(name).or_default(), &mut all] {
            total.count += 1;
            total.time += step.time;
            total.bytes += step.bytes;
            total.flops += step.flops;
        }
    }
    let mut sorted: Vec<(&str, Total)> = by_name.into_iter().collect();
    sorted.sort_by(|(a, x), (b, y)| y.time.cmp(&x.time).then(a.cmp(b)));
    let mut table = Table::new("<>>>>>");
    table.row(["operation", "count", "time", "share", "GB/s", "GFLOP/s"]);
    let whole = all.time.as_secs_f64();
    for (name, total) in sorted.into_iter().chain([("total", all)]) {
        let seconds = total.time.as_secs_f64();
        let rate = |amount: u64| match seconds {
            0.0 => "-".to_owned(),
            seconds => output::figure(amount as f64 / seconds / 1e9),
        };
        let share = if whole == 0.0 { 0.0 } else { 100.0 * seconds / whole };
        table.row([
            name,
            &(total.count / runs).to_string(),
            &output::time(total.time / runs as u32),
            &format!("{share:.1} %"),
            &rate(total.bytes),
            &rate(total.flops),
        ]);
    }
    table
}

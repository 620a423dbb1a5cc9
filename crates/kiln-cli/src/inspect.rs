//! `kiln inspect`: what a model file is, what it takes, and what keeps it from being run.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use kiln::format::Gguf;
use kiln::prelude::*;
use kiln_models::chat::{ChatError, ChatTemplate};
use kiln_models::tokenizer::Tokenizer;
use kiln_models::{ModelConfig, Preflight, SessionOptions};

use crate::args::ModelArg;
use crate::bundled;
use crate::error::CliError;
use crate::memory;
use crate::output::{self, Style, Table, bytes, plural, printable};
use crate::tokenize::piece;

/// Show what a model file holds, what it needs, and what would not run
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kiln inspect model.gguf
  kiln inspect --tensors model-00001-of-00003.gguf

Only the header is read. Any GGUF file can be inspected, whether Kiln can run it or not.")]
pub(crate) struct Args {
    /// The file; of a split model the first part. Without it, the model that ships with kiln
    file: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Contexts that memory is listed for, beside the one the model was trained for.
const CONTEXTS: [usize; 4] = [1024, 4096, 16384, 65536];
/// Names shown of a list that may be long.
const SHOWN: usize = 4;

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let model = ModelArg { model: args.file.clone() };
    let file = model.open()?;
    let preflight = Preflight::of(&file);
    let tokenizer = Tokenizer::from_gguf(&file);
    let mut out = io::stdout().lock();
    let style = Style::of_stdout();

    writeln!(out, "{}", style.heading(&title(args)))?;
    let mut facts = Facts::default();
    describe_file(&mut facts, &file);
    match &preflight.config {
        Some(config) => describe_config(&mut facts, config),
        None => facts.add("architecture", architecture(&file)),
    }
    if let Ok(tokenizer) = &tokenizer {
        describe_tokenizer(&mut facts, &file, tokenizer);
    }
    facts.table.write(&mut out)?;

    writeln!(out, "\n{}", style.heading("tensors"))?;
    tensor_types(&file).write(&mut out)?;
    if args.tensors {
        writeln!(out)?;
        all_tensors(&file).write(&mut out)?;
    }
    if let Some(config) = &preflight.config {
        writeln!(out, "\n{}", style.heading("memory"))?;
        memory_table(&preflight, config).write(&mut out)?;
        if let Some(available) = memory::available() {
            writeln!(out, "  {} are available on this machine", bytes(available))?;
        }
    }
    writeln!(out)?;
    verdict(&mut out, style, &preflight, tokenizer.err().map(|error| error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

fn title(args: &Args) -> String {
    match &args.file {
        Some(path) => printable(&path.to_string_lossy()),
        None => bundled::NAME.to_owned(),
    }
}

/// Names and values, in two columns.
struct Facts {
    table: Table,
}

impl Default for Facts {
    fn default() -> Self {
        Self { table: Table::new("<<") }
    }
}

impl Facts {
    fn add(&mut self, name: &str, value: impl AsRef<str>) {
        self.table.row([name, value.as_ref()]);
    }
}

fn architecture(file: &Gguf) -> String {
    file.architecture().map_or_else(|_| "not given".to_owned(), printable)
}

fn describe_file(facts: &mut Facts, file: &Gguf) {
    if let Ok(Some(name)) = file.metadata().str_of("general.name") {
        facts.add("name", printable(name));
    }
    let parts = match file.parts() {
        1 => String::new(),
        parts => format!(" in {parts} parts"),
    };
    let format = format!(
        "GGUF version {}, {}{parts}, {}, {}",
        file.version(),
        bytes(file.file_bytes()),
        plural(file.tensors().len(), "tensor"),
        plural(file.metadata().len(), "metadata key"),
    );
    facts.add("file", format);
}

fn describe_config(facts: &mut Facts, config: &ModelConfig) {
    facts.add("architecture", config.architecture.name());
    facts.add("parameters", output::count(config.parameters()));
    facts.add("layers", config.layers.len().to_string());
    facts.add("width", format!("{}, feed-forward {}", config.dim, config.ff));
    let heads = format!(
        "{} query, {} key-value, dimension {}",
        config.heads, config.kv_heads, config.head_dim
    );
    facts.add("heads", heads);
    facts.add("context", format!("trained for {} tokens", config.context_length));
    let windowed = config.layers.iter().filter_map(|layer| layer.window);
    if let Some(window) = windowed.clone().next() {
        let count = windowed.count();
        facts.add("window", format!("{window} tokens in {}", plural(count, "layer")));
    }
    let mut bases: Vec<f32> = config.layers.iter().map(|layer| layer.rope_base).collect();
    bases.dedup();
    bases.truncate(2);
    let bases: Vec<String> = bases.iter().map(f32::to_string).collect();
    facts.add("rope", format!("{} dimensions, base {}", config.rope_dim, bases.join(" and ")));
    let output = if config.tied_output { "the token embedding" } else { "a matrix of its own" };
    facts.add("output", output);
}

fn describe_tokenizer(facts: &mut Facts, file: &Gguf, tokenizer: &Tokenizer) {
    let text = |key| file.metadata().str_of(key).ok().flatten().map(printable);
    let model = text("tokenizer.ggml.model").unwrap_or_default();
    let pre = text("tokenizer.ggml.pre").map(|pre| format!(" ({pre})")).unwrap_or_default();
    facts.add("tokenizer", format!("{model}{pre}, {}", plural(tokenizer.len(), "token")));
    let named = |id: u32| format!("{id} {}", piece(tokenizer.token_text(id).unwrap_or_default()));
    if let Some(bos) = tokenizer.bos() {
        let added = if tokenizer.adds_bos() { ", added to prompts" } else { ", not added" };
        facts.add("begin token", format!("{}{added}", named(bos)));
    }
    let ends: Vec<String> = tokenizer.end_of_generation().iter().map(|&id| named(id)).collect();
    if !ends.is_empty() {
        facts.add("end tokens", ends.join(", "));
    }
    let template = match ChatTemplate::from_gguf(file, None) {
        Ok(_) => "yes".to_owned(),
        Err(ChatError::NoTemplate { .. }) => "none".to_owned(),
        Err(error) => printable(&error.to_string()),
    };
    facts.add("chat template", template);
    for warning in tokenizer.warnings() {
        facts.add("note", printable(&warning.to_string()));
    }
}

fn tensor_types(file: &Gguf) -> Table {
    let mut table = Table::new("<>>>");
    table.row(["type", "tensors", "size", "bits per weight"]);
    for total in file.type_totals() {
        let ty = total.ggml_type;
        let bits = 8.0 * ty.block_bytes() as f64 / ty.block_len() as f64;
        let count = total.tensors.to_string();
        table.row([ty.name(), &count, &bytes(total.bytes), &output::figure(bits)]);
    }
    table
}

fn all_tensors(file: &Gguf) -> Table {
    let mut table = Table::new("<<>>");
    table.row(["tensor", "type", "shape", "size"]);
    for tensor in file.tensors() {
        let shape = format!("{:?}", tensor.shape());
        let size = bytes(tensor.byte_len() as u64);
        table.row([&printable(tensor.name()), tensor.ggml_type().name(), &shape, &size]);
    }
    table
}

fn memory_table(preflight: &Preflight, config: &ModelConfig) -> Table {
    let trained = config.context_length;
    let mut contexts: Vec<usize> = CONTEXTS.into_iter().filter(|&c| c < trained).collect();
    contexts.push(trained);
    let q8 = config.head_dim.is_multiple_of(DType::Q8_0.block_len());
    let mut table = Table::new(">>>>>>");
    table.row(["context", "weights", "cache f16", "cache q8_0", "scratch", "total f16"]);
    for context in contexts {
        let need = |kv_dtype| {
            preflight.memory(&SessionOptions { context, kv_dtype, ..Default::default() })
        };
        let (Some(half), Some(small)) = (need(DType::F16), need(DType::Q8_0)) else { continue };
        let small = if q8 { bytes(small.kv_cache) } else { "-".to_owned() };
        table.row([
            &context.to_string(),
            &bytes(half.weights),
            &bytes(half.kv_cache),
            &small,
            &bytes(half.scratch),
            &bytes(half.total()),
        ]);
    }
    table
}

/// Whether the model runs here, and everything that keeps it from doing so.
fn verdict(
    out: &mut impl Write,
    style: Style,
    preflight: &Preflight,
    tokenizer: Option<String>,
) -> io::Result<()> {
    let mut problems: Vec<String> =
        preflight.problems.iter().map(|problem| problem.to_string()).collect();
    problems.extend(tokenizer.map(|error| format!("no tokenizer: {error}")));
    if problems.is_empty() {
        writeln!(out, "{}", style.good("runs: no problems found"))?;
    } else {
        let count = plural(problems.len(), "problem");
        writeln!(out, "{}", style.error(&format!("does not run: {count}")))?;
        for problem in problems {
            writeln!(out, "  {}", printable(&problem))?;
        }
    }
    let extra = &preflight.extra_tensors;
    if extra.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = extra.iter().take(SHOWN).map(|name| printable(name)).collect();
    let more = if extra.len() > SHOWN { ", ..." } else { "" };
    let count = plural(extra.len(), "tensor");
    writeln!(out, "not used: {count} ({}{more})", names.join(", "))
}

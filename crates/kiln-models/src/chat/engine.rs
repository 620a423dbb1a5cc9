//! The template engine, set up as the templates expect it.

use std::borrow::Cow;
use std::error::Error as _;
use std::io;
use std::thread::Builder;

use minijinja::value::ValueKind;
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, Template, Value, context,
};
use regex::Regex;

use super::{ChatError, ChatLimits, ChatOptions, CivilTime, Message, json};

const NAME: &str = "chat_template";
const DATE_FUNCTION: &str = "strftime_now";
const MAX_FUEL: u64 = 10_000_000;

/// What `raise_exception` was called with, carried through the engine's own error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// The engine compiles, drops and compares nested structures by recursion. A chain of operators as
/// long as the longest source needs the first part, a list nested once for each few steps the other.
fn stack_size(fuel: u64) -> usize {
    let steps = usize::try_from(fuel.min(MAX_FUEL)).unwrap_or(0);
    if cfg!(target_pointer_width = "64") { (192 << 20) + 192 * steps } else { 64 << 20 }
}

/// Runs `work` on a thread of its own; of its stack only what is used takes memory.
fn on_large_stack<T: Send>(
    fuel: u64,
    work: impl FnOnce() -> Result<T, ChatError> + Send,
) -> Result<T, ChatError> {
    let failed = |reason: String| Err(ChatError::Render { line: 0, reason });
    std::thread::scope(|scope| {
        let builder = Builder::new().name(NAME.to_owned()).stack_size(stack_size(fuel));
        match builder.spawn_scoped(scope, work) {
            Ok(thread) => {
                thread.join().unwrap_or_else(|_| failed("the template engine panicked".to_owned()))
            }
            Err(error) => failed(format!("no thread for the template engine: {error}")),
        }
    })
}

/// Parses without running.
pub(super) fn check(source: &str) -> Result<(), ChatError> {
    on_large_stack(0, || compile(&environment(None), source).map(drop))
}

fn compile<'a>(
    environment: &'a Environment<'_>,
    source: &'a str,
) -> Result<Template<'a, 'a>, ChatError> {
    environment.template_from_named_str(NAME, source).map_err(|error| {
        let (line, reason) = describe(&error);
        ChatError::Syntax { line, reason }
    })
}

/// `{% generation %}` marks what training counts as the model's words. It means nothing to a
/// prompt, so it becomes a block that is always taken, with its white space control.
pub(super) fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let Ok(tag) = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") else {
        return Cow::Borrowed(source);
    };
    tag.replace_all(source, |found: &regex::Captures<'_>| {
        let block = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {block} {}%}}", &found[1], &found[3])
    })
}

/// Runs the template.
pub(super) fn render(
    source: &str,
    limits: ChatLimits,
    messages: &[Message],
    options: &ChatOptions,
) -> Result<String, ChatError> {
    on_large_stack(limits.fuel, || {
        let mut environment = environment(options.now);
        environment.set_fuel(Some(limits.fuel.min(MAX_FUEL)));
        run(&compile(&environment, source)?, limits, messages, options)
    })
}

fn run(
    template: &Template<'_, '_>,
    limits: ChatLimits,
    messages: &[Message],
    options: &ChatOptions,
) -> Result<String, ChatError> {
    let messages: Vec<Value> = messages
        .iter()
        .map(|message| context! { role => message.role, content => message.content })
        .collect();
    let given = context! {
        messages => messages,
        add_generation_prompt => options.add_generation_prompt,
        bos_token => options.bos_token.as_deref().unwrap_or_default(),
        eos_token => options.eos_token.as_deref().unwrap_or_default(),
    };
    let variables = Value::from_serialize(&options.variables);
    let absent = context! { tools => Value::from(()), documents => Value::from(()) };
    let mut output = Bounded { bytes: Vec::new(), max: limits.output, full: false };
    match template.render_captured_to(context! { ..given, ..variables, ..absent }, &mut output) {
        Ok(_) => String::from_utf8(output.bytes)
            .map_err(|error| ChatError::Render { line: 0, reason: error.to_string() }),
        Err(_) if output.full => Err(ChatError::OutputTooLong { max: limits.output }),
        Err(error) => Err(explain(&error, limits.fuel)),
    }
}

/// Output that refuses to grow past a bound.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max - self.bytes.len() {
            self.full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn environment(now: Option<CivilTime>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(print_like_python);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", json::to_json);
    environment.add_test("iterable", is_python_iterable);
    environment.add_test("sequence", is_python_iterable);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    if let Some(now) = now {
        environment.add_function(DATE_FUNCTION, move |format: &str| {
            now.format(format).map_err(|directive| {
                let detail = format!("`{directive}` in `{format}` is no known date directive");
                Error::new(ErrorKind::InvalidOperation, detail)
            })
        });
    }
    environment
}

/// Text and mappings are iterable and have elements in Python, `none` is not and has none.
fn is_python_iterable(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::String
            | ValueKind::Seq
            | ValueKind::Map
            | ValueKind::Iterable
            | ValueKind::Undefined
    )
}

fn print_like_python(
    out: &mut Output<'_>,
    state: &State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" })?,
        ValueKind::None => out.write_str("None")?,
        _ => return minijinja::escape_formatter(out, state, value),
    }
    Ok(())
}

/// The line and the words of the error where it began.
fn describe(error: &Error) -> (usize, String) {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    (error.line().unwrap_or(0), detail)
}

/// Turns the engine's error into one that says what to do.
fn explain(error: &Error, fuel: u64) -> ChatError {
    let mut innermost = error;
    let mut cause = error.source();
    while let Some(source) = cause {
        if let Some(Raised(reason)) = source.downcast_ref() {
            return ChatError::Refused { reason: reason.clone() };
        }
        if let Some(inner) = source.downcast_ref() {
            innermost = inner;
        }
        cause = source.source();
    }
    let (line, reason) = describe(innermost);
    match innermost.kind() {
        ErrorKind::OutOfFuel => ChatError::OutOfFuel { fuel: fuel.min(MAX_FUEL) },
        ErrorKind::UnknownFunction if reason.contains(DATE_FUNCTION) => ChatError::NoDate,
        _ => ChatError::Render { line, reason },
    }
}

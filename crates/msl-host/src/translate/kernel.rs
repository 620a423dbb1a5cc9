//! Parameters and attributes of kernels.

use super::lexer::{Kind, Token};
use crate::{ArgumentInfo, ArgumentKind, CompileError};

/// An attribute of `[[...]]`: its name and the text in its parentheses.
#[derive(Clone, Debug)]
pub(super) struct Attribute {
    pub(super) name: String,
    pub(super) argument: String,
    pub(super) line: u32,
}

/// How the entry point makes a parameter.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Pointer(ArgumentInfo),
    Reference(ArgumentInfo),
    /// A value of the thread: the attribute.
    Builtin(String),
}

#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub(super) source: Source,
    /// Present only where a function constant is true.
    pub(super) conditional: bool,
}

/// Index after the bracket that closes the one at `open`.
pub(super) fn after_group(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if token.kind == Kind::Punct {
            match token.text {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return at + 1;
                    }
                }
                _ => {}
            }
        }
    }
    tokens.len()
}

/// Index after the `>` that closes the `<` at `open`.
pub(super) fn after_angles(tokens: &[Token<'_>], open: usize) -> usize {
    let (mut depth, mut at) = (0i32, open);
    while at < tokens.len() {
        match tokens[at].text {
            "<" => depth += 1,
            ">" => depth -= 1,
            ">>" => depth -= 2,
            "(" | "[" | "{" => {
                at = after_group(tokens, at);
                continue;
            }
            ";" => return at,
            _ => {}
        }
        at += 1;
        if depth <= 0 {
            return at;
        }
    }
    at
}

/// Whether `[[` starts at `at`.
pub(super) fn is_attribute(tokens: &[Token<'_>], at: usize) -> bool {
    tokens[at].is("[") && tokens.get(at + 1).is_some_and(|next| next.is("["))
}

/// The attributes of the group at `at`, and the index after it.
pub(super) fn attributes(tokens: &[Token<'_>], at: usize) -> (Vec<Attribute>, usize) {
    let end = after_group(tokens, at);
    let inner = &tokens[(at + 2).min(end)..end.saturating_sub(2).max(at + 2).min(end)];
    let mut list = Vec::new();
    for part in split_commas(inner) {
        let Some(first) =
            part.iter().rposition(|t| t.is("::")).map_or(part.first(), |p| part.get(p + 1))
        else {
            continue;
        };
        let open = part.iter().position(|t| t.is("("));
        let argument = open.map_or(String::new(), |open| {
            part[open + 1..part.len().saturating_sub(1).max(open + 1)]
                .iter()
                .map(|t| t.text)
                .collect()
        });
        let name = first.text.trim_matches('_').to_string();
        list.push(Attribute { name, argument, line: first.line });
    }
    (list, end)
}

/// Splits at commas outside of brackets and template arguments.
pub(super) fn split_commas<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let (mut parts, mut start, mut at, mut angles) = (Vec::new(), 0, 0, 0i32);
    while at < tokens.len() {
        match tokens[at].text {
            "(" | "[" | "{" if tokens[at].kind == Kind::Punct => {
                at = after_group(tokens, at);
                continue;
            }
            "<" => angles += 1,
            ">" => angles -= 1,
            ">>" => angles -= 2,
            "," if angles <= 0 => {
                parts.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    if start < tokens.len() {
        parts.push(&tokens[start..]);
    }
    parts
}

/// Reads the parameters of a kernel and gives those without an index the next free one.
pub(super) fn parameters(tokens: &[Token<'_>]) -> Result<Vec<Parameter>, CompileError> {
    struct Raw {
        list: Vec<Attribute>,
        name: String,
        line: u32,
        pointer: bool,
        reference: bool,
        kind: Option<ArgumentKind>,
        /// Components of the type, where its name ends with their number.
        width: u32,
    }
    let mut raws = Vec::new();
    for part in split_commas(tokens) {
        let (mut list, mut plain, mut at) = (Vec::new(), Vec::new(), 0);
        while at < part.len() {
            if is_attribute(part, at) {
                let (more, end) = attributes(part, at);
                list.extend(more);
                at = end;
            } else {
                plain.push(part[at]);
                at += 1;
            }
        }
        if plain.is_empty() || (plain.len() == 1 && plain[0].is("void")) {
            continue;
        }
        let has = |text: &str| plain.iter().any(|t| t.is(text));
        let star = plain.iter().position(|t| t.is("*")).unwrap_or(plain.len());
        let read_only = plain[..star].iter().any(|t| t.is("const"));
        let kind = if has("threadgroup") {
            Some(ArgumentKind::Threadgroup)
        } else if has("constant") {
            Some(ArgumentKind::Constant)
        } else if has("device") {
            Some(ArgumentKind::Device { read_only })
        } else {
            None
        };
        let name =
            plain.iter().rev().find(|t| t.kind == Kind::Ident).map_or("", |t| t.text).to_string();
        let (pointer, reference) = (has("*") || has("["), has("&"));
        let digit = plain.iter().rev().nth(1).and_then(|t| t.text.chars().last()?.to_digit(10));
        let width = digit.unwrap_or(1);
        raws.push(Raw { list, name, line: plain[0].line, pointer, reference, kind, width });
    }
    let index_of = |list: &[Attribute], name: &str| -> Result<Option<u32>, CompileError> {
        let Some(found) = list.iter().find(|a| a.name == name) else { return Ok(None) };
        match found.argument.parse::<u32>() {
            Ok(index) if index < 31 => Ok(Some(index)),
            _ => Err(CompileError::Syntax {
                line: found.line,
                message: format!("[[{name}({})]] needs an index from 0 to 30", found.argument),
            }),
        }
    };
    let mut used = [Vec::new(), Vec::new()];
    for raw in &raws {
        used[0].extend(index_of(&raw.list, "buffer")?);
        used[1].extend(index_of(&raw.list, "threadgroup")?);
    }
    let mut positions = None;
    let mut result = Vec::with_capacity(raws.len());
    for raw in raws {
        let conditional = raw.list.iter().any(|a| a.name == "function_constant");
        let unsupported =
            ["stage_in", "texture", "sampler", "payload", "imageblock_data", "id", "visible"];
        if let Some(bad) = raw.list.iter().find(|a| unsupported.contains(&a.name.as_str())) {
            return Err(CompileError::Unsupported {
                line: bad.line,
                construct: format!("[[{}]]", bad.name),
                reason: "kernels take buffers, constants, threadgroup memory and thread positions",
            });
        }
        let source = if let (Some(kind), true) = (raw.kind, raw.pointer || raw.reference) {
            let space = usize::from(kind == ArgumentKind::Threadgroup);
            let attribute = ["buffer", "threadgroup"][space];
            let index = match index_of(&raw.list, attribute)? {
                Some(index) => index,
                None => {
                    let free = (0..31).find(|i| !used[space].contains(i)).unwrap_or(30);
                    used[space].push(free);
                    free
                }
            };
            let info = ArgumentInfo { name: raw.name, index, kind };
            if raw.pointer { Source::Pointer(info) } else { Source::Reference(info) }
        } else {
            let builtin = raw.list.iter().find(|a| a.name != "maybe_unused").ok_or_else(|| {
                CompileError::Syntax {
                    line: raw.line,
                    message: format!("parameter `{}` of a kernel has no attribute", raw.name),
                }
            })?;
            if !BUILTINS.contains(&builtin.name.as_str()) {
                return Err(CompileError::Unsupported {
                    line: builtin.line,
                    construct: format!("[[{}]]", builtin.name),
                    reason: "not an attribute of compute kernels",
                });
            }
            if POSITIONS.contains(&builtin.name.as_str()) {
                let width = raw.width;
                if width > 1 && positions.is_some_and(|other| other != width) {
                    return Err(CompileError::Syntax {
                        line: raw.line,
                        message: "positions and sizes of a kernel have one number of components"
                            .into(),
                    });
                }
                positions = if width > 1 { Some(width) } else { positions };
            }
            Source::Builtin(builtin.name.clone())
        };
        result.push(Parameter { source, conditional });
    }
    Ok(result)
}

/// Attributes whose types, where they are vectors, have one number of components in a kernel.
const POSITIONS: [&str; 7] = [
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "threadgroup_position_in_grid",
    "threads_per_threadgroup",
    "threads_per_grid",
    "threadgroups_per_grid",
    "dispatch_threads_per_threadgroup",
];

/// Attributes that give a kernel its place in the grid. `msl_rt::Builtin` in the runtime has the same.
const BUILTINS: [&str; 20] = [
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "thread_index_in_quadgroup",
    "threadgroup_position_in_grid",
    "threads_per_threadgroup",
    "threads_per_grid",
    "threads_per_simdgroup",
    "threadgroups_per_grid",
    "thread_execution_width",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "quadgroup_index_in_threadgroup",
    "quadgroups_per_threadgroup",
    "dispatch_threads_per_threadgroup",
    "dispatch_simdgroups_per_threadgroup",
    "dispatch_quadgroups_per_threadgroup",
    "grid_origin",
    "grid_size",
];

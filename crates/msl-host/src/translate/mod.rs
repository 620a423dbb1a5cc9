//! MSL to C++: erases address spaces, turns threadgroup arrays into shared storage and function constants
//! into variables, and writes an entry point per kernel. Everything else is C++ over the headers of `shim/`.

mod declarations;
mod kernel;
mod lexer;
mod scope;
mod unsupported;

use std::collections::{HashMap, HashSet};

use kernel::{Parameter, Source, after_group, is_attribute};
use lexer::{Kind, Token};

use crate::{ArgumentInfo, CompileError, ConstantInfo, FunctionInfo};

/// The C++ source and what the host needs to know about it.
#[derive(Debug)]
pub(crate) struct Translation {
    pub(crate) code: String,
    pub(crate) functions: Vec<FunctionInfo>,
    /// For each function: the indices that need not be bound.
    pub(crate) optional: Vec<Vec<u32>>,
    pub(crate) constants: Vec<ConstantInfo>,
    /// For each constant: whether the source asks if it has a value.
    pub(crate) guarded: Vec<bool>,
}

/// Replaces what the preprocessor must not see: headers of Metal are the shim's.
pub(crate) fn prepare(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 64);
    out.push_str("#line 1 \"msl\"\n");
    for line in source.lines() {
        let directive = line.trim_start().strip_prefix('#').map(str::trim_start);
        match directive.and_then(|d| d.strip_prefix("include").or_else(|| d.strip_prefix("import")))
        {
            Some(rest) if rest.trim_start().starts_with('"') => {
                out.push_str("__msl_include__ ");
                out.push_str(rest.trim());
                out.push_str(" ;");
            }
            Some(_) => {}
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// Translates preprocessed text. `only` limits the entry points.
pub(crate) fn translate(text: &str, only: Option<&[String]>) -> Result<Translation, CompileError> {
    let tokens = lexer::lex(text)?;
    unsupported::check(&tokens)?;
    let mut translator = Translator {
        fields: scope::fields(&tokens),
        tokens: &tokens,
        out: String::with_capacity(text.len() * 2),
        line: 0,
        only,
        namespaces: Vec::new(),
        templates: HashMap::new(),
        kernels: Vec::new(),
        constants: Vec::new(),
        runtime_names: HashSet::new(),
        derived: Vec::new(),
        seen: HashSet::new(),
        counter: 0,
    };
    translator.out.push_str("#include \"msl.h\"\nnamespace {\nusing namespace ::msl_program;\n");
    translator.program_scope(0, tokens.len())?;
    translator.finish()
}

struct Entry {
    info: FunctionInfo,
    optional: Vec<u32>,
    /// Qualified name of the entry point.
    symbol: String,
}

struct Constant {
    info: ConstantInfo,
    qualified: String,
    scope: String,
}

struct Translator<'t, 'a> {
    tokens: &'t [Token<'a>],
    out: String,
    line: u32,
    only: Option<&'t [String]>,
    namespaces: Vec<String>,
    /// Parameters and limits of kernel templates and kernels, by name.
    templates: HashMap<String, (Vec<Parameter>, Option<u32>)>,
    kernels: Vec<Entry>,
    constants: Vec<Constant>,
    /// Function constants, and constants computed from them.
    runtime_names: HashSet<String>,
    /// Functions that compute such constants, in order.
    derived: Vec<String>,
    /// Headers of functions, to drop overloads that differ in address spaces only.
    seen: HashSet<String>,
    /// Names of fields that look like swizzles.
    fields: HashSet<&'a str>,
    counter: usize,
}

impl Translator<'_, '_> {
    fn scope(&self) -> String {
        self.namespaces.iter().map(|n| format!("{n}::")).collect()
    }

    /// Brings the output to `line` of the source.
    fn seek(&mut self, line: u32) {
        if line == self.line {
            self.out.push(' ');
        } else if line > self.line && line - self.line < 4 && self.line > 0 {
            for _ in self.line..line {
                self.out.push('\n');
            }
        } else {
            self.out.push_str(&format!("\n#line {line} \"msl\"\n"));
        }
        self.line = line;
    }

    fn raw(&mut self, text: &str) {
        self.out.push(' ');
        self.out.push_str(text);
    }

    /// Copies `from..to` with the changes that hold everywhere.
    fn copy(&mut self, from: usize, to: usize) -> Result<(), CompileError> {
        let mut at = from;
        while at < to {
            at = self.copy_one(at, to)?;
        }
        Ok(())
    }

    fn copy_one(&mut self, at: usize, to: usize) -> Result<usize, CompileError> {
        let tokens = self.tokens;
        let token = tokens[at];
        if is_attribute(tokens, at) {
            return Ok(after_group(tokens, at));
        }
        let start = at == 0
            || (tokens[at - 1].kind == Kind::Punct
                && matches!(tokens[at - 1].text, "{" | "}" | ";"));
        if start
            && token.is("threadgroup")
            && let Some(end) = self.threadgroup_storage(at)?
        {
            return Ok(end);
        }
        if at > 0
            && token.is("=")
            && let Some(end) = self.designated(at)?
        {
            return Ok(end);
        }
        match (token.kind, token.text) {
            (
                Kind::Ident,
                "device" | "thread" | "threadgroup" | "ray_data" | "object_data" | "kernel",
            ) => {}
            (Kind::Ident, "constant") => {
                let near = |index: Option<usize>| {
                    index.and_then(|i| tokens.get(i)).is_some_and(|t| t.is("const"))
                };
                // `const` twice in one declaration is an error in C++.
                let before = near(at.checked_sub(1))
                    || near(at.checked_sub(2)) && tokens[at - 1].kind == Kind::Ident;
                let after = near(Some(at + 1))
                    || (near(Some(at + 2)) && tokens[at + 1].kind == Kind::Ident);
                if !before && !after {
                    self.seek(token.line);
                    self.out.push_str("const");
                }
            }
            (Kind::Ident, "is_function_constant_defined")
                if tokens.get(at + 1).is_some_and(|t| t.is("(")) =>
            {
                let end = after_group(tokens, at + 1);
                let name = tokens[end.saturating_sub(2)].text;
                self.seek(token.line);
                self.out.push_str(&format!("msl_defined_{name}"));
                return Ok(end);
            }
            (Kind::Number, text) => {
                self.seek(token.line);
                self.out.push_str(&scope::number(text));
            }
            (Kind::Punct, "." | "->") if at + 1 < to => {
                self.seek(token.line);
                let after = tokens.get(at + 2).is_some_and(|t| t.is("("));
                let name = tokens[at + 1].text;
                let part = scope::component(name).filter(|_| !after && self.of_swizzle(at));
                match (part, scope::swizzle(name)) {
                    (Some(lane), _) => self.out.push_str(&format!("[{lane}]")),
                    (None, Some(lanes)) if !after && !self.fields.contains(name) => {
                        let call = if token.is(".") { ".operator[]" } else { "->operator[]" };
                        self.out.push_str(&format!("{call}(::msl::Swizzle<{lanes}>())"));
                    }
                    _ => {
                        self.out.push_str(token.text);
                        self.out.push_str(name);
                    }
                }
                return Ok(at + 2);
            }
            _ => {
                // A shift right is two tokens, since two template lists may end there.
                let before = at.checked_sub(1).and_then(|i| tokens.get(i));
                let shift = token.is(">")
                    && before.is_some_and(|b| {
                        b.is(">") && b.text.as_bytes().as_ptr_range().end == token.text.as_ptr()
                    });
                if !shift {
                    self.seek(token.line);
                }
                self.out.push_str(token.text);
            }
        }
        Ok(at + 1)
    }

    /// Whether the `.` at `at` follows a swizzle.
    fn of_swizzle(&self, at: usize) -> bool {
        let Some([dot, name]) = at.checked_sub(2).and_then(|from| self.tokens.get(from..at)) else {
            return false;
        };
        (dot.is(".") || dot.is("->"))
            && scope::swizzle(name.text).is_some()
            && !self.fields.contains(name.text)
    }

    /// Writes the entry point of a kernel. `callee` is its name, with template arguments.
    fn entry(
        &mut self,
        host_name: String,
        callee: &str,
        parameters: &[Parameter],
        max_threads: Option<u32>,
        line: u32,
    ) {
        if self.only.is_some_and(|only| !only.contains(&host_name)) {
            return;
        }
        let function = format!("msl_entry_{}", self.kernels.len());
        self.out.push_str(&format!(
            "\n#line {line} \"msl\"\nvoid {function}([[maybe_unused]] const ::msl_rt::Thread &t) {{ {callee}("
        ));
        let mut arguments: Vec<ArgumentInfo> = Vec::new();
        let mut optional = Vec::new();
        for (at, parameter) in parameters.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let (form, info) = match &parameter.source {
                Source::Builtin(name) => {
                    self.out.push_str(&format!("{comma}::msl_rt::{name}(t)"));
                    continue;
                }
                Source::Pointer(info) => ("pointer", info),
                Source::Reference(info) => ("reference", info),
            };
            let space = match info.kind {
                crate::ArgumentKind::Threadgroup => "threadgroup",
                _ => "buffer",
            };
            self.out.push_str(&format!("{comma}::msl_rt::{space}_{form}(t, {})", info.index));
            if parameter.conditional {
                optional.push(info.index);
            }
            arguments.push(info.clone());
        }
        self.out.push_str("); }\n");
        self.line = 0;
        let symbol = format!("{}{function}", self.scope());
        let info = FunctionInfo { name: host_name, arguments, max_threads, line };
        self.kernels.push(Entry { info, optional, symbol });
    }

    /// Closes the program and writes the tables that the host reads.
    fn finish(mut self) -> Result<Translation, CompileError> {
        self.out.push_str("\n}\n#pragma GCC visibility push(default)\nextern \"C\" {\nextern const ::msl_rt::EntryPoint msl_entries[] = {\n");
        for entry in &self.kernels {
            self.out.push_str(&format!("&{},\n", entry.symbol));
        }
        self.out
            .push_str("nullptr};\nextern const ::msl_rt::FunctionConstant msl_constants[] = {\n");
        for constant in &self.constants {
            self.out.push_str(&format!(
                "{{&{}, sizeof({}), &{}msl_defined_{}}},\n",
                constant.qualified, constant.qualified, constant.scope, constant.info.name
            ));
        }
        self.out.push_str("{nullptr, 0, nullptr}};\nvoid msl_derive_constants() {\n");
        for name in &self.derived {
            self.out.push_str(&format!("{name}();\n"));
        }
        self.out.push_str("}\n}\n");
        let (functions, optional) = self.kernels.into_iter().map(|e| (e.info, e.optional)).unzip();
        let constants: Vec<ConstantInfo> = self.constants.into_iter().map(|c| c.info).collect();
        let asks = |name: &str| {
            self.tokens.windows(3).any(|w| w[0].is("is_function_constant_defined") && w[2].is(name))
        };
        let guarded = constants.iter().map(|constant| asks(&constant.name)).collect();
        Ok(Translation { code: self.out, functions, optional, constants, guarded })
    }
}

//! Declarations at program scope, and arrays in threadgroup memory.

use super::kernel::{self, after_angles, after_group, attributes, is_attribute, split_commas};
use super::lexer::{Kind, Token};
use super::{Constant, Translator, scope};
use crate::{CompileError, ConstantInfo, ConstantType};

impl<'a> Translator<'_, 'a> {
    /// Translates declarations until `to`.
    pub(super) fn program_scope(&mut self, from: usize, to: usize) -> Result<(), CompileError> {
        let tokens = self.tokens;
        let mut at = from;
        while at < to {
            if tokens[at].is(";") || tokens[at].is("}") {
                self.copy(at, at + 1)?;
                at += 1;
                continue;
            }
            let body = self.header_end(at, to);
            let header = &tokens[at..body.min(to)];
            let opens = body < to && tokens[body].is("{");
            let end = if opens { after_group(tokens, body).min(to) } else { (body + 1).min(to) };
            let namespace = header.iter().take(2).any(|t| t.is("namespace"));
            let linkage = header.len() == 2 && header[0].is("extern");
            if opens && (namespace || linkage) {
                self.copy(at, body + 1)?;
                let name =
                    header.iter().rev().find(|t| t.kind == Kind::Ident && !t.is("namespace"));
                let depth = self.namespaces.len();
                if let (true, Some(name)) = (namespace, name) {
                    let names = header
                        .iter()
                        .filter(|t| t.kind == Kind::Ident && !t.is("namespace") && !t.is("inline"));
                    let all: Vec<String> = names.map(|t| t.text.to_string()).collect();
                    let _ = name;
                    self.namespaces.extend(all);
                }
                self.program_scope(body + 1, end - 1)?;
                self.namespaces.truncate(depth);
                self.copy(end - 1, end)?;
            } else {
                self.declaration(at, body, end, opens)?;
            }
            at = end;
        }
        Ok(())
    }

    /// The `;` or the `{` of a body that ends the header which starts at `from`.
    fn header_end(&self, from: usize, to: usize) -> usize {
        let tokens = self.tokens;
        let (mut at, mut assigned) = (from, false);
        while at < to {
            let token = tokens[at];
            match token.text {
                "template" if tokens.get(at + 1).is_some_and(|t| t.is("<")) => {
                    at = after_angles(tokens, at + 1);
                    continue;
                }
                ";" => return at,
                "{" if !assigned => return at,
                "=" if at > from && !tokens[at - 1].is("operator") => assigned = true,
                "(" | "[" | "{" if token.kind == Kind::Punct => {
                    at = after_group(tokens, at);
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        to
    }

    fn declaration(
        &mut self,
        at: usize,
        body: usize,
        end: usize,
        opens: bool,
    ) -> Result<(), CompileError> {
        let tokens = self.tokens;
        let (mut plain, mut list, mut i) = (Vec::new(), Vec::new(), at);
        while i < body {
            if tokens[i].is("template") && tokens.get(i + 1).is_some_and(|t| t.is("<")) {
                i = after_angles(tokens, i + 1);
            } else if is_attribute(tokens, i) {
                let (more, next) = attributes(tokens, i);
                list.extend(more);
                i = next;
            } else if tokens[i].is("(") || tokens[i].is("[") {
                plain.push(i);
                i = after_group(tokens, i);
            } else {
                plain.push(i);
                i += 1;
            }
        }
        let has = |text: &str| plain.iter().any(|&i| tokens[i].is(text));
        let template = tokens[at].is("template") && tokens.get(at + 1).is_some_and(|t| t.is("<"));
        let instantiation = tokens[at].is("template") && !template;
        let is_kernel = has("kernel") || list.iter().any(|a| a.name == "kernel");
        let host_name = list.iter().find(|a| a.name == "host_name");
        let max_threads = list
            .iter()
            .find(|a| a.name == "max_total_threads_per_threadgroup")
            .and_then(|a| a.argument.parse().ok());
        let open =
            plain.iter().copied().find(|&i| tokens[i].is("(") && !tokens[i - 1].is("decltype"));
        if instantiation && (is_kernel || host_name.is_some()) {
            return self.instantiation(at, body, host_name.map(|a| a.argument.replace('"', "")));
        }
        if let (true, true, Some(open)) = (is_kernel, opens, open) {
            let name = tokens[open - 1].text;
            let parameters = kernel::parameters(&tokens[open + 1..after_group(tokens, open) - 1])?;
            if !template && list.iter().all(|a| a.name != "host_name") || host_name.is_some() {
                self.copy(at, end)?;
                let host = host_name.map_or(name.to_string(), |a| a.argument.replace('"', ""));
                self.entry(host, name, &parameters, max_threads, tokens[open - 1].line);
            } else {
                self.copy(at, end)?;
            }
            self.templates.insert(name.to_string(), (parameters, max_threads));
            return Ok(());
        }
        let constant = plain.iter().any(|&i| tokens[i].is("constant"));
        let pointer = plain.iter().any(|&i| tokens[i].is("*") || tokens[i].is("&"));
        if constant
            && !opens
            && !template
            && open_before_value(tokens, &plain).is_none()
            && !has("using")
            && !has("typedef")
        {
            return self.program_constant(at, body, &list, pointer);
        }
        if opens
            && open.is_some()
            && !template_specialisation(tokens, at)
            && self.repeated(at, body)
        {
            return Ok(());
        }
        self.copy(at, end)
    }

    /// Whether a function with this header, address spaces aside, was seen before.
    fn repeated(&mut self, at: usize, body: usize) -> bool {
        let mut key = self.scope();
        for token in &self.tokens[at..body] {
            if !matches!(token.text, "device" | "threadgroup" | "thread" | "constant" | "const") {
                key.push_str(token.text);
                key.push(' ');
            } else if matches!(token.text, "constant" | "const") && !key.ends_with("const ") {
                key.push_str("const ");
            }
        }
        !self.seen.insert(key)
    }

    fn instantiation(
        &mut self,
        at: usize,
        body: usize,
        host_name: Option<String>,
    ) -> Result<(), CompileError> {
        let tokens = self.tokens;
        let line = tokens[at].line;
        let broken = |message: &str| CompileError::Syntax { line, message: message.into() };
        // The declarator is the last `name<...>` before the parameters or the end.
        let mut declarator = None;
        let mut i = at + 1;
        while i < body {
            if is_attribute(tokens, i) {
                i = after_group(tokens, i);
            } else if tokens[i].is("decltype") && tokens.get(i + 1).is_some_and(|t| t.is("(")) {
                i = after_group(tokens, i + 1);
            } else if tokens[i].kind == Kind::Ident {
                let mut next = i + 1;
                if tokens.get(next).is_some_and(|t| t.is("<")) {
                    next = after_angles(tokens, next);
                }
                declarator = Some((i, next.min(body)));
                if next < body && tokens[next].is("(") {
                    break;
                }
                i = next;
            } else {
                i += 1;
            }
        }
        let Some((name, next)) = declarator else {
            return Err(broken("an instantiation names no kernel"));
        };
        let Some((mut parameters, max_threads)) = self.templates.get(tokens[name].text).cloned()
        else {
            return Err(broken(&format!(
                "`{}` is not a kernel template defined above",
                tokens[name].text
            )));
        };
        if next < body && tokens[next].is("(") {
            let own = &tokens[next + 1..after_group(tokens, next) - 1];
            if own.windows(2).any(|w| w[0].is("[") && w[1].is("[")) {
                parameters = kernel::parameters(own)?;
            }
        }
        let callee: Vec<&str> = tokens[name..next]
            .iter()
            .map(|t| t.text)
            .filter(|t| !matches!(*t, "device" | "threadgroup" | "thread"))
            .map(|t| if t == "constant" { "const" } else { t })
            .collect();
        let callee = callee.join(" ");
        let host = host_name.unwrap_or_else(|| callee.replace(' ', ""));
        self.entry(host, &callee, &parameters, max_threads, line);
        Ok(())
    }

    /// A `constant` variable at program scope: a C++ constant, or a variable where a function constant is in it.
    fn program_constant(
        &mut self,
        at: usize,
        body: usize,
        list: &[kernel::Attribute],
        pointer: bool,
    ) -> Result<(), CompileError> {
        let tokens = self.tokens;
        let line = tokens[at].line;
        let mut kept: Vec<Token<'a>> = Vec::new();
        let (mut constexpr, mut i) = (false, at);
        while i < body {
            if is_attribute(tokens, i) {
                i = after_group(tokens, i);
                continue;
            }
            if tokens[i].is("=") {
                break;
            }
            constexpr |= tokens[i].is("constexpr");
            if !matches!(
                tokens[i].text,
                "constant" | "static" | "const" | "constexpr" | "inline" | "device" | "extern"
            ) {
                kept.push(tokens[i]);
            }
            i += 1;
        }
        let value = (i + 1).min(body);
        let name = kept.iter().enumerate().rev().find(|(at, t)| {
            t.kind == Kind::Ident
                && kept.get(at + 1).is_none_or(|next| next.is("[") || next.is("{"))
        });
        let Some((position, name)) = name.map(|(at, t)| (at, t.text)) else {
            return self.copy(at, body + 1);
        };
        let ty: Vec<&str> = kept[..position].iter().map(|t| t.text).collect();
        let function_constant = list.iter().find(|a| a.name == "function_constant");
        if let Some(attribute) = function_constant {
            let index =
                scope::integer(&attribute.argument).ok_or_else(|| CompileError::Syntax {
                    line,
                    message: format!(
                        "[[function_constant({})]] needs a number",
                        attribute.argument
                    ),
                })?;
            let constant_type = constant_type(&ty).ok_or_else(|| CompileError::Unsupported {
                line,
                construct: format!("{} {name} [[function_constant({index})]]", ty.join(" ")),
                reason: "function constants are scalars",
            })?;
            self.seek(line);
            self.raw(&format!("{} {name}; bool msl_defined_{name};", ty.join(" ")));
            self.runtime_names.insert(name.into());
            let qualified = format!("{}{name}", self.scope());
            self.constants.push(Constant {
                info: ConstantInfo { name: name.into(), index, ty: constant_type },
                qualified,
                scope: self.scope(),
            });
            return Ok(());
        }
        let runtime = tokens[value.min(body)..body]
            .iter()
            .any(|t| t.is("is_function_constant_defined") || self.runtime_names.contains(t.text));
        self.seek(line);
        if runtime {
            if kept.len() > position + 1 {
                return Err(CompileError::Unsupported {
                    line,
                    construct: format!("constant array {name}"),
                    reason: "an array of values that depend on function constants",
                });
            }
            self.counter += 1;
            let function = format!("msl_derive_{}", self.counter);
            self.raw(&format!("{} {name}; void {function}() {{ {name} = ", ty.join(" ")));
            self.copy(value, body)?;
            self.raw("; }");
            self.runtime_names.insert(name.into());
            self.derived.push(format!("{}{function}", self.scope()));
            return Ok(());
        }
        self.raw("static");
        if constexpr {
            self.raw("constexpr");
        }
        self.raw("const");
        let mut from = at;
        while from < body && !tokens[from].is("=") {
            let skip = matches!(
                tokens[from].text,
                "constant" | "static" | "constexpr" | "inline" | "device" | "extern"
            ) || tokens[from].is("const") && !pointer;
            from = if skip { from + 1 } else { self.copy_one(from, body)? };
        }
        self.copy(from, body + 1)
    }

    /// An array whose initializer names places, `a[N] = { [first ... last] = value }`, which C++ does not have,
    /// becomes assignments after the declaration. `at` is the `=`; returns the index after the list.
    pub(super) fn designated(&mut self, at: usize) -> Result<Option<usize>, CompileError> {
        let tokens = self.tokens;
        let opens = |i: usize, text: &str| tokens.get(i).is_some_and(|t| t.is(text));
        let named = tokens[at - 1].is("]") && opens(at + 1, "{") && opens(at + 2, "[");
        if !named {
            return Ok(None);
        }
        let line = tokens[at].line;
        let mut depth = 0i32;
        let name = (0..at).rev().find(|&i| {
            depth += i32::from(tokens[i].is("]")) - i32::from(tokens[i].is("["));
            depth == 0
        });
        let name = name.and_then(|open| tokens.get(open.wrapping_sub(1)));
        let Some(name) = name.filter(|name| name.kind == Kind::Ident) else {
            return Err(CompileError::Unsupported {
                line,
                construct: "[first ... last] = value".into(),
                reason: "places are named in arrays of one dimension only",
            });
        };
        let end = after_group(tokens, at + 1);
        self.seek(line);
        self.raw(&format!("; ::msl::clear({})", name.text));
        let list = &tokens[at + 2..end - 1];
        for part in split_commas(list) {
            let start =
                at + 2 + (part.as_ptr() as usize - list.as_ptr() as usize) / size_of::<Token<'_>>();
            let close = after_group(tokens, start);
            if !(opens(start, "[") && opens(close, "=")) {
                return Err(CompileError::Unsupported {
                    line,
                    construct: "[first ... last] = value".into(),
                    reason: "every value of such a list names its place",
                });
            }
            let dots = (start..close).find(|&i| tokens[i].is("..."));
            self.raw(&format!("; ::msl::fill({}, ", name.text));
            self.copy(start + 1, dots.unwrap_or(close - 1))?;
            self.raw(",");
            self.copy(dots.map_or(start + 1, |dots| dots + 1), close - 1)?;
            self.raw(",");
            self.copy(close + 1, start + part.len())?;
            self.raw(")");
        }
        Ok(Some(end))
    }

    /// Arrays and variables in threadgroup memory become references to storage of the threadgroup.
    /// Returns the index after the declaration, or `None` where it declares pointers.
    pub(super) fn threadgroup_storage(&mut self, at: usize) -> Result<Option<usize>, CompileError> {
        let tokens = self.tokens;
        let Some(length) = tokens[at..].iter().position(|t| t.is(";")) else { return Ok(None) };
        let end = at + length;
        let list = &tokens[at + 1..end];
        let Some(first) = split_commas(list).first().copied() else { return Ok(None) };
        let stop = first.iter().position(|t| t.is("[") || t.is("=")).unwrap_or(first.len());
        let (mut i, mut pointer) = (0, false);
        while i < stop {
            if first[i].is("<") {
                i = after_angles(first, i);
                continue;
            }
            pointer |= first[i].is("*") || first[i].is("&") || first[i].is("(");
            i += 1;
        }
        let stop = stop.max(i.min(first.len()));
        if pointer || stop < 2 {
            return Ok(None);
        }
        let name_at = stop - 1;
        let line = tokens[at].line;
        let base = at + 1;
        for (number, part) in split_commas(list).into_iter().enumerate() {
            self.counter += 1;
            let id = self.counter;
            let name = if number == 0 { name_at } else { 0 };
            let close = part.iter().position(|t| t.is("=")).unwrap_or(part.len());
            let offset = part.as_ptr() as usize - list.as_ptr() as usize;
            let start = base + offset / std::mem::size_of::<Token<'_>>();
            self.seek(line);
            self.raw(&format!("static const char msl_key_{id} = 0; typedef"));
            self.copy(base, base + name_at)?;
            self.raw(&format!("msl_type_{id}"));
            self.copy(start + name + 1, start + close)?;
            self.raw(&format!(
                "; auto &{} = *(msl_type_{id} *)::msl_rt::threadgroup_array(&msl_key_{id}, sizeof(msl_type_{id}), {line});",
                part[name].text
            ));
        }
        Ok(Some(end + 1))
    }
}

fn constant_type(ty: &[&str]) -> Option<ConstantType> {
    Some(match ty {
        ["bool"] => ConstantType::Bool,
        ["char" | "int8_t"] => ConstantType::Char,
        ["uchar" | "uint8_t"] => ConstantType::UChar,
        ["short" | "int16_t"] => ConstantType::Short,
        ["ushort" | "uint16_t"] => ConstantType::UShort,
        ["int" | "int32_t"] => ConstantType::Int,
        ["uint" | "uint32_t" | "unsigned"] | ["unsigned", "int"] => ConstantType::UInt,
        ["long" | "int64_t"] => ConstantType::Long,
        ["ulong" | "uint64_t" | "size_t"] => ConstantType::ULong,
        ["half"] => ConstantType::Half,
        ["float"] => ConstantType::Float,
        _ => return None,
    })
}

/// A parenthesis before the value: the declaration is a function.
fn open_before_value(tokens: &[Token<'_>], plain: &[usize]) -> Option<usize> {
    plain.iter().copied().take_while(|&i| !tokens[i].is("=")).find(|&i| tokens[i].is("("))
}

fn template_specialisation(tokens: &[Token<'_>], at: usize) -> bool {
    tokens[at].is("template") && tokens.get(at + 2).is_some_and(|t| t.is(">"))
}

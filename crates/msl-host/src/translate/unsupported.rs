//! Constructs that are refused by name, before the C++ compiler sees them.

use super::lexer::{Kind, Token};
use crate::CompileError;

const TYPES: [(&str, &str); 22] = [
    ("texture1d", TEXTURE),
    ("texture1d_array", TEXTURE),
    ("texture2d", TEXTURE),
    ("texture2d_array", TEXTURE),
    ("texture2d_ms", TEXTURE),
    ("texture3d", TEXTURE),
    ("texturecube", TEXTURE),
    ("texturecube_array", TEXTURE),
    ("texture_buffer", TEXTURE),
    ("depth2d", TEXTURE),
    ("depth2d_array", TEXTURE),
    ("depthcube", TEXTURE),
    ("imageblock", TEXTURE),
    ("cooperative_tensor", TENSOR),
    ("tensor", TENSOR),
    ("tensor_handle", TENSOR),
    ("intersector", RAY),
    ("intersection_query", RAY),
    ("acceleration_structure", RAY),
    ("visible_function_table", POINTER),
    ("intersection_function_table", POINTER),
    ("mesh", "only compute kernels run"),
];
const TEXTURE: &str = "there are no textures; use buffers";
const TENSOR: &str = "there are no tensor operations";
const RAY: &str = "there is no ray tracing";
const POINTER: &str = "there are no function tables";

pub(super) fn check(tokens: &[Token<'_>]) -> Result<(), CompileError> {
    for (at, token) in tokens.iter().enumerate() {
        if token.kind != Kind::Ident {
            continue;
        }
        let next = tokens.get(at + 1).map_or("", |t| t.text);
        let member = at > 0 && matches!(tokens[at - 1].text, "." | "->");
        let reason = match (token.text, next) {
            ("__msl_include__", _) => {
                return Err(CompileError::Unsupported {
                    line: token.line,
                    construct: format!("#include {next}"),
                    reason: "the source must be one text; put the file in its place",
                });
            }
            ("mpp" | "tensor_ops", "::") => TENSOR,
            ("raytracing", "::") => RAY,
            ("simdgroup_event" | "simdgroup_async_copy", _) => "there are no asynchronous copies",
            ("sampler", next) if next.starts_with(|c: char| c.is_alphabetic()) => TEXTURE,
            ("vertex" | "fragment", next)
                if next.starts_with(|c: char| c.is_alphabetic())
                    && (at == 0 || matches!(tokens[at - 1].text, "}" | ";" | ">" | "]")) =>
            {
                "only compute kernels run"
            }
            (name, "<") if !member => match TYPES.iter().find(|(known, _)| *known == name) {
                Some((_, reason)) => reason,
                None => continue,
            },
            _ => continue,
        };
        return Err(CompileError::Unsupported {
            line: token.line,
            construct: token.text.into(),
            reason,
        });
    }
    Ok(())
}

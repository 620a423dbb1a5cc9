//! Metal sources: one library per file of kernels, with the declarations both sides share put in
//! front of it.

/// A specialisation constant, declared once for Rust and Metal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FunctionConstant {
    pub(crate) name: &'static str,
    /// Its index, unique in a library.
    pub(crate) index: u32,
    pub(crate) kind: ConstantKind,
}

/// The type of a [`FunctionConstant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ConstantKind {
    Bool,
    Uint,
}

impl FunctionConstant {
    pub(crate) const fn flag(name: &'static str, index: u32) -> Self {
        Self { name, index, kind: ConstantKind::Bool }
    }

    pub(crate) const fn uint(name: &'static str, index: u32) -> Self {
        Self { name, index, kind: ConstantKind::Uint }
    }
}

/// A file of kernels.
#[derive(Debug)]
pub(crate) struct Library {
    /// The name of the file, for messages and as the key of the cache.
    pub(crate) name: &'static str,
    /// Texts of the headers it needs, then its own.
    pub(crate) texts: &'static [&'static str],
    /// Declarations of the argument structs, by [`kiln_core::KernelArgs::msl`].
    pub(crate) arguments: fn() -> String,
    /// Sizes that kernels and geometry share.
    pub(crate) sizes: &'static [(&'static str, usize)],
    pub(crate) constants: &'static [FunctionConstant],
    /// The language version it needs, major and minor.
    pub(crate) version: (u32, u32),
}

/// Every row of every operand is whole groups of four values, each at a multiple of its size.
pub(crate) const ALIGNED: FunctionConstant = FunctionConstant::flag("ALIGNED", 0);

/// The language version of most libraries: the first with `bfloat`.
pub(crate) const MSL_3_1: (u32, u32) = (3, 1);

pub(crate) const COMMON: &str = include_str!("../kernels/common.metal");
pub(crate) const QUANT: &str = include_str!("../kernels/quant.metal");

impl Library {
    /// The whole source text.
    pub(crate) fn source(&self) -> String {
        let mut text = String::from("#include <metal_stdlib>\nusing namespace metal;\n\n");
        for (name, value) in self.sizes {
            text.push_str(&format!("constant constexpr uint {name} = {value};\n"));
        }
        for FunctionConstant { name, index, kind } in self.constants {
            let kind = match kind {
                ConstantKind::Bool => "bool",
                ConstantKind::Uint => "uint",
            };
            text.push_str(&format!("constant {kind} {name} [[function_constant({index})]];\n"));
        }
        text.push_str(&(self.arguments)());
        for part in self.texts {
            text.push('\n');
            text.push_str(part);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use crate::ops;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_what_is_declared_is_used() {
        let mut names = HashSet::new();
        for library in ops::LIBRARIES {
            assert!(names.insert(library.name), "{}", library.name);
            let text = library.texts.concat();
            let mut indices = HashSet::new();
            for constant in library.constants {
                assert!(indices.insert(constant.index), "{}: {}", library.name, constant.name);
                assert!(text.contains(constant.name), "{}: {}", library.name, constant.name);
            }
            assert!(library.source().contains("static_assert(sizeof("), "{}", library.name);
        }
    }
}

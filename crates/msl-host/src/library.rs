//! Compiled sources, and their kernels with values for function constants.

use crate::{Counters, Dispatch, DispatchError, FunctionError};

/// Kind of an argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArgumentKind {
    /// A pointer or reference to device memory.
    Device {
        /// Whether the kernel can only read it (`device const T *`).
        read_only: bool,
    },
    /// A pointer or reference to constant memory.
    Constant,
    /// Threadgroup memory that the dispatch sizes.
    Threadgroup,
}

/// An argument that a dispatch binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentInfo {
    /// Name in the source.
    pub name: String,
    /// Buffer index, or threadgroup memory index.
    pub index: u32,
    /// Kind.
    pub kind: ArgumentKind,
}

/// Type of a function constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConstantType {
    /// `bool`
    Bool,
    /// `char`
    Char,
    /// `uchar`
    UChar,
    /// `short`
    Short,
    /// `ushort`
    UShort,
    /// `int`
    Int,
    /// `uint`
    UInt,
    /// `long`
    Long,
    /// `ulong`
    ULong,
    /// `half`
    Half,
    /// `float`
    Float,
}

/// A value of a function constant.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ConstantValue {
    /// `bool`
    Bool(bool),
    /// `char`
    Char(i8),
    /// `uchar`
    UChar(u8),
    /// `short`
    Short(i16),
    /// `ushort`
    UShort(u16),
    /// `int`
    Int(i32),
    /// `uint`
    UInt(u32),
    /// `long`
    Long(i64),
    /// `ulong`
    ULong(u64),
    /// `half`, as its bits
    Half(u16),
    /// `float`
    Float(f32),
}

/// A function constant that the source declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConstantInfo {
    /// Name in the source.
    pub name: String,
    /// Index of `[[function_constant(index)]]`.
    pub index: u32,
    /// Type.
    pub ty: ConstantType,
}

/// A kernel of a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionInfo {
    /// The name that the host uses: `host_name` of an instantiation, or the kernel's own.
    pub name: String,
    /// What a dispatch binds, in the order of the parameters.
    pub arguments: Vec<ArgumentInfo>,
    /// `[[max_total_threads_per_threadgroup(n)]]`, where given.
    pub max_threads: Option<u32>,
    /// Line of the kernel, or of its instantiation.
    pub line: u32,
}

/// Values for the function constants of a [`Function`], by index or by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FunctionConstants {
    by_index: Vec<(u32, ConstantValue)>,
    by_name: Vec<(String, ConstantValue)>,
}

impl FunctionConstants {
    /// No values: every `is_function_constant_defined` is false.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives constant `index` a value.
    #[must_use]
    pub fn set(mut self, index: u32, value: ConstantValue) -> Self {
        self.by_index.push((index, value));
        self
    }

    /// Gives the constant `name` a value.
    #[must_use]
    pub fn set_named(mut self, name: &str, value: ConstantValue) -> Self {
        self.by_name.push((name.into(), value));
        self
    }
}

/// A compiled source. Clones share it.
#[derive(Clone, Debug)]
pub struct Library {
    functions: Vec<FunctionInfo>,
    constants: Vec<ConstantInfo>,
}

impl Library {
    /// The kernels that were compiled.
    pub fn functions(&self) -> &[FunctionInfo] {
        &self.functions
    }

    /// The function constants of the source.
    pub fn constants(&self) -> &[ConstantInfo] {
        &self.constants
    }

    /// The kernel `name` with values for function constants. Compiles nothing: the constants are
    /// variables that are set when the function runs.
    pub fn function(
        &self,
        name: &str,
        constants: &FunctionConstants,
    ) -> Result<Function, FunctionError> {
        let _ = constants;
        Err(FunctionError::NotFound { name: name.into(), known: Vec::new() })
    }
}

/// A kernel with values for its function constants. Clones share the library.
#[derive(Clone, Debug)]
pub struct Function {
    info: FunctionInfo,
}

impl Function {
    /// Name, arguments and limits.
    pub fn info(&self) -> &FunctionInfo {
        &self.info
    }

    /// Runs the kernel and waits for it. Every access is checked against the bounds of its memory;
    /// [`RunOptions`](crate::RunOptions) choose the other checks. Dispatches that share a buffer, or a
    /// library, wait for each other.
    pub fn dispatch(&self, dispatch: &Dispatch<'_>) -> Result<Counters, DispatchError> {
        let _ = dispatch;
        Err(DispatchError::Invalid { kernel: self.info.name.clone(), what: "not built".into() })
    }
}

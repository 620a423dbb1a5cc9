//! Compiled sources, and their kernels with values for function constants.

mod launch;
mod run;

use std::sync::Arc;

use crate::{CompileError, Counters, Dispatch, DispatchError, FunctionError};
pub(crate) use run::Image;

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
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    functions: Vec<FunctionInfo>,
    /// For each function: indices that need not be bound.
    optional: Vec<Vec<u32>>,
    constants: Vec<ConstantInfo>,
    /// For each constant: whether the source asks if it has a value.
    guarded: Vec<bool>,
    image: Image,
}

impl Library {
    pub(crate) fn new(
        functions: Vec<FunctionInfo>,
        optional: Vec<Vec<u32>>,
        constants: Vec<ConstantInfo>,
        guarded: Vec<bool>,
        image: Image,
    ) -> Result<Self, CompileError> {
        Ok(Library { inner: Arc::new(Inner { functions, optional, constants, guarded, image }) })
    }

    /// The kernels that were compiled.
    pub fn functions(&self) -> &[FunctionInfo] {
        &self.inner.functions
    }

    /// The function constants of the source.
    pub fn constants(&self) -> &[ConstantInfo] {
        &self.inner.constants
    }

    /// The kernel `name` with values for function constants. Compiles nothing: the constants are
    /// variables that are set when the function runs.
    pub fn function(
        &self,
        name: &str,
        constants: &FunctionConstants,
    ) -> Result<Function, FunctionError> {
        let functions = &self.inner.functions;
        let index = functions.iter().position(|f| f.name == name).ok_or_else(|| {
            FunctionError::NotFound {
                name: name.into(),
                known: functions.iter().map(|f| f.name.clone()).collect(),
            }
        })?;
        let mut values = vec![None; self.inner.constants.len()];
        let by_index = constants.by_index.iter().map(|(index, value)| {
            (self.inner.constants.iter().position(|c| c.index == *index), index.to_string(), *value)
        });
        let by_name = constants.by_name.iter().map(|(name, value)| {
            (self.inner.constants.iter().position(|c| c.name == *name), name.clone(), *value)
        });
        for (at, asked, value) in by_index.chain(by_name) {
            let at = at.ok_or(FunctionError::NoSuchConstant { index: asked })?;
            let constant = &self.inner.constants[at];
            if value.ty() != constant.ty {
                return Err(FunctionError::ConstantType {
                    index: constant.index,
                    name: constant.name.clone(),
                    expected: format!("{:?}", constant.ty),
                    got: format!("{:?}", value.ty()),
                });
            }
            values[at] = Some(value);
        }
        Ok(Function { library: self.inner.clone(), index, values: values.into() })
    }
}

impl ConstantValue {
    /// The type of the value.
    pub fn ty(&self) -> ConstantType {
        match self {
            ConstantValue::Bool(_) => ConstantType::Bool,
            ConstantValue::Char(_) => ConstantType::Char,
            ConstantValue::UChar(_) => ConstantType::UChar,
            ConstantValue::Short(_) => ConstantType::Short,
            ConstantValue::UShort(_) => ConstantType::UShort,
            ConstantValue::Int(_) => ConstantType::Int,
            ConstantValue::UInt(_) => ConstantType::UInt,
            ConstantValue::Long(_) => ConstantType::Long,
            ConstantValue::ULong(_) => ConstantType::ULong,
            ConstantValue::Half(_) => ConstantType::Half,
            ConstantValue::Float(_) => ConstantType::Float,
        }
    }

    /// The bytes of the value, low first, padded with zeros.
    fn to_bytes(self) -> [u8; 8] {
        match self {
            ConstantValue::Bool(v) => u64::from(v),
            ConstantValue::Char(v) => u64::from(v as u8),
            ConstantValue::UChar(v) => u64::from(v),
            ConstantValue::Short(v) => u64::from(v as u16),
            ConstantValue::UShort(v) | ConstantValue::Half(v) => u64::from(v),
            ConstantValue::Int(v) => u64::from(v as u32),
            ConstantValue::UInt(v) => u64::from(v),
            ConstantValue::Long(v) => v as u64,
            ConstantValue::ULong(v) => v,
            ConstantValue::Float(v) => u64::from(v.to_bits()),
        }
        .to_le_bytes()
    }
}

/// A kernel with values for its function constants. Clones share the library.
#[derive(Clone, Debug)]
pub struct Function {
    library: Arc<Inner>,
    index: usize,
    values: Arc<[Option<ConstantValue>]>,
}

impl Function {
    /// Name, arguments and limits.
    pub fn info(&self) -> &FunctionInfo {
        &self.library.functions[self.index]
    }

    /// Runs the kernel and waits for it. Every access is checked against the bounds of its memory;
    /// [`RunOptions`](crate::RunOptions) choose the other checks. Dispatches that share a buffer, or a
    /// library, wait for each other.
    pub fn dispatch(&self, dispatch: &Dispatch<'_>) -> Result<Counters, DispatchError> {
        run::dispatch(self, dispatch)
    }
}

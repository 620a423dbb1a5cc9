use std::fmt;
use std::path::PathBuf;

/// What the C++ compiler or the translator says about one line of the MSL source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line of the MSL source, from 1; 0 where no line is known.
    pub line: u32,
    /// The message.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Why MSL source did not become a [`Library`](crate::Library).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// Neither g++ nor clang++ can be started.
    #[error(
        "no C++ compiler: {tried:?} cannot be started; install g++ or clang++, or set Config::compiler"
    )]
    NoCompiler {
        /// The programs that were tried.
        tried: Vec<PathBuf>,
    },
    /// The source uses a part of MSL that this crate does not run.
    #[error("line {line}: `{construct}` is not supported: {reason}")]
    Unsupported {
        /// Line of the MSL source, from 1.
        line: u32,
        /// The construct, as the source spells it.
        construct: String,
        /// What about it is not supported.
        reason: &'static str,
    },
    /// The source is not MSL that the translator can follow.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line of the MSL source, from 1.
        line: u32,
        /// What is wrong.
        message: String,
    },
    /// The C++ compiler refused the translated source.
    #[error("the C++ compiler refused the kernel{}", first(.diagnostics))]
    Compiler {
        /// Errors with the lines of the MSL source, in the compiler's order.
        diagnostics: Vec<Diagnostic>,
        /// The compiler's whole output.
        log: String,
    },
    /// [`CompileOptions::functions`](crate::CompileOptions::functions) names a kernel that the source lacks.
    #[error("the source has no kernel `{name}`")]
    NoSuchFunction {
        /// The name.
        name: String,
    },
    /// A file of the cache or a process failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, with the path.
        action: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The compiled library cannot be loaded into this process.
    #[error("the compiled library cannot be loaded: {0}")]
    Load(String),
    /// This target cannot run kernels: only Linux on x86-64 and aarch64 can.
    #[error("kernels run on Linux with x86-64 or aarch64 only")]
    Platform,
}

fn first(diagnostics: &[Diagnostic]) -> String {
    match diagnostics {
        [] => String::new(),
        [one] => format!(": {one}"),
        [one, rest @ ..] => format!(": {one} (and {} more)", rest.len()),
    }
}

/// Why a [`Library`](crate::Library) gives no [`Function`](crate::Function).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// The library has no kernel of this name.
    #[error("no kernel `{name}` in the library; it has {known:?}")]
    NotFound {
        /// The name that was asked for.
        name: String,
        /// The names in the library.
        known: Vec<String>,
    },
    /// A value was given for a function constant that the source does not declare.
    #[error("the source declares no function constant {index}")]
    NoSuchConstant {
        /// The index, or the name.
        index: String,
    },
    /// The value of a function constant has another type than its declaration.
    #[error("function constant {index} (`{name}`) is declared {expected}, the value is {got}")]
    ConstantType {
        /// Index of the constant.
        index: u32,
        /// Name of the constant.
        name: String,
        /// Type in the source.
        expected: String,
        /// Type of the value.
        got: String,
    },
}

/// Why memory cannot be had, read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The system gives no more memory or address space.
    #[error("no memory for a buffer of {bytes} bytes: {reason}")]
    Exhausted {
        /// Size of the buffer.
        bytes: usize,
        /// What failed.
        reason: String,
    },
    /// A range lies outside of its buffer.
    #[error("bytes {offset}..{} lie outside of a buffer of {size}", .offset.saturating_add(*.bytes))]
    Range {
        /// First byte.
        offset: usize,
        /// Length in bytes.
        bytes: usize,
        /// Size of the buffer.
        size: usize,
    },
    /// The buffer borrows memory that must not change.
    #[error("the buffer borrows host memory and is read-only")]
    ReadOnly,
}

/// Kind of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic operation.
    Atomic,
}

/// The memory an access belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// The buffer, or the constant bytes, bound at this index.
    Buffer(u32),
    /// The threadgroup memory given at this index by [`Dispatch::threadgroup_memory`](crate::Dispatch).
    ThreadgroupArgument(u32),
    /// An array that the kernel declares in threadgroup memory: the line of its declaration.
    ThreadgroupArray(u32),
    /// No memory that the kernel was given.
    Unknown,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Region::Buffer(index) => write!(f, "buffer {index}"),
            Region::ThreadgroupArgument(index) => write!(f, "threadgroup memory {index}"),
            Region::ThreadgroupArray(line) => write!(f, "threadgroup array of line {line}"),
            Region::Unknown => write!(f, "memory that the kernel was not given"),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside of its memory.
    OutOfBounds {
        /// The memory.
        region: Region,
        /// First byte of the access, relative to the start of the memory.
        offset: i64,
        /// Bytes of the access.
        bytes: u32,
        /// Size of the memory in bytes.
        size: u64,
        /// Load or store.
        access: AccessKind,
    },
    /// A load of bytes that neither the host nor a kernel wrote.
    UnwrittenRead {
        /// The memory.
        region: Region,
        /// First byte of the access.
        offset: i64,
        /// Bytes of the access.
        bytes: u32,
    },
    /// A store to constant memory or to a borrowed buffer.
    ReadOnlyWrite {
        /// The memory.
        region: Region,
        /// First byte of the access.
        offset: i64,
    },
    /// Two threads touch the same bytes with nothing to order them, and one of them writes.
    Conflict {
        /// The memory.
        region: Region,
        /// First byte of the later access.
        offset: i64,
        /// Kind of the later access; its thread is the fault's.
        access: AccessKind,
        /// Index of the other thread in its threadgroup.
        other_thread: u32,
        /// Whether the other thread is of the fault's threadgroup.
        same_threadgroup: bool,
        /// Kind of the earlier access.
        other_access: AccessKind,
    },
    /// Not all threads of a threadgroup, or of a simdgroup for its own barrier, reach a barrier.
    BarrierDivergence {
        /// Threads that wait at the barrier of the fault's line.
        waiting: u32,
        /// Threads that returned from the kernel.
        returned: u32,
        /// The line where another thread waits, where one does.
        other_line: Option<u32>,
    },
    /// The processor raised a signal in the kernel: 8 is an integer division by zero, 11 a stack overflow.
    Trap {
        /// Number of the signal.
        signal: i32,
    },
    /// A read of a function constant that has no value. Metal makes no pipeline then.
    UnsetConstant {
        /// The constant.
        name: String,
    },
    /// The threadgroup took more accesses and synchronisation points than
    /// [`RunOptions::budget`](crate::RunOptions::budget).
    Timeout,
    /// The threadgroup memory exceeds [`RunOptions::threadgroup_memory_limit`](crate::RunOptions).
    ThreadgroupMemory {
        /// Bytes that the kernel uses.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

/// A fault of a kernel: what, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the kernel.
    pub kernel: String,
    /// Line of the MSL source, where it is known.
    pub line: Option<u32>,
    /// Position of the threadgroup in the grid.
    pub threadgroup: [u32; 3],
    /// Position of the thread in its threadgroup.
    pub thread: [u32; 3],
    /// What was found.
    pub kind: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel `{}`", self.kernel)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ", threadgroup {:?}, thread {:?}: ", self.threadgroup, self.thread)?;
        match &self.kind {
            FaultKind::OutOfBounds { region, offset, bytes, size, access } => write!(
                f,
                "{access:?} of {bytes} bytes at offset {offset} of {region}, which has {size} bytes"
            ),
            FaultKind::UnwrittenRead { region, offset, bytes } => {
                write!(
                    f,
                    "read of {bytes} bytes at offset {offset} of {region}, which nothing wrote"
                )
            }
            FaultKind::ReadOnlyWrite { region, offset } => {
                write!(f, "write at offset {offset} of {region}, which is read-only")
            }
            FaultKind::Conflict {
                region,
                offset,
                access,
                other_thread,
                same_threadgroup,
                other_access,
            } => {
                let group = if *same_threadgroup { "the same" } else { "another" };
                write!(
                    f,
                    "{access:?} at offset {offset} of {region} conflicts with a {other_access:?} of \
                     thread {other_thread} of {group} threadgroup"
                )
            }
            FaultKind::BarrierDivergence { waiting, returned, other_line } => {
                write!(f, "{waiting} threads wait at a barrier, {returned} have returned")?;
                match other_line {
                    Some(line) => write!(f, ", another waits at line {line}"),
                    None => Ok(()),
                }
            }
            FaultKind::Trap { signal } => write!(f, "signal {signal}"),
            FaultKind::UnsetConstant { name } => {
                write!(f, "read of function constant `{name}`, which has no value")
            }
            FaultKind::Timeout => write!(f, "the budget of accesses is spent"),
            FaultKind::ThreadgroupMemory { bytes, limit } => {
                write!(f, "{bytes} bytes of threadgroup memory, the limit is {limit}")
            }
        }
    }
}

/// Why a dispatch failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DispatchError {
    /// The checks found faults. Buffers hold what the kernel wrote until then.
    #[error("{fault}")]
    Fault {
        /// The first fault.
        fault: Box<Fault>,
        /// Further faults, where [`RunOptions::stop_at_first`](crate::RunOptions::stop_at_first) is off.
        further: Vec<Fault>,
    },
    /// The kernel needs an argument that the dispatch does not bind.
    #[error("kernel `{kernel}`: nothing is bound at index {index} (`{name}`)")]
    Unbound {
        /// Name of the kernel.
        kernel: String,
        /// Index of the argument.
        index: u32,
        /// Name of the argument.
        name: String,
    },
    /// A part of the dispatch is invalid.
    #[error("kernel `{kernel}`: {what}")]
    Invalid {
        /// Name of the kernel.
        kernel: String,
        /// What is wrong, and what is allowed.
        what: String,
    },
    /// Memory for the run cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl DispatchError {
    /// The first fault, where the error is one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            DispatchError::Fault { fault, .. } => Some(fault),
            _ => None,
        }
    }
}

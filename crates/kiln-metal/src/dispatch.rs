//! What the lowering of an operation gives: dispatches, as plain data.

use crate::caps::Caps;
use crate::library::{ConstantKind, FunctionConstant, Library};
use crate::view::{Memory, View};
use kiln_core::{DType, KernelArgs};
use std::fmt;

/// Why an operation cannot be lowered; becomes [`kiln_core::Unsupported`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Missing(pub(crate) String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A kernel with its specialisation.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) library: &'static Library,
    /// The host name of the function.
    pub(crate) function: String,
    /// Constants and their values; a flag is 0 or 1.
    pub(crate) constants: Vec<(FunctionConstant, u32)>,
}

/// An operand as a kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Binding {
    pub(crate) memory: Memory,
    pub(crate) offset: usize,
    /// Bytes that the kernel may touch.
    pub(crate) bytes: usize,
    pub(crate) writes: bool,
}

/// One dispatch of a kernel. The argument struct is `[[buffer(0)]]`, the bindings follow in order.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    pub(crate) kernel: Kernel,
    pub(crate) arguments: Vec<u8>,
    pub(crate) bindings: Vec<Binding>,
    /// Threadgroups by axis.
    pub(crate) threadgroups: [usize; 3],
    /// Threads of a threadgroup by axis.
    pub(crate) threads: [usize; 3],
    /// Bytes of the threadgroup memory given as `[[threadgroup(0)]]`.
    pub(crate) threadgroup_memory: usize,
}

/// The largest argument struct that can be set without a buffer.
const MAX_ARGUMENT_BYTES: usize = 4096;

impl Dispatch {
    pub(crate) fn new(library: &'static Library, function: impl Into<String>) -> Self {
        Self {
            kernel: Kernel { library, function: function.into(), constants: Vec::new() },
            arguments: Vec::new(),
            bindings: Vec::new(),
            threadgroups: [1; 3],
            threads: [1; 3],
            threadgroup_memory: 0,
        }
    }

    /// Sets a flag of the specialisation.
    pub(crate) fn flag(self, constant: FunctionConstant, value: bool) -> Self {
        debug_assert_eq!(constant.kind, ConstantKind::Bool);
        self.constant(constant, u32::from(value))
    }

    /// Sets a constant of the specialisation.
    pub(crate) fn constant(mut self, constant: FunctionConstant, value: u32) -> Self {
        debug_assert!(self.kernel.library.constants.contains(&constant));
        self.kernel.constants.push((constant, value));
        self
    }

    pub(crate) fn arguments(mut self, arguments: &impl KernelArgs) -> Self {
        self.arguments = bytemuck::bytes_of(arguments).to_vec();
        self
    }

    /// The next argument, read only.
    pub(crate) fn read(self, view: &View) -> Self {
        self.bind(view, false)
    }

    /// The next argument, written, and perhaps read too.
    pub(crate) fn write(self, view: &View) -> Self {
        self.bind(view, true)
    }

    /// The next argument, or `instead` in its place: an argument that the specialisation does not
    /// use must still be bound.
    pub(crate) fn read_or(self, view: Option<&View>, instead: &View) -> Self {
        self.bind(view.unwrap_or(instead), false)
    }

    /// As [`Dispatch::read_or`], written where it is there.
    pub(crate) fn write_or(self, view: Option<&View>, instead: &View) -> Self {
        match view {
            Some(view) => self.bind(view, true),
            None => self.bind(instead, false),
        }
    }

    fn bind(mut self, view: &View, writes: bool) -> Self {
        let (memory, offset, bytes) = (view.memory(), view.offset(), view.span());
        self.bindings.push(Binding { memory, offset, bytes, writes });
        self
    }

    /// Sets the geometry: threadgroups, and threads of each.
    pub(crate) fn grid(mut self, threadgroups: [usize; 3], threads: [usize; 3]) -> Self {
        self.threadgroups = threadgroups;
        self.threads = threads;
        self
    }

    pub(crate) fn threadgroup_memory(mut self, bytes: usize) -> Self {
        // Metal asks for multiples of 16 bytes.
        self.threadgroup_memory = bytes.next_multiple_of(16);
        self
    }

    /// Checks the limits of the device.
    fn check(&self, caps: &Caps) -> Result<(), Missing> {
        let name = &self.kernel.function;
        let threads: usize = self.threads.iter().product();
        if threads > caps.threads {
            let limit = caps.threads;
            return Err(Missing(format!("{name} takes {threads} threads, the device has {limit}")));
        }
        if self.threadgroup_memory > caps.threadgroup_memory {
            let (got, limit) = (self.threadgroup_memory, caps.threadgroup_memory);
            let problem =
                format!("{name} takes {got} bytes of threadgroup memory, the device has {limit}");
            return Err(Missing(problem));
        }
        if self.arguments.len() > MAX_ARGUMENT_BYTES {
            let got = self.arguments.len();
            return Err(Missing(format!("{name} has {got} bytes of arguments, more than 4096")));
        }
        let grid = self.threadgroups.iter().zip(self.threads);
        if let Some((groups, _)) =
            grid.clone().find(|(groups, threads)| **groups > u32::MAX as usize / threads)
        {
            return Err(Missing(format!("{name} takes {groups} threadgroups along one axis")));
        }
        Ok(())
    }
}

/// The dispatches of one step, and the memory they need beside its operands.
#[derive(Debug)]
pub(crate) struct Lowering<'a> {
    pub(crate) caps: &'a Caps,
    /// Dispatches between barriers.
    pub(crate) phases: Vec<Vec<Dispatch>>,
    /// Bytes of scratch memory.
    pub(crate) workspace: usize,
    /// Constant data.
    pub(crate) data: Vec<Vec<u8>>,
}

/// Alignment of pieces of the workspace and of constant data.
pub(crate) const ALIGNMENT: usize = 256;

impl<'a> Lowering<'a> {
    pub(crate) fn new(caps: &'a Caps) -> Self {
        Self { caps, phases: vec![Vec::new()], workspace: 0, data: Vec::new() }
    }

    /// Appends a dispatch that may run beside those before, back to the last barrier.
    ///
    /// # Errors
    /// Where it exceeds a limit of the device.
    pub(crate) fn dispatch(&mut self, dispatch: Dispatch) -> Result<(), Missing> {
        dispatch.check(self.caps)?;
        if let Some(phase) = self.phases.last_mut() {
            phase.push(dispatch);
        }
        Ok(())
    }

    /// What comes next waits for all dispatches of the step before it.
    pub(crate) fn barrier(&mut self) {
        self.phases.push(Vec::new());
    }

    /// Scratch memory for values of a plain type, of this step alone, with unknown contents.
    pub(crate) fn workspace(&mut self, dtype: DType, values: usize) -> View {
        let offset = self.workspace;
        let view = View::contiguous(Memory::Workspace, offset, dtype, [values]);
        self.workspace = (offset + view.span()).next_multiple_of(ALIGNMENT);
        view
    }

    /// Constants computed on the host.
    pub(crate) fn data(&mut self, values: &[f32]) -> View {
        self.data.push(bytemuck::cast_slice(values).to_vec());
        View::contiguous(Memory::Data(self.data.len() - 1), 0, DType::F32, [values.len()])
    }
}

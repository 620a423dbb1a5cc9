//! Metal on Apple silicon, through the system's framework.

use super::{Command, DeviceMemory, Fault, Runtime};
use crate::caps::Caps;
use crate::library::{ConstantKind, FunctionConstant, Library};
use crate::ops::matmul;
use kiln_core::{Error, Result, SharedBytes};
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::{NSObjectProtocol, ProtocolObject};
use objc2::{msg_send, sel};
use objc2_foundation::{NSError, NSProcessInfo, NSString};
use objc2_metal::*;
use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

// The default device is only found in programs that link this framework.
#[link(name = "CoreGraphics", kind = "framework")]
unsafe extern "C" {}

type Device = Retained<ProtocolObject<dyn MTLDevice>>;

/// The name of the device.
const NAME: &str = "metal";

/// Pages of Apple silicon: what borrowed memory must be whole numbers of.
const PAGE: usize = 16 << 10;

/// Smaller weights are copied: a buffer of their own costs more than their bytes.
const LEAST_BORROWED: usize = PAGE;

/// The first macOS with the language version of the kernels.
const LEAST_MACOS: isize = 14;

/// The kernels that are left of the tensor library where `PROBE` is defined.
const TENSOR_PROBES: [&str; 3] =
    ["mat_mat_tensor_q4_0_f32", "mat_mat_tensor_q4_0_f16", "mat_mat_tensor_q4_0_bf16"];

/// The system's GPU.
pub(crate) struct Apple {
    device: Device,
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    caps: Caps,
    /// Whether residency sets and math modes are there: macOS 15 and later.
    residency_sets: bool,
}

impl Apple {
    /// Opens the default GPU.
    ///
    /// # Errors
    /// [`Error::Device`] where there is none of Apple's, or the system is too old.
    pub(crate) fn open() -> Result<Self> {
        let fail = |problem: &str| device_error(problem);
        let device = MTLCreateSystemDefaultDevice().ok_or_else(|| fail("no GPU here"))?;
        if !device.supportsFamily(MTLGPUFamily::Apple7) {
            return Err(fail("the GPU has no simdgroup matrices: an M1 or later is needed"));
        }
        let system = NSProcessInfo::processInfo().operatingSystemVersion();
        if system.majorVersion < LEAST_MACOS {
            return Err(fail("macOS 14 or later is needed for the language of the kernels"));
        }
        let queue = device.newCommandQueue().ok_or_else(|| fail("no command queue"))?;
        let caps = Caps {
            threadgroup_memory: device.maxThreadgroupMemoryLength(),
            threads: device.maxThreadsPerThreadgroup().width.min(1024),
            tensor_ops: has_tensor_ops(&device),
        };
        let residency_sets = device.respondsToSelector(sel!(newResidencySetWithDescriptor:error:));
        Ok(Self { device, queue, caps, residency_sets })
    }

    fn zeroed(&self, bytes: usize) -> Result<AppleBuffer> {
        let out_of_memory = || Error::OutOfMemory { device: NAME.to_owned(), requested: bytes };
        if bytes > self.device.maxBufferLength() {
            return Err(out_of_memory());
        }
        let buffer = self.device.newBufferWithLength_options(bytes.max(1), options());
        let buffer = buffer.ok_or_else(out_of_memory)?;
        let buffer = AppleBuffer { buffer, base: 0, bytes, borrowed: None };
        buffer.clear()?;
        Ok(buffer)
    }

    /// A buffer over the pages that `data` lies in.
    fn borrow(&self, data: &SharedBytes) -> Option<AppleBuffer> {
        let bytes: &[u8] = data.as_ref();
        let start = bytes.as_ptr() as usize;
        if bytes.len() < LEAST_BORROWED || !start.is_multiple_of(align_of::<f32>()) {
            return None;
        }
        let base = start % PAGE;
        let length = (base + bytes.len()).next_multiple_of(PAGE);
        if length > self.device.maxBufferLength() {
            return None;
        }
        let pages = NonNull::new(bytes.as_ptr().wrapping_sub(base).cast_mut().cast::<c_void>())?;
        // SAFETY: the pages hold `data`, which the buffer keeps alive; kernels only read a borrowed
        // buffer, and only inside the range of the data.
        let buffer = unsafe {
            self.device.newBufferWithBytesNoCopy_length_options_deallocator(
                pages,
                length,
                options(),
                None,
            )
        }?;
        Some(AppleBuffer { buffer, base, bytes: bytes.len(), borrowed: Some(data.clone()) })
    }

    /// Encodes commands, each perhaps after a barrier, into one concurrent pass, runs it and waits.
    fn submit<'a>(
        &self,
        prepared: &Prepared,
        commands: impl Iterator<Item = (&'a Command<Self>, bool)>,
        step: Option<usize>,
    ) -> Result<Duration, Fault> {
        let fault = |problem: String| Fault { step, problem };
        let missing = |what: &str| fault(format!("no {what}"));
        autoreleasepool(|_| {
            // Buffers and pipelines are kept by `prepared`, which outlives the wait below.
            let buffer = self.queue.commandBufferWithUnretainedReferences();
            let buffer = buffer.ok_or_else(|| missing("command buffer"))?;
            if let Some(set) = &prepared.residency {
                buffer.useResidencySet(set);
            }
            let encoder = buffer.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent);
            let encoder = encoder.ok_or_else(|| missing("compute encoder"))?;
            for (command, barrier) in commands {
                if barrier {
                    encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
                }
                encode(&encoder, command);
            }
            encoder.endEncoding();
            buffer.commit();
            buffer.waitUntilCompleted();
            if buffer.status() != MTLCommandBufferStatus::Completed {
                let problem = buffer.error().map(|error| message(&error));
                let problem = problem.unwrap_or_else(|| "the run did not complete".to_owned());
                let advice = if step.is_none() { "; a profile names the step" } else { "" };
                return Err(fault(format!("{problem}{advice}")));
            }
            let seconds = buffer.GPUEndTime() - buffer.GPUStartTime();
            Ok(Duration::try_from_secs_f64(seconds).unwrap_or_default())
        })
    }

    fn compile(
        &self,
        source: &str,
        version: MTLLanguageVersion,
    ) -> Result<Retained<ProtocolObject<dyn MTLLibrary>>, String> {
        compile(&self.device, source, version)
    }
}

fn compile(
    device: &ProtocolObject<dyn MTLDevice>,
    source: &str,
    version: MTLLanguageVersion,
) -> Result<Retained<ProtocolObject<dyn MTLLibrary>>, String> {
    let options = MTLCompileOptions::new();
    options.setLanguageVersion(version);
    // NaN and infinities are part of the contracts.
    if options.respondsToSelector(sel!(setMathMode:)) {
        options.setMathMode(MTLMathMode::Safe);
        options.setMathFloatingPointFunctions(MTLMathFloatingPointFunctions::Precise);
    } else {
        // SAFETY: the property is there since the first macOS with Metal, and takes a bool.
        unsafe {
            let () = msg_send![&options, setFastMathEnabled: false];
        }
    }
    let source = NSString::from_str(source);
    device
        .newLibraryWithSource_options_error(&source, Some(&options))
        .map_err(|error| message(&error))
}

/// Whether the kernels that use the tensor API compile, and become pipelines.
fn has_tensor_ops(device: &ProtocolObject<dyn MTLDevice>) -> bool {
    device.supportsFamily(MTLGPUFamily::Metal4)
        && autoreleasepool(|_| {
            let source = format!("#define PROBE\n{}", matmul::TENSOR.source());
            let Ok(library) = compile(device, &source, MTLLanguageVersion::Version4_0) else {
                return false;
            };
            TENSOR_PROBES.iter().all(|name| {
                let function = library.newFunctionWithName(&NSString::from_str(name));
                function
                    .is_some_and(|f| device.newComputePipelineStateWithFunction_error(&f).is_ok())
            })
        })
}

/// Hazards are tracked by the planner; the encoder gets explicit barriers.
fn options() -> MTLResourceOptions {
    MTLResourceOptions::StorageModeShared | MTLResourceOptions::HazardTrackingModeUntracked
}

fn message(error: &NSError) -> String {
    error.localizedDescription().to_string()
}

fn device_error(problem: impl Into<String>) -> Error {
    Error::Device { device: NAME.to_owned(), problem: problem.into() }
}

fn size([width, height, depth]: [usize; 3]) -> MTLSize {
    MTLSize { width, height, depth }
}

fn encode(encoder: &ProtocolObject<dyn MTLComputeCommandEncoder>, command: &Command<Apple>) {
    encoder.setComputePipelineState(&command.pipeline.state);
    if let Some(first) = command.arguments.first() {
        // SAFETY: the bytes are copied while the call lasts, and are at most 4096.
        unsafe {
            let bytes = NonNull::from(first).cast();
            encoder.setBytes_length_atIndex(bytes, command.arguments.len(), 0);
        }
    }
    for (index, bound) in command.buffers.iter().enumerate() {
        // SAFETY: the offset is inside the buffer, which outlives the run.
        unsafe {
            let buffer = Some(&*bound.buffer.buffer);
            encoder.setBuffer_offset_atIndex(buffer, bound.offset, index + 1);
        }
    }
    if command.threadgroup_memory > 0 {
        // SAFETY: the lowering has checked the length against the device's limit.
        unsafe { encoder.setThreadgroupMemoryLength_atIndex(command.threadgroup_memory, 0) };
    }
    let (groups, threads) = (size(command.threadgroups), size(command.threads));
    encoder.dispatchThreadgroups_threadsPerThreadgroup(groups, threads);
}

/// A buffer in memory that CPU and GPU share.
pub(crate) struct AppleBuffer {
    buffer: Retained<ProtocolObject<dyn MTLBuffer>>,
    base: usize,
    bytes: usize,
    /// Keeps the memory of borrowed weights.
    borrowed: Option<SharedBytes>,
}

// SAFETY: Metal buffers may be used from any thread; their contents are guarded by the lock of the
// device, which a run and every host access hold.
unsafe impl Send for AppleBuffer {}
// SAFETY: as above.
unsafe impl Sync for AppleBuffer {}

impl AppleBuffer {
    fn start(&self) -> *mut u8 {
        self.buffer.contents().as_ptr().cast::<u8>().wrapping_add(self.base)
    }
}

impl fmt::Debug for AppleBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let borrowed = self.borrowed.is_some();
        f.debug_struct("AppleBuffer")
            .field("bytes", &self.bytes)
            .field("borrowed", &borrowed)
            .finish()
    }
}

impl DeviceMemory for AppleBuffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn base(&self) -> usize {
        self.base
    }

    fn is_borrowed(&self) -> bool {
        self.borrowed.is_some()
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        debug_assert!(offset + out.len() <= self.bytes);
        // SAFETY: the caller has checked the range and holds the lock of the device.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(self.start().add(offset), out.len()) };
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        debug_assert!(offset + data.len() <= self.bytes && self.borrowed.is_none());
        // SAFETY: as in `read`; the memory is the buffer's own.
        unsafe { self.start().add(offset).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        debug_assert!(self.borrowed.is_none());
        // SAFETY: as in `write`.
        unsafe { self.start().write_bytes(0, self.bytes) };
        Ok(())
    }
}

/// A compiled source file.
pub(crate) struct AppleLibrary(Retained<ProtocolObject<dyn MTLLibrary>>);

/// A specialised kernel.
pub(crate) struct ApplePipeline {
    state: Retained<ProtocolObject<dyn MTLComputePipelineState>>,
}

/// Commands with the residency of their buffers.
pub(crate) struct Prepared {
    commands: Vec<Command<Apple>>,
    residency: Option<Retained<ProtocolObject<dyn MTLResidencySet>>>,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(set) = &self.residency {
            set.endResidency();
        }
    }
}

// SAFETY: a residency set is only changed while it is made, and its use by a command buffer is
// guarded by the lock of the device.
unsafe impl Send for Prepared {}
// SAFETY: as above.
unsafe impl Sync for Prepared {}

impl Runtime for Apple {
    type Buffer = AppleBuffer;
    type Library = AppleLibrary;
    type Pipeline = ApplePipeline;
    type Prepared = Prepared;

    fn name(&self) -> &'static str {
        NAME
    }

    fn description(&self) -> String {
        let gib = self.device.recommendedMaxWorkingSetSize() as f64 / f64::from(1 << 30);
        let tensor = if self.caps.tensor_ops { ", tensor operations" } else { "" };
        format!("{}, {gib:.1} GiB for the GPU{tensor}", self.device.name())
    }

    fn caps(&self) -> Caps {
        self.caps
    }

    fn allocate(&self, bytes: usize) -> Result<AppleBuffer> {
        self.zeroed(bytes)
    }

    fn import(&self, bytes: SharedBytes) -> Result<AppleBuffer> {
        if let Some(buffer) = self.borrow(&bytes) {
            return Ok(buffer);
        }
        let buffer = self.zeroed(bytes.len())?;
        buffer.write(0, bytes.as_ref())?;
        Ok(buffer)
    }

    fn library(&self, library: &Library, source: &str) -> Result<AppleLibrary, String> {
        let (major, minor) = library.version;
        let version = MTLLanguageVersion(((major << 16) + minor) as usize);
        autoreleasepool(|_| self.compile(source, version).map(AppleLibrary))
    }

    fn pipeline(
        &self,
        library: &AppleLibrary,
        function: &str,
        constants: &[(FunctionConstant, u32)],
        threads: usize,
    ) -> Result<ApplePipeline, String> {
        autoreleasepool(|_| {
            let values = MTLFunctionConstantValues::new();
            for (constant, value) in constants {
                let flag = u8::from(*value != 0);
                let (pointer, dtype) = match constant.kind {
                    ConstantKind::Bool => (NonNull::from(&flag).cast(), MTLDataType::Bool),
                    ConstantKind::Uint => (NonNull::from(value).cast(), MTLDataType::UInt),
                };
                let index = constant.index as usize;
                // SAFETY: the pointer is to a value of that type, which is copied.
                unsafe { values.setConstantValue_type_atIndex(pointer, dtype, index) };
            }
            let name = NSString::from_str(function);
            let function = library.0.newFunctionWithName_constantValues_error(&name, &values);
            let function = function.map_err(|error| message(&error))?;
            // The compiler keeps to as many registers as leave room for the threads.
            let descriptor = MTLComputePipelineDescriptor::new();
            descriptor.setComputeFunction(Some(&function));
            descriptor.setMaxTotalThreadsPerThreadgroup(threads);
            let state = self.device.newComputePipelineStateWithDescriptor_options_reflection_error(
                &descriptor,
                MTLPipelineOption::None,
                None,
            );
            Ok(ApplePipeline { state: state.map_err(|error| message(&error))? })
        })
    }

    fn threads(&self, pipeline: &ApplePipeline) -> usize {
        pipeline.state.maxTotalThreadsPerThreadgroup()
    }

    fn static_threadgroup_memory(&self, pipeline: &ApplePipeline) -> usize {
        pipeline.state.staticThreadgroupMemoryLength()
    }

    fn prepare(&self, commands: Vec<Command<Self>>) -> Result<Prepared> {
        let residency = if self.residency_sets {
            let descriptor = MTLResidencySetDescriptor::new();
            let set = self.device.newResidencySetWithDescriptor_error(&descriptor);
            let set = set.map_err(|error| device_error(message(&error)))?;
            for bound in commands.iter().flat_map(|command| &command.buffers) {
                // One that is there already is not added again.
                set.addAllocation(ProtocolObject::from_ref(&*bound.buffer.buffer));
            }
            set.commit();
            set.requestResidency();
            Some(set)
        } else {
            None
        };
        Ok(Prepared { commands, residency })
    }

    fn run(&self, prepared: &Prepared) -> Result<(), Fault> {
        let mut steps = prepared.commands.iter().map(|command| command.step);
        let only = steps.next().filter(|first| steps.all(|step| step == *first));
        let commands = prepared.commands.iter().map(|command| (command, command.barrier));
        self.submit(prepared, commands, only).map(drop)
    }

    fn profile(&self, prepared: &Prepared, steps: usize) -> Result<Vec<Duration>, Fault> {
        (0..steps)
            .map(|step| {
                let mut phase = 0;
                let commands = prepared.commands.iter().filter(|command| command.step == step);
                let commands = commands.map(|command| {
                    let barrier = std::mem::replace(&mut phase, command.phase) != command.phase;
                    (command, barrier)
                });
                self.submit(prepared, commands, Some(step))
            })
            .collect()
    }
}

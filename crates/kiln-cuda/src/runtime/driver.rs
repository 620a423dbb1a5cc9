//! libcuda, loaded at run time: the calls this backend makes, with every status checked and named.

use super::error;
use kiln_core::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;

/// An address in device memory.
pub(crate) type Address = u64;
/// A context, stream, event, module, function or graph of the driver.
pub(crate) type Handle = *mut c_void;

#[cfg(windows)]
const LIBRARY: &str = "nvcuda.dll";
#[cfg(not(windows))]
const LIBRARY: &str = "libcuda.so.1";

/// `CUDA_ERROR_OUT_OF_MEMORY`
const OUT_OF_MEMORY: c_int = 2;

/// `CUDA_KERNEL_NODE_PARAMS_v1`
#[repr(C)]
pub(crate) struct KernelNode {
    pub(crate) function: Handle,
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared: c_uint,
    pub(crate) params: *mut *mut c_void,
    pub(crate) extra: *mut *mut c_void,
}

/// `CUlaunchConfig` without attributes.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *const c_void,
    pub(crate) attribute_count: c_uint,
}

/// `CUgraphEdgeData`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct EdgeData {
    pub(crate) from_port: u8,
    pub(crate) to_port: u8,
    pub(crate) kind: u8,
    pub(crate) reserved: [u8; 5],
}

impl EdgeData {
    /// The later kernel may be launched when all blocks of the earlier one have begun, and waits
    /// itself for its end.
    pub(crate) const PROGRAMMATIC: Self =
        Self { from_port: 1, to_port: 0, kind: 1, reserved: [0; 5] };
}

/// What a tensor map takes beside its address: `cuTensorMapEncodeTiled` in the driver.
type EncodeTiled = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    c_uint,
    Address,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

macro_rules! functions {
    ($($name:ident = $symbol:literal: $Type:ty,)*) => {
        /// The driver's functions, as it documents them under their symbols.
        pub(crate) struct Driver {
            $(pub(crate) $name: $Type,)*
            /// Keeps the functions loaded.
            _library: Library,
        }

        impl Driver {
            /// Loads libcuda and starts it.
            ///
            /// # Errors
            /// Where there is no driver, or it is too old.
            pub(crate) fn load() -> Result<Self> {
                // SAFETY: the initialisers of the driver's library ask nothing of us.
                let library = unsafe { Library::new(LIBRARY) }.map_err(|_| {
                    error(format!("{LIBRARY} not found: it comes with the NVIDIA driver"))
                })?;
                // SAFETY: the symbols have these types in the driver's documentation.
                let driver = unsafe {
                    Self { $($name: symbol(&library, $symbol)?,)* _library: library }
                };
                // SAFETY: the only flag there is is 0.
                driver.check("cuInit", unsafe { (driver.init)(0) })?;
                Ok(driver)
            }
        }
    };
}

functions! {
    init = "cuInit": unsafe extern "C" fn(c_uint) -> c_int,
    driver_version = "cuDriverGetVersion": unsafe extern "C" fn(*mut c_int) -> c_int,
    error_name = "cuGetErrorName": unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    error_text = "cuGetErrorString": unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    device_count = "cuDeviceGetCount": unsafe extern "C" fn(*mut c_int) -> c_int,
    device_get = "cuDeviceGet": unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    device_name = "cuDeviceGetName": unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    device_attribute = "cuDeviceGetAttribute": unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    device_memory = "cuDeviceTotalMem_v2": unsafe extern "C" fn(*mut usize, c_int) -> c_int,
    context_retain = "cuDevicePrimaryCtxRetain": unsafe extern "C" fn(*mut Handle, c_int) -> c_int,
    context_release = "cuDevicePrimaryCtxRelease_v2": unsafe extern "C" fn(c_int) -> c_int,
    context_set = "cuCtxSetCurrent": unsafe extern "C" fn(Handle) -> c_int,
    memory_allocate = "cuMemAlloc_v2": unsafe extern "C" fn(*mut Address, usize) -> c_int,
    memory_free = "cuMemFree_v2": unsafe extern "C" fn(Address) -> c_int,
    memory_fill = "cuMemsetD8Async": unsafe extern "C" fn(Address, u8, usize, Handle) -> c_int,
    copy_to_device = "cuMemcpyHtoDAsync_v2":
        unsafe extern "C" fn(Address, *const c_void, usize, Handle) -> c_int,
    copy_to_host = "cuMemcpyDtoHAsync_v2":
        unsafe extern "C" fn(*mut c_void, Address, usize, Handle) -> c_int,
    copy_on_device = "cuMemcpyDtoDAsync_v2": unsafe extern "C" fn(Address, Address, usize, Handle) -> c_int,
    host_allocate = "cuMemHostAlloc": unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> c_int,
    host_free = "cuMemFreeHost": unsafe extern "C" fn(*mut c_void) -> c_int,
    stream_create = "cuStreamCreate": unsafe extern "C" fn(*mut Handle, c_uint) -> c_int,
    stream_destroy = "cuStreamDestroy_v2": unsafe extern "C" fn(Handle) -> c_int,
    stream_wait = "cuStreamSynchronize": unsafe extern "C" fn(Handle) -> c_int,
    event_create = "cuEventCreate": unsafe extern "C" fn(*mut Handle, c_uint) -> c_int,
    event_destroy = "cuEventDestroy_v2": unsafe extern "C" fn(Handle) -> c_int,
    event_record = "cuEventRecord": unsafe extern "C" fn(Handle, Handle) -> c_int,
    event_wait = "cuEventSynchronize": unsafe extern "C" fn(Handle) -> c_int,
    event_elapsed = "cuEventElapsedTime": unsafe extern "C" fn(*mut f32, Handle, Handle) -> c_int,
    module_load = "cuModuleLoadData": unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
    module_unload = "cuModuleUnload": unsafe extern "C" fn(Handle) -> c_int,
    module_function = "cuModuleGetFunction":
        unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
    function_set = "cuFuncSetAttribute": unsafe extern "C" fn(Handle, c_int, c_int) -> c_int,
    launch = "cuLaunchKernelEx":
        unsafe extern "C" fn(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void) -> c_int,
    graph_create = "cuGraphCreate": unsafe extern "C" fn(*mut Handle, c_uint) -> c_int,
    graph_destroy = "cuGraphDestroy": unsafe extern "C" fn(Handle) -> c_int,
    graph_kernel = "cuGraphAddKernelNode":
        unsafe extern "C" fn(*mut Handle, Handle, *const Handle, usize, *const KernelNode) -> c_int,
    graph_edges = "cuGraphAddDependencies_v2": unsafe extern "C" fn(
        Handle, *const Handle, *const Handle, *const EdgeData, usize,
    ) -> c_int,
    graph_instantiate = "cuGraphInstantiateWithFlags":
        unsafe extern "C" fn(*mut Handle, Handle, u64) -> c_int,
    graph_release = "cuGraphExecDestroy": unsafe extern "C" fn(Handle) -> c_int,
    graph_launch = "cuGraphLaunch": unsafe extern "C" fn(Handle, Handle) -> c_int,
    encode_tiled = "cuTensorMapEncodeTiled": EncodeTiled,
}

/// # Safety
/// The symbol has the type `T`.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T> {
    // SAFETY: by the contract.
    let symbol = unsafe { library.get::<T>(name.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|_| {
        error(format!("the NVIDIA driver has no {name}: install one for CUDA 12 or newer"))
    })
}

impl Driver {
    /// An error that names the call and the driver's status, for a status that is not success.
    pub(crate) fn check(&self, call: &str, status: c_int) -> Result<()> {
        if status == 0 { Ok(()) } else { Err(error(format!("{call}: {}", self.describe(status)))) }
    }

    /// As [`Driver::check`]; no memory is an error of its own.
    pub(crate) fn check_memory(&self, call: &str, bytes: usize, status: c_int) -> Result<()> {
        if status == OUT_OF_MEMORY {
            return Err(Error::OutOfMemory { device: "cuda".to_owned(), requested: bytes });
        }
        self.check(call, status)
    }

    fn describe(&self, status: c_int) -> String {
        let text = |f: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = ptr::null();
            // SAFETY: the driver writes a pointer to a static string, or null.
            unsafe {
                if f(status, &mut text) != 0 || text.is_null() {
                    return String::new();
                }
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        format!("{} ({status}): {}", text(self.error_name), text(self.error_text))
    }
}

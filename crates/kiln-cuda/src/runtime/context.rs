//! One device with its context, stream and staging memory.

use super::driver::{Driver, Handle};
use super::error;
use kiln_core::Result;
use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What kernels are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caps {
    /// Major and minor compute capability.
    pub(crate) compute: [i32; 2],
    /// Streaming multiprocessors.
    pub(crate) processors: u32,
    /// Most shared memory of a block, in bytes.
    pub(crate) shared: u32,
}

impl Caps {
    /// The name of the architecture to compile for.
    pub(crate) fn architecture(&self) -> String {
        match self.compute {
            [9, 0] => "sm_90a".to_owned(),
            [major, minor] => format!("sm_{major}{minor}"),
        }
    }

    /// Whether the instructions of Hopper alone are there (wgmma, setmaxnreg).
    pub(crate) fn hopper(&self) -> bool {
        self.compute == [9, 0]
    }
}

/// Least compute capability: bf16 and asynchronous copies.
const LEAST_COMPUTE: [i32; 2] = [8, 0];

const COMPUTE_MAJOR: c_int = 75;
const COMPUTE_MINOR: c_int = 76;
const PROCESSORS: c_int = 16;
const SHARED_PER_BLOCK: c_int = 97;
/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: u32 = 1;

/// A device, its primary context and one stream on which everything happens.
pub(crate) struct Context {
    pub(crate) driver: Driver,
    pub(crate) caps: Caps,
    pub(crate) description: String,
    device: c_int,
    context: Handle,
    stream: Handle,
    /// Held by a run and by every host access, so that the two never race.
    lock: Mutex<()>,
}

// SAFETY: the driver's handles may be used from any thread whose current context is theirs, which
// `enter` sees to; the lock keeps calls on the stream in order.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The context is current on this thread and no other thread uses the stream.
pub(crate) struct Entered<'a> {
    pub(crate) driver: &'a Driver,
    pub(crate) stream: Handle,
    _guard: MutexGuard<'a, ()>,
}

impl Context {
    pub(crate) fn open(ordinal: usize) -> Result<Self> {
        let driver = Driver::load()?;
        let (mut count, mut device) = (0, 0);
        // SAFETY: each call writes the value that it is given a place for.
        unsafe {
            driver.check("cuDeviceGetCount", (driver.device_count)(&mut count))?;
            if ordinal >= count as usize {
                return Err(error(format!("no device {ordinal}: there are {count}")));
            }
            driver.check("cuDeviceGet", (driver.device_get)(&mut device, ordinal as c_int))?;
        }
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: as above.
            let status = unsafe { (driver.device_attribute)(&mut value, which, device) };
            driver.check("cuDeviceGetAttribute", status).map(|()| value)
        };
        let compute = [attribute(COMPUTE_MAJOR)?, attribute(COMPUTE_MINOR)?];
        let caps = Caps {
            compute,
            processors: attribute(PROCESSORS)?.max(1) as u32,
            shared: attribute(SHARED_PER_BLOCK)?.max(0) as u32,
        };
        let mut name = [0u8; 128];
        let (mut memory, mut version) = (0usize, 0);
        // SAFETY: as above; the name has room for as many bytes as said.
        unsafe {
            let status = (driver.device_name)(
                name.as_mut_ptr().cast::<c_char>(),
                name.len() as c_int,
                device,
            );
            driver.check("cuDeviceGetName", status)?;
            driver.check("cuDeviceTotalMem", (driver.device_memory)(&mut memory, device))?;
            driver.check("cuDriverGetVersion", (driver.driver_version)(&mut version))?;
        }
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        let [major, minor] = compute;
        let description = format!(
            "{name}, compute {major}.{minor}, {} GiB, CUDA {}.{}",
            memory >> 30,
            version / 1000,
            version % 1000 / 10
        );
        if compute < LEAST_COMPUTE {
            return Err(error(format!("{description}: compute capability 8.0 or newer is needed")));
        }
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: as above; the context is made current before the stream is created in it.
        unsafe {
            let status = (driver.context_retain)(&mut context, device);
            driver.check("cuDevicePrimaryCtxRetain", status)?;
            driver.check("cuCtxSetCurrent", (driver.context_set)(context))?;
            let status = (driver.stream_create)(&mut stream, NON_BLOCKING);
            driver.check("cuStreamCreate", status)?;
        }
        let lock = Mutex::new(());
        Ok(Self { driver, caps, description, device, context, stream, lock })
    }

    /// Makes the context current and takes the stream.
    pub(crate) fn enter(&self) -> Result<Entered<'_>> {
        // The lock guards no value that a panic could leave broken.
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the context is retained until `self` is dropped.
        let status = unsafe { (self.driver.context_set)(self.context) };
        self.driver.check("cuCtxSetCurrent", status)?;
        Ok(Entered { driver: &self.driver, stream: self.stream, _guard: guard })
    }
}

impl Entered<'_> {
    /// Waits for everything on the stream.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as the context.
        let status = unsafe { (self.driver.stream_wait)(self.stream) };
        self.driver.check("cuStreamSynchronize", status)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nothing that uses the stream or the context outlives `self`. A failure cannot be
        // handled here, and leaves nothing to release.
        unsafe {
            (self.driver.context_set)(self.context);
            (self.driver.stream_destroy)(self.stream);
            (self.driver.context_release)(self.device);
        }
    }
}

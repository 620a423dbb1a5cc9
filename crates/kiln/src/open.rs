//! Opening a device by name.

use kiln_core::{Device, Error};
use std::fmt;
use std::path::PathBuf;

/// Choices that any device may look at; a device ignores those that are not its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Threads of the CPU device; `None` for one per core.
    pub threads: Option<usize>,
    /// Instruction set of the CPU device; `None` for the best of this machine.
    pub instruction_set: Option<String>,
    /// Folder where the CUDA device and `metal-host` keep compiled kernels, which nobody else may write;
    /// `None` to compile in every process.
    pub kernel_cache: Option<PathBuf>,
}

/// Why no device was opened.
#[derive(Clone, Debug, PartialEq)]
pub enum OpenError {
    /// No device of this build has that name.
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are, the preferred first.
        available: Vec<&'static str>,
    },
    /// The device could not be opened.
    Device(Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Unknown { name, available } => {
                write!(f, "no device {name:?} in this build, it has: {}", available.join(", "))
            }
            OpenError::Device(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        OpenError::Device(error)
    }
}

type Open = fn(&DeviceOptions) -> Result<Device, Error>;

/// The devices of this build, the preferred first. The last runs on every machine.
const DEVICES: [(&str, Open); 3] =
    [("metal", |_| kiln_metal::device()), ("cuda", open_cuda), ("cpu", open_cpu)];

fn open_cuda(options: &DeviceOptions) -> Result<Device, Error> {
    let cache = options.kernel_cache.clone();
    kiln_cuda::device(kiln_cuda::Config { cache, ..Default::default() })
}

fn open_cpu(options: &DeviceOptions) -> Result<Device, Error> {
    kiln_cpu::device(kiln_cpu::Config {
        threads: options.threads,
        instruction_set: options.instruction_set.clone(),
    })
}

/// Devices that only a test wants, opened by name alone.
const TEST_DEVICES: [(&str, Open); 1] = [("metal-host", open_metal_host)];

fn open_metal_host(options: &DeviceOptions) -> Result<Device, Error> {
    let cache = options.kernel_cache.as_ref().map(|folder| folder.join("metal-host"));
    kiln_metal::host_device(kiln_metal::HostConfig { cache, ..Default::default() })
}

/// Names of the devices of this build, the preferred first.
///
/// ```
/// assert!(kiln::devices().contains(&"cpu"));
/// ```
pub fn devices() -> Vec<&'static str> {
    DEVICES.iter().map(|(name, _)| *name).collect()
}

/// Opening devices as [`Device::best()`](DeviceOpen::best) and
/// [`Device::open("cpu", ..)`](DeviceOpen::open).
///
/// ```
/// use kiln::prelude::*;
/// let device = Device::open("cpu", &DeviceOptions { threads: Some(1), ..Default::default() })?;
/// assert_eq!(device.name(), "cpu");
/// assert!(matches!(
///     Device::open("abacus", &DeviceOptions::default()),
///     Err(OpenError::Unknown { .. })
/// ));
/// # Ok::<(), OpenError>(())
/// ```
pub trait DeviceOpen: Sized {
    /// The preferred device of this machine with default options.
    ///
    /// # Errors
    /// As [`DeviceOpen::best_with`].
    fn best() -> Result<Self, OpenError> {
        Self::best_with(&DeviceOptions::default())
    }

    /// The preferred device of this machine: the first of [`devices`] that opens.
    ///
    /// # Errors
    /// That of the last device, where none opens.
    fn best_with(options: &DeviceOptions) -> Result<Self, OpenError>;

    /// The device of that name: one of [`devices`], or `metal-host`, which runs the kernels of Metal
    /// on any machine under checks.
    ///
    /// # Errors
    /// [`OpenError::Unknown`], or [`OpenError::Device`] where it cannot be opened.
    fn open(name: &str, options: &DeviceOptions) -> Result<Self, OpenError>;
}

impl DeviceOpen for Device {
    fn best_with(options: &DeviceOptions) -> Result<Self, OpenError> {
        let [first, rest @ ..] = &DEVICES;
        let opened = rest
            .iter()
            .fold(first.1(options), |opened, (_, open)| opened.or_else(|_| open(options)));
        Ok(opened?)
    }

    fn open(name: &str, options: &DeviceOptions) -> Result<Self, OpenError> {
        match DEVICES.iter().chain(&TEST_DEVICES).find(|(known, _)| *known == name) {
            Some((_, open)) => Ok(open(options)?),
            None => Err(OpenError::Unknown { name: name.to_owned(), available: devices() }),
        }
    }
}

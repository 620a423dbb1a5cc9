//! Arguments that several commands share.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use kiln::format::Gguf;
use kiln::ops::Precision;
use kiln::prelude::*;

use crate::error::CliError;
use crate::{bundled, output};

/// Largest number of threads that is believed.
const MAX_THREADS: usize = 1024;
/// Largest context: positions are signed 32-bit numbers in some kernels.
const MAX_CONTEXT: u64 = i32::MAX as u64;

/// The model file.
#[derive(clap::Args)]
pub(crate) struct ModelArg {
    /// The model, a GGUF file; of a split model the first part. Without it, a small model of stories
    /// that ships with kiln
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
}

impl ModelArg {
    /// The file given, or else the model that ships with the command.
    pub(crate) fn open(&self) -> Result<Gguf, CliError> {
        match &self.model {
            Some(path) => Ok(Gguf::open(path)?),
            None => bundled::open(),
        }
    }

    /// What to call the model in a line of text.
    pub(crate) fn name(&self) -> String {
        match &self.model {
            Some(path) => {
                output::printable(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
            }
            None => bundled::NAME.to_owned(),
        }
    }
}

/// Where to compute.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// Device to run on; the best of this machine if not given
    #[arg(long, value_name = "NAME", help_heading = "Device")]
    device: Option<String>,
    /// Threads of the CPU device; one per core if not given. Results do not depend on it
    #[arg(short, long, value_name = "N", value_parser = threads, help_heading = "Device")]
    pub(crate) threads: Option<usize>,
    /// Instruction set of the CPU device; the best of this machine if not given
    #[arg(long, value_name = "NAME", help_heading = "Device")]
    instruction_set: Option<String>,
    /// Folder where the devices cuda and metal-host keep compiled kernels; kiln/kernels in the
    /// user's cache folder if not given
    #[arg(long, value_name = "FOLDER", help_heading = "Device")]
    kernel_cache: Option<PathBuf>,
}

impl DeviceArgs {
    pub(crate) fn open(&self) -> Result<Device, CliError> {
        Ok(self.try_open()?)
    }

    /// As [`DeviceArgs::open`], with the reason where there is no device.
    pub(crate) fn try_open(&self) -> Result<Device, OpenError> {
        let options = DeviceOptions {
            threads: self.threads,
            instruction_set: self.instruction_set.clone(),
            kernel_cache: self.kernel_cache(),
        };
        match &self.device {
            Some(name) => Device::open(name, &options),
            None => Device::best_with(&options),
        }
    }

    /// What of it concerns the CPU device.
    pub(crate) fn cpu_config(&self) -> kiln::cpu::Config {
        let Self { threads, instruction_set, .. } = self;
        kiln::cpu::Config { threads: *threads, instruction_set: instruction_set.clone() }
    }

    /// What of it concerns the CUDA device.
    pub(crate) fn cuda_config(&self) -> kiln::cuda::Config {
        kiln::cuda::Config { cache: self.kernel_cache(), ..Default::default() }
    }

    fn kernel_cache(&self) -> Option<PathBuf> {
        self.kernel_cache.clone().or_else(user_kernel_cache)
    }

    /// The device asked for by name.
    pub(crate) fn name(&self) -> Option<&str> {
        self.device.as_deref()
    }
}

/// The user's cache folder, by the XDG base directories.
fn user_kernel_cache() -> Option<PathBuf> {
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(folder.join("kiln").join("kernels"))
}

/// How to compute.
#[derive(clap::Args)]
pub(crate) struct ArithmeticArgs {
    /// Multiply in f32 from dequantised weights, slower and closer to the original model; without
    /// it activations are rounded to 8 or 15 bits where weights are quantised
    #[arg(long)]
    exact: bool,
    /// Type of the key-value cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type())]
    pub(crate) kv_type: DType,
}

impl ArithmeticArgs {
    pub(crate) fn precision(&self) -> Precision {
        precision(self.exact)
    }
}

pub(crate) fn precision(exact: bool) -> Precision {
    if exact { Precision::Exact } else { Precision::Fast }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// Parses a number of threads.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("give at least 1 thread".to_owned()),
        Ok(threads) if threads <= MAX_THREADS => Ok(threads),
        _ => Err(format!("give a number from 1 to {MAX_THREADS}")),
    }
}

/// Parses a number of tokens of context.
pub(crate) fn context() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u64).range(1..=MAX_CONTEXT).map(|context| context as usize)
}

/// Parses a count of at least 1.
pub(crate) fn at_least_one() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u64).range(1..=u64::from(u32::MAX)).map(|count| count as usize)
}

fn kv_type() -> impl TypedValueParser<Value = DType> {
    dtype(&[DType::F32, DType::F16, DType::BF16, DType::Q8_0])
}

/// Parses the name of one of these types.
pub(crate) fn dtype(types: &'static [DType]) -> impl TypedValueParser<Value = DType> {
    let names = types.iter().map(|dtype| dtype.name());
    PossibleValuesParser::new(names)
        .try_map(|name| DType::from_name(&name).ok_or_else(|| format!("no type {name:?}")))
}

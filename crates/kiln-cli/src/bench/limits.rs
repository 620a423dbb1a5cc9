//! What a device does at best.

use std::fmt;

use kiln::prelude::*;
use serde::Serialize;

use crate::args::DeviceArgs;
use crate::error::CliError;
use crate::output;

/// Measured limits of a device.
#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
pub(super) enum Limits {
    Cpu { read_gb_per_s: f64, dot_gop_per_s: f64 },
    Cuda { copy_gb_per_s: f64, gemm_gflop_per_s: f64 },
}

impl Limits {
    /// Measures a device, in a second or two; `None` where no measurement is known.
    pub(super) fn measure(device: &Device, args: &DeviceArgs) -> Result<Option<Self>, CliError> {
        Ok(match device.name() {
            "cpu" => {
                let limits = kiln::cpu::limits(&args.cpu_config())?;
                let kiln::cpu::Limits { read_gb_per_s, dot_gop_per_s } = limits;
                Some(Self::Cpu { read_gb_per_s, dot_gop_per_s })
            }
            "cuda" => {
                let limits = kiln::cuda::limits(args.cuda_config())?;
                let kiln::cuda::Limits { copy_gb_per_s, gemm_gflop_per_s } = limits;
                Some(Self::Cuda { copy_gb_per_s, gemm_gflop_per_s })
            }
            _ => None,
        })
    }

    /// The share of the memory's bandwidth.
    pub(super) fn of_memory(self, gb_per_s: f64) -> f64 {
        let (Self::Cpu { read_gb_per_s: most, .. } | Self::Cuda { copy_gb_per_s: most, .. }) = self;
        gb_per_s / most
    }

    /// The larger of the shares of both limits.
    pub(super) fn share(self, gb_per_s: f64, gflop_per_s: f64) -> f64 {
        let (Self::Cpu { dot_gop_per_s: most, .. } | Self::Cuda { gemm_gflop_per_s: most, .. }) =
            self;
        self.of_memory(gb_per_s).max(gflop_per_s / most)
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = output::figure;
        match *self {
            Self::Cpu { read_gb_per_s, dot_gop_per_s } => {
                let (read, dot) = (figure(read_gb_per_s), figure(dot_gop_per_s));
                write!(f, "{read} GB/s read, {dot} GOP/s of products on tiles in cache")
            }
            Self::Cuda { copy_gb_per_s, gemm_gflop_per_s } => {
                let (copy, gemm) = (figure(copy_gb_per_s), figure(gemm_gflop_per_s));
                write!(f, "{copy} GB/s copied, read and written; {gemm} GFLOP/s of a bf16 product")
            }
        }
    }
}

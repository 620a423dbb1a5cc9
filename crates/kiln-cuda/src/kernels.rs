//! The kernel sources: each unit is one file for one parameter, compiled by itself.

use crate::ops;
use crate::runtime::cache::Cache;
use crate::runtime::modules::cubin;
use crate::runtime::nvrtc::Nvrtc;
use kiln_core::{DType, KernelArgs, Result};
use std::fmt;
use std::path::PathBuf;

/// A file of kernels with the parameter it is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Elementwise operations.
    Elementwise,
    /// The norms.
    Norms,
    /// Per-head norm and rotation.
    HeadNormRope,
    /// Appending to a cache.
    KvCache,
    /// Copies and pooling.
    Rows,
    /// Softmax, choice of tokens and experts.
    Sampling,
    /// Slots by expert.
    ExpertSort,
    /// GGUF blocks to planes.
    Pack,
    /// Inputs of products.
    Activations,
    /// Few rows by plain weights.
    FloatMatVec,
    /// Few queries against a cache.
    CachedAttention,
    /// Tile maps of masks.
    FlashAttentionBlocks,
    /// One or two rows by weights of a quantised type.
    MatVec(DType),
    /// Up to eight rows by weights of a quantised type.
    MmaMatVec(DType),
    /// f32 products by weights of a type.
    ExactMatmul(DType),
    /// Tensor core products by weights of a type.
    MmaMatmul(DType),
    /// Weights of a type as plain values.
    Dequantize(DType),
    /// Attention for a head dimension.
    FlashAttention(u32),
    /// One row by weights of a quantised type, on Hopper alone.
    StreamMatVec(DType),
    /// Products of some rows by weights of a quantised type, with tiles of so many columns, on Hopper alone.
    DequantMatmul(DType, u32),
    /// Products of many rows, on Hopper alone.
    WgmmaMatmul,
    /// Expert-routed products of many rows by weights of a type, on Hopper alone.
    WgmmaMatmulId(DType),
    /// Attention for a head dimension, on Hopper alone.
    FlashAttentionWgmma(u32),
}

/// Head dimensions that the attention kernels are compiled for.
pub(crate) const HEAD_DIMS: [u32; 6] = [64, 80, 96, 128, 256, 512];

const COMMON: &str = include_str!("../kernels/common.cuh");
const PTX: &str = include_str!("../kernels/ptx.cuh");
const ROPE: Part = ("rope.cuh", include_str!("../kernels/rope.cuh"));
const HOPPER: &str = include_str!("../kernels/hopper.cuh");
const HOPPER_ATTENTION: &str = include_str!("../kernels/hopper_attention.cuh");
const WEIGHTS: &str = include_str!("../kernels/weights.cuh");
const DOT: &str = include_str!("../kernels/dot.cuh");
const BF16_WEIGHTS: &str = include_str!("../kernels/bf16_weights.cuh");
const TILE_WEIGHTS: &str = include_str!("../kernels/tile_weights.cuh");

/// A part of a unit's text, with the name that messages give it.
type Part = (&'static str, &'static str);

macro_rules! kernel_file {
    ($name:literal) => {
        ($name, include_str!(concat!("../kernels/", $name)))
    };
}

impl Unit {
    /// Every unit.
    pub fn all() -> Vec<Unit> {
        let mut units = vec![
            Unit::Elementwise,
            Unit::Norms,
            Unit::HeadNormRope,
            Unit::KvCache,
            Unit::Rows,
            Unit::Sampling,
            Unit::ExpertSort,
            Unit::Pack,
            Unit::Activations,
            Unit::FloatMatVec,
            Unit::CachedAttention,
            Unit::FlashAttentionBlocks,
        ];
        units.extend(DType::QUANTIZED.map(Unit::MatVec));
        units.extend(DType::QUANTIZED.map(Unit::MmaMatVec));
        units.extend(DType::QUANTIZED.map(Unit::StreamMatVec));
        for unit in [Unit::ExactMatmul, Unit::MmaMatmul, Unit::Dequantize, Unit::WgmmaMatmulId] {
            units.extend(DType::WEIGHTS.map(unit));
        }
        for columns in ops::dequant_matmul::COLUMNS {
            units.extend(DType::QUANTIZED.map(|dtype| Unit::DequantMatmul(dtype, columns)));
        }
        units.extend(HEAD_DIMS.map(Unit::FlashAttention));
        units.push(Unit::WgmmaMatmul);
        units.extend(HEAD_DIMS.map(Unit::FlashAttentionWgmma));
        units
    }

    /// The cubin for an architecture such as `sm_90a`, from a folder of compiled kernels or the
    /// compiler.
    ///
    /// # Errors
    /// The compiler's log.
    pub fn compile(
        self,
        nvrtc: &Nvrtc,
        architecture: &str,
        cache: Option<PathBuf>,
    ) -> Result<Vec<u8>> {
        cubin(nvrtc, &Cache::new(cache), self, architecture)
    }

    /// Whether it has instructions of Hopper alone.
    pub fn needs_hopper(self) -> bool {
        matches!(
            self,
            Unit::WgmmaMatmul
                | Unit::WgmmaMatmulId(_)
                | Unit::FlashAttentionWgmma(_)
                | Unit::StreamMatVec(_)
                | Unit::DequantMatmul(..)
        )
    }

    /// Whether its kernels are products that wait for weights.
    pub(crate) fn waits_for_weights(self) -> bool {
        matches!(
            self,
            Unit::MatVec(_)
                | Unit::MmaMatVec(_)
                | Unit::StreamMatVec(_)
                | Unit::FloatMatVec
                | Unit::DequantMatmul(..)
        )
    }

    /// Whether its kernels are products on tiles.
    pub(crate) fn is_tiled(self) -> bool {
        matches!(
            self,
            Unit::WgmmaMatmul | Unit::WgmmaMatmulId(_) | Unit::MmaMatmul(_) | Unit::ExactMatmul(_)
        )
    }

    /// The text of the unit: argument structs, shared parts, then the file.
    pub fn source(self) -> String {
        const BF16: Part = ("bf16_weights.cuh", BF16_WEIGHTS);
        const TILE: [Part; 3] =
            [("weights.cuh", WEIGHTS), BF16, ("tile_weights.cuh", TILE_WEIGHTS)];
        let tile = || ops::matmul::TileArgs::cuda();
        let (args, shared, file): (String, &[Part], Part) = match self {
            Unit::Elementwise => {
                (ops::elementwise::ElementwiseArgs::cuda(), &[], kernel_file!("elementwise.cu"))
            }
            Unit::Norms => {
                (ops::norms::NormArgs::cuda(), &[("ptx.cuh", PTX)], kernel_file!("norms.cu"))
            }
            Unit::HeadNormRope => (
                ops::head_norm_rope::HeadNormRopeArgs::cuda()
                    + &ops::head_norm_rope::RopeTableArgs::cuda(),
                &[ROPE],
                kernel_file!("head_norm_rope.cu"),
            ),
            Unit::KvCache => {
                (ops::kv_cache::KvAppendArgs::cuda(), &[], kernel_file!("kv_cache.cu"))
            }
            Unit::Rows => {
                let args = ops::rows::CopyArgs::cuda() + &ops::rows::PoolArgs::cuda();
                (args, &[], kernel_file!("rows.cu"))
            }
            Unit::Sampling => {
                let args = ops::sampling::SoftmaxArgs::cuda()
                    + &ops::sampling::SampleArgs::cuda()
                    + &ops::moe::MoeRouteArgs::cuda();
                (args, &[], kernel_file!("sampling.cu"))
            }
            Unit::ExpertSort => {
                (ops::matmul_id::ExpertSortArgs::cuda(), &[], kernel_file!("expert_sort.cu"))
            }
            Unit::Pack => (ops::matmul::PackArgs::cuda(), &TILE[..1], kernel_file!("pack.cu")),
            Unit::Activations => {
                (ops::activations::ActivationArgs::cuda(), &[], kernel_file!("activations.cu"))
            }
            Unit::FloatMatVec => {
                (ops::matmul::FloatMatVecArgs::cuda(), &[], kernel_file!("float_mat_vec.cu"))
            }
            Unit::CachedAttention => (
                ops::attention::CachedAttentionArgs::cuda()
                    + &ops::head_norm_rope::HeadNormRopeArgs::cuda(),
                &[ROPE],
                kernel_file!("cached_attention.cu"),
            ),
            Unit::FlashAttention(_) | Unit::FlashAttentionBlocks => {
                let args =
                    ops::attention::FlashArgs::cuda() + &ops::attention::FlashBlocksArgs::cuda();
                (args, &[("ptx.cuh", PTX)], kernel_file!("flash_attention.cu"))
            }
            Unit::FlashAttentionWgmma(dim) => {
                const SHARED: [Part; 4] = [
                    ("ptx.cuh", PTX),
                    ("hopper.cuh", HOPPER),
                    ("hopper_attention.cuh", HOPPER_ATTENTION),
                    kernel_file!("flash_attention_wgmma.cu"),
                ];
                let args = ops::attention::FlashArgs::cuda();
                if dim == 512 {
                    (args, &SHARED, kernel_file!("flash_attention_wgmma_wide.cu"))
                } else {
                    (args, &SHARED[..3], SHARED[3])
                }
            }
            Unit::WgmmaMatmul => (
                ops::wgmma_matmul::GemmArgs::cuda(),
                &[("ptx.cuh", PTX), ("hopper.cuh", HOPPER)],
                kernel_file!("wgmma_matmul.cu"),
            ),
            Unit::DequantMatmul(..) => (
                ops::dequant_matmul::DequantArgs::cuda()
                    + &ops::dequant_matmul::DequantSegment::cuda(),
                &[TILE[0], BF16, ("ptx.cuh", PTX), ("hopper.cuh", HOPPER)],
                kernel_file!("dequant_matmul.cu"),
            ),
            Unit::MatVec(_) => (
                ops::matmul::MatVecArgs::cuda(),
                &[TILE[0], ("dot.cuh", DOT)],
                kernel_file!("mat_vec.cu"),
            ),
            Unit::MmaMatVec(_) => (
                ops::matmul::MatVecArgs::cuda(),
                &[TILE[0], ("ptx.cuh", PTX)],
                kernel_file!("mma_mat_vec.cu"),
            ),
            Unit::StreamMatVec(_) => (
                ops::stream_mat_vec::StreamMatVecArgs::cuda()
                    + &ops::stream_mat_vec::MatVecSegment::cuda(),
                &[TILE[0], ("ptx.cuh", PTX)],
                kernel_file!("stream_mat_vec.cu"),
            ),
            Unit::ExactMatmul(_) => (tile(), &TILE, kernel_file!("exact_matmul.cu")),
            Unit::MmaMatmul(_) => (
                tile(),
                &[TILE[0], TILE[1], TILE[2], ("ptx.cuh", PTX)],
                kernel_file!("mma_matmul.cu"),
            ),
            Unit::WgmmaMatmulId(_) => (
                tile(),
                &[TILE[0], TILE[1], TILE[2], ("ptx.cuh", PTX), ("hopper.cuh", HOPPER)],
                kernel_file!("wgmma_matmul_id.cu"),
            ),
            Unit::Dequantize(_) => {
                (tile() + &ops::rows::EmbedArgs::cuda(), &TILE, kernel_file!("dequantize.cu"))
            }
        };
        let mut text = self.define();
        let parts = [("common.cuh", COMMON), ("arguments", &args)];
        for (name, part) in parts.iter().chain(shared).chain([&file]) {
            text.push_str(&format!("#line 1 \"{name}\"\n{part}\n"));
        }
        text
    }

    fn define(self) -> String {
        match self {
            Unit::MatVec(dtype)
            | Unit::MmaMatVec(dtype)
            | Unit::ExactMatmul(dtype)
            | Unit::MmaMatmul(dtype)
            | Unit::WgmmaMatmulId(dtype)
            | Unit::Dequantize(dtype) => format!("#define WEIGHT {}\n", format_name(dtype)),
            Unit::StreamMatVec(dtype) => {
                let ring = ops::stream_mat_vec::Ring::new(dtype);
                format!("#define WEIGHT {}\n{}", format_name(dtype), ring.define())
            }
            Unit::DequantMatmul(dtype, columns) => {
                let columns = ops::dequant_matmul::define(columns);
                format!("#define WEIGHT {}\n{columns}", format_name(dtype))
            }
            Unit::FlashAttention(dim) | Unit::FlashAttentionWgmma(dim) => {
                format!("#define HEAD_DIM {dim}\n")
            }
            Unit::Sampling => ops::sampling::define(),
            Unit::HeadNormRope => ops::head_norm_rope::define(),
            Unit::CachedAttention => {
                ops::attention::define_parts() + &ops::head_norm_rope::define()
            }
            _ => String::new(),
        }
    }
}

/// The type that stands for a weight type in the kernels.
fn format_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::U32 => "u32",
        DType::U8 => "u8",
        DType::Q4_0 => "Q4_0",
        DType::Q4_1 => "Q4_1",
        DType::Q5_0 => "Q5_0",
        DType::Q5_1 => "Q5_1",
        DType::Q8_0 => "Q8_0",
        DType::Iq4Nl => "Iq4Nl",
        DType::Q2K => "Q2K",
        DType::Q3K => "Q3K",
        DType::Q4K => "Q4K",
        DType::Q5K => "Q5K",
        DType::Q6K => "Q6K",
        DType::Iq4Xs => "Iq4Xs",
    }
}

/// The name of the unit, as in files of the cache.
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::Elementwise => f.write_str("elementwise"),
            Unit::Norms => f.write_str("norms"),
            Unit::HeadNormRope => f.write_str("head_norm_rope"),
            Unit::KvCache => f.write_str("kv_cache"),
            Unit::Rows => f.write_str("rows"),
            Unit::Sampling => f.write_str("sampling"),
            Unit::ExpertSort => f.write_str("expert_sort"),
            Unit::Pack => f.write_str("pack"),
            Unit::Activations => f.write_str("activations"),
            Unit::FloatMatVec => f.write_str("float_mat_vec"),
            Unit::CachedAttention => f.write_str("cached_attention"),
            Unit::FlashAttentionBlocks => f.write_str("flash_attention_blocks"),
            Unit::WgmmaMatmul => f.write_str("wgmma_matmul"),
            Unit::DequantMatmul(dtype, columns) => write!(f, "dequant_matmul_{dtype}_{columns}"),
            Unit::FlashAttentionWgmma(dim) => write!(f, "flash_attention_wgmma_{dim}"),
            Unit::MatVec(dtype) => write!(f, "mat_vec_{dtype}"),
            Unit::MmaMatVec(dtype) => write!(f, "mma_mat_vec_{dtype}"),
            Unit::StreamMatVec(dtype) => write!(f, "stream_mat_vec_{dtype}"),
            Unit::ExactMatmul(dtype) => write!(f, "exact_matmul_{dtype}"),
            Unit::WgmmaMatmulId(dtype) => write!(f, "wgmma_matmul_id_{dtype}"),
            Unit::MmaMatmul(dtype) => write!(f, "mma_matmul_{dtype}"),
            Unit::Dequantize(dtype) => write!(f, "dequantize_{dtype}"),
            Unit::FlashAttention(dim) => write!(f, "flash_attention_{dim}"),
        }
    }
}

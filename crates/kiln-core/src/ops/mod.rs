//! The operations: plain structs with named fields, their contracts, and what they read and write.
//!
//! An operation is generic over its tensor handle: users build `RmsNorm<&Tensor>`, a recording
//! holds `Op<Tensor>`, a backend maps it to its own resolved views with [`Op::try_map`].
//!
//! Conventions: row-major, the last axis contiguous; `T` tokens, `H` query heads, `H_kv` key-value
//! heads, `D` head dimension; statistics, dot products and softmax accumulate in f32 or better.
//! Outer axes may have any stride unless a contract says contiguous.

#[macro_use]
mod declare;
mod attention;
mod check;
mod elementwise;
mod head_norm_rope;
mod kv_cache;
mod matmul;
mod moe;
mod norms;
mod rows;
mod sampling;

pub use attention::{
    AttentionLayout, CachedAttention, FlashAttention, FlashAttentionBlocks, MAX_HEAD_DIM,
};
pub use declare::{MaybeRead, MaybeUpdate, MaybeWrite, Read, Update, Write};
pub use elementwise::{Add, GeluMul, Mul, Scale, SiluMul, Softcap};
pub use head_norm_rope::{HeadLayout, HeadNormRope, RopePairing};
pub use kv_cache::KvAppend;
pub use matmul::{Activation, GatedMatmul, InputLayout, Matmul, MatmulId, Precision};
pub use moe::MoeRoute;
pub use norms::{
    AddRmsNorm, LayerNorm, MoePostFfNormEndLayer, PostAttnTripleNorm, PostFfNormEndLayer, RmsNorm,
    RmsNormMul, RmsNormTriple,
};
pub use rows::{Copy, Embed, Pool, PoolMode};
pub use sampling::{Argmax, Sample, Softmax};

use crate::Tensor;
use crate::error::OpError;
use std::convert::Infallible;

/// How an operation uses a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Every value written, none read.
    Write,
    /// Some values written, the others kept: a cache.
    Update,
}

impl Access {
    /// True for [`Access::Write`] and [`Access::Update`].
    pub fn writes(self) -> bool {
        self != Access::Read
    }

    /// True for [`Access::Read`] and [`Access::Update`].
    pub fn reads(self) -> bool {
        self != Access::Write
    }
}

/// The place of a tensor in an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Operation.
    pub op: &'static str,
    /// Field.
    pub tensor: &'static str,
    /// How it is used.
    pub access: Access,
}

impl Role {
    fn new(op: &'static str, tensor: &'static str, access: Access) -> Self {
        Self { op, tensor, access }
    }
}

/// What every operation declares about itself.
trait Contract {
    /// Checks shapes, types and parameters.
    fn check(&self) -> Result<(), OpError>;

    /// Floating-point operations, a multiply-add counted as two.
    fn flops(&self) -> u64;

    /// Bytes that must be moved; `None` for the sum over all operands.
    fn bytes(&self) -> Option<u64> {
        None
    }
}

op_enum! {
    RmsNorm,
    RmsNormMul,
    RmsNormTriple,
    PostAttnTripleNorm,
    PostFfNormEndLayer,
    MoePostFfNormEndLayer,
    AddRmsNorm,
    LayerNorm,
    HeadNormRope,
    Matmul,
    GatedMatmul,
    MatmulId,
    FlashAttention,
    FlashAttentionBlocks,
    CachedAttention,
    KvAppend,
    Embed,
    GeluMul,
    SiluMul,
    Add,
    Mul,
    Scale,
    Softcap,
    Copy,
    Softmax,
    Argmax,
    Sample,
    MoeRoute,
    Pool,
}

impl Op<Tensor> {
    /// Every tensor with its role, in field order.
    pub fn operands(&self) -> Vec<(Role, Tensor)> {
        let mut operands = Vec::new();
        let _: Result<Op<()>, Infallible> = self.try_map(|role, tensor| {
            operands.push((role, tensor.clone()));
            Ok(())
        });
        operands
    }

    fn operand_bytes(&self) -> u64 {
        let bytes = |(role, t): (Role, Tensor)| {
            let passes = if role.access == Access::Update { 2 } else { 1 };
            passes * t.bytes() as u64
        };
        self.operands().into_iter().map(bytes).sum()
    }

    /// Shapes and types in one line, for messages and profiles.
    pub fn describe(&self) -> String {
        let mut text = self.name().to_owned();
        for (role, t) in self.operands() {
            text.push_str(&format!(" {}:{}{}", role.tensor, t.dtype(), t.shape()));
        }
        text
    }
}

fn clone_tensors<O>(op: Result<O, Infallible>) -> O {
    match op {
        Ok(op) => op,
        Err(never) => match never {},
    }
}

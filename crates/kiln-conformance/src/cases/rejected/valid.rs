//! The smallest valid recording of every operation; operands have no data.

use crate::program::{Program, Slot};
use kiln_core::ops::*;
use kiln_core::{DType, Shape};

const F32: DType = DType::F32;
const U32: DType = DType::U32;

/// An operand.
pub(super) fn t(p: &mut Program, dtype: DType, shape: impl Into<Shape>) -> Slot {
    p.bytes(dtype, shape, Vec::new())
}

/// Makes the operands of an operation.
pub(super) type Valid = fn(&mut Program) -> Op<Slot>;

/// Every operation, some with other options.
pub(super) const ALL: &[Valid] = &[
    |p| Op::RmsNorm(rms_norm(p)),
    |p| {
        Op::RmsNormMul(RmsNormMul {
            input: t(p, F32, [3, 8]),
            weight: Some(t(p, F32, [8])),
            scale: t(p, F32, [3, 8]),
            output: t(p, F32, [3, 8]),
            eps: 1e-6,
        })
    },
    |p| {
        Op::RmsNormTriple(RmsNormTriple {
            input: t(p, F32, [3, 8]),
            weight_a: t(p, F32, [8]),
            weight_b: t(p, F32, [8]),
            weight_c: t(p, F32, [8]),
            output_a: t(p, F32, [3, 8]),
            output_b: t(p, F32, [3, 8]),
            output_c: t(p, F32, [3, 8]),
            eps: 1e-6,
        })
    },
    |p| {
        Op::PostAttnTripleNorm(PostAttnTripleNorm {
            hidden: t(p, F32, [3, 8]),
            attn: t(p, F32, [3, 8]),
            weight_post: t(p, F32, [8]),
            weight_a: t(p, F32, [8]),
            weight_b: t(p, F32, [8]),
            weight_c: t(p, F32, [8]),
            residual: t(p, F32, [3, 8]),
            output_a: t(p, F32, [3, 8]),
            output_b: t(p, F32, [3, 8]),
            output_c: t(p, F32, [3, 8]),
            eps: 1e-6,
        })
    },
    |p| {
        Op::PostFfNormEndLayer(PostFfNormEndLayer {
            attn: t(p, F32, [3, 8]),
            moe: t(p, F32, [3, 8]),
            weight_moe: t(p, F32, [8]),
            residual: t(p, F32, [3, 8]),
            weight_mlp: t(p, F32, [8]),
            layer_scalar: t(p, F32, [1]),
            mlp: t(p, F32, [3, 8]),
            output: t(p, F32, [3, 8]),
            eps: 1e-6,
        })
    },
    |p| {
        Op::MoePostFfNormEndLayer(MoePostFfNormEndLayer {
            attn: t(p, F32, [3, 8]),
            experts: t(p, F32, [3, 2, 8]),
            route: t(p, F32, [3, 2]),
            weight_moe: t(p, F32, [8]),
            residual: t(p, F32, [3, 8]),
            weight_mlp: t(p, F32, [8]),
            layer_scalar: t(p, F32, [8]),
            mlp: t(p, F32, [3, 8]),
            output: t(p, F32, [3, 8]),
            eps: 1e-6,
        })
    },
    |p| {
        Op::AddRmsNorm(AddRmsNorm {
            a: t(p, F32, [3, 8]),
            b: t(p, F32, [3, 8]),
            weight: Some(t(p, F32, [8])),
            residual: t(p, F32, [3, 8]),
            output: t(p, F32, [3, 8]),
            eps: 1e-6,
        })
    },
    |p| {
        Op::LayerNorm(LayerNorm {
            input: t(p, F32, [3, 8]),
            weight: t(p, F32, [8]),
            bias: Some(t(p, F32, [8])),
            output: t(p, F32, [3, 8]),
            eps: 1e-6,
        })
    },
    |p| Op::HeadNormRope(head_norm_rope(p)),
    |p| {
        let (cos, sin) = (t(p, F32, [3, 4]), t(p, F32, [3, 4]));
        let op = head_norm_rope(p);
        let (cos, sin) = (Some(cos), Some(sin));
        Op::HeadNormRope(HeadNormRope { positions: None, freq_factors: None, cos, sin, ..op })
    },
    |p| Op::Matmul(matmul(p, DType::Q4K)),
    |p| {
        let input = t(p, DType::BF16, [2, 3, 16]);
        Op::Matmul(Matmul { input, input_layout: InputLayout::HeadMajor, ..matmul(p, DType::Q8_0) })
    },
    |p| {
        Op::GatedMatmul(GatedMatmul {
            input: t(p, F32, [3, 32]),
            gate: t(p, DType::Q4_0, [5, 32]),
            up: t(p, F32, [5, 32]),
            output: t(p, F32, [3, 5]),
            activation: Activation::Silu,
            precision: Precision::Fast,
        })
    },
    |p| {
        Op::MatmulId(MatmulId {
            input: t(p, F32, [3, 32]),
            weight: t(p, DType::Q8_0, [4, 5, 32]),
            ids: t(p, U32, [3, 2]),
            output: t(p, F32, [3, 2, 5]),
            precision: Precision::Fast,
        })
    },
    |p| {
        Op::MatmulId(MatmulId {
            input: t(p, F32, [3, 2, 32]),
            weight: t(p, F32, [4, 5, 32]),
            ids: t(p, U32, [3, 2]),
            output: t(p, F32, [3, 2, 5]),
            precision: Precision::Exact,
        })
    },
    |p| Op::FlashAttention(flash_attention(p)),
    |p| {
        let mask = Some(t(p, DType::F16, [2, 4, 5, 6]));
        let blocks = Some(t(p, DType::U8, [2, 4, 3, 3]));
        let sinks = Some(t(p, F32, [4]));
        let layout = AttentionLayout::HeadMajor;
        let q = t(p, DType::F16, [2, 4, 5, 16]);
        let [k, v] = [(); 2].map(|()| t(p, DType::F16, [2, 2, 6, 16]));
        let output = t(p, DType::F16, [2, 4, 5, 16]);
        let op = flash_attention(p);
        Op::FlashAttention(FlashAttention { q, k, v, mask, blocks, sinks, output, layout, ..op })
    },
    |p| {
        Op::FlashAttentionBlocks(FlashAttentionBlocks {
            mask: t(p, DType::F16, [4, 6]),
            blocks: t(p, DType::U8, [1, 1, 2, 3]),
            tile: [2, 2],
        })
    },
    |p| Op::CachedAttention(cached_attention(p)),
    |p| Op::KvAppend(kv_append(p)),
    |p| Op::Embed(embed(p)),
    |p| {
        Op::GeluMul(GeluMul {
            gate: t(p, F32, [3, 8]),
            up: t(p, F32, [3, 8]),
            output: t(p, F32, [3, 8]),
        })
    },
    |p| {
        Op::SiluMul(SiluMul {
            gate: t(p, F32, [3, 8]),
            up: t(p, F32, [3, 8]),
            output: t(p, F32, [3, 8]),
        })
    },
    |p| Op::Add(Add { a: t(p, F32, [3, 8]), b: t(p, F32, [3, 8]), output: t(p, F32, [3, 8]) }),
    |p| Op::Add(Add { a: t(p, F32, [3, 8]), b: t(p, F32, [8]), output: t(p, F32, [3, 8]) }),
    |p| Op::Mul(Mul { a: t(p, F32, [3, 8]), b: t(p, F32, [3, 8]), output: t(p, F32, [3, 8]) }),
    |p| Op::Scale(Scale { input: t(p, F32, [3, 8]), output: t(p, F32, [3, 8]), factor: 2.0 }),
    |p| Op::Softcap(softcap(p)),
    |p| Op::Copy(Copy { input: t(p, F32, [3, 2, 8]), output: t(p, DType::BF16, [3, 2, 8]) }),
    |p| Op::Softmax(Softmax { input: t(p, F32, [3, 8]), output: t(p, F32, [3, 8]), scale: 1.0 }),
    |p| Op::Argmax(Argmax { input: t(p, F32, [3, 8]), output: t(p, U32, [3]) }),
    |p| Op::Sample(sample(p)),
    |p| Op::MoeRoute(moe_route(p)),
    |p| {
        Op::Pool(Pool {
            input: t(p, F32, [2, 3, 8]),
            lengths: t(p, U32, [2]),
            output: t(p, F32, [2, 8]),
            mode: PoolMode::Mean,
        })
    },
];

pub(super) fn rms_norm(p: &mut Program) -> RmsNorm<Slot> {
    RmsNorm {
        input: t(p, F32, [3, 8]),
        weight: Some(t(p, F32, [8])),
        output: t(p, F32, [3, 8]),
        eps: 1e-6,
    }
}

pub(super) fn head_norm_rope(p: &mut Program) -> HeadNormRope<Slot> {
    HeadNormRope {
        input: t(p, F32, [3, 2, 8]),
        weight: Some(t(p, F32, [8])),
        positions: Some(t(p, U32, [3])),
        freq_factors: Some(t(p, F32, [4])),
        cos: None,
        sin: None,
        cache_start: Some(t(p, U32, [1])),
        output: Some(t(p, F32, [3, 2, 8])),
        output_bf16: Some(t(p, DType::BF16, [2, 3, 8])),
        output_f32: Some(t(p, F32, [2, 3, 8])),
        cache: Some(t(p, DType::F16, [2, 5, 8])),
        pairing: RopePairing::Leading,
        half: 4,
        theta: 1e4,
        normalize: true,
        eps: 1e-6,
        copy_layout: HeadLayout::HeadMajor,
    }
}

pub(super) fn matmul(p: &mut Program, w: DType) -> Matmul<Slot> {
    let k = w.block_len().max(32);
    Matmul {
        input: t(p, F32, [3, k]),
        weight: t(p, w, [5, k]),
        output: t(p, F32, [3, 5]),
        input_layout: InputLayout::RowMajor,
        precision: Precision::Fast,
    }
}

pub(super) fn flash_attention(p: &mut Program) -> FlashAttention<Slot> {
    FlashAttention {
        q: t(p, DType::BF16, [2, 5, 4, 16]),
        k: t(p, DType::BF16, [2, 6, 2, 16]),
        v: t(p, DType::BF16, [2, 6, 2, 16]),
        mask: Some(t(p, DType::BF16, [5, 6])),
        blocks: Some(t(p, DType::U8, [1, 1, 3, 3])),
        sinks: None,
        output: t(p, DType::BF16, [2, 5, 4, 16]),
        layout: AttentionLayout::SeqMajor,
        scale: 0.25,
        causal: true,
        window: None,
        softcap: None,
        q_offset: None,
        tile: [2, 2],
    }
}

pub(super) fn cached_attention(p: &mut Program) -> CachedAttention<Slot> {
    CachedAttention {
        q: t(p, F32, [3, 4, 32]),
        k_cache: t(p, DType::Q8_0, [2, 7, 32]),
        v_cache: t(p, DType::Q8_0, [2, 7, 32]),
        kv_len: t(p, U32, [1]),
        sinks: Some(t(p, F32, [4])),
        output: t(p, F32, [3, 4, 32]),
        scale: 0.25,
        window: Some(4),
        softcap: Some(30.0),
        ring: true,
    }
}

pub(super) fn kv_append(p: &mut Program) -> KvAppend<Slot> {
    KvAppend {
        input: t(p, F32, [3, 2, 32]),
        start: t(p, U32, [1]),
        cache: t(p, DType::F16, [2, 7, 32]),
        ring: false,
    }
}

pub(super) fn embed(p: &mut Program) -> Embed<Slot> {
    Embed {
        weight: t(p, DType::Q6K, [6, 256]),
        ids: t(p, U32, [3]),
        output: t(p, F32, [3, 256]),
        scale: 1.0,
    }
}

pub(super) fn softcap(p: &mut Program) -> Softcap<Slot> {
    Softcap { input: t(p, F32, [3, 8]), output: t(p, F32, [3, 8]), cap: 30.0 }
}

pub(super) fn sample(p: &mut Program) -> Sample<Slot> {
    Sample {
        logits: t(p, F32, [3, 8]),
        random: t(p, F32, [3]),
        output: t(p, U32, [3]),
        temperature: 1.0,
        top_k: 4,
        top_p: 0.9,
    }
}

pub(super) fn moe_route(p: &mut Program) -> MoeRoute<Slot> {
    MoeRoute {
        logits: t(p, F32, [3, 8]),
        ids: t(p, U32, [3, 2]),
        weights: t(p, F32, [3, 2]),
        renormalize: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Outcome, Problem};
    use crate::reject::{Flaw, Rejection, run};

    #[test]
    fn every_operation_is_here_and_valid() {
        let device = kiln_reference::device();
        let nothing = Rejection { flaw: Flaw::None, kinds: &[], names: None };
        let mut names: Vec<_> = Vec::new();
        for valid in ALL {
            let mut p = Program::new(0);
            let op = valid(&mut p);
            names.push(op.name());
            p.push(op);
            let outcome = run(&device, &p, &nothing);
            let Outcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
            assert_eq!(failure.problem, Problem::Accepted, "{:?}", p.ops);
        }
        for name in Op::<Slot>::NAMES {
            assert!(names.contains(name), "no valid recording of {name}");
        }
    }
}

//! Operations that break their contract: the error names operation, tensor, axis, what was
//! expected and what was found.

use crate::common::*;
use DType::*;
use kiln_core::ops::*;
use kiln_core::{DType, OpError, Tensor};

/// Checks that a valid operation is recorded and each broken one refused with this message.
#[track_caller]
fn check(lab: &Lab, valid: impl Into<Op<Tensor>>, broken: Vec<(Op<Tensor>, &str)>) {
    let valid = valid.into();
    lab.device.record().push(valid.clone()).unwrap();
    for (op, message) in broken {
        assert_eq!(lab.refused(op).to_string(), format!("{}: {message}", valid.name()));
    }
}

#[test]
fn errors_are_values() {
    let lab = Lab::new();
    let (x, y) = (lab.zeros(F16, [2, 3]), lab.zeros(F16, [2, 4]));
    let error = lab.refused(RmsNorm { input: &x, weight: None, output: &y, eps: 1e-6 });
    let (op, tensor) = ("rms_norm", "output");
    assert_eq!(error, OpError::Extent { op, tensor, axis: 1, expected: 3, got: 4 });
}

#[test]
fn norms() {
    let lab = Lab::new();
    let z = |dtype, shape: &[usize]| lab.zeros(dtype, kiln_core::Shape::from_slice(shape).unwrap());
    let [x, y] = &[(); 2].map(|()| z(F16, &[2, 3]));
    let w = &z(F32, &[3]);
    let base = RmsNorm { input: x, weight: Some(w), output: y, eps: 1e-6 };
    check(
        &lab,
        base.clone(),
        vec![
            (
                RmsNorm { input: &z(F16, &[6]), ..base.clone() }.into(),
                "`input` has 1 axes, expected 2",
            ),
            (
                RmsNorm { input: &z(U32, &[2, 3]), ..base.clone() }.into(),
                "`input` is u32, expected f32, f16 or bf16",
            ),
            (
                RmsNorm { input: &z(F16, &[0, 3]), ..base.clone() }.into(),
                "axis 0 of `input` is 0, it must be at least 1",
            ),
            (
                RmsNorm { weight: Some(&z(F32, &[4])), ..base.clone() }.into(),
                "axis 0 of `weight` is 4, expected 3",
            ),
            (
                RmsNorm { weight: Some(&z(BF16, &[3])), ..base.clone() }.into(),
                "`weight` is bf16, expected f16 like `input`",
            ),
            (
                RmsNorm { output: &z(F32, &[2, 3]), ..base.clone() }.into(),
                "`output` is f32, expected f16 like `input`",
            ),
            (
                RmsNorm { eps: -1.0, ..base.clone() }.into(),
                "eps is -1, it must be finite and not negative",
            ),
            (
                RmsNorm { eps: f32::NAN, ..base }.into(),
                "eps is NaN, it must be finite and not negative",
            ),
        ],
    );

    let experts = z(F16, &[2, 4, 3]);
    let [moe, residual, mlp, output] = &[(); 4].map(|()| z(F16, &[2, 3]));
    let base = MoePostFfNormEndLayer {
        attn: x,
        experts: &experts,
        route: &z(F32, &[2, 4]),
        weight_moe: w,
        residual,
        weight_mlp: w,
        layer_scalar: &z(F32, &[1]),
        mlp,
        output,
        eps: 1e-6,
    };
    check(
        &lab,
        base.clone(),
        vec![
            (
                MoePostFfNormEndLayer { experts: &z(F16, &[2, 4, 2]), ..base.clone() }.into(),
                "axis 2 of `experts` is 2, expected 3",
            ),
            (
                MoePostFfNormEndLayer { route: &z(F32, &[2, 3]), ..base.clone() }.into(),
                "axis 1 of `route` is 3, expected 4",
            ),
            (
                MoePostFfNormEndLayer { route: &z(F16, &[2, 4]), ..base.clone() }.into(),
                "`route` is f16, expected f32",
            ),
            (
                MoePostFfNormEndLayer { layer_scalar: &z(F32, &[2]), ..base.clone() }.into(),
                "axis 0 of `layer_scalar` is 2, expected 3",
            ),
            (
                MoePostFfNormEndLayer { mlp: residual, ..base }.into(),
                "output `mlp` overlaps `residual`; give it storage of its own",
            ),
        ],
    );

    let base = LayerNorm { input: x, weight: w, bias: Some(w), output: y, eps: 1e-6 };
    let scaled = RmsNormMul { input: x, weight: None, scale: moe, output: y, eps: 1e-6 };
    check(
        &lab,
        base.clone(),
        vec![(
            LayerNorm { bias: Some(&z(F32, &[1])), ..base }.into(),
            "axis 0 of `bias` is 1, expected 3",
        )],
    );
    check(
        &lab,
        scaled.clone(),
        vec![(
            RmsNormMul { scale: &z(F16, &[3, 3]), ..scaled }.into(),
            "axis 0 of `scale` is 3, expected 2",
        )],
    );
}

#[test]
fn head_norm_rope() {
    let lab = Lab::new();
    let f32 = |shape: &[usize]| lab.zeros(F32, kiln_core::Shape::from_slice(shape).unwrap());
    let [x, y] = &[(); 2].map(|()| f32(&[3, 2, 8]));
    let table = &f32(&[3, 4]);
    let base = HeadNormRope {
        input: x,
        weight: None,
        positions: Some(&lab.u32(&[0, 1, 2])),
        freq_factors: None,
        cos: None,
        sin: None,
        cache_start: None,
        output: Some(y),
        output_bf16: None,
        output_f32: None,
        cache: None,
        pairing: RopePairing::Interleaved,
        half: 4,
        theta: 1e4,
        normalize: false,
        eps: 1e-6,
        copy_layout: HeadLayout::HeadMajor,
    };
    check(
        &lab,
        base.clone(),
        vec![
            (
                HeadNormRope { half: 5, ..base.clone() }.into(),
                "half is 5, it must be at most D / 2",
            ),
            (HeadNormRope { theta: 0.0, ..base.clone() }.into(), "theta is 0, it must be positive"),
            (
                HeadNormRope { weight: Some(&f32(&[8])), ..base.clone() }.into(),
                "`weight` needs `normalize: true`",
            ),
            (
                HeadNormRope { positions: Some(&lab.u32(&[0])), ..base.clone() }.into(),
                "axis 0 of `positions` is 1, expected 3",
            ),
            (
                HeadNormRope { positions: None, ..base.clone() }.into(),
                "`positions` or tables are needed where `half` is not 0",
            ),
            (
                HeadNormRope { cos: Some(table), sin: Some(table), ..base.clone() }.into(),
                "`cos` excludes `positions`",
            ),
            (
                HeadNormRope { positions: None, cos: Some(table), ..base.clone() }.into(),
                "`sin` goes together with `cos`",
            ),
            (
                HeadNormRope { freq_factors: Some(&f32(&[3])), ..base.clone() }.into(),
                "axis 0 of `freq_factors` is 3, expected 4",
            ),
            (
                HeadNormRope { output_bf16: Some(&lab.zeros(BF16, [3, 2, 8])), ..base.clone() }
                    .into(),
                "axis 0 of `output_bf16` is 3, expected 2",
            ),
            (
                HeadNormRope { cache: Some(&f32(&[2, 9, 8])), ..base.clone() }.into(),
                "`cache_start` goes together with `cache`",
            ),
            (HeadNormRope { output: None, ..base }.into(), "`output` or another output is needed"),
        ],
    );
}

#[test]
fn products() {
    let lab = Lab::new();
    let [x, w] = &[lab.zeros(F32, [2, 64]), lab.zeros(Q4_0, [3, 64])];
    let y = &lab.zeros(F32, [2, 3]);
    let base = Matmul {
        input: x,
        weight: w,
        output: y,
        input_layout: InputLayout::RowMajor,
        precision: Precision::Fast,
    };
    let wide = lab.zeros(Q4_0, [3, 128]);
    check(
        &lab,
        base.clone(),
        vec![
            (
                Matmul { weight: &wide, ..base.clone() }.into(),
                "axis 1 of `weight` is 128, expected 64",
            ),
            (
                Matmul { weight: &wide.slice(1, 64..128).unwrap(), ..base.clone() }.into(),
                "the layout of `weight` must be contiguous: copy it first",
            ),
            (
                Matmul { weight: &lab.zeros(U8, [3, 64]), ..base.clone() }.into(),
                "`weight` is u8, expected f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, q2_k, \
                 q3_k, q4_k, q5_k, q6_k or iq4_xs",
            ),
            (
                Matmul { output: &lab.zeros(F16, [2, 3]), ..base.clone() }.into(),
                "`output` is f16, expected f32",
            ),
            (
                Matmul { input_layout: InputLayout::HeadMajor, ..base }.into(),
                "`input` has 2 axes, expected 3",
            ),
        ],
    );

    let base = GatedMatmul {
        input: x,
        gate: w,
        up: w,
        output: y,
        activation: Activation::Silu,
        precision: Precision::Fast,
    };
    check(
        &lab,
        base.clone(),
        vec![(
            GatedMatmul { up: &lab.zeros(F16, [4, 64]), ..base }.into(),
            "axis 0 of `up` is 4, expected 3",
        )],
    );

    let ids = &lab.device.upload(&[0u32; 4], [2, 2]).unwrap();
    let base = MatmulId {
        input: x,
        weight: &lab.zeros(Q4_0, [5, 3, 64]),
        ids,
        output: &lab.zeros(F32, [2, 2, 3]),
        precision: Precision::Fast,
    };
    check(
        &lab,
        base.clone(),
        vec![
            (MatmulId { weight: w, ..base.clone() }.into(), "`weight` has 2 axes, expected 3"),
            (
                MatmulId { input: &lab.zeros(F32, [2, 3, 64]), ..base.clone() }.into(),
                "axis 1 of `input` is 3, expected 2",
            ),
            (
                MatmulId { ids: &lab.zeros(F32, [2, 2]), ..base }.into(),
                "`ids` is f32, expected u32",
            ),
        ],
    );
}

#[test]
fn flash_attention() {
    let lab = Lab::new();
    let f16 = |shape: [usize; 4]| lab.zeros(F16, shape);
    let (q, kv) = (&f16([1, 4, 5, 64]), &f16([1, 2, 9, 64]));
    let mask = &lab.zeros(U8, [5, 9]);
    let blocks = &lab.zeros(U8, [1, 1, 2, 3]);
    let base = FlashAttention {
        q,
        k: kv,
        v: kv,
        mask: Some(mask),
        blocks: Some(blocks),
        sinks: None,
        output: &f16([1, 4, 5, 64]),
        layout: AttentionLayout::HeadMajor,
        scale: 0.125,
        causal: true,
        window: None,
        softcap: None,
        q_offset: None,
        tile: [4, 4],
    };
    let thirds = &f16([1, 3, 9, 64]);
    let (odd, odd_kv) = (&f16([1, 4, 5, 12]), &f16([1, 2, 9, 12]));
    let short = &f16([1, 2, 3, 64]);
    check(
        &lab,
        base.clone(),
        vec![
            (
                FlashAttention { q: odd, k: odd_kv, v: odd_kv, ..base.clone() }.into(),
                "axis 3 of `q` is 12, it must be a multiple of 8 up to 512",
            ),
            (
                FlashAttention { k: thirds, v: thirds, ..base.clone() }.into(),
                "axis 1 of `k` is 3, it must be a divisor of the query heads",
            ),
            (FlashAttention { v: short, ..base.clone() }.into(), "axis 2 of `v` is 3, expected 9"),
            (
                FlashAttention { k: &lab.zeros(BF16, [1, 2, 9, 64]), ..base.clone() }.into(),
                "`k` is bf16, expected f16 like `q`",
            ),
            (
                FlashAttention { k: short, v: short, mask: None, blocks: None, ..base.clone() }
                    .into(),
                "q_offset is none, it must be given where qL > kL",
            ),
            (
                FlashAttention { q_offset: Some(usize::MAX), ..base.clone() }.into(),
                "q_offset is 18446744073709551615, it must be below 2^31",
            ),
            (
                FlashAttention { mask: None, ..base.clone() }.into(),
                "`blocks` is a map of a mask: give the mask too",
            ),
            (
                FlashAttention { mask: Some(&lab.zeros(BF16, [5, 9])), ..base.clone() }.into(),
                "`mask` is bf16, expected f16 like `q`",
            ),
            (
                FlashAttention { mask: Some(&lab.zeros(U8, [9, 5])), ..base.clone() }.into(),
                "axis 0 of `mask` is 9, expected 5",
            ),
            (
                FlashAttention {
                    tile: [4, 3],
                    blocks: Some(&lab.zeros(U8, [1, 1, 2, 2])),
                    ..base.clone()
                }
                .into(),
                "axis 3 of `blocks` is 2, expected 3",
            ),
            (
                FlashAttention { tile: [0, 4], ..base.clone() }.into(),
                "tile is [0, 4], it must be at least 1 by 1",
            ),
            (
                FlashAttention { window: Some(0), ..base.clone() }.into(),
                "window is 0, it must be at least 1",
            ),
            (
                FlashAttention { softcap: Some(-1.0), ..base.clone() }.into(),
                "softcap is -1, it must be positive",
            ),
            (
                FlashAttention { scale: f32::INFINITY, ..base.clone() }.into(),
                "scale is inf, it must be finite",
            ),
            (
                FlashAttention { sinks: Some(&lab.zeros(F32, [2])), ..base }.into(),
                "axis 0 of `sinks` is 2, expected 4",
            ),
        ],
    );
    let base = FlashAttentionBlocks { mask, blocks, tile: [4, 4] };
    check(
        &lab,
        base.clone(),
        vec![(
            FlashAttentionBlocks { tile: [2, 4], ..base }.into(),
            "axis 2 of `blocks` is 2, expected 3",
        )],
    );
}

#[test]
fn caches() {
    let lab = Lab::new();
    let cache = &lab.zeros(Q8_0, [2, 8, 64]);
    let (q, output) = (&lab.zeros(F32, [3, 4, 64]), &lab.zeros(F32, [3, 4, 64]));
    let base = CachedAttention {
        q,
        k_cache: cache,
        v_cache: cache,
        kv_len: &lab.u32(&[3]),
        sinks: None,
        output,
        scale: 0.125,
        window: None,
        softcap: None,
        ring: false,
    };
    check(
        &lab,
        base.clone(),
        vec![
            (
                CachedAttention { v_cache: &lab.zeros(F16, [2, 8, 64]), ..base.clone() }.into(),
                "`v_cache` is f16, expected q8_0 like `k_cache`",
            ),
            (
                CachedAttention { k_cache: &lab.zeros(Q4_0, [2, 8, 64]), ..base.clone() }.into(),
                "`k_cache` is q4_0, expected f32, f16, bf16 or q8_0",
            ),
            (
                CachedAttention { kv_len: &lab.u32(&[3, 3]), ..base.clone() }.into(),
                "axis 0 of `kv_len` is 2, expected 1",
            ),
            (
                CachedAttention { v_cache: &lab.zeros(Q8_0, [2, 9, 64]), ..base }.into(),
                "axis 1 of `v_cache` is 9, expected 8",
            ),
        ],
    );
    let input = &lab.zeros(F32, [3, 2, 64]);
    let base = KvAppend { input, start: &lab.u32(&[0]), cache, ring: true };
    check(
        &lab,
        base.clone(),
        vec![
            (KvAppend { input: q, ..base.clone() }.into(), "axis 0 of `cache` is 2, expected 4"),
            (
                KvAppend { start: &lab.zeros(F32, [1]), ..base }.into(),
                "`start` is f32, expected u32",
            ),
        ],
    );
}

#[test]
fn rows_and_elements() {
    let lab = Lab::new();
    let [x, y] = &[(); 2].map(|()| lab.zeros(F32, [2, 4]));
    let ids = &lab.u32(&[0, 1]);
    let embed = Embed { weight: x, ids, output: y, scale: 1.0 };
    check(
        &lab,
        embed.clone(),
        vec![
            (
                Embed { output: &lab.zeros(F32, [2, 5]), ..embed.clone() }.into(),
                "axis 1 of `output` is 5, expected 4",
            ),
            (Embed { scale: f32::NAN, ..embed }.into(), "scale is NaN, it must be finite"),
        ],
    );
    let copy = Copy { input: x, output: y };
    check(
        &lab,
        copy.clone(),
        vec![
            (
                Copy { output: &lab.zeros(U32, [2, 4]), ..copy.clone() }.into(),
                "`output` is u32, expected f32, f16 or bf16",
            ),
            (
                Copy { input: &lab.zeros(U32, [2, 4]), ..copy.clone() }.into(),
                "`output` is f32, expected u32 like `input`",
            ),
            (
                Copy { input: &lab.zeros(F32, [2, 4, 1]), ..copy }.into(),
                "`output` has 2 axes, expected 3",
            ),
        ],
    );
    let states = &lab.zeros(F32, [2, 3, 4]);
    let pool = Pool { input: states, lengths: ids, output: y, mode: PoolMode::Mean };
    check(
        &lab,
        pool.clone(),
        vec![(
            Pool { lengths: &lab.u32(&[1]), ..pool }.into(),
            "axis 0 of `lengths` is 1, expected 2",
        )],
    );
    let add = Add { a: x, b: x, output: y };
    check(
        &lab,
        add.clone(),
        vec![
            (
                Add { b: &lab.zeros(F32, [3]), ..add.clone() }.into(),
                "axis 0 of `b` is 3, expected 4",
            ),
            (
                Add { b: &lab.zeros(F16, [2, 4]), ..add.clone() }.into(),
                "`b` is f16, expected f32 like `a`",
            ),
            (Add { a: &lab.zeros(F32, [4]), ..add }.into(), "`a` has 1 axes, expected 2"),
        ],
    );
    let gelu = GeluMul { gate: x, up: x, output: y };
    check(
        &lab,
        gelu.clone(),
        vec![(GeluMul { up: &lab.zeros(F32, [4]), ..gelu }.into(), "`up` has 1 axes, expected 2")],
    );
    let softcap = Softcap { input: x, output: y, cap: 30.0 };
    check(
        &lab,
        softcap.clone(),
        vec![(Softcap { cap: 0.0, ..softcap }.into(), "cap is 0, it must be positive")],
    );
}

#[test]
fn sampling() {
    let lab = Lab::new();
    let logits = &lab.zeros(F32, [2, 4]);
    let output = &lab.zeros(U32, [2]);
    let random = &lab.zeros(F32, [2]);
    let base = Sample { logits, random, output, temperature: 1.0, top_k: 0, top_p: 1.0 };
    check(
        &lab,
        base.clone(),
        vec![
            (
                Sample { temperature: -0.5, ..base.clone() }.into(),
                "temperature is -0.5, it must be finite and not negative",
            ),
            (
                Sample { top_p: 0.0, ..base.clone() }.into(),
                "top_p is 0, it must be above 0 and at most 1",
            ),
            (
                Sample { random: &lab.zeros(F32, [1]), ..base }.into(),
                "axis 0 of `random` is 1, expected 2",
            ),
        ],
    );
    let argmax = Argmax { input: logits, output };
    check(
        &lab,
        argmax.clone(),
        vec![
            (Argmax { output: random, ..argmax.clone() }.into(), "`output` is f32, expected u32"),
            (
                Argmax { input: &lab.zeros(F16, [2, 4]), ..argmax }.into(),
                "`input` is f16, expected f32",
            ),
        ],
    );
    let (ids, weights) = (&lab.zeros(U32, [2, 4]), &lab.zeros(F32, [2, 4]));
    let route = MoeRoute { logits, ids, weights, renormalize: true };
    let (more_ids, more_weights) = (&lab.zeros(U32, [2, 5]), &lab.zeros(F32, [2, 5]));
    check(
        &lab,
        route.clone(),
        vec![(
            MoeRoute { ids: more_ids, weights: more_weights, ..route }.into(),
            "axis 1 of `ids` is 5, it must be at most the number of experts",
        )],
    );
}

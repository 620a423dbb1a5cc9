//! Per-head norm and rotary embedding.

use super::{Maker, check};
use kiln_core::ops::{HeadLayout, HeadNormRope, RopePairing};
use kiln_core::{DType, Result, Tensor};

const PAIRINGS: [RopePairing; 3] =
    [RopePairing::Interleaved, RopePairing::Leading, RopePairing::Spanning];

/// Tokens, heads, head dimension, pairs.
const SHAPES: [[usize; 4]; 9] = [
    [1, 1, 2, 1],
    [3, 2, 3, 1],
    [2, 5, 17, 6],
    [4, 2, 64, 32],
    [1, 32, 128, 64],
    [70, 9, 64, 16],
    [5, 1, 72, 18],
    [2, 3, 256, 128],
    [6, 2, 80, 0],
];

/// Where the angles come from.
#[derive(Clone, Copy, Debug)]
enum Angles {
    Positions,
    Factors,
    Tables,
    OneRow,
}

/// One operation with every output.
fn run(
    make: &mut Maker<'_>,
    [x, w]: [DType; 2],
    shape: [usize; 4],
    (pairing, angles): (RopePairing, Angles),
) -> Result<Vec<Tensor>> {
    let [tokens, heads, dim, half] = shape;
    let input = make.float(x, [tokens, heads, dim + 3])?.slice(2, 1..dim + 1)?;
    let weight = make.float(w, [dim])?;
    let mut positions: Vec<u32> = (0..tokens).map(|_| make.random.below(131_072)).collect();
    positions[0] = 131_071;
    let positions = make.device.upload(&positions, [tokens])?;
    let factors: Vec<f32> = (0..half.max(1)).map(|i| [1.0, 1e30, 3.7, 0.25][i % 4]).collect();
    let factors = make.device.upload(&factors, [half.max(1)])?;
    let rows = if matches!(angles, Angles::OneRow) { 1 } else { tokens };
    let tables = [
        make.float(DType::F32, [rows, half.max(1)])?,
        make.float(DType::F32, [rows, half.max(1)])?,
    ];
    let by_position = matches!(angles, Angles::Positions | Angles::Factors);
    let output = make.output(x, [tokens, heads, dim])?;
    let token_major = matches!(pairing, RopePairing::Leading);
    let copy_shape = if token_major { [tokens, heads, dim] } else { [heads, tokens, dim] };
    let output_bf16 = make.output(DType::BF16, copy_shape)?;
    let output_f32 = make.output(DType::F32, [heads, tokens, dim])?;
    // Some tokens are past the end.
    let cache = make.float(x, [heads, 2 + tokens.div_ceil(2), dim])?;
    let start = make.device.upload(&[2u32], [1])?;
    let mut rec = make.device.record();
    rec.push(HeadNormRope {
        input: &input,
        weight: Some(&weight),
        positions: by_position.then_some(&positions),
        freq_factors: matches!(angles, Angles::Factors).then_some(&factors),
        cos: (!by_position).then_some(&tables[0]),
        sin: (!by_position).then_some(&tables[1]),
        cache_start: Some(&start),
        output: Some(&output),
        output_bf16: Some(&output_bf16),
        output_f32: Some(&output_f32),
        cache: Some(&cache),
        pairing,
        half,
        theta: 1e4,
        normalize: true,
        eps: 1e-6,
        copy_layout: if token_major { HeadLayout::TokenMajor } else { HeadLayout::HeadMajor },
    })?;
    rec.finish()?.run()?;
    Ok(vec![output, output_bf16, output_f32, cache])
}

#[test]
fn every_pairing_output_and_source_of_angles() {
    let types = [[DType::F32; 2], [DType::F16, DType::F32], [DType::BF16; 2]];
    for pairing in PAIRINGS {
        for (index, shape) in SHAPES.into_iter().enumerate() {
            for angles in [Angles::Positions, Angles::Factors, Angles::Tables, Angles::OneRow] {
                let types = types[index % 3];
                let case = format!("head_norm_rope {types:?} {shape:?} {pairing:?} {angles:?}");
                check(&case, 3e-7, |make| run(make, types, shape, (pairing, angles)));
            }
        }
    }
}

#[test]
fn plain_rope_of_position_0_is_a_copy() {
    for pairing in PAIRINGS {
        check(&format!("rope at 0 {pairing:?}"), 0.0, |make| {
            let input = make.float(DType::F32, [2, 3, 40])?;
            let positions = make.device.upload(&[0u32, 0], [2])?;
            let output = make.output(DType::F32, [2, 3, 40])?;
            let mut rec = make.device.record();
            rec.push(HeadNormRope {
                input: &input,
                weight: None,
                positions: Some(&positions),
                freq_factors: None,
                cos: None,
                sin: None,
                cache_start: None,
                output: Some(&output),
                output_bf16: None,
                output_f32: None,
                cache: None,
                pairing,
                half: 16,
                theta: 5e5,
                normalize: false,
                eps: 0.0,
                copy_layout: HeadLayout::TokenMajor,
            })?;
            rec.finish()?.run()?;
            assert_eq!(input.to_vec::<f32>()?, output.to_vec::<f32>()?);
            Ok(vec![output])
        });
    }
}

//! How far from the reference a device may be: one table, which `docs/numerics.md` prints.
//!
//! Two figures are bounded for every output, and both must hold:
//! - the normalised mean square error, `sum (got - ref)^2 / sum ref^2`, which sees a bias or noise
//!   over all values;
//! - the scaled largest error, `max |got - ref| / max |ref|`, which sees a single bad value.
//!
//! `u` is the unit roundoff of the type of the output: `2^-24` for f32, `2^-11` for f16, `2^-8` for
//! bf16.

use kiln_core::DType;
use kiln_core::ops::Precision;
use std::fmt::Write;

/// The two bounds of an output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Largest normalised mean square error.
    pub nmse: f64,
    /// Largest error, in units of the largest reference value.
    pub max_abs: f64,
    /// A size of the values below which errors are not scaled down further: where a result happens
    /// to be near zero, its relative error says nothing. In the units of the output.
    pub floor: f64,
    /// Whether a reference of exactly zero must be met exactly.
    pub exact_zeros: bool,
}

/// Operations whose errors have the same sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// One or two rounded operations per value: add, mul, scale, embed.
    Arithmetic,
    /// An exponential or a hyperbolic tangent per value: softmax, gated activations, softcap,
    /// routing weights.
    Transcendental,
    /// A mean of squares over a row: the RMS norm family, pooling.
    Norm,
    /// A mean and a variance over a row.
    LayerNorm,
    /// Rotations by angles of up to 131071 radians.
    Rope,
    /// `Precision::Exact`.
    ExactMatmul,
    /// `Precision::Fast` against f32, f16 and bf16 weights: products of bf16 or tf32 values.
    FastPlainMatmul,
    /// `Precision::Fast` against quantised weights: activations in 8 bits per block.
    FastQuantizedMatmul,
    /// Attention in f32 from f32 keys and values.
    ExactAttention,
    /// Attention with 16-bit queries, keys, values or outputs: probabilities in that type.
    HalfAttention,
    /// Attention against an 8-bit cache: queries in 8 bits per block.
    QuantizedAttention,
    /// Values stored in 8 bits per block of 32.
    QuantizedCache,
    /// A transformer layer of exact products.
    ExactLayer,
    /// A transformer layer of fast products.
    FastLayer,
}

/// A row of the table.
struct Row {
    family: Family,
    ops: &'static str,
    /// Bounds of f32 outputs.
    single: [f64; 2],
    /// Bounds of 16-bit outputs, in units of `u^2` and `u`; `None` where there are none.
    half: Option<[f64; 2]>,
    why: &'static str,
}

/// The bounds of half outputs computed in f32 and rounded once: two correct results differ where a
/// value is next to a rounding tie, then by one unit in the last place.
const ROUNDED_ONCE: Option<[f64; 2]> = Some([1.0 / 16.0, 2.2]);

const TABLE: &[Row] = &[
    Row {
        family: Family::Arithmetic,
        ops: "add, mul, scale, embed",
        single: [1e-13, 1e-6],
        half: ROUNDED_ONCE,
        why: "at most two roundings in f32, one to the output type",
    },
    Row {
        family: Family::Transcendental,
        ops: "gelu_mul, silu_mul, softcap, softmax, the weights of moe_route",
        single: [1e-10, 2e-5],
        half: ROUNDED_ONCE,
        why: "an argument of up to 50 is rounded to f32 before `exp`; a few units in the last \
              place for the function",
    },
    Row {
        family: Family::Norm,
        ops: "rms_norm, rms_norm_mul, rms_norm_triple, post_attn_triple_norm, \
              post_ff_norm_end_layer, moe_post_ff_norm_end_layer, add_rms_norm, pool (mean)",
        single: [1e-11, 1e-5],
        half: ROUNDED_ONCE,
        why: "a sum of up to 4096 squares in f32, in any order",
    },
    Row {
        family: Family::LayerNorm,
        ops: "layer_norm",
        single: [1e-9, 1e-4],
        half: ROUNDED_ONCE,
        why: "the mean may be 64 times the deviation: `E[x^2] - E[x]^2` in f32 is not enough",
    },
    Row {
        family: Family::Rope,
        ops: "head_norm_rope",
        single: [1e-9, 1e-4],
        half: ROUNDED_ONCE,
        why: "angles right to 5e-5 radians at position 131071: a frequency or a product rounded to \
              f32 is off by up to 8e-3 there",
    },
    Row {
        family: Family::ExactMatmul,
        ops: "matmul, gated_matmul, matmul_id with `Precision::Exact`",
        single: [2e-11, 2e-5],
        half: None,
        why: "sums of up to 2112 products in f32, in any order; twice that through an activation",
    },
    Row {
        family: Family::FastPlainMatmul,
        ops: "matmul, gated_matmul, matmul_id with `Precision::Fast`, weights f32, f16, bf16",
        single: [2e-5, 0.02],
        half: None,
        why: "both factors rounded to bf16 (`2 u^2 / 6` for the mean square), sums in f32",
    },
    Row {
        family: Family::FastQuantizedMatmul,
        ops: "matmul, gated_matmul, matmul_id with `Precision::Fast`, quantised weights",
        single: [5e-4, 0.05],
        half: None,
        why: "normal activations in 8 bits per block of 256 lose 5e-5",
    },
    Row {
        family: Family::ExactAttention,
        ops: "cached_attention, f32 queries and cache",
        single: [1e-9, 1e-4],
        half: None,
        why: "scores of up to 50 in f32 before `exp`",
    },
    Row {
        family: Family::HalfAttention,
        ops: "flash_attention; cached_attention with a 16-bit type among queries and cache",
        single: [f64::NAN, f64::NAN],
        half: Some([4.0, 6.0]),
        why: "probabilities and outputs rounded to the coarser of the types",
    },
    Row {
        family: Family::QuantizedAttention,
        ops: "cached_attention, q8_0 cache",
        single: [5e-4, 0.05],
        half: Some([4.0, 6.0]),
        why: "queries in 8 bits per block, as in a fast product; the larger of both columns",
    },
    Row {
        family: Family::QuantizedCache,
        ops: "kv_append to a q8_0 cache",
        single: [1e-4, 0.0095],
        half: None,
        why: "a scale rounded to f16 and codes on either side of a tie: one step of 1/127",
    },
    Row {
        family: Family::ExactLayer,
        ops: "a transformer layer with `Precision::Exact`",
        single: [1e-8, 1e-3],
        half: None,
        why: "the errors of a dozen operations, each within its own bounds",
    },
    Row {
        family: Family::FastLayer,
        ops: "a transformer layer with `Precision::Fast`",
        single: [5e-3, 0.2],
        half: None,
        why: "the same: seven products, each within 5e-4",
    },
];

impl Bound {
    /// The bounds of `values` outputs of a family whose coarsest type is `dtype`.
    ///
    /// Half types get the errors of two roundings to the other side on top, which matter where
    /// values are few.
    pub fn of(family: Family, dtype: DType, values: usize) -> Self {
        let mut bound = Self { nmse: 0.0, max_abs: 0.0, floor: 0.0, exact_zeros: false };
        let Some(row) = TABLE.iter().find(|row| row.family == family) else { return bound };
        let u = dtype.unit_roundoff().unwrap_or(0.0);
        let single = dtype == DType::F32 || !dtype.is_float();
        if !row.single[0].is_nan() && (single || family == Family::QuantizedAttention) {
            [bound.nmse, bound.max_abs] = row.single;
        }
        if let Some([nmse, max_abs]) = row.half.filter(|_| !single) {
            let ties = 8.0 / values.max(1) as f64;
            bound.nmse = bound.nmse.max((nmse + ties) * u * u);
            bound.max_abs = bound.max_abs.max(max_abs * u);
        }
        let zeros = [Family::ExactAttention, Family::HalfAttention, Family::QuantizedAttention];
        bound.exact_zeros = zeros.contains(&family);
        bound
    }

    /// The bounds of a matrix product against weights of a type.
    pub fn matmul(precision: Precision, weight: DType) -> Self {
        let family = match precision {
            Precision::Exact => Family::ExactMatmul,
            Precision::Fast if weight.is_quantized() => Family::FastQuantizedMatmul,
            Precision::Fast => Family::FastPlainMatmul,
        };
        Self::of(family, DType::F32, 0)
    }

    /// The bounds of an attention with these types of queries and of keys and values.
    pub fn attention(query: DType, cache: DType, values: usize) -> Self {
        let roundoff = |dtype: DType| dtype.unit_roundoff().unwrap_or(0.0);
        let coarser = if roundoff(cache) > roundoff(query) { cache } else { query };
        let family = match (coarser, cache) {
            (_, DType::Q8_0) => Family::QuantizedAttention,
            (DType::F32, _) => Family::ExactAttention,
            _ => Family::HalfAttention,
        };
        Self::of(family, coarser, values)
    }

    /// The same bounds with errors measured against values of at least that size.
    pub fn with_floor(self, floor: f64) -> Self {
        Self { floor, ..self }
    }
}

/// The table as Markdown, as `docs/numerics.md` has it.
pub fn markdown() -> String {
    let mut text = String::from(
        "| operations | f32: NMSE | f32: max | f16, bf16: NMSE | f16, bf16: max | because |\n\
         |---|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let single = |value: f64| if value.is_nan() { "".to_owned() } else { format!("{value:e}") };
        let half = |index: usize, unit: &str| {
            row.half.map_or(String::new(), |half| format!("{} {unit}", half[index]))
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            row.ops,
            single(row.single[0]),
            single(row.single[1]),
            half(0, "u^2"),
            half(1, "u"),
            row.why,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_bounds() {
        for row in TABLE {
            let single = Bound::of(row.family, DType::F32, 100);
            let half = Bound::of(row.family, DType::BF16, 100);
            assert!(single.nmse > 0.0 || half.nmse > 0.0, "{:?}", row.family);
            if row.family != Family::FastLayer {
                assert!(single.nmse <= 5e-4 && half.nmse <= 5e-4, "{:?}", row.family);
                assert!(single.max_abs <= 0.05 && half.max_abs <= 0.05, "{:?}", row.family);
            }
        }
    }

    #[test]
    fn the_documentation_prints_this_table() {
        let page = include_str!("../../../docs/numerics.md");
        assert!(page.contains(&markdown()), "docs/numerics.md should have:\n{}", markdown());
    }
}

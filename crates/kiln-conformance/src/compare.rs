//! Comparing an output with what it should be.

use crate::bounds::Bound;
use crate::host::decode;
use crate::outcome::{Difference, Failure, Figures, Problem};
use crate::program::{Agreement, Operand};
use kiln_core::{DType, Shape};

/// What is wrong, and where.
type Mismatch = (Problem, Difference);

/// Compares the bytes of an operand: the figures, or a failure during that.
pub(crate) fn compare(
    operand: &Operand,
    agreement: Agreement,
    [got, expected]: [&[u8]; 2],
    during: &str,
) -> Result<Figures, Box<Failure>> {
    if got.len() != expected.len() {
        let (got, expected) = (got.len(), expected.len());
        return Err(Failure::new(during, Problem::Length { got, expected }));
    }
    let result = match agreement {
        Agreement::Exact => exact(operand, got, expected),
        Agreement::Within(bound) => {
            let (got, expected) = (decode(operand.dtype, got), decode(operand.dtype, expected));
            within(operand.shape, bound, &got, &expected)
        }
    };
    result.map_err(|mismatch| {
        let (problem, difference) = *mismatch;
        let mut failure = Failure::new(during, problem);
        failure.difference = Some(difference);
        failure
    })
}

/// Bit for bit, any NaN equal to any other in float types.
fn exact(operand: &Operand, got: &[u8], expected: &[u8]) -> Result<Figures, Box<Mismatch>> {
    let size = operand.dtype.block_bytes();
    let is_nan = |value: &[u8]| {
        operand.dtype.is_float() && decode(operand.dtype, value).iter().all(|v| v.is_nan())
    };
    let same = |(a, b): &(&[u8], &[u8])| a == b || (is_nan(a) && is_nan(b));
    let blocks = got.chunks_exact(size).zip(expected.chunks_exact(size));
    match blocks.clone().position(|pair| !same(&pair)) {
        None => Ok(Figures::default()),
        Some(block) => {
            let wrong = blocks.skip(block).filter(|pair| !same(pair)).count();
            let range = block * size..(block + 1) * size;
            let (got, expected) = (&got[range.clone()], &expected[range]);
            let index = block * operand.dtype.block_len();
            let [got, expected] = [got, expected].map(|value| show(operand.dtype, value));
            let difference = Difference::new(operand.shape, index, got, expected);
            Err(Box::new((Problem::Bits { wrong }, difference)))
        }
    }
}

fn show(dtype: DType, bytes: &[u8]) -> String {
    let hex: String = bytes.iter().rev().take(8).map(|byte| format!("{byte:02x}")).collect();
    match decode(dtype, bytes).first() {
        Some(value) if dtype.is_float() => format!("{value:e} (0x{hex})"),
        Some(value) if !dtype.is_quantized() => format!("{value}"),
        _ => format!("0x{hex}"),
    }
}

fn within(
    shape: Shape,
    bound: Bound,
    got: &[f64],
    expected: &[f64],
) -> Result<Figures, Box<Mismatch>> {
    let at = |index: usize| {
        Difference::new(shape, index, format!("{:e}", got[index]), format!("{:e}", expected[index]))
    };
    let pairs = || got.iter().copied().zip(expected.iter().copied());
    let special = |(a, b): (f64, f64)| !a.is_finite() || !b.is_finite();
    let alike = |(a, b): (f64, f64)| (a.is_nan() && b.is_nan()) || a == b;
    if let Some(index) = pairs().position(|pair| special(pair) && !alike(pair)) {
        let wrong = pairs().filter(|&pair| special(pair) && !alike(pair)).count();
        return Err(Box::new((Problem::NonFinite { wrong }, at(index))));
    }
    if bound.exact_zeros
        && let Some(index) = pairs().position(|(a, b)| b == 0.0 && a != 0.0)
    {
        return Err(Box::new((Problem::NotZero, at(index))));
    }
    let finite = || pairs().filter(|&pair| !special(pair));
    let largest = finite().fold(bound.floor, |scale, (_, b)| scale.max(b.abs()));
    let energy: f64 = finite().map(|(_, b)| (b * b).max(bound.floor * bound.floor)).sum();
    let error: f64 = finite().map(|(a, b)| (a - b) * (a - b)).sum();
    let ratio = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
    let (worst, distance) = pairs()
        .enumerate()
        .filter(|&(_, pair)| !special(pair))
        .map(|(index, (a, b))| (index, (a - b).abs()))
        .fold((0, 0.0), |worst, other| if other.1 > worst.1 { other } else { worst });
    let figures = Figures {
        nmse: ratio(error, energy),
        nmse_bound: bound.nmse,
        max_abs: ratio(distance, largest),
        max_abs_bound: bound.max_abs,
    };
    if figures.nmse <= bound.nmse && figures.max_abs <= bound.max_abs {
        return Ok(figures);
    }
    Err(Box::new((Problem::Inexact(figures), at(worst))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Bound = Bound { nmse: 1e-4, max_abs: 0.05, floor: 0.0, exact_zeros: true };

    fn check(got: &[f64], expected: &[f64]) -> Result<Figures, Problem> {
        let result = within([got.len()].into(), BOUND, got, expected);
        result.map_err(|mismatch| mismatch.0)
    }

    #[test]
    fn both_figures_are_bounded() {
        assert!(check(&[1.0, -2.0], &[1.0, -2.0]).is_ok());
        let mut got = vec![1.0; 1000];
        got[3] = 1.1;
        assert!(matches!(check(&got, &[1.0; 1000]), Err(Problem::Inexact(f)) if f.nmse < 1e-4));
        let noisy = vec![1.02; 1000];
        assert!(
            matches!(check(&noisy, &[1.0; 1000]), Err(Problem::Inexact(f)) if f.max_abs < 0.05)
        );
    }

    #[test]
    fn special_values_must_be_in_the_same_places() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        assert!(check(&[nan, inf, 1.0], &[nan, inf, 1.0]).is_ok());
        for (got, expected) in [(nan, 1.0), (1.0, nan), (inf, -inf), (inf, nan), (1e300, inf)] {
            let result = check(&[got, 1.0], &[expected, 1.0]);
            assert!(matches!(result, Err(Problem::NonFinite { wrong: 1 })), "{got} {expected}");
        }
    }

    #[test]
    fn zeros_of_the_reference_are_met_exactly() {
        assert_eq!(check(&[1e-30, 1.0], &[0.0, 1.0]), Err(Problem::NotZero));
        assert!(check(&[0.0, 1.0], &[-0.0, 1.0]).is_ok());
        assert!(check(&[0.0, 0.0], &[0.0, 0.0]).is_ok());
    }

    #[test]
    fn exact_agreement_is_bit_for_bit_up_to_nan() {
        let source = crate::program::Source::Temp;
        let agreement = Agreement::Exact;
        let operand = Operand { dtype: DType::F32, shape: [2].into(), source, agreement };
        let bytes = |values: [f32; 2]| crate::host::encode(DType::F32, &values);
        let ok = |a, b| exact(&operand, &bytes(a), &bytes(b)).is_ok();
        assert!(ok([1.0, f32::NAN], [1.0, -f32::NAN]));
        assert!(!ok([1.0, 0.0], [1.0, -0.0]));
        assert!(!ok([1.0, 2.0], [1.0, f32::NAN]));
    }
}

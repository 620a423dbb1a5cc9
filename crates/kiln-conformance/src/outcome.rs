//! What came of a case, as values that can be printed or serialised.

use kiln_core::Shape;
use serde::Serialize;
use std::fmt;

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Every check held.
    Passed {
        /// The figures of the output that came nearest to its bounds.
        worst: Figures,
    },
    /// A check did not hold.
    Failed(Box<Failure>),
    /// The case was not run.
    Skipped {
        /// Why, and how to run it.
        reason: String,
    },
}

/// The figures of an output and their bounds; all zero where every bit must agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Normalised mean square error.
    pub nmse: f64,
    /// Its bound.
    pub nmse_bound: f64,
    /// Largest error in units of the largest reference value.
    pub max_abs: f64,
    /// Its bound.
    pub max_abs_bound: f64,
}

impl Figures {
    /// The larger of both figures in units of its bound: above 1 is a failure.
    pub fn share(&self) -> f64 {
        let share = |value: f64, bound: f64| if value == 0.0 { 0.0 } else { value / bound };
        share(self.nmse, self.nmse_bound).max(share(self.max_abs, self.max_abs_bound))
    }
}

/// Why a case failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// What was being done: `first run`, `second run`, `variant` and so on.
    pub during: String,
    /// The output at fault, as `op.field`.
    pub output: Option<String>,
    /// What was wrong.
    pub problem: Problem,
    /// The value it was seen at: the first wrong one, or the one furthest off.
    pub difference: Option<Difference>,
}

impl Failure {
    /// A failure that no output or value is to blame for.
    pub(crate) fn new(during: &str, problem: Problem) -> Box<Self> {
        let during = during.to_owned();
        Box::new(Self { during, output: None, problem, difference: None })
    }
}

/// A value and what it should have been.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Position in the output, by axis.
    pub index: Vec<usize>,
    /// What the device wrote.
    pub got: String,
    /// What it should have written.
    pub expected: String,
}

impl Difference {
    /// The value at a flat index.
    pub(crate) fn new(shape: Shape, flat: usize, got: String, expected: String) -> Self {
        let mut rest = flat;
        let mut index = vec![0; shape.len()];
        for axis in (0..shape.len()).rev() {
            index[axis] = rest % shape[axis].max(1);
            rest /= shape[axis].max(1);
        }
        Self { index, got, expected }
    }
}

/// The ways to be wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// The device or the recording returned an error.
    Error(String),
    /// The device panicked.
    Panic(String),
    /// The case itself or the reference failed.
    Harness(String),
    /// Outside its bounds.
    Inexact(Figures),
    /// Not the same bits.
    Bits {
        /// Values that differ.
        wrong: usize,
    },
    /// NaN or infinity where there should be none, or the other way round.
    NonFinite {
        /// Values that differ.
        wrong: usize,
    },
    /// Not exactly zero where it must be: a fully masked row.
    NotZero,
    /// Another number of bytes.
    Length {
        /// Bytes read.
        got: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// A byte beside an operand was written.
    WroteOutside {
        /// Bytes from the first byte of the operand.
        offset: isize,
    },
    /// A byte of an input was written.
    WroteInput {
        /// Bytes from the first byte of the operand.
        offset: isize,
    },
    /// The plan lacks the fused operation.
    NotFused {
        /// The operation expected.
        expected: String,
        /// The operations of the plan.
        steps: Vec<String>,
    },
    /// A broken contract was recorded without an error.
    Accepted,
    /// A broken contract gave another error than it should.
    WrongError {
        /// The error.
        got: String,
        /// What it should have been.
        expected: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Error(error) => write!(f, "error: {error}"),
            Problem::Panic(message) => write!(f, "panic: {message}"),
            Problem::Harness(message) => write!(f, "the case or the reference failed: {message}"),
            Problem::Inexact(figures) => write!(
                f,
                "NMSE {:.2e} (bound {:.2e}), scaled largest error {:.2e} (bound {:.2e})",
                figures.nmse, figures.nmse_bound, figures.max_abs, figures.max_abs_bound,
            ),
            Problem::Bits { wrong } => write!(f, "{wrong} values are not the same bits"),
            Problem::NonFinite { wrong } => {
                write!(f, "{wrong} values differ in being finite, infinite or NaN")
            }
            Problem::NotZero => f.write_str("a value that must be exactly zero is not"),
            Problem::Length { got, expected } => write!(f, "{got} bytes, expected {expected}"),
            Problem::WroteOutside { offset } => {
                write!(f, "the byte at offset {offset}, beside the operand, was written")
            }
            Problem::WroteInput { offset } => {
                write!(f, "the byte at offset {offset} of an input was written")
            }
            Problem::NotFused { expected, steps } => {
                write!(f, "the plan has no {expected}, only {}", steps.join(", "))
            }
            Problem::Accepted => f.write_str("a broken contract was accepted"),
            Problem::WrongError { got, expected } => {
                write!(f, "rejected with `{got}`, expected {expected}")
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.during)?;
        if let Some(output) = &self.output {
            write!(f, ", {output}")?;
        }
        write!(f, ": {}", self.problem)?;
        match &self.difference {
            Some(Difference { index, got, expected }) => {
                write!(f, "; at {index:?}: got {got}, expected {expected}")
            }
            None => Ok(()),
        }
    }
}

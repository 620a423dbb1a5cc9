//! One table of cases that checks every Kiln device against the reference.
//!
//! A [`Case`] makes inputs from its seed, runs its operations on a device and on
//! [`kiln_reference`], and compares the outputs within the [`bounds`] of the operation. In every
//! case
//! - operands are views inside larger tensors, with offsets and gaps;
//! - the bytes beside an operand, and those of inputs, may not change;
//! - outputs start as NaN, and the bytes beside an input are NaN, so that a value that is not
//!   written or a read past the end shows;
//! - a second run of the same executable must give the same bits.
//!
//! Further cases compare a device with itself: fused and unfused plans, barriers only at hazards
//! and before every step, prompts in one piece and in chunks, both routes of a product; replay
//! recordings with new data; and record operations that break their contracts, which must fail
//! with the right error.
//!
//! ```
//! let device = kiln_reference::device();
//! let case = &kiln_conformance::cases()[0];
//! let outcome = case.run(&device);
//! assert!(matches!(outcome, kiln_conformance::Outcome::Passed { .. }), "{outcome:?}");
//! ```

pub mod bounds;
mod case;
mod cases;
mod compare;
mod execute;
mod host;
mod outcome;
mod program;
mod reject;
mod rng;
mod stage;
mod table;

pub use case::Case;
pub use outcome::{Difference, Failure, Figures, Outcome, Problem};
pub use table::{CaseReport, Filter, Summary, cases, run_all};

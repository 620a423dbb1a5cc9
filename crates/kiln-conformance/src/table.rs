//! Running the table against a device.

use crate::case::Case;
use crate::execute::Prepared;
use crate::outcome::Outcome;
use kiln_core::Device;
use serde::Serialize;
use std::fmt;
use std::sync::mpsc::sync_channel;

/// Which cases to run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Only those of an operation, one of [`Op::NAMES`](kiln_core::ops::Op::NAMES).
    pub op: Option<String>,
    /// Only those whose name contains this.
    pub name: Option<String>,
    /// Also those that need 4 GiB of device memory each; otherwise they are skipped, and counted.
    pub large: bool,
}

impl Filter {
    /// Whether a case is among those chosen.
    pub fn accepts(&self, case: &Case) -> bool {
        self.op.as_deref().is_none_or(|op| case.op() == op)
            && self.name.as_deref().is_none_or(|part| case.name().contains(part))
    }
}

/// A case and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseReport {
    /// Operation.
    pub op: &'static str,
    /// The way it is computed.
    pub route: String,
    /// Shapes, types and options.
    pub label: String,
    /// The seed of its inputs.
    pub seed: u64,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl CaseReport {
    fn new(case: &Case, outcome: Outcome) -> Self {
        let (route, label) = (case.route().to_owned(), case.label().to_owned());
        Self { op: case.op(), route, label, seed: case.seed(), outcome }
    }

    /// The name of the case.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.op, self.route, self.label)
    }
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match &self.outcome {
            Outcome::Passed { worst } => {
                write!(f, "pass {name} (nmse {:.1e}, max {:.1e})", worst.nmse, worst.max_abs)
            }
            Outcome::Skipped { reason } => write!(f, "skip {name}: {reason}"),
            Outcome::Failed(failure) => write!(
                f,
                "FAIL {name}\n     {failure}\n     seed {:#018x}; to repeat it, filter by its name",
                self.seed,
            ),
        }
    }
}

/// How many cases came out which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Cases in which every check held.
    pub passed: usize,
    /// Cases in which one did not.
    pub failed: usize,
    /// Cases that were not run.
    pub skipped: usize,
}

impl Summary {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed { .. } => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Skipped { .. } => self.skipped += 1,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Every case, in a fixed order.
pub fn cases() -> Vec<Case> {
    crate::cases::all()
}

/// Cases whose inputs and reference are computed ahead of the device.
const AHEAD: usize = 8;

/// Runs the cases a filter accepts, in the order of the table, and reports each as it is done.
///
/// Inputs and reference results are computed on a thread of their own, ahead of the device.
///
/// ```
/// let filter = kiln_conformance::Filter { op: Some("softcap".to_owned()), ..Default::default() };
/// let summary = kiln_conformance::run_all(&kiln_reference::device(), &filter, &mut |_| {});
/// assert_eq!(summary.failed, 0);
/// assert!(summary.passed > 10);
/// ```
pub fn run_all(device: &Device, filter: &Filter, report: &mut dyn FnMut(&CaseReport)) -> Summary {
    let chosen: Vec<Case> = cases().into_iter().filter(|case| filter.accepts(case)).collect();
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Option<Prepared>>(AHEAD);
        let chosen = &chosen;
        scope.spawn(move || {
            for case in chosen {
                let skip = case.is_large() && !filter.large;
                if sender.send((!skip).then(|| case.prepare())).is_err() {
                    return;
                }
            }
        });
        for (case, prepared) in chosen.iter().zip(receiver) {
            let outcome = match prepared {
                None => Outcome::Skipped {
                    reason: "needs 4 GiB of device memory: ask for large cases".to_owned(),
                },
                Some(prepared) => prepared.run(device),
            };
            if case.is_large() {
                // The pool must not keep gigabytes, nor clear them for the next tensor.
                device.trim();
            }
            summary.count(&outcome);
            report(&CaseReport::new(case, outcome));
        }
    });
    summary
}

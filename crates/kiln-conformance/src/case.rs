//! A case: a name, and the body it makes when it is run.

use crate::execute::{self, Prepared};
use crate::outcome::Outcome;
use crate::program::{Broken, Program};
use crate::rng::seed_of;
use kiln_core::Device;
use std::fmt;

type Build = dyn Fn(&mut Program) -> Result<(), Broken> + Send + Sync;

/// One line of the table: an operation on certain inputs, by a certain route.
pub struct Case {
    op: &'static str,
    route: String,
    label: String,
    seed: u64,
    large: bool,
    build: Box<Build>,
}

impl Case {
    pub(crate) fn new(
        op: &'static str,
        route: impl Into<String>,
        label: impl Into<String>,
        build: impl Fn(&mut Program) -> Result<(), Broken> + Send + Sync + 'static,
    ) -> Self {
        let (route, label, build) = (route.into(), label.into(), Box::new(build));
        let mut case = Self { op, route, label, seed: 0, large: false, build };
        case.seed = seed_of(&case.name());
        case
    }

    /// The same case, which needs gigabytes of memory.
    pub(crate) fn large(self) -> Self {
        Self { large: true, ..self }
    }

    /// The operation, one of [`Op::NAMES`](kiln_core::ops::Op::NAMES), or `plan` where a case is
    /// about several.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// The way it is computed, for example `exact mat-vec` or `fused`.
    pub fn route(&self) -> &str {
        &self.route
    }

    /// Shapes, types and options.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The seed of its inputs; it depends on the name alone.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether it needs 4 GiB of device memory. [`run_all`](crate::run_all) skips such a case
    /// unless the filter asks for it.
    pub fn is_large(&self) -> bool {
        self.large
    }

    /// Operation, route and label: unique in the table.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.op, self.route, self.label)
    }

    /// Makes the inputs, computes the reference, and checks the device against it.
    ///
    /// An error and a panic of the device are failures.
    pub fn run(&self, device: &Device) -> Outcome {
        self.prepare().run(device)
    }

    /// The inputs and what should come of them.
    pub(crate) fn prepare(&self) -> Prepared {
        match self.program() {
            Ok(program) => execute::prepare(program),
            Err(broken) => Prepared::broken(broken),
        }
    }

    /// The body: operands with their data, and operations.
    pub(crate) fn program(&self) -> Result<Program, Broken> {
        let mut program = Program::new(self.seed);
        (self.build)(&mut program)?;
        Ok(program)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name()).field("seed", &self.seed).finish()
    }
}

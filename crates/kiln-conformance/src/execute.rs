//! Running the body of a case on a device.

use crate::compare::compare;
use crate::outcome::{Failure, Figures, Outcome, Problem};
use crate::program::{Agreement, Broken, Check, Equality, Program, Slot, Source};
use crate::reject;
use crate::stage::{FINITE_BITS, NAN_BITS, Outputs, Stage, Trespass};
use kiln_core::ops::Op;
use kiln_core::{Barriers, Device, Executable, PlanOptions, Tensor};
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The body of a case with the outputs of the reference, one set for every round.
pub(crate) struct Prepared(Result<(Program, Vec<Outputs>), String>);

const UNFUSED: PlanOptions = PlanOptions { fuse: false, barriers: Barriers::Hazards };
const FUSED: PlanOptions = PlanOptions { fuse: true, barriers: Barriers::Hazards };
const EVERY_STEP: PlanOptions = PlanOptions { fuse: true, barriers: Barriers::EveryStep };

/// Runs of a plan with each kind of barriers: a missing one need not show at once.
const BARRIER_RUNS: usize = 4;

/// Computes the outputs of the reference.
pub(crate) fn prepare(program: Program) -> Prepared {
    if matches!(program.check, Check::Rejected(_)) {
        return Prepared(Ok((program, Vec::new())));
    }
    let outputs = guard(|| {
        let device = kiln_reference::device();
        let mut stage = Stage::new(&device, &program, true).map_err(error("reference"))?;
        let ops = Ops { list: &program.ops, options: UNFUSED, during: "reference" };
        let executable = record(&stage, &device, &program, ops)?;
        play(&mut stage, &program, &executable, (ops.during, NAN_BITS))
    });
    Prepared(match outputs {
        Ok(Ok(outputs)) => Ok((program, outputs)),
        Ok(Err(failure)) => Err(failure.to_string()),
        Err(panic) => Err(format!("the reference panicked: {panic}")),
    })
}

impl Prepared {
    pub(crate) fn broken(broken: Broken) -> Self {
        Self(Err(broken.to_string()))
    }

    pub(crate) fn run(&self, device: &Device) -> Outcome {
        let failed = |during, problem| Outcome::Failed(Failure::new(during, problem));
        let (program, expected) = match &self.0 {
            Ok(prepared) => prepared,
            Err(message) => return failed("preparing", Problem::Harness(message.clone())),
        };
        let outcome = guard(|| match &program.check {
            Check::Rejected(rejection) => reject::run(device, program, rejection),
            _ => match check(device, program, expected) {
                Ok(worst) => Outcome::Passed { worst },
                Err(failure) => Outcome::Failed(failure),
            },
        });
        outcome.unwrap_or_else(|panic| failed("running", Problem::Panic(panic)))
    }
}

/// Runs `f`; the message of a panic is an error.
fn guard<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without a message".to_owned())
    })
}

fn error<E: std::fmt::Display>(during: &str) -> impl Fn(E) -> Box<Failure> {
    move |error| Failure::new(during, Problem::Error(error.to_string()))
}

fn check(
    device: &Device,
    program: &Program,
    expected: &[Outputs],
) -> Result<Figures, Box<Failure>> {
    let stage = Stage::new(device, program, false).map_err(error("uploading"))?;
    let mut bench = Bench { stage, device, program, worst: Figures::default() };
    let ops = |list, options, during| Ops { list, options, during };
    let main = bench.record(ops(&program.ops, FUSED, "first run"))?;
    let first = bench.play(&main, ("first run", NAN_BITS))?;
    bench.agree("first run", (&first, expected), None)?;
    bench.repeat(&main, ("second run", FINITE_BITS), &first, Equality::Bits)?;
    match &program.check {
        Check::Reference | Check::Replay(_) | Check::Rejected(_) => {}
        Check::Variant(list, equality) => {
            bench.variant(ops(list, FUSED, "variant"), &first, *equality)?;
        }
        Check::Fusion(name) => {
            let steps: Vec<_> = main.plan().steps().iter().map(|step| step.op.name()).collect();
            if !steps.contains(name) {
                let steps = steps.into_iter().map(str::to_owned).collect();
                let problem = Problem::NotFused { expected: (*name).to_owned(), steps };
                return Err(Failure::new("planning", problem));
            }
            let plain = ops(&program.ops, UNFUSED, "without fusion");
            bench.variant(plain, &first, Equality::Bits)?;
        }
        Check::Barriers => {
            for _ in 1..BARRIER_RUNS {
                let during = ("with barriers at hazards", NAN_BITS);
                bench.repeat(&main, during, &first, Equality::Bits)?;
            }
            let all = ops(&program.ops, EVERY_STEP, "with a barrier before every step");
            bench.variant(all, &first, Equality::Bits)?;
        }
    }
    Ok(bench.worst)
}

/// A program on the device under test.
struct Bench<'a> {
    stage: Stage,
    device: &'a Device,
    program: &'a Program,
    worst: Figures,
}

impl Bench<'_> {
    fn record(&self, ops: Ops<'_>) -> Result<Executable, Box<Failure>> {
        record(&self.stage, self.device, self.program, ops)
    }

    fn play(
        &mut self,
        executable: &Executable,
        during: (&str, u8),
    ) -> Result<Vec<Outputs>, Box<Failure>> {
        play(&mut self.stage, self.program, executable, during)
    }

    /// Runs once more and compares with the first run.
    fn repeat(
        &mut self,
        executable: &Executable,
        during: (&str, u8),
        first: &[Outputs],
        equality: Equality,
    ) -> Result<(), Box<Failure>> {
        let outputs = self.play(executable, during)?;
        self.agree(during.0, (&outputs, first), Some(equality))
    }

    /// Runs other operations, or the same under another plan, and compares with the first run.
    fn variant(
        &mut self,
        ops: Ops<'_>,
        first: &[Outputs],
        equality: Equality,
    ) -> Result<(), Box<Failure>> {
        let executable = self.record(ops)?;
        self.repeat(&executable, (ops.during, NAN_BITS), first, equality)
    }

    /// Compares all outputs of all rounds; `None` compares with the reference.
    fn agree(
        &mut self,
        during: &str,
        (got, expected): (&[Outputs], &[Outputs]),
        equality: Option<Equality>,
    ) -> Result<(), Box<Failure>> {
        for (round, (got, expected)) in got.iter().zip(expected).enumerate() {
            let during = match round {
                0 => during.to_owned(),
                _ => format!("{during}, round {round}"),
            };
            for ((slot, got), (_, expected)) in got.iter().zip(expected) {
                let operand = &self.program.operands[slot.0];
                let agreement = match equality {
                    Some(Equality::Bits) => Agreement::Exact,
                    Some(Equality::Bounds) | None => operand.agreement,
                };
                let figures = compare(operand, agreement, [got, expected], &during);
                let figures = figures.map_err(|mut failure| {
                    failure.output = Some(self.program.output_name(*slot));
                    failure
                })?;
                if figures.share() > self.worst.share() {
                    self.worst = figures;
                }
            }
        }
        Ok(())
    }
}

/// Operations to record, and what that is called in messages.
#[derive(Clone, Copy)]
struct Ops<'a> {
    list: &'a [Op<Slot>],
    options: PlanOptions,
    during: &'a str,
}

fn record(
    stage: &Stage,
    device: &Device,
    program: &Program,
    ops: Ops<'_>,
) -> Result<Executable, Box<Failure>> {
    let mut rec = device.record();
    let tensors = stage.bind(program, &rec).map_err(error(ops.during))?;
    for op in ops.list {
        let op: Result<Op<Tensor>, Infallible> = op.try_map(|_, slot| Ok(tensors[slot.0].clone()));
        let Ok(op) = op;
        rec.push(op).map_err(error(ops.during))?;
    }
    rec.finish_with(ops.options).map_err(error(ops.during))
}

/// Runs an executable, once for every round, and reads the outputs of each. Outputs start from a
/// repeated byte.
fn play(
    stage: &mut Stage,
    program: &Program,
    executable: &Executable,
    (during, fill): (&str, u8),
) -> Result<Vec<Outputs>, Box<Failure>> {
    let rounds: &[Vec<(Slot, Vec<u8>)>] = match &program.check {
        Check::Replay(rounds) => rounds,
        _ => &[],
    };
    for &(slot, _) in rounds.iter().flatten() {
        if let Source::Host(bytes, _) = &program.operands[slot.0].source {
            stage.write(slot, bytes).map_err(error(during))?;
        }
    }
    stage.reset(fill).map_err(error(during))?;
    let mut all = Vec::with_capacity(1 + rounds.len());
    for round in std::iter::once(&Vec::new()).chain(rounds) {
        for (slot, bytes) in round {
            stage.write(*slot, bytes).map_err(error(during))?;
        }
        executable.run().map_err(error(during))?;
        let outputs = stage.collect().map_err(error(during))?;
        all.push(outputs.map_err(|trespass| trespassed(program, during, &trespass))?);
    }
    Ok(all)
}

fn trespassed(program: &Program, during: &str, trespass: &Trespass) -> Box<Failure> {
    let Trespass { slot, inside, offset, .. } = *trespass;
    let problem =
        if inside { Problem::WroteInput { offset } } else { Problem::WroteOutside { offset } };
    let name = match reject::field(program, slot) {
        Some(_) if program.is_written(slot) => program.output_name(slot),
        Some(field) => field.to_owned(),
        None => format!("operand {}", slot.0),
    };
    let mut failure = Failure::new(during, problem);
    failure.output = Some(name);
    failure
}

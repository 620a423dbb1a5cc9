//! Backends that are wrong on purpose: the table must catch each of them.

use half::{bf16, f16};
use kiln_conformance::{Case, Outcome, Problem, cases};
use kiln_core::backend::{Backend, Buffer, Execute};
use kiln_core::ops::Op;
use kiln_core::{DType, Device, Error, Plan, Result, Shape, SharedBytes, Tensor, Unsupported};
use kiln_reference::ReferenceBackend;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What goes wrong, in the outputs of the last step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Every value is the next larger one of its type.
    NextValue,
    /// Every value is larger by this factor.
    Factor(f32),
    /// One value is off by more than half of the largest.
    OneValue,
    /// The last value keeps what was there before the run.
    Unwritten,
    /// The byte after the output is written.
    AfterEnd,
    /// The byte before the output is written.
    BeforeStart,
    /// The first input is written.
    Input,
    /// The second run differs in one value.
    SecondRun,
    /// The outputs of the first run come out of every run.
    Stale,
    Panic,
    Error,
    Unsupported,
    /// Fused operations have no kernels.
    NoFusion,
}

struct Wrong {
    inner: ReferenceBackend,
    fault: Fault,
}

impl Backend for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }

    fn description(&self) -> String {
        format!("{:?}", self.fault)
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Buffer>> {
        self.inner.allocate(bytes)
    }

    fn import(&self, dtype: DType, shape: Shape, bytes: SharedBytes) -> Result<Box<dyn Buffer>> {
        self.inner.import(dtype, shape, bytes)
    }

    fn supports(&self, op: &Op<Tensor>) -> Result<(), Unsupported> {
        let fused = ["rms_norm_mul", "add_rms_norm", "gated_matmul"].contains(&op.name());
        if self.fault == Fault::Unsupported || (self.fault == Fault::NoFusion && fused) {
            let problem = op.describe();
            return Err(Unsupported { op: op.name(), problem, backend: "wrong" });
        }
        Ok(())
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Box<dyn Execute>> {
        let inner = self.inner.compile(Arc::clone(&plan))?;
        let (fault, runs) = (self.fault, AtomicUsize::new(0));
        Ok(Box::new(WrongPlan { inner, plan, fault, runs, first: Default::default() }))
    }
}

struct WrongPlan {
    inner: Box<dyn Execute>,
    plan: Arc<Plan>,
    fault: Fault,
    runs: AtomicUsize,
    first: std::sync::Mutex<Option<Vec<Vec<u8>>>>,
}

fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = vec![0; tensor.bytes()];
    tensor.read_bytes(&mut bytes)?;
    Ok(bytes)
}

impl WrongPlan {
    /// Operands of the last step that writes outside the arena.
    fn operands(&self, written: bool) -> Vec<Tensor> {
        let steps = self.plan.steps().iter().rev();
        let operands = |op: &Op<Tensor>| {
            let all = op.operands().into_iter();
            let chosen =
                all.filter(|(role, t)| role.access.writes() == written && !t.is_temporary());
            chosen.map(|(_, tensor)| tensor).collect::<Vec<_>>()
        };
        steps.map(|step| operands(&step.op)).find(|found| !found.is_empty()).unwrap_or_default()
    }

    fn poke(&self, tensor: &Tensor, offset: usize) -> Result<()> {
        let Some(buffer) = tensor.storage().buffer() else { return Ok(()) };
        let mut byte = [0];
        buffer.read(offset, &mut byte)?;
        buffer.write(offset, &[byte[0] ^ 0x40])
    }
}

impl Execute for WrongPlan {
    fn run(&self) -> Result<()> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let outputs = self.operands(true);
        let before = outputs.iter().map(bytes_of).collect::<Result<Vec<_>>>()?;
        self.inner.run()?;
        let Some(output) = outputs.first() else { return Ok(()) };
        let mut bytes = bytes_of(output)?;
        match self.fault {
            Fault::NextValue => each(output.dtype(), &mut bytes, |x| x, true),
            Fault::Factor(factor) => each(output.dtype(), &mut bytes, |x| x * factor, false),
            Fault::OneValue => spoil(output.dtype(), &mut bytes),
            Fault::SecondRun if run > 0 => spoil(output.dtype(), &mut bytes),
            Fault::Unwritten => {
                let last = bytes.len() - output.dtype().block_bytes();
                bytes[last..].copy_from_slice(&before[0][last..]);
            }
            Fault::AfterEnd => self.poke(output, output.byte_range().end)?,
            Fault::BeforeStart => self.poke(output, output.offset() - 1)?,
            Fault::Input => {
                if let Some(input) = self.operands(false).first() {
                    self.poke(input, input.offset())?;
                }
            }
            Fault::Stale => {
                let mut first = self.first.lock().unwrap();
                let mut now = outputs.iter().map(bytes_of).collect::<Result<Vec<_>>>()?;
                now = first.get_or_insert(now).clone();
                bytes = now.swap_remove(0);
            }
            Fault::Panic => panic!("on purpose"),
            Fault::Error => {
                let (device, problem) = ("wrong".to_owned(), "on purpose".to_owned());
                return Err(Error::Device { device, problem });
            }
            Fault::SecondRun | Fault::Unsupported | Fault::NoFusion => {}
        }
        output.write_bytes(&bytes)
    }

    fn profile(&self) -> Result<Vec<Duration>> {
        self.inner.profile()
    }
}

/// Changes every float value: by `f`, or to the next in its type.
fn each(dtype: DType, bytes: &mut [u8], f: impl Fn(f32) -> f32, next: bool) {
    for value in bytes.chunks_exact_mut(dtype.block_bytes()) {
        match (dtype, &mut *value) {
            (DType::F32, &mut [a, b, c, d]) => {
                let x = f(f32::from_le_bytes([a, b, c, d]));
                let x = if next && x.is_finite() { x.next_up() } else { x };
                value.copy_from_slice(&x.to_le_bytes());
            }
            (DType::F16, &mut [a, b]) => {
                let x = f16::from_f32(f(f16::from_le_bytes([a, b]).to_f32()));
                value.copy_from_slice(&x.to_bits().wrapping_add(next.into()).to_le_bytes());
            }
            (DType::BF16, &mut [a, b]) => {
                let x = bf16::from_f32(f(bf16::from_le_bytes([a, b]).to_f32()));
                value.copy_from_slice(&x.to_bits().wrapping_add(next.into()).to_le_bytes());
            }
            (DType::U8 | DType::U32, _) => value[0] ^= u8::from(next),
            _ => value[2] = value[2].wrapping_add(u8::from(next)),
        }
    }
}

/// Makes the value in the middle wrong by more than half of the largest.
fn spoil(dtype: DType, bytes: &mut [u8]) {
    let size = dtype.block_bytes();
    let at = bytes.len() / size / 2 * size;
    let float = |value: &[u8]| match *value {
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        [a, b] if dtype == DType::F16 => f16::from_le_bytes([a, b]).to_f32(),
        [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
        _ => 0.0,
    };
    if !dtype.is_float() {
        // A code of a block; the lowest bit of an integer.
        bytes[at + if dtype.is_quantized() { 5 } else { 0 }] ^=
            if dtype.is_quantized() { 0x60 } else { 1 };
        return;
    }
    let finite = bytes.chunks_exact(size).map(float).filter(|x| x.is_finite());
    let largest = finite.fold(0.0f32, |a, b| a.max(b.abs()));
    let old = float(&bytes[at..at + size]);
    let step = if largest == 0.0 { 1.0 } else { 0.6 * largest };
    let new = match old {
        x if !x.is_finite() => 0.0,
        x if x > 0.0 => x - step,
        x => x + step,
    };
    let encoded = match dtype {
        DType::F32 => new.to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(new).to_le_bytes().to_vec(),
        _ => bf16::from_f32(new).to_le_bytes().to_vec(),
    };
    bytes[at..at + size].copy_from_slice(&encoded);
}

fn numeric() -> impl Iterator<Item = Case> {
    cases().into_iter().filter(|case| case.route() != "rejected" && !case.is_large())
}

/// Runs every `step`-th case and returns those that passed.
fn survivors(fault: Fault, step: usize, chosen: impl Fn(&Case) -> bool) -> Vec<String> {
    let device = Device::new(Wrong { inner: ReferenceBackend::default(), fault });
    let cases = numeric().filter(chosen).step_by(step);
    let outcomes = cases.map(|case| (case.run(&device), case.name()));
    let mut run = 0;
    let passed = outcomes
        .inspect(|_| run += 1)
        .filter_map(|(outcome, name)| matches!(outcome, Outcome::Passed { .. }).then_some(name));
    let passed = passed.collect();
    assert!(run >= 10, "{fault:?}: only {run} cases");
    passed
}

#[track_caller]
fn caught(fault: Fault, step: usize, chosen: impl Fn(&Case) -> bool) {
    let passed = survivors(fault, step, chosen);
    assert!(passed.is_empty(), "{fault:?} passed:\n{}", passed.join("\n"));
}

#[test]
fn one_wrong_value() {
    caught(Fault::OneValue, 7, |_| true);
}

#[test]
fn a_value_left_unwritten() {
    // A cache keeps what is not written; in place the old value is an input.
    let written =
        |case: &Case| !case.label().contains("in place") && !case.label().contains("append");
    let cached = ["kv_append", "head_norm_rope"];
    caught(Fault::Unwritten, 7, |case| {
        written(case) && !cached.contains(&case.op()) && case.op() != "plan"
    });
}

#[test]
fn writes_beside_an_output() {
    caught(Fault::AfterEnd, 11, |_| true);
    caught(Fault::BeforeStart, 11, |_| true);
}

#[test]
fn a_written_input() {
    // Weights are imported: writing them is an error, which is caught as well.
    // Where the last step reads what another wrote, the input is an output.
    let chained = |case: &Case| {
        let step = case.route().contains("append and attend");
        case.op() == "plan" || case.route() == "replay" || step
    };
    let apart = |case: &Case| !case.label().contains("in place") && !chained(case);
    caught(Fault::Input, 13, |case| apart(case));
}

#[test]
fn a_second_run_that_differs() {
    caught(Fault::SecondRun, 11, |_| true);
}

#[test]
fn outputs_of_an_earlier_run() {
    caught(Fault::Stale, 1, |case| case.label().contains("replay") || case.route() == "replay");
}

#[test]
fn the_next_value() {
    let exact = ["copy", "argmax", "sample", "flash_attention_blocks"];
    caught(Fault::NextValue, 5, |case| exact.contains(&case.op()));
    caught(Fault::NextValue, 3, |case| case.op() == "kv_append" && !case.label().contains("q8_0"));
    // In f32 the next value is as right as the value itself.
    let f32_norm = |case: &Case| {
        // The norm of a single value without a bias is zero.
        let layer = case.op() == "layer_norm" && case.label().starts_with("f32 [1, 1]");
        let norm = case.op().contains("norm") && case.op() != "head_norm_rope";
        norm && !layer && case.label().starts_with("f32 [")
    };
    let count = numeric().filter(|case| f32_norm(case)).count();
    assert_eq!(survivors(Fault::NextValue, 1, f32_norm).len(), count);
}

#[test]
fn a_small_factor() {
    let f32_ops = ["rms_norm", "layer_norm", "softmax", "gelu_mul", "scale", "softcap"];
    caught(Fault::Factor(1.0002), 3, |case| {
        f32_ops.contains(&case.op())
            && case.label().starts_with("f32 [")
            && !case.label().starts_with("f32 [1, 1]")
    });
    caught(Fault::Factor(1.0001), 5, |case| {
        case.op().contains("matmul") && case.route().starts_with("exact")
    });
    // Lengths that give NaN, whatever the factor.
    let invalid = ["length 3 of", "length 0 of", "length 65 of 64", "length 4294967295"];
    let of_130 = ["length 0", "length 131", "length 3000000000"];
    caught(Fault::Factor(1.1), 5, |case| {
        ["flash_attention", "cached_attention"].contains(&case.op())
            && !invalid.iter().any(|length| case.label().contains(length))
            && !of_130.iter().any(|length| case.label().ends_with(length))
    });
}

#[test]
fn panics_and_errors_are_failures_and_end_nothing() {
    let device = |fault| Device::new(Wrong { inner: ReferenceBackend::default(), fault });
    let case = numeric().find(|case| case.op() == "rms_norm").unwrap();
    let problem = |fault| match case.run(&device(fault)) {
        Outcome::Failed(failure) => failure.problem,
        other => panic!("{other:?}"),
    };
    assert_eq!(problem(Fault::Panic), Problem::Panic("on purpose".to_owned()));
    let error = |fault, part: &str| matches!(problem(fault), Problem::Error(message) if message.contains(part));
    assert!(error(Fault::Error, "on purpose"));
    assert!(error(Fault::Unsupported, "no kernel"));
}

#[test]
fn fusion_must_take_place() {
    let fused = ["rms_norm_mul", "add_rms_norm", "gated_matmul"];
    caught(Fault::NoFusion, 1, |case| fused.contains(&case.op()) && case.route() == "fused");
}

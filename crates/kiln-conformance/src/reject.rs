//! Recordings that must fail, and how.

use crate::outcome::{Failure, Outcome, Problem};
use crate::program::{Broken, Program, Slot, Source, View, roles};
use crate::stage;
use kiln_core::ops::Op;
use kiln_core::{DType, Device, Error, OpError, Recording, Shape, SharedBytes, Tensor};
use std::convert::Infallible;
use std::fmt;

/// The variants of [`OpError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Rank,
    Extent,
    ExtentRule,
    DType,
    DTypeLike,
    Layout,
    Alias,
    Param,
    Combination,
    Foreign,
    Unwritten,
    ReadOnly,
}

/// What is wrong with the recording besides its operations.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Flaw {
    /// Nothing: the operation itself is wrong.
    None,
    /// An operand of another shape.
    Shape(Slot, Shape),
    /// An operand of another type.
    DType(Slot, DType),
    /// An operand of another device.
    ForeignDevice(Slot),
    /// A temporary of another recording.
    ForeignTemp(Slot),
    /// A temporary that nothing wrote.
    Unwritten(Slot),
    /// An imported weight.
    ReadOnly(Slot),
    /// Two operands share memory, the second that many values later.
    Alias(Slot, Slot, usize),
}

/// A flaw and the errors that may report it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rejection {
    pub(crate) flaw: Flaw,
    pub(crate) kinds: &'static [Kind],
    /// The argument or parameter the error must name, where it is certain.
    pub(crate) names: Option<&'static str>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kinds)?;
        match self.names {
            Some(name) => write!(f, " naming `{name}`"),
            None => Ok(()),
        }
    }
}

impl Rejection {
    fn allows(&self, error: &OpError) -> bool {
        let (kind, name) = describe(error);
        self.kinds.contains(&kind) && self.names.is_none_or(|expected| expected == name)
    }
}

/// The variant of an error and the tensor or parameter it names.
fn describe(error: &OpError) -> (Kind, &'static str) {
    match error {
        OpError::Rank { tensor, .. } => (Kind::Rank, tensor),
        OpError::Extent { tensor, .. } => (Kind::Extent, tensor),
        OpError::ExtentRule { tensor, .. } => (Kind::ExtentRule, tensor),
        OpError::DType { tensor, .. } => (Kind::DType, tensor),
        OpError::DTypeLike { tensor, .. } => (Kind::DTypeLike, tensor),
        OpError::Layout { tensor, .. } => (Kind::Layout, tensor),
        OpError::Alias { output, .. } => (Kind::Alias, output),
        OpError::Param { param, .. } => (Kind::Param, param),
        OpError::Combination { tensor, .. } => (Kind::Combination, tensor),
        OpError::Foreign { tensor, .. } => (Kind::Foreign, tensor),
        OpError::Unwritten { tensor, .. } => (Kind::Unwritten, tensor),
        OpError::ReadOnly { tensor, .. } => (Kind::ReadOnly, tensor),
    }
}

/// Records the operations of a program with a flaw and expects the error.
pub(crate) fn run(device: &Device, program: &Program, rejection: &Rejection) -> Outcome {
    let failed = |problem| Outcome::Failed(Failure::new("recording", problem));
    match record(device, program, rejection) {
        Err(broken) => failed(Problem::Harness(broken.to_string())),
        Ok(Ok(())) => failed(Problem::Accepted),
        Ok(Err(Error::Op(error))) if rejection.allows(&error) => {
            Outcome::Passed { worst: Default::default() }
        }
        Ok(Err(error)) => {
            failed(Problem::WrongError { got: error.to_string(), expected: rejection.to_string() })
        }
    }
}

fn record(
    device: &Device,
    program: &Program,
    rejection: &Rejection,
) -> Result<Result<(), Error>, Broken> {
    let mut rec = device.record();
    let tensors = bind(device, program, rejection, &rec)?;
    for op in &program.ops {
        let op: Result<Op<Tensor>, Infallible> = op.try_map(|_, slot| Ok(tensors[slot.0].clone()));
        let Ok(op) = op;
        if let Err(error) = rec.push(op) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

fn bind(
    device: &Device,
    program: &Program,
    rejection: &Rejection,
    rec: &Recording,
) -> Result<Vec<Tensor>, Broken> {
    let mut tensors: Vec<Tensor> = Vec::new();
    for (index, operand) in program.operands.iter().enumerate() {
        let slot = Slot(index);
        let (dtype, shape) = (operand.dtype, operand.shape);
        let tensor = match (&rejection.flaw, &operand.source) {
            (Flaw::Shape(s, shape), _) if *s == slot => device.tensor(dtype, *shape)?,
            (Flaw::DType(s, dtype), _) if *s == slot => device.tensor(*dtype, shape)?,
            (Flaw::ForeignDevice(s), _) if *s == slot => {
                kiln_reference::device().tensor(dtype, shape)?
            }
            (Flaw::ForeignTemp(s), _) if *s == slot => device.record().temp(dtype, shape)?,
            (Flaw::Unwritten(s), _) if *s == slot => rec.temp(dtype, shape)?,
            (Flaw::ReadOnly(s), _) if *s == slot => {
                let values: usize = shape.iter().product();
                let bytes = vec![0; dtype.row_bytes(values).ok_or(Broken::Shape(shape))?];
                device.import(dtype, shape, SharedBytes::from_vec(bytes))?
            }
            (_, Source::View(of, view)) => stage::apply(&tensors[of.0], view)?,
            (_, Source::Temp) => rec.temp(dtype, shape)?,
            _ => device.tensor(dtype, shape)?,
        };
        tensors.push(tensor);
    }
    if let Flaw::Alias(a, b, shift) = rejection.flaw {
        let operands = [&program.operands[a.0], &program.operands[b.0]];
        let [first, second] = operands.map(|operand| operand.shape.iter().product::<usize>());
        let base = device.tensor(operands[0].dtype, [first.max(shift + second)])?;
        let place = |start, values, shape: Shape| {
            stage::apply(&base.slice(0, start..start + values)?, &View::Reshape(shape))
        };
        tensors[a.0] = place(0, first, operands[0].shape)?;
        tensors[b.0] = place(shift, second, operands[1].shape)?;
    }
    Ok(tensors)
}

/// The name of a slot in the operations of a program.
pub(crate) fn field(program: &Program, slot: Slot) -> Option<&'static str> {
    let all = program.ops.iter().flat_map(roles);
    all.into_iter().find(|(_, s)| *s == slot).map(|(role, _)| role.tensor)
}

//! What a case runs: operands with their host data, operations on them, and what to check.

use crate::bounds::Bound;
use crate::host::{self, Blocks};
use crate::reject::Rejection;
use crate::rng::{Dist, Rng};
use kiln_core::ops::{Access, Op, Role};
use kiln_core::quant::QuantError;
use kiln_core::{DType, Shape};
use std::convert::Infallible;
use std::fmt;
use std::ops::Range;

/// An operand of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) usize);

/// How an operand lies in the larger tensor it is a view of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Without gaps, 64 values (2 blocks) from the start.
    Guarded,
    /// Without gaps, 37 values (1 block) from the start: aligned to an element only.
    Unaligned,
    /// Gaps after every row and every outer axis.
    Strided,
    /// The two innermost outer axes exchanged in memory; `Strided` below rank 3.
    Swapped,
    /// Four rows, far enough apart that the last starts past 2^31 elements or bytes.
    Far,
}

impl Layout {
    /// The layouts that every operand can have, by turns.
    pub(crate) fn turn(index: usize) -> Self {
        [Layout::Guarded, Layout::Strided, Layout::Unaligned, Layout::Swapped][index % 4]
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Guarded => "guarded",
            Layout::Unaligned => "unaligned",
            Layout::Strided => "strided",
            Layout::Swapped => "swapped",
            Layout::Far => "far",
        })
    }
}

/// How a weight reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightSource {
    /// Imported whole.
    Imported,
    /// A slice along the first axis of a larger imported weight.
    Sliced,
    /// Uploaded into a view of a larger tensor.
    Uploaded,
}

impl WeightSource {
    pub(crate) fn turn(index: usize) -> Self {
        [WeightSource::Imported, WeightSource::Sliced, WeightSource::Uploaded][index % 3]
    }
}

impl fmt::Display for WeightSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WeightSource::Imported => "imported",
            WeightSource::Sliced => "sliced",
            WeightSource::Uploaded => "uploaded",
        })
    }
}

/// A view of another operand.
#[derive(Clone, Debug)]
pub(crate) enum View {
    Slice(usize, Range<usize>),
    Reshape(Shape),
    Transpose(usize, usize),
}

/// Where the bytes of an operand come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The host.
    Host(Vec<u8>, Layout),
    /// Nowhere: an output, filled with the bits of NaN before each run.
    Garbage(Layout),
    /// The host, as a read-only weight; the leading axis of the imported tensor has this many
    /// entries before and after.
    Import { bytes: Vec<u8>, around: usize },
    /// A temporary of the plan.
    Temp,
    /// Another operand.
    View(Slot, View),
}

/// How an output must agree with another computation of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Agreement {
    /// Bit for bit, any NaN equal to any other.
    Exact,
    /// Within bounds.
    Within(Bound),
}

#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    pub(crate) source: Source,
    pub(crate) agreement: Agreement,
}

/// How two computations on the device itself must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Equality {
    /// Bit for bit.
    Bits,
    /// Within the bounds of the outputs.
    Bounds,
}

/// What is checked. In every case but `Rejected` the outputs must agree with the reference, a
/// second run must give the same bits and no byte outside the outputs may change.
#[derive(Clone, Debug)]
pub(crate) enum Check {
    /// Nothing more.
    Reference,
    /// Other operations give the same outputs.
    Variant(Vec<Op<Slot>>, Equality),
    /// With fusion the plan has this operation, and the bits are those of the plan without.
    Fusion(&'static str),
    /// A barrier before every step changes no bit; checked over several runs.
    Barriers,
    /// Runs again with new host data, without recording again; caches and outputs stay.
    Replay(Vec<Vec<(Slot, Vec<u8>)>>),
    /// Recording fails with a certain error.
    Rejected(Rejection),
}

/// Why a case could not be made.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Quant(#[from] QuantError),
    #[error(transparent)]
    Device(#[from] kiln_core::Error),
    #[error("the case asks for a tensor that cannot be: {0}")]
    Shape(Shape),
}

/// The body of a case.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) rng: Rng,
    pub(crate) operands: Vec<Operand>,
    pub(crate) ops: Vec<Op<Slot>>,
    pub(crate) check: Check,
    layout: Layout,
}

impl Program {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            operands: Vec::new(),
            ops: Vec::new(),
            check: Check::Reference,
            layout: Layout::Guarded,
        }
    }

    /// The layout of the operands made from now on.
    pub(crate) fn layout(&mut self, layout: Layout) {
        self.layout = layout;
    }

    fn add(&mut self, dtype: DType, shape: Shape, source: Source) -> Slot {
        let agreement = Agreement::Exact;
        self.operands.push(Operand { dtype, shape, source, agreement });
        Slot(self.operands.len() - 1)
    }

    /// Random values of a float type.
    pub(crate) fn float(&mut self, dtype: DType, shape: impl Into<Shape>, dist: Dist) -> Slot {
        let shape = shape.into();
        let values = self.rng.values(shape.iter().product(), dist);
        self.floats(dtype, shape, &values)
    }

    /// Given values in a float type.
    pub(crate) fn floats(&mut self, dtype: DType, shape: impl Into<Shape>, values: &[f32]) -> Slot {
        self.bytes(dtype, shape, host::encode(dtype, values))
    }

    /// Given integers.
    pub(crate) fn ints(&mut self, shape: impl Into<Shape>, values: &[u32]) -> Slot {
        self.bytes(DType::U32, shape, ints(values))
    }

    /// Given bytes of any type.
    pub(crate) fn bytes(&mut self, dtype: DType, shape: impl Into<Shape>, bytes: Vec<u8>) -> Slot {
        let layout = self.layout;
        self.add(dtype, shape.into(), Source::Host(bytes, layout))
    }

    /// A random weight of any weight type, imported whole.
    pub(crate) fn weight(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Slot, Broken> {
        self.weight_from(dtype, shape, WeightSource::Imported, Blocks::Mixed)
    }

    /// A random weight of any weight type.
    pub(crate) fn weight_from(
        &mut self,
        dtype: DType,
        shape: impl Into<Shape>,
        source: WeightSource,
        blocks: Blocks,
    ) -> Result<Slot, Broken> {
        let shape = shape.into();
        let around = usize::from(source == WeightSource::Sliced);
        let inner: usize = shape[1..].iter().product();
        let values = (shape[0] + 2 * around) * inner;
        let bytes = host::weight_bytes(dtype, values, blocks, &mut self.rng)?;
        let source = match source {
            WeightSource::Uploaded => Source::Host(bytes, Layout::Unaligned),
            WeightSource::Imported | WeightSource::Sliced => Source::Import { bytes, around },
        };
        Ok(self.add(dtype, shape, source))
    }

    /// An output, checked against the reference.
    pub(crate) fn output(
        &mut self,
        dtype: DType,
        shape: impl Into<Shape>,
        agreement: Agreement,
    ) -> Slot {
        let layout = self.layout;
        let slot = self.add(dtype, shape.into(), Source::Garbage(layout));
        self.agree(slot, agreement)
    }

    /// Sets how an operand that is written must agree with the reference.
    pub(crate) fn agree(&mut self, slot: Slot, agreement: Agreement) -> Slot {
        self.operands[slot.0].agreement = agreement;
        slot
    }

    /// A temporary of the plan.
    pub(crate) fn temp(&mut self, dtype: DType, shape: impl Into<Shape>) -> Slot {
        self.add(dtype, shape.into(), Source::Temp)
    }

    /// Indices `range` of an axis of another operand.
    pub(crate) fn slice(&mut self, of: Slot, axis: usize, range: Range<usize>) -> Slot {
        let operand = &self.operands[of.0];
        let (dtype, mut extents) = (operand.dtype, operand.shape.to_vec());
        extents[axis] = range.len();
        let shape = Shape::from_slice(&extents).unwrap_or(operand.shape);
        self.add(dtype, shape, Source::View(of, View::Slice(axis, range)))
    }

    /// Another operand under another shape.
    pub(crate) fn reshape(&mut self, of: Slot, shape: impl Into<Shape>) -> Slot {
        let shape = shape.into();
        self.add(self.operands[of.0].dtype, shape, Source::View(of, View::Reshape(shape)))
    }

    /// Another operand with two outer axes exchanged.
    pub(crate) fn transpose(&mut self, of: Slot, a: usize, b: usize) -> Slot {
        let operand = &self.operands[of.0];
        let (dtype, mut extents) = (operand.dtype, operand.shape.to_vec());
        extents.swap(a, b);
        let shape = Shape::from_slice(&extents).unwrap_or(operand.shape);
        self.add(dtype, shape, Source::View(of, View::Transpose(a, b)))
    }

    /// Appends an operation.
    pub(crate) fn push(&mut self, op: Op<Slot>) {
        self.ops.push(op);
    }

    /// The operand whose memory a slot is.
    pub(crate) fn root(&self, slot: Slot) -> Slot {
        match self.operands[slot.0].source {
            Source::View(of, _) => self.root(of),
            _ => slot,
        }
    }

    /// Every operation, those of the variant too.
    pub(crate) fn all_ops(&self) -> impl Iterator<Item = &Op<Slot>> {
        let variant: &[Op<Slot>] = match &self.check {
            Check::Variant(ops, _) => ops,
            _ => &[],
        };
        self.ops.iter().chain(variant)
    }

    /// Whether any operation writes the memory of a slot.
    pub(crate) fn is_written(&self, slot: Slot) -> bool {
        self.is_used(slot, Access::writes)
    }

    /// Whether any operation writes a part of the memory of a slot and keeps the rest.
    pub(crate) fn is_updated(&self, slot: Slot) -> bool {
        self.is_used(slot, |access| access == Access::Update)
    }

    fn is_used(&self, slot: Slot, how: impl Fn(Access) -> bool) -> bool {
        let mut operands = self.all_ops().flat_map(roles);
        operands.any(|(role, s)| how(role.access) && self.root(s) == slot)
    }

    /// The field names under which a slot's memory is written, for messages.
    pub(crate) fn output_name(&self, slot: Slot) -> String {
        for op in self.all_ops() {
            for (Role { op, tensor, access }, s) in roles(op) {
                if access != Access::Read && self.root(s) == slot {
                    return format!("{op}.{tensor}");
                }
            }
        }
        format!("operand {}", slot.0)
    }

    /// Exact values of an operand that has host data.
    pub(crate) fn host_values(&self, slot: Slot) -> Vec<f64> {
        let operand = &self.operands[slot.0];
        match &operand.source {
            Source::Host(bytes, _) => host::decode(operand.dtype, bytes),
            Source::Import { bytes, around } => {
                let values = host::decode(operand.dtype, bytes);
                let entry: usize = operand.shape[1..].iter().product();
                let end = (around + operand.shape[0]) * entry;
                values.get(around * entry..end).unwrap_or_default().to_vec()
            }
            Source::Garbage(_) | Source::Temp | Source::View(..) => Vec::new(),
        }
    }
}

/// Roles and slots of an operation.
pub(crate) fn roles(op: &Op<Slot>) -> Vec<(Role, Slot)> {
    let mut all = Vec::new();
    let _: Result<Op<()>, Infallible> = op.try_map(|role, &slot| {
        all.push((role, slot));
        Ok(())
    });
    all
}

/// Bytes of integers.
pub(crate) fn ints(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

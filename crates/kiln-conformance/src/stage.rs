//! Operands on a device: views inside larger tensors with guards around them.

use crate::program::{Broken, Layout, Operand, Program, Slot, Source, View};
use kiln_core::{DType, Device, Recording, Shape, SharedBytes, Tensor};
use std::ops::Range;

/// The bits of NaN in every float type, and of the largest integers.
pub(crate) const NAN_BITS: u8 = 0xff;

/// The bits of finite numbers in every type. Outputs start from these in the second run, so that a
/// value that is not written shows even where NaN is right.
pub(crate) const FINITE_BITS: u8 = 0x3c;

/// Elements from row to row of [`Layout::Far`], by the bytes of an element: the fourth row starts
/// past 2^31 elements of one byte, or past 2^31 bytes.
fn far_stride(dtype: DType) -> usize {
    (1 << 30) / dtype.block_bytes()
}

/// Memory of one operand.
struct Root {
    slot: Slot,
    /// The larger tensor; without guards it is the operand itself.
    base: Tensor,
    view: Tensor,
    /// What the bytes of `base` are before a run; empty for [`Layout::Far`], of which only the view
    /// is checked.
    image: Vec<u8>,
    written: bool,
    /// Whether every value is written and none read: what it starts from is of no matter.
    output: bool,
}

/// The operands of a program on one device.
pub(crate) struct Stage {
    roots: Vec<Root>,
    weights: Vec<(Slot, Tensor)>,
}

/// A byte that changed although nothing may write it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trespass {
    pub(crate) slot: Slot,
    /// Whether it lies in an input, not beside an operand.
    pub(crate) inside: bool,
    /// Bytes from the first byte of the operand.
    pub(crate) offset: isize,
    pub(crate) got: u8,
    pub(crate) expected: u8,
}

/// Bytes of the operands that are written, after a run.
pub(crate) type Outputs = Vec<(Slot, Vec<u8>)>;

impl Stage {
    /// Uploads the operands of a program; without gaps and guards where `plain`.
    pub(crate) fn new(device: &Device, program: &Program, plain: bool) -> Result<Self, Broken> {
        let mut stage = Self { roots: Vec::new(), weights: Vec::new() };
        for (index, operand) in program.operands.iter().enumerate() {
            let slot = Slot(index);
            match &operand.source {
                Source::Temp | Source::View(..) => {}
                Source::Import { bytes, around } => {
                    let weight = import(device, operand, bytes, *around)?;
                    stage.weights.push((slot, weight));
                }
                Source::Host(bytes, layout) => {
                    let written = program.is_written(slot);
                    let layout = (!plain).then_some(*layout);
                    let place = Place { slot, layout, written, output: false };
                    stage.roots.push(place.root(device, operand, Some(bytes))?);
                }
                Source::Garbage(layout) => {
                    let layout = (!plain).then_some(*layout);
                    let output = !program.is_updated(slot);
                    let place = Place { slot, layout, written: true, output };
                    stage.roots.push(place.root(device, operand, None)?);
                }
            }
        }
        Ok(stage)
    }

    /// A tensor for every slot.
    pub(crate) fn bind(&self, program: &Program, rec: &Recording) -> Result<Vec<Tensor>, Broken> {
        let mut tensors: Vec<Tensor> = Vec::with_capacity(program.operands.len());
        for (index, operand) in program.operands.iter().enumerate() {
            let tensor = match &operand.source {
                Source::Temp => rec.temp(operand.dtype, operand.shape)?,
                Source::View(of, view) => apply(&tensors[of.0], view)?,
                _ => self.memory(Slot(index)).ok_or(Broken::Shape(operand.shape))?,
            };
            tensors.push(tensor);
        }
        Ok(tensors)
    }

    fn memory(&self, slot: Slot) -> Option<Tensor> {
        let roots = self.roots.iter().map(|root| (root.slot, &root.view));
        let weights = self.weights.iter().map(|(slot, tensor)| (*slot, tensor));
        roots.chain(weights).find(|(s, _)| *s == slot).map(|(_, tensor)| tensor.clone())
    }

    /// Puts every operand that is written back to what it was before the first run, outputs to a
    /// repeated byte.
    pub(crate) fn reset(&self, fill: u8) -> Result<(), Broken> {
        for root in self.roots.iter().filter(|root| root.written) {
            if !root.image.is_empty() {
                root.base.write_bytes(&root.image)?;
            }
            if root.output {
                root.view.write_bytes(&vec![fill; root.view.bytes()])?;
            }
        }
        Ok(())
    }

    /// New host data for an operand, kept over the next [`Stage::reset`].
    pub(crate) fn write(&mut self, slot: Slot, bytes: &[u8]) -> Result<(), Broken> {
        if let Some(root) = self.roots.iter_mut().find(|root| root.slot == slot) {
            root.view.write_bytes(bytes)?;
            if !root.image.is_empty() {
                overlay(&mut root.image, &root.view, bytes);
            }
        }
        Ok(())
    }

    /// Reads everything back: the outputs, or the first byte that may not have changed.
    pub(crate) fn collect(&self) -> Result<Result<Outputs, Trespass>, Broken> {
        let mut outputs = Vec::new();
        for root in &self.roots {
            let bytes = if root.image.is_empty() {
                let mut bytes = vec![0; root.view.bytes()];
                root.view.read_bytes(&mut bytes)?;
                bytes
            } else {
                let mut base = vec![0; root.base.bytes()];
                root.base.read_bytes(&mut base)?;
                if let Some(trespass) = root.trespass(&base) {
                    return Ok(Err(trespass));
                }
                runs(&root.view).flat_map(|run| &base[run]).copied().collect()
            };
            if root.written {
                outputs.push((root.slot, bytes));
            }
        }
        Ok(Ok(outputs))
    }
}

impl Root {
    fn trespass(&self, base: &[u8]) -> Option<Trespass> {
        let mut inside = vec![false; base.len()];
        for run in runs(&self.view) {
            inside[run].fill(true);
        }
        let changed = |at: &usize| base[*at] != self.image[*at] && !(self.written && inside[*at]);
        let at = (0..base.len()).find(changed)?;
        Some(Trespass {
            slot: self.slot,
            inside: inside[at],
            offset: at as isize - self.view.offset() as isize,
            got: base[at],
            expected: self.image[at],
        })
    }
}

/// Where an operand is put.
struct Place {
    slot: Slot,
    /// `None` for a tensor of its own.
    layout: Option<Layout>,
    written: bool,
    output: bool,
}

impl Place {
    fn root(
        &self,
        device: &Device,
        operand: &Operand,
        bytes: Option<&[u8]>,
    ) -> Result<Root, Broken> {
        let Operand { dtype, shape, .. } = *operand;
        let garbage;
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => {
                let values: usize = shape.iter().product();
                garbage = vec![NAN_BITS; dtype.row_bytes(values).ok_or(Broken::Shape(shape))?];
                &garbage
            }
        };
        let (base, view) = self.tensors(device, dtype, shape)?;
        let image = if self.layout == Some(Layout::Far) {
            view.write_bytes(bytes)?;
            Vec::new()
        } else {
            let mut image = vec![NAN_BITS; base.bytes()];
            if self.written {
                for (index, byte) in image.iter_mut().enumerate() {
                    *byte = sentinel(index);
                }
            }
            overlay(&mut image, &view, bytes);
            base.write_bytes(&image)?;
            image
        };
        Ok(Root { slot: self.slot, base, view, image, written: self.written, output: self.output })
    }

    fn tensors(
        &self,
        device: &Device,
        dtype: DType,
        shape: Shape,
    ) -> Result<(Tensor, Tensor), Broken> {
        let block = dtype.block_len();
        let outer = shape.len() - 1;
        let pad = |values: usize, blocks: usize| if block == 1 { values } else { blocks * block };
        let (base, view) = match self.layout {
            None => {
                let base = device.tensor(dtype, shape)?;
                (base.clone(), base)
            }
            Some(Layout::Guarded) => guarded(device, dtype, shape, pad(64, 2))?,
            Some(Layout::Unaligned) => guarded(device, dtype, shape, pad(37, 1))?,
            Some(Layout::Swapped) if outer >= 2 => {
                let mut extents = shape.to_vec();
                extents.swap(outer - 2, outer - 1);
                let swapped = Shape::from_slice(&extents).ok_or(Broken::Shape(shape))?;
                let (base, view) = guarded(device, dtype, swapped, pad(64, 2))?;
                (base, view.transpose(outer - 2, outer - 1)?)
            }
            Some(Layout::Strided | Layout::Swapped) => {
                let around = |axis| if axis == outer { [pad(4, 1), pad(8, 1)] } else { [1, 1] };
                let extents: Vec<usize> = shape
                    .iter()
                    .enumerate()
                    .map(|(axis, &extent)| extent + around(axis).iter().sum::<usize>())
                    .collect();
                let padded = Shape::from_slice(&extents).ok_or(Broken::Shape(shape))?;
                let base = device.tensor(dtype, padded)?;
                let mut view = base.clone();
                for (axis, &extent) in shape.iter().enumerate() {
                    let start = around(axis)[0];
                    view = view.slice(axis, start..start + extent)?;
                }
                (base, view)
            }
            Some(Layout::Far) => {
                let base = device.tensor(dtype, [4, far_stride(dtype)])?;
                let view = base.slice(0, 0..shape[0])?.slice(1, 0..shape.last())?;
                (base, view)
            }
        };
        Ok((base, view))
    }
}

fn sentinel(index: usize) -> u8 {
    (index as u8).wrapping_mul(29) ^ 0x5a
}

fn guarded(
    device: &Device,
    dtype: DType,
    shape: Shape,
    pad: usize,
) -> Result<(Tensor, Tensor), Broken> {
    let values: usize = shape.iter().product();
    let base = device.tensor(dtype, [pad + values + pad])?;
    let view = base.slice(0, pad..pad + values)?.reshape(shape)?;
    Ok((base, view))
}

fn import(
    device: &Device,
    operand: &Operand,
    bytes: &[u8],
    around: usize,
) -> Result<Tensor, Broken> {
    let mut extents = operand.shape.to_vec();
    let rows = extents[0];
    extents[0] += 2 * around;
    let shape = Shape::from_slice(&extents).ok_or(Broken::Shape(operand.shape))?;
    let weight = device.import(operand.dtype, shape, SharedBytes::from_vec(bytes.to_vec()))?;
    Ok(if around == 0 { weight } else { weight.slice(0, around..around + rows)? })
}

/// A view of a tensor.
pub(crate) fn apply(tensor: &Tensor, view: &View) -> Result<Tensor, kiln_core::Error> {
    match view {
        View::Slice(axis, range) => tensor.slice(*axis, range.clone()),
        View::Reshape(shape) => tensor.reshape(*shape),
        View::Transpose(a, b) => tensor.transpose(*a, *b),
    }
}

/// Ranges of storage bytes of the rows of a view, in the order of its axes.
fn runs(view: &Tensor) -> impl Iterator<Item = Range<usize>> {
    let shape = view.shape();
    let outer = shape.len() - 1;
    let strides: Vec<usize> = (0..outer).map(|axis| view.stride_bytes(axis)).collect();
    let (start, row) = (view.offset(), view.row_bytes());
    let rows: usize = shape[..outer].iter().product();
    (0..rows).map(move |index| {
        let mut rest = index;
        let mut offset = start;
        for axis in (0..outer).rev() {
            offset += rest % shape[axis] * strides[axis];
            rest /= shape[axis];
        }
        offset..offset + row
    })
}

fn overlay(image: &mut [u8], view: &Tensor, bytes: &[u8]) {
    let row = view.row_bytes();
    for (run, values) in runs(view).zip(bytes.chunks_exact(row)) {
        image[run].copy_from_slice(values);
    }
}

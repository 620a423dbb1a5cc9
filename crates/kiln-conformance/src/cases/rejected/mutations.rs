//! Every operand of every operation, made wrong in every general way.

use super::super::Cases;
use super::valid::{ALL, Valid};
use super::{ROUTE, reject};
use crate::program::{Program, Slot, roles};
use crate::reject::{Flaw, Kind};
use kiln_core::ops::{Op, Role};
use kiln_core::{DType, Shape};

/// Axes that nothing else depends on: any extent but 0 is valid.
const FREE: &[(&str, &str, usize)] = &[
    ("matmul_id", "weight", 0),
    ("embed", "weight", 0),
    ("pool", "input", 1),
    ("kv_append", "input", 0),
    ("kv_append", "cache", 1),
    ("head_norm_rope", "cache", 1),
    ("moe_route", "logits", 1),
    ("argmax", "input", 1),
    ("sample", "logits", 1),
];

pub(super) fn add(cases: &mut Cases) {
    for (index, &valid) in ALL.iter().enumerate() {
        let mut p = Program::new(0);
        let op = valid(&mut p);
        let roles = roles(&op);
        let variant = Variant { valid, index, op: op.name() };
        for &(role, slot) in &roles {
            operand(cases, &variant, &p, role, slot);
        }
        for &(role, slot) in roles.iter().filter(|(role, _)| role.access.writes()) {
            for &(other_role, other) in roles.iter().filter(|(_, other)| *other != slot) {
                alias(cases, &variant, &p, (role, slot), (other_role, other), &op);
            }
        }
    }
}

/// A valid recording to break.
struct Variant {
    valid: Valid,
    index: usize,
    op: &'static str,
}

impl Variant {
    fn add(
        &self,
        cases: &mut Cases,
        what: String,
        flaw: Flaw,
        (kinds, names): (&'static [Kind], Option<&'static str>),
    ) {
        let valid = self.valid;
        cases.add(self.op, ROUTE, format!("{what} (form {})", self.index), move |p| {
            let op = valid(p);
            p.push(op);
            reject(p, flaw.clone(), kinds, names);
            Ok(())
        });
    }
}

fn operand(cases: &mut Cases, variant: &Variant, p: &Program, role: Role, slot: Slot) {
    let name = role.tensor;
    let operand = &p.operands[slot.0];
    let (dtype, extents) = (operand.dtype, operand.shape.to_vec());
    let block = dtype.block_len();

    let other_rank: Vec<usize> = if extents.len() < 4 {
        std::iter::once(1).chain(extents.iter().copied()).collect()
    } else {
        extents[1..].to_vec()
    };
    if let Some(shape) = Shape::from_slice(&other_rank) {
        // One more axis can also be another form of the operation, with other extents.
        let kinds = &[Kind::Rank, Kind::Extent, Kind::ExtentRule];
        variant.add(
            cases,
            format!("{name} with another rank"),
            Flaw::Shape(slot, shape),
            (kinds, None),
        );
    }
    for axis in 0..extents.len() {
        let step = if axis + 1 == extents.len() { block } else { 1 };
        for (extent, what) in [(extents[axis] + step, "longer"), (0, "empty")] {
            if extent > 0 && FREE.contains(&(variant.op, name, axis)) {
                continue;
            }
            let mut extents = extents.clone();
            extents[axis] = extent;
            if let Some(shape) = Shape::from_slice(&extents) {
                let kinds = &[Kind::Extent, Kind::ExtentRule];
                let what = format!("axis {axis} of {name} {what}");
                variant.add(cases, what, Flaw::Shape(slot, shape), (kinds, None));
            }
        }
    }
    let wrong = match (name, dtype) {
        // Bytes and f16 or bf16 are both masks.
        ("mask", _) | (_, DType::U8) => DType::F32,
        _ => DType::U8,
    };
    let kinds = &[Kind::DType, Kind::DTypeLike];
    variant.add(cases, format!("{name} of {wrong}"), Flaw::DType(slot, wrong), (kinds, None));

    let names = Some(name);
    let foreign = (&[Kind::Foreign] as &[Kind], names);
    variant.add(cases, format!("{name} of another device"), Flaw::ForeignDevice(slot), foreign);
    variant.add(cases, format!("{name} of another recording"), Flaw::ForeignTemp(slot), foreign);
    if role.access.reads() {
        let what = format!("{name} a temporary nobody wrote");
        variant.add(cases, what, Flaw::Unwritten(slot), (&[Kind::Unwritten], names));
    }
    if role.access.writes() && dtype.is_float() {
        let what = format!("{name} an imported weight");
        variant.add(cases, what, Flaw::ReadOnly(slot), (&[Kind::ReadOnly], names));
    }
}

/// An output that shares memory with another operand, at the same place and shifted by a row.
fn alias(
    cases: &mut Cases,
    variant: &Variant,
    p: &Program,
    (role, slot): (Role, Slot),
    (other_role, other): (Role, Slot),
    op: &Op<Slot>,
) {
    let [a, b] = [slot, other].map(|slot| &p.operands[slot.0]);
    if a.dtype != b.dtype {
        return;
    }
    let names = Some(role.tensor);
    let allowed = !other_role.access.writes()
        && a.shape == b.shape
        && op.in_place().contains(&(role.tensor, other_role.tensor));
    let row = a.shape.last();
    let shifts = if allowed { vec![row] } else { vec![0, row] };
    for shift in shifts {
        // Shifted past the end of the output nothing is shared.
        if shift >= a.shape.iter().product() {
            continue;
        }
        let what =
            format!("{} shares memory with {}, {shift} values on", role.tensor, other_role.tensor);
        let names = if other_role.access.writes() { None } else { names };
        variant.add(cases, what, Flaw::Alias(slot, other, shift), (&[Kind::Alias], names));
    }
}

//! The fusion pass: pairs and triples of operations become one that computes the same bits.
//!
//! The fused operation takes the place of its last part; the earlier parts move down to it, which
//! is legal where nothing in between touches what they write or writes what they read. A value that
//! disappears must be a temporary that nobody else uses.

use crate::ops::{
    Activation, AddRmsNorm, GatedMatmul, InputLayout, Matmul, Op, RmsNorm, RmsNormMul,
};
use crate::recording::{check_aliases, overlap};
use crate::storage::Id;
use crate::{DType, Tensor};
use std::collections::HashMap;

/// Fuses what is legal and supported.
pub(super) fn fuse(
    ops: Vec<Op<Tensor>>,
    supported: &dyn Fn(&Op<Tensor>) -> bool,
) -> Vec<Op<Tensor>> {
    let mut uses: HashMap<Id, usize> = HashMap::new();
    for (_, tensor) in ops.iter().flat_map(Op::operands) {
        *uses.entry(tensor.storage().id()).or_default() += 1;
    }
    let mut pass = Pass { ops: ops.into_iter().map(Some).collect(), uses };
    for last in 0..pass.ops.len() {
        let Some((parts, fused)) = pass.candidate(last) else { continue };
        let legal = parts.iter().all(|&part| pass.may_move_down(part, last, &parts));
        let valid = fused.check().is_ok() && check_aliases(&fused, &fused.operands()).is_ok();
        if legal && valid && supported(&fused) {
            for part in parts {
                pass.ops[part] = None;
            }
            pass.ops[last] = Some(fused);
        }
    }
    pass.ops.into_iter().flatten().collect()
}

struct Pass {
    ops: Vec<Option<Op<Tensor>>>,
    /// How often each storage is an operand in the recording.
    uses: HashMap<Id, usize>,
}

impl Pass {
    /// The earlier parts and the fused form of a pattern that ends at `last`.
    fn candidate(&self, last: usize) -> Option<(Vec<usize>, Op<Tensor>)> {
        match self.ops[last].as_ref()? {
            Op::Mul(mul) if mul.b.rank() == 2 => self
                .norm_mul(last, [&mul.a, &mul.b], &mul.output)
                .or_else(|| self.norm_mul(last, [&mul.b, &mul.a], &mul.output)),
            Op::RmsNorm(norm) => self.add_norm(last, norm),
            Op::SiluMul(op) => self.gated(last, [&op.gate, &op.up, &op.output], Activation::Silu),
            Op::GeluMul(op) => {
                self.gated(last, [&op.gate, &op.up, &op.output], Activation::GeluTanh)
            }
            Op::KvAppend(append) if !append.ring => {
                let (part, Op::HeadNormRope(rope)) = self.consumed(last, &append.input)? else {
                    return None;
                };
                let exact =
                    rope.input.dtype() == DType::F32 || rope.input.dtype() == append.cache.dtype();
                if !exact || rope.cache.is_some() || rope.output.as_ref() != Some(&append.input) {
                    return None;
                }
                let mut fused = rope.clone();
                fused.output = None;
                fused.cache = Some(append.cache.clone());
                fused.cache_start = Some(append.start.clone());
                Some((vec![part], fused.into()))
            }
            _ => None,
        }
    }

    /// `RmsNorm` then `Mul`. Only in f32, where no rounding in between is lost.
    fn norm_mul(
        &self,
        last: usize,
        [norm, scale]: [&Tensor; 2],
        output: &Tensor,
    ) -> Option<(Vec<usize>, Op<Tensor>)> {
        let (part, Op::RmsNorm(op)) = self.consumed(last, norm)? else { return None };
        if op.output != *norm || norm.dtype() != DType::F32 {
            return None;
        }
        let RmsNorm { input, weight, eps, .. } = op.clone();
        let (scale, output) = (scale.clone(), output.clone());
        Some((vec![part], RmsNormMul { input, weight, scale, output, eps }.into()))
    }

    /// `Add` then `RmsNorm`; the sum stays an output.
    fn add_norm(&self, last: usize, norm: &RmsNorm<Tensor>) -> Option<(Vec<usize>, Op<Tensor>)> {
        let (part, Op::Add(add)) = self.producer(last, &norm.input)? else { return None };
        if add.output != norm.input || add.b.rank() != 2 {
            return None;
        }
        let fused = AddRmsNorm {
            a: add.a.clone(),
            b: add.b.clone(),
            weight: norm.weight.clone(),
            residual: add.output.clone(),
            output: norm.output.clone(),
            eps: norm.eps,
        };
        Some((vec![part], fused.into()))
    }

    /// Two products of one input, then the gated activation.
    fn gated(
        &self,
        last: usize,
        [gate, up, output]: [&Tensor; 3],
        activation: Activation,
    ) -> Option<(Vec<usize>, Op<Tensor>)> {
        let (first, Op::Matmul(gate_op)) = self.consumed(last, gate)? else { return None };
        let (second, Op::Matmul(up_op)) = self.consumed(last, up)? else { return None };
        let Matmul { input, precision, .. } = gate_op;
        let same = *input == up_op.input
            && *precision == up_op.precision
            && gate_op.input_layout == InputLayout::RowMajor
            && up_op.input_layout == InputLayout::RowMajor
            && gate_op.output == *gate
            && up_op.output == *up
            // One block-quantised and one plain weight would share a route that neither had alone.
            && gate_op.weight.dtype().is_quantized() == up_op.weight.dtype().is_quantized();
        if !same || first == second {
            return None;
        }
        let fused = GatedMatmul {
            input: input.clone(),
            gate: gate_op.weight.clone(),
            up: up_op.weight.clone(),
            output: output.clone(),
            activation,
            precision: *precision,
        };
        Some((vec![first, second], fused.into()))
    }

    /// The step that last wrote bytes of `tensor` before `last`.
    fn producer(&self, last: usize, tensor: &Tensor) -> Option<(usize, &Op<Tensor>)> {
        let writes = |op: &Op<Tensor>| {
            op.operands().iter().any(|(role, t)| role.access.writes() && overlap(t, tensor))
        };
        let ops = self.ops[..last].iter().enumerate().rev();
        ops.filter_map(|(index, op)| Some((index, op.as_ref()?))).find(|(_, op)| writes(op))
    }

    /// As [`Pass::producer`], where `tensor` is a temporary that only those two steps use.
    fn consumed(&self, last: usize, tensor: &Tensor) -> Option<(usize, &Op<Tensor>)> {
        let storage = tensor.storage();
        let private = storage.is_temporary() && self.uses.get(&storage.id()) == Some(&2);
        if private { self.producer(last, tensor) } else { None }
    }

    fn may_move_down(&self, part: usize, last: usize, parts: &[usize]) -> bool {
        let Some(moved) = &self.ops[part] else { return false };
        let moved = moved.operands();
        let between = (part + 1..last).filter(|index| !parts.contains(index));
        between.filter_map(|index| self.ops[index].as_ref()).all(|op| {
            op.operands().iter().all(|(role, tensor)| {
                moved.iter().all(|(moved_role, moved_tensor)| {
                    let conflict = role.access.writes() || moved_role.access.writes();
                    !conflict || !overlap(tensor, moved_tensor)
                })
            })
        })
    }
}

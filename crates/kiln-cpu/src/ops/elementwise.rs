//! Elementwise operations.

use super::activation::activate;
use super::norms::Sum;
use super::values::{Block, Kernel, block_tasks, map, read, target, write};
use crate::exec::Lowering;
use crate::isa::{Simd, with_simd};
use crate::view::View;
use kiln_core::ops::{Activation, Add, GeluMul, Mul, Scale, SiluMul, Softcap};

/// `a * b`
#[derive(Clone, Copy)]
struct Product;

impl Kernel<2> for Product {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [a, b]: [S::F; 2]) -> S::F {
        s.mul(a, b)
    }
}

/// `activation(gate) * up`
#[derive(Clone, Copy)]
struct Gated {
    activation: Activation,
}

impl Kernel<2> for Gated {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [gate, up]: [S::F; 2]) -> S::F {
        s.mul(activate(s, self.activation, gate), up)
    }
}

/// `x * factor`
#[derive(Clone, Copy)]
struct Times {
    factor: f32,
}

impl Kernel<1> for Times {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F; 1]) -> S::F {
        s.mul(x, s.splat(self.factor))
    }
}

/// `cap * tanh(x / cap)`
#[derive(Clone, Copy)]
struct Capped {
    cap: f32,
}

impl Kernel<1> for Capped {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F; 1]) -> S::F {
        let cap = s.splat(self.cap);
        s.mul(cap, s.tanh(s.div(x, cap)))
    }
}

/// Values converted at a time, where the type is not f32.
const CHUNK: usize = 1024;

/// First byte of a value; a vector repeats for every row.
#[inline(always)]
fn at(view: &View, row: usize, column: usize) -> *mut u8 {
    let start = if view.rank() == 1 { view.start() } else { view.row_ptr([row]) };
    start.wrapping_add(column * view.dtype().block_bytes())
}

/// Appends the tasks of `output = kernel(inputs)`.
fn lower<K, const N: usize>(kernel: K, inputs: [View; N], output: View, lowering: &mut Lowering)
where
    K: Kernel<N> + Send + Sync + 'static,
{
    let isa = lowering.isa;
    let dims = [output.extent(0), output.last()];
    block_tasks(lowering, dims, move |Block { rows, columns }, scratch| {
        let chunk = columns.len().min(CHUNK);
        let [buffers] = scratch.floats([chunk * (N + 1)]);
        let (result, buffers) = buffers.split_at_mut(chunk);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            for row in rows {
                for column in columns.clone().step_by(chunk) {
                    let len = chunk.min(columns.end - column);
                    let mut values = [std::ptr::null(); N];
                    let buffers = buffers.chunks_exact_mut(chunk);
                    for ((value, input), buffer) in values.iter_mut().zip(&inputs).zip(buffers) {
                        let from = at(input, row, column);
                        // SAFETY: `len` values of the row are there, and the planner's hazards
                        // keep writers out.
                        *value = unsafe { read(input.dtype(), from, &mut buffer[..len]) };
                    }
                    let to = at(&output, row, column);
                    let result = &mut result[..len];
                    let y = target(output.dtype(), to, result);
                    // SAFETY: as above; this part of the row is this task's alone.
                    unsafe {
                        map(s, kernel, values, y, len);
                        write(output.dtype(), to, result);
                    }
                }
            }
        }));
    });
}

/// `output = a + b`
pub(super) fn add(op: &Add<View>, lowering: &mut Lowering) {
    lower(Sum, [op.a, op.b], op.output, lowering);
}

/// `output = a * b`
pub(super) fn mul(op: &Mul<View>, lowering: &mut Lowering) {
    lower(Product, [op.a, op.b], op.output, lowering);
}

/// `output = input * factor`
pub(super) fn scale(op: &Scale<View>, lowering: &mut Lowering) {
    lower(Times { factor: op.factor }, [op.input], op.output, lowering);
}

/// `output = cap * tanh(input / cap)`
pub(super) fn softcap(op: &Softcap<View>, lowering: &mut Lowering) {
    lower(Capped { cap: op.cap }, [op.input], op.output, lowering);
}

/// `output = gelu(gate) * up`
pub(super) fn gelu_mul(op: &GeluMul<View>, lowering: &mut Lowering) {
    let kernel = Gated { activation: Activation::GeluTanh };
    lower(kernel, [op.gate, op.up], op.output, lowering);
}

/// `output = gate * sigmoid(gate) * up`
pub(super) fn silu_mul(op: &SiluMul<View>, lowering: &mut Lowering) {
    let kernel = Gated { activation: Activation::Silu };
    lower(kernel, [op.gate, op.up], op.output, lowering);
}

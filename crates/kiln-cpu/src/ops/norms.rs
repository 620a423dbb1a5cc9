//! The RMS normalisation family and layer normalisation.
//!
//! Fused operations are built from the parts of the others, in the same order, and give their bits.

use super::values::{Kernel, fold, map, read, read_row, row_tasks, target, write};
use crate::exec::Lowering;
use crate::isa::{Simd, with_simd};
use crate::view::View;
use kiln_core::ops::{
    AddRmsNorm, LayerNorm, MoePostFfNormEndLayer, PostAttnTripleNorm, PostFfNormEndLayer, RmsNorm,
    RmsNormMul, RmsNormTriple,
};

/// `sum + x^2`
#[derive(Clone, Copy)]
struct Squares;

impl Kernel<2> for Squares {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x, sum]: [S::F; 2]) -> S::F {
        s.fma(x, x, sum)
    }
}

/// `a + b`
#[derive(Clone, Copy)]
pub(super) struct Sum;

impl Kernel<2> for Sum {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [a, b]: [S::F; 2]) -> S::F {
        s.add(a, b)
    }
}

/// `x * factor`, then times every other input in turn.
#[derive(Clone, Copy)]
struct Scaled {
    factor: f32,
}

impl<const N: usize> Kernel<N> for Scaled {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, inputs: [S::F; N]) -> S::F {
        let mut product = s.mul(inputs[0], s.splat(self.factor));
        for input in &inputs[1..] {
            product = s.mul(product, *input);
        }
        product
    }
}

/// `base + x * factor * weight`
#[derive(Clone, Copy)]
struct AddScaled {
    factor: f32,
}

impl Kernel<3> for AddScaled {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x, weight, base]: [S::F; 3]) -> S::F {
        s.fma(s.mul(x, s.splat(self.factor)), weight, base)
    }
}

/// `(base + x * factor * weight) * layer_scalar`
#[derive(Clone, Copy)]
struct EndLayer {
    factor: f32,
}

impl Kernel<4> for EndLayer {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x, weight, base, layer_scalar]: [S::F; 4]) -> S::F {
        s.mul(AddScaled { factor: self.factor }.apply(s, [x, weight, base]), layer_scalar)
    }
}

/// `sum + x * weight`
#[derive(Clone, Copy)]
struct Weighted {
    weight: f32,
}

impl Kernel<2> for Weighted {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x, sum]: [S::F; 2]) -> S::F {
        s.fma(x, s.splat(self.weight), sum)
    }
}

/// `x - mean`
#[derive(Clone, Copy)]
struct Centred {
    mean: f32,
}

impl Kernel<1> for Centred {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F; 1]) -> S::F {
        s.sub(x, s.splat(self.mean))
    }
}

/// `(x - mean) * factor * weight + bias`
#[derive(Clone, Copy)]
struct Affine {
    mean: f32,
    factor: f32,
}

impl Kernel<3> for Affine {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x, weight, bias]: [S::F; 3]) -> S::F {
        let centred = s.mul(s.sub(x, s.splat(self.mean)), s.splat(self.factor));
        s.fma(centred, weight, bias)
    }
}

/// `rsqrt(mean + eps)`
#[inline(always)]
fn rsqrt(mean: f64, eps: f32) -> f32 {
    (1.0 / (mean + f64::from(eps)).sqrt()) as f32
}

/// `rsqrt(mean(x^2) + eps)`
///
/// # Safety
/// `len` values at `x`.
#[inline(always)]
pub(super) unsafe fn inverse_rms<S: Simd>(s: S, x: *const f32, len: usize, eps: f32) -> f32 {
    // SAFETY: the caller's values.
    let squares = unsafe { fold(s, Squares, x, len) };
    rsqrt(f64::from(squares) / len as f64, eps)
}

/// `output = x * factor * weight`, without a weight `x * factor`.
///
/// # Safety
/// As [`map`].
#[inline(always)]
pub(super) unsafe fn scale_row<S: Simd>(
    s: S,
    (x, output): (*const f32, *mut f32),
    factor: f32,
    weight: Option<*const f32>,
    len: usize,
) {
    // SAFETY: the caller's values.
    unsafe {
        match weight {
            Some(weight) => map(s, Scaled { factor }, [x, weight], output, len),
            None => map(s, Scaled { factor }, [x], output, len),
        }
    }
}

/// A vector `[dim]` as f32.
///
/// # Safety
/// As [`read`]; `buffer` is as long as the vector.
#[inline(always)]
pub(super) unsafe fn read_vector(vector: &View, buffer: &mut [f32]) -> *const f32 {
    // SAFETY: the caller's.
    unsafe { read(vector.dtype(), vector.start(), buffer) }
}

/// Writes `rms(x) * weight`, with `factor` of the row, to a row of `output`.
///
/// # Safety
/// `dim` values at `x` and `weight`; the row is the caller's alone.
#[inline(always)]
unsafe fn normed_row<S: Simd>(
    s: S,
    [x, weight]: [*const f32; 2],
    factor: f32,
    (output, row): (&View, usize),
    buffer: &mut [f32],
) {
    let (dtype, to) = (output.dtype(), output.row_ptr([row]));
    let at = target(dtype, to, buffer);
    // SAFETY: the caller's row and values.
    unsafe {
        map(s, Scaled { factor }, [x, weight], at, buffer.len());
        write(dtype, to, buffer);
    }
}

/// `output = rms(input) * weight`
pub(super) fn rms_norm(op: &RmsNorm<View>, lowering: &mut Lowering) {
    let RmsNorm { input, weight, output, eps } = op.clone();
    let (isa, dim) = (lowering.isa, input.last());
    row_tasks(lowering, [input.extent(0), dim], move |rows, scratch| {
        let [a, b, c] = scratch.floats([dim; 3]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // SAFETY: views of equal rows and a vector as long; the rows are this task's alone, and
            // each is read before it is written.
            unsafe {
                let weight = weight.as_ref().map(|weight| read_vector(weight, a));
                for row in rows {
                    let x = read_row(&input, [row], b);
                    let to = output.row_ptr([row]);
                    let at = target(output.dtype(), to, c);
                    let factor = inverse_rms(s, x, dim, eps);
                    scale_row(s, (x, at), factor, weight, dim);
                    write(output.dtype(), to, c);
                }
            }
        }));
    });
}

/// `output = rms(input) * weight * scale`
pub(super) fn rms_norm_mul(op: &RmsNormMul<View>, lowering: &mut Lowering) {
    let RmsNormMul { input, weight, scale, output, eps } = op.clone();
    let (isa, dim) = (lowering.isa, input.last());
    row_tasks(lowering, [input.extent(0), dim], move |rows, scratch| {
        let [a, b, c, d] = scratch.floats([dim; 4]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // SAFETY: views of equal rows and a vector as long; the rows are this task's alone, and
            // each value is read before it is written.
            unsafe {
                let weight = weight.as_ref().map(|weight| read_vector(weight, a));
                for row in rows {
                    let x = read_row(&input, [row], b);
                    let scale = read_row(&scale, [row], c);
                    let to = output.row_ptr([row]);
                    let at = target(output.dtype(), to, d);
                    let kernel = Scaled { factor: inverse_rms(s, x, dim, eps) };
                    match weight {
                        Some(weight) => map(s, kernel, [x, weight, scale], at, dim),
                        None => map(s, kernel, [x, scale], at, dim),
                    }
                    write(output.dtype(), to, d);
                }
            }
        }));
    });
}

/// `output_i = rms(input) * weight_i`
pub(super) fn rms_norm_triple(op: &RmsNormTriple<View>, lowering: &mut Lowering) {
    let RmsNormTriple { input, eps, .. } = *op;
    let weights = [op.weight_a, op.weight_b, op.weight_c];
    let outputs = [op.output_a, op.output_b, op.output_c];
    let (isa, dim) = (lowering.isa, input.last());
    row_tasks(lowering, [input.extent(0), 2 * dim], move |rows, scratch| {
        let [a, b, c, d, e] = scratch.floats([dim; 5]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // SAFETY: views of equal rows and vectors as long; the rows are this task's alone.
            unsafe {
                let weights = read_vectors(&weights, [a, b, c]);
                for row in rows {
                    let x = read_row(&input, [row], d);
                    let factor = inverse_rms(s, x, dim, eps);
                    for (weight, output) in weights.iter().zip(&outputs) {
                        normed_row(s, [x, *weight], factor, (output, row), e);
                    }
                }
            }
        }));
    });
}

/// Vectors `[dim]` as f32.
///
/// # Safety
/// As [`read_vector`].
#[inline(always)]
unsafe fn read_vectors<const N: usize>(
    vectors: &[View; N],
    buffers: [&mut [f32]; N],
) -> [*const f32; N] {
    let mut pointers = [std::ptr::null(); N];
    for ((pointer, vector), buffer) in pointers.iter_mut().zip(vectors).zip(buffers) {
        // SAFETY: the caller's.
        *pointer = unsafe { read_vector(vector, buffer) };
    }
    pointers
}

/// `residual = hidden + rms(attn) * weight_post`, then `output_i = rms(residual) * weight_i`.
pub(super) fn post_attn_triple_norm(op: &PostAttnTripleNorm<View>, lowering: &mut Lowering) {
    let PostAttnTripleNorm { hidden, attn, residual, eps, .. } = *op;
    let weights = [op.weight_post, op.weight_a, op.weight_b, op.weight_c];
    let outputs = [op.output_a, op.output_b, op.output_c];
    let (isa, dim) = (lowering.isa, hidden.last());
    row_tasks(lowering, [hidden.extent(0), 3 * dim], move |rows, scratch| {
        let [a, b, c, d, e, f, sum, g] = scratch.floats([dim; 8]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // SAFETY: views of equal rows and vectors as long; the rows are this task's alone, and
            // `hidden` is read before `residual` is written.
            unsafe {
                let [post, weights @ ..] = read_vectors(&weights, [a, b, c, d]);
                for row in rows {
                    let x = read_row(&attn, [row], e);
                    let base = read_row(&hidden, [row], f);
                    let kernel = AddScaled { factor: inverse_rms(s, x, dim, eps) };
                    map(s, kernel, [x, post, base], sum.as_mut_ptr(), dim);
                    let factor = inverse_rms(s, sum.as_ptr(), dim, eps);
                    residual.store([row], sum);
                    for (weight, output) in weights.iter().zip(&outputs) {
                        normed_row(s, [sum.as_ptr(), *weight], factor, (output, row), g);
                    }
                }
            }
        }));
    });
}

/// The expert branch of the end of a layer: rows, or the weighted sum of the experts' rows.
#[derive(Clone, Copy)]
enum Experts {
    Summed(View),
    Routed { experts: View, route: View },
}

impl Experts {
    /// Row `row`, in `buffer` where it has to be made.
    ///
    /// # Safety
    /// As [`read_row`]; `buffers` are as long as the row.
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, row: usize, buffers: [&mut [f32]; 2]) -> *const f32 {
        let [sum, buffer] = buffers;
        // SAFETY: the row exists, by the contract.
        unsafe {
            let (experts, route) = match self {
                Experts::Summed(moe) => return read_row(moe, [row], sum),
                Experts::Routed { experts, route } => (experts, route),
            };
            sum.fill(0.0);
            for (k, weight) in route.row::<f32, 1>([row]).iter().enumerate() {
                let x = read_row(experts, [row, k], buffer);
                let at = sum.as_mut_ptr();
                map(s, Weighted { weight: *weight }, [x, at.cast_const()], at, sum.len());
            }
            sum.as_ptr()
        }
    }
}

/// `mlp = attn + rms(moe) * weight_moe`, `output = (residual + rms(mlp) * weight_mlp) * layer_scalar`
pub(super) fn post_ff_norm_end_layer(op: &PostFfNormEndLayer<View>, lowering: &mut Lowering) {
    end_layer(op, Experts::Summed(op.moe), lowering);
}

/// As [`post_ff_norm_end_layer`], of the weighted sum of the experts' rows.
pub(super) fn moe_post_ff_norm_end_layer(
    op: &MoePostFfNormEndLayer<View>,
    lowering: &mut Lowering,
) {
    let MoePostFfNormEndLayer { attn, experts, route, weight_moe, residual, .. } = *op;
    let MoePostFfNormEndLayer { weight_mlp, layer_scalar, mlp, output, eps, .. } = *op;
    // The rows of `moe` come from the experts.
    let moe = attn;
    let end = PostFfNormEndLayer {
        attn,
        moe,
        weight_moe,
        residual,
        weight_mlp,
        layer_scalar,
        mlp,
        output,
        eps,
    };
    end_layer(&end, Experts::Routed { experts, route }, lowering);
}

fn end_layer(op: &PostFfNormEndLayer<View>, moe: Experts, lowering: &mut Lowering) {
    let PostFfNormEndLayer { attn, residual, mlp, output, layer_scalar, eps, .. } = *op;
    let weights = [op.weight_moe, op.weight_mlp];
    let (isa, dim) = (lowering.isa, attn.last());
    row_tasks(lowering, [attn.extent(0), 3 * dim], move |rows, scratch| {
        let [a, b, scalars, c, d, e, f, sum] = scratch.floats([dim; 8]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // SAFETY: views of equal rows and vectors as long; the rows are this task's alone, and
            // `residual` is read before `output` is written.
            unsafe {
                let [weight_moe, weight_mlp] = read_vectors(&weights, [a, b]);
                let scalars = if layer_scalar.last() == dim {
                    read_vector(&layer_scalar, scalars)
                } else {
                    let scalar = *read_vector(&layer_scalar, &mut scalars[..1]);
                    scalars.fill(scalar);
                    scalars.as_ptr()
                };
                for row in rows {
                    let x = moe.row(s, row, [&mut *c, &mut *d]);
                    let base = read_row(&attn, [row], e);
                    let kernel = AddScaled { factor: inverse_rms(s, x, dim, eps) };
                    map(s, kernel, [x, weight_moe, base], sum.as_mut_ptr(), dim);
                    let kernel = EndLayer { factor: inverse_rms(s, sum.as_ptr(), dim, eps) };
                    mlp.store([row], sum);
                    let base = read_row(&residual, [row], e);
                    let to = output.row_ptr([row]);
                    let at = target(output.dtype(), to, f);
                    map(s, kernel, [sum.as_ptr(), weight_mlp, base, scalars], at, dim);
                    write(output.dtype(), to, f);
                }
            }
        }));
    });
}

/// `residual = a + b`, `output = rms(residual) * weight`, of the residual as stored.
pub(super) fn add_rms_norm(op: &AddRmsNorm<View>, lowering: &mut Lowering) {
    let AddRmsNorm { a, b, weight, residual, output, eps } = op.clone();
    let (isa, dim) = (lowering.isa, a.last());
    row_tasks(lowering, [a.extent(0), dim], move |rows, scratch| {
        let [weight_buffer, c, d, e, f] = scratch.floats([dim; 5]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // SAFETY: views of equal rows and a vector as long; the rows are this task's alone, and
            // each value of `a` is read before `residual` is written.
            unsafe {
                let weight = weight.as_ref().map(|weight| read_vector(weight, weight_buffer));
                for row in rows {
                    let inputs = [read_row(&a, [row], c), read_row(&b, [row], d)];
                    let to = residual.row_ptr([row]);
                    let at = target(residual.dtype(), to, e);
                    map(s, Sum, inputs, at, dim);
                    write(residual.dtype(), to, e);
                    let x = read_row(&residual, [row], e);
                    let factor = inverse_rms(s, x, dim, eps);
                    let to = output.row_ptr([row]);
                    let at = target(output.dtype(), to, f);
                    scale_row(s, (x, at), factor, weight, dim);
                    write(output.dtype(), to, f);
                }
            }
        }));
    });
}

/// `output = (input - mean) * rsqrt(variance + eps) * weight + bias`
pub(super) fn layer_norm(op: &LayerNorm<View>, lowering: &mut Lowering) {
    let LayerNorm { input, weight, bias, output, eps } = op.clone();
    let (isa, dim) = (lowering.isa, input.last());
    row_tasks(lowering, [input.extent(0), dim], move |rows, scratch| {
        let [a, b, c, centred, d] = scratch.floats([dim; 5]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // SAFETY: views of equal rows and vectors as long; the rows are this task's alone, and
            // each is read before it is written.
            unsafe {
                let weight = read_vector(&weight, a);
                let bias = match &bias {
                    Some(bias) => read_vector(bias, b),
                    None => {
                        b.fill(0.0);
                        b.as_ptr()
                    }
                };
                for row in rows {
                    let x = read_row(&input, [row], c);
                    let at = centred.as_mut_ptr();
                    // Sums of deviations from a rounded mean lose nothing to a large one; what the
                    // rounding left is the mean of the deviations.
                    let mean = fold(s, Sum, x, dim) / dim as f32;
                    map(s, Centred { mean }, [x], at, dim);
                    let rest = f64::from(fold(s, Sum, at, dim)) / dim as f64;
                    let squares = f64::from(fold(s, Squares, at, dim)) / dim as f64;
                    let factor = rsqrt((squares - rest * rest).max(0.0), eps);
                    let kernel = Affine { mean: rest as f32, factor };
                    let to = output.row_ptr([row]);
                    let y = target(output.dtype(), to, d);
                    map(s, kernel, [at.cast_const(), weight, bias], y, dim);
                    write(output.dtype(), to, d);
                }
            }
        }));
    });
}

//! The non-linearities of gated feed-forward layers.

use crate::isa::Simd;
use kiln_core::ops::Activation;

/// `x / (1 + exp(-a))`: with `a = x` this is SiLU, with `a` twice the argument of its tanh, GELU.
#[inline(always)]
fn gate<S: Simd>(s: S, x: S::F, a: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(x, s.add(one, s.exp(s.sub(s.splat(0.0), a))))
}

/// `x * sigmoid(x)`
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    gate(s, x, x)
}

/// `0.5 x (1 + tanh(u)) = x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const TWICE: f32 = 2.0 * 0.797_884_6;
    let cubic = s.fma(s.mul(x, x), s.splat(0.044_715 * TWICE), s.splat(TWICE));
    gate(s, x, s.mul(x, cubic))
}

/// One of them.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, activation: Activation, x: S::F) -> S::F {
    match activation {
        Activation::Silu => silu(s, x),
        Activation::GeluTanh => gelu_tanh(s, x),
    }
}

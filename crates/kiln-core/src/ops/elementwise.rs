//! Elementwise operations on rows.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

op! {
    /// `output = a + b`; a vector `b` is added to every row (a bias).
    Add = "add", in_place: [(output, a), (output, b)],
    tensors {
        /// `[rows, dim]` f32, f16 or bf16
        Read a,
        /// `[rows, dim]` of the type of `a`, or `[dim]` of that type or f32
        Read b,
        /// `[rows, dim]`, the type of `a`
        Write output,
    }
    params {}
}

op! {
    /// `output = a * b`; a vector `b` multiplies every row.
    Mul = "mul", in_place: [(output, a), (output, b)],
    tensors {
        /// `[rows, dim]` f32, f16 or bf16
        Read a,
        /// `[rows, dim]` of the type of `a`, or `[dim]` of that type or f32
        Read b,
        /// `[rows, dim]`, the type of `a`
        Write output,
    }
    params {}
}

op! {
    /// `output = input * factor`
    Scale = "scale", in_place: [(output, input)],
    tensors {
        /// `[rows, dim]` f32, f16 or bf16
        Read input,
        /// `[rows, dim]`, the type of `input`
        Write output,
    }
    params {
        /// The factor.
        factor: f32,
    }
}

op! {
    /// `output = cap * tanh(input / cap)`
    Softcap = "softcap", in_place: [(output, input)],
    tensors {
        /// `[rows, dim]` f32, f16 or bf16
        Read input,
        /// `[rows, dim]`, the type of `input`
        Write output,
    }
    params {
        /// The limit.
        cap: f32,
    }
}

op! {
    /// `output = gelu(gate) * up` with the tanh form of GELU
    /// (`0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`; Hendrycks and Gimpel, 2016).
    GeluMul = "gelu_mul", in_place: [(output, gate), (output, up)],
    tensors {
        /// `[rows, dim]` f32, f16 or bf16
        Read gate,
        /// `[rows, dim]`, the type of `gate`
        Read up,
        /// `[rows, dim]`, the type of `gate`
        Write output,
    }
    params {}
}

op! {
    /// `output = gate * sigmoid(gate) * up` (SwiGLU; Shazeer, 2020).
    SiluMul = "silu_mul", in_place: [(output, gate), (output, up)],
    tensors {
        /// `[rows, dim]` f32, f16 or bf16
        Read gate,
        /// `[rows, dim]`, the type of `gate`
        Read up,
        /// `[rows, dim]`, the type of `gate`
        Write output,
    }
    params {}
}

/// Checks that all tensors are `[rows, dim]` of one float type; `b` may be a vector.
fn alike(
    op: &'static str,
    first: (&'static str, &Tensor),
    second: Option<(&'static str, &Tensor)>,
    output: &Tensor,
) -> Result<[usize; 2], OpError> {
    let check = Check(op);
    let dims: [usize; 2] = check.dims(first.0, first.1)?;
    check.dtype(first.0, first.1, &DType::FLOATS)?;
    if let Some((name, t)) = second {
        if name == "b" && t.rank() == 1 {
            check.vector(name, t, dims[1], first)?;
        } else {
            check.shape(name, t, &dims)?;
            check.dtype_like(name, t, first)?;
        }
    }
    check.shape("output", output, &dims)?;
    check.dtype_like("output", output, first)?;
    Ok(dims)
}

macro_rules! binary {
    ($Name:ident, $a:ident, $b:ident, $flops:literal) => {
        impl Contract for $Name<Tensor> {
            fn check(&self) -> Result<(), OpError> {
                let first = (stringify!($a), &self.$a);
                let second = (stringify!($b), &self.$b);
                alike(Self::NAME, first, Some(second), &self.output).map(drop)
            }

            fn flops(&self) -> u64 {
                $flops * self.output.values() as u64
            }
        }
    };
}

binary!(Add, a, b, 1);
binary!(Mul, a, b, 1);
binary!(GeluMul, gate, up, 10);
binary!(SiluMul, gate, up, 5);

impl Contract for Scale<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        alike(Self::NAME, ("input", &self.input), None, &self.output)?;
        Check(Self::NAME).param(self.factor.is_finite(), "factor", "finite", self.factor)
    }

    fn flops(&self) -> u64 {
        self.output.values() as u64
    }
}

impl Contract for Softcap<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        alike(Self::NAME, ("input", &self.input), None, &self.output)?;
        let ok = self.cap.is_finite() && self.cap > 0.0;
        Check(Self::NAME).param(ok, "cap", "positive", self.cap)
    }

    fn flops(&self) -> u64 {
        4 * self.output.values() as u64
    }
}

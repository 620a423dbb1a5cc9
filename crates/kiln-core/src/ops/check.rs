//! The checks that contracts are written with.

use crate::error::{DTypes, OpError};
use crate::{DType, Tensor};
use std::fmt::Display;

/// Checks of one operation; every failure names it.
#[derive(Clone, Copy)]
pub(super) struct Check(pub(super) &'static str);

type Checked<T = ()> = Result<T, OpError>;

impl Check {
    /// The extents of a tensor of `N` axes, none of them zero.
    pub(super) fn dims<const N: usize>(
        self,
        name: &'static str,
        t: &Tensor,
    ) -> Checked<[usize; N]> {
        let shape = t.shape();
        let Ok(dims) = <[usize; N]>::try_from(&shape[..]) else {
            return Err(OpError::Rank { op: self.0, tensor: name, expected: N, got: shape.len() });
        };
        match dims.iter().position(|&extent| extent == 0) {
            Some(axis) => self.extent_rule(name, axis, "at least 1", 0),
            None => Ok(dims),
        }
    }

    /// The exact shape.
    pub(super) fn shape(self, name: &'static str, t: &Tensor, expected: &[usize]) -> Checked {
        let (op, tensor) = (self.0, name);
        let shape = t.shape();
        if shape.len() != expected.len() {
            let (expected, got) = (expected.len(), shape.len());
            return Err(OpError::Rank { op, tensor, expected, got });
        }
        for (axis, (&expected, &got)) in expected.iter().zip(shape.iter()).enumerate() {
            if expected != got {
                return Err(OpError::Extent { op, tensor, axis, expected, got });
            }
        }
        Ok(())
    }

    /// One extent.
    pub(super) fn extent(
        self,
        name: &'static str,
        t: &Tensor,
        axis: usize,
        expected: usize,
    ) -> Checked {
        match t.shape().get(axis).copied() {
            Some(got) if got == expected => Ok(()),
            got => {
                let got = got.unwrap_or(0);
                Err(OpError::Extent { op: self.0, tensor: name, axis, expected, got })
            }
        }
    }

    /// Fails with a rule about an extent.
    pub(super) fn extent_rule<T>(
        self,
        tensor: &'static str,
        axis: usize,
        rule: &'static str,
        got: usize,
    ) -> Checked<T> {
        Err(OpError::ExtentRule { op: self.0, tensor, axis, rule, got })
    }

    /// One of several element types.
    pub(super) fn dtype(
        self,
        name: &'static str,
        t: &Tensor,
        expected: &'static [DType],
    ) -> Checked {
        if expected.contains(&t.dtype()) {
            return Ok(());
        }
        let (expected, got) = (DTypes(expected), t.dtype());
        Err(OpError::DType { op: self.0, tensor: name, expected, got })
    }

    /// The element type of another argument.
    pub(super) fn dtype_like(
        self,
        name: &'static str,
        t: &Tensor,
        like: (&'static str, &Tensor),
    ) -> Checked {
        if t.dtype() == like.1.dtype() {
            return Ok(());
        }
        let (expected, got) = (like.1.dtype(), t.dtype());
        Err(OpError::DTypeLike { op: self.0, tensor: name, like: like.0, expected, got })
    }

    /// A vector `[dim]` of the type of `like` or f32: weights of norms, as GGUF stores them.
    pub(super) fn vector(
        self,
        name: &'static str,
        t: &Tensor,
        dim: usize,
        like: (&'static str, &Tensor),
    ) -> Checked {
        self.shape(name, t, &[dim])?;
        if t.dtype() == DType::F32 { Ok(()) } else { self.dtype_like(name, t, like) }
    }

    /// A tensor without gaps.
    pub(super) fn contiguous(self, name: &'static str, t: &Tensor) -> Checked {
        if t.is_contiguous() {
            return Ok(());
        }
        Err(OpError::Layout { op: self.0, tensor: name, rule: "contiguous" })
    }

    /// A rule about a scalar parameter.
    pub(super) fn param(
        self,
        ok: bool,
        param: &'static str,
        rule: &'static str,
        got: impl Display,
    ) -> Checked {
        if ok {
            return Ok(());
        }
        Err(OpError::Param { op: self.0, param, rule, got: got.to_string() })
    }

    /// The epsilon of a norm.
    pub(super) fn eps(self, eps: f32) -> Checked {
        self.param(eps.is_finite() && eps >= 0.0, "eps", "finite and not negative", eps)
    }

    /// A rule about which tensors go together.
    pub(super) fn combination(self, ok: bool, tensor: &'static str, rule: &'static str) -> Checked {
        if ok { Ok(()) } else { Err(OpError::Combination { op: self.0, tensor, rule }) }
    }
}

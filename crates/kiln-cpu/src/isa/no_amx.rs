//! AMX on systems where tiles are not asked for: a token that nobody can hold.

use super::matrix::{B, F, MatrixUnit, PairScales};
use super::{Scalar, Vectors};

/// No proof.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Amx {}

impl Amx {
    /// Nothing.
    pub(crate) fn new() -> Option<Self> {
        None
    }

    pub(super) fn token(self) -> Vectors {
        match self {}
    }
}

impl MatrixUnit for Amx {
    type Vectors = Scalar;

    const NAME: &'static str = "none";

    unsafe fn assume() -> Self {
        // SAFETY: the contract is that the unit is there, which it never is.
        unsafe { std::hint::unreachable_unchecked() }
    }

    fn vectors(self) -> Scalar {
        match self {}
    }

    fn run<R>(self, _: impl FnOnce() -> R) -> R {
        match self {}
    }

    fn with_tiles<R>(self, _: impl FnOnce() -> R) -> R {
        match self {}
    }

    unsafe fn multiply<const COLUMNS: usize>(
        self,
        _: *const u8,
        _: *const u8,
        _: usize,
        _: *mut f32,
        _: bool,
    ) {
        match self {}
    }

    fn to_bf16(self, _: [F<Self>; 2]) -> B<Self> {
        match self {}
    }

    fn pair_scales(self, _: u32, _: F<Self>, _: F<Self>) -> PairScales<Self> {
        match self {}
    }

    fn pairs(self, _: u32, _: B<Self>, _: &PairScales<Self>) -> [B<Self>; 2] {
        match self {}
    }
}

//! Shapes of up to four axes.

use std::fmt;
use std::ops::Deref;

/// Most axes a tensor can have.
pub const MAX_RANK: usize = 4;

/// Extents by axis, outermost first. Dereferences to a slice.
///
/// ```
/// use kiln_core::Shape;
/// let shape = Shape::from([2, 3]);
/// assert_eq!(&shape[..], &[2, 3]);
/// assert_eq!(shape.to_string(), "[2, 3]");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    extents: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// A shape from a slice, or `None` for no axis or more than [`MAX_RANK`].
    pub fn from_slice(extents: &[usize]) -> Option<Self> {
        if extents.is_empty() || extents.len() > MAX_RANK {
            return None;
        }
        let mut all = [1; MAX_RANK];
        all[..extents.len()].copy_from_slice(extents);
        Some(Self { extents: all, rank: extents.len() })
    }

    /// Number of values, or `None` on overflow.
    pub fn values(&self) -> Option<usize> {
        self.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent))
    }

    /// Extent of the last axis.
    pub fn last(&self) -> usize {
        self.extents[self.rank - 1]
    }

    pub(crate) fn set(&mut self, axis: usize, extent: usize) {
        self.extents[axis] = extent;
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(extents: [usize; N]) -> Self {
        const { assert!(N > 0 && N <= MAX_RANK, "a tensor has one to four axes") };
        let mut all = [1; MAX_RANK];
        all[..N].copy_from_slice(&extents);
        Self { extents: all, rank: N }
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.extents[..self.rank]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self[..])
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

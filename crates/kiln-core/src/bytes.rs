//! Shared, immutable host bytes: how a file's tensor data reaches a device without a copy.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A range of immutable host memory that keeps its owner (a mapped file, a vector) alive.
///
/// Cloning is cheap. A backend that can address host memory uses the bytes where they lie.
///
/// ```
/// use kiln_core::SharedBytes;
/// let bytes = SharedBytes::from_vec(vec![1, 2, 3, 4]);
/// let middle = bytes.slice(1..3).unwrap();
/// assert_eq!(middle.as_ref(), &[2, 3]);
/// assert!(bytes.slice(2..5).is_none());
/// ```
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// All bytes of `owner`. Its `as_ref` must return the same memory on every call.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let range = 0..(*owner).as_ref().len();
        Self { owner, range }
    }

    /// The bytes of a vector.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self::new(Arc::new(bytes))
    }

    /// A part of these bytes, relative to their start; `None` where it reaches past their end.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: Arc::clone(&self.owner), range: start..start + range.len() })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True where there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or(&[])
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytes").field("len", &self.len()).finish()
    }
}

//! Models split over several files, `NAME-00001-of-00003.gguf` and so on.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use crate::FormatError;

/// Number of parts; in every part.
const COUNT_KEY: &str = "split.count";
/// Number of this part, from 0; in every part.
const PART_KEY: &str = "split.no";
/// Tensors of all parts together.
const TENSORS_KEY: &str = "split.tensors.count";

/// What one part says about the whole.
pub(crate) struct Split {
    /// Number of parts, at least 1.
    pub(crate) count: usize,
    /// Number of this part, from 0.
    part: usize,
    /// Tensors of all parts together, where the file says so.
    tensors: Option<usize>,
}

impl Split {
    /// Reads the split keys; a file without them is the only part.
    pub(crate) fn of(metadata: &Metadata) -> Result<Self, FormatError> {
        let count = metadata.usize_of(COUNT_KEY)?.unwrap_or(1).max(1);
        if count == 1 {
            return Ok(Self { count, part: 0, tensors: None });
        }
        let part = metadata.required_usize(PART_KEY)?;
        Ok(Self { count, part, tensors: metadata.usize_of(TENSORS_KEY)? })
    }

    /// Checks that this is part `index` of as many as `first` says.
    pub(crate) fn check(&self, index: usize, first: &Split) -> Result<(), FormatError> {
        let mismatch = |what, expected, got| {
            if expected == got {
                return Ok(());
            }
            Err(FormatError::SplitMismatch { part: index.saturating_add(1), what, expected, got })
        };
        mismatch(COUNT_KEY, first.count, self.count)?;
        mismatch(PART_KEY, index, self.part)
    }

    /// Checks the number of tensors found in all parts.
    pub(crate) fn check_tensors(&self, found: usize) -> Result<(), FormatError> {
        match self.tensors {
            Some(expected) if expected != found => Err(FormatError::SplitMismatch {
                part: 1,
                what: "number of tensors in all parts",
                expected,
                got: found,
            }),
            _ => Ok(()),
        }
    }

    /// The paths of parts 1, 2, and so on, beside the first part at `path`.
    pub(crate) fn other_parts(
        &self,
        path: &Path,
    ) -> Result<impl Iterator<Item = PathBuf> + use<>, FormatError> {
        let count = self.count;
        let end = suffix(self.part, count);
        let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(&end));
        let Some(stem) = stem.map(str::to_owned) else {
            return Err(FormatError::SplitName { count, suffix: end });
        };
        let path = path.to_owned();
        let part_path = move |part| path.with_file_name(format!("{stem}{}", suffix(part, count)));
        if self.part != 0 {
            let part = self.part.saturating_add(1);
            return Err(FormatError::NotFirstSplit { part, first: part_path(0) });
        }
        Ok((1..count).map(part_path))
    }
}

/// The end of the file name of a part, counted from 0.
fn suffix(part: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", part.saturating_add(1))
}

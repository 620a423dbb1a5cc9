//! Files as memory.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use kiln_core::SharedBytes;
use memmap2::Mmap;

use crate::FormatError;

/// Maps the regular file at `path` for reading.
pub(crate) fn map(path: &Path) -> Result<SharedBytes, FormatError> {
    let io = |action| move |error| FormatError::Io { action, path: path.to_owned(), error };
    // Opening a pipe would wait for a writer, so the kind of file is asked for first.
    let kind = std::fs::metadata(path).map_err(io("open"))?;
    if !kind.is_file() {
        return Err(FormatError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io("open"))?;
    if kind.len() == 0 {
        return Ok(SharedBytes::from_vec(Vec::new()));
    }
    // SAFETY: the mapping is read-only and owned by the value that hands out its bytes. That no
    // process changes the file while it is mapped is the caller's duty, stated on the public
    // functions that open files.
    let mapping = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
    Ok(SharedBytes::new(Arc::new(mapping)))
}

//! Replacing a file by a complete new one, or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::FormatError;

/// A new file under a temporary name; removed unless [`Replacement::finish`] gives it its own.
pub(crate) struct Replacement {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl Replacement {
    /// Creates the temporary file in the folder of `target`.
    pub(crate) fn create(target: &Path) -> Result<Self, FormatError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if target.file_name().is_none() || target.is_dir() {
            return Err(FormatError::NotAFile { path: target.to_owned() });
        }
        loop {
            let serial = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".kiln-{}-{serial}.tmp", std::process::id());
            let temporary = target.with_file_name(name);
            match File::create_new(&temporary) {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        temporary,
                        target: target.to_owned(),
                        finished: false,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(FormatError::Io { action: "create", path: temporary, error });
                }
            }
        }
    }

    /// The file to write to.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file in the target's place once its data has reached the device.
    pub(crate) fn finish(mut self) -> Result<(), FormatError> {
        let io = |action| {
            let path = self.target.clone();
            move |error| FormatError::Io { action, path, error }
        };
        self.file.sync_all().map_err(io("write"))?;
        fs::rename(&self.temporary, &self.target).map_err(io("replace"))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.finished {
            // A file that cannot be removed is left under its temporary name; there is no caller
            // left to tell.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

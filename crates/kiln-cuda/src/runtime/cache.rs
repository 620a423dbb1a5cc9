//! Compiled kernels on disk.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder of cubins. A file that is damaged, or cannot be written, costs a compilation.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
}

/// First bytes of an entry, before the checksum and the cubin.
const MAGIC: &[u8; 8] = b"kilncub1";

impl Cache {
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    fn path(&self, name: &str, key: u64) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{name}-{key:016x}.cubin")))
    }

    /// The entry of that key, where it is whole.
    pub(crate) fn get(&self, name: &str, key: u64) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path(name, key)?).ok()?;
        let (head, cubin) = bytes.split_at_checked(16)?;
        let sum = u64::from_le_bytes(head[8..].try_into().ok()?);
        (head[..8] == MAGIC[..] && sum == hash(&[cubin])).then(|| cubin.to_vec())
    }

    /// Stores an entry: a temporary file, then a rename, so that nobody reads half of it.
    pub(crate) fn put(&self, name: &str, key: u64, cubin: &[u8]) {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let Some(path) = self.path(name, key) else { return };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("{}-{count}.tmp", process::id()));
        // Without the entry the kernel is compiled again: a failure is no error.
        if write(&temporary, cubin).and_then(|()| fs::rename(&temporary, &path)).is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}

fn write(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::File::create(path)?;
    file.write_all(MAGIC)?;
    file.write_all(&hash(&[cubin]).to_le_bytes())?;
    file.write_all(cubin)?;
    file.sync_all()
}

/// FNV-1a over the parts, each ended by its length.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for part in parts {
        add(part);
        add(&part.len().to_le_bytes());
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kiln-cuda-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn entries_come_back_and_damaged_ones_do_not() {
        let folder = folder("cache");
        let cache = Cache::new(Some(folder.clone()));
        assert_eq!(cache.get("norms", 7), None);
        cache.put("norms", 7, b"cubin");
        assert_eq!(cache.get("norms", 7).as_deref(), Some(&b"cubin"[..]));
        assert_eq!(cache.get("norms", 8), None);
        let path = cache.path("norms", 7).unwrap();
        for damaged in [&b"kilncub1"[..], b"", b"kilncub1\0\0\0\0\0\0\0\0cubin"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get("norms", 7), None);
        }
        cache.put("norms", 7, b"again");
        assert_eq!(cache.get("norms", 7).as_deref(), Some(&b"again"[..]));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn parts_are_kept_apart() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}

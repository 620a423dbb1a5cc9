//! A position in untrusted bytes that cannot leave them.

use super::MAX_STRING_BYTES;
use crate::FormatError;

/// Reads little-endian values front to back; every read is checked against the end of the bytes.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of the next byte to be read.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn truncated(&self, wanted: u64) -> FormatError {
        FormatError::Truncated {
            needs: (self.at as u64).saturating_add(wanted),
            has: self.bytes.len() as u64,
        }
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: u64) -> Result<&'a [u8], FormatError> {
        let taken = usize::try_from(len)
            .ok()
            .and_then(|len| self.bytes.get(self.at..)?.get(..len))
            .ok_or_else(|| self.truncated(len))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let chunk = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let chunk = *chunk.ok_or_else(|| self.truncated(N as u64))?;
        self.at += N;
        Ok(chunk)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn magic(&mut self) -> Result<[u8; 4], FormatError> {
        self.array()
    }

    /// A string: its length as u64, then that many bytes of any content.
    pub(crate) fn string(&mut self, limit: u64) -> Result<&'a [u8], FormatError> {
        let at = self.at as u64;
        let len = self.u64()?;
        if len > limit && len <= self.remaining() as u64 || len > MAX_STRING_BYTES {
            return Err(FormatError::StringLength { at, len, limit });
        }
        self.take(len)
    }

    /// A string that must be UTF-8.
    pub(crate) fn name(&mut self, what: &'static str, limit: u64) -> Result<&'a str, FormatError> {
        let at = self.at as u64;
        std::str::from_utf8(self.string(limit)?).map_err(|_| FormatError::NameNotUtf8 { what, at })
    }
}

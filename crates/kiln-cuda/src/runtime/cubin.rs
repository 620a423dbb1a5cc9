//! What a cubin says about its kernels: registers and local memory, read from the ELF file.

use std::collections::BTreeMap;

/// Resources of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: arrays that registers cannot hold, and spills.
    pub local: u32,
}

/// `EIATTR_REGCOUNT` and `EIATTR_FRAME_SIZE` of `.nv.info`: pairs of a symbol and a value.
const REGISTERS: u8 = 0x2f;
const FRAME: u8 = 0x11;

/// Resources by name of kernel; `None` where the bytes are no cubin.
pub fn resources(cubin: &[u8]) -> Option<BTreeMap<String, Resources>> {
    let sections = sections(cubin)?;
    let info = sections.iter().find(|section| section.name == ".nv.info")?;
    let symbols = sections.iter().find(|section| section.kind == 2)?;
    let names = sections.get(symbols.link)?;
    let mut result: BTreeMap<String, Resources> = BTreeMap::new();
    let mut rest = info.bytes;
    while let [format, attribute, low, high, ..] = *rest {
        let size = usize::from(u16::from_le_bytes([low, high]));
        // Only the fourth format has bytes of its own; the others keep the value in the size.
        let size = if format == 4 { size } else { 0 };
        let value = rest.get(4..4 + size)?;
        if matches!(attribute, REGISTERS | FRAME) && size >= 8 {
            let symbol = read_u32(value, 0)? as usize;
            let name = read_u32(symbols.bytes, symbol * 24)? as usize;
            let entry = result.entry(text(names.bytes, name)?).or_default();
            let amount = read_u32(value, 4)?;
            if attribute == REGISTERS {
                entry.registers = amount;
            } else {
                entry.local = amount;
            }
        }
        rest = &rest[4 + size..];
    }
    Some(result)
}

struct Section<'a> {
    name: String,
    kind: u32,
    link: usize,
    bytes: &'a [u8],
}

/// The sections of a 64-bit little-endian ELF file.
fn sections(elf: &[u8]) -> Option<Vec<Section<'_>>> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let start = read_u64(elf, 0x28)?;
    let size = usize::from(read_u16(elf, 0x3a)?);
    let count = usize::from(read_u16(elf, 0x3c)?);
    let names = usize::from(read_u16(elf, 0x3e)?);
    let header = |index: usize| {
        let at = start.checked_add(index.checked_mul(size)?)?;
        elf.get(at..at.checked_add(size)?)
    };
    let bytes = |header: &[u8]| -> Option<&[u8]> {
        if read_u32(header, 4)? == 8 {
            return Some(&[]);
        }
        let (offset, size) = (read_u64(header, 0x18)?, read_u64(header, 0x20)?);
        elf.get(offset..offset.checked_add(size)?)
    };
    let names = bytes(header(names)?)?;
    (0..count)
        .map(|index| {
            let header = header(index)?;
            Some(Section {
                name: text(names, read_u32(header, 0)? as usize)?,
                kind: read_u32(header, 4)?,
                link: read_u32(header, 0x28)? as usize,
                bytes: bytes(header)?,
            })
        })
        .collect()
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<usize> {
    let value = u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?);
    value.try_into().ok()
}

fn text(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

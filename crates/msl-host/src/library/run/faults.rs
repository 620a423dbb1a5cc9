//! Faults of the runtime as values, with lines of the source.

use std::process::Command;

use super::super::Function;
use super::super::launch::Fault as Raw;
use super::Image;
use crate::{AccessKind, DispatchError, Fault, FaultKind, Region};

pub(super) fn to_error(function: &Function, raws: &[Raw]) -> DispatchError {
    let kernel = &function.info().name;
    let mut faults = raws.iter().map(|raw| fault(function, kernel, raw));
    match faults.next() {
        Some(first) => DispatchError::Fault { fault: Box::new(first), further: faults.collect() },
        None => DispatchError::Invalid {
            kernel: kernel.into(),
            what: "a fault without a record".into(),
        },
    }
}

fn fault(function: &Function, kernel: &str, raw: &Raw) -> Fault {
    let image = &function.library.image;
    let region = match raw.region_kind {
        0 | 1 => Region::Buffer(raw.region_index),
        2 => Region::ThreadgroupArgument(raw.region_index),
        3 => Region::ThreadgroupArray(raw.region_index),
        _ => Region::Unknown,
    };
    let access = |code| match code {
        0 => AccessKind::Read,
        1 => AccessKind::Write,
        _ => AccessKind::Atomic,
    };
    let kind = match raw.code {
        0 => FaultKind::OutOfBounds {
            region,
            offset: raw.offset,
            bytes: raw.bytes,
            size: raw.size,
            access: access(raw.access),
        },
        1 => FaultKind::UnwrittenRead { region, offset: raw.offset, bytes: raw.bytes },
        2 => FaultKind::ReadOnlyWrite { region, offset: raw.offset },
        3 => FaultKind::Conflict {
            region,
            offset: raw.offset,
            access: access(raw.access),
            other_thread: raw.other_thread,
            same_threadgroup: raw.other_group_known == 0,
            other_access: access(raw.other_access),
        },
        4 => FaultKind::BarrierDivergence {
            waiting: raw.waiting,
            returned: raw.returned,
            other_line: (raw.other_line != 0).then_some(raw.other_line),
        },
        5 => FaultKind::Trap { signal: raw.signal },
        6 => FaultKind::Timeout,
        8 => FaultKind::UnsetConstant {
            name: function
                .library
                .constants
                .get(raw.region_index as usize)
                .map(|constant| constant.name.clone())
                .unwrap_or_default(),
        },
        _ => FaultKind::ThreadgroupMemory { bytes: raw.size, limit: 0 },
    };
    let line = if raw.line != 0 { Some(raw.line) } else { line_of(image, raw.pc) };
    Fault { kernel: kernel.into(), line, threadgroup: raw.group, thread: raw.thread, kind }
}

/// The innermost line of the MSL source at an address, through inlined functions of the shim.
fn line_of(image: &Image, pc: u64) -> Option<u32> {
    if pc == 0 {
        return None;
    }
    let output = Command::new(&image.addr2line)
        .arg("-i")
        .arg("-e")
        .arg(&image.path)
        .arg(format!("{pc:#x}"))
        .output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    text.lines().find_map(|line| {
        let (file, line) = line.rsplit_once(':')?;
        let named = file == "msl" || file.ends_with("/msl");
        named.then(|| line.split(' ').next()?.parse().ok()).flatten()
    })
}

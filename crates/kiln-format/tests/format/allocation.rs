//! Memory while opening: bounded by the size of the file, whatever its header says.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kiln_core::SharedBytes;
use kiln_format::Safetensors;

use crate::builder::*;
use crate::malformed;

/// Counts the bytes each thread has allocated, and the most it had at once.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // Threads that are ending allocate after their counters are gone; those are not measured.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every request goes unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `dealloc`; the pointer is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were allocated at once while `work` ran.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before).cast_unsigned())
}

/// Memory for a file of `len` bytes: a small multiple, and some for messages.
fn bound(len: usize) -> usize {
    6 * len + 4096
}

fn check(name: &str, bytes: Vec<u8>) -> bool {
    let len = bytes.len();
    let file = SharedBytes::from_vec(bytes);
    let (result, peak) = peak(|| kiln_format::Gguf::from_bytes(file));
    assert!(peak <= bound(len), "{name}: {peak} bytes for a file of {len}");
    result.is_ok()
}

#[test]
fn malformed_files_stay_within_the_bound() {
    for case in malformed::cases() {
        assert!(!check(case.name, case.bytes), "{}", case.name);
    }
}

#[test]
fn counts_that_just_fit_stay_within_the_bound() {
    let filler = if cfg!(miri) { 1 << 10 } else { 1 << 20 };
    let fill = |pieces: Pieces| [pieces.build(), vec![0; filler]].concat();
    let entries = Pieces { entry_count: Some(filler as u64 / 14), ..Pieces::default() };
    assert!(!check("entries", fill(entries)));
    let tensors = Pieces { tensor_count: Some(filler as u64 / 25), ..Pieces::default() };
    assert!(!check("tensors", fill(tensors)));
    for element in [U8, F32, BOOL, STRING, U64] {
        let len = filler as u64 / if element == STRING { 8 } else { 1 };
        let pieces = Pieces::default().entry("k", ARRAY, array(element, len, []));
        check("array", fill(pieces));
    }
}

#[test]
fn the_densest_valid_files_stay_within_the_bound() {
    let many = if cfg!(miri) { 100 } else { 20_000 };
    let names: Vec<String> = (0..many).map(|i| format!("{i:x}")).collect();
    let entries = names.iter().fold(Pieces::default(), |pieces, name| pieces.entry(name, U8, [1]));
    assert!(check("entries", entries.build()));
    let tensors =
        names.iter().fold(Pieces::default(), |pieces, name| pieces.tensor(name, &[0], 0, 0));
    assert!(check("tensors", tensors.data(1).build()));
    let strings = array(STRING, many, vec![0; 8 * many as usize]);
    assert!(check("strings", Pieces::default().entry("k", ARRAY, strings).build()));
    let split = Pieces::default().entry("split.count", U64, u64::MAX.to_le_bytes());
    assert!(!check("parts", split.entry("split.no", U8, [0]).build()));
}

#[test]
fn random_damage_stays_within_the_bound() {
    let file = sample().build();
    let mut random = Random(2);
    for _ in 0..if cfg!(miri) { 10 } else { 5_000 } {
        let mut damaged = file.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(damaged.len());
            damaged[at] = random.next() as u8;
        }
        check("random damage", damaged);
    }
}

#[test]
fn safetensors_headers_stay_within_a_bound() {
    let scale = if cfg!(miri) { 50 } else { 20_000 };
    let headers = [
        format!(
            "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}1],\"data_offsets\":[0,1]}}}}",
            "1,".repeat(scale)
        ),
        format!(
            "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":[{}1]}}}}",
            "1,".repeat(scale)
        ),
        format!("{{\"a\":{}", "[".repeat(scale)),
        format!(
            "{{{}\"z\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}}}",
            (0..scale)
                .map(|i| format!(
                    "\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},"
                ))
                .collect::<String>()
        ),
    ];
    for (header, limit) in headers.into_iter().zip([2, 2, 2, 24]) {
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        let len = bytes.len();
        let file = SharedBytes::from_vec(bytes);
        let (_, peak) = peak(|| Safetensors::from_bytes(file).is_ok());
        assert!(peak <= limit * len + 4096, "{peak} bytes for {len}: {}", &header[..60]);
    }
}

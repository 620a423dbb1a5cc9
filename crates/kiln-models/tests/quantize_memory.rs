//! Memory while a file is quantised: bounded, however large its tensors are.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicIsize, Ordering};

use kiln::format::{GgmlType, Gguf, GgufWriter, TensorData};
use kiln_models::quantize::{FileType, QuantizeOptions, quantize};

/// Counts the bytes that all threads have allocated, and the most at once.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn count(change: isize) {
    let live = LIVE.fetch_add(change, Ordering::Relaxed) + change;
    PEAK.fetch_max(live, Ordering::Relaxed);
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

#[test]
fn memory_does_not_grow_with_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    let (rows, row) = (16384, 2048);
    let mut writer = GgufWriter::new();
    let zeros =
        TensorData::stream(move |out| (0..rows).try_for_each(|_| out.write_all(&[0; 2 * 2048])));
    writer.tensor("blk.0.ffn_up.weight", GgmlType::F16, &[rows, row], zeros).unwrap();
    writer.write(&source).unwrap();
    let file = Gguf::open(&source).unwrap();

    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let options =
        QuantizeOptions { threads: Some(4), measure: true, ..QuantizeOptions::new(FileType::Q8_0) };
    quantize(&file, &target, &options, |_, _| ControlFlow::Continue(())).unwrap();
    let used = PEAK.load(Ordering::Relaxed) - before;
    assert!(used < 8 << 20, "{used} bytes for a tensor of {} bytes", 2 * rows * row);
}

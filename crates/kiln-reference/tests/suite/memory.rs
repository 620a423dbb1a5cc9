//! The pool, imported weights and host access.

use crate::common::*;
use kiln_core::ops::{Add, Scale};
use kiln_core::{DType, Error, MemoryUse, SharedBytes};

#[test]
fn the_pool_counts_and_reuses_buffers() {
    let lab = Lab::new();
    let used = |live, high_water, idle| MemoryUse { live, high_water, idle, ..Default::default() };
    assert_eq!(lab.device.memory(), used(0, 0, 0));
    let a = lab.f32(&[1.0; 100], [100]);
    let b = lab.f32(&[2.0; 3], [3]);
    assert_eq!(lab.device.memory(), used(512 + 256, 768, 0));
    let view = a.slice(0, 5..6).unwrap();
    drop(a);
    assert_eq!(lab.device.memory(), used(768, 768, 0), "a view keeps its storage");
    drop(view);
    assert_eq!(lab.device.memory(), used(256, 768, 512));
    // 300 bytes round up to the same size, and the stale values are gone.
    let c = lab.zeros(DType::U8, [300]);
    assert_eq!(lab.device.memory(), used(768, 768, 0));
    assert_eq!(values(&c), [0.0; 300]);
    drop((b, c));
    assert_eq!(lab.device.memory(), used(0, 768, 768));
    lab.device.trim();
    assert_eq!(lab.device.memory(), used(0, 768, 0));
    let d = lab.zeros(DType::U8, [1]);
    assert_eq!(lab.device.memory(), used(256, 768, 0));
    drop(d);
    lab.device.trim();
    let _e = lab.zeros(DType::F32, [1000]);
    assert_eq!(lab.device.memory(), used(4096, 4096, 0));
}

#[test]
fn imported_weights_are_borrowed_and_counted() {
    let lab = Lab::new();
    let bytes = SharedBytes::from_vec((0..72).collect());
    let weight = lab.device.import(DType::Q4_0, [2, 64], bytes.clone()).unwrap();
    let memory = lab.device.memory();
    assert_eq!((memory.weights, memory.prepared, memory.live), (72, 0, 0));
    assert_eq!(bits(&weight), bytes.as_ref());
    assert_eq!(bits(&weight.slice(0, 1..2).unwrap()), bytes.as_ref()[36..]);
    assert_eq!(
        lab.device.import(DType::Q4_0, [2, 64], bytes.slice(1..72).unwrap()).unwrap_err(),
        Error::Length { operation: "import", expected: 72, got: 71 }
    );
    let partial = lab.device.import(DType::Q4_0, [2, 65], bytes).unwrap_err();
    assert!(matches!(partial, Error::Shape { dtype: DType::Q4_0, .. }), "{partial}");
}

#[test]
fn impossible_sizes_are_errors() {
    let lab = Lab::new();
    let huge = lab.device.tensor(DType::U8, [1 << 60]).unwrap_err();
    assert_eq!(huge, Error::OutOfMemory { device: "reference".into(), requested: 1 << 60 });
    let overflow = lab.device.tensor(DType::F32, [usize::MAX / 2, 8]).unwrap_err();
    assert!(matches!(overflow, Error::Shape { .. }), "{overflow}");
    assert_eq!(lab.device.memory(), MemoryUse::default());
}

#[test]
fn an_impossible_arena_is_an_error() {
    let lab = Lab::new();
    let [x, y] = [(); 2].map(|()| lab.zeros(DType::F32, [1, 1]));
    let mut rec = lab.device.record();
    let parts = [(); 3].map(|()| {
        let temp = rec.temp(DType::F32, [(1 << 61) - 1, 1]).unwrap();
        temp.slice(0, (1 << 61) - 2..(1 << 61) - 1).unwrap()
    });
    for output in &parts {
        rec.push(Scale { input: &x, output, factor: 1.0 }).unwrap();
    }
    for input in &parts {
        rec.push(Scale { input, output: &y, factor: 1.0 }).unwrap();
    }
    let error = rec.finish().unwrap_err();
    assert_eq!(error, Error::OutOfMemory { device: "reference".into(), requested: usize::MAX });
}

#[test]
fn host_access_is_checked() {
    let lab = Lab::new();
    let x = lab.zeros(DType::F32, [2, 3]);
    assert_eq!(
        x.write(&[1.0f32; 5]),
        Err(Error::Length { operation: "write", expected: 24, got: 20 })
    );
    assert_eq!(
        x.to_vec::<u32>(),
        Err(Error::ElementType { operation: "read", expected: DType::F32, got: DType::U32 })
    );
    x.slice(1, 1..3).unwrap().write(&[1.0f32, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!(values(&x), [0.0, 1.0, 2.0, 0.0, 3.0, 4.0]);
    assert_eq!(x.slice(1, 1..2).unwrap().to_vec::<f32>().unwrap(), [1.0, 3.0]);
}

#[test]
fn runs_and_host_access_of_several_threads_take_turns() {
    let lab = Lab::new();
    let x = lab.f32(&[1.0; 4096], [64, 64]);
    let mut rec = lab.device.record();
    for _ in 0..4 {
        rec.push(Add { a: &x, b: &x, output: &x }).unwrap();
        rec.push(Scale { input: &x, output: &x, factor: 0.5 }).unwrap();
    }
    let step = rec.finish().unwrap();
    std::thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| (0..50).for_each(|_| step.run().unwrap())));
        while !runs.iter().all(|run| run.is_finished()) {
            assert_eq!(values(&x), [1.0; 4096]);
        }
    });
    assert_eq!(values(&x), [1.0; 4096]);
}

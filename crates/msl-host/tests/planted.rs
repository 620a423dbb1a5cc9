//! Kernels with a planted bug: each is caught, at its line.

mod common;

use common::{compile, compiler, run};
use msl_host::{
    AccessKind, Binding, Buffer, CompileError, ConstantValue, Dispatch, DispatchError, Fault,
    FaultKind, FunctionConstants, FunctionError, Region, RunOptions,
};

fn fault(result: Result<msl_host::Counters, DispatchError>) -> Fault {
    match result {
        Err(DispatchError::Fault { fault, .. }) => *fault,
        other => panic!("expected a fault, got {other:?}"),
    }
}

const NORM: &str = r"
using namespace metal;
kernel void norm(device const float *x [[buffer(0)]], device float *y [[buffer(1)]], constant uint &d [[buffer(2)]],
                 threadgroup float *scratch [[threadgroup(0)]], uint row [[threadgroup_position_in_grid]],
                 uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                 uint sg [[simdgroup_index_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
    float total = 0;
    for (uint pass = 0; pass < 2; pass++) {
        float sum = 0;
        for (uint i = t; i < d; i += n) sum += x[row * d + i] * x[row * d + i];
        sum = simd_sum(sum);
        if (lane == 0) scratch[sg] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = 0; i < n / 32; i++) total += scratch[i];
        /*BARRIER*/ threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (uint i = t; i < d; i += n) y[row * d + i] = x[row * d + i] * rsqrt(0.5f * total / d + 1e-6f);
}";

fn norm(
    source: &str,
    seed: u64,
    scratch: usize,
    d: u32,
    rows: u32,
    allocated: u32,
) -> Result<msl_host::Counters, DispatchError> {
    let library = compile(source);
    let x = Buffer::from_slice(&vec![1.0f32; (allocated * d) as usize]).unwrap();
    let y = Buffer::new((allocated * d * 4) as usize).unwrap();
    run(
        &library,
        "norm",
        &FunctionConstants::new(),
        Dispatch::threadgroups([rows, 1, 1], [d.min(512), 1, 1])
            .bind(Binding::buffer(0, &x, 0))
            .bind(Binding::buffer(1, &y, 0))
            .bind(Binding::bytes(2, &d.to_ne_bytes()))
            .threadgroup(0, scratch)
            .options(RunOptions { seed, ..RunOptions::default() }),
    )
}

#[test]
fn the_right_kernel_passes_under_all_schedules() {
    let first = norm(NORM, 0, 64, 512, 3, 3).unwrap();
    for seed in 1..8 {
        assert_eq!(norm(NORM, seed, 64, 512, 3, 3).unwrap(), first);
    }
    assert_eq!(first.threadgroup_barriers, 3 * 4);
    assert_eq!(first.threadgroup_memory, 64);
    assert_eq!(first.device_bytes_written, 3 * 512 * 4);
}

#[test]
fn a_missing_barrier_after_the_sum_is_read_is_a_conflict() {
    let broken = NORM.replace("/*BARRIER*/ threadgroup_barrier(mem_flags::mem_threadgroup);", "");
    let found = fault(norm(&broken, 0, 64, 512, 1, 1));
    assert!(
        matches!(found.kind, FaultKind::Conflict { region: Region::ThreadgroupArgument(0), .. }),
        "{found}"
    );
    assert!(found.line.is_some_and(|line| line == 12 || line == 14), "{found}");
}

#[test]
fn a_scratch_overflow_at_512_threads_is_out_of_bounds() {
    norm(NORM, 0, 32, 256, 1, 1).unwrap();
    let found = fault(norm(NORM, 0, 32, 512, 1, 1));
    let expected = FaultKind::OutOfBounds {
        region: Region::ThreadgroupArgument(0),
        offset: 32,
        bytes: 4,
        size: 32,
        access: AccessKind::Write,
    };
    assert_eq!((found.kind, found.line), (expected, Some(12)));
}

#[test]
fn a_row_too_many_is_out_of_bounds() {
    let found = fault(norm(NORM, 0, 64, 512, 4, 3));
    assert_eq!(found.threadgroup, [3, 0, 0]);
    assert!(
        matches!(
            found.kind,
            FaultKind::OutOfBounds { region: Region::Buffer(0), offset: 6144, size: 6144, .. }
        ),
        "{found}"
    );
}

#[test]
fn an_output_that_is_not_written_is_known() {
    let library = compile(
        r"
        kernel void first(device float *y [[buffer(0)]], uint i [[thread_position_in_grid]]) { if (i != 3) y[i] = 1; }
        kernel void second(device float *y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] += 1; }",
    );
    let y = Buffer::new(32).unwrap();
    let dispatch = Dispatch::threads([8, 1, 1], [8, 1, 1]).bind(Binding::buffer(0, &y, 0));
    run(&library, "first", &FunctionConstants::new(), dispatch.clone()).unwrap();
    assert_eq!(y.first_unwritten(0, 32), Some(12));
    let found = fault(run(&library, "second", &FunctionConstants::new(), dispatch));
    assert_eq!(
        found.kind,
        FaultKind::UnwrittenRead { region: Region::Buffer(0), offset: 12, bytes: 4 }
    );
    assert_eq!(found.thread, [3, 0, 0]);
}

#[test]
fn divergence_at_a_barrier_is_reported() {
    let library = compile(
        r"
        kernel void half_of_them(device uint *y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
            if (i < 16) metal::threadgroup_barrier(metal::mem_flags::mem_none);
            y[i] = i;
        }",
    );
    let y = Buffer::new(128).unwrap();
    let dispatch = Dispatch::threads([32, 1, 1], [32, 1, 1]).bind(Binding::buffer(0, &y, 0));
    let found = fault(run(&library, "half_of_them", &FunctionConstants::new(), dispatch.clone()));
    assert_eq!(
        found.kind,
        FaultKind::BarrierDivergence { waiting: 16, returned: 16, other_line: None }
    );
    assert_eq!(found.line, Some(3));
    let options = RunOptions { exited_threads_leave_barriers: true, ..RunOptions::default() };
    run(&library, "half_of_them", &FunctionConstants::new(), dispatch.options(options)).unwrap();
}

#[test]
fn traps_timeouts_and_races_between_threadgroups() {
    let library = compile(
        r"
        kernel void divide(device int *y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = 7 / y[i]; }
        kernel void forever(device int *y [[buffer(0)]]) { for (uint i = 0;; i = (i * 5 + 1) % 4) y[i] += 1; }
        kernel void same(device int *y [[buffer(0)]], uint g [[threadgroup_position_in_grid]]) { y[0] = g; }",
    );
    let y = Buffer::from_slice(&[0i32; 4]).unwrap();
    let constants = FunctionConstants::new();
    let dispatch = |n| Dispatch::threadgroups([n, 1, 1], [1, 1, 1]).bind(Binding::buffer(0, &y, 0));
    let found = fault(run(&library, "divide", &constants, dispatch(1)));
    assert_eq!((found.kind, found.line), (FaultKind::Trap { signal: 8 }, Some(2)));
    let options = RunOptions { budget: 1000, ..RunOptions::default() };
    assert_eq!(
        fault(run(&library, "forever", &constants, dispatch(1).options(options))).kind,
        FaultKind::Timeout
    );
    let found = fault(run(&library, "same", &constants, dispatch(2)));
    assert!(matches!(found.kind, FaultKind::Conflict { same_threadgroup: false, .. }), "{found}");
}

#[test]
fn function_constants_cost_no_compilation() {
    let library = compile(
        r"
        constant bool twice [[function_constant(0)]];
        constant int add [[function_constant(3)]];
        constant int sum = is_function_constant_defined(add) ? add + 1 : 100;
        kernel void f(device int *y [[buffer(0)]]) { y[0] = sum * (twice ? 2 : 1); }",
    );
    let y = Buffer::new(4).unwrap();
    let value = |constants: FunctionConstants| {
        let dispatch = Dispatch::threads([1, 1, 1], [1, 1, 1]).bind(Binding::buffer(0, &y, 0));
        run(&library, "f", &constants, dispatch).unwrap();
        y.to_vec::<i32>().unwrap()[0]
    };
    let none = FunctionConstants::new();
    let once = none.clone().set(0, ConstantValue::Bool(false));
    assert_eq!(value(once.clone()), 100);
    assert_eq!(value(none.clone().set(0, ConstantValue::Bool(true))), 200);
    assert_eq!(value(once.set_named("add", ConstantValue::Int(4))), 5);
    let dispatch = Dispatch::threads([1, 1, 1], [1, 1, 1]).bind(Binding::buffer(0, &y, 0));
    let found = fault(run(&library, "f", &none, dispatch));
    assert_eq!(found.kind, FaultKind::UnsetConstant { name: "twice".into() });
    assert!(matches!(
        library.function("f", &none.clone().set(3, ConstantValue::UInt(1))),
        Err(FunctionError::ConstantType { index: 3, .. })
    ));
    assert!(matches!(
        library.function("f", &none.set(9, ConstantValue::UInt(1))),
        Err(FunctionError::NoSuchConstant { .. })
    ));
}

#[test]
fn errors_name_construct_and_line() {
    let texture = "\nusing namespace metal;\nkernel void f(texture2d<float> t [[texture(0)]]) {}";
    assert!(matches!(
        compiler().compile(texture),
        Err(CompileError::Unsupported { line: 3, construct, .. }) if construct == "texture2d"
    ));
    let broken = "\n\nkernel void f(device float *y [[buffer(0)]]) {\n    y[0] = unknown;\n}";
    match compiler().compile(broken) {
        Err(CompileError::Compiler { diagnostics, .. }) => assert_eq!(diagnostics[0].line, 4),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cache_hit_does_not_start_the_compiler() {
    let folder = tempfile::tempdir().unwrap();
    let config = msl_host::Config { cache: Some(folder.path().into()), ..Default::default() };
    let source = "kernel void f(device int *y [[buffer(0)]]) { y[0] = 1; }";
    let first = msl_host::Compiler::new(config.clone()).unwrap();
    first.compile(source).unwrap();
    assert!(first.invocations() > 0);
    let second = msl_host::Compiler::new(config).unwrap();
    second.compile(source).unwrap();
    assert_eq!(second.invocations(), 0);
}

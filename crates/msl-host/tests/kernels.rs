//! Kernels, one feature each.

mod common;

use common::{compile, run};
use msl_host::{Binding, Buffer, Dispatch, FunctionConstants};

#[test]
fn saxpy_runs_and_its_counters_are_exact() {
    let library = compile(
        r"
        #include <metal_stdlib>
        using namespace metal;
        kernel void saxpy(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                          constant float &a [[buffer(2)]], uint i [[thread_position_in_grid]]) {
            y[i] += a * x[i];
        }",
    );
    let x = Buffer::from_slice(&[1.0f32; 70]).unwrap();
    let y = Buffer::from_slice(&[2.0f32; 70]).unwrap();
    let counters = run(
        &library,
        "saxpy",
        &FunctionConstants::new(),
        Dispatch::threads([70, 1, 1], [32, 1, 1])
            .bind(Binding::buffer(0, &x, 0))
            .bind(Binding::buffer(1, &y, 0))
            .bind(Binding::bytes(2, &3.0f32.to_ne_bytes())),
    )
    .unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [5.0; 70]);
    assert_eq!(counters.device_bytes_read, 70 * 8);
    assert_eq!(counters.device_bytes_written, 70 * 4);
    assert_eq!(counters.constant_bytes_read, 70 * 4);
    assert_eq!((counters.threads, counters.threadgroups), (70, 3));
}

/// Runs a kernel with one output of `count` floats at index 0 and the inputs after it.
fn floats(
    source: &str,
    name: &str,
    count: usize,
    inputs: &[&Buffer],
    dispatch: Dispatch<'_>,
) -> Vec<f32> {
    let library = compile(source);
    let out = Buffer::new(count * 4).unwrap();
    let mut dispatch = dispatch;
    dispatch.bindings.push(Binding::buffer(0, &out, 0));
    for (at, input) in inputs.iter().enumerate() {
        dispatch.bindings.push(Binding::buffer(at as u32 + 1, input, 0));
    }
    for seed in [0, 1, 2] {
        let mut dispatch = dispatch.clone();
        dispatch.options.seed = seed;
        run(&library, name, &FunctionConstants::new(), dispatch).unwrap();
    }
    out.to_vec().unwrap()
}

#[test]
fn vectors_swizzles_and_constructors() {
    let out = floats(
        r"
        #include <metal_stdlib>
        using namespace metal;
        struct Pair { float2 xy; packed_float3 p; };
        kernel void f(device float4 *out, uint i [[thread_position_in_grid]]) {
            float4 a = float4(1, float2(2, 3), 4);
            a.zw = a.xy;
            a.x += 10.0f;
            Pair pair; pair.xy = float2(5, 6); pair.p = float3(7, 8, 9);
            float3 w = a.wzy * 2 + pair.p;
            half4 h = half4(a) * 0.5h;
            uchar4 bytes = uchar4(1, 2, 3, 250) + uchar4(10);
            bool4 m = a > 2.0f;
            out[0] = a; out[1] = float4(w, pair.xy.y); out[2] = float4(h).bgra;
            out[3] = float4(bytes); out[4] = select(float4(0), float4(1), m);
            out[5] = float4(as_type<float>(0x40000000u), dot(a.xy, float2(1, 1)), length(float3(2, 3, 6)), any(m));
        }",
        "f",
        24,
        &[],
        Dispatch::threads([1, 1, 1], [1, 1, 1]),
    );
    assert_eq!(out[..4], [11.0, 2.0, 1.0, 2.0]);
    assert_eq!(out[4..8], [11.0, 10.0, 13.0, 6.0]);
    assert_eq!(out[8..12], [0.5, 1.0, 5.5, 1.0]);
    assert_eq!(out[12..16], [11.0, 12.0, 13.0, 4.0]);
    assert_eq!(out[16..20], [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(out[20..24], [2.0, 13.0, 7.0, 1.0]);
}

#[test]
fn simdgroup_functions_and_threadgroup_memory() {
    let input: Vec<f32> = (0..256).map(|i| (i % 17) as f32).collect();
    let x = Buffer::from_slice(&input).unwrap();
    let out = floats(
        r#"
        using namespace metal;
        template <typename T, int N>
        kernel void sum(device T *out [[buffer(0)]], device const T *x [[buffer(1)]],
                        threadgroup float *scratch [[threadgroup(0)]],
                        ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]],
                        uint t [[thread_index_in_threadgroup]], uint3 size [[threads_per_threadgroup]]) {
            threadgroup T more[N], total;
            float s = simd_sum(x[t]);
            if (lane == 0) scratch[sg] = s;
            more[t % N] = 0;
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (sg == 0) {
                float v = simd_sum(lane < size.x / 32 ? scratch[lane] : 0.0f);
                if (simd_is_first()) total = v + more[0];
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            out[t] = total + simd_prefix_exclusive_sum(1.0f) + simd_shuffle_xor(float(lane), 1) + quad_max(float(t));
        }
        template [[host_name("sum_float")]] kernel void sum<float, 256>(device float *, device const float *,
            threadgroup float *, ushort, ushort, uint, uint3);"#,
        "sum_float",
        256,
        &[&x],
        Dispatch::threadgroups([1, 1, 1], [256, 1, 1]).threadgroup(0, 32),
    );
    let total: f32 = input.iter().sum();
    for (t, value) in out.iter().enumerate() {
        let lane = t % 32;
        assert_eq!(*value, total + lane as f32 + (lane ^ 1) as f32 + (t / 4 * 4 + 3) as f32);
    }
}

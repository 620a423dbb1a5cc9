//! Every construct of the language that kernels may use, and those that are refused. One source, compiled once.

mod common;

use std::sync::OnceLock;

use common::{compile, compiler, run};
use msl_host::{
    Binding, Buffer, CompileError, Compiler, Config, ConstantValue, Dispatch, FunctionConstants,
    Library,
};

const SOURCE: &str = r#"
#include <metal_stdlib>
#include <metal_simdgroup>
using namespace metal;

// Templates with types, numbers and functions; instantiations by name.
template <int N> float power(float x) { return x * power<N - 1>(x); }
template <> float power<0>(float) { return 1.0f; }
template <typename T, int N, float (*F)(float)>
[[kernel]] void templated(device T* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
    static_assert(N > 1, "a number");
    out[i] = T(F(float(i))) + T(N);
}
typedef decltype(templated<float, 2, power<2>>) templated_t;
template [[host_name("templated_square")]] [[kernel]] templated_t templated<float, 2, power<2>>;
template [[host_name("templated_cube")]] kernel templated_t templated<float, 3, power<3>>;

// Function constants: a value, a default, one computed from others, places in sums.
#define FIRST 10
constant float scale [[function_constant(FIRST + 1)]];
constant uint optional [[function_constant(FIRST + 2)]];
constant bool has_optional = is_function_constant_defined(optional);
constant uint chosen = has_optional ? optional : 7;
kernel void constants(device float* out [[buffer(0)]]) {
    out[0] = scale;
    out[1] = float(chosen);
    out[2] = has_optional ? 1.0f : 0.0f;
}

// Places in the grid.
kernel void places(
    device uint* out [[buffer(0)]], uint3 grid [[thread_position_in_grid]], uint3 in_group [[thread_position_in_threadgroup]],
    ushort index [[thread_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]],
    ushort simdgroup [[simdgroup_index_in_threadgroup]], ushort simdgroups [[simdgroups_per_threadgroup]],
    uint3 group [[threadgroup_position_in_grid]], uint3 groups [[threadgroups_per_grid]],
    uint3 size [[threads_per_threadgroup]], uint3 threads [[threads_per_grid]], uint width [[threads_per_simdgroup]],
    ushort quad [[quadgroup_index_in_threadgroup]], ushort in_quad [[thread_index_in_quadgroup]])
{
    uint at = (grid.y * threads.x + grid.x) * 8;
    out[at] = in_group.x + 100 * in_group.y;
    out[at + 1] = index;
    out[at + 2] = lane + 100 * simdgroup;
    out[at + 3] = simdgroups + 100 * width;
    out[at + 4] = group.x + 100 * group.y;
    out[at + 5] = groups.x + 100 * groups.y;
    out[at + 6] = size.x + 100 * size.y;
    out[at + 7] = in_quad + 100 * quad;
}

// Arguments: structs, references, pointers without an index, constant memory, arrays in structs.
struct Inner { float2 pair; half small[2]; };
struct Arguments { uint n; packed_float3 p; Inner inner; };
kernel void arguments(constant Arguments& a, device const float* x, device float* out, constant uint* more [[buffer(5)]]) {
    out[0] = float(a.n) + x[1];
    out[1] = a.p[2] + a.inner.pair.y;
    out[2] = float(a.inner.small[1]);
    out[3] = float(more[1]);
}

// Vectors: constructors, swizzles on both sides, operators, packed ones.
kernel void vectors(device float4* out [[buffer(0)]], device packed_float3* packed [[buffer(1)]]) {
    float4 a(1, float2(2, 3), 4);
    a.xw = a.wx;
    a.rgb += 1.0f;
    out[0] = a;
    out[1] = float4(int4(7, -7, 8, 9) / 2) + float4(uint4(1) << uint4(0, 1, 2, 3));
    out[2] = select(float4(0), a.yyzz, a > 3.0f);
    packed[1] = packed_float3(a.zyx);
    out[3] = float4(float3(packed[1]) * 2.0f, -a.x);
    bool4 b = a == float4(5, 3, 4, 1);
    out[4] = float4(all(b.xy), any(b), !b.x, b.w && true);
    vec<half, 4> h(a);
    h[2] = 0.5h;
    out[5] = float4(h);
}

// Numbers of 16 bits.
float widened(bool c, bfloat b, float f) { return c ? b : f; }
kernel void small(device float* out [[buffer(0)]], device half* halves [[buffer(1)]], device bfloat* bfloats [[buffer(2)]]) {
    halves[0] = 1.0f / 3.0f;
    bfloats[0] = bfloat(1.0f / 3.0f);
    out[0] = float(halves[0]);
    out[1] = bfloats[0] + 0.0f;
    out[2] = widened(true, bfloats[0], 2.0f) + widened(false, bfloats[0], 2.0f);
    out[3] = float(as_type<ushort>(half(-2.0h)));
    out[4] = float(as_type<half2>(0x3c004000u).y);
    out[5] = float(bfloat(1.0f) * bfloat(3.0f));
}

// Math, geometric and relational functions.
kernel void math(device float* out [[buffer(0)]]) {
    float c, whole;
    int e;
    out[0] = fast::exp(0.0f) + precise::sin(0.0f) + sqrt(16.0f);
    out[1] = fma(2.0f, 3.0f, 4.0f) + mix(1.0f, 3.0f, 0.5f);
    out[2] = clamp(5.0f, 0.0f, 3.0f) + saturate(-1.0f) + sign(-4.0f);
    out[3] = sincos(0.0f, c) + c + frexp(8.0f, e) + float(e);
    out[4] = modf(2.75f, whole) + whole + fract(1.25f);
    out[5] = dot(float3(1, 2, 3), float3(1)) + length(float2(3, 4)) + cross(float3(1, 0, 0), float3(0, 1, 0)).z;
    out[6] = step(1.0f, 2.0f) + smoothstep(0.0f, 1.0f, 0.5f) + ldexp(1.0f, 3) + rint(2.5f) + exp10(2.0f);
    out[7] = float(isnan(NAN)) + float(isinf(INFINITY)) + float(signbit(-1.0f)) + fmin(NAN, 3.0f) + median3(3.0f, 1.0f, 2.0f);
    out[8] = reflect(float2(1, -1), float2(0, 1)).y + distance(float2(0), float2(0, 2)) + normalize(float2(0, 5)).y;
    out[9] = cospi(1.0f) + pow(2.0f, 5.0f) + divide(1.0f, 4.0f) + copysign(3.0f, -1.0f) + fmod(7.0f, 4.0f) + rsqrt(4.0f);
}

// Integer functions.
kernel void integers(device int* out [[buffer(0)]]) {
    out[0] = popcount(0xffu) + clz(1u) + ctz(8u);
    out[1] = int(reverse_bits(1u) >> 28) + int(rotate(0x80000001u, 1u));
    out[2] = int(extract_bits(0xabcdu, 4, 8)) + int(insert_bits(0u, 3u, 2, 2));
    out[3] = int(mulhi(0x80000000u, 4u)) + mad24(2, 3, 4) + int(addsat(uchar(250), uchar(10)));
    out[4] = abs(-5) + min(2, 3) + max(2u, 3u) + int(absdiff(2, 5)) + int(subsat(uchar(1), uchar(2)));
    out[5] = int(hadd(3, 6)) + int(rhadd(3, 6)) + min3(3, 1, 2) + clamp(9, 0, 4);
}

// Atomic functions in both memories.
kernel void atomics(
    device atomic_uint* counts [[buffer(0)]], device atomic_int* least [[buffer(1)]], device atomic_float* sum [[buffer(2)]],
    uint i [[thread_position_in_grid]])
{
    threadgroup atomic_uint local;
    if (i == 0) atomic_store_explicit(&local, 0, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&local, 2, memory_order_relaxed);
    atomic_fetch_min_explicit(least, -int(i), memory_order_relaxed);
    atomic_fetch_add_explicit(sum, 0.5f, memory_order_relaxed);
    atomic_fetch_or_explicit(&counts[1], 1u << i, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint expected = 64;
    if (i == 0 && atomic_compare_exchange_weak_explicit(&local, &expected, 9, memory_order_relaxed, memory_order_relaxed))
        atomic_store_explicit(counts, expected + atomic_load_explicit(&local, memory_order_relaxed), memory_order_relaxed);
}

// Functions of the threads of a simdgroup and of a quad.
kernel void collectives(device float* out [[buffer(0)]], ushort lane [[thread_index_in_simdgroup]]) {
    const float x = lane;
    float r = simd_sum(x) + simd_max(x) - simd_min(x);
    r += simd_prefix_inclusive_sum(1.0f) + float(simd_or(1u << lane) == 0xffffffffu);
    r += simd_shuffle(x, 3) + simd_shuffle_up(x, 1) + simd_shuffle_xor(x, 2) + simd_broadcast(x, 5);
    r += simd_shuffle_and_fill_down(x, 50.0f, 1) + simd_broadcast_first(x);
    r += quad_sum(x) + quad_broadcast(x, 1) + quad_shuffle_xor(x, 1);
    r += simd_any(lane == 7) && !simd_all(lane == 7) ? 1.0f : 0.0f;
    r += simd_sum(float2(x, 1.0f)).y + float(popcount(uint(ulong(simd_ballot(lane < 4)))));
    out[lane] = r + simd_product(lane == 0 ? 2.0f : 1.0f);
}

// Matrices of a simdgroup, and of a thread.
kernel void matrices(device const float* a [[buffer(0)]], device float* out [[buffer(1)]], device half* halves [[buffer(2)]]) {
    threadgroup float tile[64];
    simdgroup_float8x8 x, y, z = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_matrix<half, 8, 8> one(1.0h);
    simdgroup_load(x, a, 8);
    simdgroup_store(x, tile, 8, ulong2(0), true);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_load(y, tile, 8);
    simdgroup_multiply_accumulate(z, x, y, z);
    z.thread_elements()[0] += 1.0f;
    simdgroup_store(z, out, 8);
    simdgroup_store(one, halves, 8);
    float2x2 m(float2(1, 2), float2(3, 4));
    float2 v = m * float2(1, 1);
    if (simd_is_first()) out[64] = v.x + 10 * v.y + transpose(m)[0][1];
}

// Arrays in constant memory, loops with hints, places of arrays that are named, nested namespaces.
namespace outer { namespace inner {
constant constexpr float table[4] = {1, 2, 4, 8};
constant int offsets[] = {3, 2, 1, 0};
inline float look(int i) { return table[offsets[i]]; }
} }
enum Kind : uint { SMALL = 3, LARGE };
kernel void arrays(device float* out [[buffer(0)]], threadgroup float* scratch [[threadgroup(0)]], uint i [[thread_position_in_grid]]) {
    float sums[5] = { [0 ... 2] = 1.5f, [4] = 2.0f };
    float total = 0;
    #pragma unroll
    for (int k = 0; k < 4; k++) total += outer::inner::look(k);
    #pragma clang loop unroll(full)
    for (int k = 0; k < 5; k++) total += sums[k];
    #pragma unroll(2)
    for (int k = 0; k < 2; k++) total += SMALL;
    threadgroup float other[8], single;
    other[i] = total;
    scratch[i] = 1.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    if (i == 0) single = other[7] + scratch[3];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[i] = single;
}

// Overloads that differ in address spaces, and structs with functions.
inline float first(device const float* p) { return p[0]; }
inline float first(threadgroup const float* p) { return p[0]; }
inline float first(thread const float* p) { return p[0]; }
struct Counter {
    int n;
    Counter(int start) : n(start) {}
    thread Counter& operator++() { n++; return *this; }
    int get() const thread { return n; }
    static int twice(int x) { return 2 * x; }
};
kernel void functions(device float* out [[buffer(0)]], device const float* x [[buffer(1)]]) {
    threadgroup float t[1];
    float own = 3;
    t[0] = 4;
    Counter c(5);
    ++c;
    auto add = [](float a, float b) { return a + b; };
    out[0] = add(first(x), add(first(t), first(&own))) + c.get() + Counter::twice(4);
}
"#;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| compile(SOURCE))
}

/// Runs a kernel on threads of one threadgroup, under three orders; the first buffer is read back.
fn values(name: &str, threads: u32, buffers: &[&Buffer]) -> Vec<f32> {
    launch(name, threads, buffers, &FunctionConstants::new());
    buffers[0].to_vec().unwrap()
}

fn launch(name: &str, threads: u32, buffers: &[&Buffer], constants: &FunctionConstants) {
    for seed in 0..3 {
        let mut dispatch = Dispatch::threadgroups([1, 1, 1], [threads, 1, 1]).threadgroup(0, 32);
        dispatch.options.seed = seed;
        for (index, buffer) in buffers.iter().enumerate() {
            dispatch = dispatch.bind(Binding::buffer(index as u32, buffer, 0));
        }
        run(library(), name, constants, dispatch).unwrap();
    }
}

fn floats(count: usize) -> Buffer {
    Buffer::new(count * 4).unwrap()
}

#[test]
fn templates_and_their_instantiations() {
    assert_eq!(values("templated_square", 4, &[&floats(4)]), [2.0, 3.0, 6.0, 11.0]);
    assert_eq!(values("templated_cube", 3, &[&floats(3)]), [3.0, 4.0, 11.0]);
}

#[test]
fn function_constants_with_and_without_values() {
    let out = floats(3);
    let set = FunctionConstants::new().set(11, ConstantValue::Float(2.5));
    launch("constants", 1, &[&out], &set);
    assert_eq!(out.to_vec::<f32>().unwrap(), [2.5, 7.0, 0.0]);
    launch("constants", 1, &[&out], &set.set(12, ConstantValue::UInt(9)));
    assert_eq!(out.to_vec::<f32>().unwrap(), [2.5, 9.0, 1.0]);
}

#[test]
fn places_in_the_grid() {
    let out = Buffer::new(80 * 2 * 8 * 4).unwrap();
    let dispatch = Dispatch::threads([80, 2, 1], [40, 1, 1]).bind(Binding::buffer(0, &out, 0));
    run(library(), "places", &FunctionConstants::new(), dispatch).unwrap();
    let out = out.to_vec::<u32>().unwrap();
    // Thread 77 of the second row: the 37th of threadgroup (1, 1), in its second simdgroup.
    assert_eq!(out[(80 + 77) * 8..][..8], [37, 37, 105, 3202, 101, 202, 140, 901]);
}

#[test]
fn arguments_of_every_kind() {
    let mut bytes = Vec::new();
    bytes.extend(3u32.to_ne_bytes());
    bytes.extend([1.0f32, 2.0, 4.0].iter().flat_map(|v| v.to_ne_bytes()));
    bytes.extend([0.25f32, 0.5].iter().flat_map(|v| v.to_ne_bytes()));
    bytes.extend([0x3c00u16, 0x4000].iter().flat_map(|v| v.to_ne_bytes()));
    bytes.extend([0; 4]);
    let (x, out) = (Buffer::from_slice(&[5.0f32, 6.0]).unwrap(), floats(4));
    let more: Vec<u8> = [1u32, 11].iter().flat_map(|v| v.to_ne_bytes()).collect();
    let dispatch = Dispatch::threads([1, 1, 1], [1, 1, 1])
        .bind(Binding::bytes(0, &bytes))
        .bind(Binding::buffer(1, &x, 0))
        .bind(Binding::buffer(2, &out, 0))
        .bind(Binding::bytes(5, &more));
    run(library(), "arguments", &FunctionConstants::new(), dispatch).unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), [9.0, 4.5, 2.0, 11.0]);
}

#[test]
fn vectors() {
    let out = values("vectors", 1, &[&floats(24), &floats(8)]);
    // a is (5, 3, 4, 1).
    assert_eq!(out[..4], [5.0, 3.0, 4.0, 1.0]);
    assert_eq!(out[4..8], [4.0, -1.0, 8.0, 12.0]);
    assert_eq!(out[8..12], [3.0, 0.0, 4.0, 0.0]);
    assert_eq!(out[12..16], [8.0, 6.0, 10.0, -5.0]);
    assert_eq!(out[16..20], [1.0, 1.0, 0.0, 1.0]);
    assert_eq!(out[20..24], [5.0, 3.0, 0.5, 1.0]);
}

#[test]
fn half_and_bfloat() {
    let out = values("small", 1, &[&floats(6), &Buffer::new(2).unwrap(), &Buffer::new(2).unwrap()]);
    assert_eq!(out, [0.333_251_95, 0.333_984_38, 2.333_984_4, 49152.0, 1.0, 3.0]);
}

#[test]
fn math_functions() {
    let want = [5.0, 12.0, 2.0, 5.5, 3.0, 12.0, 111.5, 8.0, 4.0, 31.75];
    assert_eq!(values("math", 1, &[&floats(10)]), want);
}

#[test]
fn integer_functions() {
    let out = floats(6);
    launch("integers", 1, &[&out], &FunctionConstants::new());
    assert_eq!(out.to_vec::<i32>().unwrap(), [42, 11, 200, 267, 13, 14]);
}

#[test]
fn atomic_functions() {
    let counts = Buffer::from_slice(&[0u32, 0]).unwrap();
    let (least, sum) = (Buffer::from_slice(&[0i32]).unwrap(), Buffer::from_slice(&[0f32]).unwrap());
    launch("atomics", 32, &[&counts, &least, &sum], &FunctionConstants::new());
    assert_eq!(counts.to_vec::<u32>().unwrap(), [73, u32::MAX]);
    assert_eq!(least.to_vec::<i32>().unwrap(), [-31]);
    assert_eq!(sum.to_vec::<f32>().unwrap(), [48.0]);
}

#[test]
fn collectives_of_simdgroups_and_quads() {
    for (lane, value) in values("collectives", 32, &[&floats(32)]).into_iter().enumerate() {
        let x = lane as f32;
        let up = if lane == 0 { 0.0 } else { x - 1.0 };
        let down = if lane == 31 { 50.0 } else { x + 1.0 };
        let quad = (lane & !3) as f32;
        let want = 496.0
            + 31.0
            + (x + 1.0)
            + 1.0
            + 3.0
            + up
            + (lane ^ 2) as f32
            + 5.0
            + down
            + (4.0 * quad + 6.0)
            + (quad + 1.0)
            + (lane ^ 1) as f32
            + 1.0
            + 32.0
            + 4.0
            + 2.0;
        assert_eq!(value, want, "lane {lane}");
    }
}

#[test]
fn simdgroup_matrices() {
    let a: Vec<f32> = (0..64).map(|i| ((i * 5) % 7) as f32).collect();
    let (x, out, halves) = (Buffer::from_slice(&a).unwrap(), floats(65), Buffer::new(128).unwrap());
    launch("matrices", 32, &[&x, &out, &halves], &FunctionConstants::new());
    let out = out.to_vec::<f32>().unwrap();
    for row in 0..8 {
        for column in 0..8 {
            let product: f32 = (0..8).map(|k| a[row * 8 + k] * a[column * 8 + k]).sum();
            let first_of_lane = (column % 2 == 0) as u8;
            assert_eq!(out[row * 8 + column], product + 1.0 + f32::from(first_of_lane));
        }
    }
    assert_eq!(out[64], 4.0 + 60.0 + 3.0);
    let ones = halves.to_vec::<u16>().unwrap();
    assert!((0..64).all(|i| ones[i] == if i / 8 == i % 8 { 0x3c00 } else { 0 }));
}

#[test]
fn arrays_and_loops() {
    assert_eq!(values("arrays", 8, &[&floats(8)]), [15.0 + 6.5 + 6.0 + 1.0; 8]);
}

#[test]
fn overloads_and_member_functions() {
    let x = Buffer::from_slice(&[2.0f32]).unwrap();
    assert_eq!(values("functions", 1, &[&floats(1), &x]), [2.0 + 4.0 + 3.0 + 6.0 + 8.0]);
}

#[test]
fn clang_gives_the_same_values() {
    let cache = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("msl-host-cache");
    let config =
        Config { compiler: Some("clang++".into()), cache: Some(cache), ..Config::default() };
    let clang = match Compiler::new(config) {
        Ok(clang) => clang,
        Err(CompileError::NoCompiler { .. }) => return println!("skipped: there is no clang++"),
        Err(other) => panic!("{other}"),
    };
    let source = r#"
        using namespace metal;
        template <typename T> kernel void f(device float* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
            threadgroup T shared[32];
            shared[i] = T(i) * T(0.5f);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            out[i] = simd_sum(float(shared[31 - i])) + float4(i, 1, 2, 3).wzyx.w;
        }
        template [[host_name("f_half")]] kernel decltype(f<half>) f<half>;
        template [[host_name("f_bfloat")]] kernel decltype(f<bfloat>) f<bfloat>;"#;
    let library = match clang.compile(source) {
        Ok(library) => library,
        Err(CompileError::Compiler { log, .. }) => panic!("{log}"),
        Err(other) => panic!("{other}"),
    };
    for name in ["f_half", "f_bfloat"] {
        let out = floats(32);
        let dispatch = Dispatch::threads([32, 1, 1], [32, 1, 1]).bind(Binding::buffer(0, &out, 0));
        run(&library, name, &FunctionConstants::new(), dispatch.clone()).unwrap();
        let want: Vec<f32> = (0..32).map(|i| 248.0 + i as f32).collect();
        assert_eq!(out.to_vec::<f32>().unwrap(), want, "{name}");
        let mut outside = dispatch;
        let short = floats(31);
        outside.bindings = vec![Binding::buffer(0, &short, 0)];
        assert!(run(&library, name, &FunctionConstants::new(), outside).is_err(), "{name}");
    }
}

/// What is refused, with the construct that the error names. Each is on line 3.
const REFUSED: [(&str, &str); 16] = [
    ("kernel void f(texture2d<float> t [[texture(0)]]) {}", "texture2d"),
    ("kernel void f(texture_buffer<float> t [[texture(0)]]) {}", "texture_buffer"),
    ("kernel void f(depth2d<float> t [[texture(0)]]) {}", "depth2d"),
    ("kernel void f(sampler s [[sampler(0)]]) {}", "sampler"),
    ("constexpr sampler s(filter::linear);", "sampler"),
    ("kernel void f(imageblock<Color> b) {}", "imageblock"),
    ("kernel void f(tensor<device half, dextents<int, 2>> t [[buffer(0)]]) {}", "tensor"),
    ("kernel void f() { mpp::tensor_ops::matmul2d<1> m; }", "mpp"),
    ("kernel void f() { raytracing::ray r; }", "raytracing"),
    (
        "kernel void f(visible_function_table<int(int)> t [[buffer(0)]]) {}",
        "visible_function_table",
    ),
    ("kernel void f() { simdgroup_event e; }", "simdgroup_event"),
    ("vertex float4 f() { return 0; }", "vertex"),
    ("fragment float4 f() { return 0; }", "fragment"),
    ("#include \"other.h\"", "#include \"other.h\""),
    ("kernel void f(float x [[stage_in]]) {}", "[[stage_in]]"),
    ("kernel void f(uint x [[amplification_id]]) {}", "[[amplification_id]]"),
];

#[test]
fn unsupported_constructs_are_named_with_their_line() {
    for (text, name) in REFUSED {
        match compiler().compile(&format!("using namespace metal;\n\n{text}\n")) {
            Err(CompileError::Unsupported { line: 3, construct, .. }) => {
                assert_eq!(construct, name, "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

/// What Apple's compiler refuses is refused here, on line 3.
const REJECTED: [&str; 9] = [
    "inline void f(thread bfloat& x) { x = 1.0f; }",
    "inline void f(thread bfloat& x, float y) { x += y; }",
    "inline bfloat f(half x) { return x; }",
    "inline uint f(uint a, int b) { return min(a, b); }",
    "inline float f(float a) { return max(a, 0); }",
    "inline uint f(uint a) { return clamp(a, 0, 3); }",
    "struct P { int a; }; inline int f(uint x) { P p = {x}; return p.a; }",
    "inline float4 f(int4 x) { return x; }",
    "kernel void f(uint2 a [[thread_position_in_grid]], uint3 b [[threads_per_threadgroup]]) {}",
];

#[test]
fn what_apple_rejects_is_rejected() {
    // All in one source, so that the compiler starts once; the last is an error of the translation.
    let (last, rest) = REJECTED.split_last().unwrap();
    let spaces: Vec<String> =
        rest.iter().enumerate().map(|(n, text)| format!("namespace n{n} {{ {text} }}")).collect();
    let source = format!("using namespace metal;\n{}\n", spaces.join("\n"));
    match compiler().compile(&source) {
        Err(CompileError::Compiler { diagnostics, log }) => {
            for (n, text) in rest.iter().enumerate() {
                let line = n as u32 + 2;
                assert!(diagnostics.iter().any(|d| d.line == line), "{text}: accepted\n{log}");
            }
        }
        other => panic!("{other:?}"),
    }
    let source = format!("using namespace metal;\n\n{last}");
    assert!(matches!(compiler().compile(&source), Err(CompileError::Syntax { line: 3, .. })));
}

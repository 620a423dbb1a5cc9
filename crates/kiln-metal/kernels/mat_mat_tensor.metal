// Products of many rows by the tensor units: a tile of 128 rows of the input by 64 rows of the weight.
// Weights are unpacked to threadgroup memory; the input is read where it lies.

#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>

template <typename Block, typename T>
[[kernel]] void mat_mat_tensor(
    constant TensorArgs& args [[buffer(0)]],
    device T* input [[buffer(1)]],
    device const uchar* weight [[buffer(2)]],
    device float* output [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]])
{
    using mpp::tensor_ops::matmul2d;
    using mpp::tensor_ops::matmul2d_descriptor;
    typedef dextents<int, 2> Extents;
    typedef array<int, 2> Strides;
    constexpr int step_k = TENSOR_K;
    constexpr auto shape = matmul2d_descriptor(
        TENSOR_M, TENSOR_N, TENSOR_K, false, true, false,
        matmul2d_descriptor::mode::multiply_accumulate);
    matmul2d<shape, execution_simdgroups<4>> product;

    threadgroup half4 tile_memory[TENSOR_N * TENSOR_K / 4];
    threadgroup half* tile = (threadgroup half*)tile_memory;
    const int first_m = TENSOR_M * group.x;
    const int first_n = TENSOR_N * group.y;
    input += ulong(first_m) * args.input_stride;
    auto w = tensor(tile, Extents(step_k, int(TENSOR_N)));
    auto x = tensor(input, Extents(step_k, args.m - first_m), Strides({1, args.input_stride}));
    auto sums = product.template get_destination_cooperative_tensor<decltype(x), decltype(w), float>();
#pragma unroll
    for (ushort i = 0; i < sums.get_capacity(); i++) {
        sums[i] = 0.0f;
    }

    // Two threads unpack a row of weights; rows past the end are the last one again, and not stored.
    const uint part = index % 2 * (TENSOR_K / 8);
    device const uchar* row = weight + ulong(min(first_n + int(index / 2), args.n - 1)) * args.row_bytes;
    threadgroup half4* place = tile_memory + index / 2 * (TENSOR_K / 4) + part;
    for (int k = 0; k < args.k; k += step_k) {
        for (uint j = 0; j < TENSOR_K / 8; j++) {
            const uint i = k / 4 + part + j;
            const uint groups = Block::VALUES / 4;
            place[j] = half4(Block::four(row + ulong(i / groups) * Block::BYTES, i % groups));
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        auto step = tensor(
            input + k, Extents(step_k, args.m - first_m), Strides({1, args.input_stride}));
        product.run(step, w, sums);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    auto whole = tensor(output, Extents(args.n, args.m), Strides({1, args.output_stride}));
    auto corner = whole.slice(first_n, first_m);
    sums.store(corner);
}

#define INSTANCE(name, ...)                                                          \
    template [[host_name(name)]] [[kernel]] decltype(mat_mat_tensor<__VA_ARGS__>)     \
        mat_mat_tensor<__VA_ARGS__>;

#define INSTANCES(name, block)                              \
    INSTANCE("mat_mat_tensor_" name "_f32", block, float)   \
    INSTANCE("mat_mat_tensor_" name "_f16", block, half)    \
    INSTANCE("mat_mat_tensor_" name "_bf16", block, bfloat)

// The device is asked with these whether it can run the others.
INSTANCES("q4_0", BlockQ4_0)
#ifndef PROBE
INSTANCES("f16", BlockPlain<half>)
INSTANCES("q4_1", BlockQ4_1)
INSTANCES("q5_0", BlockQ5_0)
INSTANCES("q5_1", BlockQ5_1)
INSTANCES("q8_0", BlockQ8_0)
INSTANCES("iq4_nl", BlockIq4Nl)
INSTANCES("iq4_xs", BlockIq4Xs)
INSTANCES("q2_k", BlockQ2K)
INSTANCES("q3_k", BlockQ3K)
INSTANCES("q4_k", BlockQ4K)
INSTANCES("q5_k", BlockQ5K)
INSTANCES("q6_k", BlockQ6K)
#endif

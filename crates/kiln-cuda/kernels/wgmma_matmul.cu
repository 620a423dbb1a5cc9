// Products of many rows on Hopper: both factors in bf16, moved by bulk tensor copies, multiplied by
// warpgroups. One block on each processor takes tiles of 128 rows by BN columns by turns; one
// warpgroup copies, two multiply. In the gated form half of the columns are of the gate and half of
// the same columns of the second weight, so that a thread has both factors of an output.

template <int BN, bool GATED> struct Gemm {
    static constexpr int BM = 128, BK = 64, STAGES = BN == 256 ? 4 : 6;
    // Columns of the output that a tile has.
    static constexpr int COLUMNS = GATED ? BN / 2 : BN;
    static constexpr u32 X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2;

    // Tiles in an order in which those that run together share rows of both factors.
    static __device__ __forceinline__ void place(const GemmArgs& args, u32 tile, u32& row, u32& column) {
        constexpr u32 GROUP = 8;
        const u32 across = args.row_tiles, group = tile / (GROUP * across);
        const u32 columns = min(args.column_tiles - group * GROUP, GROUP), in_group = tile % (GROUP * across);
        column = (group * GROUP + in_group % columns) * COLUMNS;
        row = in_group / columns * BM;
    }

    static __device__ void run(const GemmArgs& args, const TensorMap* x_map, const TensorMap* w_map, const TensorMap* up_map) {
        extern __shared__ u8 memory[];
        u8* stages = (u8*)((u64(memory) + 1023) / 1024 * 1024);
        __shared__ u64 full[STAGES], empty[STAGES];
        const u32 group = threadIdx.x / 128;
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; ++i) {
                barrier_init(&full[i], 1);
                barrier_init(&empty[i], 2);
            }
            barrier_init_fence();
        }
        __syncthreads();
        const u32 tiles = args.row_tiles * args.column_tiles, steps = (args.k + BK - 1) / BK;
        u32 stage = 0, phase = 0;
        if (group == 0) {
            registers_release<BN == 256 ? 40 : 24>();
            if (threadIdx.x == 0) {
                prefetch_map(x_map);
                prefetch_map(w_map);
                for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                    u32 row, column;
                    place(args, tile, row, column);
                    for (u32 step = 0; step < steps; ++step) {
                        barrier_wait(&empty[stage], phase ^ 1);
                        u8* to = stages + stage * (X_BYTES + W_BYTES);
                        barrier_expect(&full[stage], X_BYTES + W_BYTES);
                        copy_box(to, x_map, step * BK, row, &full[stage]);
                        copy_box(to + X_BYTES, w_map, step * BK, column, &full[stage]);
                        if (GATED) copy_box(to + X_BYTES + W_BYTES / 2, up_map, step * BK, column, &full[stage]);
                        if (++stage == STAGES) { stage = 0; phase ^= 1; }
                    }
                }
            }
        } else {
            registers_take<BN == 256 ? 232 : 152>();
            const u32 half = group - 1, thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
            for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                u32 row, column;
                place(args, tile, row, column);
                float acc[BN / 2];
                u32 previous = 0;
                for (u32 step = 0; step < steps; ++step) {
                    barrier_wait(&full[stage], phase);
                    const u8* x = stages + stage * (X_BYTES + W_BYTES);
                    const u64 a = swizzled_rows(x + half * 64 * BK * 2), b = swizzled_rows(x + X_BYTES);
                    warpgroup_begin();
                    #pragma unroll
                    for (int k = 0; k < BK / 16; ++k) warpgroup_mma<BN>(acc, a + 2 * k, b + 2 * k, step + k > 0);
                    warpgroup_commit();
                    // The products of the step before have ended: its stage is free.
                    warpgroup_wait<1>();
                    if (step > 0 && thread == 0) barrier_arrive(&empty[previous]);
                    previous = stage;
                    if (++stage == STAGES) { stage = 0; phase ^= 1; }
                }
                warpgroup_wait<0>();
                if (thread == 0) barrier_arrive(&empty[previous]);
                #pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const u64 m = row + half * 64 + warp * 16 + h * 8 + lane / 4;
                    if (m >= args.m) continue;
                    float* output = (float*)(args.output + m * args.output_stride);
                    #pragma unroll
                    for (int j = 0; j < COLUMNS / 8; ++j) {
                        const u64 n = column + j * 8 + lane % 4 * 2;
                        float y[2];
                        #pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            y[e] = acc[j * 4 + h * 2 + e];
                            if (GATED) {
                                const float up = acc[(COLUMNS / 8 % (BN / 8) + j) * 4 + h * 2 + e];
                                y[e] = (args.activation == 0 ? silu(y[e]) : gelu_tanh(y[e])) * up;
                            }
                        }
                        if (args.wide && n + 1 < args.n) {
                            *(float2*)(output + n) = make_float2(y[0], y[1]);
                        } else {
                            if (n < args.n) output[n] = y[0];
                            if (n + 1 < args.n) output[n + 1] = y[1];
                        }
                        // Rows of the copy are whole blocks long: pairs never reach past their ends.
                        if (GATED && args.copy && n < args.n) {
                            *(u32*)(args.copy + m * args.copy_stride + n * 2) = pack2<bf16>(y[0], n + 1 < args.n ? y[1] : 0.0f);
                        }
                    }
                }
            }
        }
    }
};

#define INSTANCE(BN, LIMIT) \
    extern "C" __global__ void LIMIT wgmma_matmul_##BN(const __grid_constant__ GemmArgs args, \
        const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map) { begin(); Gemm<BN, false>::run(args, &x_map, &w_map, nullptr); }
// The narrow form leaves registers for blocks that dequantise the next weight beside it.
INSTANCE(128, __maxnreg__(112))
INSTANCE(256, __launch_bounds__(384, 1))
extern "C" __global__ void __launch_bounds__(384, 1) wgmma_gated_matmul(const __grid_constant__ GemmArgs args,
    const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap gate_map, const __grid_constant__ TensorMap up_map) {
    begin();
    Gemm<256, true>::run(args, &x_map, &gate_map, &up_map);
}

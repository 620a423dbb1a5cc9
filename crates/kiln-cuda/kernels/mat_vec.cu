// Products of one or two rows with quantised weights: a warp for each few rows of the weight, integer dot
// products with activations in 15 bits.
//
// A lane takes blocks lane, lane + 32, ... of a row, in order, and the lanes are summed by halving:
// the bits of a result do not depend on how many rows a warp or a launch has.

// M rows of activations, R rows of the weight at once, U blocks of a lane in flight. Warps take rows by
// turns; the loads of the next rows are under way while those before are multiplied.
template <class W, int M, int R, int U, bool GATED> __device__ void mat_vec(const MatVecArgs& args) {
    constexpr int MATRICES = GATED ? 2 : 1;
    const u32 lane = threadIdx.x & 31;
    const u32 warp = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), warps = gridDim.x * (blockDim.x >> 5);
    release();
    // Weights at rest may be read before the kernels that this one depends on have ended.
    if (!args.early) wait();
    const u32 slot = blockIdx.y;
    u64 expert_block = 0;
    u64 output = args.output;
    const u8* x = (const u8*)args.activations;
    bool known = true;
    if (args.ids) {
        const u32 token = slot / u32(args.top_k), place = slot % u32(args.top_k);
        u64 id = *(const u32*)(args.ids + u64(token) * args.ids_stride + u64(place) * 4);
        output += u64(token) * args.output_stride + u64(place) * args.output_stride_slot;
        known = id < args.experts;
        expert_block = known ? id * args.n * args.blocks : 0;
        x += u64(slot / u32(args.slots_per_row)) * args.blocks * Q15_BLOCK;
    }
    const u32 blocks = args.blocks, n = args.n, passes = (blocks + 31) / 32;
    const Planes planes[2] = {
        {(const u8*)args.q, (const u8*)args.h, (const u8*)args.s, (const u8*)args.d},
        {(const u8*)args.up_q, (const u8*)args.up_h, (const u8*)args.up_s, (const u8*)args.up_d},
    };

    typename W::Raw raw[MATRICES][U][R];
    u32 next_row = warp * R, next_pass = 0;
    auto load = [&](int u) {
        const u32 b = next_pass * 32 + lane;
        if (next_row < n && b < blocks) {
            #pragma unroll
            for (int r = 0; r < R; ++r) {
                const u64 start = expert_block + u64(min(next_row + r, n - 1)) * blocks;
                #pragma unroll
                for (int g = 0; g < MATRICES; ++g) raw[g][u][r] = W::load(planes[g], start + b);
            }
        }
        if (++next_pass == passes) {
            next_pass = 0;
            next_row += warps * R;
        }
    };
    #pragma unroll
    for (int u = 0; u < U; ++u) load(u);
    if (args.early) wait();

    float acc[MATRICES][R][M] = {};
    u32 row = warp * R, pass = 0;
    while (row < n) {
        #pragma unroll
        for (int u = 0; u < U; ++u) {
            const u32 b = pass * 32 + lane;
            if (row < n && b < blocks) {
                int w[MATRICES][R][8];
                Scales s[MATRICES][R];
                #pragma unroll
                for (int r = 0; r < R; ++r) {
                    const u64 start = expert_block + u64(min(row + r, n - 1)) * blocks;
                    #pragma unroll
                    for (int g = 0; g < MATRICES; ++g) {
                        W::words(raw[g][u][r], w[g][r]);
                        s[g][r] = W::scales(raw[g][u][r], (start + b) & 7);
                    }
                }
                #pragma unroll
                for (int m = 0; m < M; ++m) {
                    const Activations a(x + u64(min(m, int(args.m) - 1)) * blocks * Q15_BLOCK, blocks, b);
                    #pragma unroll
                    for (int g = 0; g < MATRICES; ++g)
                        #pragma unroll
                        for (int r = 0; r < R; ++r) acc[g][r][m] = Dot<W>::add(w[g][r], s[g][r], a, acc[g][r][m]);
                }
            }
            load(u);
            if (++pass == passes) {
                #pragma unroll
                for (int r = 0; r < R; ++r) {
                    #pragma unroll
                    for (int m = 0; m < M; ++m) {
                        float y = warp_sum(acc[0][r][m]);
                        acc[0][r][m] = 0.0f;
                        if (GATED) {
                            float up = warp_sum(acc[MATRICES - 1][r][m]);
                            acc[MATRICES - 1][r][m] = 0.0f;
                            y = (args.activation == 0 ? silu(y) : gelu_tanh(y)) * up;
                        }
                        if (lane == 0 && row + r < n && m < args.m) {
                            const u64 to = args.ids ? output : output + m * args.output_stride;
                            ((float*)to)[row + r] = known ? y : NAN_F;
                        }
                    }
                }
                pass = 0;
                row += warps * R;
            }
        }
    }
}

// GU: blocks in flight of the gated form, each of both weights; BLOCKS: how many a processor holds.
#define INSTANCE(M, R, U, GU, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) mat_vec_##M(const __grid_constant__ MatVecArgs args) { mat_vec<WEIGHT, M, R, U, false>(args); } \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) gated_mat_vec_##M(const __grid_constant__ MatVecArgs args) { mat_vec<WEIGHT, M, 1, GU, true>(args); }
INSTANCE(1, 1, 6, 3, 4)
INSTANCE(2, 2, 2, 2, 4)

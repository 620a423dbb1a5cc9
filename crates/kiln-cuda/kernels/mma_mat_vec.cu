// Products of some rows, eight at most, with quantised weights: integer products of the tensor cores, with
// activations in 15 bits. A block has 16 rows of the weight; a warp has four neighbouring blocks of 32 values
// of every 32.
//
// The sums of a block are exact. They are scaled and added in the order of mat_vec.cu: blocks b, b + 32, ...
// one after the other, then by halving. The bits of a result are the same.

// {scale, offset} of a block, of both halves where they differ.
template <bool HALVES> struct Factors { typedef float2 Pair; };
template <> struct Factors<true> { typedef float4 Pair; };
__device__ __forceinline__ void pair(float2& to, const Scales& s) { to = make_float2(s.a[0], s.c[0]); }
__device__ __forceinline__ void pair(float4& to, const Scales& s) { to = make_float4(s.a[0], s.c[0], s.a[1], s.c[1]); }

template <class W, bool GATED> struct MmaMatVec {
    typedef typename W::Raw Raw;
    typedef typename Factors<W::HALVES>::Pair Pair;
    static constexpr u32 WARPS = 8, MATRICES = GATED ? 2 : 1, AHEAD = GATED ? 1 : 2;

    // Of 16 rows and four blocks of a warp.
    struct Weights {
        u8 codes[16 * 128];
        Pair factors[16 * 4];
    };
    // Then the sums of all warps.
    union Shared {
        Weights weights[WARPS][MATRICES];
        float sums[WARPS][MATRICES * 16][32];
    };

    static __device__ __forceinline__ void add(float& acc, float2 f, const float4& token, int first, int) {
        acc = fmaf(f.x * token.x, float(first), acc);
        if (W::OFFSET) acc = fmaf(f.y, token.y + token.z, acc);
    }
    static __device__ __forceinline__ void add(float& acc, float4 f, const float4& token, int first, int second) {
        acc = fmaf(f.x * token.x, float(first), acc);
        acc = fmaf(f.z * token.x, float(second), acc);
        if (W::OFFSET) {
            acc = fmaf(f.y, token.y, acc);
            acc = fmaf(f.w, token.z, acc);
        }
    }

    // Adds block j of 16 rows.
    static __device__ __forceinline__ void multiply(const Weights& weights, u32 j, const uint4& x, const float4 (&tokens)[2], float (&acc)[4]) {
        const u32 lane = threadIdx.x % 32;
        // Matrices: rows 0..7 and 8..15 of the lower half, the same of the upper half.
        const u32 at = (lane & 15) * 128 + ((lane / 16 ^ lane) & 7) * 16;
        u32 a[4];
        load_matrix4(a, weights.codes + (at ^ j * 32));
        int high[2][4] = {}, low[2][4] = {};
        if (W::HALVES) {
            mma_s8(high[0], a[0], a[1], x.x);
            mma_s8(high[1], a[2], a[3], x.y);
            mma_s8(low[0], a[0], a[1], x.z);
            mma_s8(low[1], a[2], a[3], x.w);
        } else {
            mma_s8(high[0], a[0], a[1], a[2], a[3], x.x, x.y);
            mma_s8(low[0], a[0], a[1], a[2], a[3], x.z, x.w);
        }
        #pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            const Pair factors = weights.factors[(lane / 4 + 8 * r) * 4 + j];
            #pragma unroll
            for (u32 t = 0; t < 2; ++t) {
                const u32 i = 2 * r + t;
                add(acc[i], factors, tokens[t], 128 * high[0][i] + low[0][i], 128 * high[1][i] + low[1][i]);
            }
        }
    }

    static __device__ __forceinline__ void run(const MatVecArgs& args) {
        __shared__ __align__(128) Shared shared;
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * 16;
        const u32 blocks = args.blocks, n = args.n, passes = (blocks + 31) / 32;
        const u8* x = (const u8*)args.activations;
        const Planes planes[2] = {
            {(const u8*)args.q, (const u8*)args.h, (const u8*)args.s, (const u8*)args.d},
            {(const u8*)args.up_q, (const u8*)args.up_h, (const u8*)args.up_s, (const u8*)args.up_d},
        };
        release();
        // Weights at rest may be read before the kernels that this one depends on have ended.
        if (!args.early) wait();
        // A lane has a block of two rows, eight apart; past the end the last, which counts for nothing.
        u64 start[2];
        #pragma unroll
        for (u32 r = 0; r < 2; ++r) start[r] = u64(min(first + r * 8 + lane / 4, n - 1)) * blocks;
        const u32 own = warp * 4 + lane % 4;
        // Where the lower half of a block lies in 128 bytes of a row.
        const u32 place = lane / 4 * 128 + (lane % 4 * 2 ^ lane / 4) * 16;
        Raw raw[AHEAD][MATRICES][2];
        u32 next = 0;
        auto load = [&](Raw (&raw)[MATRICES][2]) {
            if (next < passes) {
                const u32 b = min(next * 32 + own, blocks - 1);
                #pragma unroll
                for (u32 g = 0; g < MATRICES; ++g)
                    #pragma unroll
                    for (u32 r = 0; r < 2; ++r) raw[g][r] = W::load(planes[g], start[r] + b);
            }
            ++next;
        };
        #pragma unroll
        for (u32 u = 0; u < AHEAD; ++u) load(raw[u]);
        if (args.early) wait();

        float acc[MATRICES][4][4] = {};
        for (u32 base = 0; base < passes; base += AHEAD) {
            #pragma unroll
            for (u32 u = 0; u < AHEAD; ++u) {
                const u32 pass = base + u;
                if (pass >= passes) break;
                const u32 b = pass * 32 + own;
                #pragma unroll
                for (u32 g = 0; g < MATRICES; ++g) {
                    #pragma unroll
                    for (u32 r = 0; r < 2; ++r) {
                        int w[8];
                        W::words(raw[u][g][r], w);
                        Weights& weights = shared.weights[warp][g];
                        pair(weights.factors[32 * r + lane], b < blocks ? W::scales(raw[u][g][r], (start[r] + b) & 7) : one_scale(0.0f, 0.0f));
                        u8* to = weights.codes + 8 * r * 128;
                        *(uint4*)(to + place) = make_uint4(w[0], w[1], w[2], w[3]);
                        *(uint4*)(to + (place ^ 16)) = make_uint4(w[4], w[5], w[6], w[7]);
                    }
                }
                load(raw[u]);
                __syncwarp();
                // A loop, or the loads of all blocks would be gathered before it and take too many registers. Sums move
                // on by one, so that those of a block are the first.
                #pragma unroll 1
                for (u32 j = 0; j < 4; ++j) {
                    const u8* at = x + u64(min(pass * 32 + warp * 4 + j, blocks - 1)) * FRAGMENT_BLOCK;
                    const uint4 codes = ((const uint4*)at)[lane];
                    const float4* scales = (const float4*)(at + 512) + lane % 4 * 2;
                    const float4 tokens[2] = {scales[0], scales[1]};
                    #pragma unroll
                    for (u32 g = 0; g < MATRICES; ++g) {
                        multiply(shared.weights[warp][g], j, codes, tokens, acc[g][0]);
                        #pragma unroll
                        for (u32 i = 0; i < 4; ++i) {
                            const float sum = acc[g][0][i];
                            acc[g][0][i] = acc[g][1][i];
                            acc[g][1][i] = acc[g][2][i];
                            acc[g][2][i] = acc[g][3][i];
                            acc[g][3][i] = sum;
                        }
                    }
                }
                __syncwarp();
            }
        }
        __syncthreads();
        #pragma unroll
        for (u32 g = 0; g < MATRICES; ++g)
            #pragma unroll
            for (u32 j = 0; j < 4; ++j)
                #pragma unroll
                for (u32 i = 0; i < 4; ++i) shared.sums[warp][g * 16 + j * 4 + i][lane] = acc[g][j][i];
        __syncthreads();
        if (threadIdx.x >= 128) return;
        const u32 i = warp, row = first + lane / 4 + i / 2 * 8, token = lane % 4 * 2 + i % 2;
        float y[MATRICES];
        #pragma unroll
        for (u32 g = 0; g < MATRICES; ++g) {
            float of[4];
            #pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                auto sum = [&](u32 w) { return shared.sums[w][g * 16 + j * 4 + i][lane]; };
                of[j] = ((sum(0) + sum(4)) + (sum(2) + sum(6))) + ((sum(1) + sum(5)) + (sum(3) + sum(7)));
            }
            y[g] = (of[0] + of[2]) + (of[1] + of[3]);
        }
        if (GATED) y[0] = (args.activation == 0 ? silu(y[0]) : gelu_tanh(y[0])) * y[MATRICES - 1];
        if (row < n && token < args.m) ((float*)(args.output + token * args.output_stride))[row] = y[0];
    }
};

extern "C" __global__ void __launch_bounds__(256, 2) mma_mat_vec(const __grid_constant__ MatVecArgs args) { MmaMatVec<WEIGHT, false>::run(args); }
extern "C" __global__ void __launch_bounds__(256, 2) gated_mma_mat_vec(const __grid_constant__ MatVecArgs args) { MmaMatVec<WEIGHT, true>::run(args); }

// Products of some tens or hundreds of rows by quantised weights, on Hopper: what wgmma_matmul.cu does
// with a weight in bf16, with the same sums in the same order. Most warps dequantise weights to shared
// memory, one copies rows of the input, one or two warpgroups multiply. Tiles have so few columns that
// every processor has one; the blocks of a cluster take neighbouring columns, and each copies a part of
// the rows to all of them.
//
// COLUMNS: of a tile, in the gated form half of each weight. CLUSTER: blocks of a cluster.
// D_REGISTERS, D_OPERANDS, D_NEXT: the sums of a thread in the text of warpgroup products.

__device__ __forceinline__ void multiply_columns(float (&d)[COLUMNS / 2], u64 a, u64 b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" D_NEXT(2) ", 0;\n"
        "wgmma.mma_async.sync.aligned.m64n" D_COLUMNS "k16.f32.bf16.bf16 {" D_REGISTERS "}, %" D_NEXT(0) ", %" D_NEXT(1) ", p, 1, 1, 0, 0;\n}"
        : D_OPERANDS : "l"(a), "l"(b), "r"(add));
}

// A box of a matrix at (column, row) to the blocks of a cluster, each with its own barrier.
__device__ __forceinline__ void copy_box_to_all(void* to, const TensorMap* map, int column, int row, u64* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
        :: "r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(u16((1 << CLUSTER) - 1)) : "memory");
}

// Stages that the groups of a block pass through one after the other.
template <u32 STAGES> struct Ring {
    u32 stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
    }
};

// The weights of a launch, one after the other, or two whose products make one output.
struct DequantSegments { DequantSegment at[3]; };

// MULTIPLIERS warpgroups multiply, each TILES times 64 rows; PRODUCERS warpgroups dequantise and copy.
template <class W, u32 MULTIPLIERS, u32 TILES, u32 PRODUCERS> struct DequantGemm {
    typedef typename W::Raw Raw;
    static constexpr u32 BM = 64 * MULTIPLIERS * TILES, BN = COLUMNS;
    // A stage has so many slices of 64 values of every row of the weight, or of the input.
    static constexpr u32 SLICES = BM == 64 && BN <= 48 ? 4 : 2, X_SLICES = BM == 256 ? 1 : SLICES;
    static constexpr u32 X_BYTES = BM * 128 * X_SLICES, W_BYTES = BN * 128 * SLICES;
    static constexpr u32 W_STAGES = BN == 16 ? 12 : BN == 32 ? 7 : BN == 48 ? 5 : BN == 64 ? 6 : BM == 256 ? 3 : 4;
    static constexpr u32 X_STAGES = (STAGES_BYTES - W_STAGES * W_BYTES) / X_BYTES;
    // Threads that dequantise a stage together, each a block of two rows, and how many such groups there are.
    static constexpr u32 GROUP = BN * SLICES, GROUPS = (128 * PRODUCERS - 32) / GROUP;
    // Blocks of each row that a thread waits for at once.
    static constexpr u32 AHEAD = 2;

    struct Shared { u64 full_x[X_STAGES], empty_x[X_STAGES], full_w[W_STAGES], empty_w[W_STAGES]; };

    const DequantArgs& args;
    const DequantSegments& weights;
    const u32 rank, first, step;
    __device__ __forceinline__ DequantGemm(const DequantArgs& args, const DequantSegments& weights)
        : args(args), weights(weights), rank(block_of_cluster()), first(blockIdx.x / CLUSTER), step(gridDim.x / CLUSTER) {}

    // Tiles of a cluster count through the rows first: those that run together share weights.
    __device__ __forceinline__ u32 row(u32 tile) const { return tile % args.row_tiles * BM; }
    // The weight that column `at` of a tile belongs to, and its row there.
    __device__ __forceinline__ u32 place(u32 tile, u32 at, u32& row) const {
        const u32 columns = tile / args.row_tiles * CLUSTER + rank, a = weights.at[0].tiles, b = a + weights.at[1].tiles;
        if (args.gated) {
            row = columns * (BN / 2) + at % (BN / 2);
            return at < BN / 2 ? 0 : 1;
        }
        row = (columns - (columns < a ? 0 : columns < b ? a : b)) * BN + at;
        return columns < a ? 0 : columns < b ? 1 : 2;
    }

    // Groups take stages by turns. A warp has neighbouring blocks of its rows, and eight threads that write
    // together have two blocks of four rows: they meet all banks.
    __device__ __forceinline__ void dequantise(u8* ws, Shared& shared) const {
        const u32 group = threadIdx.x / GROUP, warp = threadIdx.x % GROUP / 32, eight = threadIdx.x / 8 % 4;
        const u32 at = warp * (16 / SLICES) + eight / SLICES * 4 + threadIdx.x % 8 / 2, slice = eight % SLICES, half = threadIdx.x % 2;
        const u32 stages = args.steps / SLICES;
        u32 tile = first, next = group;
        // Weights and blocks of both rows.
        u32 weight[2];
        u64 start[2];
        auto locate = [&] {
            #pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                u32 row;
                weight[r] = place(tile, at + r * (BN / 2), row);
                start[r] = u64(min(row, u32(weights.at[weight[r]].n) - 1)) * args.blocks;
            }
        };
        // Past the end of a row its last block, which meets zeros of the input.
        auto block = [&](u32 stage) { return min(stage * 2 * SLICES + 2 * slice + half, args.blocks - 1); };
        Raw raw[AHEAD][2];
        auto ask = [&](Raw (&raw)[2]) {
            while (next >= stages && tile < args.tiles) {
                next -= stages;
                tile += step;
                if (tile < args.tiles) locate();
            }
            if (tile < args.tiles) {
                #pragma unroll
                for (u32 r = 0; r < 2; ++r) {
                    const DequantSegment& from = weights.at[weight[r]];
                    const Planes planes = {(const u8*)from.q, (const u8*)from.h, (const u8*)from.s, (const u8*)from.d};
                    raw[r] = W::load(planes, start[r] + block(next));
                }
            }
            next += GROUPS;
        };
        locate();
        #pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) ask(raw[i]);
        // Weights at rest are read before the kernel that this one depends on has ended.
        wait();
        const u32 all = (args.tiles - first + step - 1) / step * stages;
        u32 stage = group % W_STAGES, phase = group / W_STAGES % 2 ^ 1, value = group;
        for (u32 base = group; base < all; base += AHEAD * GROUPS) {
            #pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
                if (base + i * GROUPS >= all) break;
                while (value >= stages) value -= stages;
                u8* to = ws + stage * W_BYTES + slice * (BN * 128);
                barrier_wait(&shared.empty_w[stage], phase);
                #pragma unroll
                for (u32 r = 0; r < 2; ++r) {
                    uint4 v[4];
                    bf16_values<W>(raw[i][r], block(value) & 7, v);
                    #pragma unroll
                    for (u32 piece = 0; piece < 4; ++piece) *(uint4*)swizzled_place(to, at + r * (BN / 2), half * 4 + piece) = v[piece];
                }
                // One arrival of a warp: those of its threads would be one after the other.
                __syncwarp();
                if (threadIdx.x % 32 == 0) barrier_arrive(&shared.full_w[stage]);
                ask(raw[i]);
                value += GROUPS;
                stage += GROUPS;
                while (stage >= W_STAGES) { stage -= W_STAGES; phase ^= 1; }
            }
        }
    }

    // One thread: its part of the rows of every stage, to all blocks of the cluster. Rows past those of the
    // input may be missing: what is made of them is not stored.
    __device__ __forceinline__ void copy(u8* xs, Shared& shared, const TensorMap* x_map) const {
        const u32 bytes = args.box_rows * 128;
        Ring<X_STAGES> ring;
        for (u32 tile = first; tile < args.tiles; tile += step) {
            const u32 from = row(tile) + rank * args.box_rows;
            for (u32 k = 0; k < args.steps; k += X_SLICES) {
                barrier_wait(&shared.empty_x[ring.stage], ring.phase ^ 1);
                u64* full = &shared.full_x[ring.stage];
                barrier_expect(full, CLUSTER * X_SLICES * bytes);
                u8* to = xs + ring.stage * X_BYTES + rank * bytes;
                #pragma unroll
                for (u32 i = 0; i < X_SLICES; ++i) copy_box_to_all(to + i * CLUSTER * bytes, x_map, (k + i) * 64, from, full);
                ring.next();
            }
        }
    }

    __device__ __forceinline__ void store(u32 tile, u32 m, u32 h, const float (&acc)[BN / 2]) const {
        if (m >= args.m) return;
        const u32 pair = threadIdx.x % 4 * 2;
        u32 first;
        const DequantSegment& to = weights.at[place(tile, 0, first)];
        float* output = (float*)(to.output + m * to.output_stride);
        constexpr u32 GATED = BN / 16;
        #pragma unroll
        for (u32 j = 0; j < BN / 8; ++j) {
            const u32 n = first + j * 8 + pair;
            float y[2] = {acc[j * 4 + h * 2], acc[j * 4 + h * 2 + 1]};
            if (args.gated) {
                if (j >= GATED) break;
                #pragma unroll
                for (u32 e = 0; e < 2; ++e) y[e] = (args.activation == 0 ? silu(y[e]) : gelu_tanh(y[e])) * acc[(j + GATED) % (BN / 8) * 4 + h * 2 + e];
            }
            if (to.wide && n + 1 < to.n) {
                *(float2*)(output + n) = make_float2(y[0], y[1]);
            } else {
                if (n < to.n) output[n] = y[0];
                if (n + 1 < to.n) output[n + 1] = y[1];
            }
            // Rows of the copy are whole blocks long: pairs never reach past their ends.
            if (args.copy && n < to.n) *(u32*)(args.copy + m * args.copy_stride + n * 2) = pack2<bf16>(y[0], n + 1 < to.n ? y[1] : 0.0f);
        }
    }

    __device__ __forceinline__ void multiply(const u8* xs, const u8* ws, Shared& shared) const {
        const u32 thread = threadIdx.x % 128, lane = thread % 32, own = (threadIdx.x / 128 - PRODUCERS) * TILES;
        Ring<X_STAGES> x;
        Ring<W_STAGES> w;
        // From slice to slice of the rows of the input, in units of descriptors.
        const u64 slice = CLUSTER * args.box_rows * 8;
        for (u32 tile = first; tile < args.tiles; tile += step) {
            float acc[TILES][BN / 2];
            u32 x_before = 0, w_before = 0;
            auto leave_x = [&] { if (thread < CLUSTER) barrier_arrive_at(&shared.empty_x[x_before], thread); };
            auto leave_w = [&] { if (thread == CLUSTER) barrier_arrive(&shared.empty_w[w_before]); };
            for (u32 k = 0; k < args.steps; k += SLICES) {
                barrier_wait(&shared.full_w[w.stage], w.phase);
                // Here and not where they write: it would wait for the weights that they have asked for.
                shared_writes_done();
                #pragma unroll
                for (u32 part = 0; part < SLICES; part += X_SLICES) {
                    barrier_wait(&shared.full_x[x.stage], x.phase);
                    const u64 rows = swizzled_rows(xs + x.stage * X_BYTES + own * 64 * 128), columns = swizzled_rows(ws + w.stage * W_BYTES + part * BN * 128);
                    warpgroup_begin();
                    #pragma unroll
                    for (u32 j = 0; j < X_SLICES; ++j)
                        #pragma unroll
                        for (u32 i = 0; i < 4; ++i)
                            #pragma unroll
                            for (u32 t = 0; t < TILES; ++t)
                                multiply_columns(acc[t], rows + j * slice + t * 64 * 8 + 2 * i, columns + j * BN * 8 + 2 * i, k + part + j + i > 0);
                    warpgroup_commit();
                    // The products of the stages before have ended.
                    warpgroup_wait<1>();
                    if (k + part > 0) leave_x();
                    if (k > 0 && part == 0) leave_w();
                    x_before = x.stage;
                    x.next();
                }
                w_before = w.stage;
                w.next();
            }
            warpgroup_wait<0>();
            leave_x();
            leave_w();
            #pragma unroll
            for (u32 t = 0; t < TILES; ++t)
                #pragma unroll
                for (u32 h = 0; h < 2; ++h) store(tile, row(tile) + (own + t) * 64 + thread / 32 * 16 + h * 8 + lane / 4, h, acc[t]);
        }
    }

    // LIGHT, HEAVY: registers of those that dequantise and of those that multiply, 0 for as many as there are.
    template <u32 LIGHT, u32 HEAVY> __device__ __forceinline__ void run(const TensorMap* x_map) const {
        extern __shared__ u8 memory[];
        u8* xs = memory + (-shared_address(memory) & 1023);
        u8* ws = xs + X_STAGES * X_BYTES;
        __shared__ Shared shared;
        release();
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < X_STAGES; ++i) {
                barrier_init(&shared.full_x[i], 1);
                barrier_init(&shared.empty_x[i], MULTIPLIERS * CLUSTER);
            }
            for (u32 i = 0; i < W_STAGES; ++i) {
                barrier_init(&shared.full_w[i], GROUP / 32);
                barrier_init(&shared.empty_w[i], MULTIPLIERS);
            }
            barrier_init_fence();
        }
        cluster_sync();
        if (threadIdx.x < 128 * PRODUCERS) {
            if constexpr (LIGHT > 0) registers_release<LIGHT>();
            if (threadIdx.x < GROUP * GROUPS) {
                dequantise(ws, shared);
            } else {
                wait();
                if (threadIdx.x == 128 * PRODUCERS - 32) copy(xs, shared, x_map);
            }
            __syncwarp();
        } else {
            if constexpr (HEAVY > 0) registers_take<HEAVY>();
            wait();
            multiply(xs, ws, shared);
        }
        // No block ends while others may still write to it.
        cluster_sync();
    }
};

#define INSTANCE(ROWS, MULTIPLIERS, TILES, PRODUCERS, LIGHT, HEAVY) \
    extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(128 * (MULTIPLIERS + PRODUCERS), 1) dequant_matmul_##ROWS(const __grid_constant__ DequantArgs args, \
        const __grid_constant__ DequantSegments weights, const __grid_constant__ TensorMap x_map) { \
        DequantGemm<WEIGHT, MULTIPLIERS, TILES, PRODUCERS>(args, weights).run<LIGHT, HEAVY>(&x_map); \
    }
INSTANCE(64, 1, 1, 4, 0, 0)
INSTANCE(128, 2, 1, 3, 0, 0)
INSTANCE(256, 2, 2, 2, 96, 160)

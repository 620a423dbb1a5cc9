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

// MULTIPLIERS warpgroups multiply, each TILES times 64 rows; PRODUCERS warpgroups dequantise and copy.
template <class W, u32 MULTIPLIERS, u32 TILES, u32 PRODUCERS> struct DequantGemm {
    typedef typename W::Raw Raw;
    static constexpr u32 BM = 64 * MULTIPLIERS * TILES, BN = COLUMNS;
    // A stage has 64 values of every row of the input, or 128 of every row of the weight.
    static constexpr u32 X_BYTES = BM * 128, W_BYTES = BN * 256;
    static constexpr u32 W_STAGES = BN == 16 ? 16 : BN == 32 ? 10 : BN == 48 ? 7 : BN == 64 ? 6 : BM == 256 ? 3 : 4;
    static constexpr u32 X_STAGES = (STAGES_BYTES - W_STAGES * W_BYTES) / X_BYTES;
    // Threads that dequantise 64 values of each row of a tile together, and how many such groups there are.
    static constexpr u32 GROUP = 2 * BN, GROUPS = (128 * PRODUCERS - 32) / GROUP;
    // Blocks of weights that a thread waits for at once.
    static constexpr u32 AHEAD = 4;

    struct Shared { u64 full_x[X_STAGES], empty_x[X_STAGES], full_w[W_STAGES], empty_w[W_STAGES]; };

    const DequantArgs& args;
    const DequantSegment &a, &b, &c;
    const u32 rank, first, step;
    __device__ __forceinline__ DequantGemm(const DequantArgs& args, const DequantSegment& a, const DequantSegment& b, const DequantSegment& c)
        : args(args), a(a), b(b), c(c), rank(block_of_cluster()), first(blockIdx.x / CLUSTER), step(gridDim.x / CLUSTER) {}

    // Tiles of a cluster count through the rows first: those that run together share weights.
    __device__ __forceinline__ u32 row(u32 tile) const { return tile % args.row_tiles * BM; }
    // The weight that column `at` of a tile belongs to, and its row there.
    __device__ __forceinline__ const DequantSegment& place(u32 tile, u32 at, u32& row) const {
        u32 columns = tile / args.row_tiles * CLUSTER + rank;
        if (args.gated) {
            row = columns * (BN / 2) + at % (BN / 2);
            return at < BN / 2 ? a : b;
        }
        const bool in_a = columns < a.tiles, in_b = columns < a.tiles + b.tiles;
        row = (columns - (in_a ? 0 : in_b ? a.tiles : a.tiles + b.tiles)) * BN + at;
        return in_a ? a : in_b ? b : c;
    }

    // Groups take 64 values of all rows by turns. Neighbouring threads have the halves of a row, so that eight
    // of them write to all banks.
    __device__ __forceinline__ void dequantise(u8* ws, Shared& shared) const {
        const u32 group = threadIdx.x / GROUP, at = threadIdx.x % GROUP / 2, half = threadIdx.x % 2;
        const u32 steps = args.steps;
        u32 tile = first, next = group;
        Planes planes;
        u64 start;
        auto locate = [&] {
            u32 row;
            const DequantSegment& weight = place(tile, at, row);
            planes = {(const u8*)weight.q, (const u8*)weight.h, (const u8*)weight.s, (const u8*)weight.d};
            start = u64(min(row, u32(weight.n) - 1)) * args.blocks;
        };
        Raw raw[AHEAD];
        auto ask = [&](Raw& raw) {
            while (next >= steps && tile < args.tiles) {
                next -= steps;
                tile += step;
                if (tile < args.tiles) locate();
            }
            const u32 block = 2 * next + half;
            if (tile < args.tiles && block < args.blocks) raw = W::load(planes, start + block);
            next += GROUPS;
        };
        locate();
        #pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) ask(raw[i]);
        // Weights at rest are read before the kernel that this one depends on has ended.
        wait();
        const u32 tiles = (args.tiles - first + step - 1) / step, all = tiles * steps;
        // Two steps to a stage.
        u32 slot = group, phase = 1, value = group;
        for (u32 base = group; base < all; base += AHEAD * GROUPS) {
            #pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
                if (base + i * GROUPS >= all) break;
                while (value >= steps) value -= steps;
                const u32 block = 2 * value + half, stage = slot / 2;
                uint4 v[4] = {};
                if (block < args.blocks) bf16_values<W>(raw[i], block & 7, v);
                ask(raw[i]);
                barrier_wait(&shared.empty_w[stage], phase);
                u8* to = ws + stage * W_BYTES + slot % 2 * (BN * 128);
                #pragma unroll
                for (u32 piece = 0; piece < 4; ++piece) *(uint4*)swizzled_place(to, at, half * 4 + piece) = v[piece];
                // One arrival of a warp: those of its threads would be one after the other.
                __syncwarp();
                if (threadIdx.x % 32 == 0) barrier_arrive(&shared.full_w[stage]);
                value += GROUPS;
                slot += GROUPS;
                if (slot >= 2 * W_STAGES) { slot -= 2 * W_STAGES; phase ^= 1; }
            }
        }
    }

    // One thread: its part of the rows of every stage, to all blocks of the cluster. Rows past those of the
    // input may be missing: what is made of them is not stored.
    __device__ __forceinline__ void copy(u8* xs, Shared& shared, const TensorMap* x_map) const {
        const u32 part = args.box_rows;
        Ring<X_STAGES> ring;
        for (u32 tile = first; tile < args.tiles; tile += step) {
            for (u32 k = 0; k < args.steps; ++k) {
                barrier_wait(&shared.empty_x[ring.stage], ring.phase ^ 1);
                u64* full = &shared.full_x[ring.stage];
                barrier_expect(full, CLUSTER * part * 128);
                copy_box_to_all(xs + ring.stage * X_BYTES + rank * part * 128, x_map, k * 64, row(tile) + rank * part, full);
                ring.next();
            }
        }
    }

    __device__ __forceinline__ void store(u32 tile, u32 m, u32 h, const float (&acc)[BN / 2]) const {
        if (m >= args.m) return;
        const u32 pair = threadIdx.x % 4 * 2;
        u32 first;
        const DequantSegment& to = place(tile, 0, first);
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
        for (u32 tile = first; tile < args.tiles; tile += step) {
            float acc[TILES][BN / 2];
            u32 x_before = 0, w_before = 0;
            auto leave_x = [&] { if (thread < CLUSTER) barrier_arrive_at(&shared.empty_x[x_before], thread); };
            auto leave_w = [&] { if (thread == CLUSTER) barrier_arrive(&shared.empty_w[w_before]); };
            for (u32 k = 0; k < args.steps; k += 2) {
                barrier_wait(&shared.full_w[w.stage], w.phase);
                // Here and not where they write: it would wait for the weights that they have asked for.
                shared_writes_done();
                #pragma unroll
                for (u32 part = 0; part < 2; ++part) {
                    barrier_wait(&shared.full_x[x.stage], x.phase);
                    const u64 rows = swizzled_rows(xs + x.stage * X_BYTES + own * 64 * 128), columns = swizzled_rows(ws + w.stage * W_BYTES + part * BN * 128);
                    warpgroup_begin();
                    #pragma unroll
                    for (u32 i = 0; i < 4; ++i)
                        #pragma unroll
                        for (u32 t = 0; t < TILES; ++t) multiply_columns(acc[t], rows + t * 64 * 8 + 2 * i, columns + 2 * i, k + part + i > 0);
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
        u8* xs = (u8*)((u64(memory) + 1023) / 1024 * 1024);
        u8* ws = xs + X_STAGES * X_BYTES;
        __shared__ Shared shared;
        release();
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < X_STAGES; ++i) {
                barrier_init(&shared.full_x[i], 1);
                barrier_init(&shared.empty_x[i], MULTIPLIERS * CLUSTER);
            }
            for (u32 i = 0; i < W_STAGES; ++i) {
                barrier_init(&shared.full_w[i], 2 * GROUP / 32);
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
        const __grid_constant__ DequantSegment a, const __grid_constant__ DequantSegment b, const __grid_constant__ DequantSegment c, const __grid_constant__ TensorMap x_map) { \
        DequantGemm<WEIGHT, MULTIPLIERS, TILES, PRODUCERS>(args, a, b, c).run<LIGHT, HEAVY>(&x_map); \
    }
INSTANCE(64, 1, 1, 4, 0, 0)
INSTANCE(128, 2, 1, 3, 0, 0)
INSTANCE(256, 2, 2, 2, 96, 160)

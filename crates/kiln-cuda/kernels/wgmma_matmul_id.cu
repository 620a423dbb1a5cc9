// Products of slots sorted by expert, on Hopper. Two warpgroups put rows of activations and weights,
// dequantised to bf16, into shared memory; two others multiply. A tile of 128 rows by 128 columns
// for each block.

template <class W> struct ExpertGemm {
    typedef typename Tile<W>::Raw Raw;
    static constexpr u32 BM = 128, BN = 128, BK = 64, STAGES = 4, PRODUCERS = 256, FACTOR = 128 * BK * 2;
    // Blocks of weights that a thread waits for at once, as registers allow.
    static constexpr u32 AHEAD = sizeof(Raw) <= 48 ? 4 : 1;

    static __device__ __forceinline__ void produce(const TileArgs& args, const TileRows& rows, u64 column, u8* stages, u64* full, u64* empty) {
        const u32 thread = threadIdx.x, row = thread % 128, half = thread / 128, piece = thread % 8;
        const u32 steps = (args.blocks + 1) / 2;
        const u64 weight_row = min(column + row, u64(args.n - 1));
        const u8* x[4];
        #pragma unroll
        for (u32 i = 0; i < 4; ++i) x[i] = (const u8*)args.input + rows.input_row(thread / 8 + 32 * i) * args.input_stride + piece * 16;
        Raw raw[AHEAD];
        auto ask = [&](u32 step, Raw& raw) {
            const u32 block = 2 * step + half;
            if (block < args.blocks) raw = Tile<W>::load(args, rows.expert, weight_row, block);
        };
        #pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) ask(i, raw[i]);
        u32 stage = 0, phase = 1, before = 0;
        for (u32 base = 0; base < steps; base += AHEAD) {
            #pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ++ahead) {
                const u32 step = base + ahead, block = 2 * step + half;
                if (step >= steps) break;
                barrier_wait(&empty[stage], phase);
                u8* xs = stages + stage * 2 * FACTOR;
                u8* ws = xs + FACTOR;
                #pragma unroll
                for (u32 i = 0; i < 4; ++i) copy_async16(swizzled_place(xs, thread / 8 + 32 * i, piece), x[i] + step * 128, step * 2 + piece / 4 < args.blocks);
                copy_async_commit();
                uint4 v[4] = {};
                if (block < args.blocks) Tile<W>::bf16_pieces(raw[ahead], block, v);
                #pragma unroll
                for (u32 i = 0; i < 4; ++i) *(uint4*)swizzled_place(ws, row, half * 4 + i) = v[i];
                ask(step + AHEAD, raw[ahead]);
                // The copies of the step before have ended.
                if (step > 0) {
                    copy_async_wait<1>();
                    __syncwarp();
                    if (thread % 32 == 0) barrier_arrive(&full[before]);
                }
                before = stage;
                if (++stage == STAGES) { stage = 0; phase ^= 1; }
            }
        }
        copy_async_wait<0>();
        __syncwarp();
        if (thread % 32 == 0) barrier_arrive(&full[before]);
    }

    static __device__ __forceinline__ void multiply(const TileArgs& args, const TileRows& rows, u64 column, const u8* stages, u64* full, u64* empty) {
        const u32 thread = threadIdx.x % 128, half = threadIdx.x / 128 - 2, lane = thread % 32;
        const u32 steps = (args.blocks + 1) / 2;
        float acc[BN / 2];
        u32 stage = 0, phase = 0, before = 0;
        for (u32 step = 0; step < steps; ++step) {
            barrier_wait(&full[stage], phase);
            // Here and not where they write: it would wait for the weights that they have asked for.
            shared_writes_done();
            const u8* x = stages + stage * 2 * FACTOR;
            const u64 a = swizzled_rows(x + half * 64 * BK * 2), b = swizzled_rows(x + FACTOR);
            warpgroup_begin();
            #pragma unroll
            for (int k = 0; k < BK / 16; ++k) warpgroup_mma<BN>(acc, a + 2 * k, b + 2 * k, step + k > 0);
            warpgroup_commit();
            warpgroup_wait<1>();
            if (step > 0 && thread == 0) barrier_arrive(&empty[before]);
            before = stage;
            if (++stage == STAGES) { stage = 0; phase ^= 1; }
        }
        warpgroup_wait<0>();
        #pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            const u32 row = half * 64 + thread / 32 * 16 + h * 8 + lane / 4;
            if (!rows.valid(row)) continue;
            float* output = rows.output(row);
            #pragma unroll
            for (u32 j = 0; j < BN / 8; ++j) {
                const u64 n = column + j * 8 + lane % 4 * 2;
                if (n < args.n) output[n] = acc[j * 4 + h * 2];
                if (n + 1 < args.n) output[n + 1] = acc[j * 4 + h * 2 + 1];
            }
        }
    }

    static __device__ __forceinline__ void run(const TileArgs& args) {
        const TileRows rows(args, BM);
        if (rows.empty()) return;
        const u64 column = u64(blockIdx.x) * BN;
        if (rows.invalid) return rows.fill_nan(BM, column, BN);
        extern __shared__ u8 memory[];
        u8* stages = memory + (-shared_address(memory) & 1023);
        __shared__ u64 full[STAGES], empty[STAGES];
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < STAGES; ++i) {
                barrier_init(&full[i], PRODUCERS / 32);
                barrier_init(&empty[i], 2);
            }
            barrier_init_fence();
        }
        __syncthreads();
        if (threadIdx.x < PRODUCERS) produce(args, rows, column, stages, full, empty);
        else multiply(args, rows, column, stages, full, empty);
    }
};

extern "C" __global__ void __launch_bounds__(512, 1) wgmma_matmul_id(const __grid_constant__ TileArgs args) { begin(); ExpertGemm<WEIGHT>::run(args); }

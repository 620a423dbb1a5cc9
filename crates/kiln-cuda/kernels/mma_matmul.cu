// Products on the tensor cores: weights dequantised to bf16 in shared memory, activations in bf16,
// sums in f32. A tile of 64 rows by 64 columns for each block of four warps.

template <class W> __device__ void mma_matmul(const TileArgs& args) {
    constexpr int BM = 64, BN = 64, PITCH = 40;
    __shared__ __align__(16) bf16 xs[2][BM][PITCH];
    __shared__ __align__(16) bf16 ws[2][BN][PITCH];
    TileRows rows(args, BM);
    if (rows.empty()) return;
    const u64 column = u64(blockIdx.x) * BN;
    if (rows.invalid) return rows.fill_nan(BM, column, BN);
    const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;

    // Threads 0..63 dequantise a block each; 64..127 copy a row of activations each.
    const bool weights = thread < BN;
    const u64 weight_row = min(column + thread, u64(args.n - 1));
    const bf16* x = (const bf16*)(args.input + (weights ? 0 : rows.input_row(thread - BN)) * args.input_stride);
    typename Tile<W>::Raw raw;

    auto fetch = [&](u32 block, int stage) {
        if (weights) {
            raw = Tile<W>::load(args, rows.expert, weight_row, block);
        } else {
            #pragma unroll
            for (int i = 0; i < 4; ++i) copy_async16(&xs[stage][thread - BN][8 * i], x + block * 32 + 8 * i, true);
        }
        copy_async_commit();
    };
    auto place = [&](u32 block, int stage) {
        if (weights) {
            uint4 v[4];
            Tile<W>::bf16_pieces(raw, block, v);
            #pragma unroll
            for (int i = 0; i < 4; ++i) *(uint4*)&ws[stage][thread][8 * i] = v[i];
        }
        copy_async_wait<0>();
    };

    const u32 warp_m = warp & 1, warp_n = warp >> 1;
    float acc[2][4][4] = {};
    fetch(0, 0);
    place(0, 0);
    __syncthreads();
    for (u32 block = 0; block < args.blocks; ++block) {
        const int stage = block & 1;
        const bool more = block + 1 < args.blocks;
        if (more) fetch(block + 1, stage ^ 1);
        #pragma unroll
        for (int k = 0; k < 32; k += 16) {
            u32 a[2][4], b[4][2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                load_matrix4(a[i], &xs[stage][warp_m * 32 + i * 16 + (lane & 15)][k + (lane >> 4) * 8]);
            #pragma unroll
            for (int j = 0; j < 4; ++j)
                load_matrix2(b[j], &ws[stage][warp_n * 32 + j * 8 + (lane & 7)][k + (lane >> 3 & 1) * 8]);
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                #pragma unroll
                for (int j = 0; j < 4; ++j) mma<bf16>(acc[i][j], a[i], b[j]);
        }
        if (more) place(block + 1, stage ^ 1);
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        #pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32 row = warp_m * 32 + i * 16 + half * 8 + lane / 4;
            if (!rows.valid(row)) continue;
            float* output = rows.output(row);
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                u64 n = column + warp_n * 32 + j * 8 + lane % 4 * 2;
                if (n < args.n) output[n] = acc[i][j][2 * half];
                if (n + 1 < args.n) output[n + 1] = acc[i][j][2 * half + 1];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) mma_matmul(const __grid_constant__ TileArgs args) { begin(); mma_matmul<WEIGHT>(args); }

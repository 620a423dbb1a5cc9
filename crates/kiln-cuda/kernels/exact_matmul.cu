// Products in f32 from dequantised weights: a tile of 32 rows by 64 columns for each block.

template <class W> __device__ void exact_matmul(const TileArgs& args) {
    constexpr int BM = 32, BN = 64;
    __shared__ float xs[32][BM + 1];
    __shared__ float ws[32][BN + 1];
    TileRows rows(args, BM);
    if (rows.empty()) return;
    const u64 column = u64(blockIdx.x) * BN;
    if (rows.invalid) return rows.fill_nan(BM, column, BN);
    const u32 tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    float acc[4][4] = {};
    for (u32 block = 0; block < args.blocks; ++block) {
        if (threadIdx.x < BN) {
            u64 row = min(column + threadIdx.x, u64(args.n - 1));
            float v[32];
            Tile<W>::values(args, Tile<W>::load(args, rows.expert, row, block), rows.expert, row, block, v);
            #pragma unroll
            for (int i = 0; i < 32; ++i) ws[i][threadIdx.x] = v[i];
        } else {
            for (u32 at = threadIdx.x - BN; at < BM * 32; at += blockDim.x - BN) {
                u32 i = at / 32, k = at % 32;
                const float* x = (const float*)(args.input + rows.input_row(i) * args.input_stride);
                xs[k][i] = block * 32 + k < args.k ? x[block * 32 + k] : 0.0f;
            }
        }
        __syncthreads();
        #pragma unroll 8
        for (int k = 0; k < 32; ++k) {
            float a[4], b[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i) { a[i] = xs[k][ty * 4 + i]; b[i] = ws[k][tx + 16 * i]; }
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                #pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
        }
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (!rows.valid(ty * 4 + i)) continue;
        float* output = rows.output(ty * 4 + i);
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            u64 n = column + tx + 16 * j;
            if (n < args.n) output[n] = acc[i][j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) exact_matmul(const __grid_constant__ TileArgs args) { begin(); exact_matmul<WEIGHT>(args); }

// Rows of weights as plain values: the gather of embeddings, and whole matrices in bf16.

template <class W, class T> __device__ void embed(const EmbedArgs& args) {
    const u64 row = blockIdx.x;
    const u64 id = ((const u32*)args.ids)[row];
    T* output = (T*)(args.output + row * args.output_stride);
    const u32 block = blockIdx.y * blockDim.x + threadIdx.x;
    if (block >= args.blocks) return;
    float v[32];
    if (id < args.rows) {
        TileArgs tile = {};
        tile.q = args.q; tile.h = args.h; tile.s = args.s; tile.d = args.d;
        tile.n = args.rows; tile.k = args.dim; tile.blocks = args.row_blocks; tile.weight_stride = args.weight_stride; tile.wide = args.wide;
        u32 at = args.first_block + block;
        Tile<W>::values(tile, Tile<W>::load(tile, 0, id, at), 0, id, at, v);
    }
    #pragma unroll
    for (int i = 0; i < 32; ++i) {
        if (block * 32 + i < args.dim) output[block * 32 + i] = from_float<T>(id < args.rows ? v[i] * args.scale : NAN_F);
    }
}

// All rows as bf16, contiguous, padded with zeros to whole blocks. A warp writes its blocks one after
// the other by way of shared memory; the exchange of places keeps banks apart.
template <class W> __device__ void dequantize(const TileArgs& args) {
    __shared__ uint4 stage[128 * 4];
    const u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x, count = args.n * args.blocks;
    const u32 lane = threadIdx.x & 31;
    uint4* mine = stage + (threadIdx.x & ~31u) * 4;
    if (at < count) {
        const u64 row = at / args.blocks;
        const u32 block = at % args.blocks;
        uint4 v[4];
        Tile<W>::bf16_pieces(Tile<W>::load(args, 0, row, block), block, v);
        #pragma unroll
        for (int i = 0; i < 4; ++i) mine[lane * 4 + (i ^ (lane >> 1 & 3))] = v[i];
    }
    __syncwarp();
    const u64 first = at - lane;
    uint4* output = (uint4*)args.output + first * 4;
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        const u32 owner = (j * 32 + lane) / 4, i = lane % 4;
        if (first + owner < count) output[j * 32 + lane] = mine[owner * 4 + (i ^ (owner >> 1 & 3))];
    }
}

extern "C" __global__ void embed_f32(const __grid_constant__ EmbedArgs args) { begin(); embed<WEIGHT, float>(args); }
extern "C" __global__ void embed_f16(const __grid_constant__ EmbedArgs args) { begin(); embed<WEIGHT, f16>(args); }
extern "C" __global__ void embed_bf16(const __grid_constant__ EmbedArgs args) { begin(); embed<WEIGHT, bf16>(args); }
extern "C" __global__ void dequantize_bf16(const __grid_constant__ TileArgs args) { begin(); dequantize<WEIGHT>(args); }

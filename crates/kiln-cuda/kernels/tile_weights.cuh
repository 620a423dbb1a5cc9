// Blocks of 32 values of any weight type, for the kernels that work on tiles. WEIGHT is a format of
// planes, or a float type whose rows may have any length.

template <class W> struct Tile {
    typedef typename W::Raw Raw;
    static __device__ __forceinline__ Raw load(const TileArgs& args, u64 expert, u64 row, u32 block) {
        Planes planes = {(const u8*)args.q, (const u8*)args.h, (const u8*)args.s, (const u8*)args.d};
        return W::load(planes, (expert * args.n + row) * args.blocks + block);
    }
    static __device__ __forceinline__ void values(const TileArgs& args, const Raw& raw, u64 expert, u64 row, u32 block, float (&v)[32]) {
        ::values<W>(raw, ((expert * args.n + row) * args.blocks + block) & 7, v);
    }
    // Of formats that number their blocks, rows have a multiple of 8.
    static __device__ __forceinline__ void bf16_pieces(const Raw& raw, u32 block, uint4 (&v)[4]) { bf16_values<W>(raw, block & 7, v); }
};

template <class T> struct FloatTile {
    struct Raw { float v[32]; };
    static __device__ __forceinline__ Raw load(const TileArgs& args, u64 expert, u64 row, u32 block) {
        const T* p = (const T*)(args.q + expert * args.expert_stride + row * args.weight_stride) + u64(block) * 32;
        Raw raw;
        if (args.wide && block * 32 + 32 <= args.k) {
            #pragma unroll
            for (int i = 0; i < 32; i += 4) {
                float v[4];
                load4(p + i, true, v);
                #pragma unroll
                for (int e = 0; e < 4; ++e) raw.v[i + e] = v[e];
            }
        } else {
            #pragma unroll
            for (int i = 0; i < 32; ++i) raw.v[i] = block * 32 + i < args.k ? to_float(p[i]) : 0.0f;
        }
        return raw;
    }
    static __device__ __forceinline__ void values(const TileArgs&, const Raw& raw, u64, u64, u32, float (&v)[32]) {
        #pragma unroll
        for (int i = 0; i < 32; ++i) v[i] = raw.v[i];
    }
    static __device__ __forceinline__ void bf16_pieces(const Raw& raw, u32, uint4 (&v)[4]) {
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* x = raw.v + 8 * i;
            v[i] = make_uint4(pack2<bf16>(x[0], x[1]), pack2<bf16>(x[2], x[3]), pack2<bf16>(x[4], x[5]), pack2<bf16>(x[6], x[7]));
        }
    }
};
template <> struct Tile<float> : FloatTile<float> {};
template <> struct Tile<f16> : FloatTile<f16> {};
template <> struct Tile<bf16> : FloatTile<bf16> {};

// The rows of a tile: all rows of the input, or the slots that chose an expert.
struct TileRows {
    const TileArgs& args;
    u64 expert, first, count;
    bool invalid;
    const u32* list;

    __device__ __forceinline__ TileRows(const TileArgs& a, u32 tile) : args(a), expert(0), invalid(false), list(nullptr) {
        u64 begin = 0;
        count = a.m;
        if (a.list) {
            const u32* offsets = (const u32*)a.offsets;
            invalid = blockIdx.z == a.experts;
            expert = invalid ? 0 : blockIdx.z;
            begin = offsets[blockIdx.z];
            count = offsets[blockIdx.z + 1] - begin;
            list = (const u32*)a.list + begin;
        }
        first = u64(blockIdx.y) * tile;
    }
    __device__ __forceinline__ bool empty() const { return first >= count; }
    __device__ __forceinline__ u64 slot(u32 i) const {
        u64 at = min(first + i, count - 1);
        return list ? list[at] : at;
    }
    __device__ __forceinline__ bool valid(u32 i) const { return first + i < count; }
    __device__ __forceinline__ u64 input_row(u32 i) const { return list ? slot(i) / args.slots_per_row : slot(i); }
    __device__ __forceinline__ float* output(u32 i) const {
        u64 s = slot(i);
        if (!list) return (float*)(args.output + s * args.output_stride);
        return (float*)(args.output + s / args.top_k * args.output_stride + s % args.top_k * args.output_stride_slot);
    }
    // Rows of slots whose id names no expert.
    __device__ __forceinline__ void fill_nan(u32 rows, u64 first_column, u32 columns) const {
        for (u32 at = threadIdx.x; at < rows * columns; at += blockDim.x) {
            u32 i = at / columns;
            u64 n = first_column + at % columns;
            if (valid(i) && n < args.n) output(i)[n] = NAN_F;
        }
    }
};

// Attention of many queries on the tensor cores: a tile of query rows for each block, key tiles at
// fixed positions. A row's bits do not depend on the rows beside it: key tiles that are masked for a
// row change nothing in it.

// DP: head dimension padded to the kernel's; RW, CW: warps over rows and over output columns;
// BK: keys of a tile; SPLIT: queries as a sum of two 16-bit values.
template <class T, int DP, int RW, int CW, int BK, bool SPLIT> struct Flash {
    static constexpr int BQ = RW * 16, PITCH = DP + 8, THREADS = RW * CW * 32, COLUMNS = DP / CW;
    static constexpr float LOWEST = -1.7014117e38f, LOG2E = 1.4426950408889634f;

    // Rows of a tile from device memory; zeros outside.
    template <class Row> static __device__ __forceinline__ void copy_rows(T* to, u32 rows, const FlashArgs& args, Row row) {
        for (u32 at = threadIdx.x; at < rows * (DP / 8); at += THREADS) {
            u32 r = at / (DP / 8), i = at % (DP / 8) * 8;
            const T* from = row(r);
            bool valid = from != nullptr && i < args.dim;
            T* target = to + r * PITCH + i;
            if (args.wide) {
                copy_async16(target, valid ? from + i : (const T*)args.k, valid);
            } else {
                #pragma unroll
                for (int e = 0; e < 8; ++e) target[e] = valid ? from[i + e] : T{0};
            }
        }
    }

    static __device__ void run(const FlashArgs& args) {
        extern __shared__ __align__(16) u8 memory[];
        T* qs = (T*)memory;
        T* ql = qs + BQ * PITCH;
        T* ks = ql + (SPLIT ? BQ * PITCH : 0);
        T* vs = ks + BK * PITCH;
        const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
        const u32 row_warp = warp % RW, column_warp = warp / RW;
        const u64 tile = gridDim.x - 1 - blockIdx.x, first_row = tile * BQ;
        const u64 head = blockIdx.y, batch = blockIdx.z, kv_head = head / args.group;

        i64 kv_len = args.kv_len, offset = args.q_offset, oldest = 0;
        bool valid = true;
        if (args.kv_len_at) {
            kv_len = *(const u32*)args.kv_len_at;
            valid = kv_len >= i64(args.q_len) && (args.ring || kv_len <= i64(args.capacity));
            offset = kv_len - i64(args.q_len);
            if (args.ring && kv_len > i64(args.capacity)) oldest = kv_len - i64(args.capacity);
            if (!valid) kv_len = 0;
        }
        const u32 rows = min(u64(BQ), args.q_len - first_row);

        // Queries, scaled later: in 16 bits, or as a high and a low part.
        for (u32 at = thread; at < BQ * (DP / 2); at += THREADS) {
            u32 r = at / (DP / 2), i = at % (DP / 2) * 2;
            float a = 0.0f, b = 0.0f;
            if (r < rows && i < args.dim) {
                const void* from = (const void*)(args.q + batch * args.q_stride_b + head * args.q_stride_h + (first_row + r) * args.q_stride_l);
                a = load_as(args.q_element, from, i);
                b = load_as(args.q_element, from, i + 1);
            }
            T ah = from_float<T>(a), bh = from_float<T>(b);
            qs[r * PITCH + i] = ah;
            qs[r * PITCH + i + 1] = bh;
            if (SPLIT) {
                ql[r * PITCH + i] = from_float<T>(a - to_float(ah));
                ql[r * PITCH + i + 1] = from_float<T>(b - to_float(bh));
            }
        }

        // Positions of the first and the last row, and the tiles of keys that any of them sees.
        const i64 low = offset + i64(first_row), high = low + rows - 1;
        i64 begin = oldest, end = kv_len;
        if (args.causal && high + 1 < end) end = high + 1;
        if (args.window && low + 1 - i64(args.window) > begin) begin = low + 1 - i64(args.window);
        i64 key = begin / BK * BK;
        auto skip = [&](i64 from) {
            while (args.blocks && from < end && masked_by_map(args, batch, head, first_row, rows, from)) from += BK;
            return from;
        };
        key = skip(key);

        auto row_of = [&](u64 base, u64 stride_b, u64 stride_h, u64 stride_l, i64 first) {
            return [=](u32 r) -> const T* {
                i64 p = first + r;
                if (p < oldest || p >= kv_len) return nullptr;
                u64 slot = args.ring ? u64(p) % args.capacity : u64(p);
                return (const T*)(base + batch * stride_b + kv_head * stride_h + slot * stride_l);
            };
        };
        auto load_k = [&](i64 first) {
            copy_rows(ks, BK, args, row_of(args.k, args.k_stride_b, args.k_stride_h, args.k_stride_l, first));
            copy_async_commit();
        };
        auto load_v = [&](i64 first) {
            copy_rows(vs, BK, args, row_of(args.v, args.v_stride_b, args.v_stride_h, args.v_stride_l, first));
            copy_async_commit();
        };

        float out[COLUMNS / 8][4] = {};
        float top[2] = {LOWEST, LOWEST}, sum[2] = {};
        if (key < end) load_k(key);
        while (key < end) {
            copy_async_wait<0>();
            __syncthreads();
            load_v(key);
            float s[BK / 8][4] = {};
            #pragma unroll 4
            for (int d = 0; d < DP; d += 16) {
                u32 a[4], l[4];
                const u32 at = (row_warp * 16 + (lane & 15)) * PITCH + d + (lane >> 4) * 8;
                load_matrix4(a, qs + at);
                if (SPLIT) load_matrix4(l, ql + at);
                #pragma unroll
                for (int j = 0; j < BK / 8; j += 2) {
                    u32 b[4];
                    load_matrix4(b, ks + (j * 8 + (lane & 7) + (lane >> 4) * 8) * PITCH + d + (lane >> 3 & 1) * 8);
                    const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                    mma<T>(s[j], a, b0);
                    mma<T>(s[j + 1], a, b1);
                    if (SPLIT) {
                        mma<T>(s[j], l, b0);
                        mma<T>(s[j + 1], l, b1);
                    }
                }
            }
            __syncthreads();
            const i64 next = skip(key + BK);
            if (next < end) load_k(next);
            else copy_async_commit();

            // Scores in units of log2, masked ones minus infinity.
            const bool inside = key >= begin && key + BK <= kv_len && !args.mask_kind
                && (!args.causal || key + BK - 1 <= low)
                && (!args.window || high - key < i64(args.window));
            float larger[2] = {top[0], top[1]};
            #pragma unroll
            for (int j = 0; j < BK / 8; ++j) {
                #pragma unroll
                for (int e = 0; e < 4; ++e) {
                    float x = s[j][e] * args.scale;
                    if (args.softcap > 0.0f) x = args.softcap * tanhf(x / args.softcap);
                    if (!inside) {
                        const u32 r = row_warp * 16 + lane / 4 + (e >> 1) * 8;
                        const i64 p = key + j * 8 + lane % 4 * 2 + (e & 1);
                        const i64 query = low + r;
                        bool open = r < rows && p >= oldest && p < kv_len;
                        if (args.causal) open = open && p <= query;
                        if (args.window) open = open && query - p < i64(args.window);
                        if (args.mask_kind && open) {
                            const u64 mask = args.mask + batch * args.mask_stride_b + head * args.mask_stride_h + (first_row + r) * args.mask_stride_l;
                            if (args.mask_kind == 1) open = ((const u8*)mask)[p] != 0;
                            else x += to_float(((const T*)mask)[p]);
                        }
                        if (!open) x = -INF;
                    }
                    x *= LOG2E;
                    s[j][e] = x;
                    larger[e >> 1] = fmaxf(larger[e >> 1], x);
                }
            }
            #pragma unroll
            for (int h = 0; h < 2; ++h) {
                larger[h] = fmaxf(larger[h], __shfl_xor_sync(~0u, larger[h], 1));
                larger[h] = fmaxf(larger[h], __shfl_xor_sync(~0u, larger[h], 2));
                float old = exp2f(top[h] - larger[h]);
                top[h] = larger[h];
                float row = 0.0f;
                #pragma unroll
                for (int j = 0; j < BK / 8; ++j) {
                    #pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; ++e) {
                        s[j][e] = exp2f(s[j][e] - larger[h]);
                        row += s[j][e];
                    }
                }
                sum[h] = fmaf(sum[h], old, row);
                #pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) {
                    out[j][2 * h] *= old;
                    out[j][2 * h + 1] *= old;
                }
            }
            copy_async_wait<1>();
            __syncthreads();
            #pragma unroll
            for (int k = 0; k < BK / 16; ++k) {
                const u32 a[4] = {pack2<T>(s[2 * k][0], s[2 * k][1]), pack2<T>(s[2 * k][2], s[2 * k][3]),
                                  pack2<T>(s[2 * k + 1][0], s[2 * k + 1][1]), pack2<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
                #pragma unroll
                for (int j = 0; j < COLUMNS / 8; j += 2) {
                    u32 b[4];
                    load_matrix4_transposed(b, vs + (k * 16 + (lane & 15)) * PITCH + column_warp * COLUMNS + (j + (lane >> 4)) * 8);
                    const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                    mma<T>(out[j], a, b0);
                    mma<T>(out[j + 1], a, b1);
                }
            }
            key = next;
        }
        copy_async_wait<0>();

        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
            sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
            const u32 r = row_warp * 16 + lane / 4 + h * 8;
            if (r >= rows) continue;
            float factor = sum[h] > 0.0f ? 1.0f / sum[h] : 0.0f;
            if (args.sinks && sum[h] > 0.0f) {
                float sink = ((const float*)args.sinks)[head] * LOG2E;
                float all = fmaxf(sink, top[h]);
                float share = exp2f(top[h] - all);
                factor = share / (sum[h] * share + exp2f(sink - all));
            }
            if (!valid) factor = NAN_F;
            const u64 output = args.output + batch * args.output_stride_b + head * args.output_stride_h + (first_row + r) * args.output_stride_l;
            #pragma unroll
            for (int j = 0; j < COLUMNS / 8; ++j) {
                #pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const u32 i = column_warp * COLUMNS + j * 8 + lane % 4 * 2 + e;
                    if (i >= args.dim) continue;
                    float y = out[j][2 * h + e] * factor;
                    if (args.q_element == ELEMENT_F32) ((float*)output)[i] = y;
                    else if (args.q_element == ELEMENT_F16) ((f16*)output)[i] = from_float<f16>(y);
                    else ((bf16*)output)[i] = from_float<bf16>(y);
                }
            }
        }
    }

    // Whether the map says that all keys of a tile are masked for all rows.
    static __device__ bool masked_by_map(const FlashArgs& args, u64 batch, u64 head, u64 first_row, u32 rows, i64 key) {
        if (args.tile_rows < 8 || args.tile_columns < 8) return false;
        const u64 map = args.blocks + batch * args.blocks_stride_b + head * args.blocks_stride_h;
        const u64 last_key = min(u64(key) + BK, u64(args.kv_len)) - 1;
        for (u64 r = first_row / args.tile_rows; r <= (first_row + rows - 1) / args.tile_rows; ++r)
            for (u64 c = u64(key) / args.tile_columns; c <= last_key / args.tile_columns; ++c)
                if (((const u8*)(map + r * args.blocks_stride_l))[c] != 0) return false;
        return true;
    }
};

// The tile map of a mask: a block for each tile.
template <class T> __device__ void flash_attention_blocks(const FlashBlocksArgs& args) {
    const u64 row = blockIdx.y, column = blockIdx.x, batch = blockIdx.z / args.heads, head = blockIdx.z % args.heads;
    const u64 rows = min(args.tile_rows, args.q_len - row * args.tile_rows);
    const u64 columns = min(args.tile_columns, args.kv_len - column * args.tile_columns);
    const u64 mask = args.mask + batch * args.mask_stride_b + head * args.mask_stride_h + row * args.tile_rows * args.mask_stride_l;
    bool masked = true, open = true;
    for (u64 at = threadIdx.x; at < rows * columns; at += blockDim.x) {
        T x = ((const T*)(mask + at / columns * args.mask_stride_l))[column * args.tile_columns + at % columns];
        if constexpr (sizeof(T) == 1) {
            masked = masked && x == 0;
            open = open && x != 0;
        } else {
            masked = masked && to_float(x) == -INF;
            open = open && to_float(x) == 0.0f;
        }
    }
    masked = __syncthreads_and(masked);
    open = __syncthreads_and(open);
    if (threadIdx.x == 0) ((u8*)(args.blocks + batch * args.blocks_stride_b + head * args.blocks_stride_h + row * args.blocks_stride_l))[column] = masked ? 0 : open ? 2 : 1;
}

#define INSTANCE(A, T, DP, RW, CW, BK) \
    extern "C" __global__ void __launch_bounds__(RW * CW * 32) flash_attention_##A##_##DP(const __grid_constant__ FlashArgs args) { begin(); Flash<T, DP, RW, CW, BK, false>::run(args); } \
    extern "C" __global__ void __launch_bounds__(RW * CW * 32) flash_attention_##A##_##DP##_split(const __grid_constant__ FlashArgs args) { begin(); Flash<T, DP, RW, CW, BK, true>::run(args); }
#define TYPES(DP, RW, CW, BK) INSTANCE(f16, f16, DP, RW, CW, BK) INSTANCE(bf16, bf16, DP, RW, CW, BK)
#if HEAD_DIM == 64
TYPES(64, 4, 1, 64)
#elif HEAD_DIM == 80
TYPES(80, 4, 1, 64)
#elif HEAD_DIM == 96
TYPES(96, 4, 1, 64)
#elif HEAD_DIM == 128
TYPES(128, 4, 1, 64)
#elif HEAD_DIM == 256
TYPES(256, 4, 2, 32)
#elif HEAD_DIM == 512
TYPES(512, 2, 2, 32)
#else
extern "C" __global__ void flash_attention_blocks_u8(const __grid_constant__ FlashBlocksArgs args) { begin(); flash_attention_blocks<u8>(args); }
extern "C" __global__ void flash_attention_blocks_f16(const __grid_constant__ FlashBlocksArgs args) { begin(); flash_attention_blocks<f16>(args); }
extern "C" __global__ void flash_attention_blocks_bf16(const __grid_constant__ FlashBlocksArgs args) { begin(); flash_attention_blocks<bf16>(args); }
#endif

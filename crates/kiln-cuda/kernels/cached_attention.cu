// Attention of few queries against a key-value cache, in f32: a block for each key-value head, token
// and part of the keys; the parts are merged in their order.
//
// Parts begin at fixed positions and a key always goes to the same lanes, so that the bits of a row
// depend on its own position alone.

struct Q8 {};

// Eight neighbours of a row of the cache.
__device__ __forceinline__ void load_keys(const float* row, u32 i, bool wide, float (&v)[8]) {
    float a[4], b[4];
    load4(row + i, wide, a);
    load4(row + i + 4, wide, b);
    #pragma unroll
    for (int e = 0; e < 4; ++e) { v[e] = a[e]; v[4 + e] = b[e]; }
}
template <class C> __device__ __forceinline__ void load_keys(const C* row, u32 i, bool wide, float (&v)[8]) {
    if (wide) {
        uint4 t = *(const uint4*)(row + i);
        const u32 words[4] = {t.x, t.y, t.z, t.w};
        #pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = to_float(C{u16(words[e / 2] >> 16 * (e & 1))});
    } else {
        #pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = to_float(row[i + e]);
    }
}
__device__ __forceinline__ void load_keys(const Q8* row, u32 i, bool, float (&v)[8]) {
    const u8* block = (const u8*)row + i / 32 * 34;
    float d = half_bits(block[0] | block[1] << 8);
    #pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = d * float(i8(block[2 + i % 32 + e]));
}

// Positions of the keys that a query may see.
struct Span {
    i64 length, position, begin, end;
    bool valid;

    __device__ __forceinline__ Span(const CachedAttentionArgs& args, u64 token) {
        length = *(const u32*)args.kv_len;
        valid = length >= i64(args.tokens) && (args.ring || length <= i64(args.capacity));
        position = length - i64(args.tokens) + i64(token);
        begin = args.ring && length > i64(args.capacity) ? length - i64(args.capacity) : 0;
        if (args.window && position + 1 - i64(args.window) > begin) begin = position + 1 - i64(args.window);
        end = position + 1;
    }
};

// G query heads; CH chunks of 8 values for each lane; U keys of a lane in flight.
template <class C, int G, int CH, int U> __device__ void cached_attention(const CachedAttentionArgs& args) {
    constexpr int WARPS = 4;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 groups = (args.group + G - 1) / G;
    const u64 token = blockIdx.z / groups, first_head = blockIdx.z % groups * G;
    const u64 kv_head = blockIdx.y, part = blockIdx.x;
    const u32 heads = min(u32(G), u32(args.group - first_head));
    const Span span(args, token);
    const i64 begin = max(span.begin, i64(part * args.part_keys));
    const i64 end = min(span.end, i64((part + 1) * args.part_keys));

    // Lanes of a key; a warp looks at 32 / lanes keys together.
    const u32 lanes = args.lanes, keys = 32 / lanes, at = lane % lanes;
    float q[G][CH][8], out[G][CH][8] = {}, top[G], sum[G] = {};
    #pragma unroll
    for (int g = 0; g < G; ++g) {
        top[g] = -INF;
        const u64 head = kv_head * args.group + min(u32(first_head + g), u32(args.group - 1));
        const void* row = (const void*)(args.q + token * args.q_stride_t + head * args.q_stride_h);
        #pragma unroll
        for (int c = 0; c < CH; ++c) {
            load8_as(args.element, row, (at + c * lanes) * 8, args.dim, q[g][c]);
            #pragma unroll
            for (int e = 0; e < 8; ++e) q[g][c][e] *= args.scale;
        }
    }
    // The merge reads no part without keys.
    if (!span.valid || begin >= end) return;
    const i64 step = WARPS * keys;
    for (i64 base = begin / (step * U) * (step * U); base < end; base += step * U) {
        float k[U][CH][8], v[U][CH][8];
        bool open[U];
        #pragma unroll
        for (int u = 0; u < U; ++u) {
            const i64 p = base + u * step + warp * keys + lane / lanes;
            open[u] = p >= begin && p < end;
            const u64 slot = args.ring ? u64(p) % args.capacity : u64(p);
            #pragma unroll
            for (int c = 0; c < CH; ++c) {
                u32 i = (at + c * lanes) * 8;
                #pragma unroll
                for (int e = 0; e < 8; ++e) k[u][c][e] = v[u][c][e] = 0.0f;
                if (open[u] && i < args.dim) {
                    load_keys((const C*)(args.k + kv_head * args.k_stride_h + slot * args.k_stride_s), i, args.wide, k[u][c]);
                    load_keys((const C*)(args.v + kv_head * args.v_stride_h + slot * args.v_stride_s), i, args.wide, v[u][c]);
                }
            }
        }
        #pragma unroll
        for (int g = 0; g < G; ++g) {
            float score[U], larger = top[g];
            #pragma unroll
            for (int u = 0; u < U; ++u) {
                float s = 0.0f;
                #pragma unroll
                for (int c = 0; c < CH; ++c)
                    #pragma unroll
                    for (int e = 0; e < 8; ++e) s = fmaf(q[g][c][e], k[u][c][e], s);
                score[u] = s;
            }
            for (u32 o = lanes / 2; o; o >>= 1)
                #pragma unroll
                for (int u = 0; u < U; ++u) score[u] += __shfl_xor_sync(~0u, score[u], o);
            #pragma unroll
            for (int u = 0; u < U; ++u) {
                if (args.softcap > 0.0f) score[u] = args.softcap * tanhf(score[u] / args.softcap);
                if (open[u]) larger = fmaxf(larger, score[u]);
            }
            if (larger > -INF) {
                const float old = expf(top[g] - larger);
                top[g] = larger;
                sum[g] *= old;
                #pragma unroll
                for (int c = 0; c < CH; ++c)
                    #pragma unroll
                    for (int e = 0; e < 8; ++e) out[g][c][e] *= old;
                #pragma unroll
                for (int u = 0; u < U; ++u) {
                    const float weight = open[u] ? expf(score[u] - larger) : 0.0f;
                    sum[g] += weight;
                    #pragma unroll
                    for (int c = 0; c < CH; ++c)
                        #pragma unroll
                        for (int e = 0; e < 8; ++e) out[g][c][e] = fmaf(weight, v[u][c][e], out[g][c][e]);
                }
            }
        }
    }

    // The key slots of the block are merged in their order; a lane of each warp for each.
    __shared__ float tops[G][32], sums[G][32];
    extern __shared__ float rows[];
    const u32 slots = WARPS * keys, mine = warp * keys + lane / lanes;
    #pragma unroll
    for (int g = 0; g < G; ++g) {
        if (at == 0) {
            tops[g][mine] = top[g];
            sums[g][mine] = sum[g];
        }
    }
    __syncthreads();
    float all[G], total[G];
    #pragma unroll
    for (int g = 0; g < G; ++g) {
        const float slot_top = lane < slots ? tops[g][lane] : -INF, slot_sum = lane < slots ? sums[g][lane] : 0.0f;
        all[g] = warp_max(slot_top);
        const float share = slot_sum > 0.0f ? expf(slot_top - all[g]) : 0.0f;
        total[g] = warp_sum(slot_sum * share);
        const float factor = __shfl_sync(~0u, share, mine);
        #pragma unroll
        for (int c = 0; c < CH; ++c)
            #pragma unroll
            for (int e = 0; e < 8; ++e) {
                u32 i = (at + c * lanes) * 8 + e;
                if (i < args.dim) rows[(g * slots + mine) * args.dim + i] = out[g][c][e] * factor;
            }
    }
    __syncthreads();
    #pragma unroll
    for (int g = 0; g < G; ++g) {
        if (g >= heads) break;
        const u64 head = kv_head * args.group + first_head + g;
        const u64 row = (token * args.heads + head) * args.parts + part;
        for (u32 i = threadIdx.x; i < args.dim; i += blockDim.x) {
            float y = 0.0f;
            for (u32 s = 0; s < slots; ++s) y += rows[(g * slots + s) * args.dim + i];
            ((float*)args.partial)[row * args.dim + i] = y;
        }
        if (threadIdx.x == 0) ((float2*)args.statistics)[row] = make_float2(all[g], total[g]);
    }
}

// The sum of the parts over the sum of the weights: a block for each token and head.
__device__ void merge(const CachedAttentionArgs& args) {
    constexpr u32 TILE = 128;
    __shared__ float shares[TILE];
    const u64 token = blockIdx.x / args.heads, head = blockIdx.x % args.heads;
    const Span span(args, token);
    const float2* statistics = (const float2*)args.statistics + blockIdx.x * u64(args.parts);
    const float* partial = (const float*)args.partial + blockIdx.x * u64(args.parts) * args.dim;
    const u32 first = span.valid ? u32(span.begin / i64(args.part_keys)) : 0;
    const u32 end = span.valid ? u32((span.end - 1) / i64(args.part_keys)) + 1 : 0;
    float all = -INF;
    for (u32 part = first + threadIdx.x; part < end; part += blockDim.x) all = fmaxf(all, statistics[part].x);
    all = block_max(all);
    const bool any = all > -INF;
    const float sink = args.sinks && any ? ((const float*)args.sinks)[head] : -INF;
    all = fmaxf(all, sink);
    float total = 0.0f, y[4] = {};
    for (u32 tile = first; tile < end; tile += TILE) {
        const u32 count = min(end - tile, TILE);
        __syncthreads();
        for (u32 part = threadIdx.x; part < count; part += blockDim.x) {
            const float2 s = statistics[tile + part];
            const float share = s.y > 0.0f ? expf(s.x - all) : 0.0f;
            shares[part] = share;
            total += s.y * share;
        }
        __syncthreads();
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            const u32 i = threadIdx.x + j * blockDim.x;
            if (i < args.dim) {
                #pragma unroll 8
                for (u32 part = 0; part < count; ++part) y[j] = fmaf(partial[u64(tile + part) * args.dim + i], shares[part], y[j]);
            }
        }
    }
    total = block_sum(total);
    if (sink > -INF) total += expf(sink - all);
    const u64 output = args.output + token * args.output_stride_t + head * args.output_stride_h;
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        const u32 i = threadIdx.x + j * blockDim.x;
        if (i >= args.dim) break;
        const float x = !span.valid ? NAN_F : any ? y[j] / total : 0.0f;
        if (args.element == ELEMENT_F32) ((float*)output)[i] = x;
        else if (args.element == ELEMENT_F16) ((f16*)output)[i] = from_float<f16>(x);
        else ((bf16*)output)[i] = from_float<bf16>(x);
        if (args.q8) {
            const u64 blocks = args.heads * args.dim / 32;
            store_q8((u8*)args.q8 + token * blocks * 48, blocks, (head * args.dim + i) / 32, x);
        }
    }
}

#define INSTANCE(A, C, G, CH) \
    extern "C" __global__ void __launch_bounds__(128, 2) cached_attention_##A##_g##G##_c##CH(const __grid_constant__ CachedAttentionArgs args) { begin(); cached_attention<C, G, CH, 4 / CH>(args); }
#define TYPES(G, CH) INSTANCE(f32, float, G, CH) INSTANCE(f16, f16, G, CH) INSTANCE(bf16, bf16, G, CH) INSTANCE(q8_0, Q8, G, CH)
TYPES(1, 1)
TYPES(4, 1)
TYPES(1, 2)
TYPES(2, 2)
extern "C" __global__ void cached_attention_merge(const __grid_constant__ CachedAttentionArgs args) { begin(); merge(args); }

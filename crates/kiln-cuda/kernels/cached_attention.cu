// Attention of few queries against a key-value cache, in f32: a block for each key-value head, token
// and part of the keys; the last block to end merges the parts, in their order. The forms `rope_` first make the
// heads of a single new token ready (`NewHeads`).
//
// Parts begin at multiples of their size, which depends on how many keys a query sees, and a key always goes to
// the same lanes: the bits of a row depend on its own position alone.

struct Q8 {};

// Eight neighbours of a row of the cache, as they lie there where that takes fewer registers. WIDE: rows
// start at multiples of 16 bytes.
template <class C, bool WIDE> struct Eight {
    uint4 bits;
    __device__ __forceinline__ void clear() { bits = make_uint4(0, 0, 0, 0); }
    __device__ __forceinline__ void load(const C* row, u32 i) {
        if (WIDE) {
            bits = *(const uint4*)(row + i);
        } else {
            u32 words[4];
            #pragma unroll
            for (int e = 0; e < 4; ++e) words[e] = row[i + 2 * e].bits | u32(row[i + 2 * e + 1].bits) << 16;
            bits = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
    // The lower or the upper half.
    __device__ __forceinline__ void four(int half, float (&v)[4]) const {
        const u32 words[2] = {half ? bits.z : bits.x, half ? bits.w : bits.y};
        #pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = to_float(C{u16(words[e / 2] >> 16 * (e & 1))});
    }
};
struct EightFloats {
    float kept[8];
    __device__ __forceinline__ void clear() {
        #pragma unroll
        for (int e = 0; e < 8; ++e) kept[e] = 0.0f;
    }
    __device__ __forceinline__ void four(int half, float (&v)[4]) const {
        #pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = kept[4 * half + e];
    }
};
template <bool WIDE> struct Eight<float, WIDE> : EightFloats {
    __device__ __forceinline__ void load(const float* row, u32 i) {
        float a[4], b[4];
        load4(row + i, WIDE, a);
        load4(row + i + 4, WIDE, b);
        #pragma unroll
        for (int e = 0; e < 4; ++e) { kept[e] = a[e]; kept[4 + e] = b[e]; }
    }
};
template <bool WIDE> struct Eight<Q8, WIDE> : EightFloats {
    __device__ __forceinline__ void load(const Q8* row, u32 i) {
        const u8* block = (const u8*)row + i / 32 * 34;
        float d = half_bits(block[0] | block[1] << 8);
        #pragma unroll
        for (int e = 0; e < 8; ++e) kept[e] = d * float(i8(block[2 + i % 32 + e]));
    }
};

// Positions of the keys that a query may see, and the parts that they lie in: as few keys as possible in each.
struct Span {
    i64 begin, end, first_part = 0;
    u32 shift, parts;
    bool valid;

    __device__ __forceinline__ Span(const CachedAttentionArgs& args, i64 length, u64 token) {
        const i64 position = length - i64(args.tokens) + i64(token);
        valid = length >= i64(args.tokens) && (args.ring || length <= i64(args.capacity));
        begin = args.ring && length > i64(args.capacity) ? length - i64(args.capacity) : 0;
        if (args.window && position + 1 - i64(args.window) > begin) begin = position + 1 - i64(args.window);
        end = position + 1;
        shift = PART_SHIFT;
        parts = 0;
        if (!valid || begin >= end) return;
        while (position >> shift >= (begin >> shift) + args.parts) ++shift;
        first_part = begin >> shift;
        parts = u32((position >> shift) - first_part) + 1;
    }
};

// Weights and scores are powers of two: scores count in units of LOG2E.
#define LOG2E 1.4426950408889634f
// In place of minus infinity where scores are subtracted.
#define LEAST -3e38f
__device__ __forceinline__ float power(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// One copy for all: code that is read once takes longer to read than to run.
__device__ __noinline__ float capped(float score, float softcap) { return softcap * LOG2E * tanhf(score / (softcap * LOG2E)); }

// Four neighbours of the output of a head; eight lanes have a block of 32.
__device__ __noinline__ void store_output(const CachedAttentionArgs& args, u64 token, u64 head, u32 i, float a, float b, float c, float d) {
    const float y[4] = {a, b, c, d};
    void* output = (void*)(args.output + token * args.output_stride_t + head * args.output_stride_h);
    #pragma unroll
    for (int e = 0; e < 4; ++e) store_as(args.element, output, i + e, y[e]);
    if (!args.q15) return;
    const u64 blocks = args.heads * args.dim / 32;
    store_q15((u8*)args.q15 + token * blocks * Q15_BLOCK, blocks, u32(head * args.dim) + i, y);
}

// Parts that are read together when they are merged.
#define MERGED 8

// What values are divided by: the sum of weights, which are relative to the score `top`, with the sink.
__device__ __forceinline__ float divisor(const CachedAttentionArgs& args, u64 head, float top, float total, float& factor) {
    factor = 1.0f;
    if (args.sinks && total > 0.0f) {
        const float sink = ((const float*)args.sinks)[head] * LOG2E, larger = fmaxf(top, sink);
        factor = power(top - larger);
        total = total * factor + power(sink - larger);
    }
    // Without a weight all values are zeros.
    return total > 0.0f ? total : total == 0.0f ? 1.0f : NAN_F;
}

// The parts of a head, in their order; a warp, of which a lane has the statistics of a part and four neighbours.
__device__ void merge(const CachedAttentionArgs& args, u64 token, u64 head, u32 parts) {
    const u32 lane = threadIdx.x & 31;
    const u64 rows = (token * args.heads + head) * args.parts;
    const float* partial = (const float*)args.partial + rows * args.dim;
    const float2 own = lane < parts ? __ldcg((const float2*)args.statistics + rows + lane) : make_float2(-INF, 0.0f);
    const float top = max(warp_max(own.x), LEAST), weight = power(own.x - top);
    float factor;
    const float all = divisor(args, head, top, warp_sum(own.y * weight), factor), share = weight * (factor / all);
    #pragma unroll 1
    for (u32 i = 4 * lane; i < (args.dim + 127) / 128 * 128; i += 128) {
        float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        #pragma unroll 1
        for (u32 first = 0; first < parts; first += MERGED) {
            float4 x[MERGED];
            #pragma unroll
            for (u32 e = 0; e < MERGED; ++e) {
                const bool here = first + e < parts && i < args.dim;
                x[e] = here ? __ldcg((const float4*)&partial[u64(first + e) * args.dim + i]) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
            #pragma unroll
            for (u32 e = 0; e < MERGED; ++e) {
                const float part_share = __shfl_sync(~0u, share, first + e);
                y.x = fmaf(x[e].x, part_share, y.x);
                y.y = fmaf(x[e].y, part_share, y.y);
                y.z = fmaf(x[e].z, part_share, y.z);
                y.w = fmaf(x[e].w, part_share, y.w);
            }
        }
        if (i < args.dim) store_output(args, token, head, i, y.x, y.y, y.z, y.w);
    }
}

// Two neighbours.
__device__ __forceinline__ float2 load2_as(u32 element, const void* base, u32 i) {
    if (element == ELEMENT_F32) return make_float2(((const float*)base)[i], ((const float*)base)[i + 1]);
    if (element == ELEMENT_F16) return make_float2(to_float(((const f16*)base)[i]), to_float(((const f16*)base)[i + 1]));
    return make_float2(to_float(((const bf16*)base)[i]), to_float(((const bf16*)base)[i + 1]));
}

// `wait` for a warp by itself.
__device__ __forceinline__ void wait_warp() {
#if __CUDA_ARCH__ >= 900
    if ((threadIdx.x & 31) == 0) asm volatile("griddepcontrol.wait;" ::: "memory");
    __syncwarp();
#endif
}

// The heads of a new token, which a block makes ready before it attends: a warp has a query, and one each the
// key and the value of its key-value head. What needs no input comes before the wait.
template <class C, int G> struct NewHeads {
    static_assert(G + 3 <= WARPS, "a warp for each query, the key and the value, and one that is idle");
    // 0 to 2 as in `HeadJobs`: query, key, value; 3 is idle.
    u32 job;
    u64 head, slot;
    HeadPairs<float, false> pairs;

    __device__ __forceinline__ NewHeads(const HeadJobs& jobs, u64 kv_head, u64 first_query, u32 queries) :
        job(min(max(threadIdx.x >> 5, G - 1u) + 1 - G, 3u)),
        head(job == 0 ? first_query + min(threadIdx.x >> 5, queries - 1) : kv_head),
        pairs(jobs.job[min(job, 2u)], 0, head) {}

    // Idle warps ask for the first rows of the part before the wait. The length may still be that of an earlier token; it
    // is read past the first cache, which must not keep it.
    __device__ __forceinline__ void ask(const CachedAttentionArgs& args, u64 part) const {
        if (job < 3) return;
        const Span span(args, __ldcg((const u32*)args.kv_len), 0);
        if (part >= span.parts) return;
        const u32 threads = 32 * (WARPS - G - 2), bytes = args.dim * sizeof(C);
        const i64 begin_key = max(span.begin, (span.first_part + i64(part)) << span.shift);
        const u32 count = u32(min(span.end - begin_key, i64(1 << PART_SHIFT)));
        for (u32 i = threadIdx.x - 32 * (G + 2); i < 2 * count; i += threads) {
            const u64 key = u64(begin_key) + i / 2;
            const u64 row = i & 1 ? args.v + head * args.v_stride_h + key * args.v_stride_s : args.k + head * args.k_stride_h + key * args.k_stride_s;
            for (u32 at = 0; at < bytes; at += 128) prefetch((const void*)(row + at));
        }
    }

    __device__ __forceinline__ void load(const HeadJobs& jobs) {
        if (job >= 3) return;
        slot = *(const u32*)jobs.job[1].cache_start;
        pairs.load(jobs.job[job], 0);
    }

    // Queries go to `rows`, those of the first part to their tensor too, and the key and the value to the cache: by the
    // part that sees their slot, or the first where none does.
    __device__ __forceinline__ void finish(const CachedAttentionArgs& args, const HeadJobs& jobs, const Span& span, u64 part, u32 queries, float* rows) {
        if (job >= 3) return;
        const i64 key = i64(slot), of_part = (key >> span.shift) - span.first_part;
        const bool seen = span.parts && key >= span.begin && key < span.end, appends = part == (seen ? u64(of_part) : 0);
        if (!(job == 0 ? part < max(span.parts, 1u) : appends && slot < args.capacity)) return;
        const u32 warp = threadIdx.x >> 5;
        const HeadNormRopeArgs& own = jobs.job[job];
        const float r = own.normalize ? head_root(own, pairs.squares()) : 1.0f;
        const u64 row = own.cache + head * own.cache_stride_h + slot * own.cache_stride_s;
        #pragma unroll
        for (int e = 0; e < PAIRS; ++e) {
            const uint2 at = pairs.places(own, pairs.pair(0, e));
            if (at.x >= own.dim) continue;
            const float2 y = pairs.turned(own, r, 0, e);
            if (job > 0) {
                pairs.store(own, (C*)row, at, y);
            } else {
                const float scale = args.scale * LOG2E;
                pairs.store(own, rows + warp * own.dim, at, make_float2(y.x * scale, y.y * scale));
                if (part == 0 && warp < queries) pairs.store(own, (float*)(own.output + head * own.output_stride_h), at, y);
            }
        }
    }
};

// Queries, keys and values that are made ready here.
template <class C, int G>
__device__ __forceinline__ Span new_heads(const CachedAttentionArgs& args, const HeadJobs& jobs, u64 kv_head, u64 first_query, u32 heads, float* rows) {
    release();
    NewHeads<C, G> fresh(jobs, kv_head, first_query, heads);
    fresh.ask(args, blockIdx.x);
    wait_warp();
    const i64 length = *(const u32*)args.kv_len;
    fresh.load(jobs);
    const Span span(args, length, 0);
    fresh.finish(args, jobs, span, blockIdx.x, heads, rows);
    return span;
}

// Queries as they are.
template <int G> __device__ __forceinline__ Span queries(const CachedAttentionArgs& args, u64 token, u64 first_query, u32 heads, float* rows) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, own = warp % G;
    begin();
    const Span span(args, *(const u32*)args.kv_len, token);
    const u64 row = args.q + token * args.q_stride_t + (first_query + min(own, heads - 1)) * args.q_stride_h;
    #pragma unroll 1
    for (u32 i = 2 * (warp / G * 32 + lane); i < args.dim; i += 2 * 32 * WARPS / G) {
        const float2 q = load2_as(args.element, (const void*)row, i);
        *(float2*)&rows[own * args.dim + i] = make_float2(q.x * (args.scale * LOG2E), q.y * (args.scale * LOG2E));
    }
    return span;
}

// G query heads; CH chunks of 8 values for each lane; U keys of a lane in flight; ROPED: `jobs` are done first.
template <class C, int G, int CH, int U, bool WIDE, bool ROPED>
__device__ __forceinline__ void cached_attention(const CachedAttentionArgs& args, const HeadJobs* jobs) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 groups = (args.group + G - 1) / G;
    const u64 token = blockIdx.z / groups, first_head = blockIdx.z % groups * G;
    const u64 kv_head = blockIdx.y, part = blockIdx.x;
    const u32 heads = min(u32(G), u32(args.group - first_head));
    // Queries in shared memory; later the sums of all key slots.
    extern __shared__ __align__(16) float rows[];
    const Span span = [&] {
        const u64 first_query = kv_head * args.group + first_head;
        if constexpr (ROPED) return new_heads<C, G>(args, *jobs, kv_head, first_query, heads, rows);
        else return queries<G>(args, token, first_query, heads, rows);
    }();
    if (!span.valid && part == 0) {
        // No keys can be right.
        for (u32 i = 4 * threadIdx.x; i < heads * args.dim; i += 4 * blockDim.x)
            store_output(args, token, kv_head * args.group + first_head + i / args.dim, i % args.dim, NAN_F, NAN_F, NAN_F, NAN_F);
    }
    if (part >= span.parts) return;
    const i64 begin_key = max(span.begin, (span.first_part + i64(part)) << span.shift);
    const i64 end_key = min(span.end, (span.first_part + i64(part) + 1) << span.shift);
    __syncthreads();

    // Lanes of a key; a warp looks at 32 / lanes keys together. A pass starts at a multiple of its length; keys
    // count from the first of the part, those of the first pass before it are beyond `count`.
    const u32 lanes = args.lanes, keys = 32 / lanes, at = lane % lanes, step = WARPS * keys;
    const u32 count = u32(end_key - begin_key), mine = warp * keys + lane / lanes - (u32(begin_key) & (step * U - 1));
    const u32 first_slot = args.ring ? u32(begin_key) % u32(args.capacity) : u32(begin_key);
    float out[G][CH][8] = {}, top[G], sum[G] = {};
    #pragma unroll
    for (int g = 0; g < G; ++g) top[g] = -INF;
    const auto load = [&](Eight<C, WIDE> (&to)[U][CH], u64 from, u64 stride, u32 pass) {
        #pragma unroll
        for (int u = 0; u < U; ++u) {
            const u32 key = pass + u * step + mine;
            u32 slot = first_slot + key;
            if (slot >= u32(args.capacity)) slot -= u32(args.capacity);
            #pragma unroll
            for (int c = 0; c < CH; ++c) {
                const u32 i = (at + c * lanes) * 8;
                to[u][c].clear();
                if (key < count && i < args.dim) to[u][c].load((const C*)(from + slot * stride), i);
            }
        }
    };
    const u64 k_rows = args.k + kv_head * args.k_stride_h, v_rows = args.v + kv_head * args.v_stride_h;
    Eight<C, WIDE> k[U][CH], v[U][CH];
    // Keys of the next pass come in while values are summed, and its values while scores are; the first turn
    // only asks for them.
    const u32 passes_end = count + (u32(begin_key) & (step * U - 1));
    #pragma unroll 1
    for (u32 next = 0;; next += step * U) {
        float score[G][U] = {};
        if (next > 0) {
            #pragma unroll
            for (int c = 0; c < CH; ++c) {
                const u32 i = (at + c * lanes) * 8;
                if (i >= args.dim) continue;
                #pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float x[U][4];
                    #pragma unroll
                    for (int u = 0; u < U; ++u) k[u][c].four(half, x[u]);
                    #pragma unroll
                    for (int g = 0; g < G; ++g) {
                        const float4 q = *(const float4*)&rows[g * args.dim + i + 4 * half];
                        #pragma unroll
                        for (int u = 0; u < U; ++u) score[g][u] = fmaf(q.w, x[u][3], fmaf(q.z, x[u][2], fmaf(q.y, x[u][1], fmaf(q.x, x[u][0], score[g][u]))));
                    }
                }
            }
        }
        if (next < passes_end) load(k, k_rows, args.k_stride_s, next);
        if (next > 0) {
            #pragma unroll 1
            for (u32 o = lanes / 2; o; o >>= 1) {
                #pragma unroll
                for (int g = 0; g < G; ++g)
                    #pragma unroll
                    for (int u = 0; u < U; ++u) score[g][u] += __shfl_xor_sync(~0u, score[g][u], o);
            }
            if (args.softcap > 0.0f) {
                #pragma unroll
                for (int g = 0; g < G; ++g)
                    #pragma unroll
                    for (int u = 0; u < U; ++u) score[g][u] = capped(score[g][u], args.softcap);
            }
            // Scores become weights.
            #pragma unroll
            for (int g = 0; g < G; ++g) {
                float larger = top[g];
                #pragma unroll
                for (int u = 0; u < U; ++u) {
                    score[g][u] = next - (U - u) * step + mine < count ? score[g][u] : -INF;
                    larger = fmaxf(larger, score[g][u]);
                }
                const float from = max(larger, LEAST), old = power(top[g] - from);
                top[g] = larger;
                sum[g] *= old;
                #pragma unroll
                for (int c = 0; c < CH; ++c)
                    #pragma unroll
                    for (int e = 0; e < 8; ++e) out[g][c][e] *= old;
                #pragma unroll
                for (int u = 0; u < U; ++u) {
                    score[g][u] = power(score[g][u] - from);
                    sum[g] += score[g][u];
                }
            }
            #pragma unroll
            for (int u = 0; u < U; ++u)
                #pragma unroll
                for (int c = 0; c < CH; ++c)
                    #pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float x[4];
                        v[u][c].four(half, x);
                        #pragma unroll
                        for (int g = 0; g < G; ++g)
                            #pragma unroll
                            for (int e = 0; e < 4; ++e) out[g][c][4 * half + e] = fmaf(score[g][u], x[e], out[g][c][4 * half + e]);
                    }
        }
        if (next >= passes_end) break;
        load(v, v_rows, args.v_stride_s, next);
    }

    // The key slots of the block are merged in their order; a lane of each warp for each.
    __shared__ float tops[G][32], sums[G][32];
    const u32 slots = WARPS * keys, slot = warp * keys + lane / lanes;
    #pragma unroll
    for (int g = 0; g < G; ++g) {
        if (at == 0) {
            tops[g][slot] = top[g];
            sums[g][slot] = sum[g];
        }
    }
    __syncthreads();
    #pragma unroll
    for (int g = 0; g < G; ++g) {
        const float all = warp_max(lane < slots ? tops[g][lane] : -INF), factor = power(top[g] - max(all, LEAST));
        #pragma unroll
        for (int c = 0; c < CH; ++c) {
            const u32 i = (at + c * lanes) * 8;
            if (i >= args.dim) continue;
            float4* row = (float4*)&rows[(g * slots + slot) * args.dim + i];
            row[0] = make_float4(out[g][c][0] * factor, out[g][c][1] * factor, out[g][c][2] * factor, out[g][c][3] * factor);
            row[1] = make_float4(out[g][c][4] * factor, out[g][c][5] * factor, out[g][c][6] * factor, out[g][c][7] * factor);
        }
    }
    __syncthreads();

    // A warp for each head, and a lane for four neighbours.
    const bool alone = span.parts == 1;
    const u64 head = kv_head * args.group + first_head + warp;
    if (warp < heads) {
        const float slot_top = lane < slots ? tops[warp][lane] : -INF, all = max(warp_max(slot_top), LEAST);
        const float total = warp_sum(lane < slots ? sums[warp][lane] * power(slot_top - all) : 0.0f);
        float factor = 1.0f;
        if (alone) {
            const float divide = divisor(args, head, all, total, factor);
            factor /= divide;
        }
        const u64 row = (token * args.heads + head) * args.parts + part;
        #pragma unroll 1
        for (u32 i = 4 * lane; i < args.dim; i += 128) {
            float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            #pragma unroll 4
            for (u32 s = 0; s < slots; ++s) {
                const float4 x = *(const float4*)&rows[(warp * slots + s) * args.dim + i];
                y = make_float4(y.x + x.x, y.y + x.y, y.z + x.z, y.w + x.w);
            }
            y = make_float4(y.x * factor, y.y * factor, y.z * factor, y.w * factor);
            if (alone) store_output(args, token, head, i, y.x, y.y, y.z, y.w);
            else *(float4*)&((float*)args.partial)[row * args.dim + i] = y;
        }
        if (!alone && lane == 0) ((float2*)args.statistics)[row] = make_float2(all, total);
    }
    if (alone) return;

    u32* counter = (u32*)args.counters + (token * gridDim.y + kv_head) * groups + blockIdx.z % groups;
    if (!is_last(counter, span.parts)) return;
    if (warp < heads) merge(args, token, head, span.parts);
}

// Rows that start anywhere have a form of their own, with fewer keys in flight, as those of f32.
#define BOUNDS extern "C" __global__ void __launch_bounds__(256, 2)
#define INSTANCE(A, C, G, CH, U) \
    BOUNDS cached_attention_##A##_g##G##_c##CH(const __grid_constant__ CachedAttentionArgs args) { cached_attention<C, G, CH, U / CH, true, false>(args, nullptr); } \
    BOUNDS cached_attention_narrow_##A##_g##G##_c##CH(const __grid_constant__ CachedAttentionArgs args) { cached_attention<C, G, CH, 1, false, false>(args, nullptr); }
#define TYPES(G, CH) INSTANCE(f32, float, G, CH, 2) INSTANCE(f16, f16, G, CH, 4) INSTANCE(bf16, bf16, G, CH, 4) INSTANCE(q8_0, Q8, G, CH, 2)
TYPES(1, 1)
TYPES(4, 1)
TYPES(1, 2)
TYPES(2, 2)
#define ROPE_INSTANCE(A, C, G, U) \
    BOUNDS rope_cached_attention_##A##_g##G##_c1(const __grid_constant__ CachedAttentionArgs args, const __grid_constant__ HeadJobs jobs) { cached_attention<C, G, 1, U, true, true>(args, &jobs); }
#define ROPE_TYPES(G) ROPE_INSTANCE(f32, float, G, 2) ROPE_INSTANCE(f16, f16, G, 4) ROPE_INSTANCE(bf16, bf16, G, 4)
ROPE_TYPES(1)
ROPE_TYPES(4)

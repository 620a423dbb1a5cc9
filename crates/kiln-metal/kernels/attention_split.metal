// Attention of few queries against a cache: every key is read once for HEADS heads, by lanes that share
// its values. Keys are divided among threadgroups, and in each among simdgroups; both are merged in
// their order.

/// Keys that a simdgroup takes at a time.
constant constexpr uint STEP = 4;

/// Writes NaN to the rows of a query whose length is not valid.
template <typename Q>
inline void store_nan(device Q* row, constant SplitArgs& args, uint index, uint threads) {
    for (uint i = index; 4 * i < args.dim; i += threads) {
        store4(row, i, args.dim, float4(NAN), ALIGNED);
    }
}

template <typename Q, typename Keys>
[[kernel]] void cached_split(
    constant SplitArgs& args [[buffer(0)]],
    device const Q* q [[buffer(1)]],
    device const uchar* k [[buffer(2)]],
    device const uchar* v [[buffer(3)]],
    device const uint* length [[buffer(4)]],
    device const float* sinks [[buffer(5)]],
    device float* partial [[buffer(6)]],
    device float* statistics [[buffer(7)]],
    device Q* output [[buffer(8)]],
    threadgroup float4* shared [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup float tops[SIMDGROUPS];
    threadgroup float sums[SIMDGROUPS];
    const uint first_head = group.y * HEADS;
    const ulong token = group.z;
    const Positions at = cache_positions(*length, args.tokens, args.capacity);
    if (!at.valid) {
        if (SINGLE) {
            for (uint h = 0; h < HEADS; h++) {
                device Q* row = output + token * args.output_row + (first_head + h) * args.output_head;
                store_nan(row, args, index, 32 * SIMDGROUPS);
            }
        }
        return;
    }
    const uint query = at.queries + uint(token);
    const uint low = window_start(at.first, query, args.window);
    const uint keys = query >= low ? query - low + 1 : 0;
    const uint begin = min(group.x * args.split_keys, keys);
    const uint end = min(begin + args.split_keys, keys);

    float4 rows[MAX_PARTS];
    float4 values[MAX_PARTS];
    float largest[MAX_HEADS];
    float sum[MAX_HEADS];
    for (uint h = 0; h < HEADS; h++) {
        largest[h] = LOWEST;
        sum[h] = 0.0f;
        for (uint p = 0; p < PARTS; p++) {
            const uint i = 32 * p + lane;
            device const Q* row = q + token * args.q_row + (first_head + h) * args.q_head;
            rows[h * PARTS + p] = 4 * i < args.dim ? load4(row, i, args.dim, ALIGNED) : float4(0.0f);
            values[h * PARTS + p] = float4(0.0f);
        }
    }
    const ulong kv_head = first_head / args.heads_per_kv;
    k += kv_head * args.k_head;
    v += kv_head * args.v_head;
    for (uint start = begin + STEP * simdgroup; start < end; start += STEP * SIMDGROUPS) {
        ulong slots[STEP];
        float scores[STEP][MAX_HEADS];
        for (uint s = 0; s < STEP; s++) {
            // Keys past the end are the last one again, with no weight.
            const uint key = low + min(start + s, end - 1);
            slots[s] = RING ? key % args.capacity : key;
            float4 x[4];
            for (uint p = 0; p < PARTS; p++) {
                const uint i = 32 * p + lane;
                x[p] = 4 * i < args.dim ? Keys::load(k + slots[s] * args.k_row, i, args.dim) : float4(0.0f);
            }
            for (uint h = 0; h < HEADS; h++) {
                float product = 0.0f;
                for (uint p = 0; p < PARTS; p++) {
                    product += dot(x[p], rows[h * PARTS + p]);
                }
                const float score = limited(simd_sum(product) * args.scale, args.softcap);
                scores[s][h] = start + s < end ? score : -INFINITY;
            }
        }
        for (uint h = 0; h < HEADS; h++) {
            float top = largest[h];
            for (uint s = 0; s < STEP; s++) {
                top = max(top, scores[s][h]);
            }
            const float shrink = precise::exp(largest[h] - top);
            largest[h] = top;
            sum[h] *= shrink;
            for (uint p = 0; p < PARTS; p++) {
                values[h * PARTS + p] *= shrink;
            }
            for (uint s = 0; s < STEP; s++) {
                scores[s][h] = precise::exp(scores[s][h] - top);
                sum[h] += scores[s][h];
            }
        }
        for (uint s = 0; s < STEP; s++) {
            if (start + s >= end) {
                break;
            }
            for (uint p = 0; p < PARTS; p++) {
                const uint i = 32 * p + lane;
                if (4 * i < args.dim) {
                    const float4 x = Keys::load(v + slots[s] * args.v_row, i, args.dim);
                    for (uint h = 0; h < HEADS; h++) {
                        values[h * PARTS + p] = fma(x, float4(scores[s][h]), values[h * PARTS + p]);
                    }
                }
            }
        }
    }

    for (uint h = 0; h < HEADS; h++) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (lane == 0) {
            tops[simdgroup] = largest[h];
            sums[simdgroup] = sum[h];
        }
        for (uint p = 0; p < PARTS; p++) {
            shared[(simdgroup * PARTS + p) * 32 + lane] = values[h * PARTS + p];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float top = tops[0];
        for (uint s = 1; s < SIMDGROUPS; s++) {
            top = max(top, tops[s]);
        }
        float total = 0.0f;
        for (uint s = 0; s < SIMDGROUPS; s++) {
            total += sums[s] * precise::exp(tops[s] - top);
        }
        const ulong head = first_head + h;
        const ulong record = (token * args.heads + head) * args.splits + group.x;
        if (4 * index < args.dim) {
            float4 x = float4(0.0f);
            for (uint s = 0; s < SIMDGROUPS; s++) {
                x += shared[s * PARTS * 32 + index] * precise::exp(tops[s] - top);
            }
            if (SINGLE) {
                const float sink = SINKS ? sinks[head] : 0.0f;
                device Q* row = output + token * args.output_row + head * args.output_head;
                store4(row, index, args.dim, x * normaliser(top, total, sink), ALIGNED);
            } else {
                ((device float4*)partial)[record * (args.dim / 4) + index] = x;
            }
        }
        if (!SINGLE && index == 0) {
            statistics[2 * record] = top;
            statistics[2 * record + 1] = total;
        }
    }
}

/// Merges the records of a query and head, in the order of their keys.
template <typename Q>
[[kernel]] void cached_merge(
    constant SplitArgs& args [[buffer(0)]],
    device const float* partial [[buffer(1)]],
    device const float* statistics [[buffer(2)]],
    device const uint* length [[buffer(3)]],
    device const float* sinks [[buffer(4)]],
    device Q* output [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]])
{
    const ulong head = group.y;
    const ulong token = group.z;
    device Q* row = output + token * args.output_row + head * args.output_head;
    if (!cache_positions(*length, args.tokens, args.capacity).valid) {
        store_nan(row, args, index, MERGE_THREADS);
        return;
    }
    if (4 * index >= args.dim) {
        return;
    }
    const ulong first = (token * args.heads + head) * args.splits;
    float top = LOWEST;
    for (uint s = 0; s < args.splits; s++) {
        top = max(top, statistics[2 * (first + s)]);
    }
    float total = 0.0f;
    float4 x = float4(0.0f);
    for (uint s = 0; s < args.splits; s++) {
        const float factor = precise::exp(statistics[2 * (first + s)] - top);
        total += statistics[2 * (first + s) + 1] * factor;
        x += ((device const float4*)partial)[(first + s) * (args.dim / 4) + index] * factor;
    }
    const float sink = SINKS ? sinks[head] : 0.0f;
    store4(row, index, args.dim, x * normaliser(top, total, sink), ALIGNED);
}

#define INSTANCE(name, function, ...) \
    template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;

#define INSTANCES(name, type)                                                    \
    INSTANCE("cached_merge_" name, cached_merge, type)                           \
    INSTANCE("cached_split_" name "_f32", cached_split, type, PlainKeys<float>)  \
    INSTANCE("cached_split_" name "_f16", cached_split, type, PlainKeys<half>)   \
    INSTANCE("cached_split_" name "_bf16", cached_split, type, PlainKeys<bfloat>) \
    INSTANCE("cached_split_" name "_q8_0", cached_split, type, QuantKeys)

INSTANCES("f32", float)
INSTANCES("f16", half)
INSTANCES("bf16", bfloat)

// From logits to tokens: one threadgroup per row.

/// The largest key of a threadgroup, and the lowest index with it.
inline uint2 team_largest(uint key, uint index, threadgroup uint2* partials, Team team) {
    uint best = simd_max(key);
    uint lowest = simd_min(key == best ? index : 0xffffffffu);
    if (team.lane == 0) {
        partials[team.simdgroup] = uint2(best, lowest);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint2 partial = team.lane < team.simdgroups ? partials[team.lane] : uint2(0, 0xffffffffu);
    best = simd_max(partial.x);
    lowest = simd_min(partial.x == best ? partial.y : 0xffffffffu);
    return uint2(best, lowest);
}

/// Key and index of the largest value of a row.
inline uint2 row_largest(device const float* x, uint n, threadgroup uint2* partials, Team team) {
    uint key = 0;
    uint index = 0xffffffffu;
    for (uint i = team.index; i < n; i += team.threads) {
        const uint other = order_key(x[i]);
        if (other > key || index == 0xffffffffu) {
            key = other;
            index = i;
        }
    }
    return team_largest(key, index, partials, team);
}

[[kernel]] void argmax_f32(
    constant ArgmaxArgs& args [[buffer(0)]],
    device const float* input [[buffer(1)]],
    device uint* output [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup uint2 partials[MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    device const float* x = input + ulong(group) * args.input_stride;
    const uint2 largest = row_largest(x, args.n, partials, team);
    if (team.index == 0) {
        output[group] = largest.y;
    }
}

/// exp(scale * x - max) over its sum.
template <typename T>
[[kernel]] void softmax(
    constant SoftmaxArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device T* output [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[2 * MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const uint n = args.n;
    const uint groups = (n + 3) / 4;
    device const T* x = input + ulong(group) * args.input_stride;
    device T* y = output + ulong(group) * args.output_stride;

    float4 kept[KEPT_GROUPS];
    float largest = -INFINITY;
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        kept[k] = float4(-INFINITY);
        if (i < groups) {
            const float4 v = args.scale * load4(x, i, n, ALIGNED);
            kept[k] = select(float4(-INFINITY), v, inside4(i, n) > 0.0f);
        }
        largest = max(largest, max(max(kept[k].x, kept[k].y), max(kept[k].z, kept[k].w)));
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        const float4 v = args.scale * load4(x, i, n, ALIGNED);
        const float4 w = select(float4(-INFINITY), v, inside4(i, n) > 0.0f);
        largest = max(largest, max(max(w.x, w.y), max(w.z, w.w)));
    }
    largest = team_max(largest, partials, team);

    float sum = 0.0f;
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        if (i < groups) {
            kept[k] = precise::exp(kept[k] - largest);
            sum += dot(select(float4(0.0f), kept[k], inside4(i, n) > 0.0f), float4(1.0f));
        }
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        const float4 e = precise::exp(args.scale * load4(x, i, n, ALIGNED) - largest);
        sum += dot(select(float4(0.0f), e, inside4(i, n) > 0.0f), float4(1.0f));
    }
    sum = team_sum(sum, partials + MAX_SIMDGROUPS, team);
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        if (i < groups) {
            store4(y, i, n, kept[k] / sum, ALIGNED);
        }
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        const float4 e = precise::exp(args.scale * load4(x, i, n, ALIGNED) - largest);
        store4(y, i, n, e / sum, ALIGNED);
    }
}

/// What a search over ranked candidates adds up.
enum Measure : uint { MEASURE_COUNT, MEASURE_WEIGHT };

/// The candidates of a row in their order: falling key, ties by rising index. Those after the last
/// are left out.
struct Candidates {
    device const float* logits;
    uint n;
    float best;
    float temperature;
    /// Key and index of the last candidate.
    uint2 last;

    bool has(uint key, uint index) {
        return key > last.x || (key == last.x && index <= last.y);
    }

    float measure(uint i, Measure kind) {
        if (kind == MEASURE_COUNT) {
            return 1.0f;
        }
        const float x = logits[i];
        // The equal case keeps infinite logits from giving NaN.
        return x == best ? 1.0f : precise::exp((x - best) / temperature);
    }
};

/// Sums and counts of a search step: of each simdgroup, then of all.
struct Digits {
    float2 partials[16][MAX_SIMDGROUPS];
    float2 totals[16];
    uint found[MAX_SIMDGROUPS];
};

/// A candidate, with the sum of the measures of those before it.
struct Found {
    uint2 at;
    float before;
    float measure;
};

/// The first candidate at which the running sum of its measure exceeds `target`, or reaches it where
/// `reach`; the last candidate where none does. The sums run over 16 digits at a time of the key, then
/// of the index: the order of the additions is that of the threads, whatever the values.
inline Found search(
    thread Candidates& row, Measure kind, float target, bool reach, threadgroup Digits& digits, Team team)
{
    uint key = 0;
    uint index = 0;
    float before = 0.0f;
    float within = 0.0f;
    uint index_shift = 0;
    while (index_shift < 28 && (row.n - 1) >> (index_shift + 4) != 0) {
        index_shift += 4;
    }
    const uint steps = 8 + index_shift / 4 + 1;
    bool single = false;
    for (uint step = 0; step < steps && !single; step++) {
        const bool by_key = step < 8;
        const uint shift = by_key ? 28 - 4 * step : index_shift - 4 * (step - 8);
        // The sum of the measures and the count.
        float2 sums[16];
        for (uint d = 0; d < 16; d++) {
            sums[d] = float2(0.0f);
        }
        for (uint i = team.index; i < row.n; i += team.threads) {
            const uint k = order_key(row.logits[i]);
            if (k == 0 || !row.has(k, i)) {
                continue;
            }
            // Digits above this one must be those already found.
            const bool inside = by_key ? (step == 0 || k >> (shift + 4) == key >> (shift + 4))
                                       : k == key && (step == 8 || i >> (shift + 4) == index >> (shift + 4));
            if (inside) {
                const uint digit = (by_key ? k >> shift : i >> shift) & 15;
                const float2 one = float2(row.measure(i, kind), 1.0f);
#pragma unroll
                for (uint d = 0; d < 16; d++) {
                    sums[d] += d == digit ? one : float2(0.0f);
                }
            }
        }
        // The totals of the step before have been read by all.
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint d = 0; d < 16; d++) {
            const float2 sum = simd_sum(sums[d]);
            if (team.lane == 0) {
                digits.partials[d][team.simdgroup] = sum;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (team.index < 16) {
            float2 sum = digits.partials[team.index][0];
            for (uint j = 1; j < team.simdgroups; j++) {
                sum += digits.partials[team.index][j];
            }
            digits.totals[team.index] = sum;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Falling keys, rising indices. The last digit with a candidate is taken where none crosses.
        float taken_before = before;
        float running = before;
        uint chosen = 0;
        float chosen_count = 0.0f;
        bool crossed = false;
        for (uint j = 0; j < 16; j++) {
            const uint d = by_key ? 15 - j : j;
            const float2 sum = digits.totals[d];
            if (sum.y == 0.0f || crossed) {
                continue;
            }
            chosen = d;
            chosen_count = sum.y;
            taken_before = running;
            within = sum.x;
            running += sum.x;
            crossed = reach ? running >= target : running > target;
        }
        before = taken_before;
        if (by_key) {
            key |= chosen << shift;
        } else {
            index |= chosen << shift;
        }
        single = chosen_count <= 1.0f;
        if (single) {
            // Only one is left: find it.
            uint found = 0xffffffffu;
            for (uint i = team.index; i < row.n; i += team.threads) {
                const uint k = order_key(row.logits[i]);
                const bool inside = by_key ? k >> shift == key >> shift
                                           : k == key && i >> shift == index >> shift;
                if (k != 0 && inside && row.has(k, i)) {
                    found = i;
                }
            }
            found = simd_min(found);
            if (team.lane == 0) {
                digits.found[team.simdgroup] = found;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            index = simd_min(team.lane < team.simdgroups ? digits.found[team.lane] : 0xffffffffu);
            if (index < row.n) {
                key = order_key(row.logits[index]);
            }
        }
    }
    Found result = {uint2(key, index), before, within};
    return result;
}

/// The total measure of the candidates.
inline float total(thread Candidates& row, threadgroup float* partials, Team team) {
    float sum = 0.0f;
    for (uint i = team.index; i < row.n; i += team.threads) {
        const uint k = order_key(row.logits[i]);
        if (k != 0 && row.has(k, i)) {
            sum += row.measure(i, MEASURE_WEIGHT);
        }
    }
    return team_sum(sum, partials, team);
}

[[kernel]] void sample_f32(
    constant SampleArgs& args [[buffer(0)]],
    device const float* logits [[buffer(1)]],
    device const float* random [[buffer(2)]],
    device uint* output [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup uint2 largest_partials[MAX_SIMDGROUPS];
    threadgroup float partials[MAX_SIMDGROUPS];
    threadgroup Digits digits;
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    device const float* x = logits + ulong(group) * args.logits_stride;
    const uint2 best = row_largest(x, args.n, largest_partials, team);
    // Without any number there is no candidate.
    uint token = best.x == 0 ? 0 : best.y;
    if (best.x != 0) {
        Candidates row = {x, args.n, x[best.y], args.temperature, uint2(0, 0xffffffffu)};
        if (args.top_k > 0 && args.top_k < args.n) {
            row.last = search(row, MEASURE_COUNT, float(args.top_k), true, digits, team).at;
        }
        float sum = total(row, partials, team);
        if (args.top_p < 1.0f) {
            const Found end = search(row, MEASURE_WEIGHT, args.top_p * sum, true, digits, team);
            row.last = end.at;
            sum = end.before + end.measure;
        }
        token = search(row, MEASURE_WEIGHT, random[group] * sum, false, digits, team).at.y;
    }
    if (team.index == 0) {
        output[group] = token;
    }
}

#define INSTANCE(name, type) \
    template [[host_name("softmax_" name)]] [[kernel]] decltype(softmax<type>) softmax<type>;

INSTANCE("f32", float)
INSTANCE("f16", half)
INSTANCE("bf16", bfloat)

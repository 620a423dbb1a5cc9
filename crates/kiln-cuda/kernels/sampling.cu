// From logits to tokens.

template <class T> __device__ void softmax(const SoftmaxArgs& args) {
    const T* x = (const T*)(args.input + blockIdx.x * args.input_stride);
    T* y = (T*)(args.output + blockIdx.x * args.output_stride);
    float max = -INF;
    for (u32 i = threadIdx.x; i < args.n; i += blockDim.x) max = fmaxf(max, to_float(x[i]) * args.scale);
    max = block_max(max);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < args.n; i += blockDim.x) sum += expf(to_float(x[i]) * args.scale - max);
    sum = block_sum(sum);
    for (u32 i = threadIdx.x; i < args.n; i += blockDim.x) {
        y[i] = from_float<T>(expf(to_float(x[i]) * args.scale - max) / sum);
    }
}

// A key after those of all candidates.
#define NOBODY ~0ull
__device__ __forceinline__ bool is_candidate(u64 key) { return key >> 32 != 0xffffffffu; }

__device__ u64 smallest_key(const float* x, u32 n, u64 above) {
    u64 best = NOBODY;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        u64 key = rank_key(x[i], i);
        if (key > above && key < best) best = key;
    }
    return block_min(best);
}

// A block for each row and part of it; the last of a row to end takes the best of all parts.
__device__ void argmax(const SampleArgs& args) {
    const u32 row = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    const float* x = (const float*)(args.logits + row * args.logits_stride);
    if (args.histogram) {
        u32* histogram = (u32*)(args.histogram + u64(row) * BINS * 12);
        for (u32 i = part * blockDim.x + threadIdx.x; i < BINS * 3; i += parts * blockDim.x) histogram[i] = 0;
    }
    u64 best = NOBODY;
    #pragma unroll 4
    for (u32 i = part * blockDim.x + threadIdx.x; i < args.n; i += parts * blockDim.x) {
        u64 key = rank_key(x[i], i);
        best = key < best ? key : best;
    }
    best = block_min(best);
    if (parts > 1) {
        u64* partial = (u64*)args.partial + u64(row) * parts;
        if (threadIdx.x == 0) partial[part] = best;
        if (!is_last((u32*)args.counters + row, parts)) return;
        best = block_min(threadIdx.x < parts ? __ldcg(&partial[threadIdx.x]) : NOBODY);
    }
    if (threadIdx.x == 0) ((u32*)args.output)[row] = is_candidate(best) ? u32(best) : 0;
}

// Depth of the last bin: below it no candidate has a weight.
#define DEEPEST 28.0

// One copy for all: code that is read once takes longer to read than to run.
__device__ __noinline__ u64 fixed_exp(double x) { return u64(exp(x) * 1099511627776.0); }

// Candidates of a row, with weights in fixed point: sums of integers do not depend on an order.
struct Candidates {
    float max;
    double inverse_temperature;
    float bins_per_half;

    __device__ Candidates(float max, float temperature) : max(max), inverse_temperature(1.0 / double(temperature)) {
        bins_per_half = fminf(float(2.0 * BINS / DEEPEST * inverse_temperature), 3.402823466e38f);
    }
    __device__ u64 weight(float x) const {
        double depth = x == max ? 0.0 : (double(max) - double(x)) * inverse_temperature;
        return fixed_exp(-depth);
    }
    // Rises as logits fall; at least BINS where a logit has no weight. Half of a logit, as differences of
    // whole ones may be beyond the largest number.
    __device__ u32 bin(float x) const {
        float depth = (0.5f * max - 0.5f * x) * bins_per_half;
        return x == max ? 0 : depth < float(BINS) ? u32(depth) : BINS;
    }
};

// The logit of a candidate.
__device__ __forceinline__ float logit_of(u64 key) {
    u32 falling = key >> 32;
    return __uint_as_float(falling >> 31 ? falling : ~falling & 0x7fffffffu);
}

// How many of `count` keys are smaller, found by eight neighbouring lanes together, for each of which the key
// is the same. All lanes of a warp call it.
__device__ __forceinline__ u32 rank_of(u64 key, const u64* keys, u32 count) {
    u32 rank = 0;
    #pragma unroll 4
    for (u32 i = threadIdx.x & 7; i < count; i += 8) rank += keys[i] < key;
    #pragma unroll
    for (int o = 4; o; o >>= 1) rank += __shfl_xor_sync(~0u, rank, o);
    return rank;
}

// The `count` smallest keys of a block in order, and how many there are. `some` is a key of the block, or
// nobody, the same in eight neighbouring lanes: the `count`-th smallest of those is a bound for all.
__device__ u32 smallest_keys(const u64 (&keys)[4], u64 some, u32 count, u64* sorted) {
    __shared__ u64 kept[4 * 1024], sample[128];
    __shared__ u64 bound;
    __shared__ u32 length;
    const u32 eighth = threadIdx.x >> 3, eighths = blockDim.x >> 3;
    if (threadIdx.x == 0) {
        bound = NOBODY;
        length = 0;
    }
    if ((threadIdx.x & 7) == 0) sample[eighth] = some;
    __syncthreads();
    const u32 some_rank = rank_of(some, sample, eighths);
    if (some_rank == count - 1 && (threadIdx.x & 7) == 0 && some != NOBODY) bound = some;
    __syncthreads();
    const u64 last = bound;
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (keys[j] <= last && is_candidate(keys[j])) kept[atomicAdd(&length, 1)] = keys[j];
    }
    __syncthreads();
    const u32 n = length;
    for (u32 first = threadIdx.x >> 5 << 2; first < n; first += eighths) {
        const u32 i = first + (eighth & 3);
        const u64 key = i < n ? kept[i] : NOBODY;
        const u32 rank = rank_of(key, kept, n);
        if (i < n && rank < count) sorted[rank] = key;
    }
    __syncthreads();
    return min(n, count);
}

// The running sum at which a nucleus ends, and the one at which a random number does.
__device__ __forceinline__ u64 nucleus_target(float top_p, u64 total) {
    u64 target = u64(ceil(double(top_p) * double(total)));
    return target > 0 ? target : 1;
}
__device__ __forceinline__ u64 random_target(float random, u64 total) {
    u64 target = u64(floor(double(random) * double(total))) + 1;
    return min(target, total);
}

// One of few best candidates: a block for each row and part of it keeps the best of the part, the last of a
// row to end the best of those. The best of all parts come first, then the second ones.
__device__ void sample_best(const SampleArgs& args) {
    __shared__ u64 sorted[BEST], weights[BEST];
    __shared__ u64 nucleus;
    const u32 row = blockIdx.x, part = blockIdx.y, parts = gridDim.y, i = threadIdx.x;
    const float* x = (const float*)(args.logits + row * args.logits_stride);
    u64 keys[4], some = NOBODY;
    float values[4];
    #pragma unroll
    for (u32 j = 0; j < 4; ++j) {
        const u32 at = (part * 4 + j) * blockDim.x + i;
        values[j] = at < args.n ? x[at] : NAN_F;
    }
    #pragma unroll
    for (u32 j = 0; j < 4; ++j) {
        keys[j] = rank_key(values[j], (part * 4 + j) * blockDim.x + i);
        some = min(some, keys[j]);
    }
    #pragma unroll
    for (int o = 4; o; o >>= 1) some = min(some, __shfl_xor_sync(~0u, some, o));
    u32 count = smallest_keys(keys, some, args.top_k, sorted);
    if (parts > 1) {
        u64* best = (u64*)args.partial + u64(row) * parts * args.top_k;
        if (i < args.top_k) best[i * parts + part] = i < count ? sorted[i] : NOBODY;
        if (!is_last((u32*)args.counters + row, parts)) return;
        const u32 all = parts * args.top_k;
        #pragma unroll
        for (u32 j = 0; j < 4; ++j) keys[j] = j * blockDim.x + i < all ? __ldcg(&best[j * blockDim.x + i]) : NOBODY;
        some = i >> 3 < all ? __ldcg(&best[i >> 3]) : NOBODY;
        count = smallest_keys(keys, some, args.top_k, sorted);
    }

    // Threads without a candidate have sums of zero, which reach no target first.
    u64 weight = 0, sum = 0, total = 0, target;
    if (i == 0) nucleus = 0;
    if (i < count) {
        const Candidates c(logit_of(sorted[0]), args.temperature);
        weights[i] = weight = c.weight(logit_of(sorted[i]));
    }
    __syncthreads();
    if (i < count) {
        #pragma unroll 8
        for (u32 j = 0; j < count; ++j) {
            total += weights[j];
            sum = j == i ? total : sum;
        }
    }
    if (args.top_p < 1.0f) {
        target = nucleus_target(args.top_p, total);
        if (sum >= target && sum - weight < target) nucleus = sum;
        __syncthreads();
        total = nucleus;
    }
    target = random_target(((const float*)args.random)[row], total);
    if (sum >= target && sum - weight < target) ((u32*)args.output)[row] = u32(sorted[i]);
    // A row of NaN has no candidates.
    if (count == 0 && i == 0) ((u32*)args.output)[row] = 0;
}

// The sum of what the threads before this one have.
__device__ u64 sum_before(u64 x) {
    __shared__ u64 sums[32];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 sum = x;
    #pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
        u64 y = __shfl_up_sync(~0u, sum, o);
        if (lane >= o) sum += y;
    }
    __syncthreads();
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    for (u32 i = 0; i < warp; ++i) sum += sums[i];
    return sum - x;
}

// Where a running sum over the candidates, in the order of their keys, first reaches a target: the key, and
// the sum of the weights up to it.
struct Reached { u64 key, mass; };

// Bins of a row in shared memory; each thread knows the sums before four of them.
struct Histogram {
    const float* x;
    u32 n;
    const u64* mass;
    const u32* counts;
    u64 mass_before, count_before;
    // For keys and weights of the candidates of a bin.
    u64* room;
};

// A pass over the candidates of a bin with keys from `low` to `high`.
template <class F> __device__ __forceinline__ void each_of_bin(const Histogram& h, const Candidates& c, u32 bin, u64 low, u64 high, F f) {
    for (u32 first = threadIdx.x; first < h.n; first += 8 * blockDim.x) {
        float values[8];
        #pragma unroll
        for (u32 e = 0; e < 8; ++e) values[e] = first + e * blockDim.x < h.n ? h.x[first + e * blockDim.x] : NAN_F;
        #pragma unroll
        for (u32 e = 0; e < 8; ++e) {
            const u64 key = rank_key(values[e], first + e * blockDim.x);
            if (values[e] == values[e] && c.bin(values[e]) == bin && key >= low && key <= high) f(key);
        }
    }
}

__device__ __forceinline__ Reached reach(const Histogram& h, const Candidates& c, bool by_count, u64 target) {
    u64 *kept = h.room, *weights = kept + BIN_KEYS;
    __shared__ u64 found[2], half[2];
    __shared__ u32 bin, length;
    __shared__ Reached reached;
    u64 sum = by_count ? h.count_before : h.mass_before, mass = h.mass_before;
    #pragma unroll
    for (u32 e = 4 * threadIdx.x; e < 4 * threadIdx.x + 4; ++e) {
        const u64 amount = by_count ? h.counts[e] : h.mass[e];
        if (sum < target && sum + amount >= target) {
            bin = e;
            found[0] = sum;
            found[1] = mass;
        }
        sum += amount;
        mass += h.mass[e];
    }
    __syncthreads();
    // What is before the candidates with keys from `low` to `high`; those that are too many are halved.
    u64 below = found[0], low = 0, high = NOBODY;
    mass = found[1];
    for (;;) {
        if (threadIdx.x == 0) length = 0;
        __syncthreads();
        u64 least = NOBODY, largest = 0;
        each_of_bin(h, c, bin, low, high, [&](u64 key) {
            const u32 at = atomicAdd(&length, 1);
            if (at < BIN_KEYS) kept[at] = key;
            least = min(least, key);
            largest = max(largest, key);
        });
        __syncthreads();
        if (length <= BIN_KEYS) break;
        low = block_min(least);
        high = ~block_min(~largest);
        const u64 middle = low + (high - low) / 2;
        u64 half_count = 0, half_mass = 0;
        each_of_bin(h, c, bin, low, middle, [&](u64 key) {
            half_count += 1;
            half_mass += c.weight(logit_of(key));
        });
        // The sums of all threads are what is before the last, and its own.
        half_count += sum_before(half_count);
        half_mass += sum_before(half_mass);
        if (threadIdx.x == blockDim.x - 1) {
            half[0] = by_count ? half_count : half_mass;
            half[1] = half_mass;
        }
        __syncthreads();
        if (below + half[0] >= target) {
            high = middle;
        } else {
            low = middle + 1;
            below += half[0];
            mass += half[1];
        }
    }
    const u32 n = length;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) weights[i] = c.weight(logit_of(kept[i]));
    __syncthreads();
    for (u32 first = threadIdx.x >> 5 << 2; first < n; first += blockDim.x >> 3) {
        const u32 i = first + (threadIdx.x >> 3 & 3);
        const u64 key = kept[min(i, n - 1)], own = by_count ? 1 : weights[min(i, n - 1)];
        u64 count_sum = 0, mass_sum = 0;
        for (u32 j = threadIdx.x & 7; j < n; j += 8) {
            const bool before = kept[j] <= key;
            count_sum += before;
            mass_sum += before ? weights[j] : 0;
        }
        #pragma unroll
        for (int o = 4; o; o >>= 1) {
            count_sum += __shfl_xor_sync(~0u, count_sum, o);
            mass_sum += __shfl_xor_sync(~0u, mass_sum, o);
        }
        const u64 sum = below + (by_count ? count_sum : mass_sum);
        if (sum >= target && sum - own < target) reached = Reached{key, mass + mass_sum};
    }
    __syncthreads();
    const Reached result = reached;
    __syncthreads();
    return result;
}

// One of all candidates: `output` has the best of each row already. A block for each row and part of it sums
// weights by bins; the last of a row to end looks only into the bins in which a running sum ends.
__device__ void sample(const SampleArgs& args) {
    // Weights in a lower and an upper half: so many of a part's fit into 32 bits.
    extern __shared__ __align__(16) u32 bins[];
    u32 *lower = bins, *upper = bins + BINS, *counts = bins + 2 * BINS;
    const u32 row = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    const float* x = (const float*)(args.logits + row * args.logits_stride);
    const Candidates c(x[((const u32*)args.output)[row]], args.temperature);
    for (u32 i = threadIdx.x; i < 3 * BINS; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    #pragma unroll
    for (u32 j = 0; j < 2; ++j) {
        const u32 i = (part * 2 + j) * blockDim.x + threadIdx.x;
        const float v = i < args.n ? x[i] : NAN_F;
        const u32 bin = v == v ? c.bin(v) : BINS;
        if (bin < BINS) {
            const u64 weight = c.weight(v);
            atomicAdd(&lower[bin], u32(weight) & 0xfffff);
            atomicAdd(&upper[bin], u32(weight >> 20));
            if (args.top_k) atomicAdd(&counts[bin], 1);
        }
    }
    __syncthreads();
    u64* all_mass = (u64*)(args.histogram + u64(row) * BINS * 12);
    u32* all_counts = (u32*)(all_mass + BINS);
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
        const u64 mass = lower[i] + (u64(upper[i]) << 20);
        if (mass) atomicAdd(&all_mass[i], mass);
        if (args.top_k && counts[i]) atomicAdd(&all_counts[i], counts[i]);
    }
    if (!is_last((u32*)args.counters + row, parts)) return;

    u64 *mass = (u64*)bins, own_mass = 0, own_count = 0;
    counts = (u32*)(mass + BINS);
    #pragma unroll
    for (u32 e = 4 * threadIdx.x; e < 4 * threadIdx.x + 4; ++e) {
        own_mass += mass[e] = __ldcg(&all_mass[e]);
        own_count += counts[e] = __ldcg(&all_counts[e]);
    }
    const Histogram h{x, args.n, mass, counts, sum_before(own_mass), sum_before(own_count), (u64*)(counts + BINS)};
    __shared__ u64 all[2];
    if (threadIdx.x == blockDim.x - 1) {
        all[0] = h.mass_before + own_mass;
        all[1] = h.count_before + own_count;
    }
    __syncthreads();
    u64 total = all[0], result = 0;
    // The last of the best `top_k`, the last of the nucleus, and the one that is drawn. A row of NaN has no
    // candidates.
    #pragma unroll 1
    for (int step = 0; step < 3 && total > 0; ++step) {
        u64 target = args.top_k;
        if (step == 0 && (args.top_k == 0 || args.top_k >= all[1])) continue;
        if (step == 1 && args.top_p >= 1.0f) continue;
        if (step == 1) target = nucleus_target(args.top_p, total);
        if (step == 2) target = random_target(((const float*)args.random)[row], total);
        const Reached reached = reach(h, c, step == 0, target);
        total = reached.mass;
        result = reached.key;
    }
    if (threadIdx.x == 0) ((u32*)args.output)[row] = u32(result);
}

// Softmax over all experts, then the largest in falling order.
__device__ void moe_route(const MoeRouteArgs& args) {
    const float* x = (const float*)(args.logits + blockIdx.x * args.logits_stride);
    u32* ids = (u32*)(args.ids + blockIdx.x * args.ids_stride);
    float* weights = (float*)(args.weights + blockIdx.x * args.weights_stride);
    float max = -INF, sum = 0.0f;
    for (u32 i = threadIdx.x; i < args.experts; i += blockDim.x) max = fmaxf(max, x[i]);
    max = block_max(max);
    for (u32 i = threadIdx.x; i < args.experts; i += blockDim.x) sum += expf(x[i] - max);
    sum = block_sum(sum);
    float chosen = 0.0f;
    u64 key = 0;
    for (u32 k = 0; k < args.top_k; ++k) {
        // No candidate has the key 0: the largest, infinity, is above it.
        key = smallest_key(x, args.experts, key);
        u32 id = u32(key);
        float weight = expf(x[id] - max) / sum;
        chosen += weight;
        if (threadIdx.x == 0) {
            ids[k] = id;
            weights[k] = weight;
        }
    }
    if (args.renormalize && threadIdx.x == 0) {
        float divisor = chosen != chosen ? chosen : fmaxf(chosen, 6.1e-5f);
        for (u32 k = 0; k < args.top_k; ++k) weights[k] = weights[k] / divisor;
    }
}

extern "C" __global__ void softmax_f32(const __grid_constant__ SoftmaxArgs args) { begin(); softmax<float>(args); }
extern "C" __global__ void softmax_f16(const __grid_constant__ SoftmaxArgs args) { begin(); softmax<f16>(args); }
extern "C" __global__ void softmax_bf16(const __grid_constant__ SoftmaxArgs args) { begin(); softmax<bf16>(args); }
extern "C" __global__ void argmax_f32(const __grid_constant__ SampleArgs args) { begin(); argmax(args); }
extern "C" __global__ void __launch_bounds__(1024) sample_best_f32(const __grid_constant__ SampleArgs args) { begin(); sample_best(args); }
extern "C" __global__ void __launch_bounds__(1024) sample_f32(const __grid_constant__ SampleArgs args) { begin(); sample(args); }
extern "C" __global__ void moe_route_f32(const __grid_constant__ MoeRouteArgs args) { begin(); moe_route(args); }

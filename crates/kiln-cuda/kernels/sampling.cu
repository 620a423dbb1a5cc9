// From logits to tokens: a block for each row.

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

__device__ u64 smallest_key(const float* x, u32 n, u64 above) {
    u64 best = ~0ull;
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
    u64 best = ~0ull;
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
        best = block_min(threadIdx.x < parts ? __ldcg(&partial[threadIdx.x]) : ~0ull);
    }
    if (threadIdx.x == 0) ((u32*)args.output)[row] = best >> 32 == 0xffffffffu ? 0 : u32(best);
}

// Candidates of a row with their weights in fixed point: sums of integers do not depend on an order.
struct Candidates {
    const float* logits;
    u32 n;
    float max;
    double inverse_temperature;

    __device__ u64 weight(float x) const {
        double depth = x == max ? 0.0 : (double(max) - double(x)) * inverse_temperature;
        return u64(exp(-depth) * 1099511627776.0);
    }
};

// The key at which a running sum over the candidates up to `limit`, in the order of their keys,
// first reaches `target`; counts candidates, or their weights. The last where it never does.
// Eight bits of the key at a time: a sum for each of their values, then the first that reaches.
__device__ u64 reach(const Candidates& c, bool count, u64 limit, u64 target) {
    __shared__ u64 bins[256];
    __shared__ u64 chosen[2];
    u64 prefix = 0, below = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < c.n; i += blockDim.x) {
            u64 key = rank_key(c.logits[i], i);
            bool inside = shift == 56 || key >> (shift + 8) == prefix >> (shift + 8);
            if (inside && key <= limit && key >> 32 != 0xffffffffu) {
                u64 amount = count ? 1 : c.weight(c.logits[i]);
                // A candidate without weight still is one: the marker finds the last.
                atomicAdd(&bins[key >> shift & 255], amount << 1 | 0);
                atomicOr(&bins[key >> shift & 255], 1ull);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 sum = below, last = 0, last_below = below;
            for (u32 bin = 0; bin < 256; ++bin) {
                if (!bins[bin]) continue;
                last = bin;
                last_below = sum;
                sum += bins[bin] >> 1;
                if (sum >= target) break;
            }
            chosen[0] = last;
            chosen[1] = last_below;
        }
        __syncthreads();
        prefix |= chosen[0] << shift;
        below = chosen[1];
        __syncthreads();
    }
    return prefix;
}

// The sum of the weights of the candidates up to `limit`.
__device__ u64 total_weight(const Candidates& c, u64 limit) {
    __shared__ u64 total;
    __syncthreads();
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    u64 sum = 0;
    for (u32 i = threadIdx.x; i < c.n; i += blockDim.x) {
        u64 key = rank_key(c.logits[i], i);
        if (key <= limit && key >> 32 != 0xffffffffu) sum += c.weight(c.logits[i]);
    }
    atomicAdd(&total, sum);
    __syncthreads();
    return total;
}

__device__ void sample(const SampleArgs& args) {
    Candidates c;
    c.logits = (const float*)(args.logits + blockIdx.x * args.logits_stride);
    c.n = args.n;
    float max = -INF;
    for (u32 i = threadIdx.x; i < c.n; i += blockDim.x) max = fmaxf(max, c.logits[i]);
    c.max = block_max(max);
    c.inverse_temperature = 1.0 / double(args.temperature);
    u64 best = smallest_key(c.logits, c.n, 0);
    // A row of NaN has no candidates: all sums are zero, and the result is 0.
    u32 result = 0;
    if (best >> 32 != 0xffffffffu) {
        u64 limit = ~0ull;
        if (args.top_k > 0 && args.top_k < c.n) limit = reach(c, true, limit, args.top_k);
        u64 total = total_weight(c, limit);
        if (args.top_p < 1.0f) {
            double target = double(args.top_p) * double(total);
            u64 at_least = u64(ceil(target));
            limit = reach(c, false, limit, at_least > 0 ? at_least : 1);
            total = total_weight(c, limit);
        }
        double target = double(((const float*)args.random)[blockIdx.x]) * double(total);
        result = u32(reach(c, false, limit, u64(floor(target)) + 1));
    }
    if (threadIdx.x == 0) ((u32*)args.output)[blockIdx.x] = result;
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
extern "C" __global__ void sample_f32(const __grid_constant__ SampleArgs args) { begin(); sample(args); }
extern "C" __global__ void moe_route_f32(const __grid_constant__ MoeRouteArgs args) { begin(); moe_route(args); }

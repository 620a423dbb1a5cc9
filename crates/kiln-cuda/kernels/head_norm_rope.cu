// Per-head RMS normalisation and rotation, and appending to a cache: a block for each token and group
// of heads, a warp for each head. One launch has up to three such operations.

// Cosines and sines of all tokens. In f64: a frequency in f32 is off by too much at high positions.
__device__ __forceinline__ void table(const RopeTableArgs& args) {
    const u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x, values = args.tokens * args.half;
    if (at >= values) return;
    const u64 token = at / args.half, i = at % args.half;
    double angle = double(((const u32*)args.positions)[token]) * exp2(__longlong_as_double(args.exponent) * double(i));
    if (args.factors) angle = angle / double(((const float*)args.factors)[i]);
    double turns = angle * 0.15915494309189535;
    double reduced = (angle - rint(turns) * 6.283185307179586) - rint(turns) * 2.4492935982947064e-16;
    ((float*)args.output)[at] = cosf(float(reduced));
    ((float*)args.output)[values + at] = sinf(float(reduced));
}

// What is written of a pair.
template <class T> __device__ __forceinline__ void store(const HeadNormRopeArgs& args, u64 token, u64 head, u64 cache, uint2 at, float2 y) {
    using Pairs = HeadPairs<T, true>;
    if (args.output) Pairs::store(args, (T*)(args.output + token * args.output_stride_t + head * args.output_stride_h), at, y);
    if (args.copy_bf16) Pairs::store(args, (bf16*)(args.copy_bf16 + token * args.copy_bf16_stride_t + head * args.copy_bf16_stride_h), at, y);
    if (args.copy_f32) Pairs::store(args, (float*)(args.copy_f32 + token * args.copy_f32_stride_t + head * args.copy_f32_stride_h), at, y);
    if (!cache) return;
    if (args.cache_element == ELEMENT_F32) Pairs::store(args, (float*)cache, at, y);
    else if (args.cache_element == ELEMENT_F16) Pairs::store(args, (f16*)cache, at, y);
    else Pairs::store(args, (bf16*)cache, at, y);
}

template <class T> __device__ __forceinline__ void head_norm_rope(const HeadNormRopeArgs& args, u32 group) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const u64 token = blockIdx.x, slot = args.cache ? u64(*(const u32*)args.cache_start) + token : 0;
    for (u64 head = group * warps + warp; head < args.heads; head += args.groups * warps) {
        const u64 cache = args.cache && slot < args.capacity ? args.cache + head * args.cache_stride_h + slot * args.cache_stride_s : 0;
        HeadPairs<T, true> pairs(args, token, head);
        float r = 1.0f;
        #pragma unroll 1
        for (u32 first = 0; 2 * first < args.dim; first += 32 * PAIRS) {
            pairs.load(args, first);
            if (args.normalize && first == 0) {
                float sum = pairs.squares();
                if (args.dim > 64 * PAIRS) {
                    sum = 0.0f;
                    for (u32 i = lane; i < args.dim; i += 32) sum += to_float(pairs.row[i]) * to_float(pairs.row[i]);
                }
                r = head_root(args, sum);
            }
            #pragma unroll
            for (int e = 0; e < PAIRS; ++e) {
                const uint2 at = pairs.places(args, pairs.pair(first, e));
                if (at.x < args.dim) store<T>(args, token, head, cache, at, pairs.turned(args, r, first, e));
            }
        }
    }
}

#define INSTANCE(A, T) \
    extern "C" __global__ void head_norm_rope_##A(const __grid_constant__ HeadJobs jobs) { \
        begin(); \
        const u32 group = blockIdx.y, second = jobs.job[0].groups, third = second + jobs.job[1].groups; \
        const u32 job = group < second ? 0 : group < third ? 1 : 2; \
        head_norm_rope<T>(jobs.job[job], group - (job == 0 ? 0 : job == 1 ? second : third)); \
    }
INSTANCE(f32, float)
INSTANCE(f16, f16)
INSTANCE(bf16, bf16)
extern "C" __global__ void rope_table(const __grid_constant__ RopeTableArgs args) { begin(); table(args); }

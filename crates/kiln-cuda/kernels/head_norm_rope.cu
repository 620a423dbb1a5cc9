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

template <class T> __device__ __forceinline__ void head_norm_rope(const HeadNormRopeArgs& args, u32 group) {
    extern __shared__ float shared[];
    const u32 dim = args.dim, half = args.half, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 warps = blockDim.x >> 5;
    float* head_values = shared + warp * dim;
    const u64 token = blockIdx.x, table_row = args.table_rows == 1 ? 0 : token;
    const float* cosines = (const float*)(args.cosines + table_row * args.cosines_stride);
    const float* sines = (const float*)(args.sines + table_row * args.sines_stride);

    for (u64 head = group * warps + warp; head < args.heads; head += args.groups * warps) {
        const T* input = (const T*)(args.input + token * args.input_stride_t + head * args.input_stride_h);
        float sum = 0.0f;
        for (u32 i = lane; i < dim; i += 32) {
            float x = to_float(input[i]);
            head_values[i] = x;
            sum += x * x;
        }
        float r = 1.0f;
        if (args.normalize) {
            r = 1.0f / sqrtf(warp_sum(sum) / float(dim) + args.eps);
            for (u32 i = lane; i < dim; i += 32) {
                float w = 1.0f;
                if (args.weight) w = args.weight_single ? ((const float*)args.weight)[i] : to_float(((const T*)args.weight)[i]);
                head_values[i] = head_values[i] * r * w;
            }
        }
        __syncwarp();
        for (u32 i = lane; i < half; i += 32) {
            u32 at = args.pairing == 0 ? 2 * i : i;
            u32 to = args.pairing == 0 ? 2 * i + 1 : i + (args.pairing == 1 ? half : dim / 2);
            float a = head_values[at], b = head_values[to], c = cosines[i], s = sines[i];
            head_values[at] = a * c - b * s;
            head_values[to] = b * c + a * s;
        }
        __syncwarp();
        T* output = args.output ? (T*)(args.output + token * args.output_stride_t + head * args.output_stride_h) : nullptr;
        bf16* copy = args.copy_bf16 ? (bf16*)(args.copy_bf16 + token * args.copy_bf16_stride_t + head * args.copy_bf16_stride_h) : nullptr;
        float* copy_f32 = args.copy_f32 ? (float*)(args.copy_f32 + token * args.copy_f32_stride_t + head * args.copy_f32_stride_h) : nullptr;
        u64 slot = args.cache ? u64(*(const u32*)args.cache_start) + token : 0;
        u64 cache = args.cache && slot < args.capacity ? args.cache + head * args.cache_stride_h + slot * args.cache_stride_s : 0;
        for (u32 i = lane; i < dim; i += 32) {
            float y = head_values[i];
            if (output) output[i] = from_float<T>(y);
            if (copy) copy[i] = from_float<bf16>(y);
            if (copy_f32) copy_f32[i] = y;
            if (cache) {
                if (args.cache_element == ELEMENT_F32) ((float*)cache)[i] = y;
                else if (args.cache_element == ELEMENT_F16) ((f16*)cache)[i] = from_float<f16>(y);
                else ((bf16*)cache)[i] = from_float<bf16>(y);
            }
        }
        __syncwarp();
    }
}

#define INSTANCE(A, T) \
    extern "C" __global__ void head_norm_rope_##A(const __grid_constant__ HeadNormRopeArgs a, const __grid_constant__ HeadNormRopeArgs b, const __grid_constant__ HeadNormRopeArgs c) { \
        begin(); \
        const u32 group = blockIdx.y, second = a.groups, third = a.groups + b.groups; \
        const HeadNormRopeArgs args = group < second ? a : group < third ? b : c; \
        head_norm_rope<T>(args, group < second ? group : group < third ? group - second : group - third); \
    }
INSTANCE(f32, float)
INSTANCE(f16, f16)
INSTANCE(bf16, bf16)
extern "C" __global__ void rope_table(const __grid_constant__ RopeTableArgs args) { begin(); table(args); }

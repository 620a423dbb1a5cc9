// Per-head RMS normalisation and rotation: a block for each token and group of heads, a warp for
// each head. The cosines and sines of a token are computed once per block.

template <class T> __device__ void head_norm_rope(const HeadNormRopeArgs& args) {
    extern __shared__ float shared[];
    const u32 dim = args.dim, half = args.half, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 warps = blockDim.x >> 5;
    float* cosines = shared;
    float* sines = shared + half;
    float* head_values = shared + 2 * half + warp * dim;
    const u64 token = blockIdx.x;

    for (u32 i = threadIdx.x; i < half; i += blockDim.x) {
        if (args.cosines) {
            u64 row = args.table_rows == 1 ? 0 : token;
            cosines[i] = ((const float*)(args.cosines + row * args.cosines_stride))[i];
            sines[i] = ((const float*)(args.sines + row * args.sines_stride))[i];
        } else {
            // In f64: a frequency in f32 is off by too much at high positions.
            double position = double(((const u32*)args.positions)[token]);
            double angle = position * exp2(__longlong_as_double(args.exponent) * double(i));
            if (args.factors) angle = angle / double(((const float*)args.factors)[i]);
            double turns = angle * 0.15915494309189535;
            double reduced = (angle - rint(turns) * 6.283185307179586) - rint(turns) * 2.4492935982947064e-16;
            cosines[i] = cosf(float(reduced));
            sines[i] = sinf(float(reduced));
        }
    }
    __syncthreads();

    for (u64 head = blockIdx.y * warps + warp; head < args.heads; head += gridDim.y * warps) {
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

extern "C" __global__ void head_norm_rope_f32(const __grid_constant__ HeadNormRopeArgs args) { begin(); head_norm_rope<float>(args); }
extern "C" __global__ void head_norm_rope_f16(const __grid_constant__ HeadNormRopeArgs args) { begin(); head_norm_rope<f16>(args); }
extern "C" __global__ void head_norm_rope_bf16(const __grid_constant__ HeadNormRopeArgs args) { begin(); head_norm_rope<bf16>(args); }

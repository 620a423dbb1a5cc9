// Products of few rows with plain weights, in f32: a warp for each row of the weight.

template <class T> __device__ __forceinline__ void load8(const T* p, bool wide, float (&v)[8]) {
    float a[4], b[4];
    load4(p, wide, a);
    load4(p + 4, wide, b);
    #pragma unroll
    for (int i = 0; i < 4; ++i) { v[i] = a[i]; v[4 + i] = b[i]; }
}

// A lane takes chunks of 8 values lane, lane + 32, ... and the values of the rest one by one.
template <class T, int M> __device__ void mat_vec(const FloatMatVecArgs& args) {
    const u32 lane = threadIdx.x & 31;
    const u64 n = u64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (n >= args.n) return;
    u64 weight = args.weight + n * args.weight_stride;
    u64 input = args.input;
    float* output = (float*)(args.output) + n;
    if (args.ids) {
        const u32 slot = blockIdx.y, token = slot / u32(args.top_k), place = slot % u32(args.top_k);
        u64 id = *(const u32*)(args.ids + u64(token) * args.ids_stride + u64(place) * 4);
        output = (float*)(args.output + u64(token) * args.output_stride + u64(place) * args.output_stride_slot) + n;
        if (id >= args.experts) {
            if (lane == 0) *output = NAN_F;
            return;
        }
        weight += id * args.expert_stride;
        input += u64(slot / u32(args.slots_per_row)) * args.input_stride;
    }
    const T* w = (const T*)weight;
    float acc[M] = {};
    const u32 whole = args.k / 8 * 8;
    for (u32 i = lane * 8; i < whole; i += 256) {
        float a[8];
        load8(w + i, args.wide, a);
        #pragma unroll
        for (int m = 0; m < M; ++m) {
            const float* x = (const float*)(input + u64(min(m, int(args.m) - 1)) * args.input_stride);
            float b[8];
            load8(x + i, args.wide, b);
            #pragma unroll
            for (int e = 0; e < 8; ++e) acc[m] = fmaf(a[e], b[e], acc[m]);
        }
    }
    for (u32 i = whole + lane; i < args.k; i += 32) {
        float a = to_float(w[i]);
        #pragma unroll
        for (int m = 0; m < M; ++m) {
            const float* x = (const float*)(input + u64(min(m, int(args.m) - 1)) * args.input_stride);
            acc[m] = fmaf(a, x[i], acc[m]);
        }
    }
    #pragma unroll
    for (int m = 0; m < M; ++m) {
        float y = warp_sum(acc[m]);
        if (lane == 0 && m < args.m) *(float*)((u64)output + (args.ids ? 0 : m * args.output_stride)) = y;
    }
}

#define INSTANCE(A, T, M) extern "C" __global__ void __launch_bounds__(128) mat_vec_##A##_##M(const __grid_constant__ FloatMatVecArgs args) { begin(); mat_vec<T, M>(args); }
#define TYPES(A, T) INSTANCE(A, T, 1) INSTANCE(A, T, 4) INSTANCE(A, T, 8)
TYPES(f32, float)
TYPES(f16, f16)
TYPES(bf16, bf16)

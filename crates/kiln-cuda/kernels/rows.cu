// Copies of any strides and pooling.

template <class T, class U> __device__ __forceinline__ U converted(T x) { return from_float<U>(to_float(x)); }
template <> __device__ __forceinline__ f16 converted<f16, f16>(f16 x) { return x; }
template <> __device__ __forceinline__ bf16 converted<bf16, bf16>(bf16 x) { return x; }
template <> __device__ __forceinline__ u32 converted<u32, u32>(u32 x) { return x; }
template <> __device__ __forceinline__ u8 converted<u8, u8>(u8 x) { return x; }
template <> __device__ __forceinline__ float converted<float, float>(float x) { return x; }

template <class T, class U> __device__ void copy(const CopyArgs& args) {
    const u64 step = u64(gridDim.x) * blockDim.x;
    for (u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x; at < args.values; at += step) {
        u64 rest = at;
        u64 i3 = rest % args.extent_3;
        rest /= args.extent_3;
        u64 i2 = rest % args.extent_2;
        rest /= args.extent_2;
        u64 i1 = rest % args.extent_1;
        u64 i0 = rest / args.extent_1;
        const T* from = (const T*)(args.input + i0 * args.input_stride_0 + i1 * args.input_stride_1 + i2 * args.input_stride_2);
        U* to = (U*)(args.output + i0 * args.output_stride_0 + i1 * args.output_stride_1 + i2 * args.output_stride_2);
        to[i3] = converted<T, U>(from[i3]);
    }
}

template <class T> __device__ void pool(const PoolArgs& args) {
    const u64 batch = blockIdx.y;
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= args.dim) return;
    const u64 length = ((const u32*)args.lengths)[batch];
    const u64 input = args.input + batch * args.input_stride_b;
    T* output = (T*)(args.output + batch * args.output_stride) + i;
    if (length == 0 || length > args.tokens) {
        *output = from_float<T>(NAN_F);
    } else if (args.mode != 0) {
        u64 token = args.mode == 1 ? 0 : length - 1;
        *output = ((const T*)(input + token * args.input_stride_t))[i];
    } else {
        double sum = 0.0;
        for (u64 t = 0; t < length; ++t) sum += to_float(((const T*)(input + t * args.input_stride_t))[i]);
        *output = from_float<T>(float(sum / double(length)));
    }
}

#define COPY(A, T, B, U) extern "C" __global__ void copy_##A##_##B(const __grid_constant__ CopyArgs args) { begin(); copy<T, U>(args); }
#define FLOATS(A, T) COPY(A, T, f32, float) COPY(A, T, f16, f16) COPY(A, T, bf16, bf16)
FLOATS(f32, float)
FLOATS(f16, f16)
FLOATS(bf16, bf16)
COPY(u32, u32, u32, u32)
COPY(u8, u8, u8, u8)
extern "C" __global__ void pool_f32(const __grid_constant__ PoolArgs args) { begin(); pool<float>(args); }
extern "C" __global__ void pool_f16(const __grid_constant__ PoolArgs args) { begin(); pool<f16>(args); }
extern "C" __global__ void pool_bf16(const __grid_constant__ PoolArgs args) { begin(); pool<bf16>(args); }

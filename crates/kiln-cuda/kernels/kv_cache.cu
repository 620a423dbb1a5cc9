// Appending to a key-value cache: a warp for each token, head and 32 values.

// A row of f32, f16 or bf16 values, converted or copied bit for bit.
template <class T, class C> __device__ __forceinline__ void put(const T* from, C* to, u32 i) {
    to[i] = from_float<C>(to_float(from[i]));
}
template <class T> __device__ __forceinline__ void put(const T* from, T* to, u32 i) { to[i] = from[i]; }

struct Q8 {};

template <class T> __device__ __forceinline__ void put_block(const T* from, u8* to, u32 lane) {
    float x = to_float(from[lane]);
    float largest = warp_max(fabsf(x));
    bool finite = __all_sync(~0u, x - x == 0.0f);
    // In f64, where a quotient next to a tie stays on its side.
    double exact = double(largest) / 127.0;
    int code = finite && largest > 0.0f ? int(rint(double(x) / exact)) : 0;
    u32 d = pack2<f16>(finite ? largest / 127.0f : NAN_F, 0.0f);
    if (lane < 2) to[lane] = u8(d >> 8 * lane);
    to[2 + lane] = u8(i8(code));
}

template <class T, class C> __device__ void kv_append(const KvAppendArgs& args) {
    const u32 lane = threadIdx.x & 31;
    const u64 index = u64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (index >= args.tokens * args.heads) return;
    const u64 token = index / args.heads, head = index % args.heads;
    const u64 position = u64(*(const u32*)args.start) + token;
    const u64 slot = args.ring ? position % args.capacity : position;
    const bool kept = args.ring ? token + args.capacity >= args.tokens : slot < args.capacity;
    if (!kept) return;
    const T* from = (const T*)(args.input + token * args.input_stride_t + head * args.input_stride_h);
    const u64 to = args.cache + head * args.cache_stride_h + slot * args.cache_stride_s;
    if constexpr (sizeof(C) == 1) {
        for (u32 block = 0; block < args.dim / 32; ++block) put_block(from + block * 32, (u8*)to + block * 34, lane);
    } else {
        for (u32 i = lane; i < args.dim; i += 32) put(from, (C*)to, i);
    }
}

#define INSTANCE(A, T, B, C) \
    extern "C" __global__ void kv_append_##A##_##B(const __grid_constant__ KvAppendArgs args) { begin(); kv_append<T, C>(args); }
#define TYPES(A, T) INSTANCE(A, T, f32, float) INSTANCE(A, T, f16, f16) INSTANCE(A, T, bf16, bf16) INSTANCE(A, T, q8_0, Q8)
TYPES(f32, float)
TYPES(f16, f16)
TYPES(bf16, bf16)

// Types and helpers that every kernel uses. NVRTC compiles without toolkit headers, and with
// -fmad=false: a multiply-add is one only where it is written as fmaf, so that fused and separate
// operations give the same bits.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// A kernel may be launched before those that it depends on have ended: it starts with `begin`, or
// with `release` and then, before it touches what they write, `wait`.
__device__ __forceinline__ void release() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// One thread asks: many that ask take instructions from the kernel that is waited for.
__device__ __forceinline__ void wait() {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) asm volatile("griddepcontrol.wait;" ::: "memory");
    __syncthreads();
#endif
}
__device__ __forceinline__ void begin() {
    release();
    wait();
}

// Asks for the line of an address. A hint: it may be given before `wait`.
__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }

#define INF __int_as_float(0x7f800000)
#define NAN_F __int_as_float(0x7fffffff)

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ f16 from_float<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two values in one register, the first in the lower half.
template <class T> __device__ __forceinline__ u32 pack2(float a, float b);
template <> __device__ __forceinline__ u32 pack2<f16>(float a, float b) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
    return y;
}
template <> __device__ __forceinline__ u32 pack2<bf16>(float a, float b) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
    return y;
}

__device__ __forceinline__ float half_bits(u32 bits) { return to_float(f16{u16(bits)}); }

// Element types as numbers, as the host passes them.
enum Element { ELEMENT_F32 = 0, ELEMENT_F16 = 1, ELEMENT_BF16 = 2 };

__device__ __forceinline__ float load_as(u32 element, const void* base, u64 index) {
    if (element == ELEMENT_F32) return ((const float*)base)[index];
    if (element == ELEMENT_F16) return to_float(((const f16*)base)[index]);
    return to_float(((const bf16*)base)[index]);
}

__device__ __forceinline__ void store_as(u32 element, void* base, u64 index, float x) {
    if (element == ELEMENT_F32) ((float*)base)[index] = x;
    else if (element == ELEMENT_F16) ((f16*)base)[index] = from_float<f16>(x);
    else ((bf16*)base)[index] = from_float<bf16>(x);
}

// Eight neighbours from `i` on, those from `n` on zeros.
template <class T> __device__ __forceinline__ void load8(const T* p, u32 i, u32 n, float (&v)[8]) {
    #pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = i + e < n ? to_float(p[i + e]) : 0.0f;
}
__device__ __forceinline__ void load8_as(u32 element, const void* base, u32 i, u32 n, float (&v)[8]) {
    if (element == ELEMENT_F32) load8((const float*)base, i, n, v);
    else if (element == ELEMENT_F16) load8((const f16*)base, i, n, v);
    else load8((const bf16*)base, i, n, v);
}

// Four neighbours. `wide` says that the address is a multiple of their size.
__device__ __forceinline__ void load4(const float* p, bool wide, float (&v)[4]) {
    if (wide) {
        float4 t = *(const float4*)p;
        v[0] = t.x; v[1] = t.y; v[2] = t.z; v[3] = t.w;
    } else {
        #pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = p[i];
    }
}
template <class T> __device__ __forceinline__ void load4(const T* p, bool wide, float (&v)[4]) {
    if (wide) {
        uint2 t = *(const uint2*)p;
        v[0] = to_float(T{u16(t.x)}); v[1] = to_float(T{u16(t.x >> 16)});
        v[2] = to_float(T{u16(t.y)}); v[3] = to_float(T{u16(t.y >> 16)});
    } else {
        #pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = to_float(p[i]);
    }
}
__device__ __forceinline__ void store4(float* p, bool wide, const float (&v)[4]) {
    if (wide) {
        *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
    } else {
        #pragma unroll
        for (int i = 0; i < 4; ++i) p[i] = v[i];
    }
}
template <class T> __device__ __forceinline__ void store4(T* p, bool wide, const float (&v)[4]) {
    if (wide) {
        *(uint2*)p = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
    } else {
        #pragma unroll
        for (int i = 0; i < 4; ++i) p[i] = from_float<T>(v[i]);
    }
}

__device__ __forceinline__ float warp_sum(float x) {
    #pragma unroll
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    #pragma unroll
    for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    return x;
}
__device__ __forceinline__ u64 warp_min(u64 x) {
    #pragma unroll
    for (int o = 16; o; o >>= 1) {
        u64 y = __shfl_xor_sync(~0u, x, o);
        x = y < x ? y : x;
    }
    return x;
}

// The sum over a block, in every thread. Safe to call again at once.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ __align__(16) float partial[32];
    int warps = blockDim.x >> 5;
    x = warp_sum(x);
    if (warps == 1) return x;
    __syncthreads();
    if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = x;
    __syncthreads();
    float all[8][4], sum = 0.0f;
    #pragma unroll
    for (int i = 0; i < 8; ++i) load4(partial + 4 * i, true, all[i]);
    // What no warp has written is not used.
    #pragma unroll
    for (int i = 0; i < 32; ++i) sum += i < warps ? all[i / 4][i % 4] : 0.0f;
    return sum;
}
__device__ __forceinline__ float block_max(float x) {
    __shared__ float partial[32];
    int warps = blockDim.x >> 5;
    x = warp_max(x);
    if (warps == 1) return x;
    __syncthreads();
    if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = x;
    __syncthreads();
    float max = partial[0];
    for (int i = 1; i < warps; ++i) max = fmaxf(max, partial[i]);
    return max;
}
__device__ __forceinline__ u64 block_min(u64 x) {
    __shared__ u64 partial[32];
    int warps = blockDim.x >> 5;
    x = warp_min(x);
    if (warps == 1) return x;
    __syncthreads();
    if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = x;
    __syncthreads();
    u64 min = partial[0];
    for (int i = 1; i < warps; ++i) min = partial[i] < min ? partial[i] : min;
    return min;
}

// Whether this block is the last of `blocks` to come here, in every thread: it then sees what the others
// wrote before. The counter is zero before the first and after the last.
__device__ __forceinline__ bool is_last(u32* counter, u32 blocks) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1) + 1 == blocks;
        if (last) *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu_tanh(float x) {
    // 0.5 (1 + tanh u) is the logistic function of 2u.
    float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

// Orders candidates: larger values first, then lower indices, NaN last.
__device__ __forceinline__ u64 rank_key(float value, u32 index) {
    u32 bits = __float_as_uint(value + 0.0f);
    u32 falling = bits >> 31 ? bits : ~(bits | 0x80000000u);
    u32 order = value != value ? 0xffffffffu : falling;
    return u64(order) << 32 | index;
}

// Activations in 15 bits: a value is `scale * (128 * high + low)` of two signed bytes. A row has planes of
// 16 bytes for each block of 32: high bytes of its lower half, of its upper half, low bytes of both, and
// {scale, sum, sum, 0} with the sums of the halves in units of the values.
#define Q15_BLOCK 80u
#define Q15_LARGEST 16256.0f

// What makes codes of the values of a block; too small a block has codes of zero.
__device__ __forceinline__ float q15_steps(float largest) { return largest > 1e-30f ? Q15_LARGEST / largest : 0.0f; }
__device__ __forceinline__ float q15_scale(float largest) { return largest * (1.0f / Q15_LARGEST); }

// The codes of four neighbours, the high parts and the low ones, and their sum.
struct Q15Codes {
    u32 high, low;
    int sum;
    __device__ __forceinline__ Q15Codes(const float (&x)[4], float steps) : high(0), low(0), sum(0) {
        #pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int code = __float2int_rn(x[e] * steps), upper = (code + 64) >> 7;
            sum += code;
            high |= (upper & 255) << 8 * e;
            low |= (code - upper * 128 & 255) << 8 * e;
        }
    }
};
__device__ __forceinline__ float largest_of(const float (&x)[4]) {
    return fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3])));
}

// What four values to each of eight neighbouring lanes become in 15 bits.
struct Q15 {
    u32 high, low;
    float4 x;
    __device__ __forceinline__ Q15(const float (&x)[4]) {
        const u32 first = threadIdx.x & 24, mask = 0xffu << first;
        float largest = largest_of(x);
        #pragma unroll
        for (int o = 4; o; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(mask, largest, o));
        const float steps = q15_steps(largest);
        const Q15Codes codes(x, steps);
        high = codes.high;
        low = codes.low;
        int sum = codes.sum;
        sum += __shfl_xor_sync(mask, sum, 1);
        sum += __shfl_xor_sync(mask, sum, 2);
        const int upper_sum = __shfl_sync(mask, sum, first + 4);
        const float d = q15_scale(largest);
        this->x = make_float4(d, d * float(sum), d * float(upper_sum), 0.0f);
    }
};

// Four values from `i` on to each of eight neighbouring lanes.
__device__ __forceinline__ void store_q15(u8* row, u64 blocks, u32 i, const float (&x)[4]) {
    const Q15 q(x);
    const u32 block = i / 32;
    u8* to = row + (i & 16 ? blocks * 16 : 0) + block * 16 + (i & 15);
    *(u32*)to = q.high;
    *(u32*)(to + blocks * 32) = q.low;
    if ((threadIdx.x & 7) == 0) ((float4*)(row + blocks * 64))[block] = q.x;
}

// The same of eight rows for mma_mat_vec.cu: for each block of 32 values the words of a lane together, those of
// high bytes of both halves and of low bytes, then {scale, sum, sum, 0} of each row.
#define FRAGMENT_BLOCK 640u

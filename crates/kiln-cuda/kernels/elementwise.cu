// Elementwise operations on rows.

enum Kind { ADD, MUL, SCALE, SOFTCAP, GELU_MUL, SILU_MUL };

template <Kind KIND> __device__ __forceinline__ float apply(float a, float b, float p) {
    if (KIND == ADD) return a + b;
    if (KIND == MUL) return a * b;
    if (KIND == SCALE) return a * p;
    if (KIND == SOFTCAP) return p * tanhf(a / p);
    if (KIND == GELU_MUL) return gelu_tanh(a) * b;
    return silu(a) * b;
}

// B is the type of the second operand: that of the first, or f32 for a vector.
template <Kind KIND, class T, class B> __device__ void elementwise(const ElementwiseArgs& args) {
    constexpr bool BINARY = KIND != SCALE && KIND != SOFTCAP;
    bool wide = args.wide;
    for (u64 row = blockIdx.y; row < args.rows; row += gridDim.y) {
        const T* a = (const T*)(args.a + row * args.a_stride);
        const B* b = (const B*)(args.b + row * args.b_stride);
        T* out = (T*)(args.output + row * args.output_stride);
        u32 i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
        if (i + 4 <= args.dim) {
            float x[4], y[4] = {};
            load4(a + i, wide, x);
            if (BINARY) load4(b + i, wide, y);
            #pragma unroll
            for (int e = 0; e < 4; ++e) x[e] = apply<KIND>(x[e], y[e], args.param);
            store4(out + i, wide, x);
        } else {
            for (; i < args.dim; ++i) {
                float y = BINARY ? to_float(b[i]) : 0.0f;
                out[i] = from_float<T>(apply<KIND>(to_float(a[i]), y, args.param));
            }
        }
    }
}

#define INSTANCE(NAME, KIND, A, T, B, U) \
    extern "C" __global__ void NAME##_##A##_##B(const __grid_constant__ ElementwiseArgs args) { begin(); elementwise<KIND, T, U>(args); }
#define TYPES(NAME, KIND) \
    INSTANCE(NAME, KIND, f32, float, f32, float) \
    INSTANCE(NAME, KIND, f16, f16, f16, f16) \
    INSTANCE(NAME, KIND, bf16, bf16, bf16, bf16)
#define VECTOR_TYPES(NAME, KIND) \
    INSTANCE(NAME, KIND, f16, f16, f32, float) \
    INSTANCE(NAME, KIND, bf16, bf16, f32, float)
TYPES(add, ADD)
VECTOR_TYPES(add, ADD)
TYPES(mul, MUL)
VECTOR_TYPES(mul, MUL)
TYPES(scale, SCALE)
TYPES(softcap, SOFTCAP)
TYPES(gelu_mul, GELU_MUL)
TYPES(silu_mul, SILU_MUL)

// The RMS normalisation family and layer normalisation: a block for each row.
//
// Thread t has the values 4 (t + j threads) .. + 3 for j = 0, 1, ...: the order of a sum depends on
// the length of the row alone, so that fused and separate operations give the same bits.
// CHUNKS > 0 keeps a whole, aligned row in registers; CHUNKS = 0 computes values again where they are
// needed. STAGED: a block takes every n-th of many rows, and copies the next ones to shared memory while it works
// on one; a thread reads what it has copied itself.

// Inputs of a row.
enum Input { FIRST, OTHER, RESIDUAL };

enum Kind { RMS_NORM, RMS_NORM_MUL, RMS_NORM_TRIPLE, POST_ATTN, POST_FF, MOE_POST_FF, ADD_RMS_NORM, LAYER_NORM };

// A row. WHOLE: it has no part of four values, and all addresses are multiples of their size; without
// that the code is twice as long, and reading cold code takes longer than the work.
template <class T, bool WHOLE, bool STAGED> struct Row {
    const NormArgs& args;
    u64 row;
    // The inputs, one after the other.
    const T* staged;

    template <class V> static __device__ __forceinline__ void read(const V* p, u32 n, float (&v)[4]) {
        if (WHOLE) load4(p, true, v);
        else for (u32 e = 0; e < 4; ++e) v[e] = e < n ? to_float(p[e]) : 0.0f;
    }
    static __device__ __forceinline__ const T* address(const NormArgs& args, Input input, u64 row) {
        if (input == FIRST) return (const T*)(args.input + row * args.input_stride);
        if (input == OTHER) return (const T*)(args.other + row * args.other_stride);
        return (const T*)(args.residual_in + row * args.residual_in_stride);
    }
    __device__ __forceinline__ void load(Input input, u32 i, u32 n, float (&v)[4]) const {
        read((STAGED ? staged + input * args.dim : address(args, input, row)) + i, n, v);
    }
    __device__ __forceinline__ void load_expert(u32 expert, u32 i, u32 n, float (&v)[4]) const {
        read((const T*)(args.input + expert * args.expert_stride + row * args.input_stride) + i, n, v);
    }
    __device__ __forceinline__ void store(u64 base, u64 stride, u32 i, u32 n, const float (&v)[4]) const {
        T* p = (T*)(base + row * stride) + i;
        if (WHOLE) store4(p, true, v);
        else for (u32 e = 0; e < n; ++e) p[e] = from_float<T>(v[e]);
    }
    // A weight vector of the type of the rows or f32; ones where there is none.
    __device__ __forceinline__ void vector(u64 base, u32 bit, u32 i, u32 n, float (&v)[4]) const {
        if (!base) v[0] = v[1] = v[2] = v[3] = 1.0f;
        else if (args.single >> bit & 1) read((const float*)base + i, n, v);
        else read((const T*)base + i, n, v);
    }
};

// The values whose statistic is taken: the input, a sum, or the first stage of two.
template <Kind KIND, class T, bool WHOLE, bool STAGED>
__device__ __forceinline__ void first_values(const Row<T, WHOLE, STAGED>& row, u32 i, u32 n, float (&v)[4]) {
    const NormArgs& a = row.args;
    if (KIND == MOE_POST_FF) {
        v[0] = v[1] = v[2] = v[3] = 0.0f;
        const float* route = (const float*)(a.route + row.row * a.route_stride);
        for (u32 k = 0; k < a.top_k; ++k) {
            float x[4];
            row.load_expert(k, i, n, x);
            #pragma unroll
            for (int e = 0; e < 4; ++e) v[e] = fmaf(route[k], x[e], v[e]);
        }
    } else {
        row.load(FIRST, i, n, v);
    }
    if (KIND == ADD_RMS_NORM) {
        float b[4];
        row.load(OTHER, i, n, b);
        #pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = to_float(from_float<T>(v[e] + b[e]));
    }
}

template <Kind KIND> constexpr bool TWO_STAGES = KIND == POST_ATTN || KIND == POST_FF || KIND == MOE_POST_FF;

// A sum over the block. Staged rows have 16 warps; the order is that of `block_sum`.
template <bool STAGED> __device__ __forceinline__ float row_sum(float x) {
    if (!STAGED) return block_sum(x);
    __shared__ __align__(16) float partial[16];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    #pragma unroll
    for (int i = 0; i < 16; i += 4) {
        float four[4];
        load4(partial + i, true, four);
        for (int e = 0; e < 4; ++e) sum += four[e];
    }
    return sum;
}

template <int CHUNKS> constexpr int KEPT = CHUNKS ? CHUNKS : 1;

// Weights in registers: the first output's, and where a block has many rows those that all rows need too.
template <Kind KIND, int CHUNKS, bool STAGED> struct Vectors {
    float a[KEPT<CHUNKS>][4], first[KEPT<CHUNKS>][4], bias[KEPT<CHUNKS>][4];

    template <class T> __device__ __forceinline__ void load(const Row<T, (CHUNKS > 0), STAGED>& row) {
        if (CHUNKS == 0) return;
        #pragma unroll
        for (int j = 0; j < KEPT<CHUNKS>; ++j) {
            const u32 i = (threadIdx.x + j * blockDim.x) * 4;
            if (i >= row.args.dim) continue;
            row.vector(row.args.weight_a, 1, i, 4, a[j]);
            if (STAGED && TWO_STAGES<KIND>) row.vector(row.args.weight_first, 0, i, 4, first[j]);
            if (STAGED && KIND == LAYER_NORM && row.args.weight_b) row.vector(row.args.weight_b, 2, i, 4, bias[j]);
        }
    }
};

// `other + first * r * weight`, unrounded: the values of the second statistic.
template <class T, bool WHOLE, bool STAGED>
__device__ __forceinline__ void second_values(const Row<T, WHOLE, STAGED>& row, u32 i, u32 n, float r, const float (&kept)[4], float (&v)[4]) {
    float other[4], w[4];
    row.load(OTHER, i, n, other);
    if (STAGED) for (int e = 0; e < 4; ++e) w[e] = kept[e];
    else row.vector(row.args.weight_first, 0, i, n, w);
    #pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = other[e] + v[e] * r * w[e];
}

// Those of staged rows.
template <Kind KIND> constexpr int INPUTS = KIND == POST_FF ? 3 : KIND == RMS_NORM_MUL ? 2 : 1;

template <Kind KIND, class T, int CHUNKS, bool STAGED>
__device__ __forceinline__ void norm(const Row<T, (CHUNKS > 0), STAGED>& row, const Vectors<KIND, CHUNKS, STAGED>& vectors) {
    const NormArgs& args = row.args;
    const u32 dim = args.dim, step = blockDim.x * 4, start = threadIdx.x * 4;
    float kept[KEPT<CHUNKS>][4];

    // Calls f(i, n, v) for each chunk of this thread, v the values of the first stage.
    #define FOR_CHUNKS(...) \
        if (CHUNKS) { \
            _Pragma("unroll") \
            for (int j = 0; j < KEPT<CHUNKS>; ++j) { \
                u32 i = start + j * step; \
                if (i < dim) { u32 n = min(dim - i, 4u); float (&v)[4] = kept[j]; __VA_ARGS__ } \
            } \
        } else { \
            constexpr int j = 0; \
            for (u32 i = start; i < dim; i += step) { u32 n = min(dim - i, 4u); float v[4]; __VA_ARGS__ } \
        }

    float sum = 0.0f, mean = 0.0f;
    FOR_CHUNKS({
        first_values<KIND>(row, i, n, v);
        for (u32 e = 0; e < 4; ++e) sum += e < n ? (KIND == LAYER_NORM ? v[e] : v[e] * v[e]) : 0.0f;
    })
    sum = row_sum<STAGED>(sum);
    if (KIND == LAYER_NORM) {
        mean = sum / float(dim);
        sum = 0.0f;
        FOR_CHUNKS({
            if (!CHUNKS) first_values<KIND>(row, i, n, v);
            for (u32 e = 0; e < 4; ++e) { float d = v[e] - mean; sum += e < n ? d * d : 0.0f; }
        })
        sum = row_sum<STAGED>(sum);
    }
    float r = 1.0f / sqrtf(sum / float(dim) + args.eps);
    const float first = r;

    if (TWO_STAGES<KIND>) {
        sum = 0.0f;
        FOR_CHUNKS({
            if (!CHUNKS) first_values<KIND>(row, i, n, v);
            second_values(row, i, n, first, vectors.first[j], v);
            for (u32 e = 0; e < 4; ++e) sum += e < n ? v[e] * v[e] : 0.0f;
        })
        sum = row_sum<STAGED>(sum);
        r = 1.0f / sqrtf(sum / float(dim) + args.eps);
    }

    FOR_CHUNKS({
        if (!CHUNKS) {
            first_values<KIND>(row, i, n, v);
            if (TWO_STAGES<KIND>) second_values(row, i, n, first, vectors.first[j], v);
        }
        float w[4];
        float y[4];
        if (CHUNKS) {
            for (int e = 0; e < 4; ++e) w[e] = vectors.a[j][e];
        } else {
            row.vector(args.weight_a, 1, i, n, w);
        }
        if (KIND == LAYER_NORM) {
            float bias[4] = {};
            if (STAGED) { if (args.weight_b) for (int e = 0; e < 4; ++e) bias[e] = vectors.bias[j][e]; }
            else if (args.weight_b) row.vector(args.weight_b, 2, i, n, bias);
            for (int e = 0; e < 4; ++e) y[e] = (v[e] - mean) * r * w[e] + bias[e];
        } else {
            for (int e = 0; e < 4; ++e) y[e] = v[e] * r * w[e];
        }
        if (KIND == RMS_NORM_MUL) {
            float s[4];
            row.load(OTHER, i, n, s);
            for (int e = 0; e < 4; ++e) y[e] = y[e] * s[e];
        }
        if (KIND == POST_FF || KIND == MOE_POST_FF) {
            float x[4];
            float s[4];
            row.load(RESIDUAL, i, n, x);
            if (args.scalar_single) {
                float single = args.single >> 4 & 1 ? *(const float*)args.scalar : to_float(*(const T*)args.scalar);
                s[0] = s[1] = s[2] = s[3] = single;
            } else {
                row.vector(args.scalar, 4, i, n, s);
            }
            for (int e = 0; e < 4; ++e) y[e] = (x[e] + y[e]) * s[e];
        }
        if (KIND == ADD_RMS_NORM || TWO_STAGES<KIND>) row.store(args.residual, args.residual_stride, i, n, v);
        row.store(args.output_a, args.output_a_stride, i, n, y);
        if ((KIND == RMS_NORM || KIND == ADD_RMS_NORM) && sizeof(T) == 4) {
            if (args.bf16) store4((bf16*)args.bf16 + row.row * dim + i, true, y);
            if (args.q15) store_q15((u8*)args.q15 + row.row * (dim / 32) * Q15_BLOCK, dim / 32, i, y);
        }
        if (KIND == RMS_NORM_TRIPLE || KIND == POST_ATTN) {
            row.vector(args.weight_b, 2, i, n, w);
            for (int e = 0; e < 4; ++e) y[e] = v[e] * r * w[e];
            row.store(args.output_b, args.output_b_stride, i, n, y);
            row.vector(args.weight_c, 3, i, n, w);
            for (int e = 0; e < 4; ++e) y[e] = v[e] * r * w[e];
            row.store(args.output_c, args.output_c_stride, i, n, y);
        }
    })
}

// Asks for the inputs of a row.
template <Kind KIND, class T> __device__ __forceinline__ void stage(const NormArgs& args, u64 row, T* to) {
    for (u32 i = threadIdx.x * 4; i < args.dim; i += blockDim.x * 4) {
        #pragma unroll
        for (int input = 0; input < INPUTS<KIND>; ++input)
            copy_async<4 * sizeof(T)>(to + input * args.dim + i, Row<T, true, true>::address(args, Input(input), row) + i);
    }
}

template <Kind KIND, class T, int CHUNKS> __device__ __forceinline__ void one_row(const NormArgs& args) {
    const Row<T, (CHUNKS > 0), false> row = {args, blockIdx.x, nullptr};
    Vectors<KIND, CHUNKS, false> vectors;
    // Asked for before the sums are known.
    vectors.load(row);
    norm<KIND, T, CHUNKS, false>(row, vectors);
}

// Every n-th row; there is shared memory for STAGES of them.
template <Kind KIND, class T, int CHUNKS, int STAGES> __device__ __forceinline__ void staged_rows(const NormArgs& args) {
    extern __shared__ __align__(16) u8 memory[];
    auto staged = [&](u32 index) { return (T*)memory + index % STAGES * (INPUTS<KIND> * args.dim); };
    auto ask = [&](u32 index) {
        const u64 row = blockIdx.x + u64(index) * gridDim.x;
        if (row < args.rows) stage<KIND>(args, row, staged(index));
        copy_async_commit();
    };
    Vectors<KIND, CHUNKS, true> vectors;
    vectors.load(Row<T, true, true>{args, 0, nullptr});
    for (u32 index = 0; index < STAGES - 1; ++index) ask(index);
    u32 index = 0;
    for (u64 row = blockIdx.x; row < args.rows; row += gridDim.x) {
        ask(index + STAGES - 1);
        copy_async_wait<STAGES - 1>();
        norm<KIND, T, CHUNKS, true>({args, row, staged(index)}, vectors);
        ++index;
    }
}

// The first weight, which nothing in a plan computes as a rule, on its way to the cache.
template <class T> __device__ __forceinline__ void ask_for_weight(const NormArgs& args) {
    const u32 bytes = args.dim * (args.single >> 1 & 1 ? 4 : sizeof(T));
    if (!args.weight_a || blockIdx.x >= 8) return;
    for (u32 at = threadIdx.x * 128; at < bytes; at += blockDim.x * 128) prefetch((const u8*)args.weight_a + at);
}

#define INSTANCE(NAME, A, T, CHUNKS, SUFFIX, ...) \
    extern "C" __global__ void __launch_bounds__(CHUNKS ? 512 : 1024) NAME##_##A##_##CHUNKS##SUFFIX(const __grid_constant__ NormArgs args) { \
        release(); \
        ask_for_weight<T>(args); \
        wait(); \
        __VA_ARGS__; \
    }
#define ONE(NAME, KIND, A, T, CHUNKS) INSTANCE(NAME, A, T, CHUNKS, , one_row<KIND, T, CHUNKS>(args))
#define SIZES(NAME, KIND, A, T) ONE(NAME, KIND, A, T, 0) ONE(NAME, KIND, A, T, 1) ONE(NAME, KIND, A, T, 2) ONE(NAME, KIND, A, T, 4)
#define TYPES(NAME, KIND) \
    SIZES(NAME, KIND, f32, float) SIZES(NAME, KIND, f16, f16) SIZES(NAME, KIND, bf16, bf16)
TYPES(rms_norm, RMS_NORM)
TYPES(rms_norm_mul, RMS_NORM_MUL)
TYPES(rms_norm_triple, RMS_NORM_TRIPLE)
TYPES(post_attn_triple_norm, POST_ATTN)
TYPES(post_ff_norm_end_layer, POST_FF)
TYPES(moe_post_ff_norm_end_layer, MOE_POST_FF)
TYPES(add_rms_norm, ADD_RMS_NORM)
TYPES(layer_norm, LAYER_NORM)

#define STAGED(NAME, KIND, CHUNKS) \
    INSTANCE(NAME, f32, float, CHUNKS, _staged, staged_rows<KIND, float, CHUNKS, 2>(args)) \
    INSTANCE(NAME, f16, f16, CHUNKS, _staged, staged_rows<KIND, f16, CHUNKS, 2>(args)) \
    INSTANCE(NAME, bf16, bf16, CHUNKS, _staged, staged_rows<KIND, bf16, CHUNKS, 2>(args))
STAGED(rms_norm, RMS_NORM, 4)
STAGED(rms_norm_mul, RMS_NORM_MUL, 2)
STAGED(rms_norm_mul, RMS_NORM_MUL, 4)
STAGED(post_ff_norm_end_layer, POST_FF, 2)
STAGED(post_ff_norm_end_layer, POST_FF, 4)
STAGED(layer_norm, LAYER_NORM, 2)
STAGED(layer_norm, LAYER_NORM, 4)

// The RMS normalisation family and layer normalisation: a block for each row.
//
// Thread t has the values 4 (t + j threads) .. + 3 for j = 0, 1, ...: the order of a sum depends on
// the length of the row alone, so that fused and separate operations give the same bits.
// CHUNKS > 0 keeps a whole, aligned row in registers; CHUNKS = 0 computes values again where they are
// needed.

enum Kind { RMS_NORM, RMS_NORM_MUL, RMS_NORM_TRIPLE, POST_ATTN, POST_FF, MOE_POST_FF, ADD_RMS_NORM, LAYER_NORM };

// A row. WHOLE: it has no part of four values, and all addresses are multiples of their size; without
// that the code is twice as long, and reading cold code takes longer than the work.
template <class T, bool WHOLE> struct Row {
    const NormArgs& args;
    u64 row;

    template <class V> static __device__ __forceinline__ void read(const V* p, u32 n, float (&v)[4]) {
        if (WHOLE) load4(p, true, v);
        else for (u32 e = 0; e < 4; ++e) v[e] = e < n ? to_float(p[e]) : 0.0f;
    }
    __device__ __forceinline__ void load(u64 base, u64 stride, u32 i, u32 n, float (&v)[4]) const {
        read((const T*)(base + row * stride) + i, n, v);
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
template <Kind KIND, class T, bool WHOLE>
__device__ __forceinline__ void first_values(const Row<T, WHOLE>& row, u32 i, u32 n, float (&v)[4]) {
    const NormArgs& a = row.args;
    if (KIND == MOE_POST_FF) {
        v[0] = v[1] = v[2] = v[3] = 0.0f;
        const float* route = (const float*)(a.route + row.row * a.route_stride);
        for (u32 k = 0; k < a.top_k; ++k) {
            float x[4];
            row.load(a.input + k * a.expert_stride, a.input_stride, i, n, x);
            #pragma unroll
            for (int e = 0; e < 4; ++e) v[e] = fmaf(route[k], x[e], v[e]);
        }
    } else {
        row.load(a.input, a.input_stride, i, n, v);
    }
    if (KIND == ADD_RMS_NORM) {
        float b[4];
        row.load(a.other, a.other_stride, i, n, b);
        #pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = to_float(from_float<T>(v[e] + b[e]));
    }
}

template <Kind KIND> constexpr bool TWO_STAGES = KIND == POST_ATTN || KIND == POST_FF || KIND == MOE_POST_FF;

// `other + first * r * weight`, unrounded: the values of the second statistic.
template <class T, bool WHOLE>
__device__ __forceinline__ void second_values(const Row<T, WHOLE>& row, u32 i, u32 n, float r, float (&v)[4]) {
    const NormArgs& a = row.args;
    float other[4], w[4];
    row.load(a.other, a.other_stride, i, n, other);
    row.vector(a.weight_first, 0, i, n, w);
    #pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = other[e] + v[e] * r * w[e];
}

template <Kind KIND, class T, int CHUNKS> __device__ void norm(const NormArgs& args) {
    Row<T, (CHUNKS > 0)> row = {args, blockIdx.x};
    const u32 dim = args.dim, step = blockDim.x * 4, start = threadIdx.x * 4;
    constexpr int KEPT = CHUNKS ? CHUNKS : 1;
    float kept[KEPT][4];

    // Calls f(i, n, v) for each chunk of this thread, v the values of the first stage.
    #define FOR_CHUNKS(...) \
        if (CHUNKS) { \
            _Pragma("unroll") \
            for (int j = 0; j < KEPT; ++j) { \
                u32 i = start + j * step; \
                if (i < dim) { u32 n = min(dim - i, 4u); float (&v)[4] = kept[j]; __VA_ARGS__ } \
            } \
        } else { \
            constexpr int j = 0; \
            for (u32 i = start; i < dim; i += step) { u32 n = min(dim - i, 4u); float v[4]; __VA_ARGS__ } \
        }

    // Weights are asked for before the sums are known.
    float weights[KEPT][4];
    if (CHUNKS) {
        #pragma unroll
        for (int j = 0; j < KEPT; ++j) {
            const u32 i = start + j * step;
            if (i < dim) row.vector(args.weight_a, 1, i, min(dim - i, 4u), weights[j]);
        }
    }
    float sum = 0.0f, mean = 0.0f;
    FOR_CHUNKS({
        first_values<KIND>(row, i, n, v);
        for (u32 e = 0; e < 4; ++e) sum += e < n ? (KIND == LAYER_NORM ? v[e] : v[e] * v[e]) : 0.0f;
    })
    sum = block_sum(sum);
    if (KIND == LAYER_NORM) {
        mean = sum / float(dim);
        sum = 0.0f;
        FOR_CHUNKS({
            if (!CHUNKS) first_values<KIND>(row, i, n, v);
            for (u32 e = 0; e < 4; ++e) { float d = v[e] - mean; sum += e < n ? d * d : 0.0f; }
        })
        sum = block_sum(sum);
    }
    float r = 1.0f / sqrtf(sum / float(dim) + args.eps);
    const float first = r;

    if (TWO_STAGES<KIND>) {
        sum = 0.0f;
        FOR_CHUNKS({
            if (!CHUNKS) first_values<KIND>(row, i, n, v);
            second_values(row, i, n, first, v);
            for (u32 e = 0; e < 4; ++e) sum += e < n ? v[e] * v[e] : 0.0f;
        })
        sum = block_sum(sum);
        r = 1.0f / sqrtf(sum / float(dim) + args.eps);
    }

    FOR_CHUNKS({
        if (!CHUNKS) {
            first_values<KIND>(row, i, n, v);
            if (TWO_STAGES<KIND>) second_values(row, i, n, first, v);
        }
        float w[4];
        float y[4];
        if (CHUNKS) {
            for (int e = 0; e < 4; ++e) w[e] = weights[j][e];
        } else {
            row.vector(args.weight_a, 1, i, n, w);
        }
        if (KIND == LAYER_NORM) {
            float bias[4] = {};
            if (args.weight_b) row.vector(args.weight_b, 2, i, n, bias);
            for (int e = 0; e < 4; ++e) y[e] = (v[e] - mean) * r * w[e] + bias[e];
        } else {
            for (int e = 0; e < 4; ++e) y[e] = v[e] * r * w[e];
        }
        if (KIND == RMS_NORM_MUL) {
            float s[4];
            row.load(args.other, args.other_stride, i, n, s);
            for (int e = 0; e < 4; ++e) y[e] = y[e] * s[e];
        }
        if (KIND == POST_FF || KIND == MOE_POST_FF) {
            float x[4];
            float s[4];
            row.load(args.residual_in, args.residual_in_stride, i, n, x);
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
            if (args.q8) store_q8((u8*)args.q8 + row.row * (dim / 32) * 48, dim / 32, i, y);
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

// The first weight, which nothing in a plan computes as a rule, on its way to the cache.
template <class T> __device__ __forceinline__ void ask_for_weight(const NormArgs& args) {
    const u32 bytes = args.dim * (args.single >> 1 & 1 ? 4 : sizeof(T));
    if (!args.weight_a || blockIdx.x >= 8) return;
    for (u32 at = threadIdx.x * 128; at < bytes; at += blockDim.x * 128) prefetch((const u8*)args.weight_a + at);
}

#define INSTANCE(NAME, KIND, A, T, CHUNKS) \
    extern "C" __global__ void __launch_bounds__(CHUNKS ? 512 : 1024) NAME##_##A##_##CHUNKS(const __grid_constant__ NormArgs args) { \
        release(); \
        ask_for_weight<T>(args); \
        wait(); \
        norm<KIND, T, CHUNKS>(args); \
    }
#define SIZES(NAME, KIND, A, T) \
    INSTANCE(NAME, KIND, A, T, 0) INSTANCE(NAME, KIND, A, T, 1) \
    INSTANCE(NAME, KIND, A, T, 2) INSTANCE(NAME, KIND, A, T, 4)
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

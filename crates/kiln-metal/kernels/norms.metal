// The RMS normalisation family and layer normalisation: one threadgroup per row. A thread has the
// groups thread, thread + threads, and so on in every pass, so that outputs may be inputs; the first
// KEPT_GROUPS of them stay in registers, the others are computed again.

template <typename T, uint INDEX>
inline float4 weight4(device const char* weight, uint i, uint dim) {
    if ((WEIGHTS_F32 >> INDEX & 1) != 0) {
        return load4((device const float*)weight, i, dim, ALIGNED);
    }
    return load4((device const T*)weight, i, dim, ALIGNED);
}

inline float inverse_rms(float squares, uint dim, float eps) {
    return precise::rsqrt(squares / float(dim) + eps);
}

/// One statistic of `row.load(i)`, then `row.store(i, x, factor)`.
template <typename Row>
inline void normalise(thread Row& row, uint dim, float eps, threadgroup float* partials, Team team) {
    const uint groups = (dim + 3) / 4;
    float4 kept[KEPT_GROUPS];
    float squares = 0.0f;
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        kept[k] = i < groups ? row.load(i) : float4(0.0f);
        squares += dot(kept[k], kept[k]);
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        const float4 x = row.load(i);
        squares += dot(x, x);
    }
    const float factor = inverse_rms(team_sum(squares, partials, team), dim, eps);
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        if (i < groups) {
            row.store(i, kept[k], factor);
        }
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        row.store(i, row.load(i), factor);
    }
}

/// A statistic of `row.load(i)`, a second of `row.combine(i, x, factor)`, then
/// `row.store(i, y, factor)`.
template <typename Row>
inline void normalise_twice(
    thread Row& row, uint dim, float eps, threadgroup float* partials, Team team)
{
    const uint groups = (dim + 3) / 4;
    float4 kept[KEPT_GROUPS];
    float squares = 0.0f;
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        kept[k] = i < groups ? row.load(i) : float4(0.0f);
        squares += dot(kept[k], kept[k]);
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        const float4 x = row.load(i);
        squares += dot(x, x);
    }
    const float first = inverse_rms(team_sum(squares, partials, team), dim, eps);
    squares = 0.0f;
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        if (i < groups) {
            kept[k] = row.combine(i, kept[k], first);
            squares += dot(kept[k], kept[k]);
        }
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        const float4 y = row.combine(i, row.load(i), first);
        squares += dot(y, y);
    }
    // The other half of the partials: some threads may still read the first.
    const float sum = team_sum(squares, partials + MAX_SIMDGROUPS, team);
    const float second = inverse_rms(sum, dim, eps);
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        if (i < groups) {
            row.store(i, kept[k], second);
        }
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        row.store(i, row.combine(i, row.load(i), first), second);
    }
}

template <typename T>
struct RmsNormRow {
    device const T* input;
    device const char* weight;
    device T* output;
    uint dim;

    float4 load(uint i) { return load4(input, i, dim, ALIGNED); }

    void store(uint i, float4 x, float factor) {
        x *= factor;
        if (HAS_WEIGHT) {
            x *= weight4<T, 0>(weight, i, dim);
        }
        store4(output, i, dim, x, ALIGNED);
    }
};

template <typename T>
[[kernel]] void rms_norm(
    constant RmsNormArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const char* weight [[buffer(2)]],
    device T* output [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const ulong at = group;
    RmsNormRow<T> row = {
        input + at * args.input_stride, weight, output + at * args.output_stride, args.dim};
    normalise(row, args.dim, args.eps, partials, team);
}

template <typename T>
struct RmsNormMulRow {
    device const T* input;
    device const char* weight;
    device const T* scale;
    device T* output;
    uint dim;

    float4 load(uint i) { return load4(input, i, dim, ALIGNED); }

    void store(uint i, float4 x, float factor) {
        x *= factor;
        if (HAS_WEIGHT) {
            x *= weight4<T, 0>(weight, i, dim);
        }
        store4(output, i, dim, x * load4(scale, i, dim, ALIGNED), ALIGNED);
    }
};

template <typename T>
[[kernel]] void rms_norm_mul(
    constant RmsNormMulArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const char* weight [[buffer(2)]],
    device const T* scale [[buffer(3)]],
    device T* output [[buffer(4)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const ulong at = group;
    RmsNormMulRow<T> row = {input + at * args.input_stride, weight, scale + at * args.scale_stride,
                            output + at * args.output_stride, args.dim};
    normalise(row, args.dim, args.eps, partials, team);
}

template <typename T>
struct RmsNormTripleRow {
    device const T* input;
    device const char* weight_a;
    device const char* weight_b;
    device const char* weight_c;
    device T* output_a;
    device T* output_b;
    device T* output_c;
    uint dim;

    float4 load(uint i) { return load4(input, i, dim, ALIGNED); }

    void store(uint i, float4 x, float factor) {
        x *= factor;
        store4(output_a, i, dim, x * weight4<T, 0>(weight_a, i, dim), ALIGNED);
        store4(output_b, i, dim, x * weight4<T, 1>(weight_b, i, dim), ALIGNED);
        store4(output_c, i, dim, x * weight4<T, 2>(weight_c, i, dim), ALIGNED);
    }
};

template <typename T>
[[kernel]] void rms_norm_triple(
    constant RmsNormTripleArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const char* weight_a [[buffer(2)]],
    device const char* weight_b [[buffer(3)]],
    device const char* weight_c [[buffer(4)]],
    device T* output_a [[buffer(5)]],
    device T* output_b [[buffer(6)]],
    device T* output_c [[buffer(7)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const ulong at = group;
    RmsNormTripleRow<T> row = {input + at * args.input_stride,
                               weight_a,
                               weight_b,
                               weight_c,
                               output_a + at * args.output_a_stride,
                               output_b + at * args.output_b_stride,
                               output_c + at * args.output_c_stride,
                               args.dim};
    normalise(row, args.dim, args.eps, partials, team);
}

template <typename T>
struct PostAttnTripleNormRow {
    device const T* hidden;
    device const T* attn;
    device const char* weight_post;
    device const char* weight_a;
    device const char* weight_b;
    device const char* weight_c;
    device T* residual;
    device T* output_a;
    device T* output_b;
    device T* output_c;
    uint dim;

    float4 load(uint i) { return load4(attn, i, dim, ALIGNED); }

    float4 combine(uint i, float4 x, float factor) {
        return load4(hidden, i, dim, ALIGNED) + x * factor * weight4<T, 0>(weight_post, i, dim);
    }

    void store(uint i, float4 sum, float factor) {
        store4(residual, i, dim, sum, ALIGNED);
        sum *= factor;
        store4(output_a, i, dim, sum * weight4<T, 1>(weight_a, i, dim), ALIGNED);
        store4(output_b, i, dim, sum * weight4<T, 2>(weight_b, i, dim), ALIGNED);
        store4(output_c, i, dim, sum * weight4<T, 3>(weight_c, i, dim), ALIGNED);
    }
};

template <typename T>
[[kernel]] void post_attn_triple_norm(
    constant PostAttnTripleNormArgs& args [[buffer(0)]],
    device const T* hidden [[buffer(1)]],
    device const T* attn [[buffer(2)]],
    device const char* weight_post [[buffer(3)]],
    device const char* weight_a [[buffer(4)]],
    device const char* weight_b [[buffer(5)]],
    device const char* weight_c [[buffer(6)]],
    device T* residual [[buffer(7)]],
    device T* output_a [[buffer(8)]],
    device T* output_b [[buffer(9)]],
    device T* output_c [[buffer(10)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[2 * MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const ulong at = group;
    PostAttnTripleNormRow<T> row = {hidden + at * args.hidden_stride,
                                    attn + at * args.attn_stride,
                                    weight_post,
                                    weight_a,
                                    weight_b,
                                    weight_c,
                                    residual + at * args.residual_stride,
                                    output_a + at * args.output_a_stride,
                                    output_b + at * args.output_b_stride,
                                    output_c + at * args.output_c_stride,
                                    args.dim};
    normalise_twice(row, args.dim, args.eps, partials, team);
}

/// The end of a layer, whatever its expert branch is.
template <typename T, typename Experts>
struct EndLayerRow {
    Experts experts;
    device const T* attn;
    device const char* weight_moe;
    device const T* residual;
    device const char* weight_mlp;
    device const char* layer_scalar;
    device T* mlp;
    device T* output;
    uint dim;

    float4 load(uint i) { return experts.load(i, dim); }

    float4 combine(uint i, float4 x, float factor) {
        return load4(attn, i, dim, ALIGNED) + x * factor * weight4<T, 0>(weight_moe, i, dim);
    }

    float4 scalars(uint i) {
        if (!SCALAR_BROADCAST) {
            return weight4<T, 2>(layer_scalar, i, dim);
        }
        if ((WEIGHTS_F32 >> 2 & 1) != 0) {
            return float4(*(device const float*)layer_scalar);
        }
        return float4(float(*(device const T*)layer_scalar));
    }

    void store(uint i, float4 sum, float factor) {
        const float4 normed = sum * factor * weight4<T, 1>(weight_mlp, i, dim);
        const float4 y = (load4(residual, i, dim, ALIGNED) + normed) * scalars(i);
        store4(mlp, i, dim, sum, ALIGNED);
        store4(output, i, dim, y, ALIGNED);
    }
};

/// An expert branch that has been summed.
template <typename T>
struct SummedExperts {
    device const T* moe;

    float4 load(uint i, uint dim) { return load4(moe, i, dim, ALIGNED); }
};

/// The weighted sum of the rows of a token's experts.
template <typename T>
struct RoutedExperts {
    device const T* experts;
    device const float* route;
    ulong stride;
    uint top_k;

    float4 load(uint i, uint dim) {
        float4 sum = float4(0.0f);
        for (uint k = 0; k < top_k; k++) {
            sum += route[k] * load4(experts + k * stride, i, dim, ALIGNED);
        }
        return sum;
    }
};

template <typename T>
[[kernel]] void post_ff_norm_end_layer(
    constant PostFfNormEndLayerArgs& args [[buffer(0)]],
    device const T* attn [[buffer(1)]],
    device const T* moe [[buffer(2)]],
    device const char* weight_moe [[buffer(3)]],
    device const T* residual [[buffer(4)]],
    device const char* weight_mlp [[buffer(5)]],
    device const char* layer_scalar [[buffer(6)]],
    device T* mlp [[buffer(7)]],
    device T* output [[buffer(8)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[2 * MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const ulong at = group;
    EndLayerRow<T, SummedExperts<T>> row = {{moe + at * args.moe_stride},
                                            attn + at * args.attn_stride,
                                            weight_moe,
                                            residual + at * args.residual_stride,
                                            weight_mlp,
                                            layer_scalar,
                                            mlp + at * args.mlp_stride,
                                            output + at * args.output_stride,
                                            args.dim};
    normalise_twice(row, args.dim, args.eps, partials, team);
}

template <typename T>
[[kernel]] void moe_post_ff_norm_end_layer(
    constant MoePostFfNormEndLayerArgs& args [[buffer(0)]],
    device const T* attn [[buffer(1)]],
    device const T* experts [[buffer(2)]],
    device const float* route [[buffer(3)]],
    device const char* weight_moe [[buffer(4)]],
    device const T* residual [[buffer(5)]],
    device const char* weight_mlp [[buffer(6)]],
    device const char* layer_scalar [[buffer(7)]],
    device T* mlp [[buffer(8)]],
    device T* output [[buffer(9)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[2 * MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const ulong at = group;
    EndLayerRow<T, RoutedExperts<T>> row = {
        {experts + at * args.experts_stride, route + at * args.route_stride, args.expert_stride,
         args.top_k},
        attn + at * args.attn_stride,
        weight_moe,
        residual + at * args.residual_stride,
        weight_mlp,
        layer_scalar,
        mlp + at * args.mlp_stride,
        output + at * args.output_stride,
        args.dim};
    normalise_twice(row, args.dim, args.eps, partials, team);
}

template <typename T>
struct AddRmsNormRow {
    device const T* a;
    device const T* b;
    device const char* weight;
    device T* residual;
    device T* output;
    uint dim;

    /// The sum as it is stored.
    float4 load(uint i) {
        return rounded4<T>(load4(a, i, dim, ALIGNED) + load4(b, i, dim, ALIGNED));
    }

    void store(uint i, float4 sum, float factor) {
        store4(residual, i, dim, sum, ALIGNED);
        sum *= factor;
        if (HAS_WEIGHT) {
            sum *= weight4<T, 0>(weight, i, dim);
        }
        store4(output, i, dim, sum, ALIGNED);
    }
};

template <typename T>
[[kernel]] void add_rms_norm(
    constant AddRmsNormArgs& args [[buffer(0)]],
    device const T* a [[buffer(1)]],
    device const T* b [[buffer(2)]],
    device const char* weight [[buffer(3)]],
    device T* residual [[buffer(4)]],
    device T* output [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const ulong at = group;
    AddRmsNormRow<T> row = {a + at * args.a_stride,
                            b + at * args.b_stride,
                            weight,
                            residual + at * args.residual_stride,
                            output + at * args.output_stride,
                            args.dim};
    normalise(row, args.dim, args.eps, partials, team);
}

template <typename T>
struct LayerNormRow {
    device const char* weight;
    device const char* bias;
    device T* output;
    uint dim;

    void store(uint i, float4 x) {
        x *= weight4<T, 0>(weight, i, dim);
        if (HAS_BIAS) {
            x += weight4<T, 1>(bias, i, dim);
        }
        store4(output, i, dim, x, ALIGNED);
    }
};

/// The variance is that of differences to a rounded mean, less the square of what the rounding left.
template <typename T>
[[kernel]] void layer_norm(
    constant LayerNormArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const char* weight [[buffer(2)]],
    device const char* bias [[buffer(3)]],
    device T* output [[buffer(4)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[3 * MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const uint dim = args.dim;
    const uint groups = (dim + 3) / 4;
    device const T* x = input + ulong(group) * args.input_stride;
    device T* y = output + ulong(group) * args.output_stride;

    float4 kept[KEPT_GROUPS];
    float sum = 0.0f;
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        kept[k] = i < groups ? load4(x, i, dim, ALIGNED) : float4(0.0f);
        sum += dot(kept[k], float4(1.0f));
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        sum += dot(load4(x, i, dim, ALIGNED), float4(1.0f));
    }
    const float mean = team_sum(sum, partials, team) / float(dim);

    float rest = 0.0f;
    float squares = 0.0f;
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        if (i < groups) {
            kept[k] = (kept[k] - mean) * inside4(i, dim);
            rest += dot(kept[k], float4(1.0f));
            squares += dot(kept[k], kept[k]);
        }
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        const float4 centred = (load4(x, i, dim, ALIGNED) - mean) * inside4(i, dim);
        rest += dot(centred, float4(1.0f));
        squares += dot(centred, centred);
    }
    rest = team_sum(rest, partials + MAX_SIMDGROUPS, team) / float(dim);
    squares = team_sum(squares, partials + 2 * MAX_SIMDGROUPS, team) / float(dim);
    const float factor = precise::rsqrt(max(squares - rest * rest, 0.0f) + args.eps);

    LayerNormRow<T> row = {weight, bias, y, dim};
#pragma unroll
    for (uint k = 0; k < KEPT_GROUPS; k++) {
        const uint i = team.index + k * team.threads;
        if (i < groups) {
            row.store(i, (kept[k] - rest) * factor);
        }
    }
    for (uint i = team.index + KEPT_GROUPS * team.threads; i < groups; i += team.threads) {
        row.store(i, (load4(x, i, dim, ALIGNED) - mean - rest) * factor);
    }
}

#define INSTANCE(function, name, type, suffix) \
    template [[host_name(name "_" suffix)]] [[kernel]] decltype(function<type>) function<type>;

#define INSTANCES(function, name)             \
    INSTANCE(function, name, float, "f32")    \
    INSTANCE(function, name, half, "f16")     \
    INSTANCE(function, name, bfloat, "bf16")

INSTANCES(rms_norm, "rms_norm")
INSTANCES(rms_norm_mul, "rms_norm_mul")
INSTANCES(rms_norm_triple, "rms_norm_triple")
INSTANCES(post_attn_triple_norm, "post_attn_triple_norm")
INSTANCES(post_ff_norm_end_layer, "post_ff_norm_end_layer")
INSTANCES(moe_post_ff_norm_end_layer, "moe_post_ff_norm_end_layer")
INSTANCES(add_rms_norm, "add_rms_norm")
INSTANCES(layer_norm, "layer_norm")

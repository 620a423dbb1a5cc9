// Per-head RMS normalisation and rotary embedding: one simdgroup per head of a token. A lane has the
// pairs lane, lane + 32, and so on; the first KEPT_PAIRS of them stay in registers. Every element is
// in one pair, rotated or not, so that no lane needs what another has.

/// The two elements of pair `p`; the second is `dim` where there is none.
inline uint2 pair_at(uint p, uint dim, uint half_pairs) {
    if (PAIRING == PAIRING_SPANNING) {
        return p < dim / 2 ? uint2(p, p + dim / 2) : uint2(dim - 1, dim);
    }
    if (PAIRING == PAIRING_LEADING && p < half_pairs) {
        return uint2(p, p + half_pairs);
    }
    return uint2(2 * p, 2 * p + 1);
}

/// Cosine and sine of `position * turns`, in whole turns: high and low part of the frequency, so that
/// the angle is right at any position.
inline float2 rotation(uint position, float2 turns) {
    // Both parts of the position are exact, and their products with the high part are split exactly.
    const float2 parts = float2(float(position & 0xffff0000u), float(position & 0xffffu));
    const float2 product = parts * turns.x;
    const float2 error = fma(parts, float2(turns.x), -product);
    const float2 fraction = product - rint(product);
    float angle = fraction.x + fraction.y;
    angle = angle - rint(angle) + (error.x + error.y + (parts.x + parts.y) * turns.y);
    angle -= rint(angle);
    return float2(cospi(2.0f * angle), sinpi(2.0f * angle));
}

template <typename T>
inline float weight_at(device const char* weight, uint i) {
    return WEIGHT_F32 ? ((device const float*)weight)[i] : float(((device const T*)weight)[i]);
}

template <typename U>
inline void store_pair(device U* row, uint2 at, float2 x, uint dim) {
    row[at.x] = U(x.x);
    if (at.y < dim) {
        row[at.y] = U(x.y);
    }
}

/// A head of a token: where its values come from and go to.
template <typename T, typename C>
struct Head {
    device const T* input;
    device const char* weight;
    device const float2* frequencies;
    device const float* freq_factors;
    device const float* cosines;
    device const float* sines;
    device T* output;
    device bfloat* output_bf16;
    device float* output_f32;
    device C* cache;
    bool cached;
    uint position;
    uint dim;
    uint half_pairs;

    float2 load(uint p) {
        const uint2 at = pair_at(p, dim, half_pairs);
        return float2(float(input[at.x]), at.y < dim ? float(input[at.y]) : 0.0f);
    }

    float2 turn(uint p) {
        if (HAS_TABLES) {
            return float2(cosines[p], sines[p]);
        }
        float2 frequency = frequencies[p];
        if (HAS_FACTORS) {
            const float divisor = freq_factors[p];
            const float quotient = frequency.x / divisor;
            const float rest = fma(-quotient, divisor, frequency.x);
            frequency = float2(quotient, (rest + frequency.y) / divisor);
        }
        return rotation(position, frequency);
    }

    void store(uint p, float2 x, float factor) {
        const uint2 at = pair_at(p, dim, half_pairs);
        if (NORMALIZE) {
            x *= factor;
        }
        if (HAS_WEIGHT) {
            x.x *= weight_at<T>(weight, at.x);
            if (at.y < dim) {
                x.y *= weight_at<T>(weight, at.y);
            }
        }
        if (p < half_pairs) {
            const float2 t = turn(p);
            x = float2(x.x * t.x - x.y * t.y, x.y * t.x + x.x * t.y);
        }
        if (HAS_OUTPUT) {
            store_pair(output, at, x, dim);
        }
        if (HAS_BF16) {
            store_pair(output_bf16, at, x, dim);
        }
        if (HAS_F32) {
            store_pair(output_f32, at, x, dim);
        }
        if (HAS_CACHE && cached) {
            store_pair(cache, at, x, dim);
        }
    }
};

template <typename T, typename C>
[[kernel]] void head_norm_rope(
    constant HeadNormRopeArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const char* weight [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device const float2* frequencies [[buffer(4)]],
    device const float* freq_factors [[buffer(5)]],
    device const float* cosines [[buffer(6)]],
    device const float* sines [[buffer(7)]],
    device const uint* cache_start [[buffer(8)]],
    device T* output [[buffer(9)]],
    device bfloat* output_bf16 [[buffer(10)]],
    device float* output_f32 [[buffer(11)]],
    device C* cache [[buffer(12)]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    const uint index = group * HEADS_PER_THREADGROUP + simdgroup;
    const ulong head = index % args.heads;
    const ulong token = index / args.heads;
    if (token >= args.tokens) {
        return;
    }
    const ulong slot = HAS_CACHE ? ulong(*cache_start) + token : 0;
    Head<T, C> x = {
        input + token * args.input_token_stride + head * args.input_head_stride,
        weight,
        frequencies,
        freq_factors,
        cosines + token * args.cosine_stride,
        sines + token * args.sine_stride,
        output + token * args.output_token_stride + head * args.output_head_stride,
        output_bf16 + token * args.bf16_token_stride + head * args.bf16_head_stride,
        output_f32 + token * args.f32_token_stride + head * args.f32_head_stride,
        cache + head * args.cache_head_stride + slot * args.cache_slot_stride,
        slot < args.capacity,
        HAS_POSITIONS ? positions[token] : 0,
        args.dim,
        args.half_pairs};
    const uint pairs = (args.dim + 1) / 2;

    float2 kept[KEPT_PAIRS];
    float squares = 0.0f;
#pragma unroll
    for (uint k = 0; k < KEPT_PAIRS; k++) {
        const uint p = lane + 32 * k;
        kept[k] = p < pairs ? x.load(p) : float2(0.0f);
        squares += dot(kept[k], kept[k]);
    }
    for (uint p = lane + 32 * KEPT_PAIRS; p < pairs; p += 32) {
        const float2 pair = x.load(p);
        squares += dot(pair, pair);
    }
    const float factor = precise::rsqrt(simd_sum(squares) / float(args.dim) + args.eps);
#pragma unroll
    for (uint k = 0; k < KEPT_PAIRS; k++) {
        const uint p = lane + 32 * k;
        if (p < pairs) {
            x.store(p, kept[k], factor);
        }
    }
    for (uint p = lane + 32 * KEPT_PAIRS; p < pairs; p += 32) {
        x.store(p, x.load(p), factor);
    }
}

#define INSTANCE(name, ...)                           \
    template [[host_name("head_norm_rope_" name)]]    \
    [[kernel]] decltype(head_norm_rope<__VA_ARGS__>) head_norm_rope<__VA_ARGS__>;

#define INSTANCES(name, type)            \
    INSTANCE(name "_f32", type, float)   \
    INSTANCE(name "_f16", type, half)    \
    INSTANCE(name "_bf16", type, bfloat)

INSTANCES("f32", float)
INSTANCES("f16", half)
INSTANCES("bf16", bfloat)

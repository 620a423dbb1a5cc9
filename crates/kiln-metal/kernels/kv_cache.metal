// Appending to a key-value cache.

/// The slot of token `i`, or false where it is not kept.
inline bool cache_slot(constant KvAppendArgs& args, uint start, uint i, thread ulong& slot) {
    if (RING && i + args.capacity < args.tokens) {
        return false;
    }
    const ulong position = ulong(start) + i;
    slot = RING ? position % args.capacity : position;
    return slot < args.capacity;
}

template <typename T, typename C>
[[kernel]] void kv_append(
    constant KvAppendArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const uint* start [[buffer(2)]],
    device C* cache [[buffer(3)]],
    uint2 at [[thread_position_in_grid]])
{
    const uint token = at.y / args.heads;
    const uint head = at.y % args.heads;
    ulong slot;
    if (4 * at.x >= args.dim || token >= args.tokens || !cache_slot(args, *start, token, slot)) {
        return;
    }
    device const T* from = input + token * args.token_stride + head * args.head_stride;
    device C* to = cache + head * args.cache_head_stride + slot * args.cache_slot_stride;
    store4(to, at.x, args.dim, load4(from, at.x, args.dim, ALIGNED), ALIGNED);
}

/// A thread per block of 32 values: scale max|x| / 127, codes to nearest, ties to even. A value that
/// is not finite makes the whole block NaN.
template <typename T>
[[kernel]] void kv_append_q8_0(
    constant KvAppendArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const uint* start [[buffer(2)]],
    device uchar* cache [[buffer(3)]],
    uint2 at [[thread_position_in_grid]])
{
    const uint token = at.y / args.heads;
    const uint head = at.y % args.heads;
    ulong slot;
    if (32 * at.x >= args.dim || token >= args.tokens || !cache_slot(args, *start, token, slot)) {
        return;
    }
    device const T* from = input + token * args.token_stride + head * args.head_stride;
    device uchar* block = cache + head * args.cache_head_stride + slot * args.cache_slot_stride +
                          ulong(at.x) * BlockQ8_0::BYTES;
    float4 values[8];
    float largest = 0.0f;
    bool finite = true;
    for (uint k = 0; k < 8; k++) {
        values[k] = load4(from, 8 * at.x + k, args.dim, ALIGNED);
        const float4 size = abs(values[k]);
        largest = max(largest, max(max(size.x, size.y), max(size.z, size.w)));
        finite = finite && all(isfinite(values[k]));
    }
    const float scale = finite ? largest / 127.0f : NAN;
    *(device half*)block = half(scale);
    for (uint k = 0; k < 8; k++) {
        const float4 codes = scale > 0.0f ? rint(values[k] / scale) : float4(0.0f);
        for (uint j = 0; j < 4; j++) {
            block[2 + 4 * k + j] = uchar(char(int(codes[j])));
        }
    }
}

#define INSTANCE(name, function, ...) \
    template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;

#define INSTANCES(name, type)                                 \
    INSTANCE("kv_append_" name "_f32", kv_append, type, float)   \
    INSTANCE("kv_append_" name "_f16", kv_append, type, half)    \
    INSTANCE("kv_append_" name "_bf16", kv_append, type, bfloat) \
    INSTANCE("kv_append_" name "_q8_0", kv_append_q8_0, type)

INSTANCES("f32", float)
INSTANCES("f16", half)
INSTANCES("bf16", bfloat)

// Gathering, copying and pooling of rows.

/// Values in another type, each rounded once.
template <typename From, typename To>
struct Converted {
    static vec<To, 4> four(vec<From, 4> x) { return vec<To, 4>(float4(x)); }
    static To one(From x) { return To(float(x)); }
};

template <typename T>
struct Converted<T, T> {
    static vec<T, 4> four(vec<T, 4> x) { return x; }
    static T one(T x) { return x; }
};

/// Four values per thread, the other axes in the rows of the grid.
template <typename From, typename To>
[[kernel]] void copy(
    constant CopyArgs& args [[buffer(0)]],
    device const From* input [[buffer(1)]],
    device To* output [[buffer(2)]],
    uint2 at [[thread_position_in_grid]])
{
    const uint start = 4 * at.x;
    if (start >= args.dim || at.y >= args.rows) {
        return;
    }
    const uint k = at.y % args.extent_2;
    const uint rest = at.y / args.extent_2;
    const uint j = rest % args.extent_1;
    const uint i = rest / args.extent_1;
    device const From* from =
        input + i * args.input_stride_0 + j * args.input_stride_1 + k * args.input_stride_2;
    device To* to =
        output + i * args.output_stride_0 + j * args.output_stride_1 + k * args.output_stride_2;
    if (ALIGNED) {
        const vec<From, 4> x = *(device const vec<From, 4>*)(from + start);
        *(device vec<To, 4>*)(to + start) = Converted<From, To>::four(x);
        return;
    }
    for (uint l = start; l < min(start + 4, args.dim); l++) {
        to[l] = Converted<From, To>::one(from[l]);
    }
}

/// Rows of a plain type.
template <typename W, typename T>
[[kernel]] void embed_plain(
    constant EmbedArgs& args [[buffer(0)]],
    device const uchar* weight [[buffer(1)]],
    device const uint* ids [[buffer(2)]],
    device T* output [[buffer(3)]],
    uint2 at [[thread_position_in_grid]])
{
    if (4 * at.x >= args.dim || at.y >= args.rows) {
        return;
    }
    const uint id = ids[at.y];
    float4 x = float4(NAN);
    if (id < args.count) {
        device const W* row = (device const W*)(weight + id * args.weight_bytes);
        x = load4(row, at.x, args.dim, ALIGNED) * args.scale;
    }
    store4(output + at.y * args.output_stride, at.x, args.dim, x, ALIGNED);
}

/// Rows of blocks.
template <typename Block, typename T>
[[kernel]] void embed_blocks(
    constant EmbedArgs& args [[buffer(0)]],
    device const uchar* weight [[buffer(1)]],
    device const uint* ids [[buffer(2)]],
    device T* output [[buffer(3)]],
    uint2 at [[thread_position_in_grid]])
{
    if (4 * at.x >= args.dim || at.y >= args.rows) {
        return;
    }
    const uint id = ids[at.y];
    const uint groups = Block::VALUES / 4;
    float4 x = float4(NAN);
    if (id < args.count) {
        device const uchar* row = weight + id * args.weight_bytes;
        x = Block::four(row + ulong(at.x / groups) * Block::BYTES, at.x % groups) * args.scale;
    }
    store4(output + at.y * args.output_stride, at.x, args.dim, x, ALIGNED);
}

/// The first or the last valid token.
template <typename T>
[[kernel]] void pool_token(
    constant PoolArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const uint* lengths [[buffer(2)]],
    device T* output [[buffer(3)]],
    uint2 at [[thread_position_in_grid]])
{
    if (4 * at.x >= args.dim || at.y >= args.rows) {
        return;
    }
    const uint length = lengths[at.y];
    float4 x = float4(NAN);
    if (length > 0 && length <= args.tokens) {
        const ulong token = LAST ? length - 1 : 0;
        device const T* row = input + at.y * args.batch_stride + token * args.token_stride;
        x = load4(row, at.x, args.dim, ALIGNED);
    }
    store4(output + at.y * args.output_stride, at.x, args.dim, x, ALIGNED);
}

/// The mean of the valid tokens. Each simdgroup sums every POOL_SLICES-th token.
template <typename T>
[[kernel]] void pool_mean(
    constant PoolArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const uint* lengths [[buffer(2)]],
    device T* output [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint slice [[simdgroup_index_in_threadgroup]])
{
    threadgroup float4 sums[POOL_SLICES][32];
    const uint i = group.x * 32 + lane;
    const ulong batch = group.y;
    const uint length = lengths[batch];
    const bool valid = length > 0 && length <= args.tokens;
    float4 sum = float4(0.0f);
    if (valid && 4 * i < args.dim) {
        device const T* rows = input + batch * args.batch_stride;
        for (ulong token = slice; token < length; token += POOL_SLICES) {
            sum += load4(rows + token * args.token_stride, i, args.dim, ALIGNED);
        }
    }
    sums[slice][lane] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (slice != 0 || 4 * i >= args.dim) {
        return;
    }
    for (uint other = 1; other < POOL_SLICES; other++) {
        sum += sums[other][lane];
    }
    const float4 mean = valid ? sum / float(length) : float4(NAN);
    store4(output + batch * args.output_stride, i, args.dim, mean, ALIGNED);
}

#define INSTANCE(name, function, ...) \
    template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;

INSTANCE("copy_u32_u32", copy, uint, uint)
INSTANCE("copy_u8_u8", copy, uchar, uchar)

#define COPY_INSTANCES(name, type)              \
    INSTANCE("copy_" name "_f32", copy, type, float)  \
    INSTANCE("copy_" name "_f16", copy, type, half)   \
    INSTANCE("copy_" name "_bf16", copy, type, bfloat)

COPY_INSTANCES("f32", float)
COPY_INSTANCES("f16", half)
COPY_INSTANCES("bf16", bfloat)

#define EMBED_INSTANCES(name, function, weight)                 \
    INSTANCE("embed_" name "_f32", function, weight, float)     \
    INSTANCE("embed_" name "_f16", function, weight, half)      \
    INSTANCE("embed_" name "_bf16", function, weight, bfloat)

EMBED_INSTANCES("f32", embed_plain, float)
EMBED_INSTANCES("f16", embed_plain, half)
EMBED_INSTANCES("bf16", embed_plain, bfloat)
EMBED_INSTANCES("q4_0", embed_blocks, BlockQ4_0)
EMBED_INSTANCES("q4_1", embed_blocks, BlockQ4_1)
EMBED_INSTANCES("q5_0", embed_blocks, BlockQ5_0)
EMBED_INSTANCES("q5_1", embed_blocks, BlockQ5_1)
EMBED_INSTANCES("q8_0", embed_blocks, BlockQ8_0)
EMBED_INSTANCES("iq4_nl", embed_blocks, BlockIq4Nl)
EMBED_INSTANCES("iq4_xs", embed_blocks, BlockIq4Xs)
EMBED_INSTANCES("q2_k", embed_blocks, BlockQ2K)
EMBED_INSTANCES("q3_k", embed_blocks, BlockQ3K)
EMBED_INSTANCES("q4_k", embed_blocks, BlockQ4K)
EMBED_INSTANCES("q5_k", embed_blocks, BlockQ5K)
EMBED_INSTANCES("q6_k", embed_blocks, BlockQ6K)

#define POOL_INSTANCES(name, type)                \
    INSTANCE("pool_token_" name, pool_token, type) \
    INSTANCE("pool_mean_" name, pool_mean, type)

POOL_INSTANCES("f32", float)
POOL_INSTANCES("f16", half)
POOL_INSTANCES("bf16", bfloat)

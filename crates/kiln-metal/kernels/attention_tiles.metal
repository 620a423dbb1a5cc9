// Attention of many queries: a threadgroup of four simdgroups takes 8 * GROUPS rows of queries and goes
// through the keys in tiles of BK. A simdgroup has 8 rows, and one of SLICES parts of their values.
// Tiles of keys begin at multiples of BK, and a key that is masked changes no bit of a row, so that the
// bits of a row depend on neither the rows beside it nor the tiles that were skipped.

/// Values between rows of tiles: not a power of two, so that rows start in different banks.
constant constexpr uint PADDING = 8;

/// Loads rows of keys or values; rows outside the keys that are there, and values past `dim`, are 0.
template <typename Keys, uint D, uint BK>
inline void load_keys(
    threadgroup typename Keys::Tile* tile, device const uchar* rows, uint start, Positions at,
    constant AttentionArgs& args, ulong stride, uint index)
{
    typedef typename Keys::Tile Tile;
    for (uint i = index; i < BK * (D / 4); i += 128) {
        const uint key = start + i / (D / 4);
        const uint part = i % (D / 4);
        float4 x = float4(0.0f);
        if (key >= at.first && key < at.end && 4 * part < args.dim) {
            const ulong slot = RING ? key % args.capacity : key;
            x = Keys::load(rows + slot * stride, part, args.dim);
        }
        *(threadgroup vec<Tile, 4>*)(tile + i / (D / 4) * (D + PADDING) + 4 * part) = vec<Tile, 4>(x);
    }
}

/// Least and largest entry of the map for the mask of a tile.
inline uint2 block_range(
    device const uchar* blocks, constant AttentionArgs& args, uint2 rows, uint2 keys, uint lane)
{
    const uint2 tile = uint2(args.block_rows, args.block_columns);
    const uint2 first = uint2(rows.x, keys.x) / tile;
    const uint2 count = uint2(rows.y - 1, keys.y - 1) / tile - first + uint2(1);
    uint least = 2;
    uint largest = 0;
    for (uint i = lane; i < count.x * count.y; i += 32) {
        const ulong row = first.x + i / count.y;
        const uint entry = blocks[row * args.block_stride + first.y + i % count.y];
        least = min(least, entry);
        largest = max(largest, entry);
    }
    return uint2(simd_min(least), simd_max(largest));
}

template <typename Q, typename Keys, typename QTile, uint D, uint GROUPS, uint SLICES, uint BK>
[[kernel]] void attention_tiles(
    constant AttentionArgs& args [[buffer(0)]],
    device const Q* q [[buffer(1)]],
    device const uchar* k [[buffer(2)]],
    device const uchar* v [[buffer(3)]],
    device const uchar* mask [[buffer(4)]],
    device const uchar* blocks [[buffer(5)]],
    device const float* sinks [[buffer(6)]],
    device const uint* length [[buffer(7)]],
    device Q* output [[buffer(8)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    typedef typename Keys::Tile Tile;
    // Arrays of vectors are aligned for stores of vectors.
    threadgroup vec<QTile, 4> q_memory[2 * GROUPS * (D + PADDING)];
    threadgroup vec<Tile, 4> kv_memory[BK / 4 * (D + PADDING)];
    threadgroup QTile* q_tile = (threadgroup QTile*)q_memory;
    threadgroup Tile* kv_tile = (threadgroup Tile*)kv_memory;
    threadgroup float scores[4 * 8 * BK];
    threadgroup float weights[4 * 8 * BK];
    threadgroup float factors[4 * 64];

    const uint first_row = 8 * GROUPS * group.x;
    const uint rows = min(8 * GROUPS, args.q_len - first_row);
    const ulong head = group.y;
    const ulong batch = group.z;
    const ulong kv_head = head / args.heads_per_kv;
    q += batch * args.q_batch + head * args.q_head + first_row * args.q_row;
    k += batch * args.k_batch + kv_head * args.k_head;
    v += batch * args.v_batch + kv_head * args.v_head;
    output += batch * args.output_batch + head * args.output_head + first_row * args.output_row;
    Positions at = {0, args.capacity, args.q_offset, true};
    if (CACHED) {
        at = cache_positions(*length, args.q_len, args.capacity);
    }
    if (!at.valid) {
        for (uint i = index; i < rows * (D / 4); i += 128) {
            if (4 * (i % (D / 4)) < args.dim) {
                device Q* row = output + i / (D / 4) * args.output_row;
                store4(row, i % (D / 4), args.dim, float4(NAN), ALIGNED);
            }
        }
        return;
    }

    for (uint i = index; i < 8 * GROUPS * (D / 4); i += 128) {
        const uint row = i / (D / 4);
        const uint part = i % (D / 4);
        float4 x = float4(0.0f);
        if (row < rows && 4 * part < args.dim) {
            x = load4(q + row * args.q_row, part, args.dim, ALIGNED);
        }
        *(threadgroup vec<QTile, 4>*)(q_tile + row * (D + PADDING) + 4 * part) = vec<QTile, 4>(x);
    }

    // A lane has a quarter of a row of scores.
    const uint width = BK / 4;
    const uint team = simdgroup / SLICES;
    const uint slice = simdgroup % SLICES;
    const uint row = 8 * team + lane / 4;
    const uint query = at.queries + first_row + row;
    const uint own = simdgroup * 8 * BK + lane / 4 * BK + lane % 4 * width;
    threadgroup const QTile* q_part = q_tile + 8 * team * (D + PADDING) + slice * (D / SLICES);
    threadgroup const Tile* kv_part = kv_tile + slice * (D / SLICES);
    threadgroup float* factor = factors + simdgroup * 64;
    float largest = LOWEST;
    float sum = 0.0f;
    simdgroup_float8x8 values[D / SLICES / 8];
    for (uint i = 0; i < D / SLICES / 8; i++) {
        values[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }

    // From the first key of the first row to the last key of the last.
    const uint last = at.queries + first_row + rows - 1;
    const uint begin = window_start(at.first, at.queries + first_row, args.window) / BK * BK;
    const uint end = CAUSAL && last < at.end ? last + 1 : at.end;
    const uint tiles = begin < end ? (end - begin + BK - 1) / BK : 0;
    const ulong plane = batch * args.mask_batch + head * args.mask_head;
    blocks += batch * args.block_batch + head * args.block_head;
    for (uint tile = 0; tile < tiles; tile++) {
        const uint start = begin + tile * BK;
        bool open = !MASK;
        if (BLOCKS) {
            const uint2 span = uint2(first_row, first_row + rows);
            const uint2 entries =
                block_range(blocks, args, span, uint2(start, min(start + BK, at.end)), lane);
            if (entries.y == 0) {
                continue;
            }
            open = entries.x == 2;
        }
        // Everybody has read the values of the tile before.
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_keys<Keys, D, BK>(kv_tile, k, start, at, args, args.k_row, index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_float8x8 products[BK / 8];
        for (uint j = 0; j < BK / 8; j++) {
            products[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        }
        for (uint i = 0; i < D / SLICES / 8; i++) {
            simdgroup_matrix<QTile, 8, 8> a;
            simdgroup_load(a, q_part + 8 * i, D + PADDING);
            for (uint j = 0; j < BK / 8; j++) {
                simdgroup_matrix<Tile, 8, 8> b;
                simdgroup_load(b, kv_part + 8 * j * (D + PADDING) + 8 * i, D + PADDING, ulong2(0), true);
                simdgroup_multiply_accumulate(products[j], a, b, products[j]);
            }
        }
        for (uint j = 0; j < BK / 8; j++) {
            simdgroup_store(products[j], scores + simdgroup * 8 * BK + 8 * j, BK);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_keys<Keys, D, BK>(kv_tile, v, start, at, args, args.v_row, index);

        float score[BK / 4];
        float highest = -INFINITY;
        for (uint i = 0; i < width; i++) {
            const uint key = start + lane % 4 * width + i;
            float x = 0.0f;
            for (uint s = 0; s < SLICES; s++) {
                x += scores[(team * SLICES + s) * 8 * BK + lane / 4 * BK + lane % 4 * width + i];
            }
            x = limited(x * args.scale, args.softcap);
            bool masked = key < at.first || key >= at.end || row >= rows;
            masked = masked || (CAUSAL && key > query);
            masked = masked || (WINDOW && query >= key && query - key >= args.window);
            if (!open && !masked) {
                const ulong place = plane + (first_row + row) * args.mask_row + key;
                if (MASK_BOOL) {
                    masked = mask[place] == 0;
                } else {
                    x += float(((device const Q*)mask)[place]);
                }
            }
            score[i] = masked ? -INFINITY : x;
            highest = max(highest, score[i]);
        }
        const float top = max(largest, quad_max(highest));
        const float shrink = precise::exp(largest - top);
        float added = 0.0f;
        for (uint i = 0; i < width; i++) {
            const float weight = precise::exp(score[i] - top);
            weights[own + i] = weight;
            added += weight;
        }
        largest = top;
        sum = sum * shrink + quad_sum(added);
        const bool shrinks = simd_any(shrink != 1.0f);
        if (shrinks) {
            factor[2 * lane] = lane / 4 == 2 * (lane % 4) ? shrink : 0.0f;
            factor[2 * lane + 1] = lane / 4 == 2 * (lane % 4) + 1 ? shrink : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (shrinks) {
            simdgroup_float8x8 diagonal;
            simdgroup_load(diagonal, factor, 8);
            for (uint i = 0; i < D / SLICES / 8; i++) {
                simdgroup_multiply(values[i], diagonal, values[i]);
            }
        }
        for (uint j = 0; j < BK / 8; j++) {
            simdgroup_float8x8 a;
            simdgroup_load(a, weights + simdgroup * 8 * BK + 8 * j, BK);
            for (uint i = 0; i < D / SLICES / 8; i++) {
                simdgroup_matrix<Tile, 8, 8> b;
                simdgroup_load(b, kv_part + 8 * j * (D + PADDING) + 8 * i, D + PADDING);
                simdgroup_multiply_accumulate(values[i], a, b, values[i]);
            }
        }
    }

    const float sink = SINKS ? sinks[head] : 0.0f;
    const float scale = normaliser(largest, sum, sink);
    // Eight values of each row at a time, two to a lane, through memory that only this simdgroup uses.
    for (uint i = 0; i < D / SLICES / 8; i++) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_store(values[i], factor, 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        const uint column = slice * (D / SLICES) + 8 * i + 2 * (lane % 4);
        if (row < rows && column < args.dim) {
            device Q* place = output + row * args.output_row + column;
            place[0] = Q(factor[2 * lane] * scale);
            place[1] = Q(factor[2 * lane + 1] * scale);
        }
    }
}

/// A simdgroup per entry of the map: 0 all masked, 2 all open, 1 else.
template <typename T>
[[kernel]] void attention_blocks(
    constant BlocksArgs& args [[buffer(0)]],
    device const T* mask [[buffer(1)]],
    device uchar* blocks [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]])
{
    const ulong head = group.z % args.heads;
    const ulong batch = group.z / args.heads;
    const uint rows = min(args.rows, args.q_len - args.rows * group.y);
    const uint columns = min(args.columns, args.kv_len - args.columns * group.x);
    mask += batch * args.mask_batch + head * args.mask_head;
    mask += ulong(args.rows) * group.y * args.mask_row + args.columns * group.x;
    bool masked = true;
    bool open = true;
    for (uint i = 0; i < rows; i++) {
        for (uint j = lane; j < columns; j += 32) {
            const float x = float(mask[i * args.mask_row + j]);
            masked = masked && x == (MASK_BOOL ? 0.0f : -INFINITY);
            open = open && (MASK_BOOL ? x != 0.0f : x == 0.0f);
        }
    }
    masked = simd_all(masked);
    open = simd_all(open);
    if (lane == 0) {
        blocks += batch * args.block_batch + head * args.block_head + group.y * args.block_stride;
        blocks[group.x] = masked ? 0 : open ? 2 : 1;
    }
}

#define INSTANCE(name, function, ...) \
    template [[host_name(name)]] [[kernel]] decltype(function<__VA_ARGS__>) function<__VA_ARGS__>;

INSTANCE("attention_blocks_u8", attention_blocks, uchar)
INSTANCE("attention_blocks_f16", attention_blocks, half)
INSTANCE("attention_blocks_bf16", attention_blocks, bfloat)

// Rows, slices and keys by head dimension: what fits in 32 KiB with queries in the type of the keys.
#define GIVEN(name, type)                                                                               \
    INSTANCE("flash_attention_" name "_64", attention_tiles, type, PlainKeys<type>, type, 64, 4, 1, 16)    \
    INSTANCE("flash_attention_" name "_80", attention_tiles, type, PlainKeys<type>, type, 80, 4, 1, 16)    \
    INSTANCE("flash_attention_" name "_96", attention_tiles, type, PlainKeys<type>, type, 96, 4, 1, 16)    \
    INSTANCE("flash_attention_" name "_128", attention_tiles, type, PlainKeys<type>, type, 128, 4, 1, 16)  \
    INSTANCE("flash_attention_" name "_256", attention_tiles, type, PlainKeys<type>, type, 256, 4, 1, 16)  \
    INSTANCE("flash_attention_" name "_512", attention_tiles, type, PlainKeys<type>, type, 512, 1, 4, 16)

GIVEN("f16", half)
GIVEN("bf16", bfloat)

// Queries of a cache keep f32: fewer rows or keys fit.
#define CACHED_DIMS(name, type, keys)                                                          \
    INSTANCE("cached_tiles_" name "_64", attention_tiles, type, keys, float, 64, 4, 1, 16)    \
    INSTANCE("cached_tiles_" name "_80", attention_tiles, type, keys, float, 80, 4, 1, 16)    \
    INSTANCE("cached_tiles_" name "_96", attention_tiles, type, keys, float, 96, 4, 1, 16)    \
    INSTANCE("cached_tiles_" name "_128", attention_tiles, type, keys, float, 128, 4, 1, 16)  \
    INSTANCE("cached_tiles_" name "_256", attention_tiles, type, keys, float, 256, 2, 2, 16)  \
    INSTANCE("cached_tiles_" name "_512", attention_tiles, type, keys, float, 512, 1, 4, 8)

#define CACHED_TYPES(name, type)                             \
    CACHED_DIMS(name "_f16", type, PlainKeys<half>)          \
    CACHED_DIMS(name "_bf16", type, PlainKeys<bfloat>)       \
    CACHED_DIMS(name "_q8_0", type, QuantKeys)

CACHED_TYPES("f32", float)
CACHED_TYPES("f16", half)
CACHED_TYPES("bf16", bfloat)

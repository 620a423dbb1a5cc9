// Products of many rows: a threadgroup of four simdgroups computes a tile of 32 rows of the input by
// 64 rows of the weight. Weights are unpacked to threadgroup memory, 32 values of each row at a time;
// tiles there are squares of 8 by 8, one after the other.

/// Where value `k` of row `row` is among the squares of a tile of rows of 32 values.
inline uint square_place(uint row, uint k) {
    return ((row / 8) * 4 + k / 8) * 64 + row % 8 * 8 + k % 8;
}

/// Stores the half of 32 values of a row of weights that a thread has unpacked.
template <typename Tile>
inline void store_chunk(threadgroup Tile* tile, uint row, uint part, thread const Chunk& w) {
    for (uint j = 0; j < 4; j++) {
        const float4 values = fma(w.codes[j], float4(w.scale[j]), float4(w.minimum[j]));
        threadgroup Tile* place = tile + square_place(row, 16 * part + 4 * j);
        *(threadgroup vec<Tile, 4>*)place = vec<Tile, 4>(values);
    }
}

/// Adds the products of 16 rows of inputs and 32 rows of weights over 32 values.
template <typename Tile>
inline void multiply_squares(
    thread simdgroup_float8x8* sums, threadgroup const float* x, threadgroup const Tile* w)
{
    for (uint k = 0; k < 4; k++) {
        simdgroup_float8x8 rows[2];
        simdgroup_matrix<Tile, 8, 8> columns[4];
        for (uint i = 0; i < 2; i++) {
            simdgroup_load(rows[i], x + 64 * (4 * i + k), 8);
        }
        for (uint j = 0; j < 4; j++) {
            simdgroup_load(columns[j], w + 64 * (4 * j + k), 8, ulong2(0), true);
        }
        for (uint i = 0; i < 2; i++) {
            for (uint j = 0; j < 4; j++) {
                simdgroup_multiply_accumulate(sums[4 * i + j], rows[i], columns[j], sums[4 * i + j]);
            }
        }
    }
}

/// Stores 16 by 32 sums to rows of `stride` values.
template <typename Memory>
inline void store_squares(thread const simdgroup_float8x8* sums, Memory output, ulong stride) {
    for (uint i = 0; i < 2; i++) {
        for (uint j = 0; j < 4; j++) {
            simdgroup_store(sums[4 * i + j], output + 8 * i * stride + 8 * j, stride);
        }
    }
}

/// The rows of a tile.
struct TileRows {
    /// The first, among the slots in order of their experts where they are routed.
    uint first;
    uint count;
    uint expert;
};

template <typename Row, typename T, typename Tile>
[[kernel]] void mat_mat(
    constant MatMatArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const uchar* weight [[buffer(2)]],
    device const uchar* second [[buffer(3)]],
    device const uint* slots [[buffer(4)]],
    device const uint* tiles [[buffer(5)]],
    device float* output [[buffer(6)]],
    threadgroup float* memory [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    TileRows rows = {TILE_M * group.x, min(TILE_M, args.m - TILE_M * group.x), 0};
    if (ROUTED) {
        device const uint* tile = tiles + 3 * group.x;
        rows = {tile[0], tile[1], tile[2]};
        if (rows.count == 0) {
            return;
        }
        weight += rows.expert * args.expert_bytes;
    }
    const uint first_n = TILE_N * group.y;
    const uint columns = min(TILE_N, args.n - first_n);
    const bool no_expert = ROUTED && rows.expert >= args.experts;

    threadgroup Tile* w_tile = (threadgroup Tile*)memory;
    threadgroup Tile* second_tile = w_tile + TILE_N * TILE_K;
    threadgroup float* x_tile = (threadgroup float*)(w_tile + (MODE == GATED ? 2 : 1) * TILE_N * TILE_K);

    simdgroup_float8x8 sums[8];
    simdgroup_float8x8 second_sums[8];
    for (uint i = 0; i < 8; i++) {
        sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        second_sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    // Two threads unpack a row of weights, eight load a row of the input. Rows past the end are the
    // last one again, and not stored.
    const uint w_row = index / 2;
    const uint w_part = index % 2;
    const ulong w_offset = min(first_n + w_row, args.n - 1) * args.row_bytes;
    const uint x_row = index / 8;
    const uint x_group = index % 8;
    device const T* x_rows[2];
    for (uint i = 0; i < 2; i++) {
        const uint place = rows.first + min(x_row + 16 * i, rows.count - 1);
        const uint slot = ROUTED ? slots[place] : place;
        const ulong token = ROUTED ? slot / args.top_k : slot;
        const ulong offset = token * args.input_stride;
        x_rows[i] = input + offset + (ROUTED ? slot % args.top_k * args.input_slot_stride : 0);
    }

    const uint steps = no_expert ? 0 : Row::chunks(args.k) / 2;
    for (uint step = 0; step < steps; step++) {
        Chunk w;
        Chunk second_w;
        float4 x[2];
        Row::load(weight + w_offset, 2 * step + w_part, args.k, w);
        if (MODE == GATED) {
            Row::load(second + w_offset, 2 * step + w_part, args.k, second_w);
        }
        const uint i = Row::group(2 * step + x_group / 4, x_group % 4);
        x[0] = input4(x_rows[0], i, args.k, args.head_stride, args.head_dim);
        x[1] = input4(x_rows[1], i, args.k, args.head_stride, args.head_dim);
        // Everybody has read the tiles of the step before.
        threadgroup_barrier(mem_flags::mem_threadgroup);
        store_chunk(w_tile, w_row, w_part, w);
        if (MODE == GATED) {
            store_chunk(second_tile, w_row, w_part, second_w);
        }
        *(threadgroup float4*)(x_tile + square_place(x_row, 4 * x_group)) = x[0];
        *(threadgroup float4*)(x_tile + square_place(x_row + 16, 4 * x_group)) = x[1];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        threadgroup const float* x_part = x_tile + simdgroup / 2 * 16 * TILE_K;
        const uint n_part = simdgroup % 2 * 32 * TILE_K;
        multiply_squares(sums, x_part, w_tile + n_part);
        if (MODE == GATED) {
            multiply_squares(second_sums, x_part, second_tile + n_part);
        }
    }

    const ulong corner = simdgroup / 2 * 16;
    const uint side = simdgroup % 2 * 32;
    if (MODE == PRODUCT && !ROUTED && rows.count == TILE_M && columns == TILE_N) {
        device float* place = output + (rows.first + corner) * args.output_stride + first_n + side;
        store_squares(sums, place, args.output_stride);
        return;
    }
    // Through threadgroup memory, in rows of TILE_N values.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    store_squares(sums, memory + corner * TILE_N + side, ulong(TILE_N));
    if (MODE == GATED) {
        store_squares(second_sums, memory + (TILE_M + corner) * TILE_N + side, ulong(TILE_N));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint at = index; at < rows.count * TILE_N; at += 128) {
        const uint column = at % TILE_N;
        const uint place = rows.first + at / TILE_N;
        if (column >= columns) {
            continue;
        }
        float sum = memory[at];
        if (MODE == GATED) {
            sum = gated(sum, memory[TILE_M * TILE_N + at]);
        }
        if (MODE == UP) {
            sum = gated(((device const float*)second)[ulong(place) * args.n + first_n + column], sum);
        }
        ulong offset = place * args.output_stride;
        if (ROUTED) {
            const uint slot = slots[place];
            offset = slot / args.top_k * args.output_stride +
                     slot % args.top_k * args.output_slot_stride;
            sum = no_expert ? NAN : sum;
        }
        output[offset + first_n + column] = sum;
    }
}

/// Slots in the order of their experts, and tiles of at most TILE_M slots of one expert: first,
/// count, expert. A simdgroup per expert; one more takes the slots of none. The tiles of an expert
/// begin at its place in the order / TILE_M + its number, so that no expert waits for another; entries
/// between are empty.
[[kernel]] void expert_tiles(
    constant ExpertTilesArgs& args [[buffer(0)]],
    device const uint* ids [[buffer(1)]],
    device uint* slots [[buffer(2)]],
    device uint* tiles [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    const uint expert = group * simdgroups + simdgroup;
    if (expert > args.experts) {
        return;
    }
    uint below = 0;
    uint count = 0;
    for (uint slot = lane; slot < args.slots; slot += 32) {
        const uint id = min(ids[slot / args.top_k * args.ids_stride + slot % args.top_k], args.experts);
        below += id < expert ? 1 : 0;
        count += id == expert ? 1 : 0;
    }
    below = simd_sum(below);
    count = simd_sum(count);

    uint place = below;
    for (uint start = 0; start < args.slots; start += 32) {
        const uint slot = start + lane;
        bool hit = false;
        if (slot < args.slots) {
            const uint id = ids[slot / args.top_k * args.ids_stride + slot % args.top_k];
            hit = min(id, args.experts) == expert;
        }
        const uint before = simd_prefix_exclusive_sum(hit ? 1u : 0u);
        if (hit) {
            slots[place + before] = slot;
        }
        place += simd_sum(hit ? 1u : 0u);
    }

    const uint end = (below + count) / TILE_M + expert + 1;
    for (uint tile = below / TILE_M + expert + lane; tile < end; tile += 32) {
        const uint done = min(TILE_M * (tile - below / TILE_M - expert), count);
        tiles[3 * tile] = below + done;
        tiles[3 * tile + 1] = min(TILE_M, count - done);
        tiles[3 * tile + 2] = expert;
    }
}

#define INSTANCE(name, ...) \
    template [[host_name(name)]] [[kernel]] decltype(mat_mat<__VA_ARGS__>) mat_mat<__VA_ARGS__>;

#define INSTANCES(name, row, tile)                     \
    INSTANCE("mat_mat_" name "_f32", row, float, tile)  \
    INSTANCE("mat_mat_" name "_f16", row, half, tile)   \
    INSTANCE("mat_mat_" name "_bf16", row, bfloat, tile)

// Plain weights lose nothing in a tile of their own type.
#define PLAIN_INSTANCES(name, type)                                     \
    INSTANCE("mat_mat_" name "_f32", PlainRow<type, 2>, float, type)    \
    INSTANCE("mat_mat_" name "_f16", PlainRow<type, 2>, half, type)     \
    INSTANCE("mat_mat_" name "_bf16", PlainRow<type, 2>, bfloat, type)

#define BLOCK_INSTANCES(name, block)                  \
    INSTANCES(name, BlockRow<block>, half)            \
    INSTANCES(name "_exact", BlockRow<block>, float)

PLAIN_INSTANCES("f32", float)
PLAIN_INSTANCES("f16", half)
PLAIN_INSTANCES("bf16", bfloat)
BLOCK_INSTANCES("q4_0", BlockQ4_0)
BLOCK_INSTANCES("q4_1", BlockQ4_1)
BLOCK_INSTANCES("q5_0", BlockQ5_0)
BLOCK_INSTANCES("q5_1", BlockQ5_1)
BLOCK_INSTANCES("q8_0", BlockQ8_0)
BLOCK_INSTANCES("iq4_nl", BlockIq4Nl)
BLOCK_INSTANCES("iq4_xs", BlockIq4Xs)
BLOCK_INSTANCES("q2_k", BlockQ2K)
BLOCK_INSTANCES("q3_k", BlockQ3K)
BLOCK_INSTANCES("q4_k", BlockQ4K)
BLOCK_INSTANCES("q5_k", BlockQ5K)
BLOCK_INSTANCES("q6_k", BlockQ6K)

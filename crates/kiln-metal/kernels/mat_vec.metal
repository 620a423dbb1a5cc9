// Products of a few rows: a simdgroup computes ROWS rows of the weight for all columns, each weight
// byte read once. A row of the input is a column of the product.

/// Adds the products of a chunk.
template <typename Row>
inline float chunk_product(thread const Chunk& w, thread const float4* x, float sum) {
    for (uint j = 0; j < 4; j++) {
        const float product = dot(w.codes[j], x[j]);
        sum = Row::PLAIN ? sum + product : fma(w.scale[j], product, sum);
        if (Row::MINIMUM) {
            sum = fma(w.minimum[j], dot(x[j], float4(1.0f)), sum);
        }
    }
    return sum;
}

template <typename Row, typename T>
[[kernel]] void mat_vec(
    constant MatVecArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device const uchar* weight [[buffer(2)]],
    device const uchar* second [[buffer(3)]],
    device const uint* ids [[buffer(4)]],
    device float* output [[buffer(5)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    const uint first = (group.x * simdgroups + simdgroup) * ROWS;
    if (first >= args.n) {
        return;
    }
    if (ROUTED) {
        const ulong token = group.y / args.top_k;
        const ulong slot = group.y % args.top_k;
        output += token * args.output_stride + slot * args.output_slot_stride;
        input += token * args.input_stride + slot * args.input_slot_stride;
        const uint id = ids[token * args.ids_stride + slot];
        if (id >= args.experts) {
            if (lane < ROWS && first + lane < args.n) {
                output[first + lane] = NAN;
            }
            return;
        }
        weight += id * args.expert_bytes;
    }

    // Rows past the end are the last one again, and not written.
    device const uchar* rows[MAX_ROWS];
    device const uchar* second_rows[MAX_ROWS];
    float sums[MAX_ROWS][MAX_COLUMNS];
    float second_sums[MAX_ROWS][MAX_COLUMNS];
    for (uint r = 0; r < ROWS; r++) {
        const ulong row = min(first + r, args.n - 1);
        rows[r] = weight + row * args.row_bytes;
        second_rows[r] = second + row * args.row_bytes;
        for (uint c = 0; c < COLUMNS; c++) {
            sums[r][c] = 0.0f;
            second_sums[r][c] = 0.0f;
        }
    }

    for (uint chunk = lane; chunk < Row::chunks(args.k); chunk += 32) {
        Chunk w[MAX_ROWS];
        Chunk second_w[MAX_ROWS];
        for (uint r = 0; r < ROWS; r++) {
            Row::load(rows[r], chunk, args.k, w[r]);
            if (MODE == GATED) {
                Row::load(second_rows[r], chunk, args.k, second_w[r]);
            }
        }
        for (uint c = 0; c < COLUMNS; c++) {
            device const T* column = input + c * args.input_stride;
            float4 x[4];
            for (uint j = 0; j < 4; j++) {
                const uint i = Row::group(chunk, j);
                x[j] = input4(column, i, args.k, args.head_stride, args.head_dim);
            }
            for (uint r = 0; r < ROWS; r++) {
                sums[r][c] = chunk_product<Row>(w[r], x, sums[r][c]);
                if (MODE == GATED) {
                    second_sums[r][c] = chunk_product<Row>(second_w[r], x, second_sums[r][c]);
                }
            }
        }
    }

    for (uint r = 0; r < ROWS; r++) {
        for (uint c = 0; c < COLUMNS; c++) {
            float sum = simd_sum(sums[r][c]);
            if (MODE == GATED) {
                sum = gated(sum, simd_sum(second_sums[r][c]));
            }
            if (lane == 0 && first + r < args.n) {
                if (MODE == UP) {
                    sum = gated(((device const float*)second)[c * args.n + first + r], sum);
                }
                output[c * args.output_stride + first + r] = sum;
            }
        }
    }
}

#define INSTANCE(name, ...) \
    template [[host_name(name)]] [[kernel]] decltype(mat_vec<__VA_ARGS__>) mat_vec<__VA_ARGS__>;

#define INSTANCES(name, row)                        \
    INSTANCE("mat_vec_" name "_f32", row, float)  \
    INSTANCE("mat_vec_" name "_f16", row, half)   \
    INSTANCE("mat_vec_" name "_bf16", row, bfloat)

#define PLAIN_INSTANCES(name, type)                               \
    INSTANCE("mat_vec_" name "_f32", PlainRow<type, 32>, float)   \
    INSTANCE("mat_vec_" name "_f16", PlainRow<type, 32>, half)    \
    INSTANCE("mat_vec_" name "_bf16", PlainRow<type, 32>, bfloat)

PLAIN_INSTANCES("f32", float)
PLAIN_INSTANCES("f16", half)
PLAIN_INSTANCES("bf16", bfloat)
INSTANCES("q4_0", BlockRow<BlockQ4_0>)
INSTANCES("q4_1", BlockRow<BlockQ4_1>)
INSTANCES("q5_0", BlockRow<BlockQ5_0>)
INSTANCES("q5_1", BlockRow<BlockQ5_1>)
INSTANCES("q8_0", BlockRow<BlockQ8_0>)
INSTANCES("iq4_nl", BlockRow<BlockIq4Nl>)
INSTANCES("iq4_xs", BlockRow<BlockIq4Xs>)
INSTANCES("q2_k", BlockRow<BlockQ2K>)
INSTANCES("q3_k", BlockRow<BlockQ3K>)
INSTANCES("q4_k", BlockRow<BlockQ4K>)
INSTANCES("q5_k", BlockRow<BlockQ5K>)
INSTANCES("q6_k", BlockRow<BlockQ6K>)

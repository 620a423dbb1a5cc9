// Rows of weights in chunks of 16 values, and the inputs that belong to them.

/// Rows of blocks.
template <typename Block>
struct BlockRow {
    enum : uint { CHUNKS = Block::VALUES / 16, MINIMUM = Block::MINIMUM, PLAIN = 0 };

    static uint chunks(uint k) { return k / 16; }

    /// Which four values of the row part `j` of a chunk is.
    static uint group(uint chunk, uint j) {
        return chunk / CHUNKS * (Block::VALUES / 4) + Block::group(chunk % CHUNKS, j);
    }

    static void load(device const uchar* row, uint chunk, uint, thread Chunk& out) {
        Block::chunk(row + ulong(chunk / CHUNKS) * Block::BYTES, chunk % CHUNKS, out);
    }
};

/// Rows of a plain type. `SPAN` neighbouring chunks share 16 * `SPAN` values, so that as many lanes
/// load neighbouring groups; groups past the end of the row are 0.
template <typename T, uint SPAN>
struct PlainRow {
    enum : uint { MINIMUM = 0, PLAIN = 1 };

    static uint chunks(uint k) { return (k + 16 * SPAN - 1) / (16 * SPAN) * SPAN; }

    static uint group(uint chunk, uint j) {
        return chunk / SPAN * (4 * SPAN) + SPAN * j + chunk % SPAN;
    }

    static void load(device const uchar* row, uint chunk, uint k, thread Chunk& out) {
        for (uint j = 0; j < 4; j++) {
            const uint i = group(chunk, j);
            out.codes[j] = 4 * i < k ? load4((device const T*)row, i, k, ALIGNED) : float4(0.0f);
        }
        single_scale(out, 1.0f, 0.0f);
    }
};

/// Group `i` of a row of the input; 0 past its end. By head, a row is `head_dim` values of every
/// head, `head_stride` apart.
template <typename T>
inline float4 input4(device const T* row, uint i, uint k, ulong head_stride, uint head_dim) {
    if (4 * i >= k) {
        return float4(0.0f);
    }
    if (!HEAD_MAJOR) {
        return load4(row, i, k, ALIGNED);
    }
    if (ALIGNED) {
        const uint head = 4 * i / head_dim;
        return load4(row + head * head_stride, (4 * i - head * head_dim) / 4, head_dim, true);
    }
    float4 x = float4(0.0f);
    for (uint j = 4 * i; j < min(4 * i + 4, k); j++) {
        x[j - 4 * i] = float(row[j / head_dim * head_stride + j % head_dim]);
    }
    return x;
}

/// What the product of one weight matrix is combined with.
constant constexpr uint PRODUCT = 0;
/// Activation of the product, times the product of a second matrix.
constant constexpr uint GATED = 1;
/// Activation of a gate that is there already, times the product.
constant constexpr uint UP = 2;

/// activation(gate) * up, as the elementwise operations compute it.
inline float gated(float gate, float up) {
    if (GELU) {
        const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
        return 0.5f * gate * (1.0f + precise::tanh(inner)) * up;
    }
    return gate / (1.0f + precise::exp(-gate)) * up;
}

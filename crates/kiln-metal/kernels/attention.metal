// What both attentions share: where keys and values are, and which keys a query attends to.

/// The running maximum before any key: finite, so that no difference of infinities occurs.
constant constexpr float LOWEST = -FLT_MAX / 2.0f;

/// Rows of a plain type.
template <typename T>
struct PlainKeys {
    typedef T Tile;

    static float4 load(device const uchar* row, uint i, uint dim) {
        return load4((device const T*)row, i, dim, ALIGNED);
    }
};

/// Rows of q8_0 blocks.
struct QuantKeys {
    typedef half Tile;

    static float4 load(device const uchar* row, uint i, uint) {
        return BlockQ8_0::four(row + ulong(i / 8) * BlockQ8_0::BYTES, i % 8);
    }
};

/// Positions of keys in a cache or a tensor, and of queries.
struct Positions {
    /// The first key that is there, and one past the last.
    uint first;
    uint end;
    /// The position of query row 0.
    uint queries;
    bool valid;
};

/// Positions in a cache of which `length` were appended, the last `tokens` being the queries.
inline Positions cache_positions(uint length, uint tokens, uint capacity) {
    Positions at;
    at.valid = length >= tokens && (RING || length <= capacity);
    at.first = length > capacity ? length - capacity : 0;
    at.end = length;
    at.queries = length - tokens;
    return at;
}

/// The first key inside the window of a query.
inline uint window_start(uint first, uint query, uint window) {
    return WINDOW && query >= window ? max(first, query - window + 1) : first;
}

/// A score from a scaled product.
inline float limited(float score, float softcap) {
    return SOFTCAP ? softcap * precise::tanh(score / softcap) : score;
}

/// What the sum of weighted values is multiplied with: one over the sum of the weights, with the sink
/// in it. 0 where there was no key.
inline float normaliser(float largest, float sum, float sink) {
    if (sum == 0.0f) {
        return 0.0f;
    }
    if (!SINKS) {
        return 1.0f / sum;
    }
    const float top = max(largest, sink);
    const float scale = precise::exp(largest - top);
    return scale / (sum * scale + precise::exp(sink - top));
}

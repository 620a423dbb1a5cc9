// Blocks of quantised weights, as they lie in a file. Every type has
//   VALUES, BYTES   values and bytes of a block; blocks are aligned to 2 bytes
//   four(block, i)  values 4 * i to 4 * i + 3 of a block, the true values rounded once to float
//   chunk(block, c, out)  the 16 values whose codes share bytes, c below VALUES / 16
//   group(c, j)     which four values of the block part j of chunk c is
//   MINIMUM         whether a chunk has minima
// Codes of four neighbours are in four neighbouring bytes, in one field of each.

/// A scale as stored: f16 at an even address.
inline float scale_at(device const uchar* bytes) {
    return float(*(device const half*)bytes);
}

/// Four neighbouring bytes.
inline uint4 bytes4(device const uchar* bytes) {
    return uint4(bytes[0], bytes[1], bytes[2], bytes[3]);
}

/// Two neighbouring pairs of bytes as a word; blocks and their parts are aligned to 2 bytes.
inline uint word_at(device const uchar* bytes) {
    device const ushort* halves = (device const ushort*)bytes;
    return uint(halves[0]) | uint(halves[1]) << 16;
}

/// The four bytes of a word as numbers.
inline float4 codes4(uint word) {
    return float4(as_type<uchar4>(word));
}

/// Values of four groups of four: value j of group g is codes[g][j] * scale[g] + minimum[g].
struct Chunk {
    float4 codes[4];
    float4 scale;
    float4 minimum;
};

/// One scale and minimum for the whole chunk.
inline void single_scale(thread Chunk& out, float scale, float minimum) {
    out.scale = float4(scale);
    out.minimum = float4(minimum);
}

/// Low nibbles of two words, then the high ones; `high` has further bits of each.
inline void nibble_codes(thread Chunk& out, uint2 words, uint4 high) {
    const uint low = 0x0f0f0f0fu;
    out.codes[0] = codes4((words.x & low) | high.x);
    out.codes[1] = codes4((words.y & low) | high.y);
    out.codes[2] = codes4((words.x >> 4 & low) | high.z);
    out.codes[3] = codes4((words.y >> 4 & low) | high.w);
}

/// Groups of blocks of 32 values whose low nibbles are the first half.
inline uint group_of_32(uint c, uint j) {
    return 8 * (c >> 1) + 2 * (c & 1) + (j & 1) + 4 * (j >> 1);
}

/// Groups of blocks of 256 whose low nibbles are 32 values, and the high ones the next 32.
inline uint group_of_64(uint c, uint j) {
    return 16 * (c >> 2) + 2 * (c & 3) + (j & 1) + 8 * (j >> 1);
}

/// Groups of blocks of 256 with four values 32 apart in the bits of a byte.
inline uint group_of_128(uint c, uint j) {
    return 32 * (c >> 3) + 8 * j + (c & 7);
}

/// Four bits as the fifth bits of four bytes.
inline uint spread_fifth(uint bits) {
    return ((bits & 15) * 0x00204081u & 0x01010101u) << 4;
}

/// The fifth bits of a chunk of a block of 32.
inline uint4 spread_fifths(uint word, uint c) {
    return uint4(spread_fifth(word >> (8 * c)), spread_fifth(word >> (8 * c + 4)),
                 spread_fifth(word >> (16 + 8 * c)), spread_fifth(word >> (20 + 8 * c)));
}

/// Plain types are blocks of four values here, so that rows of a multiple of 4 values are read alike.
template <typename T>
struct BlockPlain {
    enum : uint { VALUES = 4, BYTES = 4 * sizeof(T) };

    static float4 four(device const uchar* block, uint) {
        device const T* x = (device const T*)block;
        return float4(float(x[0]), float(x[1]), float(x[2]), float(x[3]));
    }
};

struct BlockQ4_0 {
    enum : uint { VALUES = 32, BYTES = 18, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 q = bytes4(block + 2 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * (float4(q) - 8.0f);
    }

    static uint group(uint c, uint j) { return group_of_32(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint2 words = uint2(word_at(block + 2 + 8 * c), word_at(block + 6 + 8 * c));
        nibble_codes(out, words, uint4(0));
        const float scale = scale_at(block);
        single_scale(out, scale, -8.0f * scale);
    }
};

struct BlockQ4_1 {
    enum : uint { VALUES = 32, BYTES = 20, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 q = bytes4(block + 4 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * float4(q) + scale_at(block + 2);
    }

    static uint group(uint c, uint j) { return group_of_32(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint2 words = uint2(word_at(block + 4 + 8 * c), word_at(block + 8 + 8 * c));
        nibble_codes(out, words, uint4(0));
        single_scale(out, scale_at(block), scale_at(block + 2));
    }
};

/// Bits 4 * i to 4 * i + 3 of a word as the fifth bits of four codes.
inline uint4 fifth_bits(device const uchar* bytes, uint i) {
    const uint bits = uint(bytes[i >> 1]) >> (4 * (i & 1));
    return (uint4(bits) >> uint4(0, 1, 2, 3) & 1) << 4;
}

struct BlockQ5_0 {
    enum : uint { VALUES = 32, BYTES = 22, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 low = bytes4(block + 6 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * (float4(low | fifth_bits(block + 2, i)) - 16.0f);
    }

    static uint group(uint c, uint j) { return group_of_32(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint2 words = uint2(word_at(block + 6 + 8 * c), word_at(block + 10 + 8 * c));
        nibble_codes(out, words, spread_fifths(word_at(block + 2), c));
        const float scale = scale_at(block);
        single_scale(out, scale, -16.0f * scale);
    }
};

struct BlockQ5_1 {
    enum : uint { VALUES = 32, BYTES = 24, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 low = bytes4(block + 8 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * float4(low | fifth_bits(block + 4, i)) + scale_at(block + 2);
    }

    static uint group(uint c, uint j) { return group_of_32(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint2 words = uint2(word_at(block + 8 + 8 * c), word_at(block + 12 + 8 * c));
        nibble_codes(out, words, spread_fifths(word_at(block + 4), c));
        single_scale(out, scale_at(block), scale_at(block + 2));
    }
};

struct BlockQ8_0 {
    enum : uint { VALUES = 32, BYTES = 34, MINIMUM = 0 };

    static float4 four(device const uchar* block, uint i) {
        device const char* q = (device const char*)(block + 2 + 4 * i);
        return scale_at(block) * float4(float(q[0]), float(q[1]), float(q[2]), float(q[3]));
    }

    static uint group(uint c, uint j) { return 4 * c + j; }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        for (uint j = 0; j < 4; j++) {
            out.codes[j] = float4(as_type<char4>(word_at(block + 2 + 16 * c + 4 * j)));
        }
        single_scale(out, scale_at(block), 0.0f);
    }
};

constant constexpr float IQ4_CODEBOOK[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                             1,    13,   25,  38,  53,  69,  89,  113};

inline float4 iq4_values(uint4 q) {
    return float4(IQ4_CODEBOOK[q.x], IQ4_CODEBOOK[q.y], IQ4_CODEBOOK[q.z], IQ4_CODEBOOK[q.w]);
}

/// As `nibble_codes`, the codes being places in the codebook.
inline void iq4_codes(thread Chunk& out, uint2 words) {
    const uint low = 0x0f0f0f0fu;
    out.codes[0] = iq4_values(uint4(as_type<uchar4>(words.x & low)));
    out.codes[1] = iq4_values(uint4(as_type<uchar4>(words.y & low)));
    out.codes[2] = iq4_values(uint4(as_type<uchar4>(words.x >> 4 & low)));
    out.codes[3] = iq4_values(uint4(as_type<uchar4>(words.y >> 4 & low)));
}

struct BlockIq4Nl {
    enum : uint { VALUES = 32, BYTES = 18, MINIMUM = 0 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 q = bytes4(block + 2 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * iq4_values(q);
    }

    static uint group(uint c, uint j) { return group_of_32(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint2 words = uint2(word_at(block + 2 + 8 * c), word_at(block + 6 + 8 * c));
        iq4_codes(out, words);
        single_scale(out, scale_at(block), 0.0f);
    }
};

struct BlockIq4Xs {
    enum : uint { VALUES = 256, BYTES = 136, MINIMUM = 0 };

    static float4 four(device const uchar* block, uint i) {
        const uint sub = i >> 3;
        const uint low = uint(block[4 + (sub >> 1)]) >> (4 * (sub & 1)) & 15;
        const uint high = uint(block[2 + (sub >> 2)]) >> (2 * (sub & 3)) & 3;
        const float scale = scale_at(block) * (float(low | high << 4) - 32.0f);
        const uint4 q = bytes4(block + 8 + 16 * sub + 4 * (i & 3)) >> (4 * (i >> 2 & 1)) & 15;
        return scale * iq4_values(q);
    }

    static uint group(uint c, uint j) { return group_of_32(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint sub = c >> 1;
        const uint low = uint(block[4 + (sub >> 1)]) >> (4 * (sub & 1)) & 15;
        const uint high = uint(block[2 + (sub >> 2)]) >> (2 * (sub & 3)) & 3;
        const uint2 words = uint2(word_at(block + 8 + 8 * c), word_at(block + 12 + 8 * c));
        iq4_codes(out, words);
        single_scale(out, scale_at(block) * (float(low | high << 4) - 32.0f), 0.0f);
    }
};

struct BlockQ2K {
    enum : uint { VALUES = 256, BYTES = 84, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const uint packed = block[i >> 2];
        const uint4 q = bytes4(block + 16 + 32 * (i >> 5) + 4 * (i & 7)) >> (2 * (i >> 3 & 3)) & 3;
        const float scale = scale_at(block + 80) * float(packed & 15);
        return scale * float4(q) - scale_at(block + 82) * float(packed >> 4);
    }

    static uint group(uint c, uint j) { return group_of_128(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint part = c >> 3;
        const uint word = word_at(block + 16 + 32 * part + 4 * (c & 7));
        const float scale = scale_at(block + 80);
        const float minimum = scale_at(block + 82);
        for (uint j = 0; j < 4; j++) {
            const uint packed = block[8 * part + 2 * j + (c >> 2 & 1)];
            out.codes[j] = codes4(word >> (2 * j) & 0x03030303u);
            out.scale[j] = scale * float(packed & 15);
            out.minimum[j] = -minimum * float(packed >> 4);
        }
    }
};

struct BlockQ3K {
    enum : uint { VALUES = 256, BYTES = 110, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const uint sub = i >> 2;
        device const uchar* scales = block + 96;
        const uint low_scale = uint(scales[sub & 7]) >> (4 * (sub >> 3)) & 15;
        const uint high_scale = uint(scales[8 + (sub & 3)]) >> (2 * (sub >> 2)) & 3;
        const float scale = scale_at(block + 108) * (float(low_scale | high_scale << 4) - 32.0f);
        const uint4 low = bytes4(block + 32 + 32 * (i >> 5) + 4 * (i & 7)) >> (2 * (i >> 3 & 3)) & 3;
        const uint4 high = bytes4(block + 4 * (i & 7)) >> (i >> 3) & 1;
        return scale * (float4(low | high << 2) - 4.0f);
    }

    static uint group(uint c, uint j) { return group_of_128(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint part = c >> 3;
        const uint low = word_at(block + 32 + 32 * part + 4 * (c & 7));
        const uint high = word_at(block + 4 * (c & 7)) >> (4 * part);
        device const uchar* scales = block + 96;
        for (uint j = 0; j < 4; j++) {
            const uint sub = 2 * j + (c >> 2 & 1);
            const uint low_scale = uint(scales[sub]) >> (4 * part) & 15;
            const uint high_scale = uint(scales[8 + (sub & 3)]) >> (4 * part + 2 * (sub >> 2)) & 3;
            const float scale = scale_at(block + 108) * (float(low_scale | high_scale << 4) - 32.0f);
            out.codes[j] = codes4((low >> (2 * j) & 0x03030303u) | (high >> j & 0x01010101u) << 2);
            out.scale[j] = scale;
            out.minimum[j] = -4.0f * scale;
        }
    }
};

/// Scale and minimum of sub-block `sub` of a q4_k or q5_k block, six bits each.
inline float2 scale_and_minimum(device const uchar* packed, uint sub) {
    if (sub < 4) {
        return float2(float(packed[sub] & 63), float(packed[sub + 4] & 63));
    }
    const uint both = packed[sub + 4];
    const uint scale = (both & 15) | uint(packed[sub - 4]) >> 6 << 4;
    const uint minimum = both >> 4 | uint(packed[sub]) >> 6 << 4;
    return float2(float(scale), float(minimum));
}

/// Scales and minima of the 64 values that chunk `c` of a q4_k or q5_k block is in.
inline void k_scales(thread Chunk& out, device const uchar* block, uint c) {
    const float2 factors = float2(scale_at(block), -scale_at(block + 2));
    const float2 low = factors * scale_and_minimum(block + 4, c >> 2 << 1);
    const float2 high = factors * scale_and_minimum(block + 4, (c >> 2 << 1) + 1);
    out.scale = float4(low.x, low.x, high.x, high.x);
    out.minimum = float4(low.y, low.y, high.y, high.y);
}

struct BlockQ4K {
    enum : uint { VALUES = 256, BYTES = 144, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const float2 s = scale_and_minimum(block + 4, i >> 3);
        const uint4 q = bytes4(block + 16 + 32 * (i >> 4) + 4 * (i & 7)) >> (4 * (i >> 3 & 1)) & 15;
        return scale_at(block) * s.x * float4(q) - scale_at(block + 2) * s.y;
    }

    static uint group(uint c, uint j) { return group_of_64(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint2 words = uint2(word_at(block + 16 + 8 * c), word_at(block + 20 + 8 * c));
        nibble_codes(out, words, uint4(0));
        k_scales(out, block, c);
    }
};

struct BlockQ5K {
    enum : uint { VALUES = 256, BYTES = 176, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const float2 s = scale_and_minimum(block + 4, i >> 3);
        const uint4 low = bytes4(block + 48 + 32 * (i >> 4) + 4 * (i & 7)) >> (4 * (i >> 3 & 1)) & 15;
        const uint4 high = bytes4(block + 16 + 4 * (i & 7)) >> (i >> 3) & 1;
        return scale_at(block) * s.x * float4(low | high << 4) - scale_at(block + 2) * s.y;
    }

    static uint group(uint c, uint j) { return group_of_64(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint2 words = uint2(word_at(block + 48 + 8 * c), word_at(block + 52 + 8 * c));
        const uint2 bits = uint2(word_at(block + 16 + 8 * (c & 3)), word_at(block + 20 + 8 * (c & 3)));
        const uint2 low = (bits >> (c >> 2 << 1) & 0x01010101u) << 4;
        const uint2 high = (bits >> ((c >> 2 << 1) + 1) & 0x01010101u) << 4;
        nibble_codes(out, words, uint4(low, high));
        k_scales(out, block, c);
    }
};

struct BlockQ6K {
    enum : uint { VALUES = 256, BYTES = 210, MINIMUM = 1 };

    static float4 four(device const uchar* block, uint i) {
        const float scale = scale_at(block + 208) * float(((device const char*)block)[192 + (i >> 2)]);
        const uint4 low = bytes4(block + 64 * (i >> 5) + 4 * (i & 15)) >> (4 * (i >> 4 & 1)) & 15;
        const uint4 high = bytes4(block + 128 + 32 * (i >> 5) + 4 * (i & 7)) >> (2 * (i >> 3 & 3)) & 3;
        return scale * (float4(low | high << 4) - 32.0f);
    }

    static uint group(uint c, uint j) { return group_of_128(c, j); }

    static void chunk(device const uchar* block, uint c, thread Chunk& out) {
        const uint part = c >> 3;
        device const uchar* at = block + 64 * part + 4 * (c & 7);
        const uint2 words = uint2(word_at(at), word_at(at + 32));
        const uint bits = word_at(block + 128 + 32 * part + 4 * (c & 7));
        const uint4 high = (uint4(bits) >> uint4(0, 2, 4, 6) & 0x03030303u) << 4;
        nibble_codes(out, words, high);
        device const char* scales = (device const char*)(block + 192 + 8 * part + (c >> 2 & 1));
        out.scale = scale_at(block + 208) *
                    float4(float(scales[0]), float(scales[2]), float(scales[4]), float(scales[6]));
        out.minimum = -32.0f * out.scale;
    }
};

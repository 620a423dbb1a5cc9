// Blocks of quantised weights, as they lie in a file. Every type has
//   VALUES, BYTES   values and bytes of a block; blocks are aligned to 2 bytes
//   four(block, i)  values 4 * i to 4 * i + 3 of a block, the true values rounded once to float
// Codes of four neighbours are in four neighbouring bytes, in one field of each.

/// A scale as stored: f16 at an even address.
inline float scale_at(device const uchar* bytes) {
    return float(*(device const half*)bytes);
}

/// Four neighbouring bytes.
inline uint4 bytes4(device const uchar* bytes) {
    return uint4(bytes[0], bytes[1], bytes[2], bytes[3]);
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
    enum : uint { VALUES = 32, BYTES = 18 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 q = bytes4(block + 2 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * (float4(q) - 8.0f);
    }
};

struct BlockQ4_1 {
    enum : uint { VALUES = 32, BYTES = 20 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 q = bytes4(block + 4 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * float4(q) + scale_at(block + 2);
    }
};

/// Bits 4 * i to 4 * i + 3 of a word as the fifth bits of four codes.
inline uint4 fifth_bits(device const uchar* bytes, uint i) {
    const uint bits = uint(bytes[i >> 1]) >> (4 * (i & 1));
    return (uint4(bits) >> uint4(0, 1, 2, 3) & 1) << 4;
}

struct BlockQ5_0 {
    enum : uint { VALUES = 32, BYTES = 22 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 low = bytes4(block + 6 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * (float4(low | fifth_bits(block + 2, i)) - 16.0f);
    }
};

struct BlockQ5_1 {
    enum : uint { VALUES = 32, BYTES = 24 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 low = bytes4(block + 8 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * float4(low | fifth_bits(block + 4, i)) + scale_at(block + 2);
    }
};

struct BlockQ8_0 {
    enum : uint { VALUES = 32, BYTES = 34 };

    static float4 four(device const uchar* block, uint i) {
        device const char* q = (device const char*)(block + 2 + 4 * i);
        return scale_at(block) * float4(float(q[0]), float(q[1]), float(q[2]), float(q[3]));
    }
};

constant constexpr float IQ4_CODEBOOK[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                             1,    13,   25,  38,  53,  69,  89,  113};

inline float4 iq4_values(uint4 q) {
    return float4(IQ4_CODEBOOK[q.x], IQ4_CODEBOOK[q.y], IQ4_CODEBOOK[q.z], IQ4_CODEBOOK[q.w]);
}

struct BlockIq4Nl {
    enum : uint { VALUES = 32, BYTES = 18 };

    static float4 four(device const uchar* block, uint i) {
        const uint4 q = bytes4(block + 2 + 4 * (i & 3)) >> (4 * (i >> 2)) & 15;
        return scale_at(block) * iq4_values(q);
    }
};

struct BlockIq4Xs {
    enum : uint { VALUES = 256, BYTES = 136 };

    static float4 four(device const uchar* block, uint i) {
        const uint sub = i >> 3;
        const uint low = uint(block[4 + (sub >> 1)]) >> (4 * (sub & 1)) & 15;
        const uint high = uint(block[2 + (sub >> 2)]) >> (2 * (sub & 3)) & 3;
        const float scale = scale_at(block) * (float(low | high << 4) - 32.0f);
        const uint4 q = bytes4(block + 8 + 16 * sub + 4 * (i & 3)) >> (4 * (i >> 2 & 1)) & 15;
        return scale * iq4_values(q);
    }
};

struct BlockQ2K {
    enum : uint { VALUES = 256, BYTES = 84 };

    static float4 four(device const uchar* block, uint i) {
        const uint packed = block[i >> 2];
        const uint4 q = bytes4(block + 16 + 32 * (i >> 5) + 4 * (i & 7)) >> (2 * (i >> 3 & 3)) & 3;
        const float scale = scale_at(block + 80) * float(packed & 15);
        return scale * float4(q) - scale_at(block + 82) * float(packed >> 4);
    }
};

struct BlockQ3K {
    enum : uint { VALUES = 256, BYTES = 110 };

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

struct BlockQ4K {
    enum : uint { VALUES = 256, BYTES = 144 };

    static float4 four(device const uchar* block, uint i) {
        const float2 s = scale_and_minimum(block + 4, i >> 3);
        const uint4 q = bytes4(block + 16 + 32 * (i >> 4) + 4 * (i & 7)) >> (4 * (i >> 3 & 1)) & 15;
        return scale_at(block) * s.x * float4(q) - scale_at(block + 2) * s.y;
    }
};

struct BlockQ5K {
    enum : uint { VALUES = 256, BYTES = 176 };

    static float4 four(device const uchar* block, uint i) {
        const float2 s = scale_and_minimum(block + 4, i >> 3);
        const uint4 low = bytes4(block + 48 + 32 * (i >> 4) + 4 * (i & 7)) >> (4 * (i >> 3 & 1)) & 15;
        const uint4 high = bytes4(block + 16 + 4 * (i & 7)) >> (i >> 3) & 1;
        return scale_at(block) * s.x * float4(low | high << 4) - scale_at(block + 2) * s.y;
    }
};

struct BlockQ6K {
    enum : uint { VALUES = 256, BYTES = 210 };

    static float4 four(device const uchar* block, uint i) {
        const float scale = scale_at(block + 208) * float(((device const char*)block)[192 + (i >> 2)]);
        const uint4 low = bytes4(block + 64 * (i >> 5) + 4 * (i & 15)) >> (4 * (i >> 4 & 1)) & 15;
        const uint4 high = bytes4(block + 128 + 32 * (i >> 5) + 4 * (i & 7)) >> (2 * (i >> 3 & 3)) & 3;
        return scale * (float4(low | high << 4) - 32.0f);
    }
};

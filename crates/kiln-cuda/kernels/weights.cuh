// Weights as the device holds them: the bits of GGUF blocks sorted into planes, so that codes are
// read 16 bytes at a time. Everything is counted in blocks of 32 values.
//
// w[0..3] are the codes of values 0..15, four to a word; w[4..7] those of 16..31.
// A value is `a * code + c`; halves of 16 have scales of their own in some formats.
// Q, H, S, D: bytes of each plane for 256 values.

struct Planes { const u8 *q, *h, *s, *d; };
struct Scales { float a[2], c[2]; };

// How planes are read: from device memory, once; or from a copy in shared memory.
struct Stream {
    static __device__ __forceinline__ uint4 read16(const u8* p) {
        uint4 v;
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
            : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
        return v;
    }
    static __device__ __forceinline__ uint2 read8(const u8* p) {
        uint2 v;
        asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
        return v;
    }
    static __device__ __forceinline__ u32 read4(const u8* p) {
        u32 v;
        asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
        return v;
    }
    static __device__ __forceinline__ u32 read2(const u8* p) {
        u16 v;
        asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(p));
        return v;
    }
};
struct Staged {
    static __device__ __forceinline__ uint4 read16(const u8* p) { return *(const uint4*)p; }
    static __device__ __forceinline__ uint2 read8(const u8* p) { return *(const uint2*)p; }
    static __device__ __forceinline__ u32 read4(const u8* p) { return *(const u32*)p; }
    static __device__ __forceinline__ u32 read2(const u8* p) { return *(const u16*)p; }
};

__device__ __forceinline__ void nibbles(const uint4& q, int (&w)[8]) {
    const u32 words[4] = {q.x, q.y, q.z, q.w};
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        w[i] = words[i] & 0x0f0f0f0f;
        w[4 + i] = words[i] >> 4 & 0x0f0f0f0f;
    }
}
// Bit 8 b + i of `h` is bit 4 of value 4 i + b.
__device__ __forceinline__ void fifth_bits(u32 h, int (&w)[8]) {
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        w[i] |= h << (4 - i) & 0x10101010;
        w[4 + i] |= h >> i & 0x10101010;
    }
}
__device__ __forceinline__ Scales one_scale(float a, float c) { return {{a, a}, {c, c}}; }

struct Q4_0 {
    static constexpr u32 Q = 128, H = 0, S = 16, D = 0;
    static constexpr bool OFFSET = true, HALVES = false;
    struct Raw { uint4 q; u32 d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read2(p.s + b * 2)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { nibbles(r.q, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32) {
        float d = half_bits(r.d);
        return one_scale(d, -8.0f * d);
    }
};
struct Q4_1 {
    static constexpr u32 Q = 128, H = 0, S = 32, D = 0;
    static constexpr bool OFFSET = true, HALVES = false;
    struct Raw { uint4 q; u32 d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read4(p.s + b * 4)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { nibbles(r.q, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32) { return one_scale(half_bits(r.d), half_bits(r.d >> 16)); }
};
struct Q5_0 {
    static constexpr u32 Q = 128, H = 32, S = 16, D = 0;
    static constexpr bool OFFSET = true, HALVES = false;
    struct Raw { uint4 q; u32 h, d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read4(p.h + b * 4), M::read2(p.s + b * 2)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { nibbles(r.q, w); fifth_bits(r.h, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32) {
        float d = half_bits(r.d);
        return one_scale(d, -16.0f * d);
    }
};
struct Q5_1 {
    static constexpr u32 Q = 128, H = 32, S = 32, D = 0;
    static constexpr bool OFFSET = true, HALVES = false;
    struct Raw { uint4 q; u32 h, d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read4(p.h + b * 4), M::read4(p.s + b * 4)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { nibbles(r.q, w); fifth_bits(r.h, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32) { return one_scale(half_bits(r.d), half_bits(r.d >> 16)); }
};
struct Q8_0 {
    static constexpr u32 Q = 128, H = 128, S = 16, D = 0;
    static constexpr bool OFFSET = false, HALVES = false;
    struct Raw { uint4 q, h; u32 d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read16(p.h + b * 16), M::read2(p.s + b * 2)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) {
        w[0] = r.q.x; w[1] = r.q.y; w[2] = r.q.z; w[3] = r.q.w;
        w[4] = r.h.x; w[5] = r.h.y; w[6] = r.h.z; w[7] = r.h.w;
    }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32) { return one_scale(half_bits(r.d), 0.0f); }
};

// The signed codebook of the IQ4 formats, four indices to four bytes.
__device__ __forceinline__ u32 codebook(u32 indices) {
    u32 low = __byte_perm(0xbfad9881, 0xf6eaddcf, indices & 0x7777);
    u32 high = __byte_perm(0x26190d01, 0x71594535, indices & 0x7777);
    return __byte_perm(low, high, 0x3210 | (indices & 0x8888) >> 1);
}
// Nibble n of word i is value 8 i + n.
__device__ __forceinline__ void codebook_words(const uint4& q, int (&w)[8]) {
    const u32 words[4] = {q.x, q.y, q.z, q.w};
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        w[2 * i] = codebook(words[i] & 0xffff);
        w[2 * i + 1] = codebook(words[i] >> 16);
    }
}
struct Iq4Nl {
    static constexpr u32 Q = 128, H = 0, S = 16, D = 0;
    static constexpr bool OFFSET = false, HALVES = false;
    struct Raw { uint4 q; u32 d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read2(p.s + b * 2)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { codebook_words(r.q, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32) { return one_scale(half_bits(r.d), 0.0f); }
};
struct Iq4Xs {
    static constexpr u32 Q = 128, H = 0, S = 0, D = 8;
    static constexpr bool OFFSET = false, HALVES = false;
    struct Raw { uint4 q; uint2 d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read8(p.d + (b >> 3) * 8)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { codebook_words(r.q, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32 j) {
        int scale = int((r.d.y >> 4 * j & 15) | (r.d.x >> (16 + 2 * j) & 3) << 4) - 32;
        return one_scale(half_bits(r.d.x) * float(scale), 0.0f);
    }
};

__device__ __forceinline__ void crumbs(const uint2& q, int (&w)[8]) {
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        w[i] = q.x >> 2 * i & 0x03030303;
        w[4 + i] = q.y >> 2 * i & 0x03030303;
    }
}
struct Q2K {
    static constexpr u32 Q = 64, H = 0, S = 16, D = 4;
    static constexpr bool OFFSET = true, HALVES = true;
    struct Raw { uint2 q; u32 s, d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read8(p.q + b * 8), M::read2(p.s + b * 2), M::read4(p.d + (b >> 3) * 4)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { crumbs(r.q, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32) {
        float d = half_bits(r.d), m = half_bits(r.d >> 16);
        return {{d * float(r.s & 15), d * float(r.s >> 8 & 15)}, {-m * float(r.s >> 4 & 15), -m * float(r.s >> 12 & 15)}};
    }
};
struct Q3K {
    static constexpr u32 Q = 64, H = 32, S = 12, D = 2;
    static constexpr bool OFFSET = true, HALVES = true;
    struct Raw { uint2 q; u32 h, s0, s1, s2, d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) {
        const u8* s = p.s + (b >> 3) * 12;
        return {M::read8(p.q + b * 8), M::read4(p.h + b * 4), M::read4(s), M::read4(s + 4), M::read4(s + 8), M::read2(p.d + (b >> 3) * 2)};
    }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) {
        crumbs(r.q, w);
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            w[i] |= (i < 3 ? r.h << (2 - i) : r.h >> 1) & 0x04040404;
            w[4 + i] |= r.h >> (2 + i) & 0x04040404;
        }
    }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32 j) {
        Scales result;
        #pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32 n = 2 * j + half;
            u32 low = ((n & 4 ? r.s1 : r.s0) >> 8 * (n & 3)) >> 4 * (n >> 3) & 15;
            u32 high = (r.s2 >> 8 * (n & 3)) >> 2 * (n >> 2) & 3;
            float a = half_bits(r.d) * float(int(low | high << 4) - 32);
            result.a[half] = a;
            result.c[half] = -4.0f * a;
        }
        return result;
    }
};

// Twelve bits for each of eight blocks: a scale and a minimum of six bits.
__device__ __forceinline__ Scales six_bit_scales(const uint4& d, u32 j) {
    u32 bit = 12 * j, word = bit >> 5;
    u32 low = word == 0 ? d.y : word == 1 ? d.z : d.w;
    u32 high = word == 0 ? d.z : d.w;
    u32 packed = __funnelshift_r(low, high, bit & 31);
    return one_scale(half_bits(d.x) * float(packed & 63), -half_bits(d.x >> 16) * float(packed >> 6 & 63));
}
struct Q4K {
    static constexpr u32 Q = 128, H = 0, S = 0, D = 16;
    static constexpr bool OFFSET = true, HALVES = false;
    struct Raw { uint4 q, d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read16(p.d + (b >> 3) * 16)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { nibbles(r.q, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32 j) { return six_bit_scales(r.d, j); }
};
struct Q5K {
    static constexpr u32 Q = 128, H = 32, S = 0, D = 16;
    static constexpr bool OFFSET = true, HALVES = false;
    struct Raw { uint4 q, d; u32 h; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) { return {M::read16(p.q + b * 16), M::read16(p.d + (b >> 3) * 16), M::read4(p.h + b * 4)}; }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) { nibbles(r.q, w); fifth_bits(r.h, w); }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32 j) { return six_bit_scales(r.d, j); }
};
struct Q6K {
    static constexpr u32 Q = 128, H = 64, S = 16, D = 2;
    static constexpr bool OFFSET = true, HALVES = true;
    struct Raw { uint4 q; uint2 h; u32 s, d; };
    template <class M = Stream> static __device__ __forceinline__ Raw load(const Planes& p, u64 b) {
        return {M::read16(p.q + b * 16), M::read8(p.h + b * 8), M::read2(p.s + b * 2), M::read2(p.d + (b >> 3) * 2)};
    }
    static __device__ __forceinline__ void words(const Raw& r, int (&w)[8]) {
        nibbles(r.q, w);
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            w[i] |= (i < 2 ? r.h.x << (4 - 2 * i) : r.h.x >> (2 * i - 4)) & 0x30303030;
            w[4 + i] |= (i < 2 ? r.h.y << (4 - 2 * i) : r.h.y >> (2 * i - 4)) & 0x30303030;
        }
    }
    static __device__ __forceinline__ Scales scales(const Raw& r, u32) {
        float d = half_bits(r.d);
        float a0 = d * float(i8(r.s)), a1 = d * float(i8(r.s >> 8));
        return {{a0, a1}, {-32.0f * a0, -32.0f * a1}};
    }
};

// A code as a number; those of formats without an offset are signed.
template <class W> __device__ __forceinline__ float code(int word, int byte) {
    return W::OFFSET ? float(u32(word) >> 8 * byte & 255) : float(i8(u32(word) >> 8 * byte));
}

// The 32 values of a block.
template <class W> __device__ __forceinline__ void values(const typename W::Raw& raw, u32 j, float (&v)[32]) {
    int w[8];
    W::words(raw, w);
    Scales s = W::scales(raw, j);
    #pragma unroll
    for (int i = 0; i < 32; ++i) {
        float x = code<W>(w[i / 4], i % 4);
        v[i] = W::OFFSET ? fmaf(s.a[i / 16], x, s.c[i / 16]) : s.a[i / 16] * x;
    }
}

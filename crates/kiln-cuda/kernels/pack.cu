// GGUF blocks to planes: a thread for each block of 32 values.

template <int LANES, int WIDTH> __device__ __forceinline__ u32 field(const u8* bytes, u32 n) {
    constexpr u32 GROUP = LANES * 8 / WIDTH;
    u32 byte = n / GROUP * LANES + n % LANES, shift = n % GROUP / LANES * WIDTH;
    return bytes[byte] >> shift & ((1 << WIDTH) - 1);
}

// Where a block has its parts; code n of 256 or 32.
template <class W> struct Source;
template <> struct Source<Q4_0> { static constexpr int LEN = 32, BYTES = 18; static __device__ u32 code(const u8* b, u32 n) { return field<16, 4>(b + 2, n); } };
template <> struct Source<Q4_1> { static constexpr int LEN = 32, BYTES = 20; static __device__ u32 code(const u8* b, u32 n) { return field<16, 4>(b + 4, n); } };
template <> struct Source<Q5_0> { static constexpr int LEN = 32, BYTES = 22; static __device__ u32 code(const u8* b, u32 n) { return field<16, 4>(b + 6, n) | field<1, 1>(b + 2, n) << 4; } };
template <> struct Source<Q5_1> { static constexpr int LEN = 32, BYTES = 24; static __device__ u32 code(const u8* b, u32 n) { return field<16, 4>(b + 8, n) | field<1, 1>(b + 4, n) << 4; } };
template <> struct Source<Q8_0> { static constexpr int LEN = 32, BYTES = 34; static __device__ u32 code(const u8* b, u32 n) { return b[2 + n]; } };
template <> struct Source<Iq4Nl> { static constexpr int LEN = 32, BYTES = 18; static __device__ u32 code(const u8* b, u32 n) { return field<16, 4>(b + 2, n); } };
template <> struct Source<Iq4Xs> { static constexpr int LEN = 256, BYTES = 136; static __device__ u32 code(const u8* b, u32 n) { return field<16, 4>(b + 8, n); } };
template <> struct Source<Q2K> { static constexpr int LEN = 256, BYTES = 84; static __device__ u32 code(const u8* b, u32 n) { return field<32, 2>(b + 16, n); } };
template <> struct Source<Q3K> { static constexpr int LEN = 256, BYTES = 110; static __device__ u32 code(const u8* b, u32 n) { return field<32, 2>(b + 32, n) | field<32, 1>(b, n) << 2; } };
template <> struct Source<Q4K> { static constexpr int LEN = 256, BYTES = 144; static __device__ u32 code(const u8* b, u32 n) { return field<32, 4>(b + 16, n); } };
template <> struct Source<Q5K> { static constexpr int LEN = 256, BYTES = 176; static __device__ u32 code(const u8* b, u32 n) { return field<32, 4>(b + 48, n) | field<32, 1>(b + 16, n) << 4; } };
template <> struct Source<Q6K> { static constexpr int LEN = 256, BYTES = 210; static __device__ u32 code(const u8* b, u32 n) { return field<64, 4>(b, n) | field<32, 2>(b + 128, n) << 4; } };

template <class A, class B> constexpr bool SAME = false;
template <class A> constexpr bool SAME<A, A> = true;

__device__ __forceinline__ void move(u8* to, const u8* from, int bytes) {
    for (int i = 0; i < bytes; ++i) to[i] = from[i];
}

template <class W> __device__ void pack(const PackArgs& args) {
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= args.rows * args.blocks) return;
    const u64 row = at / args.blocks, in_row = at % args.blocks;
    constexpr u32 PARTS = Source<W>::LEN / 32;
    const u32 j = in_row % PARTS;
    const u8* from = (const u8*)(args.source + row * args.source_stride + in_row / PARTS * Source<W>::BYTES);
    const u64 b = args.first_block + at;
    u8 *q = (u8*)args.q, *h = (u8*)args.h, *s = (u8*)args.s, *d = (u8*)args.d;

    u32 codes[32];
    for (u32 i = 0; i < 32; ++i) codes[i] = Source<W>::code(from, j * 32 + i);
    constexpr bool NATURAL = SAME<W, Iq4Nl> || SAME<W, Iq4Xs>;
    constexpr bool CRUMBS = SAME<W, Q2K> || SAME<W, Q3K>;
    if (SAME<W, Q8_0>) {
        for (u32 i = 0; i < 16; ++i) {
            q[b * 16 + i] = codes[i];
            h[b * 16 + i] = codes[16 + i];
        }
    } else if (CRUMBS) {
        for (u32 half = 0; half < 2; ++half) {
            for (u32 byte = 0; byte < 4; ++byte) {
                u32 packed = 0;
                for (u32 i = 0; i < 4; ++i) packed |= (codes[16 * half + 4 * i + byte] & 3) << 2 * i;
                q[b * 8 + 4 * half + byte] = packed;
            }
        }
    } else {
        for (u32 i = 0; i < 16; ++i) {
            u32 low = NATURAL ? codes[2 * i] : codes[i] & 15;
            u32 high = NATURAL ? codes[2 * i + 1] : codes[16 + i] & 15;
            q[b * 16 + i] = low | high << 4;
        }
    }
    if (SAME<W, Q5_0> || SAME<W, Q5_1> || SAME<W, Q5K> || SAME<W, Q3K>) {
        constexpr int BIT = SAME<W, Q3K> ? 2 : 4;
        for (u32 byte = 0; byte < 4; ++byte) {
            u32 packed = 0;
            for (u32 i = 0; i < 4; ++i) {
                packed |= (codes[4 * i + byte] >> BIT & 1) << i;
                packed |= (codes[16 + 4 * i + byte] >> BIT & 1) << (4 + i);
            }
            h[b * 4 + byte] = packed;
        }
    }
    if (SAME<W, Q6K>) {
        for (u32 half = 0; half < 2; ++half) {
            for (u32 byte = 0; byte < 4; ++byte) {
                u32 packed = 0;
                for (u32 i = 0; i < 4; ++i) packed |= (codes[16 * half + 4 * i + byte] >> 4 & 3) << 2 * i;
                h[b * 8 + 4 * half + byte] = packed;
            }
        }
    }
    if (SAME<W, Q4_0> || SAME<W, Q5_0> || SAME<W, Q8_0> || SAME<W, Iq4Nl>) move(s + b * 2, from, 2);
    if (SAME<W, Q4_1> || SAME<W, Q5_1>) move(s + b * 4, from, 4);
    if (SAME<W, Q2K>) move(s + b * 2, from + 2 * j, 2);
    if (SAME<W, Q6K>) move(s + b * 2, from + 192 + 2 * j, 2);
    const u64 super = b >> 3;
    if (PARTS == 1 || j != 0) return;
    if (SAME<W, Q2K>) move(d + super * 4, from + 80, 4);
    if (SAME<W, Q3K>) { move(s + super * 12, from + 96, 12); move(d + super * 2, from + 108, 2); }
    if (SAME<W, Q6K>) move(d + super * 2, from + 208, 2);
    if (SAME<W, Iq4Xs>) move(d + super * 8, from, 8);
    if (SAME<W, Q4K> || SAME<W, Q5K>) {
        const u8* packed = from + 4;
        u32 words[3] = {};
        for (u32 n = 0; n < 8; ++n) {
            u32 scale = n < 4 ? packed[n] & 63 : (packed[n + 4] & 15) | packed[n - 4] >> 6 << 4;
            u32 min = n < 4 ? packed[n + 4] & 63 : packed[n + 4] >> 4 | packed[n] >> 6 << 4;
            u64 bits = u64(scale | min << 6) << (12 * n & 31);
            words[12 * n >> 5] |= u32(bits);
            if ((12 * n & 31) > 20) words[(12 * n >> 5) + 1] |= u32(bits >> 32);
        }
        move(d + super * 16, from, 4);
        move(d + super * 16 + 4, (const u8*)words, 12);
    }
}

#define INSTANCE(NAME, W) extern "C" __global__ void pack_##NAME(const __grid_constant__ PackArgs args) { begin(); pack<W>(args); }
INSTANCE(q4_0, Q4_0) INSTANCE(q4_1, Q4_1) INSTANCE(q5_0, Q5_0) INSTANCE(q5_1, Q5_1)
INSTANCE(q8_0, Q8_0) INSTANCE(iq4_nl, Iq4Nl) INSTANCE(q2_k, Q2K) INSTANCE(q3_k, Q3K)
INSTANCE(q4_k, Q4K) INSTANCE(q5_k, Q5K) INSTANCE(q6_k, Q6K) INSTANCE(iq4_xs, Iq4Xs)

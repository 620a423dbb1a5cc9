// Blocks of quantised weights in bf16.

// The 32 values of a block in bf16, eight to a piece. A code becomes a float by its place in a mantissa:
// 128 + code of formats with an offset, 2^15 + 128 + code of signed ones.
template <class W> __device__ __forceinline__ void bf16_values(const typename W::Raw& raw, u32 j, uint4 (&v)[4]) {
    int w[8];
    W::words(raw, w);
    const Scales s = W::scales(raw, j);
    const float c[2] = {fmaf(-128.0f, s.a[0], s.c[0]), fmaf(-128.0f, s.a[1], s.c[1])};
    auto value = [&](int i) {
        const float a = s.a[i / 16];
        if (W::OFFSET) return fmaf(a, __uint_as_float(__byte_perm(w[i / 4], 0x43000000, 0x7044 | i % 4 << 8)), c[i / 16]);
        return a * (__uint_as_float(__byte_perm(w[i / 4] ^ 0x80808080, 0x47000000, 0x7404 | i % 4 << 4)) - 32896.0f);
    };
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        v[i] = make_uint4(
            pack2<bf16>(value(8 * i), value(8 * i + 1)), pack2<bf16>(value(8 * i + 2), value(8 * i + 3)),
            pack2<bf16>(value(8 * i + 4), value(8 * i + 5)), pack2<bf16>(value(8 * i + 6), value(8 * i + 7)));
    }
}

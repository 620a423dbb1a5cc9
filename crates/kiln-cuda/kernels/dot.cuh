// The product of a block of a weight and a block of activations in 15 bits.

// 32 activations, as `store_q15` lays them out.
struct Activations {
    int4 high[2], low[2];
    // {scale, sum of the lower half, of the upper half, 0}
    float4 x;
    __device__ __forceinline__ Activations(const u8* row, u32 blocks, u32 b) {
        const int4* planes = (const int4*)row;
        high[0] = planes[b];
        high[1] = planes[blocks + b];
        low[0] = planes[2 * blocks + b];
        low[1] = planes[3 * blocks + b];
        x = ((const float4*)row)[4 * blocks + b];
    }
};

template <class W> struct Dot {
    static __device__ __forceinline__ int add(const int* w, const int4& x, int acc) {
        acc = __dp4a(w[0], x.x, acc);
        acc = __dp4a(w[1], x.y, acc);
        acc = __dp4a(w[2], x.z, acc);
        return __dp4a(w[3], x.w, acc);
    }
    // Adds a block of the weight times a block of activations.
    static __device__ __forceinline__ float add(const int (&w)[8], const Scales& s, const Activations& a, float acc) {
        const float4& x = a.x;
        if (W::HALVES) {
            const int lower = 128 * add(w, a.high[0], 0) + add(w, a.low[0], 0), upper = 128 * add(w + 4, a.high[1], 0) + add(w + 4, a.low[1], 0);
            acc = fmaf(s.a[0] * x.x, float(lower), acc);
            acc = fmaf(s.a[1] * x.x, float(upper), acc);
        } else {
            const int high = add(w + 4, a.high[1], add(w, a.high[0], 0)), low = add(w + 4, a.low[1], add(w, a.low[0], 0));
            acc = fmaf(s.a[0] * x.x, float(128 * high + low), acc);
        }
        if (W::OFFSET) {
            if (W::HALVES) {
                acc = fmaf(s.c[0], x.y, acc);
                acc = fmaf(s.c[1], x.z, acc);
            } else {
                acc = fmaf(s.c[0], x.y + x.z, acc);
            }
        }
        return acc;
    }
};

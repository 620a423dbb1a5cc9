// The product of a block of a weight and a block of activations in 8 bits.

template <class W> struct Dot {
    // Adds block `b` of the weight times block `b` of the activations.
    static __device__ __forceinline__ float add(const int (&w)[8], const Scales& s, const int4& lo, const int4& hi, const float4& x, float acc) {
        int low = 0, high = 0;
        low = __dp4a(w[0], lo.x, low); low = __dp4a(w[1], lo.y, low);
        low = __dp4a(w[2], lo.z, low); low = __dp4a(w[3], lo.w, low);
        if (!W::HALVES) high = low;
        high = __dp4a(w[4], hi.x, high); high = __dp4a(w[5], hi.y, high);
        high = __dp4a(w[6], hi.z, high); high = __dp4a(w[7], hi.w, high);
        if (W::HALVES) {
            acc = fmaf(s.a[0] * x.x, float(low), acc);
            acc = fmaf(s.a[1] * x.x, float(high), acc);
        } else {
            acc = fmaf(s.a[0] * x.x, float(high), acc);
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

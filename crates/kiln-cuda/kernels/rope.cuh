// Per-head RMS normalisation and rotation, a warp for a head. A lane has whole pairs, so that what turns
// together meets in its registers, and all that a head needs is asked for before any of it is used.

// The operations on heads that one launch has. A lane has PAIRS pairs in registers.
struct HeadJobs { HeadNormRopeArgs job[JOBS]; };

// Neighbours that one access has.
template <class T> struct __align__(2 * sizeof(T)) Two { T a, b; };

// WIDE: neighbours have one access where `args.wide` says that they may.
template <class T, bool WIDE> struct HeadPairs {
    float2 x[PAIRS], weight[PAIRS], turn[PAIRS];
    const T* row;
    const float *cosines, *sines;

    __device__ __forceinline__ HeadPairs(const HeadNormRopeArgs& args, u64 token, u64 head) {
        const u64 angles = args.table_rows == 1 ? 0 : token;
        row = (const T*)(args.input + token * args.input_stride_t + head * args.input_stride_h);
        cosines = (const float*)(args.cosines + angles * args.cosines_stride);
        sines = (const float*)(args.sines + angles * args.sines_stride);
    }

    // Where both values of a pair lie in a head; the second of the last pair may be behind its end.
    __device__ __forceinline__ static uint2 places(const HeadNormRopeArgs& args, u32 pair) {
        return pair < args.apart ? make_uint2(pair, pair + args.apart) : make_uint2(2 * pair, 2 * pair + 1);
    }
    __device__ __forceinline__ static u32 pair(u32 first, int e) { return first + 32 * e + (threadIdx.x & 31); }

    // Asks for pairs from `first` on.
    __device__ __forceinline__ void load(const HeadNormRopeArgs& args, u32 first) {
        #pragma unroll
        for (int e = 0; e < PAIRS; ++e) {
            const u32 p = pair(first, e);
            const uint2 at = places(args, p);
            x[e] = weight[e] = turn[e] = make_float2(0.0f, 0.0f);
            if (at.x >= args.dim) continue;
            if (WIDE && args.wide && at.y == at.x + 1) {
                const Two<T> both = *(const Two<T>*)(row + at.x);
                x[e] = make_float2(to_float(both.a), to_float(both.b));
            } else {
                x[e].x = to_float(row[at.x]);
                if (at.y < args.dim) x[e].y = to_float(row[at.y]);
            }
            if (p < args.half) turn[e] = make_float2(cosines[p], sines[p]);
            if (args.weight) {
                weight[e].x = factor(args, at.x);
                if (at.y < args.dim) weight[e].y = factor(args, at.y);
            }
        }
    }
    __device__ __forceinline__ static float factor(const HeadNormRopeArgs& args, u32 i) {
        return args.weight_single ? ((const float*)args.weight)[i] : to_float(((const T*)args.weight)[i]);
    }

    // The lane's part of the sum of squares.
    __device__ __forceinline__ float squares() const {
        float sum = 0.0f;
        #pragma unroll
        for (int e = 0; e < PAIRS; ++e) sum = sum + x[e].x * x[e].x + x[e].y * x[e].y;
        return sum;
    }

    // A pair, normalised with the root `r` and rotated.
    __device__ __forceinline__ float2 turned(const HeadNormRopeArgs& args, float r, u32 first, int e) const {
        float2 y = x[e];
        if (args.normalize) y = make_float2(y.x * r, y.y * r);
        if (args.weight) y = make_float2(y.x * weight[e].x, y.y * weight[e].y);
        if (pair(first, e) >= args.half) return y;
        return make_float2(y.x * turn[e].x - y.y * turn[e].y, y.y * turn[e].x + y.x * turn[e].y);
    }

    template <class U> __device__ __forceinline__ static void store(const HeadNormRopeArgs& args, U* row, uint2 at, float2 y) {
        if (WIDE && args.wide && at.y == at.x + 1) {
            *(Two<U>*)(row + at.x) = {from_float<U>(y.x), from_float<U>(y.y)};
        } else {
            row[at.x] = from_float<U>(y.x);
            if (at.y < args.dim) row[at.y] = from_float<U>(y.y);
        }
    }
};

// What heads are multiplied with, from the lanes' sums of squares.
__device__ __forceinline__ float head_root(const HeadNormRopeArgs& args, float sum) {
    return 1.0f / sqrtf(warp_sum(sum) / float(args.dim) + args.eps);
}

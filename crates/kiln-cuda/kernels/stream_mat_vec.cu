// Products of few rows with quantised weights. Weights pass through shared memory by asynchronous
// copies: many bytes are under way, few registers taken, and the first weights are there when the
// kernel before has ended.
//
// A warp takes ROWS rows of the weight at once, of the gated form one of each weight, in chunks of
// CHUNK blocks, through a ring of STAGES stages of its own. Lanes take blocks, and are summed, as in
// mat_vec.cu: the bits of a result are the same.

// Pieces of 16 bytes that hold a chunk of a plane. Planes with less than 16 bytes for a block may
// begin inside a piece.
__device__ constexpr u32 pieces(u32 per_256) { return per_256 >= 128 ? CHUNK / 8 * per_256 / 16 : per_256 ? (CHUNK / 8 * per_256 + 30) / 16 : 0; }

// A stage: the planes of all rows.
template <class W> struct Stage {
    static constexpr u32 H = 16 * pieces(W::Q), S = H + 16 * pieces(W::H), D = S + 16 * pieces(W::S), ROW = D + 16 * pieces(W::D);
};

// Where the planes of a row have block `b`, a multiple of 8 where a plane has less than a byte for
// each block.
template <class W> __device__ __forceinline__ Planes at_block(const Planes& p, u64 b) {
    return {p.q + b * W::Q / 8, p.h + b * W::H / 8, p.s + b * W::S / 8, p.d + b * W::D / 8};
}

// Begins to copy `count` blocks of a plane; a warp.
template <u32 PER_256> __device__ __forceinline__ void copy_plane(u8* to, const u8* from, u32 count) {
    if (PER_256 == 0) return;
    const u32 lane = threadIdx.x & 31, before = u32(u64(from)) & 15;
    const u32 bytes = before + count * PER_256 / 8;
    const u8* start = from - before;
    #pragma unroll
    for (u32 i = 0; i < (pieces(PER_256) + 31) / 32; ++i) {
        const u32 at = 16 * (lane + 32 * i);
        if (at < bytes) copy_async16_once(to + at, start + at);
    }
}
template <class W> __device__ __forceinline__ void copy_planes(u8* to, const Planes& from, u32 count) {
    copy_plane<W::Q>(to, from.q, count);
    copy_plane<W::H>(to + Stage<W>::H, from.h, count);
    copy_plane<W::S>(to + Stage<W>::S, from.s, count);
    copy_plane<W::D>(to + Stage<W>::D, from.d, count);
}
// Where copied planes begin, for those that were copied from `from`.
template <class W> __device__ __forceinline__ Planes staged_planes(const u8* stage, const Planes& from) {
    return {stage, stage + Stage<W>::H + (u32(u64(from.h)) & 15), stage + Stage<W>::S + (u32(u64(from.s)) & 15), stage + Stage<W>::D + (u32(u64(from.d)) & 15)};
}

// The weights of a launch, one after the other; those of a gated form side by side.
template <u32 R, bool GATED> struct Units {
    const MatVecSegment &a, &b, &c;
    const u32 a_units, b_units, all;
    __device__ __forceinline__ Units(const MatVecSegment& a, const MatVecSegment& b, const MatVecSegment& c)
        : a(a), b(b), c(c), a_units(GATED ? u32(a.n) : u32(a.n + R - 1) / R), b_units(GATED ? 0 : u32(b.n + R - 1) / R),
          all(GATED ? a_units : a_units + b_units + u32(c.n + R - 1) / R) {}

    // First row, and rows, of the weight that a unit is part of.
    __device__ __forceinline__ void locate(u32 unit, u32& row, u32& n) const {
        const bool in_a = GATED || unit < a_units, in_b = unit < a_units + b_units;
        row = (unit - (in_a ? 0 : in_b ? a_units : a_units + b_units)) * (GATED ? 1 : R);
        n = in_a ? a.n : in_b ? b.n : c.n;
    }
    // The planes of row r of a unit.
    template <class W> __device__ __forceinline__ void planes(u32 unit, u32 blocks, Planes (&p)[R]) const {
        u32 row, n;
        locate(unit, row, n);
        const bool in_a = unit < a_units, in_b = unit < a_units + b_units;
        #pragma unroll
        for (u32 r = 0; r < R; ++r) {
            const bool first = GATED ? r == 0 : in_a, second = GATED || in_b;
            const Planes base = {
                (const u8*)(first ? a.q : second ? b.q : c.q), (const u8*)(first ? a.h : second ? b.h : c.h),
                (const u8*)(first ? a.s : second ? b.s : c.s), (const u8*)(first ? a.d : second ? b.d : c.d),
            };
            p[r] = at_block<W>(base, u64(GATED ? row : min(row + r, n - 1)) * blocks);
        }
    }
    __device__ __forceinline__ float* output(u32 unit, u32 m) const {
        const bool in_a = GATED || unit < a_units, in_b = unit < a_units + b_units;
        const u64 output = in_a ? a.output : in_b ? b.output : c.output;
        return (float*)(output + m * (in_a ? a.output_stride : in_b ? b.output_stride : c.output_stride));
    }
};

// Adds a chunk, which has `count` blocks; FULL says that it has all.
template <class W, int M, u32 R, bool FULL>
__device__ __forceinline__ void add_chunk(const Planes (&p)[R], const u8* x, u32 blocks, u32 first, u32 count, u32 m_rows, float (&acc)[R][M]) {
    #pragma unroll(M < 4 ? CHUNK / 32 : 1)
    for (u32 j = 0; j < CHUNK / 32; ++j) {
        const u32 b = j * 32 + (threadIdx.x & 31), at = first + b;
        if (!FULL && b >= count) break;
        int w[R][8];
        Scales s[R];
        #pragma unroll
        for (u32 r = 0; r < R; ++r) {
            const typename W::Raw raw = W::template load<Staged>(p[r], b);
            W::words(raw, w[r]);
            s[r] = W::scales(raw, b & 7);
        }
        #pragma unroll
        for (int m = 0; m < M; ++m) {
            const Activations a(x + min(u32(m), m_rows - 1) * u64(blocks) * Q15_BLOCK, blocks, at);
            #pragma unroll
            for (u32 r = 0; r < R; ++r) acc[r][m] = Dot<W>::add(w[r], s[r], a, acc[r][m]);
        }
    }
}

// A row of f32 values to 15 bits, as `activations_q15` makes them; all threads.
__device__ __forceinline__ void round_row(const u8* from, u8* to, u32 blocks, bool wide) {
    const u32 k = blocks * 32, step = WARPS * 32 * 4;
    constexpr int TOGETHER = 4;
    for (u32 base = 0; base < k; base += step * TOGETHER) {
        float v[TOGETHER][4];
        #pragma unroll
        for (int t = 0; t < TOGETHER; ++t) {
            const u32 i = base + t * step + threadIdx.x * 4;
            v[t][0] = v[t][1] = v[t][2] = v[t][3] = 0.0f;
            if (i < k) load4((const float*)from + i, wide, v[t]);
        }
        #pragma unroll
        for (int t = 0; t < TOGETHER; ++t) {
            const u32 i = base + t * step + threadIdx.x * 4;
            if (base + t * step < k) store_q15(to, blocks, i, v[t], ~0u, i < k);
        }
    }
    __syncthreads();
}

// M rows of activations, of `activations_q15`, or one row of f32 values. The next kernel is not asked to
// begin before this one ends: its blocks would not lie evenly beside the last of these.
template <class W, int M, u32 R, bool GATED, bool F32> __device__ void stream_mat_vec(const StreamMatVecArgs& args, const Units<R, GATED>& all) {
    constexpr u32 STAGE = R * Stage<W>::ROW;
    extern __shared__ __align__(128) u8 shared[];
    const u32 lane = threadIdx.x & 31, warp = blockIdx.x * WARPS + (threadIdx.x >> 5), warps = gridDim.x * WARPS;
    const u32 blocks = args.blocks, units = all.all;
    u8* const ring = shared + (threadIdx.x >> 5) * STAGES * STAGE;

    u32 next_unit = warp, next_first = 0;
    Planes next[R];
    if (next_unit < units) all.template planes<W>(next_unit, blocks, next);
    auto fill = [&](u32 stage) {
        if (next_unit < units) {
            #pragma unroll
            for (u32 r = 0; r < R; ++r) {
                copy_planes<W>(ring + stage * STAGE + r * Stage<W>::ROW, next[r], min(blocks - next_first, CHUNK));
                next[r] = at_block<W>(next[r], CHUNK);
            }
            next_first += CHUNK;
            if (next_first >= blocks) {
                next_first = 0;
                next_unit += warps;
                if (next_unit < units) all.template planes<W>(next_unit, blocks, next);
            }
        }
        copy_async_commit();
    };
    for (u32 stage = 0; stage < STAGES; ++stage) fill(stage);
    wait();

    const u8* x = (const u8*)args.activations;
    if (F32) {
        round_row(x, shared + WARPS * STAGES * STAGE, blocks, args.wide);
        x = shared + WARPS * STAGES * STAGE;
    }

    float acc[R][M] = {};
    u32 unit = warp, first = 0, stage = 0;
    Planes rows[R];
    if (unit < units) all.template planes<W>(unit, blocks, rows);
    while (unit < units) {
        copy_async_wait<STAGES - 1>();
        __syncwarp();
        Planes p[R];
        #pragma unroll
        for (u32 r = 0; r < R; ++r) {
            p[r] = staged_planes<W>(ring + stage * STAGE + r * Stage<W>::ROW, rows[r]);
            rows[r] = at_block<W>(rows[r], CHUNK);
        }
        if (blocks - first >= CHUNK) add_chunk<W, M, R, true>(p, x, blocks, first, CHUNK, args.m, acc);
        else add_chunk<W, M, R, false>(p, x, blocks, first, blocks - first, args.m, acc);
        __syncwarp();
        fill(stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        first += CHUNK;
        if (first < blocks) continue;
        first = 0;
        u32 row, n;
        all.locate(unit, row, n);
        #pragma unroll
        for (int m = 0; m < M; ++m) {
            float y[R];
            #pragma unroll
            for (u32 r = 0; r < R; ++r) {
                y[r] = warp_sum(acc[r][m]);
                acc[r][m] = 0.0f;
            }
            float* to = all.output(unit, m);
            if (GATED) {
                if (lane == 0 && m < args.m) to[row] = (args.activation == 0 ? silu(y[0]) : gelu_tanh(y[0])) * y[R - 1];
            } else {
                if (lane < R && row + lane < n && m < args.m) to[row + lane] = lane ? y[R - 1] : y[0];
            }
        }
        unit += warps;
        if (unit < units) all.template planes<W>(unit, blocks, rows);
    }
}

// M: rows of activations, with F32 a single one.
#define INSTANCE(NAME, M, F32) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) stream_mat_vec_##NAME(const __grid_constant__ StreamMatVecArgs args, const __grid_constant__ MatVecSegment a, const __grid_constant__ MatVecSegment b, const __grid_constant__ MatVecSegment c) { \
        stream_mat_vec<WEIGHT, M, ROWS, false, F32>(args, {a, b, c}); \
    } \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) gated_stream_mat_vec_##NAME(const __grid_constant__ StreamMatVecArgs args, const __grid_constant__ MatVecSegment a, const __grid_constant__ MatVecSegment b) { \
        stream_mat_vec<WEIGHT, M, 2, true, F32>(args, {a, b, b}); \
    }
INSTANCE(f32, 1, true)
INSTANCE(1, 1, false)
INSTANCE(2, 2, false)

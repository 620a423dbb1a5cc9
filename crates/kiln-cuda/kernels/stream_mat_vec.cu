// The product of one row with quantised weights, on the tensor cores. Weights pass through shared memory by
// asynchronous copies: many bytes are under way, few registers taken, and the first weights are there when the
// kernel before has ended.
//
// A unit is 16 rows of a weight, an item the part of them of 256 values. A block takes every n-th unit, a round of
// them at a time; its warps divide the parts of a unit, and each copies and multiplies its items through a ring of
// STAGES stages of its own. The sums of items go to shared memory. At the end of a round they are added up in the
// order of the parts: bits depend on the length of the row alone.

// The weights of a launch, one after the other; of the gated form, the gate and the other one.
struct MatVecSegments { MatVecSegment all[3]; };

// Bytes that a copy takes of a row of an item of a plane, and room for all; of less than a word, the word around.
__device__ constexpr u32 piece(u32 per_256) { return per_256 % 16 == 0 ? 16 : per_256 % 8 == 0 ? 8 : 4; }
__device__ constexpr u32 room(u32 per_256) { return (per_256 + 3) / 4 * 4; }
// A stage: the planes of 16 rows, one after the other.
template <class W> struct Stage {
    static constexpr u32 H = UNIT * room(W::Q), S = H + UNIT * room(W::H), D = S + UNIT * room(W::S), BYTES = D + UNIT * room(W::D);
};
// Halves of rows of 128 bytes change places in odd rows, so that eight lanes of two rows read all banks.
template <u32 PER_256> __device__ __forceinline__ u32 swapped(u32 row) { return PER_256 == 128 ? (row & 1) * 64 : 0; }

// Begins to copy an item of a plane, which begins at `from`; a warp. ALL: the weight has all of the rows.
template <u32 PER_256, bool ALL> __device__ __forceinline__ void copy_plane(u32 to, const u8* from, u32 row_bytes, u32 rows) {
    constexpr u32 PIECE = piece(PER_256), PIECES = room(PER_256) / PIECE, COPIES = UNIT * PIECES;
    if (COPIES == 0) return;
    const u32 lane = threadIdx.x & 31, r = lane / PIECES, at = lane % PIECES * PIECE;
    #pragma unroll
    for (u32 i = 0; i < (COPIES + 31) / 32; ++i) {
        // Whole rows to each pass of the warp, but for planes of three pieces.
        const bool even = 32 % PIECES == 0;
        const u32 row = even ? r + i * (32 / PIECES) : (lane + 32 * i) / PIECES, byte = even ? at : (lane + 32 * i) % PIECES * PIECE;
        const u8* start = from + row * row_bytes + byte;
        if (PER_256 % 4) start = (const u8*)(u64(start) & ~3ull);
        const u32 place = to + row * room(PER_256) + (byte ^ swapped<PER_256>(row));
        if ((COPIES % 32 == 0 || lane + 32 * i < COPIES) && (ALL || row < rows)) {
            // Warps share the lines of small planes.
            if (PER_256 >= 64) copy_async16_once(place, start);
            else copy_async<PIECE>(place, start);
        }
    }
}

// 256 activations of a warp in 15 bits: for each block the high bytes, then the low ones, and
// {scale, sum of the lower half, of the upper half, of both}.
struct Part {
    u8 codes[8][2][32];
    float4 scales[8];

    // Eight neighbours to each lane.
    __device__ __forceinline__ void store(const float (&x)[2][4]) {
        const u32 lane = threadIdx.x & 31;
        float largest = fmaxf(largest_of(x[0]), largest_of(x[1]));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const float steps = q15_steps(largest), d = q15_scale(largest);
        const Q15Codes first(x[0], steps), second(x[1], steps);
        int sum = first.sum + second.sum;
        sum += __shfl_xor_sync(~0u, sum, 1);
        const int upper_sum = __shfl_xor_sync(~0u, sum, 2);
        __syncwarp();
        u8* to = codes[lane / 4][0] + lane % 4 * 8;
        *(uint2*)to = make_uint2(first.high, second.high);
        *(uint2*)(to + 32) = make_uint2(first.low, second.low);
        const float lower = d * float(sum), upper = d * float(upper_sum);
        if (lane % 4 == 0) scales[lane / 4] = make_float4(d, lower, upper, lower + upper);
        __syncwarp();
    }
};

// What a lane has of four blocks of activations: column 2 t + p of a product is plane p of block t, and lane t
// of four holds the rows of block t alone, so that one product sums four blocks apart.
struct Columns {
    // A word of the lower half of the block, then one of the upper half.
    u32 words[8];
    __device__ __forceinline__ void load(const Part& part, u32 quad) {
        const u32 lane = threadIdx.x & 31, t = lane & 3, plane = lane / 4 & 1;
        uint4 lower = make_uint4(0, 0, 0, 0), upper = lower;
        if (lane / 8 == t) {
            lower = *(const uint4*)part.codes[4 * quad + t][plane];
            upper = *(const uint4*)(part.codes[4 * quad + t][plane] + 16);
        }
        words[0] = lower.x; words[2] = lower.y; words[4] = lower.z; words[6] = lower.w;
        words[1] = upper.x; words[3] = upper.y; words[5] = upper.z; words[7] = upper.w;
    }
};

// An item of a warp: a unit, counted in those of the block, and the first of its round; a part of it; and of the gated
// form which weight.
struct Item { u32 unit, round, part, matrix; };

template <class W, bool GATED> struct StreamMatVec {
    // LANES add up the parts of a row.
    static constexpr u32 MATRICES = GATED ? 2 : 1, LANES = 8;
    typedef Stage<W> S;

    const StreamMatVecArgs& args;
    const MatVecSegment (&weights)[3];
    // Where units of the second and the third weight begin, and all.
    u32 second, third, units;
    // Units of the block; parts of a unit, warps side by side on them, and units that the warps have at once.
    u32 of_block, parts, across, down;

    __device__ __forceinline__ StreamMatVec(const StreamMatVecArgs& args, const MatVecSegment (&weights)[3]) : args(args), weights(weights) {
        auto count = [&](u32 i) { return (u32(weights[i].n) + UNIT - 1) / UNIT; };
        second = count(0);
        third = second + (GATED ? 0 : count(1));
        units = third + (GATED ? 0 : count(2));
        of_block = (units - blockIdx.x + gridDim.x - 1) / gridDim.x;
        parts = args.blocks / 8;
        across = min(parts, WARPS);
        down = WARPS / across;
    }
    // The weight of a unit of the block, and the unit's first row.
    __device__ __forceinline__ const MatVecSegment& weight(u32 of_block, u32 matrix, u32& row) const {
        const u32 unit = blockIdx.x + of_block * gridDim.x;
        if (GATED) {
            row = unit * UNIT;
            return weights[matrix];
        }
        const u32 i = (unit >= second) + (unit >= third);
        row = (unit - (i == 0 ? 0 : i == 1 ? second : third)) * UNIT;
        return weights[i];
    }
    __device__ __forceinline__ u32 column() const { return threadIdx.x / 32 % across; }
    __device__ __forceinline__ Item first() const {
        const u32 place = threadIdx.x / 32 / across;
        return {place < down ? place : of_block, 0, column(), 0};
    }
    // To the next item of this warp.
    __device__ __forceinline__ void advance(Item& item) const {
        if (GATED && (item.matrix ^= 1)) return;
        item.unit += down;
        if (item.unit < min(item.round + args.round, of_block)) return;
        item.unit = item.round + threadIdx.x / 32 / across;
        item.part += across;
        if (item.part < parts && item.unit < of_block) return;
        item.part = column();
        item.unit += args.round;
        item.round += args.round;
    }

    template <u32 PER_256> __device__ __forceinline__ u32 row_bytes() const { return parts * PER_256; }
    // Where an item begins in a plane.
    template <u32 PER_256> __device__ __forceinline__ const u8* start(u64 base, u32 row, u32 part) const { return (const u8*)base + (u64(row) * parts + part) * PER_256; }

    template <bool ALL> __device__ __forceinline__ void copy(u32 to, const MatVecSegment& w, u32 row, u32 part) const {
        const u32 rows = u32(w.n) - row;
        copy_plane<W::Q, ALL>(to, start<W::Q>(w.q, row, part), row_bytes<W::Q>(), rows);
        copy_plane<W::H, ALL>(to + S::H, start<W::H>(w.h, row, part), row_bytes<W::H>(), rows);
        copy_plane<W::S, ALL>(to + S::S, start<W::S>(w.s, row, part), row_bytes<W::S>(), rows);
        copy_plane<W::D, ALL>(to + S::D, start<W::D>(w.d, row, part), row_bytes<W::D>(), rows);
    }
    __device__ __forceinline__ void fill(u32 to, const Item& item) const {
        u32 row;
        const MatVecSegment& w = weight(item.unit, item.matrix, row);
        if (row + UNIT <= w.n) copy<true>(to, w, row, item.part);
        else copy<false>(to, w, row, item.part);
    }

    // The sums of an item: in lane (g, t), of blocks t and t + 4 of rows g and g + 8.
    __device__ __forceinline__ void multiply(const u8* stage, u32 odd, const Part& part, const Columns (&x)[2], float (&acc)[2]) const {
        const u32 lane = threadIdx.x & 31, g = lane / 4, t = lane & 3;
        #pragma unroll
        for (u32 quad = 0; quad < 2; ++quad) {
            const u32 at = 4 * quad + t;
            const float4 token = part.scales[at];
            int codes[2][8];
            Scales scales[2];
            #pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                // Both rows of a lane are even, or odd.
                const u32 row = g + 8 * r;
                auto swap = [&](u32 by) { return quad ? -int(by) : int(by); };
                const Planes p = {
                    stage + row * room(W::Q) + swap(swapped<W::Q>(g)), stage + S::H + row * room(W::H) + swap(swapped<W::H>(g)),
                    stage + S::S + row * room(W::S), stage + S::D + row * room(W::D) + (W::D == 2 ? odd : 0),
                };
                const typename W::Raw raw = W::template load<Staged>(p, at);
                W::words(raw, codes[r]);
                scales[r] = W::scales(raw, at);
            }
            int sums[2][4] = {};
            const u32* b = x[quad].words;
            #pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (W::HALVES) {
                    mma_s8(sums[0], codes[0][i], codes[1][i], b[2 * i]);
                    mma_s8(sums[1], codes[0][4 + i], codes[1][4 + i], b[2 * i + 1]);
                } else {
                    mma_s8(sums[0], codes[0][i], codes[1][i], codes[0][4 + i], codes[1][4 + i], b[2 * i], b[2 * i + 1]);
                }
            }
            #pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                auto sum = [&](u32 half) { return 128 * sums[half][2 * r] + sums[half][2 * r + 1]; };
                if (W::HALVES) {
                    acc[r] = fmaf(scales[r].a[0] * token.x, float(sum(0)), acc[r]);
                    acc[r] = fmaf(scales[r].a[1] * token.x, float(sum(1)), acc[r]);
                    if (W::OFFSET) acc[r] = fmaf(scales[r].c[1], token.z, fmaf(scales[r].c[0], token.y, acc[r]));
                } else {
                    acc[r] = fmaf(scales[r].a[0] * token.x, float(sum(0)), acc[r]);
                    if (W::OFFSET) acc[r] = fmaf(scales[r].c[0], token.w, acc[r]);
                }
            }
        }
    }

    // Writes the rows of a round from the sums of their items; all threads.
    __device__ __forceinline__ void finish(const float* sums, u32 round) const {
        const u32 rows = (min(round + args.round, of_block) - round) * UNIT, lane = threadIdx.x % LANES;
        for (u32 i = threadIdx.x / LANES; i < rows; i += WARPS * 32 / LANES) {
            float y[MATRICES];
            #pragma unroll
            for (u32 matrix = 0; matrix < MATRICES; ++matrix) {
                const float* from = sums + (i / UNIT * MATRICES + matrix) * parts * UNIT + i % UNIT;
                y[matrix] = 0.0f;
                #pragma unroll 2
                for (u32 part = lane; part < parts; part += LANES) y[matrix] += from[part * UNIT];
                #pragma unroll
                for (u32 o = LANES / 2; o; o >>= 1) y[matrix] += __shfl_xor_sync(~0u, y[matrix], o);
            }
            u32 row;
            const MatVecSegment& w = weight(round + i / UNIT, 0, row);
            row += i % UNIT;
            if (GATED) y[0] = (args.activation == 0 ? silu(y[0]) : gelu_tanh(y[0])) * y[MATRICES - 1];
            if (lane == 0 && row < w.n) ((float*)w.output)[row] = y[0];
        }
    }

    __device__ __forceinline__ void run() const {
        // A processor has no room for two such blocks, so that the next kernel's come to lie evenly.
        release();
        extern __shared__ __align__(128) u8 shared[];
        const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32;
        u8* const ring = shared + warp * STAGES * S::BYTES;
        const u32 ring_address = unknown(shared_address(ring));
        Part& part = ((Part*)(shared + WARPS * STAGES * S::BYTES))[warp];
        float* const sums = (float*)(shared + WARPS * (STAGES * S::BYTES + sizeof(Part)));
        // Even lanes write sums of row g, odd ones of row g + 8.
        float* const own = sums + lane / 4 + (lane & 1) * 8;

        float values[2][4];
        auto read = [&](u32 from) {
            const float* x = (const float*)args.activations + from * 256 + lane * 8;
            load4(x, args.wide, values[0]);
            load4(x + 4, args.wide, values[1]);
        };
        Item next = first(), now = next;
        u32 stage = 0, held = ~0u;
        auto ask = [&] {
            if (next.unit < of_block) {
                fill(ring_address + stage * S::BYTES, next);
                advance(next);
            }
            copy_async_commit();
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        };
        #pragma unroll 1
        for (u32 i = 0; i < STAGES; ++i) {
            // A stage at a time: what the kernel before reads would wait behind more.
            copy_async_wait<0>();
            ask();
        }
        wait();
        read(now.part);
        Columns x[2];
        for (u32 round = 0;;) {
            while (now.unit >= of_block || now.round != round) {
                __syncthreads();
                finish(sums, round);
                round += args.round;
                if (round >= of_block) return;
                __syncthreads();
            }
            if (now.part != held) {
                held = now.part;
                part.store(values);
                x[0].load(part, 0);
                x[1].load(part, 1);
                if (parts > across) read(held + across < parts ? held + across : column());
            }
            copy_async_wait<STAGES - 1>();
            __syncwarp();
            float acc[2] = {};
            u32 odd = 0;
            if (W::D == 2) {
                u32 row;
                const MatVecSegment& w = weight(now.unit, now.matrix, row);
                odd = (u32(w.d) + (lane / 4 * parts + now.part) * 2) & 2;
            }
            multiply(ring + stage * S::BYTES, odd, part, x, acc);
            float y = lane & 1 ? acc[1] : acc[0];
            y += __shfl_xor_sync(~0u, lane & 1 ? acc[0] : acc[1], 1);
            y += __shfl_xor_sync(~0u, y, 2);
            if ((lane & 2) == 0) own[(((now.unit - round) * MATRICES + now.matrix) * parts + now.part) * UNIT] = y;
            advance(now);
            // All lanes have read the stage.
            __syncwarp();
            ask();
        }
    }
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) stream_mat_vec(const __grid_constant__ StreamMatVecArgs args, const __grid_constant__ MatVecSegments weights) {
    StreamMatVec<WEIGHT, false>(args, weights.all).run();
}
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) gated_stream_mat_vec(const __grid_constant__ StreamMatVecArgs args, const __grid_constant__ MatVecSegments weights) {
    StreamMatVec<WEIGHT, true>(args, weights.all).run();
}

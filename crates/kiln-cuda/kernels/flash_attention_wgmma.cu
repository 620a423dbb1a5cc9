// Attention of many queries on Hopper. One warpgroup copies tiles of keys and values to rings in
// shared memory; each of the others takes 64 query rows, and issues the scores of the next tile
// before it makes weights of those of this one. Key tiles lie at fixed positions and decisions are
// made for each row alone: a row's bits do not depend on the rows beside it, and tiles that are
// masked for it change nothing.

// D: head dimension; WGS: warpgroups of 64 rows; BN: keys of a tile; TURNS: warpgroups issue their
// products in turns; SPLIT: queries as a sum of two 16-bit values; MASKED: a mask and its map.
template <class T, int D, int WGS, int BN, int STAGES, bool TURNS, bool SPLIT, bool MASKED> struct FlashWgmma {
    static constexpr int BM = WGS * 64, BOXES = (D + 63) / 64, THREADS = (WGS + 1) * 128;
    static constexpr u32 BOX = BN * 128, TILE = BOXES * BOX, Q_BOX = 64 * 128, Q_PART = BOXES * Q_BOX, Q = Q_PART * (SPLIT ? 2 : 1);
    static constexpr int TAKEN = WGS == 3 ? 160 : 240, KEPT = WGS == 3 ? 32 : 24;
    static constexpr float LOG2E = 1.4426950408889634f;
    // The maximum that weights are relative to moves when a score is above it by 2^GROWTH.
    static constexpr float GROWTH = 8.0f;
    static constexpr int LAST = -1, OPEN = 1 << 30;
    // Threads of a warpgroup that release a stage of keys: with a mask those that have read its tile.
    static constexpr int RELEASES = MASKED ? 4 : 1;

    struct Shared {
        u64 full_k[STAGES], full_v[STAGES], empty_k[STAGES], empty_v[STAGES];
        int tile[STAGES];
    };

    // Place in a ring.
    struct Ring {
        u32 stage = 0, phase = 0;
        __device__ __forceinline__ void next() {
            if (++stage == STAGES) { stage = 0; phase ^= 1; }
        }
    };

    // What a block computes.
    struct Job {
        u64 batch;
        u32 head, kv_head, first_row;
        // A length of 0: that of the cache is out of range.
        int low, kv_len, begin, end, window;

        // The job of a block of the blocks along the first axis of the grid.
        __device__ __forceinline__ Job(const FlashArgs& args, u32 block, u32 blocks) {
            // Rows with the most keys first; heads of a part of them together, for the L2 cache.
            const u32 tiles = u32((args.q_len + BM - 1) / BM), together = blocks / tiles;
            const u32 index = blockIdx.y * together + block % together;
            batch = index / args.heads;
            head = index % args.heads;
            kv_head = head / args.group;
            first_row = (tiles - 1 - block / together) * BM;
            const u32 rows = min(u32(args.q_len) - first_row, u32(BM));
            kv_len = int(args.kv_len);
            int offset = int(args.q_offset);
            if (args.kv_len_at) {
                const u32 len = *(const u32*)args.kv_len_at;
                kv_len = len >= args.q_len && len <= args.capacity ? int(len) : 0;
                offset = kv_len - int(args.q_len);
            }
            window = args.window < u64(1) << 30 ? int(args.window) : 0;
            low = offset + int(first_row);
            begin = 0;
            end = kv_len;
            if (args.causal) end = min(end, low + int(rows));
            if (window) begin = max(begin, low + 1 - window);
            begin = begin / BN * BN;
        }
    };

    // What the map says of a tile for the rows of a block: 0 all masked, 2 all open. For a warp.
    static __device__ __forceinline__ u32 state(const FlashArgs& args, const Job& job, int key) {
        if (!args.blocks || args.tile_rows < 8 || args.tile_columns < 8) return 1;
        const u64 map = args.blocks + job.batch * args.blocks_stride_b + job.head * args.blocks_stride_h;
        const u64 last_row = min(u64(job.first_row) + BM, args.q_len) - 1, last_key = min(key + BN, job.kv_len) - 1;
        const u64 row = job.first_row / args.tile_rows, column = u64(key) / args.tile_columns;
        const u32 rows = u32(last_row / args.tile_rows - row) + 1, columns = u32(last_key / args.tile_columns - column) + 1;
        bool masked = true, open = true;
        for (u32 at = threadIdx.x % 32; at < rows * columns; at += 32) {
            const u8 tile = ((const u8*)(map + (row + at / columns) * args.blocks_stride_l))[column + at % columns];
            masked = masked && tile == 0;
            open = open && tile == 2;
        }
        if (__all_sync(~0u, masked)) return 0;
        return __all_sync(~0u, open) ? 2 : 1;
    }

    // For the first warp of its warpgroup.
    static __device__ __forceinline__ void produce(const FlashArgs& args, const Job& job, Shared& shared, u8* ks, u8* vs, const TensorMap* k_map, const TensorMap* v_map) {
        const bool first = threadIdx.x == 0;
        Ring ring;
        auto copy = [&](u8* tiles, const TensorMap* map, u64* full, u64* empty, Ring at, int key) {
            barrier_wait(&empty[at.stage], at.phase ^ 1);
            if (first) {
                barrier_expect(&full[at.stage], TILE);
                #pragma unroll
                for (int box = 0; box < BOXES; ++box)
                    copy_box(tiles + at.stage * TILE + box * BOX, map, box * 64, key, job.kv_head, int(job.batch), &full[at.stage]);
            }
        };
        // Values follow the keys of the next tile.
        Ring behind;
        int before = LAST;
        for (int key = job.begin; key < job.end; key += BN) {
            if constexpr (MASKED) {
                const u32 seen = state(args, job, key);
                if (seen == 0) continue;
                barrier_wait(&shared.empty_k[ring.stage], ring.phase ^ 1);
                if (first) shared.tile[ring.stage] = seen == 2 ? key | OPEN : key;
            }
            copy(ks, k_map, shared.full_k, shared.empty_k, ring, key);
            ring.next();
            if (before >= 0) {
                copy(vs, v_map, shared.full_v, shared.empty_v, behind, before);
                behind.next();
            }
            before = key;
        }
        if (before >= 0) copy(vs, v_map, shared.full_v, shared.empty_v, behind, before);
        if constexpr (MASKED) {
            barrier_wait(&shared.empty_k[ring.stage], ring.phase ^ 1);
            if (first) {
                shared.tile[ring.stage] = LAST;
                barrier_arrive(&shared.full_k[ring.stage]);
            }
        }
    }

    // The 64 query rows of a warpgroup to shared memory; zeros outside.
    static __device__ __forceinline__ void load_queries(const FlashArgs& args, const Job& job, u8* qs, u32 group) {
        const u64 base = args.q + job.batch * args.q_stride_b + job.head * args.q_stride_h;
        const bool wide = ((args.q | args.q_stride_b | args.q_stride_h | args.q_stride_l) & 15) == 0;
        auto to = [&](u32 r, u32 i) { return (uint4*)(qs + i / 64 * Q_BOX + r * 128 + ((i / 8 ^ r) & 7) * 16); };
        if (!SPLIT && wide) {
            constexpr int PIECES = BOXES * 4, AT_ONCE = PIECES < 16 ? PIECES : 16;
            #pragma unroll 1
            for (int first = 0; first < PIECES; first += AT_ONCE) {
                uint4 loaded[AT_ONCE];
                #pragma unroll
                for (int n = 0; n < AT_ONCE; ++n) {
                    const u32 at = (first + n) * 128 + threadIdx.x % 128, i = at % (BOXES * 8) * 8;
                    const u64 row = u64(job.first_row) + group * 64 + at / (BOXES * 8);
                    loaded[n] = row < args.q_len && i < args.dim ? *(const uint4*)(base + row * args.q_stride_l + i * 2) : make_uint4(0, 0, 0, 0);
                }
                #pragma unroll
                for (int n = 0; n < AT_ONCE; ++n) {
                    const u32 at = (first + n) * 128 + threadIdx.x % 128;
                    *to(at / (BOXES * 8), at % (BOXES * 8) * 8) = loaded[n];
                }
            }
        } else {
            for (u32 at = threadIdx.x % 128; at < 64 * BOXES * 8; at += 128) {
                const u32 r = at / (BOXES * 8), i = at % (BOXES * 8) * 8;
                const u64 row = u64(job.first_row) + group * 64 + r, from = base + row * args.q_stride_l;
                const bool inside = row < args.q_len && i < args.dim;
                u32 h[4], l[4];
                #pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float a = inside ? load_as(args.q_element, (const void*)from, i + 2 * e) : 0.0f;
                    const float b = inside ? load_as(args.q_element, (const void*)from, i + 2 * e + 1) : 0.0f;
                    const T ah = from_float<T>(a), bh = from_float<T>(b);
                    h[e] = u32(ah.bits) | u32(bh.bits) << 16;
                    l[e] = pack2<T>(a - to_float(ah), b - to_float(bh));
                }
                *to(r, i) = make_uint4(h[0], h[1], h[2], h[3]);
                if (SPLIT) *(uint4*)((u8*)to(r, i) + Q_PART) = make_uint4(l[0], l[1], l[2], l[3]);
            }
        }
        shared_writes_done();
        named_sync(4 + group, 128);
    }

    static __device__ __forceinline__ void scores(float (&s)[BN / 2], const u8* q, const u8* k) {
        const u64 a = swizzled_rows(q), b = swizzled_rows(k);
        #pragma unroll
        for (int part = 0; part < (SPLIT ? 2 : 1); ++part) {
            #pragma unroll
            for (int i = 0; i < D / 16; ++i)
                SharedMma<T, BN>::run(s, a + (part * Q_PART + i / 4 * Q_BOX + i % 4 * 32) / 16, b + (i / 4 * BOX + i % 4 * 32) / 16, part + i > 0);
        }
        warpgroup_commit();
    }

    static __device__ __forceinline__ void add_values(float (&out)[D / 2], const u32 (&p)[BN / 4], const u8* v) {
        const u64 b = swizzled_columns(v, BOX);
        #pragma unroll
        for (int i = 0; i < BN / 16; ++i) RegisterMma<T, D>::run(out, p + 4 * i, b + i * 128);
        warpgroup_commit();
    }

    static __device__ __forceinline__ float exp2_fast(float x) {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }

    // A warpgroup's part of the state.
    struct Rows {
        float top[2] = {-INF, -INF}, sum[2] = {0.0f, 0.0f}, shrink[2];

        // Weights of scores; `unit` scores are one in log2. `shrink` is what earlier weights are multiplied by.
        __device__ __forceinline__ void weigh(float (&s)[BN / 2], float unit) {
            #pragma unroll
            for (int h = 0; h < 2; ++h) {
                float largest = fmaxf(s[2 * h], s[2 * h + 1]), other = fmaxf(s[4 + 2 * h], s[5 + 2 * h]);
                #pragma unroll
                for (int j = 2; j < BN / 8; j += 2) {
                    largest = fmaxf(largest, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
                    other = fmaxf(other, fmaxf(s[4 * j + 4 + 2 * h], s[4 * j + 5 + 2 * h]));
                }
                largest = fmaxf(largest, other);
                largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
                const float growth = (largest - top[h]) * unit;
                shrink[h] = 1.0f;
                if (growth > GROWTH) {
                    shrink[h] = exp2_fast(-growth);
                    top[h] = largest;
                }
                const float base = top[h] == -INF ? 0.0f : top[h] * unit;
                float row = 0.0f, next = 0.0f;
                #pragma unroll
                for (int j = 0; j < BN / 8; ++j) {
                    const float a = exp2_fast(fmaf(s[4 * j + 2 * h], unit, -base)), b = exp2_fast(fmaf(s[4 * j + 2 * h + 1], unit, -base));
                    s[4 * j + 2 * h] = a;
                    s[4 * j + 2 * h + 1] = b;
                    row += a;
                    next += b;
                }
                sum[h] = fmaf(sum[h], shrink[h], row + next);
            }
        }
    };

    // Scores to units of log2, where they are not only scaled; then positions that a row does not see to minus infinity.
    static __device__ __forceinline__ void finish(float (&s)[BN / 2], const FlashArgs& args, const Job& job, u32 group, int key, bool open, bool plain) {
        const u32 thread = threadIdx.x % 128, column = thread % 4 * 2, r = thread / 32 * 16 + thread % 32 / 4;
        const int low = job.low + int(group) * 64;
        if (!plain) {
            const float unit = args.scale * LOG2E;
            if (args.softcap > 0.0f) {
                const float in = 2.0f * LOG2E * args.scale / args.softcap, out = args.softcap * LOG2E;
                #pragma unroll
                for (int i = 0; i < BN / 2; ++i) {
                    // tanh x = 1 - 2 / (e^2x + 1)
                    float inverse;
                    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(exp2_fast(s[i] * in) + 1.0f));
                    s[i] = fmaf(-2.0f * out, inverse, out);
                }
            } else {
                #pragma unroll
                for (int i = 0; i < BN / 2; ++i) s[i] *= unit;
            }
        }
        const bool edge = key + BN > job.kv_len || (args.causal && key + BN - 1 > low) || (job.window && low + 63 - key >= job.window);
        if (edge) {
            #pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int query = low + int(r) + 8 * h, from = key + int(column);
                const int last = (args.causal ? min(query, job.kv_len - 1) : job.kv_len - 1) - from;
                const int first = job.window ? query - job.window + 1 - from : -from;
                #pragma unroll
                for (int j = 0; j < BN / 8; ++j) {
                    #pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (8 * j + e > last || 8 * j + e < first) s[4 * j + 2 * h + e] = -INF;
                }
            }
        }
        if (MASKED && !open) {
            #pragma unroll
            for (int h = 0; h < 2; ++h) {
                const u64 row = min(u64(job.first_row) + group * 64 + r + 8 * h, args.q_len - 1);
                const u64 mask = args.mask + job.batch * args.mask_stride_b + job.head * args.mask_stride_h + row * args.mask_stride_l;
                const int from = key + int(column);
                #pragma unroll
                for (int j = 0; j < BN / 8; ++j) {
                    #pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const int at = from + 8 * j + e;
                        if (at >= job.kv_len) continue;
                        float& x = s[4 * j + 2 * h + e];
                        if (args.mask_kind == 1) x = ((const u8*)mask)[at] ? x : -INF;
                        else x = fmaf(to_float(((const T*)mask)[at]), LOG2E, x);
                    }
                }
            }
        }
    }

    // Zeros in place of values beyond the length of a cache, which may be anything.
    static __device__ __forceinline__ void clear_rest(u8* v, u32 boxes, int key, int kv_len, u32 group) {
        const u32 kept = kv_len - key;
        for (u32 at = kept * 8 + threadIdx.x % 128; at < BN * 8; at += 128) {
            for (u32 box = 0; box < boxes; ++box) *(uint4*)(v + box * BOX + at * 16) = make_uint4(0, 0, 0, 0);
        }
        shared_writes_done();
        named_sync(4 + group, 128);
    }

    static __device__ __forceinline__ void consume(const FlashArgs& args, const Job& job, Shared& shared, u8* qs, const u8* ks, u8* vs, u32 group) {
        const u32 thread = threadIdx.x % 128;
        qs += group * Q;
        load_queries(args, job, qs, group);

        float out[D / 2], s[BN / 2];
        u32 p[BN / 4];
        #pragma unroll
        for (int i = 0; i < D / 2; ++i) out[i] = 0.0f;
        Rows rows;
        Ring k_ring, v_ring;
        const bool plain = args.softcap <= 0.0f && args.scale > 0.0f && args.mask_kind != 2;
        const float unit = plain ? args.scale * LOG2E : 1.0f;
        int key = job.begin, v_key = 0;
        bool open = false;

        // Waits for the next tile of keys, if there is one.
        auto another = [&]() {
            if constexpr (MASKED) {
                barrier_wait(&shared.full_k[k_ring.stage], k_ring.phase);
                // Volatile: nobody else reads it either.
                int tile = 0;
                if (thread % 32 == 0) tile = *(volatile const int*)&shared.tile[k_ring.stage];
                tile = __shfl_sync(~0u, tile, 0);
                if (tile == LAST) return false;
                key = tile & ~OPEN;
                open = tile & OPEN;
            } else {
                if (key >= job.end) return false;
                barrier_wait(&shared.full_k[k_ring.stage], k_ring.phase);
            }
            return true;
        };
        auto keys_done = [&]() {
            if (thread % (128 / RELEASES) == 0) barrier_arrive(&shared.empty_k[k_ring.stage]);
            k_ring.next();
        };
        auto wait_for_values = [&]() {
            barrier_wait(&shared.full_v[v_ring.stage], v_ring.phase);
            if (args.kv_len_at && v_key + BN > job.kv_len) clear_rest(vs + v_ring.stage * TILE, BOXES, v_key, job.kv_len, group);
        };
        auto pack = [&]() {
            #pragma unroll
            for (int i = 0; i < BN / 4; ++i) p[i] = pack2<T>(s[2 * i], s[2 * i + 1]);
        };

        if (TURNS && group == WGS - 1) named_arrive(1, 256);
        if (another()) {
            warpgroup_begin();
            scores(s, qs, ks + k_ring.stage * TILE);
            warpgroup_wait<0>();
            hold(s);
            keys_done();
            finish(s, args, job, group, key, open, plain);
            rows.weigh(s, unit);
            pack();
            v_key = key;
            key += BN;
            while (another()) {
                if (TURNS) named_sync(1 + group, 256);
                warpgroup_begin();
                scores(s, qs, ks + k_ring.stage * TILE);
                wait_for_values();
                warpgroup_begin();
                add_values(out, p, vs + v_ring.stage * TILE);
                if (TURNS) named_arrive(1 + (group + 1) % WGS, 256);
                warpgroup_wait<1>();
                hold(s);
                keys_done();
                finish(s, args, job, group, key, open, plain);
                rows.weigh(s, unit);
                warpgroup_wait<0>();
                hold(out);
                if (thread == 0) barrier_arrive(&shared.empty_v[v_ring.stage]);
                v_ring.next();
                pack();
                if (__any_sync(~0u, rows.shrink[0] != 1.0f || rows.shrink[1] != 1.0f)) {
                    #pragma unroll
                    for (int i = 0; i < D / 2; ++i) out[i] *= rows.shrink[i / 2 % 2];
                }
                v_key = key;
                key += BN;
            }
            wait_for_values();
            warpgroup_begin();
            add_values(out, p, vs + v_ring.stage * TILE);
            warpgroup_wait<0>();
            hold(out);
        }
        if (TURNS && group == 0) named_sync(1, 256);
        float factor[2];
        factors(args, job, rows, unit, factor);
        store(args, job, group, 0, out, factor);
    }

    // What sums of values are multiplied by.
    static __device__ __forceinline__ void factors(const FlashArgs& args, const Job& job, const Rows& rows, float unit, float (&factor)[2]) {
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            float sum = rows.sum[h];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            factor[h] = sum > 0.0f ? 1.0f / sum : 0.0f;
            if (args.sinks && sum > 0.0f) {
                const float sink = ((const float*)args.sinks)[job.head] * LOG2E, top = rows.top[h] * unit, all = fmaxf(sink, top);
                const float share = exp2f(top - all);
                factor[h] = share / (sum * share + exp2f(sink - all));
            }
            if (job.kv_len == 0) factor[h] = NAN_F;
        }
    }

    // Columns from `column` on of the rows of a warpgroup.
    template <int N> static __device__ __forceinline__ void store(const FlashArgs& args, const Job& job, u32 group, u32 column, const float (&out)[N], const float (&factor)[2]) {
        const u32 thread = threadIdx.x % 128, r = group * 64 + thread / 32 * 16 + thread % 32 / 4;
        const u64 base = args.output + job.batch * args.output_stride_b + job.head * args.output_stride_h;
        const bool wide = ((args.output | args.output_stride_b | args.output_stride_h | args.output_stride_l) & 7) == 0;
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            const u64 row = u64(job.first_row) + r + 8 * h;
            if (row >= args.q_len) continue;
            const u64 to = base + row * args.output_stride_l;
            #pragma unroll
            for (int j = 0; j < N / 4; ++j) {
                const u32 i = column + j * 8 + thread % 4 * 2;
                if (i >= args.dim) continue;
                const float a = out[4 * j + 2 * h] * factor[h], b = out[4 * j + 2 * h + 1] * factor[h];
                if (args.q_element == ELEMENT_F32) {
                    if (wide) *(float2*)(to + i * 4) = make_float2(a, b);
                    else { ((float*)to)[i] = a; ((float*)to)[i + 1] = b; }
                } else {
                    const u32 pair = args.q_element == ELEMENT_F16 ? pack2<f16>(a, b) : pack2<bf16>(a, b);
                    if (wide) *(u32*)(to + i * 2) = pair;
                    else { ((u16*)to)[i] = u16(pair); ((u16*)to)[i + 1] = u16(pair >> 16); }
                }
            }
        }
    }

    static __device__ __forceinline__ void run(const FlashArgs& args, const TensorMap* k_map, const TensorMap* v_map) {
        extern __shared__ u8 memory[];
        __shared__ Shared shared;
        u8* ks = (u8*)((u64(memory) + 1023) / 1024 * 1024);
        u8* vs = ks + STAGES * TILE;
        u8* qs = vs + STAGES * TILE;
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; ++i) {
                barrier_init(&shared.full_k[i], 1);
                barrier_init(&shared.full_v[i], 1);
                barrier_init(&shared.empty_k[i], WGS * RELEASES);
                barrier_init(&shared.empty_v[i], WGS);
            }
            barrier_init_fence();
        }
        __syncthreads();
        const Job job(args, blockIdx.x, gridDim.x);
        const u32 group = threadIdx.x / 128;
        if (group == 0) {
            registers_release<KEPT>();
            if (threadIdx.x < 32) produce(args, job, shared, ks, vs, k_map, v_map);
        } else {
            registers_take<TAKEN>();
            consume(args, job, shared, qs, ks, vs, group - 1);
        }
    }
};

#define INSTANCE(T, D, WGS, BN, STAGES, TURNS, SPLIT, MASKED, SUFFIX) \
    extern "C" __global__ void __launch_bounds__((WGS + 1) * 128, 1) flash_attention_wgmma_##T##_##D##SUFFIX(const __grid_constant__ FlashArgs args, \
        const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map) { begin(); FlashWgmma<T, D, WGS, BN, STAGES, TURNS, SPLIT, MASKED>::run(args, &k_map, &v_map); }
#define PLAIN_TYPES(D, WGS, BN, STAGES) INSTANCE(bf16, D, WGS, BN, STAGES, true, false, false, ) INSTANCE(f16, D, WGS, BN, STAGES, true, false, false, )
#define MASKED_TYPES(D, WGS, BN, STAGES) INSTANCE(bf16, D, WGS, BN, STAGES, true, false, true, _masked) INSTANCE(f16, D, WGS, BN, STAGES, true, false, true, _masked)
#define SPLIT_TYPES(D, WGS, BN, STAGES) INSTANCE(bf16, D, WGS, BN, STAGES, true, true, false, _split) INSTANCE(f16, D, WGS, BN, STAGES, true, true, false, _split)
#define ALL(D, WGS, BN, STAGES) PLAIN_TYPES(D, WGS, BN, STAGES) MASKED_TYPES(D, WGS, BN, STAGES) SPLIT_TYPES(D, WGS, BN, STAGES)
#if HEAD_DIM == 64
PLAIN_TYPES(64, 3, 128, 3)
MASKED_TYPES(64, 2, 128, 4)
SPLIT_TYPES(64, 2, 128, 4)
#elif HEAD_DIM == 80
ALL(80, 2, 128, 2)
#elif HEAD_DIM == 96
ALL(96, 2, 128, 2)
#elif HEAD_DIM == 128
ALL(128, 2, 128, 2)
#elif HEAD_DIM == 256
PLAIN_TYPES(256, 2, 80, 2)
MASKED_TYPES(256, 2, 80, 2)
SPLIT_TYPES(256, 2, 48, 2)
#endif

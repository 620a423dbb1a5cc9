// Attention on Hopper for head dimensions up to 512. A block has 64 query rows. One warpgroup makes
// the weights and the left half of the output, another the right half from the weights in shared
// memory. Keys come in pieces of 128 columns, so that a piece is free as soon as it is multiplied.
// The two blocks of a cluster take neighbouring rows, and each copies half of every piece to both.

template <class T, int CLUSTER, bool MASKED> struct FlashWgmmaWide {
    static constexpr int BN = 64, PIECES = 4;
    typedef FlashWgmma<T, 512, CLUSTER, BN, 1, false, false, MASKED> Base;
    typedef typename Base::Job Job;
    static constexpr u32 BOX = BN * 128, PIECE = 2 * BOX, WEIGHTS = 64 * 128;

    struct Shared {
        // A stage for each piece: of keys, and of values of the left and of the right half.
        u64 full_k[PIECES], empty_k[PIECES], full_v[PIECES], empty_v[PIECES];
        // The tile of the keys: one thread of each warp arrives when it has read it.
        u64 empty_tile;
        // Weights: written by one warpgroup, read by the other.
        u64 full_p[2], empty_p[2];
        int tile, key[2];
        // What the sums of a row are multiplied by, before the weights are added or at the end.
        float shrink[2][64];
    };

    // A warp for each of the pieces that one warpgroup releases. That of the keys tells which tile they are of.
    static __device__ __forceinline__ void produce(const FlashArgs& args, const Job& job, u8* stages, u64* full, u64* empty, Shared* teller, const TensorMap* map, u32 piece, u32 end, u32 rank) {
        const bool first = threadIdx.x % 32 == 0;
        const u32 begin = piece;
        u32 phase = 1;
        for (int key = job.begin; key < job.end; key += BN) {
            u32 seen = 1;
            if constexpr (MASKED) {
                seen = Base::state(args, job, key);
                if (seen == 0) continue;
            }
            if (teller) barrier_wait(&teller->empty_tile, phase);
            for (piece = begin; piece < end; ++piece) {
                barrier_wait(&empty[piece], phase);
                if (first) {
                    if (teller && piece == 0) teller->tile = seen == 2 ? key | Base::OPEN : key;
                    barrier_expect(&full[piece], PIECE);
                    u8* to = stages + piece * PIECE;
                    if (CLUSTER == 2) {
                        copy_box_to_both(to + rank * BOX, map, piece * 128 + rank * 64, key, job.kv_head, int(job.batch), &full[piece]);
                    } else {
                        copy_box(to, map, piece * 128, key, job.kv_head, int(job.batch), &full[piece]);
                        copy_box(to + BOX, map, piece * 128 + 64, key, job.kv_head, int(job.batch), &full[piece]);
                    }
                }
            }
            phase ^= 1;
        }
        if (teller) {
            barrier_wait(&teller->empty_tile, phase);
            if (first) {
                teller->tile = Base::LAST;
                barrier_arrive(&full[0]);
            }
        }
    }

    // Both blocks write to a stage: both must know that it is free.
    static __device__ __forceinline__ void release(u64* empty) {
        const u32 thread = threadIdx.x % 128;
        if (CLUSTER == 1) {
            if (thread == 0) barrier_arrive(empty);
        } else if (thread < CLUSTER) {
            barrier_arrive_at(empty, thread);
        }
    }

    static __device__ __forceinline__ void weights_and_left(const FlashArgs& args, const Job& job, Shared& shared, u8* qs, const u8* ks, u8* vs, u8* ps, u32 rank) {
        const u32 thread = threadIdx.x % 128, r = thread / 32 * 16 + thread % 32 / 4;
        Base::load_queries(args, job, qs, rank);
        float left[64], right[64], s[BN / 2];
        u32 p[BN / 4];
        #pragma unroll
        for (int i = 0; i < 64; ++i) left[i] = right[i] = 0.0f;
        typename Base::Rows rows;
        u32 k_phase = 0, v_phase = 0, slot = 0, p_phase = 1;
        const bool plain = args.softcap <= 0.0f && args.scale > 0.0f && args.mask_kind != 2;
        const float unit = plain ? args.scale * Base::LOG2E : 1.0f;
        int key = 0, v_key = 0;
        bool open = false;

        auto another = [&]() {
            barrier_wait(&shared.full_k[0], k_phase);
            int tile = 0;
            if (thread % 32 == 0) {
                tile = shared.tile;
                barrier_arrive(&shared.empty_tile);
            }
            tile = __shfl_sync(~0u, tile, 0);
            if (tile == Base::LAST) return false;
            key = tile & ~Base::OPEN;
            open = tile & Base::OPEN;
            return true;
        };
        // One group of products for each piece.
        auto scores = [&]() {
            const u64 a = opaque(swizzled_rows(qs)), b = opaque(swizzled_rows(ks));
            #pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                if (piece) barrier_wait(&shared.full_k[piece], k_phase);
                warpgroup_begin();
                #pragma unroll
                for (int i = 0; i < 8; ++i)
                    SharedMma<T, BN>::run(s, a + ((2 * piece + i / 4) * Base::Q_BOX + i % 4 * 32) / 16, b + (piece * PIECE + i / 4 * BOX + i % 4 * 32) / 16, piece + i > 0);
                warpgroup_commit();
            }
            k_phase ^= 1;
        };
        auto add_values = [&]() {
            auto half = [&](float (&out)[64], int piece) {
                barrier_wait(&shared.full_v[piece], v_phase);
                if (args.kv_len_at && v_key + BN > job.kv_len) Base::clear_rest(vs + piece * PIECE, 2, v_key, job.kv_len, 0);
                warpgroup_begin();
                const u64 b = opaque(swizzled_columns(vs, BOX)) + piece * PIECE / 16;
                #pragma unroll
                for (int i = 0; i < BN / 16; ++i) RegisterMma<T, 128>::run(out, p + 4 * i, b + i * 128);
            };
            half(left, 0);
            half(right, 1);
            warpgroup_commit();
            v_phase ^= 1;
        };
        // Tells the other warpgroup; waits until it has read what was there.
        auto publish = [&](int to_key, const float (&shrink)[2]) {
            barrier_wait(&shared.empty_p[slot], p_phase);
            if (to_key >= 0) {
                u8* to = ps + slot * WEIGHTS;
                #pragma unroll
                for (int i = 0; i < BN / 4; ++i) {
                    const u32 row = r + i % 2 * 8;
                    *(u32*)(to + row * 128 + ((i / 2 ^ row) & 7) * 16 + thread % 4 * 4) = p[i];
                }
                shared_writes_done();
            }
            if (thread % 4 == 0) {
                shared.shrink[slot][r] = shrink[0];
                shared.shrink[slot][r + 8] = shrink[1];
            }
            if (thread == 0) shared.key[slot] = to_key;
            barrier_arrive(&shared.full_p[slot]);
            slot ^= 1;
            if (slot == 0) p_phase ^= 1;
        };
        auto pack = [&]() {
            #pragma unroll
            for (int i = 0; i < BN / 4; ++i) p[i] = pack2<T>(s[2 * i], s[2 * i + 1]);
        };

        if (another()) {
            scores();
            warpgroup_wait<0>();
            hold(s);
            #pragma unroll
            for (int i = 0; i < PIECES; ++i) release(&shared.empty_k[i]);
            Base::finish(s, args, job, rank, key, open, plain);
            rows.weigh(s, unit);
            pack();
            publish(key, rows.shrink);
            v_key = key;
            while (another()) {
                scores();
                add_values();
                warpgroup_wait<4>();
                release(&shared.empty_k[0]);
                warpgroup_wait<3>();
                release(&shared.empty_k[1]);
                warpgroup_wait<2>();
                release(&shared.empty_k[2]);
                warpgroup_wait<1>();
                release(&shared.empty_k[3]);
                hold(s);
                // Registers for a mask: those of the weights.
                if (MASKED) warpgroup_wait<0>();
                Base::finish(s, args, job, rank, key, open, plain);
                rows.weigh(s, unit);
                warpgroup_wait<0>();
                hold(left);
                hold(right);
                release(&shared.empty_v[0]);
                release(&shared.empty_v[1]);
                pack();
                publish(key, rows.shrink);
                if (__any_sync(~0u, rows.shrink[0] != 1.0f || rows.shrink[1] != 1.0f)) {
                    #pragma unroll
                    for (int i = 0; i < 64; ++i) {
                        left[i] *= rows.shrink[i / 2 % 2];
                        right[i] *= rows.shrink[i / 2 % 2];
                    }
                }
                v_key = key;
            }
            add_values();
            warpgroup_wait<0>();
            hold(left);
            hold(right);
        }
        float factor[2];
        Base::factors(args, job, rows, unit, factor);
        publish(Base::LAST, factor);
        Base::store(args, job, rank, 0, left, factor);
        Base::store(args, job, rank, 128, right, factor);
    }

    static __device__ __forceinline__ void right_half(const FlashArgs& args, const Job& job, Shared& shared, u8* vs, const u8* ps, u32 rank) {
        const u32 thread = threadIdx.x % 128, r = thread / 32 * 16 + thread % 32 / 4;
        float left[64], right[64], shrink[2];
        #pragma unroll
        for (int i = 0; i < 64; ++i) left[i] = right[i] = 0.0f;
        u32 v_phase = 0, slot = 0, p_phase = 0;
        for (;;) {
            barrier_wait(&shared.full_p[slot], p_phase);
            const int key = shared.key[slot];
            shrink[0] = shared.shrink[slot][r];
            shrink[1] = shared.shrink[slot][r + 8];
            if (key == Base::LAST) break;
            if (__any_sync(~0u, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
                #pragma unroll
                for (int i = 0; i < 64; ++i) {
                    left[i] *= shrink[i / 2 % 2];
                    right[i] *= shrink[i / 2 % 2];
                }
            }
            auto half = [&](float (&out)[64], int piece) {
                barrier_wait(&shared.full_v[piece], v_phase);
                if (args.kv_len_at && key + BN > job.kv_len) Base::clear_rest(vs + piece * PIECE, 2, key, job.kv_len, 1);
                warpgroup_begin();
                const u64 a = opaque(swizzled_rows(ps + slot * WEIGHTS)), b = opaque(swizzled_columns(vs, BOX)) + piece * PIECE / 16;
                #pragma unroll
                for (int i = 0; i < BN / 16; ++i) ColumnsMma<T, 128>::run(out, a + i * 2, b + i * 128);
            };
            half(left, 2);
            half(right, 3);
            warpgroup_commit();
            warpgroup_wait<0>();
            hold(left);
            hold(right);
            release(&shared.empty_v[2]);
            release(&shared.empty_v[3]);
            barrier_arrive(&shared.empty_p[slot]);
            v_phase ^= 1;
            slot ^= 1;
            if (slot == 0) p_phase ^= 1;
        }
        Base::store(args, job, rank, 256, left, shrink);
        Base::store(args, job, rank, 384, right, shrink);
    }

    static __device__ __forceinline__ void run(const FlashArgs& args, const TensorMap* k_map, const TensorMap* v_map) {
        extern __shared__ u8 memory[];
        __shared__ Shared shared;
        u8* ks = (u8*)((u64(memory) + 1023) / 1024 * 1024);
        u8* vs = ks + PIECES * PIECE;
        u8* qs = vs + PIECES * PIECE;
        u8* ps = qs + Base::Q;
        if (threadIdx.x == 0) {
            for (int i = 0; i < PIECES; ++i) {
                barrier_init(&shared.full_k[i], 1);
                barrier_init(&shared.full_v[i], 1);
                barrier_init(&shared.empty_k[i], CLUSTER);
                barrier_init(&shared.empty_v[i], CLUSTER);
            }
            barrier_init(&shared.empty_tile, 4);
            for (int i = 0; i < 2; ++i) {
                barrier_init(&shared.full_p[i], 128);
                barrier_init(&shared.empty_p[i], 128);
            }
            barrier_init_fence();
        }
        const u32 rank = CLUSTER == 1 ? 0 : block_of_cluster();
        if (CLUSTER == 1) __syncthreads();
        else cluster_sync();
        const Job job(args, blockIdx.x / CLUSTER, gridDim.x / CLUSTER);
        const u32 group = threadIdx.x / 128, warp = threadIdx.x / 32;
        if (group == 0) {
            registers_release<(MASKED ? 40 : 24)>();
            if (warp == 0) produce(args, job, ks, shared.full_k, shared.empty_k, &shared, k_map, 0, PIECES, rank);
            else if (warp < 3) produce(args, job, vs, shared.full_v, shared.empty_v, nullptr, v_map, 2 * warp - 2, 2 * warp, rank);
            __syncwarp();
        } else {
            registers_take<(MASKED ? 232 : 240)>();
            if (group == 1) weights_and_left(args, job, shared, qs, ks, vs, ps, rank);
            else right_half(args, job, shared, vs, ps, rank);
        }
        // No block ends while the other may still write to it.
        if (CLUSTER == 2) cluster_sync();
    }
};

#define INSTANCE_WIDE(T, CLUSTER, MASKED, SUFFIX) \
    extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1) flash_attention_wgmma_##T##_512##SUFFIX(const __grid_constant__ FlashArgs args, \
        const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map) { begin(); FlashWgmmaWide<T, CLUSTER, MASKED>::run(args, &k_map, &v_map); }
#define WIDE_TYPES(T) INSTANCE_WIDE(T, 2, false, ) INSTANCE_WIDE(T, 2, true, _masked)
WIDE_TYPES(bf16)
WIDE_TYPES(f16)

// The callbacks that the compiler puts before every load and store of a kernel.
#include "state.h"

namespace msl_rt {

// A cell of the conflict detector covers CELL bytes: one word for the last write, one for the last reads.
constexpr uint64_t TID_SHIFT = 32, EPOCH_SHIFT = 42, MASK_SHIFT = 56;
constexpr uint64_t EPOCH_MASK = 0x3fff;
constexpr uint64_t IS_ATOMIC = 1ull << 60, MULTI = 1ull << 61, CROSS = 1ull << 62, GROUPS = 1ull << 63;

static MSL_COLD void conflict(const Region &r, uint64_t offset, uint32_t n, Access access, uint64_t word, bool other_write,
                              bool same_group, const void *pc) {
    Fault f = blank(CONFLICT, pc);
    f.region_kind = r.kind;
    f.region_index = r.index;
    f.offset = (int64_t)offset;
    f.bytes = n;
    f.size = r.size;
    f.access = access;
    f.other_thread = (word >> TID_SHIFT) & 0x3ff;
    f.other_access = word & IS_ATOMIC ? ATOMIC : other_write ? WRITE : READ;
    f.other_group_known = !same_group;
    // Which threadgroup it was is not kept: the order of stamps tells only that it was another one.
    f.other_group[0] = (uint32_t)word;
    report(f, false);
}

/// Whether an earlier access, which is not the thread's own, is ordered before this one.
static MSL_INLINE bool unordered(const Worker &w, uint64_t word, uint32_t now, uint32_t first, bool device, uint32_t tid,
                                 uint32_t epoch, bool *same_group) {
    uint32_t stamp = (uint32_t)word;
    *same_group = stamp >= w.group_first_stamp;
    if (!*same_group)
        return device && stamp >= first;
    if (stamp != now)
        return false;
    uint32_t other = (word >> TID_SHIFT) & 0x3ff;
    if (other / LANES == tid / LANES && !(word & CROSS)) {
        if (((word >> EPOCH_SHIFT) & EPOCH_MASK) != epoch)
            return false;
        return other != tid || (word & MULTI);
    }
    return true;
}

static void detect(Worker &w, const Region &r, uint64_t offset, uint32_t n, Access access, const void *pc) {
    bool device = r.kind == BUFFER;
    uint32_t tid = w.current->thread.index, which = device ? 0 : 1;
    uint32_t now = w.stamp[which], first = (uint32_t)w.launch->first_stamp;
    uint32_t epoch = w.simdgroups[tid / LANES].epoch[which] & EPOCH_MASK;
    uint64_t mine = now | (uint64_t)tid << TID_SHIFT | (uint64_t)epoch << EPOCH_SHIFT;
    if (access == ATOMIC)
        mine |= IS_ATOMIC;
    uint64_t end = offset + n;
    for (uint64_t at = offset; at < end;) {
        uint64_t cell = at / CELL, low = at % CELL, high = end - cell * CELL < CELL ? end - cell * CELL : CELL;
        uint64_t mask = ((1ull << high) - (1ull << low)) << MASK_SHIFT;
        uint64_t *words = r.cells + 2 * cell;
        uint64_t written = words[0], read = words[1];
        bool same;
        if ((written & mask) && !(access == ATOMIC && written & IS_ATOMIC) &&
            unordered(w, written, now, first, device, tid, epoch, &same)) {
            conflict(r, at, n, access, written, true, same, pc);
            return;
        }
        if (access == READ) {
            uint64_t next = mine | mask;
            uint32_t stamp = (uint32_t)read;
            if (read && stamp == now) {
                uint32_t other = (read >> TID_SHIFT) & 0x3ff;
                if (read & CROSS || other / LANES != tid / LANES)
                    next |= CROSS | (read & GROUPS);
                else if (((read >> EPOCH_SHIFT) & EPOCH_MASK) == epoch)
                    next |= (read & (MULTI | GROUPS)) | (other != tid ? MULTI : 0);
                else
                    next |= read & GROUPS;
                next |= read & (15ull << MASK_SHIFT);
            } else if (read && device && stamp >= first) {
                // An earlier epoch of this threadgroup is done with; another threadgroup never is.
                if (stamp < w.group_first_stamp || read & GROUPS)
                    next |= GROUPS | (read & (15ull << MASK_SHIFT));
            }
            words[1] = next;
        } else {
            if (read & mask) {
                if (read & GROUPS && (uint32_t)read >= first) {
                    conflict(r, at, n, access, read, false, false, pc);
                    return;
                }
                if (unordered(w, read, now, first, device, tid, epoch, &same)) {
                    conflict(r, at, n, access, read, false, same, pc);
                    return;
                }
            }
            words[0] = mine | mask;
        }
        at = cell * CELL + high;
    }
}

static MSL_COLD void outside(Worker &w, uintptr_t a, uint64_t n, Access access, const Region *r, const void *pc) {
    Fault f = blank(OUT_OF_BOUNDS, pc);
    f.bytes = (uint32_t)n;
    f.access = access;
    f.region_kind = UNKNOWN;
    f.offset = (int64_t)a;
    if (!r) {
        // Borrowed memory has no room of its own: the nearest start within 16 MiB is the likely one.
        uint64_t best = 16 << 20;
        for (uint64_t i = 0; i < w.launch->region_count; i++) {
            const Region &c = w.launch->regions[i];
            uint64_t after = a - (uintptr_t)c.base - c.size, before = (uintptr_t)c.base - a;
            uint64_t near = after < before ? after : before;
            if (near <= best) {
                best = near;
                r = &c;
            }
        }
    }
    if (r) {
        f.region_kind = r->kind;
        f.region_index = r->index;
        f.offset = (int64_t)(a - (uintptr_t)r->base);
        f.size = r->size;
    }
    report(f, true);
}

static MSL_COLD void unwritten(const Region &r, uint64_t offset, uint64_t n, const void *pc) {
    Fault f = blank(UNWRITTEN, pc);
    f.region_kind = r.kind;
    f.region_index = r.index;
    f.offset = (int64_t)offset;
    f.bytes = (uint32_t)n;
    f.size = r.size;
    report(f, false);
}

static MSL_COLD void read_only(const Region &r, uint64_t offset, uint64_t n, const void *pc) {
    Fault f = blank(READ_ONLY, pc);
    f.region_kind = r.kind;
    f.region_index = r.index;
    f.offset = (int64_t)offset;
    f.bytes = (uint32_t)n;
    f.size = r.size;
    report(f, true);
}

static MSL_COLD void unset_constant(Worker &w, uintptr_t a, const void *pc) {
    for (uint64_t i = 0; i < w.launch->unset_count; i++)
        if (w.launch->unset[i] == a) {
            Fault f = blank(UNSET_CONSTANT, pc);
            f.region_kind = UNKNOWN;
            f.region_index = (uint32_t)i;
            report(f, false);
        }
}

static MSL_COLD const Region *borrowed(Worker &w, uintptr_t a) {
    for (uint64_t i = 0; i < w.launch->region_count; i++) {
        const Region &r = w.launch->regions[i];
        if (a - (uintptr_t)r.base < r.size)
            return &r;
    }
    return nullptr;
}

static MSL_INLINE void access(uintptr_t a, uint64_t n, Access kind, const void *pc) {
    Worker *wp = worker;
    if (__builtin_expect(!wp, 0))
        return;
    Worker &w = *wp;
    const Region *r;
    if (a - w.launch->arena_base < w.launch->arena_bytes) {
        uint32_t at = (uint32_t)(a >> 32) % TABLE;
        uint8_t entry;
        for (;; at = (at + 1) % TABLE) {
            entry = w.table[at];
            if (entry == 0)
                return outside(w, a, n, kind, nullptr, pc);
            if (entry == 255) {
                uint64_t rel = a - (uintptr_t)w.shared;
                // The slot has room before its start.
                if (rel + (1ull << 31) < (1ull << 32)) {
                    uint64_t index = (rel + SHARED_STRIDE / 2) / SHARED_STRIDE;
                    if (index >= w.shared_count)
                        index = w.shared_count ? w.shared_count - 1 : 0;
                    if (w.shared_count == 0)
                        return outside(w, a, n, kind, nullptr, pc);
                    r = &w.shared_regions[index];
                    break;
                }
            } else {
                r = &w.launch->regions[entry - 1];
                uint64_t rel = a - (uintptr_t)r->base + (1ull << 31);
                if (rel < r->size + (1ull << 32))
                    break;
            }
        }
    } else if (a - (uintptr_t)w.stacks < w.stack_bytes * MAX_THREADS || a - w.image_low < w.image_bytes ||
               a - (uintptr_t)wp < sizeof(Worker)) {
        if (__builtin_expect(a - w.launch->unset_low < w.launch->unset_bytes, 0))
            unset_constant(w, a, pc);
        return;
    } else {
        r = borrowed(w, a);
        if (!r)
            return outside(w, a, n, kind, nullptr, pc);
    }
    if (__builtin_expect(--w.budget == 0, 0))
        spend(0);
    uint64_t offset = a - (uintptr_t)r->base;
    if (__builtin_expect(offset >= r->size || r->size - offset < n, 0))
        return outside(w, a, n, kind, r, pc);
    if (kind != READ && __builtin_expect(r->read_only != 0, 0))
        return read_only(*r, offset, n, pc);
    if (r->kind >= ARGUMENT) {
        (kind == WRITE ? w.counters.threadgroup_written : w.counters.threadgroup_read) += n;
        if (kind == ATOMIC)
            w.counters.threadgroup_written += n;
    } else if (r->kind == BUFFER) {
        (kind == WRITE ? w.counters.device_written : w.counters.device_read) += n;
        if (kind == ATOMIC)
            w.counters.device_written += n;
    } else {
        w.counters.constant_read += n;
    }
    if (kind == ATOMIC)
        w.counters.atomics++;
    if (r->written) {
        if (kind == WRITE)
            mark_written(r->written, offset, n, w.launch->flags & SHARED);
        else if (!all_written(r->written, offset, n))
            unwritten(*r, offset, n, pc);
    }
    if (r->cells)
        detect(w, *r, offset, (uint32_t)n, kind, pc);
}

/// An atomic store counts as a write of fresh bytes; other atomics also read.
static MSL_INLINE void atomic_access(uintptr_t a, uint64_t n, bool store, const void *pc) {
    Worker *w = worker;
    if (store && w && w->launch->arena_bytes) {
        // Marked first, so that the read part of the check finds the bytes written.
        for (uint64_t i = 0; i < w->launch->region_count; i++) {
            const Region &r = w->launch->regions[i];
            uint64_t offset = a - (uintptr_t)r.base;
            if (r.written && offset < r.size && r.size - offset >= n)
                mark_written(r.written, offset, n, true);
        }
        for (uint32_t i = 0; i < w->shared_count; i++) {
            const Region &r = w->shared_regions[i];
            uint64_t offset = a - (uintptr_t)r.base;
            if (r.written && offset < r.size && r.size - offset >= n)
                mark_written(r.written, offset, n, false);
        }
    }
    access(a, n, ATOMIC, pc);
}

} // namespace msl_rt

using namespace msl_rt;

#define PC __builtin_return_address(0)
#define CALLBACK(NAME, N, KIND)                                                                                        \
    extern "C" void __tsan_##NAME(void *a) { access((uintptr_t)a, N, KIND, PC); }
#define SIZES(N)                                                                                                       \
    CALLBACK(read##N, N, READ)                                                                                         \
    CALLBACK(write##N, N, WRITE)                                                                                       \
    CALLBACK(unaligned_read##N, N, READ)                                                                               \
    CALLBACK(unaligned_write##N, N, WRITE)                                                                             \
    CALLBACK(volatile_read##N, N, READ)                                                                                \
    CALLBACK(volatile_write##N, N, WRITE)                                                                              \
    CALLBACK(unaligned_volatile_read##N, N, READ)                                                                      \
    CALLBACK(unaligned_volatile_write##N, N, WRITE)                                                                    \
    extern "C" void __tsan_read_write##N(void *a) {                                                                    \
        access((uintptr_t)a, N, READ, PC);                                                                             \
        access((uintptr_t)a, N, WRITE, PC);                                                                            \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_read_write##N(void *a) {                                                          \
        access((uintptr_t)a, N, READ, PC);                                                                             \
        access((uintptr_t)a, N, WRITE, PC);                                                                            \
    }
SIZES(1)
SIZES(2)
SIZES(4)
SIZES(8)
SIZES(16)

extern "C" {
void __tsan_read_range(void *a, size_t n) { access((uintptr_t)a, n, READ, PC); }
void __tsan_write_range(void *a, size_t n) { access((uintptr_t)a, n, WRITE, PC); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
void *__tsan_memcpy(void *to, const void *from, size_t n) {
    access((uintptr_t)from, n, READ, PC);
    access((uintptr_t)to, n, WRITE, PC);
    return __builtin_memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, size_t n) {
    access((uintptr_t)from, n, READ, PC);
    access((uintptr_t)to, n, WRITE, PC);
    return __builtin_memmove(to, from, n);
}
void *__tsan_memset(void *to, int value, size_t n) {
    access((uintptr_t)to, n, WRITE, PC);
    return __builtin_memset(to, value, n);
}
}

#define ATOMICS(BITS, T)                                                                                               \
    extern "C" T __tsan_atomic##BITS##_load(const volatile T *a, int) {                                                \
        atomic_access((uintptr_t)a, sizeof(T), false, PC);                                                             \
        return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                                                   \
    }                                                                                                                  \
    extern "C" void __tsan_atomic##BITS##_store(volatile T *a, T v, int) {                                             \
        atomic_access((uintptr_t)a, sizeof(T), true, PC);                                                              \
        __atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                                                      \
    }                                                                                                                  \
    extern "C" int __tsan_atomic##BITS##_compare_exchange_strong(volatile T *a, T *e, T v, int, int) {                 \
        atomic_access((uintptr_t)a, sizeof(T), false, PC);                                                             \
        return __atomic_compare_exchange_n(a, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                        \
    }                                                                                                                  \
    extern "C" int __tsan_atomic##BITS##_compare_exchange_weak(volatile T *a, T *e, T v, int, int) {                   \
        atomic_access((uintptr_t)a, sizeof(T), false, PC);                                                             \
        return __atomic_compare_exchange_n(a, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                        \
    }                                                                                                                  \
    extern "C" T __tsan_atomic##BITS##_compare_exchange_val(volatile T *a, T e, T v, int, int) {                       \
        atomic_access((uintptr_t)a, sizeof(T), false, PC);                                                             \
        __atomic_compare_exchange_n(a, &e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                              \
        return e;                                                                                                      \
    }                                                                                                                  \
    FETCH(BITS, T, exchange, __atomic_exchange_n)                                                                      \
    FETCH(BITS, T, fetch_add, __atomic_fetch_add)                                                                      \
    FETCH(BITS, T, fetch_sub, __atomic_fetch_sub)                                                                      \
    FETCH(BITS, T, fetch_and, __atomic_fetch_and)                                                                      \
    FETCH(BITS, T, fetch_or, __atomic_fetch_or)                                                                        \
    FETCH(BITS, T, fetch_xor, __atomic_fetch_xor)
#define FETCH(BITS, T, NAME, OP)                                                                                       \
    extern "C" T __tsan_atomic##BITS##_##NAME(volatile T *a, T v, int) {                                               \
        atomic_access((uintptr_t)a, sizeof(T), false, PC);                                                             \
        return OP(a, v, __ATOMIC_SEQ_CST);                                                                             \
    }
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

// What the host and the runtime share, and the state of a worker. The host has the same layouts in
// `src/library/launch.rs`.
#pragma once
#include "msl_runtime.h"

#define MSL_EXPORT extern "C" __attribute__((visibility("default")))
#define MSL_COLD __attribute__((noinline, cold))
#define MSL_INLINE inline __attribute__((always_inline))

namespace msl_rt {

enum RegionKind : uint32_t { BUFFER, CONSTANT, ARGUMENT, ARRAY, UNKNOWN };

/// Bytes of a cell of the conflict detector, which has two words. The host reserves as many.
constexpr uint64_t CELL = 2;

struct Region {
    uint8_t *base;
    uint64_t size;
    uint64_t *written;
    uint64_t *cells;
    uint32_t kind;
    uint32_t index;
    uint32_t read_only;
    uint32_t unused;
};

enum FaultCode : uint32_t { OUT_OF_BOUNDS, UNWRITTEN, READ_ONLY, CONFLICT, DIVERGENCE, TRAP, TIMEOUT, TOO_MUCH_MEMORY, UNSET_CONSTANT };
enum Access : uint32_t { READ, WRITE, ATOMIC };

struct Fault {
    uint32_t code;
    uint32_t region_kind;
    uint32_t region_index;
    uint32_t line;
    uint64_t pc;
    int64_t offset;
    uint64_t size;
    uint32_t bytes;
    uint32_t access;
    uint32_t group[3];
    uint32_t thread[3];
    uint32_t other_group[3];
    uint32_t other_group_known;
    uint32_t other_thread;
    uint32_t other_access;
    uint32_t waiting;
    uint32_t returned;
    uint32_t other_line;
    int32_t signal;
};

struct Counters {
    uint64_t device_read, device_written, constant_read, threadgroup_read, threadgroup_written;
    uint64_t atomics, threadgroup_barriers, simdgroup_barriers, collectives, partial_collectives;
    uint64_t threadgroup_memory, threads, threadgroups;
};

enum Flags : uint32_t { DETECT_CONFLICTS = 1, REPORT_UNWRITTEN = 2, STOP_AT_FIRST = 4, EXITED_LEAVE = 8, SHARED = 16 };
constexpr uint32_t MAX_FAULTS = 64;

struct Launch {
    EntryPoint entry;
    uint64_t arena_base;
    uint64_t arena_bytes;
    const Region *regions;
    uint64_t region_count;
    uint64_t *stamps;
    uint64_t seed;
    uint64_t budget;
    uint64_t memory_limit;
    uint64_t next_group;
    uint64_t first_stamp;
    /// Addresses of function constants without a value, 0 for those that have one, and the range they lie in.
    const uint64_t *unset;
    uint64_t unset_count;
    uint64_t unset_low;
    uint64_t unset_bytes;
    uint8_t *buffers[31];
    uint64_t threadgroup_bytes[31];
    uint32_t groups[3];
    uint32_t threads[3];
    uint32_t nominal[3];
    uint32_t flags;
    uint32_t fault_count;
    uint32_t stop;
    Fault faults[MAX_FAULTS];
};

enum State : uint8_t { FRESH, READY, AT_BARRIER, AT_EXCHANGE, DONE };

struct Fiber {
    Thread thread;
    void *sp;
    uint8_t *stack;
    Combine combine;
    uint32_t line;
    State state;
    const Slot *out;
    uint32_t mask;
};

constexpr uint32_t MAX_THREADS = 1024;
constexpr uint32_t LANES = 32;

struct Simdgroup {
    uint32_t live;
    uint32_t waiting;
    uint32_t parity;
    uint32_t epoch[2];
    Slot in[LANES];
    Slot out[2][LANES];
};

struct Array {
    const void *key;
    uint32_t region;
};

constexpr uint32_t MAX_SHARED = 64;
constexpr uint64_t SHARED_STRIDE = 1 << 20;
constexpr uint32_t TABLE = 256;

/// A worker runs threadgroups one after the other; its memory is made by the host and zeroed.
struct Worker {
    Launch *launch;
    Counters counters;
    uint8_t *stacks;
    uint64_t stack_bytes;
    /// A slot of the arena for threadgroup memory: allocation i starts at i * SHARED_STRIDE.
    uint8_t *shared;
    uint64_t *shared_written;
    uint64_t *shared_cells;
    uint64_t shared_bytes;

    void *main_sp;
    Fiber *current;
    uint64_t budget;
    uint64_t random;
    uint32_t live, total, barrier_waiting, barrier_line, barrier_order, queue_head, queue_count, free_stacks;
    uint32_t stamp[2];
    uint32_t group_first_stamp;
    uint32_t array_count, shared_count, aborted;
    uint64_t image_low, image_bytes;
    Group group;
    Array arrays[MAX_SHARED];
    Region shared_regions[MAX_SHARED];
    /// Regions by the slot of their address: index + 1; 255 is threadgroup memory.
    uint8_t table[TABLE];
    uint16_t queue[MAX_THREADS];
    uint16_t stack_list[MAX_THREADS];
    uint16_t order[MAX_THREADS];
    Fiber fibers[MAX_THREADS];
    Simdgroup simdgroups[MAX_THREADS / LANES];
};

extern __thread Worker *worker __attribute__((tls_model("initial-exec")));

/// Ends the running threadgroup and goes back to the host.
[[noreturn]] void leave();
/// A fault of the running thread; returns where the run goes on.
void report(Fault &fault, bool fatal);
Fault blank(FaultCode code, const void *pc);
Region *add_shared(uint64_t bytes, RegionKind kind, uint32_t index);
void spend(uint64_t amount);

/// A bit per byte: marks or tests `n` bytes from `at` on.
MSL_INLINE bool all_written(const uint64_t *bits, uint64_t at, uint64_t n) {
    while (n > 0) {
        uint64_t shift = at % 64, here = 64 - shift < n ? 64 - shift : n;
        uint64_t mask = (here == 64 ? ~0ull : (1ull << here) - 1) << shift;
        if ((bits[at / 64] & mask) != mask)
            return false;
        at += here;
        n -= here;
    }
    return true;
}
MSL_INLINE void mark_written(uint64_t *bits, uint64_t at, uint64_t n, bool shared) {
    while (n > 0) {
        uint64_t shift = at % 64, here = 64 - shift < n ? 64 - shift : n;
        uint64_t mask = (here == 64 ? ~0ull : (1ull << here) - 1) << shift;
        if (shared)
            __atomic_fetch_or(&bits[at / 64], mask, __ATOMIC_RELAXED);
        else
            bits[at / 64] |= mask;
        at += here;
        n -= here;
    }
}

} // namespace msl_rt

// Threads of a threadgroup as fibers of one system thread: barriers, exchanges, the order of threads.
#include "state.h"
#include <signal.h>

extern "C" {
/// Saves the registers that a call keeps, stores the stack pointer and goes on at another one.
void msl_switch(void **save, void *to) __attribute__((visibility("hidden")));
void msl_fiber_start() __attribute__((visibility("hidden")));
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
}

#if defined(__x86_64__)
asm(R"(
.text
.hidden msl_switch
.globl msl_switch
.type msl_switch,@function
msl_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size msl_switch,.-msl_switch
)");
static void *fresh_stack(uint8_t *top) {
    void **sp = (void **)top;
    *--sp = nullptr;
    *--sp = (void *)msl_fiber_start;
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    return sp;
}
#elif defined(__aarch64__)
asm(R"(
.text
.hidden msl_switch
.globl msl_switch
.type msl_switch,%function
msl_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size msl_switch,.-msl_switch
)");
static void *fresh_stack(uint8_t *top) {
    void **sp = (void **)(top - 160);
    for (int i = 0; i < 20; i++)
        sp[i] = nullptr;
    sp[11] = (void *)msl_fiber_start;
    return sp;
}
#else
#error "fibers run on x86-64 and aarch64"
#endif

namespace msl_rt {

__thread Worker *worker __attribute__((tls_model("initial-exec")));

static MSL_INLINE uint64_t draw(Worker &w) {
    w.random ^= w.random << 13;
    w.random ^= w.random >> 7;
    w.random ^= w.random << 17;
    return w.random;
}

static MSL_INLINE void enqueue(Worker &w, uint32_t index) {
    w.queue[(w.queue_head + w.queue_count++) % MAX_THREADS] = (uint16_t)index;
}

/// Puts threads into the queue: as they are, or in an order that the seed decides.
static void enqueue_all(Worker &w, uint16_t *list, uint32_t n) {
    if (w.launch->seed != 0)
        for (uint32_t i = n; i > 1; i--) {
            uint32_t j = (uint32_t)(((draw(w) >> 32) * i) >> 32);
            uint16_t swap = list[i - 1];
            list[i - 1] = list[j];
            list[j] = swap;
        }
    for (uint32_t i = 0; i < n; i++)
        enqueue(w, list[i]);
}

[[noreturn]] void leave() {
    void *ignored;
    msl_switch(&ignored, worker->main_sp);
    __builtin_unreachable();
}

Fault blank(FaultCode code, const void *pc) {
    Worker &w = *worker;
    Fault f;
    __builtin_memset(&f, 0, sizeof f);
    f.code = code;
    f.pc = pc ? (uint64_t)pc - 1 - w.image_low : 0;
    for (int i = 0; i < 3; i++) {
        f.group[i] = w.group.position[i];
        f.thread[i] = w.current ? w.current->thread.position[i] : 0;
    }
    return f;
}

void report(Fault &fault, bool fatal) {
    Worker &w = *worker;
    Launch &l = *w.launch;
    bool known = false;
    uint32_t count = __atomic_load_n(&l.fault_count, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; !fatal && i < count && i < MAX_FAULTS; i++)
        known |= l.faults[i].pc == fault.pc && l.faults[i].code == fault.code;
    if (!known) {
        uint32_t at = __atomic_fetch_add(&l.fault_count, 1, __ATOMIC_ACQ_REL);
        if (at < MAX_FAULTS)
            l.faults[at] = fault;
    }
    if (fatal || l.flags & STOP_AT_FIRST) {
        __atomic_store_n(&l.stop, 1, __ATOMIC_RELEASE);
        w.aborted = 1;
        leave();
    }
}

MSL_COLD void spend(uint64_t) {
    Fault f = blank(TIMEOUT, nullptr);
    f.line = worker->current ? worker->current->line : 0;
    report(f, true);
}

Region *add_shared(uint64_t bytes, RegionKind kind, uint32_t index) {
    Worker &w = *worker;
    uint64_t used = w.shared_bytes + ((bytes + 15) / 16) * 16;
    if (used > w.launch->memory_limit || w.shared_count == MAX_SHARED || bytes > SHARED_STRIDE / 2) {
        Fault f = blank(TOO_MUCH_MEMORY, nullptr);
        f.size = used;
        report(f, true);
    }
    Region &r = w.shared_regions[w.shared_count];
    r.base = w.shared + w.shared_count * SHARED_STRIDE;
    r.size = bytes;
    r.kind = kind;
    r.index = index;
    r.read_only = 0;
    // Bits and cells lie one after the other, as the allocations of a threadgroup do.
    uint64_t start = (w.shared_bytes + 63) / 64 * 64;
    r.written = w.launch->flags & REPORT_UNWRITTEN ? w.shared_written + start / 64 + w.shared_count : nullptr;
    r.cells = w.launch->flags & DETECT_CONFLICTS ? w.shared_cells + 2 * (start / CELL) + 64 * w.shared_count : nullptr;
    w.shared_bytes = used;
    w.shared_count++;
    return &r;
}

static void poison(const Region &r) {
    __builtin_memset(r.base, 0xff, r.size);
    if (r.written)
        __builtin_memset(r.written, 0, (r.size + 63) / 64 * 8);
}

void *threadgroup_array(const void *key, size_t bytes, uint32_t line) {
    Worker &w = *worker;
    for (uint32_t i = 0; i < w.array_count; i++)
        if (w.arrays[i].key == key)
            return w.shared_regions[w.arrays[i].region].base;
    Region *r = add_shared(bytes, ARRAY, line);
    poison(*r);
    w.arrays[w.array_count++] = {key, (uint32_t)(r - w.shared_regions)};
    if (w.shared_bytes > w.counters.threadgroup_memory)
        w.counters.threadgroup_memory = w.shared_bytes;
    return r->base;
}

uint32_t lane() { return worker->current->thread.index % LANES; }

static void diverged(Worker &w, uint32_t line, uint32_t waiting, uint32_t returned, uint32_t other_line) {
    Fault f = blank(DIVERGENCE, nullptr);
    f.line = line;
    f.waiting = waiting;
    f.returned = returned;
    f.other_line = other_line;
    (void)w;
    report(f, true);
}

static void bump(Worker &w, uint32_t order) {
    for (uint32_t which = 0; which < 2; which++)
        if (order & (1u << which))
            w.stamp[which] = (uint32_t)__atomic_add_fetch(w.launch->stamps, 1, __ATOMIC_RELAXED);
}

static void release_barrier(Worker &w) {
    bump(w, w.barrier_order);
    w.counters.threadgroup_barriers++;
    uint32_t n = 0;
    for (uint32_t i = 0; i < w.total; i++)
        if (w.fibers[i].state == AT_BARRIER) {
            w.fibers[i].state = READY;
            w.order[n++] = (uint16_t)i;
        }
    w.barrier_waiting = w.barrier_line = w.barrier_order = 0;
    enqueue_all(w, w.order, n);
}

/// Completes the exchange of the lanes that wait at the lowest line.
static void resolve(Worker &w, uint32_t simdgroup) {
    Simdgroup &s = w.simdgroups[simdgroup];
    Fiber *fibers = w.fibers + simdgroup * LANES;
    uint32_t lanes = w.total - simdgroup * LANES < LANES ? w.total - simdgroup * LANES : LANES;
    Fiber *lowest = nullptr;
    for (uint32_t i = 0; i < lanes; i++) {
        Fiber *f = fibers + i;
        if (f->state == AT_EXCHANGE &&
            (!lowest || f->line < lowest->line || (f->line == lowest->line && f->combine < lowest->combine)))
            lowest = f;
    }
    if (!lowest)
        return;
    uint32_t mask = 0, n = 0;
    uint16_t list[LANES];
    for (uint32_t i = 0; i < lanes; i++)
        if (fibers[i].state == AT_EXCHANGE && fibers[i].line == lowest->line && fibers[i].combine == lowest->combine) {
            mask |= 1u << i;
            list[n++] = (uint16_t)(simdgroup * LANES + i);
        }
    if (!lowest->combine) {
        uint32_t missing = (w.launch->flags & EXITED_LEAVE ? s.live : lanes) - n;
        if (missing) {
            w.current = lowest;
            diverged(w, lowest->line, n, lanes - s.live, 0);
        }
        w.counters.simdgroup_barriers++;
        for (uint32_t which = 0; which < 2; which++)
            s.epoch[which] += (lowest->mask >> which) & 1;
    } else {
        w.counters.collectives++;
        w.counters.partial_collectives += n < s.live;
        s.parity ^= 1;
        lowest->combine(s.in, mask, s.out[s.parity]);
    }
    s.waiting -= n;
    for (uint32_t i = 0; i < n; i++) {
        Fiber &f = w.fibers[list[i]];
        f.out = s.out[s.parity];
        f.mask = mask;
        f.state = READY;
    }
    enqueue_all(w, list, n);
}

/// Nobody can go on: completes what waits, or reports threads that wait for others in vain.
static MSL_COLD void stuck(Worker &w) {
    for (uint32_t s = 0; s * LANES < w.total; s++)
        if (w.simdgroups[s].waiting)
            resolve(w, s);
    if (w.queue_count)
        return;
    if (w.launch->flags & EXITED_LEAVE && w.barrier_waiting == w.live) {
        release_barrier(w);
        return;
    }
    for (uint32_t i = 0; i < w.total; i++)
        if (w.fibers[i].state == AT_BARRIER) {
            w.current = w.fibers + i;
            break;
        }
    diverged(w, w.barrier_line, w.barrier_waiting, w.total - w.live, 0);
}

static Fiber *next(Worker &w) {
    if (w.queue_count == 0)
        stuck(w);
    uint32_t index = w.queue[w.queue_head];
    w.queue_head = (w.queue_head + 1) % MAX_THREADS;
    w.queue_count--;
    return w.fibers + index;
}

/// Gives a fresh thread a stack.
static void prepare(Worker &w, Fiber &f) {
    if (f.state == FRESH) {
        uint32_t index = w.stack_list[--w.free_stacks];
        f.stack = w.stacks + index * w.stack_bytes;
        // Tops of stacks differ in their low bits, so that they do not share cache sets.
        f.sp = fresh_stack(f.stack + w.stack_bytes - 64 - (index * 320) % 4096 / 64 * 64);
        f.state = READY;
    }
}

/// Runs other threads until this one can go on.
static void wait(Worker &w, Fiber &self) {
    if (--w.budget == 0)
        spend(0);
    Fiber *other = next(w);
    if (other == &self) {
        w.current = &self;
        return;
    }
    prepare(w, *other);
    w.current = other;
    msl_switch(&self.sp, other->sp);
}

void threadgroup_barrier(uint32_t order, uint32_t line) {
    Worker &w = *worker;
    Fiber &self = *w.current;
    if (w.barrier_waiting && w.barrier_line != line)
        diverged(w, line, w.barrier_waiting, w.total - w.live, w.barrier_line);
    self.state = AT_BARRIER;
    self.line = line;
    w.barrier_line = line;
    w.barrier_order |= order;
    if (++w.barrier_waiting == w.live && (w.live == w.total || w.launch->flags & EXITED_LEAVE))
        release_barrier(w);
    wait(w, self);
}

static void wait_exchange(Worker &w, Fiber &self) {
    uint32_t index = self.thread.index / LANES;
    Simdgroup &s = w.simdgroups[index];
    self.state = AT_EXCHANGE;
    if (++s.waiting == s.live)
        resolve(w, index);
    wait(w, self);
}

void simdgroup_barrier(uint32_t order, uint32_t line) {
    Worker &w = *worker;
    Fiber &self = *w.current;
    self.combine = nullptr;
    self.line = line;
    self.mask = order;
    wait_exchange(w, self);
}

Exchange exchange(const void *value, size_t bytes, Combine combine, uint32_t line) {
    Worker &w = *worker;
    Fiber &self = *w.current;
    uint32_t lane = self.thread.index % LANES;
    __builtin_memcpy(w.simdgroups[self.thread.index / LANES].in[lane].bytes, value, bytes);
    self.combine = combine;
    self.line = line;
    wait_exchange(w, self);
    return {self.out, self.mask, lane};
}

/// Body of every fiber: runs its thread, then those that have not started, then makes room.
static void fiber_body() {
    Worker &w = *worker;
    uint8_t *stack = w.current->stack;
    for (;;) {
        Fiber &self = *w.current;
        w.launch->entry(self.thread);
        self.state = DONE;
        Simdgroup &s = w.simdgroups[self.thread.index / LANES];
        s.live--;
        if (s.waiting && s.waiting == s.live)
            resolve(w, self.thread.index / LANES);
        if (--w.live == 0)
            leave();
        Fiber *other = next(w);
        w.current = other;
        if (other->state == FRESH) {
            other->stack = stack;
            other->state = READY;
            continue;
        }
        w.stack_list[w.free_stacks++] = (uint16_t)((stack - w.stacks) / w.stack_bytes);
        void *ignored;
        msl_switch(&ignored, other->sp);
    }
}

// ---- Signals of the processor.

/// Ends the threadgroup where a kernel of this image runs on the thread; else returns.
static void trap(int signal, ucontext_t *context) {
    Worker *w = worker;
    if (!w || !w->current)
        return;
    uint64_t pc = 0;
#if defined(__x86_64__)
    pc = (uint64_t)context->uc_mcontext.gregs[16];
#elif defined(__aarch64__)
    pc = context->uc_mcontext.pc;
#endif
    Fault f = blank(TRAP, (const void *)(pc + 1));
    f.signal = signal;
    report(f, true);
}

// ---- Threadgroups.

static void start_group(Worker &w, uint64_t index) {
    Launch &l = *w.launch;
    Group &g = w.group;
    g.position[0] = (uint32_t)(index % l.groups[0]);
    g.position[1] = (uint32_t)(index / l.groups[0] % l.groups[1]);
    g.position[2] = (uint32_t)(index / l.groups[0] / l.groups[1]);
    for (int i = 0; i < 3; i++) {
        uint32_t left = l.threads[i] - g.position[i] * l.nominal[i];
        g.size[i] = left < l.nominal[i] ? left : l.nominal[i];
    }
    w.total = w.live = count(g.size);
    w.random = (l.seed * 0x9e3779b97f4a7c15ull) ^ ((index + 1) * 0xd1342543de82ef95ull);
    if (w.random == 0)
        w.random = 1;
    w.budget = l.budget;
    w.barrier_waiting = w.barrier_line = w.barrier_order = 0;
    w.queue_head = w.queue_count = 0;
    uint64_t stamp = __atomic_add_fetch(l.stamps, 1, __ATOMIC_RELAXED);
    w.stamp[0] = w.stamp[1] = w.group_first_stamp = (uint32_t)stamp;
    for (uint32_t i = 0; i < w.shared_count; i++)
        poison(w.shared_regions[i]);
    uint32_t at = 0;
    for (uint32_t z = 0; z < g.size[2]; z++)
        for (uint32_t y = 0; y < g.size[1]; y++)
            for (uint32_t x = 0; x < g.size[0]; x++, at++) {
                Fiber &f = w.fibers[at];
                f.thread.position[0] = x;
                f.thread.position[1] = y;
                f.thread.position[2] = z;
                f.thread.index = at;
                f.thread.group = &g;
                f.state = FRESH;
                f.line = 0;
                w.order[at] = (uint16_t)at;
            }
    for (uint32_t s = 0; s * LANES < w.total; s++) {
        Simdgroup &group = w.simdgroups[s];
        group.live = w.total - s * LANES < LANES ? w.total - s * LANES : LANES;
        group.waiting = group.epoch[0] = group.epoch[1] = 0;
    }
    w.free_stacks = MAX_THREADS;
    for (uint32_t i = 0; i < MAX_THREADS; i++)
        w.stack_list[i] = (uint16_t)(MAX_THREADS - 1 - i);
    enqueue_all(w, w.order, w.total);
}

static void run_groups(Worker &w) {
    Launch &l = *w.launch;
    uint64_t groups = (uint64_t)l.groups[0] * l.groups[1] * l.groups[2];
    for (;;) {
        if (__atomic_load_n(&l.stop, __ATOMIC_ACQUIRE))
            return;
        uint64_t index = __atomic_fetch_add(&l.next_group, 1, __ATOMIC_RELAXED);
        if (index >= groups)
            return;
        start_group(w, index);
        if (w.total == 0)
            continue;
        Fiber *first = next(w);
        prepare(w, *first);
        w.current = first;
        msl_switch(&w.main_sp, first->sp);
        w.current = nullptr;
        w.counters.threads += w.total;
        w.counters.threadgroups++;
        if (w.aborted)
            return;
    }
}

static void table_add(Worker &w, uintptr_t address, uint8_t entry) {
    uint32_t at = (uint32_t)(address >> 32) % TABLE;
    while (w.table[at])
        at = (at + 1) % TABLE;
    w.table[at] = entry;
}

/// Not inlined: the arguments and arrays are set up before any thread runs, where a fault cannot leave.
static MSL_COLD bool set_up(Worker &w) {
    Launch &l = *w.launch;
    __builtin_memset(&w.counters, 0, sizeof w.counters);
    __builtin_memset(w.table, 0, sizeof w.table);
    w.current = nullptr;
    w.array_count = w.shared_count = w.aborted = 0;
    w.shared_bytes = 0;
    w.image_low = (uint64_t)&__ehdr_start;
    w.image_bytes = (uint64_t)(&_end - &__ehdr_start);
    for (int i = 0; i < 3; i++) {
        w.group.nominal[i] = l.nominal[i];
        w.group.groups[i] = l.groups[i];
        w.group.threads[i] = l.threads[i];
    }
    for (uint64_t i = 0; i < l.region_count; i++) {
        uintptr_t base = (uintptr_t)l.regions[i].base, low = base - (1ull << 31);
        if (base - l.arena_base >= l.arena_bytes)
            continue;
        for (uintptr_t slot = low; slot < base + l.regions[i].size + (1ull << 31); slot += 1ull << 32)
            table_add(w, slot, (uint8_t)(i + 1));
    }
    table_add(w, (uintptr_t)w.shared - (1ull << 31), 255);
    table_add(w, (uintptr_t)w.shared, 255);
    for (int i = 0; i < 31; i++) {
        w.group.buffers[i] = l.buffers[i];
        w.group.threadgroups[i] = nullptr;
        if (l.threadgroup_bytes[i])
            w.group.threadgroups[i] = add_shared(l.threadgroup_bytes[i], ARGUMENT, (uint32_t)i)->base;
    }
    w.counters.threadgroup_memory = w.shared_bytes;
    return true;
}

} // namespace msl_rt

extern "C" void msl_fiber_start() { msl_rt::fiber_body(); }

MSL_EXPORT uint64_t msl_worker_bytes() { return sizeof(msl_rt::Worker); }
MSL_EXPORT uint64_t msl_launch_bytes() { return sizeof(msl_rt::Launch); }

/// The host's handler of signals asks this first.
MSL_EXPORT void msl_trap(int signal, void *context) { msl_rt::trap(signal, (ucontext_t *)context); }

/// Runs threadgroups until none is left or a fault ends the launch.
MSL_EXPORT void msl_run(msl_rt::Worker *w) {
    msl_rt::worker = w;
    if (msl_rt::set_up(*w))
        msl_rt::run_groups(*w);
    msl_rt::worker = nullptr;
}

// What a translated kernel needs from the runtime: its place in the grid, its arguments, threadgroup
// memory, barriers and exchanges between the threads of a simdgroup.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace msl_rt {

struct Worker;

/// A threadgroup, and what all its threads share.
struct Group {
    uint32_t position[3];
    uint32_t size[3];
    uint32_t nominal[3];
    uint32_t groups[3];
    uint32_t threads[3];
    uint8_t *buffers[31];
    uint8_t *threadgroups[31];
};

struct Thread {
    uint32_t position[3];
    uint32_t index;
    const Group *group;
};

using EntryPoint = void (*)(const Thread &);

struct FunctionConstant {
    void *value;
    size_t bytes;
    bool *defined;
};

// ---- Places in the grid. A parameter takes as many of the three values as its type has.

template <class T> struct Components {
    static T make(const uint32_t *v) { return T(v[0]); }
};

struct Place {
    uint32_t v[3];
    template <class T> operator T() const { return Components<T>::make(v); }
};

inline uint32_t count(const uint32_t *v) { return v[0] * v[1] * v[2]; }
inline Place three(const uint32_t *v) { return {{v[0], v[1], v[2]}}; }
inline Place one(uint32_t v) { return {{v, 0, 0}}; }
inline Place thread_position_in_grid(const Thread &t) {
    const Group &g = *t.group;
    return {{g.position[0] * g.nominal[0] + t.position[0], g.position[1] * g.nominal[1] + t.position[1],
             g.position[2] * g.nominal[2] + t.position[2]}};
}
inline Place thread_position_in_threadgroup(const Thread &t) { return three(t.position); }
inline Place thread_index_in_threadgroup(const Thread &t) { return one(t.index); }
inline Place thread_index_in_simdgroup(const Thread &t) { return one(t.index % 32); }
inline Place thread_index_in_quadgroup(const Thread &t) { return one(t.index % 4); }
inline Place threadgroup_position_in_grid(const Thread &t) { return three(t.group->position); }
inline Place threads_per_threadgroup(const Thread &t) { return three(t.group->size); }
inline Place threads_per_grid(const Thread &t) { return three(t.group->threads); }
inline Place threads_per_simdgroup(const Thread &) { return one(32); }
inline Place thread_execution_width(const Thread &) { return one(32); }
inline Place threadgroups_per_grid(const Thread &t) { return three(t.group->groups); }
inline Place simdgroup_index_in_threadgroup(const Thread &t) { return one(t.index / 32); }
inline Place simdgroups_per_threadgroup(const Thread &t) { return one((count(t.group->size) + 31) / 32); }
inline Place quadgroup_index_in_threadgroup(const Thread &t) { return one(t.index / 4); }
inline Place quadgroups_per_threadgroup(const Thread &t) { return one((count(t.group->size) + 3) / 4); }
inline Place dispatch_threads_per_threadgroup(const Thread &t) { return three(t.group->nominal); }
inline Place dispatch_simdgroups_per_threadgroup(const Thread &t) { return one((count(t.group->nominal) + 31) / 32); }
inline Place dispatch_quadgroups_per_threadgroup(const Thread &t) { return one((count(t.group->nominal) + 3) / 4); }
inline Place grid_origin(const Thread &) { return {{0, 0, 0}}; }
inline Place grid_size(const Thread &t) { return three(t.group->threads); }

// ---- Arguments.

struct Pointer {
    uint8_t *p;
    template <class T> operator T *() const { return (T *)p; }
};
struct Reference {
    uint8_t *p;
    template <class T> operator T &() const { return *(T *)p; }
};
inline Pointer buffer_pointer(const Thread &t, int i) { return {t.group->buffers[i]}; }
inline Reference buffer_reference(const Thread &t, int i) { return {t.group->buffers[i]}; }
inline Pointer threadgroup_pointer(const Thread &t, int i) { return {t.group->threadgroups[i]}; }
inline Reference threadgroup_reference(const Thread &t, int i) { return {t.group->threadgroups[i]}; }

// ---- Services of the runtime.

/// The storage that belongs to `key` in the running threadgroup.
void *threadgroup_array(const void *key, size_t bytes, uint32_t line);

enum : uint32_t { ORDER_DEVICE = 1, ORDER_THREADGROUP = 2 };
void threadgroup_barrier(uint32_t order, uint32_t line);
void simdgroup_barrier(uint32_t order, uint32_t line);

/// A value that a thread brings to an exchange; the size of a line so that all lie in one array.
struct alignas(16) Slot {
    uint8_t bytes[64];
};

/// Makes `out` from the values of the threads in `mask`.
using Combine = void (*)(const Slot *in, uint32_t mask, Slot *out);

struct Exchange {
    const Slot *out;
    uint32_t mask;
    uint32_t lane;
};

/// Brings a value, waits for the active threads of the simdgroup, and gives what `combine` made of all.
Exchange exchange(const void *value, size_t bytes, Combine combine, uint32_t line);

/// Lane of the running thread.
uint32_t lane();

} // namespace msl_rt

// Barriers, and functions of the threads of a simdgroup or a quad.
#pragma once
#include "msl_math.h"

#define MSL_LINE uint32_t line = __builtin_LINE()

namespace metal {

enum class mem_flags : uint32_t {
    mem_none = 0,
    mem_device = msl_rt::ORDER_DEVICE,
    mem_threadgroup = msl_rt::ORDER_THREADGROUP,
    mem_texture = 4,
    mem_threadgroup_imageblock = 8,
    mem_object_data = 16
};
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((uint32_t)a | (uint32_t)b); }

inline void threadgroup_barrier(mem_flags f, MSL_LINE) { msl_rt::threadgroup_barrier((uint32_t)f, line); }
inline void simdgroup_barrier(mem_flags f, MSL_LINE) { msl_rt::simdgroup_barrier((uint32_t)f, line); }

} // namespace metal

namespace msl {

template <class T> inline const T &value(const msl_rt::Slot &s) { return *(const T *)s.bytes; }

template <class T, class Op> inline void reduce(const msl_rt::Slot *in, uint32_t mask, msl_rt::Slot *out) {
    int first = __builtin_ctz(mask);
    T sum = value<T>(in[first]);
    for (int i = first + 1; i < 32; i++)
        if (mask >> i & 1)
            sum = Op::apply(sum, value<T>(in[i]));
    *(T *)out[0].bytes = sum;
}
template <class T> inline void gather(const msl_rt::Slot *in, uint32_t mask, msl_rt::Slot *out) {
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1)
            *(T *)out[i].bytes = value<T>(in[i]);
}
struct Sum { template <class T> static T apply(T a, T b) { return T(a + b); } };
struct Product { template <class T> static T apply(T a, T b) { return T(a * b); } };
struct Least { template <class T> static T apply(T a, T b) { return metal::min(a, b); } };
struct Most { template <class T> static T apply(T a, T b) { return metal::max(a, b); } };
struct And { template <class T> static T apply(T a, T b) { return T(a & b); } };
struct Or { template <class T> static T apply(T a, T b) { return T(a | b); } };
struct Xor { template <class T> static T apply(T a, T b) { return T(a ^ b); } };

template <class T> struct Plain { typedef T type; };
template <class T, int... L> struct Plain<Lanes<T, L...>> { typedef Vec<T, sizeof...(L)> type; };
template <class T, int N> struct Plain<Packed<T, N>> { typedef Vec<T, N> type; };
template <class T> using plain_t = typename Plain<T>::type;

template <class T> inline msl_rt::Exchange all_values(const T &v, uint32_t line) {
    return msl_rt::exchange(&v, sizeof(T), gather<T>, line);
}
/// The value of lane `from`, or the thread's own where that lane takes no part.
template <class T> inline T take(const msl_rt::Exchange &e, uint32_t from, const T &own) {
    return from < 32 && (e.mask >> from & 1) ? value<T>(e.out[from]) : own;
}
template <class T, class Op> inline T prefix(T v, bool inclusive, T start, uint32_t line) {
    msl_rt::Exchange e = all_values(v, line);
    T sum = start;
    for (uint32_t i = 0; i < e.lane + inclusive; i++)
        if (e.mask >> i & 1)
            sum = Op::apply(sum, value<T>(e.out[i]));
    return sum;
}
template <class T, class Op> inline T quad(const T &v, uint32_t line) {
    msl_rt::Exchange e = all_values(v, line);
    uint32_t base = e.lane & ~3u;
    T sum = v;
    bool any = false;
    for (uint32_t i = base; i < base + 4; i++)
        if (e.mask >> i & 1) {
            sum = any ? Op::apply(sum, value<T>(e.out[i])) : value<T>(e.out[i]);
            any = true;
        }
    return sum;
}

} // namespace msl

namespace metal {

#define MSL_REDUCE(NAME, OP)                                                                                           \
    template <class A, class T = msl::plain_t<A>> inline T simd_##NAME(const A &v, MSL_LINE) {                         \
        T x(v);                                                                                                        \
        return msl::value<T>(*msl_rt::exchange(&x, sizeof(T), msl::reduce<T, msl::OP>, line).out);                     \
    }                                                                                                                  \
    template <class A, class T = msl::plain_t<A>> inline T quad_##NAME(const A &v, MSL_LINE) {                         \
        return msl::quad<T, msl::OP>(T(v), line);                                                                      \
    }
MSL_REDUCE(sum, Sum)
MSL_REDUCE(product, Product)
MSL_REDUCE(min, Least)
MSL_REDUCE(max, Most)
MSL_REDUCE(and, And)
MSL_REDUCE(or, Or)
MSL_REDUCE(xor, Xor)
#undef MSL_REDUCE

template <class T> inline T simd_prefix_inclusive_sum(T v, MSL_LINE) { return msl::prefix<T, msl::Sum>(v, true, T(0), line); }
template <class T> inline T simd_prefix_exclusive_sum(T v, MSL_LINE) { return msl::prefix<T, msl::Sum>(v, false, T(0), line); }
template <class T> inline T simd_prefix_inclusive_product(T v, MSL_LINE) { return msl::prefix<T, msl::Product>(v, true, T(1), line); }
template <class T> inline T simd_prefix_exclusive_product(T v, MSL_LINE) { return msl::prefix<T, msl::Product>(v, false, T(1), line); }

#define MSL_SHUFFLE(NAME, ARGUMENT, WHICH)                                                                             \
    template <class A, class T = msl::plain_t<A>> inline T simd_##NAME(const A &v, ARGUMENT, MSL_LINE) {               \
        T own(v);                                                                                                      \
        msl_rt::Exchange e = msl::all_values(own, line);                                                               \
        return msl::take(e, WHICH, own);                                                                               \
    }                                                                                                                  \
    template <class A, class T = msl::plain_t<A>> inline T quad_##NAME(const A &v, ARGUMENT, MSL_LINE) {               \
        T own(v);                                                                                                      \
        msl_rt::Exchange e = msl::all_values(own, line);                                                               \
        uint32_t base = e.lane & ~3u;                                                                                  \
        e.lane &= 3;                                                                                                   \
        uint32_t from = WHICH;                                                                                         \
        return from < 4 ? msl::take(e, base + from, own) : own;                                                        \
    }
MSL_SHUFFLE(shuffle, ushort n, (uint32_t)n)
MSL_SHUFFLE(broadcast, ushort n, (uint32_t)n)
MSL_SHUFFLE(shuffle_xor, ushort n, e.lane ^ n)
MSL_SHUFFLE(shuffle_up, ushort n, e.lane - n)
MSL_SHUFFLE(shuffle_down, ushort n, e.lane + n)
MSL_SHUFFLE(shuffle_rotate_up, ushort n, (e.lane - n) % 32)
MSL_SHUFFLE(shuffle_rotate_down, ushort n, (e.lane + n) % 32)
#undef MSL_SHUFFLE
template <class T> inline T simd_shuffle_and_fill_up(T v, T fill, ushort n, MSL_LINE) {
    msl_rt::Exchange e = msl::all_values(v, line);
    return e.lane >= n ? msl::take(e, e.lane - n, v) : msl::take(e, e.lane - n + 32, fill);
}
template <class T> inline T simd_shuffle_and_fill_down(T v, T fill, ushort n, MSL_LINE) {
    msl_rt::Exchange e = msl::all_values(v, line);
    if (e.lane + n < 32)
        return msl::take(e, e.lane + n, v);
    msl_rt::Exchange unused = e;
    (void)unused;
    return fill;
}
template <class A, class T = msl::plain_t<A>> inline T simd_broadcast_first(const A &v, MSL_LINE) {
    T own(v);
    msl_rt::Exchange e = msl::all_values(own, line);
    return msl::value<T>(e.out[__builtin_ctz(e.mask)]);
}

struct simd_vote {
    typedef ulong vote_t;
    ulong v;
    simd_vote(ulong x = 0) : v(x) {}
    explicit operator ulong() const { return v; }
    bool all() const { return v == 0xffffffffull; }
    bool any() const { return v != 0; }
};
inline simd_vote simd_ballot(bool b, MSL_LINE) {
    msl_rt::Exchange e = msl::all_values(b, line);
    ulong r = 0;
    for (int i = 0; i < 32; i++)
        if ((e.mask >> i & 1) && msl::value<bool>(e.out[i]))
            r |= 1ull << i;
    return simd_vote(r);
}
inline simd_vote simd_active_threads_mask(MSL_LINE) { return simd_vote(msl::all_values(true, line).mask); }
inline bool simd_any(bool b, MSL_LINE) { return simd_ballot(b, line).v != 0; }
inline bool simd_all(bool b, MSL_LINE) {
    msl_rt::Exchange e = msl::all_values(b, line);
    for (int i = 0; i < 32; i++)
        if ((e.mask >> i & 1) && !msl::value<bool>(e.out[i]))
            return false;
    return true;
}
inline bool simd_is_first(MSL_LINE) {
    msl_rt::Exchange e = msl::all_values(true, line);
    return e.lane == (uint32_t)__builtin_ctz(e.mask);
}
inline bool simd_is_helper_thread() { return false; }

} // namespace metal

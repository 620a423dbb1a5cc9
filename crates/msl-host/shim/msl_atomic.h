// Atomic types and functions. The compiler turns the built-ins into checked calls.
#pragma once
#include "msl_types.h"

namespace metal {

enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };

template <class T> struct atomic {
    T v;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<ulong> atomic_ulong;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

template <class T> struct msl_same { typedef T type; };
template <class T> using msl_value = typename msl_same<T>::type;
template <class T> using msl_word = std::conditional_t<sizeof(T) == 1, uint8_t, std::conditional_t<sizeof(T) == 4, uint, ulong>>;

template <class T> inline T atomic_load_explicit(const volatile atomic<T> *a, memory_order, thread_scope = thread_scope_device) {
    return msl::bits<T>(__atomic_load_n((const volatile msl_word<T> *)&a->v, __ATOMIC_RELAXED));
}
template <class T>
inline void atomic_store_explicit(volatile atomic<T> *a, msl_value<T> v, memory_order, thread_scope = thread_scope_device) {
    __atomic_store_n((volatile msl_word<T> *)&a->v, msl::bits<msl_word<T>>(v), __ATOMIC_RELAXED);
}
template <class T>
inline T atomic_exchange_explicit(volatile atomic<T> *a, msl_value<T> v, memory_order, thread_scope = thread_scope_device) {
    return msl::bits<T>(__atomic_exchange_n((volatile msl_word<T> *)&a->v, msl::bits<msl_word<T>>(v), __ATOMIC_RELAXED));
}
template <class T>
inline bool atomic_compare_exchange_weak_explicit(volatile atomic<T> *a, T *expected, msl_value<T> v, memory_order, memory_order,
                                                  thread_scope = thread_scope_device) {
    msl_word<T> old = msl::bits<msl_word<T>>(*expected);
    bool done = __atomic_compare_exchange_n((volatile msl_word<T> *)&a->v, &old, msl::bits<msl_word<T>>(v), true,
                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    *expected = msl::bits<T>(old);
    return done;
}
/// Any operation, as a loop over compare and exchange.
template <class T, class F> inline T msl_update(volatile atomic<T> *a, F f) {
    msl_word<T> old = __atomic_load_n((volatile msl_word<T> *)&a->v, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n((volatile msl_word<T> *)&a->v, &old, msl::bits<msl_word<T>>(f(msl::bits<T>(old))), true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return msl::bits<T>(old);
}
#define MSL_FETCH(NAME, EXPR)                                                                                          \
    template <class T>                                                                                                 \
    inline T atomic_fetch_##NAME##_explicit(volatile atomic<T> *a, msl_value<T> v, memory_order,                       \
                                            thread_scope = thread_scope_device) {                                      \
        return msl_update(a, [=](T x) { return T(EXPR); });                                                            \
    }
MSL_FETCH(min, v < x ? v : x)
MSL_FETCH(max, x < v ? v : x)
MSL_FETCH(and, x & v)
MSL_FETCH(or, x | v)
MSL_FETCH(xor, x ^ v)
#undef MSL_FETCH
#define MSL_FETCH(NAME, OP)                                                                                            \
    template <class T>                                                                                                 \
    inline T atomic_fetch_##NAME##_explicit(volatile atomic<T> *a, msl_value<T> v, memory_order,                       \
                                            thread_scope = thread_scope_device) {                                      \
        if constexpr (std::is_integral<T>::value)                                                                      \
            return __atomic_fetch_##NAME(&a->v, v, __ATOMIC_RELAXED);                                                  \
        else                                                                                                           \
            return msl_update(a, [=](T x) { return T(x OP v); });                                                      \
    }
MSL_FETCH(add, +)
MSL_FETCH(sub, -)
#undef MSL_FETCH
template <class... A> inline void atomic_thread_fence(A...) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

} // namespace metal
using metal::atomic_bool;
using metal::atomic_float;
using metal::atomic_int;
using metal::atomic_uint;

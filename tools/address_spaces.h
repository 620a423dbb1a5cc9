// What check_address_spaces.py needs of Metal: its types with clang's vectors, address spaces by number,
// and declarations without bodies.
#pragma clang system_header

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef unsigned long size_t;
typedef _Float16 half;
// A type of its own is enough: nothing is computed.
typedef __fp16 bfloat;

#define device __attribute__((address_space(1)))
#define constant_space __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX 3.402823466e+38f

template <class T, int N> struct VectorOf { typedef T type __attribute__((ext_vector_type(N))); };
template <class T, int N> using vec = typename VectorOf<T, N>::type;

#define VECTORS(T)                                      \
    typedef T T##2 __attribute__((ext_vector_type(2))); \
    typedef T T##3 __attribute__((ext_vector_type(3))); \
    typedef T T##4 __attribute__((ext_vector_type(4)));
VECTORS(float)
VECTORS(half)
VECTORS(bfloat)
VECTORS(uint)
VECTORS(int)
VECTORS(ushort)
VECTORS(uchar)
VECTORS(ulong)
VECTORS(char)
typedef int bool4 __attribute__((ext_vector_type(4)));

template <class V> struct Parts;
#define PARTS(N)                                                              \
    template <class T> struct Parts<T __attribute__((ext_vector_type(N)))> {  \
        typedef T type;                                                       \
        static constexpr int count = N;                                       \
    };
PARTS(2)
PARTS(3)
PARTS(4)

template <class T> constexpr bool is_number =
    __is_arithmetic(T) || __is_same(T, half) || __is_same(T, bfloat);

/// A vector from a number, or from a vector of as many.
template <class V, class A> V make_vector(A a) {
    V v;
    for (int i = 0; i < Parts<V>::count; i++) {
        if constexpr (is_number<A>) {
            v[i] = (typename Parts<V>::type)a;
        } else {
            static_assert(Parts<A>::count == Parts<V>::count, "vectors of one length");
            v[i] = (typename Parts<V>::type)a[i];
        }
    }
    return v;
}
template <class V, class A, class B> V make_vector(A a, B b) {
    V v;
    if constexpr (is_number<A>) {
        static_assert(Parts<V>::count == 2, "two numbers");
        v[0] = a, v[1] = b;
    } else {
        static_assert(Parts<V>::count == Parts<A>::count + Parts<B>::count, "two vectors");
        v.lo = a, v.hi = b;
    }
    return v;
}
template <class V, class A, class B, class C, class D> V make_vector(A a, B b, C c, D d) {
    static_assert(Parts<V>::count == 4, "four numbers");
    V v;
    v[0] = a, v[1] = b, v[2] = c, v[3] = d;
    return v;
}

template <class T, class U> T as_type(U value) {
    static_assert(sizeof(T) == sizeof(U), "types of one size");
    T t;
    __builtin_memcpy(&t, &value, sizeof t);
    return t;
}

template <class T> threadgroup T& threadgroup_variable();

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define COLLECTIVE(name) template <class T> T name(T);
COLLECTIVE(simd_sum)
COLLECTIVE(simd_max)
COLLECTIVE(simd_min)
COLLECTIVE(quad_sum)
COLLECTIVE(quad_max)
COLLECTIVE(quad_min)
COLLECTIVE(simd_broadcast_first)
COLLECTIVE(simd_prefix_exclusive_sum)
COLLECTIVE(simd_prefix_inclusive_sum)
bool simd_any(bool);
bool simd_all(bool);
#define SHUFFLE(name) template <class T> T name(T, ushort);
SHUFFLE(simd_shuffle)
SHUFFLE(simd_shuffle_xor)
SHUFFLE(simd_shuffle_up)
SHUFFLE(simd_shuffle_down)
SHUFFLE(simd_broadcast)

template <class T, int R, int C> struct simdgroup_matrix {
    simdgroup_matrix();
    explicit simdgroup_matrix(T);
    vec<T, 2>& thread_elements();
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int R, int C> simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T);
#define MATRIX_MEMORY(space)                                                                       \
    template <class T, int R, int C>                                                               \
    void simdgroup_load(simdgroup_matrix<T, R, C>&, space const T*, ulong = C, ulong2 = 0, bool = false); \
    template <class T, int R, int C>                                                               \
    void simdgroup_store(simdgroup_matrix<T, R, C>, space T*, ulong = C, ulong2 = 0, bool = false);
MATRIX_MEMORY(device)
MATRIX_MEMORY(threadgroup)
template <class A, class B, class D, int R, int C, int K>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, R, C>&, simdgroup_matrix<A, R, K>,
                                   simdgroup_matrix<B, K, C>, simdgroup_matrix<D, R, C>);
template <class A, class B, class D, int R, int C, int K>
void simdgroup_multiply(simdgroup_matrix<D, R, C>&, simdgroup_matrix<A, R, K>, simdgroup_matrix<B, K, C>);

namespace metal {
#define UNARY(name) template <class T> T name(T);
UNARY(exp)
UNARY(exp2)
UNARY(log)
UNARY(log2)
UNARY(tanh)
UNARY(sqrt)
UNARY(rsqrt)
UNARY(rint)
UNARY(round)
UNARY(floor)
UNARY(ceil)
UNARY(abs)
UNARY(fabs)
UNARY(cospi)
UNARY(sinpi)
#define BINARY(name) template <class T> T name(T, T);
BINARY(max)
BINARY(min)
BINARY(pow)
template <class T> T fma(T, T, T);
template <class T> T clamp(T, T, T);
template <class T> typename Parts<T>::type dot(T, T);
template <class T, class B> T select(T, T, B);
bool isnan(float);
bool isinf(float);
bool isfinite(float);
bool4 isfinite(float4);
bool all(bool4);
bool any(bool4);
uint popcount(uint);
uint ctz(uint);
namespace precise {
using metal::exp;
using metal::exp2;
using metal::log;
using metal::rsqrt;
using metal::sqrt;
using metal::tanh;
}
namespace fast {
using metal::exp;
using metal::exp2;
using metal::tanh;
}
}
using namespace metal;

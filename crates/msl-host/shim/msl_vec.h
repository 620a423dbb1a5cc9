// Vectors: components, swizzles, constructors, operators.
#pragma once
#include "msl_types.h"

namespace msl {

template <int... L> struct Swizzle {};

template <class T, int N> struct Vec;
template <class T, int N> struct Packed;

template <class T> struct IsVec : std::false_type {};
template <class T, int N> struct IsVec<Vec<T, N>> : std::true_type {};

/// A swizzle of a vector that can be assigned to.
template <class T, int... L> struct Lanes {
    T *e;
    static constexpr int N = sizeof...(L);
    static constexpr int lanes[] = {L...};
    operator Vec<T, N>() const { return Vec<T, N>(e[L]...); }
    T &operator[](size_t i) const { return e[lanes[i]]; }
    template <int... M> Lanes<T, lanes[M]...> operator[](Swizzle<M...>) const { return {e}; }
    const Lanes &operator=(const Lanes &o) const { return *this = (Vec<T, N>)o; }
    const Lanes &operator=(const Vec<T, N> &v) const {
        Vec<T, N> copy = v;
        for (int i = 0; i < N; i++)
            e[lanes[i]] = copy.e[i];
        return *this;
    }
#define MSL_LANES(OP)                                                                                                  \
    template <class B> const Lanes &operator OP##=(const B &b) const {                                                 \
        return *this = Vec<T, N>((Vec<T, N>)*this OP b);                                                               \
    }
    MSL_LANES(+) MSL_LANES(-) MSL_LANES(*) MSL_LANES(/) MSL_LANES(&) MSL_LANES(|) MSL_LANES(^) MSL_LANES(<<) MSL_LANES(>>)
#undef MSL_LANES
};

template <class T, int N> struct Storage;
template <class T> struct Storage<T, 2> {
    union {
        T e[2];
        struct { T x, y; };
        struct { T r, g; };
    };
};
template <class T> struct alignas(4 * sizeof(T)) Storage<T, 3> {
    union {
        T e[3];
        struct { T x, y, z; };
        struct { T r, g, b; };
    };
};
template <class T> struct Storage<T, 4> {
    union {
        T e[4];
        struct { T x, y, z, w; };
        struct { T r, g, b, a; };
    };
};

template <class T> constexpr int width() { return 1; }
template <class V, class = void> struct Width { static constexpr int value = 1; };
template <class T, int N> struct Width<Vec<T, N>, void> { static constexpr int value = N; };
template <class T, int N> struct Width<Packed<T, N>, void> { static constexpr int value = N; };
template <class T, int... L> struct Width<Lanes<T, L...>, void> { static constexpr int value = sizeof...(L); };

template <class T, class U> inline T convert(U v) { return T(v); }

template <class T, int N> struct alignas(N == 3 ? 4 * sizeof(T) : N * sizeof(T)) Vec : Storage<T, N> {
    using Storage<T, N>::e;
    Vec() = default;
    Vec(const Vec &) = default;
    Vec &operator=(const Vec &) = default;
    template <class S, class = std::enable_if_t<IsScalar<S>::value>> Vec(S s) {
        for (int i = 0; i < N; i++)
            e[i] = T(s);
    }
    template <class U, class = std::enable_if_t<!std::is_same<T, U>::value>> explicit Vec(const Vec<U, N> &v) {
        for (int i = 0; i < N; i++)
            e[i] = T(v.e[i]);
    }
    template <class U> Vec(const Packed<U, N> &v) {
        for (int i = 0; i < N; i++)
            e[i] = T(v.e[i]);
    }
    template <class U, int... L, class = std::enable_if_t<sizeof...(L) == N && !std::is_same<T, U>::value>>
    explicit Vec(const Lanes<U, L...> &v) : Vec(Vec<U, N>(v)) {}
    /// From parts whose widths add up to N.
    template <class A, class B, class... R,
              class = std::enable_if_t<Width<A>::value + Width<B>::value + (0 + ... + Width<R>::value) == N>>
    Vec(const A &a, const B &b, const R &...rest) {
        int at = 0;
        put(at, a);
        put(at, b);
        (put(at, rest), ...);
    }
    T &operator[](size_t i) { return e[i]; }
    const T &operator[](size_t i) const { return e[i]; }
    T &at(size_t i) { return e[i]; }
    template <int... L> Lanes<T, L...> operator[](Swizzle<L...>) & { return {e}; }
    template <int... L> Vec<T, sizeof...(L)> operator[](Swizzle<L...>) const & {
        return Vec<T, sizeof...(L)>(e[L]...);
    }
    template <int... L> Vec<T, sizeof...(L)> operator[](Swizzle<L...>) && {
        return Vec<T, sizeof...(L)>(e[L]...);
    }

  private:
    template <class A> void put(int &at, const A &a) {
        if constexpr (Width<A>::value == 1) {
            e[at++] = T(a);
        } else {
            Vec<std::decay_t<decltype(part(a))>, Width<A>::value> v(a);
            for (int i = 0; i < Width<A>::value; i++)
                e[at++] = T(v.e[i]);
        }
    }
    template <class U, int M> static U part(const Vec<U, M> &);
    template <class U, int M> static U part(const Packed<U, M> &);
    template <class U, int... L> static U part(const Lanes<U, L...> &);
};

template <class T, int N> struct PackedStorage {
    union {
        T e[N];
        struct { T x, y, z, w; };
    };
};
template <class T> struct PackedStorage<T, 2> {
    union {
        T e[2];
        struct { T x, y; };
    };
};
template <class T> struct PackedStorage<T, 3> {
    union {
        T e[3];
        struct { T x, y, z; };
    };
};
/// A vector with the alignment of its component.
template <class T, int N> struct Packed : PackedStorage<T, N> {
    using PackedStorage<T, N>::e;
    Packed() = default;
    Packed(const Vec<T, N> &v) {
        for (int i = 0; i < N; i++)
            e[i] = v.e[i];
    }
    template <class A, class B, class... R> Packed(const A &a, const B &b, const R &...r) : Packed(Vec<T, N>(a, b, r...)) {}
    template <class S, class = std::enable_if_t<IsScalar<S>::value>> Packed(S s) : Packed(Vec<T, N>(s)) {}
    T &operator[](size_t i) { return e[i]; }
    const T &operator[](size_t i) const { return e[i]; }
    template <int... L> Lanes<T, L...> operator[](Swizzle<L...>) & { return {e}; }
    template <int... L> Vec<T, sizeof...(L)> operator[](Swizzle<L...>) const & {
        return Vec<T, sizeof...(L)>(e[L]...);
    }
    template <int... L> Vec<T, sizeof...(L)> operator[](Swizzle<L...>) && {
        return Vec<T, sizeof...(L)>(e[L]...);
    }
#define MSL_PACKED(OP)                                                                                                 \
    template <class B> Packed &operator OP##=(const B &b) { return *this = Vec<T, N>(Vec<T, N>(*this) OP b); }
    MSL_PACKED(+) MSL_PACKED(-) MSL_PACKED(*) MSL_PACKED(/)
#undef MSL_PACKED
};

/// What an operand counts as: a vector, or a scalar.
template <class A> struct Operand {
    typedef A type;
    static constexpr bool vector = false;
};
template <class T, int N> struct Operand<Vec<T, N>> {
    typedef Vec<T, N> type;
    typedef T element;
    static constexpr bool vector = true;
};
template <class T, int N> struct Operand<Packed<T, N>> : Operand<Vec<T, N>> {};
template <class T, int... L> struct Operand<Lanes<T, L...>> : Operand<Vec<T, sizeof...(L)>> {};
template <class A> using operand_t = typename Operand<A>::type;

/// The vector type of an operation on A and B, one of which is a vector.
template <class A, class B, class = void> struct Joined {};
template <class A, class B> struct Joined<A, B, std::enable_if_t<Operand<A>::vector && Operand<B>::vector>> {
    static_assert(Width<operand_t<A>>::value == Width<operand_t<B>>::value, "vectors of different widths");
    typedef Vec<common_t<typename Operand<A>::element, typename Operand<B>::element>, Width<operand_t<A>>::value> type;
};
template <class A, class B>
struct Joined<A, B, std::enable_if_t<Operand<A>::vector && (IsScalar<B>::value || std::is_enum<B>::value)>> {
    typedef operand_t<A> type;
};
template <class A, class B>
struct Joined<A, B, std::enable_if_t<Operand<B>::vector && (IsScalar<A>::value || std::is_enum<A>::value)>> {
    typedef operand_t<B> type;
};
template <class A, class B> using joined_t = typename Joined<A, B>::type;

#define MSL_BINARY(OP)                                                                                                 \
    template <class A, class B, class V = joined_t<A, B>> inline V operator OP(const A &a, const B &b) {               \
        V x(a), y(b), r;                                                                                               \
        for (int i = 0; i < Width<V>::value; i++)                                                                      \
            r.e[i] = x.e[i] OP y.e[i];                                                                                 \
        return r;                                                                                                      \
    }                                                                                                                  \
    template <class T, int N, class B, class = joined_t<Vec<T, N>, B>>                                                 \
    inline Vec<T, N> &operator OP##=(Vec<T, N> &a, const B &b) {                                                       \
        return a = Vec<T, N>(a OP b);                                                                                  \
    }
MSL_BINARY(+)
MSL_BINARY(-)
MSL_BINARY(*)
MSL_BINARY(/)
MSL_BINARY(%)
MSL_BINARY(&)
MSL_BINARY(|)
MSL_BINARY(^)
MSL_BINARY(<<)
MSL_BINARY(>>)
#undef MSL_BINARY
#define MSL_RELATION(OP)                                                                                               \
    template <class A, class B, class V = joined_t<A, B>>                                                              \
    inline Vec<bool, Width<V>::value> operator OP(const A &a, const B &b) {                                            \
        V x(a), y(b);                                                                                                  \
        Vec<bool, Width<V>::value> r;                                                                                  \
        for (int i = 0; i < Width<V>::value; i++)                                                                      \
            r.e[i] = x.e[i] OP y.e[i];                                                                                 \
        return r;                                                                                                      \
    }
MSL_RELATION(==)
MSL_RELATION(!=)
MSL_RELATION(<)
MSL_RELATION(>)
MSL_RELATION(<=)
MSL_RELATION(>=)
MSL_RELATION(&&)
MSL_RELATION(||)
#undef MSL_RELATION
#define MSL_UNARY(OP, R)                                                                                               \
    template <class A, class V = std::enable_if_t<Operand<A>::vector, operand_t<A>>> inline auto operator OP(const A &a) { \
        V x(a);                                                                                                        \
        Vec<R, Width<V>::value> r;                                                                                     \
        for (int i = 0; i < Width<V>::value; i++)                                                                      \
            r.e[i] = (R)(OP x.e[i]);                                                                                   \
        return r;                                                                                                      \
    }
MSL_UNARY(-, typename Operand<V>::element)
MSL_UNARY(+, typename Operand<V>::element)
MSL_UNARY(~, typename Operand<V>::element)
MSL_UNARY(!, bool)
#undef MSL_UNARY

/// Calls `f` for each component, or once for scalars.
template <class F, class A> inline auto map(F f, const A &a) {
    if constexpr (Operand<A>::vector) {
        operand_t<A> x(a);
        Vec<decltype(f(x.e[0])), Width<operand_t<A>>::value> r;
        for (int i = 0; i < Width<operand_t<A>>::value; i++)
            r.e[i] = f(x.e[i]);
        return r;
    } else {
        return f(a);
    }
}

} // namespace msl

namespace msl_rt {
template <class T, int N> struct Components<msl::Vec<T, N>> {
    static msl::Vec<T, N> make(const uint32_t *v) {
        msl::Vec<T, N> r;
        for (int i = 0; i < N && i < 3; i++)
            r.e[i] = T(v[i]);
        return r;
    }
};
} // namespace msl_rt

namespace metal {
template <class T, int N> using vec = msl::Vec<T, N>;
template <class T> struct vec_elements : std::integral_constant<unsigned, msl::Width<T>::value> {};
}

#define MSL_VECTORS(T)                                                                                                 \
    typedef msl::Vec<T, 2> T##2;                                                                                       \
    typedef msl::Vec<T, 3> T##3;                                                                                       \
    typedef msl::Vec<T, 4> T##4;                                                                                       \
    typedef msl::Packed<T, 2> packed_##T##2;                                                                           \
    typedef msl::Packed<T, 3> packed_##T##3;                                                                           \
    typedef msl::Packed<T, 4> packed_##T##4;                                                                           \
    namespace metal {                                                                                                  \
    using ::T##2;                                                                                                      \
    using ::T##3;                                                                                                      \
    using ::T##4;                                                                                                      \
    using ::packed_##T##2;                                                                                             \
    using ::packed_##T##3;                                                                                             \
    using ::packed_##T##4;                                                                                             \
    }
MSL_VECTORS(bool)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(float)
#undef MSL_VECTORS
namespace metal {
using ::bfloat;
using ::half;
using ::uchar;
using ::uint;
using ::ulong;
using ::ushort;
} // namespace metal

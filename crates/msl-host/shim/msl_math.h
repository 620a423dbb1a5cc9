// Math, integer, relational and geometric functions.
#pragma once
#include "msl_vec.h"

namespace msl {
/// The type that a math function of T computes in: T itself where it is a real number.
template <class T> using real_t = std::conditional_t<IsReal<T>::value, T, float>;

/// The type of a function of several arguments.
template <class A, class B, class = void> struct Mixed {
    typedef common_t<A, B> type;
};
template <class A, class B> struct Mixed<A, B, std::enable_if_t<Operand<A>::vector || Operand<B>::vector>> {
    typedef joined_t<A, B> type;
};
template <class A, class B> using mixed_t = typename Mixed<A, B>::type;

/// MSL has an overload per type: scalars of two types fit several of them alike.
template <class T, bool = std::is_enum<T>::value> struct Promoted {
    typedef T type;
};
template <class T> struct Promoted<T, true> {
    typedef decltype(+std::declval<T>()) type;
};
template <class A, class B>
constexpr bool one_overload =
    Operand<A>::vector || Operand<B>::vector || std::is_same<typename Promoted<A>::type, typename Promoted<B>::type>::value;
template <class A, class B> using one_type_t = std::enable_if_t<one_overload<A, B>, mixed_t<A, B>>;

/// Applies `f` to components of two or three arguments.
template <class V, class F, class... A> inline V zip(F f, const A &...a) {
    if constexpr (IsVec<V>::value) {
        V r;
        for (int i = 0; i < Width<V>::value; i++)
            r.e[i] = f(V(a).e[i]...);
        return r;
    } else {
        return f(V(a)...);
    }
}
/// What initializers that name places of an array become.
template <class T, int N> inline void clear(T (&a)[N]) {
    for (int i = 0; i < N; i++)
        a[i] = T(0);
}
template <class T, int N, class V> inline void fill(T (&a)[N], int first, int last, const V &value) {
    for (int i = first; i <= last; i++)
        a[i] = T(value);
}
template <class T> struct Element { typedef T type; };
template <class T, int N> struct Element<Vec<T, N>> { typedef T type; };
template <class T> using element_t = typename Element<T>::type;
} // namespace msl

namespace metal {

#define MSL_MATH1(NAME, EXPR)                                                                                          \
    template <class A> inline auto NAME(const A &a) {                                                                  \
        return msl::map([](auto v) { typedef msl::real_t<decltype(v)> R; float x = (float)v; return R(EXPR); }, a);    \
    }
MSL_MATH1(exp, __builtin_expf(x))
MSL_MATH1(exp2, __builtin_exp2f(x))
MSL_MATH1(exp10, __builtin_powf(10.0f, x))
MSL_MATH1(expm1, __builtin_expm1f(x))
MSL_MATH1(log, __builtin_logf(x))
MSL_MATH1(log2, __builtin_log2f(x))
MSL_MATH1(log10, __builtin_log10f(x))
MSL_MATH1(log1p, __builtin_log1pf(x))
MSL_MATH1(sqrt, __builtin_sqrtf(x))
MSL_MATH1(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_MATH1(cbrt, __builtin_cbrtf(x))
MSL_MATH1(sin, __builtin_sinf(x))
MSL_MATH1(cos, __builtin_cosf(x))
MSL_MATH1(tan, __builtin_tanf(x))
MSL_MATH1(sinpi, __builtin_sinf(3.14159265358979323846f * x))
MSL_MATH1(cospi, __builtin_cosf(3.14159265358979323846f * x))
MSL_MATH1(asin, __builtin_asinf(x))
MSL_MATH1(acos, __builtin_acosf(x))
MSL_MATH1(atan, __builtin_atanf(x))
MSL_MATH1(sinh, __builtin_sinhf(x))
MSL_MATH1(cosh, __builtin_coshf(x))
MSL_MATH1(tanh, __builtin_tanhf(x))
MSL_MATH1(asinh, __builtin_asinhf(x))
MSL_MATH1(acosh, __builtin_acoshf(x))
MSL_MATH1(atanh, __builtin_atanhf(x))
MSL_MATH1(floor, __builtin_floorf(x))
MSL_MATH1(ceil, __builtin_ceilf(x))
MSL_MATH1(round, __builtin_roundf(x))
MSL_MATH1(rint, __builtin_rintf(x))
MSL_MATH1(trunc, __builtin_truncf(x))
MSL_MATH1(fabs, __builtin_fabsf(x))
MSL_MATH1(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
MSL_MATH1(saturate, x != x ? 0.0f : x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x)
MSL_MATH1(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? x : 0.0f)
#undef MSL_MATH1
#define MSL_MATH2(NAME, EXPR)                                                                                          \
    template <class A, class B, class V = msl::mixed_t<A, B>> inline V NAME(const A &a, const B &b) {                  \
        return msl::zip<V>([](auto u, auto v) { float x = (float)u, y = (float)v; return decltype(u)(EXPR); }, a, b);  \
    }
MSL_MATH2(pow, __builtin_powf(x, y))
MSL_MATH2(powr, __builtin_powf(x, y))
MSL_MATH2(atan2, __builtin_atan2f(x, y))
MSL_MATH2(fmod, __builtin_fmodf(x, y))
MSL_MATH2(fmin, __builtin_fminf(x, y))
MSL_MATH2(fmax, __builtin_fmaxf(x, y))
MSL_MATH2(fdim, __builtin_fdimf(x, y))
MSL_MATH2(copysign, __builtin_copysignf(x, y))
MSL_MATH2(step, y < x ? 0.0f : 1.0f)
MSL_MATH2(divide, x / y)
#undef MSL_MATH2
#define MSL_PREDICATE(NAME, EXPR)                                                                                      \
    template <class A> inline auto NAME(const A &a) {                                                                  \
        return msl::map([](auto v) { float x = (float)v; return bool(EXPR); }, a);                                     \
    }
MSL_PREDICATE(isnan, __builtin_isnan(x))
MSL_PREDICATE(isinf, __builtin_isinf(x))
MSL_PREDICATE(isfinite, __builtin_isfinite(x))
MSL_PREDICATE(isnormal, __builtin_isnormal(x))
MSL_PREDICATE(signbit, __builtin_signbit(x))
#undef MSL_PREDICATE
template <class A, class E> inline auto ldexp(const A &a, const E &e) {
    return msl::zip<A>([](auto x, auto n) { return decltype(x)(__builtin_ldexpf((float)x, (int)n)); }, a, A(e));
}
template <class T> inline T frexp(T x, int &e) { return T(__builtin_frexpf((float)x, &e)); }
template <class T> inline T modf(T x, T &whole) {
    whole = trunc(x);
    return T(x - whole);
}
template <class T> inline T sincos(T x, T &c) {
    c = cos(x);
    return sin(x);
}
template <class A, class B, class C, class V = msl::mixed_t<msl::mixed_t<A, B>, C>> inline V fma(const A &a, const B &b, const C &c) {
    return msl::zip<V>(
        [](auto x, auto y, auto z) { return decltype(x)(__builtin_fmaf((float)x, (float)y, (float)z)); }, a, b, c);
}
template <class A, class B, class C, class V = msl::mixed_t<msl::mixed_t<A, B>, C>> inline V mad(const A &a, const B &b, const C &c) {
    return V(V(a) * V(b) + V(c));
}
template <class A, class B, class V = msl::one_type_t<A, B>> inline V min(const A &a, const B &b) {
    return msl::zip<V>([](auto x, auto y) { return y < x || x != x ? y : x; }, a, b);
}
template <class A, class B, class V = msl::one_type_t<A, B>> inline V max(const A &a, const B &b) {
    return msl::zip<V>([](auto x, auto y) { return x < y || x != x ? y : x; }, a, b);
}
template <class A, class B, class C> inline auto min3(const A &a, const B &b, const C &c) { return min(min(a, b), c); }
template <class A, class B, class C> inline auto max3(const A &a, const B &b, const C &c) { return max(max(a, b), c); }
template <class A> inline A median3(A a, A b, A c) { return max(min(a, b), min(max(a, b), c)); }
template <class A, class B, class C, class V = msl::one_type_t<A, B>, class = msl::one_type_t<V, C>>
inline auto clamp(const A &a, const B &low, const C &high) {
    return min(max(a, low), high);
}
template <class A, class B, class C, class V = msl::mixed_t<A, B>> inline V mix(const A &a, const B &b, const C &t) {
    return V(V(a) + (V(b) - V(a)) * V(t));
}
template <class A, class B, class C, class V = msl::mixed_t<msl::mixed_t<A, B>, C>> inline V smoothstep(const A &a, const B &b, const C &c) {
    V t = clamp((V(c) - V(a)) / (V(b) - V(a)), V(0), V(1));
    return V(t * t * (V(3) - V(2) * t));
}
template <class A> inline auto abs(const A &a) {
    return msl::map([](auto x) { return decltype(x)(x < 0 ? -x : x == 0 ? decltype(x)(0) : x); }, a);
}

/// Where `c` is true, `b`, elsewhere `a`.
template <class A, class B, class C> inline auto select(const A &a, const B &b, const C &c) {
    typedef msl::mixed_t<A, B> V;
    if constexpr (msl::IsVec<V>::value && msl::Operand<C>::vector) {
        V x(a), y(b), r;
        msl::operand_t<C> k(c);
        for (int i = 0; i < msl::Width<V>::value; i++)
            r.e[i] = k.e[i] ? y.e[i] : x.e[i];
        return r;
    } else {
        return bool(c) ? V(b) : V(a);
    }
}
template <class A> inline bool all(const A &a) {
    bool r = true;
    msl::map([&](bool x) { return r &= x; }, a);
    return r;
}
template <class A> inline bool any(const A &a) { return !all(!a); }

template <class A, class B, class V = msl::mixed_t<A, B>> inline auto dot(const A &a, const B &b) {
    V x(a), y(b);
    auto sum = x.e[0] * y.e[0];
    for (int i = 1; i < msl::Width<V>::value; i++)
        sum += x.e[i] * y.e[i];
    return msl::element_t<V>(sum);
}
template <class A> inline auto length_squared(const A &a) { return dot(a, a); }
template <class A> inline auto length(const A &a) { return sqrt(dot(a, a)); }
template <class A, class B> inline auto distance(const A &a, const B &b) { return length(a - b); }
template <class A, class B> inline auto distance_squared(const A &a, const B &b) { return length_squared(a - b); }
template <class A> inline auto normalize(const A &a) { return a * rsqrt(dot(a, a)); }
template <class T> inline msl::Vec<T, 3> cross(msl::Vec<T, 3> a, msl::Vec<T, 3> b) {
    return msl::Vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}
template <class V> inline V reflect(V i, V n) { return i - n * (2 * dot(n, i)); }

template <class T> using msl_unsigned = std::make_unsigned_t<T>;
template <class A> inline auto popcount(const A &a) {
    return msl::map([](auto x) { return decltype(x)(__builtin_popcountll((unsigned long long)(msl_unsigned<decltype(x)>)x)); }, a);
}
template <class A> inline auto clz(const A &a) {
    return msl::map(
        [](auto x) {
            auto u = (msl_unsigned<decltype(x)>)x;
            return decltype(x)(u ? __builtin_clzll(u) - (64 - 8 * (int)sizeof u) : 8 * (int)sizeof u);
        },
        a);
}
template <class A> inline auto ctz(const A &a) {
    return msl::map([](auto x) { return decltype(x)(x ? __builtin_ctzll((unsigned long long)x) : 8 * sizeof x); }, a);
}
template <class A> inline auto reverse_bits(const A &a) {
    return msl::map(
        [](auto x) {
            auto u = (msl_unsigned<decltype(x)>)x;
            decltype(u) r = 0;
            for (unsigned i = 0; i < 8 * sizeof u; i++)
                r |= decltype(u)((u >> i & 1)) << (8 * sizeof u - 1 - i);
            return decltype(x)(r);
        },
        a);
}
template <class T> inline T rotate(T a, T b) {
    return msl::zip<T>(
        [](auto x, auto n) {
            auto u = (msl_unsigned<decltype(x)>)x;
            unsigned w = 8 * sizeof u, s = (unsigned)n % w;
            return decltype(x)(s ? u << s | u >> (w - s) : u);
        },
        a, b);
}
template <class T> inline T extract_bits(T a, uint offset, uint count) {
    return msl::zip<T>(
        [=](auto x) {
            if (count == 0)
                return decltype(x)(0);
            unsigned w = 8 * sizeof x;
            return decltype(x)(decltype(x)(x << (w - count - offset)) >> (w - count));
        },
        a);
}
template <class T> inline T insert_bits(T base, T insert, uint offset, uint count) {
    typedef msl::element_t<T> E;
    E mask = E(((count >= 64 ? 0 : 1ull << count) - 1) << offset);
    return T((base & T(E(~mask))) | ((insert << T(E(offset))) & T(mask)));
}
template <class T> inline T mulhi(T a, T b) {
    return msl::zip<T>(
        [](auto x, auto y) {
            typedef std::conditional_t<std::is_signed<decltype(x)>::value, __int128, unsigned __int128> W;
            return decltype(x)(((W)x * (W)y) >> (8 * sizeof x));
        },
        a, b);
}
template <class T> inline T mul24(T a, T b) { return a * b; }
template <class T> inline T mad24(T a, T b, T c) { return a * b + c; }
template <class T> inline T madhi(T a, T b, T c) { return mulhi(a, b) + c; }
template <class T> inline auto absdiff(T a, T b) {
    return msl::zip<T>([](auto x, auto y) { return decltype(x)(x > y ? x - y : y - x); }, a, b);
}
template <class T, class F> inline T msl_saturating(T a, T b, F f) {
    return msl::zip<T>(
        [=](auto x, auto y) {
            __int128 r = f((__int128)x, (__int128)y);
            typedef numeric_limits<decltype(x)> L;
            return decltype(x)(r < L::min() ? L::min() : r > L::max() ? L::max() : (decltype(x))r);
        },
        a, b);
}
template <class T> inline T addsat(T a, T b) { return msl_saturating(a, b, [](__int128 x, __int128 y) { return x + y; }); }
template <class T> inline T subsat(T a, T b) { return msl_saturating(a, b, [](__int128 x, __int128 y) { return x - y; }); }
template <class T> inline T madsat(T a, T b, T c) {
    __int128 r = (__int128)a * b + c;
    typedef numeric_limits<T> L;
    return r < L::min() ? L::min() : r > L::max() ? L::max() : T(r);
}
template <class T> inline T hadd(T a, T b) { return T(((__int128)a + b) >> 1); }
template <class T> inline T rhadd(T a, T b) { return T(((__int128)a + b + 1) >> 1); }

inline float2 unpack_half2x16_to_float2(uint v) {
    return float2(msl::HalfFormat::widen((uint16_t)v), msl::HalfFormat::widen((uint16_t)(v >> 16)));
}
#define MSL_UNPACK(NAME, V, N, BITS, SIGN, T)                                                                          \
    inline V NAME(uint v) {                                                                                            \
        V r;                                                                                                           \
        for (int i = 0; i < N; i++) {                                                                                  \
            uint part = v >> (BITS * i) & ((1u << BITS) - 1);                                                          \
            float x = SIGN ? (float)((int)(part << (32 - BITS)) >> (32 - BITS)) / ((1 << (BITS - 1)) - 1)              \
                           : (float)part / ((1u << BITS) - 1);                                                         \
            r.e[i] = T(x < -1.0f ? -1.0f : x);                                                                         \
        }                                                                                                              \
        return r;                                                                                                      \
    }
MSL_UNPACK(unpack_unorm4x8_to_float, float4, 4, 8, false, float)
MSL_UNPACK(unpack_snorm4x8_to_float, float4, 4, 8, true, float)
MSL_UNPACK(unpack_unorm2x16_to_float, float2, 2, 16, false, float)
MSL_UNPACK(unpack_snorm2x16_to_float, float2, 2, 16, true, float)
MSL_UNPACK(unpack_unorm4x8_to_half, half4, 4, 8, false, half)
#undef MSL_UNPACK

#define MSL_SAME                                                                                                       \
    using metal::exp; using metal::exp2; using metal::exp10; using metal::log; using metal::log2; using metal::log10;  \
    using metal::sqrt; using metal::rsqrt; using metal::sin; using metal::cos; using metal::tan; using metal::sincos;  \
    using metal::asin; using metal::acos; using metal::atan; using metal::atan2; using metal::sinh; using metal::cosh; \
    using metal::tanh; using metal::asinh; using metal::acosh; using metal::atanh; using metal::floor;                 \
    using metal::ceil; using metal::round; using metal::rint; using metal::trunc; using metal::fabs; using metal::abs; \
    using metal::fract; using metal::saturate; using metal::sign; using metal::pow; using metal::powr;                 \
    using metal::fmod; using metal::fmin; using metal::fmax; using metal::fma; using metal::min; using metal::max;     \
    using metal::clamp; using metal::mix; using metal::normalize; using metal::length; using metal::distance;          \
    using metal::sinpi; using metal::cospi; using metal::isnan; using metal::isinf; using metal::ldexp; using metal::step; using metal::divide;
namespace fast { MSL_SAME }
namespace precise { MSL_SAME }
#undef MSL_SAME

} // namespace metal
namespace fast = metal::fast;
namespace precise = metal::precise;

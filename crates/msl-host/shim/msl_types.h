// Scalar types and traits.
#pragma once
#include <float.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <type_traits>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

namespace msl {

template <class To, class From> inline To bits(const From &from) { return __builtin_bit_cast(To, from); }

/// Formats of 16 bits: to float and back, to nearest even.
struct HalfFormat {
    static constexpr bool implicit = true;
    static float widen(uint16_t h) {
        uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
        if (rest >= 0x7c00)
            return bits<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
        // A power of two moves the exponent; subnormals become normal on the way.
        return bits<float>(sign | bits<uint32_t>(bits<float>(rest << 13) * 0x1p112f));
    }
    static uint16_t narrow(float f) {
        uint32_t u = bits<uint32_t>(f), sign = u >> 16 & 0x8000;
        u &= 0x7fffffff;
        if (u > 0x7f800000)
            return (uint16_t)(sign | 0x7e00);
        if (u >= 0x477ff000)
            return (uint16_t)(sign | 0x7c00);
        if (u < 0x38800000)
            return (uint16_t)(sign | (bits<uint32_t>(bits<float>(u) + 0.5f) - 0x3f000000));
        u += 0xc8000fff + (u >> 13 & 1);
        return (uint16_t)(sign | u >> 13);
    }
};
struct BrainFormat {
    static constexpr bool implicit = false;
    static float widen(uint16_t h) { return bits<float>((uint32_t)h << 16); }
    static uint16_t narrow(float f) {
        uint32_t u = bits<uint32_t>(f);
        if ((u & 0x7fffffff) > 0x7f800000)
            return (uint16_t)(u >> 16 | 0x40);
        return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
};

/// A number of 16 bits that computes in float and rounds after every operation. As in MSL, a float or half
/// becomes a bfloat by a cast only.
template <class Format> struct Small {
    uint16_t raw;
    Small() = default;
    template <class T> static constexpr bool plain = std::is_integral<T>::value || (Format::implicit && std::is_floating_point<T>::value);
    template <class T, class = std::enable_if_t<plain<T>>> Small(T v) : raw(Format::narrow((float)v)) {}
    template <class T, class = std::enable_if_t<!plain<T> && std::is_convertible<T, float>::value>, class = void>
    explicit Small(const T &v) : raw(Format::narrow((float)v)) {}
    operator float() const { return Format::widen(raw); }
    Small &operator++() { return *this = Small((float)*this + 1.0f); }
    Small &operator--() { return *this = Small((float)*this - 1.0f); }
};

} // namespace msl

typedef msl::Small<msl::BrainFormat> bfloat;
typedef bfloat bfloat16_t;
#if defined(__FLT16_MAX__) && !defined(MSL_SOFT_HALF)
typedef _Float16 half;
#define MSL_NATIVE_HALF 1
#else
typedef msl::Small<msl::HalfFormat> half;
#endif
typedef half float16_t;
typedef float float32_t;

namespace msl {

template <class T> struct IsSmall : std::false_type {};
template <class F> struct IsSmall<Small<F>> : std::true_type {};
template <class T> struct IsReal : std::is_floating_point<T> {};
template <> struct IsReal<half> : std::true_type {};
template <> struct IsReal<bfloat> : std::true_type {};
template <class T> struct IsScalar : std::integral_constant<bool, std::is_arithmetic<T>::value || IsReal<T>::value> {};
template <class T> struct IsInteger : std::is_integral<T> {};

/// Type of an operation of two scalars: half with bfloat, and either with float, is float.
template <class A, class B, class = void> struct Common {
    typedef decltype(A() + B()) type;
};
template <class T> struct Common<T, T, void> {
    typedef T type;
};
template <class F, class B> struct Common<Small<F>, B, std::enable_if_t<!std::is_same<Small<F>, B>::value>> {
    typedef std::conditional_t<std::is_integral<B>::value, Small<F>, float> type;
};
template <class A, class F>
struct Common<A, Small<F>, std::enable_if_t<!std::is_same<Small<F>, A>::value && !IsSmall<A>::value>> {
    typedef std::conditional_t<std::is_integral<A>::value, Small<F>, float> type;
};
template <class A, class B> using common_t = typename Common<A, B>::type;

template <class A, class B>
using both_small_t =
    std::enable_if_t<(IsSmall<A>::value && IsScalar<B>::value) || (IsSmall<B>::value && IsScalar<A>::value)>;

} // namespace msl

#define MSL_SMALL(OP)                                                                                                  \
    template <class A, class B, class = msl::both_small_t<A, B>> inline msl::common_t<A, B> operator OP(A a, B b) {    \
        return msl::common_t<A, B>((float)a OP(float) b);                                                              \
    }                                                                                                                  \
    template <class F, class B,                                                                                        \
              class = std::enable_if_t<msl::IsScalar<B>::value &&                                                      \
                                       (F::implicit || std::is_same<msl::common_t<msl::Small<F>, B>, msl::Small<F>>::value)>> \
    inline msl::Small<F> &operator OP##=(msl::Small<F> &a, B b) {                                                      \
        return a = msl::Small<F>((float)a OP(float) b);                                                                \
    }
namespace msl {
MSL_SMALL(+)
MSL_SMALL(-)
MSL_SMALL(*)
MSL_SMALL(/)
#undef MSL_SMALL
template <class F> inline Small<F> operator-(Small<F> a) {
    a.raw ^= 0x8000;
    return a;
}
template <class F> inline Small<F> operator+(Small<F> a) { return a; }
#define MSL_COMPARE(OP)                                                                                                \
    template <class A, class B, class = both_small_t<A, B>> inline bool operator OP(A a, B b) {                        \
        return (float)a OP(float) b;                                                                                   \
    }
MSL_COMPARE(==)
MSL_COMPARE(!=)
MSL_COMPARE(<)
MSL_COMPARE(>)
MSL_COMPARE(<=)
MSL_COMPARE(>=)
#undef MSL_COMPARE
} // namespace msl

#undef INFINITY
#undef NAN
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define MAXFLOAT FLT_MAX
#define HALF_MAX half(65504.0f)
#define HALF_MIN half(6.103515625e-5f)
#define HALF_EPSILON half(0.0009765625f)
#define MAXHALF HALF_MAX
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.78539816339744830962f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_H half(M_PI_F)

namespace metal {

using std::add_const;
using std::add_lvalue_reference;
using std::conditional;
using std::conditional_t;
using std::decay;
using std::decay_t;
using std::declval;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_convertible;
using std::is_const;
using std::is_pointer;
using std::is_same;
using std::is_same_v;
using std::is_signed;
using std::is_unsigned;
using std::is_void;
using std::make_signed;
using std::make_signed_t;
using std::make_unsigned;
using std::make_unsigned_t;
using std::remove_const;
using std::remove_const_t;
using std::remove_cv;
using std::remove_cv_t;
using std::remove_pointer;
using std::remove_pointer_t;
using std::remove_reference;
using std::remove_reference_t;
using std::true_type;
using std::underlying_type;
using std::void_t;
template <class T> struct is_floating_point : msl::IsReal<std::remove_cv_t<T>> {};
template <class T> constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <class T> struct is_integral : std::is_integral<T> {};
template <class T> constexpr bool is_integral_v = std::is_integral<T>::value;
template <class T> struct is_arithmetic : msl::IsScalar<std::remove_cv_t<T>> {};
template <class T> constexpr bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T> struct is_scalar : is_arithmetic<T> {};
template <class T> constexpr bool is_signed_v = std::is_signed<T>::value || msl::IsReal<T>::value;
template <class T> constexpr bool is_unsigned_v = std::is_unsigned<T>::value;

template <class T, class = void> struct _numeric_limits_impl;
template <class T> struct numeric_limits : _numeric_limits_impl<T> {};
template <class T> struct _numeric_limits_impl<T, std::enable_if_t<std::is_integral<T>::value>> {
    static constexpr bool is_signed = T(-1) < T(0), is_integer = true, has_infinity = false;
    static constexpr int digits = sizeof(T) * 8 - is_signed;
    static constexpr T min() { return is_signed ? T(1ull << (sizeof(T) * 8 - 1)) : T(0); }
    static constexpr T max() { return T(~min()); }
    static constexpr T lowest() { return min(); }
    static constexpr T infinity() { return T(0); }
};
template <> struct _numeric_limits_impl<float> {
    static constexpr bool is_signed = true, is_integer = false, has_infinity = true;
    static constexpr int digits = 24;
    static constexpr float min() { return FLT_MIN; }
    static constexpr float max() { return FLT_MAX; }
    static constexpr float lowest() { return -FLT_MAX; }
    static constexpr float epsilon() { return FLT_EPSILON; }
    static constexpr float denorm_min() { return 0x1p-149f; }
    static constexpr float infinity() { return __builtin_inff(); }
    static constexpr float quiet_NaN() { return __builtin_nanf(""); }
};
#define MSL_LIMITS(T, MIN, MAX, EPSILON)                                                                               \
    template <> struct _numeric_limits_impl<T> {                                                                       \
        static constexpr bool is_signed = true, is_integer = false, has_infinity = true;                               \
        static T min() { return T(MIN); }                                                                              \
        static T max() { return T(MAX); }                                                                              \
        static T lowest() { return T(-MAX); }                                                                          \
        static T epsilon() { return T(EPSILON); }                                                                      \
        static T infinity() { return T(__builtin_inff()); }                                                            \
        static T quiet_NaN() { return T(__builtin_nanf("")); }                                                         \
    };
MSL_LIMITS(half, 0x1p-14f, 65504.0f, 0x1p-10f)
MSL_LIMITS(bfloat, 0x1p-126f, 0x1.fep127f, 0x1p-7f)
#undef MSL_LIMITS

} // namespace metal

template <class To, class From> inline To as_type(const From &from) { return __builtin_bit_cast(To, from); }
namespace metal {
using ::as_type;
}

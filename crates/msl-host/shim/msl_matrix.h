// Matrices of a thread, and matrices of a simdgroup.
#pragma once
#include "msl_simd.h"

namespace msl {

template <class T, int C, int R> struct Matrix {
    Vec<T, R> columns[C];
    Matrix() = default;
    explicit Matrix(T diagonal) {
        for (int c = 0; c < C; c++)
            for (int r = 0; r < R; r++)
                columns[c].e[r] = c == r ? diagonal : T(0);
    }
    template <class... V, class = std::enable_if_t<sizeof...(V) == C && (C > 1) && (true && ... && Operand<V>::vector)>>
    Matrix(const V &...v) : columns{Vec<T, R>(v)...} {}
    template <class... S, class = std::enable_if_t<sizeof...(S) == C * R && (true && ... && IsScalar<S>::value)>, class = void>
    Matrix(S... s) {
        T all[] = {T(s)...};
        for (int i = 0; i < C * R; i++)
            columns[i / R].e[i % R] = all[i];
    }
    template <class U, class = std::enable_if_t<!std::is_same<T, U>::value>> explicit Matrix(const Matrix<U, C, R> &m) {
        for (int c = 0; c < C; c++)
            columns[c] = Vec<T, R>(m.columns[c]);
    }
    Vec<T, R> &operator[](size_t c) { return columns[c]; }
    const Vec<T, R> &operator[](size_t c) const { return columns[c]; }
};
#define MSL_MATRIX(OP)                                                                                                 \
    template <class T, int C, int R> inline Matrix<T, C, R> operator OP(Matrix<T, C, R> a, const Matrix<T, C, R> &b) { \
        for (int c = 0; c < C; c++)                                                                                    \
            a.columns[c] = a.columns[c] OP b.columns[c];                                                               \
        return a;                                                                                                      \
    }                                                                                                                  \
    template <class T, int C, int R>                                                                                   \
    inline Matrix<T, C, R> &operator OP##=(Matrix<T, C, R> &a, const Matrix<T, C, R> &b) {                             \
        return a = a OP b;                                                                                             \
    }
MSL_MATRIX(+)
MSL_MATRIX(-)
#undef MSL_MATRIX
template <class T, int C, int R, class S, class = std::enable_if_t<IsScalar<S>::value>>
inline Matrix<T, C, R> operator*(Matrix<T, C, R> a, S s) {
    for (int c = 0; c < C; c++)
        a.columns[c] *= s;
    return a;
}
template <class T, int C, int R, class S, class = std::enable_if_t<IsScalar<S>::value>>
inline Matrix<T, C, R> operator*(S s, const Matrix<T, C, R> &a) { return a * s; }
template <class T, int C, int R, class S, class = std::enable_if_t<IsScalar<S>::value>>
inline Matrix<T, C, R> &operator*=(Matrix<T, C, R> &a, S s) { return a = a * s; }
template <class T, int C, int R> inline Vec<T, R> operator*(const Matrix<T, C, R> &a, const Vec<T, C> &v) {
    Vec<T, R> r = a.columns[0] * v.e[0];
    for (int c = 1; c < C; c++)
        r += a.columns[c] * v.e[c];
    return r;
}
template <class T, int C, int R> inline Vec<T, C> operator*(const Vec<T, R> &v, const Matrix<T, C, R> &a) {
    Vec<T, C> r;
    for (int c = 0; c < C; c++)
        r.e[c] = metal::dot(v, a.columns[c]);
    return r;
}
template <class T, int K, int R, int C> inline Matrix<T, C, R> operator*(const Matrix<T, K, R> &a, const Matrix<T, C, K> &b) {
    Matrix<T, C, R> r;
    for (int c = 0; c < C; c++)
        r.columns[c] = a * b.columns[c];
    return r;
}

/// A matrix of 8 x 8 whose values are spread over a simdgroup: two neighbours of a row in each thread.
template <class T> struct Spread {
    T e[2];
};
/// Row and first column of a lane's values.
inline void place(uint32_t lane, uint32_t &row, uint32_t &column) {
    uint32_t quad = lane / 4;
    row = (quad & 4) + (lane / 2) % 4;
    column = (quad & 2) * 2 + (lane % 2) * 2;
}
template <class A, class B, class C> struct Products {
    A a[2];
    B b[2];
    C c[2];
};
template <class A, class B, class C, class D> inline void multiply(const msl_rt::Slot *in, uint32_t mask, msl_rt::Slot *out) {
    float a[8][8] = {}, b[8][8] = {}, c[8][8] = {};
    for (uint32_t lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1))
            continue;
        uint32_t row, column;
        place(lane, row, column);
        const Products<A, B, C> &p = value<Products<A, B, C>>(in[lane]);
        for (int i = 0; i < 2; i++) {
            a[row][column + i] = (float)p.a[i];
            b[row][column + i] = (float)p.b[i];
            c[row][column + i] = (float)p.c[i];
        }
    }
    for (int k = 0; k < 8; k++)
        for (int row = 0; row < 8; row++)
            for (int column = 0; column < 8; column++)
                c[row][column] += a[row][k] * b[k][column];
    for (uint32_t lane = 0; lane < 32; lane++) {
        uint32_t row, column;
        place(lane, row, column);
        D *d = (D *)out[lane].bytes;
        d[0] = D(c[row][column]);
        d[1] = D(c[row][column + 1]);
    }
}

} // namespace msl

namespace metal {

template <class T, int C, int R> using matrix = msl::Matrix<T, C, R>;
template <class T, int C, int R> inline msl::Matrix<T, R, C> transpose(const msl::Matrix<T, C, R> &m) {
    msl::Matrix<T, R, C> r;
    for (int c = 0; c < C; c++)
        for (int k = 0; k < R; k++)
            r.columns[k].e[c] = m.columns[c].e[k];
    return r;
}

template <class T, int C, int R> struct simdgroup_matrix {
    static_assert(C == 8 && R == 8, "matrices of a simdgroup are 8 x 8");
    T e[2];
    simdgroup_matrix() = default;
    explicit simdgroup_matrix(T diagonal) {
        uint32_t row, column;
        msl::place(msl_rt::lane(), row, column);
        e[0] = row == column ? diagonal : T(0);
        e[1] = row == column + 1 ? diagonal : T(0);
    }
    typedef msl::Vec<T, 2> storage_type;
    storage_type &thread_elements() { return *(storage_type *)e; }
    const storage_type &thread_elements() const { return *(const storage_type *)e; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int C, int R> inline simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T v) {
    simdgroup_matrix<T, C, R> m;
    m.e[0] = m.e[1] = v;
    return m;
}
template <class T, int C, class U> inline simdgroup_matrix<T, C, C> make_filled_simdgroup_matrix(U v) {
    return make_filled_simdgroup_matrix<T, C, C>(T(v));
}
template <class T, class U>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8> &m, const U *p, ulong stride = 8, ulong2 origin = ulong2(0, 0),
                           bool transposed = false) {
    static_assert(std::is_same<T, std::remove_cv_t<U>>::value, "a simdgroup matrix loads values of its own type");
    uint32_t row, column;
    msl::place(msl_rt::lane(), row, column);
    for (uint32_t i = 0; i < 2; i++)
        m.e[i] = transposed ? p[(column + i + origin.y) * stride + row + origin.x]
                            : p[(row + origin.y) * stride + column + i + origin.x];
}
template <class T, class U>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8> &m, U *p, ulong stride = 8, ulong2 origin = ulong2(0, 0),
                            bool transposed = false) {
    static_assert(std::is_same<T, U>::value, "a simdgroup matrix stores values of its own type");
    uint32_t row, column;
    msl::place(msl_rt::lane(), row, column);
    for (uint32_t i = 0; i < 2; i++)
        (transposed ? p[(column + i + origin.y) * stride + row + origin.x]
                    : p[(row + origin.y) * stride + column + i + origin.x]) = m.e[i];
}
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                                          const simdgroup_matrix<B, 8, 8> &b, const simdgroup_matrix<C, 8, 8> &c, MSL_LINE) {
    msl::Products<A, B, C> p = {{a.e[0], a.e[1]}, {b.e[0], b.e[1]}, {c.e[0], c.e[1]}};
    msl_rt::Exchange e = msl_rt::exchange(&p, sizeof p, msl::multiply<A, B, C, D>, line);
    const D *r = (const D *)e.out[e.lane].bytes;
    d.e[0] = r[0];
    d.e[1] = r[1];
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                               const simdgroup_matrix<B, 8, 8> &b, MSL_LINE) {
    simdgroup_matrix<D, 8, 8> zero = make_filled_simdgroup_matrix<D, 8, 8>(D(0));
    simdgroup_multiply_accumulate(d, a, b, zero, line);
}
template <class A, class B>
inline simdgroup_matrix<A, 8, 8> operator*(const simdgroup_matrix<A, 8, 8> &a, const simdgroup_matrix<B, 8, 8> &b) {
    simdgroup_matrix<A, 8, 8> d;
    simdgroup_multiply(d, a, b);
    return d;
}

} // namespace metal
using metal::simdgroup_bfloat8x8;
using metal::simdgroup_float8x8;
using metal::simdgroup_half8x8;

#define MSL_MATRICES(T)                                                                                                \
    typedef msl::Matrix<T, 2, 2> T##2x2;                                                                               \
    typedef msl::Matrix<T, 2, 3> T##2x3;                                                                               \
    typedef msl::Matrix<T, 2, 4> T##2x4;                                                                               \
    typedef msl::Matrix<T, 3, 2> T##3x2;                                                                               \
    typedef msl::Matrix<T, 3, 3> T##3x3;                                                                               \
    typedef msl::Matrix<T, 3, 4> T##3x4;                                                                               \
    typedef msl::Matrix<T, 4, 2> T##4x2;                                                                               \
    typedef msl::Matrix<T, 4, 3> T##4x3;                                                                               \
    typedef msl::Matrix<T, 4, 4> T##4x4;
MSL_MATRICES(float)
MSL_MATRICES(half)
#undef MSL_MATRICES

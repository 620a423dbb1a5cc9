// What all kernels share: rows in groups of four values, and sums over a threadgroup.

/// Values 4 * i to 4 * i + 3 of a row of `dim` values; those past the end are 0. An aligned row is a
/// whole number of groups, each at a multiple of its size.
template <typename T>
inline float4 load4(device const T* row, uint i, uint dim, bool aligned) {
    if (aligned) {
        return float4(((device const vec<T, 4>*)row)[i]);
    }
    const uint start = 4 * i;
    float4 x = float4(0.0f);
    for (uint j = 0; j < 4; j++) {
        if (start + j < dim) {
            x[j] = float(row[start + j]);
        }
    }
    return x;
}

/// Stores what `load4` loads, rounded to the type of the row.
template <typename T>
inline void store4(device T* row, uint i, uint dim, float4 x, bool aligned) {
    if (aligned) {
        ((device vec<T, 4>*)row)[i] = vec<T, 4>(x);
        return;
    }
    const uint start = 4 * i;
    for (uint j = 0; j < 4; j++) {
        if (start + j < dim) {
            row[start + j] = T(x[j]);
        }
    }
}

/// The values as they would be stored.
template <typename T>
inline float4 rounded4(float4 x) {
    return float4(vec<T, 4>(x));
}

/// 1 for the values of group `i` that are inside a row, 0 past its end.
inline float4 inside4(uint i, uint dim) {
    return select(float4(0.0f), float4(1.0f), uint4(4 * i) + uint4(0, 1, 2, 3) < uint4(dim));
}

/// The place of a thread among those that work on one row.
struct Team {
    uint index;
    uint threads;
    uint lane;
    uint simdgroup;
    uint simdgroups;
};

/// The sum over a threadgroup, in an order that only its size decides: one partial per simdgroup.
/// `partials` must not be used again before another barrier.
inline float team_sum(float x, threadgroup float* partials, Team team) {
    x = simd_sum(x);
    if (team.lane == 0) {
        partials[team.simdgroup] = x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(team.lane < team.simdgroups ? partials[team.lane] : 0.0f);
}

/// The largest value of a threadgroup; as `team_sum`.
inline float team_max(float x, threadgroup float* partials, Team team) {
    x = simd_max(x);
    if (team.lane == 0) {
        partials[team.simdgroup] = x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_max(team.lane < team.simdgroups ? partials[team.lane] : -INFINITY);
}

/// A key that orders floats as unsigned numbers; NaN is 0, below every number. Zeros are equal.
inline uint order_key(float x) {
    if (isnan(x)) {
        return 0;
    }
    const uint bits = as_type<uint>(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

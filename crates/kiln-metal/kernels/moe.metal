// Routing of a mixture of experts: one threadgroup per row. A thread finds the rank of an expert by
// comparing it with all others, so that no choice waits for another.

/// Least sum that chosen weights are divided by.
constant constexpr float MIN_SUM = 6.1e-5f;

/// Whether expert `j` comes before expert `i`: the larger logit, ties by the lower index, NaN last.
inline bool comes_before(uint key_j, uint j, uint key_i, uint i) {
    return key_j > key_i || (key_j == key_i && j < i);
}

[[kernel]] void moe_route_f32(
    constant MoeRouteArgs& args [[buffer(0)]],
    device const float* logits [[buffer(1)]],
    device uint* ids [[buffer(2)]],
    device float* weights [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partials[3 * MAX_SIMDGROUPS];
    const Team team = {thread_index, threads, lane, simdgroup, simdgroups};
    const uint experts = args.experts;
    device const float* x = logits + ulong(group) * args.logits_stride;
    float largest = -INFINITY;
    for (uint i = team.index; i < experts; i += team.threads) {
        largest = max(largest, x[i]);
    }
    largest = team_max(largest, partials, team);
    float sum = 0.0f;
    for (uint i = team.index; i < experts; i += team.threads) {
        sum += precise::exp(x[i] - largest);
    }
    sum = team_sum(sum, partials + MAX_SIMDGROUPS, team);

    device uint* id = ids + ulong(group) * args.ids_stride;
    device float* weight = weights + ulong(group) * args.weights_stride;
    float chosen = 0.0f;
    // At most one expert per thread keeps its rank; more are ranked again.
    uint rank = experts;
    for (uint i = team.index; i < experts; i += team.threads) {
        const uint key = order_key(x[i]);
        rank = 0;
        for (uint j = 0; j < experts; j++) {
            rank += comes_before(order_key(x[j]), j, key, i) ? 1 : 0;
        }
        if (rank < args.top_k) {
            chosen += precise::exp(x[i] - largest) / sum;
            id[rank] = i;
        }
    }
    float divisor = 1.0f;
    if (RENORMALIZE) {
        divisor = max(team_sum(chosen, partials + 2 * MAX_SIMDGROUPS, team), MIN_SUM);
    }
    for (uint i = team.index; i < experts; i += team.threads) {
        if (experts > team.threads) {
            const uint key = order_key(x[i]);
            rank = 0;
            for (uint j = 0; j < experts; j++) {
                rank += comes_before(order_key(x[j]), j, key, i) ? 1 : 0;
            }
        }
        if (rank < args.top_k) {
            weight[rank] = precise::exp(x[i] - largest) / sum / divisor;
        }
    }
}

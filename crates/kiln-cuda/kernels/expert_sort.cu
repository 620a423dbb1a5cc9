// Slots in the order of their experts; those whose id names none come last. One block.

extern "C" __global__ void expert_sort(const __grid_constant__ ExpertSortArgs args) { begin();
    u32* offsets = (u32*)args.offsets;
    u32* next = (u32*)args.next;
    u32* list = (u32*)args.list;
    const u32 groups = args.experts + 1;
    auto group = [&](u64 slot) {
        u32 id = *(const u32*)(args.ids + slot / args.top_k * args.ids_stride + slot % args.top_k * 4);
        return id < args.experts ? id : u32(args.experts);
    };
    for (u32 g = threadIdx.x; g < groups; g += blockDim.x) next[g] = 0;
    __syncthreads();
    for (u64 slot = threadIdx.x; slot < args.slots; slot += blockDim.x) atomicAdd(&next[group(slot)], 1u);
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 sum = 0;
        for (u32 g = 0; g < groups; ++g) {
            u32 count = __ldcg(next + g);
            offsets[g] = sum;
            next[g] = sum;
            sum += count;
        }
        offsets[groups] = sum;
    }
    __syncthreads();
    // The order within a group changes no result: every row of a tile stands for itself.
    for (u64 slot = threadIdx.x; slot < args.slots; slot += blockDim.x) list[atomicAdd(&next[group(slot)], 1u)] = slot;
}

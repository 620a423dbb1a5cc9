// The input of a product in the form that its kernel reads: a row for each logical row of k values.

struct Input {
    const ActivationArgs& args;
    // Value `i` of logical row `row`: heads of `head_dim` values may lie apart.
    __device__ __forceinline__ float at(u64 row, u64 i) const {
        u64 head = i / args.head_dim;
        return load_as(args.element, (const void*)(args.input + row * args.stride_row + head * args.stride_head), i % args.head_dim);
    }
};

// Signed bytes by blocks of 32, as `store_q8` lays them out.
extern "C" __global__ void activations_q8(const __grid_constant__ ActivationArgs args) { begin();
    const u32 lane = threadIdx.x & 31;
    const u64 blocks = args.k / 32, block = u64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (block >= blocks * args.rows) return;
    const u64 row = block / blocks, b = block % blocks;
    store_q8((u8*)args.output + row * blocks * 48, blocks, b, Input{args}.at(row, b * 32 + lane));
}

// Contiguous f32 rows of k values.
extern "C" __global__ void activations_f32(const __grid_constant__ ActivationArgs args) { begin();
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < args.rows * args.k) ((float*)args.output)[at] = Input{args}.at(at / args.k, at % args.k);
}

// Contiguous bf16 rows, padded with zeros to `padded` values.
extern "C" __global__ void activations_bf16(const __grid_constant__ ActivationArgs args) { begin();
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= args.rows * args.padded) return;
    u64 row = at / args.padded, i = at % args.padded;
    ((bf16*)args.output)[at] = from_float<bf16>(i < args.k ? Input{args}.at(row, i) : 0.0f);
}

// The input of a product in the form that its kernel reads: a row for each logical row of k values.

struct Input {
    const ActivationArgs& args;
    // Value `i` of logical row `row`: heads of `head_dim` values may lie apart.
    __device__ __forceinline__ float at(u64 row, u64 i) const {
        u64 head = i / args.head_dim;
        return load_as(args.element, (const void*)(args.input + row * args.stride_row + head * args.stride_head), i % args.head_dim);
    }
};

// Four values from `i` on of a row.
__device__ __forceinline__ void read4(const ActivationArgs& args, u64 row, u32 i, float (&x)[4]) {
    if (args.element == ELEMENT_F32 && args.head_dim == args.k && ((args.input | args.stride_row) & 15) == 0) {
        load4((const float*)(args.input + row * args.stride_row) + i, true, x);
    } else {
        #pragma unroll
        for (int e = 0; e < 4; ++e) x[e] = Input{args}.at(row, i + e);
    }
}

// In 15 bits, as `store_q15` lays them out: four values to a thread.
extern "C" __global__ void activations_q15(const __grid_constant__ ActivationArgs args) { begin();
    const u64 row = blockIdx.y;
    const u32 i = (blockIdx.x * blockDim.x + threadIdx.x) * 4, blocks = args.k / 32;
    if (i >= args.k) return;
    float x[4];
    read4(args, row, i, x);
    store_q15((u8*)args.output + row * blocks * Q15_BLOCK, blocks, i, x);
}

// The same in the order of the tensor cores, at most eight rows.
extern "C" __global__ void activations_q15_fragments(const __grid_constant__ ActivationArgs args) { begin();
    const u32 row = blockIdx.y, i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= args.k) return;
    float x[4];
    read4(args, row, i, x);
    const Q15 q(x);
    u8* block = (u8*)args.output + u64(i / 32) * FRAGMENT_BLOCK;
    const u32 lane = row * 4 + i / 4 % 4, half = i / 16 % 2;
    u32* words = (u32*)block + lane * 4 + half;
    words[0] = q.high;
    words[2] = q.low;
    if ((threadIdx.x & 7) == 0) ((float4*)(block + 512))[row] = q.x;
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

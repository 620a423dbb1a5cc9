// The input of a product in the form that its kernel reads: a row for each logical row of k values.

struct Input {
    const ActivationArgs& args;
    // Value `i` of logical row `row`: heads of `head_dim` values may lie apart.
    __device__ __forceinline__ float at(u64 row, u64 i) const {
        u64 head = i / args.head_dim;
        return load_as(args.element, (const void*)(args.input + row * args.stride_row + head * args.stride_head), i % args.head_dim);
    }
};

// Signed bytes by blocks of 32 with a scale, and the sums of both halves in units of the values:
// planes of 16 bytes for the lower and the upper halves, then {scale, sum, sum, 0}.
extern "C" __global__ void activations_q8(const __grid_constant__ ActivationArgs args) {
    const u32 lane = threadIdx.x & 31;
    const u64 blocks = args.k / 32, block = u64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (block >= blocks * args.rows) return;
    const u64 row = block / blocks, b = block % blocks;
    float x = Input{args}.at(row, b * 32 + lane);
    float largest = warp_max(fabsf(x));
    float d = largest / 127.0f;
    int code = largest > 0.0f ? __float2int_rn(x * (127.0f / largest)) : 0;
    int sum = code;
    #pragma unroll
    for (int o = 8; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    int upper = __shfl_sync(~0u, sum, 16);
    u8* out = (u8*)args.output + row * blocks * 48;
    out[(lane < 16 ? 0 : blocks * 16) + b * 16 + (lane & 15)] = u8(i8(code));
    if (lane == 0) ((float4*)(out + blocks * 32))[b] = make_float4(d, d * float(sum), d * float(upper), 0.0f);
}

// Contiguous f32 rows of k values.
extern "C" __global__ void activations_f32(const __grid_constant__ ActivationArgs args) {
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < args.rows * args.k) ((float*)args.output)[at] = Input{args}.at(at / args.k, at % args.k);
}

// Contiguous bf16 rows, padded with zeros to `padded` values.
extern "C" __global__ void activations_bf16(const __grid_constant__ ActivationArgs args) {
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= args.rows * args.padded) return;
    u64 row = at / args.padded, i = at % args.padded;
    ((bf16*)args.output)[at] = from_float<bf16>(i < args.k ? Input{args}.at(row, i) : 0.0f);
}

// Elementwise operations on rows, four values per thread.

struct Sum {
    static float4 apply(float4 a, float4 b) { return a + b; }
};

struct Product {
    static float4 apply(float4 a, float4 b) { return a * b; }
};

/// gelu(gate) * up, the tanh form.
struct GeluProduct {
    static float4 apply(float4 gate, float4 up) {
        const float4 inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
        return 0.5f * gate * (1.0f + precise::tanh(inner)) * up;
    }
};

/// gate * sigmoid(gate) * up
struct SiluProduct {
    static float4 apply(float4 gate, float4 up) { return gate / (1.0f + precise::exp(-gate)) * up; }
};

struct Scaled {
    static float4 apply(float4 x, float factor) { return x * factor; }
};

struct Capped {
    static float4 apply(float4 x, float cap) { return cap * precise::tanh(x / cap); }
};

template <typename T, typename F>
[[kernel]] void binary(
    constant BinaryArgs& args [[buffer(0)]],
    device const T* a [[buffer(1)]],
    device const char* b [[buffer(2)]],
    device T* output [[buffer(3)]],
    uint2 at [[thread_position_in_grid]])
{
    const uint i = at.x;
    if (4 * i >= args.dim || at.y >= args.rows) {
        return;
    }
    const ulong row = at.y;
    const float4 x = load4(a + row * args.a_stride, i, args.dim, ALIGNED);
    const float4 y = SECOND_F32
        ? load4((device const float*)b + row * args.b_stride, i, args.dim, ALIGNED)
        : load4((device const T*)b + row * args.b_stride, i, args.dim, ALIGNED);
    store4(output + row * args.output_stride, i, args.dim, F::apply(x, y), ALIGNED);
}

template <typename T, typename F>
[[kernel]] void unary(
    constant UnaryArgs& args [[buffer(0)]],
    device const T* input [[buffer(1)]],
    device T* output [[buffer(2)]],
    uint2 at [[thread_position_in_grid]])
{
    const uint i = at.x;
    if (4 * i >= args.dim || at.y >= args.rows) {
        return;
    }
    const ulong row = at.y;
    const float4 x = load4(input + row * args.input_stride, i, args.dim, ALIGNED);
    store4(output + row * args.output_stride, i, args.dim, F::apply(x, args.parameter), ALIGNED);
}

#define INSTANCE(name, type, suffix, kind, functor) \
    template [[host_name(name "_" suffix)]] [[kernel]] decltype(kind<type, functor>) kind<type, functor>;

#define INSTANCES(name, kind, functor)               \
    INSTANCE(name, float, "f32", kind, functor)      \
    INSTANCE(name, half, "f16", kind, functor)       \
    INSTANCE(name, bfloat, "bf16", kind, functor)

INSTANCES("add", binary, Sum)
INSTANCES("mul", binary, Product)
INSTANCES("gelu_mul", binary, GeluProduct)
INSTANCES("silu_mul", binary, SiluProduct)
INSTANCES("scale", unary, Scaled)
INSTANCES("softcap", unary, Capped)

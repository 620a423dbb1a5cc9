// Instructions of Hopper for attention: tiles of keys and values by bulk tensor copies, and
// warpgroup products of several widths with the first factor in shared memory or in registers.

// A box of rows of a head to shared memory; counts its bytes on the barrier.
__device__ __forceinline__ void copy_box(void* to, const TensorMap* map, int column, int row, int head, int batch, u64* barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
        :: "r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(head), "r"(batch), "r"(shared_address(barrier)) : "memory");
}

// The same to all blocks of a cluster of two, each with its own barrier.
__device__ __forceinline__ void copy_box_to_both(void* to, const TensorMap* map, int column, int row, int head, int batch, u64* barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3, %4, %5}], [%6], %7;"
        :: "r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(head), "r"(batch), "r"(shared_address(barrier)), "h"(u16(3)) : "memory");
}

__device__ __forceinline__ void named_sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
__device__ __forceinline__ void named_arrive(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }

// Rows as in `swizzled_rows`, read along their columns: boxes of 64 columns lie `stride` bytes apart.
__device__ __forceinline__ u64 swizzled_columns(const void* p, u32 stride) {
    return u64(shared_address(p) >> 4 & 0x3fff) | u64(stride >> 4) << 16 | u64(64) << 32 | u64(1) << 62;
}
// Makes a value that is made from this one again where it is used, and keeps it in no register.
__device__ __forceinline__ u64 opaque(u64 x) {
    asm volatile("" : "+l"(x));
    return x;
}
// Products of warpgroups end at waits that name no registers: uses stay behind them.
template <int N> __device__ __forceinline__ void hold(float (&d)[N]) {
    #pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i]) :: "memory");
}

#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D16(i) D8(i), D8(i + 8)
#define D32(i) D16(i), D16(i + 16)
#define D64(i) D32(i), D32(i + 32)
#define OR24 D16(0), D8(16)
#define OR32 D32(0)
#define OR40 D32(0), D8(32)
#define OR48 D32(0), D16(32)
#define OR64 D64(0)
#define OR88 D64(0), D16(64), D8(80)
#define OR96 D64(0), D32(64)
#define OR128 D64(0), D64(64)
#define P0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define P8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define P16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define P24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define P32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define P40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define P48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define P56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define P64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define P72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define P80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define P88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define P96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define P104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define P112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define P120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define PR24 P0 ", " P8 ", " P16
#define PR32 PR24 ", " P24
#define PR40 PR32 ", " P32
#define PR48 PR40 ", " P40
#define PR64 PR48 ", " P48 ", " P56
#define PR88 PR64 ", " P64 ", " P72 ", " P80
#define PR96 PR88 ", " P88
#define PR128 PR96 ", " P96 ", " P104 ", " P112 ", " P120

// d[64, N] (+)= a[64, 16] b[N, 16]^T, both by rows in shared memory; `add` is 0 for the first.
template <class T, int N> struct SharedMma;
// d[64, N] += a[64, 16] b[16, N], a in registers, b by rows in shared memory.
template <class T, int N> struct RegisterMma;

// d[64, N] += a[64, 16] b[16, N], both by rows in shared memory.
template <class T, int N> struct ColumnsMma;

template <class T> struct IsBf16 { static constexpr bool value = false; };
template <> struct IsBf16<bf16> { static constexpr bool value = true; };

#define SHARED_MMA_AS(T, N, R, A, B, P) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T " {" PR##R "}, " A ", " B ", p, 1, 1, 0, 0;\n}" \
        : OR##R : "l"(a), "l"(b), "r"(add))
#define REGISTER_MMA_AS(T, N, R, A, B) \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T " {" PR##R "}, {" A "}, " B ", 1, 1, 1, 1;" \
        : OR##R : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define COLUMNS_MMA_AS(T, N, R, A, B) \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T " {" PR##R "}, " A ", " B ", 1, 1, 1, 0, 1;" \
        : OR##R : "l"(a), "l"(b))
#define SHARED_MMA(N, R, A, B, P) \
    template <class T> struct SharedMma<T, N> { static __device__ __forceinline__ void run(float (&d)[N / 2], u64 a, u64 b, int add) { \
        if constexpr (IsBf16<T>::value) SHARED_MMA_AS(bf16, N, R, A, B, P); \
        else SHARED_MMA_AS(f16, N, R, A, B, P); \
    } };
#define REGISTER_MMA(N, R, A, B) \
    template <class T> struct RegisterMma<T, N> { static __device__ __forceinline__ void run(float (&d)[N / 2], const u32* a, u64 b) { \
        if constexpr (IsBf16<T>::value) REGISTER_MMA_AS(bf16, N, R, A, B); \
        else REGISTER_MMA_AS(f16, N, R, A, B); \
    } };
#define COLUMNS_MMA(N, R, A, B) \
    template <class T> struct ColumnsMma<T, N> { static __device__ __forceinline__ void run(float (&d)[N / 2], u64 a, u64 b) { \
        if constexpr (IsBf16<T>::value) COLUMNS_MMA_AS(bf16, N, R, A, B); \
        else COLUMNS_MMA_AS(f16, N, R, A, B); \
    } };
SHARED_MMA(48, 24, "%24", "%25", "%26")
SHARED_MMA(64, 32, "%32", "%33", "%34")
SHARED_MMA(80, 40, "%40", "%41", "%42")
SHARED_MMA(96, 48, "%48", "%49", "%50")
SHARED_MMA(128, 64, "%64", "%65", "%66")
SHARED_MMA(176, 88, "%88", "%89", "%90")
SHARED_MMA(192, 96, "%96", "%97", "%98")
REGISTER_MMA(64, 32, "%32, %33, %34, %35", "%36")
REGISTER_MMA(80, 40, "%40, %41, %42, %43", "%44")
REGISTER_MMA(96, 48, "%48, %49, %50, %51", "%52")
REGISTER_MMA(128, 64, "%64, %65, %66, %67", "%68")
REGISTER_MMA(256, 128, "%128, %129, %130, %131", "%132")
COLUMNS_MMA(128, 64, "%64", "%65")

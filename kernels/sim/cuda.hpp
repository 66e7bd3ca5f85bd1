// The part of CUDA C++ that kernels use, for g++: qualifiers, vector types, bf16 and fp16,
// builtins.
//
// Types and functions of CUDA's headers that are not here are left out on purpose: a kernel that
// needs one adds it here with its meaning. Rounding: the *_rn functions are plain operators, which
// stay unfused because build.rs compiles kernels with contraction off; approximate functions are
// the exact ones of libm.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
// Blocks of one OS thread run one after the other, so an array per OS thread is an array per block.
// The runtime fills all thread-locals of the library with 0xFF before each block: kernels must have
// no other thread-locals.
#define __shared__ static thread_local

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

static constexpr int warpSize = 32;
#define threadIdx (::sim::thread_index())
#define blockIdx (::sim::block_index())
#define blockDim (::sim::block_size())
#define gridDim (::sim::grid_size())

// ---- Bits
// -----------------------------------------------------------------------------------------

inline unsigned __float_as_uint(float x) {
    unsigned u;
    memcpy(&u, &x, 4);
    return u;
}
inline float __uint_as_float(unsigned u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int i) { return __uint_as_float(static_cast<unsigned>(i)); }
inline long long __double_as_longlong(double x) {
    long long i;
    memcpy(&i, &x, 8);
    return i;
}
inline double __longlong_as_double(long long i) {
    double x;
    memcpy(&x, &i, 8);
    return x;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}

// ---- bf16 and fp16
// --------------------------------------------------------------------------------

struct __nv_bfloat16 {
    uint16_t x;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
struct __half {
    _Float16 x;
};

inline float __bfloat162float(__nv_bfloat16 b) {
    return __uint_as_float(static_cast<uint32_t>(b.x) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};
    return {static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return {__bfloat162float(v.x), __bfloat162float(v.y)};
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 b) { return b.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t u) { return {u}; }
inline float __half2float(__half h) { return static_cast<float>(h.x); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline uint16_t __half_as_ushort(__half h) {
    uint16_t u;
    memcpy(&u, &h, 2);
    return u;
}
inline __half __ushort_as_half(uint16_t u) {
    __half h;
    memcpy(&h, &u, 2);
    return h;
}

// ---- Arithmetic
// -----------------------------------------------------------------------------------

// Macros, because glibc declares functions of these names.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }
inline uint64_t max(uint64_t a, uint64_t b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
template <typename T>
inline T __ldg(const T* p) {
    return *p;
}

// ---- Barriers and warp collectives
// ---------------------------------------------------------------- Always inlined: the runtime
// takes its return address for the line that is reported.

__forceinline__ void __syncthreads() { sim::barrier(0, -1); }
__forceinline__ void __syncwarp(unsigned mask = 0xFFFFFFFFu) { sim::sync_warp(mask); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

namespace sim {

// Gives the value of lane `from` to the caller. Lanes travel as the low bytes of a word.
template <typename T>
__forceinline__ T shuffle_value(unsigned mask, T value, int from) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof(T));
    word = shuffle(mask, word, from);
    memcpy(&value, &word, sizeof(T));
    return value;
}

}  // namespace sim

template <typename T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    int lane = sim::lane_index();
    return sim::shuffle_value(mask, value, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <typename T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
    int lane = sim::lane_index(), from = lane ^ flip;
    return sim::shuffle_value(mask, value, flip < width ? from : lane);
}
template <typename T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32) {
    int lane = sim::lane_index(), from = lane + delta;
    bool inside = (from & ~(width - 1)) == (lane & ~(width - 1));
    return sim::shuffle_value(mask, value, inside ? from : lane);
}
template <typename T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32) {
    int lane = sim::lane_index(), from = lane - delta;
    return sim::shuffle_value(mask, value, from < (lane & ~(width - 1)) ? lane : from);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int set) {
    return sim::reduce(sim::Reduce::kBallot, mask, set != 0);
}
__forceinline__ int __any_sync(unsigned mask, int set) { return __ballot_sync(mask, set) != 0; }
__forceinline__ int __all_sync(unsigned mask, int set) {
    return sim::reduce(sim::Reduce::kMin, mask, set != 0) != 0;
}
__forceinline__ unsigned __reduce_add_sync(unsigned mask, unsigned value) {
    return sim::reduce(sim::Reduce::kAdd, mask, value);
}
__forceinline__ unsigned __reduce_min_sync(unsigned mask, unsigned value) {
    return sim::reduce(sim::Reduce::kMin, mask, value);
}
__forceinline__ unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    return sim::reduce(sim::Reduce::kMax, mask, value);
}

// ---- Atomics
// -------------------------------------------------------------------------------------- Threads of
// one launch share one OS thread, so a plain read and write is atomic; the runtime does it, so that
// the race check does not take it for plain accesses. There is no floating-point atomic: its order
// is not fixed.

__forceinline__ int atomicAdd(int* at, int value) {
    return static_cast<int>(sim::atomic(sim::Reduce::kAdd, at, static_cast<unsigned>(value)));
}
__forceinline__ unsigned atomicAdd(unsigned* at, unsigned value) {
    return sim::atomic(sim::Reduce::kAdd, at, value);
}
__forceinline__ unsigned atomicMax(unsigned* at, unsigned value) {
    return sim::atomic(sim::Reduce::kMax, at, value);
}
__forceinline__ unsigned atomicMin(unsigned* at, unsigned value) {
    return sim::atomic(sim::Reduce::kMin, at, value);
}
__forceinline__ unsigned atomicOr(unsigned* at, unsigned value) {
    return sim::atomic(sim::Reduce::kOr, at, value);
}

// Dot product of two gradients of one parameter, and linear combinations of them.
//
// dot: partials[block] = sum of a b over the block's 2048 numbers, in fp64; the host adds the partials in order.
// mix: out = keep y + add x in fp32, rounded once to storage; a null y or x is all zeros, out may be y.
// Shape: elementwise, eight numbers a thread, in strides of a block. Bytes a number: dot 2 x 4 (bf16 2 x 2) read, mix as
// much and 4 (2) written. Roof: device memory.
#include "rows.cuh"

template <typename T>
__device__ __forceinline__ void grad_dot(const T* a, const T* b, double* partials, uint64_t n) {
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * kBlock * kPack;
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        const uint64_t at = start + k * kBlock + threadIdx.x;
        if (at < n) sum += static_cast<double>(widen(a[at])) * widen(b[at]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

template <typename T>
__device__ __forceinline__ void grad_mix(T* out, const T* y, const T* x, uint64_t n, float keep,
                                         float add) {
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * kBlock * kPack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        const uint64_t at = start + k * kBlock + threadIdx.x;
        if (at >= n) continue;
        const float own = y != nullptr ? widen(y[at]) : 0.0f;
        const float other = x != nullptr ? widen(x[at]) : 0.0f;
        narrow(__fadd_rn(__fmul_rn(keep, own), __fmul_rn(add, other)), out[at]);
    }
}

// Grid: ceil(n / 2048) blocks.
#define DOT(name, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(const T* a, const T* b, double* partials, uint64_t n) {                              \
        ptx::grid_enter();                                                                        \
        grad_dot(a, b, partials, n);                                                              \
    }                                                                                             \
    KERNEL_EXPORT(name)

DOT(grad_dot_bf16, uint16_t);
DOT(grad_dot_f32, float);

#define MIX(name, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(T* out, const T* y, const T* x, uint64_t n, float keep, float add) {                 \
        ptx::grid_enter();                                                                        \
        grad_mix(out, y, x, n, keep, add);                                                        \
    }                                                                                             \
    KERNEL_EXPORT(name)

MIX(grad_mix_bf16, uint16_t);
MIX(grad_mix_f32, float);

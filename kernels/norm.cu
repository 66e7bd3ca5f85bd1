// The global gradient norm, the clip factor and the guard against gradients that are not finite.
//
// norm = sqrt(sum over all trainable parameters of g^2);  c = max_norm / norm where norm > max_norm, else 1.
// Shape: two stages. A block sums a fixed chunk of 16384 elements in fp32 (a thread: 64 squares; then a tree
// over the block) and writes one partial; the second stage, one block, adds all partials of the model in
// fp64. Every order follows from the tensors' sizes alone, never from the number of processors, and there are
// no atomics: two runs give equal bytes. The reference takes each tensor's norm relative to its largest
// element, which makes NaN of an all-zero gradient; the plain sum has no such case.
// An fp32 square overflows from |g| = 1.8e19 on; the sum is then infinite and counts as not finite.
// Bytes an element: 2 (bf16) or 4 (fp32) read; 8 written per chunk. Roof: device memory.
// Source: arXiv 2504.13388 and torch.nn.utils.clip_grad_norm_ (without its 1e-6 below the fraction bar).
#include "common.cuh"

constexpr int kChunk = 16384;
constexpr int kRounds = kChunk / (kBlock * kPack);

struct Partial {
    float sum;
    uint32_t nonfinite;
};

__device__ __forceinline__ void add_square(float x, float& sum, uint32_t& nonfinite) {
    nonfinite += (__float_as_uint(x) & 0x7F800000u) == 0x7F800000u;
    sum = __fadd_rn(sum, __fmul_rn(x, x));
}

__device__ __forceinline__ void store_partial(Partial* partials, float sum, uint32_t nonfinite) {
    float total = block_sum(sum);
    uint32_t count = block_sum(nonfinite);
    if (threadIdx.x == 0) partials[blockIdx.x] = Partial{total, count};
}

// One tensor; `partials` points at the tensor's first. Grid: ceil(n / 16384) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    norm_partial_bf16(const uint16_t* g, Partial* partials, uint64_t n) {
    float sum = 0.0f;
    uint32_t nonfinite = 0;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * kChunk + threadIdx.x * kPack;
#pragma unroll 4
    for (int round = 0; round < kRounds; ++round, at += kBlock * kPack) {
        if (at + kPack <= n) {
            Pack16 g_r = load16(g + at);
#pragma unroll
            for (int k = 0; k < kPack; ++k) add_square(bf16_to_float(g_r.v[k]), sum, nonfinite);
        } else {
            for (uint64_t i = at; i < n; ++i) add_square(bf16_to_float(g[i]), sum, nonfinite);
        }
    }
    store_partial(partials, sum, nonfinite);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    norm_partial_f32(const float* g, Partial* partials, uint64_t n) {
    float sum = 0.0f;
    uint32_t nonfinite = 0;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * kChunk + threadIdx.x * kPack;
#pragma unroll 4
    for (int round = 0; round < kRounds; ++round, at += kBlock * kPack) {
        if (at + kPack <= n) {
            Pack32 a = load32(g + at), b = load32(g + at + 4);
#pragma unroll
            for (int k = 0; k < 4; ++k) add_square(a.v[k], sum, nonfinite);
#pragma unroll
            for (int k = 0; k < 4; ++k) add_square(b.v[k], sum, nonfinite);
        } else {
            for (uint64_t i = at; i < n; ++i) add_square(g[i], sum, nonfinite);
        }
    }
    store_partial(partials, sum, nonfinite);
}

// Adds the partials of all tensors and fills in clip, norm, nonfinite and apply of `step`. Grid: 1 block.
extern "C" __global__ void __launch_bounds__(kBlock)
    norm_finish(Step* step, const Partial* partials, uint64_t count) {
    double sum = 0.0;
    uint32_t nonfinite = 0;
    for (uint64_t i = threadIdx.x; i < count; i += kBlock) {
        Partial partial = partials[i];
        sum += static_cast<double>(partial.sum);
        // May wrap; `apply` does not rest on it alone, since one such element makes the sum infinite or NaN.
        nonfinite += partial.nonfinite;
    }
    double total = block_sum(sum);
    uint32_t bad = block_sum(nonfinite);
    if (threadIdx.x != 0) return;
    float norm = static_cast<float>(sqrt(total));
    bool finite = bad == 0 && (__float_as_uint(norm) & 0x7F800000u) != 0x7F800000u;
    bool clipped = finite && step->max_norm > 0.0f && norm > step->max_norm;
    step->clip = clipped ? __fdiv_rn(step->max_norm, norm) : 1.0f;
    step->norm = norm;
    step->nonfinite = bad;
    step->apply = finite ? 1u : 0u;
}

KERNEL_EXPORT(norm_partial_bf16);
KERNEL_EXPORT(norm_partial_f32);
KERNEL_EXPORT(norm_finish);

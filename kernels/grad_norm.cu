// The global gradient norm of a step, its clip factor, and the check for entries that are not finite.
//
// norm = sqrt(sum over all trainable parameters of g^2);  c = max_norm / norm where norm > max_norm, else 1.
// Shape: three stages. A block scans a fixed chunk of 16384 elements of one tensor, unless the product that wrote it last
// has scanned its tiles (sm90/gemm.cu); then one block per tensor joins its parts; then one block adds the tensors. Every
// order follows from the tensors' sizes alone, never from the number of SMs, and there are no atomics: two runs give equal
// bytes.
// Squares are summed in fp64, where the square of an fp32 is exact and none overflows: one fused multiply-add an
// element, which data-centre GPUs do faster than memory delivers the elements. The reference takes each tensor's
// norm relative to its largest element, which makes NaN of an all-zero gradient; the plain sum has no such case.
// Bytes an element: 2 (bf16) or 4 (fp32) read; 16 written per chunk. Roof: device memory.
// Source: arXiv 2504.13388 and torch.nn.utils.clip_grad_norm_ (without its 1e-6 below the fraction bar).
#include "common.cuh"

constexpr int kChunk = 16384;
constexpr int kRounds = kChunk / (kBlock * kPack);

// A thread's share of a scan.
struct Watch {
    double sum_sq = 0.0;
    uint32_t max_bits = 0;
    uint32_t nonfinite = 0;

    __device__ __forceinline__ void add(float x) {
        uint32_t magnitude = __float_as_uint(x) & 0x7FFFFFFFu;
        nonfinite += magnitude >= kInfinity;
        max_bits = max(max_bits, magnitude > kInfinity ? 0u : magnitude);
        double wide = static_cast<double>(x);
        sum_sq = fma(wide, wide, sum_sq);
    }
};

// Every thread of the block must call it; thread 0 alone gets the maximum.
__device__ __forceinline__ uint32_t block_max(uint32_t x) {
    __shared__ uint32_t warp_s[kBlock / kWarp];
    x = warp_max(x);
    // Thread 0 may still read warp_s from the call before.
    __syncthreads();
    if (threadIdx.x % kWarp == 0) warp_s[threadIdx.x / kWarp] = x;
    // All warps' maxima must be there before thread 0 joins them.
    __syncthreads();
    uint32_t top = 0;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int w = 0; w < kBlock / kWarp; ++w) top = max(top, warp_s[w]);
    }
    return top;
}

__device__ __forceinline__ void add_pack(const uint16_t* g, Watch& watch) {
    Pack16 g_r = load16(g);
#pragma unroll
    for (int k = 0; k < kPack; ++k) watch.add(bf16_to_float(g_r.v[k]));
}

__device__ __forceinline__ void add_pack(const float* g, Watch& watch) {
    Pack32 a = load32(g), b = load32(g + 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) watch.add(a.v[k]);
#pragma unroll
    for (int k = 0; k < 4; ++k) watch.add(b.v[k]);
}

__device__ __forceinline__ void add_one(const uint16_t* g, Watch& watch) {
    watch.add(bf16_to_float(*g));
}

__device__ __forceinline__ void add_one(const float* g, Watch& watch) { watch.add(*g); }

template <typename G>
__device__ __forceinline__ void scan_chunk(const G* g, Partial* partials, uint64_t n) {
    Watch watch;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * kChunk + threadIdx.x * kPack;
#pragma unroll 4
    for (int round = 0; round < kRounds; ++round, at += kBlock * kPack) {
        if (at + kPack <= n) {
            add_pack(g + at, watch);
        } else {
            for (uint64_t i = at; i < n; ++i) add_one(g + i, watch);
        }
    }
    double sum_sq = block_sum(watch.sum_sq);
    uint32_t max_bits = block_max(watch.max_bits);
    uint32_t nonfinite = block_sum(watch.nonfinite);
    if (threadIdx.x == 0) partials[blockIdx.x] = Partial{sum_sq, max_bits, nonfinite};
}

// One tensor and its partial scans. Grid: ceil(n / 16384) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    grad_norm_partial_bf16(const uint16_t* g, Partial* partials, uint64_t n) {
    ptx::grid_enter();
    scan_chunk(g, partials, n);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    grad_norm_partial_f32(const float* g, Partial* partials, uint64_t n) {
    ptx::grid_enter();
    scan_chunk(g, partials, n);
}

// Joins the partial scans of each tensor; an empty gradient is all zeros. Grid: one block a tensor.
extern "C" __global__ void __launch_bounds__(kBlock)
    grad_norm_tensor(const Entry* entries, Scan* scans) {
    ptx::grid_enter();
    const Entry entry = entries[blockIdx.x];
    double sum_sq = 0.0;
    double nonfinite = 0.0;  // exact, and no entry count wraps it
    uint32_t max_bits = 0;
    for (uint32_t i = threadIdx.x; i < entry.partials; i += kBlock) {
        Partial partial = entry.scans[i];
        sum_sq += partial.sum_sq;
        nonfinite += static_cast<double>(partial.nonfinite);
        max_bits = max(max_bits, partial.max_bits);
    }
    sum_sq = block_sum(sum_sq);
    nonfinite = block_sum(nonfinite);
    max_bits = block_max(max_bits);
    if (threadIdx.x == 0) {
        scans[blockIdx.x] = Scan{sum_sq, static_cast<uint64_t>(nonfinite), max_bits, 0};
    }
}

// Adds the scans of all tensors and fills in the second part of `step`. Grid: 1 block.
extern "C" __global__ void __launch_bounds__(kBlock)
    grad_norm_step(Step* step, const Entry* entries, const Scan* scans, uint32_t count) {
    ptx::grid_enter();
    double sum_sq = 0.0;
    uint32_t first = 0;  // ~ of the first bad tensor: its largest is the first
    for (uint32_t i = threadIdx.x; i < count; i += kBlock) {
        sum_sq += scans[i].sum_sq;
        if (scans[i].nonfinite != 0) first = max(first, ~i);
    }
    sum_sq = block_sum(sum_sq);
    first = block_max(first);
    if (threadIdx.x != 0) return;
    double norm = sqrt(sum_sq);
    bool bad = first != 0;
    bool finite = !bad && norm < __longlong_as_double(0x7FF0000000000000ll);
    double clip = finite && norm > step->max_grad_norm ? step->max_grad_norm / norm : 1.0;
    double rate = __dmul_rn(step->teacher_rate, clip);
    step->grad_norm = norm;
    step->clip = clip;
    step->pull_clip = static_cast<float>(clip);
    step->pull_damping = static_cast<float>(__dmul_rn(step->damping, clip));
    step->pull_rate = static_cast<float>(rate);
    step->pull_keep = static_cast<float>(__dadd_rn(1.0, -rate));
    step->apply = finite ? 1u : 0u;
    step->first_bad = bad ? entries[~first].index : ~0u;
    step->nonfinite = bad ? scans[~first].nonfinite : 0;
}

KERNEL_EXPORT(grad_norm_partial_bf16);
KERNEL_EXPORT(grad_norm_partial_f32);
KERNEL_EXPORT(grad_norm_tensor);
KERNEL_EXPORT(grad_norm_step);

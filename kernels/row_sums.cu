// Sums of per-row results over the rows of a packed batch, and the loss weight of each sequence.
//
// Sums: value += sum share value, nll += sum monitor nll, hit += sum monitor hit, in fp64, over rows whose factor is
// not 0; other rows may hold anything. One block, so that the order is fixed: a pack has thousands of rows, and 20
// bytes of each are read once.
// Sequence weights: w = factor / (1 + exp(-slope (r - shift))) with r the sum of base - nll over all rows of a sequence
// but its last, divided by its span; every row of the sequence gets it. Pairs: r less that of the partner, and the
// second of both has factor and slope of the other sign. One block per sequence.
// Both are a few microseconds behind head sweeps of milliseconds. Roof: latency.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(kBlock)
    row_sums(const float* value, const float* nll, const float* hit, const float* shares,
               const float* monitors, double* sums, uint32_t n) {
    ptx::grid_enter();
    double value_sum = 0.0, nll_sum = 0.0, hit_sum = 0.0;
    for (uint32_t row = threadIdx.x; row < n; row += kBlock) {
        float share = shares[row], monitor = monitors[row];
        if (share != 0.0f) value_sum += static_cast<double>(share) * value[row];
        if (monitor != 0.0f) {
            nll_sum += static_cast<double>(monitor) * nll[row];
            hit_sum += static_cast<double>(monitor) * hit[row];
        }
    }
    value_sum = block_sum(value_sum);
    nll_sum = block_sum(nll_sum);
    hit_sum = block_sum(hit_sum);
    if (threadIdx.x == 0) {
        sums[0] += value_sum;
        sums[1] += nll_sum;
        sums[2] += hit_sum;
    }
}

// The log-ratio of a sequence, for thread 0. Every thread of the block calls it.
__device__ __forceinline__ float sequence_ratio(const float* base, const float* nll,
                                                const uint32_t* starts, const uint32_t* spans,
                                                uint32_t sequence) {
    const uint32_t start = starts[sequence], end = starts[sequence + 1];
    double ratio = 0.0;
    for (uint32_t row = start + threadIdx.x; row + 1 < end; row += kBlock) {
        ratio += (base != nullptr ? static_cast<double>(base[row]) : 0.0) - nll[row];
    }
    return static_cast<float>(block_sum(ratio) / max(spans[sequence], 1u));
}

// `base` may be null. Grid: one block per sequence.
extern "C" __global__ void __launch_bounds__(kBlock)
    sequence_weights(const float* base, const float* nll, const uint32_t* starts, const uint32_t* spans,
                   float* weights, float factor, float slope, float shift, uint32_t paired) {
    ptx::grid_enter();
    __shared__ float weight_s;
    const uint32_t own = blockIdx.x, other = own ^ 1u;
    const bool pair = paired != 0 && other < gridDim.x;
    float ratio = sequence_ratio(base, nll, starts, spans, own);
    if (pair) ratio -= sequence_ratio(base, nll, starts, spans, other);
    const float sign = pair && other < own ? -1.0f : 1.0f;
    if (threadIdx.x == 0) weight_s = sign * factor / (1.0f + expf(-sign * slope * (ratio - shift)));
    // The weight is there for all threads.
    __syncthreads();
    for (uint32_t row = starts[own] + threadIdx.x; row < starts[own + 1]; row += kBlock) {
        weights[row] = weight_s;
    }
}

KERNEL_EXPORT(row_sums);
KERNEL_EXPORT(sequence_weights);

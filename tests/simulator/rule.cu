// SGD with momentum as a rule of the caller's own would bring it: tests/engine/custom_rule.rs.
//
// Shape: elementwise, one number a thread. Bytes a number: 8 read, 8 written. Roof: device memory.
#include "common.cuh"

// Grid: ceil(n / 256) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    custom_rule_sgd(const float* g, float* m, float* step, uint64_t n, float momentum, float lr) {
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (at >= n) return;
    const float u = __fadd_rn(__fmul_rn(momentum, m[at]), g[at]);
    m[at] = u;
    step[at] = __fmul_rn(-lr, u);
}

KERNEL_EXPORT(custom_rule_sgd);

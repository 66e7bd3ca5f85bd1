// The parameter update of tiny state: as update.cu's of compact state, SGD's momentum in 8 bits.
//
// u = m q scale + g;  scale = max |u| / 127 over a block of 256 numbers;  q = floor(u / scale + r), r in [0, 1) random
// (bits 16 to 31 of the dither hash): right on average, so that what is far below the block's largest is not lost for good.
// The step of now uses u itself. Shape: a warp holds a block, eight numbers a lane, and meets once for its largest.
// Bytes a parameter: reads 9 (hi, lo, drift, q, gradient), writes 7, and two scales a block. Roof: device memory.
// Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2021, with stochastic rounding.
#include "update.cuh"

static_assert(kPack * kWarp == 256, "MOMENT_BLOCK of src/ops/format.rs");

struct alignas(8) Pack8 {
    int8_t v[kPack];
};

// As to_block of src/ops/format.rs.
__device__ __forceinline__ int8_t to_block(float x, float scale, uint32_t r) {
    const float steps = scale > 0.0f ? __fdiv_rn(x, scale) : 0.0f;
    const float below = floorf(__fadd_rn(steps, __fmul_rn(static_cast<float>(r), 0x1p-16f)));
    return static_cast<int8_t>(fminf(fmaxf(below, -127.0f), 127.0f));
}

// Every thread of the block calls it: lanes without numbers meet the others of their warp.
template <bool DRIFTS>
__device__ __forceinline__ void pass_tiny(const Step* step, Tensor* tensor, const uint16_t* g, uint16_t* hi,
                                          uint16_t* lo, uint16_t* d, int8_t* q, float* scales, uint64_t n,
                                          uint64_t seed) {
    const Rule rule = rule_of(*step);
    const uint32_t count = static_cast<uint32_t>(tensor->counter);
    const float drift_read = exp2_exact(-tensor->exponent), drift_write = exp2_exact(tensor->exponent_next);
    const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    const uint64_t block = at / (kPack * kWarp);
    const uint32_t held = at < n ? static_cast<uint32_t>(min(n - at, static_cast<uint64_t>(kPack))) : 0;
    const bool whole = held == kPack;
    Pack16 g_r = {}, hi_r = {}, lo_r = {}, d_r = {};
    Pack8 q_r = {};
    if (whole) {
        if (g != nullptr) g_r = load16(g + at);
        hi_r = load16(hi + at);
        lo_r = load16(lo + at);
        if (DRIFTS) d_r = load16(d + at);
        // Aligned: a tensor's base plus a multiple of eight bytes.
        *reinterpret_cast<uint2*>(&q_r) = *reinterpret_cast<const uint2*>(q + at);
    } else {
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (k >= held) continue;
            if (g != nullptr) g_r.v[k] = g[at + k];
            hi_r.v[k] = hi[at + k];
            lo_r.v[k] = lo[at + k];
            if (DRIFTS) d_r.v[k] = d[at + k];
            q_r.v[k] = q[at + k];
        }
    }
    const float old_scale = held > 0 ? scales[block] : 0.0f;
    float u_r[kPack];
    uint32_t top = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        const float drift = DRIFTS ? __fmul_rn(fp16_to_float(d_r.v[k]), drift_read) : 0.0f;
        const float force = __fadd_rn(__fmul_rn(bf16_to_float(g_r.v[k]), rule.clip), __fmul_rn(rule.damping, drift));
        const float old = __fmul_rn(static_cast<float>(q_r.v[k]), old_scale);
        u_r[k] = __fadd_rn(__fmul_rn(rule.momentum, old), force);
        if (k < held) top = max(top, __float_as_uint(u_r[k]) & 0x7FFFFFFFu);
    }
    top = __reduce_max_sync(0xFFFFFFFFu, top);
    const float scale = __fdiv_rn(__uint_as_float(top), 127.0f);
    Seen seen;
    // Rounded up to a bf16: a bound.
    seen.moment = (top + 0xFFFFu) >> 16;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        if (k >= held) continue;
        const uint32_t old_noise = dither_hash(seed, count, at + k), noise = dither_hash(seed, count + 1, at + k);
        float theta = theta_join(hi_r.v[k], lo_r.v[k], old_noise & 0xFFFFu);
        const float s = __fmul_rn(-rule.lr, u_r[k]);
        q_r.v[k] = to_block(u_r[k], scale, noise >> 16);
        move_student<true>(theta, s, noise, hi_r.v[k], lo_r.v[k]);
        seen.theta = max(seen.theta, __float_as_uint(theta) & 0x7FFFFFFFu);
        if (DRIFTS) {
            const float drift = __fmul_rn(fp16_to_float(d_r.v[k]), drift_read);
            const float next = __fmul_rn(rule.keep, __fadd_rn(drift, s));
            d_r.v[k] = __half_as_ushort(__float2half_rn(__fmul_rn(next, drift_write)));
            seen.drift = max(seen.drift, d_r.v[k] & 0x7FFFu);
        }
    }
    if (whole) {
        store16(hi + at, hi_r);
        store16(lo + at, lo_r);
        if (DRIFTS) store16(d + at, d_r);
        *reinterpret_cast<uint2*>(q + at) = *reinterpret_cast<const uint2*>(&q_r);
    } else {
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (k >= held) continue;
            hi[at + k] = hi_r.v[k];
            lo[at + k] = lo_r.v[k];
            if (DRIFTS) d[at + k] = d_r.v[k];
            q[at + k] = q_r.v[k];
        }
    }
    // Its lanes have read the old one: they met since.
    if (threadIdx.x % kWarp == 0 && held > 0) scales[block] = scale;
    report(tensor, seen);
}

// `n` parameters of one tensor with its own noise `seed`. Grid: ceil(n / 2048) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    update_sgd_tiny_bf16(const Step* step, Tensor* tensor, const uint16_t* g, uint16_t* hi, uint16_t* lo, uint16_t* d,
                         int8_t* q, float* scales, uint64_t n, uint64_t seed) {
    ptx::grid_enter();
    // The same words for all threads of the grid, so whole warps branch together.
    if (step->apply == 0) return;
    if (d != nullptr) {
        pass_tiny<true>(step, tensor, g, hi, lo, d, q, scales, n, seed);
    } else {
        pass_tiny<false>(step, tensor, g, hi, lo, d, q, scales, n, seed);
    }
}
KERNEL_EXPORT(update_sgd_tiny_bf16);

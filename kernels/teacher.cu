// The teacher's bf16 weights, made from the student's state with the student's own dither.
//
// teacher = (bits(theta - d) + r) >> 16, with the r that split the student's planes. One r for both: a
// parameter without drift gives the same bf16 on both sides, so the penalty of an unmoved model is exactly
// 0, and where d is not 0 the expected difference of the two bf16 values is d itself. Rounding both to
// nearest instead would hide most of a drift that is far below half a unit in the last place.
// Shape: elementwise, eight parameters a thread; runs layer by layer into one scratch that the teacher's
// forward pass reads. fp32 in registers; the store rounds by dither (unbiased), not to nearest.
// Bytes a parameter: compact reads 6 and writes 2; exact reads 4 and writes 2.
// Roof: device memory; aims at 90 % of a copy's rate.
// Source: arXiv 2504.13388, the teacher of the mean-teacher penalty; the common dither is this project's own.
#include "common.cuh"

// `seed` and `step_old` of `step` say which dither the planes carry. Grid: ceil(n / 2048) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    teacher_compact_bf16(const Step* step, const DriftScale* scale, const uint16_t* hi,
                         const uint16_t* lo, const uint16_t* d, uint16_t* out, uint64_t n,
                         uint64_t base) {
    const uint32_t seed_lo = step->seed_lo, seed_hi = step->seed_hi, at_step = step->step_old;
    const float drift_read = exp2_exact(-scale->exponent);
    auto one = [&](uint64_t index, uint16_t hi1, uint16_t lo1, uint16_t d1) -> uint16_t {
        uint32_t r = dither_hash(seed_lo, seed_hi, at_step, index) & 0xFFFFu;
        float theta = theta_join(hi1, lo1, r);
        float drift = __fmul_rn(fp16_to_float(d1), drift_read);
        // (-0) - (-0) is +0: a drift of either zero must keep every bit, so it takes the student's plane.
        uint32_t b = __float_as_uint(__fsub_rn(theta, drift)) + r;
        return static_cast<uint16_t>((d1 & 0x7FFFu) == 0 ? hi1 : b >> 16);
    };
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack16 hi_r = load16(hi + at), lo_r = load16(lo + at), d_r = load16(d + at), out_r;
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            out_r.v[k] = one(base + at + k, hi_r.v[k], lo_r.v[k], d_r.v[k]);
        }
        store16(out + at, out_r);
    } else {
        for (; at < n; ++at) out[at] = one(base + at, hi[at], lo[at], d[at]);
    }
}

// The same view of a teacher (or student) that is kept in fp32: (bits(x) + r) >> 16.
// Grid: ceil(n / 2048) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    teacher_exact_bf16(const Step* step, const float* x, uint16_t* out, uint64_t n, uint64_t base) {
    const uint32_t seed_lo = step->seed_lo, seed_hi = step->seed_hi, at_step = step->step_old;
    auto one = [&](uint64_t index, float x1) -> uint16_t {
        uint32_t r = dither_hash(seed_lo, seed_hi, at_step, index) & 0xFFFFu;
        return static_cast<uint16_t>((__float_as_uint(x1) + r) >> 16);
    };
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack32 a = load32(x + at), b = load32(x + at + 4);
        Pack16 out_r;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            out_r.v[k] = one(base + at + k, a.v[k]);
            out_r.v[k + 4] = one(base + at + k + 4, b.v[k]);
        }
        store16(out + at, out_r);
    } else {
        for (; at < n; ++at) out[at] = one(base + at, x[at]);
    }
}

KERNEL_EXPORT(teacher_compact_bf16);
KERNEL_EXPORT(teacher_exact_bf16);

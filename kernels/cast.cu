// Conversions between fp32, bf16 and the dithered two-plane weights.
//
// split: hi, lo = bits(x) + r;  join: x = (hi << 16 | lo) - r;  resplit: join with one r, split with another.
// r is the dither of a step, or 0x8000, which makes hi the bf16 nearest to x (ties away from zero): the view
// that evaluation and export read. All three are exact: no bit of a weight is ever lost.
// Shape: elementwise, eight elements a thread, 16-byte accesses; the last n mod 8 one by one.
// Bytes an element, read + written: cast 4 + 2 or 2 + 4, split 4 + 4, join 4 + 4, resplit 4 + 4.
// Roof: device memory; aims at 90 % of a copy's rate. bf16 stores of the casts round to nearest even.
// Source: the project's own format (src/ops/format.rs is its CPU side).
#include "common.cuh"

constexpr uint32_t kNearest = 0x8000u;

__device__ __forceinline__ uint32_t dither_of(const Step* step, uint32_t at_step, bool nearest,
                                              uint64_t index) {
    if (nearest) return kNearest;
    return dither_hash(step->seed_lo, step->seed_hi, at_step, index) & 0xFFFFu;
}

// All kernels of this file: grid ceil(n / 2048) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    cast_f32_bf16(const float* x, uint16_t* out, uint64_t n) {
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack32 a = load32(x + at), b = load32(x + at + 4);
        Pack16 out_r;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            out_r.v[k] = float_to_bf16_rne(a.v[k]);
            out_r.v[k + 4] = float_to_bf16_rne(b.v[k]);
        }
        store16(out + at, out_r);
    } else {
        for (; at < n; ++at) out[at] = float_to_bf16_rne(x[at]);
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
    cast_bf16_f32(const uint16_t* x, float* out, uint64_t n) {
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack16 x_r = load16(x + at);
        Pack32 a, b;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            a.v[k] = bf16_to_float(x_r.v[k]);
            b.v[k] = bf16_to_float(x_r.v[k + 4]);
        }
        store32(out + at, a);
        store32(out + at + 4, b);
    } else {
        for (; at < n; ++at) out[at] = bf16_to_float(x[at]);
    }
}

// Splits with the dither of step.step_new, or to nearest where `nearest` is not 0.
extern "C" __global__ void __launch_bounds__(kBlock)
    cast_f32_split(const Step* step, uint32_t nearest, const float* x, uint16_t* hi, uint16_t* lo,
                   uint64_t n, uint64_t base) {
    const uint32_t at_step = step->step_new;
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack32 a = load32(x + at), b = load32(x + at + 4);
        Pack16 hi_r, lo_r;
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            uint32_t r = dither_of(step, at_step, nearest != 0, base + at + k);
            theta_split(k < 4 ? a.v[k % 4] : b.v[k % 4], r, hi_r.v[k], lo_r.v[k]);
        }
        store16(hi + at, hi_r);
        store16(lo + at, lo_r);
    } else {
        for (; at < n; ++at) {
            theta_split(x[at], dither_of(step, at_step, nearest != 0, base + at), hi[at], lo[at]);
        }
    }
}

// Joins planes that carry the dither of step.step_old, or nearest.
extern "C" __global__ void __launch_bounds__(kBlock)
    cast_split_f32(const Step* step, uint32_t nearest, const uint16_t* hi, const uint16_t* lo,
                   float* out, uint64_t n, uint64_t base) {
    const uint32_t at_step = step->step_old;
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack16 hi_r = load16(hi + at), lo_r = load16(lo + at);
        Pack32 half_r[2];
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            uint32_t r = dither_of(step, at_step, nearest != 0, base + at + k);
            half_r[k / 4].v[k % 4] = theta_join(hi_r.v[k], lo_r.v[k], r);
        }
        store32(out + at, half_r[0]);
        store32(out + at + 4, half_r[1]);
    } else {
        for (; at < n; ++at) {
            uint32_t r = dither_of(step, at_step, nearest != 0, base + at);
            out[at] = theta_join(hi[at], lo[at], r);
        }
    }
}

// Re-splits in place: from step_old (or nearest) to step_new (or nearest).
extern "C" __global__ void __launch_bounds__(kBlock)
    cast_resplit(const Step* step, uint32_t from_nearest, uint32_t to_nearest, uint16_t* hi,
                 uint16_t* lo, uint64_t n, uint64_t base) {
    const uint32_t from = step->step_old, to = step->step_new;
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack16 hi_r = load16(hi + at), lo_r = load16(lo + at);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            uint64_t index = base + at + k;
            float x = theta_join(hi_r.v[k], lo_r.v[k],
                                 dither_of(step, from, from_nearest != 0, index));
            theta_split(x, dither_of(step, to, to_nearest != 0, index), hi_r.v[k], lo_r.v[k]);
        }
        store16(hi + at, hi_r);
        store16(lo + at, lo_r);
    } else {
        for (; at < n; ++at) {
            uint64_t index = base + at;
            float x = theta_join(hi[at], lo[at], dither_of(step, from, from_nearest != 0, index));
            theta_split(x, dither_of(step, to, to_nearest != 0, index), hi[at], lo[at]);
        }
    }
}

KERNEL_EXPORT(cast_f32_bf16);
KERNEL_EXPORT(cast_bf16_f32);
KERNEL_EXPORT(cast_f32_split);
KERNEL_EXPORT(cast_split_f32);
KERNEL_EXPORT(cast_resplit);

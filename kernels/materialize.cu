// The weights of student and teacher as GEMMs read them, materialized from the optimizer state.
//
// dithered student:  (bits(theta) + r) >> 16         (compact: the hi plane itself, no kernel)
// dithered teacher:  (bits(theta - d) + r) >> 16, with the r that split the student's planes
// evaluated:         (bits(theta) + e) >> 16, with the e of a step that training never comes to: to the nearest, figures
//                    would not see what moved by less than half the distance of two bf16 numbers
// joined:            theta, and theta - d, in fp32
// One r for student and teacher: a parameter without drift gives the same bf16 on both sides, so the penalty of an
// unmoved model is exactly 0, and where d is not 0 the expected difference of the two bf16 values is d itself.
// Rounding both to nearest instead would hide most of a drift that is far below half a unit in the last place.
// Shape: elementwise, eight parameters a thread, 16-byte accesses; runs tensor by tensor into one scratch that the
// next product reads. fp32 in registers. `index` is the place of the first element in its tensor.
// Bytes a parameter: compact reads 4 (teacher 6) and writes 2 (fp32: 4); exact reads 4 (teacher 4 or 8), writes 2.
// Roof: device memory; aims at 90 % of a copy's rate.
// Source: arXiv 2504.13388, the teacher of the mean-teacher penalty; the common dither is this project's own.
#include "common.cuh"

// The weights to materialize; the host passes these numbers.
enum Show : uint32_t { kPlane, kDitheredTeacher, kEvaluated, kJoined, kJoinedTeacher };

__device__ __forceinline__ void put(uint16_t* out, float x) {
    // Every bf16 weight is cut to bf16 before: only its high half is left.
    *out = static_cast<uint16_t>(__float_as_uint(x) >> 16);
}

__device__ __forceinline__ void put(float* out, float x) { *out = x; }

__device__ __forceinline__ void put_pack(uint16_t* out, const float (&x)[kPack]) {
    Pack16 out_r;
#pragma unroll
    for (int k = 0; k < kPack; ++k) put(&out_r.v[k], x[k]);
    store16(out, out_r);
}

__device__ __forceinline__ void put_pack(float* out, const float (&x)[kPack]) {
    store32(out, Pack32{{x[0], x[1], x[2], x[3]}});
    store32(out + 4, Pack32{{x[4], x[5], x[6], x[7]}});
}

__device__ __forceinline__ float dithered(float x, uint32_t r) {
    return bf16_to_float(float_to_bf16_dithered(x, r));
}

// Without a drift (`d` null) the teacher is the student; without `lo` the student is `hi`.
template <typename T>
__device__ __forceinline__ void materialize_compact(const Tensor* tensor, uint32_t show, const uint16_t* hi,
                                             const uint16_t* lo, const uint16_t* d, T* out, uint64_t n,
                                             uint64_t index, uint64_t seed) {
    const uint32_t count = static_cast<uint32_t>(tensor->counter);
    const float unscale = exp2_exact(-tensor->exponent);
    // The same words for all threads of the grid, so whole warps branch together.
    const bool teacher = show == kDitheredTeacher || show == kJoinedTeacher;
    const bool drifts = teacher && d != nullptr;
    const bool low = lo != nullptr;
    auto one = [&](uint64_t i, uint16_t hi1, uint16_t lo1, uint16_t d1) -> float {
        if (show == kPlane) return bf16_to_float(hi1);
        uint32_t r = dither_hash(seed, count, i) & 0xFFFFu;
        float x = low ? theta_join(hi1, lo1, r) : bf16_to_float(hi1);
        if (drifts) x = __fsub_rn(x, __fmul_rn(fp16_to_float(d1), unscale));
        if (show == kDitheredTeacher) return dithered(x, r);
        return show == kEvaluated ? dithered(x, dither_hash(seed, kEvaluation, i) & 0xFFFFu) : x;
    };
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack16 hi_r = load16(hi + at), lo_r = {}, d_r = {};
        if (low) lo_r = load16(lo + at);
        if (drifts) d_r = load16(d + at);
        float x[kPack];
#pragma unroll
        for (int k = 0; k < kPack; ++k) x[k] = one(index + at + k, hi_r.v[k], lo_r.v[k], d_r.v[k]);
        put_pack(out + at, x);
    } else {
        for (; at < n; ++at) {
            put(out + at, one(index + at, hi[at], low ? lo[at] : uint16_t(0), drifts ? d[at] : uint16_t(0)));
        }
    }
}

// All kernels of this file: grid ceil(n / 2048) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    materialize_compact_bf16(const Tensor* tensor, uint32_t show, const uint16_t* hi, const uint16_t* lo,
                      const uint16_t* d, uint16_t* out, uint64_t n, uint64_t index, uint64_t seed) {
    ptx::grid_enter();
    materialize_compact(tensor, show, hi, lo, d, out, n, index, seed);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    materialize_compact_f32(const Tensor* tensor, uint32_t show, const uint16_t* hi, const uint16_t* lo,
                     const uint16_t* d, float* out, uint64_t n, uint64_t index, uint64_t seed) {
    ptx::grid_enter();
    materialize_compact(tensor, show, hi, lo, d, out, n, index, seed);
}

// Weights kept in fp32: x, or x - d where `d` is not null; dithered by the noise of the step, or of kEvaluation.
template <typename T, bool NARROW>
__device__ __forceinline__ void materialize_exact(const Tensor* tensor, uint32_t show, const float* x,
                                           const float* d, T* out, uint64_t n, uint64_t seed) {
    const uint32_t count = show == kEvaluated ? kEvaluation : static_cast<uint32_t>(tensor->counter);
    auto one = [&](uint64_t i, float x1, float d1) -> float {
        if (d != nullptr) x1 = __fsub_rn(x1, d1);
        if (!NARROW) return x1;
        return dithered(x1, dither_hash(seed, count, i) & 0xFFFFu);
    };
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack32 x_r[2] = {load32(x + at), load32(x + at + 4)}, d_r[2] = {};
        if (d != nullptr) {
            d_r[0] = load32(d + at);
            d_r[1] = load32(d + at + 4);
        }
        float y[kPack];
#pragma unroll
        for (int k = 0; k < kPack; ++k) y[k] = one(at + k, x_r[k / 4].v[k % 4], d_r[k / 4].v[k % 4]);
        put_pack(out + at, y);
    } else {
        for (; at < n; ++at) put(out + at, one(at, x[at], d != nullptr ? d[at] : 0.0f));
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
    materialize_exact_bf16(const Tensor* tensor, uint32_t show, const float* x, const float* d, uint16_t* out,
                    uint64_t n, uint64_t seed) {
    ptx::grid_enter();
    materialize_exact<uint16_t, true>(tensor, show, x, d, out, n, seed);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    materialize_exact_f32(const Tensor* tensor, uint32_t show, const float* x, const float* d, float* out,
                   uint64_t n, uint64_t seed) {
    ptx::grid_enter();
    materialize_exact<float, false>(tensor, show, x, d, out, n, seed);
}

KERNEL_EXPORT(materialize_compact_bf16);
KERNEL_EXPORT(materialize_compact_f32);
KERNEL_EXPORT(materialize_exact_bf16);
KERNEL_EXPORT(materialize_exact_f32);

// What every kernel shares: 16-byte packs, fixed-order sums, the dither hash and the two-plane weight format.
//
// Formula: join(hi, lo, r) = (hi << 16 | lo) - r and split(b, r) = b + r are inverse for every 32-bit pattern
// b, because both wrap modulo 2^32; so a weight survives any number of re-splits bit for bit, NaN and
// infinity included.
// Shape: every sum has an order that follows from the block's size alone, so two runs give equal bytes.
// Rounding: products and sums of the update rules go through the *_rn intrinsics, which nvcc never
// contracts into fused multiply-adds; the CPU backend, which never fuses either, then gives equal bits.
// Source: mean teacher, arXiv 2504.13388, steps 3 to 6; the formats are this project's own.
#pragma once

#include "ptx.cuh"

constexpr int kBlock = 256;  // threads of every block in these files
constexpr int kPack = 8;     // elements a thread handles: 16 bytes of a 16-bit plane
constexpr int kWarp = 32;

// The scalars of one step. The host writes them once before the launches of a step, so that a captured
// graph can be replayed with new values; norm_finish fills in `clip`, `norm`, `nonfinite` and `apply`.
// 80 bytes, no padding; all fields are 4 bytes wide.
struct Step {
    float lr;            // per step
    float momentum;      // SGD's m, or AdamW's beta1
    float damping;
    float teacher_rate;  // delta
    float max_norm;      // the clip threshold; not above 0: no clipping
    float clip;          // c, out
    float norm;          // |g|_2, out
    uint32_t nonfinite;  // elements of the gradient that are NaN or infinite, out
    uint32_t apply;      // 0: the update kernels leave every byte as it is, out
    uint32_t first;      // 1: momentum starts as the gradient, what lies in its buffer is not read
    uint32_t seed_lo;
    uint32_t seed_hi;
    uint32_t step_old;   // the step whose dither the planes carry now
    uint32_t step_new;   // the step whose dither they shall carry
    float beta2;
    float eps;
    float weight_decay;
    float bias1;         // 1 - beta1^t
    float bias2;         // 1 - beta2^t
    uint32_t reserved;
};
static_assert(sizeof(Step) == 80, "the host writes Step by this layout");

// The fp16 scale of one tensor's drift: stored value = d * 2^exponent. Device resident, 16 bytes.
struct DriftScale {
    int32_t exponent;       // of what is stored now
    int32_t exponent_next;  // of what the update shall store
    uint32_t max_bits;      // max |d| after the update, as the bits of a float
    uint32_t saturated;     // elements that were clamped; the run must stop when it is not 0
};
static_assert(sizeof(DriftScale) == 16, "the host reads DriftScale by this layout");

// Eight 16-bit values; loads and stores claim 16-byte alignment, which the arena grants every tensor.
struct alignas(16) Pack16 {
    uint16_t v[kPack];
};

// Four fp32 values, with the same claim.
struct alignas(16) Pack32 {
    float v[4];
};

__device__ __forceinline__ Pack16 load16(const uint16_t* p) {
    // Aligned: p is a tensor's base (256 bytes) plus a multiple of kPack elements.
    uint4 raw = *reinterpret_cast<const uint4*>(p);
    Pack16 out;
    *reinterpret_cast<uint4*>(&out) = raw;
    return out;
}

__device__ __forceinline__ void store16(uint16_t* p, const Pack16& pack) {
    // Aligned as in load16.
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&pack);
}

__device__ __forceinline__ Pack32 load32(const float* p) {
    // Aligned: p is a tensor's base plus a multiple of four elements.
    float4 raw = *reinterpret_cast<const float4*>(p);
    return Pack32{{raw.x, raw.y, raw.z, raw.w}};
}

__device__ __forceinline__ void store32(float* p, const Pack32& pack) {
    // Aligned as in load32.
    *reinterpret_cast<float4*>(p) = make_float4(pack.v[0], pack.v[1], pack.v[2], pack.v[3]);
}

__device__ __forceinline__ float bf16_to_float(uint16_t bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

__device__ __forceinline__ uint16_t float_to_bf16_rne(float x) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

__device__ __forceinline__ float fp16_to_float(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}

// The one hash of dithering and stochastic rounding. Bits 0 to 15 are the weight's dither, bits 16 to 31
// the momentum's rounding bits: disjoint, so the two roundings are independent.
// `index` is the parameter's place in the whole model, not in its tensor.
__device__ __forceinline__ uint32_t dither_hash(uint32_t seed_lo, uint32_t seed_hi, uint32_t step,
                                                uint64_t index) {
    uint32_t x = static_cast<uint32_t>(index) ^
                 (static_cast<uint32_t>(index >> 32) * 0x9E3779B9u) ^ seed_lo;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    // Added behind the first mix: the steps' noises are not permutations of one another.
    x += step * 0x9E3779B9u + seed_hi;
    x *= 0xC2B2AE35u;
    x ^= x >> 16;
    x *= 0x27D4EB2Fu;
    x ^= x >> 15;
    return x;
}

// The second moment needs rounding bits of its own; a flipped seed gives an independent draw.
constexpr uint32_t kSecondMomentSeed = 0x9E3779B9u;

__device__ __forceinline__ float theta_join(uint16_t hi, uint16_t lo, uint32_t dither) {
    return __uint_as_float((static_cast<uint32_t>(hi) << 16 | lo) - dither);
}

__device__ __forceinline__ void theta_split(float theta, uint32_t dither, uint16_t& hi,
                                            uint16_t& lo) {
    uint32_t b = __float_as_uint(theta) + dither;
    hi = static_cast<uint16_t>(b >> 16);
    lo = static_cast<uint16_t>(b);
}

// Rounds x to bf16 up or down with the odds of its distance; `bits` are 16 uniform random bits.
// A finite x whose magnitude is at most the largest bf16 stays finite. NaN and infinity are cut, not
// dithered: adding bits could carry a NaN into a number.
__device__ __forceinline__ uint16_t float_to_bf16_stochastic(float x, uint32_t bits) {
    uint32_t b = __float_as_uint(x);
    bool finite = (b & 0x7F800000u) != 0x7F800000u;
    uint32_t rounded = b + bits;
    bool overflow = (rounded & 0x7F800000u) == 0x7F800000u;
    uint32_t cut = (!finite && (b & 0x007FFFFFu) != 0) ? (b | 0x00400000u) : b;
    return static_cast<uint16_t>(((finite && !overflow) ? rounded : cut) >> 16);
}

// 2^e as a float, for e in [-126, 127]: exact, without a call.
__device__ __forceinline__ float exp2_exact(int32_t e) {
    return __uint_as_float(static_cast<uint32_t>(e + 127) << 23);
}

// Sums over the 32 lanes by a fixed tree; every lane gets the sum.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    }
    return x;
}

__device__ __forceinline__ uint32_t warp_sum(uint32_t x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    }
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    }
    return x;
}

__device__ __forceinline__ uint32_t warp_max(uint32_t x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x = max(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
    }
    return x;
}

// Sums over the kBlock threads; every thread of the block must call it, thread 0 alone gets the sum.
// Safe to call repeatedly with different T, and in loops.
template <typename T>
__device__ __forceinline__ T block_sum(T x) {
    __shared__ T warp_s[kBlock / kWarp];
    x = warp_sum(x);
    // Thread 0 may still read warp_s from the call before.
    __syncthreads();
    if (threadIdx.x % kWarp == 0) warp_s[threadIdx.x / kWarp] = x;
    // All warps' sums must be there before thread 0 adds them.
    __syncthreads();
    T sum = T(0);
    if (threadIdx.x == 0) {
#pragma unroll
        for (int w = 0; w < kBlock / kWarp; ++w) sum += warp_s[w];
    }
    return sum;
}

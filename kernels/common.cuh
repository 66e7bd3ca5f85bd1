// Shared by all kernels: 16-byte packs, fixed-order sums, the dither hash and the two-plane weight format.
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

// The scalars of one step, in device memory, so that a captured graph can be replayed with new values. The host
// writes the first part before a step; grad_norm_step writes the second. 152 bytes, no padding.
struct Step {
    double lr;
    double damping;
    double teacher_rate;   // delta
    double max_grad_norm;  // the clip threshold; infinite for never
    double momentum;       // SGD's m
    double moments_bound;  // AdamW: no step's part made by moments is larger
    double decay_bound;    // AdamW: lr |weight_decay|
    // The rule's numbers as the update reads them; the CPU backend rounds the same f64 values to fp32.
    float sgd_lr;
    float sgd_momentum;
    float one_minus_b1;
    float b2;
    float one_minus_b2;
    float root_correction;  // sqrt(1 - b2^t)
    float eps;
    float step_size;  // lr / (1 - b1^t)
    float decay;      // lr weight_decay
    float keep;       // 1 - lr weight_decay
    float clamp;      // moments_bound
    uint32_t adam;    // 1: AdamW, 0: SGD

    double grad_norm;    // |g|_2
    double clip;         // c
    float pull_clip;     // c
    float pull_damping;  // damping c
    float pull_rate;     // delta c
    float pull_keep;     // 1 - delta c
    uint32_t apply;      // 0: the update kernels leave every byte as it is
    uint32_t first_bad;  // the first parameter whose gradient is not finite everywhere; ~0: none
    uint64_t nonfinite;  // how many of its entries are not
};
static_assert(sizeof(Step) == 152, "the host writes Step by this layout");

// The numbers of a tensor next to its planes. 56 bytes.
struct Tensor {
    uint64_t counter;       // updates so far; the planes carry the noise of this count
    double max_drift;       // max |d|
    double max_moment;      // max |u| of the first moment as stored
    double max_theta;       // max |theta|
    int32_t exponent;       // the drift is stored times 2^exponent
    int32_t exponent_next;  // of what the update at work stores
    // Maxima of stored bits in the update at work: fp16 drift, bf16 first moment, fp32 theta.
    uint32_t seen_drift;
    uint32_t seen_moment;
    uint32_t seen_theta;
    uint32_t reserved;
};
static_assert(sizeof(Tensor) == 56, "the host writes Tensor by this layout");

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

// Storage to fp32 and back, to nearest even: bf16 as its bits, fp32 as itself.
__device__ __forceinline__ float widen(uint16_t x) { return bf16_to_float(x); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ void narrow(float x, uint16_t& out) { out = float_to_bf16_rne(x); }
__device__ __forceinline__ void narrow(float x, float& out) { out = x; }

__device__ __forceinline__ float fp16_to_float(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}

// The one hash of dithering and stochastic rounding: 32 random bits of element `index` of its tensor after `count`
// updates. Bits 0 to 15 are the weight's dither, bits 16 to 31 the first moment's rounding bits: disjoint, so the
// two roundings are independent. `seed` is the tensor's own. src/ops/format.rs has the same integer operations.
__device__ __forceinline__ uint32_t dither_hash(uint64_t seed, uint32_t count, uint64_t index) {
    uint32_t x = static_cast<uint32_t>(index) ^
                 (static_cast<uint32_t>(index >> 32) * 0x9E3779B9u) ^ static_cast<uint32_t>(seed);
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    // Added behind the first mix: the steps' noises are not permutations of one another.
    x += count * 0x9E3779B9u + static_cast<uint32_t>(seed >> 32);
    x *= 0xC2B2AE35u;
    x ^= x >> 16;
    x *= 0x27D4EB2Fu;
    x ^= x >> 15;
    return x;
}

// Draws the rounding bits of the second moment from the noise, independent of both its halves.
__device__ __forceinline__ uint32_t dither_remix(uint32_t noise) {
    uint32_t x = (noise ^ (noise >> 15)) * 0x2C1B3C6Du;
    return ((x ^ (x >> 12)) * 0x297A2D39u) >> 16;
}

// The step whose noise evaluation and export round by (src/ops/format.rs, EVALUATION).
constexpr uint32_t kEvaluation = 0xFFFFFFFFu;

__device__ __forceinline__ float theta_join(uint16_t hi, uint16_t lo, uint32_t dither) {
    return __uint_as_float((static_cast<uint32_t>(hi) << 16 | lo) - dither);
}

__device__ __forceinline__ void theta_split(float theta, uint32_t dither, uint16_t& hi,
                                            uint16_t& lo) {
    uint32_t b = __float_as_uint(theta) + dither;
    hi = static_cast<uint16_t>(b >> 16);
    lo = static_cast<uint16_t>(b);
}

// Rounds to bf16 under 16 rounding bits: stochastic for random ones.
__device__ __forceinline__ uint16_t float_to_bf16_dithered(float x, uint32_t bits) {
    return static_cast<uint16_t>((__float_as_uint(x) + bits) >> 16);
}

// 2^e as a float, for e in [-126, 127]: exact, without a call.
__device__ __forceinline__ float exp2_exact(int32_t e) {
    return __uint_as_float(static_cast<uint32_t>(e + 127) << 23);
}

// The result of one pass over a gradient. 24 bytes.
struct Scan {
    double sum_sq;       // sum of squares
    uint64_t nonfinite;  // entries that are NaN or infinite
    uint32_t max_bits;   // largest magnitude, NaN apart, as the bits of a float
    uint32_t reserved;
};
static_assert(sizeof(Scan) == 24, "the host writes Scan by this layout");

constexpr uint32_t kInfinity = 0x7F800000u;  // the bits of a float

// The share of a part of a gradient in its scan. 16 bytes.
struct alignas(16) Partial {
    double sum_sq;
    uint32_t max_bits;
    uint32_t nonfinite;
};
static_assert(sizeof(Partial) == 16, "the host makes room for Partial by this size");

// A trainable tensor of the step: where its numbers lie, and the partial scans of its gradient. 32 bytes.
struct Entry {
    Tensor* tensor;
    const Partial* scans;
    uint32_t partials;  // none where its gradient is empty
    uint32_t index;     // its place among all parameters
    uint32_t kept;      // 0: in fp32; 1: in two planes of 16 bits; 2: in one
    uint32_t reserved;
};
static_assert(sizeof(Entry) == 32, "the host writes Entry by this layout");

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

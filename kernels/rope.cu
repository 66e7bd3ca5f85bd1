// Rotary positions on the query and key heads of qkv rows, in place.
//
// Pair (i, i + R/2) of each head turns by the angle a = position * frequency_i: (x, y) -> (x cos a - y sin a,
// y cos a + x sin a); the backward pass turns by -a.
// Shape: a thread turns eight pairs of one head; cosines and sines come from fp32 tables [positions, R/2] that the
// host makes in f64, so no angle is ever rounded to fp32. The tables are small and stay in the L2 cache.
// Bytes: every rotated number is read and written once. Roof: device memory.
// Source: RoFormer, arXiv 2104.09864, in the half-split pairing of the Hugging Face Llama.
#include "rows.cuh"

template <typename T>
__device__ __forceinline__ void rope(T* qkv, const uint32_t* positions, const float* cosines,
                                     const float* sines, uint32_t n, uint32_t width, uint32_t heads,
                                     uint32_t d, uint32_t half, float sign) {
    const uint32_t packs = (half + kPack - 1) / kPack;
    const uint64_t index = static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (index >= static_cast<uint64_t>(n) * heads * packs) return;
    const uint32_t at = static_cast<uint32_t>(index % packs) * kPack;
    const uint64_t item = index / packs;
    const uint64_t row = item / heads;
    const uint32_t head = static_cast<uint32_t>(item % heads);
    // Aligned: heads and halves are then multiples of eight numbers.
    const bool vec = half % kPack == 0 && d % kPack == 0;
    T* first = qkv + row * width + static_cast<uint64_t>(head) * d;
    const uint64_t angles = static_cast<uint64_t>(positions[row]) * half;
    float x_r[kPack], y_r[kPack], cos_r[kPack], sin_r[kPack];
    load_pack(first, at, half, vec, x_r);
    load_pack(first + half, at, half, vec, y_r);
    load_pack(cosines + angles, at, half, vec, cos_r);
    load_pack(sines + angles, at, half, vec, sin_r);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        float x = x_r[k], y = y_r[k], s = sin_r[k] * sign;
        x_r[k] = x * cos_r[k] - y * s;
        y_r[k] = y * cos_r[k] + x * s;
    }
    store_pack(first, at, half, vec, x_r);
    store_pack(first + half, at, half, vec, y_r);
}

// Grid: ceil(n * heads * ceil(half / 8) / 256) blocks; `heads` counts queries and keys.
extern "C" __global__ void __launch_bounds__(kBlock)
    rope_bf16(uint16_t* qkv, const uint32_t* positions, const float* cosines, const float* sines,
              uint32_t n, uint32_t width, uint32_t heads, uint32_t d, uint32_t half, float sign) {
    ptx::grid_enter();
    rope(qkv, positions, cosines, sines, n, width, heads, d, half, sign);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    rope_f32(float* qkv, const uint32_t* positions, const float* cosines, const float* sines,
             uint32_t n, uint32_t width, uint32_t heads, uint32_t d, uint32_t half, float sign) {
    ptx::grid_enter();
    rope(qkv, positions, cosines, sines, n, width, heads, d, half, sign);
}

KERNEL_EXPORT(rope_bf16);
KERNEL_EXPORT(rope_f32);

// Shared by the row kernels: rows read and written in packs of eight numbers, and sums over a row's threads.
//
// A thread owns packs t, t + threads, ... of its row, so a warp's accesses lie side by side. A pack is one (bf16) or
// two (fp32) 16-byte accesses where every row starts at a multiple of 16 bytes (`vec`), else eight guarded ones.
#pragma once

#include "common.cuh"

__device__ __forceinline__ void load_whole(const uint16_t* p, float (&out)[kPack]) {
    Pack16 pack = load16(p);
#pragma unroll
    for (int k = 0; k < kPack; ++k) out[k] = bf16_to_float(pack.v[k]);
}

__device__ __forceinline__ void load_whole(const float* p, float (&out)[kPack]) {
    Pack32 a = load32(p), b = load32(p + 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        out[k] = a.v[k];
        out[k + 4] = b.v[k];
    }
}

__device__ __forceinline__ void store_whole(uint16_t* p, const float (&x)[kPack]) {
    Pack16 pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack.v[k] = float_to_bf16_rne(x[k]);
    store16(p, pack);
}

__device__ __forceinline__ void store_whole(float* p, const float (&x)[kPack]) {
    store32(p, Pack32{{x[0], x[1], x[2], x[3]}});
    store32(p + 4, Pack32{{x[4], x[5], x[6], x[7]}});
}

// Reads entries at, at + 1, ... of a row of `width`; zeros behind its end. `vec` claims that width % 8 == 0 and
// that the row starts at a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ void load_pack(const T* row, uint32_t at, uint32_t width, bool vec,
                                          float (&out)[kPack]) {
    if (vec && at < width) {
        load_whole(row + at, out);
        return;
    }
#pragma unroll
    for (int k = 0; k < kPack; ++k) out[k] = at + k < width ? widen(row[at + k]) : 0.0f;
}

template <typename T>
__device__ __forceinline__ void store_pack(T* row, uint32_t at, uint32_t width, bool vec,
                                           const float (&x)[kPack]) {
    if (vec && at < width) {
        store_whole(row + at, x);
        return;
    }
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        if (at + k < width) narrow(x[k], row[at + k]);
    }
}

// Sums over the threads of a row, a warp or the whole block; all of them call it and all get the sum.
template <int THREADS>
__device__ __forceinline__ float row_sum(float x) {
    x = warp_sum(x);
    if (THREADS == kWarp) return x;
    __shared__ float row_sum_s[THREADS / kWarp];
    // The sums of the call before may still be read.
    __syncthreads();
    if (threadIdx.x % kWarp == 0) row_sum_s[threadIdx.x / kWarp] = x;
    // All warps' sums must be there before they are added.
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < THREADS / kWarp; ++w) sum += row_sum_s[w];
    return sum;
}

// The epilogue of the GEMM of gate | up, whichever kernel computes it: SwiGLU of the sums as they are stored.
#pragma once

#include "gemm.cuh"
#include "swiglu.cuh"

// Rounds to storage and back.
template <typename T>
__device__ __forceinline__ float as_stored(float x) {
    T stored;
    narrow(x, stored);
    return widen(stored);
}

template <typename T, class S>
struct Gated {
    static constexpr bool kHalves = true;
    static constexpr int kBatch = 1;
    struct Held {};
    T* gate_up;
    T* y;
    const T* bias;
    uint32_t f;
    bool keep, packed;

    __device__ __forceinline__ void begin(Held&, uint32_t, uint32_t, uint32_t) const {}

    __device__ __forceinline__ void end(const Held&, uint32_t row, uint32_t col, uint32_t count,
                                        const float* x) const {
        float gate[kChunk], up[kChunk], out[kChunk];
        sums_of(x, bias == nullptr ? bias : bias + col, count, gate);
        sums_of(x + S::BN / 2, bias == nullptr ? bias : bias + f + col, count, up);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) out[e] = swiglu_of(as_stored<T>(gate[e]), as_stored<T>(up[e]));
        if (keep) {
            T* at = gate_up + row * 2ull * f + col;
            store_row(at, count, packed, gate);
            store_row(at + f, count, packed, up);
        }
        store_row(y + row * static_cast<uint64_t>(f) + col, count, packed, out);
    }
};

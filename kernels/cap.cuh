// A soft cap: z' = cap tanh(z / cap), as Gemma-2 has one on scores and one on logits.
#pragma once

#include "common.cuh"

// Numbers as they are, where code is compiled for both.
struct NoCap {
    __device__ __forceinline__ explicit NoCap(float) {}
    __device__ __forceinline__ bool on() const { return false; }
    __device__ __forceinline__ float at(float z) const { return z; }
    __device__ __forceinline__ float slope(float) const { return 1.0f; }
    __device__ __forceinline__ float pair(float&, float&) const { return 1.0f; }
};

struct Cap {
    float cap, inverse;  // both 0: none

    __device__ __forceinline__ explicit Cap(float cap) : cap(cap), inverse(cap != 0.0f ? 1.0f / cap : 0.0f) {}

    __device__ __forceinline__ bool on() const { return cap != 0.0f; }

    // Its product is never fused with what a caller subtracts: equal numbers must have equal capped ones, so that the
    // difference from the largest of a row is 0 where it is that one.
    __device__ __forceinline__ float at(float z) const { return __fmul_rn(cap, tanhf(z * inverse)); }

    // How much of a gradient at a capped number goes on.
    __device__ __forceinline__ float slope(float capped) const {
        const float t = capped * inverse;
        return fmaf(-t, t, 1.0f);
    }

    // Turns `d`, by how much a number is larger than `r`, into by how much it is so when both are capped, and `r` into the
    // capped one; returns how much of a gradient goes on to `d`. tanh a - tanh b = tanh(a - b) (1 - tanh a tanh b): what
    // cancels in the difference has cancelled in `d`.
    __device__ __forceinline__ float pair(float& d, float& r) const {
        const float own = tanhf((r + d) * inverse), other = tanhf(r * inverse);
        d = __fmul_rn(cap * tanhf(d * inverse), fmaf(-own, other, 1.0f));
        r = __fmul_rn(cap, other);
        return fmaf(-own, own, 1.0f);
    }
};

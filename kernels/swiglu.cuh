// SwiGLU of one number and its gradient, for the elementwise kernels and for the products that end in them.
#pragma once

#include "common.cuh"

// Returns 1 / (1 + exp(-x)) to a few units in the last place of fp32: two approximations of the special function unit,
// a third of the instructions of expf and a rounded division, which a product's epilogue would be seen to wait for.
__device__ __forceinline__ float sigmoid(float x) {
    constexpr float kLog2e = 1.44269504f;
    return __fdividef(1.0f, 1.0f + ptx::exp2_approx(-kLog2e * x));
}

// Returns silu(gate) up with silu(g) = g / (1 + exp(-g)); a gate of -infinity counts as 0.
__device__ __forceinline__ float swiglu_of(float gate, float up) {
    return gate * sigmoid(gate) * up;
}

// Turns the gradient `y` of an output into that output, bit for bit swiglu_of's, and gate and up into their gradients:
// dgate = dy up (s + silu (1 - s)) with s = 1 / (1 + exp(-gate)), dup = dy silu.
__device__ __forceinline__ void swiglu_turn(float& gate, float& up, float& y) {
    float s = sigmoid(gate);
    float silu = gate * s, dy = y;
    y = silu * up;
    gate = dy * up * (s + silu * (1.0f - s));
    up = dy * silu;
}

// Shared by the update kernels: the step's numbers, moments, and the maxima that the next step's bounds rest on.
#pragma once

#include "common.cuh"

// The numbers of `Step` that a thread needs, read once.
struct Rule {
    float clip, damping, rate, keep;
    float lr, momentum;
};

__device__ __forceinline__ Rule rule_of(const Step& step) {
    return Rule{step.pull_clip, step.pull_damping, step.pull_rate,
                step.pull_keep, step.sgd_lr,       step.sgd_momentum};
}

struct Adam {
    float one_minus_b1, b2, one_minus_b2, root_correction, eps, step_size, decay, keep, clamp;
};

__device__ __forceinline__ Adam adam_of(const Step& step) {
    return Adam{step.one_minus_b1, step.b2,        step.one_minus_b2, step.root_correction, step.eps,
                step.step_size,    step.decay,     step.keep,         step.clamp};
}

__device__ __forceinline__ float second_moment(const Adam& adam, float v, float g) {
    return __fadd_rn(__fmul_rn(adam.b2, v), __fmul_rn(__fmul_rn(adam.one_minus_b2, g), g));
}

__device__ __forceinline__ float first_moment(const Adam& adam, float m, float g) {
    return __fadd_rn(m, __fmul_rn(adam.one_minus_b1, __fsub_rn(g, m)));
}

__device__ __forceinline__ float spread(const Adam& adam, float v) {
    return __fadd_rn(__fdiv_rn(__fsqrt_rn(v), adam.root_correction), adam.eps);
}

// Maxima of stored bits: what the next step's bounds rest on.
struct Seen {
    uint32_t drift = 0;
    uint32_t moment = 0;
    uint32_t theta = 0;
};

__device__ __forceinline__ void raise(uint32_t* to, uint32_t top) {
    // Most warps lie below the maximum that is already there; the plain read spares their atomics.
    if (top > *static_cast<volatile uint32_t*>(to)) atomicMax(to, top);
}

// Every lane of the warp must call it.
__device__ __forceinline__ void report(Tensor* tensor, const Seen& seen) {
    uint32_t drift = __reduce_max_sync(0xFFFFFFFFu, seen.drift);
    uint32_t moment = __reduce_max_sync(0xFFFFFFFFu, seen.moment);
    uint32_t theta = __reduce_max_sync(0xFFFFFFFFu, seen.theta);
    if (threadIdx.x % kWarp == 0) {
        raise(&tensor->seen_drift, drift);
        raise(&tensor->seen_moment, moment);
        raise(&tensor->seen_theta, theta);
    }
}

// Moves a student by `s` and stores it under `noise`; returns how far it moved. Without LOW that follows from the rounding,
// as the drift is to the student that there is.
template <bool LOW>
__device__ __forceinline__ float move_student(float& theta, float s, uint32_t noise, uint16_t& hi, uint16_t& lo) {
    const float before = theta;
    theta = __fadd_rn(theta, s);
    if (LOW) {
        theta_split(theta, noise & 0xFFFFu, hi, lo);
        return s;
    }
    hi = float_to_bf16_dithered(theta, noise & 0xFFFFu);
    theta = bf16_to_float(hi);
    return __fsub_rn(theta, before);
}

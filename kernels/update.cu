// The update: clipping, damping, momentum SGD or AdamW, and the teacher's step, in one pass in place.
//
// With c = step.clip:  g = c*g + (damping*c)*d
//   SGD:    u = m*u + g (u = g at the first step);  s = -(lr*u)
//   AdamW:  u = b1*u + (1-b1)*g;  v = b2*v + (1-b2)*g*g;
//           s = -(lr*weight_decay*theta) - (lr/bias1)*u / (sqrt(v)/sqrt(bias2) + eps)
//   theta += s;  d = (1 - delta*c) * (d + s)
// d = theta - teacher. `compact` keeps theta in two dithered planes, d in fp16 with a power-of-two scale per
// tensor, the moments in bf16 with stochastic rounding; `exact` keeps theta, teacher and moments in fp32 and
// moves the teacher itself.
// Shape: elementwise, eight parameters a thread, one 16-byte access per plane and direction; the last
// n mod 8 parameters go through the same code, one by one. No shared memory; everything in fp32 registers.
// Bytes a parameter, read + written: SGD compact 10 + 8 with bf16 gradients (12 + 8 with fp32), AdamW compact
// 12 + 10, SGD exact 16 + 12, AdamW exact 20 + 16. Roof: device memory; aims at 90 % of a copy's rate.
// Determinism: the only atomics are integer max and add, whose result has no order.
// A step with step.apply == 0 changes nothing: a gradient that is not finite never reaches the weights.
// Source: arXiv 2504.13388 (Klochkov 2025), the reference's run_epoch; torch.optim.SGD and AdamW.
#include "common.cuh"

constexpr float kFp16Max = 65504.0f;
// The largest stored drift is kept in [2^8, 2^9): one step may grow it a hundredfold before it saturates.
constexpr int kDriftTarget = 8;
constexpr int kDriftExponentMin = -8;
constexpr int kDriftExponentMax = 40;

// What a thread needs of `Step`, read once.
struct Rule {
    float lr, clip, momentum, damp, keep;
    bool first;
};

__device__ __forceinline__ Rule rule_of(const Step& step) {
    Rule rule;
    rule.lr = step.lr;
    rule.clip = step.clip;
    rule.momentum = step.momentum;
    rule.damp = __fmul_rn(step.damping, step.clip);
    rule.keep = __fsub_rn(1.0f, __fmul_rn(step.teacher_rate, step.clip));
    rule.first = step.first != 0;
    return rule;
}

__device__ __forceinline__ float damped(const Rule& rule, float g, float d) {
    return __fadd_rn(__fmul_rn(rule.clip, g), __fmul_rn(rule.damp, d));
}

// Returns the step s and replaces the momentum u.
__device__ __forceinline__ float sgd(const Rule& rule, float g, float& u) {
    u = rule.first ? g : __fadd_rn(__fmul_rn(rule.momentum, u), g);
    return -__fmul_rn(rule.lr, u);
}

struct Adam {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps, decay, rate, root_bias2;
};

__device__ __forceinline__ Adam adam_of(const Step& step) {
    Adam adam;
    adam.beta1 = step.momentum;
    adam.beta2 = step.beta2;
    adam.one_minus_beta1 = __fsub_rn(1.0f, step.momentum);
    adam.one_minus_beta2 = __fsub_rn(1.0f, step.beta2);
    adam.eps = step.eps;
    adam.decay = __fmul_rn(step.lr, step.weight_decay);
    adam.rate = __fdiv_rn(step.lr, step.bias1);
    adam.root_bias2 = __fsqrt_rn(step.bias2);
    return adam;
}

// Returns the step s and replaces both moments; at the first step both start from 0.
__device__ __forceinline__ float adamw(const Adam& adam, bool first, float g, float theta, float& u,
                                       float& v) {
    float u0 = first ? 0.0f : u;
    float v0 = first ? 0.0f : v;
    u = __fadd_rn(__fmul_rn(adam.beta1, u0), __fmul_rn(adam.one_minus_beta1, g));
    v = __fadd_rn(__fmul_rn(adam.beta2, v0), __fmul_rn(adam.one_minus_beta2, __fmul_rn(g, g)));
    float below = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), adam.root_bias2), adam.eps);
    float pull = __fmul_rn(adam.decay, theta);
    return -__fadd_rn(pull, __fmul_rn(adam.rate, __fdiv_rn(u, below)));
}

// One thread's share of what the drift's scale needs to know.
struct DriftWatch {
    uint32_t max_bits = 0;
    uint32_t saturated = 0;
};

__device__ __forceinline__ uint16_t drift_store(float d, float scale, DriftWatch& watch) {
    // Bits of non-negative floats order like the floats, and NaN lies above infinity: nothing hides.
    watch.max_bits = max(watch.max_bits, __float_as_uint(d) & 0x7FFFFFFFu);
    float scaled = __fmul_rn(d, scale);
    if (!(fabsf(scaled) <= kFp16Max)) {
        watch.saturated += 1;
        scaled = copysignf(kFp16Max, scaled);
    }
    return __half_as_ushort(__float2half_rn(scaled));
}

// Every lane of the warp must call it.
__device__ __forceinline__ void drift_report(DriftScale* scale, const DriftWatch& watch) {
    uint32_t top = warp_max(watch.max_bits);
    uint32_t saturated = warp_sum(watch.saturated);
    if (threadIdx.x % kWarp == 0) {
        // Most warps lie below the maximum that is already there; the plain read spares their atomics.
        if (top > *static_cast<volatile uint32_t*>(&scale->max_bits)) {
            atomicMax(&scale->max_bits, top);
        }
        if (saturated != 0) atomicAdd(&scale->saturated, saturated);
    }
}

template <typename G>
__device__ __forceinline__ void load_gradient(const G* g, uint64_t at, float (&out)[kPack]);

template <>
__device__ __forceinline__ void load_gradient(const uint16_t* g, uint64_t at, float (&out)[kPack]) {
    Pack16 pack = load16(g + at);
#pragma unroll
    for (int k = 0; k < kPack; ++k) out[k] = bf16_to_float(pack.v[k]);
}

template <>
__device__ __forceinline__ void load_gradient(const float* g, uint64_t at, float (&out)[kPack]) {
    Pack32 a = load32(g + at), b = load32(g + at + 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        out[k] = a.v[k];
        out[k + 4] = b.v[k];
    }
}

__device__ __forceinline__ float gradient_at(const uint16_t* g, uint64_t at) {
    return bf16_to_float(g[at]);
}

__device__ __forceinline__ float gradient_at(const float* g, uint64_t at) { return g[at]; }

// Everything that is the same for all parameters of a compact tensor.
template <bool ADAM>
struct Compact {
    Rule rule;
    Adam adam;
    uint32_t seed_lo, seed_hi, step_old, step_new;
    float drift_read, drift_write;

    __device__ __forceinline__ Compact(const Step& step, const DriftScale& scale)
        : rule(rule_of(step)),
          seed_lo(step.seed_lo),
          seed_hi(step.seed_hi),
          step_old(step.step_old),
          step_new(step.step_new),
          drift_read(exp2_exact(-scale.exponent)),
          drift_write(exp2_exact(scale.exponent_next)) {
        if (ADAM) adam = adam_of(step);
    }

    __device__ __forceinline__ void one(uint64_t index, float g, uint16_t& hi, uint16_t& lo,
                                        uint16_t& d16, uint16_t& u16, uint16_t& v16,
                                        DriftWatch& watch) const {
        uint32_t old_hash = dither_hash(seed_lo, seed_hi, step_old, index);
        uint32_t new_hash = dither_hash(seed_lo, seed_hi, step_new, index);
        float theta = theta_join(hi, lo, old_hash & 0xFFFFu);
        float d = __fmul_rn(fp16_to_float(d16), drift_read);
        float u = bf16_to_float(u16);
        g = damped(rule, g, d);
        float s;
        if (ADAM) {
            float v = bf16_to_float(v16);
            s = adamw(adam, rule.first, g, theta, u, v);
            uint32_t v_hash = dither_hash(seed_lo, seed_hi ^ kSecondMomentSeed, step_new, index);
            v16 = float_to_bf16_stochastic(v, v_hash >> 16);
        } else {
            s = sgd(rule, g, u);
        }
        theta_split(__fadd_rn(theta, s), new_hash & 0xFFFFu, hi, lo);
        d16 = drift_store(__fmul_rn(rule.keep, __fadd_rn(d, s)), drift_write, watch);
        u16 = float_to_bf16_stochastic(u, new_hash >> 16);
    }
};

template <bool ADAM, typename G>
__device__ __forceinline__ void update_compact(const Step* step, DriftScale* scale, const G* g,
                                               uint16_t* hi, uint16_t* lo, uint16_t* d, uint16_t* u,
                                               uint16_t* v, uint64_t n, uint64_t base) {
    // The same word for all threads of the grid, so whole warps leave together.
    if (step->apply == 0) return;
    Compact<ADAM> rule(*step, *scale);
    DriftWatch watch;
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        float grad_r[kPack];
        load_gradient(g, at, grad_r);
        Pack16 hi_r = load16(hi + at), lo_r = load16(lo + at);
        Pack16 d_r = load16(d + at), u_r = load16(u + at), v_r = {};
        if (ADAM) v_r = load16(v + at);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            rule.one(base + at + k, grad_r[k], hi_r.v[k], lo_r.v[k], d_r.v[k], u_r.v[k], v_r.v[k],
                     watch);
        }
        store16(hi + at, hi_r);
        store16(lo + at, lo_r);
        store16(d + at, d_r);
        store16(u + at, u_r);
        if (ADAM) store16(v + at, v_r);
    } else {
        for (; at < n; ++at) {
            uint16_t v_r = ADAM ? v[at] : 0;
            uint16_t hi_r = hi[at], lo_r = lo[at], d_r = d[at], u_r = u[at];
            rule.one(base + at, gradient_at(g, at), hi_r, lo_r, d_r, u_r, v_r, watch);
            hi[at] = hi_r;
            lo[at] = lo_r;
            d[at] = d_r;
            u[at] = u_r;
            if (ADAM) v[at] = v_r;
        }
    }
    drift_report(scale, watch);
}

template <bool ADAM>
__device__ __forceinline__ void update_exact(const Step* step, const float* g, float* theta,
                                             float* teacher, float* u, float* v, uint64_t n) {
    if (step->apply == 0) return;
    const Rule rule = rule_of(*step);
    const float move = __fmul_rn(step->teacher_rate, step->clip);
    Adam adam = {};
    if (ADAM) adam = adam_of(*step);
    auto one = [&](float g1, float& theta1, float& teacher1, float& u1, float& v1) {
        g1 = damped(rule, g1, __fsub_rn(theta1, teacher1));
        float s = ADAM ? adamw(adam, rule.first, g1, theta1, u1, v1) : sgd(rule, g1, u1);
        theta1 = __fadd_rn(theta1, s);
        teacher1 = __fadd_rn(__fmul_rn(rule.keep, teacher1), __fmul_rn(move, theta1));
    };
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * 4;
    if (at + 4 <= n) {
        Pack32 g_r = load32(g + at), theta_r = load32(theta + at);
        Pack32 teacher_r = load32(teacher + at), u_r = load32(u + at), v_r = {};
        if (ADAM) v_r = load32(v + at);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            one(g_r.v[k], theta_r.v[k], teacher_r.v[k], u_r.v[k], v_r.v[k]);
        }
        store32(theta + at, theta_r);
        store32(teacher + at, teacher_r);
        store32(u + at, u_r);
        if (ADAM) store32(v + at, v_r);
    } else {
        for (; at < n; ++at) {
            float v_r = ADAM ? v[at] : 0.0f;
            one(g[at], theta[at], teacher[at], u[at], v_r);
            if (ADAM) v[at] = v_r;
        }
    }
}

// `n` parameters of one tensor; `base` is the model-wide index of its first. Grid: ceil(n / 2048) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    update_sgd_compact_bf16(const Step* step, DriftScale* scale, const uint16_t* g, uint16_t* hi,
                            uint16_t* lo, uint16_t* d, uint16_t* u, uint64_t n, uint64_t base) {
    update_compact<false>(step, scale, g, hi, lo, d, u, nullptr, n, base);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    update_sgd_compact_f32(const Step* step, DriftScale* scale, const float* g, uint16_t* hi,
                           uint16_t* lo, uint16_t* d, uint16_t* u, uint64_t n, uint64_t base) {
    update_compact<false>(step, scale, g, hi, lo, d, u, nullptr, n, base);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    update_adamw_compact_bf16(const Step* step, DriftScale* scale, const uint16_t* g, uint16_t* hi,
                              uint16_t* lo, uint16_t* d, uint16_t* u, uint16_t* v, uint64_t n,
                              uint64_t base) {
    update_compact<true>(step, scale, g, hi, lo, d, u, v, n, base);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    update_adamw_compact_f32(const Step* step, DriftScale* scale, const float* g, uint16_t* hi,
                             uint16_t* lo, uint16_t* d, uint16_t* u, uint16_t* v, uint64_t n,
                             uint64_t base) {
    update_compact<true>(step, scale, g, hi, lo, d, u, v, n, base);
}

// Grid: ceil(n / 1024) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    update_sgd_exact_f32(const Step* step, const float* g, float* theta, float* teacher, float* u,
                         uint64_t n) {
    update_exact<false>(step, g, theta, teacher, u, nullptr, n);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    update_adamw_exact_f32(const Step* step, const float* g, float* theta, float* teacher, float* u,
                           float* v, uint64_t n) {
    update_exact<true>(step, g, theta, teacher, u, v, n);
}

// Makes the update's scale the current one and picks the next from max |d|; runs after the updates of a
// step, one thread a tensor. A maximum of 0 keeps the exponent: nothing is known yet.
extern "C" __global__ void __launch_bounds__(kBlock)
    update_drift_scale(const Step* step, DriftScale* scales, uint32_t tensors) {
    uint32_t tensor = blockIdx.x * kBlock + threadIdx.x;
    if (tensor >= tensors || step->apply == 0) return;
    DriftScale scale = scales[tensor];
    scale.exponent = scale.exponent_next;
    if (scale.max_bits != 0) {
        int32_t top = static_cast<int32_t>(scale.max_bits >> 23) - 127;
        scale.exponent_next = min(max(kDriftTarget - top, kDriftExponentMin), kDriftExponentMax);
    }
    scale.max_bits = 0;
    scales[tensor] = scale;
}

KERNEL_EXPORT(update_sgd_compact_bf16);
KERNEL_EXPORT(update_sgd_compact_f32);
KERNEL_EXPORT(update_adamw_compact_bf16);
KERNEL_EXPORT(update_adamw_compact_f32);
KERNEL_EXPORT(update_sgd_exact_f32);
KERNEL_EXPORT(update_adamw_exact_f32);
KERNEL_EXPORT(update_drift_scale);

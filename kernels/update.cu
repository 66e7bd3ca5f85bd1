// The parameter update: clipping, damping, momentum SGD or AdamW, and the teacher's step, in one pass in place.
//
// With c = step.clip:  g = c*g + (damping*c)*d
//   SGD:    u = m*u + g;  s = -lr*u
//   AdamW:  u += (1-b1)*(g - u);  v = b2*v + (1-b2)*g*g;
//           s = -(lr/(1-b1^t)*u / (sqrt(v)/sqrt(1-b2^t) + eps) + lr*weight_decay*theta)
//   theta += s;  d = (1 - delta*c) * (d + s)
// d = theta - teacher. `compact` keeps theta in two dithered planes, d in fp16 with a power-of-two scale per
// tensor, the moments in bf16 with stochastic rounding; `exact` keeps theta, moments, and teacher or drift in
// fp32. The order of operations is that of src/backend/cpu/update.rs, and results equal its to the bit.
// update_plan picks each drift's scale from bounds on |d| and |s|, so that it cannot saturate; update_finish makes
// the maxima that the pass saw the bounds of the next one.
// Shape: elementwise, eight parameters a thread (exact: four), one 16-byte access per plane and direction; the last
// few parameters go through the same code, one by one. No shared memory; everything in fp32 registers.
// Bytes a parameter, read + written: SGD compact 10 + 8, AdamW compact 12 + 10, SGD exact 16 + 12, AdamW exact
// 20 + 16; without a teacher 2 + 2 less, exact 4 + 4. Roof: device memory; aims at 90 % of a copy's rate.
// Determinism: the only atomics are integer maxima, whose result has no order.
// A step with step.apply == 0 changes nothing: a gradient that is not finite never reaches the weights.
// Source: arXiv 2504.13388 (Klochkov 2025), the reference's run_epoch; torch.optim.SGD and AdamW.
#include "update.cuh"

// Exponents stay where 2^k and 2^-k are normal fp32 numbers.
constexpr int kExponentLimit = 120;
constexpr float kSmallestNormal = 1.17549435e-38f;

// Everything that is the same for all parameters of a compact tensor; without LOW of one whose weights are one plane.
template <bool ADAM, bool DRIFTS, bool LOW>
struct Compact {
    Rule rule;
    Adam adam;
    uint64_t seed;
    uint32_t count;
    float drift_read, drift_write;

    __device__ __forceinline__ Compact(const Step& step, const Tensor& tensor, uint64_t seed)
        : rule(rule_of(step)),
          adam(adam_of(step)),
          seed(seed),
          count(static_cast<uint32_t>(tensor.counter)),
          drift_read(exp2_exact(-tensor.exponent)),
          drift_write(exp2_exact(tensor.exponent_next)) {}

    __device__ __forceinline__ void one(uint64_t index, uint16_t g16, uint16_t& hi, uint16_t& lo,
                                        uint16_t& d16, uint16_t& m16, uint16_t& v16,
                                        Seen& seen) const {
        uint32_t old_noise = dither_hash(seed, count, index);
        uint32_t noise = dither_hash(seed, count + 1, index);
        float theta = LOW ? theta_join(hi, lo, old_noise & 0xFFFFu) : bf16_to_float(hi);
        float d = DRIFTS ? __fmul_rn(fp16_to_float(d16), drift_read) : 0.0f;
        float g = __fadd_rn(__fmul_rn(bf16_to_float(g16), rule.clip), __fmul_rn(rule.damping, d));
        float m = bf16_to_float(m16);
        float s;
        if (ADAM) {
            m = first_moment(adam, m, g);
            float v = second_moment(adam, bf16_to_float(v16), g);
            v16 = float_to_bf16_dithered(v, dither_remix(noise));
            // Kept off zero so that 0 / 0 is 0 with eps = 0.
            float below = fmaxf(spread(adam, v), kSmallestNormal);
            float moved = __fmul_rn(adam.step_size, __fdiv_rn(m, below));
            moved = fminf(fmaxf(moved, -adam.clamp), adam.clamp);
            s = -__fadd_rn(moved, __fmul_rn(adam.decay, theta));
        } else {
            m = __fadd_rn(__fmul_rn(rule.momentum, m), g);
            s = __fmul_rn(-rule.lr, m);
        }
        m16 = float_to_bf16_dithered(m, noise >> 16);
        s = move_student<LOW>(theta, s, noise, hi, lo);
        seen.theta = max(seen.theta, __float_as_uint(theta) & 0x7FFFFFFFu);
        seen.moment = max(seen.moment, m16 & 0x7FFFu);
        if (DRIFTS) {
            float next = __fmul_rn(rule.keep, __fadd_rn(d, s));
            d16 = __half_as_ushort(__float2half_rn(__fmul_rn(next, drift_write)));
            seen.drift = max(seen.drift, d16 & 0x7FFFu);
        }
    }
};

// An empty gradient (`g` null) is all zeros.
template <bool ADAM, bool DRIFTS, bool LOW>
__device__ __forceinline__ void pass_compact(const Step* step, Tensor* tensor, const uint16_t* g,
                                             uint16_t* hi, uint16_t* lo, uint16_t* d, uint16_t* m,
                                             uint16_t* v, uint64_t n, uint64_t seed) {
    const Compact<ADAM, DRIFTS, LOW> rule(*step, *tensor, seed);
    Seen seen;
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack16 g_r = {}, lo_r = {}, d_r = {}, v_r = {};
        if (g != nullptr) g_r = load16(g + at);
        Pack16 hi_r = load16(hi + at), m_r = load16(m + at);
        if (LOW) lo_r = load16(lo + at);
        if (DRIFTS) d_r = load16(d + at);
        if (ADAM) v_r = load16(v + at);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            rule.one(at + k, g_r.v[k], hi_r.v[k], lo_r.v[k], d_r.v[k], m_r.v[k], v_r.v[k], seen);
        }
        store16(hi + at, hi_r);
        if (LOW) store16(lo + at, lo_r);
        store16(m + at, m_r);
        if (DRIFTS) store16(d + at, d_r);
        if (ADAM) store16(v + at, v_r);
    } else {
        for (; at < n; ++at) {
            uint16_t g_r = g != nullptr ? g[at] : uint16_t(0);
            uint16_t d_r = DRIFTS ? d[at] : uint16_t(0);
            uint16_t v_r = ADAM ? v[at] : uint16_t(0);
            uint16_t lo_r = LOW ? lo[at] : uint16_t(0);
            uint16_t hi_r = hi[at], m_r = m[at];
            rule.one(at, g_r, hi_r, lo_r, d_r, m_r, v_r, seen);
            hi[at] = hi_r;
            if (LOW) lo[at] = lo_r;
            m[at] = m_r;
            if (DRIFTS) d[at] = d_r;
            if (ADAM) v[at] = v_r;
        }
    }
    report(tensor, seen);
}

template <bool ADAM, bool LOW>
__device__ __forceinline__ void update_compact(const Step* step, Tensor* tensor, const uint16_t* g,
                                               uint16_t* hi, uint16_t* lo, uint16_t* d, uint16_t* m,
                                               uint16_t* v, uint64_t n, uint64_t seed) {
    // The same words for all threads of the grid, so whole warps branch together.
    if (step->apply == 0) return;
    if (d != nullptr) {
        pass_compact<ADAM, true, LOW>(step, tensor, g, hi, lo, d, m, v, n, seed);
    } else {
        pass_compact<ADAM, false, LOW>(step, tensor, g, hi, lo, d, m, v, n, seed);
    }
}

// How an exact teacher is kept.
enum Teacher { kNone, kFull, kDrift };

template <bool ADAM, int TEACHER>
__device__ __forceinline__ void one_exact(const Rule& rule, const Adam& adam, float g, float& theta,
                                          float& ref, float& m, float& v) {
    float force = __fmul_rn(g, rule.clip);
    if (TEACHER == kFull) force = __fadd_rn(force, __fmul_rn(rule.damping, __fsub_rn(theta, ref)));
    if (TEACHER == kDrift) force = __fadd_rn(force, __fmul_rn(rule.damping, ref));
    float s;
    if (ADAM) {
        m = first_moment(adam, m, force);
        v = second_moment(adam, v, force);
        float moved = __fmul_rn(adam.step_size, __fdiv_rn(m, spread(adam, v)));
        s = -__fadd_rn(moved, __fmul_rn(adam.decay, theta));
        theta = __fsub_rn(__fmul_rn(theta, adam.keep), moved);
    } else {
        m = __fadd_rn(__fmul_rn(rule.momentum, m), force);
        s = __fmul_rn(-rule.lr, m);
        theta = __fadd_rn(theta, s);
    }
    if (TEACHER == kFull) {
        ref = __fadd_rn(__fmul_rn(ref, rule.keep), __fmul_rn(rule.rate, theta));
    }
    if (TEACHER == kDrift) ref = __fmul_rn(rule.keep, __fadd_rn(ref, s));
}

template <bool ADAM, int TEACHER>
__device__ __forceinline__ void pass_exact(const Step* step, const float* g, float* theta, float* ref,
                                           float* m, float* v, uint64_t n) {
    const Rule rule = rule_of(*step);
    const Adam adam = adam_of(*step);
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * 4;
    if (at + 4 <= n) {
        Pack32 g_r = {}, ref_r = {}, v_r = {};
        if (g != nullptr) g_r = load32(g + at);
        Pack32 theta_r = load32(theta + at), m_r = load32(m + at);
        if (TEACHER != kNone) ref_r = load32(ref + at);
        if (ADAM) v_r = load32(v + at);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            one_exact<ADAM, TEACHER>(rule, adam, g_r.v[k], theta_r.v[k], ref_r.v[k], m_r.v[k],
                                     v_r.v[k]);
        }
        store32(theta + at, theta_r);
        store32(m + at, m_r);
        if (TEACHER != kNone) store32(ref + at, ref_r);
        if (ADAM) store32(v + at, v_r);
    } else {
        for (; at < n; ++at) {
            float g_r = g != nullptr ? g[at] : 0.0f;
            float ref_r = TEACHER != kNone ? ref[at] : 0.0f;
            float v_r = ADAM ? v[at] : 0.0f;
            float theta_r = theta[at], m_r = m[at];
            one_exact<ADAM, TEACHER>(rule, adam, g_r, theta_r, ref_r, m_r, v_r);
            theta[at] = theta_r;
            m[at] = m_r;
            if (TEACHER != kNone) ref[at] = ref_r;
            if (ADAM) v[at] = v_r;
        }
    }
}

// `ref` holds weights (`full` not 0) or the drift, or is null.
template <bool ADAM>
__device__ __forceinline__ void update_exact(const Step* step, const float* g, float* theta, float* ref,
                                             float* m, float* v, uint64_t n, uint32_t full) {
    if (step->apply == 0) return;
    if (ref == nullptr) {
        pass_exact<ADAM, kNone>(step, g, theta, ref, m, v, n);
    } else if (full != 0) {
        pass_exact<ADAM, kFull>(step, g, theta, ref, m, v, n);
    } else {
        pass_exact<ADAM, kDrift>(step, g, theta, ref, m, v, n);
    }
}

// ceil(log2(x)) of a positive finite number; denormals count as the largest of them.
__device__ __forceinline__ int32_t ceil_log2(double x) {
    int64_t bits = __double_as_longlong(x);
    int32_t floor = static_cast<int32_t>(bits >> 52) - 1023;
    return floor + ((bits & 0xFFFFFFFFFFFFFll) != 0);
}

// The largest k within the limit for which bound * 2^k still fits an fp16 with two bits of room; 0 for no bound.
__device__ __forceinline__ int32_t drift_exponent(double bound) {
    if (!(bound > 0.0 && bound < __longlong_as_double(0x7FF0000000000000ll))) return 0;
    return min(max(13 - ceil_log2(bound), -kExponentLimit), kExponentLimit);
}

// Picks the scale at which the coming update stores each drift; one thread a tensor.
extern "C" __global__ void __launch_bounds__(kBlock)
    update_plan(const Step* step, const Entry* entries, const Scan* scans, uint32_t count) {
    ptx::grid_enter();
    uint32_t i = blockIdx.x * kBlock + threadIdx.x;
    if (i >= count || step->apply == 0 || entries[i].kept == 0) return;
    Tensor* tensor = entries[i].tensor;
    double moved;
    if (step->adam != 0) {
        moved = __dadd_rn(step->moments_bound, __dmul_rn(step->decay_bound, tensor->max_theta));
    } else {
        double max_abs = static_cast<double>(__uint_as_float(scans[i].max_bits));
        double pull = fabs(__dmul_rn(step->damping, tensor->max_drift));
        double force = __dmul_rn(fabs(step->clip), __dadd_rn(max_abs, pull));
        double carried = __dmul_rn(fabs(step->momentum), tensor->max_moment);
        moved = __dmul_rn(fabs(step->lr), __dadd_rn(carried, force));
    }
    // A student in one plane moves by up to a unit in the last place more.
    if (entries[i].kept == 2) moved = __dadd_rn(moved, __dmul_rn(__dadd_rn(tensor->max_theta, moved), 0.0078125));
    double keep = __dadd_rn(1.0, -__dmul_rn(step->teacher_rate, step->clip));
    double bound = __dmul_rn(fabs(keep), __dadd_rn(tensor->max_drift, moved));
    tensor->exponent_next = drift_exponent(bound);
    tensor->seen_drift = 0;
    tensor->seen_moment = 0;
    tensor->seen_theta = 0;
}

// Makes what the update stored the current state; one thread a tensor.
extern "C" __global__ void __launch_bounds__(kBlock)
    update_finish(const Step* step, const Entry* entries, uint32_t count) {
    ptx::grid_enter();
    uint32_t i = blockIdx.x * kBlock + threadIdx.x;
    if (i >= count || step->apply == 0) return;
    Tensor* tensor = entries[i].tensor;
    tensor->counter += 1;
    if (entries[i].kept == 0) return;
    int32_t exponent = tensor->exponent_next;
    double unscale = __longlong_as_double(static_cast<int64_t>(1023 - exponent) << 52);
    float drift = fp16_to_float(static_cast<uint16_t>(tensor->seen_drift));
    tensor->exponent = exponent;
    tensor->max_drift = __dmul_rn(static_cast<double>(drift), unscale);
    tensor->max_moment =
        static_cast<double>(bf16_to_float(static_cast<uint16_t>(tensor->seen_moment)));
    tensor->max_theta = static_cast<double>(__uint_as_float(tensor->seen_theta));
}

// `n` parameters of one tensor with its own noise `seed`. Grid: ceil(n / 2048) blocks.
#define COMPACT(NAME, ADAM, LOW)                                                                              \
    extern "C" __global__ void __launch_bounds__(kBlock)                                                      \
        NAME(const Step* step, Tensor* tensor, const uint16_t* g, uint16_t* hi, uint16_t* lo, uint16_t* d,    \
             uint16_t* m, uint16_t* v, uint64_t n, uint64_t seed) {                                           \
        ptx::grid_enter();                                                                                    \
        update_compact<ADAM, LOW>(step, tensor, g, hi, lo, d, m, v, n, seed);                                 \
    }                                                                                                         \
    KERNEL_EXPORT(NAME)

COMPACT(update_sgd_compact_bf16, false, true);
COMPACT(update_adamw_compact_bf16, true, true);
COMPACT(update_sgd_approx_bf16, false, false);
COMPACT(update_adamw_approx_bf16, true, false);

// Grid: ceil(n / 1024) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    update_sgd_exact_f32(const Step* step, const float* g, float* theta, float* ref, float* m, float* v,
                         uint64_t n, uint32_t full) {
    ptx::grid_enter();
    update_exact<false>(step, g, theta, ref, m, v, n, full);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    update_adamw_exact_f32(const Step* step, const float* g, float* theta, float* ref, float* m, float* v,
                           uint64_t n, uint32_t full) {
    ptx::grid_enter();
    update_exact<true>(step, g, theta, ref, m, v, n, full);
}

KERNEL_EXPORT(update_plan);
KERNEL_EXPORT(update_finish);
KERNEL_EXPORT(update_sgd_exact_f32);
KERNEL_EXPORT(update_adamw_exact_f32);

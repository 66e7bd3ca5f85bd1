// Loss rows of the head whose gradient reaches all logits, beside the distributions of head.cu; src/ops/weight.rs states
// them.
//
// Ratio: each logit on its own, (2/b) mean log(1 + exp(b D)). LogitKl: -sum exp(z_ref) D. Spread:
// (max z - mean z)^2, the first of equal maxima taking the gradient.
// Shape: a block a row. One read gives the sums, the second, out of the L2 cache, makes the gradient in place as head.cu
// does. The first logits are z where `subtract`, else D = z - z_ref. A cap is applied as there.
// fp32 sums in an order that V alone decides. Bytes a logit: 4 read, 2 or 4 written, and as many reads again with a
// teacher. Roof: device memory. Source: open-unlearning pdu.py, muse_bench iterative.py.
#include "head.cuh"

// LOGIT_KL: -sum exp(z_ref) D, else the ratio of single logits with `beta`.
template <bool LOGIT_KL, typename T, class C>
__device__ __forceinline__ void each_logit(float* logits, const float* teacher, const float* coefs,
                                           float* value, uint32_t v, float beta, uint32_t subtract,
                                           uint32_t grad, C cap) {
    const uint32_t row = blockIdx.x;
    const uint64_t first = static_cast<uint64_t>(row) * v;
    const Pairs<C> pairs{logits + first, teacher + first, v, v % kPack == 0, subtract != 0, cap};
    const float coef = coefs[row], count = static_cast<float>(v);
    float sum = 0.0f;
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float d_r[kPack], ref_r[kPack];
        pairs.load(at, d_r, ref_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= v) continue;
            const float d = d_r[k], scaled = beta * d;
            sum += LOGIT_KL ? -expf(ref_r[k]) * d
                            : fmaxf(scaled, 0.0f) + log1pf(expf(-fabsf(scaled)));
        }
    }
    sum = row_sum<kBlock>(sum);
    if (threadIdx.x == 0) {
        value[row] = coef == 0.0f ? 0.0f : (LOGIT_KL ? sum : 2.0f * sum / (beta * count));
    }
    if (grad == 0) return;
    pairs.template rewrite<T>([&](uint32_t, float d, float ref) {
        const float pull = LOGIT_KL ? -coef * expf(ref) : 2.0f * coef / count / (1.0f + expf(-beta * d));
        return coef == 0.0f ? 0.0f : pull;
    });
}

template <typename T, class C>
__device__ __forceinline__ void spread(float* logits, const float* coefs, float* value, uint32_t v,
                                       uint32_t grad, C cap) {
    const uint32_t row = blockIdx.x;
    float* z = logits + static_cast<uint64_t>(row) * v;
    const bool vec = v % kPack == 0;
    const float coef = coefs[row], first = cap.at(z[0]), count = static_cast<float>(v);
    float top = -INFINITY, sum = 0.0f;
    uint32_t best = 0;
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float x_r[kPack];
        load_logits(z, at, v, vec, cap, x_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= v) continue;
            sum += x_r[k] - first;
            if (x_r[k] > top) {
                top = x_r[k];
                best = at + k;
            }
        }
    }
    const float largest = block_max(top);
    // Places below 2^24 are exact; the first is the largest of their negatives.
    const float place = block_max(top == largest ? -static_cast<float>(best) : -INFINITY);
    const uint32_t argmax = static_cast<uint32_t>(-place);
    const float gap = largest - first - row_sum<kBlock>(sum) / count;
    if (threadIdx.x == 0) value[row] = coef == 0.0f ? 0.0f : gap * gap;
    if (grad == 0) return;
    const float whole = 2.0f * coef * gap, share = whole / count;
    rewrite_logits<T>(z, v, vec, cap, [&](uint32_t i, float) {
        return coef == 0.0f ? 0.0f : (i == argmax ? whole - share : -share);
    });
}

// `logits` [rows, V] fp32; the gradient takes its place. `cap` is for capped logits alone. Grid: rows.
#define EACH_LOGIT(name, logit_kl, T, C)                                                          \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(float* logits, const float* teacher, const float* coefs, float* value, uint32_t v,   \
             float beta, uint32_t subtract, uint32_t grad, float cap) {                           \
        ptx::grid_enter();                                                                        \
        each_logit<logit_kl, T>(logits, teacher, coefs, value, v, beta, subtract, grad, C(cap));  \
    }                                                                                             \
    KERNEL_EXPORT(name)

EACH_LOGIT(head_ratio_bf16, false, uint16_t, NoCap);
EACH_LOGIT(head_ratio_f32, false, float, NoCap);
EACH_LOGIT(head_ratio_capped_bf16, false, uint16_t, Cap);
EACH_LOGIT(head_ratio_capped_f32, false, float, Cap);
EACH_LOGIT(head_logit_kl_bf16, true, uint16_t, NoCap);
EACH_LOGIT(head_logit_kl_f32, true, float, NoCap);
EACH_LOGIT(head_logit_kl_capped_bf16, true, uint16_t, Cap);
EACH_LOGIT(head_logit_kl_capped_f32, true, float, Cap);

#define SPREAD(name, T, C)                                                                        \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(float* logits, const float* coefs, float* value, uint32_t v, uint32_t grad,          \
             float cap) {                                                                         \
        ptx::grid_enter();                                                                        \
        spread<T>(logits, coefs, value, v, grad, C(cap));                                         \
    }                                                                                             \
    KERNEL_EXPORT(name)

SPREAD(head_spread_bf16, uint16_t, NoCap);
SPREAD(head_spread_f32, float, NoCap);
SPREAD(head_spread_capped_bf16, uint16_t, Cap);
SPREAD(head_spread_capped_f32, float, Cap);

// Full-vocabulary losses of the head: the value of a row of fp32 logits, and its gradient at all of them in place.
//
// D = z - z_ref (or the GEMM of the difference), q = softmax(z_ref). src/ops/weight.rs states the losses; KL and its
// quadratic form are exactly 0 where D = 0, of equal maxima the first takes the gradient of `flatten`.
// Losses that compare with no teacher also give the NLL of the row's target and whether it is the most probable token, with
// the formulas and sums of head.cu, from the same read.
// Shape: a block per row. The first read gives maximum and sums online; the last, out of the L2 cache, makes the gradient
// in place as head.cu does; KL has one more between them for its normalizer. A cap is applied as there; D of capped logits
// keeps what the GEMM of the difference has not lost.
// fp32 sums in an order that V alone decides. Bytes a logit: 4 read, 2 or 4 written, and as many reads again with a second
// model. Roof: device memory. Source: arXiv 2504.13388; open-unlearning pdu.py, undial.py; muse_bench iterative.py.
#include "head.cuh"

// A block's row, and the numbers of its loss.
struct Row {
    float* z;             // [V]; the gradient takes its place
    const float* z_ref;   // [V]; null where the loss compares with no model
    uint32_t y;           // the target
    float coef;           // 0: value and gradient are 0
    float* nll;           // these three of the row alone
    float* value;
    float* hit;
    uint32_t v;
    float number;         // Matched::number
    bool subtract, grad;  // `subtract`: the first logits are z, else D
    bool vec;

    template <class C>
    __device__ __forceinline__ Pairs<C> pairs(C cap) const {
        return Pairs<C>{z, z_ref, v, vec, subtract, cap};
    }

    __device__ __forceinline__ void put(float x) const {
        if (threadIdx.x == 0) *value = coef == 0.0f ? 0.0f : x;
    }

    // Every thread of the block calls it.
    __device__ __forceinline__ void put(TargetStats& stats) const {
        const float loss = stats.nll();
        if (threadIdx.x == 0) {
            *nll = loss;
            *hit = stats.hit();
        }
    }
};

template <typename T, class C>
__device__ __forceinline__ void uniform(const Row& row, C cap) {
    const float first = cap.at(row.z[0]), count = static_cast<float>(row.v);
    TargetStats stats{row.y, cap.at(row.z[row.y])};
    Online online;
    float sum = 0.0f;
    for (uint32_t at = threadIdx.x * kPack; at < row.v; at += kPlaces) {
        float x_r[kPack];
        load_logits(row.z, at, row.v, row.vec, cap, x_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= row.v) continue;
            stats.add(at + k, x_r[k]);
            online.add(x_r[k], 0.0f);
            sum += x_r[k] - first;
        }
    }
    row.put(stats);
    join(online);
    const float mean = row_sum<kBlock>(sum) / count - (online.top - first);
    row.put(logf(online.sum) - mean - logf(count));
    if (!row.grad) return;
    const float coef = row.coef;
    rewrite_logits<T>(row.z, row.v, row.vec, cap, [&](uint32_t, float x) {
        // Never fused: near the uniform distribution, where the gradient ends, the two are nearly equal.
        return coef == 0.0f ? 0.0f : __fmul_rn(expf(x - online.top), coef / online.sum) - coef / count;
    });
}

// e^x - 1 - x without cancellation around 0.
__device__ __forceinline__ float exp_minus_linear(float x) {
    float tail = 1.0f;
#pragma unroll
    for (int n = 8; n >= 3; --n) tail = 1.0f + x * (1.0f / static_cast<float>(n)) * tail;
    return fabsf(x) < 0.25f ? 0.5f * x * x * tail : expf(x) - 1.0f - x;
}

// QUADRATIC: the quadratic form, else KL(q, p). With D' = D - E_q D and E = E_q(e^D' - 1 - D'), p/q = e^D' / (1 + E)
// and KL = log(1 + E). LOWERED: the second model's logit of the target is `number` less than it says.
template <bool QUADRATIC, bool LOWERED, typename T, class C>
__device__ __forceinline__ void distribution(const Row& row, C cap) {
    const Pairs<C> pairs = row.pairs(cap);
    const uint32_t v = row.v;
    auto lowered = [&](uint32_t i) { return LOWERED && i == row.y ? row.number : 0.0f; };
    TargetStats stats{row.y, LOWERED ? pairs.own(row.y) : 0.0f};
    Online online;
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float d_r[kPack], ref_r[kPack], own_r[kPack];
        pairs.load(at, d_r, ref_r);
        if (LOWERED) pairs.load_own(at, own_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= v) continue;
            if (LOWERED) stats.add(at + k, own_r[k]);
            online.add(ref_r[k] - lowered(at + k), d_r[k] + lowered(at + k));
        }
    }
    if (LOWERED) row.put(stats);
    join(online);
    const float inverse = 1.0f / online.sum, mean = online.with * inverse, top = online.top;
    float sum = 0.0f;
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float d_r[kPack], ref_r[kPack];
        pairs.load(at, d_r, ref_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= v) continue;
            float d = d_r[k] + lowered(at + k) - mean;
            sum += expf(ref_r[k] - lowered(at + k) - top) * inverse * (QUADRATIC ? d * d : exp_minus_linear(d));
        }
    }
    const float excess = row_sum<kBlock>(sum), coef = row.coef;
    row.put(QUADRATIC ? excess : log1pf(excess));
    if (!row.grad) return;
    const float scale = QUADRATIC ? coef : coef / (1.0f + excess);
    pairs.template rewrite<T>([&](uint32_t i, float difference, float ref) {
        const float q = expf(ref - lowered(i) - top) * inverse;
        const float d = difference + lowered(i) - mean;
        const float slope = QUADRATIC ? d : exp_minus_linear(d) + d - excess;
        return coef == 0.0f ? 0.0f : scale * q * slope;
    });
}

template <typename T, class C>
__device__ __forceinline__ void kl(const Row& row, C cap) {
    distribution<false, false, T>(row, cap);
}

template <typename T, class C>
__device__ __forceinline__ void qkl(const Row& row, C cap) {
    distribution<true, false, T>(row, cap);
}

template <typename T, class C>
__device__ __forceinline__ void undial(const Row& row, C cap) {
    distribution<false, true, T>(row, cap);
}

// LOGIT_KL: -sum exp(z_ref) D, else the ratio of single logits, (2/b) mean log(1 + exp(b D)) with b `number`.
template <bool LOGIT_KL, typename T, class C>
__device__ __forceinline__ void each_logit(const Row& row, C cap) {
    const Pairs<C> pairs = row.pairs(cap);
    const uint32_t v = row.v;
    const float coef = row.coef, beta = row.number, count = static_cast<float>(v);
    TargetStats stats{row.y, LOGIT_KL ? 0.0f : pairs.own(row.y)};
    float sum = 0.0f;
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float d_r[kPack], ref_r[kPack], own_r[kPack];
        pairs.load(at, d_r, ref_r);
        if (!LOGIT_KL) pairs.load_own(at, own_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= v) continue;
            if (!LOGIT_KL) stats.add(at + k, own_r[k]);
            const float d = d_r[k], scaled = beta * d;
            sum += LOGIT_KL ? -expf(ref_r[k]) * d
                            : fmaxf(scaled, 0.0f) + log1pf(expf(-fabsf(scaled)));
        }
    }
    if (!LOGIT_KL) row.put(stats);
    sum = row_sum<kBlock>(sum);
    row.put(LOGIT_KL ? sum : 2.0f * sum / (beta * count));
    if (!row.grad) return;
    pairs.template rewrite<T>([&](uint32_t, float d, float ref) {
        const float slope = LOGIT_KL ? -coef * expf(ref) : 2.0f * coef / count / (1.0f + expf(-beta * d));
        return coef == 0.0f ? 0.0f : slope;
    });
}

template <typename T, class C>
__device__ __forceinline__ void logit_ratio(const Row& row, C cap) {
    each_logit<false, T>(row, cap);
}

template <typename T, class C>
__device__ __forceinline__ void logit_kl(const Row& row, C cap) {
    each_logit<true, T>(row, cap);
}

// (max z - mean z)^2.
template <typename T, class C>
__device__ __forceinline__ void flatten(const Row& row, C cap) {
    const float first = cap.at(row.z[0]), count = static_cast<float>(row.v);
    TargetStats stats{row.y, cap.at(row.z[row.y])};
    float top = -INFINITY, sum = 0.0f;
    uint32_t best = 0;
    for (uint32_t at = threadIdx.x * kPack; at < row.v; at += kPlaces) {
        float x_r[kPack];
        load_logits(row.z, at, row.v, row.vec, cap, x_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= row.v) continue;
            stats.add(at + k, x_r[k]);
            sum += x_r[k] - first;
            if (x_r[k] > top) {
                top = x_r[k];
                best = at + k;
            }
        }
    }
    row.put(stats);
    const float largest = block_max(top);
    // Places below 2^24 are exact; the first is the largest of their negatives.
    const float place = block_max(top == largest ? -static_cast<float>(best) : -INFINITY);
    const uint32_t argmax = static_cast<uint32_t>(-place);
    const float gap = largest - first - row_sum<kBlock>(sum) / count;
    row.put(gap * gap);
    if (!row.grad) return;
    const float coef = row.coef, whole = 2.0f * coef * gap, share = whole / count;
    rewrite_logits<T>(row.z, row.v, row.vec, cap, [&](uint32_t i, float) {
        return coef == 0.0f ? 0.0f : (i == argmax ? whole - share : -share);
    });
}

// `logits` [rows, V] fp32, `teacher` as many or null; `number` is Matched::number; `cap` is for capped logits alone. nll and
// hit are written by losses that compare with no teacher. Grid: rows.
#define MATCHED_KERNEL(NAME, LOSS, T, C)                                                          \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        NAME(float* logits, const float* teacher, const uint32_t* targets, const float* coefs,    \
             float* nll, float* value, float* hit, uint32_t v, float number, uint32_t subtract,   \
             uint32_t grad, float cap) {                                                          \
        ptx::grid_enter();                                                                        \
        const uint32_t row = blockIdx.x;                                                          \
        const uint64_t first = static_cast<uint64_t>(row) * v;                                    \
        const Row of{logits + first, teacher == nullptr ? nullptr : teacher + first,              \
                     targets[row], coefs[row], nll + row, value + row, hit + row, v, number,      \
                     subtract != 0, grad != 0, v % kPack == 0};                                   \
        LOSS<T>(of, C(cap));                                                                      \
    }                                                                                             \
    KERNEL_EXPORT(NAME)

// The kernels of a loss, by the name that Matched::name gives it.
#define MATCHED(LOSS)                                                                             \
    MATCHED_KERNEL(head_##LOSS##_bf16, LOSS, uint16_t, NoCap);                                    \
    MATCHED_KERNEL(head_##LOSS##_f32, LOSS, float, NoCap);                                        \
    MATCHED_KERNEL(head_##LOSS##_capped_bf16, LOSS, uint16_t, Cap);                               \
    MATCHED_KERNEL(head_##LOSS##_capped_f32, LOSS, float, Cap)

MATCHED(uniform);
MATCHED(kl);
MATCHED(qkl);
MATCHED(undial);
MATCHED(logit_ratio);
MATCHED(logit_kl);
MATCHED(flatten);

// Loss rows of the head: statistics of a row of fp32 logits, and its gradient in place.
//
// One-hot: p = softmax(z)_y, weight w(p), dz = coef w (softmax(z) - e_y). 1 - p is the sum of the others, never a
// difference, so weights stay exact for p -> 1. Matched: D = z - z_ref (or the product of the difference), q =
// softmax(z_ref); Uniform, KL and its quadratic form as src/ops/weight.rs states them, exactly 0 where D = 0.
// Shape: a block a row. The first read gives maximum and sums online (a running maximum rescales the sum); the
// second, out of the L2 cache, makes the gradient; KL has one more between them for its normaliser. The gradient
// overwrites the row from its start in the precision of storage: bf16 numbers then have a pitch of 2V. A window is
// read by all threads before any of them writes it, and what is written lies below what is still to be read.
// The kernels for capped logits, z' = cap tanh(z / cap), cap what they read, which is more arithmetic and no byte, and send
// the gradient on through it; D of capped logits keeps what the product of the difference has not lost.
// fp32 sums in an order that V alone decides. Bytes a logit: 4 read, 2 or 4 written (matched: twice the reads).
// Roof: device memory. Source: arXiv 2504.13388.
#include "head.cuh"

constexpr float kLargest = 3.402823466e38f;
constexpr float kSmallest = 1.17549435e-38f;

struct Formula {
    float sign, p_power, q_power, pole, threshold;
    uint32_t divided;

    __device__ __forceinline__ float weight(float p, float q) const {
        if (threshold != 0.0f && p <= threshold) return 0.0f;
        float w = sign;
        if (p_power != 0.0f) w *= p_power == 1.0f ? p : powf(p, p_power);
        if (q_power != 0.0f) w *= q_power == 1.0f ? q : powf(q, q_power);
        if (divided != 0) w /= fmaxf(pole + q, kSmallest);
        return w;
    }
};

// What sm90/head.cu says of a row's 256 columns: the largest of the others, the sum below it, and where the target
// is among them its logit and whether another one beats it.
struct alignas(16) Record {
    float top, sum, zy;
    uint32_t beaten;
};
constexpr uint32_t kRecordColumns = 256;

// Joins the records of a row as `scan` joins its entries; returns the target's logit.
__device__ __forceinline__ float join_records(const Record* records, uint32_t v, uint32_t y, Online& others,
                                              float& beaten) {
    const uint32_t count = (v + kRecordColumns - 1) / kRecordColumns, own = y / kRecordColumns;
    const float zy = records[own].zy;
    for (uint32_t i = threadIdx.x; i < count; i += kBlock) {
        // Aligned: records lie 16 bytes apart.
        const float4 raw = *reinterpret_cast<const float4*>(records + i);
        const Record record{raw.x, raw.y, raw.z, __float_as_uint(raw.w)};
        const bool beats = i == own ? record.beaten != 0 : (i < own ? record.top >= zy : record.top > zy);
        if (beats) beaten = 1.0f;
        others.join(record.top, record.sum);
    }
    return zy;
}

// Reads a row's entries but for the target; returns the target's logit.
template <class C>
__device__ __forceinline__ float scan(const float* z, uint32_t v, uint32_t y, bool vec, C cap,
                                      Online& others, float& beaten) {
    const float zy = cap.at(z[y]);
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float x_r[kPack];
        load_logits(z, at, v, vec, cap, x_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            const uint32_t i = at + k;
            if (i >= v || i == y) continue;
            if (i < y ? x_r[k] >= zy : x_r[k] > zy) beaten = 1.0f;
            others.add(x_r[k], 0.0f);
        }
    }
    return zy;
}

// `records` of the row where there are some, which no cap has; then the logits are read for a gradient alone.
template <typename T, class C>
__device__ __forceinline__ void onehot(float* logits, const Record* records, const uint32_t* targets,
                                       const float* coefs, const float* weights, float* nll, float* value,
                                       float* hit, uint32_t v, Formula formula, uint32_t grad, C cap) {
    const uint32_t row = blockIdx.x, y = targets[row];
    float* z = logits + static_cast<uint64_t>(row) * v;
    const bool vec = v % kPack == 0;
    Online others;
    float beaten = 0.0f;
    const uint64_t per_row = (v + kRecordColumns - 1) / kRecordColumns;
    const float zy = records != nullptr ? join_records(records + row * per_row, v, y, others, beaten)
                                        : scan(z, v, y, vec, cap, others, beaten);
    // Where the target is the largest, the others are summed below it.
    if (others.top < zy) {
        others.sum *= others.top == -INFINITY ? 0.0f : expf(others.top - zy);
        others.top = zy;
    }
    join(others);
    beaten = row_sum<kBlock>(beaten);
    const float top = others.top, e = expf(zy - top), total = e + others.sum;
    const float p = e / total, q = others.sum / total;
    const float loss = others.sum < e ? log1pf(others.sum / e) : logf(total) + (top - zy);
    const float w = weights != nullptr ? weights[row] : formula.weight(p, q);
    if (threadIdx.x == 0) {
        nll[row] = loss;
        value[row] = w * loss;
        hit[row] = beaten == 0.0f ? 1.0f : 0.0f;
    }
    if (grad == 0) return;
    const float coef = coefs[row];
    // At a pole the weight is the largest float, which a coefficient above 4 would take to infinity. NaN stays.
    float k_row = coef * w;
    k_row = k_row > kLargest ? kLargest : (k_row < -kLargest ? -kLargest : k_row);
    const float scale = k_row / total;
    rewrite_logits<T>(z, v, vec, cap, [&](uint32_t i, float x) {
        // A row that is left out is 0 even where its weight is no number.
        return coef == 0.0f ? 0.0f : (i == y ? -k_row * q : scale * expf(x - top));
    });
}

// e^x - 1 - x without cancellation around 0.
__device__ __forceinline__ float exp_minus_linear(float x) {
    float tail = 1.0f;
#pragma unroll
    for (int n = 8; n >= 3; --n) tail = 1.0f + x * (1.0f / static_cast<float>(n)) * tail;
    return fabsf(x) < 0.25f ? 0.5f * x * x * tail : expf(x) - 1.0f - x;
}

template <typename T, class C>
__device__ __forceinline__ void uniform(float* logits, const float* coefs, float* value, uint32_t v,
                                        uint32_t grad, C cap) {
    const uint32_t row = blockIdx.x;
    float* z = logits + static_cast<uint64_t>(row) * v;
    const bool vec = v % kPack == 0;
    const float coef = coefs[row], first = cap.at(z[0]), count = static_cast<float>(v);
    Online online;
    float sum = 0.0f;
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float x_r[kPack];
        load_logits(z, at, v, vec, cap, x_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= v) continue;
            online.add(x_r[k], 0.0f);
            sum += x_r[k] - first;
        }
    }
    join(online);
    const float mean = row_sum<kBlock>(sum) / count - (online.top - first);
    if (threadIdx.x == 0) {
        value[row] = coef == 0.0f ? 0.0f : logf(online.sum) - mean - logf(count);
    }
    if (grad == 0) return;
    rewrite_logits<T>(z, v, vec, cap, [&](uint32_t, float x) {
        // Never fused: near the uniform distribution, where the gradient ends, the two are nearly equal.
        return coef == 0.0f ? 0.0f : __fmul_rn(expf(x - online.top), coef / online.sum) - coef / count;
    });
}

// QUADRATIC: the quadratic form, else KL(q, p). With D' = D - E_q D and E = E_q(e^D' - 1 - D'), p/q = e^D' / (1 + E)
// and KL = log(1 + E). The teacher's logit of entry y is `lower` less than it says.
template <bool QUADRATIC, bool LOWERED, typename T, class C>
__device__ __forceinline__ void matched(float* logits, const float* teacher, const float* coefs,
                                        float* value, uint32_t v, uint32_t y, float lower,
                                        uint32_t subtract, uint32_t grad, C cap) {
    const uint32_t row = blockIdx.x;
    const uint64_t first = static_cast<uint64_t>(row) * v;
    const Pairs<C> pairs{logits + first, teacher + first, v, v % kPack == 0, subtract != 0, cap};
    const float coef = coefs[row];
    auto lowered = [&](uint32_t i) { return LOWERED && i == y ? lower : 0.0f; };
    Online online;
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float d_r[kPack], ref_r[kPack];
        pairs.load(at, d_r, ref_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k >= v) continue;
            online.add(ref_r[k] - lowered(at + k), d_r[k] + lowered(at + k));
        }
    }
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
    const float excess = row_sum<kBlock>(sum);
    if (threadIdx.x == 0) {
        value[row] = coef == 0.0f ? 0.0f : (QUADRATIC ? excess : log1pf(excess));
    }
    if (grad == 0) return;
    const float scale = QUADRATIC ? coef : coef / (1.0f + excess);
    pairs.template rewrite<T>([&](uint32_t i, float difference, float ref) {
        const float q = expf(ref - lowered(i) - top) * inverse;
        const float d = difference + lowered(i) - mean;
        const float pull = QUADRATIC ? d : exp_minus_linear(d) + d - excess;
        return coef == 0.0f ? 0.0f : scale * q * pull;
    });
}

template <typename T>
__device__ __forceinline__ void difference(const T* a, const T* b, T* out, uint64_t n) {
    const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at >= n) return;
    const uint32_t left = n - at < kPack ? static_cast<uint32_t>(n - at) : kPack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        if (k < static_cast<int>(left)) narrow(widen(a[at + k]) - widen(b[at + k]), out[at + k]);
    }
}

// `logits` [rows, V] fp32; the gradient takes its place. `weights` may be null: then the formula. `cap` is for capped
// logits alone. Grid: rows.
#define ONEHOT_BODY(T, RECORDS, CAP)                                                              \
    ptx::grid_enter();                                                                            \
    Formula formula = {sign, p_power, q_power, pole, threshold, divided};                         \
    onehot<T>(logits, RECORDS, targets, coefs, weights, nll, value, hit, v, formula, grad, CAP)

#define ONEHOT(name, T, C)                                                                        \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(float* logits, const uint32_t* targets, const float* coefs, const float* weights,    \
             float* nll, float* value, float* hit, uint32_t v, float sign, float p_power,         \
             float q_power, float pole, float threshold, uint32_t divided, uint32_t grad,         \
             float cap) {                                                                         \
        ONEHOT_BODY(T, nullptr, C(cap));                                                          \
    }                                                                                             \
    KERNEL_EXPORT(name)

ONEHOT(head_onehot_bf16, uint16_t, NoCap);
ONEHOT(head_onehot_f32, float, NoCap);
ONEHOT(head_onehot_capped_bf16, uint16_t, Cap);
ONEHOT(head_onehot_capped_f32, float, Cap);

// The same behind a product that left `records` [rows, ceil(V / 256)]; without `grad` there are no logits.
extern "C" __global__ void __launch_bounds__(kBlock)
    head_onehot_records_bf16(float* logits, const uint32_t* targets, const float* coefs, const float* weights,
                             float* nll, float* value, float* hit, uint32_t v, float sign, float p_power,
                             float q_power, float pole, float threshold, uint32_t divided, uint32_t grad,
                             const Record* records) {
    ONEHOT_BODY(uint16_t, records, NoCap(0.0f));
}
KERNEL_EXPORT(head_onehot_records_bf16);

#define UNIFORM(name, T, C)                                                                       \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(float* logits, const float* coefs, float* value, uint32_t v, uint32_t grad,          \
             float cap) {                                                                         \
        ptx::grid_enter();                                                                        \
        uniform<T>(logits, coefs, value, v, grad, C(cap));                                        \
    }                                                                                             \
    KERNEL_EXPORT(name)

UNIFORM(head_uniform_bf16, uint16_t, NoCap);
UNIFORM(head_uniform_f32, float, NoCap);
UNIFORM(head_uniform_capped_bf16, uint16_t, Cap);
UNIFORM(head_uniform_capped_f32, float, Cap);

#define MATCHED(name, quadratic, T, C)                                                            \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(float* logits, const float* teacher, const float* coefs, float* value, uint32_t v,   \
             uint32_t subtract, uint32_t grad, float cap) {                                       \
        ptx::grid_enter();                                                                        \
        matched<quadratic, false, T>(logits, teacher, coefs, value, v, v, 0.0f, subtract, grad,   \
                                     C(cap));                                                     \
    }                                                                                             \
    KERNEL_EXPORT(name)

MATCHED(head_kl_bf16, false, uint16_t, NoCap);
MATCHED(head_kl_f32, false, float, NoCap);
MATCHED(head_kl_capped_bf16, false, uint16_t, Cap);
MATCHED(head_kl_capped_f32, false, float, Cap);
MATCHED(head_qkl_bf16, true, uint16_t, NoCap);
MATCHED(head_qkl_f32, true, float, NoCap);
MATCHED(head_qkl_capped_bf16, true, uint16_t, Cap);
MATCHED(head_qkl_capped_f32, true, float, Cap);

// KL against the teacher's distribution with the target's logit lowered by `strength`.
#define UNDIAL(name, T, C)                                                                        \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(float* logits, const float* teacher, const uint32_t* targets, const float* coefs,    \
             float* value, uint32_t v, float strength, uint32_t subtract, uint32_t grad,          \
             float cap) {                                                                         \
        ptx::grid_enter();                                                                        \
        const uint32_t y = targets[blockIdx.x];                                                   \
        matched<false, true, T>(logits, teacher, coefs, value, v, y, strength, subtract, grad,    \
                                C(cap));                                                          \
    }                                                                                             \
    KERNEL_EXPORT(name)

UNDIAL(head_undial_bf16, uint16_t, NoCap);
UNDIAL(head_undial_f32, float, NoCap);
UNDIAL(head_undial_capped_bf16, uint16_t, Cap);
UNDIAL(head_undial_capped_f32, float, Cap);

// out = a - b, rounded to storage. Grid: ceil(n / 2048) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    head_difference_bf16(const uint16_t* a, const uint16_t* b, uint16_t* out, uint64_t n) {
    ptx::grid_enter();
    difference(a, b, out, n);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    head_difference_f32(const float* a, const float* b, float* out, uint64_t n) {
    ptx::grid_enter();
    difference(a, b, out, n);
}

KERNEL_EXPORT(head_difference_bf16);
KERNEL_EXPORT(head_difference_f32);

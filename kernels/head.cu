// Target-token losses of the head: statistics of a row of fp32 logits, and its gradient in place.
//
// p = softmax(z)_y, weight w(p), dz = coef w (softmax(z) - e_y). 1 - p is the sum of the others, never a difference, so
// weights stay exact for p -> 1.
// Shape: a block per row. The first read gives maximum and sums online (a running maximum rescales the sum); the second,
// out of the L2 cache, makes the gradient. The gradient overwrites the row from its start in the precision of storage: bf16
// numbers then have a pitch of 2V. A window is read by all threads before any of them writes it, and what is written lies
// below what is still to be read.
// The kernels for capped logits, z' = cap tanh(z / cap), cap what they read, which is more arithmetic and no byte, and send
// the gradient on through it.
// fp32 sums in an order that V alone decides. Bytes a logit: 4 read, 2 or 4 written. Roof: device memory.
// Source: arXiv 2504.13388.
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

// The record of sm90/head.cu of a row's 256 columns: the largest of the others, the sum below it, and where the target is
// among them its logit and whether another one beats it.
struct alignas(16) Record {
    float top, sum, zy;
    uint32_t beaten;
};
constexpr uint32_t kRecordColumns = 256;

// Joins the records of a row as `scan` joins its entries.
__device__ __forceinline__ TargetStats join_records(const Record* records, uint32_t v, uint32_t y) {
    const uint32_t count = (v + kRecordColumns - 1) / kRecordColumns, own = y / kRecordColumns;
    TargetStats stats{y, records[own].zy};
    for (uint32_t i = threadIdx.x; i < count; i += kBlock) {
        // Aligned: records lie 16 bytes apart.
        const float4 raw = *reinterpret_cast<const float4*>(records + i);
        const Record record{raw.x, raw.y, raw.z, __float_as_uint(raw.w)};
        const bool beats = i == own ? record.beaten != 0 : (i < own ? record.top >= stats.zy : record.top > stats.zy);
        if (beats) stats.beaten = 1.0f;
        stats.others.join(record.top, record.sum);
    }
    return stats;
}

// Reads a row's entries.
template <class C>
__device__ __forceinline__ TargetStats scan(const float* z, uint32_t v, uint32_t y, bool vec, C cap) {
    TargetStats stats{y, cap.at(z[y])};
    for (uint32_t at = threadIdx.x * kPack; at < v; at += kPlaces) {
        float x_r[kPack];
        load_logits(z, at, v, vec, cap, x_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (at + k < v) stats.add(at + k, x_r[k]);
        }
    }
    return stats;
}

// `records` of the row where there are some, which no cap has; then the logits are read for a gradient alone.
template <typename T, class C>
__device__ __forceinline__ void onehot(float* logits, const Record* records, const uint32_t* targets,
                                       const float* coefs, const float* weights, float* nll, float* value,
                                       float* hit, uint32_t v, Formula formula, uint32_t grad, C cap) {
    const uint32_t row = blockIdx.x, y = targets[row];
    float* z = logits + static_cast<uint64_t>(row) * v;
    const bool vec = v % kPack == 0;
    const uint64_t per_row = (v + kRecordColumns - 1) / kRecordColumns;
    TargetStats stats = records != nullptr ? join_records(records + row * per_row, v, y) : scan(z, v, y, vec, cap);
    const float loss = stats.nll();
    const float top = stats.others.top, total = stats.total, q = stats.others.sum / total;
    const float w = weights != nullptr ? weights[row] : formula.weight(stats.e / total, q);
    if (threadIdx.x == 0) {
        nll[row] = loss;
        value[row] = w * loss;
        hit[row] = stats.hit();
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

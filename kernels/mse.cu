// Mean squared error of hidden states: value = mean over C of (x - t)^2, dx = 2 coef (x - t) / C, with the target t the
// hidden state of another model, or one vector for all rows.
//
// Shape: a warp a row. One pass: the gradient of a number needs no sum. A row whose coefficient is 0 has value 0 and a
// zero gradient. Sums in fp32, in an order that C alone decides. Bytes a number: 2 (steered: 1) read, 1 written, in units
// of the storage. Roof: device memory.
// Source: arXiv 2403.03218, RMU.
#include "rows.cuh"

// `rows` is null if `steering` is the target of all rows; `dx` is null if only values are wanted.
template <typename T>
__device__ __forceinline__ void mse(const T* x, const T* rows, const float* steering, const float* coefs,
                                    float* value, T* dx, uint32_t n, uint32_t c) {
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t row = blockIdx.x * (kBlock / kWarp) + threadIdx.x / kWarp;
    // The same for all threads of a row, whose sum none of them may miss.
    if (row >= n) return;
    const uint64_t at = static_cast<uint64_t>(row) * c;
    const bool vec = c % kPack == 0;
    const float coef = coefs[row], scale = 2.0f * coef / static_cast<float>(c);
    float sum = 0.0f;
    for (uint32_t i = lane * kPack; i < c; i += kWarp * kPack) {
        float x_r[kPack], to_r[kPack];
        load_pack(x + at, i, c, vec, x_r);
        if (rows != nullptr) {
            load_pack(rows + at, i, c, vec, to_r);
        } else {
            load_pack(steering, i, c, vec, to_r);
        }
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            const float off = x_r[k] - to_r[k];
            sum += off * off;
            x_r[k] = coef == 0.0f ? 0.0f : scale * off;
        }
        if (dx != nullptr) store_pack(dx + at, i, c, vec, x_r);
    }
    sum = row_sum<kWarp>(sum);
    if (lane == 0) value[row] = coef == 0.0f ? 0.0f : sum / static_cast<float>(c);
}

// Grid: a block for eight rows.
#define MSE(name, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(const T* x, const T* rows, const float* steering, const float* coefs, float* value,  \
             T* dx, uint32_t n, uint32_t c) {                                                     \
        ptx::grid_enter();                                                                        \
        mse(x, rows, steering, coefs, value, dx, n, c);                                           \
    }                                                                                             \
    KERNEL_EXPORT(name)

MSE(mse_bf16, uint16_t);
MSE(mse_f32, float);

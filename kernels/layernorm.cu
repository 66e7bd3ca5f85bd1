// LayerNorm of rows.
//
// mean = mean(x), rstd = 1 / sqrt(mean((x - mean)^2) + eps), y = (x - mean) rstd gain + bias.
// Backward: dx += rstd (dy gain - mean(dy gain) - (x - mean) rstd^2 mean(dy gain (x - mean)));
//           dgain += sum over rows of dy (x - mean) rstd; the bias's gradient is a column sum of dy (column_sum.cu).
// Shape: as rmsnorm.cu, a row with a warp (up to 1024 numbers) or a block of its own, read once and kept in registers up
// to 1024 or 8192 numbers; what is beyond is read again, from the L2 cache. Deviations are summed after the mean is
// known, never as a difference of large sums. The gain's gradient has two stages: fp32 partials of 64 rows each, then
// their sum in order.
// fp32 inside, stored to nearest. Bytes a number, in units of the storage: forward 1 read, 1 written; backward 3 read,
// 1 written. Roof: device memory.
// Source: arXiv 1607.06450.
#include "rows.cuh"

constexpr int kHeld = 4;         // packs a thread keeps in registers
constexpr uint32_t kRows = 64;   // rows a partial of the gain's gradient covers

// The mean of a row and 1 / its standard deviation, as they lie in memory.
struct alignas(8) Moments {
    float mean, rstd;
};

template <int THREADS>
__device__ __forceinline__ uint64_t row_of_thread() {
    return static_cast<uint64_t>(blockIdx.x) * (kBlock / THREADS) + threadIdx.x / THREADS;
}

template <int THREADS, typename T>
__device__ __forceinline__ void forward(const T* x, const T* gain, const T* bias, T* y, Moments* moments,
                                        uint32_t rows, uint32_t c, float eps) {
    const uint32_t lane = threadIdx.x % THREADS;
    const uint64_t row = row_of_thread<THREADS>();
    // The same for all threads of a row, whose sums none of them may miss.
    if (row >= rows) return;
    const bool vec = c % kPack == 0;
    x += row * c;
    y += row * c;
    float x_r[kHeld][kPack];
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
        load_pack(x, (p * THREADS + lane) * kPack, c, vec, x_r[p]);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum += x_r[p][k];
    }
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < c; i += THREADS * kPack) {
        float more_r[kPack];
        load_pack(x, i, c, vec, more_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum += more_r[k];
    }
    const float mean = row_sum<THREADS>(sum) / static_cast<float>(c);
    float squares = 0.0f;
    // Leaves deviations. What lies behind the end of the row was read as 0, which is none.
    auto center = [&](uint32_t i, float(&v)[kPack]) {
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            v[k] = i + k < c ? v[k] - mean : 0.0f;
            squares += v[k] * v[k];
        }
    };
#pragma unroll
    for (int p = 0; p < kHeld; ++p) center((p * THREADS + lane) * kPack, x_r[p]);
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < c; i += THREADS * kPack) {
        float more_r[kPack];
        load_pack(x, i, c, vec, more_r);
        center(i, more_r);
    }
    const float rstd = 1.0f / sqrtf(row_sum<THREADS>(squares) / static_cast<float>(c) + eps);
    if (lane == 0) moments[row] = Moments{mean, rstd};
    auto put = [&](uint32_t i, float(&v)[kPack]) {
        float w_r[kPack];
        load_pack(gain, i, c, vec, w_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) v[k] *= rstd * w_r[k];
        load_pack(bias, i, c, vec, w_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) v[k] += w_r[k];
        store_pack(y, i, c, vec, v);
    };
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
        const uint32_t i = (p * THREADS + lane) * kPack;
        if (i < c) put(i, x_r[p]);
    }
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < c; i += THREADS * kPack) {
        float more_r[kPack];
        load_pack(x, i, c, vec, more_r);
        center(i, more_r);
        put(i, more_r);
    }
}

template <int THREADS, typename T>
__device__ __forceinline__ void backward(const T* dy, const T* x, const T* gain, const Moments* moments, T* dx,
                                         uint32_t rows, uint32_t c) {
    const uint32_t lane = threadIdx.x % THREADS;
    const uint64_t row = row_of_thread<THREADS>();
    if (row >= rows) return;
    const bool vec = c % kPack == 0;
    const Moments of = moments[row];
    dy += row * c;
    x += row * c;
    dx += row * c;
    // Deviations, and gradients behind the gain: 0 behind the end of the row.
    auto load = [&](uint32_t i, float(&x_out)[kPack], float(&dy_out)[kPack]) {
        float gain_r[kPack];
        load_pack(x, i, c, vec, x_out);
        load_pack(dy, i, c, vec, dy_out);
        load_pack(gain, i, c, vec, gain_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            x_out[k] -= of.mean;
            dy_out[k] = __fmul_rn(dy_out[k], gain_r[k]);
        }
    };
    float x_r[kHeld][kPack], dy_r[kHeld][kPack];
    float sum = 0.0f, dot = 0.0f;
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
        load((p * THREADS + lane) * kPack, x_r[p], dy_r[p]);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            sum += dy_r[p][k];
            dot += x_r[p][k] * dy_r[p][k];
        }
    }
    float x1_r[kPack], dy1_r[kPack];
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < c; i += THREADS * kPack) {
        load(i, x1_r, dy1_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            sum += dy1_r[k];
            dot += x1_r[k] * dy1_r[k];
        }
    }
    const float count = static_cast<float>(c);
    sum = row_sum<THREADS>(sum) / count;
    dot = row_sum<THREADS>(dot) / count * of.rstd * of.rstd;
    auto put = [&](uint32_t i, const float(&x_in)[kPack], const float(&dy_in)[kPack]) {
        float out_r[kPack];
        load_pack(dx, i, c, vec, out_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            // Never fused, as in rmsnorm.cu.
            out_r[k] += of.rstd * (dy_in[k] - sum - __fmul_rn(x_in[k], dot));
        }
        store_pack(dx, i, c, vec, out_r);
    };
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
        const uint32_t i = (p * THREADS + lane) * kPack;
        if (i < c) put(i, x_r[p], dy_r[p]);
    }
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < c; i += THREADS * kPack) {
        load(i, x1_r, dy1_r);
        put(i, x1_r, dy1_r);
    }
}

// Sums dy (x - mean) rstd over kRows rows.
template <typename T>
__device__ __forceinline__ void gain_partial(const T* dy, const T* x, const Moments* moments, float* partials,
                                             uint32_t rows, uint32_t c) {
    const uint32_t column = blockIdx.x * kBlock + threadIdx.x;
    if (column >= c) return;
    const uint32_t begin = blockIdx.y * kRows, end = min(begin + kRows, rows);
    float sum = 0.0f;
#pragma unroll 4
    for (uint32_t row = begin; row < end; ++row) {
        const uint64_t at = static_cast<uint64_t>(row) * c + column;
        const Moments of = moments[row];
        sum += widen(dy[at]) * (widen(x[at]) - of.mean) * of.rstd;
    }
    partials[static_cast<uint64_t>(blockIdx.y) * c + column] = sum;
}

// Grid: _warp ceil(rows / 8) blocks, _block rows. Three blocks a processor: aiming at four spills registers.
#define FORWARD(name, threads, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(kBlock, 3)                                        \
        name(const T* x, const T* gain, const T* bias, T* y, Moments* moments, uint32_t rows,      \
             uint32_t c, float eps) {                                                              \
        ptx::grid_enter();                                                                         \
        forward<threads>(x, gain, bias, y, moments, rows, c, eps);                                 \
    }                                                                                              \
    KERNEL_EXPORT(name)

FORWARD(layernorm_fwd_bf16_warp, kWarp, uint16_t);
FORWARD(layernorm_fwd_bf16_block, kBlock, uint16_t);
FORWARD(layernorm_fwd_f32_warp, kWarp, float);
FORWARD(layernorm_fwd_f32_block, kBlock, float);

// Adds to dx. Grid as above.
#define BACKWARD(name, threads, T)                                                                 \
    extern "C" __global__ void __launch_bounds__(kBlock)                                           \
        name(const T* dy, const T* x, const T* gain, const Moments* moments, T* dx, uint32_t rows, \
             uint32_t c) {                                                                         \
        ptx::grid_enter();                                                                         \
        backward<threads>(dy, x, gain, moments, dx, rows, c);                                      \
    }                                                                                              \
    KERNEL_EXPORT(name)

BACKWARD(layernorm_bwd_bf16_warp, kWarp, uint16_t);
BACKWARD(layernorm_bwd_bf16_block, kBlock, uint16_t);
BACKWARD(layernorm_bwd_f32_warp, kWarp, float);
BACKWARD(layernorm_bwd_f32_block, kBlock, float);

// Grid: ceil(c / 256) x ceil(rows / 64) blocks; partials [parts, c].
extern "C" __global__ void __launch_bounds__(kBlock)
    layernorm_dgain_bf16(const uint16_t* dy, const uint16_t* x, const Moments* moments, float* partials,
                         uint32_t rows, uint32_t c) {
    ptx::grid_enter();
    gain_partial(dy, x, moments, partials, rows, c);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    layernorm_dgain_f32(const float* dy, const float* x, const Moments* moments, float* partials,
                        uint32_t rows, uint32_t c) {
    ptx::grid_enter();
    gain_partial(dy, x, moments, partials, rows, c);
}

KERNEL_EXPORT(layernorm_dgain_bf16);
KERNEL_EXPORT(layernorm_dgain_f32);

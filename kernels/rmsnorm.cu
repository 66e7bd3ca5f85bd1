// RMSNorm of rows, and of the query and key heads of qkv rows.
//
// rstd = 1 / sqrt(mean(x^2) + eps), y = x rstd g (+ residual) with g = plus + gain.
// Backward: dx = rstd (dy g - x rstd^2 mean(dy g x)), added to dx for rows, in place of dy for heads;
//           dgain += sum over rows of dy x rstd.
// Shape: a unit is a row or a head, with a warp (up to 1024 numbers) or a block of its own. It is read once and kept in
// registers up to 1024 or 8192 numbers; what is beyond is read again, from the L2 cache. The gain's gradient has
// two stages: fp32 partials of 64 units each, then their sum in order; both follow from shapes alone.
// fp32 inside, stored to nearest. Bytes a number, in units of the storage: forward 1 read, 1 written; backward 3 read
// (heads: 2), 1 written. Roof: device memory.
// Source: arXiv 1910.07467.
#include "rows.cuh"

constexpr int kHeld = 4;          // packs a thread keeps in registers
constexpr uint32_t kUnits = 64;   // units a partial of the gain's gradient covers

// How units lie in rows: unit u is head u % heads of row u / heads.
struct Units {
    uint64_t count;
    uint32_t width, heads, normed, queries, d;
};

template <int THREADS, typename T>
__device__ __forceinline__ void forward(const T* x, const T* gain, const T* gain_keys,
                                        const T* residual, T* y, float* rstd, Units units, float eps,
                                        float plus) {
    const uint32_t lane = threadIdx.x % THREADS;
    const uint64_t unit = static_cast<uint64_t>(blockIdx.x) * (kBlock / THREADS) + threadIdx.x / THREADS;
    // The same for all threads of a unit, whose sums none of them may miss.
    if (unit >= units.count) return;
    const uint64_t row = unit / units.heads;
    const uint32_t head = static_cast<uint32_t>(unit % units.heads), d = units.d;
    const uint64_t at = row * units.width + static_cast<uint64_t>(head) * d;
    const bool vec = d % kPack == 0;
    const bool copied = head >= units.normed;
    if (head >= units.queries) gain = gain_keys;
    float x_r[kHeld][kPack];
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
        load_pack(x + at, (p * THREADS + lane) * kPack, d, vec, x_r[p]);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum += x_r[p][k] * x_r[p][k];
    }
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < d; i += THREADS * kPack) {
        float more_r[kPack];
        load_pack(x + at, i, d, vec, more_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum += more_r[k] * more_r[k];
    }
    sum = row_sum<THREADS>(sum);
    const float scale = copied ? 1.0f : 1.0f / sqrtf(sum / static_cast<float>(d) + eps);
    if (lane == 0 && !copied) rstd[row * units.normed + head] = scale;
    auto put = [&](uint32_t i, float(&v)[kPack]) {
        if (!copied) {
            float gain_r[kPack];
            load_pack(gain, i, d, vec, gain_r);
#pragma unroll
            for (int k = 0; k < kPack; ++k) v[k] = v[k] * scale * (plus + gain_r[k]);
        }
        if (residual != nullptr) {
            float add_r[kPack];
            load_pack(residual + at, i, d, vec, add_r);
#pragma unroll
            for (int k = 0; k < kPack; ++k) v[k] += add_r[k];
        }
        store_pack(y + at, i, d, vec, v);
    };
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
        const uint32_t i = (p * THREADS + lane) * kPack;
        if (i < d) put(i, x_r[p]);
    }
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < d; i += THREADS * kPack) {
        float more_r[kPack];
        load_pack(x + at, i, d, vec, more_r);
        put(i, more_r);
    }
}

// ADD: dx += ..., else dx = ...; dy and dx may be the same buffer.
template <int THREADS, bool ADD, typename T>
__device__ __forceinline__ void backward(const T* dy, const T* x, const T* gain, const T* gain_keys,
                                         const float* rstd, T* dx, Units units, float plus) {
    const uint32_t lane = threadIdx.x % THREADS;
    const uint64_t unit = static_cast<uint64_t>(blockIdx.x) * (kBlock / THREADS) + threadIdx.x / THREADS;
    if (unit >= units.count) return;
    const uint64_t row = unit / units.heads;
    const uint32_t head = static_cast<uint32_t>(unit % units.heads), d = units.d;
    const uint64_t at = row * units.width + static_cast<uint64_t>(head) * d;
    const bool vec = d % kPack == 0;
    if (head >= units.queries) gain = gain_keys;
    auto load = [&](uint32_t i, float(&x_out)[kPack], float(&dy_out)[kPack]) {
        float gain_r[kPack];
        load_pack(x + at, i, d, vec, x_out);
        load_pack(dy + at, i, d, vec, dy_out);
        load_pack(gain, i, d, vec, gain_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) dy_out[k] = __fmul_rn(dy_out[k], plus + gain_r[k]);
    };
    float x_r[kHeld][kPack], dy_r[kHeld][kPack];
    float dot = 0.0f;
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
        load((p * THREADS + lane) * kPack, x_r[p], dy_r[p]);
#pragma unroll
        for (int k = 0; k < kPack; ++k) dot += x_r[p][k] * dy_r[p][k];
    }
    float x1_r[kPack], dy1_r[kPack];
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < d; i += THREADS * kPack) {
        load(i, x1_r, dy1_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) dot += x1_r[k] * dy1_r[k];
    }
    dot = row_sum<THREADS>(dot);
    const float scale = rstd[row * units.normed + head];
    const float mean = dot / static_cast<float>(d) * scale * scale;
    auto put = [&](uint32_t i, const float(&x_in)[kPack], const float(&dy_in)[kPack]) {
        float out_r[kPack] = {};
        if (ADD) load_pack(dx + at, i, d, vec, out_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            // Never fused, nor dy's own product: what is left of two nearly equal numbers (at width 1 nothing) is what
            // their roundings make it.
            out_r[k] += scale * (dy_in[k] - __fmul_rn(x_in[k], mean));
        }
        store_pack(dx + at, i, d, vec, out_r);
    };
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
        const uint32_t i = (p * THREADS + lane) * kPack;
        if (i < d) put(i, x_r[p], dy_r[p]);
    }
    // In place: a thread reads again only what it alone writes.
    for (uint32_t i = (kHeld * THREADS + lane) * kPack; i < d; i += THREADS * kPack) {
        load(i, x1_r, dy1_r);
        put(i, x1_r, dy1_r);
    }
}

// Sums dy x rstd over kUnits units; here a unit is head first + u % heads of row u / heads.
template <typename T>
__device__ __forceinline__ void gain_partial(const T* dy, const T* x, const float* rstd,
                                             float* partials, Units units, uint32_t first) {
    const uint32_t column = blockIdx.x * kBlock + threadIdx.x;
    if (column >= units.d) return;
    const uint64_t begin = static_cast<uint64_t>(blockIdx.y) * kUnits;
    const uint64_t end = begin + kUnits < units.count ? begin + kUnits : units.count;
    float sum = 0.0f;
#pragma unroll 4
    for (uint64_t u = begin; u < end; ++u) {
        const uint64_t row = u / units.heads;
        const uint64_t head = first + u % units.heads;
        const uint64_t at = row * units.width + head * units.d + column;
        sum += widen(dy[at]) * widen(x[at]) * rstd[row * units.normed + head];
    }
    partials[static_cast<uint64_t>(blockIdx.y) * units.d + column] = sum;
}

// `rows` rows of `heads` units of width d, of which the first `normed` are normed (the others are copied), with the
// first gain for the first `queries`. Grid: _warp ceil(rows * heads / 8) blocks, _block rows * heads.
#define FORWARD(name, threads, T)                                                                 \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(const T* x, const T* gain, const T* gain_keys, const T* residual, T* y, float* rstd, \
             uint32_t rows, uint32_t width, uint32_t heads, uint32_t normed, uint32_t queries,    \
             uint32_t d, float eps, float plus) {                                                                         \
        ptx::grid_enter();                                                                        \
        Units units = {static_cast<uint64_t>(rows) * heads, width, heads, normed, queries, d};    \
        forward<threads>(x, gain, gain_keys, residual, y, rstd, units, eps, plus);                \
    }                                                                                             \
    KERNEL_EXPORT(name)

FORWARD(rmsnorm_fwd_bf16_warp, kWarp, uint16_t);
FORWARD(rmsnorm_fwd_bf16_block, kBlock, uint16_t);
FORWARD(rmsnorm_fwd_f32_warp, kWarp, float);
FORWARD(rmsnorm_fwd_f32_block, kBlock, float);

// Row u / heads, head u % heads; `heads` counts normed heads only. rmsnorm adds to dx, qk_norm overwrites it.
#define BACKWARD(name, threads, add, T)                                                           \
    extern "C" __global__ void __launch_bounds__(kBlock)                                          \
        name(const T* dy, const T* x, const T* gain, const T* gain_keys, const float* rstd,       \
             T* dx, uint32_t rows, uint32_t width, uint32_t heads, uint32_t queries,              \
             uint32_t d, float plus) {                                                            \
        ptx::grid_enter();                                                                        \
        Units units = {static_cast<uint64_t>(rows) * heads, width, heads, heads, queries, d};     \
        backward<threads, add>(dy, x, gain, gain_keys, rstd, dx, units, plus);                    \
    }                                                                                             \
    KERNEL_EXPORT(name)

BACKWARD(rmsnorm_bwd_bf16_warp, kWarp, true, uint16_t);
BACKWARD(rmsnorm_bwd_bf16_block, kBlock, true, uint16_t);
BACKWARD(rmsnorm_bwd_f32_warp, kWarp, true, float);
BACKWARD(rmsnorm_bwd_f32_block, kBlock, true, float);
BACKWARD(qk_norm_bwd_bf16_warp, kWarp, false, uint16_t);
BACKWARD(qk_norm_bwd_bf16_block, kBlock, false, uint16_t);
BACKWARD(qk_norm_bwd_f32_warp, kWarp, false, float);
BACKWARD(qk_norm_bwd_f32_block, kBlock, false, float);

// Grid: ceil(d / 256) x ceil(rows * heads / 64) blocks; partials [parts, d].
extern "C" __global__ void __launch_bounds__(kBlock)
    rmsnorm_dgain_bf16(const uint16_t* dy, const uint16_t* x, const float* rstd, float* partials,
                       uint32_t rows, uint32_t width, uint32_t heads, uint32_t normed,
                       uint32_t first, uint32_t d) {
    ptx::grid_enter();
    Units units = {static_cast<uint64_t>(rows) * heads, width, heads, normed, 0, d};
    gain_partial(dy, x, rstd, partials, units, first);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    rmsnorm_dgain_f32(const float* dy, const float* x, const float* rstd, float* partials,
                      uint32_t rows, uint32_t width, uint32_t heads, uint32_t normed, uint32_t first,
                      uint32_t d) {
    ptx::grid_enter();
    Units units = {static_cast<uint64_t>(rows) * heads, width, heads, normed, 0, d};
    gain_partial(dy, x, rstd, partials, units, first);
}

KERNEL_EXPORT(rmsnorm_dgain_bf16);
KERNEL_EXPORT(rmsnorm_dgain_f32);

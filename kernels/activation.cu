// Activations of MLPs: y = act(x), or y = act(gate) up, a row being F gates and then F ups.
//
// silu x / (1 + exp(-x)); gelu x Phi(x); gelu_tanh x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2; relu max(x, 0).
// Backward in place: x (or gates and ups) become their gradients, and dy becomes y, which the weight gradient of the
// next product reads; y has the forward pass's bits.
// Shape: elementwise, a thread takes eight numbers of a row; fp32 inside, stored to nearest. Which function it is does
// not differ between threads.
// Bytes a number, in units of the storage: forward 1 (gated 2) read, 1 written; backward 2 (3) read, 2 (3) written.
// Roof: device memory.
// Source: arXiv 1606.08415 (GELU); arXiv 2002.05202 (gates).
#include "rows.cuh"
#include "swiglu.cuh"

// As the host numbers them.
enum Kind : uint32_t { kSilu, kGelu, kGeluTanh, kRelu };

// The function at x, and its derivative.
struct Curve {
    float value, slope;
};

__device__ __forceinline__ Curve curve(uint32_t kind, float x) {
    if (kind == kRelu) return x > 0.0f ? Curve{x, 1.0f} : Curve{0.0f, 0.0f};
    if (kind == kGelu) {
        constexpr float kLog2e = 1.44269504f;
        const float normal = 0.5f + 0.5f * erff(0.707106781f * x);
        const float density = 0.398942280f * ptx::exp2_approx(-0.5f * kLog2e * x * x);
        return Curve{x * normal, normal + x * density};
    }
    // silu of 2 sqrt(2/pi) (x + 0.044715 x^3) in place of x, as (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)).
    const bool tanh = kind == kGeluTanh;
    const float square = 0.044715f * x * x;
    const float inner = tanh ? 1.59576912f * (x + square * x) : x;
    const float slope = tanh ? 1.59576912f * (1.0f + 3.0f * square) : 1.0f;
    // 1 - s, which the slope multiplies by up to some tens, as a quotient of its own: no difference of near numbers.
    const float s = sigmoid(inner), rest = sigmoid(-inner), value = x * s;
    return Curve{value, s + value * rest * slope};
}

struct Place {
    uint64_t row;
    uint32_t at;
    bool inside;
};

__device__ __forceinline__ Place place(uint32_t n, uint32_t f) {
    const uint32_t packs = (f + kPack - 1) / kPack;
    const uint64_t index = static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
    return {index / packs, static_cast<uint32_t>(index % packs) * kPack,
            index < static_cast<uint64_t>(n) * packs};
}

template <typename T>
__device__ __forceinline__ void activation(const T* x, T* y, uint32_t n, uint32_t f, uint32_t kind, uint32_t gated) {
    const Place to = place(n, f);
    if (!to.inside) return;
    const bool vec = f % kPack == 0;
    const T* from = x + to.row * (gated != 0 ? 2 : 1) * f;
    float x_r[kPack], up_r[kPack];
    load_pack(from, to.at, f, vec, x_r);
    if (gated != 0) load_pack(from + f, to.at, f, vec, up_r);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        x_r[k] = curve(kind, x_r[k]).value;
        if (gated != 0) x_r[k] *= up_r[k];
    }
    store_pack(y + to.row * f, to.at, f, vec, x_r);
}

template <typename T>
__device__ __forceinline__ void activation_bwd(T* dy, T* x, uint32_t n, uint32_t f, uint32_t kind, uint32_t gated) {
    const Place to = place(n, f);
    if (!to.inside) return;
    const bool vec = f % kPack == 0;
    T* from = x + to.row * (gated != 0 ? 2 : 1) * f;
    float x_r[kPack], up_r[kPack], y_r[kPack];
    load_pack(from, to.at, f, vec, x_r);
    load_pack(dy + to.row * f, to.at, f, vec, y_r);
    if (gated != 0) load_pack(from + f, to.at, f, vec, up_r);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        const Curve at = curve(kind, x_r[k]);
        const float dy_1 = y_r[k];
        y_r[k] = at.value;
        x_r[k] = dy_1 * at.slope;
        if (gated != 0) {
            y_r[k] *= up_r[k];
            x_r[k] *= up_r[k];
            up_r[k] = dy_1 * at.value;
        }
    }
    store_pack(from, to.at, f, vec, x_r);
    if (gated != 0) store_pack(from + f, to.at, f, vec, up_r);
    store_pack(dy + to.row * f, to.at, f, vec, y_r);
}

// Grid: ceil(n * ceil(f / 8) / 256) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    activation_fwd_bf16(const uint16_t* x, uint16_t* y, uint32_t n, uint32_t f, uint32_t kind, uint32_t gated) {
    ptx::grid_enter();
    activation(x, y, n, f, kind, gated);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    activation_fwd_f32(const float* x, float* y, uint32_t n, uint32_t f, uint32_t kind, uint32_t gated) {
    ptx::grid_enter();
    activation(x, y, n, f, kind, gated);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    activation_bwd_bf16(uint16_t* dy, uint16_t* x, uint32_t n, uint32_t f, uint32_t kind, uint32_t gated) {
    ptx::grid_enter();
    activation_bwd(dy, x, n, f, kind, gated);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    activation_bwd_f32(float* dy, float* x, uint32_t n, uint32_t f, uint32_t kind, uint32_t gated) {
    ptx::grid_enter();
    activation_bwd(dy, x, n, f, kind, gated);
}

KERNEL_EXPORT(activation_fwd_bf16);
KERNEL_EXPORT(activation_fwd_f32);
KERNEL_EXPORT(activation_bwd_bf16);
KERNEL_EXPORT(activation_bwd_f32);

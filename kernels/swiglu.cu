// SwiGLU: y = silu(gate) up with silu(g) = g / (1 + exp(-g)), a row being F gates and then F ups.
//
// Backward in place: gates and ups become their gradients, and dy becomes y, which the weight gradient of the next
// product reads. swiglu.cuh has the formulas; gemm_swiglu.cu does the same at the end of a product.
// Shape: elementwise, a thread takes eight numbers of a row; fp32 inside, stored to nearest.
// Bytes a number, in units of the storage: forward 2 read, 1 written; backward 3 read, 3 written. Roof: device memory.
// Source: GLU Variants Improve Transformer, arXiv 2002.05202.
#include "rows.cuh"
#include "swiglu.cuh"

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
__device__ __forceinline__ void swiglu(const T* gate_up, T* y, uint32_t n, uint32_t f) {
    const Place to = place(n, f);
    if (!to.inside) return;
    const bool vec = f % kPack == 0;
    const T* gate = gate_up + to.row * 2 * f;
    float gate_r[kPack], up_r[kPack];
    load_pack(gate, to.at, f, vec, gate_r);
    load_pack(gate + f, to.at, f, vec, up_r);
#pragma unroll
    for (int k = 0; k < kPack; ++k) up_r[k] = swiglu_of(gate_r[k], up_r[k]);
    store_pack(y + to.row * f, to.at, f, vec, up_r);
}

template <typename T>
__device__ __forceinline__ void swiglu_bwd(T* dy, T* gate_up, uint32_t n, uint32_t f) {
    const Place to = place(n, f);
    if (!to.inside) return;
    const bool vec = f % kPack == 0;
    T* gate = gate_up + to.row * 2 * f;
    float gate_r[kPack], up_r[kPack], y_r[kPack];
    load_pack(gate, to.at, f, vec, gate_r);
    load_pack(gate + f, to.at, f, vec, up_r);
    load_pack(dy + to.row * f, to.at, f, vec, y_r);
#pragma unroll
    for (int k = 0; k < kPack; ++k) swiglu_turn(gate_r[k], up_r[k], y_r[k]);
    store_pack(gate, to.at, f, vec, gate_r);
    store_pack(gate + f, to.at, f, vec, up_r);
    store_pack(dy + to.row * f, to.at, f, vec, y_r);
}

// Grid: ceil(n * ceil(f / 8) / 256) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    swiglu_fwd_bf16(const uint16_t* gate_up, uint16_t* y, uint32_t n, uint32_t f) {
    ptx::grid_enter();
    swiglu(gate_up, y, n, f);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    swiglu_fwd_f32(const float* gate_up, float* y, uint32_t n, uint32_t f) {
    ptx::grid_enter();
    swiglu(gate_up, y, n, f);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    swiglu_bwd_bf16(uint16_t* dy, uint16_t* gate_up, uint32_t n, uint32_t f) {
    ptx::grid_enter();
    swiglu_bwd(dy, gate_up, n, f);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    swiglu_bwd_f32(float* dy, float* gate_up, uint32_t n, uint32_t f) {
    ptx::grid_enter();
    swiglu_bwd(dy, gate_up, n, f);
}

KERNEL_EXPORT(swiglu_fwd_bf16);
KERNEL_EXPORT(swiglu_fwd_f32);
KERNEL_EXPORT(swiglu_bwd_bf16);
KERNEL_EXPORT(swiglu_bwd_f32);

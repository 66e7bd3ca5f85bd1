// GEMMs with SwiGLU in the epilogue: gate | up with SwiGLU behind it, and the input gradient of the product after SwiGLU,
// sent back through it.
//
// Forward: gate_up[m, 2F] = x[m,k] w[2F,k]^T (+ bias), y[m,F] = silu(gate) up of the numbers as stored, so that y is
// what swiglu.cu makes of gate_up, bit for bit. Half of a tile's columns are gates and half are the ups of the same
// places: both rows of w are fetched as they lie, no interleaved copy of w exists. Where nobody reads gate_up later
// (a teacher's pass) it is not written: flag 4.
// Backward: dy[m,F] = dx[m,k] w[k,F] never leaves the chip; gate_up becomes its gradient in place, and y is made
// again for the weight gradient that comes next.
// Shape: that of gemm.cuh. `flags`: 2, rows of gate_up and y are whole 16-byte packs.
// Bytes read + written, bf16: forward 2 (mk + 2Fk) + 6 mF (2 mF without gate_up), which saves 4 mF of reading gate_up
// back; backward 2 (mk + kF) + 10 mF, which saves the 4 mF of storing and reading dy, and 6 mF of making y apart.
// Roof: tensor cores.
#include "gemm_gated.cuh"

template <typename T>
struct Ungated {
    static constexpr bool kHalves = false;
    static constexpr int kBatch = 2;
    struct Held {
        Raw gate, up;
    };
    T* gate_up;
    T* y;
    uint32_t f;
    bool packed;

    __device__ __forceinline__ void begin(Held& held, uint32_t row, uint32_t col, uint32_t count) const {
        if (!packed || count < kChunk) return;
        const T* at = gate_up + row * 2ull * f + col;
        held.gate.load(at);
        held.up.load(at + f);
    }

    __device__ __forceinline__ void end(const Held& held, uint32_t row, uint32_t col, uint32_t count,
                                        const float* x) const {
        T* at = gate_up + row * 2ull * f + col;
        float gate[kChunk], up[kChunk], out[kChunk];
        sums_of(x, static_cast<const T*>(nullptr), count, out);
        if (packed && count == kChunk) {
            held.gate.template unpack<T>(gate);
            held.up.template unpack<T>(up);
        } else {
            load_some(at, count, gate);
            load_some(at + f, count, up);
        }
#pragma unroll
        for (int e = 0; e < kChunk; ++e) swiglu_turn(gate[e], up[e], out[e]);
        store_row(at, count, packed, gate);
        store_row(at + f, count, packed, up);
        store_row(y + row * static_cast<uint64_t>(f) + col, count, packed, out);
    }
};

// Grid: ceil(m / BM) ceil(f / (BN / 2)) blocks in one row.
#define GATED_KERNEL(NAME, T, TILE, ALIGNED)                                                                 \
    extern "C" __global__ void __launch_bounds__(TILE::kThreads)                                             \
        NAME(const T* x, const T* w, const T* bias, T* gate_up, T* y, uint32_t m, uint32_t f, uint32_t k,    \
             uint32_t flags) {                                                                               \
        ptx::grid_enter();                                                                                   \
        Gated<T, TILE> epilogue{gate_up, y, bias, f, (flags & 4) == 0, (flags & 2) != 0};                    \
        gemm_block<T, TILE, true, true, ALIGNED>(x, k, w, k, m, f, k, f, epilogue);                          \
    }                                                                                                        \
    KERNEL_EXPORT(NAME)
// Grid: ceil(m / BM) ceil(f / BN) blocks in one row.
#define UNGATED_KERNEL(NAME, T, TILE, ALIGNED)                                                               \
    extern "C" __global__ void __launch_bounds__(TILE::kThreads)                                             \
        NAME(const T* dx, const T* w, T* gate_up, T* y, uint32_t m, uint32_t f, uint32_t k, uint32_t flags) { \
        ptx::grid_enter();                                                                                    \
        Ungated<T> epilogue{gate_up, y, f, (flags & 2) != 0};                                                \
        gemm_block<T, TILE, true, false, ALIGNED>(dx, k, w, f, m, f, k, 0, epilogue);                        \
    }                                                                                                        \
    KERNEL_EXPORT(NAME)
#define SWIGLU_KERNELS(KIND, NAME, T)        \
    KIND(NAME##_128x256, T, Large, true);    \
    KIND(NAME##_128x128, T, Medium, true);   \
    KIND(NAME##_64x64, T, Small, true);      \
    KIND(NAME##_any, T, Small, false)

SWIGLU_KERNELS(GATED_KERNEL, gemm_swiglu_bf16, uint16_t);
SWIGLU_KERNELS(GATED_KERNEL, gemm_swiglu_f32, float);
SWIGLU_KERNELS(UNGATED_KERNEL, gemm_swiglu_bwd_bf16, uint16_t);
SWIGLU_KERNELS(UNGATED_KERNEL, gemm_swiglu_bwd_f32, float);

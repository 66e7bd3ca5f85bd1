// The qkv GEMM with rotary positions applied to its result: qkv[m, (H+2G) D] = rope(x[m,k] w^T (+ bias)).
//
// Pair (i, i + R/2) of the H query and G key heads turns as rope.cu says; value heads pass. The sums turn before
// they are rounded to storage.
// Shape: that of gemm.cuh. A tile holds whole heads (D divides BN), so both members of a pair are staged in one row,
// and a chunk of eight columns reads its partner chunk there. Angles come from the tables of rope.cu, asked for
// before the sums are read.
// The host takes this kernel where D is a power of two that divides BN, R/2 a multiple of eight, and all rows are
// whole 16-byte packs; elsewhere product and rotation are two kernels.
// Bytes read + written, bf16: those of the product; saves 4 m (H+G) D of reading and writing the rows again.
// Roof: tensor cores.
#include "gemm.cuh"

template <typename T>
struct Rotate {
    static constexpr bool kHalves = false;
    static constexpr int kBatch = 2;
    struct Held {
        Pack32 cosines[2], sines[2];
    };
    T* c;
    const T* bias;
    const uint32_t* positions;
    const float* cosines;
    const float* sines;
    uint32_t ldc, turned, d, half;  // columns that turn: (H+G) D; head width; R/2

    // Returns the column's place in its head, or d where its head does not turn.
    __device__ __forceinline__ uint32_t place(uint32_t col) const { return col < turned ? col & (d - 1) : d; }

    __device__ __forceinline__ void begin(Held& held, uint32_t row, uint32_t col, uint32_t) const {
        uint32_t at = place(col);
        if (at >= 2 * half) return;
        uint64_t angle = static_cast<uint64_t>(positions[row]) * half + (at < half ? at : at - half);
        // Aligned: half and the place are multiples of eight.
        held.cosines[0] = load32(cosines + angle);
        held.cosines[1] = load32(cosines + angle + 4);
        held.sines[0] = load32(sines + angle);
        held.sines[1] = load32(sines + angle + 4);
    }

    __device__ __forceinline__ void end(const Held& held, uint32_t row, uint32_t col, uint32_t count,
                                        const float* x) const {
        float own[kChunk];
        sums_of(x, bias == nullptr ? bias : bias + col, count, own);
        uint32_t at = place(col);
        if (at < 2 * half) {
            int partner = at < half ? static_cast<int>(half) : -static_cast<int>(half);
            float other[kChunk];
            sums_of(x + partner, bias == nullptr ? bias : bias + col + partner, count, other);
#pragma unroll
            for (int e = 0; e < kChunk; ++e) {
                float cosine = held.cosines[e / 4].v[e % 4], sine = held.sines[e / 4].v[e % 4];
                own[e] = own[e] * cosine + (at < half ? -other[e] : other[e]) * sine;
            }
        }
        store_row(c + row * static_cast<uint64_t>(ldc) + col, count, true, own);
    }
};

// Grid: ceil(m / BM) ceil(n / BN) blocks in one row; n is the width of a qkv row.
#define ROPE_KERNEL(NAME, T, TILE)                                                                            \
    extern "C" __global__ void __launch_bounds__(TILE::kThreads)                                              \
        NAME(const T* x, const T* w, T* qkv, const T* bias, const uint32_t* positions, const float* cosines,  \
             const float* sines, uint32_t m, uint32_t n, uint32_t k, uint32_t turned, uint32_t d,             \
             uint32_t half) {                                                                                 \
        ptx::grid_enter();                                                                                    \
        Rotate<T> epilogue{qkv, bias, positions, cosines, sines, n, turned, d, half};                         \
        gemm_block<T, TILE, true, true, true>(x, k, w, k, m, n, k, 0, epilogue);                              \
    }                                                                                                         \
    KERNEL_EXPORT(NAME)
#define ROPE_KERNELS(NAME, T)             \
    ROPE_KERNEL(NAME##_128x256, T, Large);  \
    ROPE_KERNEL(NAME##_128x128, T, Medium); \
    ROPE_KERNEL(NAME##_64x64, T, Small)

ROPE_KERNELS(gemm_rope_bf16, uint16_t);
ROPE_KERNELS(gemm_rope_f32, float);

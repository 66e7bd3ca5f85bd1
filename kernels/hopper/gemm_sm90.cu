// Matrix products of bf16 operands on warpgroup products: C = A B (+ bias) (+ addend), C in bf16 or fp32.
//
// gemm.cuh says how and why, and holds the body; kernels/gemm_bf16.cu is the portable twin. `flags`: 1, C is fp32; 2,
// `addend`, a matrix of C's type and shape, is added: a residual, or C itself to accumulate. Old + new is made in fp32
// and rounded once, to nearest even; the first micro-batch of a weight gradient writes, later ones add.
// A weight gradient may come in parts (`rows`, `depth`: gemm.cuh), `c` then being all of them.
// Grid: as many blocks as processors, or as there are tiles where these are fewer.
// Bytes read + written: 2 (mk + nk) + |C| (+ |C| for the addend, on its way during the main loop).
// Roof: bf16 tensor cores. Predicted beyond gemm.cuh: reading a bf16 addend makes the exposed epilogue about 1500
// clocks of 65536 (k = 4096), an fp32 C about 2500: a weight gradient of 4096 tokens stays above 95 % of the pipe.
#include "gemm.cuh"

template <class S>
struct Store {
    static constexpr bool kHalves = false;
    const ptx::TensorMap& c;
    const ptx::TensorMap& addend;
    const uint16_t* bias;
    uint32_t n;
    bool wide, adds;

    __device__ __forceinline__ uint32_t boxes() const { return wide ? S::BN / 32 : S::BN / 64; }

    __device__ __forceinline__ uint32_t column(uint32_t box, uint32_t x) const { return x + box * (wide ? 32 : 64); }

    __device__ __forceinline__ void open(uint32_t box, uint32_t x, uint32_t y, uint32_t slot, uint32_t bar) const {
        if (adds) {
            ptx::mbar_expect(bar, kBox);
            ptx::tma_load(slot, addend, column(box, x), y, bar);
        } else {
            ptx::mbar_arrive(bar);
        }
    }

    __device__ __forceinline__ void store(uint32_t box, uint32_t x, uint32_t y, uint32_t slot) const {
        ptx::tma_store(c, column(box, x), y, slot);
    }

    __device__ __forceinline__ void run(float (&sum_r)[S::BN / 2], Ring& ring, uint32_t, uint32_t col) const {
        if (bias != nullptr) add_bias<0, S::BN / 8>(sum_r, bias, col, n);
        if (wide) {
#pragma unroll
            for (int b = 0; b < S::BN / 32; ++b) {
                uint8_t* box = ring.take();
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    int i = 4 * (4 * b + j);
                    float2& upper = pair_at(box, ring.place_f32(j));
                    float2& lower = pair_at(box, ring.place_f32(j) + 1024);
                    float2 old[2] = {};
                    if (adds) {
                        old[0] = upper;
                        old[1] = lower;
                    }
                    upper = make_float2(sum_r[i] + old[0].x, sum_r[i + 1] + old[0].y);
                    lower = make_float2(sum_r[i + 2] + old[1].x, sum_r[i + 3] + old[1].y);
                }
                ring.give(1);
            }
        } else {
#pragma unroll
            for (int b = 0; b < S::BN / 64; ++b) {
                uint8_t* box = ring.take();
                if (adds) {
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        int i = 4 * (8 * b + j);
                        uint32_t upper = word_at(box, ring.place_bf16(j));
                        uint32_t lower = word_at(box, ring.place_bf16(j) + 1024);
                        sum_r[i] += low_of(upper);
                        sum_r[i + 1] += high_of(upper);
                        sum_r[i + 2] += low_of(lower);
                        sum_r[i + 3] += high_of(lower);
                    }
                }
                put_bf16(sum_r, b, ring, box);
                ring.give(1);
            }
        }
    }
};

#define GEMM_KERNEL(NAME, SHAPE, A_OUTER, B_OUTER)                                                              \
    SM90_KERNEL NAME(const __grid_constant__ ptx::TensorMap a, const __grid_constant__ ptx::TensorMap b,        \
                     const __grid_constant__ ptx::TensorMap c, const __grid_constant__ ptx::TensorMap addend,   \
                     const uint16_t* bias, uint32_t m, uint32_t n, uint32_t k, uint32_t flags, uint32_t rows,   \
                     uint32_t depth) {                                                                          \
        Store<SHAPE> epilogue{c, addend, bias, n, (flags & 1) != 0, (flags & 2) != 0};                          \
        product<SHAPE, A_OUTER, B_OUTER>(a, b, m, n, k, 0, epilogue, rows, depth);                              \
    }                                                                                                           \
    SM90_EXPORT(NAME)
#define GEMM_KERNELS(NAME, A_OUTER, B_OUTER)           \
    GEMM_KERNEL(NAME##_128x256, Wide, A_OUTER, B_OUTER); \
    GEMM_KERNEL(NAME##_128x128, Square, A_OUTER, B_OUTER)

GEMM_KERNELS(gemm_sm90_nt, false, false);
GEMM_KERNELS(gemm_sm90_nn, false, true);
GEMM_KERNELS(gemm_sm90_tn, true, true);

// GEMMs with SwiGLU in the epilogue, with wgmma: gate | up with SwiGLU behind it, and the input gradient of the
// product after SwiGLU, sent back through it.
//
// gemm.cuh says how and why, and holds the body; kernels/gemm_swiglu.cu is the portable twin, with the same formulas
// and roundings: y is made of gate and up as stored, bit for bit what swiglu.cu makes of them.
// Forward: gate_up[m, 2F] = x[m,k] w[2F,k]^T (+ bias), y[m,F] = silu(gate) up. Half of a tile's columns are gates and
// half the ups of the same places, fetched as two boxes of rows of w, F apart; a thread holds both of a pair. Where
// nobody reads gate_up later it is not written: flag 4.
// Backward: dy[m,F] = dx[m,k] w[k,F] never leaves the chip; gate_up becomes its gradient in place, and y is made again
// for the weight gradient that comes next. Gate and up come through the ring of boxes, the first four of a tile's eight
// during its main loop.
// Bytes read + written, bf16: forward 2 (mk + 2Fk) + 6 mF (2 mF without gate_up); backward 2 (mk + kF) + 10 mF.
// Roof: tensor cores. Predicted beyond gemm.cuh: some 18 instructions for each pair of gate and up, conversions and
// stores included, two warps a scheduler. Forward: 64 pairs a thread, some 5000 exposed clocks of 73000 (k = 4096), 93 %
// of the plain product. Backward: 128 pairs, 8500 clocks (the special function unit alone takes 4100), 89 %; the
// elementwise pass that it saves moves 12 mF bytes, a third of this product's time.
#include "gemm.cuh"
#include "../swiglu.cuh"

template <class S>
struct Gated {
    static constexpr bool kHalves = true;
    const ptx::TensorMap& gate;
    const ptx::TensorMap& up;
    const ptx::TensorMap& y;
    const uint16_t* bias;
    uint32_t f;
    bool keep;

    // Three boxes for each 64 places: gates, ups, results; or results alone.
    __device__ __forceinline__ uint32_t boxes() const { return (keep ? 3 : 1) * (S::BN / 128); }

    __device__ __forceinline__ void open(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t bar) const {
        ptx::mbar_arrive(bar);
    }

    __device__ __forceinline__ void store(uint32_t box, uint32_t x, uint32_t row, uint32_t slot) const {
        uint32_t of = keep ? box % 3 : 2, col = x + (keep ? box / 3 : box) * 64;
        ptx::tma_store(of == 0 ? gate : of == 1 ? up : y, col, row, slot);
    }

    __device__ __forceinline__ void run(float (&sum_r)[S::BN / 2], Ring& ring, uint32_t, uint32_t col) const {
        constexpr int kUp = S::BN / 4;  // where the ups begin among the sums
        if (bias != nullptr) {
            add_bias<0, S::BN / 16>(sum_r, bias, col, f);
            add_bias<S::BN / 16, S::BN / 8>(sum_r, bias + f, col, f);
        }
#pragma unroll
        for (int b = 0; b < S::BN / 128; ++b) {
            uint8_t* gates = keep ? ring.take() : nullptr;
            uint8_t* ups = keep ? ring.take() : nullptr;
            uint8_t* results = ring.take();
#pragma unroll
            for (int j = 0; j < 8; ++j) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int i = 4 * (8 * b + j) + 2 * h;
                    uint32_t at = ring.place_bf16(j) + 1024 * h;
                    uint32_t g = ptx::pack_bf16(sum_r[i], sum_r[i + 1]);
                    uint32_t u = ptx::pack_bf16(sum_r[kUp + i], sum_r[kUp + i + 1]);
                    if (keep) {
                        word_at(gates, at) = g;
                        word_at(ups, at) = u;
                    }
                    word_at(results, at) = ptx::pack_bf16(swiglu_of(low_of(g), low_of(u)),
                                                          swiglu_of(high_of(g), high_of(u)));
                }
            }
            ring.give(keep ? 3 : 1);
        }
    }
};

template <class S>
struct Ungated {
    static constexpr bool kHalves = false;
    const ptx::TensorMap& gate;
    const ptx::TensorMap& up;
    const ptx::TensorMap& y;

    // Gates and ups of each 64 places by turns, read and written; then the results, which wait in the sums: a box among
    // them would keep one with old values from being loaded.
    static constexpr uint32_t kOld = 2 * (S::BN / 64);

    __device__ __forceinline__ uint32_t boxes() const { return kOld + S::BN / 64; }

    __device__ __forceinline__ void open(uint32_t box, uint32_t x, uint32_t row, uint32_t slot, uint32_t bar) const {
        if (box < kOld) {
            ptx::mbar_expect(bar, kBox);
            ptx::tma_load(slot, box % 2 == 0 ? gate : up, x + box / 2 * 64, row, bar);
        } else {
            ptx::mbar_arrive(bar);
        }
    }

    __device__ __forceinline__ void store(uint32_t box, uint32_t x, uint32_t row, uint32_t slot) const {
        const ptx::TensorMap& to = box >= kOld ? y : box % 2 == 0 ? gate : up;
        ptx::tma_store(to, x + (box < kOld ? box / 2 : box - kOld) * 64, row, slot);
    }

    __device__ __forceinline__ void run(float (&sum_r)[S::BN / 2], Ring& ring, uint32_t, uint32_t) const {
#pragma unroll
        for (int b = 0; b < S::BN / 64; ++b) {
            uint8_t* gates = ring.take();
            uint8_t* ups = ring.take();
#pragma unroll
            for (int j = 0; j < 8; ++j) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int i = 4 * (8 * b + j) + 2 * h;
                    uint32_t at = ring.place_bf16(j) + 1024 * h;
                    uint32_t g = word_at(gates, at), u = word_at(ups, at);
                    float gate_r[2] = {low_of(g), high_of(g)}, up_r[2] = {low_of(u), high_of(u)};
                    swiglu_turn(gate_r[0], up_r[0], sum_r[i]);
                    swiglu_turn(gate_r[1], up_r[1], sum_r[i + 1]);
                    word_at(gates, at) = ptx::pack_bf16(gate_r[0], gate_r[1]);
                    word_at(ups, at) = ptx::pack_bf16(up_r[0], up_r[1]);
                }
            }
            ring.give(2);
        }
#pragma unroll
        for (int b = 0; b < S::BN / 64; ++b) {
            put_bf16(sum_r, b, ring, ring.take());
            ring.give(1);
        }
    }
};

#define GATED_KERNEL(NAME, SHAPE)                                                                              \
    SM90_KERNEL NAME(const __grid_constant__ ptx::TensorMap x, const __grid_constant__ ptx::TensorMap w,       \
                     const __grid_constant__ ptx::TensorMap gate, const __grid_constant__ ptx::TensorMap up,   \
                     const __grid_constant__ ptx::TensorMap y, const uint16_t* bias, uint32_t m, uint32_t f,   \
                     uint32_t k, uint32_t flags) {                                                             \
        Gated<SHAPE> epilogue{gate, up, y, bias, f, (flags & 4) == 0};                                         \
        product<SHAPE, false, false>(x, w, m, f, k, f, epilogue);                                              \
    }                                                                                                          \
    SM90_EXPORT(NAME)
#define UNGATED_KERNEL(NAME, SHAPE)                                                                            \
    SM90_KERNEL NAME(const __grid_constant__ ptx::TensorMap dx, const __grid_constant__ ptx::TensorMap w,      \
                     const __grid_constant__ ptx::TensorMap gate, const __grid_constant__ ptx::TensorMap up,   \
                     const __grid_constant__ ptx::TensorMap y, uint32_t m, uint32_t f, uint32_t k) {           \
        Ungated<SHAPE> epilogue{gate, up, y};                                                                  \
        product<SHAPE, false, true>(dx, w, m, f, k, 0, epilogue);                                              \
    }                                                                                                          \
    SM90_EXPORT(NAME)

GATED_KERNEL(gemm_swiglu_sm90_128x256, Wide);
GATED_KERNEL(gemm_swiglu_sm90_128x128, Square);
UNGATED_KERNEL(gemm_swiglu_bwd_sm90_128x256, Wide);
UNGATED_KERNEL(gemm_swiglu_bwd_sm90_128x128, Square);

// The qkv GEMM with rotary positions applied to its result, with wgmma: qkv[m, (H+2G) D] = rope(x[m,k] w^T (+ bias)).
//
// gemm.cuh says how and why, and holds the body; kernels/gemm_rope.cu is the portable twin. Pair (i, i + D/2) of the H
// query and G key heads turns before it is rounded to storage; value heads pass.
// Shape: a tile holds whole heads, and a thread all pairs of its two rows that it holds one member of: columns c and
// c + D/2 are sums of the same thread, D / 16 eight-column groups apart, so the turn touches registers alone. Angles
// come from the fp32 tables of rope.cu; a head's are read once a row, 8 bytes a thread at a time.
// The host takes this kernel where D is 64 or 128 and all of a head turns; elsewhere the portable one, or two kernels.
// Bytes read + written, bf16: those of the product; saves 4 m (H+G) D of reading and writing the rows again. The
// tables' rows stay in the L2.
// Roof: tensor cores. Predicted beyond gemm.cuh: four rounds of 16 loads in flight, some 3500 exposed clocks for each
// tile that turns: at k = 4096 5 % below the plain product.
#include "gemm.cuh"

template <class S>
struct Rotate {
    static constexpr bool kHalves = false;
    const ptx::TensorMap& c;
    const uint16_t* bias;
    const uint32_t* positions;
    const float* cosines;
    const float* sines;
    uint32_t m, n, turned, d;  // columns that turn: (H+G) D; head width

    __device__ __forceinline__ uint32_t boxes() const { return S::BN / 64; }

    __device__ __forceinline__ void open(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t bar) const {
        ptx::mbar_arrive(bar);
    }

    __device__ __forceinline__ void store(uint32_t box, uint32_t x, uint32_t y, uint32_t slot) const {
        ptx::tma_store(c, x + box * 64, y, slot);
    }

    // Turns the pairs HALF apart of all heads of the tile.
    template <int HALF>
    __device__ __forceinline__ void turn(float (&sum_r)[S::BN / 2], uint32_t row, uint32_t col) const {
        const uint32_t lane_col = threadIdx.x % 4 * 2;
        uint64_t angle[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            uint32_t at = row + 8 * h;
            angle[h] = static_cast<uint64_t>(at < m ? positions[at] : 0) * HALF + lane_col;
        }
#pragma unroll
        for (int head = 0; head < S::BN / (2 * HALF); ++head) {
            if (col + head * 2 * HALF >= turned) continue;
#pragma unroll
            for (int j = 0; j < HALF / 8; ++j) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    // Aligned: a row of the table and the lane's column are even.
                    float2 cosine = *reinterpret_cast<const float2*>(cosines + angle[h] + 8 * j);
                    float2 sine = *reinterpret_cast<const float2*>(sines + angle[h] + 8 * j);
                    int i = 4 * (head * (HALF / 4) + j) + 2 * h, partner = i + HALF / 2;
                    float x = sum_r[i], y = sum_r[partner];
                    sum_r[i] = x * cosine.x - y * sine.x;
                    sum_r[partner] = y * cosine.x + x * sine.x;
                    x = sum_r[i + 1];
                    y = sum_r[partner + 1];
                    sum_r[i + 1] = x * cosine.y - y * sine.y;
                    sum_r[partner + 1] = y * cosine.y + x * sine.y;
                }
            }
        }
    }

    __device__ __forceinline__ void run(float (&sum_r)[S::BN / 2], Ring& ring, uint32_t row, uint32_t col) const {
        if (bias != nullptr) add_bias<0, S::BN / 8>(sum_r, bias, col, n);
        if (d == 128) {
            turn<64>(sum_r, row, col);
        } else {
            turn<32>(sum_r, row, col);
        }
#pragma unroll
        for (int b = 0; b < S::BN / 64; ++b) {
            put_bf16(sum_r, b, ring, ring.take());
            ring.give(1);
        }
    }
};

#define ROPE_KERNEL(NAME, SHAPE)                                                                               \
    SM90_KERNEL NAME(const __grid_constant__ ptx::TensorMap x, const __grid_constant__ ptx::TensorMap w,       \
                     const __grid_constant__ ptx::TensorMap qkv, const uint16_t* bias,                         \
                     const uint32_t* positions, const float* cosines, const float* sines, uint32_t m,          \
                     uint32_t n, uint32_t k, uint32_t turned, uint32_t d) {                                    \
        Rotate<SHAPE> epilogue{qkv, bias, positions, cosines, sines, m, n, turned, d};                         \
        product<SHAPE, false, false>(x, w, m, n, k, 0, epilogue);                                              \
    }                                                                                                          \
    SM90_EXPORT(NAME)

ROPE_KERNEL(gemm_rope_sm90_128x256, Wide);
ROPE_KERNEL(gemm_rope_sm90_128x128, Square);

// Shared by the tensor-core attention kernels: tiles of rows in shared memory, and their fragments.
#pragma once

#include "attention.cuh"

namespace attn {

constexpr int kMmaThreads = 128;
constexpr int kMmaRows = 64;  // rows a block owns; a warp owns 16 of them

// The other rows a step of the backward pass takes: wide heads leave fewer registers for scores.
template <int D>
constexpr int kMmaTile = D > 64 ? 32 : 64;

// Elements of a row in shared memory. The pitch is an odd number of 16-byte units for all D that are multiples
// of 16: the eight rows of an ldmatrix then lie in different banks, without a swizzle.
template <int D>
constexpr int kMmaPitch = D + 8;

// Starts copying ROWS rows of D elements; rows from `valid` (at least 1) on become zeros, so that products with
// them are 0 and not what the next document holds there.
template <int D, int ROWS>
__device__ __forceinline__ void stage_rows(uint16_t* to_s, const uint16_t* from, uint64_t stride,
                                           uint32_t valid) {
    constexpr uint32_t units = D / 8, all = ROWS * units;
#pragma unroll
    for (uint32_t i = 0; i < all; i += kMmaThreads) {
        uint32_t at = i + threadIdx.x, r = at / units, c = at % units * 8;
        bool inside = r < valid;
        if (all % kMmaThreads != 0 && at >= all) break;
        ptx::cp_async16(ptx::smem_u32(to_s + r * kMmaPitch<D> + c),
                        from + (inside ? r * stride : 0) + c, inside ? 16 : 0);
    }
}

// Where the lanes point in a tile at `tile_s`, in bytes of shared memory: one x4 load takes 16 rows by 16 columns.
// A operands, and B operands whose depth runs over rows (transposed on the way).
template <int D>
__device__ __forceinline__ uint32_t lanes_down(const uint16_t* tile_s) {
    uint32_t lane = threadIdx.x % kWarp;
    return ptx::smem_u32(tile_s + lane % 16 * kMmaPitch<D> + lane / 16 * 8);
}

// B operands whose depth runs over columns.
template <int D>
__device__ __forceinline__ uint32_t lanes_across(const uint16_t* tile_s) {
    uint32_t lane = threadIdx.x % kWarp;
    return ptx::smem_u32(tile_s + (lane / 16 * 8 + lane % 8) * kMmaPitch<D> + lane / 8 % 2 * 8);
}

// The A operand of 16 rows and columns 16 kk to 16 kk + 15.
template <int D>
__device__ __forceinline__ void load_a(uint32_t (&a)[1][4], uint32_t lanes, int kk) {
    ptx::ldmatrix_x4(a[0], lanes + 32 * kk);
}

// B of a product with the tile's transpose: 8 NT rows are the columns of the product.
template <int D, int NT>
__device__ __forceinline__ void load_b_rows(uint32_t (&b)[NT][2], uint32_t lanes, int kk) {
#pragma unroll
    for (int i = 0; i < NT / 2; ++i) {
        uint32_t r[4];
        ptx::ldmatrix_x4(r, lanes + 2 * (16 * i * kMmaPitch<D> + 16 * kk));
        b[2 * i][0] = r[0];
        b[2 * i][1] = r[1];
        b[2 * i + 1][0] = r[2];
        b[2 * i + 1][1] = r[3];
    }
}

// Two fp32 as a pair of bf16, the first in the low half.
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

// 16 x D sums of a warp, in parts: a part's B operands are what lies in registers at a time.
template <int D>
struct Sums {
    static constexpr int kTiles = D > 80 ? D / 16 : D / 8;
    static constexpr int kParts = D / 8 / kTiles;
    static_assert(kTiles % 2 == 0, "an x4 load brings two tiles");
    float r[kParts][1][kTiles][4] = {};

    // += weights rows, the weights being a score tile (rounded to bf16 here) and the rows a tile of NT * 8.
    template <int NT>
    __device__ __forceinline__ void add(const float (&weights)[1][NT][4], uint32_t lanes) {
#pragma unroll
        for (int kk = 0; kk < NT / 2; ++kk) {
            const float(&w0)[4] = weights[0][2 * kk];
            const float(&w1)[4] = weights[0][2 * kk + 1];
            uint32_t a[1][4] = {{pair_of(w0[0], w0[1]), pair_of(w0[2], w0[3]),
                                 pair_of(w1[0], w1[1]), pair_of(w1[2], w1[3])}};
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                uint32_t b[kTiles][2];
#pragma unroll
                for (int i = 0; i < kTiles / 2; ++i) {
                    uint32_t four[4];
                    int column = part * kTiles * 8 + 16 * i;
                    ptx::ldmatrix_x4_trans(four, lanes + 2 * (16 * kk * kMmaPitch<D> + column));
                    b[2 * i][0] = four[0];
                    b[2 * i][1] = four[1];
                    b[2 * i + 1][0] = four[2];
                    b[2 * i + 1][1] = four[3];
                }
                ptx::mma_tile(r[part], a, b);
            }
        }
    }

    // Multiplies the upper eight rows and the lower eight.
    __device__ __forceinline__ void scale(float upper, float lower) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
                r[part][0][n][0] *= upper;
                r[part][0][n][1] *= upper;
                r[part][0][n][2] *= lower;
                r[part][0][n][3] *= lower;
            }
        }
    }

    // Writes the first `valid` of the warp's rows, rounded to bf16, through the warp's own 16 rows of shared
    // memory at `rows_s`: whole 16-byte units then leave side by side.
    __device__ __forceinline__ void write(uint16_t* rows_s, uint16_t* to, uint64_t stride,
                                          uint32_t valid) const {
        const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
                const float(&v)[4] = r[part][0][n];
                // Aligned: even columns, and a pitch of whole 16-byte units.
                uint32_t* at = reinterpret_cast<uint32_t*>(
                    rows_s + lane / 4 * kMmaPitch<D> + (part * kTiles + n) * 8 + lane % 4 * 2);
                at[0] = pair_of(v[0], v[1]);
                at[8 * kMmaPitch<D> / 2] = pair_of(v[2], v[3]);
            }
        }
        // The units read next were written by other lanes.
        __syncwarp();
        constexpr uint32_t units = D / 8;
#pragma unroll
        for (uint32_t i = 0; i < 16 * units / kWarp; ++i) {
            uint32_t at = i * kWarp + lane, row = at / units, c = at % units * 8;
            // Aligned: rows of whole 16-byte units on both sides.
            uint4 unit = *reinterpret_cast<const uint4*>(rows_s + row * kMmaPitch<D> + c);
            if (row < valid) *reinterpret_cast<uint4*>(to + row * stride + c) = unit;
        }
    }
};

// How many of the warp's 16 rows are among the block's first `count`.
__device__ __forceinline__ uint32_t warp_rows(uint32_t count) {
    uint32_t above = threadIdx.x / kWarp * 16;
    return count > above ? min(count - above, 16u) : 0;
}

}  // namespace attn

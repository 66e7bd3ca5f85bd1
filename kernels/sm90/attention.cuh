// Shared by the attention kernels of sm_90a: tiles and who moves them, products of tiles, masks, rows to memory.
//
// A block is three warpgroups: one moves tiles to shared memory, two compute, each on 64 of the 128 rows that the block
// owns for an item (128 rows of a document and a head). Blocks are as many as processors and take items in turns, so
// that the next item's tiles are on their way while the last one ends; every item is computed by one block alone, in
// an order that its document gives, whatever the number of blocks. Items come with the longest first, and every other
// round of turns runs backwards: who had the longest then gets the shortest.
// A tile is D / 64 panels, one behind the other, each of R rows of 128 bytes, swizzled by 128 bytes: the image that
// bulk copies of boxes of 64 columns and 64 or 128 rows leave (attention.rs describes 64 to dkv). One image serves products along its columns (K-major) and along
// its rows (outer-major). Rows behind a document's end are those of the next document, or zeros: finite where all
// documents are, and met only by weights that are 0 or by sums that are not stored.
// Source: FlashAttention-3, arXiv 2407.08608, for the roles of warpgroups; PTX ISA for the images.
#pragma once

#include "../attention.cuh"
#include "ptx.cuh"

namespace attn {

constexpr uint32_t kWarpgroup = 128;
constexpr uint32_t kConsumers = 2;
constexpr uint32_t kGroupThreads = (1 + kConsumers) * kWarpgroup;
constexpr uint32_t kGroupRows = 64;                        // owned by a consumer
constexpr uint32_t kOwned = kConsumers * kGroupRows;       // by a block: the rows of an entry of the list
static_assert(kOwned == kBlockRows, "an entry of the list is what a block owns");
constexpr uint32_t kReleases = kConsumers * kWarpgroup / kWarp;  // arrivals that give a tile back: one a warp
constexpr uint32_t kRowBytes = 128;                        // of a panel
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 504, "registers of three warpgroups");
constexpr int kSharedLimit = 232448;

template <int D, int R>
constexpr int kTileBytes = 2 * D * R;

// A place in a ring of N tiles, and the parity of its round.
template <uint32_t N>
struct Turn {
    uint32_t at = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        parity ^= at + 1 == N;
        at = at + 1 == N ? 0 : at + 1;
    }
};

// The items of this block: `take` finds that of a round, if there is one.
struct Items {
    uint32_t count;

    __device__ __forceinline__ uint32_t rounds() const { return (count + gridDim.x - 1) / gridDim.x; }
    __device__ __forceinline__ bool take(uint32_t round, uint32_t& item) const {
        item = round * gridDim.x + (round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
        return item < count;
    }
};

// One lane of each warp of both consumers gives a tile back.
__device__ __forceinline__ void release(uint32_t bar) {
    if (threadIdx.x % kWarp == 0) ptx::mbar_arrive(bar);
}

// Starts loading a tile of R rows from row y on and D columns from column x on, through a map of boxes of BOX rows.
template <int D, int R, int BOX>
__device__ __forceinline__ void load_tile(uint32_t to, const ptx::TensorMap& map, uint32_t x, uint32_t y, uint32_t bar) {
#pragma unroll
    for (uint32_t panel = 0; panel < D / 64; ++panel) {
#pragma unroll
        for (uint32_t row = 0; row < R; row += BOX) {
            ptx::tma_load(to + (panel * R + row) * kRowBytes, map, static_cast<int>(x + 64 * panel),
                          static_cast<int>(y + row), bar);
        }
    }
}

// d = a b': 64 rows at `a` in a tile of RA rows, N rows at `b` in a tile of RB rows, over D columns.
template <int D, int N, int RA, int RB>
__device__ __forceinline__ void multiply_rows(float (&d)[N / 2], uint32_t a, uint32_t b) {
    const uint64_t of_a = ptx::describe128(a, 16, 1024), of_b = ptx::describe128(b, 16, 1024);
#pragma unroll
    for (uint32_t k = 0; k < D / 16; ++k) {
        // In units of 16 bytes: 16 columns are 32 bytes of a row, and after four of them comes the next panel.
        uint32_t column = k % 4 * 32, panel = k / 4 * kRowBytes;
        const uint64_t a_k = of_a + (panel * RA + column) / 16, b_k = of_b + (panel * RB + column) / 16;
        if (k == 0) {
            ptx::wgmma_ss<N, 0, 0, false>(d, a_k, b_k);
        } else {
            ptx::wgmma_ss<N, 0, 0>(d, a_k, b_k);
        }
    }
}

// d += weights rows: 64 x R weights in registers, and a tile of R rows.
template <int D, int R>
__device__ __forceinline__ void add_rows(float (&d)[D / 2], const uint32_t (&weights)[R / 16][4], uint32_t rows) {
    const uint64_t of_rows = ptx::describe128(rows, R * kRowBytes, 1024);
#pragma unroll
    for (uint32_t k = 0; k < R / 16; ++k) {
        ptx::wgmma_rs<D, 1>(d, weights[k], of_rows + k * 16 * kRowBytes / 16);
    }
}

// Rounds 64 x N sums to bf16: the weights of add_rows.
template <int N>
__device__ __forceinline__ void round_weights(const float (&d)[N / 2], uint32_t (&weights)[N / 16][4]) {
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[k][i] = ptx::pack_bf16(d[8 * k + 2 * i], d[8 * k + 2 * i + 1]);
    }
}

template <int R>
__device__ __forceinline__ void clear(float (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; ++i) d[i] = 0.0f;
}

// This thread's first row among its warpgroup's 64; the other one is 8 further down.
__device__ __forceinline__ uint32_t row_of_thread() {
    return threadIdx.x % kWarpgroup / kWarp * 16 + threadIdx.x % kWarp / 4;
}

// Lane t of four has words 0 to 3 of which word i is the t-th of unit i: afterwards it has all four of unit t.
__device__ __forceinline__ void exchange(uint32_t (&w)[4]) {
    const bool odd = threadIdx.x % 2 != 0, high = threadIdx.x / 2 % 2 != 0;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, odd ? w[i] : w[i + 1], 1);
        w[i] = odd ? other : w[i];
        w[i + 1] = odd ? w[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, high ? w[i] : w[i + 2], 2);
        w[i] = high ? other : w[i];
        w[i + 2] = high ? w[i + 2] : other;
    }
}

// Writes the first `valid` of the warpgroup's 64 rows of sums, rounded to bf16, `upper` and `lower` being the factors of
// the thread's two rows. The lanes of a row exchange pairs for units of 16 bytes; four of those lie side by side.
template <int D>
__device__ __forceinline__ void write_rows(const float (&d)[D / 2], float upper, float lower, uint16_t* to,
                                           uint64_t stride, uint32_t valid) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = row_of_thread() + 8 * half;
        const float factor = half == 0 ? upper : lower;
#pragma unroll
        for (uint32_t four = 0; four < D / 32; ++four) {
            uint32_t w[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                uint32_t at = 4 * (4 * four + i) + 2 * half;
                w[i] = ptx::pack_bf16(d[at] * factor, d[at + 1] * factor);
            }
            exchange(w);
            uint16_t* unit = to + row * stride + 32 * four + threadIdx.x % 4 * 8;
            // Aligned: rows and heads of whole 16-byte units.
            if (row < valid) *reinterpret_cast<uint4*>(unit) = make_uint4(w[0], w[1], w[2], w[3]);
        }
    }
}

// How many of consumer `w`'s rows are among the block's first `count`.
__device__ __forceinline__ uint32_t group_rows(uint32_t count, uint32_t w) {
    return count > w * kGroupRows ? min(count - w * kGroupRows, kGroupRows) : 0;
}

// Where a block's shared memory begins: at a multiple of 1024, as tiles must.
__device__ __forceinline__ uint32_t shared_base() { return (ptx::smem_u32(ptx::dyn_smem()) + 1023) & ~1023u; }

}  // namespace attn

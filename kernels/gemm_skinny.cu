// GEMMs with few rows: C[m,n] = A[m,k] B[n,k]^T for the one row a prompt of a decode step, with the epilogues of
// gemm.cuh and gemm_gated.cuh behind them.
//
// All that matters is that B, the weights, streams from memory once and without a pause. A block owns BN rows of B and
// BM rows of A, and its eight warps share k: warp w takes the pieces w, w + 8, ... of 32 indices and keeps sums of the
// whole tile. Each warp feeds itself by cp.async into stages of its own, so nobody waits for anybody until the end,
// when the eight sums are added in the order of the warps. A sum's order follows from k alone: neither the rows of the
// batch nor the shape of the block changes a bit of a row.
// Shape: 16x32 in four stages, 32x32 in three, 64x64 in two (64x32 where a block gets less than 128 KiB). A wider tile
// reads A less often: blocks read n / BN times the bytes of A out of the L2, at 64x64 as many as of B.
// Bank conflicts: rows of 64 bytes, chunk c of row r at c ^ (r >> 1 & 3), as in gemm.cuh.
// Bytes: B once, 2nk; A from the L2; C once. In flight: 24 to 32 KiB of B a block, two blocks a processor for up to
// 32 rows.
// Roof: device memory while m is below some 200 rows; aims at 80 % of a copy's read rate. Source: this project's own.
#include "gemm_gated.cuh"

constexpr int kSplit = 8;  // warps, each with a share of k

template <int BM_, int BN_, int STAGES>
struct Skinny {
    static constexpr int BM = BM_, BN = BN_, kStagesOwn = STAGES;
    static constexpr int kMt = BM / 16, kNt = BN / 8;
    static constexpr int kStage = (BM + BN) * kDepthBytes;  // bytes of a warp's stage
    static constexpr int kPitch = BN + 8;                   // floats of a staged row of sums
    static_assert(kSplit * 16 * kPitch * 4 <= kSplit * STAGES * kStage, "the staged sums reuse the stages");
};

using Skinny16 = Skinny<16, 32, 4>;
using Skinny32 = Skinny<32, 32, 3>;
using Skinny64 = Skinny<64, 32, 2>;
using SkinnyWide = Skinny<64, 64, 2>;

// Copies 32 indices of k, of which `left` exist, of ROWS rows of a matrix; four lanes a row. HALVES: the second half
// of the rows comes from `second` rows further down than it would lie.
template <int ROWS, bool HALVES>
__device__ __forceinline__ void fetch_rows(uint32_t to, const uint16_t* from, uint64_t pitch, uint32_t first,
                                           uint32_t limit, uint32_t second, uint32_t left) {
    constexpr int kRows = HALVES ? ROWS / 2 : ROWS;
    uint32_t lane = threadIdx.x % kWarp, chunk = lane % 4;
    uint32_t along = chunk * 8 < left ? min(left - chunk * 8, 8u) : 0;
#pragma unroll
    for (int i = 0; i < ROWS / 8; ++i) {
        uint32_t row = i * 8 + lane / 4, in_half = row % kRows, at = first + in_half;
        bool inside = at < limit && along > 0;
        if (HALVES && row >= kRows) at += second;
        const uint16_t* source = from + (inside ? at * pitch + chunk * 8 : 0);
        uint32_t place = row * kDepthBytes + ((chunk ^ (row >> 1 & 3)) << 4);
        ptx::cp_async16(to + place, source, inside ? along * 2 : 0);
    }
}

template <class S, class E>
__device__ __forceinline__ void skinny_block(const uint16_t* a, uint32_t lda, const uint16_t* b, uint32_t ldb,
                                             uint32_t m, uint32_t n, uint32_t k, uint32_t second,
                                             const E& epilogue) {
    constexpr int kDepth = kDepthBytes / 2;
    constexpr int kCols = E::kHalves ? S::BN / 2 : S::BN;
    uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    // Blocks with the same rows of B are neighbours, so that those come from memory once.
    uint32_t heights = (m + S::BM - 1) / S::BM;
    uint32_t row0 = blockIdx.x % heights * S::BM, col0 = blockIdx.x / heights * kCols;
    uint32_t pieces = (k + kDepth - 1) / kDepth, mine = pieces > warp ? (pieces - warp + kSplit - 1) / kSplit : 0;
    uint32_t own = warp * S::kStagesOwn * S::kStage, base = ptx::smem_u32(ptx::dyn_smem());
    auto fetch = [&](uint32_t i) {
        uint32_t at = (warp + i * kSplit) * kDepth, stage = base + own + i % S::kStagesOwn * S::kStage;
        fetch_rows<S::BM, false>(stage, a + at, lda, row0, m, 0, k - at);
        fetch_rows<S::BN, E::kHalves>(stage + S::BM * kDepthBytes, b + at, ldb, col0, n, second, k - at);
    };
    Fragments<uint16_t, S::BM, true, true> from_a(0);
    Fragments<uint16_t, S::BN, true, false> from_b(0);
    float acc_r[S::kMt][S::kNt][4] = {};
#pragma unroll
    for (uint32_t i = 0; i < S::kStagesOwn - 1; ++i) {
        if (i < mine) fetch(i);
        // Empty groups keep the count: group i is always piece i.
        ptx::cp_async_commit();
    }
#pragma unroll 1
    for (uint32_t i = 0; i < mine; ++i) {
        ptx::cp_async_wait<S::kStagesOwn - 2>();
        // All lanes' parts of piece i are there, and all have read piece i - 1, whose stage is filled next.
        __syncwarp();
        if (i + S::kStagesOwn - 1 < mine) fetch(i + S::kStagesOwn - 1);
        ptx::cp_async_commit();
        uint32_t stage = own + i % S::kStagesOwn * S::kStage;
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t a_r[S::kMt][4], b_r[S::kNt][2];
#pragma unroll
            for (int t = 0; t < S::kMt; ++t) from_a.load(a_r[t], stage, step, t);
#pragma unroll
            for (int t = 0; t < S::kNt / 2; ++t) {
                uint32_t two[4];
                from_b.load(two, stage + S::BM * kDepthBytes, step, t);
                b_r[2 * t][0] = two[0];
                b_r[2 * t][1] = two[1];
                b_r[2 * t + 1][0] = two[2];
                b_r[2 * t + 1][1] = two[3];
            }
            ptx::mma_tile(acc_r, a_r, b_r);
        }
    }
    ptx::cp_async_wait<0>();

    float* staged_s = reinterpret_cast<float*>(ptx::dyn_smem());
    constexpr int kPart = 16 * S::kPitch;
#pragma unroll
    for (int t = 0; t < S::kMt; ++t) {
        // No warp reads a stage, or sums of the rows before, any more.
        __syncthreads();
        float* at = staged_s + warp * kPart + lane / 4 * S::kPitch + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < S::kNt; ++j) {
            // Aligned: the pitch and every column are even.
            *reinterpret_cast<float2*>(at + j * 8) = make_float2(acc_r[t][j][0], acc_r[t][j][1]);
            *reinterpret_cast<float2*>(at + 8 * S::kPitch + j * 8) = make_float2(acc_r[t][j][2], acc_r[t][j][3]);
        }
        // All eight sums are there.
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16 * S::BN / kBlock; ++i) {
            uint32_t place = threadIdx.x + i * kBlock;
            float* sum = staged_s + place / S::BN * S::kPitch + place % S::BN;
            float total = *sum;
#pragma unroll
            for (int w = 1; w < kSplit; ++w) total += sum[w * kPart];
            *sum = total;
        }
        // A chunk's sums come from several threads.
        __syncthreads();
        constexpr uint32_t kChunks = kCols / kChunk;
        uint32_t row = row0 + t * 16 + threadIdx.x / kChunks, chunk = threadIdx.x % kChunks * kChunk;
        uint32_t col = col0 + chunk;
        if (threadIdx.x < 16 * kChunks && row < m && col < n) {
            uint32_t count = min(n - col, static_cast<uint32_t>(kChunk));
            typename E::Held held_r;
            epilogue.begin(held_r, row, col, count);
            epilogue.end(held_r, row, col, count, staged_s + threadIdx.x / kChunks * S::kPitch + chunk);
        }
    }
}

// Arguments as those of gemm_nt_bf16. Grid: ceil(m / BM) ceil(n / BN) blocks in one row.
#define SKINNY_KERNEL(NAME, S)                                                                                 \
    extern "C" __global__ void __launch_bounds__(kBlock)                                                       \
        NAME(const uint16_t* a, const uint16_t* b, void* c, const void* addend, const uint16_t* bias,          \
             uint32_t m, uint32_t n, uint32_t k, uint32_t lda, uint32_t ldb, uint32_t ldc, uint32_t flags) {   \
        ptx::grid_enter();                                                                                     \
        Store<uint16_t> epilogue{c, addend, bias, ldc, (flags & 1) != 0, (flags & 2) != 0};                    \
        skinny_block<S>(a, lda, b, ldb, m, n, k, 0, epilogue);                                                 \
    }                                                                                                          \
    KERNEL_EXPORT(NAME)
// Arguments as those of gemm_swiglu_bf16. Grid: ceil(m / BM) ceil(f / (BN / 2)) blocks in one row.
#define SKINNY_GATED(NAME, S)                                                                                  \
    extern "C" __global__ void __launch_bounds__(kBlock)                                                       \
        NAME(const uint16_t* x, const uint16_t* w, const uint16_t* bias, uint16_t* gate_up, uint16_t* y,       \
             uint32_t m, uint32_t f, uint32_t k, uint32_t flags) {                                             \
        ptx::grid_enter();                                                                                     \
        Gated<uint16_t, S> epilogue{gate_up, y, bias, f, (flags & 4) == 0, (flags & 2) != 0};                  \
        skinny_block<S>(x, k, w, k, m, f, k, f, epilogue);                                                     \
    }                                                                                                          \
    KERNEL_EXPORT(NAME)

SKINNY_KERNEL(gemm_skinny_bf16_16x32, Skinny16);
SKINNY_KERNEL(gemm_skinny_bf16_32x32, Skinny32);
SKINNY_KERNEL(gemm_skinny_bf16_64x32, Skinny64);
SKINNY_KERNEL(gemm_skinny_bf16_64x64, SkinnyWide);
SKINNY_GATED(gemm_swiglu_skinny_bf16_16x32, Skinny16);
SKINNY_GATED(gemm_swiglu_skinny_bf16_32x32, Skinny32);
SKINNY_GATED(gemm_swiglu_skinny_bf16_64x32, Skinny64);
SKINNY_GATED(gemm_swiglu_skinny_bf16_64x64, SkinnyWide);

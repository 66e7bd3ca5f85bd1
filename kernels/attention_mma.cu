// Attention's forward pass on tensor cores: bf16, heads of width 64, 80, 96 and 128.
//
// For each query head and each query q of a document, over the keys k that q sees:
//   s_k = scale q.k (capped: cap tanh(s_k / cap), at width 128),  lse = ln sum_k exp(s_k),  out = sum_k exp(s_k - lse) v_k
// Shape: a block of four warps owns 64 queries of one head, 16 a warp, whose operands stay in registers, and walks
// over tiles of 64 keys and values, two of each in shared memory, the next one on its way (cp.async) while this one is
// multiplied. The softmax is kept up online in base 2 with the scale folded in; its weights go from the score
// product's registers straight into the next product's, rounded to bf16, while their sum is taken before rounding.
// The walk starts at the diagonal: every row meets a key it sees (itself) in the first tile, so the running
// maximum is finite from then on and later tiles that a window hides from a row cannot make a NaN. Only the diagonal
// tile and those at a window's edge are masked, and tiles no row sees are skipped. Heads of one block of rows lie
// side by side in the grid: those that share keys find them in L2. Blocks come with the longest first.
// Bytes: q and out once, k and v once a block of 64 queries (mostly from L2): 2 (H + 2G) D + 2 H D a token at best.
// Roof: tensor cores; aims at 300 TFLOP/s at 1024 tokens on an H100, where mma.sync gives about 60 % of its peak.
// Source: FlashAttention-2, arXiv 2307.08691, algorithm 1.
#include "attention_mma.cuh"

namespace attn {

// Over the four lanes of a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

template <int D, bool CAPPED = false>
__device__ __forceinline__ void mma_fwd(const uint4* blocks, const uint16_t* qkv, uint16_t* out,
                                        float* lse, Heads heads, float scale, float cap = 0.0f) {
    constexpr uint32_t kTile = 64;
    constexpr int kTileElements = kTile * kMmaPitch<D>;
    const uint32_t head = blockIdx.x % heads.h, kv = head / (heads.h / heads.g);
    const Rows rows = part_of<kMmaRows>(blocks, heads.h);
    if (rows.first >= rows.len) return;
    const uint32_t count = min(static_cast<uint32_t>(kMmaRows), rows.len - rows.first);
    const uint64_t stride = heads.qkv_width();
    const uint16_t* document = qkv + rows.start * stride;
    const uint16_t* keys = document + (heads.h + kv) * D;
    // Two stages of keys and values, 16-byte aligned.
    uint16_t* tiles_s = reinterpret_cast<uint16_t*>(ptx::dyn_smem());
    auto stage = [&](uint32_t tile, uint32_t at) {
        uint16_t* to_s = tiles_s + at * 2 * kTileElements;
        const uint16_t* from = keys + tile * kTile * stride;
        stage_rows<D, kTile>(to_s, from, stride, rows.len - tile * kTile);
        stage_rows<D, kTile>(to_s + kTileElements, from + heads.g * D, stride, rows.len - tile * kTile);
    };

    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    // Blocks start at multiples of 64 from the document's start, hence at a tile of keys.
    const uint32_t last = rows.first / kTile, tiles = last - heads.first_key(rows.first) / kTile + 1;
    // The queries pass through the second stage.
    uint16_t* q_s = tiles_s + 2 * kTileElements;
    stage_rows<D, kMmaRows>(q_s, document + rows.first * stride + head * D, stride, count);
    stage(last, 0);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    // Every thread's part of the queries and of the first tile has landed.
    __syncthreads();
    uint32_t q_r[D / 16][1][4];
    const uint32_t q_lanes = lanes_down<D>(q_s + warp * 16 * kMmaPitch<D>);
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) load_a<D>(q_r[kk], q_lanes, kk);
    // All warps have read the queries: their place may be overwritten.
    __syncthreads();

    const Scores2<CAPPED> scores(scale, cap);
    const float scale2 = scores.after;
    const uint32_t upper = rows.first + warp * 16 + lane / 4, lower = upper + 8;
    Sums<D> sums;
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    for (uint32_t step = 0; step < tiles; ++step) {
        const uint32_t tile = last - step;
        if (step + 1 < tiles) stage(tile - 1, (step + 1) % 2);
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();
        // Every thread's part of this tile has landed.
        __syncthreads();
        const uint16_t* k_s = tiles_s + step % 2 * 2 * kTileElements;
        float s[1][8][4] = {};
        const uint32_t k_lanes = lanes_across<D>(k_s);
#pragma unroll
        for (int kk = 0; kk < D / 16; ++kk) {
            uint32_t b[8][2];
            load_b_rows<D, 8>(b, k_lanes, kk);
            ptx::mma_tile(s, q_r[kk], b);
        }
        if (CAPPED) {
#pragma unroll
            for (int n = 0; n < 8; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) s[0][n][e] = scores.at(s[0][n][e]);
            }
        }
        const uint32_t k0 = tile * kTile;
        if (step == 0 || !heads.sees(rows.first + kMmaRows - 1, k0)) {
#pragma unroll
            for (uint32_t n = 0; n < 8; ++n) {
#pragma unroll
                for (uint32_t e = 0; e < 2; ++e) {
                    uint32_t k = k0 + n * 8 + lane % 4 * 2 + e;
                    if (!heads.sees(upper, k)) s[0][n][e] = -INFINITY;
                    if (!heads.sees(lower, k)) s[0][n][2 + e] = -INFINITY;
                }
            }
        }
        float keep[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float now = top[half];
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                now = fmaxf(now, fmaxf(s[0][n][2 * half], s[0][n][2 * half + 1]));
            }
            now = quad_max(now);
            const float base = now * scale2;
            keep[half] = ptx::exp2_approx(fmaf(top[half], scale2, -base));
            top[half] = now;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& x = s[0][n][2 * half + e];
                    x = ptx::exp2_approx(fmaf(x, scale2, -base));
                    sum += x;
                }
            }
            total[half] = total[half] * keep[half] + sum;
        }
        sums.scale(keep[0], keep[1]);
        sums.add(s, lanes_down<D>(k_s + kTileElements));
        // The next step overwrites what this one has read.
        __syncthreads();
    }

    total[0] = quad_sum(total[0]);
    total[1] = quad_sum(total[1]);
    sums.scale(1.0f / total[0], 1.0f / total[1]);
    const uint32_t valid = warp_rows(count);
    const uint64_t row = rows.start + rows.first + warp * 16;
    sums.write(tiles_s + warp * 16 * kMmaPitch<D>, out + row * heads.out_width() + head * D,
               heads.out_width(), valid);
    if (lane % 4 == 0) {
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            uint32_t r = lane / 4 + 8 * half;
            if (r < valid) {
                lse[(row + r) * heads.h + head] = top[half] * scores.natural + log2f(total[half]) * kLn2;
            }
        }
    }
}

}  // namespace attn

// Grid: blocks x H in one dimension, heads fastest. Shared: 4 x 64 rows of D + 8 elements.
extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 4)
    attention_mma64_bf16(const uint4* blocks, const uint16_t* qkv, uint16_t* out, float* lse,
                         uint32_t h, uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_fwd<64>(blocks, qkv, out, lse, attn::Heads{h, g, 64, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 3)
    attention_mma80_bf16(const uint4* blocks, const uint16_t* qkv, uint16_t* out, float* lse,
                         uint32_t h, uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_fwd<80>(blocks, qkv, out, lse, attn::Heads{h, g, 80, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 3)
    attention_mma96_bf16(const uint4* blocks, const uint16_t* qkv, uint16_t* out, float* lse,
                         uint32_t h, uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_fwd<96>(blocks, qkv, out, lse, attn::Heads{h, g, 96, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 3)
    attention_mma128_bf16(const uint4* blocks, const uint16_t* qkv, uint16_t* out, float* lse,
                          uint32_t h, uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_fwd<128>(blocks, qkv, out, lse, attn::Heads{h, g, 128, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 3)
    attention_mma128_capped_bf16(const uint4* blocks, const uint16_t* qkv, uint16_t* out, float* lse,
                                 uint32_t h, uint32_t g, uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::mma_fwd<128, true>(blocks, qkv, out, lse, attn::Heads{h, g, 128, window}, scale, cap);
}

KERNEL_EXPORT(attention_mma64_bf16);
KERNEL_EXPORT(attention_mma80_bf16);
KERNEL_EXPORT(attention_mma96_bf16);
KERNEL_EXPORT(attention_mma128_bf16);
KERNEL_EXPORT(attention_mma128_capped_bf16);

// Attention's backward pass on tensor cores: bf16, heads of width 64, 80, 96 and 128.
//
// With p_k = exp(scale q.k - lse) and dot = out.dout (attention_dot_bf16 in attention.cu):
//   dv_k = sum_q p_k dout,  ds_k = p_k (dout.v_k - dot),  dk_k = scale sum_q ds_k q,  dq = scale sum_k ds_k k
// and with a cap (at width 128) p_k of capped scores s_k, ds_k smaller by the factor 1 - (s_k / cap)^2.
// Shape: two kernels, so that every sum has one owner and one order, and none is added atomically; scores are made in
// both, seven products instead of five. A block of four warps owns 64 keys of a kv head (and walks over the queries
// that see them, the query heads of the group one after another), or 64 queries of a head (and walks over their keys).
// The rows it walks over come in tiles of 64 (D = 64) or 32, two in shared memory, the next one on its way. Both
// scores are made with the owned rows as rows, so that p and ds, rounded to bf16, go from registers straight into
// the next product. Rows behind the document's end are zeros in shared memory: their p is 1 and their ds 0, and both
// meet a row of zeros. Only tiles at the diagonal or at a window's edge are masked.
// Bytes: the owned rows and their gradients once, the walked ones once a block (mostly from L2).
// Roof: tensor cores; aims at 200 TFLOP/s at 1024 tokens on an H100, counted as five products.
// Source: FlashAttention-2, arXiv 2307.08691, algorithm 2, split in two.
#include "attention_mma.cuh"

namespace attn {

struct MmaBackward {
    const uint4* blocks;
    const uint16_t* qkv;
    const uint16_t* dout;
    const float* lse;
    const float* dot;
    uint16_t* dqkv;
};

template <int D, bool CAPPED = false>
__device__ __forceinline__ void mma_bwd_dq(MmaBackward in, Heads heads, float scale, float cap = 0.0f) {
    constexpr uint32_t kTile = kMmaTile<D>;
    constexpr int NT = kTile / 8;
    constexpr int kTileElements = kTile * kMmaPitch<D>;
    const uint32_t head = blockIdx.x % heads.h, kv = head / (heads.h / heads.g);
    const Rows rows = part_of<kMmaRows>(in.blocks, heads.h);
    if (rows.first >= rows.len) return;
    const uint32_t count = min(static_cast<uint32_t>(kMmaRows), rows.len - rows.first);
    const uint64_t stride = heads.qkv_width(), row0 = rows.start + rows.first;
    const uint16_t* keys = in.qkv + rows.start * stride + (heads.h + kv) * D;
    // Two stages of keys and values, 16-byte aligned; before them, the place of the queries and their dout.
    uint16_t* tiles_s = reinterpret_cast<uint16_t*>(ptx::dyn_smem());
    static_assert(4 * kTile >= 2 * kMmaRows, "queries and dout pass through the stages");
    auto stage = [&](uint32_t tile, uint32_t at) {
        uint16_t* to_s = tiles_s + at * 2 * kTileElements;
        const uint16_t* from = keys + tile * kTile * stride;
        stage_rows<D, kTile>(to_s, from, stride, rows.len - tile * kTile);
        stage_rows<D, kTile>(to_s + kTileElements, from + heads.g * D, stride, rows.len - tile * kTile);
    };

    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    uint16_t* dout_s = tiles_s + kMmaRows * kMmaPitch<D>;
    stage_rows<D, kMmaRows>(tiles_s, in.qkv + row0 * stride + head * D, stride, count);
    stage_rows<D, kMmaRows>(dout_s, in.dout + row0 * heads.out_width() + head * D,
                            heads.out_width(), count);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    // Every thread's part of the rows has landed.
    __syncthreads();
    uint32_t q_r[D / 16][1][4], dout_r[D / 16][1][4];
    const uint32_t q_lanes = lanes_down<D>(tiles_s + warp * 16 * kMmaPitch<D>);
    const uint32_t dout_lanes = lanes_down<D>(dout_s + warp * 16 * kMmaPitch<D>);
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        load_a<D>(q_r[kk], q_lanes, kk);
        load_a<D>(dout_r[kk], dout_lanes, kk);
    }
    // All warps have read them: their place may be overwritten.
    __syncthreads();

    const uint32_t valid = warp_rows(count), upper = rows.first + warp * 16 + lane / 4;
    float lse2[2] = {0.0f, 0.0f}, dot[2] = {0.0f, 0.0f};
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        uint32_t r = lane / 4 + 8 * half;
        if (r < valid) {
            uint64_t at = (row0 + warp * 16 + r) * heads.h + head;
            lse2[half] = in.lse[at] * kLog2E;
            dot[half] = in.dot[at];
        }
    }
    const Scores2<CAPPED> scores(scale, cap);
    const float scale2 = scores.after;
    const uint32_t begin = heads.first_key(rows.first) / kTile;
    const uint32_t end = (rows.first + count - 1) / kTile + 1;
    Sums<D> dq;
    stage(begin, 0);
    ptx::cp_async_commit();
    for (uint32_t tile = begin; tile < end; ++tile) {
        if (tile + 1 < end) stage(tile + 1, (tile + 1 - begin) % 2);
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();
        // Every thread's part of this tile has landed.
        __syncthreads();
        const uint16_t* k_s = tiles_s + (tile - begin) % 2 * 2 * kTileElements;
        const uint32_t k_lanes = lanes_across<D>(k_s), v_lanes = lanes_across<D>(k_s + kTileElements);
        float s[1][NT][4] = {}, ds[1][NT][4] = {};
#pragma unroll
        for (int kk = 0; kk < D / 16; ++kk) {
            uint32_t b[NT][2];
            load_b_rows<D, NT>(b, k_lanes, kk);
            ptx::mma_tile(s, q_r[kk], b);
            load_b_rows<D, NT>(b, v_lanes, kk);
            ptx::mma_tile(ds, dout_r[kk], b);
        }
        const uint32_t k0 = tile * kTile;
        const bool masked = !heads.sees(rows.first, k0 + kTile - 1) ||
                            !heads.sees(rows.first + kMmaRows - 1, k0);
#pragma unroll
        for (uint32_t n = 0; n < NT; ++n) {
#pragma unroll
            for (uint32_t e = 0; e < 4; ++e) {
                uint32_t half = e / 2, k = k0 + n * 8 + lane % 4 * 2 + e % 2;
                const float score = scores.at(s[0][n][e]);
                float p = ptx::exp2_approx(fmaf(score, scale2, -lse2[half]));
                if (masked && !heads.sees(upper + 8 * half, k)) p = 0.0f;
                ds[0][n][e] = p * (ds[0][n][e] - dot[half]) * scores.slope(score);
            }
        }
        dq.add(ds, lanes_down<D>(k_s));
        // The next step overwrites what this one has read.
        __syncthreads();
    }
    dq.scale(scale, scale);
    dq.write(tiles_s + warp * 16 * kMmaPitch<D>, in.dqkv + (row0 + warp * 16) * stride + head * D,
             stride, valid);
}

template <int D, bool CAPPED = false>
__device__ __forceinline__ void mma_bwd_dkv(MmaBackward in, Heads heads, float scale, float cap = 0.0f) {
    constexpr uint32_t kTile = kMmaTile<D>;
    constexpr int NT = kTile / 8;
    constexpr int kTileElements = kTile * kMmaPitch<D>;
    const uint32_t kv = blockIdx.x % heads.g, group = heads.h / heads.g;
    Rows rows = part_of<kMmaRows>(in.blocks, heads.g);
    if (rows.first >= rows.len) return;
    // The mirrored block of the document: as many queries see its keys as keys are seen by the entry's queries,
    // so the longest work still comes first.
    rows.first = (rows.len - 1) / kMmaRows * kMmaRows - rows.first;
    const uint32_t count = min(static_cast<uint32_t>(kMmaRows), rows.len - rows.first);
    const uint64_t stride = heads.qkv_width(), row0 = rows.start + rows.first;
    // Keys, values, two stages of queries and their dout (16-byte aligned), two stages of lse and dot.
    uint16_t* k_s = reinterpret_cast<uint16_t*>(ptx::dyn_smem());
    uint16_t* v_s = k_s + kMmaRows * kMmaPitch<D>;
    uint16_t* tiles_s = v_s + kMmaRows * kMmaPitch<D>;
    float* stats_s = reinterpret_cast<float*>(tiles_s + 4 * kTileElements);
    const uint32_t first_tile = rows.first / kTile;
    // The last key is seen by queries before `end`.
    const uint32_t end = min(rows.len, rows.first + count - 1 + heads.window);
    const uint32_t tiles = (end - 1) / kTile + 1 - first_tile, steps = tiles * group;
    auto stage = [&](uint32_t step) {
        const uint32_t head = kv * group + step / tiles, q0 = (first_tile + step % tiles) * kTile;
        const uint64_t row = rows.start + q0;
        const uint32_t valid = rows.len - q0;
        uint16_t* to_s = tiles_s + step % 2 * 2 * kTileElements;
        stage_rows<D, kTile>(to_s, in.qkv + row * stride + head * D, stride, valid);
        stage_rows<D, kTile>(to_s + kTileElements, in.dout + row * heads.out_width() + head * D,
                             heads.out_width(), valid);
        static_assert(2 * kTile <= kMmaThreads, "one statistic a thread");
        if (threadIdx.x < 2 * kTile) {
            uint32_t r = threadIdx.x % kTile;
            const float* from = threadIdx.x < kTile ? in.lse : in.dot;
            bool inside = r < valid;
            ptx::cp_async4(ptx::smem_u32(stats_s + step % 2 * 2 * kTile + threadIdx.x),
                           from + (row + (inside ? r : 0)) * heads.h + head, inside ? 4 : 0);
        }
    };

    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const uint16_t* keys = in.qkv + row0 * stride + (heads.h + kv) * D;
    stage_rows<D, kMmaRows>(k_s, keys, stride, count);
    stage_rows<D, kMmaRows>(v_s, keys + heads.g * D, stride, count);
    stage(0);
    ptx::cp_async_commit();

    const Scores2<CAPPED> scores(scale, cap);
    const float scale2 = scores.after;
    const uint32_t upper = rows.first + warp * 16 + lane / 4;
    const uint32_t k_lanes = lanes_down<D>(k_s + warp * 16 * kMmaPitch<D>);
    const uint32_t v_lanes = lanes_down<D>(v_s + warp * 16 * kMmaPitch<D>);
    Sums<D> dk, dv;
    for (uint32_t step = 0; step < steps; ++step) {
        if (step + 1 < steps) stage(step + 1);
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();
        // Every thread's part of this tile has landed.
        __syncthreads();
        const uint16_t* q_s = tiles_s + step % 2 * 2 * kTileElements;
        const uint16_t* dout_s = q_s + kTileElements;
        const uint32_t q_lanes = lanes_across<D>(q_s), dout_lanes = lanes_across<D>(dout_s);
        float p[1][NT][4] = {}, ds[1][NT][4] = {};
#pragma unroll
        for (int kk = 0; kk < D / 16; ++kk) {
            uint32_t a[1][4], b[NT][2];
            load_a<D>(a, k_lanes, kk);
            load_b_rows<D, NT>(b, q_lanes, kk);
            ptx::mma_tile(p, a, b);
            load_a<D>(a, v_lanes, kk);
            load_b_rows<D, NT>(b, dout_lanes, kk);
            ptx::mma_tile(ds, a, b);
        }
        const uint32_t q0 = (first_tile + step % tiles) * kTile;
        const bool masked = !heads.sees(q0, rows.first + kMmaRows - 1) ||
                            !heads.sees(q0 + kTile - 1, rows.first);
        const float* lse_s = stats_s + step % 2 * 2 * kTile;
#pragma unroll
        for (uint32_t n = 0; n < NT; ++n) {
#pragma unroll
            for (uint32_t e = 0; e < 4; ++e) {
                uint32_t half = e / 2, q = n * 8 + lane % 4 * 2 + e % 2;
                float& x = p[0][n][e];
                const float score = scores.at(x);
                x = ptx::exp2_approx(fmaf(score, scale2, -lse_s[q] * kLog2E));
                if (masked && !heads.sees(q0 + q, upper + 8 * half)) x = 0.0f;
                ds[0][n][e] = x * (ds[0][n][e] - lse_s[kTile + q]) * scores.slope(score);
            }
        }
        dv.add(p, lanes_down<D>(dout_s));
        dk.add(ds, lanes_down<D>(q_s));
        // The next step overwrites what this one has read.
        __syncthreads();
    }
    dk.scale(scale, scale);
    const uint32_t valid = warp_rows(count);
    uint16_t* to = in.dqkv + (row0 + warp * 16) * stride + (heads.h + kv) * D;
    dk.write(k_s + warp * 16 * kMmaPitch<D>, to, stride, valid);
    dv.write(v_s + warp * 16 * kMmaPitch<D>, to + heads.g * D, stride, valid);
}

}  // namespace attn

// Grid: blocks x H in one dimension, heads fastest. Shared: 4 tiles (64 rows where D = 64, else 32) of D + 8 elements.
extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 3)
    attention_bwd_dq_mma64_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_bwd_dq<64>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                         attn::Heads{h, g, 64, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 3)
    attention_bwd_dq_mma80_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_bwd_dq<80>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                         attn::Heads{h, g, 80, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 3)
    attention_bwd_dq_mma96_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_bwd_dq<96>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                         attn::Heads{h, g, 96, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 2)
    attention_bwd_dq_mma128_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                 const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                 uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_bwd_dq<128>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                          attn::Heads{h, g, 128, window}, scale);
}

// Grid: blocks x G in one dimension, heads fastest. Shared: 128 rows and 4 tiles of D + 8 elements, 4 tiles of floats.
extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 3)
    attention_bwd_dkv_mma64_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                 const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                 uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_bwd_dkv<64>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                          attn::Heads{h, g, 64, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 2)
    attention_bwd_dkv_mma80_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                 const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                 uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_bwd_dkv<80>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                          attn::Heads{h, g, 80, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 2)
    attention_bwd_dkv_mma96_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                 const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                 uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_bwd_dkv<96>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                          attn::Heads{h, g, 96, window}, scale);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 2)
    attention_bwd_dkv_mma128_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                  const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                  uint32_t g, uint32_t window, float scale) {
    ptx::grid_enter();
    attn::mma_bwd_dkv<128>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                           attn::Heads{h, g, 128, window}, scale);
}

// The same with a cap.
extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 2)
    attention_bwd_dq_mma128_capped_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                        const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                        uint32_t g, uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::mma_bwd_dq<128, true>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                                attn::Heads{h, g, 128, window}, scale, cap);
}

extern "C" __global__ void __launch_bounds__(attn::kMmaThreads, 2)
    attention_bwd_dkv_mma128_capped_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                                         const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                                         uint32_t g, uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::mma_bwd_dkv<128, true>(attn::MmaBackward{blocks, qkv, dout, lse, dot, dqkv},
                                 attn::Heads{h, g, 128, window}, scale, cap);
}

KERNEL_EXPORT(attention_bwd_dq_mma128_capped_bf16);
KERNEL_EXPORT(attention_bwd_dkv_mma128_capped_bf16);
KERNEL_EXPORT(attention_bwd_dq_mma64_bf16);
KERNEL_EXPORT(attention_bwd_dq_mma80_bf16);
KERNEL_EXPORT(attention_bwd_dq_mma96_bf16);
KERNEL_EXPORT(attention_bwd_dq_mma128_bf16);
KERNEL_EXPORT(attention_bwd_dkv_mma64_bf16);
KERNEL_EXPORT(attention_bwd_dkv_mma80_bf16);
KERNEL_EXPORT(attention_bwd_dkv_mma96_bf16);
KERNEL_EXPORT(attention_bwd_dkv_mma128_bf16);

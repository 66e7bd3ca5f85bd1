// Attention's backward pass on compute capability 9.0: bf16, heads of width 64 and 128.
//
// With p_k = exp(scale q.k - lse) and dot = out.dout (attention_dot_bf16 in ../attention.cu):
//   dv_k = sum_q p_k dout,  ds_k = p_k (dout.v_k - dot),  dk_k = scale sum_q ds_k q,  dq = scale sum_k ds_k k
// and with a cap (at width 128) p_k of capped scores s_k, ds_k smaller by the factor 1 - (s_k / cap)^2.
// Shape: two kernels as in ../attention_mma_bwd.cu, so that every sum has one owner and one order, and none is added
// atomically; scores are made in both, seven products instead of five. An item of dkv is 128 keys of a kv head, which
// walk over tiles of 64 queries and their dout (three stages), the query heads of the group one after another; an item of
// dq is 128 queries of a head, which walk over tiles of 128 keys and values (two stages). One warpgroup loads, a warp of
// it the statistics of the queries; two compute, 64 owned rows each. Scores have the owned rows as rows, so that p and
// ds, rounded to bf16, go from registers straight into the next product; walked tiles serve along both of their sides.
// Rows behind a document's end have p of 0. Only tiles at the diagonal or at a window's edge are masked.
// Registers: dk and dv of 128 columns are 128 of a consumer's 232; with two score tiles no fp32 p can stay beside them,
// nor what a cap leaves of a gradient: dq folds that into p, which it needs for nothing else, dkv finds the score in p.
// Bytes: the owned rows and their gradients once, the walked ones once an item (mostly from L2).
// Roof: tensor cores; predicted (src/bench/predict.rs): 245 TFLOP/s at 1024 tokens and 305 at 8192 on an H100,
// counted as five products.
// Source: FlashAttention-3, arXiv 2407.08608, for the roles of warpgroups; FlashAttention-2, arXiv 2307.08691, algorithm
// 2, split in two.
#include "attention.cuh"

namespace attn {

struct BackwardArgs {
    const uint4* blocks;
    const float* lse;
    const float* dot;
    uint16_t* dqkv;
    uint32_t items;
    Heads heads;
    float scale, cap;
};

// Shared memory from the first multiple of 1024 on: two owned tiles, stages of two walked tiles of R rows, statistics of
// the walked rows where they have some (lse in base 2, then dot), barriers.
template <int D, int R, uint32_t N, uint32_t STATS>
struct Backward {
    static constexpr uint32_t kStages = N;
    static constexpr uint32_t kOwnedTile = kTileBytes<D, kOwned>;
    static constexpr uint32_t kTile = kTileBytes<D, R>;
    static constexpr uint32_t kWalked = 2 * kOwnedTile;
    static constexpr uint32_t kStatistics = kWalked + kStages * 2 * kTile;
    static constexpr uint32_t kStatisticsBytes = 4 * STATS * R;
    static constexpr uint32_t kOwnedFull = kStatistics + kStages * kStatisticsBytes;
    static constexpr uint32_t kOwnedEmpty = kOwnedFull + 8;
    static constexpr uint32_t kFull = kOwnedEmpty + 8;
    static constexpr uint32_t kEmpty = kFull + 8 * kStages;
    static constexpr uint32_t kShared = 1024 + kEmpty + 8 * kStages;
    static_assert(kShared <= kSharedLimit, "a block's shared memory");
};

constexpr uint32_t kKeys = 128;  // of a tile that queries walk over
template <int D>
using QueryShape = Backward<D, kKeys, 2, 0>;

constexpr uint32_t kQueries = 64;  // of a tile that keys walk over
template <int D>
using KeyShape = Backward<D, kQueries, 3, 2>;

// Readies the barriers; `arrivals` fill a stage.
template <class S>
__device__ __forceinline__ void open_barriers(uint32_t base, uint32_t arrivals, const ptx::TensorMap& qkv,
                                              const ptx::TensorMap& dout) {
    if (threadIdx.x == 0) {
        ptx::mbar_init(base + S::kOwnedFull, 1);
        ptx::mbar_init(base + S::kOwnedEmpty, kReleases);
        for (uint32_t s = 0; s < S::kStages; ++s) {
            ptx::mbar_init(base + S::kFull + 8 * s, arrivals);
            ptx::mbar_init(base + S::kEmpty + 8 * s, kReleases);
        }
        ptx::fence_mbar_init();
        ptx::prefetch_map(qkv);
        ptx::prefetch_map(dout);
    }
    // Nobody uses a barrier before it is there.
    __syncthreads();
    ptx::grid_wait();
}

// An item of dq: which head, which queries, which tiles of keys they see.
struct Queries {
    uint32_t head, kv, count, begin, tiles;
    Rows rows;

    __device__ __forceinline__ Queries(const uint4* blocks, uint32_t item, const Heads& heads)
        : head(item % heads.h), kv(head / (heads.h / heads.g)), rows(rows_of(blocks, item / heads.h)) {
        count = min(kOwned, rows.len - rows.first);
        begin = heads.first_key(rows.first) / kKeys;
        tiles = (rows.first + count - 1) / kKeys + 1 - begin;
    }
};

template <int D>
__device__ __forceinline__ void move_dq(const ptx::TensorMap& qkv, const ptx::TensorMap& dout, const BackwardArgs& in,
                                        uint32_t base) {
    using S = QueryShape<D>;
    const Items items{in.items};
    Turn<S::kStages> at;
    Turn<1> owned;
    for (uint32_t round = 0, item; round < items.rounds(); ++round) {
        if (!items.take(round, item)) continue;
        const Queries q(in.blocks, item, in.heads);
        const uint32_t key_x = (in.heads.h + q.kv) * D, value_x = key_x + in.heads.g * D;
        for (uint32_t step = 0; step < q.tiles; ++step) {
            const uint32_t y = q.rows.start + (q.begin + step) * kKeys;
            const uint32_t to = base + S::kWalked + at.at * 2 * S::kTile, full = base + S::kFull + 8 * at.at;
            ptx::mbar_wait(base + S::kEmpty + 8 * at.at, at.parity ^ 1);
            ptx::mbar_expect(full, 2 * S::kTile);
            load_tile<D, kKeys, kKeys>(to, qkv, key_x, y, full);
            load_tile<D, kKeys, kKeys>(to + S::kTile, qkv, value_x, y, full);
            at.advance();
            if (step == 0) {
                // Behind the first keys and values: those have room earlier.
                const uint32_t row = q.rows.start + q.rows.first;
                ptx::mbar_wait(base + S::kOwnedEmpty, owned.parity ^ 1);
                ptx::mbar_expect(base + S::kOwnedFull, 2 * S::kOwnedTile);
                load_tile<D, kOwned, kOwned>(base, qkv, q.head * D, row, base + S::kOwnedFull);
                load_tile<D, kOwned, kOwned>(base + S::kOwnedTile, dout, q.head * D, row, base + S::kOwnedFull);
                owned.advance();
            }
        }
    }
}

// Hides the weights of the keys of the tile at k0 that the thread's rows, `upper` and 8 further down, do not see.
__device__ __forceinline__ void hide(float (&p)[kKeys / 2], const Heads& heads, uint32_t upper, uint32_t k0) {
#pragma unroll
    for (uint32_t i = 0; i < kKeys / 2; ++i) {
        const uint32_t k = k0 + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2, q = upper + i / 2 % 2 * 8;
        if (!heads.sees(q, k)) p[i] = 0.0f;
    }
}

template <int D, bool CAPPED>
__device__ __forceinline__ void compute_dq(const BackwardArgs& in, uint32_t base, uint32_t w) {
    using S = QueryShape<D>;
    const Items items{in.items};
    const Scores2<CAPPED> scores(in.scale, in.cap);
    const float scale2 = scores.after;
    Turn<S::kStages> at;
    Turn<1> owned;
    for (uint32_t round = 0, item; round < items.rounds(); ++round) {
        if (!items.take(round, item)) continue;
        const Queries q(in.blocks, item, in.heads);
        const uint32_t valid = group_rows(q.count, w);
        const uint64_t row0 = q.rows.start + q.rows.first + w * kGroupRows;
        float lse2[2] = {INFINITY, INFINITY}, dot[2] = {0.0f, 0.0f};
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            uint32_t r = row_of_thread() + 8 * half;
            if (r < valid) {
                uint64_t from = (row0 + r) * in.heads.h + q.head;
                lse2[half] = in.lse[from] * kLog2E;
                dot[half] = in.dot[from];
            }
        }
        const uint32_t upper = q.rows.first + w * kGroupRows + row_of_thread();
        const uint32_t queries = base + w * kGroupRows * kRowBytes, douts = queries + S::kOwnedTile;
        float dq_r[D / 2], s_r[kKeys / 2], ds_r[kKeys / 2];
        uint32_t weights[kKeys / 16][4];
        clear(dq_r);
        ptx::mbar_wait(base + S::kOwnedFull, owned.parity);
        owned.advance();
#pragma unroll 1
        for (uint32_t step = 0; step < q.tiles; ++step) {
            const uint32_t keys = base + S::kWalked + at.at * 2 * S::kTile, k0 = (q.begin + step) * kKeys;
            ptx::mbar_wait(base + S::kFull + 8 * at.at, at.parity);
            if (valid > 0) {
                ptx::wgmma_fence();
                multiply_rows<D, kKeys, kOwned, kKeys>(s_r, queries, keys);
                ptx::wgmma_commit();
                multiply_rows<D, kKeys, kOwned, kKeys>(ds_r, douts, keys + S::kTile);
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>(s_r);
                const bool masked = !in.heads.sees(q.rows.first, k0 + kKeys - 1) ||
                                    !in.heads.sees(q.rows.first + kOwned - 1, k0);
#pragma unroll
                for (uint32_t i = 0; i < kKeys / 2; ++i) {
                    const uint32_t half = i / 2 % 2;
                    const float score = scores.at(s_r[i]);
                    s_r[i] = ptx::exp2_approx(fmaf(score, scale2, -lse2[half])) * scores.slope(score);
                }
                // A branch, and no condition of each weight: the exponentials of all tiles end in front of it, and so
                // in front of the wait, beside the product that it waits for.
                if (masked) hide(s_r, in.heads, upper, k0);
                ptx::wgmma_wait<0>(ds_r);
                if (step + 1 == q.tiles) release(base + S::kOwnedEmpty);
#pragma unroll
                for (uint32_t i = 0; i < kKeys / 2; ++i) ds_r[i] = s_r[i] * (ds_r[i] - dot[i / 2 % 2]);
                round_weights<kKeys>(ds_r, weights);
                ptx::wgmma_fence();
                add_rows<D, kKeys>(dq_r, weights, keys);
                ptx::wgmma_commit();
                ptx::wgmma_wait<0>(dq_r);
            } else if (step + 1 == q.tiles) {
                release(base + S::kOwnedEmpty);
            }
            release(base + S::kEmpty + 8 * at.at);
            at.advance();
        }
        const uint64_t width = in.heads.qkv_width();
        write_rows<D>(dq_r, in.scale, in.scale, in.dqkv + row0 * width + q.head * D, width, valid);
    }
}

// An item of dk and dv: which kv head, which keys, which queries see them. They are walked over in tiles, the query heads
// of the group one after another.
struct Keys {
    uint32_t kv, group, count, begin, end;
    Rows rows;

    __device__ __forceinline__ Keys(const uint4* blocks, uint32_t item, const Heads& heads)
        : kv(item % heads.g), group(heads.h / heads.g), rows(rows_of(blocks, item / heads.g)) {
        // The mirrored block of the document: as many queries see its keys as keys are seen by the entry's queries,
        // so the longest work still comes first.
        rows.first = (rows.len - 1) / kOwned * kOwned - rows.first;
        count = min(kOwned, rows.len - rows.first);
        begin = rows.first / kQueries * kQueries;
        // The last key is seen by queries before this one.
        end = min(rows.len, rows.first + count - 1 + heads.window);
    }
};

template <int D>
__device__ __forceinline__ void move_dkv(const ptx::TensorMap& qkv, const ptx::TensorMap& dout, const BackwardArgs& in,
                                         uint32_t base) {
    using S = KeyShape<D>;
    const Items items{in.items};
    Turn<S::kStages> at;
    Turn<1> owned;
    for (uint32_t round = 0, item; round < items.rounds(); ++round) {
        if (!items.take(round, item)) continue;
        const Keys k(in.blocks, item, in.heads);
        const uint32_t first = k.kv * k.group;
        for (uint32_t head = first; head < first + k.group; ++head) {
            for (uint32_t q0 = k.begin; q0 < k.end; q0 += kQueries) {
                const uint32_t x = head * D, y = k.rows.start + q0;
                const uint32_t to = base + S::kWalked + at.at * 2 * S::kTile, full = base + S::kFull + 8 * at.at;
                ptx::mbar_wait(base + S::kEmpty + 8 * at.at, at.parity ^ 1);
                ptx::mbar_expect(full, 2 * S::kTile);
                load_tile<D, kQueries, kQueries>(to, qkv, x, y, full);
                load_tile<D, kQueries, kQueries>(to + S::kTile, dout, x, y, full);
                at.advance();
                if (head == first && q0 == k.begin) {
                    // Behind the first queries: those have room earlier.
                    const uint32_t key_x = (in.heads.h + k.kv) * D, row = k.rows.start + k.rows.first;
                    ptx::mbar_wait(base + S::kOwnedEmpty, owned.parity ^ 1);
                    ptx::mbar_expect(base + S::kOwnedFull, 2 * S::kOwnedTile);
                    load_tile<D, kOwned, kQueries>(base, qkv, key_x, row, base + S::kOwnedFull);
                    load_tile<D, kOwned, kQueries>(base + S::kOwnedTile, qkv, key_x + in.heads.g * D, row,
                                         base + S::kOwnedFull);
                    owned.advance();
                }
            }
        }
    }
}

// One warp: the statistics of the queries, which no bulk copy can gather. Those of a stage are read before its place is
// free. A query behind the document's end has lse = inf, hence weights of 0.
template <int D>
__device__ __forceinline__ void move_statistics(const BackwardArgs& in, uint32_t base, uint8_t* shared) {
    using S = KeyShape<D>;
    const uint32_t lane = threadIdx.x % kWarp;
    const Items items{in.items};
    Turn<S::kStages> at;
    for (uint32_t round = 0, item; round < items.rounds(); ++round) {
        if (!items.take(round, item)) continue;
        const Keys k(in.blocks, item, in.heads);
        for (uint32_t head = k.kv * k.group; head < (k.kv + 1) * k.group; ++head) {
            for (uint32_t q0 = k.begin; q0 < k.end; q0 += kQueries) {
                float lse2[kQueries / kWarp], dot[kQueries / kWarp];
#pragma unroll
                for (uint32_t i = 0; i < kQueries / kWarp; ++i) {
                    const uint32_t q = q0 + i * kWarp + lane;
                    const uint64_t from = static_cast<uint64_t>(k.rows.start + q) * in.heads.h + head;
                    lse2[i] = q < k.rows.len ? in.lse[from] * kLog2E : INFINITY;
                    dot[i] = q < k.rows.len ? in.dot[from] : 0.0f;
                }
                ptx::mbar_wait(base + S::kEmpty + 8 * at.at, at.parity ^ 1);
                // Aligned: statistics lie behind tiles, in multiples of 4 bytes.
                float* to = reinterpret_cast<float*>(shared + S::kStatistics + at.at * S::kStatisticsBytes);
#pragma unroll
                for (uint32_t i = 0; i < kQueries / kWarp; ++i) {
                    to[i * kWarp + lane] = lse2[i];
                    to[kQueries + i * kWarp + lane] = dot[i];
                }
                // One lane arrives for all lanes' writes.
                __syncwarp();
                if (lane == 0) ptx::mbar_arrive(base + S::kFull + 8 * at.at);
                at.advance();
            }
        }
    }
}

template <int D, bool CAPPED>
__device__ __forceinline__ void compute_dkv(const BackwardArgs& in, uint32_t base, const uint8_t* shared, uint32_t w) {
    using S = KeyShape<D>;
    const Items items{in.items};
    const Scores2<CAPPED> scores(in.scale, in.cap);
    const float scale2 = scores.after;
    Turn<S::kStages> at;
    Turn<1> owned;
    for (uint32_t round = 0, item; round < items.rounds(); ++round) {
        if (!items.take(round, item)) continue;
        const Keys k(in.blocks, item, in.heads);
        const uint32_t first = k.rows.first + w * kGroupRows, upper = first + row_of_thread();
        const uint32_t keys = base + w * kGroupRows * kRowBytes, values = keys + S::kOwnedTile;
        float dk_r[D / 2], dv_r[D / 2], p_r[kQueries / 2], ds_r[kQueries / 2];
        uint32_t weights[kQueries / 16][4];
        clear(dk_r);
        clear(dv_r);
        ptx::mbar_wait(base + S::kOwnedFull, owned.parity);
        owned.advance();
#pragma unroll 1
        for (uint32_t q0 = k.begin, left = k.group; left > 0;) {
            const uint32_t queries = base + S::kWalked + at.at * 2 * S::kTile, douts = queries + S::kTile;
            ptx::mbar_wait(base + S::kFull + 8 * at.at, at.parity);
            // True if some query of the tile sees some key of this consumer.
            const bool met = q0 + kQueries > first &&
                             (q0 < first + kGroupRows || in.heads.sees(q0, first + kGroupRows - 1));
            if (met) {
                ptx::wgmma_fence();
                multiply_rows<D, kQueries, kOwned, kQueries>(p_r, keys, queries);
                ptx::wgmma_commit();
                multiply_rows<D, kQueries, kOwned, kQueries>(ds_r, values, douts);
                ptx::wgmma_commit();
                // Aligned: pairs of statistics begin at even queries.
                const float2* stats = reinterpret_cast<const float2*>(shared + S::kStatistics +
                                                                      at.at * S::kStatisticsBytes) +
                                      threadIdx.x % 4;
                const bool masked =
                    !in.heads.sees(q0, first + kGroupRows - 1) || !in.heads.sees(q0 + kQueries - 1, first);
                ptx::wgmma_wait<1>(p_r);
#pragma unroll
                for (uint32_t n = 0; n < kQueries / 8; ++n) {
                    const float2 lse2 = stats[4 * n];
#pragma unroll
                    for (uint32_t e = 0; e < 4; ++e) {
                        float& p = p_r[4 * n + e];
                        const uint32_t q = q0 + n * 8 + threadIdx.x % 4 * 2 + e % 2;
                        p = ptx::exp2_approx(fmaf(scores.at(p), scale2, -(e % 2 == 0 ? lse2.x : lse2.y)));
                        if (masked && !in.heads.sees(q, upper + e / 2 * 8)) p = 0.0f;
                    }
                }
                round_weights<kQueries>(p_r, weights);
                // Until its product has ended nobody may read it: the same numbers in other registers.
                uint32_t swapped[kQueries / 16][4];
#pragma unroll
                for (uint32_t i = 0; i < kQueries / 4; ++i) {
                    swapped[i / 4][i % 4] = ptx::swap_halves(weights[i / 4][i % 4]);
                }
                ptx::wgmma_fence();
                add_rows<D, kQueries>(dv_r, weights, douts);
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>(ds_r);
                // p as it was rounded for dv: its fp32 numbers would need registers that wide heads do not leave.
#pragma unroll
                for (uint32_t n = 0; n < kQueries / 8; ++n) {
                    const float2 dot = stats[kQueries / 2 + 4 * n], lse2 = stats[4 * n];
#pragma unroll
                    for (uint32_t e = 0; e < 4; ++e) {
                        const uint32_t pair = swapped[n / 2][n % 2 * 2 + e / 2];
                        const float p = __uint_as_float(e % 2 == 0 ? pair & 0xFFFF0000u : pair << 16);
                        float& ds = ds_r[4 * n + e];
                        ds = p * (ds - (e % 2 == 0 ? dot.x : dot.y));
                        // A weight of 0 has no score; then any slope is right that is a number.
                        if (CAPPED) ds *= scores.slope(log2f(p) + (e % 2 == 0 ? lse2.x : lse2.y));
                    }
                }
                uint32_t ds_weights[kQueries / 16][4];
                round_weights<kQueries>(ds_r, ds_weights);
                ptx::wgmma_fence();
                add_rows<D, kQueries>(dk_r, ds_weights, queries);
                ptx::wgmma_commit();
                ptx::wgmma_wait<0>(dv_r);
                ptx::wgmma_wait<0>(dk_r);
            }
            release(base + S::kEmpty + 8 * at.at);
            at.advance();
            q0 += kQueries;
            if (q0 >= k.end) {
                // The next head of the group.
                q0 = k.begin;
                --left;
            }
        }
        release(base + S::kOwnedEmpty);
        const uint32_t valid = group_rows(k.count, w);
        const uint64_t width = in.heads.qkv_width();
        uint16_t* to = in.dqkv + (k.rows.start + static_cast<uint64_t>(first)) * width + (in.heads.h + k.kv) * D;
        write_rows<D>(dk_r, in.scale, in.scale, to, width, valid);
        write_rows<D>(dv_r, 1.0f, 1.0f, to + in.heads.g * D, width, valid);
    }
}

template <int D, bool CAPPED>
__device__ __forceinline__ void dq_sm90(const ptx::TensorMap& qkv, const ptx::TensorMap& dout, const BackwardArgs& in) {
    const uint32_t base = shared_base(), group = threadIdx.x / kWarpgroup;
    open_barriers<QueryShape<D>>(base, 1, qkv, dout);
    if (group == 0) {
        ptx::registers_down<kProducerRegisters>();
        if (threadIdx.x == 0) {
            move_dq<D>(qkv, dout, in, base);
            ptx::grid_release();
        }
        __syncwarp();
    } else {
        ptx::registers_up<kConsumerRegisters>();
        compute_dq<D, CAPPED>(in, base, group - 1);
    }
}

template <int D, bool CAPPED>
__device__ __forceinline__ void dkv_sm90(const ptx::TensorMap& qkv, const ptx::TensorMap& dout,
                                         const BackwardArgs& in) {
    const uint32_t base = shared_base(), group = threadIdx.x / kWarpgroup;
    uint8_t* shared = ptx::dyn_smem() + (base - ptx::smem_u32(ptx::dyn_smem()));
    // The tiles' bytes, and the statistics' warp.
    open_barriers<KeyShape<D>>(base, 2, qkv, dout);
    if (group == 0) {
        ptx::registers_down<kProducerRegisters>();
        if (threadIdx.x == 0) {
            move_dkv<D>(qkv, dout, in, base);
            ptx::grid_release();
        } else if (threadIdx.x / kWarp == 1) {
            move_statistics<D>(in, base, shared);
        }
        __syncwarp();
    } else {
        ptx::registers_up<kConsumerRegisters>();
        compute_dkv<D, CAPPED>(in, base, shared, group - 1);
    }
}

}  // namespace attn

// Grid: one block a processor, at most `items`, that is entries of `blocks` (of 128 rows) x H for dq and x G for dk and
// dv, heads fastest.
#define ATTENTION_BWD_SM90(NAME, BODY, D)                                                                            \
    extern "C" __global__ void __launch_bounds__(attn::kGroupThreads, 1)                                             \
        NAME(const __grid_constant__ ptx::TensorMap qkv, const __grid_constant__ ptx::TensorMap dout,                \
             const uint4* blocks, const float* lse, const float* dot, uint16_t* dqkv, uint32_t items, uint32_t h,    \
             uint32_t g, uint32_t window, float scale) {                                                             \
        const attn::Heads heads{h, g, D, window};                                                                    \
        attn::BODY<D, false>(qkv, dout, attn::BackwardArgs{blocks, lse, dot, dqkv, items, heads, scale, 0.0f});      \
    }                                                                                                                \
    KERNEL_EXPORT(NAME)

ATTENTION_BWD_SM90(attention_bwd_dq_sm90_64_bf16, dq_sm90, 64);
ATTENTION_BWD_SM90(attention_bwd_dq_sm90_128_bf16, dq_sm90, 128);
ATTENTION_BWD_SM90(attention_bwd_dkv_sm90_64_bf16, dkv_sm90, 64);
ATTENTION_BWD_SM90(attention_bwd_dkv_sm90_128_bf16, dkv_sm90, 128);

// The same with a cap.
#define ATTENTION_BWD_CAPPED(NAME, BODY, D)                                                                          \
    extern "C" __global__ void __launch_bounds__(attn::kGroupThreads, 1)                                             \
        NAME(const __grid_constant__ ptx::TensorMap qkv, const __grid_constant__ ptx::TensorMap dout,                \
             const uint4* blocks, const float* lse, const float* dot, uint16_t* dqkv, uint32_t items, uint32_t h,    \
             uint32_t g, uint32_t window, float scale, float cap) {                                                  \
        const attn::Heads heads{h, g, D, window};                                                                    \
        attn::BODY<D, true>(qkv, dout, attn::BackwardArgs{blocks, lse, dot, dqkv, items, heads, scale, cap});        \
    }                                                                                                                \
    KERNEL_EXPORT(NAME)

ATTENTION_BWD_CAPPED(attention_bwd_dq_sm90_128_capped_bf16, dq_sm90, 128);
ATTENTION_BWD_CAPPED(attention_bwd_dkv_sm90_128_capped_bf16, dkv_sm90, 128);

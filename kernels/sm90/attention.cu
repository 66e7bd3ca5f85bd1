// Attention's forward pass on compute capability 9.0: bf16, heads of width 64 and 128.
//
// For each query head and each query q of a document, over the keys k that q sees:
//   s_k = scale q.k (capped: cap tanh(s_k / cap), at width 128),  lse = ln sum_k exp(s_k),  out = sum_k exp(s_k - lse) v_k
// Shape: an item is 128 queries of one head. One warpgroup loads (bulk copies through a tensor map of qkv, two stages of
// 128 keys and two of values, queries once an item), two compute, 64 queries each: scores from shared memory, the online
// softmax in base 2 with the scale folded in, and its weights, rounded to bf16 in registers, times the values. A tile's
// scores are started before the product of the last tile's weights, so that the softmax of one runs beside the other on
// the tensor cores; and the two consumers take turns there, one multiplying while the other takes exponentials.
// The walk starts at the diagonal: every row meets a key it sees (itself) in the first tile, so the running maximum is
// finite from then on. Only the diagonal tile and those at a window's edge are masked, and tiles no row sees are skipped.
// Heads of one block of rows are neighbouring items: those that share keys find them in L2.
// Bytes: q and out once, k and v once an item (mostly from L2): 2 (H + 2G) D + 2 H D a token at best.
// Roof: tensor cores; predicted (src/bench/predict.rs): 370 TFLOP/s at 1024 tokens and 495 at 8192 on an H100, at
// width 64 and 1024 tokens 310, where the exponentials take as long as the products.
// Source: FlashAttention-3, arXiv 2407.08608, algorithms 1 and 2, without its fp8.
#include "attention.cuh"

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

constexpr uint32_t kKeys = 128;  // of a tile
constexpr uint32_t kStages = 2;

// Shared memory from the first multiple of 1024 on: queries, stages of keys, stages of values, barriers.
template <int D>
struct Forward {
    static constexpr uint32_t kTile = kTileBytes<D, kKeys>;
    static_assert(kKeys == kOwned, "queries take a tile's room, and the diagonal lies in one tile");
    static constexpr uint32_t kKey = kTile;
    static constexpr uint32_t kValue = kKey + kStages * kTile;
    static constexpr uint32_t kQueryFull = kValue + kStages * kTile;
    static constexpr uint32_t kQueryEmpty = kQueryFull + 8;
    static constexpr uint32_t kKeyFull = kQueryEmpty + 8;
    static constexpr uint32_t kKeyEmpty = kKeyFull + 8 * kStages;
    static constexpr uint32_t kValueFull = kKeyEmpty + 8 * kStages;
    static constexpr uint32_t kValueEmpty = kValueFull + 8 * kStages;
    static constexpr uint32_t kShared = 1024 + kValueEmpty + 8 * kStages;
    static_assert(kShared <= kSharedLimit, "a block's shared memory");
};

struct ForwardArgs {
    const uint4* blocks;
    uint16_t* out;
    float* lse;
    uint32_t items;
    Heads heads;
    float scale, cap;
};

// An item: which head, which rows, which tiles of keys its queries see.
struct Query {
    uint32_t head, kv, count, last, tiles;
    Rows rows;

    __device__ __forceinline__ Query(const uint4* blocks, uint32_t item, const Heads& heads)
        : head(item % heads.h), kv(head / (heads.h / heads.g)), rows(rows_of(blocks, item / heads.h)) {
        count = min(kOwned, rows.len - rows.first);
        // Blocks of rows start at multiples of kOwned from the document's start, hence at a tile of keys.
        last = rows.first / kKeys;
        tiles = last - heads.first_key(rows.first) / kKeys + 1;
    }
};

template <int D>
__device__ __forceinline__ void move_forward(const ptx::TensorMap& qkv, const ForwardArgs& in, uint32_t base) {
    using S = Forward<D>;
    const Items items{in.items};
    Turn<kStages> at;
    Turn<1> query;
    for (uint32_t round = 0, item; round < items.rounds(); ++round) {
        if (!items.take(round, item)) continue;
        const Query q(in.blocks, item, in.heads);
        const uint32_t key_x = (in.heads.h + q.kv) * D, value_x = key_x + in.heads.g * D;
        for (uint32_t step = 0; step < q.tiles; ++step) {
            const uint32_t y = q.rows.start + (q.last - step) * kKeys;
            ptx::mbar_wait(base + S::kKeyEmpty + 8 * at.at, at.parity ^ 1);
            ptx::mbar_expect(base + S::kKeyFull + 8 * at.at, S::kTile);
            load_tile<D, kKeys, kKeys>(base + S::kKey + at.at * S::kTile, qkv, key_x, y, base + S::kKeyFull + 8 * at.at);
            if (step == 0) {
                // Behind the first keys: those have room earlier.
                ptx::mbar_wait(base + S::kQueryEmpty, query.parity ^ 1);
                ptx::mbar_expect(base + S::kQueryFull, S::kTile);
                load_tile<D, kOwned, kOwned>(base, qkv, q.head * D, q.rows.start + q.rows.first, base + S::kQueryFull);
                query.advance();
            }
            ptx::mbar_wait(base + S::kValueEmpty + 8 * at.at, at.parity ^ 1);
            ptx::mbar_expect(base + S::kValueFull + 8 * at.at, S::kTile);
            load_tile<D, kKeys, kKeys>(base + S::kValue + at.at * S::kTile, qkv, value_x, y,
                                base + S::kValueFull + 8 * at.at);
            at.advance();
        }
    }
}

// The softmax of a thread's two rows so far, in base 2.
struct Online {
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};

    // Turns scores into weights; `keep` is what the sums so far are worth.
    __device__ __forceinline__ void step(float (&s)[kKeys / 2], float (&keep)[2], float scale2) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float now = top[half];
#pragma unroll
            for (uint32_t n = 0; n < kKeys / 8; ++n) {
                now = fmaxf(now, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
            }
            now = quad_max(now);
            const float base = now * scale2;
            keep[half] = ptx::exp2_approx(fmaf(top[half], scale2, -base));
            top[half] = now;
            float sum = 0.0f;
#pragma unroll
            for (uint32_t n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& x = s[4 * n + 2 * half + e];
                    x = ptx::exp2_approx(fmaf(x, scale2, -base));
                    sum += x;
                }
            }
            total[half] = total[half] * keep[half] + sum;
        }
    }
};

// Caps the scores of a tile where there is a cap.
template <bool CAPPED>
__device__ __forceinline__ void limit(float (&s)[kKeys / 2], const Scores2<CAPPED>& scores) {
#pragma unroll
    for (uint32_t i = 0; i < kKeys / 2; ++i) s[i] = scores.at(s[i]);
}

// Hides the keys of the tile at k0 that the thread's rows, `upper` and 8 further down, do not see.
__device__ __forceinline__ void hide(float (&s)[kKeys / 2], const Heads& heads, uint32_t upper, uint32_t k0) {
    const uint32_t first = k0 + threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < kKeys / 2; ++i) {
        uint32_t k = first + i / 4 * 8 + i % 2, q = upper + i / 2 % 2 * 8;
        if (!heads.sees(q, k)) s[i] = -INFINITY;
    }
}

template <int D>
__device__ __forceinline__ void scale_rows(float (&d)[D / 2], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i) d[i] *= factor[i / 2 % 2];
}

template <int D, bool CAPPED>
__device__ __forceinline__ void compute_forward(const ForwardArgs& in, uint32_t base, uint32_t w) {
    using S = Forward<D>;
    const Items items{in.items};
    const Scores2<CAPPED> scores(in.scale, in.cap);
    const float scale2 = scores.after;
    Turn<kStages> key, value;
    Turn<1> query;
    for (uint32_t round = 0, item; round < items.rounds(); ++round) {
        if (!items.take(round, item)) continue;
        const Query q(in.blocks, item, in.heads);
        const uint32_t valid = group_rows(q.count, w);
        ptx::mbar_wait(base + S::kQueryFull, query.parity);
        query.advance();
        if (valid == 0) {
            // Nothing to compute; the tiles still need both consumers' release.
            release(base + S::kQueryEmpty);
            for (uint32_t step = 0; step < q.tiles; ++step) {
                ptx::mbar_wait(base + S::kKeyFull + 8 * key.at, key.parity);
                release(base + S::kKeyEmpty + 8 * key.at);
                key.advance();
                ptx::mbar_wait(base + S::kValueFull + 8 * value.at, value.parity);
                release(base + S::kValueEmpty + 8 * value.at);
                value.advance();
            }
            continue;
        }
        const bool both = q.count > kGroupRows;
        const uint32_t queries = base + w * kGroupRows * kRowBytes;
        const uint32_t upper = q.rows.first + w * kGroupRows + row_of_thread();
        float o_r[D / 2], s_r[kKeys / 2], keep[2];
        uint32_t p_r[kKeys / 16][4];
        Online online;
        clear(o_r);

        ptx::mbar_wait(base + S::kKeyFull + 8 * key.at, key.parity);
        ptx::wgmma_fence();
        multiply_rows<D, kKeys, kOwned, kKeys>(s_r, queries, base + S::kKey + key.at * S::kTile);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>(s_r);
        release(base + S::kKeyEmpty + 8 * key.at);
        key.advance();
        if (q.tiles == 1) release(base + S::kQueryEmpty);
        limit(s_r, scores);
        hide(s_r, in.heads, upper, q.last * kKeys);
        online.step(s_r, keep, scale2);
        round_weights<kKeys>(s_r, p_r);

        // Turns at the tensor cores: the first consumer begins.
        if (both && w == 1 && q.tiles > 1) ptx::bar_arrive(1, kConsumers * kWarpgroup);
#pragma unroll 1
        for (uint32_t step = 1; step < q.tiles; ++step) {
            const uint32_t k0 = (q.last - step) * kKeys;
            ptx::mbar_wait(base + S::kKeyFull + 8 * key.at, key.parity);
            ptx::mbar_wait(base + S::kValueFull + 8 * value.at, value.parity);
            if (both) ptx::bar_sync(1 + w, kConsumers * kWarpgroup);
            ptx::wgmma_fence();
            multiply_rows<D, kKeys, kOwned, kKeys>(s_r, queries, base + S::kKey + key.at * S::kTile);
            ptx::wgmma_commit();
            add_rows<D, kKeys>(o_r, p_r, base + S::kValue + value.at * S::kTile);
            ptx::wgmma_commit();
            if (both && (w == 0 || step + 1 < q.tiles)) ptx::bar_arrive(2 - w, kConsumers * kWarpgroup);
            ptx::wgmma_wait<1>(s_r);
            release(base + S::kKeyEmpty + 8 * key.at);
            key.advance();
            if (step + 1 == q.tiles) release(base + S::kQueryEmpty);
            limit(s_r, scores);
            if (!in.heads.sees(q.rows.first + kOwned - 1, k0)) hide(s_r, in.heads, upper, k0);
            online.step(s_r, keep, scale2);
            ptx::computed(online.total[0], online.total[1]);
            ptx::wgmma_wait<0>(o_r);
            release(base + S::kValueEmpty + 8 * value.at);
            value.advance();
            scale_rows<D>(o_r, keep);
            round_weights<kKeys>(s_r, p_r);
        }
        ptx::mbar_wait(base + S::kValueFull + 8 * value.at, value.parity);
        ptx::wgmma_fence();
        add_rows<D, kKeys>(o_r, p_r, base + S::kValue + value.at * S::kTile);
        ptx::wgmma_commit();
        const float total[2] = {quad_sum(online.total[0]), quad_sum(online.total[1])};
        ptx::wgmma_wait<0>(o_r);
        release(base + S::kValueEmpty + 8 * value.at);
        value.advance();

        const uint64_t row0 = q.rows.start + q.rows.first + w * kGroupRows;
        const uint64_t width = in.heads.out_width();
        write_rows<D>(o_r, 1.0f / total[0], 1.0f / total[1], in.out + row0 * width + q.head * D, width, valid);
        if (threadIdx.x % 4 == 0) {
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                uint32_t r = row_of_thread() + 8 * half;
                if (r < valid) {
                    in.lse[(row0 + r) * in.heads.h + q.head] =
                        online.top[half] * scores.natural + log2f(total[half]) * kLn2;
                }
            }
        }
    }
}

template <int D, bool CAPPED = false>
__device__ __forceinline__ void forward_sm90(const ptx::TensorMap& qkv, const ForwardArgs& in) {
    using S = Forward<D>;
    const uint32_t base = shared_base();
    if (threadIdx.x == 0) {
        ptx::mbar_init(base + S::kQueryFull, 1);
        ptx::mbar_init(base + S::kQueryEmpty, kReleases);
        for (uint32_t s = 0; s < kStages; ++s) {
            ptx::mbar_init(base + S::kKeyFull + 8 * s, 1);
            ptx::mbar_init(base + S::kKeyEmpty + 8 * s, kReleases);
            ptx::mbar_init(base + S::kValueFull + 8 * s, 1);
            ptx::mbar_init(base + S::kValueEmpty + 8 * s, kReleases);
        }
        ptx::fence_mbar_init();
        ptx::prefetch_map(qkv);
    }
    // Nobody uses a barrier before it is there.
    __syncthreads();
    ptx::grid_wait();
    const uint32_t group = threadIdx.x / kWarpgroup;
    if (group == 0) {
        ptx::registers_down<kProducerRegisters>();
        if (threadIdx.x == 0) {
            move_forward<D>(qkv, in, base);
            ptx::grid_release();
        }
        __syncwarp();
    } else {
        ptx::registers_up<kConsumerRegisters>();
        compute_forward<D, CAPPED>(in, base, group - 1);
    }
}

}  // namespace attn

// Grid: one block a processor, at most `items`, that is entries of `blocks` (of 128 rows) x H, heads fastest.
extern "C" __global__ void __launch_bounds__(attn::kGroupThreads, 1)
    attention_sm90_64_bf16(const __grid_constant__ ptx::TensorMap qkv, const uint4* blocks, uint16_t* out, float* lse,
                           uint32_t items, uint32_t h, uint32_t g, uint32_t window, float scale) {
    attn::forward_sm90<64>(qkv, attn::ForwardArgs{blocks, out, lse, items, attn::Heads{h, g, 64, window}, scale, 0.0f});
}

extern "C" __global__ void __launch_bounds__(attn::kGroupThreads, 1)
    attention_sm90_128_bf16(const __grid_constant__ ptx::TensorMap qkv, const uint4* blocks, uint16_t* out, float* lse,
                            uint32_t items, uint32_t h, uint32_t g, uint32_t window, float scale) {
    attn::forward_sm90<128>(qkv, attn::ForwardArgs{blocks, out, lse, items, attn::Heads{h, g, 128, window}, scale, 0.0f});
}

extern "C" __global__ void __launch_bounds__(attn::kGroupThreads, 1)
    attention_sm90_128_capped_bf16(const __grid_constant__ ptx::TensorMap qkv, const uint4* blocks, uint16_t* out,
                                   float* lse, uint32_t items, uint32_t h, uint32_t g, uint32_t window, float scale,
                                   float cap) {
    const attn::ForwardArgs args{blocks, out, lse, items, attn::Heads{h, g, 128, window}, scale, cap};
    attn::forward_sm90<128, true>(qkv, args);
}

KERNEL_EXPORT(attention_sm90_64_bf16);
KERNEL_EXPORT(attention_sm90_128_bf16);
KERNEL_EXPORT(attention_sm90_128_capped_bf16);

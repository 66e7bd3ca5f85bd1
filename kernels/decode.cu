// The key-value cache of generation, attention of single tokens against it, and gathered rows.
//
// cache_store: keys[slot, position] = k, values[slot, position] = v, both caches being [slots, capacity, G, D].
// decode: out = sum_k softmax(scale q.k) v_k (scores may be capped) over the cached positions from the window's first to the token's own.
// Shape of decode: a block takes up to four query heads of one kv head and a span of 128 positions, so keys and
// values are read once for those heads. Scores: eight lanes a key, 16 bytes a lane and load; then a softmax a head;
// then a thread a pack of columns and a share of the keys, the shares added in order. Spans begin at multiples of 128,
// and a second kernel puts their partial results together in order: the sum depends on the position and the window
// alone, not on the device, the batch or what else is in it.
// Bytes: 4 D a cached position and kv head in bf16, read once for four query heads; the rest is small. Roof: device
// memory; aims at 80 % of a copy's rate once there are some hundred spans.
// Rounding: products and sums are fp32; only what is stored is rounded, to nearest even.
// Source: flash decoding (split over the keys), Dao et al. 2023; the fixed spans are this project's own.
#include "attention.cuh"

namespace decode {

using attn::load_pack;
using attn::Pack;
using attn::store_pack;
using attn::whole_packs;

constexpr int kThreads = 128;
constexpr int kSpan = 128;      // positions of a partial result
constexpr int kHeads = 4;       // query heads a block takes
constexpr int kKeyLanes = 8;    // lanes that share a key

// The document of a row: the last one that starts at it or before.
__device__ __forceinline__ uint32_t document_of(const uint32_t* starts, uint32_t documents,
                                                uint32_t row) {
    uint32_t low = 0, high = documents;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (starts[middle] <= row) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

template <typename T, int E>
__device__ __forceinline__ void store_rows(const uint32_t* starts, const uint32_t* slots,
                                           const uint32_t* positions, const T* qkv, T* keys, T* values,
                                           uint32_t n, uint32_t documents, uint32_t capacity,
                                           attn::Heads heads) {
    const uint32_t width = heads.g * heads.d, packs = width / E;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (at >= static_cast<uint64_t>(n) * 2 * packs) return;
    const uint32_t row = static_cast<uint32_t>(at / (2 * packs)), pack = static_cast<uint32_t>(at % (2 * packs));
    const uint64_t slot = slots[document_of(starts, documents, row)];
    const T* from = qkv + static_cast<uint64_t>(row) * heads.qkv_width() + heads.out_width() + pack * E;
    T* cache = pack < packs ? keys : values;
    T* to = cache + (slot * capacity + positions[row]) * width + pack % packs * E;
    store_pack(to, load_pack<T, E>(from));
}

// A partial result: the largest score, the sum of exp(score - largest), and the sums over values.
// partial holds 2 floats, and sums D floats, for each token, head and span.
template <typename T, int E>
__device__ __forceinline__ void decode_span(const uint32_t* slots, const uint32_t* positions,
                                            const T* qkv, const T* keys, const T* values,
                                            float* partial, float* sums, uint32_t capacity,
                                            attn::Heads heads, uint32_t spans, attn::Scores scores) {
    __shared__ float q_s[kHeads][attn::kMaxWidth];
    __shared__ float p_s[kHeads][kSpan];
    // A thread's columns for each head, before the shares are added.
    __shared__ float shares_s[kHeads][kThreads * E];
    const uint32_t d = heads.d, group = heads.h / heads.g, quarters = (group + kHeads - 1) / kHeads;
    const uint32_t span = blockIdx.x % spans, rest = blockIdx.x / spans;
    const uint32_t kv = rest / quarters % heads.g, row = rest / quarters / heads.g;
    const uint32_t from_head = rest % quarters * kHeads;
    const uint32_t head0 = kv * group + from_head, count = min(group - from_head, static_cast<uint32_t>(kHeads));
    const uint32_t position = positions[row];
    const uint32_t begin = max(heads.first_key(position), span * kSpan);
    const uint32_t end = min(position + 1, (span + 1) * kSpan);
    // Nothing to see here; the same for all threads of the block. The merge knows.
    if (begin >= end) return;
    const uint64_t pitch = static_cast<uint64_t>(heads.g) * d;
    const uint64_t base = (static_cast<uint64_t>(slots[row]) * capacity + begin) * pitch + kv * d;
    const uint32_t seen = end - begin, packs = d / E;
    const T* q = qkv + static_cast<uint64_t>(row) * heads.qkv_width() + head0 * d;
    for (uint32_t i = threadIdx.x; i < kHeads * d; i += kThreads) {
        // Heads that are not there score 0 everywhere and are not written.
        q_s[i / d][i % d] = i < count * d ? widen(q[i]) : 0.0f;
    }
    // All of the queries are needed next.
    __syncthreads();

    const uint32_t lane = threadIdx.x % kKeyLanes;
    // Whole warps stay together: the sums over lanes need all of them. Two keys at a time, so that the loads of
    // narrow heads do not wait for one another.
    constexpr uint32_t kStep = kThreads / kKeyLanes;
    for (uint32_t k0 = 0; k0 < seen; k0 += 2 * kStep) {
        const uint32_t k = k0 + threadIdx.x / kKeyLanes;
        float s[2][kHeads] = {};
        // A key behind the last is replaced by the last one, and its score is not kept.
        const T* key0 = keys + base + min(k, seen - 1) * pitch;
        const T* key1 = keys + base + min(k + kStep, seen - 1) * pitch;
#pragma unroll 2
        for (uint32_t pack = lane; pack < packs; pack += kKeyLanes) {
            const Pack<T, E> x0 = load_pack<T, E>(key0 + pack * E), x1 = load_pack<T, E>(key1 + pack * E);
#pragma unroll
            for (int e = 0; e < E; ++e) {
#pragma unroll
                for (int r = 0; r < kHeads; ++r) {
                    const float q1 = q_s[r][pack * E + e];
                    s[0][r] = fmaf(widen(x0.v[e]), q1, s[0][r]);
                    s[1][r] = fmaf(widen(x1.v[e]), q1, s[1][r]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
            for (int r = 0; r < kHeads; ++r) {
                float sum = s[j][r];
#pragma unroll
                for (int offset = kKeyLanes / 2; offset > 0; offset /= 2) {
                    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
                }
                if (lane == 0 && k + j * kStep < seen) p_s[r][k + j * kStep] = scores.at(sum);
            }
        }
    }
    // All scores are needed next.
    __syncthreads();

    // A warp a head.
    static_assert(kThreads / kWarp == kHeads, "a warp a head");
    const uint32_t r = threadIdx.x / kWarp;
    float top = -INFINITY, total = 0.0f;
    for (uint32_t k = threadIdx.x % kWarp; k < seen; k += kWarp) top = fmaxf(top, p_s[r][k]);
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, offset));
    }
    for (uint32_t k = threadIdx.x % kWarp; k < seen; k += kWarp) {
        float p = expf(p_s[r][k] - top);
        p_s[r][k] = p;
        total += p;
    }
    total = warp_sum(total);
    const uint64_t result = (static_cast<uint64_t>(row) * heads.h + head0) * spans + span;
    if (r < count && threadIdx.x % kWarp == 0) {
        partial[(result + r * spans) * 2] = top;
        partial[(result + r * spans) * 2 + 1] = total;
    }
    // All weights are needed next.
    __syncthreads();

    // `shares` threads a pack of columns where there are threads enough, else several packs a thread.
    const uint32_t columns = min(packs, static_cast<uint32_t>(kThreads)), shares = kThreads / columns;
    for (uint32_t first = 0; first < packs; first += columns) {
        const uint32_t pack = first + threadIdx.x % columns, share = threadIdx.x / columns;
        const bool works = share < shares && pack < packs;
        float sum[kHeads][E] = {};
        if (works) {
#pragma unroll 4
            for (uint32_t k = share; k < seen; k += shares) {
                Pack<T, E> x = load_pack<T, E>(values + base + k * pitch + pack * E);
#pragma unroll
                for (int e = 0; e < E; ++e) {
#pragma unroll
                    for (int h = 0; h < kHeads; ++h) {
                        sum[h][e] = fmaf(p_s[h][k], widen(x.v[e]), sum[h][e]);
                    }
                }
            }
        }
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
#pragma unroll
            for (int e = 0; e < E; ++e) shares_s[h][e * kThreads + threadIdx.x] = sum[h][e];
        }
        // All shares are added next.
        __syncthreads();
        if (works && share == 0) {
            for (uint32_t h = 0; h < count; ++h) {
#pragma unroll
                for (int e = 0; e < E; ++e) {
                    float all = 0.0f;
                    for (uint32_t i = 0; i < shares; ++i) {
                        all += shares_s[h][e * kThreads + i * columns + threadIdx.x];
                    }
                    sums[(result + h * spans) * d + pack * E + e] = all;
                }
            }
        }
        // The next round overwrites the shares.
        __syncthreads();
    }
}

// A thread an element of the output; spans in order.
template <typename T>
__device__ __forceinline__ void decode_merge(const uint32_t* positions, const float* partial,
                                             const float* sums, T* out, uint32_t n,
                                             attn::Heads heads, uint32_t spans) {
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (at >= static_cast<uint64_t>(n) * heads.out_width()) return;
    const uint64_t pair = at / heads.d;
    const uint32_t c = static_cast<uint32_t>(at % heads.d);
    const uint32_t position = positions[pair / heads.h];
    const uint32_t begin = heads.first_key(position) / kSpan, end = position / kSpan + 1;
    float top = -INFINITY, total = 0.0f, sum = 0.0f;
    for (uint32_t span = begin; span < end; ++span) top = fmaxf(top, partial[(pair * spans + span) * 2]);
    for (uint32_t span = begin; span < end; ++span) {
        const uint64_t result = pair * spans + span;
        const float weight = expf(partial[result * 2] - top);
        total = fmaf(weight, partial[result * 2 + 1], total);
        sum = fmaf(weight, sums[result * heads.d + c], sum);
    }
    narrow(sum / total, out[at]);
}

// A thread a pack of the gathered rows.
template <typename T, int E>
__device__ __forceinline__ void gather(const uint32_t* rows, const T* x, T* y, uint32_t n, uint32_t c) {
    const uint32_t packs = c / E;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (at >= static_cast<uint64_t>(n) * packs) return;
    const T* from = x + static_cast<uint64_t>(rows[at / packs]) * c + at % packs * E;
    store_pack(y + at * E, load_pack<T, E>(from));
}

}  // namespace decode

// Grid: a thread a pack (or an element, where D is not made of whole packs) of all rows' keys and values.
extern "C" __global__ void __launch_bounds__(kBlock)
    cache_store_bf16(const uint32_t* starts, const uint32_t* slots, const uint32_t* positions,
                     const uint16_t* qkv, uint16_t* keys, uint16_t* values, uint32_t n,
                     uint32_t documents, uint32_t capacity, uint32_t h, uint32_t g, uint32_t d) {
    ptx::grid_enter();
    const attn::Heads heads{h, g, d, 0};
    if (decode::whole_packs<uint16_t>(d)) {
        decode::store_rows<uint16_t, 8>(starts, slots, positions, qkv, keys, values, n, documents,
                                          capacity, heads);
    } else {
        decode::store_rows<uint16_t, 1>(starts, slots, positions, qkv, keys, values, n, documents,
                                          capacity, heads);
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
    cache_store_f32(const uint32_t* starts, const uint32_t* slots, const uint32_t* positions,
                    const float* qkv, float* keys, float* values, uint32_t n, uint32_t documents,
                    uint32_t capacity, uint32_t h, uint32_t g, uint32_t d) {
    ptx::grid_enter();
    const attn::Heads heads{h, g, d, 0};
    if (decode::whole_packs<float>(d)) {
        decode::store_rows<float, 4>(starts, slots, positions, qkv, keys, values, n, documents,
                                       capacity, heads);
    } else {
        decode::store_rows<float, 1>(starts, slots, positions, qkv, keys, values, n, documents,
                                       capacity, heads);
    }
}

// Grid: tokens x G x ceil(group / 4) x spans in one dimension, spans fastest. `wide`: D is made of whole packs.
extern "C" __global__ void __launch_bounds__(decode::kThreads, 6)
    decode_wide_bf16(const uint32_t* slots, const uint32_t* positions, const uint16_t* qkv,
                     const uint16_t* keys, const uint16_t* values, float* partial, float* sums,
                     uint32_t capacity, uint32_t h, uint32_t g, uint32_t d, uint32_t window,
                     uint32_t spans, float scale, float cap) {
    ptx::grid_enter();
    decode::decode_span<uint16_t, 8>(slots, positions, qkv, keys, values, partial, sums, capacity,
                                       attn::Heads{h, g, d, window}, spans, attn::Scores{scale, Cap(cap)});
}

extern "C" __global__ void __launch_bounds__(decode::kThreads, 6)
    decode_any_bf16(const uint32_t* slots, const uint32_t* positions, const uint16_t* qkv,
                    const uint16_t* keys, const uint16_t* values, float* partial, float* sums,
                    uint32_t capacity, uint32_t h, uint32_t g, uint32_t d, uint32_t window,
                    uint32_t spans, float scale, float cap) {
    ptx::grid_enter();
    decode::decode_span<uint16_t, 1>(slots, positions, qkv, keys, values, partial, sums, capacity,
                                       attn::Heads{h, g, d, window}, spans, attn::Scores{scale, Cap(cap)});
}

extern "C" __global__ void __launch_bounds__(decode::kThreads, 6)
    decode_wide_f32(const uint32_t* slots, const uint32_t* positions, const float* qkv,
                    const float* keys, const float* values, float* partial, float* sums,
                    uint32_t capacity, uint32_t h, uint32_t g, uint32_t d, uint32_t window,
                    uint32_t spans, float scale, float cap) {
    ptx::grid_enter();
    decode::decode_span<float, 4>(slots, positions, qkv, keys, values, partial, sums, capacity,
                                    attn::Heads{h, g, d, window}, spans, attn::Scores{scale, Cap(cap)});
}

extern "C" __global__ void __launch_bounds__(decode::kThreads, 6)
    decode_any_f32(const uint32_t* slots, const uint32_t* positions, const float* qkv,
                   const float* keys, const float* values, float* partial, float* sums,
                   uint32_t capacity, uint32_t h, uint32_t g, uint32_t d, uint32_t window,
                   uint32_t spans, float scale, float cap) {
    ptx::grid_enter();
    decode::decode_span<float, 1>(slots, positions, qkv, keys, values, partial, sums, capacity,
                                    attn::Heads{h, g, d, window}, spans, attn::Scores{scale, Cap(cap)});
}

// Grid: a thread an element of the output.
extern "C" __global__ void __launch_bounds__(kBlock)
    decode_merge_bf16(const uint32_t* positions, const float* partial, const float* sums,
                      uint16_t* out, uint32_t n, uint32_t h, uint32_t g, uint32_t d, uint32_t window,
                      uint32_t spans) {
    ptx::grid_enter();
    decode::decode_merge(positions, partial, sums, out, n, attn::Heads{h, g, d, window}, spans);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    decode_merge_f32(const uint32_t* positions, const float* partial, const float* sums, float* out,
                     uint32_t n, uint32_t h, uint32_t g, uint32_t d, uint32_t window, uint32_t spans) {
    ptx::grid_enter();
    decode::decode_merge(positions, partial, sums, out, n, attn::Heads{h, g, d, window}, spans);
}

// Grid: a thread a pack (or an element, where C is not made of whole packs).
extern "C" __global__ void __launch_bounds__(kBlock)
    gather_rows_bf16(const uint32_t* rows, const uint16_t* x, uint16_t* y, uint32_t n, uint32_t c) {
    ptx::grid_enter();
    if (decode::whole_packs<uint16_t>(c)) {
        decode::gather<uint16_t, 8>(rows, x, y, n, c);
    } else {
        decode::gather<uint16_t, 1>(rows, x, y, n, c);
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
    gather_rows_f32(const uint32_t* rows, const float* x, float* y, uint32_t n, uint32_t c) {
    ptx::grid_enter();
    if (decode::whole_packs<float>(c)) {
        decode::gather<float, 4>(rows, x, y, n, c);
    } else {
        decode::gather<float, 1>(rows, x, y, n, c);
    }
}

KERNEL_EXPORT(cache_store_bf16);
KERNEL_EXPORT(cache_store_f32);
KERNEL_EXPORT(decode_wide_bf16);
KERNEL_EXPORT(decode_any_bf16);
KERNEL_EXPORT(decode_wide_f32);
KERNEL_EXPORT(decode_any_f32);
KERNEL_EXPORT(decode_merge_bf16);
KERNEL_EXPORT(decode_merge_f32);
KERNEL_EXPORT(gather_rows_bf16);
KERNEL_EXPORT(gather_rows_f32);

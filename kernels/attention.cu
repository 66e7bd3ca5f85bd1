// Attention over packed documents, the plain variant: every head width up to 256, both precisions, fp32 throughout.
//
// Forward, for each query head and each query q of a document (k runs over the keys that q sees):
//   s_k = scale q.k (capped: cap tanh(s_k / cap)),  lse = ln sum_k exp(s_k),  out = sum_k exp(s_k - lse) v_k
// Backward, with p_k = exp(s_k - lse) and dot = out.dout:
//   dv_k = sum_q p_k dout,  ds_k = p_k (dout.v_k - dot),  dk_k = scale sum_q ds_k q,  dq = scale sum_k ds_k k
// where a cap makes ds_k smaller by the factor 1 - (s_k / cap)^2, of scores made again.
// Shape: a block of 16 x 16 threads owns 16 rows and walks over tiles of 32 others in shared memory; thread (r, c)
// makes the scores of row r against columns c and c + 16, then owns columns c, c + 16, ... of row r's sums. So every
// sum has one owner and one order. The backward pass is two kernels, one that owns keys (and adds up the query heads
// of its kv head in order) and one that owns queries: scores are made twice, and nothing is added atomically.
// Bytes: q, k, v and the output once, and a tile's rows again for each 16 rows that see it (from L2). Roof: fp32
// arithmetic on CUDA cores with shared-memory operands; it exists for parity and for odd widths, not for speed.
// attention_mma.cu holds the fast variant.
// Source: FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2, the second one split in two.
#include "attention.cuh"

namespace attn {

constexpr int kPlainRows = 16;
constexpr int kPlainTile = 32;
constexpr int kPlainSlots = kMaxWidth / 16;
// One more than a tile: the 16 rows of a column lie in different banks.
constexpr int kPlainPitch = kPlainTile + 1;

// An odd pitch: a column of rows then lies in different banks.
__device__ __forceinline__ uint32_t plain_pitch(uint32_t d) { return d | 1; }

// Copies rows of width d into shared memory as fp32; rows from `valid` on become zeros. A warp takes a row.
template <typename T>
__device__ __forceinline__ void plain_stage(float* to_s, const T* from, uint64_t stride, uint32_t rows,
                                            uint32_t valid, uint32_t d) {
    for (uint32_t r = threadIdx.x / kWarp; r < rows; r += kBlock / kWarp) {
        for (uint32_t c = threadIdx.x % kWarp; c < d; c += kWarp) {
            to_s[r * plain_pitch(d) + c] = r < valid ? widen(from[r * stride + c]) : 0.0f;
        }
    }
}

// Row a against rows b and b + 16 of a tile: together, so that a is read once.
__device__ __forceinline__ void plain_dots(float (&dots)[2], const float* a_s, const float* b_s,
                                           uint32_t d) {
    const float* c_s = b_s + 16 * plain_pitch(d);
    dots[0] = dots[1] = 0.0f;
    for (uint32_t i = 0; i < d; ++i) {
        const float a = a_s[i];
        dots[0] = fmaf(a, b_s[i], dots[0]);
        dots[1] = fmaf(a, c_s[i], dots[1]);
    }
}

// sum[i] += sum over the tile of weights[t] rows[t][c + 16 i].
__device__ __forceinline__ void plain_add(float (&sum)[kPlainSlots], const float* weights_s,
                                          const float* rows_s, uint32_t c, uint32_t d) {
    for (uint32_t t = 0; t < kPlainTile; ++t) {
        float w = weights_s[t];
        const float* row_s = rows_s + t * plain_pitch(d);
#pragma unroll
        for (uint32_t i = 0; i < kPlainSlots; ++i) {
            if (c + 16 * i < d) sum[i] = fmaf(w, row_s[c + 16 * i], sum[i]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void plain_write(T* to, const float (&sum)[kPlainSlots], float factor,
                                            uint32_t c, uint32_t d) {
#pragma unroll
    for (uint32_t i = 0; i < kPlainSlots; ++i) {
        if (c + 16 * i < d) narrow(sum[i] * factor, to[c + 16 * i]);
    }
}

// Over the 16 lanes of a row.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
    return x;
}

__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    return x;
}

// The part of a Pack::blocks entry that this block owns, and its head out of `heads`.
struct Part {
    Rows rows;
    uint32_t head, count;
};

// `count` is 0 where the document ends before the part; all threads of the block then leave together.
__device__ __forceinline__ Part plain_part(const uint4* blocks, uint32_t heads) {
    Part part = {part_of<kPlainRows>(blocks, heads), blockIdx.x % heads, 0};
    if (part.rows.first < part.rows.len) {
        part.count = min(static_cast<uint32_t>(kPlainRows), part.rows.len - part.rows.first);
    }
    return part;
}

template <typename T>
__device__ __forceinline__ void plain_fwd(const uint4* blocks, const T* qkv, T* out, float* lse,
                                          Heads heads, Scores scores) {
    const Part part = plain_part(blocks, heads.h);
    if (part.count == 0) return;
    const uint32_t d = heads.d, kv = part.head / (heads.h / heads.g);
    const uint64_t stride = heads.qkv_width();
    const T* rows = qkv + part.rows.start * stride;
    float* q_s = reinterpret_cast<float*>(ptx::dyn_smem());  // 16-byte aligned
    float* k_s = q_s + kPlainRows * plain_pitch(d);
    float* v_s = k_s + kPlainTile * plain_pitch(d);
    float* p_s = v_s + kPlainTile * plain_pitch(d);
    const uint32_t r = threadIdx.x / 16, c = threadIdx.x % 16, q = part.rows.first + r;
    plain_stage(q_s, rows + part.rows.first * stride + part.head * d, stride, kPlainRows, part.count, d);
    float sum[kPlainSlots] = {};
    float top = -INFINITY, total = 0.0f;
    const uint32_t end = part.rows.first + part.count;
    for (uint32_t k0 = heads.first_key(part.rows.first); k0 < end; k0 += kPlainTile) {
        // The tile before is still being read.
        __syncthreads();
        const T* keys = rows + k0 * stride + (heads.h + kv) * d;
        plain_stage(k_s, keys, stride, kPlainTile, end - k0, d);
        plain_stage(v_s, keys + heads.g * d, stride, kPlainTile, end - k0, d);
        // Other warps' rows are read next.
        __syncthreads();
        float s[2];
        plain_dots(s, q_s + r * plain_pitch(d), k_s + c * plain_pitch(d), d);
#pragma unroll
        for (uint32_t j = 0; j < 2; ++j) {
            s[j] = heads.sees(q, k0 + c + 16 * j) ? scores.at(s[j]) : -INFINITY;
        }
        float top_now = fmaxf(top, row_max(fmaxf(s[0], s[1])));
        // A window can leave a row without a key in its first tiles: -inf - -inf would be NaN.
        float base = top_now == -INFINITY ? 0.0f : top_now;
        float keep = expf(top - base);
        top = top_now;
        float p0 = expf(s[0] - base), p1 = expf(s[1] - base);
        p_s[r * kPlainPitch + c] = p0;
        p_s[r * kPlainPitch + c + 16] = p1;
        total = total * keep + row_sum(p0 + p1);
#pragma unroll
        for (uint32_t i = 0; i < kPlainSlots; ++i) sum[i] *= keep;
        // A row of p_s is written and read by the same half warp.
        __syncwarp();
        plain_add(sum, p_s + r * kPlainPitch, v_s, c, d);
    }
    if (r >= part.count) return;
    const uint64_t row = part.rows.start + q;
    plain_write(out + row * heads.out_width() + part.head * d, sum, 1.0f / total, c, d);
    if (c == 0) lse[row * heads.h + part.head] = top + logf(total);
}

// Operands of both backward kernels.
template <typename T>
struct Backward {
    const uint4* blocks;
    const T* qkv;
    const T* dout;
    const float* lse;
    const float* dot;
    T* dqkv;
};

template <typename T>
__device__ __forceinline__ void plain_bwd_dq(Backward<T> in, Heads heads, Scores scores) {
    const Part part = plain_part(in.blocks, heads.h);
    if (part.count == 0) return;
    const uint32_t d = heads.d, kv = part.head / (heads.h / heads.g);
    const uint64_t stride = heads.qkv_width(), first_row = part.rows.start + part.rows.first;
    float* q_s = reinterpret_cast<float*>(ptx::dyn_smem());  // 16-byte aligned
    float* dout_s = q_s + kPlainRows * plain_pitch(d);
    float* k_s = dout_s + kPlainRows * plain_pitch(d);
    float* v_s = k_s + kPlainTile * plain_pitch(d);
    float* ds_s = v_s + kPlainTile * plain_pitch(d);
    const uint32_t r = threadIdx.x / 16, c = threadIdx.x % 16, q = part.rows.first + r;
    plain_stage(q_s, in.qkv + first_row * stride + part.head * d, stride, kPlainRows, part.count, d);
    plain_stage(dout_s, in.dout + first_row * heads.out_width() + part.head * d, heads.out_width(),
                kPlainRows, part.count, d);
    const uint64_t stat = (first_row + r) * heads.h + part.head;
    const float lse = r < part.count ? in.lse[stat] : 0.0f;
    const float dot = r < part.count ? in.dot[stat] : 0.0f;
    float sum[kPlainSlots] = {};
    const uint32_t end = part.rows.first + part.count;
    for (uint32_t k0 = heads.first_key(part.rows.first); k0 < end; k0 += kPlainTile) {
        // The tile before is still being read.
        __syncthreads();
        const T* keys = in.qkv + (part.rows.start + k0) * stride + (heads.h + kv) * d;
        plain_stage(k_s, keys, stride, kPlainTile, end - k0, d);
        plain_stage(v_s, keys + heads.g * d, stride, kPlainTile, end - k0, d);
        // Other warps' rows are read next.
        __syncthreads();
        float s[2], dp[2];
        plain_dots(s, q_s + r * plain_pitch(d), k_s + c * plain_pitch(d), d);
        plain_dots(dp, dout_s + r * plain_pitch(d), v_s + c * plain_pitch(d), d);
#pragma unroll
        for (uint32_t j = 0; j < 2; ++j) {
            uint32_t k = c + 16 * j;
            bool seen = r < part.count && heads.sees(q, k0 + k);
            const float score = scores.at(s[j]);
            ds_s[r * kPlainPitch + k] =
                seen ? expf(score - lse) * (dp[j] - dot) * scores.slope(score) : 0.0f;
        }
        // A row of ds_s is written and read by the same half warp.
        __syncwarp();
        plain_add(sum, ds_s + r * kPlainPitch, k_s, c, d);
    }
    if (r < part.count) {
        plain_write(in.dqkv + (first_row + r) * stride + part.head * d, sum, scores.scale, c, d);
    }
}

template <typename T>
__device__ __forceinline__ void plain_bwd_dkv(Backward<T> in, Heads heads, Scores scores) {
    const Part part = plain_part(in.blocks, heads.g);
    if (part.count == 0) return;
    const uint32_t d = heads.d, group = heads.h / heads.g;
    const uint64_t stride = heads.qkv_width(), first_row = part.rows.start + part.rows.first;
    float* k_s = reinterpret_cast<float*>(ptx::dyn_smem());  // 16-byte aligned
    float* v_s = k_s + kPlainRows * plain_pitch(d);
    float* q_s = v_s + kPlainRows * plain_pitch(d);
    float* dout_s = q_s + kPlainTile * plain_pitch(d);
    // p, then ds in the same place: with a matrix each, heads of width 254 on would not fit 99 KiB.
    float* p_s = dout_s + kPlainTile * plain_pitch(d);
    const uint32_t r = threadIdx.x / 16, c = threadIdx.x % 16, k = part.rows.first + r;
    const T* keys = in.qkv + first_row * stride + (heads.h + part.head) * d;
    plain_stage(k_s, keys, stride, kPlainRows, part.count, d);
    plain_stage(v_s, keys + heads.g * d, stride, kPlainRows, part.count, d);
    float dk[kPlainSlots] = {}, dv[kPlainSlots] = {};
    // The last key is seen by queries before `end`.
    const uint32_t end = min(part.rows.len, part.rows.first + part.count - 1 + heads.window);
    for (uint32_t head = part.head * group; head < (part.head + 1) * group; ++head) {
        for (uint32_t q0 = part.rows.first; q0 < end; q0 += kPlainTile) {
            const uint64_t row0 = part.rows.start + q0;
            // The tile before is still being read.
            __syncthreads();
            plain_stage(q_s, in.qkv + row0 * stride + head * d, stride, kPlainTile, end - q0, d);
            plain_stage(dout_s, in.dout + row0 * heads.out_width() + head * d, heads.out_width(),
                        kPlainTile, end - q0, d);
            // Other warps' rows are read next.
            __syncthreads();
            float s[2], dp[2], ds[2];
            float* weights_s = p_s + r * kPlainPitch;
            plain_dots(s, k_s + r * plain_pitch(d), q_s + c * plain_pitch(d), d);
            plain_dots(dp, v_s + r * plain_pitch(d), dout_s + c * plain_pitch(d), d);
#pragma unroll
            for (uint32_t j = 0; j < 2; ++j) {
                uint32_t t = c + 16 * j;
                float p = 0.0f;
                ds[j] = 0.0f;
                if (q0 + t < end && heads.sees(q0 + t, k)) {
                    uint64_t stat = (row0 + t) * heads.h + head;
                    const float score = scores.at(s[j]);
                    p = expf(score - in.lse[stat]);
                    ds[j] = p * (dp[j] - in.dot[stat]) * scores.slope(score);
                }
                weights_s[t] = p;
            }
            // A row of p_s is written and read by the same half warp.
            __syncwarp();
            plain_add(dv, weights_s, dout_s, c, d);
            // The other lanes have read p.
            __syncwarp();
#pragma unroll
            for (uint32_t j = 0; j < 2; ++j) weights_s[c + 16 * j] = ds[j];
            __syncwarp();
            plain_add(dk, weights_s, q_s, c, d);
        }
    }
    if (r < part.count) {
        T* to = in.dqkv + (first_row + r) * stride + (heads.h + part.head) * d;
        plain_write(to, dk, scores.scale, c, d);
        plain_write(to + heads.g * d, dv, 1.0f, c, d);
    }
}

// dot[row, head] = out.dout; eight lanes a row and head, whose heads of all rows lie end to end.
template <typename T, int E>
__device__ __forceinline__ void dot_rows(const T* out, const T* dout, float* dot, uint64_t pairs,
                                         uint32_t d) {
    const uint64_t pair = static_cast<uint64_t>(blockIdx.x) * (kBlock / 8) + threadIdx.x / 8;
    float sum = 0.0f;
    if (pair < pairs) {
#pragma unroll 2
        for (uint32_t pack = threadIdx.x % 8; pack < d / E; pack += 8) {
            const Pack<T, E> a = load_pack<T, E>(out + pair * d + pack * E);
            const Pack<T, E> b = load_pack<T, E>(dout + pair * d + pack * E);
#pragma unroll
            for (int e = 0; e < E; ++e) sum = fmaf(widen(a.v[e]), widen(b.v[e]), sum);
        }
    }
#pragma unroll
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    if (pair < pairs && threadIdx.x % 8 == 0) dot[pair] = sum;
}

}  // namespace attn

// `cap` is that of scores, or 0. Grid: blocks x 4 x heads in one dimension (attention::plain_geometry), heads fastest.
extern "C" __global__ void __launch_bounds__(kBlock, 2)
    attention_bf16(const uint4* blocks, const uint16_t* qkv, uint16_t* out, float* lse, uint32_t h,
                   uint32_t g, uint32_t d, uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::plain_fwd(blocks, qkv, out, lse, attn::Heads{h, g, d, window}, attn::Scores{scale, Cap(cap)});
}

extern "C" __global__ void __launch_bounds__(kBlock, 2)
    attention_f32(const uint4* blocks, const float* qkv, float* out, float* lse, uint32_t h,
                  uint32_t g, uint32_t d, uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::plain_fwd(blocks, qkv, out, lse, attn::Heads{h, g, d, window}, attn::Scores{scale, Cap(cap)});
}

extern "C" __global__ void __launch_bounds__(kBlock, 2)
    attention_bwd_dq_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                          const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                          uint32_t g, uint32_t d, uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::plain_bwd_dq(attn::Backward<uint16_t>{blocks, qkv, dout, lse, dot, dqkv},
                       attn::Heads{h, g, d, window}, attn::Scores{scale, Cap(cap)});
}

extern "C" __global__ void __launch_bounds__(kBlock, 2)
    attention_bwd_dq_f32(const uint4* blocks, const float* qkv, const float* dout, const float* lse,
                         const float* dot, float* dqkv, uint32_t h, uint32_t g, uint32_t d,
                         uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::plain_bwd_dq(attn::Backward<float>{blocks, qkv, dout, lse, dot, dqkv},
                       attn::Heads{h, g, d, window}, attn::Scores{scale, Cap(cap)});
}

extern "C" __global__ void __launch_bounds__(kBlock, 2)
    attention_bwd_dkv_bf16(const uint4* blocks, const uint16_t* qkv, const uint16_t* dout,
                           const float* lse, const float* dot, uint16_t* dqkv, uint32_t h,
                           uint32_t g, uint32_t d, uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::plain_bwd_dkv(attn::Backward<uint16_t>{blocks, qkv, dout, lse, dot, dqkv},
                        attn::Heads{h, g, d, window}, attn::Scores{scale, Cap(cap)});
}

extern "C" __global__ void __launch_bounds__(kBlock, 2)
    attention_bwd_dkv_f32(const uint4* blocks, const float* qkv, const float* dout, const float* lse,
                          const float* dot, float* dqkv, uint32_t h, uint32_t g, uint32_t d,
                          uint32_t window, float scale, float cap) {
    ptx::grid_enter();
    attn::plain_bwd_dkv(attn::Backward<float>{blocks, qkv, dout, lse, dot, dqkv},
                        attn::Heads{h, g, d, window}, attn::Scores{scale, Cap(cap)});
}

// Grid: ceil(rows * heads / 32) blocks.
extern "C" __global__ void __launch_bounds__(kBlock, 2)
    attention_dot_bf16(const uint16_t* out, const uint16_t* dout, float* dot, uint64_t pairs, uint32_t d) {
    ptx::grid_enter();
    if (attn::whole_packs<uint16_t>(d)) {
        attn::dot_rows<uint16_t, 8>(out, dout, dot, pairs, d);
    } else {
        attn::dot_rows<uint16_t, 1>(out, dout, dot, pairs, d);
    }
}

extern "C" __global__ void __launch_bounds__(kBlock, 2)
    attention_dot_f32(const float* out, const float* dout, float* dot, uint64_t pairs, uint32_t d) {
    ptx::grid_enter();
    if (attn::whole_packs<float>(d)) {
        attn::dot_rows<float, 4>(out, dout, dot, pairs, d);
    } else {
        attn::dot_rows<float, 1>(out, dout, dot, pairs, d);
    }
}

KERNEL_EXPORT(attention_bf16);
KERNEL_EXPORT(attention_f32);
KERNEL_EXPORT(attention_bwd_dq_bf16);
KERNEL_EXPORT(attention_bwd_dq_f32);
KERNEL_EXPORT(attention_bwd_dkv_bf16);
KERNEL_EXPORT(attention_bwd_dkv_f32);
KERNEL_EXPORT(attention_dot_bf16);
KERNEL_EXPORT(attention_dot_f32);

// Shared by the kernels over rows of fp32 logits: maximum and sum online, statistics of the target, and the gradient
// written over the row.
#pragma once
#include "cap.cuh"
#include "rows.cuh"

constexpr uint32_t kPlaces = kBlock * kPack;  // entries a block reads between two barriers

// A maximum and a sum of exp(x - maximum), with a second sum under the same weights.
struct Online {
    float top = -INFINITY;
    float sum = 0.0f;
    float with = 0.0f;

    __device__ __forceinline__ void add(float x, float value) {
        if (x > top) {
            // exp(-inf) = 0 at the first entry.
            float keep = expf(top - x);
            sum *= keep;
            with *= keep;
            top = x;
        }
        float e = expf(x - top);
        sum += e;
        with += e * value;
    }

    // Adds the sum of entries whose largest is `other_top`; a sum of none has -inf.
    __device__ __forceinline__ void join(float other_top, float other_sum) {
        if (other_top > top) {
            sum *= expf(top - other_top);
            top = other_top;
        }
        // Where nothing but -inf was seen there is nothing to add; NaN stays.
        if (other_top != -INFINITY || other_sum != 0.0f) sum += other_sum * expf(other_top - top);
    }
};

// The maximum over the block, for all threads.
__device__ __forceinline__ float block_max(float x) {
    __shared__ float block_max_s[kBlock / kWarp];
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
    }
    // The maxima of the call before may still be read.
    __syncthreads();
    if (threadIdx.x % kWarp == 0) block_max_s[threadIdx.x / kWarp] = x;
    // All warps' maxima must be there.
    __syncthreads();
    float top = block_max_s[0];
#pragma unroll
    for (int w = 1; w < kBlock / kWarp; ++w) top = fmaxf(top, block_max_s[w]);
    return top;
}

// Joins the threads' sums; a thread without entries adds nothing.
__device__ __forceinline__ void join(Online& online) {
    float top = block_max(online.top);
    float keep = online.top == -INFINITY ? 0.0f : expf(online.top - top);
    online.sum = row_sum<kBlock>(online.sum * keep);
    online.with = row_sum<kBlock>(online.with * keep);
    online.top = top;
}

// Statistics of a row's target, of all its entries: the NLL, and whether it is the most probable token. 1 - p is a sum of
// its own, that of the others, never a difference.
struct TargetStats {
    uint32_t y;
    float zy;
    Online others = {};
    float beaten = 0.0f;  // above 0: another entry is the largest, of equals the one of the smallest id
    float e = 0.0f, total = 0.0f;

    __device__ __forceinline__ TargetStats(uint32_t y, float zy) : y(y), zy(zy) {}

    // Adds entry i.
    __device__ __forceinline__ void add(uint32_t i, float z) {
        if (i == y) return;
        if (i < y ? z >= zy : z > zy) beaten = 1.0f;
        others.add(z, 0.0f);
    }

    // Joins the threads' entries; returns the NLL. Every thread of the block calls it, once and after all entries; `e` and
    // `total` then are exp(z_y - top) and the sum of all, the maximum is others.top.
    __device__ __forceinline__ float nll() {
        // Where the target is the largest, the others are summed below it.
        if (others.top < zy) {
            others.sum *= others.top == -INFINITY ? 0.0f : expf(others.top - zy);
            others.top = zy;
        }
        ::join(others);
        beaten = row_sum<kBlock>(beaten);
        e = expf(zy - others.top);
        total = e + others.sum;
        return others.sum < e ? log1pf(others.sum / e) : logf(total) + (others.top - zy);
    }

    // After nll().
    __device__ __forceinline__ float hit() const { return beaten == 0.0f ? 1.0f : 0.0f; }
};

// Writes f(i) over the row: T is the type of the gradient. Every thread of the block calls it.
template <typename T, typename F>
__device__ __forceinline__ void rewrite(float* z, uint32_t v, bool vec, F f) {
    T* out = reinterpret_cast<T*>(z);  // aligned like the row, to at least 4 bytes
    for (uint32_t start = 0; start < v; start += kPlaces) {
        const uint32_t at = start + threadIdx.x * kPack;
        float x_r[kPack];
        load_pack(z, at, v, vec, x_r);
        f(at, x_r);
        // The window is in registers everywhere before its first half is overwritten.
        __syncthreads();
        store_pack(out, at, v, vec, x_r);
    }
}

// Reads logits of a row, capped (C is Cap) or as they are (NoCap).
template <class C>
__device__ __forceinline__ void load_logits(const float* z, uint32_t at, uint32_t v, bool vec, C cap,
                                            float (&out)[kPack]) {
    load_pack(z, at, v, vec, out);
#pragma unroll
    for (int k = 0; k < kPack; ++k) out[k] = cap.at(out[k]);
}

// Writes the gradient over a row of logits: f(i, z), at the logit z of entry i that the loss reads, sent on through a cap.
template <typename T, class C, typename F>
__device__ __forceinline__ void rewrite_logits(float* z, uint32_t v, bool vec, C cap, F f) {
    rewrite<T>(z, v, vec, [&](uint32_t at, float(&x)[kPack]) {
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            const float capped = cap.at(x[k]), gradient = f(at + k, capped);
            x[k] = cap.on() ? cap.slope(capped) * gradient : gradient;
        }
    });
}

// A row of logits next to the teacher's.
template <class C>
struct Pairs {
    float* z;
    const float* r;
    uint32_t v;
    bool vec, subtract;  // `subtract`: the first logits are z, else D = z - z_ref
    C cap;

    // Reads D and z_ref, those of capped logits where there is a cap.
    __device__ __forceinline__ void load(uint32_t at, float (&d)[kPack], float (&ref)[kPack]) const {
        load_pack(z, at, v, vec, d);
        load_pack(r, at, v, vec, ref);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            if (subtract) d[k] -= ref[k];
            cap.pair(d[k], ref[k]);
        }
    }

    // Returns the first model's logits of the entries at `at`, capped where there is a cap.
    __device__ __forceinline__ void load_own(uint32_t at, float (&own)[kPack]) const {
        load_pack(z, at, v, vec, own);
        float ref[kPack] = {};
        if (!subtract) load_pack(r, at, v, vec, ref);
#pragma unroll
        for (int k = 0; k < kPack; ++k) own[k] = cap.at(subtract ? own[k] : own[k] + ref[k]);
    }

    // The same for entry i alone.
    __device__ __forceinline__ float own(uint32_t i) const { return cap.at(subtract ? z[i] : z[i] + r[i]); }

    // Writes the gradient over the first logits: f(i, D, z_ref), sent on through a cap.
    template <typename T, typename F>
    __device__ __forceinline__ void rewrite(F f) const {
        ::rewrite<T>(z, v, vec, [&](uint32_t at, float(&d)[kPack]) {
            float ref[kPack];
            load_pack(r, at, v, vec, ref);
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
                if (subtract) d[k] -= ref[k];
                const float slope = cap.pair(d[k], ref[k]), gradient = f(at + k, d[k], ref[k]);
                d[k] = cap.on() ? slope * gradient : gradient;
            }
        });
    }
};

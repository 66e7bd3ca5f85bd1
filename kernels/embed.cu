// Embedding: x = scale table[ids], and backward dtable[ids] += scale dx.
//
// Shape: forward, a thread copies eight numbers. Backward, a block takes one distinct id and adds up its rows in row
// order in fp32 (the host sorts the rows by id, stably), then adds to the table once: no atomics, one rounding, and
// work linear in the rows.
// Bytes: forward one read and one write a number; backward one read of dx and one read and write of the table's rows
// that occur. Roof: device memory.
#include "rows.cuh"

template <typename T>
__device__ __forceinline__ void embed(const T* table, const uint32_t* ids, T* x, uint32_t n,
                                      uint32_t c, float scale) {
    const uint32_t packs = (c + kPack - 1) / kPack;
    const uint64_t index = static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (index >= static_cast<uint64_t>(n) * packs) return;
    const uint64_t row = index / packs;
    const uint32_t at = static_cast<uint32_t>(index % packs) * kPack;
    const bool vec = c % kPack == 0;
    float x_r[kPack];
    load_pack(table + static_cast<uint64_t>(ids[row]) * c, at, c, vec, x_r);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x_r[k] *= scale;
    store_pack(x + row * c, at, c, vec, x_r);
}

template <typename T, typename G>
__device__ __forceinline__ void embed_bwd(const T* dx, const uint32_t* ids, const uint32_t* order,
                                          const uint32_t* groups, G* dtable, uint32_t c, float scale) {
    const uint32_t begin = groups[blockIdx.x], end = groups[blockIdx.x + 1];
    // There are fewer distinct ids than rows.
    if (begin == end) return;
    const bool vec = c % kPack == 0;
    G* to = dtable + static_cast<uint64_t>(ids[order[begin]]) * c;
    for (uint32_t at = threadIdx.x * kPack; at < c; at += kBlock * kPack) {
        float sum_r[kPack] = {};
        for (uint32_t i = begin; i < end; ++i) {
            float x_r[kPack];
            load_pack(dx + static_cast<uint64_t>(order[i]) * c, at, c, vec, x_r);
#pragma unroll
            for (int k = 0; k < kPack; ++k) sum_r[k] += x_r[k];
        }
        float old_r[kPack];
        load_pack(to, at, c, vec, old_r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum_r[k] = scale * sum_r[k] + old_r[k];
        store_pack(to, at, c, vec, sum_r);
    }
}

// Grid: ceil(n * ceil(c / 8) / 256) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    embed_fwd_bf16(const uint16_t* table, const uint32_t* ids, uint16_t* x, uint32_t n, uint32_t c,
                   float scale) {
    ptx::grid_enter();
    embed(table, ids, x, n, c, scale);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    embed_fwd_f32(const float* table, const uint32_t* ids, float* x, uint32_t n, uint32_t c, float scale) {
    ptx::grid_enter();
    embed(table, ids, x, n, c, scale);
}

// `order` holds the rows sorted by id, `groups` where each distinct id begins, then the number of rows up to entry n.
// The table has been written before. The last word of a name is the gradient's type. Grid: n blocks, those of no id
// return, so that the launch does not depend on the ids.
extern "C" __global__ void __launch_bounds__(kBlock)
    embed_bwd_bf16_bf16(const uint16_t* dx, const uint32_t* ids, const uint32_t* order,
                        const uint32_t* groups, uint16_t* dtable, uint32_t c, float scale) {
    ptx::grid_enter();
    embed_bwd(dx, ids, order, groups, dtable, c, scale);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    embed_bwd_bf16_f32(const uint16_t* dx, const uint32_t* ids, const uint32_t* order,
                       const uint32_t* groups, float* dtable, uint32_t c, float scale) {
    ptx::grid_enter();
    embed_bwd(dx, ids, order, groups, dtable, c, scale);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    embed_bwd_f32_bf16(const float* dx, const uint32_t* ids, const uint32_t* order,
                       const uint32_t* groups, uint16_t* dtable, uint32_t c, float scale) {
    ptx::grid_enter();
    embed_bwd(dx, ids, order, groups, dtable, c, scale);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    embed_bwd_f32_f32(const float* dx, const uint32_t* ids, const uint32_t* order,
                      const uint32_t* groups, float* dtable, uint32_t c, float scale) {
    ptx::grid_enter();
    embed_bwd(dx, ids, order, groups, dtable, c, scale);
}

KERNEL_EXPORT(embed_fwd_bf16);
KERNEL_EXPORT(embed_fwd_f32);
KERNEL_EXPORT(embed_bwd_bf16_bf16);
KERNEL_EXPORT(embed_bwd_bf16_f32);
KERNEL_EXPORT(embed_bwd_f32_bf16);
KERNEL_EXPORT(embed_bwd_f32_f32);

// Learned positions: x += table[first + position], and backward dtable[first + position] += dx.
//
// Shape: forward, a thread takes eight numbers of a row; a position behind the table reads its last row. Backward, a
// block takes one position and adds up its rows document by document in fp32, then adds to the table once: no atomics
// and one rounding. Positions of a document count from 0, so its row of position p is its first one plus p.
// Bytes a number: forward two read, one written; backward one read of dx, one read and write of the table's rows that
// occur. Roof: device memory.
#include "rows.cuh"

template <typename T>
__device__ __forceinline__ void positions(const T* table, const uint32_t* at_row, T* x, uint32_t n, uint32_t c,
                                          uint32_t rows, uint32_t first) {
    const uint32_t packs = (c + kPack - 1) / kPack;
    const uint64_t index = static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (index >= static_cast<uint64_t>(n) * packs) return;
    const uint64_t row = index / packs;
    const uint32_t at = static_cast<uint32_t>(index % packs) * kPack;
    const uint64_t from = min(first + at_row[row], rows - 1);
    const bool vec = c % kPack == 0;
    float x_r[kPack], add_r[kPack];
    load_pack(x + row * c, at, c, vec, x_r);
    load_pack(table + from * c, at, c, vec, add_r);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x_r[k] += add_r[k];
    store_pack(x + row * c, at, c, vec, x_r);
}

template <typename T, typename G>
__device__ __forceinline__ void positions_bwd(const T* dx, const uint32_t* starts, G* dtable, uint32_t documents,
                                              uint32_t c, uint32_t first) {
    const uint32_t position = blockIdx.x;
    const bool vec = c % kPack == 0;
    G* to = dtable + static_cast<uint64_t>(first + position) * c;
    for (uint32_t at = threadIdx.x * kPack; at < c; at += kBlock * kPack) {
        float sum_r[kPack];
        load_pack(to, at, c, vec, sum_r);
        float more_r[kPack] = {};
        bool any = false;
        for (uint32_t d = 0; d < documents; ++d) {
            const uint32_t row = starts[d] + position;
            if (row >= starts[d + 1]) continue;
            float x_r[kPack];
            load_pack(dx + static_cast<uint64_t>(row) * c, at, c, vec, x_r);
#pragma unroll
            for (int k = 0; k < kPack; ++k) more_r[k] += x_r[k];
            any = true;
        }
        if (!any) return;
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum_r[k] += more_r[k];
        store_pack(to, at, c, vec, sum_r);
    }
}

// Grid: ceil(n * ceil(c / 8) / 256) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    positions_fwd_bf16(const uint16_t* table, const uint32_t* at_row, uint16_t* x, uint32_t n, uint32_t c,
                       uint32_t rows, uint32_t first) {
    ptx::grid_enter();
    positions(table, at_row, x, n, c, rows, first);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    positions_fwd_f32(const float* table, const uint32_t* at_row, float* x, uint32_t n, uint32_t c, uint32_t rows,
                      uint32_t first) {
    ptx::grid_enter();
    positions(table, at_row, x, n, c, rows, first);
}

// The table has been written before; the last word of a name is the gradient's type. Grid: a block for each row of the
// table from `first` on that a document may reach.
extern "C" __global__ void __launch_bounds__(kBlock)
    positions_bwd_bf16_bf16(const uint16_t* dx, const uint32_t* starts, uint16_t* dtable, uint32_t documents,
                            uint32_t c, uint32_t first) {
    ptx::grid_enter();
    positions_bwd(dx, starts, dtable, documents, c, first);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    positions_bwd_bf16_f32(const uint16_t* dx, const uint32_t* starts, float* dtable, uint32_t documents, uint32_t c,
                           uint32_t first) {
    ptx::grid_enter();
    positions_bwd(dx, starts, dtable, documents, c, first);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    positions_bwd_f32_bf16(const float* dx, const uint32_t* starts, uint16_t* dtable, uint32_t documents, uint32_t c,
                           uint32_t first) {
    ptx::grid_enter();
    positions_bwd(dx, starts, dtable, documents, c, first);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    positions_bwd_f32_f32(const float* dx, const uint32_t* starts, float* dtable, uint32_t documents, uint32_t c,
                          uint32_t first) {
    ptx::grid_enter();
    positions_bwd(dx, starts, dtable, documents, c, first);
}

KERNEL_EXPORT(positions_fwd_bf16);
KERNEL_EXPORT(positions_fwd_f32);
KERNEL_EXPORT(positions_bwd_bf16_bf16);
KERNEL_EXPORT(positions_bwd_bf16_f32);
KERNEL_EXPORT(positions_bwd_f32_bf16);
KERNEL_EXPORT(positions_bwd_f32_f32);

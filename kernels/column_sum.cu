// Sums over rows, column by column: db[o] = or += the sum over rows of dy[n, o], in two passes with a fixed order.
// The first is the gradient of a bias; the second also ends the gradients of gains (rmsnorm.cu makes their slabs) and of
// weights whose k came in parts (gemm.cuh).
//
// Shape: pass one, a block sums a slab of rows for 256 columns; its eight groups of 32 threads take every eighth row,
// eight columns (16 bytes of bf16) a thread, and are added in the order of the groups. Pass two adds the slabs in order, a
// thread a column. The order follows from n and the slab's length alone. Sums are fp32; a bf16 gradient is
// old + new in fp32, rounded to nearest even.
// Bytes read + written: |dy| + 8 slabs o. Roof: device memory; four loads of 16 bytes in flight a thread.
#include "rows.cuh"

constexpr int kGroups = kBlock / kWarp;
constexpr int kColumns = kWarp * kPack;

// `packed`: rows of dy are whole 16-byte packs.
template <typename T>
__device__ __forceinline__ void slab(const T* dy, float* partial, uint32_t n, uint32_t o, uint32_t rows,
                                     uint32_t packed) {
    __shared__ float sum_s[kGroups][kColumns];
    uint32_t lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
    uint32_t col = blockIdx.x * kColumns + lane * kPack;
    uint32_t first = blockIdx.y * rows, end = min(first + rows, n);
    float sum[kPack] = {};
    if (packed != 0 && col + kPack <= o) {
#pragma unroll 4
        for (uint32_t row = first + group; row < end; row += kGroups) {
            float x[kPack];
            load_whole(dy + static_cast<uint64_t>(row) * o + col, x);
#pragma unroll
            for (int e = 0; e < kPack; ++e) sum[e] += x[e];
        }
    } else {
        for (uint32_t row = first + group; row < end; row += kGroups) {
#pragma unroll
            for (int e = 0; e < kPack; ++e) {
                if (col + e < o) sum[e] += widen(dy[static_cast<uint64_t>(row) * o + col + e]);
            }
        }
    }
    store32(&sum_s[group][lane * kPack], Pack32{{sum[0], sum[1], sum[2], sum[3]}});
    store32(&sum_s[group][lane * kPack + 4], Pack32{{sum[4], sum[5], sum[6], sum[7]}});
    // The groups' sums must be there before they are added.
    __syncthreads();
    uint32_t mine = blockIdx.x * kColumns + threadIdx.x;
    if (mine >= o) return;
    float total = 0.0f;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) total += sum_s[g][threadIdx.x];
    partial[static_cast<uint64_t>(blockIdx.y) * o + mine] = total;
}

template <typename G>
__device__ __forceinline__ void sum(const float* partial, G* db, uint32_t slabs, uint32_t pitch, uint32_t o,
                                    uint32_t adds) {
    uint32_t col = blockIdx.x * kBlock + threadIdx.x;
    if (col >= o) return;
    float total = 0.0f;
    for (uint32_t s = 0; s < slabs; ++s) total += partial[static_cast<uint64_t>(s) * pitch + col];
    if (adds != 0) total += widen(db[col]);
    narrow(total, db[col]);
}

// Grid: ceil(o / 256) x ceil(n / rows).
extern "C" __global__ void __launch_bounds__(kBlock)
    column_slab_bf16(const uint16_t* dy, float* partial, uint32_t n, uint32_t o, uint32_t rows,
                        uint32_t packed) {
    ptx::grid_enter();
    slab(dy, partial, n, o, rows, packed);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    column_slab_f32(const float* dy, float* partial, uint32_t n, uint32_t o, uint32_t rows, uint32_t packed) {
    ptx::grid_enter();
    slab(dy, partial, n, o, rows, packed);
}

// `pitch`: from slab to slab, in numbers. Grid: ceil(o / 256).
extern "C" __global__ void __launch_bounds__(kBlock)
    column_sum_bf16(const float* partial, uint16_t* db, uint32_t slabs, uint32_t pitch, uint32_t o,
                    uint32_t adds) {
    ptx::grid_enter();
    sum(partial, db, slabs, pitch, o, adds);
}

extern "C" __global__ void __launch_bounds__(kBlock)
    column_sum_f32(const float* partial, float* db, uint32_t slabs, uint32_t pitch, uint32_t o,
                    uint32_t adds) {
    ptx::grid_enter();
    sum(partial, db, slabs, pitch, o, adds);
}

KERNEL_EXPORT(column_slab_bf16);
KERNEL_EXPORT(column_slab_f32);
KERNEL_EXPORT(column_sum_bf16);
KERNEL_EXPORT(column_sum_f32);

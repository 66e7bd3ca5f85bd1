// One instruction of sm90/ptx.cuh each, or the few that only make sense together, for
// tests/simulator/sm90.rs to compare with plain formulas.
#include "sm90/ptx.cuh"

namespace {

// Shared memory from the first multiple of 1024 on, as an address and as a pointer.
__device__ __forceinline__ uint8_t* aligned_smem() {
    uint8_t* raw = ptx::dyn_smem();
    return raw + (1024 - ptx::smem_u32(raw) % 1024) % 1024;
}

// One mbarrier for `count` arrivals at `bar`, ready for all threads.
__device__ __forceinline__ void begin(uint32_t bar, uint32_t count) {
    if (threadIdx.x == 0) {
        ptx::mbar_init(bar, count);
        ptx::fence_mbar_init();
    }
    __syncthreads();
}

// Accumulator i of this thread: its row and column.
__device__ __forceinline__ uint32_t row_of(uint32_t i) {
    uint32_t t = threadIdx.x % 128;
    return t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
}
__device__ __forceinline__ uint32_t column_of(uint32_t i) {
    return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
}

// out[64][N] = a b + 1, over 64 of k. TA: a lies as k x 64, else as 64 x k; TB: b as k x N, else as N x k.
template <int N, int TA, int TB>
__device__ __forceinline__ void product_probe(const ptx::TensorMap& a, const ptx::TensorMap& b, float* out) {
    uint8_t* smem = aligned_smem();
    uint32_t a_s = ptx::smem_u32(smem), b_s = a_s + 64 * 128, bar = b_s + N * 128;
    begin(bar, 1);
    if (threadIdx.x == 0) {
        ptx::mbar_expect(bar, (64 + N) * 128);
        ptx::tma_load(a_s, a, 0, 0, bar);
        if (TB) {
            for (int panel = 0; panel < N / 64; ++panel) ptx::tma_load(b_s + panel * 64 * 128, b, panel * 64, 0, bar);
        } else {
            ptx::tma_load(b_s, b, 0, 0, bar);
        }
    }
    ptx::mbar_wait(bar, 0);
    float d[N / 2];
    for (int i = 0; i < N / 2; ++i) d[i] = 1.0f;
    ptx::wgmma_fence();
    for (int k = 0; k < 4; ++k) {
        uint64_t left = ptx::describe128(a_s + k * (TA ? 2048 : 32), TA ? 8192 : 16, 1024);
        uint64_t right = ptx::describe128(b_s + k * (TB ? 2048 : 32), TB ? 8192 : 16, 1024);
        ptx::wgmma_ss<N, TA, TB>(d, left, right);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(d);
    for (int i = 0; i < N / 2; ++i) out[row_of(i) * N + column_of(i)] = d[i];
}

// The same without the 1, and with a, 64 x 64 row by row, from registers.
template <int N, int TB>
__device__ __forceinline__ void product_rs_probe(const uint16_t* a, const ptx::TensorMap& b, float* out) {
    uint8_t* smem = aligned_smem();
    uint32_t b_s = ptx::smem_u32(smem), bar = b_s + N * 128;
    begin(bar, 1);
    if (threadIdx.x == 0) {
        ptx::mbar_expect(bar, N * 128);
        if (TB) {
            for (int panel = 0; panel < N / 64; ++panel) ptx::tma_load(b_s + panel * 64 * 128, b, panel * 64, 0, bar);
        } else {
            ptx::tma_load(b_s, b, 0, 0, bar);
        }
    }
    ptx::mbar_wait(bar, 0);
    float d[N / 2];
    uint32_t t = threadIdx.x;
    uint32_t left[4][4];
    for (uint32_t k = 0; k < 4; ++k) {
        for (uint32_t i = 0; i < 4; ++i) {
            uint32_t row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8;
            const uint16_t* from = a + row * 64 + 16 * k + 2 * (t % 4) + i / 2 * 8;
            left[k][i] = from[0] | static_cast<uint32_t>(from[1]) << 16;
        }
    }
    ptx::wgmma_fence();
    for (int k = 0; k < 4; ++k) {
        uint64_t right = ptx::describe128(b_s + k * (TB ? 2048 : 32), TB ? 8192 : 16, 1024);
        if (k != 0) {
            ptx::wgmma_rs<N, TB>(d, left[k], right);
        } else {
            ptx::wgmma_rs<N, TB, false>(d, left[k], right);
        }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(d);
    for (int i = 0; i < N / 2; ++i) out[row_of(i) * N + column_of(i)] = d[i];
}

}  // namespace

#define PRODUCT(N, TA, TB)                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 1)                                                    \
        probe_wgmma_##N##_##TA##TB(const __grid_constant__ ptx::TensorMap a, const __grid_constant__ ptx::TensorMap b, \
                                   float* out) {                                                            \
        product_probe<N, TA, TB>(a, b, out);                                                                \
    }                                                                                                       \
    KERNEL_EXPORT(probe_wgmma_##N##_##TA##TB);
PRODUCT(64, 0, 0)
PRODUCT(64, 0, 1)
PRODUCT(64, 1, 0)
PRODUCT(64, 1, 1)
PRODUCT(128, 0, 0)
PRODUCT(128, 1, 1)
PRODUCT(256, 0, 0)
PRODUCT(256, 1, 1)

#define PRODUCT_RS(N, TB)                                                                                   \
    extern "C" __global__ void __launch_bounds__(128, 1)                                                    \
        probe_wgmma_rs_##N##_##TB(const uint16_t* a, const __grid_constant__ ptx::TensorMap b, float* out) { \
        product_rs_probe<N, TB>(a, b, out);                                                                 \
    }                                                                                                       \
    KERNEL_EXPORT(probe_wgmma_rs_##N##_##TB);
PRODUCT_RS(64, 0)
PRODUCT_RS(64, 1)
PRODUCT_RS(128, 1)
PRODUCT_RS(256, 0)

// out: the bytes of a box of `rows` rows as they lie in shared memory.
extern "C" __global__ void __launch_bounds__(32)
    probe_tma_load(const __grid_constant__ ptx::TensorMap map, int x, int y, uint32_t rows, uint32_t* out) {
    uint8_t* smem = aligned_smem();
    uint32_t to = ptx::smem_u32(smem), bar = to + rows * 128;
    ptx::prefetch_map(map);
    begin(bar, 1);
    if (threadIdx.x == 0) {
        ptx::mbar_expect(bar, rows * 128);
        ptx::tma_load(to, map, x, y, bar);
    }
    ptx::mbar_wait(bar, 0);
    for (uint32_t i = threadIdx.x; i < rows * 32; i += 32) out[i] = reinterpret_cast<uint32_t*>(smem)[i];
}

namespace {

// Writes `rows` x 128 bytes of `from` to shared memory and stores or adds them as a box.
template <bool kAdd>
__device__ __forceinline__ void store_probe(const ptx::TensorMap& map, int x, int y, uint32_t rows,
                                            const uint32_t* from) {
    uint8_t* smem = aligned_smem();
    for (uint32_t i = threadIdx.x; i < rows * 32; i += 32) reinterpret_cast<uint32_t*>(smem)[i] = from[i];
    ptx::fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (kAdd) {
            ptx::tma_add(map, x, y, ptx::smem_u32(smem));
        } else {
            ptx::tma_store(map, x, y, ptx::smem_u32(smem));
        }
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32)
    probe_tma_store(const __grid_constant__ ptx::TensorMap map, int x, int y, uint32_t rows, const uint32_t* from) {
    store_probe<false>(map, x, y, rows, from);
}
extern "C" __global__ void __launch_bounds__(32)
    probe_tma_add(const __grid_constant__ ptx::TensorMap map, int x, int y, uint32_t rows, const uint32_t* from) {
    store_probe<true>(map, x, y, rows, from);
}

// The first warp starts a load of one row and exits, and the second waits for it: the last thread to
// exit leaves nobody who can run. out: one word of each block.
extern "C" __global__ void __launch_bounds__(64)
    probe_exit_before_load(const __grid_constant__ ptx::TensorMap map, uint32_t* out) {
    uint32_t to = ptx::smem_u32(aligned_smem()), bar = to + 128;
    begin(bar, 1);
    if (threadIdx.x == 0) {
        ptx::mbar_expect(bar, 128);
        ptx::tma_load(to, map, 0, 0, bar);
    }
    if (threadIdx.x < 32) return;
    ptx::mbar_wait(bar, 0);
    if (threadIdx.x == 32) out[blockIdx.x] = *reinterpret_cast<uint32_t*>(aligned_smem());
}

KERNEL_EXPORT(probe_tma_load);
KERNEL_EXPORT(probe_exit_before_load);
KERNEL_EXPORT(probe_tma_store);
KERNEL_EXPORT(probe_tma_add);

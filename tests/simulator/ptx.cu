// One warp, one instruction of ptx.cuh each, so that tests/simulator/ can compare them with plain
// formulas: in the simulator, and with the same launches on a GPU. Every kernel writes what each
// lane got.
#include "common.cuh"

// out[lane][4]: the registers of ldmatrix on a 32 x 8 matrix, row r at shared byte `order[r]`.
template <bool kTransposed>
__device__ __forceinline__ void ldmatrix_probe(const uint16_t* matrix, const uint32_t* order,
                                               uint32_t* out) {
    uint8_t* shared_s = ptx::dyn_smem();
    int lane = threadIdx.x;
    for (int i = 0; i < 8; ++i) {
        reinterpret_cast<uint16_t*>(shared_s + order[lane])[i] = matrix[8 * lane + i];
    }
    // All rows must be there before any lane reads them.
    __syncthreads();
    uint32_t r[4];
    uint32_t address = ptx::smem_u32(shared_s) + order[lane];
    if (kTransposed) {
        ptx::ldmatrix_x4_trans(r, address);
    } else {
        ptx::ldmatrix_x4(r, address);
    }
    for (int i = 0; i < 4; ++i) out[4 * lane + i] = r[i];
}

extern "C" __global__ void __launch_bounds__(32)
    probe_ldmatrix(const uint16_t* matrix, const uint32_t* order, uint32_t* out) {
    ldmatrix_probe<false>(matrix, order, out);
}

extern "C" __global__ void __launch_bounds__(32)
    probe_ldmatrix_trans(const uint16_t* matrix, const uint32_t* order, uint32_t* out) {
    ldmatrix_probe<true>(matrix, order, out);
}

constexpr int kTilesM = 2, kTilesN = 3;  // an odd number of columns of tiles is a case of its own

// a[lane][kTilesM][4], b[lane][kTilesN][2], c[lane][kTilesM][kTilesN][4]: registers; c is read and
// written.
template <bool kTf32>
__device__ __forceinline__ void mma_probe(const uint32_t* a, const uint32_t* b, float* c) {
    int lane = threadIdx.x;
    uint32_t a_r[kTilesM][4], b_r[kTilesN][2];
    float c_r[kTilesM][kTilesN][4];
    for (int m = 0; m < kTilesM; ++m) {
        for (int i = 0; i < 4; ++i) a_r[m][i] = a[(lane * kTilesM + m) * 4 + i];
    }
    for (int n = 0; n < kTilesN; ++n) {
        for (int i = 0; i < 2; ++i) b_r[n][i] = b[(lane * kTilesN + n) * 2 + i];
    }
    float* own = c + lane * kTilesM * kTilesN * 4;
    for (int m = 0; m < kTilesM; ++m) {
        for (int n = 0; n < kTilesN; ++n) {
            for (int i = 0; i < 4; ++i) c_r[m][n][i] = own[(m * kTilesN + n) * 4 + i];
        }
    }
    if (kTf32) {
        ptx::mma_tile_tf32<kTilesM, kTilesN>(c_r, a_r, b_r);
    } else {
        ptx::mma_tile<kTilesM, kTilesN>(c_r, a_r, b_r);
    }
    for (int m = 0; m < kTilesM; ++m) {
        for (int n = 0; n < kTilesN; ++n) {
            for (int i = 0; i < 4; ++i) own[(m * kTilesN + n) * 4 + i] = c_r[m][n][i];
        }
    }
}

extern "C" __global__ void __launch_bounds__(32)
    probe_mma_bf16(const uint32_t* a, const uint32_t* b, float* c) {
    mma_probe<false>(a, b, c);
}

extern "C" __global__ void __launch_bounds__(32)
    probe_mma_tf32(const uint32_t* a, const uint32_t* b, float* c) {
    mma_probe<true>(a, b, c);
}

// Lane l copies 16 bytes of which it reads sizes16[l], and 4 bytes of which it reads sizes4[l];
// out[lane][20].
extern "C" __global__ void __launch_bounds__(32)
    probe_cp_async(const uint8_t* from, const uint32_t* sizes16, const uint32_t* sizes4,
                   uint8_t* out) {
    uint8_t* shared_s = ptx::dyn_smem();
    int lane = threadIdx.x;
    uint32_t base = ptx::smem_u32(shared_s);
    ptx::cp_async16(base + 16 * lane, from + 16 * lane, sizes16[lane]);
    ptx::cp_async_commit();
    ptx::cp_async4(base + 512 + 4 * lane, from + 512 + 4 * lane, sizes4[lane]);
    ptx::cp_async_commit();
    // The first group, then the second.
    ptx::cp_async_wait<1>();
    for (int i = 0; i < 16; ++i) out[20 * lane + i] = shared_s[16 * lane + i];
    ptx::cp_async_wait<0>();
    for (int i = 0; i < 4; ++i) out[20 * lane + 16 + i] = shared_s[512 + 4 * lane + i];
}

// out[lane][8]: shuffles and votes of x[lane].
extern "C" __global__ void __launch_bounds__(32) probe_warp(const uint32_t* x, uint32_t* out) {
    constexpr unsigned kAll = 0xFFFFFFFFu;
    int lane = threadIdx.x;
    uint32_t own = x[lane], *to = out + 8 * lane;
    to[0] = __shfl_sync(kAll, own, lane / 2);
    to[1] = __shfl_xor_sync(kAll, own, 5);
    to[2] = __shfl_down_sync(kAll, own, 3, 8);
    to[3] = __shfl_up_sync(kAll, own, 3, 16);
    to[4] = __ballot_sync(kAll, own & 1);
    to[5] = __reduce_add_sync(kAll, own);
    to[6] = __any_sync(kAll, own == 77) * 2 + __all_sync(kAll, own < 1000);
    to[7] = __reduce_max_sync(kAll, own);
}

extern "C" __global__ void __launch_bounds__(32)
    probe_scalar(const float* x, uint32_t* tf32, float* exp2) {
    int lane = threadIdx.x;
    tf32[lane] = ptx::to_tf32(x[lane]);
    exp2[lane] = ptx::exp2_approx(x[lane]);
}

// Two groups of 32 threads meet at barriers of their own, then all; out[t] is what the partner
// wrote.
extern "C" __global__ void __launch_bounds__(64) probe_barrier(uint32_t* out) {
    auto* shared_s = reinterpret_cast<uint32_t*>(ptx::dyn_smem());
    int t = threadIdx.x, group = t / 32;
    shared_s[t] = 100 + t;
    // The partner is in the same group.
    ptx::bar_sync(1 + group, 32);
    out[t] = shared_s[t ^ 1];
    // The partner is in the other group.
    __syncthreads();
    out[64 + t] = shared_s[t ^ 32];
}

KERNEL_EXPORT(probe_ldmatrix);
KERNEL_EXPORT(probe_ldmatrix_trans);
KERNEL_EXPORT(probe_mma_bf16);
KERNEL_EXPORT(probe_mma_tf32);
KERNEL_EXPORT(probe_cp_async);
KERNEL_EXPORT(probe_warp);
KERNEL_EXPORT(probe_scalar);
KERNEL_EXPORT(probe_barrier);

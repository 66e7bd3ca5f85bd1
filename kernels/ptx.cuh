// Every instruction that C++ cannot name, and every CUDA header: the only file with inline PTX.
//
// Each function has two bodies behind one name: PTX for nvcc, a call into kernels/sim/ for g++ (-DSIM). A kernel
// includes this file (through common.cuh) and nothing else, so the same source runs on a GPU and in the simulator.
// Kernels must not use elsewhere: asm, <<<>>>, extern __shared__, __constant__, __noinline__, early return
// before a barrier, spinning on memory. Shared memory is ptx::dyn_smem(), carved by offsets.
// Source: PTX ISA 8.x, sections named at each function.
#pragma once

#ifdef SIM
#include "sim/sim.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
// Registers a kernel under its name in the simulator; nothing to do for the GPU.
#define KERNEL_EXPORT(name)
#endif

namespace ptx {

#ifdef SIM

// kernels/sim/sim.hpp says what each call does; the bodies below #else are what they stand for.
__device__ __forceinline__ uint8_t* dyn_smem() { return sim::shared_memory(); }
__device__ __forceinline__ uint32_t smem_u32(const void* p) { return sim::shared_address(p); }
__device__ __forceinline__ void cp_async16(uint32_t dst, const void* src, uint32_t src_bytes = 16) {
    sim::copy_async(dst, src, 16, src_bytes);
}
__device__ __forceinline__ void cp_async4(uint32_t dst, const void* src, uint32_t src_bytes = 4) {
    sim::copy_async(dst, src, 4, src_bytes);
}
__device__ __forceinline__ void cp_async_commit() { sim::copy_commit(); }
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    sim::copy_wait(N);
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) {
    sim::load_matrices(r, addr, false);
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr) {
    sim::load_matrices(r, addr, true);
}
template <int MT, int NT>
__device__ __forceinline__ void mma_tile(float (&c)[MT][NT][4], const uint32_t (&a)[MT][4],
                                         const uint32_t (&b)[NT][2]) {
    sim::multiply_bf16(&c[0][0][0], &a[0][0], &b[0][0], MT, NT);
}
template <int MT, int NT>
__device__ __forceinline__ void mma_tile_tf32(float (&c)[MT][NT][4], const uint32_t (&a)[MT][4],
                                              const uint32_t (&b)[NT][2]) {
    sim::multiply_tf32(&c[0][0][0], &a[0][0], &b[0][0], MT, NT);
}
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t bits = __float_as_uint(x);
    // Infinity and NaN have no fraction to round.
    return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & ~0x1FFFu;
}
__device__ __forceinline__ float exp2_approx(float x) { return exp2f(x); }
__device__ __forceinline__ void bar_sync(int id, int threads) { sim::barrier(id, threads); }
__device__ __forceinline__ void grid_wait() {}
__device__ __forceinline__ void grid_release() {}

#else

extern __shared__ __align__(1024) uint8_t dyn_smem_raw[];

// Returns the block's dynamic shared memory. Align to 1024 by hand where a swizzle asks for it.
__device__ __forceinline__ uint8_t* dyn_smem() { return dyn_smem_raw; }

// Returns the 32-bit shared address that the functions below take.
__device__ __forceinline__ uint32_t smem_u32(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes asynchronously, of which src_bytes are read and the rest are zeros; both sides 16-byte
// aligned. PTX: cp.async.cg.
__device__ __forceinline__ void cp_async16(uint32_t dst, const void* src, uint32_t src_bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst),
                 "l"(__cvta_generic_to_global(src)), "r"(src_bytes)
                 : "memory");
}

// The same with 4 bytes, for rows whose width is not a multiple of 16 bytes. PTX: cp.async.ca.
__device__ __forceinline__ void cp_async4(uint32_t dst, const void* src, uint32_t src_bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(dst),
                 "l"(__cvta_generic_to_global(src)), "r"(src_bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most N of this thread's groups are in flight.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// Loads four 8x8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8. PTX: ldmatrix.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}

// c += a b for MT x NT tiles of 16x8 with bf16 operands of depth 16, fp32 sums. PTX: mma.m16n8k16.
// Tiles, not single products: the simulator pays one rendezvous a call.
template <int MT, int NT>
__device__ __forceinline__ void mma_tile(float (&c)[MT][NT][4], const uint32_t (&a)[MT][4],
                                         const uint32_t (&b)[NT][2]) {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
        for (int j = 0; j < NT; ++j) {
            float(&d)[4] = c[i][j];
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
        }
    }
}

// The same with tf32 operands of depth 8: a is (g, t), (g+8, t), (g, t+4), (g+8, t+4), b is (t, g), (t+4, g)
// for g = lane / 4, t = lane % 4. PTX: mma.m16n8k8.
template <int MT, int NT>
__device__ __forceinline__ void mma_tile_tf32(float (&c)[MT][NT][4], const uint32_t (&a)[MT][4],
                                              const uint32_t (&b)[NT][2]) {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
        for (int j = 0; j < NT; ++j) {
            float(&d)[4] = c[i][j];
            asm volatile(
                "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
        }
    }
}

// Rounds to tf32 (10 fraction bits), nearest, ties away. PTX: cvt.rna.tf32.f32.
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t out;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(out) : "f"(x));
    return out;
}

// 2^x to 2 ulp; 0 for -inf. Volatile, so that none moves behind a wait for products that is to hide it. PTX:
// ex2.approx.ftz.
__device__ __forceinline__ float exp2_approx(float x) {
    float out;
    asm volatile("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(out) : "f"(x));
    return out;
}

// A barrier of `threads` threads (a multiple of 32) under number `id` (0 is __syncthreads).
__device__ __forceinline__ void bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Waits for the kernels before this one: the driver starts a kernel that waits by itself ahead of their end (driver/cuda/module.rs
// sees the instruction in the code). No thread may touch device memory before it. Nothing before 9.0.
__device__ __forceinline__ void grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// Lets the kernel behind this one start once all blocks have come here or ended; it waits for the end of this one's
// writes by itself.
__device__ __forceinline__ void grid_release() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

#endif

// The first statement of a kernel that has nothing to do before it may touch memory.
__device__ __forceinline__ void grid_enter() {
    grid_wait();
    grid_release();
}

}  // namespace ptx

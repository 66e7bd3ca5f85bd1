// Runs kernels on the CPU: what a .cu file sees when g++ compiles it with -DSIM. ptx.cuh includes
// this and nothing else of the simulator.
//
// Every CUDA thread is a fiber; barriers and warp collectives are places where fibers wait for one
// another. A kernel that never waits runs as a plain loop. The compiler reports every access to
// memory that is not a local variable (build.rs asks for it), and access.cpp holds each one against
// a record of what was allocated, written and synchronised. A fault ends the launch with a report
// of kernel, block, thread and line.
//
// It cannot catch:
// - Speed: coalescing, bank conflicts, occupancy, registers and spills.
// - Arithmetic of the hardware: the order of sums inside an mma, flushed subnormals, ulps of
// approximations.
// - A misreading of the PTX manual that kernel and simulator share; only a run on a GPU shows that.
// - Hopper: other swizzles than 128 bytes, programmatic launches, what an access costs.
// - Races through global memory, inside a block or between blocks: blocks run one after the other.
// - A weak memory model: fences do nothing, a value that was written is seen.
// - Races on a static __shared__ array where an access has a constant index (the compiler does not
// report those),
//   and on single bytes; they show only if some order of the threads makes the result wrong.
// - A barrier that threads of one block reach at different lines, where the counts happen to agree.
// - Unwritten padding inside structs counts as unwritten; unwritten locals are not checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

struct uint3;

namespace sim {

// ---- What the builtins of cuda.hpp and the functions of ptx.cuh call
// ------------------------------

enum class Reduce : uint8_t { kBallot, kAdd, kMin, kMax, kOr };

uint3 thread_index();
uint3 block_index();
uint3 block_size();
uint3 grid_size();
int lane_index();

// Waits until `threads` threads have come to barrier `id`; below 0: the whole block.
void barrier(int id, int threads);
void sync_warp(uint32_t mask);
uint64_t shuffle(uint32_t mask, uint64_t value, int from);
uint32_t reduce(Reduce op, uint32_t mask, uint32_t value);
// Returns what was there before.
uint32_t atomic(Reduce op, void* at, uint32_t value);

// The block's dynamic shared memory, and the 32-bit address of a byte of it.
uint8_t* shared_memory();
uint32_t shared_address(const void* p);

// cp.async: `bytes` to shared memory, of which `source_bytes` are read and the rest are zeros.
void copy_async(uint32_t to, const void* from, uint32_t bytes, uint32_t source_bytes);
void copy_commit();
void copy_wait(int keep);

// ldmatrix .x4, and mma.m16n8k16 (bf16) or m16n8k8 (tf32) on tiles_m x tiles_n tiles.
void load_matrices(uint32_t* out, uint32_t address, bool transposed);
void multiply_bf16(float* c, const uint32_t* a, const uint32_t* b, int tiles_m, int tiles_n);
void multiply_tf32(float* c, const uint32_t* a, const uint32_t* b, int tiles_m, int tiles_n);

// ---- Hopper: what the functions of sm90/ptx.cuh call; shared addresses are 32 bits, as there
// ------------------------------------------------------------------------------------------------

// mbarriers (mbarrier.cpp). An arrival of `bytes` > 0 makes the phase wait for so many bytes more.
void mbar_init(uint32_t bar, uint32_t count);
void mbar_arrive(uint32_t bar, uint32_t bytes);
void mbar_arrive_at(uint32_t bar, uint32_t rank);
void mbar_wait(uint32_t bar, uint32_t parity);
void fence_mbar_init();
void fence_async();

// Bulk tensor copies (bulk.cpp). `map` is what Simulator::tensor_map of the host's
// driver/sim.rs wrote; a mask of `ranks` 0 means this block alone. A store with `add` adds.
void tensor_load(uint32_t to, const void* map, int x, int y, uint32_t bar, uint16_t ranks);
void tensor_store(const void* map, int x, int y, uint32_t from, bool add);
void bulk_commit();
void bulk_wait(int keep, bool read_only);

// Clusters, and barriers one does not wait at (block.cpp).
uint32_t cluster_rank();
void cluster_sync();
void barrier_arrive(int id, int threads);

// Warpgroups (warpgroup.cpp): registers of a thread, and products of 64 x `n` x 16.
void set_registers(int count, bool up);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int keep, float* d, int count);
void wgmma_ss(float* d, uint64_t a, uint64_t b, int n, bool outer_a, bool outer_b, bool add);
void wgmma_rs(float* d, const uint32_t* a, uint64_t b, int n, bool outer_b, bool add);

// ---- The table of kernels
// -------------------------------------------------------------------------

// A kernel by name, called as cuLaunchKernel calls one: by the addresses of its arguments.
struct Kernel {
    const char* name;
    void (*call)(void**);
    const uint32_t* sizes;
    uint32_t parameters;
    uint32_t cluster;  // blocks of a cluster
    Kernel* next;
};

void add_kernel(Kernel* kernel);

template <typename F>
struct Entry;

template <typename... A>
struct Entry<void (*)(A...)> {
    static constexpr uint32_t kParameters = sizeof...(A);
    static constexpr uint32_t kSizes[kParameters + 1] = {static_cast<uint32_t>(sizeof(A))..., 0};

    // Not checked: it reads the host's argument block.
    template <void (*F)(A...), size_t... I>
    __attribute__((no_sanitize_address)) static void expand(void** p, std::index_sequence<I...>) {
        F(*static_cast<std::remove_cv_t<A>*>(p[I])...);
    }
    template <void (*F)(A...)>
    static void call(void** p) {
        expand<F>(p, std::make_index_sequence<kParameters>{});
    }
};

struct Registration {
    Kernel kernel;

    Registration(const char* name, void (*call)(void**), const uint32_t* sizes, uint32_t parameters,
                 uint32_t cluster)
        : kernel{name, call, sizes, parameters, cluster, nullptr} {
        add_kernel(&kernel);
    }
};

}  // namespace sim

#define KERNEL_EXPORT_CLUSTER(f, blocks)                                                       \
    static ::sim::Registration sim_registration_##f(#f, &::sim::Entry<decltype(&f)>::call<&f>, \
                                                    ::sim::Entry<decltype(&f)>::kSizes,        \
                                                    ::sim::Entry<decltype(&f)>::kParameters, blocks)
#define KERNEL_EXPORT(f) KERNEL_EXPORT_CLUSTER(f, 1)

#include "cuda.hpp"
#include "thread.hpp"

// How a kernel finds its own indices: a fiber's stack is aligned, and near its end lies the
// thread's record.
//
// No thread-local variable is involved, so this costs a few instructions. All reads are in
// assembly, which the compiler does not report as accesses of the kernel.
#pragma once

#include "sim.hpp"

namespace sim {

// Threads and warps of a cluster of blocks, which run side by side.
constexpr uint32_t kMaxThreads = 1024, kMaxWarps = 32;
constexpr uintptr_t kStackBytes = 64 << 10;
// Records of different stacks lie in different cache sets: 32 lines at each stack's end, one of
// them used.
constexpr uintptr_t kSlotBytes = 64, kSlots = 32;
constexpr uintptr_t kSlotArea = kSlotBytes * kSlots;

// State shared by the threads of a launch.
struct Grid {
    uint3 block, block_size, grid_size;
    uint8_t* shared;
    uint32_t shared_bytes;
};

// The head of the runtime's record of a thread.
struct ThreadHead {
    uint3 index;
    uint32_t lane;
    const Grid* grid;
};

template <typename T>
__forceinline__ T peek(const T* p) {
    T value;
    asm("mov %1, %0" : "=r"(value) : "m"(*p));
    return value;
}

// The place of the thread's record for any address inside its stack.
__forceinline__ ThreadHead** slot_of(uintptr_t stack_address) {
    uintptr_t end = (stack_address | (kStackBytes - 1)) + 1;
    uintptr_t line = (stack_address / kStackBytes) % kSlots;
    return reinterpret_cast<ThreadHead**>(end - kSlotArea + line * kSlotBytes);
}

// The compiler may keep the result: a fiber that runs a kernel is one thread until the kernel
// returns.
__forceinline__ const ThreadHead* this_thread() {
    uintptr_t stack;
    asm("mov %%rsp, %0" : "=r"(stack));
    return peek(slot_of(stack));
}

__forceinline__ uint3 peek_index(const uint3& index) {
    return {peek(&index.x), peek(&index.y), peek(&index.z)};
}

__forceinline__ uint3 thread_index() { return peek_index(this_thread()->index); }
__forceinline__ int lane_index() { return static_cast<int>(peek(&this_thread()->lane)); }
__forceinline__ uint3 block_index() { return peek_index(peek(&this_thread()->grid)->block); }
__forceinline__ uint3 block_size() { return peek_index(peek(&this_thread()->grid)->block_size); }
__forceinline__ uint3 grid_size() { return peek_index(peek(&this_thread()->grid)->grid_size); }
__forceinline__ uint8_t* shared_memory() { return peek(&peek(&this_thread()->grid)->shared); }

}  // namespace sim

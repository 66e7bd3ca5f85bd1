// Kernels with one planted bug each, and a correct control of each kind: what kernels/sim/ must and
// must not report.
//
// All take bf16 numbers `in` (n of them) and write fp32 `out`; tests/simulator/planted.rs knows
// what is right. The bugs are ours; do not correct them.
#include "common.cuh"

constexpr int kThreads = 128;

enum class Bug {
    kNone,
    kNoBarrier,      // reads before the writers are done
    kNoLastBarrier,  // overwrites before the readers are done
    kFarOutside,     // global, far behind the end
    kOneOutside,     // global, one element behind the end
    kBeforeStart,    // global, one element before the start
    kWriteOutside,   // global write, one element behind the end
    kSharedOutside,  // one element behind the block's shared memory
    kArrayOutside,   // index of a static array
    kUnaligned,      // a vector load off its alignment
    kUnwritten,      // an output that stays as it was
    kReadUnwritten,  // global memory that nobody wrote
    kNull,           // a pointer that was never set
    kWeakWait,       // waits for one group too few
    kNoWait,         // waits for no group
    kSwizzle,        // reader and writer permute differently
    kCopyOutside,    // cp.async reads behind the end
    kCopyUnaligned,  // cp.async from an odd address
    kRowUnaligned,   // ldmatrix from an odd address
    kRowOutside,     // ldmatrix behind the shared memory
    kAlignment,      // relies on shared memory aligned to 1024
    kDivergent,      // half of a warp skips the barrier
    kExit,           // a warp returns before the barrier
    kCount,          // barrier counts that differ
    kDeadlock,       // two groups wait at two barriers for one another
    kMask,           // a lane that is not in the mask it names
    kForeignLane,    // a shuffle from outside the mask
    kSplitWarp,      // half of a warp shuffles, half votes
    kNoSyncwarp,     // lanes exchange through shared memory without __syncwarp
    kStack,          // a runaway recursion
};

__device__ __forceinline__ float number(uint16_t bits) { return bf16_to_float(bits); }

// out[t] = in[t's neighbour in the next warp], twice the exchange through one shared buffer.
template <Bug kBug>
__device__ __forceinline__ void exchange(const uint16_t* in, float* out, uint32_t n) {
    auto* buffer_s = reinterpret_cast<float*>(ptx::dyn_smem());
    uint32_t t = threadIdx.x, neighbour = (t + 33) % kThreads;
    float sum = 0.0f;
    for (uint32_t round = 0; round < n / kThreads; ++round) {
        buffer_s[t] = number(in[round * kThreads + t]);
        if (kBug != Bug::kNoBarrier) __syncthreads();
        sum += buffer_s[kBug == Bug::kSharedOutside ? t + 1 : neighbour];
        if (kBug != Bug::kNoLastBarrier) __syncthreads();
    }
    out[t] = sum;
}

// The same within a warp.
template <Bug kBug>
__device__ __forceinline__ void warp_exchange(const uint16_t* in, float* out, uint32_t n) {
    __shared__ float buffer_s[kThreads];
    uint32_t t = threadIdx.x, neighbour = (t & ~31u) + (t + 5) % 32;
    float sum = 0.0f;
    for (uint32_t round = 0; round < n / kThreads; ++round) {
        buffer_s[t] = number(in[round * kThreads + t]);
        if (kBug != Bug::kNoSyncwarp) __syncwarp();
        sum += buffer_s[kBug == Bug::kArrayOutside && t == kThreads - 1 ? t + 1 : neighbour];
        __syncwarp();
    }
    out[t] = sum;
}

// out[i] = in[i], in pairs where `kBug` asks for a vector load.
template <Bug kBug>
__device__ __forceinline__ void copy(const uint16_t* in, float* out, uint32_t n) {
    uint32_t i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= n) return;
    bool last = i == n - 1;
    uint32_t from = i;
    if (kBug == Bug::kFarOutside && last) from = n + 30000000u;
    if (kBug == Bug::kOneOutside && last) from = n;
    if (kBug == Bug::kBeforeStart && i == 0) from = 0xFFFFFFFFu;
    if (kBug == Bug::kNull && last) in = nullptr;
    if (kBug == Bug::kUnaligned) {
        if (i == 5) {
            uint2 pair = *reinterpret_cast<const uint2*>(in + i);  // not aligned: the bug
            out[i] = number(static_cast<uint16_t>(pair.x));
            return;
        }
    }
    // Element -1 of the 64-bit address space, not of the 32-bit index.
    float value = number(in[static_cast<int32_t>(from)]);
    if (kBug == Bug::kUnwritten && last) return;
    if (kBug == Bug::kReadUnwritten && last) value += out[i];
    out[kBug == Bug::kWriteOutside && last ? i + 1 : i] = value;
}

// out[t] = the sum of what ldmatrix gives lane t % 32 of column block t / 32, over n / 1024 tiles
// of 32 x 32 that come through two stages of cp.async.
template <Bug kBug>
__device__ __forceinline__ void tiles(const uint16_t* in, float* out, uint32_t n) {
    constexpr uint32_t kStage = 32 * 64;
    uint32_t base = ptx::smem_u32(ptx::dyn_smem());
    // The swizzle from the address instead of from the row: right only where the base is a multiple
    // of 512.
    auto place = [&](uint32_t stage, uint32_t row, uint32_t chunk) {
        uint32_t flip = kBug == Bug::kAlignment ? (base + row * 64) / 128 % 4 : row / 2 % 4;
        return base + stage * kStage + row * 64 + (chunk ^ flip) * 16;
    };
    uint32_t t = threadIdx.x, lane = t % 32, warp = t / 32, count = n / 1024;
    auto load = [&](uint32_t tile) {
        const uint16_t* from = in + tile * 1024 + t * 8;
        if (kBug == Bug::kCopyOutside && tile == count - 1) from += 8;
        if (kBug == Bug::kCopyUnaligned && t == 7) from += 1;
        ptx::cp_async16(place(tile % 2, t / 4, t % 4), from);
    };
    load(0);
    ptx::cp_async_commit();
    float sum = 0.0f;
    for (uint32_t tile = 0; tile < count; ++tile) {
        if (tile + 1 < count) load(tile + 1);
        ptx::cp_async_commit();
        if (kBug == Bug::kWeakWait) {
            ptx::cp_async_wait<2>();
        } else if (kBug != Bug::kNoWait) {
            ptx::cp_async_wait<1>();
        }
        if (kBug != Bug::kNoBarrier) __syncthreads();
        uint32_t row = kBug == Bug::kAlignment
                           ? base + tile % 2 * kStage + lane * 64 + (warp ^ (lane / 2 % 4)) * 16
                           : place(tile % 2, lane, warp);
        if (kBug == Bug::kSwizzle)
            row = base + tile % 2 * kStage + lane * 64 + (warp ^ (lane % 4)) * 16;
        if (kBug == Bug::kRowUnaligned && lane == 3) row += 2;
        if (kBug == Bug::kRowOutside && lane == 31) row += 2 * kStage;
        uint32_t r[4];
        ptx::ldmatrix_x4(r, row);
        for (uint32_t word : r) {
            sum += number(static_cast<uint16_t>(word)) +
                   3.0f * number(static_cast<uint16_t>(word >> 16));
        }
        if (kBug != Bug::kNoLastBarrier) __syncthreads();
    }
    out[t] = sum;
}

__device__ __attribute__((noinline)) uint32_t runaway(uint32_t depth) {
    volatile uint32_t room[256];
    room[depth % 256] = depth;
    return depth == 0xFFFFFFFFu ? 0 : runaway(depth + 1) + room[depth % 256];
}

// out[t] = in[t] + the sum of in over t's warp.
template <Bug kBug>
__device__ __forceinline__ void collectives(const uint16_t* in, float* out, uint32_t n) {
    uint32_t t = threadIdx.x, lane = t % 32;
    float own = t < n ? number(in[t]) : 0.0f;
    if (kBug == Bug::kExit && t >= 96) return;
    if (kBug != Bug::kDivergent || lane < 16) __syncthreads();
    if (kBug == Bug::kCount) ptx::bar_sync(1, t < 64 ? 64 : 128);
    if (kBug == Bug::kDeadlock) {
        // Each half waits for the other at its own barrier.
        ptx::bar_sync(t < 64 ? 1 : 2, kThreads);
    }
    if (kBug == Bug::kMask) own = __shfl_sync(0x0000FFFFu, own, lane % 16);
    if (kBug == Bug::kForeignLane) {
        own = __shfl_sync(lane < 16 ? 0x0000FFFFu : 0xFFFF0000u, own, lane ^ 16);
    }
    if (kBug == Bug::kSplitWarp && __all_sync(0xFFFFFFFFu, 1)) {
        if (lane < 16) {
            own = __shfl_sync(0xFFFFFFFFu, own, lane);
        } else {
            own += __ballot_sync(0xFFFFFFFFu, 1);
        }
    }
    if (kBug == Bug::kStack && t == 9) own += runaway(n);
    out[t] = own + warp_sum(own);
}

#define PLANT(kind, name, bug)                                              \
    extern "C" __global__ void __launch_bounds__(kThreads)                  \
        plant_##kind##_##name(const uint16_t* in, float* out, uint32_t n) { \
        kind<Bug::bug>(in, out, n);                                         \
    }                                                                       \
    KERNEL_EXPORT(plant_##kind##_##name);

PLANT(exchange, none, kNone)
PLANT(exchange, no_barrier, kNoBarrier)
PLANT(exchange, no_last_barrier, kNoLastBarrier)
PLANT(exchange, shared_outside, kSharedOutside)
PLANT(warp_exchange, none, kNone)
PLANT(warp_exchange, no_syncwarp, kNoSyncwarp)
PLANT(warp_exchange, array_outside, kArrayOutside)
PLANT(copy, none, kNone)
PLANT(copy, far_outside, kFarOutside)
PLANT(copy, one_outside, kOneOutside)
PLANT(copy, before_start, kBeforeStart)
PLANT(copy, write_outside, kWriteOutside)
PLANT(copy, null, kNull)
PLANT(copy, unaligned, kUnaligned)
PLANT(copy, unwritten, kUnwritten)
PLANT(copy, read_unwritten, kReadUnwritten)
PLANT(tiles, none, kNone)
PLANT(tiles, no_barrier, kNoBarrier)
PLANT(tiles, no_last_barrier, kNoLastBarrier)
PLANT(tiles, weak_wait, kWeakWait)
PLANT(tiles, no_wait, kNoWait)
PLANT(tiles, swizzle, kSwizzle)
PLANT(tiles, copy_outside, kCopyOutside)
PLANT(tiles, copy_unaligned, kCopyUnaligned)
PLANT(tiles, row_unaligned, kRowUnaligned)
PLANT(tiles, row_outside, kRowOutside)
PLANT(tiles, alignment, kAlignment)
PLANT(collectives, none, kNone)
PLANT(collectives, divergent, kDivergent)
PLANT(collectives, exit, kExit)
PLANT(collectives, count, kCount)
PLANT(collectives, deadlock, kDeadlock)
PLANT(collectives, mask, kMask)
PLANT(collectives, foreign_lane, kForeignLane)
PLANT(collectives, split_warp, kSplitWarp)
PLANT(collectives, stack, kStack)

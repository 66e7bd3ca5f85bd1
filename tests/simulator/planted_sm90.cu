// A product of sm_90a with one planted bug each, and its controls: what kernels/sim/ must and must not report.
//
// c (64 x 128 fp32 a block) = a (64 x k a block) times b (k x 128), through two stages that thread 128 fills and the
// first warpgroup empties; alone, or in clusters of two blocks that load half of b each, for both.
// tests/simulator/planted_sm90.rs knows what is right. The bugs are ours; do not correct them.
#include "sm90/ptx.cuh"

namespace {

enum class Bug {
    kNone,
    kNoFullWait,      // multiplies without a wait for the stage
    kNoEmptyWait,     // loads without a wait for the stage's release
    kFewBytes,        // expects less than is loaded
    kManyBytes,       // expects more than is loaded
    kFewArrivals,     // one warp never releases its stages
    kEarlyRelease,    // releases a stage while products read it
    kWeakWait,        // the same, by a wait that keeps one group too many
    kEarlySums,       // stores sums before the wait for them
    kUnnamedSums,     // waits, and names an array that is not the products'
    kNoFence,         // no wgmma_fence
    kNoProxyFence,    // no fence_async between the threads' writes and the bulk store
    kNoInitFence,     // no fence_mbar_init
    kNoReadWait,      // writes where a bulk store still reads
    kNoLastReadWait,  // exits where a bulk store still reads
    kSwapped,         // lead and stride of a descriptor
    kAlignment,       // takes shared memory as it comes
    kOverwrittenBar,  // writes over an mbarrier
    kRegisters,       // asks for more registers than there are
    kNoPeerArrival,   // releases stages to its own block only
    kPeerNotAwaited,  // the same, and nobody waits for it
    kNoMulticast,     // keeps its half of b to itself
    kNoLastSync,      // exits while the other block needs it
};

constexpr uint32_t kA = 64 * 128, kB = 2 * 64 * 128, kStage = kA + kB, kStages = 2, kBox = 64 * 128;
constexpr uint32_t kBars = kStages * kStage + kBox;

struct Stage {
    uint32_t a, b, full, empty;
};

__device__ __forceinline__ Stage stage_of(uint32_t base, uint32_t number) {
    uint32_t s = number % kStages;
    return {base + s * kStage, base + s * kStage + kA, base + kBars + 8 * s, base + kBars + 8 * (kStages + s)};
}

template <Bug kBug, bool kPair>
__device__ __forceinline__ void fill(const ptx::TensorMap& a, const ptx::TensorMap& b, uint32_t base, uint32_t steps) {
    uint32_t bytes = kStage;
    if (kBug == Bug::kFewBytes) bytes = kStage - 128;
    if (kBug == Bug::kManyBytes) bytes = kStage + 128;
    uint32_t rank = ptx::cluster_rank();
    for (uint32_t step = 0; step < steps; ++step) {
        Stage stage = stage_of(base, step);
        if (kBug != Bug::kNoEmptyWait) ptx::mbar_wait(stage.empty, step / kStages % 2 ^ 1);
        ptx::mbar_expect(stage.full, bytes);
        ptx::tma_load(stage.a, a, step * 64, blockIdx.x * 64, stage.full);
        for (uint32_t panel = 0; panel < 2; ++panel) {
            uint32_t to = stage.b + panel * 64 * 128;
            if (!kPair || kBug == Bug::kNoMulticast) {
                if (!kPair || panel == rank) ptx::tma_load(to, b, panel * 64, step * 64, stage.full);
            } else if (panel == rank) {
                ptx::tma_load_all(to, b, panel * 64, step * 64, stage.full, 3);
            }
        }
    }
}

template <Bug kBug, bool kPair>
__device__ __forceinline__ void release(const Stage& stage) {
    bool lazy = kBug == Bug::kFewArrivals && threadIdx.x == 96;
    if (threadIdx.x % 32 != 0 || lazy) return;
    if (!kPair || kBug == Bug::kNoPeerArrival || kBug == Bug::kPeerNotAwaited) {
        ptx::mbar_arrive(stage.empty);
    } else {
        ptx::mbar_arrive_at(stage.empty, 0);
        ptx::mbar_arrive_at(stage.empty, 1);
    }
}

// 32 columns of the sums at a time through one box of shared memory.
template <Bug kBug>
__device__ __forceinline__ void write_out(const ptx::TensorMap& c, const float (&d)[64], uint32_t base) {
    uint32_t t = threadIdx.x, box = base + kStages * kStage;
    uint8_t* smem = ptx::dyn_smem() + (box - ptx::smem_u32(ptx::dyn_smem()));
#pragma unroll
    for (uint32_t part = 0; part < 4; ++part) {
        if (t == 0 && kBug != Bug::kNoReadWait) ptx::bulk_wait_read<0>();
        ptx::bar_sync(1, 128);
#pragma unroll
        for (uint32_t i = 0; i < 16; ++i) {
            uint32_t row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
            uint32_t at = ptx::swizzle128(box + row * 128 + column * 4) - box;
            *reinterpret_cast<float*>(smem + at) = d[part * 16 + i];
        }
        if (kBug != Bug::kNoProxyFence) ptx::fence_async();
        ptx::bar_sync(1, 128);
        if (t == 0) {
            ptx::tma_store(c, part * 32, blockIdx.x * 64, box);
            ptx::bulk_commit();
        }
    }
    if (t == 0 && kBug != Bug::kNoLastReadWait) ptx::bulk_wait_read<0>();
}

template <Bug kBug, bool kPair>
__device__ __forceinline__ void empty(const ptx::TensorMap& c, uint32_t base, uint32_t steps) {
    float d[64], other[64];
    for (float& x : other) x = 0.0f;
    for (uint32_t step = 0; step < steps; ++step) {
        Stage stage = stage_of(base, step);
        if (kBug != Bug::kNoFullWait || step != 1) ptx::mbar_wait(stage.full, step / kStages % 2);
        if (kBug != Bug::kNoFence) ptx::wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
            uint64_t left = ptx::describe128(stage.a + 32 * k, 16, 1024);
            uint64_t right = ptx::describe128(stage.b + 2048 * k, 8192, 1024);
            if (kBug == Bug::kSwapped) right = ptx::describe128(stage.b + 2048 * k, 1024, 8192);
            if (step != 0 || k != 0) {
                ptx::wgmma_ss<128, 0, 1>(d, left, right);
            } else {
                ptx::wgmma_ss<128, 0, 1, false>(d, left, right);
            }
        }
        ptx::wgmma_commit();
        if (kBug == Bug::kEarlyRelease) release<kBug, kPair>(stage);
        if (kBug == Bug::kUnnamedSums) {
            ptx::wgmma_wait<0>(other);
        } else if (kBug == Bug::kWeakWait) {
            ptx::wgmma_wait<1>(d);
        } else if (kBug != Bug::kEarlySums || step + 1 != steps) {
            ptx::wgmma_wait<0>(d);
        }
        if (kBug != Bug::kEarlyRelease) release<kBug, kPair>(stage);
    }
    if (kBug == Bug::kWeakWait) ptx::wgmma_wait<0>(d);
    write_out<kBug>(c, d, base);
    if (kBug == Bug::kEarlySums) ptx::wgmma_wait<0>(d);
}

template <Bug kBug, bool kPair>
__device__ __forceinline__ void product(const ptx::TensorMap& a, const ptx::TensorMap& b, const ptx::TensorMap& c,
                                        uint32_t steps) {
    uint32_t base = ptx::smem_u32(ptx::dyn_smem());
    if (kBug != Bug::kAlignment) base = (base + 1023) / 1024 * 1024;
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < kStages; ++s) {
            Stage stage = stage_of(base, s);
            ptx::mbar_init(stage.full, 1);
            ptx::mbar_init(stage.empty, kPair && kBug != Bug::kPeerNotAwaited ? 8 : 4);
        }
        if (kBug != Bug::kNoInitFence) ptx::fence_mbar_init();
        uint8_t* smem = ptx::dyn_smem() + (base - ptx::smem_u32(ptx::dyn_smem()));
        if (kBug == Bug::kOverwrittenBar) *reinterpret_cast<uint32_t*>(smem + kBars + 12) = 0;
    }
    if (kPair) {
        ptx::cluster_sync();
    } else {
        __syncthreads();
    }
    ptx::grid_wait();
    if (threadIdx.x < 128) {
        ptx::registers_up<240>();
        empty<kBug, kPair>(c, base, steps);
    } else if (threadIdx.x < 256) {
        ptx::registers_down<24>();
        if (threadIdx.x == 128) fill<kBug, kPair>(a, b, base, steps);
    } else {
        // Only here for the sum of the registers: 24 + 240 + 240 of 3 x 168.
        ptx::registers_up<kBug == Bug::kRegisters ? 248 : 240>();
    }
    if (kPair && kBug != Bug::kNoLastSync) ptx::cluster_sync();
}

}  // namespace

#define PARAMETERS                                                                                    \
    const __grid_constant__ ptx::TensorMap a, const __grid_constant__ ptx::TensorMap b,               \
        const __grid_constant__ ptx::TensorMap c, uint32_t steps

#define PLANT(name, bug)                                                                              \
    extern "C" __global__ void __launch_bounds__(384, 1) plant_product_##name(PARAMETERS) {           \
        product<Bug::bug, false>(a, b, c, steps);                                                     \
    }                                                                                                 \
    KERNEL_EXPORT(plant_product_##name);

#define PLANT_PAIR(name, bug)                                                                         \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)                    \
        plant_pair_##name(PARAMETERS) {                                                               \
        product<Bug::bug, true>(a, b, c, steps);                                                      \
    }                                                                                                 \
    KERNEL_EXPORT_CLUSTER(plant_pair_##name, 2);

PLANT(none, kNone)
PLANT(no_full_wait, kNoFullWait)
PLANT(no_empty_wait, kNoEmptyWait)
PLANT(few_bytes, kFewBytes)
PLANT(many_bytes, kManyBytes)
PLANT(few_arrivals, kFewArrivals)
PLANT(early_release, kEarlyRelease)
PLANT(weak_wait, kWeakWait)
PLANT(early_sums, kEarlySums)
PLANT(unnamed_sums, kUnnamedSums)
PLANT(no_fence, kNoFence)
PLANT(no_proxy_fence, kNoProxyFence)
PLANT(no_init_fence, kNoInitFence)
PLANT(no_read_wait, kNoReadWait)
PLANT(no_last_read_wait, kNoLastReadWait)
PLANT(swapped, kSwapped)
PLANT(alignment, kAlignment)
PLANT(overwritten_bar, kOverwrittenBar)
PLANT(registers, kRegisters)
PLANT_PAIR(none, kNone)
PLANT_PAIR(no_peer_arrival, kNoPeerArrival)
PLANT_PAIR(peer_not_awaited, kPeerNotAwaited)
PLANT_PAIR(no_multicast, kNoMulticast)
PLANT_PAIR(no_last_sync, kNoLastSync)

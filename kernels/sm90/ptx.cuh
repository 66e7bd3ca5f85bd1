// The instructions that only sm_90a has: mbarriers, bulk tensor copies, warpgroup products, clusters, register moves.
//
// Two bodies behind one name, as in ../ptx.cuh. Files of this folder compile for sm_90a alone; the host takes their
// kernels on compute capability 9.0 and the portable ones elsewhere.
// Words: a warpgroup is 128 consecutive threads; the generic proxy is what loads and stores of threads go through,
// the async proxy what bulk copies and warpgroup products go through. What a thread has written to shared memory is
// seen by the async proxy only after that thread's fence_async() and a barrier.
// Source: PTX ISA 9.0, chapters on mbarrier, cp.async.bulk.tensor, wgmma, cluster barriers, griddepcontrol.
#pragma once

#include "../common.cuh"

#ifdef SIM
#define __grid_constant__
#define __cluster_dims__(...)
#else
// Registers a kernel of clusters of `blocks` blocks in the simulator; __cluster_dims__ says it to the GPU.
#define KERNEL_EXPORT_CLUSTER(name, blocks)
#endif

namespace ptx {

// A tensor map as cuTensorMapEncodeTiled writes it: a kernel parameter, `const __grid_constant__ TensorMap map`. All maps are of
// rank 2: x counts elements along a row, y counts rows. What lies outside reads as zeros and is not written.
struct alignas(64) TensorMap {
    uint64_t words[16];
};

// Swizzled by 128 bytes: bits 4 to 6 of a shared address are exclusive-ored with its bits 7 to 9, by loads, stores and
// products alike. A tile's rows are then 128 bytes, and the tile begins at a multiple of 1024.
__device__ __forceinline__ uint32_t swizzle128(uint32_t address) { return address ^ (address >> 3 & 0x70); }

// Describes an operand in shared memory, swizzled by 128 bytes, to a warpgroup product. KERNELS: PTX ISA, "Matrix
// Descriptor Format". K-major: lead is ignored (16), stride 1024, and 16 elements of k are 32 bytes further.
// Outer-major (transposed): lead is the distance of two panels of 64 outer indices, stride 1024 (8 rows of k), and 16
// elements of k are 2048 bytes further.
__device__ __forceinline__ uint64_t describe128(uint32_t address, uint32_t lead, uint32_t stride) {
    return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | static_cast<uint64_t>(lead >> 4) << 16 |
           static_cast<uint64_t>(stride >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

#ifdef SIM

__device__ __forceinline__ void mbar_init(uint32_t bar, uint32_t count) { sim::mbar_init(bar, count); }
__device__ __forceinline__ void mbar_arrive(uint32_t bar) { sim::mbar_arrive(bar, 0); }
__device__ __forceinline__ void mbar_expect(uint32_t bar, uint32_t bytes) { sim::mbar_arrive(bar, bytes); }
__device__ __forceinline__ void mbar_arrive_at(uint32_t bar, uint32_t rank) { sim::mbar_arrive_at(bar, rank); }
__device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t parity) { sim::mbar_wait(bar, parity); }
__device__ __forceinline__ void fence_mbar_init() { sim::fence_mbar_init(); }
__device__ __forceinline__ void fence_async() { sim::fence_async(); }
__device__ __forceinline__ void prefetch_map(const TensorMap&) {}
__device__ __forceinline__ void tma_load(uint32_t to, const TensorMap& map, int x, int y, uint32_t bar) {
    sim::tensor_load(to, &map, x, y, bar, 0);
}
__device__ __forceinline__ void tma_load_all(uint32_t to, const TensorMap& map, int x, int y, uint32_t bar,
                                             uint16_t ranks) {
    sim::tensor_load(to, &map, x, y, bar, ranks);
}
__device__ __forceinline__ void tma_store(const TensorMap& map, int x, int y, uint32_t from) {
    sim::tensor_store(&map, x, y, from, false);
}
__device__ __forceinline__ void tma_add(const TensorMap& map, int x, int y, uint32_t from) {
    sim::tensor_store(&map, x, y, from, true);
}
__device__ __forceinline__ void bulk_commit() { sim::bulk_commit(); }
template <int N>
__device__ __forceinline__ void bulk_wait_read() {
    sim::bulk_wait(N, true);
}
template <int N>
__device__ __forceinline__ void bulk_wait() {
    sim::bulk_wait(N, false);
}
__device__ __forceinline__ uint32_t cluster_rank() { return sim::cluster_rank(); }
__device__ __forceinline__ void cluster_sync() { sim::cluster_sync(); }
template <int R>
__device__ __forceinline__ void registers_up() {
    sim::set_registers(R, true);
}
template <int R>
__device__ __forceinline__ void registers_down() {
    sim::set_registers(R, false);
}
__device__ __forceinline__ void bar_arrive(int id, int threads) { sim::barrier_arrive(id, threads); }
__device__ __forceinline__ void wgmma_fence() { sim::wgmma_fence(); }
__device__ __forceinline__ void wgmma_commit() { sim::wgmma_commit(); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    sim::wgmma_wait(N, nullptr, 0);
}
template <int N, int R>
__device__ __forceinline__ void wgmma_wait(float (&d)[R]) {
    sim::wgmma_wait(N, d, R);
}
__device__ __forceinline__ void computed(float, float) {}
template <int N, int TA, int TB, bool ADD = true>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b) {
    sim::wgmma_ss(d, a, b, N, TA != 0, TB != 0, ADD);
}
template <int N, int TB, bool ADD = true>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    sim::wgmma_rs(d, a, b, N, TB != 0, ADD);
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    return float_to_bf16_rne(low) | static_cast<uint32_t>(float_to_bf16_rne(high)) << 16;
}
__device__ __forceinline__ uint32_t swap_halves(uint32_t pair) { return pair << 16 | pair >> 16; }

#else

// Makes `bar` (8 bytes, aligned) complete a phase after `count` arrivals. One thread; fence_mbar_init() and a barrier
// of block or cluster must follow before anyone uses it.
__device__ __forceinline__ void mbar_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(bar) : "memory");
}

// Arrives, and makes the phase wait for `bytes` more bytes of bulk copies.
__device__ __forceinline__ void mbar_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(bar), "r"(bytes) : "memory");
}

// Arrives at the barrier that lies at this address in the block `rank` of the cluster. Without qualifiers, as CUTLASS and
// FlashAttention-3 have it: what arrivals and waits order here are products' reads and bulk copies, which have their own
// rules. `.release.cluster` is a fence of the whole GPU in front of the arrival (MEMBAR.ALL.GPU), `.acquire.cluster` of a
// wait invalidates the L1 (CCTL.IVALL); both would be in every step of every product.
__device__ __forceinline__ void mbar_arrive_at(uint32_t bar, uint32_t rank) {
    asm volatile(
        "{\n.reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(bar),
        "r"(rank)
        : "memory");
}

// Waits for the end of the phase of this parity; the phase before the first one has parity 1 and has ended.
__device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}\n"
            : "=r"(done)
            : "r"(bar), "r"(parity)
            : "memory");
    } while (done == 0);
}

// Makes initialised barriers visible to the async proxy and to the cluster.
__device__ __forceinline__ void fence_mbar_init() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// Makes this thread's writes to shared memory visible to the async proxy.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

// Copies the map's box at column x, row y to shared memory; `bar` counts its bytes, those outside included.
__device__ __forceinline__ void tma_load(uint32_t to, const TensorMap& map, int x, int y, uint32_t bar) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];\n" ::
            "r"(to),
        "l"(&map), "r"(bar), "r"(x), "r"(y)
        : "memory");
}

// The same to the same place of every block of the cluster whose bit is set, and to the barrier of each.
__device__ __forceinline__ void tma_load_all(uint32_t to, const TensorMap& map, int x, int y, uint32_t bar,
                                             uint16_t ranks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;\n" ::"r"(to),
        "l"(&map), "r"(bar), "r"(x), "r"(y), "h"(ranks)
        : "memory");
}

// Copies a box from shared memory to column x, row y.
__device__ __forceinline__ void tma_store(const TensorMap& map, int x, int y, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n" ::"l"(&map),
                 "r"(from), "r"(x), "r"(y)
                 : "memory");
}

// Adds a box of shared memory to what is there, in the map's type (fp32, or bf16 rounded to nearest even).
__device__ __forceinline__ void tma_add(const TensorMap& map, int x, int y, uint32_t from) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2, %3}], [%1];\n" ::"l"(
                     &map),
                 "r"(from), "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;\n" ::: "memory"); }

// Waits until all but N of this thread's groups have read their shared memory.
template <int N>
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(N) : "memory");
}

// Waits until all but N of this thread's groups have written.
template <int N>
__device__ __forceinline__ void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;\n" ::"n"(N) : "memory");
}

// Returns this block's number in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return rank;
}

// A barrier of all threads of the cluster that orders no memory but mbarriers behind fence_mbar_init(): a releasing
// arrival would be a fence of the whole GPU by every thread. PTX ISA: the example of fence.mbarrier_init.
__device__ __forceinline__ void cluster_sync() {
    asm volatile(
        "barrier.cluster.arrive.relaxed.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

// Takes, or gives back, registers so that each thread of this warpgroup has R. Down comes before up.
template <int R>
__device__ __forceinline__ void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(R));
}
template <int R>
__device__ __forceinline__ void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(R));
}

// Arrives at a barrier of `threads` threads under number `id` without waiting.
__device__ __forceinline__ void bar_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Orders this warpgroup's register accesses before the products that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// Waits until at most N groups of products are in flight. For a wait whose finished sums nobody touches before a later
// wait names them: naming sums that other products still add to would be an access to them, and ptxas of CUDA 12 then
// runs the products one by one (C7515).
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}

// The same; the sums, which no product in flight may have, are operands, so that no use of them moves up.
template <int N, int R>
__device__ __forceinline__ void wgmma_wait(float (&d)[R]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
#pragma unroll
    for (int i = 0; i < R; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Keeps what makes these two numbers in front of the waits that follow: ptxas, which sees no dependence between arithmetic
// and a wait for products, would move the wait up and leave the tensor cores alone. Numbers of 0 and more, or NaN: the
// trap, which it cannot move or fold, never happens.
__device__ __forceinline__ void computed(float x, float y) {
    asm volatile(
        "{\n.reg .pred p, q;\n"
        "setp.lt.f32 p, %0, 0f00000000;\n"
        "setp.lt.or.f32 q, %1, 0f00000000, p;\n"
        "@q trap;\n}\n" ::"f"(x),
        "f"(y)
        : "memory");
}

// The sums of a product as operands of asm: USE is PTX_ADDED or PTX_WRITTEN.
#define PTX_ADDED(x) "+f"(x)
#define PTX_WRITTEN(x) "=f"(x)
#define PTX_F4(USE, d, i) USE(d[i]), USE(d[i + 1]), USE(d[i + 2]), USE(d[i + 3])
#define PTX_F16(USE, d, i) PTX_F4(USE, d, i), PTX_F4(USE, d, i + 4), PTX_F4(USE, d, i + 8), PTX_F4(USE, d, i + 12)
#define PTX_F32(USE, d, i) PTX_F16(USE, d, i), PTX_F16(USE, d, i + 16)
#define PTX_F64(USE, d, i) PTX_F32(USE, d, i), PTX_F32(USE, d, i + 32)
#define PTX_F128(USE, d, i) PTX_F64(USE, d, i), PTX_F64(USE, d, i + 64)
#define PTX_R32_0                                                                                            \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
    "%28,%29,%30,%31"
#define PTX_R32_32                                                                                         \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56," \
    "%57,%58,%59,%60,%61,%62,%63"
#define PTX_R64_64                                                                                         \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88," \
    "%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,"  \
    "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// One width of wgmma: REGS names the sums, LIST binds them, P0 to P6 number the operands behind them.
#define PTX_WGMMA_SS(N, REGS, SUMS, P0, P1, P2, P3, P4, ADD)                                            \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2 ", 0;\n"                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, " P0 ", " P1     \
                 ", p, 1, 1, " P3 ", " P4 ";\n}\n"                                                      \
                 : SUMS                                                                                 \
                 : "l"(a), "l"(b), "n"(ADD), "n"(TA), "n"(TB))
#define PTX_WGMMA_RS(N, REGS, SUMS, P0, P1, P2, P3, P4, P5, P6, ADD)                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P5 ", 0;\n"                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, {" P0 "," P1     \
                 "," P2 "," P3 "}, " P4 ", p, 1, 1, " P6 ";\n}\n"                                       \
                 : SUMS                                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADD), "n"(TB))
#define PTX_WGMMA(N, REGS, LIST, P0, P1, P2, P3, P4, P5, P6)                                            \
    template <int TA, int TB, bool ADD>                                                                 \
    __device__ __forceinline__ void wgmma_ss_##N(float (&d)[N / 2], uint64_t a, uint64_t b) {           \
        if constexpr (ADD) {                                                                            \
            PTX_WGMMA_SS(N, REGS, LIST(PTX_ADDED, d, 0), P0, P1, P2, P3, P4, 1);                        \
        } else {                                                                                        \
            PTX_WGMMA_SS(N, REGS, LIST(PTX_WRITTEN, d, 0), P0, P1, P2, P3, P4, 0);                      \
        }                                                                                               \
    }                                                                                                   \
    template <int TB, bool ADD>                                                                         \
    __device__ __forceinline__ void wgmma_rs_##N(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) { \
        if constexpr (ADD) {                                                                            \
            PTX_WGMMA_RS(N, REGS, LIST(PTX_ADDED, d, 0), P0, P1, P2, P3, P4, P5, P6, 1);                \
        } else {                                                                                        \
            PTX_WGMMA_RS(N, REGS, LIST(PTX_WRITTEN, d, 0), P0, P1, P2, P3, P4, P5, P6, 0);              \
        }                                                                                               \
    }

PTX_WGMMA(64, PTX_R32_0, PTX_F32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PTX_WGMMA(128, PTX_R32_0 "," PTX_R32_32, PTX_F64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
PTX_WGMMA(256, PTX_R32_0 "," PTX_R32_32 "," PTX_R64_64, PTX_F128, "%128", "%129", "%130", "%131", "%132", "%133",
          "%134")

// d (+)= a b of a warpgroup: 64 rows, N columns, 16 of k; bf16 operands in shared memory, fp32 sums. Thread t holds
// of row 16 (t / 32) + t % 32 / 4, and of the row 8 further down, the columns 8 j + 2 (t % 4) and the next one, in
// d[4 j], d[4 j + 1], and d[4 j + 2], d[4 j + 3]. TA, TB: the operand is outer-major. ADD: whether d counts; to ptxas a
// sum that does not is one that the product defines, and not whatever was there (which CUDA 12 takes for a reason to run
// products one by one: C7515). Needs wgmma_fence() before the first product and after every access to d by the threads.
// PTX: wgmma.mma_async.
template <int N, int TA, int TB, bool ADD = true>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b) {
    if constexpr (N == 64) wgmma_ss_64<TA, TB, ADD>(d, a, b);
    if constexpr (N == 128) wgmma_ss_128<TA, TB, ADD>(d, a, b);
    if constexpr (N == 256) wgmma_ss_256<TA, TB, ADD>(d, a, b);
}

// The same with a's 64x16 in registers: each warp's 16 rows as the a of mma.m16n8k16, hence two neighbouring
// eight-column groups of sums, rounded to bf16 pairs, are an operand as they lie. No thread may touch these registers,
// not even read them, before a wait for the product.
template <int N, int TB, bool ADD = true>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    if constexpr (N == 64) wgmma_rs_64<TB, ADD>(d, a, b);
    if constexpr (N == 128) wgmma_rs_128<TB, ADD>(d, a, b);
    if constexpr (N == 256) wgmma_rs_256<TB, ADD>(d, a, b);
}

// Rounds two numbers to bf16, nearest even; the first one into the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// Exchanges the halves of a word. Volatile: the compiler neither undoes it nor moves it behind a product that has `pair`.
__device__ __forceinline__ uint32_t swap_halves(uint32_t pair) {
    uint32_t out;
    asm volatile("prmt.b32 %0, %1, %1, 0x1032;\n" : "=r"(out) : "r"(pair));
    return out;
}

#endif

}  // namespace ptx

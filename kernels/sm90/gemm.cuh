// The matrix product of sm_90a: C[m,n] = sum over k of A B, bf16 operands, fp32 sums, any epilogue.
//
// Layouts: NT A[m,k] B[n,k]^T (forward), NN A[m,k] B[k,n] (input gradient), TN A[k,m]^T B[k,n] (weight gradient);
// matrices are row-major, their addresses and pitches multiples of 16 bytes. What a box holds outside its matrix
// reads as zeros and is not written, hence m, n and k may be ragged anywhere.
// Shape: 384 threads, one block a processor for the whole product. Of the first warpgroup one thread issues the bulk
// loads of the operands and one thread for each consumer moves boxes of C; warpgroups 1 and 2 multiply, 64 rows of
// the tile each, all sums in registers (128 of 232 in the wide tile). A tile is 128x256 or 128x128; a stage holds 64
// of k, one swizzled row of 128 bytes of every operand row.
// Stages: full[s] counts the bytes that arrive, empty[s] the warps that are done. Of two batches of products in
// flight the older one is waited for and its stage released, so the tensor pipe always holds the next batch; the
// first product of a tile defines the sums instead of zeros being loaded. The loads run up to three (four) stages
// ahead of the products, and across tiles: a tile's first stages arrive while the last tile's epilogue runs.
// C: each consumer owns a ring of five boxes of 64 rows and 128 bytes. open[i] says that a box may be written, with
// the old values in it where the epilogue adds to some; written[i] that it may be stored. The mover asks for old
// values as soon as a box is free, during the main loop; stores overlap the next tile's main loop. Pairs of sums go
// from registers to their swizzled places: 8 rows x 4 lanes of bf16 pairs hit 32 banks; fp32 pairs meet in twos.
// Sums: a tile has one owner and k one order, so results do not depend on the number of processors or clusters.
// Parts: weight gradients of few tiles cut k. C is then a stack of fp32 matrices, one for each part of k, and a tile's row
// tells its part; column_sum.cu adds them in order.
// Cluster: two blocks take neighbouring tiles of rows at the same columns. Each loads half of B's stage and sends it
// to both, so a stage costs 16 + 16 KB of L2 reads a block instead of 16 + 32; empty[s] counts both blocks' warps. An
// odd last row of tiles is computed by a block whose partner multiplies zeros. Before a block ends its stages must be
// empty: then the other block has arrived at its barriers for the last time.
// Order: groups of 16 rows of tiles go column by column, so what runs at once is about square in the L2: 16 rows x 8
// columns of wide tiles read 2048 rows of A and 2048 of B for each 64 of k, 0.5 MB.
// Bytes: A and B once from memory where they fit the L2; from the L2 (m / 128 / 2) B + (n / 256) A.
// Roof: the tensor pipe, 4096 FLOP a clock and processor. A stage of the wide tile is 1024 clocks of it and 32 KB of
// L2 reads, 4.1 KB a clock on 132 processors at full rate (7.2 TB/s at 1755 MHz, 10.8 without the cluster).
// Predicted, wide tile, k = 4096: 65536 clocks of main loop at some 90 % of the pipe; exposed epilogue about 900 clocks
// (64 conversions and 64 stores of shared memory a thread, 512 clocks of bank time) + 300 to refill the pipe: 690 to 740
// TFLOP/s on an H100 that cuBLAS brings to 798. The square tile is bound by shared memory: in the 512 clocks of a stage
// products read 48 KB of it and copies write 32 KB, 160 bytes a clock of 128, which leaves 80 % of the pipe.
// Source: CUTLASS's warp-specialised pipeline, fast.cu's matmul_12 and ThunderKittens' products, for the roles of
// warpgroups; the ring of C is this project's own.
#pragma once

#include "ptx.cuh"

constexpr int kDepth = 64;           // of k in a stage
constexpr int kRowBytes = 128;       // of a box
constexpr int kBox = 64 * kRowBytes; // bytes of a box of C, or of a panel of an outer-major operand
constexpr int kSlots = 5;            // boxes of a consumer's ring
constexpr int kGroup = 16;           // rows of tiles that run together
constexpr int kCluster = 2;          // blocks that share B
constexpr int kConsumers = 2;        // warpgroups
constexpr int kWarpgroup = 128;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 504, "registers of three warpgroups");
static_assert(kGroup % kCluster == 0, "clusters divide groups");

// The tile of a block, and where things lie in its shared memory, from the first multiple of 1024 on.
template <int BN_>
struct Shape {
    static constexpr int BM = 128, BN = BN_;
    static constexpr int kA = BM * kRowBytes;
    static constexpr int kStage = kA + BN * kRowBytes;
    static constexpr int kStages = BN == 256 ? 3 : 4;
    static constexpr int kRing = kStages * kStage;
    static constexpr int kFull = kRing + kConsumers * kSlots * kBox;
    static constexpr int kEmpty = kFull + 8 * kStages;
    static constexpr int kOpen = kEmpty + 8 * kStages;
    static constexpr int kWritten = kOpen + 8 * kConsumers * kSlots;
    static constexpr int kShared = 1024 + kWritten + 8 * kConsumers * kSlots;
    static_assert(kShared <= 232448, "a block's shared memory");
};

using Wide = Shape<256>;
using Square = Shape<128>;

// A truth that a type carries.
template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};

// A place in a ring of N, and the parity of its round.
template <int N>
struct Place {
    uint32_t at = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        if (++at == N) {
            at = 0;
            parity ^= 1;
        }
    }
};

// The tiles of a product in the order in which clusters take them.
struct Raster {
    uint32_t rows, cols, width;

    __device__ __forceinline__ Raster(uint32_t m, uint32_t n, uint32_t width_)
        : rows((m + 128 * kCluster - 1) / (128 * kCluster)), cols((n + width_ - 1) / width_), width(width_) {}

    __device__ __forceinline__ uint32_t first() const { return blockIdx.x / kCluster; }
    __device__ __forceinline__ uint32_t step() const { return gridDim.x / kCluster; }
    __device__ __forceinline__ uint32_t count() const { return rows * cols; }

    // Finds the first row and column of this block's tile of step `index`.
    __device__ __forceinline__ void find(uint32_t index, uint32_t& row, uint32_t& col) const {
        constexpr uint32_t kHigh = kGroup / kCluster;
        uint32_t group = index / (kHigh * cols), in_group = index % (kHigh * cols);
        uint32_t height = min(rows - group * kHigh, kHigh);
        row = ((group * kHigh + in_group % height) * kCluster + blockIdx.x % kCluster) * 128;
        col = in_group / height * width;
    }
};

// Where k is cut: every `rows` rows of C are all rows of A by the next `depth` of k. CUT: whether there may be parts.
template <bool CUT>
struct Parts {
    uint32_t rows, depth;

    // Makes `row` one of A's and returns the part of k, `from` and up to `to`, that its products take.
    __device__ __forceinline__ void find(uint32_t& row, uint32_t k, uint32_t& from, uint32_t& to) const {
        from = 0;
        to = k;
        if (CUT) {
            uint32_t part = row / rows;
            row -= part * rows;
            from = part * depth;
            to = min(k, from + depth);
        }
    }
};

// One consumer thread's view of its warpgroup's ring of boxes of C.
struct Ring {
    uint8_t* slots;
    uint32_t open, written;  // barriers
    uint32_t lane;
    uint32_t row;   // this thread's row in a box; the other one is 8 further down
    Place<kSlots> taken, given;

    // Waits for the next box to be writable and returns it.
    __device__ __forceinline__ uint8_t* take() {
        ptx::mbar_wait(open + 8 * taken.at, taken.parity);
        uint8_t* box = slots + taken.at * kBox;
        taken.advance();
        return box;
    }

    // Hands the `count` boxes taken first to the mover.
    __device__ __forceinline__ void give(int count) {
        ptx::fence_async();
        // The mover must see the writes of all lanes.
        __syncwarp();
        for (int i = 0; i < count; ++i) {
            if (lane == 0) ptx::mbar_arrive(written + 8 * given.at);
            given.advance();
        }
    }

    // Returns where the thread's pair of the eight columns `j` lies in its first row; 1024 further in its second.
    __device__ __forceinline__ uint32_t place_bf16(int j) const {
        return row * kRowBytes + ((j ^ (row & 7)) << 4) + lane % 4 * 4;
    }

    __device__ __forceinline__ uint32_t place_f32(int j) const {
        return row * kRowBytes + (((2 * j + lane % 4 / 2) ^ (row & 7)) << 4) + lane % 2 * 8;
    }
};

// A pair of bf16 in a word.
__device__ __forceinline__ float low_of(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// Aligned: pairs of bf16 begin at multiples of 4 bytes of a box, pairs of fp32 at multiples of 8.
__device__ __forceinline__ uint32_t& word_at(uint8_t* box, uint32_t place) {
    return *reinterpret_cast<uint32_t*>(box + place);
}
__device__ __forceinline__ float2& pair_at(uint8_t* box, uint32_t place) {
    return *reinterpret_cast<float2*>(box + place);
}

// Adds the bias of columns `col` on to the sums of the eight-column groups FIRST to LAST, whose first column is col;
// those at `limit` and beyond have none.
template <int FIRST, int LAST, int R>
__device__ __forceinline__ void add_bias(float (&sum_r)[R], const uint16_t* bias, uint32_t col, uint32_t limit) {
    col += threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = FIRST; j < LAST; ++j) {
        const uint32_t at = col + (j - FIRST) * 8;
        // Aligned: at is even, and so is `limit`, since rows of C are whole packs of 16 bytes.
        const uint32_t pair = at < limit ? *reinterpret_cast<const uint32_t*>(bias + at) : 0;
        sum_r[4 * j] += low_of(pair);
        sum_r[4 * j + 1] += high_of(pair);
        sum_r[4 * j + 2] += low_of(pair);
        sum_r[4 * j + 3] += high_of(pair);
    }
}

// Writes the 64 columns of box `b` of the sums in bf16.
template <int R>
__device__ __forceinline__ void put_bf16(const float (&sum_r)[R], int b, const Ring& ring, uint8_t* box) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        uint32_t at = ring.place_bf16(j);
        int i = 4 * (8 * b + j);
        word_at(box, at) = ptx::pack_bf16(sum_r[i], sum_r[i + 1]);
        word_at(box, at + 1024) = ptx::pack_bf16(sum_r[i + 2], sum_r[i + 3]);
    }
}

// Issues all loads of operands and returns the stage behind the last one. `second`: how many outer rows the second half
// of B's tile lies behind the first.
template <class S, bool A_OUTER, bool B_OUTER, bool CUT>
__device__ __forceinline__ Place<S::kStages> load_operands(const ptx::TensorMap& a, const ptx::TensorMap& b,
                                                           const Raster& raster, const Parts<CUT>& parts, uint32_t k,
                                                           uint32_t second, uint32_t base) {
    const uint32_t rank = kCluster == 1 ? 0 : blockIdx.x % kCluster;
    auto load_b = [&](uint32_t to, uint32_t x, uint32_t y, uint32_t bar) {
        if (kCluster == 1) {
            ptx::tma_load(to, b, x, y, bar);
        } else {
            ptx::tma_load_all(to, b, x, y, bar, (1 << kCluster) - 1);
        }
    };
    constexpr int kPanels = S::BN / 128;  // of half of B
    Place<S::kStages> at;
    for (uint32_t index = raster.first(); index < raster.count(); index += raster.step()) {
        uint32_t row, col;
        raster.find(index, row, col);
        uint32_t from, to;
        parts.find(row, k, from, to);
        for (uint32_t x = from; x < to; x += kDepth) {
            uint32_t stage = base + at.at * S::kStage, full = base + S::kFull + 8 * at.at;
            ptx::mbar_wait(base + S::kEmpty + 8 * at.at, at.parity ^ 1);
            ptx::mbar_expect(full, S::kStage);
            if (A_OUTER) {
                ptx::tma_load(stage, a, row, x, full);
                ptx::tma_load(stage + kBox, a, row + 64, x, full);
            } else {
                ptx::tma_load(stage, a, x, row, full);
            }
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                if (kCluster == 2 && half != rank) continue;
                if (B_OUTER) {
#pragma unroll
                    for (uint32_t panel = half * kPanels; panel < (half + 1) * kPanels; ++panel) {
                        load_b(stage + S::kA + panel * kBox, col + panel * 64, x, full);
                    }
                } else {
                    load_b(stage + S::kA + half * (S::BN / 2 * kRowBytes), x, col + half * second, full);
                }
            }
            at.advance();
        }
    }
    return at;
}

// Opens and stores the boxes of C of consumer `w`, always as many ahead as the ring holds but for one, whose store
// may still be reading it.
template <class S, class E>
__device__ __forceinline__ void move_boxes(const E& epilogue, const Raster& raster, uint32_t w, uint32_t base) {
    const uint32_t boxes = epilogue.boxes();
    if (boxes == 0) return;
    const uint32_t slots = base + S::kRing + w * kSlots * kBox;
    const uint32_t open = base + S::kOpen + 8 * w * kSlots, written = base + S::kWritten + 8 * w * kSlots;
    // The tile whose boxes are being opened; its place is found once, and not while a box waits for it.
    uint32_t ahead = raster.first(), ahead_row = 0, ahead_col = 0, ahead_box = 0, ahead_slot = 0;
    auto find_ahead = [&] {
        if (ahead < raster.count()) raster.find(ahead, ahead_row, ahead_col);
    };
    find_ahead();
    auto open_next = [&] {
        if (ahead >= raster.count()) return;
        epilogue.open(ahead_box, ahead_col, ahead_row + w * 64, slots + ahead_slot * kBox, open + 8 * ahead_slot);
        ahead_slot = ahead_slot + 1 == kSlots ? 0 : ahead_slot + 1;
        if (++ahead_box == boxes) {
            ahead_box = 0;
            ahead += raster.step();
            find_ahead();
        }
    };
    for (int i = 0; i < kSlots - 1; ++i) open_next();
    Place<kSlots> at;
    for (uint32_t index = raster.first(); index < raster.count(); index += raster.step()) {
        uint32_t row, col;
        raster.find(index, row, col);
        for (uint32_t box = 0; box < boxes; ++box) {
            ptx::mbar_wait(written + 8 * at.at, at.parity);
            epilogue.store(box, col, row + w * 64, slots + at.at * kBox);
            ptx::bulk_commit();
            at.advance();
            // The box before this one has been read: the next one to open is its slot.
            ptx::bulk_wait_read<1>();
            open_next();
        }
    }
    // Shared memory must outlive the stores.
    ptx::bulk_wait<0>();
}

// sum_r = the products of `k` indices, at least one, for consumer `w`.
template <class S, bool A_OUTER, bool B_OUTER>
__device__ __forceinline__ void multiply(float (&sum_r)[S::BN / 2], uint32_t base, uint32_t w, uint32_t k,
                                         Place<S::kStages>& at) {
    const uint32_t lane = threadIdx.x % kWarp;
    auto release = [&](uint32_t stage) {
        uint32_t empty = base + S::kEmpty + 8 * stage;
        if (kCluster == 1) {
            if (lane == 0) ptx::mbar_arrive(empty);
        } else if (lane < kCluster) {
            ptx::mbar_arrive_at(empty, lane);
        }
    };
    // A stage's products; the first one of a tile overwrites the sums.
    auto start = [&](auto first) {
        ptx::mbar_wait(base + S::kFull + 8 * at.at, at.parity);
        const uint32_t a = base + at.at * S::kStage + w * kBox, b = base + at.at * S::kStage + S::kA;
        const uint64_t of_a = ptx::describe128(a, A_OUTER ? kBox : 16, 1024);
        const uint64_t of_b = ptx::describe128(b, B_OUTER ? kBox : 16, 1024);
        ptx::wgmma_fence();
        ptx::wgmma_ss<S::BN, A_OUTER, B_OUTER, !first.value>(sum_r, of_a, of_b);
#pragma unroll
        for (int i = 1; i < kDepth / 16; ++i) {
            // 16 of k further, in units of 16 bytes.
            constexpr int kStepA = (A_OUTER ? 2048 : 32) / 16, kStepB = (B_OUTER ? 2048 : 32) / 16;
            ptx::wgmma_ss<S::BN, A_OUTER, B_OUTER>(sum_r, of_a + i * kStepA, of_b + i * kStepB);
        }
        ptx::wgmma_commit();
    };
    start(Flag<true>());
    uint32_t before = at.at;
    at.advance();
#pragma unroll 1
    for (uint32_t x = kDepth; x < k; x += kDepth) {
        start(Flag<false>());
        // The batch before this one is done.
        ptx::wgmma_wait<1>();
        release(before);
        before = at.at;
        at.advance();
    }
    ptx::wgmma_wait<0>(sum_r);
    release(before);
}

// One block: its tiles' products, `epilogue` behind each. k > 0.
// An epilogue has: kHalves, whether B's tile is two halves of BN / 2 rows, `second` rows apart (n then counts the
// columns of one half, and a thread holds both); boxes(), how many boxes a consumer writes for a tile, maybe none; open(box, x, y,
// slot, bar), which arrives at bar, with old values on their way where there are some; store(box, x, y, slot); and
// run(sum_r, ring, row, col), which takes and gives all boxes in their order. x, y and col, row are the tile's first
// column and, for a box, the consumer's first row; for run, the thread's first row and the tile's first column.
// CUT: `rows`, `depth`: Parts, of a weight gradient; m then counts the rows of all parts.
template <class S, bool A_OUTER, bool B_OUTER, bool CUT = false, class E>
__device__ __forceinline__ void product(const ptx::TensorMap& a, const ptx::TensorMap& b, uint32_t m, uint32_t n,
                                        uint32_t k, uint32_t second, const E& epilogue, uint32_t rows = 0,
                                        uint32_t depth = 0) {
    const uint32_t raw = ptx::smem_u32(ptx::dyn_smem()), base = (raw + 1023) & ~1023u;
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::kStages; ++s) {
            ptx::mbar_init(base + S::kFull + 8 * s, 1);
            ptx::mbar_init(base + S::kEmpty + 8 * s, kCluster * kConsumers * kWarpgroup / kWarp);
        }
        for (int s = 0; s < kConsumers * kSlots; ++s) {
            ptx::mbar_init(base + S::kOpen + 8 * s, 1);
            ptx::mbar_init(base + S::kWritten + 8 * s, kWarpgroup / kWarp);
        }
        ptx::fence_mbar_init();
        ptx::prefetch_map(a);
        ptx::prefetch_map(b);
    }
    // Nobody uses a barrier before it is there; those of the other block neither.
    if (kCluster == 1) {
        __syncthreads();
    } else {
        ptx::cluster_sync();
    }
    ptx::grid_wait();

    const Raster raster(m, n, E::kHalves ? S::BN / 2 : S::BN);
    const Parts<CUT> parts{rows, depth};
    const uint32_t group = threadIdx.x / kWarpgroup;
    if (group == 0) {
        ptx::registers_down<kProducerRegisters>();
        if (threadIdx.x == 0) {
            auto at = load_operands<S, A_OUTER, B_OUTER, CUT>(a, b, raster, parts, k, E::kHalves ? second : S::BN / 2,
                                                              base);
            ptx::grid_release();
            // A block must outlive the other one's arrivals at its barriers: it has them all when its stages are empty.
            for (int s = 0; s < S::kStages; ++s) {
                ptx::mbar_wait(base + S::kEmpty + 8 * at.at, at.parity ^ 1);
                at.advance();
            }
        } else if (threadIdx.x == kWarp || threadIdx.x == 2 * kWarp) {
            move_boxes<S>(epilogue, raster, threadIdx.x / kWarp - 1, base);
        }
    } else {
        ptx::registers_up<kConsumerRegisters>();
        const uint32_t w = group - 1, thread = threadIdx.x % kWarpgroup, lane = threadIdx.x % kWarp;
        Ring ring{ptx::dyn_smem() + (base - raw) + S::kRing + w * kSlots * kBox,
                  base + S::kOpen + 8 * w * kSlots,
                  base + S::kWritten + 8 * w * kSlots,
                  lane,
                  thread / kWarp * 16 + lane / 4,
                  {},
                  {}};
        float sum_r[S::BN / 2];
        Place<S::kStages> at;
        for (uint32_t index = raster.first(); index < raster.count(); index += raster.step()) {
            uint32_t row, col, from, to;
            // Once, in front of the products: four divisions behind them would be seen.
            raster.find(index, row, col);
            uint32_t row_of_a = row;
            parts.find(row_of_a, k, from, to);
            multiply<S, A_OUTER, B_OUTER>(sum_r, base, w, to - from, at);
            epilogue.run(sum_r, ring, row + w * 64 + ring.row, col);
        }
    }
}

// Declaration of an entry point, and its registration in the simulator.
#define SM90_KERNEL extern "C" __global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
#define SM90_EXPORT(NAME) KERNEL_EXPORT_CLUSTER(NAME, kCluster)

// The one matrix product behind every linear map: C[m,n] = sum over k of A B, fp32 sums, any epilogue.
//
// Layouts: NT A[m,k] B[n,k]^T (forward), NN A[m,k] B[k,n] (input gradient), TN A[k,m]^T B[k,n] (weight gradient);
// matrices are row-major with any pitch. bf16 operands go to m16n8k16; fp32 operands are rounded to TF32 in
// registers and go to m16n8k8, so both precisions move 32 bytes of k a step and share all addresses.
// Shape: a block owns a BM x BN tile of C and all of k, hence the sum's order follows from k alone and no atomics
// are needed; weight gradients of few tiles cut k in parts (blocks of the second grid dimension), each summed to an fp32
// matrix of its own, which column_sum.cu adds in order. Four stages of 64 bytes of k each, filled by cp.async three stages ahead, one barrier a stage;
// fragments of the next step of bf16 are loaded before the products of this one. Warps own 64x64 (32x32 in the small
// tile): 128 FLOP for each byte of shared memory read, what the tensor pipe needs. The tile of C goes through shared
// memory, so that global accesses are whole 16-byte packs and an epilogue sees any column of its row.
// Tiles: 128x256 with 8 warps for large products, 128x128 with 4 warps (two blocks share a processor, one's
// epilogue hides behind the other's products), 64x64 with 4 warps for small ones. All fit 99 KB (sm_86, sm_89).
// Bank conflicts: none in the main loop. A k-major row is 64 bytes, two rows fill the 32 banks; chunk c (16
// bytes) of row r lies at c ^ (r >> 1 & 3), so the 8 rows of an ldmatrix hit 8 different places. An outer-major
// row is a multiple of 128 bytes: bf16 keeps chunk c of row k at c ^ (k & 7), and ldmatrix.trans, which reads one
// chunk of 8 rows, hits 8 places; fp32 keeps it at c ^ 2 (k & 3), and the 32 single words of a fragment (4 rows of
// k, 8 columns = 2 chunks) hit 32 banks. cp.async writes whole 128-byte lines in every layout. Rows of the staged
// C are 8 words longer than a multiple of 32: 4 rows of 4 lanes with 2 words each hit 32 banks.
// Bytes: A and B once from memory where they fit the L2: blocks run in groups of 16 rows of tiles.
// Roof: the tensor pipe. Source: CUTLASS's multistage sm_80 mainloop (the order of loads and waits).
#pragma once

#include "common.cuh"

constexpr int kStages = 4;
constexpr int kDepthBytes = 64;  // of k in a stage
constexpr int kGroup = 16;       // rows of tiles that run together
constexpr int kChunk = 8;        // columns of C a thread handles at once

// A block's tile and how its warps share it.
template <int BM_, int BN_, int WM_, int WN_>
struct Tile {
    static constexpr int BM = BM_, BN = BN_, WM = WM_, WN = WN_;
    static constexpr int kThreads = (BM / WM) * (BN / WN) * kWarp;
    static constexpr int kMt = WM / 16, kNt = WN / 8;
    static constexpr int kStage = (BM + BN) * kDepthBytes;  // bytes
    static constexpr int kPassRows = BM / WM * 32;          // rows of C staged at once: two 16-row tiles a warp
    static constexpr int kPasses = kMt / 2;
    static constexpr int kPitch = BN + 8;
    static_assert(kPassRows * kPitch * 4 <= kStages * kStage, "the staged rows reuse the stages");
};

using Large = Tile<128, 256, 64, 64>;
using Medium = Tile<128, 128, 64, 64>;
using Small = Tile<64, 64, 32, 32>;

// Where the 16-byte chunk `chunk` of row `row` of k lies in an outer-major row.
template <typename T>
__device__ __forceinline__ uint32_t outer_place(uint32_t row, uint32_t chunk) {
    return sizeof(T) == 2 ? chunk ^ (row & 7) : chunk ^ (row & 3) << 1;
}

// One thread's share of copying an operand's tiles, 16 bytes at a time.
// KMAJOR: stored rows are the outer index, k runs along them. HALVES: the tile's second half of outer rows comes
// from `second` rows further down. ALIGNED: base and pitch are multiples of 16 bytes; otherwise elements are
// loaded one by one, which is right for every address and meant for odd shapes.
template <typename T, int OUTER, bool KMAJOR, int THREADS, bool HALVES, bool ALIGNED>
struct Feed {
    static constexpr int kElements = 16 / sizeof(T);
    static constexpr int kDepth = kDepthBytes / sizeof(T);
    static constexpr int kRowBytes = KMAJOR ? kDepthBytes : OUTER * sizeof(T);
    static constexpr int kChunks = kRowBytes / 16;     // of a row
    static constexpr int kRows = THREADS / kChunks;    // that one pass of all threads covers
    static constexpr int kPasses = OUTER * kDepthBytes / 16 / THREADS;
    static_assert(kRows % 8 == 0 || (sizeof(T) == 4 && kRows % 4 == 0), "passes keep the swizzle");
    static_assert(!HALVES || (KMAJOR && kPasses % 2 == 0), "whole passes are of one half");

    const uint8_t* src;  // this thread's chunk of the coming tile
    uint64_t pass, step; // bytes from pass to pass, from tile to tile
    int64_t jump;        // bytes that the second half lies off its place
    uint32_t dst;        // offset of the first chunk in a stage
    uint32_t first;      // the first chunk's index along k in the tile
    uint32_t valid;      // KMAJOR: a bit for each pass whose row exists; else how many elements of the chunk exist

    __device__ __forceinline__ Feed(const T* base, uint64_t pitch, uint32_t origin, uint32_t limit,
                                    uint32_t second) {
        uint32_t chunk = threadIdx.x % kChunks, row = threadIdx.x / kChunks;
        pass = kRows * pitch * sizeof(T);
        if (KMAJOR) {
            src = reinterpret_cast<const uint8_t*>(base + (origin + row) * pitch + chunk * kElements);
            step = kDepthBytes;
            jump = (static_cast<int64_t>(second) - OUTER / 2) * static_cast<int64_t>(pitch * sizeof(T));
            dst = row * kDepthBytes + ((chunk ^ (row >> 1 & 3)) << 4);
            first = chunk * kElements;
            valid = 0;
#pragma unroll
            for (int i = 0; i < kPasses; ++i) {
                uint32_t at = row + i * kRows;
                if (HALVES) at %= OUTER / 2;
                valid |= (origin + at < limit ? 1u : 0u) << i;
            }
        } else {
            src = reinterpret_cast<const uint8_t*>(base + row * pitch + origin + chunk * kElements);
            step = kDepth * pitch * sizeof(T);
            jump = 0;
            dst = row * kRowBytes + (outer_place<T>(row, chunk) << 4);
            first = row;
            uint32_t at = origin + chunk * kElements;
            valid = at < limit ? min(limit - at, static_cast<uint32_t>(kElements)) : 0;
        }
    }

    // Copies the coming tile, of which `left` indices of k exist, to the stage at `stage`; the rest becomes 0.
    __device__ __forceinline__ void fetch(uint32_t stage, uint32_t left) {
        uint32_t along = first < left ? min(left - first, static_cast<uint32_t>(kElements)) : 0;
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
            uint32_t count = KMAJOR ? (valid >> i & 1 ? along : 0) : (first + i * kRows < left ? valid : 0);
            const uint8_t* from = src + i * pass;
            if (HALVES && i >= kPasses / 2) from += jump;
            uint32_t to = stage + dst + i * kRows * kRowBytes;
            if (ALIGNED) {
                // Where count is 0 the address may lie outside; nothing is read then.
                ptx::cp_async16(ptx::smem_u32(ptx::dyn_smem()) + to, from, count * sizeof(T));
            } else {
                const T* one = reinterpret_cast<const T*>(from);
                T held[kElements];
#pragma unroll
                for (int e = 0; e < kElements; ++e) held[e] = e < count ? one[e] : T(0);
                T* out = reinterpret_cast<T*>(ptx::dyn_smem() + to);
#pragma unroll
                for (int e = 0; e < kElements; ++e) out[e] = held[e];
            }
        }
        src += step;
    }
};

// One lane's addresses for the fragments of an operand: ROWS16 tiles of 16 outer indices that start at `origin`.
template <typename T, int OUTER, bool KMAJOR, bool IS_A>
struct Fragments {
    static constexpr int kStepRows = 32 / sizeof(T);  // of k in a step
    uint32_t offset;

    __device__ __forceinline__ explicit Fragments(uint32_t origin) {
        uint32_t lane = threadIdx.x % kWarp;
        // The four matrices of an ldmatrix: A goes down the outer index first, B along k first.
        uint32_t low = lane / 8 % 2, high = lane / 16;
        uint32_t outer = IS_A ? low : high, along = IS_A ? high : low;
        if (KMAJOR) {
            uint32_t row = origin + outer * 8 + lane % 8;
            offset = row * kDepthBytes + ((along ^ (row >> 1 & 3)) << 4);
        } else if (sizeof(T) == 2) {
            uint32_t row = along * 8 + lane % 8;
            offset = row * OUTER * 2 + (outer_place<T>(row, origin / 8 + outer) << 4);
        } else {
            uint32_t row = lane % 4, x = origin + lane / 4;
            offset = row * OUTER * 4 + (outer_place<T>(row, x / 4) << 4) + x % 4 * 4;
        }
    }

    // Loads tile `i` of step `step`: {(o, k), (o+8, k), (o, k+8), (o+8, k+8)} halves of 16x16 bytes for A, and for
    // B {(o, k), (o, k+8), (o+8, k), (o+8, k+8)}: the registers of two products side by side.
    __device__ __forceinline__ void load(uint32_t (&r)[4], uint32_t stage, int step, int i) const {
        if (KMAJOR || sizeof(T) == 2) {
            uint32_t base = ptx::smem_u32(ptx::dyn_smem()) + stage;
            if (KMAJOR) {
                ptx::ldmatrix_x4(r, base + (offset ^ step << 5) + i * 16 * kDepthBytes);
            } else {
                // 16 outer indices are two chunks, whose bits the origin leaves free.
                ptx::ldmatrix_x4_trans(r, base + (offset ^ i << 5) + step * kStepRows * OUTER * 2);
            }
        } else {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                int outer = IS_A ? e % 2 : e / 2, along = IS_A ? e / 2 : e % 2;
                uint32_t at = (offset ^ (4 * i + 2 * outer) << 4) + (step * kStepRows + along * 4) * OUTER * 4;
                // Aligned: every term is a multiple of 4 bytes.
                r[e] = *reinterpret_cast<const uint32_t*>(ptx::dyn_smem() + stage + at);
            }
        }
        if (sizeof(T) == 4) {
#pragma unroll
            for (int e = 0; e < 4; ++e) r[e] = ptx::to_tf32(__uint_as_float(r[e]));
        }
    }
};

// c += the product of all of k, for this warp's part of the block's tile.
template <typename T, class S, class FeedA, class FeedB, bool A_K, bool B_K, bool ALIGNED>
__device__ __forceinline__ void multiply(float (&acc_r)[S::kMt][S::kNt][4], FeedA& feed_a, FeedB& feed_b,
                                         uint32_t k) {
    constexpr int kDepth = kDepthBytes / sizeof(T);
    uint32_t warp = threadIdx.x / kWarp;
    Fragments<T, S::BM, A_K, true> from_a(warp / (S::BN / S::WN) * S::WM);
    Fragments<T, S::BN, B_K, false> from_b(warp % (S::BN / S::WN) * S::WN);
    uint32_t tiles = (k + kDepth - 1) / kDepth;
    auto fetch = [&](uint32_t tile) {
        uint32_t stage = tile % kStages * S::kStage;
        feed_a.fetch(stage, k - tile * kDepth);
        feed_b.fetch(stage + S::BM * kDepthBytes, k - tile * kDepth);
    };
    uint32_t a_r[2][S::kMt][4], b_r[2][S::kNt][2];
    auto load = [&](uint32_t tile, int step, int to) {
        uint32_t stage = tile % kStages * S::kStage;
#pragma unroll
        for (int i = 0; i < S::kMt; ++i) from_a.load(a_r[to][i], stage, step, i);
#pragma unroll
        for (int j = 0; j < S::kNt / 2; ++j) {
            uint32_t two[4];
            from_b.load(two, stage + S::BM * kDepthBytes, step, j);
            b_r[to][2 * j][0] = two[0];
            b_r[to][2 * j][1] = two[1];
            b_r[to][2 * j + 1][0] = two[2];
            b_r[to][2 * j + 1][1] = two[3];
        }
    };
    auto product = [&](int from) {
        if (sizeof(T) == 2) {
            ptx::mma_tile(acc_r, a_r[from], b_r[from]);
        } else {
            ptx::mma_tile_tf32(acc_r, a_r[from], b_r[from]);
        }
    };
#pragma unroll
    for (uint32_t s = 0; s < kStages - 1; ++s) {
        if (s < tiles) fetch(s);
        // Empty groups keep the count: group i is always tile i.
        ptx::cp_async_commit();
    }
    ptx::cp_async_wait<kStages - 2>();
    // Every thread's part of tile 0 is there.
    __syncthreads();
    // Addresses of single words leave fp32 no registers for a second set of fragments.
    constexpr bool kAhead = sizeof(T) == 2;
    if (kAhead && tiles > 0) load(0, 0, 0);
#pragma unroll 1
    for (uint32_t tile = 0; tile < tiles; ++tile) {
        load(tile, kAhead ? 1 : 0, kAhead ? 1 : 0);
        // This stage held tile - 1, whose last fragments all warps had loaded before the last barrier.
        if (tile + kStages - 1 < tiles) fetch(tile + kStages - 1);
        ptx::cp_async_commit();
        product(0);
        if (!kAhead) load(tile, 1, 1);
        ptx::cp_async_wait<kStages - 2>();
        // Tile + 1 is there in full, and nobody reads this tile's stage any more.
        __syncthreads();
        if (kAhead && tile + 1 < tiles) load(tile + 1, 0, 0);
        product(1);
    }
}

// One block: the tile's product, then `epilogue` for every eight columns of every row of it.
// An epilogue has: kHalves, whether B's tile is two halves of BN / 2 rows, `second` rows apart (n then counts the
// columns of one half, and a row of the tile holds both); kBatch chunks whose loads are in flight together; Held,
// what begin(held, row, col, count) loads for a chunk of `count` columns of C; and
// end(held, row, col, count, x), x being the chunk's fp32 sums in shared memory (the other half BN / 2 further).
template <typename T, class S, bool A_K, bool B_K, bool ALIGNED, class E>
__device__ __forceinline__ void gemm_block(const T* a, uint32_t lda, const T* b, uint32_t ldb, uint32_t m,
                                           uint32_t n, uint32_t k, uint32_t second, const E& epilogue) {
    constexpr int kCols = E::kHalves ? S::BN / 2 : S::BN;
    uint32_t rows = (m + S::BM - 1) / S::BM, cols = (n + kCols - 1) / kCols;
    // Tiles of a group go column by column: what runs at once is about square and shares A and B in the L2.
    uint32_t group = blockIdx.x / (kGroup * cols), in_group = blockIdx.x % (kGroup * cols);
    uint32_t height = min(rows - group * kGroup, static_cast<uint32_t>(kGroup));
    uint32_t row0 = (group * kGroup + in_group % height) * S::BM, col0 = in_group / height * kCols;

    float acc_r[S::kMt][S::kNt][4] = {};
    {
        using FeedA = Feed<T, S::BM, A_K, S::kThreads, false, ALIGNED>;
        using FeedB = Feed<T, S::BN, B_K, S::kThreads, E::kHalves, ALIGNED>;
        FeedA feed_a(a, lda, row0, m, 0);
        FeedB feed_b(b, ldb, col0, n, second);
        multiply<T, S, FeedA, FeedB, A_K, B_K, ALIGNED>(acc_r, feed_a, feed_b, k);
    }

    float* staged_s = reinterpret_cast<float*>(ptx::dyn_smem());
    uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    uint32_t warp_row = warp / (S::BN / S::WN), warp_col = warp % (S::BN / S::WN) * S::WN;
    auto stage = [&](const float (&tile)[S::kNt][4], uint32_t half) {
        float* at = staged_s + (warp_row * 32 + half * 16 + lane / 4) * S::kPitch + warp_col + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < S::kNt; ++j) {
            // Aligned: the pitch and every column are even.
            *reinterpret_cast<float2*>(at + j * 8) = make_float2(tile[j][0], tile[j][1]);
            *reinterpret_cast<float2*>(at + 8 * S::kPitch + j * 8) = make_float2(tile[j][2], tile[j][3]);
        }
    };
    constexpr int kChunks = kCols / kChunk;
    constexpr int kRounds = S::kPassRows * kChunks / S::kThreads / E::kBatch;
#pragma unroll 1
    for (int pass = 0; pass < S::kPasses; ++pass) {
        // The stages, or the rows of the pass before, are read to the end.
        __syncthreads();
        // Registers have no address: the passes are told apart, not indexed.
        if (pass == 0) {
            stage(acc_r[0], 0);
            stage(acc_r[1], 1);
        } else {
            stage(acc_r[S::kMt - 2], 0);
            stage(acc_r[S::kMt - 1], 1);
        }
        // All columns of the staged rows are there.
        __syncthreads();
#pragma unroll 1
        for (int round = 0; round < kRounds; ++round) {
            typename E::Held held_r[E::kBatch];
            uint32_t at[E::kBatch], row[E::kBatch], count[E::kBatch], col;
#pragma unroll
            for (int i = 0; i < E::kBatch; ++i) {
                uint32_t index = threadIdx.x + (round * E::kBatch + i) * S::kThreads;
                uint32_t staged = index / kChunks, chunk = index % kChunks * kChunk;
                at[i] = staged * S::kPitch + chunk;
                row[i] = row0 + staged / 32 * S::WM + pass * 32 + staged % 32;
                col = col0 + chunk;
                count[i] = row[i] < m && col < n ? min(n - col, static_cast<uint32_t>(kChunk)) : 0;
                if (count[i] > 0) epilogue.begin(held_r[i], row[i], col, count[i]);
            }
#pragma unroll
            for (int i = 0; i < E::kBatch; ++i) {
                col = col0 + (threadIdx.x + (round * E::kBatch + i) * S::kThreads) % kChunks * kChunk;
                if (count[i] > 0) epilogue.end(held_r[i], row[i], col, count[i], staged_s + at[i]);
            }
        }
    }
}

// Eight numbers of a row as they lie in memory, so that loads in flight wait for no conversion.
struct Raw {
    uint4 words[2];

    // Aligned: the caller has seen that base, pitch and column are multiples of 16 bytes.
    __device__ __forceinline__ void load(const uint16_t* p) {
        words[0] = *reinterpret_cast<const uint4*>(p);
    }

    __device__ __forceinline__ void load(const float* p) {
        words[0] = reinterpret_cast<const uint4*>(p)[0];
        words[1] = reinterpret_cast<const uint4*>(p)[1];
    }

    template <typename T>
    __device__ __forceinline__ void unpack(float (&out)[kChunk]) const {
        uint32_t w[8] = {words[0].x, words[0].y, words[0].z, words[0].w,
                         words[1].x, words[1].y, words[1].z, words[1].w};
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
            uint32_t half = e % 2 == 0 ? w[e / 2] << 16 : w[e / 2] & 0xFFFF0000u;
            out[e] = __uint_as_float(sizeof(T) == 2 ? half : w[e]);
        }
    }
};


// Reads up to eight numbers one by one; those that do not exist are 0.
template <typename T>
__device__ __forceinline__ void load_some(const T* p, uint32_t count, float (&out)[kChunk]) {
#pragma unroll
    for (int e = 0; e < kChunk; ++e) out[e] = e < count ? widen(p[e]) : 0.0f;
}

// Writes `count` numbers, rounded to nearest even; `packed`: by 16 bytes where all eight exist.
template <typename T>
__device__ __forceinline__ void store_row(T* p, uint32_t count, bool packed, const float (&x)[kChunk]) {
    if (packed && count == kChunk) {
        if (sizeof(T) == 2) {
            Pack16 pack;
#pragma unroll
            for (int e = 0; e < kChunk; ++e) pack.v[e] = float_to_bf16_rne(x[e]);
            store16(reinterpret_cast<uint16_t*>(p), pack);
        } else {
            store32(reinterpret_cast<float*>(p), Pack32{{x[0], x[1], x[2], x[3]}});
            store32(reinterpret_cast<float*>(p) + 4, Pack32{{x[4], x[5], x[6], x[7]}});
        }
    } else {
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
            if (e < count) narrow(x[e], p[e]);
        }
    }
}

// Reads the chunk's sums, and the bias of its columns on top where there is one.
template <typename T>
__device__ __forceinline__ void sums_of(const float* x, const T* bias, uint32_t count, float (&out)[kChunk]) {
    // Aligned: the staged pitch and the chunk are multiples of four columns.
    Pack32 low = load32(x), high = load32(x + 4);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        out[e] = low.v[e];
        out[e + 4] = high.v[e];
    }
    if (bias != nullptr) {
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
            if (e < count) out[e] += widen(bias[e]);
        }
    }
}

// C = sums (+ bias) (+ addend), C in fp32 or bf16. The addend has C's type and pitch and may be C itself.
template <typename T>
struct Store {
    static constexpr bool kHalves = false;
    static constexpr int kBatch = 4;
    using Held = Raw;
    void* c;
    const void* addend;
    const T* bias;
    uint64_t ldc;
    bool wide, packed;

    __device__ __forceinline__ void begin(Raw& held, uint32_t row, uint32_t col, uint32_t count) const {
        if (addend == nullptr || !packed || count < kChunk) return;
        uint64_t at = row * ldc + col;
        if (wide) {
            held.load(static_cast<const float*>(addend) + at);
        } else {
            held.load(static_cast<const uint16_t*>(addend) + at);
        }
    }

    template <typename O>
    __device__ __forceinline__ void write(const Raw& held, uint64_t at, uint32_t count,
                                          float (&sums)[kChunk]) const {
        if (addend != nullptr) {
            float old[kChunk];
            if (packed && count == kChunk) {
                held.unpack<O>(old);
            } else {
                load_some(static_cast<const O*>(addend) + at, count, old);
            }
#pragma unroll
            for (int e = 0; e < kChunk; ++e) sums[e] += old[e];
        }
        store_row(static_cast<O*>(c) + at, count, packed, sums);
    }

    __device__ __forceinline__ void end(const Raw& held, uint32_t row, uint32_t col, uint32_t count,
                                        const float* x) const {
        float sums[kChunk];
        sums_of(x, bias == nullptr ? bias : bias + col, count, sums);
        uint64_t at = row * ldc + col;
        if (wide) {
            write<float>(held, at, count, sums);
        } else {
            write<uint16_t>(held, at, count, sums);
        }
    }
};

// The body of every plain kernel; `flags`: 1, C is fp32 (else bf16); 2, its rows are whole 16-byte packs. blockIdx.y tells
// the part of k, `depth` long; the results of parts are fp32 and lie `rows` rows apart.
template <typename T, class S, bool A_K, bool B_K, bool ALIGNED>
__device__ __forceinline__ void gemm_plain(const T* a, const T* b, void* c, const void* addend, const T* bias,
                                           uint32_t m, uint32_t n, uint32_t k, uint32_t lda, uint32_t ldb,
                                           uint32_t ldc, uint32_t flags, uint32_t rows, uint32_t depth) {
    uint32_t from = blockIdx.y * depth;
    a += A_K ? from : static_cast<uint64_t>(from) * lda;
    b += B_K ? from : static_cast<uint64_t>(from) * ldb;
    c = static_cast<uint8_t*>(c) + static_cast<uint64_t>(blockIdx.y) * rows * ldc * sizeof(float);
    k = min(k - from, depth);
    Store<T> epilogue{c, addend, bias, ldc, (flags & 1) != 0, (flags & 2) != 0};
    gemm_block<T, S, A_K, B_K, ALIGNED>(a, lda, b, ldb, m, n, k, 0, epilogue);
}

// The entry points of one layout, one for each tile; `any` takes rows of every pitch and address.
#define GEMM_KERNEL(NAME, T, TILE, A_K, B_K, ALIGNED)                                                         \
    extern "C" __global__ void __launch_bounds__(TILE::kThreads)                                              \
        NAME(const T* a, const T* b, void* c, const void* addend, const T* bias, uint32_t m, uint32_t n,      \
             uint32_t k, uint32_t lda, uint32_t ldb, uint32_t ldc, uint32_t flags, uint32_t rows,             \
             uint32_t depth) {                                                                                \
        ptx::grid_enter();                                                                                    \
        gemm_plain<T, TILE, A_K, B_K, ALIGNED>(a, b, c, addend, bias, m, n, k, lda, ldb, ldc, flags, rows,    \
                                               depth);                                                        \
    }                                                                                                         \
    KERNEL_EXPORT(NAME)
#define GEMM_KERNELS(NAME, T, A_K, B_K)                       \
    GEMM_KERNEL(NAME##_128x256, T, Large, A_K, B_K, true);    \
    GEMM_KERNEL(NAME##_128x128, T, Medium, A_K, B_K, true);   \
    GEMM_KERNEL(NAME##_64x64, T, Small, A_K, B_K, true);      \
    GEMM_KERNEL(NAME##_any, T, Small, A_K, B_K, false)

// GEMMs of bf16 operands with wgmma: C = A B (+ bias) (+ addend), C in bf16 or fp32.
//
// gemm.cuh says how and why, and holds the body; kernels/gemm_bf16.cu is the portable twin. `flags`: 1, C is fp32; 2,
// `addend`, a matrix of C's type and shape, is added: a residual, or C itself to accumulate. Old + new is made in fp32
// and rounded once, to nearest even; the first micro-batch of a weight gradient writes, later ones add.
// A weight gradient may come in parts (`rows`, `depth`: gemm.cuh), `c` then being all of them. Where it is whole and the
// last of its step, `scans` takes what each warp's 16 rows of a tile add to the gradient's norm, so that grad_norm.cu need not
// read it again: a strip's partial scans lie side by side, one a tile's columns. Squares of what is stored are summed in
// fp32 by sixteens (those of bf16 are exact), these in fp64.
// Grid: as many blocks as processors, or as there are tiles where these are fewer.
// Bytes read + written: 2 (mk + nk) + |C| (+ |C| for the addend, on its way during the main loop).
// A scan takes two instructions a number where 16 of them are of ordinary size: about 300 a thread and tile.
// Roof: bf16 tensor cores. Predicted beyond gemm.cuh: reading a bf16 addend makes the exposed epilogue about 1500
// clocks of 65536 (k = 4096), an fp32 C about 2500: a weight gradient of 4096 tokens stays above 95 % of the pipe.
#include "gemm.cuh"

// A thread's share of the scan of a tile: rows `row` and 8 further down, columns `col`, the next one, and these again
// every 8 columns. C has whole packs of columns.
struct TileScan {
    bool upper, lower;  // whether its rows are C's
    uint32_t left;      // columns of C from `col` on
    double sum_sq = 0.0;
    uint32_t max_bits = 0, nonfinite = 0;

    __device__ __forceinline__ TileScan(uint32_t row, uint32_t col, uint32_t m, uint32_t n)
        : upper(row < m), lower(row + 8 < m), left(col < n ? n - col : 0) {}

    // Adds 16 of the thread's numbers.
    template <int R>
    __device__ __forceinline__ void add(const float (&x_r)[R], int first) {
        // Nearly always: ordinary numbers, and zeros outside C, whose squares need no scale.
        float largest = 0.0f, plain = 0.0f;
#pragma unroll
        for (int e = 0; e < 16; ++e) {
            const float x = x_r[first + e];
            largest = fmaxf(largest, fabsf(x));
            plain = fmaf(x, x, plain);
        }
        // A NaN shows in the sum, which the maximum passes over.
        if (largest >= 0x1p-60f && largest <= 0x1p60f && plain < INFINITY) {
            max_bits = max(max_bits, __float_as_uint(largest));
            sum_sq += static_cast<double>(plain);
            return;
        }
        uint32_t bits_r[16], top = 0;
#pragma unroll
        for (int e = 0; e < 16; ++e) {
            const bool inside = (e / 2 % 2 == 0 ? upper : lower) && (first + e) / 4 * 8 < left;
            bits_r[e] = inside ? __float_as_uint(x_r[first + e]) & 0x7FFFFFFFu : 0u;
            nonfinite += bits_r[e] >= kInfinity;
            top = max(top, bits_r[e] > kInfinity ? 0u : bits_r[e]);
        }
        max_bits = max(max_bits, top);
        // By a power of two, which is exact: squares in fp32 neither overflow nor vanish.
        const bool large = top > 0x5D800000u, small = top < 0x21800000u;  // 2^60, 2^-60
        const float scale = large ? 0x1p-70f : small ? 0x1p100f : 1.0f;
        float part = 0.0f;
#pragma unroll
        for (int e = 0; e < 16; ++e) {
            const float x = __uint_as_float(bits_r[e]) * scale;
            part = fmaf(x, x, part);
        }
        sum_sq += static_cast<double>(part) * (large ? 0x1p140 : small ? 0x1p-200 : 1.0);
    }

    // The warp's result; all its lanes call it.
    __device__ __forceinline__ Partial end() const {
        return Partial{warp_sum(sum_sq), warp_max(max_bits), warp_sum(nonfinite)};
    }
};

// SCANS: whether the partial scans of C are wanted; `m` and `scans` are of no use where not.
template <class S, bool SCANS>
struct Store {
    static constexpr bool kHalves = false;
    const ptx::TensorMap& c;
    const ptx::TensorMap& addend;
    const uint16_t* bias;
    Partial* scans;
    uint32_t m, n;
    bool wide, adds;

    __device__ __forceinline__ uint32_t boxes() const { return wide ? S::BN / 32 : S::BN / 64; }

    __device__ __forceinline__ uint32_t column(uint32_t box, uint32_t x) const { return x + box * (wide ? 32 : 64); }

    __device__ __forceinline__ void open(uint32_t box, uint32_t x, uint32_t y, uint32_t slot, uint32_t bar) const {
        if (adds) {
            ptx::mbar_expect(bar, kBox);
            ptx::tma_load(slot, addend, column(box, x), y, bar);
        } else {
            ptx::mbar_arrive(bar);
        }
    }

    __device__ __forceinline__ void store(uint32_t box, uint32_t x, uint32_t y, uint32_t slot) const {
        ptx::tma_store(c, column(box, x), y, slot);
    }

    __device__ __forceinline__ void run(float (&sum_r)[S::BN / 2], Ring& ring, uint32_t row, uint32_t col) const {
        TileScan scan(row, col + threadIdx.x % 4 * 2, m, n);
        if (bias != nullptr) add_bias<0, S::BN / 8>(sum_r, bias, col, n);
        if (wide) {
#pragma unroll
            for (int b = 0; b < S::BN / 32; ++b) {
                uint8_t* box = ring.take();
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    int i = 4 * (4 * b + j);
                    float2& upper = pair_at(box, ring.place_f32(j));
                    float2& lower = pair_at(box, ring.place_f32(j) + 1024);
                    float2 old[2] = {};
                    if (adds) {
                        old[0] = upper;
                        old[1] = lower;
                    }
                    sum_r[i] += old[0].x;
                    sum_r[i + 1] += old[0].y;
                    sum_r[i + 2] += old[1].x;
                    sum_r[i + 3] += old[1].y;
                    upper = make_float2(sum_r[i], sum_r[i + 1]);
                    lower = make_float2(sum_r[i + 2], sum_r[i + 3]);
                }
                ring.give(1);
                if (SCANS) scan.add(sum_r, 16 * b);
            }
        } else {
#pragma unroll
            for (int b = 0; b < S::BN / 64; ++b) {
                uint8_t* box = ring.take();
                if (adds) {
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        int i = 4 * (8 * b + j);
                        uint32_t upper = word_at(box, ring.place_bf16(j));
                        uint32_t lower = word_at(box, ring.place_bf16(j) + 1024);
                        sum_r[i] += low_of(upper);
                        sum_r[i + 1] += high_of(upper);
                        sum_r[i + 2] += low_of(lower);
                        sum_r[i + 3] += high_of(lower);
                    }
                }
                put_bf16(sum_r, b, ring, box);
                ring.give(1);
                if (SCANS) {
                    // As they are stored.
#pragma unroll
                    for (int i = 32 * b; i < 32 * b + 32; i += 2) {
                        const uint32_t pair = ptx::pack_bf16(sum_r[i], sum_r[i + 1]);
                        sum_r[i] = low_of(pair);
                        sum_r[i + 1] = high_of(pair);
                    }
                    scan.add(sum_r, 32 * b);
                    scan.add(sum_r, 32 * b + 16);
                }
            }
        }
        if (SCANS) {
            const Partial partial = scan.end();
            if (threadIdx.x % kWarp == 0) scans[row / 16 * ((n + S::BN - 1) / S::BN) + col / S::BN] = partial;
        }
    }
};

#define GEMM_KERNEL(NAME, SHAPE, A_OUTER, B_OUTER, CUT)                                                         \
    SM90_KERNEL NAME(const __grid_constant__ ptx::TensorMap a, const __grid_constant__ ptx::TensorMap b,        \
                     const __grid_constant__ ptx::TensorMap c, const __grid_constant__ ptx::TensorMap addend,   \
                     const uint16_t* bias, uint32_t m, uint32_t n, uint32_t k, uint32_t flags, uint32_t rows,   \
                     uint32_t depth) {                                                                          \
        Store<SHAPE, false> epilogue{c, addend, bias, nullptr, m, n, (flags & 1) != 0, (flags & 2) != 0};       \
        product<SHAPE, A_OUTER, B_OUTER, CUT>(a, b, m, n, k, 0, epilogue, rows, depth);                         \
    }                                                                                                           \
    SM90_EXPORT(NAME)
#define GEMM_KERNELS(NAME, A_OUTER, B_OUTER, CUT)           \
    GEMM_KERNEL(NAME##_128x256, Wide, A_OUTER, B_OUTER, CUT); \
    GEMM_KERNEL(NAME##_128x128, Square, A_OUTER, B_OUTER, CUT)

GEMM_KERNELS(gemm_sm90_nt, false, false, false);
GEMM_KERNELS(gemm_sm90_nn, false, true, false);
GEMM_KERNELS(gemm_sm90_tn, true, true, true);

// The last weight gradient of a step, whole. Kernels of their own: the lanes of a warp meet behind the products, and
// where k may come in parts ptxas would not know that all of them have as many.
#define SCAN_KERNEL(NAME, SHAPE)                                                                                \
    SM90_KERNEL NAME(const __grid_constant__ ptx::TensorMap a, const __grid_constant__ ptx::TensorMap b,        \
                     const __grid_constant__ ptx::TensorMap c, const __grid_constant__ ptx::TensorMap addend,   \
                     Partial* scans, uint32_t m, uint32_t n, uint32_t k, uint32_t flags) {                      \
        Store<SHAPE, true> epilogue{c, addend, nullptr, scans, m, n, (flags & 1) != 0, (flags & 2) != 0};       \
        product<SHAPE, true, true>(a, b, m, n, k, 0, epilogue);                                                 \
    }                                                                                                           \
    SM90_EXPORT(NAME)

SCAN_KERNEL(gemm_sm90_scan_128x256, Wide);
SCAN_KERNEL(gemm_sm90_scan_128x128, Square);

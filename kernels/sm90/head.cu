// The head's GEMM with softmax statistics of its tiles, with wgmma: z[m,V] = h[m,k] w[V,k]^T, and of every tile of 256
// columns what a softmax needs, so that nobody reads the logits for it, and where nothing goes back nobody writes them.
//
// Of row r and tile t, with the target y left out: top = max z, sum = sum exp(z - top), zy = z[y] and whether another
// entry beats it (the smallest id of equals is the largest) where y is in t, else zy = 0 and not beaten. 1 - p stays a
// sum of its own. head_onehot_records_bf16 (head.cu) joins the records of a row.
// Shape: gemm.cuh's wide tile; four lanes hold a row's 256 columns, 64 each, and exchange two maxima and a sum.
// `records` [m, tiles] of 16 bytes; `store`: the fp32 logits go out too, behind the statistics, by the ring of boxes.
// Bytes: those of the product, 4 mV of logits where they are kept, 16 mV / 256 of records; saves 4 mV of reading, and
// without a gradient 8 mV.
// Roof: the tensor pipe. Predicted: 32768 exponentials a tile at 16 a clock are 2048 clocks that no product hides, with
// the maxima in front of them and the exchanges some 4000: 5 % of a tile with k = 4096, 26 % with k = 576, where the
// passes that they save are longer than the product.
// Source: Liger's CuTe head (statistics without logits), the exact 1 - p of docs/numerics.md.
#include "gemm.cuh"

constexpr float kLog2E = 1.4426950408889634f;

// Statistics of a row in a tile. 16 bytes; kernels/head.cu reads them.
struct alignas(16) Record {
    float top, sum, zy;
    uint32_t beaten;
};

template <class S>
struct Statistics {
    static constexpr bool kHalves = false;
    static constexpr int kEach = S::BN / 4;  // columns of a row that a thread holds
    const ptx::TensorMap& z;
    const uint32_t* targets;
    Record* records;
    uint32_t m, n, tiles;
    bool keep;

    __device__ __forceinline__ uint32_t boxes() const { return keep ? S::BN / 32 : 0; }

    __device__ __forceinline__ void open(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t bar) const {
        ptx::mbar_arrive(bar);
    }

    __device__ __forceinline__ void store(uint32_t box, uint32_t x, uint32_t y, uint32_t slot) const {
        ptx::tma_store(z, x + box * 32, y, slot);
    }

    // The statistics of one of the thread's two rows, `half`; all lanes of the warp call it together. Tiles that are whole
    // and hold none of the warp's targets, which are nearly all, take a path without a condition of each column: there the
    // exponentials follow one another as fast as the special function unit takes them.
    __device__ __forceinline__ void row(const float (&sum_r)[S::BN / 2], int half, uint32_t row, uint32_t col,
                                        uint32_t target) const {
        const uint32_t first = col + threadIdx.x % 4 * 2;
        auto column = [&](int i) { return first + i / 2 * 8 + i % 2; };
        auto value = [&](int i) { return sum_r[i / 2 * 4 + half * 2 + i % 2]; };
        // A row of -inf has no sum; NaN stays.
        auto exponential = [&](int i, float top) {
            return ptx::exp2_approx((value(i) - (top == -INFINITY ? 0.0f : top)) * kLog2E);
        };
        const bool here = target >= col && target - col < S::BN;
        float top = -INFINITY, zy = -INFINITY, sum = 0.0f;
        uint32_t beaten = 0;
        if (col + S::BN <= n && !__any_sync(0xFFFFFFFFu, here)) {
#pragma unroll
            for (int i = 0; i < kEach; ++i) top = fmaxf(top, value(i));
#pragma unroll
            for (int lane = 1; lane < 4; lane *= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, lane));
#pragma unroll
            for (int i = 0; i < kEach; ++i) sum += exponential(i, top);
        } else {
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                // Zeros behind the last column are no logits.
                const bool own = column(i) == target, counts = column(i) < n && !own;
                zy = own ? value(i) : zy;
                top = fmaxf(top, counts ? value(i) : -INFINITY);
            }
#pragma unroll
            for (int lane = 1; lane < 4; lane *= 2) {
                top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, lane));
                zy = fmaxf(zy, __shfl_xor_sync(0xFFFFFFFFu, zy, lane));
            }
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const uint32_t c = column(i);
                const bool counts = c < n && c != target;
                const float e = exponential(i, top);
                sum += counts ? e : 0.0f;
                // Not && and ||: each would be a branch.
                const bool above = value(i) > zy | (c < target & value(i) == zy);
                beaten |= static_cast<uint32_t>(counts & here & above);
            }
        }
#pragma unroll
        for (int lane = 1; lane < 4; lane *= 2) {
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lane);
            beaten |= __shfl_xor_sync(0xFFFFFFFFu, beaten, lane);
        }
        if (row < m && threadIdx.x % 4 == 0) {
            Record& record = records[static_cast<uint64_t>(row) * tiles + col / S::BN];
            // Aligned: records are 16 bytes from an allocation's start on.
            *reinterpret_cast<float4*>(&record) =
                make_float4(top, sum, here ? zy : 0.0f, __uint_as_float(beaten));
        }
    }

    __device__ __forceinline__ void run(float (&sum_r)[S::BN / 2], Ring& ring, uint32_t at, uint32_t col) const {
        const uint32_t upper = at < m ? targets[at] : 0, lower = at + 8 < m ? targets[at + 8] : 0;
        row(sum_r, 0, at, col, upper);
        row(sum_r, 1, at + 8, col, lower);
        if (!keep) return;
#pragma unroll
        for (int b = 0; b < S::BN / 32; ++b) {
            uint8_t* box = ring.take();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                int i = 4 * (4 * b + j);
                pair_at(box, ring.place_f32(j)) = make_float2(sum_r[i], sum_r[i + 1]);
                pair_at(box, ring.place_f32(j) + 1024) = make_float2(sum_r[i + 2], sum_r[i + 3]);
            }
            ring.give(1);
        }
    }
};

// `z` describes [m, n] fp32 logits; without `keep` nothing goes there. Grid: as that of gemm_sm90_nt_128x256.
SM90_KERNEL head_statistics_sm90_128x256(const __grid_constant__ ptx::TensorMap h,
                                         const __grid_constant__ ptx::TensorMap w,
                                         const __grid_constant__ ptx::TensorMap z, const uint32_t* targets,
                                         Record* records, uint32_t m, uint32_t n, uint32_t k, uint32_t keep) {
    Statistics<Wide> epilogue{z, targets, records, m, n, (n + Wide::BN - 1) / Wide::BN, keep != 0};
    product<Wide, false, false>(h, w, m, n, k, 0, epilogue);
}
SM90_EXPORT(head_statistics_sm90_128x256);

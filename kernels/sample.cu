// Argmax of rows of fp32 logits, and sampling from their softmax.
//
// argmax: the smallest id of those with the largest logit; NaN never wins. sample: w = exp((z - max) / temperature);
// a row keeps its smallest set of largest w whose sum is `top_p` of all (of equals, the smaller ids); the token is the
// first id at which the running sum of what is kept, in the order of ids, passes `u` of it. src/ops/sample.rs says the
// same in f64. Capped logits z' = cap tanh(z / cap) are as z in order, so only a draw reads them.
// Shape: a block a row. A sum here is an integer, of w in units of 2^-40: it has no rounding and no order, so running
// sums taken over warps, lanes and rounds agree to the unit, and a share of the sum is always found. The set is found
// by its smallest member: eight passes settle four bits of its w each, a thread adding to 16 counters of its own in
// shared memory. An entry at which a running sum passes a goal is found by splitting: each warp sums a sixteenth of
// the range, and the one that holds the goal is split again.
// Bytes a logit: argmax 4 read. sample 8 read and 4 written (w replaces z) and 4.3 read; with top_p below 1 another 36
// read. All but the first read of a row come out of the L2 cache. Roof: the rate at which one SM reads, times the rows;
// next to the product with the head, which reads 2 C bytes a logit in bf16, small.
// Rounding: w is fp32; what weighs less than 2^-40 of the most probable token is never drawn.
// Source: inverse transform sampling; nucleus sampling, Holtzman et al. 2020.
#include "cap.cuh"

namespace sampling {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kQuad = 4;                             // entries of a 16-byte access
constexpr int kDepth = 4;                            // of these a thread has in flight
constexpr uint32_t kStretch = kWarp * kQuad;         // entries that a warp settles at once
constexpr int kBins = 16;                            // values of the bits that a pass settles
constexpr float kUnit = 1099511627776.0f;            // 2^40

__device__ __forceinline__ uint64_t units(float w) { return static_cast<uint64_t>(w * kUnit); }

// Order of the bits is order of the numbers; 0 for NaN alone, and both zeros are equal.
__device__ __forceinline__ uint32_t ordered(float z) {
    if (z != z) return 0;
    const uint32_t bits = __float_as_uint(z == 0.0f ? 0.0f : z);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint64_t warp_sum64(uint64_t x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    }
    return x;
}

// Entries at to at + 3 of a row that ends at `end`; zeros behind it. `vec`: the row and its width are made of quads.
__device__ __forceinline__ void load_quad(const float* row, uint32_t at, uint32_t end, bool vec,
                                          float (&out)[kQuad]) {
    if (vec && at < end) {
        const Pack32 pack = load32(row + at);
#pragma unroll
        for (int k = 0; k < kQuad; ++k) out[k] = pack.v[k];
        return;
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k) out[k] = at + k < end ? row[at + k] : 0.0f;
}

// Calls f(entry, id) for what thread `t` of `threads` owns of [begin, end): quads t, t + threads, ...
template <int THREADS, typename F>
__device__ __forceinline__ void sweep(const float* row, uint32_t begin, uint32_t end, bool vec,
                                      uint32_t t, F f) {
    for (uint32_t at = begin + t * kQuad; at < end; at += kDepth * THREADS * kQuad) {
        float x_r[kDepth][kQuad];
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
            load_quad(row, at + d * THREADS * kQuad, end, vec, x_r[d]);
        }
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
#pragma unroll
            for (int k = 0; k < kQuad; ++k) {
                const uint32_t id = at + d * THREADS * kQuad + k;
                if (id < end) f(x_r[d][k], id);
            }
        }
    }
}

// The largest entry's `ordered` in the upper half and the complement of its smallest id in the lower one, for all
// threads of the block. The upper half is 0 where all are NaN.
__device__ __forceinline__ uint64_t best_of(const float* row, uint32_t v, bool vec) {
    __shared__ uint64_t best_s[kWarps];
    uint32_t top = 0, first = 0xFFFFFFFFu;
    sweep<kThreads>(row, 0, v, vec, threadIdx.x, [&](float z, uint32_t id) {
        const uint32_t key = ordered(z);
        // Ids rise, so the first of equals stays.
        if (key > top) {
            top = key;
            first = id;
        }
    });
    uint64_t best = static_cast<uint64_t>(top) << 32 | ~first;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        best = max(best, __shfl_xor_sync(0xFFFFFFFFu, best, offset));
    }
    if (threadIdx.x % kWarp == 0) best_s[threadIdx.x / kWarp] = best;
    // All warps' results are needed next.
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) best = max(best, best_s[w]);
    return best;
}

// The sum over the block, for all threads.
__device__ __forceinline__ uint64_t block_sum64(uint64_t x) {
    __shared__ uint64_t block_sum_s[kWarps];
    x = warp_sum64(x);
    // The sums of the call before may still be read.
    __syncthreads();
    if (threadIdx.x % kWarp == 0) block_sum_s[threadIdx.x / kWarp] = x;
    // All warps' sums must be there before they are added.
    __syncthreads();
    uint64_t sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += block_sum_s[w];
    return sum;
}

// The first id at which the running sum of f(entry, id) reaches `goal`, from 1 to the sum of all; for all threads.
template <typename F>
__device__ __forceinline__ uint32_t reach(const float* row, uint32_t v, bool vec, uint64_t goal, F f) {
    __shared__ uint64_t reach_s[kWarps];
    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    uint32_t begin = 0, end = v;
    while (end - begin > kStretch) {
        const uint32_t stretches = (end - begin + kStretch - 1) / kStretch;
        const uint32_t share = (stretches + kWarps - 1) / kWarps * kStretch;
        const uint32_t from = begin + warp * share;
        uint64_t sum = 0;
        sweep<kWarp>(row, from, min(from + share, end), vec, lane,
                     [&](float x, uint32_t id) { sum += f(x, id); });
        sum = warp_sum64(sum);
        // The sums of the round before may still be read.
        __syncthreads();
        if (lane == 0) reach_s[warp] = sum;
        // All warps' sums are needed next.
        __syncthreads();
        uint32_t w = 0;
        while (w + 1 < kWarps && reach_s[w] < goal) goal -= reach_s[w++];
        begin += w * share;
        end = min(begin + share, end);
    }
    // Every warp does the rest.
    float x_r[kQuad];
    const uint32_t at = begin + lane * kQuad;
    load_quad(row, at, end, vec, x_r);
    uint64_t sums[kQuad], running = 0;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
        if (at + k < end) running += f(x_r[k], at + k);
        sums[k] = running;
    }
    uint64_t before = running;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
        const uint64_t lower = __shfl_up_sync(0xFFFFFFFFu, before, offset);
        if (lane >= static_cast<uint32_t>(offset)) before += lower;
    }
    before -= running;
    uint32_t id = at + kQuad - 1;
#pragma unroll
    for (int k = kQuad - 2; k >= 0; --k) {
        if (before + sums[k] >= goal) id = at + k;
    }
    const uint32_t there = __ballot_sync(0xFFFFFFFFu, before + running >= goal);
    return __shfl_sync(0xFFFFFFFFu, id, __ffs(there) - 1);
}

// The set that a row keeps: all w above that of the bits `least`, and of those with these bits the ones up to id `last`.
struct Kept {
    uint32_t least = 0;
    uint32_t last = 0xFFFFFFFFu;

    __device__ __forceinline__ bool has(float w, uint32_t id) const {
        const uint32_t bits = __float_as_uint(w);
        return bits > least || (bits == least && id <= last);
    }
};

// Finds the smallest set of largest entries whose sum reaches `goal`, and makes `goal` that sum.
__device__ __forceinline__ Kept nucleus(const float* row, uint32_t v, bool vec, uint64_t& goal) {
    __shared__ uint64_t bin_s[kBins];
    static_assert(kBins == kWarps, "a warp a bin");
    uint64_t* counters = reinterpret_cast<uint64_t*>(ptx::dyn_smem());
    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    // The bits of the smallest member, as far as they are settled, and the sum of all that is larger.
    uint32_t settled = 0;
    uint64_t above = 0;
    for (int shift = 28; shift >= 0; shift -= 4) {
#pragma unroll
        for (int b = 0; b < kBins; ++b) counters[b * kThreads + threadIdx.x] = 0;
        sweep<kThreads>(row, 0, v, vec, threadIdx.x, [&](float w, uint32_t) {
            const uint32_t bits = __float_as_uint(w);
            // Bits above the ones of this pass; two shifts, as a shift by 32 has no meaning.
            if ((bits ^ settled) >> shift >> 4 != 0) return;
            counters[(bits >> shift) % kBins * kThreads + threadIdx.x] += units(w);
        });
        // Other threads' counters are added next.
        __syncthreads();
        uint64_t sum = 0;
        for (int t = lane; t < kThreads; t += kWarp) sum += counters[warp * kThreads + t];
        sum = warp_sum64(sum);
        if (lane == 0) bin_s[warp] = sum;
        // All bins are needed next, and the counters are cleared after that.
        __syncthreads();
        int b = kBins - 1;
        while (b > 0 && above + bin_s[b] < goal) above += bin_s[b--];
        settled |= static_cast<uint32_t>(b) << shift;
        // The bins are written again by the next pass, behind its first barrier.
    }
    // A goal that is reached at all is reached by entries of at least one unit.
    const uint64_t each = units(__uint_as_float(settled));
    const uint64_t members = (goal - above + each - 1) / each;
    goal = above + members * each;
    Kept kept;
    kept.least = settled;
    kept.last = reach(row, v, vec, members, [&](float w, uint32_t) -> uint64_t {
        return __float_as_uint(w) == settled ? 1 : 0;
    });
    return kept;
}

}  // namespace sampling

// ids[row] of `logits` [rows, V]. Grid: rows.
extern "C" __global__ void __launch_bounds__(sampling::kThreads)
    argmax_f32(const float* logits, uint32_t* ids, uint32_t v) {
    ptx::grid_enter();
    const float* row = logits + static_cast<uint64_t>(blockIdx.x) * v;
    const uint64_t best = sampling::best_of(row, v, v % sampling::kQuad == 0);
    if (threadIdx.x == 0) ids[blockIdx.x] = best >> 32 == 0 ? 0 : ~static_cast<uint32_t>(best);
}

// The same, drawn with draws[row]; overwrites the logits. `inverse` is 1 / temperature, `cap` that of logits or 0. Grid: rows; with top_p below 1
// the block has 16 counters of 8 bytes a thread in dynamic shared memory.
extern "C" __global__ void __launch_bounds__(sampling::kThreads)
    sample_f32(float* logits, const double* draws, uint32_t* ids, uint32_t v, float inverse,
                      double top_p, float cap) {
    ptx::grid_enter();
    using namespace sampling;
    float* row = logits + static_cast<uint64_t>(blockIdx.x) * v;
    const bool vec = v % kQuad == 0;
    const uint64_t best = best_of(row, v, vec);
    if (best >> 32 == 0) {
        // All are NaN; the same for all threads of the block.
        if (threadIdx.x == 0) ids[blockIdx.x] = 0;
        return;
    }
    const Cap limit(cap);
    const float top = row[~static_cast<uint32_t>(best)];
    const float limited = limit.on() ? limit.at(top) : top;
    // The largest entry is overwritten below.
    __syncthreads();
    uint64_t sum = 0;
    for (uint32_t at = threadIdx.x * kQuad; at < v; at += kThreads * kQuad) {
        float x_r[kQuad];
        load_quad(row, at, v, vec, x_r);
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
            const float z = limit.on() ? limit.at(x_r[k]) : x_r[k];
            const float w = expf((z - limited) * inverse);
            // The largest may be infinite. NaN weighs nothing, and no weight is a negative zero.
            x_r[k] = x_r[k] == top ? 1.0f : (w > 0.0f ? w : 0.0f);
            if (at + k < v) sum += units(x_r[k]);
        }
        if (vec) {
            store32(row + at, Pack32{{x_r[0], x_r[1], x_r[2], x_r[3]}});
        } else {
#pragma unroll
            for (int k = 0; k < kQuad; ++k) {
                if (at + k < v) row[at + k] = x_r[k];
            }
        }
    }
    // Its barriers also show every thread's weights to the others.
    uint64_t total = block_sum64(sum);
    Kept kept;
    if (top_p < 1.0) {
        const uint64_t goal = static_cast<uint64_t>(ceil(top_p * static_cast<double>(total)));
        total = min(max(goal, static_cast<uint64_t>(1)), total);
        kept = nucleus(row, v, vec, total);
    }
    // The running sum is to be larger than u of the whole.
    uint64_t goal = static_cast<uint64_t>(draws[blockIdx.x] * static_cast<double>(total)) + 1;
    goal = min(goal, total);
    const uint32_t id = reach(row, v, vec, goal, [&](float w, uint32_t i) -> uint64_t {
        return kept.has(w, i) ? units(w) : 0;
    });
    if (threadIdx.x == 0) ids[blockIdx.x] = id;
}

KERNEL_EXPORT(argmax_f32);
KERNEL_EXPORT(sample_f32);

// Shared by all attention kernels: where a block's rows lie, what a query sees, storage to fp32 and back.
#pragma once

#include "cap.cuh"

namespace attn {

// The widest head, and the rows a block of Pack::blocks covers.
constexpr int kMaxWidth = 256;
constexpr int kBlockRows = 128;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// One layer's heads. A query at q sees the key at k where 0 <= q - k < window (document coordinates).
struct Heads {
    uint32_t h, g, d, window;

    __device__ __forceinline__ uint32_t qkv_width() const { return (h + 2 * g) * d; }
    __device__ __forceinline__ uint32_t out_width() const { return h * d; }
    // The first key that the query at q sees.
    __device__ __forceinline__ uint32_t first_key(uint32_t q) const {
        return q >= window ? q - window + 1 : 0;
    }
    // One comparison: a key behind the query wraps to 2^31 and above, where no window reaches.
    __device__ __forceinline__ bool sees(uint32_t q, uint32_t k) const { return q - k < window; }
};

// Scores as the softmax reads them: scaled, and capped where there is a cap.
struct Scores {
    float scale;
    Cap cap;

    // Never fused with the subtraction of a maximum or of lse: forward and backward then read the same score.
    __device__ __forceinline__ float at(float dot) const {
        return cap.on() ? cap.at(scale * dot) : __fmul_rn(scale, dot);
    }
    // How much of a gradient at a score goes on to the scaled product.
    __device__ __forceinline__ float slope(float score) const { return cap.on() ? cap.slope(score) : 1.0f; }
};

// The same for the kernels on tensor cores, whose softmax is in base 2: it reads `after` times what `at` makes of a product.
template <bool CAPPED>
struct Scores2 {
    float after, natural;  // what makes a number of `at` a score of base 2, and of base e
    float inner, cap2, inverse2;

    __device__ __forceinline__ Scores2(float scale, float cap)
        : after(CAPPED ? 1.0f : scale * kLog2E), natural(CAPPED ? kLn2 : scale),
          inner(CAPPED ? 2.0f * kLog2E * scale / cap : 0.0f), cap2(cap * kLog2E),
          inverse2(CAPPED ? 1.0f / cap2 : 0.0f) {}

    // tanh y = 1 - 2 / (1 + e^2y), to a few units in the last place of 1.
    __device__ __forceinline__ float at(float dot) const {
        return CAPPED ? cap2 * fmaf(-2.0f, __fdividef(1.0f, 1.0f + ptx::exp2_approx(dot * inner)), 1.0f) : dot;
    }

    // How much of a gradient at a score of base 2 goes on to the scaled product; 0 to 1 whatever the score.
    __device__ __forceinline__ float slope(float score) const {
        const float t = fminf(fmaxf(score * inverse2, -1.0f), 1.0f);
        return CAPPED ? fmaf(-t, t, 1.0f) : 1.0f;
    }
};

// Rows of a document: `start` is its first row in the pack, `first` and `len` count from there.
struct Rows {
    uint32_t start, len, first;
};

// `entry` of Pack::blocks: document's first row, its end, the block's first row, 0.
__device__ __forceinline__ Rows rows_of(const uint4* blocks, uint32_t entry) {
    uint4 b = blocks[entry];
    return Rows{b.x, b.y - b.x, b.z - b.x};
}

// The R rows of this block where the heads of an entry, and its parts, are side by side; `first` is `len` or more where
// the document ends before them, and then all threads of the block may leave together.
template <int R>
__device__ __forceinline__ Rows part_of(const uint4* blocks, uint32_t heads) {
    constexpr uint32_t kParts = kBlockRows / R;
    const uint32_t at = blockIdx.x / heads;
    Rows rows = rows_of(blocks, at / kParts);
    rows.first += at % kParts * R;
    return rows;
}

// E elements that are loaded at once: 16 bytes, or one where rows are not made of whole packs.
template <typename T, int E>
struct alignas(sizeof(T) * E) Pack {
    T v[E];
};

template <typename T>
constexpr int kPackOf = 16 / sizeof(T);

template <typename T, int E>
__device__ __forceinline__ Pack<T, E> load_pack(const T* p) {
    // Aligned: the caller's rows start at multiples of E elements from a tensor's base, or E is 1.
    return *reinterpret_cast<const Pack<T, E>*>(p);
}

template <typename T, int E>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, E>& pack) {
    // Aligned as in load_pack.
    *reinterpret_cast<Pack<T, E>*>(p) = pack;
}

// Rows of whole 16-byte packs take the wide accesses; the choice is the same for the whole grid.
template <typename T>
__device__ __forceinline__ bool whole_packs(uint32_t width) {
    return width % kPackOf<T> == 0;
}

}  // namespace attn

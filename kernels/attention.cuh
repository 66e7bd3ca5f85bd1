// What all attention kernels share: where a block's rows lie, what a query sees, storage to fp32 and back.
#pragma once

#include "common.cuh"

namespace attn {

// The widest head, and the rows a block of Pack::blocks covers.
constexpr int kMaxWidth = 256;
constexpr int kBlockRows = 128;

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

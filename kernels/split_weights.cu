// Split of fp32 weights into dithered two-plane weights: how a tensor's initial values enter the compact state.
//
// hi, lo = bits(x) + r with the noise r of no update yet; exact, no bit of a weight is lost.
// The largest |x| is noted in the tensor's numbers, where the bounds of the first update find it.
// Shape: elementwise, eight elements a thread, 16-byte accesses; the last n mod 8 one by one. The host sends a
// tensor in pieces, `index` is the place of the piece's first element.
// Bytes an element: 4 read, 4 written. Roof: device memory, behind the copy from the host that feeds it.
// Determinism: the only atomic is an integer maximum, whose result has no order.
// Source: the project's own format (src/ops/format.rs is its CPU side).
#include "common.cuh"

// Grid: ceil(n / 2048) blocks.
extern "C" __global__ void __launch_bounds__(kBlock)
    split_weights(Tensor* tensor, const float* x, uint16_t* hi, uint16_t* lo, uint64_t n,
                   uint64_t index, uint64_t seed) {
    ptx::grid_enter();
    uint32_t top = 0;
    auto one = [&](uint64_t i, float x1, uint16_t& hi1, uint16_t& lo1) {
        top = max(top, __float_as_uint(x1) & 0x7FFFFFFFu);
        if (lo == nullptr) {
            hi1 = float_to_bf16_rne(x1);
        } else {
            theta_split(x1, dither_hash(seed, 0, i) & 0xFFFFu, hi1, lo1);
        }
    };
    uint64_t at = (static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x) * kPack;
    if (at + kPack <= n) {
        Pack32 half_r[2] = {load32(x + at), load32(x + at + 4)};
        Pack16 hi_r, lo_r;
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            one(index + at + k, half_r[k / 4].v[k % 4], hi_r.v[k], lo_r.v[k]);
        }
        store16(hi + at, hi_r);
        if (lo != nullptr) store16(lo + at, lo_r);
    } else {
        for (; at < n; ++at) {
            uint16_t lo_r;
            one(index + at, x[at], hi[at], lo != nullptr ? lo[at] : lo_r);
        }
    }
    top = __reduce_max_sync(0xFFFFFFFFu, top);
    if (threadIdx.x % kWarp == 0 && top != 0) atomicMax(&tensor->seen_theta, top);
}

KERNEL_EXPORT(split_weights);

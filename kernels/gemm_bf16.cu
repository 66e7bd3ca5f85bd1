// GEMMs of bf16 operands on tensor cores: C = A B (+ bias) (+ addend), C in bf16 or fp32.
//
// gemm.cuh says how and why, and holds the body. Here are its instances: three layouts, three tiles, and one for
// operands whose rows are not multiples of 16 bytes. `flags`: 1, C is fp32; 2, rows of C are whole 16-byte packs.
// `addend`, where not null, has C's type and pitch: a residual, or C itself to accumulate; old + new is made in
// fp32 and rounded once, to nearest even. Grid: ceil(m / BM) ceil(n / BN) blocks in one row.
// Bytes read + written: 2 (mk + nk) + |C| (+ |C| for the addend). Roof: bf16 tensor cores.
#include "gemm.cuh"

GEMM_KERNELS(gemm_nt_bf16, uint16_t, true, true);
GEMM_KERNELS(gemm_nn_bf16, uint16_t, true, false);
GEMM_KERNELS(gemm_tn_bf16, uint16_t, false, false);

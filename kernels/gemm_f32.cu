// GEMMs of fp32 operands on TF32 tensor cores: C = A B (+ bias) (+ addend), C in fp32 or bf16.
//
// The instances of gemm.cuh as in gemm_bf16.cu, with the same arguments. Operands are rounded to TF32 (11 bits) to
// nearest as they leave shared memory; products are exact in fp32, sums are fp32.
// Bytes read + written: 4 (mk + nk) + |C| (+ |C| for the addend). Roof: TF32 tensor cores.
#include "gemm.cuh"

GEMM_KERNELS(gemm_nt_f32, float, true, true);
GEMM_KERNELS(gemm_nn_f32, float, true, false);
GEMM_KERNELS(gemm_tn_f32, float, false, false);

//! One file a family of kernels: geometry and launches.

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod choose;
mod columns;
pub(super) mod embed;
pub(super) mod fused;
mod gemm;
pub(super) mod generate;
pub(super) mod head;
mod hopper;
pub(super) mod layernorm;
pub(super) mod linear;
pub(super) mod norm;
pub(super) mod parts;
pub(super) mod positions;
pub(super) mod pull;
pub(super) mod rope;
mod skinny;
pub(super) mod swiglu;
pub(super) mod tile;

/// Returns the most dynamic shared memory that a block of `kernel` is launched with, in bytes; of the attention kernels
/// for any head width at width `d`.
pub fn dynamic_shared(kernel: &str, d: usize) -> u32 {
    if kernel == choose::SAMPLE {
        return choose::shared(0.5);
    }
    let product = skinny::shared(kernel).or_else(|| tile::shared(kernel));
    product.or_else(|| attention::shared(kernel, d)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::dynamic_shared;

    #[test]
    fn dynamic_shared_knows_its_kernels_by_name() {
        assert_eq!(dynamic_shared("gemm_nt_bf16_64x64", 128), 4 * 64 * 128);
        assert_eq!(dynamic_shared("gemm_tn_f32_any", 128), 4 * 64 * 128);
        assert_eq!(dynamic_shared("gemm_sm90_nt_128x256", 128), 230_608);
        assert_eq!(dynamic_shared("gemm_skinny_bf16_64x64", 128), 128 << 10);
        assert_eq!(dynamic_shared("attention_mma64_bf16", 1), 2 * 256 * 72);
        assert_eq!(dynamic_shared("attention_sm90_128_bf16", 1), 1024 + (160 << 10) + 80);
        assert_eq!(dynamic_shared("attention_bwd_dq_sm90_128_bf16", 1), 1024 + (192 << 10) + 48);
        assert_eq!(dynamic_shared("attention_bwd_dkv_sm90_128_bf16", 1), 1024 + (160 << 10) + 1600);
        assert!(dynamic_shared("attention_f32", 128) > dynamic_shared("attention_f32", 12));
        assert_eq!(dynamic_shared("choose_sample_f32", 128), 8 * 16 * 512);
        assert_eq!(dynamic_shared("decode_any_bf16", 128), 0);
    }
}

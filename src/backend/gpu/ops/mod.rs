//! One file a family of kernels: geometry and launches.

pub(super) mod activation;
pub(super) mod attention;
mod column_sum;
pub(super) mod decode;
pub(super) mod elementwise;
pub(super) mod embed;
pub(super) mod fused;
mod gemm;
mod gemm_skinny;
pub(super) mod head;
pub(super) mod layernorm;
pub(super) mod linear;
pub(super) mod mse;
pub(super) mod norm;
pub(super) mod parts;
pub(super) mod positions;
pub(super) mod rope;
pub(super) mod sample;
mod sm90;
pub(super) mod swiglu;
pub(super) mod tile;

use super::Precision;

/// Returns the most dynamic shared memory that a block of `kernel` is launched with, in bytes; of the attention kernels
/// for any head width at width `d`.
pub fn dynamic_shared(kernel: &str, d: usize) -> u32 {
    if kernel == sample::SAMPLE {
        return sample::shared(0.5);
    }
    let product = gemm_skinny::shared(kernel).or_else(|| tile::shared(kernel));
    product.or_else(|| attention::shared(kernel, d)).unwrap_or(0)
}

/// Says what keeps a device from running a model whose heads have width `d` and, where `capped`, scores with a cap: no
/// kernel for them, or one whose blocks need more shared memory than the device grants. `None` where nothing does.
pub fn obstacle(
    capability: (u32, u32),
    shared_bytes: u32,
    precision: Precision,
    (d, capped): (usize, bool),
) -> Option<String> {
    let sm90 = capability == (9, 0) && precision == Precision::Bf16;
    let Some(attention) = attention::most_shared(sm90, precision, d, capped) else {
        let most = attention::MAX_WIDTH;
        return Some(format!("heads of width {d}; kernels are for at most {most}"));
    };
    let sizes = [tile::Tile::Large, tile::Tile::Medium, tile::Tile::Small];
    let sizes = sizes.into_iter().chain(sm90.then_some(tile::Tile::Sm90Large));
    let products = sizes.map(tile::Tile::shared).max().unwrap_or(0);
    let wanted = [
        (attention, format!("attention with heads of width {d}")),
        (products, "matrix products".to_owned()),
        (gemm_skinny::narrow_shared(), "matrix products of generation".to_owned()),
        (sample::shared(0.5), "sampling".to_owned()),
    ];
    let (bytes, what) = wanted.into_iter().find(|(bytes, _)| *bytes > shared_bytes)?;
    Some(format!(
        "{what} needs {bytes} bytes of shared memory for a block; the device grants {shared_bytes}"
    ))
}

#[cfg(test)]
mod tests {
    use super::{attention, dynamic_shared, obstacle};
    use crate::backend::gpu::Precision;
    use crate::backend::gpu::driver::CAPABILITIES;

    #[test]
    fn every_device_runs_every_head_width() {
        for (capability, shared) in CAPABILITIES {
            for precision in [Precision::Bf16, Precision::Fp32] {
                for d in 1..=attention::MAX_WIDTH {
                    for capped in [false, true] {
                        let found = obstacle(capability, shared, precision, (d, capped));
                        assert_eq!(found, None, "{capability:?} {precision:?} {d} {capped}");
                    }
                }
                let wide = (attention::MAX_WIDTH + 1, false);
                let why = obstacle(capability, shared, precision, wide).unwrap();
                assert!(why.contains("257") && why.contains("at most 256"), "{why}");
            }
        }
        // The check is one: a device that grants less is told of.
        let why = obstacle((8, 6), 96 << 10, Precision::Fp32, (256, false)).unwrap();
        assert!(why.contains("attention with heads of width 256 needs 100800 bytes"), "{why}");
    }

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
        assert_eq!(dynamic_shared("sample_f32", 128), 8 * 16 * 512);
        assert_eq!(dynamic_shared("decode_any_bf16", 128), 0);
    }
}

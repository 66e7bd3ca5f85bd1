//! Launch geometry of elementwise kernels on rows of numbers.

use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Gpu, blocks};

/// Returns the blocks that cover `n` rows of `width` numbers, eight per thread, none across two rows.
fn plan(n: usize, width: usize) -> u32 {
    blocks(n * width.div_ceil(8), 256)
}

/// Starts an elementwise kernel, that for bf16 or for fp32 storage, on `n` rows of `width` numbers.
pub(in crate::backend::gpu) fn launch(
    gpu: &Gpu,
    [bf16, fp32]: [&'static str; 2],
    (n, width): (usize, usize),
    args: Args,
) {
    gpu.launch(gpu.pick(bf16, fp32), [plan(n, width), 1, 1], 256, 0, args);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_covers_ragged_rows() {
        assert_eq!(plan(0, 64), 0);
        assert_eq!(plan(129, 9), 2);
        assert_eq!(plan(4096, 11008), 4096 * 1376 / 256);
    }
}

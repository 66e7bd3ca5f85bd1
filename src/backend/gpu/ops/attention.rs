//! Attention over packed documents: kernels/attention.cu for every head, attention_mma*.cu for the usual ones.

use crate::backend::gpu::buffer::ATTENTION_ROWS;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Pack, Precision, Stat, blocks};
use crate::ops::Heads;

/// A window that leaves every key in place; differences of positions stay below it.
pub(super) const NO_WINDOW: u32 = i32::MAX as u32;
/// The widest head that the kernels know (`attn::kMaxWidth`).
const MAX_WIDTH: usize = 256;

/// One kernel of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kernel {
    name: &'static str,
    /// Dynamic shared memory, in bytes.
    shared: u32,
}

/// Which kernels a head width takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    forward: Kernel,
    dq: Kernel,
    dkv: Kernel,
    /// Threads of a block.
    threads: u32,
    /// Blocks of threads that share an entry of [`Pack::blocks`].
    parts: usize,
    /// Whether the kernels take the head width as an argument.
    any_width: bool,
}

/// Picks the variant: tensor cores where storage is bf16 and the width is one they are compiled for.
fn plan(precision: Precision, d: usize) -> Option<Plan> {
    match (precision, d) {
        (Precision::Bf16, 64) => Some(tensor(
            d,
            ["attention_mma64_bf16", "attention_bwd_dq_mma64_bf16", "attention_bwd_dkv_mma64_bf16"],
        )),
        (Precision::Bf16, 80) => Some(tensor(
            d,
            ["attention_mma80_bf16", "attention_bwd_dq_mma80_bf16", "attention_bwd_dkv_mma80_bf16"],
        )),
        (Precision::Bf16, 96) => Some(tensor(
            d,
            ["attention_mma96_bf16", "attention_bwd_dq_mma96_bf16", "attention_bwd_dkv_mma96_bf16"],
        )),
        (Precision::Bf16, 128) => Some(tensor(
            d,
            [
                "attention_mma128_bf16",
                "attention_bwd_dq_mma128_bf16",
                "attention_bwd_dkv_mma128_bf16",
            ],
        )),
        (_, 1..=MAX_WIDTH) => Some(plain(precision, d)),
        _ => None,
    }
}

/// The tensor-core variant: 64 rows a block against tiles of 64 (`attn::kMmaTile` in the backward pass).
fn tensor(d: usize, [forward, dq, dkv]: [&'static str; 3]) -> Plan {
    let tile = if d > 64 { 32 } else { 64 };
    let rows = |rows: usize| 2 * rows * (d + 8);
    let kernel = |name, shared: usize| Kernel { name, shared: shared as u32 };
    Plan {
        forward: kernel(forward, rows(4 * 64)),
        dq: kernel(dq, rows(4 * tile)),
        // Two floats a walked row: lse and dot.
        dkv: kernel(dkv, rows(2 * 64 + 4 * tile) + 2 * 2 * 4 * tile),
        threads: 128,
        parts: ATTENTION_ROWS / 64,
        any_width: false,
    }
}

/// The variant for every width: 16 rows a block against tiles of 32 in fp32, rows of an odd pitch.
fn plain(precision: Precision, d: usize) -> Plan {
    let (rows, tile) = (16, 32);
    let row = d | 1;
    // What the block owns, the tile, and `scores` matrices of scores.
    let kernel = |bf16, fp32, owned: usize, scores: usize| Kernel {
        name: if precision == Precision::Bf16 { bf16 } else { fp32 },
        shared: 4 * ((owned * rows + 2 * tile) * row + scores * rows * (tile + 1)) as u32,
    };
    Plan {
        forward: kernel("attention_bf16", "attention_f32", 1, 1),
        dq: kernel("attention_bwd_dq_bf16", "attention_bwd_dq_f32", 2, 1),
        dkv: kernel("attention_bwd_dkv_bf16", "attention_bwd_dkv_f32", 2, 2),
        threads: 256,
        parts: ATTENTION_ROWS / rows,
        any_width: true,
    }
}

impl Plan {
    /// Returns the blocks of a launch over `heads` heads: one dimension, the heads of a block side by side.
    fn grid(&self, pack: &Pack, heads: usize) -> [u32; 3] {
        [(pack.block_count * self.parts * heads) as u32, 1, 1]
    }

    /// Appends what every kernel takes last.
    fn tail(&self, args: Args, heads: Heads) -> Args {
        let args = args.u32(heads.h as u32).u32(heads.g as u32);
        let args = if self.any_width { args.u32(heads.d as u32) } else { args };
        args.u32(window(heads)).f32((1.0 / (heads.d as f64).sqrt()) as f32)
    }
}

/// Returns the dynamic shared memory of a block of `kernel`, if it is one of attention: of the kernels for any head
/// width at `d`.
pub(super) fn shared(kernel: &str, d: usize) -> Option<u32> {
    let tensor = [64, 80, 96, 128].into_iter().filter_map(|d| plan(Precision::Bf16, d));
    let any = [Precision::Bf16, Precision::Fp32].map(|precision| plain(precision, d));
    let mut kernels = tensor.chain(any).flat_map(|plan| [plan.forward, plan.dq, plan.dkv]);
    kernels.find(|known| known.name == kernel).map(|known| known.shared)
}

/// Returns the window as the kernels take it.
pub(super) fn window(heads: Heads) -> u32 {
    heads.window.map_or(NO_WINDOW, |w| w.min(NO_WINDOW as usize) as u32)
}

fn planned(gpu: &Gpu, heads: Heads) -> Option<Plan> {
    let plan = plan(gpu.precision(), heads.d);
    if plan.is_none() {
        gpu.refuse(format!(
            "attention: heads of width {}, at most {MAX_WIDTH} are possible",
            heads.d
        ));
    }
    plan
}

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    pack: &Pack,
    heads: Heads,
    qkv: &Act,
    out: &mut Act,
    lse: &mut Stat,
) {
    let Some(plan) = planned(gpu, heads) else { return };
    let args = Args::new().ptr(pack.blocks).ptr(qkv.at).ptr(out.at).ptr(lse.at);
    let Kernel { name, shared } = plan.forward;
    gpu.launch(name, plan.grid(pack, heads.h), plan.threads, shared, plan.tail(args, heads));
}

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    pack: &Pack,
    heads: Heads,
    qkv: &Act,
    out: &Act,
    lse: &Stat,
    dout: &Act,
    dqkv: &mut Act,
) {
    let Some(plan) = planned(gpu, heads) else { return };
    let pairs = pack.data.tokens() * heads.h;
    let dot = gpu.scratch(4 * pairs as u64);
    if dot == 0 {
        return;
    }
    let args = Args::new().ptr(out.at).ptr(dout.at).ptr(dot).u64(pairs as u64).u32(heads.d as u32);
    let name = gpu.pick("attention_dot_bf16", "attention_dot_f32");
    gpu.launch(name, [blocks(pairs, 32), 1, 1], 256, 0, args);
    for (kernel, grid) in [(plan.dkv, heads.g), (plan.dq, heads.h)] {
        let args = Args::new().ptr(pack.blocks).ptr(qkv.at).ptr(dout.at).ptr(lse.at).ptr(dot);
        let args = plan.tail(args.ptr(dqkv.at), heads);
        gpu.launch(kernel.name, plan.grid(pack, grid), plan.threads, kernel.shared, args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_covers_every_width_and_fits_into_shared_memory() {
        for precision in [Precision::Bf16, Precision::Fp32] {
            assert_eq!(plan(precision, 0), None);
            assert_eq!(plan(precision, MAX_WIDTH + 1), None);
            for d in 1..=MAX_WIDTH {
                let plan =
                    plan(precision, d).unwrap_or_else(|| unreachable!("width {d} is covered"));
                for kernel in [plan.forward, plan.dq, plan.dkv] {
                    assert!(kernel.shared <= 163 * 1024, "{kernel:?}");
                }
            }
        }
    }

    #[test]
    fn plan_takes_tensor_cores_for_bf16_and_the_usual_widths() {
        let tensor: Vec<usize> = (1..=MAX_WIDTH)
            .filter(|d| plan(Precision::Bf16, *d).is_some_and(|plan| !plan.any_width))
            .collect();
        assert_eq!(tensor, [64, 80, 96, 128]);
        let wide = |d| plan(Precision::Fp32, d).is_some_and(|plan| plan.any_width);
        assert!((1..=MAX_WIDTH).all(wide));
    }

    #[test]
    fn window_of_none_is_above_every_difference() {
        let heads = |window| Heads { h: 1, g: 1, d: 1, window };
        assert_eq!(window(heads(None)), NO_WINDOW);
        assert_eq!(window(heads(Some(3))), 3);
        assert_eq!(window(heads(Some(usize::MAX))), NO_WINDOW);
    }
}

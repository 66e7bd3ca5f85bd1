//! Attention over packed documents: kernels/attention.cu for every head, attention_mma*.cu for the usual ones,
//! sm90/attention*.cu for those of width 64 and 128 on compute capability 9.0.

use super::sm90;
use super::tile::{SM90_THREADS, has_sm90};
use crate::backend::gpu::buffer::ATTENTION_ROWS;
use crate::backend::gpu::driver::{Args, Matrix};
use crate::backend::gpu::{Act, Gpu, Pack, Precision, Stat, blocks};
use crate::ops::{AttentionSaved, Heads};

/// A window that leaves every key in place; differences of positions stay below it.
pub(super) const NO_WINDOW: u32 = i32::MAX as u32;
/// The widest head that the kernels know (`attn::kMaxWidth`).
pub(super) const MAX_WIDTH: usize = 256;

/// One kernel of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kernel {
    name: &'static str,
    /// Dynamic shared memory, in bytes.
    shared: u32,
}

/// Kernels for a head width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    forward: Kernel,
    dq: Kernel,
    dkv: Kernel,
    /// Threads of a block.
    threads: u32,
    blocks: Blocks,
    /// True if the kernels take the head width as an argument.
    any_width: bool,
    /// True if they take a score cap, which may be 0.
    capped: bool,
}

/// Grid and block layout of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocks {
    /// So many for a head and an entry of [`Pack::blocks`], which they share.
    Parts(usize),
    /// One a processor, taking turns; tiles come through tensor maps.
    Turns,
}

/// Picks the variant: warpgroup products where the device has them (`sm90`), else tensor cores where storage is bf16 and
/// the width is one they are compiled for, which for capped scores is 128 alone (Gemma-2 of 27B parameters).
fn plan(sm90: bool, precision: Precision, d: usize, capped: bool) -> Option<Plan> {
    match (precision, d) {
        (Precision::Bf16, 128) if capped && sm90 => Some(Plan {
            capped,
            ..turns(
                d,
                [
                    "attention_sm90_128_capped_bf16",
                    "attention_bwd_dq_sm90_128_capped_bf16",
                    "attention_bwd_dkv_sm90_128_capped_bf16",
                ],
            )
        }),
        (Precision::Bf16, 128) if capped => Some(Plan {
            capped,
            ..tensor(
                d,
                [
                    "attention_mma128_capped_bf16",
                    "attention_bwd_dq_mma128_capped_bf16",
                    "attention_bwd_dkv_mma128_capped_bf16",
                ],
            )
        }),
        (_, 1..=MAX_WIDTH) if capped => Some(plain(precision, d)),
        (Precision::Bf16, 64) if sm90 => Some(turns(
            d,
            [
                "attention_sm90_64_bf16",
                "attention_bwd_dq_sm90_64_bf16",
                "attention_bwd_dkv_sm90_64_bf16",
            ],
        )),
        (Precision::Bf16, 128) if sm90 => Some(turns(
            d,
            [
                "attention_sm90_128_bf16",
                "attention_bwd_dq_sm90_128_bf16",
                "attention_bwd_dkv_sm90_128_bf16",
            ],
        )),
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

/// The variant of kernels/sm90: 128 rows a block; in the backward pass keys meet tiles of 64 queries and their
/// statistics, all else meets tiles of 128.
fn turns(d: usize, [forward, dq, dkv]: [&'static str; 3]) -> Plan {
    let rows = |rows: usize| 2 * rows * d;
    // What aligning tiles to 1024 may take, and the barriers: of the owned tiles and of every stage, full and empty.
    let kernel = |name, shared: usize, stages: usize| Kernel {
        name,
        shared: (1024 + shared + 16 * (1 + stages)) as u32,
    };
    Plan {
        // Two stages of keys and two of values.
        forward: kernel(forward, rows(5 * 128), 4),
        dq: kernel(dq, rows(6 * 128), 2),
        dkv: kernel(dkv, rows(2 * 128 + 6 * 64) + 3 * 8 * 64, 3),
        threads: SM90_THREADS,
        blocks: Blocks::Turns,
        any_width: false,
        capped: false,
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
        blocks: Blocks::Parts(ATTENTION_ROWS / 64),
        any_width: false,
        capped: false,
    }
}

/// The variant for every width: 16 rows a block against tiles of 32 in fp32, rows of an odd pitch.
fn plain(precision: Precision, d: usize) -> Plan {
    let (rows, tile) = (16, 32);
    let row = d | 1;
    // What the block owns, the tile, and a matrix of scores.
    let kernel = |bf16, fp32, owned: usize| Kernel {
        name: if precision == Precision::Bf16 { bf16 } else { fp32 },
        shared: 4 * ((owned * rows + 2 * tile) * row + rows * (tile + 1)) as u32,
    };
    Plan {
        forward: kernel("attention_bf16", "attention_f32", 1),
        dq: kernel("attention_bwd_dq_bf16", "attention_bwd_dq_f32", 2),
        dkv: kernel("attention_bwd_dkv_bf16", "attention_bwd_dkv_f32", 2),
        threads: 256,
        blocks: Blocks::Parts(ATTENTION_ROWS / rows),
        any_width: true,
        capped: true,
    }
}

impl Plan {
    /// Starts `kernel` over `count` heads: `read` are the matrices it loads tiles of, `args` appends the pointers after
    /// them, and what every kernel takes last comes behind.
    fn launch(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
        (pack, heads, count): (&Pack, Heads, usize),
        read: &[(u64, usize)],
        args: impl FnOnce(Args) -> Args,
    ) {
        let items = pack.block_count * count;
        let rest = |start: Args| {
            let args = args(start);
            let args = if self.blocks == Blocks::Turns { args.u32(items as u32) } else { args };
            let args = args.u32(heads.h as u32).u32(heads.g as u32);
            let args = if self.any_width { args.u32(heads.d as u32) } else { args };
            let args = args.u32(window(heads)).f32((1.0 / (heads.d as f64).sqrt()) as f32);
            if self.capped { args.f32(cap(heads)) } else { args }
        };
        let (grid, args) = match self.blocks {
            Blocks::Parts(parts) => {
                let start = Args::new().ptr(pack.blocks);
                (items * parts, rest(read.iter().fold(start, |args, (at, _)| args.ptr(*at))))
            }
            Blocks::Turns => {
                let rows = pack.data.tokens();
                // Boxes as high as the smallest tile that the kernel loads.
                let box_rows = if kernel == self.dkv { 64 } else { 128 };
                let matrix = |&(at, columns): &(u64, usize)| {
                    let whole = sm90::result(at, (rows, columns), columns, false);
                    Matrix { box_rows, ..whole }
                };
                let matrices: Vec<Matrix> = read.iter().map(matrix).collect();
                let Some(start) = sm90::maps(gpu, &matrices) else { return };
                let processors = gpu.driver.identity().processors as usize;
                (items.min(processors), rest(start.ptr(pack.blocks)))
            }
        };
        // One dimension, the heads of an entry side by side.
        gpu.launch(kernel.name, [grid as u32, 1, 1], self.threads, kernel.shared, args);
    }
}

/// Returns the most dynamic shared memory that a block takes for heads of width `d`, in bytes; `None` where no kernel is
/// for them.
pub(super) fn most_shared(sm90: bool, precision: Precision, d: usize, capped: bool) -> Option<u32> {
    let plan = plan(sm90, precision, d, capped)?;
    [plan.forward, plan.dq, plan.dkv].iter().map(|kernel| kernel.shared).max()
}

/// Returns the dynamic shared memory of a block of `kernel`, if it is one of attention: of the kernels for any head
/// width at `d`.
pub(super) fn shared(kernel: &str, d: usize) -> Option<u32> {
    let tensor = [true, false].into_iter().flat_map(|sm90| {
        let kinds = [(64, false), (80, false), (96, false), (128, false), (128, true)];
        kinds.into_iter().filter_map(move |(d, cap)| plan(sm90, Precision::Bf16, d, cap))
    });
    let any = [Precision::Bf16, Precision::Fp32].map(|precision| plain(precision, d));
    let mut kernels = tensor.chain(any).flat_map(|plan| [plan.forward, plan.dq, plan.dkv]);
    kernels.find(|known| known.name == kernel).map(|known| known.shared)
}

/// Returns the cap of scores as the kernels take it.
pub(super) fn cap(heads: Heads) -> f32 {
    heads.cap.map_or(0.0, |cap| cap as f32)
}

/// Returns the window as the kernels take it.
pub(super) fn window(heads: Heads) -> u32 {
    heads.window.map_or(NO_WINDOW, |w| w.min(NO_WINDOW as usize) as u32)
}

fn planned(gpu: &Gpu, heads: Heads) -> Option<Plan> {
    let plan = plan(has_sm90(gpu), gpu.precision(), heads.d, heads.cap.is_some());
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
    let read = [(qkv.at, heads.qkv_width())];
    plan.launch(gpu, plan.forward, (pack, heads, heads.h), &read, |args| {
        args.ptr(out.at).ptr(lse.at)
    });
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    pack: &Pack,
    heads: Heads,
    AttentionSaved { qkv, out, lse }: AttentionSaved<'_, Act, Stat>,
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
    let read = [(qkv.at, heads.qkv_width()), (dout.at, heads.out_width())];
    for (kernel, count) in [(plan.dkv, heads.g), (plan.dq, heads.h)] {
        plan.launch(gpu, kernel, (pack, heads, count), &read, |args| {
            args.ptr(lse.at).ptr(dot).ptr(dqkv.at)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_covers_every_width_and_fits_into_shared_memory() {
        for (sm90, precision) in [
            (false, Precision::Bf16),
            (true, Precision::Bf16),
            (false, Precision::Fp32),
            (true, Precision::Fp32),
        ] {
            assert_eq!(plan(sm90, precision, 0, false), None);
            assert_eq!(plan(sm90, precision, MAX_WIDTH + 1, false), None);
            for (d, capped) in (1..=MAX_WIDTH).flat_map(|d| [(d, false), (d, true)]) {
                let plan = plan(sm90, precision, d, capped)
                    .unwrap_or_else(|| unreachable!("width {d} is covered"));
                assert!(plan.capped || !capped, "width {d}");
                // What every device grants, and those of compute capability 9.0.
                let limit = if plan.blocks == Blocks::Turns { 227 } else { 99 };
                for kernel in [plan.forward, plan.dq, plan.dkv] {
                    assert!(kernel.shared <= limit * 1024, "{kernel:?}");
                }
            }
        }
    }

    #[test]
    fn plan_takes_what_the_device_has_for_bf16_and_the_usual_widths() {
        let of = |sm90, precision, capped, wanted: fn(&Plan) -> bool| -> Vec<usize> {
            let taken =
                |d: &usize| plan(sm90, precision, *d, capped).is_some_and(|plan| wanted(&plan));
            (1..=MAX_WIDTH).filter(taken).collect()
        };
        let widths = |sm90, precision, wanted| of(sm90, precision, false, wanted);
        let turns = |plan: &Plan| plan.blocks == Blocks::Turns;
        for sm90 in [false, true] {
            assert_eq!(widths(sm90, Precision::Bf16, |plan| !plan.any_width), [64, 80, 96, 128]);
            assert_eq!(of(sm90, Precision::Bf16, true, |plan| !plan.any_width), [128]);
            for capped in [false, true] {
                assert!(of(sm90, Precision::Fp32, capped, |plan| !plan.any_width).is_empty());
            }
        }
        assert_eq!(of(true, Precision::Bf16, true, turns), [128]);
        assert_eq!(widths(true, Precision::Bf16, turns), [64, 128]);
        assert!(widths(false, Precision::Bf16, turns).is_empty());
    }

    #[test]
    fn window_of_none_is_above_every_difference() {
        let heads = |window| Heads { h: 1, g: 1, d: 1, window, cap: None };
        assert_eq!(window(heads(None)), NO_WINDOW);
        assert_eq!(window(heads(Some(3))), 3);
        assert_eq!(window(heads(Some(usize::MAX))), NO_WINDOW);
    }
}

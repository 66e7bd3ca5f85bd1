//! RMSNorm of rows and of heads: kernels/rmsnorm.cu, column_sum.cu.

use super::column_sum;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Grad, MOST_BLOCKS, Stat, Weight, blocks};
use crate::ops::{Heads, Norm, NormArgs, QkNormArgs};

/// Numbers up to which a warp takes a unit: four packs of eight a lane.
const WARP_WIDTH: usize = 1024;
/// Units that a partial of the gain's gradient covers: kUnits of the kernel.
const UNITS: usize = 64;

/// Tells whether a block (else a warp) takes a unit of `d` numbers, and how many blocks cover `units`.
pub(super) fn plan(units: usize, d: usize) -> (bool, [u32; 3]) {
    let wide = d > WARP_WIDTH;
    (wide, [blocks(units, if wide { 1 } else { 8 }), 1, 1])
}

/// Layout of normalized units in rows: `heads` of width `d` in a row of `width`, of which `normed` are normalized, the
/// first `queries` with the first weight.
#[derive(Clone, Copy)]
struct Units {
    rows: usize,
    width: usize,
    heads: usize,
    normed: usize,
    queries: usize,
    d: usize,
}

impl Units {
    fn rows(n: usize, c: usize) -> Self {
        Self { rows: n, width: c, heads: 1, normed: 1, queries: 1, d: c }
    }

    fn heads(n: usize, heads: Heads, all: usize) -> Self {
        let (width, d) = (heads.qkv_width(), heads.d);
        Self { rows: n, width, heads: all, normed: heads.h + heads.g, queries: heads.h, d }
    }
}

/// Rows or heads to normalize.
struct Job<'a> {
    units: Units,
    norm: Norm,
    x: &'a Act,
    gains: [Weight<'a>; 2],
}

impl<'a> Job<'a> {
    fn rows(args: &NormArgs<'a, Act, Weight<'a>>) -> Self {
        let NormArgs { n, norm, x, gain, .. } = *args;
        Self { units: Units::rows(n, norm.width), norm, x, gains: [gain; 2] }
    }

    /// The first `all` heads of qkv rows.
    fn heads(args: &QkNormArgs<'a, Act, Weight<'a>>, all: usize) -> Self {
        let QkNormArgs { n, heads, norm, raw, gains } = *args;
        Self { units: Units::heads(n, heads, all), norm, x: raw, gains }
    }
}

fn launch_forward(gpu: &Gpu, job: &Job<'_>, residual: Option<&Act>, y: &mut Act, rstd: &mut Stat) {
    let Job { units, norm, x, gains } = job;
    let (wide, grid) = plan(units.rows * units.heads, units.d);
    let kernel = if wide {
        gpu.pick("rmsnorm_fwd_bf16_block", "rmsnorm_fwd_f32_block")
    } else {
        gpu.pick("rmsnorm_fwd_bf16_warp", "rmsnorm_fwd_f32_warp")
    };
    let args = Args::new()
        .ptr(x.at)
        .ptr(gains[0].at)
        .ptr(gains[1].at)
        .ptr(residual.map_or(0, |residual| residual.at))
        .ptr(y.at)
        .ptr(rstd.at)
        .u32(units.rows as u32)
        .u32(units.width as u32)
        .u32(units.heads as u32)
        .u32(units.normed as u32)
        .u32(units.queries as u32)
        .u32(units.d as u32)
        .f32(norm.eps as f32)
        .f32(norm.offset as f32);
    gpu.launch(kernel, grid, 256, 0, args);
}

fn launch_backward(
    gpu: &Gpu,
    job: &Job<'_>,
    [block, warp]: [&'static str; 2],
    (dy, dx): (u64, u64),
    rstd: &Stat,
) {
    let Job { units, norm, x, gains } = job;
    let (wide, grid) = plan(units.rows * units.heads, units.d);
    let args = Args::new()
        .ptr(dy)
        .ptr(x.at)
        .ptr(gains[0].at)
        .ptr(gains[1].at)
        .ptr(rstd.at)
        .ptr(dx)
        .u32(units.rows as u32)
        .u32(units.width as u32)
        .u32(units.heads as u32)
        .u32(units.queries as u32)
        .u32(units.d as u32)
        .f32(norm.offset as f32);
    gpu.launch(if wide { block } else { warp }, grid, 256, 0, args);
}

/// Cuts rows of `count` units each into launches of at most `most` partials: (first row, rows) of each. All but the last
/// take whole partials, which are therefore those of one launch.
fn launches(rows: usize, count: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let each = (most / count.max(1) * UNITS).max(UNITS);
    (0..rows).step_by(each).map(move |first| (first, each.min(rows - first)))
}

/// Adds up the gradient of a gain over `count` units a row from unit `first` on, in two stages of fixed order.
fn gain_gradient(
    gpu: &Gpu,
    Job { units, x, .. }: &Job<'_>,
    (first, count): (usize, usize),
    dy: u64,
    rstd: &Stat,
    dgain: &mut Grad,
) {
    let parts = (units.rows * count).div_ceil(UNITS);
    let partials = gpu.scratch((parts * units.d * 4) as u64);
    if partials == 0 {
        return;
    }
    let columns = blocks(units.d, 256);
    let kernel = gpu.pick("rmsnorm_dgain_bf16", "rmsnorm_dgain_f32");
    for (row, rows) in launches(units.rows, count, MOST_BLOCKS as usize) {
        let (numbers, statistics) = ((row * units.width) as u64, (row * units.normed) as u64);
        let (skip, done) = (numbers * gpu.precision().bytes(), row * count / UNITS);
        let args = Args::new()
            .ptr(dy + skip)
            .ptr(x.at + skip)
            .ptr(rstd.at + 4 * statistics)
            .ptr(partials + (done * units.d * 4) as u64)
            .u32(rows as u32)
            .u32(units.width as u32)
            .u32(count as u32)
            .u32(units.normed as u32)
            .u32(first as u32)
            .u32(units.d as u32);
        let parts = blocks(rows * count, UNITS);
        gpu.launch(kernel, [columns, parts, 1], 256, 0, args);
    }
    column_sum::sum(gpu, partials, (parts, units.d), units.d, dgain);
}

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    args: &NormArgs<'_, Act, Weight<'_>>,
    residual: Option<&Act>,
    y: &mut Act,
    rstd: &mut Stat,
) {
    launch_forward(gpu, &Job::rows(args), residual, y, rstd);
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    args: &NormArgs<'_, Act, Weight<'_>>,
    dy: &Act,
    rstd: &Stat,
    dx: &mut Act,
    dgain: Option<&mut Grad>,
) {
    let job = Job::rows(args);
    let names = [
        gpu.pick("rmsnorm_bwd_bf16_block", "rmsnorm_bwd_f32_block"),
        gpu.pick("rmsnorm_bwd_bf16_warp", "rmsnorm_bwd_f32_warp"),
    ];
    launch_backward(gpu, &job, names, (dy.at, dx.at), rstd);
    if let Some(dgain) = dgain {
        gain_gradient(gpu, &job, (0, 1), dy.at, rstd, dgain);
    }
}

pub(in crate::backend::gpu) fn qk_forward(
    gpu: &Gpu,
    args: &QkNormArgs<'_, Act, Weight<'_>>,
    qkv: &mut Act,
    rstd: &mut Stat,
) {
    let heads = args.heads;
    launch_forward(gpu, &Job::heads(args, heads.h + 2 * heads.g), None, qkv, rstd);
}

pub(in crate::backend::gpu) fn qk_backward(
    gpu: &Gpu,
    args: &QkNormArgs<'_, Act, Weight<'_>>,
    rstd: &Stat,
    dqkv: &mut Act,
    dgains: Option<[&mut Grad; 2]>,
) {
    let heads = args.heads;
    let job = Job::heads(args, heads.h + heads.g);
    // Before dqkv is overwritten.
    if let Some([dq, dk]) = dgains {
        gain_gradient(gpu, &job, (0, heads.h), dqkv.at, rstd, dq);
        gain_gradient(gpu, &job, (heads.h, heads.g), dqkv.at, rstd, dk);
    }
    let names = [
        gpu.pick("qk_norm_bwd_bf16_block", "qk_norm_bwd_f32_block"),
        gpu.pick("qk_norm_bwd_bf16_warp", "qk_norm_bwd_f32_warp"),
    ];
    launch_backward(gpu, &job, names, (dqkv.at, dqkv.at), rstd);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_gives_narrow_units_a_warp_and_wide_ones_a_block() {
        assert_eq!(plan(9, 128), (false, [2, 1, 1]));
        assert_eq!(plan(9, 1024), (false, [2, 1, 1]));
        assert_eq!(plan(9, 4096), (true, [9, 1, 1]));
        assert_eq!(plan(0, 64), (false, [0, 1, 1]));
    }

    #[test]
    fn launches_keep_the_partials_of_one_and_fit_a_grid() {
        for (rows, count) in
            [(1, 1), (64, 3), (5_000_000, 1), (131_072, 40), (200_000, 32), (70_000, 65_535)]
        {
            let (mut next, mut parts) = (0, 0);
            for (first, taken) in launches(rows, count, 65_535) {
                assert_eq!((first, first * count % UNITS), (next, 0), "{rows} x {count}");
                let here = (taken * count).div_ceil(UNITS);
                assert!(here <= 65_535, "{rows} x {count}: {here} partials");
                (next, parts) = (first + taken, parts + here);
            }
            assert_eq!((next, parts), (rows, (rows * count).div_ceil(UNITS)));
        }
        assert_eq!(launches(4_194_240, 1, 65_535).count(), 1);
        assert_eq!(launches(4_194_241, 1, 65_535).count(), 2);
    }
}

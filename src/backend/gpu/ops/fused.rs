//! Products with the next op behind them in one kernel: kernels/gemm_rope.cu, kernels/gemm_swiglu.cu, and their twins
//! in kernels/sm90/.

use super::gemm_skinny::{self, Skinny, kernel_of_skinny};
use super::linear;
use super::sm90::{self, Operand, result};
use super::tile::{Tile, kernel_of_tile, packed, plan, sm90_tiles};
use crate::backend::gpu::driver::{Args, Matrix};
use crate::backend::gpu::{Act, Gpu, Pack, Precision, Weight, blocks};
use crate::ops::{Direction, Heads, LinearArgs, LinearShape, Rotation};

/// Returns the tile of a qkv product with rotation, `None` where a pair would lie in two tiles or chunks.
fn rope_tile(planned: Tile, heads: Heads, half: usize) -> Option<Tile> {
    // Registers of sm_90a hold both members of a pair where all of a head turns.
    let in_registers = [64, 128].contains(&heads.d) && 2 * half == heads.d;
    let planned = if in_registers { planned } else { planned.portable() };
    // Two heads of a small tile's width do not fit one; the next larger tile then.
    let tile = if planned == Tile::Small && heads.d > 64 { Tile::Medium } else { planned };
    let whole = heads.d.is_power_of_two() && tile.size().1.is_multiple_of(heads.d);
    (tile != Tile::Any && whole && half.is_multiple_of(8)).then_some(tile)
}

/// Product and rotation in one kernel where its tile allows, else one after the other.
pub(in crate::backend::gpu) fn rope(
    gpu: &Gpu,
    args: LinearArgs<'_, Act, Weight<'_>>,
    Rotation { pack, heads, table }: Rotation<'_, Pack>,
    qkv: &mut Act,
) {
    let LinearArgs { shape: LinearShape { n, o: width, i: c }, x, w, bias } = args;
    let bytes = gpu.precision().bytes();
    let rows = [(x.at, c), (w.at, c), (qkv.at, width)];
    let aligned = rows.into_iter().all(|(at, pitch)| packed(at, pitch, bytes));
    let tile = rope_tile(plan(gpu, n, width, aligned, c > 0), heads, table.inv_freq.len());
    // A block for few rows holds no whole head.
    let apart = table.inv_freq.is_empty() || gemm_skinny::plan(gpu, n, aligned).is_some();
    let Some(tile) = tile.filter(|_| !apart) else {
        linear::forward(gpu, args, None, qkv);
        return super::rope::rotate(gpu, pack, heads, table, Direction::Forward, qkv);
    };
    let Some((cosines, sines)) = super::rope::angles(gpu, pack, table) else { return };
    let turned = ((heads.h + heads.g) * heads.d) as u32;
    if tile.is_sm90() {
        let a = Operand { at: x.at, outer: n, k: c, pitch: c, k_major: true };
        let b = Operand { at: w.at, outer: width, ..a };
        let name = kernel_of_tile!(tile, "gemm_rope_sm90");
        let rows = result(qkv.at, (n, width), width, false);
        let bias = bias.map_or(0, |bias| bias.at);
        return sm90::launch(gpu, name, (tile, tile.blocks(n, width)), [a, b], &[rows], |args| {
            args.ptr(bias)
                .ptr(pack.positions)
                .ptr(cosines)
                .ptr(sines)
                .u32(n as u32)
                .u32(width as u32)
                .u32(c as u32)
                .u32(turned)
                .u32(heads.d as u32)
        });
    }
    let args = Args::new()
        .ptr(x.at)
        .ptr(w.at)
        .ptr(qkv.at)
        .ptr(bias.map_or(0, |bias| bias.at))
        .ptr(pack.positions)
        .ptr(cosines)
        .ptr(sines)
        .u32(n as u32)
        .u32(width as u32)
        .u32(c as u32)
        .u32(turned)
        .u32(heads.d as u32)
        .u32(table.inv_freq.len() as u32);
    // There is none for operands of any alignment, and `rope_tile` takes none.
    let name = match gpu.precision() {
        Precision::Bf16 => kernel_of_tile!(tile, "gemm_rope_bf16"),
        Precision::Fp32 => kernel_of_tile!(tile, "gemm_rope_f32"),
    };
    gpu.launch(name, [tile.blocks(n, width), 1, 1], tile.threads(), tile.shared(), args);
}

/// Flag of kernels/gemm_swiglu.cu: rows of the results are whole 16-byte packs.
const PACKED: u32 = 2;
/// Flag of kernels/gemm_swiglu.cu: gate and up are not stored.
const DROPPED: u32 = 4;

/// Describes gates and ups, whose rows lie side by side.
fn halves(gate_up: &Act, n: usize, f: usize) -> [Matrix; 2] {
    let gate = result(gate_up.at, (n, f), 2 * f, false);
    [gate, Matrix { address: gate.address + 2 * f as u64, ..gate }]
}

pub(in crate::backend::gpu) fn swiglu(
    gpu: &Gpu,
    args: LinearArgs<'_, Act, Weight<'_>>,
    keep: bool,
    gate_up: &mut Act,
    y: &mut Act,
) {
    let LinearArgs { shape: LinearShape { n, o, i: c }, x, w, bias } = args;
    let f = o / 2;
    let bytes = gpu.precision().bytes();
    let aligned = packed(x.at, c, bytes) && packed(w.at, c, bytes);
    let rows = packed(gate_up.at, f, bytes) && packed(y.at, f, bytes);
    let args = Args::new()
        .ptr(x.at)
        .ptr(w.at)
        .ptr(bias.map_or(0, |bias| bias.at))
        .ptr(gate_up.at)
        .ptr(y.at)
        .u32(n as u32)
        .u32(f as u32)
        .u32(c as u32)
        .u32(if rows { PACKED } else { 0 } | if keep { 0 } else { DROPPED });
    if let Some(shape) = gemm_skinny::plan(gpu, n, aligned) {
        let name = kernel_of_skinny!(shape, "gemm_swiglu_skinny_bf16");
        let grid = [shape.blocks(n, f, 2), 1, 1];
        return gpu.launch(name, grid, Skinny::THREADS, shape.shared(), args);
    }
    let tile = plan(gpu, n, 2 * f, aligned, rows && c > 0);
    // Half of a tile's columns are gates.
    let (height, width) = tile.size();
    if tile.is_sm90() {
        let a = Operand { at: x.at, outer: n, k: c, pitch: c, k_major: true };
        let b = Operand { at: w.at, outer: 2 * f, ..a };
        let name = kernel_of_tile!(tile, "gemm_swiglu_sm90");
        let out = result(y.at, (n, f), f, false);
        // What is not stored need not be there.
        let [gate, up] = if keep { halves(gate_up, n, f) } else { [out, out] };
        let count = sm90_tiles((height, width / 2), n, f);
        let (bias, flags) = (bias.map_or(0, |bias| bias.at), if keep { 0 } else { DROPPED });
        return sm90::launch(gpu, name, (tile, count), [a, b], &[gate, up, out], |args| {
            args.ptr(bias).u32(n as u32).u32(f as u32).u32(c as u32).u32(flags)
        });
    }
    let name = match gpu.precision() {
        Precision::Bf16 => kernel_of_tile!(tile, "gemm_swiglu_bf16"),
        Precision::Fp32 => kernel_of_tile!(tile, "gemm_swiglu_f32"),
    };
    let grid = blocks(n, height) * blocks(f, width / 2);
    gpu.launch(name, [grid, 1, 1], tile.threads(), tile.shared(), args);
}

pub(in crate::backend::gpu) fn swiglu_backward(
    gpu: &Gpu,
    LinearShape { n, o: c, i: f }: LinearShape,
    dy: &Act,
    w: Weight<'_>,
    gate_up: &mut Act,
    y: &mut Act,
) {
    let bytes = gpu.precision().bytes();
    let rows = packed(gate_up.at, f, bytes) && packed(y.at, f, bytes);
    let aligned = packed(dy.at, c, bytes) && packed(w.at, f, bytes);
    let tile = plan(gpu, n, f, aligned, rows && c > 0);
    if tile.is_sm90() {
        let a = Operand { at: dy.at, outer: n, k: c, pitch: c, k_major: true };
        let b = Operand { at: w.at, outer: f, k: c, pitch: f, k_major: false };
        let name = kernel_of_tile!(tile, "gemm_swiglu_bwd_sm90");
        let [gate, up] = halves(gate_up, n, f);
        let results = [gate, up, result(y.at, (n, f), f, false)];
        return sm90::launch(gpu, name, (tile, tile.blocks(n, f)), [a, b], &results, |args| {
            args.u32(n as u32).u32(f as u32).u32(c as u32)
        });
    }
    let args = Args::new()
        .ptr(dy.at)
        .ptr(w.at)
        .ptr(gate_up.at)
        .ptr(y.at)
        .u32(n as u32)
        .u32(f as u32)
        .u32(c as u32)
        .u32(if rows { PACKED } else { 0 });
    let name = match gpu.precision() {
        Precision::Bf16 => kernel_of_tile!(tile, "gemm_swiglu_bwd_bf16"),
        Precision::Fp32 => kernel_of_tile!(tile, "gemm_swiglu_bwd_f32"),
    };
    gpu.launch(name, [tile.blocks(n, f), 1, 1], tile.threads(), tile.shared(), args);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_tile_holds_whole_heads_or_is_none() {
        let heads = |d| Heads { h: 4, g: 2, d, window: None, cap: None };
        assert_eq!(rope_tile(Tile::Large, heads(128), 64), Some(Tile::Large));
        assert_eq!(rope_tile(Tile::Small, heads(64), 32), Some(Tile::Small));
        assert_eq!(rope_tile(Tile::Small, heads(128), 64), Some(Tile::Medium));
        assert_eq!(rope_tile(Tile::Small, heads(32), 8), Some(Tile::Small));
        assert_eq!(rope_tile(Tile::Sm90Large, heads(64), 32), Some(Tile::Sm90Large));
        // Part of a head turns, or pairs of other distances: the portable twin.
        assert_eq!(rope_tile(Tile::Sm90Large, heads(64), 8), Some(Tile::Large));
        assert_eq!(rope_tile(Tile::Sm90Medium, heads(32), 16), Some(Tile::Medium));
        for (tile, d, half) in [
            (Tile::Any, 64, 32),
            (Tile::Large, 80, 40),
            (Tile::Sm90Large, 80, 40),
            (Tile::Large, 96, 48),
            (Tile::Medium, 256, 128),
            (Tile::Small, 64, 20),
        ] {
            assert_eq!(rope_tile(tile, heads(d), half), None, "{tile:?} {d} {half}");
        }
    }
}

//! Products with the next op behind them in one kernel: kernels/gemm_rope.cu, kernels/gemm_swiglu.cu.

use super::linear::{self, Tile, kernel_of_tile, packed, plan};
use super::skinny::{self, Skinny, kernel_of_skinny};
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Pack, Precision, Weight, blocks};
use crate::ops::{Direction, Heads, RopeTable};

/// Returns the tile of a qkv product with rotation, `None` where a pair would lie in two tiles or chunks.
fn rope_tile(planned: Tile, heads: Heads, half: usize) -> Option<Tile> {
    // Two heads of a small tile's width do not fit one; the next larger tile then.
    let tile = if planned == Tile::Small && heads.d > 64 { Tile::Medium } else { planned };
    let whole = heads.d.is_power_of_two() && tile.size().1.is_multiple_of(heads.d);
    (tile != Tile::Any && whole && half.is_multiple_of(8)).then_some(tile)
}

/// Product and rotation in one kernel where its tile allows, else one after the other.
#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn rope(
    gpu: &Gpu,
    pack: &Pack,
    (n, c): (usize, usize),
    heads: Heads,
    table: &RopeTable,
    x: &Act,
    w: Weight<'_>,
    bias: Option<Weight<'_>>,
    qkv: &mut Act,
) {
    let (width, bytes) = (heads.qkv_width(), gpu.precision().bytes());
    let rows = [(x.at, c), (w.at, c), (qkv.at, width)];
    let aligned = rows.into_iter().all(|(at, pitch)| packed(at, pitch, bytes));
    let tile = rope_tile(plan(gpu, n, width, aligned), heads, table.inv_freq.len());
    // A block for few rows holds no whole head.
    let apart = table.inv_freq.is_empty() || skinny::plan(gpu, n, aligned).is_some();
    let Some(tile) = tile.filter(|_| !apart) else {
        linear::forward(gpu, n, (width, c), x, w, bias, None, qkv);
        return super::rope::rotate(gpu, pack, heads, table, Direction::Forward, qkv);
    };
    let Some((cosines, sines)) = super::rope::angles(gpu, pack, table) else { return };
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
        .u32(((heads.h + heads.g) * heads.d) as u32)
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

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn swiglu(
    gpu: &Gpu,
    n: usize,
    (f, c): (usize, usize),
    x: &Act,
    w: Weight<'_>,
    bias: Option<Weight<'_>>,
    keep: bool,
    gate_up: &mut Act,
    y: &mut Act,
) {
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
    if let Some(shape) = skinny::plan(gpu, n, aligned) {
        let name = kernel_of_skinny!(shape, "gemm_swiglu_skinny_bf16");
        let grid = [shape.blocks(n, f, 2), 1, 1];
        return gpu.launch(name, grid, Skinny::THREADS, shape.shared(), args);
    }
    let tile = plan(gpu, n, 2 * f, aligned);
    let name = match gpu.precision() {
        Precision::Bf16 => kernel_of_tile!(tile, "gemm_swiglu_bf16"),
        Precision::Fp32 => kernel_of_tile!(tile, "gemm_swiglu_f32"),
    };
    // Half of a tile's columns are gates.
    let (height, width) = tile.size();
    let grid = blocks(n, height) * blocks(f, width / 2);
    gpu.launch(name, [grid, 1, 1], tile.threads(), tile.shared(), args);
}

pub(in crate::backend::gpu) fn swiglu_backward(
    gpu: &Gpu,
    n: usize,
    (c, f): (usize, usize),
    dy: &Act,
    w: Weight<'_>,
    gate_up: &mut Act,
    y: &mut Act,
) {
    let bytes = gpu.precision().bytes();
    let tile = plan(gpu, n, f, packed(dy.at, c, bytes) && packed(w.at, f, bytes));
    let rows = packed(gate_up.at, f, bytes) && packed(y.at, f, bytes);
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
        let heads = |d| Heads { h: 4, g: 2, d, window: None };
        assert_eq!(rope_tile(Tile::Large, heads(128), 64), Some(Tile::Large));
        assert_eq!(rope_tile(Tile::Small, heads(64), 32), Some(Tile::Small));
        assert_eq!(rope_tile(Tile::Small, heads(128), 64), Some(Tile::Medium));
        assert_eq!(rope_tile(Tile::Small, heads(32), 8), Some(Tile::Small));
        for (tile, d, half) in [
            (Tile::Any, 64, 32),
            (Tile::Large, 80, 40),
            (Tile::Large, 96, 48),
            (Tile::Medium, 256, 128),
            (Tile::Small, 64, 20),
        ] {
            assert_eq!(rope_tile(tile, heads(d), half), None, "{tile:?} {d} {half}");
        }
    }
}

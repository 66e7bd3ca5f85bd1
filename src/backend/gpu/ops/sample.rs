//! The token that follows each row, argmax or drawn: kernels/sample.cu.

use super::head::{cap, product, room};
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Weight};
use crate::ops::{HeadShape, HeadWeight, Sampling};

/// The kernel that draws.
pub(super) const SAMPLE: &str = "sample_f32";
/// Threads of a block (`sample::kThreads`).
const BLOCK: u32 = 512;
/// Counters of a thread (`sample::kBins`), of 8 bytes.
const COUNTERS: u32 = 16;

/// Returns the dynamic shared memory of a block that draws: counters where the least probable tokens are left out.
pub(super) fn shared(top_p: f64) -> u32 {
    if top_p < 1.0 { 8 * COUNTERS * BLOCK } else { 0 }
}

pub(in crate::backend::gpu) fn argmax(
    gpu: &Gpu,
    shape: HeadShape,
    h: &Act,
    w: HeadWeight<Weight<'_>>,
    ids: &mut [u32],
) {
    pick(gpu, shape, h, w, None, ids);
}

pub(in crate::backend::gpu) fn sample(
    gpu: &Gpu,
    shape: HeadShape,
    h: &Act,
    w: HeadWeight<Weight<'_>>,
    sampling: Sampling,
    draws: &[f64],
    ids: &mut [u32],
) {
    pick(gpu, shape, h, w, Some((sampling, draws)), ids);
}

/// Makes logits chunk by chunk and picks from them; one copy to the host, of the ids.
fn pick(
    gpu: &Gpu,
    shape: HeadShape,
    h: &Act,
    w: HeadWeight<Weight<'_>>,
    draws: Option<(Sampling, &[f64])>,
    ids: &mut [u32],
) {
    let Some((room, rows)) = room(gpu, shape, false).filter(|_| shape.n > 0) else {
        return;
    };
    if let Some((_, draws)) = draws {
        gpu.keep(gpu.upload(room.draws, bytemuck::cast_slice(&draws[..shape.n])));
    }
    for start in (0..shape.n).step_by(rows) {
        let m = rows.min(shape.n - start);
        let hidden = (start * shape.c) as u64 * gpu.precision().bytes();
        product(gpu, shape, m, h.at + hidden, w, room.logits);
        let (draw, id) = (room.draws + 8 * start as u64, room.ids + 4 * start as u64);
        let grid = [m as u32, 1, 1];
        match draws {
            None => {
                // The largest logit is that also where all are capped.
                let args = Args::new().ptr(room.logits).ptr(id).u32(shape.v as u32);
                gpu.launch("argmax_f32", grid, BLOCK, 0, args);
            }
            Some((Sampling { temperature, top_p }, _)) => {
                let args = Args::new().ptr(room.logits).ptr(draw).ptr(id).u32(shape.v as u32);
                let args = args.f32((1.0 / temperature) as f32).f64(top_p);
                let args = args.f32(cap(w));
                gpu.launch(SAMPLE, grid, BLOCK, shared(top_p), args);
            }
        }
    }
    gpu.keep(gpu.download(room.ids, bytemuck::cast_slice_mut(&mut ids[..shape.n])));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_from_all_tokens_need_no_counters() {
        assert_eq!(shared(1.0), 0);
        // Every device from 8.0 on lets a block have 99 KiB.
        assert_eq!(shared(0.9), 64 << 10);
    }
}

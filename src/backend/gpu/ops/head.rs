//! Head and loss rows, chunked: kernels/head.cu.

use crate::backend::gpu::{Act, Gpu, Grad, Pack, Stat, Weight};
use crate::error::Result;
use crate::ops::{HeadGrads, HeadShape, Matched, RowStats, TokenWeight};

pub(in crate::backend::gpu) fn reserve(_gpu: &Gpu, _shape: HeadShape) -> Result<()> {
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn onehot(
    gpu: &Gpu,
    _shape: HeadShape,
    _pack: &Pack,
    _h: &Act,
    _w: Weight<'_>,
    _weight: TokenWeight<'_, Stat>,
    _stats: &mut RowStats<Stat>,
    _grads: Option<HeadGrads<'_, Act, Grad>>,
) {
    gpu.refuse("head: not written");
}

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn matched(
    gpu: &Gpu,
    _shape: HeadShape,
    _pack: &Pack,
    _hidden: (&Act, &Act),
    _weights: (Weight<'_>, Option<Weight<'_>>),
    _target: Matched,
    _stats: &mut RowStats<Stat>,
    _grads: Option<HeadGrads<'_, Act, Grad>>,
) {
    gpu.refuse("head: not written");
}

pub(in crate::backend::gpu) fn logits(
    gpu: &Gpu,
    _shape: HeadShape,
    _h: &Act,
    _w: Weight<'_>,
    _logits: &mut [f32],
) {
    gpu.refuse("head logits: not written");
}

//! Products with the next op behind them in one kernel, as training runs them.

use super::floors;
use super::lab::Case;
use super::{Lab, Measurement, Preset};
use crate::backend::gpu::Act;
use crate::conformance::{Random, documents};
use crate::error::Result;
use crate::model::rope::table;
use crate::ops::{Compute, LinearArgs, LinearShape, Memory, Mlp, Rotation, Transfer};

/// Measures all of them.
pub(super) fn run(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    Ok(vec![
        rope(lab, preset)?,
        swiglu(lab, preset, true)?,
        swiglu(lab, preset, false)?,
        swiglu_bwd(lab, preset)?,
    ])
}

/// A case of this family, without a rival: a product alone does less.
fn record(
    lab: &Lab,
    preset: &Preset,
    what: &str,
    (m, n, k): (usize, usize, usize),
    floor: floors::Floor,
    seconds: f64,
) -> Measurement {
    let name = format!("{} {what}", preset.name);
    lab.record(Case { kind: "gemm", name, shape: format!("{m}x{n}x{k}"), floor }, seconds, None)
}

/// The qkv product with rotary positions.
fn rope(lab: &Lab, preset: &Preset) -> Result<Measurement> {
    let (gpu, config, n) = (lab.gpu(0)?, &preset.config, preset.tokens());
    let (heads, c, table) = (config.heads(0), config.width, table(&config.rope));
    let width = heads.qkv_width();
    let floor = floors::linear_rope(n, c, heads, lab.stored());
    let mut pack = gpu.pack(n)?;
    let data = documents(&preset.lengths(), config.vocab, &mut Random::new(33));
    gpu.load_pack(&mut pack, &data);
    let mut sets: Vec<[Act; 3]> = lab.sets(floor, |_| {
        Ok([lab.act(&gpu, n * c, 1.0)?, lab.act(&gpu, width * c, 0.02)?, gpu.act(n * width)?])
    })?;
    let seconds = lab.time(&gpu, &mut sets, |[x, w, qkv]| {
        let shape = LinearShape { n, o: width, i: c };
        let args = LinearArgs { shape, x: &*x, w: w.as_weight(), bias: None };
        gpu.linear_rope(args, Rotation { pack: &pack, heads, table: &table }, qkv);
        Ok(())
    })?;
    let what = "qkv forward with rope";
    if let Some([_, _, qkv]) = sets.first() {
        lab.check_act(&gpu, what, qkv, n * width)?;
    }
    Ok(record(lab, preset, what, (n, width, c), floor, seconds))
}

/// The product to gate and up with SwiGLU; a teacher does not `keep` them.
fn swiglu(lab: &Lab, preset: &Preset, keep: bool) -> Result<Measurement> {
    let (gpu, n) = (lab.gpu(0)?, preset.tokens());
    let (c, f) = (preset.config.width, preset.config.ffn);
    let floor = floors::linear_swiglu(n, (f, c), lab.stored(), keep);
    let mut sets: Vec<[Act; 4]> = lab.sets(floor, |_| {
        let (x, w) = (lab.act(&gpu, n * c, 1.0)?, lab.act(&gpu, 2 * f * c, 0.02)?);
        Ok([x, w, gpu.act(2 * n * f)?, gpu.act(n * f)?])
    })?;
    let seconds = lab.time(&gpu, &mut sets, |[x, w, gate_up, y]| {
        let shape = LinearShape { n, o: 2 * f, i: c };
        let args = LinearArgs { shape, x: &*x, w: w.as_weight(), bias: None };
        gpu.linear_mlp(args, Mlp::SWIGLU, keep, gate_up, y);
        Ok(())
    })?;
    let what = if keep {
        "gate and up forward with swiglu"
    } else {
        "gate and up forward with swiglu, teacher"
    };
    if let Some([_, _, _, y]) = sets.first() {
        lab.check_act(&gpu, what, y, n * f)?;
    }
    Ok(record(lab, preset, what, (n, 2 * f, c), floor, seconds))
}

/// The input gradient of the down projection, sent on through SwiGLU.
fn swiglu_bwd(lab: &Lab, preset: &Preset) -> Result<Measurement> {
    let (gpu, n) = (lab.gpu(0)?, preset.tokens());
    let (c, f) = (preset.config.width, preset.config.ffn);
    let floor = floors::linear_dgrad_swiglu(n, (c, f), lab.stored());
    let mut sets: Vec<[Act; 5]> = lab.sets(floor, |_| {
        let gate_up = || lab.act(&gpu, 2 * n * f, 1.0);
        let (dy, w) = (lab.act(&gpu, n * c, 1.0)?, lab.act(&gpu, c * f, 0.02)?);
        Ok([dy, w, gate_up()?, gate_up()?, gpu.act(n * f)?])
    })?;
    let shape = LinearShape { n, o: c, i: f };
    // In place, as the backward pass of SwiGLU alone.
    let bytes = 2 * (n * f) as u64 * lab.stored() as u64;
    let seconds = lab.laps(
        &gpu,
        &mut sets,
        lab.repeat(),
        &mut |[dy, w, gate_up, _, y]| {
            gpu.linear_dgrad_mlp(shape, Mlp::SWIGLU, dy, w.as_weight(), gate_up, y);
            Ok(())
        },
        Some(&mut |[_, _, gate_up, pristine, _]| {
            lab.driver().copy(pristine.address(), gate_up.address(), bytes)
        }),
    )?;
    let what = "down input gradient with swiglu";
    if let Some([dy, w, gate_up, _, y]) = sets.first_mut() {
        gpu.linear_dgrad_mlp(shape, Mlp::SWIGLU, dy, w.as_weight(), gate_up, y);
        lab.check_act(&gpu, what, gate_up, 2 * n * f)?;
    }
    Ok(record(lab, preset, what, (n, f, c), floor, seconds))
}

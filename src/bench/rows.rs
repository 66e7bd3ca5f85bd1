//! Ops whose floor is memory, row by row: norms, rotary positions, SwiGLU, embedding.

use std::collections::BTreeSet;

use super::floors::{self, Floor};
use super::lab::Case;
use super::{Lab, Measurement, Preset};
use crate::conformance::{Random, documents, grad};
use crate::error::Result;
use crate::model::rope::table;
use crate::ops::{Compute, Direction, Memory, Mlp, Norm, NormArgs, NormGrads, Transfer};

/// Records one op of a preset.
fn record(
    lab: &Lab,
    preset: &Preset,
    (kind, pass): (&'static str, &str),
    (rows, width): (usize, usize),
    floor: Floor,
    seconds: f64,
) -> Measurement {
    let name = format!("{} {pass}", preset.name);
    lab.record(Case { kind, name, shape: format!("{rows}x{width}"), floor }, seconds, None)
}

/// Measures RMSNorm forward and backward.
pub(super) fn norm(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let (gpu, n, c) = (lab.gpu(0)?, preset.tokens(), preset.config.width);
    let norm = Norm::rms(c, preset.config.norm.eps);
    let (forward, backward) =
        (floors::rmsnorm(n, c, lab.stored()), floors::rmsnorm_bwd(n, c, lab.stored()));
    let gain = lab.act(&gpu, c, 1.0)?;
    let mut sets = lab.sets(forward, |_| {
        let act = || lab.act(&gpu, n * c, 1.0);
        Ok((act()?, act()?, act()?, gpu.stat(n)?))
    })?;
    // Forward first: it leaves the statistics.
    let first = lab.time(&gpu, &mut sets, |(x, y, _, rstd)| {
        let args = NormArgs { n, norm, x: &*x, gain: gain.as_weight(), bias: None };
        gpu.norm(args, None, y, rstd);
        Ok(())
    })?;
    let second = lab.time(&gpu, &mut sets, |(x, dy, dx, rstd)| {
        let args = NormArgs { n, norm, x: &*x, gain: gain.as_weight(), bias: None };
        gpu.norm_bwd(args, dy, rstd, dx, NormGrads::none());
        Ok(())
    })?;
    if let Some((_, y, dx, _)) = sets.first() {
        lab.check_act(&gpu, "norm forward", y, n * c)?;
        lab.check_act(&gpu, "norm backward", dx, n * c)?;
    }
    Ok(vec![
        record(lab, preset, ("norm", "forward"), (n, c), forward, first),
        record(lab, preset, ("norm", "backward"), (n, c), backward, second),
    ])
}

/// Measures rotary positions.
pub(super) fn rope(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let (gpu, n, heads) = (lab.gpu(0)?, preset.tokens(), preset.config.heads(0));
    let (width, table) = (heads.qkv_width(), table(&preset.config.rope));
    let floor = floors::rope(n, heads, lab.stored());
    let mut pack = gpu.pack(n)?;
    let data = documents(&preset.lengths(), preset.config.vocab, &mut Random::new(35));
    gpu.load_pack(&mut pack, &data);
    let mut sets = lab.sets(floor, |_| lab.act(&gpu, n * width, 1.0))?;
    let seconds = lab.time(&gpu, &mut sets, |qkv| {
        gpu.rope(&pack, heads, &table, Direction::Forward, qkv);
        Ok(())
    })?;
    if let Some(qkv) = sets.first() {
        lab.check_act(&gpu, "rope", qkv, n * width)?;
    }
    Ok(vec![record(lab, preset, ("rope", "forward"), (n, width), floor, seconds)])
}

/// Measures SwiGLU forward and backward.
pub(super) fn swiglu(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let (gpu, n, f) = (lab.gpu(0)?, preset.tokens(), preset.config.ffn);
    let (forward, backward) =
        (floors::swiglu(n, f, lab.stored()), floors::swiglu_bwd(n, f, lab.stored()));
    let mut sets = lab.sets(forward, |_| {
        let pristine = lab.act(&gpu, 2 * n * f, 1.0)?;
        Ok((lab.act(&gpu, 2 * n * f, 1.0)?, pristine, lab.act(&gpu, n * f, 1.0)?))
    })?;
    let first = lab.time(&gpu, &mut sets, |(gate_up, _, y)| {
        gpu.mlp(n, f, Mlp::SWIGLU, gate_up, y);
        Ok(())
    })?;
    // Backward works in place: applied again and again it would run off to zero and infinity. What it leaves at `dy`
    // is the same each time, and as good a gradient as any.
    let bytes = 2 * (n * f) as u64 * lab.stored() as u64;
    let second = lab.laps(
        &gpu,
        &mut sets,
        lab.repeat(),
        &mut |(gate_up, _, dy)| {
            gpu.mlp_bwd(n, f, Mlp::SWIGLU, dy, gate_up);
            Ok(())
        },
        Some(&mut |(gate_up, pristine, _)| {
            lab.driver().copy(pristine.address(), gate_up.address(), bytes)
        }),
    )?;
    if let Some((gate_up, _, y)) = sets.first_mut() {
        lab.check_act(&gpu, "swiglu forward", y, n * f)?;
        gpu.mlp_bwd(n, f, Mlp::SWIGLU, y, gate_up);
        lab.check_act(&gpu, "swiglu backward", gate_up, 2 * n * f)?;
    }
    Ok(vec![
        record(lab, preset, ("swiglu", "forward"), (n, f), forward, first),
        record(lab, preset, ("swiglu", "backward"), (n, f), backward, second),
    ])
}

/// Measures the embedding and its gradient.
pub(super) fn embed(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let (gpu, n, c, v) = (lab.gpu(0)?, preset.tokens(), preset.config.width, preset.config.vocab);
    let data = documents(&preset.lengths(), v, &mut Random::new(36));
    let distinct = data.ids.iter().collect::<BTreeSet<_>>().len();
    let forward = floors::embed(n, distinct, c, lab.stored());
    let backward = floors::embed_bwd(n, distinct, c, lab.stored(), lab.stored());
    let mut pack = gpu.pack(n)?;
    gpu.load_pack(&mut pack, &data);
    let mut sets = lab.sets(forward, |_| {
        let table = lab.act(&gpu, v * c, 0.02)?;
        let mut dtable = grad(&gpu, v * c, lab.mode())?;
        lab.fill_grad(&gpu, &mut dtable, v * c)?;
        Ok((table, lab.act(&gpu, n * c, 1.0)?, dtable))
    })?;
    let first = lab.time(&gpu, &mut sets, |(table, x, _)| {
        gpu.embed(&pack, c, 1.0, table.as_weight(), x);
        Ok(())
    })?;
    let second = lab.time(&gpu, &mut sets, |(_, dx, dtable)| {
        gpu.embed_bwd(&pack, c, 1.0, dx, dtable);
        Ok(())
    })?;
    if let Some((_, x, dtable)) = sets.first() {
        lab.check_act(&gpu, "embed forward", x, n * c)?;
        lab.check_grad(&gpu, "embed backward", dtable, v * c)?;
    }
    Ok(vec![
        record(lab, preset, ("embed", "forward"), (n, c), forward, first),
        record(lab, preset, ("embed", "backward"), (n, c), backward, second),
    ])
}

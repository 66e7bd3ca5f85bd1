//! Attention inside packed documents, forward and backward, and of single tokens against a cache.

use super::floors;
use super::lab::Case;
use super::{Lab, Measurement, Preset};
use crate::backend::gpu::{Act, Stat};
use crate::conformance::{Random, documents};
use crate::error::Result;
use crate::ops::{AttentionSaved, CachePlace, Compute, Heads, Memory, PackData, Transfer};

const KIND: &str = "attention";

struct Set {
    qkv: Act,
    out: Act,
    lse: Stat,
    dout: Act,
    dqkv: Act,
}

/// Measures forward, backward and decoding.
pub(super) fn run(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let mut lines = passes(lab, preset)?.to_vec();
    lines.push(decode(lab, preset)?);
    Ok(lines)
}

/// Writes documents, their length, and the heads.
fn shape((count, len): (usize, usize), heads: Heads) -> String {
    format!("{count}x{len}x{}x{}x{}", heads.h, heads.g, heads.d)
}

fn passes(lab: &Lab, preset: &Preset) -> Result<[Measurement; 2]> {
    let (gpu, heads, n) = (lab.gpu(0)?, preset.config.heads(0), preset.tokens());
    let (lengths, shape) = (preset.lengths(), shape(preset.pack, heads));
    let mut pack = gpu.pack(n)?;
    gpu.load_pack(&mut pack, &documents(&lengths, preset.config.vocab, &mut Random::new(31)));
    let forward = floors::attention(&lengths, heads, lab.stored());
    let mut sets = lab.sets(forward, |_| {
        Ok(Set {
            qkv: lab.act(&gpu, n * heads.qkv_width(), 1.0)?,
            out: gpu.act(n * heads.out_width())?,
            lse: gpu.stat(n * heads.h)?,
            dout: lab.act(&gpu, n * heads.out_width(), 1.0)?,
            dqkv: gpu.act(n * heads.qkv_width())?,
        })
    })?;
    let record = |pass: &str, floor, seconds| {
        let name = format!("{} {pass}", preset.name);
        lab.record(Case { kind: KIND, name, shape: shape.clone(), floor }, seconds, None)
    };
    // Forward first: it leaves what the backward pass reads.
    let seconds = lab.time(&gpu, &mut sets, |set| {
        gpu.attention(&pack, heads, &set.qkv, &mut set.out, &mut set.lse);
        Ok(())
    })?;
    let first = record("forward", forward, seconds);
    let seconds = lab.time(&gpu, &mut sets, |set| {
        let Set { qkv, out, lse, dout, dqkv } = set;
        gpu.attention_bwd(&pack, heads, AttentionSaved { qkv, out, lse }, dout, dqkv);
        Ok(())
    })?;
    let second = record("backward", floors::attention_bwd(&lengths, heads, lab.stored()), seconds);
    if let Some(set) = sets.first() {
        lab.check_act(&gpu, &first.name, &set.out, n * heads.out_width())?;
        lab.check_act(&gpu, &second.name, &set.dqkv, n * heads.qkv_width())?;
    }
    Ok([first, second])
}

fn decode(lab: &Lab, preset: &Preset) -> Result<Measurement> {
    let (gpu, heads, (slots, cached)) = (lab.gpu(0)?, preset.config.heads(0), preset.cached);
    let lengths = vec![cached; slots];
    let floor = floors::decode(&lengths, heads, lab.stored());
    let mut random = Random::new(32);
    // Each sequence is cached whole; its last token then asks again.
    let slot = |data: PackData| PackData { slots: (0..slots as u32).collect(), ..data };
    let whole = slot(documents(&lengths, preset.config.vocab, &mut random));
    let mut last = slot(documents(&vec![1; slots], preset.config.vocab, &mut random));
    last.positions.fill(cached as u32 - 1);
    let (mut all, mut pack) = (gpu.pack(slots * cached)?, gpu.pack(slots)?);
    gpu.load_pack(&mut all, &whole);
    gpu.load_pack(&mut pack, &last);
    let cache = CachePlace { start: 0, slots, capacity: cached };
    let mut sets: Vec<(Act, Act, Act)> = lab.sets(floor, |_| {
        let mut room = gpu.act(cache.len(heads))?;
        let qkv = lab.act(&gpu, slots * cached * heads.qkv_width(), 1.0)?;
        gpu.cache_store(&all, heads, &qkv, &mut room, cache);
        Ok((qkv, room, gpu.act(slots * heads.out_width())?))
    })?;
    let seconds = lab.time(&gpu, &mut sets, |(qkv, room, out)| {
        gpu.decode_attention(&pack, heads, qkv, room, cache, out);
        Ok(())
    })?;
    let name = format!("{} decode", preset.name);
    if let Some((_, _, out)) = sets.first() {
        lab.check_act(&gpu, &name, out, slots * heads.out_width())?;
    }
    let shape = shape(preset.cached, heads);
    Ok(lab.record(Case { kind: KIND, name, shape, floor }, seconds, None))
}

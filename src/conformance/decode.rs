//! The cache of keys and values, attention of single tokens against it, and gathered rows.

use super::{Bench, Dtype, Output, Random, Verdict, documents};
use crate::backend::gpu::Gpu;
use crate::error::Result;
use crate::ops::{CachePlace, Compute, Heads, Memory, PackData, Transfer};

/// A shape: heads, and how many tokens each document has before the one that is decoded.
struct Shape {
    heads: Heads,
    before: Vec<usize>,
}

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts: Vec<Verdict> = shapes().iter().map(|shape| decode(&bench, shape)).collect();
    for c in [1, 3, 4, 8, 12, 41, 64, 401] {
        for n in [1, 2, 7, 33] {
            verdicts.push(gather(&bench, c, n));
        }
    }
    verdicts
}

fn shapes() -> Vec<Shape> {
    let shape = |h, g, d, window, before: &[usize]| Shape {
        heads: Heads { h, g, d, window, cap: None },
        before: before.to_vec(),
    };
    let mut shapes = Vec::new();
    for d in [1, 3, 4, 6, 7, 16, 32, 41, 64, 80, 96, 128, 256] {
        shapes.push(shape(2, 1, d, None, &[5, 1, 40]));
        shapes.push(shape(1, 1, d, Some(3), &[12]));
    }
    // Around the border of a span of 128 positions, and several spans.
    for before in [1, 15, 16, 17, 126, 127, 128, 129, 255, 256, 600] {
        shapes.push(shape(2, 2, 8, None, &[before]));
        shapes.push(shape(3, 1, 5, Some(before.div_ceil(2)), &[before, 2]));
    }
    // Windows that end inside a span, at its border, and before it.
    for window in [1, 2, 100, 127, 128, 129, 265, 700] {
        shapes.push(shape(2, 1, 16, Some(window), &[520, 30]));
    }
    // Groupings: more heads than a block takes, not a multiple of it.
    for (h, g) in [(3, 3), (4, 1), (5, 1), (10, 2), (16, 2), (32, 1)] {
        shapes.push(shape(h, g, 8, None, &[20, 33]));
        shapes.push(shape(h, g, 3, None, &[270]));
    }
    // Capped scores.
    for (d, window) in [(3, None), (16, Some(100)), (64, None), (256, Some(7))] {
        let shape = shape(4, 2, d, window, &[5, 140]);
        shapes.push(Shape { heads: Heads { cap: Some(0.5), ..shape.heads }, ..shape });
    }
    shapes
}

/// Stores all documents but their last tokens, then decodes those, on the device and on the CPU.
fn decode(bench: &Bench<'_>, shape: &Shape) -> Verdict {
    let Shape { heads, before } = shape;
    let heads = *heads;
    let Heads { h, g, d, window, cap } = heads;
    let case = format!("decode H={h} G={g} D={d} window={window:?} cap={cap:?} before={before:?}");
    bench.judge(case, || {
        let mut random = Random::new(3);
        let mut prompt = documents(before, 7, &mut random);
        let mut token = documents(&vec![1; before.len()], 7, &mut random);
        token.positions = before.iter().map(|len| *len as u32).collect();
        // Slots in another order than documents, one of them not in use.
        let slots: Vec<u32> = (0..before.len() as u32).rev().map(|slot| slot + 1).collect();
        (prompt.slots, token.slots) = (slots.clone(), slots);
        let capacity = before.iter().max().map_or(1, |len| len + 1);
        let width = heads.qkv_width();
        let rows = |n: usize, random: &mut Random| bench.round(&random.vec(n * width));
        let first = rows(prompt.tokens(), &mut random);
        let last = rows(token.tokens(), &mut random);
        let want = want(bench, heads, capacity, [(&prompt, &first), (&token, &last)])?;

        let gpu = bench.gpu;
        // Behind numbers of somebody else.
        let cache = CachePlace { start: g * d, slots: before.len() + 1, capacity };
        let mut room = gpu.act(cache.start + cache.len(heads))?;
        let mut pack = gpu.pack(prompt.tokens().max(token.tokens()))?;
        gpu.load_pack(&mut pack, &prompt);
        gpu.cache_store(&pack, heads, &bench.act(&first)?, &mut room, cache);
        gpu.load_pack(&mut pack, &token);
        let last = bench.act(&last)?;
        gpu.cache_store(&pack, heads, &last, &mut room, cache);
        let mut out = bench.stale_act(want.len())?;
        gpu.decode_attention(&pack, heads, &last, &room, cache, &mut out);
        Ok(vec![Output {
            name: "out",
            got: bench.read_act(&out, want.len()),
            want,
            stored: bench.stored(),
            sums: (Dtype::F32, capacity + d),
        }])
    })
}

/// The CPU's results for the tokens of the second pack after both packs were stored.
fn want(
    bench: &Bench<'_>,
    heads: Heads,
    capacity: usize,
    packs: [(&PackData, &Vec<f64>); 2],
) -> Result<Vec<f64>> {
    let cpu = &bench.cpu;
    let [(_, _), (token, last)] = packs;
    let cache = CachePlace { start: 0, slots: token.tokens() + 1, capacity };
    let mut room = cpu.act(cache.len(heads))?;
    let mut pack = cpu.pack(packs.iter().map(|(data, _)| data.tokens()).max().unwrap_or(0))?;
    for (data, qkv) in packs {
        cpu.load_pack(&mut pack, data);
        cpu.cache_store(&pack, heads, qkv, &mut room, cache);
    }
    let mut out = vec![0.0; token.tokens() * heads.out_width()];
    cpu.decode_attention(&pack, heads, last, &room, cache, &mut out);
    Ok(out)
}

/// Gathers `n` rows in a random order, some of them more than once.
fn gather(bench: &Bench<'_>, c: usize, n: usize) -> Verdict {
    bench.judge(format!("gather_rows N={n} C={c}"), || {
        let mut random = Random::new(4);
        let all = n + 3;
        let x = bench.round(&random.vec(all * c));
        let rows: Vec<u32> = (0..n).map(|_| random.below(all) as u32).collect();
        let want = rows.iter().flat_map(|row| &x[*row as usize * c..][..c]).copied().collect();
        let mut y = bench.stale_act(n * c)?;
        bench.gpu.gather_rows(c, &rows, &bench.act(&x)?, &mut y);
        // A copy: what little the tolerance gives is less than the next stored number is away.
        Ok(vec![Output {
            name: "y",
            got: bench.read_act(&y, n * c),
            want,
            stored: Dtype::F64,
            sums: (Dtype::F64, 0),
        }])
    })
}

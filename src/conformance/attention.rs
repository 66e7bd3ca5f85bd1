//! Attention over packed documents, forward and backward.

use super::{Bench, Dtype, Output, Random, Verdict, documents};
use crate::backend::gpu::Gpu;
use crate::error::Result;
use crate::ops::{AttentionSaved, Compute, Heads, Memory, Transfer};

/// A shape: heads and documents.
struct Shape {
    heads: Heads,
    lengths: Vec<usize>,
}

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    shapes(&bench)
        .iter()
        .flat_map(|shape| [forward(&bench, shape), backward(&bench, shape)])
        .collect()
}

/// Every length around a tile's edge once, every width, window and grouping with several documents.
fn shapes(bench: &Bench<'_>) -> Vec<Shape> {
    // In fp32 one kernel takes all widths, with the same tiles: narrow heads try them in less time.
    let (narrow, wide) = if bench.stored() == Dtype::Bf16 { (64, 128) } else { (10, 32) };
    let shape = |h, g, d, window, lengths: &[usize]| Shape {
        heads: Heads { h, g, d, window, cap: None },
        lengths: lengths.to_vec(),
    };
    let mut shapes = Vec::new();
    // Each width alone and in a pack whose documents start away from tile edges.
    for d in [1, 6, 7, 16, 32, 64, 80, 96, 128] {
        shapes.push(shape(1, 1, d, None, &[1]));
        shapes.push(shape(2, 1, d, None, &[5, 1, 67]));
        shapes.push(shape(4, 2, d, Some(9), &[33, 2, 70]));
    }
    // Tile edges, one head.
    for len in [15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129] {
        shapes.push(shape(1, 1, narrow, None, &[len]));
        shapes.push(shape(1, 1, 16, Some(len / 2), &[len]));
    }
    // Windows: itself alone, around a tile, wider than the document.
    for window in [1, 2, 63, 64, 65, 200] {
        shapes.push(shape(2, 1, narrow, Some(window), &[130, 3]));
        shapes.push(shape(2, 2, wide, Some(window), &[3, 97]));
    }
    // Groupings.
    for (h, g) in [(3, 1), (3, 3), (6, 2), (8, 1)] {
        shapes.push(shape(h, g, narrow, None, &[40, 66]));
        shapes.push(shape(h, g, 5, Some(20), &[40, 7]));
    }
    shapes.push(shape(1, 1, 256, None, &[1, 35]));
    // Caps that bend most scores, and one that bends few.
    for (h, g, d, window, lengths) in [
        (2, 1, 7, None, &[5, 1, 67][..]),
        (4, 2, 64, Some(9), &[33, 2, 70]),
        (2, 1, 128, None, &[65, 1, 130]),
        (2, 2, 128, Some(64), &[3, 197]),
        (1, 1, 256, Some(17), &[1, 35]),
    ] {
        for cap in [1.5, 20.0] {
            let shape = shape(h, g, d, window, lengths);
            shapes.push(Shape { heads: Heads { cap: Some(cap), ..shape.heads }, ..shape });
        }
    }
    shapes.push(shape(2, 1, 160, Some(17), &[34]));
    shapes.push(shape(1, 1, 80, None, &[129, 64, 1, 1, 63]));
    shapes.push(shape(2, 1, wide, None, &[65, 1, 130]));
    if bench.stored() == Dtype::Bf16 {
        // Longer than the stages that tiles wait in, twice over; more work than blocks that take turns.
        shapes.push(shape(2, 1, narrow, None, &[520, 3]));
        shapes.push(shape(1, 1, narrow, Some(300), &[129, 530]));
        shapes.push(shape(2, 1, wide, None, &[515]));
    }
    shapes
}

/// Inputs of both passes, rounded to storage.
struct Inputs {
    data: crate::ops::PackData,
    qkv: Vec<f64>,
    out: Vec<f64>,
    lse: Vec<f64>,
    dout: Vec<f64>,
    dqkv: Vec<f64>,
}

fn inputs(bench: &Bench<'_>, shape: &Shape) -> Result<Inputs> {
    let Shape { heads, lengths } = shape;
    let mut random = Random::new(2);
    let data = documents(lengths, 7, &mut random);
    let n = data.tokens();
    // Scores with a spread of a few units, as in a trained model; not so flat that a wrong mask could hide.
    let qkv: Vec<f64> = random.vec(n * heads.qkv_width()).iter().map(|x| 2.0 * x).collect();
    let qkv = bench.round(&qkv);
    let dout = bench.round(&random.vec(n * heads.out_width()));
    let cpu = &bench.cpu;
    let mut pack = cpu.pack(n)?;
    cpu.load_pack(&mut pack, &data);
    let (mut out, mut lse) = (vec![0.0; n * heads.out_width()], vec![0.0; n * heads.h]);
    cpu.attention(&pack, *heads, &qkv, &mut out, &mut lse);
    // The backward pass reads what the forward pass stored.
    let (stored_out, stored_lse) =
        (bench.round(&out), lse.iter().map(|x| f64::from(*x as f32)).collect());
    let mut dqkv = vec![0.0; n * heads.qkv_width()];
    cpu.attention_bwd(
        &pack,
        *heads,
        AttentionSaved { qkv: &qkv, out: &stored_out, lse: &stored_lse },
        &dout,
        &mut dqkv,
    );
    Ok(Inputs { data, qkv, out, lse, dout, dqkv })
}

fn name(pass: &str, Shape { heads, lengths }: &Shape) -> String {
    let Heads { h, g, d, window, cap } = heads;
    format!("attention{pass} H={h} G={g} D={d} window={window:?} cap={cap:?} documents={lengths:?}")
}

fn forward(bench: &Bench<'_>, shape: &Shape) -> Verdict {
    let heads = shape.heads;
    bench.judge(name("", shape), || {
        let Inputs { data, qkv, out: want_out, lse: want_lse, .. } = inputs(bench, shape)?;
        let gpu = bench.gpu;
        let mut pack = gpu.pack(data.tokens())?;
        gpu.load_pack(&mut pack, &data);
        let (mut out, mut lse) =
            (bench.stale_act(want_out.len())?, bench.stale_stat(want_lse.len())?);
        gpu.attention(&pack, heads, &bench.act(&qkv)?, &mut out, &mut lse);
        let longest = shape.lengths.iter().copied().max().unwrap_or(0);
        Ok(vec![
            Output {
                name: "out",
                got: bench.read_act(&out, want_out.len()),
                want: want_out,
                stored: bench.stored(),
                sums: (Dtype::F32, longest + heads.d),
            },
            Output {
                name: "lse",
                got: bench.read_stat(&lse, want_lse.len()),
                want: want_lse,
                stored: Dtype::F32,
                sums: (Dtype::F32, longest + heads.d),
            },
        ])
    })
}

fn backward(bench: &Bench<'_>, shape: &Shape) -> Verdict {
    let heads = shape.heads;
    bench.judge(name(" backward", shape), || {
        let Inputs { data, qkv, out, lse, dout, dqkv } = inputs(bench, shape)?;
        let gpu = bench.gpu;
        let mut pack = gpu.pack(data.tokens())?;
        gpu.load_pack(&mut pack, &data);
        let mut got = bench.stale_act(dqkv.len())?;
        let (qkv, out, dout) = (bench.act(&qkv)?, bench.act(&out)?, bench.act(&dout)?);
        gpu.attention_bwd(
            &pack,
            heads,
            AttentionSaved { qkv: &qkv, out: &out, lse: &bench.stat(&lse)? },
            &dout,
            &mut got,
        );
        let got = bench.read_act(&got, dqkv.len());
        let longest = shape.lengths.iter().copied().max().unwrap_or(0) * (heads.h / heads.g);
        let sums = (Dtype::F32, longest + heads.d);
        let stored = bench.stored();
        // The tensor-core kernels round p and ds to bf16 on their way into dv, dq and dk. The terms of ds cancel, so that
        // the rounding counts against a sum smaller than they are; dv may be one term, which p's rounding moves by as
        // much again as its own.
        let tensor = stored == Dtype::Bf16
            && [64, 80, 96, 128].contains(&heads.d)
            && (heads.cap.is_none() || heads.d == 128);
        let scores = if tensor { (Dtype::Bf16, 0) } else { sums };
        // Where every query sees one key alone, dq and dk are what is left of two equal numbers: 0 in exact
        // arithmetic, so there the largest number of all three is the scale.
        if heads.window == Some(1) || shape.lengths.iter().all(|len| *len == 1) {
            return Ok(vec![Output { name: "dqkv", got, want: dqkv, stored, sums }]);
        }
        // Else each against its own: a wrong dq must not hide behind a large dv.
        let width = heads.qkv_width();
        let part = |x: usize| match x % width / heads.d {
            head if head < heads.h => 0,
            head if head < heads.h + heads.g => 1,
            _ => 2,
        };
        Ok(["dq", "dk", "dv"]
            .into_iter()
            .enumerate()
            .map(|(which, name)| Output {
                name,
                got: (0..got.len()).filter(|i| part(*i) == which).map(|i| got[i]).collect(),
                want: (0..got.len()).filter(|i| part(*i) == which).map(|i| dqkv[i]).collect(),
                stored,
                sums: scores,
            })
            .collect())
    })
}

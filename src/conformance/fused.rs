//! Products with the next op behind them, against product and op one after the other.

use super::{
    Bench, Dtype, Output, Random, TILES, Verdict, documents, sm90_tiles, with_few_rows, with_tile,
};
use crate::backend::gpu::{Gpu, Tile};
use crate::ops::{
    Compute, Heads, LinearArgs, LinearShape, Memory, Mlp, RopeTable, Rotation, Transfer,
};

/// H, G, D, pairs and C of qkv products: heads that fit a tile, that fit only a larger one, that fit none; part of a
/// head; widths that are not whole packs.
const HEADS: [(usize, usize, usize, usize, usize); 8] = [
    (2, 1, 64, 32, 96),
    (3, 3, 64, 8, 40),
    (2, 1, 128, 64, 72),
    (5, 1, 32, 16, 136),
    (1, 1, 80, 40, 64),
    (3, 1, 10, 5, 41),
    (2, 2, 64, 32, 41),
    (2, 1, 64, 0, 64),
];

/// Rows, F and C of SwiGLU products: one number, odd widths, ragged tiles, several tiles each way.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (9, 40, 72),
    (3, 41, 401),
    (17, 64, 96),
    (65, 40, 72),
    (130, 136, 40),
    (2, 264, 33),
    (129, 200, 264),
];

/// Heads and pairs for the tiles of compute capability 9.0, H, G, D, pairs and C: several tiles, of which some turn in
/// part, and sums that go round the ring of stages twice.
const SM90_HEADS: [(usize, usize, usize, usize, usize); 3] =
    [(3, 1, 128, 64, 520), (5, 1, 64, 32, 648), (1, 1, 128, 64, 8)];

/// Rows, F and C of SwiGLU products for these tiles.
const SM90_SHAPES: [(usize, usize, usize); 3] = [(301, 264, 520), (130, 136, 648), (9, 8, 16)];

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    let more = sm90_tiles(&bench).iter().map(|&tile| Some(tile));
    for (tile, few) in with_few_rows(TILES.into_iter().chain(more.clone())) {
        let mut with = |case: &dyn Fn() -> Verdict| {
            bench.gpu.single_tokens(few);
            let verdict = with_tile(&bench, tile, case);
            bench.gpu.single_tokens(false);
            verdicts.push(Verdict { case: format!("{} few {few}", verdict.case), ..verdict });
        };
        for (i, shape) in HEADS.into_iter().enumerate() {
            for (lengths, bias) in [(&[1][..], true), (&[70, 1, 66], i % 2 == 0)] {
                with(&|| rope(&bench, (tile, few), lengths, shape, bias));
            }
        }
        for (i, shape) in SHAPES.into_iter().enumerate() {
            with(&|| swiglu(&bench, tile, shape, i % 2 == 0, true));
            with(&|| swiglu(&bench, tile, shape, i % 2 == 1, false));
            with(&|| swiglu_backward(&bench, tile, shape));
        }
    }
    for tile in more {
        let mut with = |case: &dyn Fn() -> Verdict| verdicts.push(with_tile(&bench, tile, case));
        for (i, shape) in SM90_HEADS.into_iter().enumerate() {
            with(&|| rope(&bench, (tile, false), &[70, 1, 230], shape, i % 2 == 0));
        }
        for shape in SM90_SHAPES {
            with(&|| swiglu(&bench, tile, shape, true, true));
            with(&|| swiglu(&bench, tile, shape, false, false));
            with(&|| swiglu_backward(&bench, tile, shape));
        }
    }
    verdicts
}

fn rope(
    bench: &Bench<'_>,
    (tile, few): (Option<Tile>, bool),
    lengths: &[usize],
    (h, g, d, half, c): (usize, usize, usize, usize, usize),
    bias: bool,
) -> Verdict {
    let heads = Heads { h, g, d, window: None, cap: None };
    let name = format!("linear rope {lengths:?} {heads:?} half {half} C {c} {bias} {tile:?}");
    let mut random = Random::new(6);
    let data = documents(lengths, 7, &mut random);
    let (n, width) = (data.tokens(), heads.qkv_width());
    let x = bench.round(&random.vec(n * c));
    let w = bench.round(&random.vec(width * c));
    let b = bench.round(&random.vec(width));
    let inv_freq = (0..half).map(|i| 1e4f64.powf(-(i as f64) / half as f64)).collect();
    let table = RopeTable { inv_freq, scale: 1.25 };
    bench.judge(name, || {
        let (mut pack, mut pack_cpu) = (bench.gpu.pack(n)?, bench.cpu.pack(0)?);
        bench.gpu.load_pack(&mut pack, &data);
        bench.cpu.load_pack(&mut pack_cpu, &data);
        let (on_x, on_w, on_b) = (bench.act(&x)?, bench.act(&w)?, bench.act(&b)?);
        let mut qkv = bench.stale_act(n * width)?;
        let bias_on = bias.then(|| on_b.as_weight());
        let shape = LinearShape { n, o: width, i: c };
        let args = LinearArgs { shape, x: &on_x, w: on_w.as_weight(), bias: bias_on };
        bench.gpu.linear_rope(args, Rotation { pack: &pack, heads, table: &table }, &mut qkv);
        let mut want = vec![0.0; n * width];
        let bias = bias.then_some(&b[..]);
        let args = LinearArgs { shape, x: &x, w: &w[..], bias };
        bench.cpu.linear_rope(args, Rotation { pack: &pack_cpu, heads, table: &table }, &mut want);
        let got = bench.read_act(&qkv, n * width);
        // Where the rotation must be a kernel of its own, as behind products with few rows, its input is rounded to
        // storage too.
        let few = few && n <= 128;
        let whole = d.is_power_of_two() && half % 8 == 0 && c % 8 == 0 && !few;
        let sums = match bench.stored() {
            Dtype::Bf16 if !whole => (Dtype::Bf16, 1),
            _ => (bench.products(), c),
        };
        Ok(vec![Output { name: "qkv", got, want, stored: bench.stored(), sums }])
    })
}

fn swiglu(
    bench: &Bench<'_>,
    tile: Option<Tile>,
    (n, f, c): (usize, usize, usize),
    bias: bool,
    keep: bool,
) -> Verdict {
    let name = format!("linear swiglu {n}x{f}x{c} bias {bias} keep {keep} {tile:?}");
    let mut random = Random::new(7);
    let x = bench.round(&random.vec(n * c));
    let w = bench.round(&random.vec(2 * f * c));
    let b = bench.round(&random.vec(2 * f));
    bench.judge(name, || {
        let (on_x, on_w, on_b) = (bench.act(&x)?, bench.act(&w)?, bench.act(&b)?);
        let (on_w, bias_on) = (on_w.as_weight(), bias.then(|| on_b.as_weight()));
        let (mut gate_up, mut y) = (bench.stale_act(2 * n * f)?, bench.stale_act(n * f)?);
        let shape = LinearShape { n, o: 2 * f, i: c };
        let args = LinearArgs { shape, x: &on_x, w: on_w, bias: bias_on };
        bench.gpu.linear_mlp(args, Mlp::SWIGLU, keep, &mut gate_up, &mut y);
        let mut want = vec![0.0; 2 * n * f];
        let bias = bias.then_some(&b[..]);
        bench.cpu.linear(LinearArgs { shape, x: &x, w: &w[..], bias }, None, &mut want);
        // Both ops of their own on the same device, which the fused one must equal to the bit.
        let (mut rows, mut apart) = (bench.stale_act(2 * n * f)?, bench.stale_act(n * f)?);
        bench.gpu.linear(args, None, &mut rows);
        bench.gpu.mlp(n, f, Mlp::SWIGLU, &rows, &mut apart);
        let stored = bench.stored();
        let equal = |name, got, want: Vec<f32>| {
            let want = want.into_iter().map(f64::from).collect();
            Output { name, got, want, stored: Dtype::F64, sums: (Dtype::F64, 0) }
        };
        let mut outputs = vec![
            equal("y", bench.read_act(&y, n * f), bench.read_act(&apart, n * f)),
            Output {
                name: "gate_up",
                got: bench.read_act(&rows, 2 * n * f),
                want,
                stored,
                sums: (bench.products(), c),
            },
        ];
        if keep {
            let all = 2 * n * f;
            let pair = (bench.read_act(&gate_up, all), bench.read_act(&rows, all));
            outputs.push(equal("gate_up kept", pair.0, pair.1));
        }
        Ok(outputs)
    })
}

fn swiglu_backward(
    bench: &Bench<'_>,
    tile: Option<Tile>,
    (n, f, c): (usize, usize, usize),
) -> Verdict {
    let name = format!("linear dgrad swiglu {n}x{f}x{c} {tile:?}");
    let mut random = Random::new(8);
    let dy = bench.round(&random.vec(n * c));
    let w = bench.round(&random.vec(c * f));
    let gates: Vec<f64> = random.vec(2 * n * f).iter().map(|x| 8.0 * x).collect();
    let gate_up = bench.round(&gates);
    bench.judge(name, || {
        let (on_dy, on_w) = (bench.act(&dy)?, bench.act(&w)?);
        let (mut on, mut y) = (bench.act(&gate_up)?, bench.stale_act(n * f)?);
        let on_w = on_w.as_weight();
        let (shape, mlp) = (LinearShape { n, o: c, i: f }, Mlp::SWIGLU);
        bench.gpu.linear_dgrad_mlp(shape, mlp, &on_dy, on_w, &mut on, &mut y);
        let (mut want, mut want_y) = (gate_up.clone(), vec![0.0; n * f]);
        bench.cpu.linear_dgrad_mlp(shape, mlp, &dy, &w, &mut want, &mut want_y);
        let stored = bench.stored();
        let (got, got_y) = (bench.read_act(&on, 2 * n * f), bench.read_act(&y, n * f));
        Ok(vec![
            Output { name: "gate_up", got, want, stored, sums: (bench.products(), c) },
            Output { name: "y", got: got_y, want: want_y, stored, sums: (Dtype::F32, 4) },
        ])
    })
}

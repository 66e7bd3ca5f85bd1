//! Linear maps: forward, both gradients and the bias gradient.

use super::{Bench, Dtype, Output, Random, TILES, Verdict, grad, sm90_tiles, with_tile};
use crate::backend::cpu::Grad as CpuGrad;
use crate::backend::gpu::Gpu;
use crate::error::{Error, Kind, Result};
use crate::ops::{Compute, LinearArgs, LinearShape, Memory, State, StateMode, Sweep, Transfer};

/// Rows, outputs and inputs: single numbers, odd widths, ragged tiles of every size, sums that cross several stages.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (1, 8, 8),
    (3, 41, 401),
    (2, 3, 5),
    (17, 9, 41),
    (1, 64, 96),
    (5, 72, 40),
    (64, 64, 64),
    (65, 72, 136),
    (130, 8, 24),
    (7, 200, 264),
    (63, 1, 33),
    (33, 136, 8),
    (100, 48, 520),
];

/// Shapes for the tiles of compute capability 9.0: sums that go round the ring of stages twice and end inside one,
/// several tiles for each block of a small device, ragged ends of every kind; rows that cross a group of tiles, and rows
/// that fill one.
const SM90_SHAPES: [(usize, usize, usize); 6] =
    [(301, 520, 648), (130, 264, 1096), (64, 64, 64), (2100, 264, 8), (9, 8, 16), (2048, 72, 8)];

/// Weight gradients whose tokens come in two and three parts, the last one short: packed rows, and rows that are not.
const PARTS: [(usize, usize, usize); 3] = [(2051, 72, 136), (3100, 264, 8), (2060, 9, 41)];

/// Weight gradients that are whole tiles, and ragged in rows and in columns.
const SCANNED: [(usize, usize, usize); 3] = [(65, 256, 256), (40, 328, 512), (72, 512, 200)];

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for (n, o, i) in SHAPES {
        for (bias, residual) in [(false, false), (true, false), (false, true), (true, true)] {
            verdicts.push(forward(&bench, (n, o, i), bias, residual));
        }
        verdicts.push(dgrad(&bench, (n, o, i)));
        for mode in [StateMode::Exact, StateMode::Compact] {
            verdicts.push(wgrad(&bench, (n, o, i), mode));
        }
    }
    bench.gpu.single_tokens(true);
    for (n, o, i) in SHAPES.into_iter().chain([(16, 40, 264), (33, 72, 1032), (128, 48, 392)]) {
        let case = forward(&bench, (n, o, i), n % 2 == 0, o % 3 == 0);
        verdicts.push(Verdict { case: format!("{} few rows", case.case), ..case });
    }
    bench.gpu.single_tokens(false);
    // Tiles that these shapes are too small for, two each way and the last ones ragged.
    for tile in TILES.into_iter().skip(1) {
        for (n, o, i) in [(130, 264, 72), (200, 520, 136), (129, 8, 392)] {
            let named = |case: Verdict| Verdict { case: format!("{} {tile:?}", case.case), ..case };
            let with = |case: &dyn Fn() -> Verdict| named(with_tile(&bench, tile, case));
            verdicts.push(with(&|| forward(&bench, (n, o, i), true, true)));
            verdicts.push(with(&|| dgrad(&bench, (n, i, o))));
            verdicts.push(with(&|| wgrad(&bench, (i, n, o), StateMode::Compact)));
        }
    }
    for &tile in sm90_tiles(&bench) {
        let named = |case: Verdict| Verdict { case: format!("{} {tile:?}", case.case), ..case };
        let with = |case: &dyn Fn() -> Verdict| named(with_tile(&bench, Some(tile), case));
        for (i, (n, o, c)) in SM90_SHAPES.into_iter().enumerate() {
            verdicts.push(with(&|| forward(&bench, (n, o, c), i % 2 == 0, i % 3 < 2)));
            verdicts.push(with(&|| forward(&bench, (n, o, c), i % 2 == 1, i % 3 == 2)));
            verdicts.push(with(&|| dgrad(&bench, (n, c, o))));
            // Odd sums of tokens; every other length is a pitch.
            for mode in [StateMode::Exact, StateMode::Compact] {
                verdicts.push(with(&|| wgrad(&bench, (c + 1, n.next_multiple_of(8), o), mode)));
            }
        }
        for (i, shape) in SCANNED.into_iter().enumerate() {
            for mode in [StateMode::Exact, StateMode::Compact] {
                for factor in [1.0, [1e25, 1e-25][i % 2]] {
                    verdicts.push(with(&|| scanned(&bench, shape, mode, factor, i == 0)));
                }
            }
        }
    }
    let sm90 = sm90_tiles(&bench).iter().map(|&tile| Some(tile));
    for (i, tile) in [None].into_iter().chain(sm90).enumerate() {
        for (j, shape) in PARTS.into_iter().enumerate() {
            let mode = [StateMode::Exact, StateMode::Compact][(i + j) % 2];
            let case = with_tile(&bench, tile, || wgrad(&bench, shape, mode));
            verdicts.push(Verdict { case: format!("{} {tile:?}", case.case), ..case });
        }
    }
    // A slab is 256 rows, a block 256 columns.
    for (n, o) in [(1, 1), (3, 41), (5, 256), (256, 8), (257, 264), (600, 401)] {
        for mode in [StateMode::Exact, StateMode::Compact] {
            verdicts.push(bias_grad(&bench, (n, o), mode));
        }
    }
    verdicts
}

type Shape = (usize, usize, usize);

fn forward(bench: &Bench<'_>, (n, o, i): Shape, bias: bool, residual: bool) -> Verdict {
    let case = format!("linear {n}x{o}x{i} bias {bias} residual {residual}");
    let mut random = Random::new(12);
    let x = bench.round(&random.vec(n * i));
    let w = bench.round(&random.vec(o * i));
    let b = bench.round(&random.vec(o));
    let r = bench.round(&random.vec(n * o));
    bench.judge(case, || {
        let (dx, dw, db, dr) = (bench.act(&x)?, bench.act(&w)?, bench.act(&b)?, bench.act(&r)?);
        let mut y = bench.stale_act(n * o)?;
        let bias_on = bias.then(|| db.as_weight());
        let residual_on = residual.then_some(&dr);
        let shape = LinearShape { n, o, i };
        let args = LinearArgs { shape, x: &dx, w: dw.as_weight(), bias: bias_on };
        bench.gpu.linear(args, residual_on, &mut y);
        let mut want = vec![0.0; n * o];
        let (bias, residual) = (bias.then_some(&b[..]), residual.then_some(&r));
        bench.cpu.linear(LinearArgs { shape, x: &x, w: &w[..], bias }, residual, &mut want);
        Ok(vec![product(bench, "y", bench.read_act(&y, n * o), want, i)])
    })
}

fn dgrad(bench: &Bench<'_>, (n, o, i): Shape) -> Verdict {
    let case = format!("linear dgrad {n}x{o}x{i}");
    let mut random = Random::new(13);
    let dy = bench.round(&random.vec(n * o));
    let w = bench.round(&random.vec(o * i));
    bench.judge(case, || {
        let (ddy, dw) = (bench.act(&dy)?, bench.act(&w)?);
        let mut dx = bench.stale_act(n * i)?;
        bench.gpu.linear_dgrad(LinearShape { n, o, i }, &ddy, dw.as_weight(), &mut dx);
        let mut want = vec![0.0; n * i];
        bench.cpu.linear_dgrad(LinearShape { n, o, i }, &dy, &w, &mut want);
        Ok(vec![product(bench, "dx", bench.read_act(&dx, n * i), want, o)])
    })
}

/// The first write, and what two more add up to.
fn wgrad(bench: &Bench<'_>, (n, o, i): Shape, mode: StateMode) -> Verdict {
    let case = format!("linear wgrad {n}x{o}x{i} {mode:?}");
    let mut random = Random::new(14);
    let dy = bench.round(&random.vec(n * o));
    let x = bench.round(&random.vec(n * i));
    bench.judge(case, || {
        let (ddy, dx) = (bench.act(&dy)?, bench.act(&x)?);
        accumulated(
            bench,
            (o * i, n, bench.products()),
            mode,
            |grad| bench.gpu.linear_wgrad(LinearShape { n, o, i }, &ddy, &dx, grad),
            |grad| bench.cpu.linear_wgrad(LinearShape { n, o, i }, &dy, &x, grad),
        )
    })
}

/// The scan that the last product of a step leaves of a gradient, beside the gradient itself; numbers are around `factor`,
/// and with `bad` some are not finite.
fn scanned(
    bench: &Bench<'_>,
    (n, o, i): Shape,
    mode: StateMode,
    factor: f64,
    bad: bool,
) -> Verdict {
    let case = format!("linear scan {n}x{o}x{i} {mode:?} {factor:e} bad {bad}");
    let mut random = Random::new(15);
    let mut dy = random.vec(n * o);
    let x = bench.round(&random.vec(n * i));
    if bad {
        (dy[7], dy[o + 200]) = (f64::NAN, f64::INFINITY);
    }
    let dy = bench.round(&dy.iter().map(|y| y * factor).collect::<Vec<_>>());
    bench.judge(case, || {
        let (ddy, dx) = (bench.act(&dy)?, bench.act(&x)?);
        let mut got = grad(bench.gpu, o * i, mode)?;
        let mut scans = Vec::new();
        for last in [false, true] {
            bench.gpu.last_writes(last);
            bench.gpu.linear_wgrad(LinearShape { n, o, i }, &ddy, &dx, &mut got);
            bench.gpu.last_writes(false);
            scans.push(got.scanned() > 0);
        }
        if scans != [false, true] {
            let text = format!("scanned by the product: {scans:?}, wanted the last one alone");
            return Err(Error::new(Kind::Device, text));
        }
        let scan = bench.gpu.scan_grad(&got);
        let mut numbers = vec![f32::NAN; o * i];
        bench.gpu.read_grad(&got, &mut numbers);
        let largest = numbers.iter().fold(0.0, |a: f64, x| a.max(f64::from(x.abs())));
        let nonfinite = numbers.iter().filter(|x| !x.is_finite()).count();
        let (mut found, mut want) = (vec![scan.nonfinite as f32], vec![nonfinite as f64]);
        if bad {
            found.push(f32::from(scan.max_abs.is_infinite()));
            want.push(f64::from(largest.is_infinite()));
        } else {
            let sum: f64 = numbers.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            found.extend([(scan.max_abs / largest) as f32, (scan.sum_sq / sum) as f32]);
            want.extend([1.0, 1.0]);
        }
        let (stored, sums) = (Dtype::F32, (Dtype::F32, 1));
        Ok(vec![Output { name: "not finite, largest, squares", got: found, want, stored, sums }])
    })
}

fn bias_grad(bench: &Bench<'_>, (n, o): (usize, usize), mode: StateMode) -> Verdict {
    let case = format!("bias grad {n}x{o} {mode:?}");
    let mut random = Random::new(16);
    let dy = bench.round(&random.vec(n * o));
    bench.judge(case, || {
        let ddy = bench.act(&dy)?;
        accumulated(
            bench,
            (o, n, Dtype::F32),
            mode,
            |grad| bench.gpu.bias_grad(n, o, &ddy, grad),
            |grad| bench.cpu.bias_grad(n, o, &dy, grad),
        )
    })
}

/// Writes a gradient of `len` entries, sums of `terms` products, once and then twice more; compares both.
fn accumulated(
    bench: &Bench<'_>,
    (len, terms, products): (usize, usize, Dtype),
    mode: StateMode,
    on_gpu: impl Fn(&mut <Gpu as Memory>::Grad),
    on_cpu: impl Fn(&mut CpuGrad<f64>),
) -> Result<Vec<Output>> {
    let mut got = grad(bench.gpu, len, mode)?;
    let mut want = CpuGrad::wide(len);
    let mut outputs = Vec::new();
    for (name, writes) in [("first write", 1), ("three writes", 2)] {
        for _ in 0..writes {
            on_gpu(&mut got);
            on_cpu(&mut want);
        }
        let mut numbers = vec![f32::NAN; len];
        bench.gpu.read_grad(&got, &mut numbers);
        let mut expected = vec![0.0; len];
        want.read(&mut expected);
        // A bf16 gradient is rounded at every write, which then outweighs what the products lose.
        let (stored, sums) = match mode {
            StateMode::Compact if writes > 1 => (Dtype::Bf16, (Dtype::Bf16, 3)),
            StateMode::Compact => (Dtype::Bf16, (products, terms)),
            _ => (Dtype::F32, (products, 3 * terms)),
        };
        outputs.push(Output { name, got: numbers, want: expected, stored, sums });
    }
    Ok(outputs)
}

fn product(
    bench: &Bench<'_>,
    name: &'static str,
    got: Vec<f32>,
    want: Vec<f64>,
    terms: usize,
) -> Output {
    Output { name, got, want, stored: bench.stored(), sums: (bench.products(), terms) }
}

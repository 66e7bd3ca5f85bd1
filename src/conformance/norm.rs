//! RMSNorm of rows and of heads, forward and backward.

use super::embed::grad_output;
use super::{Bench, Dtype, Output, Random, Verdict, grad};
use crate::backend::cpu::Grad as CpuGrad;
use crate::backend::gpu::Gpu;
use crate::ops::{Compute, Heads, Norm, NormArgs, NormGrads, QkNormArgs, StateMode};

const EPS: f64 = 1e-5;

/// Tells whether weights count from 1 and a residual is added; not at width 1, where all but rounding cancels.
fn extends(c: usize) -> bool {
    c > 1 && c % 5 == 1
}

fn norm(c: usize) -> Norm {
    Norm { offset: f64::from(u8::from(extends(c))), ..Norm::rms(c, EPS) }
}

/// Takes the signs off numbers at width 1: there is one gain, whose gradient may else cancel to rounding, and none beside it
/// to measure that against.
fn plain(c: usize, numbers: Vec<f64>) -> Vec<f64> {
    if c > 1 { numbers } else { numbers.into_iter().map(f64::abs).collect() }
}

/// Puts the size of the terms of dx beside it at width 1, where they cancel but for rounding: the largest of `terms`, gain, dy
/// and rstd of an entry.
fn beside_terms(mut output: Output, terms: impl Iterator<Item = [f64; 3]>) -> Output {
    let size = terms.map(|term| term.iter().product::<f64>().abs()).fold(0.0, f64::max);
    output.got.push(size as f32);
    output.want.push(size);
    output
}

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for n in [1, 3, 67] {
        for c in [1, 3, 41, 64, 401, 576] {
            verdicts.push(rows(&bench, n, c, StateMode::Exact));
            verdicts.push(rows(&bench, n, c, StateMode::Compact));
        }
    }
    // A block a row; one that registers do not hold; one that is not aligned.
    for c in [1025, 2048, 8192, 8200, 9001] {
        verdicts.push(rows(&bench, 2, c, StateMode::Compact));
    }
    for n in [1, 9, 70] {
        for (h, g, d) in [(1, 1, 1), (4, 2, 64), (3, 1, 41)] {
            verdicts.push(heads(
                &bench,
                n,
                Heads { h, g, d, window: None, cap: None },
                StateMode::Exact,
            ));
        }
    }
    // A block a head.
    let wide = Heads { h: 2, g: 1, d: 1032, window: None, cap: None };
    verdicts.push(heads(&bench, 3, wide, StateMode::Compact));
    verdicts
}

fn rows(bench: &Bench<'_>, n: usize, c: usize, mode: StateMode) -> Verdict {
    let name = format!("rmsnorm {n}x{c} {mode:?}");
    let mut random = Random::new(18);
    let [x, dy, dx] = [0; 3].map(|_| bench.round(&plain(c, random.vec(n * c))));
    let gain = bench.round(&random.vec(c));
    let more = bench.round(&random.vec(n * c));
    let (norm, adds) = (norm(c), extends(c));
    bench.judge(name, || {
        let (x_on, dy_on, gain_on) = (bench.act(&x)?, bench.act(&dy)?, bench.act(&gain)?);
        let (mut y, mut rstd, mut dx_on) =
            (bench.stale_act(n * c)?, bench.stale_stat(n)?, bench.act(&dx)?);
        let mut dgain = grad(bench.gpu, c, mode)?;
        let w = gain_on.as_weight();
        let more_on = bench.act(&more)?;
        let residual = adds.then_some(&more_on);
        let args = NormArgs { n, norm, x: &x_on, gain: w, bias: None };
        bench.gpu.norm(args, residual, &mut y, &mut rstd);
        let to = NormGrads { gain: Some(&mut dgain), bias: None };
        bench.gpu.norm_bwd(args, &dy_on, &rstd, &mut dx_on, to);
        let (mut y_want, mut rstd_want, mut dx_want) = (vec![0.0; n * c], vec![0.0; n], dx.clone());
        let mut dgain_want = CpuGrad::wide(c);
        let residual = adds.then_some(&more);
        let args = NormArgs { n, norm, x: &x, gain: &gain[..], bias: None };
        bench.cpu.norm(args, residual, &mut y_want, &mut rstd_want);
        let to = NormGrads { gain: Some(&mut dgain_want), bias: None };
        bench.cpu.norm_bwd(args, &dy, &rstd_want, &mut dx_want, to);
        let (stored, sums) = (bench.stored(), (Dtype::F32, c));
        let (y, dx) = (bench.read_act(&y, n * c), bench.read_act(&dx_on, n * c));
        let rstd = bench.read_stat(&rstd, n);
        let mut dx = Output { name: "dx", got: dx, want: dx_want, stored, sums };
        if c == 1 {
            dx = beside_terms(dx, (0..n).map(|r| [gain[0], dy[r], rstd_want[r]]));
        }
        Ok(vec![
            Output { name: "y", got: y, want: y_want, stored, sums },
            Output { name: "rstd", got: rstd, want: rstd_want, stored: Dtype::F32, sums },
            dx,
            grad_output(bench.gpu, &dgain, &dgain_want, mode, (Dtype::F32, n), 1),
        ])
    })
}

fn heads(bench: &Bench<'_>, n: usize, heads: Heads, mode: StateMode) -> Verdict {
    let name = format!("qk_norm {n} {heads:?}");
    let mut random = Random::new(19);
    let (len, d, normed) = (n * heads.qkv_width(), heads.d, heads.h + heads.g);
    let [raw, dqkv] = [0; 2].map(|_| bench.round(&plain(d, random.vec(len))));
    let gains = [0; 2].map(|_| bench.round(&random.vec(d)));
    let norm = norm(d);
    bench.judge(name, || {
        let (raw_on, mut dqkv_on) = (bench.act(&raw)?, bench.act(&dqkv)?);
        let gains_on = [bench.act(&gains[0])?, bench.act(&gains[1])?];
        let w = [gains_on[0].as_weight(), gains_on[1].as_weight()];
        let (mut qkv, mut rstd) = (bench.stale_act(len)?, bench.stale_stat(n * normed)?);
        let (mut dq, mut dk) = (grad(bench.gpu, d, mode)?, grad(bench.gpu, d, mode)?);
        let args = QkNormArgs { n, heads, norm, raw: &raw_on, gains: w };
        bench.gpu.qk_norm(args, &mut qkv, &mut rstd);
        let to = Some([&mut dq, &mut dk]);
        bench.gpu.qk_norm_bwd(args, &rstd, &mut dqkv_on, to);
        let w = [&gains[0][..], &gains[1][..]];
        let args = QkNormArgs { n, heads, norm, raw: &raw, gains: w };
        let (mut want, mut rstd_want, mut dwant) =
            (vec![0.0; len], vec![0.0; n * normed], dqkv.clone());
        let (mut dq_want, mut dk_want) = (CpuGrad::wide(d), CpuGrad::wide(d));
        bench.cpu.qk_norm(args, &mut want, &mut rstd_want);
        let to = Some([&mut dq_want, &mut dk_want]);
        bench.cpu.qk_norm_bwd(args, &rstd_want, &mut dwant, to);
        let (stored, sums) = (bench.stored(), (Dtype::F32, d));
        let (y, dx) = (bench.read_act(&qkv, len), bench.read_act(&dqkv_on, len));
        let rstd = bench.read_stat(&rstd, n * normed);
        let terms = (Dtype::F32, n * heads.h);
        let mut dx = Output { name: "dqkv", got: dx, want: dwant, stored, sums };
        if d == 1 {
            let width = heads.qkv_width();
            let term = |at: usize| {
                let (row, head) = (at / normed, at % normed);
                let gain = gains[usize::from(head >= heads.h)][0];
                [gain, dqkv[row * width + head], rstd_want[at]]
            };
            dx = beside_terms(dx, (0..n * normed).map(term));
        }
        Ok(vec![
            Output { name: "qkv", got: y, want, stored, sums },
            Output { name: "rstd", got: rstd, want: rstd_want, stored: Dtype::F32, sums },
            dx,
            grad_output(bench.gpu, &dq, &dq_want, mode, terms, 1),
            grad_output(bench.gpu, &dk, &dk_want, mode, terms, 1),
        ])
    })
}

//! LayerNorm of rows, forward and backward.

use super::embed::grad_output;
use super::{Bench, Dtype, Output, Random, Verdict, grad};
use crate::backend::cpu::Grad as CpuGrad;
use crate::backend::gpu::Gpu;
use crate::ops::{Compute, Norm, NormArgs, NormGrads, StateMode};

const EPS: f64 = 1e-5;

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for n in [1, 3, 67] {
        for c in [2, 3, 41, 64, 401, 576] {
            verdicts.push(rows(&bench, n, c, StateMode::Exact));
            verdicts.push(rows(&bench, n, c, StateMode::Compact));
        }
    }
    // A block a row; one that registers do not hold; one that is not aligned.
    for c in [1025, 2048, 8192, 8200, 9001] {
        verdicts.push(rows(&bench, 2, c, StateMode::Compact));
    }
    verdicts
}

fn rows(bench: &Bench<'_>, n: usize, c: usize, mode: StateMode) -> Verdict {
    let name = format!("layernorm {n}x{c} {mode:?}");
    let mut random = Random::new(11);
    // A mean that is not 0, so that it has to be taken off, and rows whose numbers are never all near it, where rounding
    // of the input would be seen magnified.
    let sides = (0..c).map(|i| if i % 2 == 0 { 1.5 } else { -0.5 }).cycle();
    let x: Vec<f64> = random.vec(n * c).iter().zip(sides).map(|(x, side)| side + 0.4 * x).collect();
    let x = bench.round(&x);
    let [dy, dx] = [0; 2].map(|_| bench.round(&random.vec(n * c)));
    let [gain, bias] = [0; 2].map(|_| bench.round(&random.vec(c)));
    bench.judge(name, || {
        let (x_on, dy_on) = (bench.act(&x)?, bench.act(&dy)?);
        let (gain_on, bias_on) = (bench.act(&gain)?, bench.act(&bias)?);
        let (mut y, mut stats, mut dx_on) =
            (bench.stale_act(n * c)?, bench.stale_stat(2 * n)?, bench.act(&dx)?);
        let mut dgain = grad(bench.gpu, c, mode)?;
        let mut dbias = grad(bench.gpu, c, mode)?;
        let norm = Norm::layer(c, EPS);
        let bias_on = Some(bias_on.as_weight());
        let args = NormArgs { n, norm, x: &x_on, gain: gain_on.as_weight(), bias: bias_on };
        bench.gpu.norm(args, None, &mut y, &mut stats);
        let to = NormGrads { gain: Some(&mut dgain), bias: Some(&mut dbias) };
        bench.gpu.norm_bwd(args, &dy_on, &stats, &mut dx_on, to);
        let (mut want, mut stats_want, mut dx_want) =
            (vec![0.0; n * c], vec![0.0; 2 * n], dx.clone());
        let mut dgain_want = CpuGrad::wide(c);
        let mut dbias_want = CpuGrad::wide(c);
        let args = NormArgs { n, norm, x: &x, gain: &gain[..], bias: Some(&bias[..]) };
        bench.cpu.norm(args, None, &mut want, &mut stats_want);
        let to = NormGrads { gain: Some(&mut dgain_want), bias: Some(&mut dbias_want) };
        bench.cpu.norm_bwd(args, &dy, &stats_want, &mut dx_want, to);
        let (stored, sums) = (bench.stored(), (Dtype::F32, c));
        let (y, dx) = (bench.read_act(&y, n * c), bench.read_act(&dx_on, n * c));
        let stats = bench.read_stat(&stats, 2 * n);
        Ok(vec![
            Output { name: "y", got: y, want, stored, sums },
            Output { name: "stats", got: stats, want: stats_want, stored: Dtype::F32, sums },
            Output { name: "dx", got: dx, want: dx_want, stored, sums },
            grad_output(bench.gpu, &dgain, &dgain_want, mode, (Dtype::F32, n), 1),
            grad_output(bench.gpu, &dbias, &dbias_want, mode, (Dtype::F32, n), 1),
        ])
    })
}

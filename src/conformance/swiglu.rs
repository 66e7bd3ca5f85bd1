//! SwiGLU, forward and backward.

use super::{Bench, Dtype, Output, Random, Verdict};
use crate::backend::gpu::Gpu;
use crate::ops::{Compute, Mlp};

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for n in [1, 3, 17] {
        for f in [1, 3, 8, 41, 64, 401, 1536] {
            verdicts.push(case(&bench, n, f, false));
            verdicts.push(case(&bench, n, f, true));
        }
    }
    verdicts
}

fn case(bench: &Bench<'_>, n: usize, f: usize, backward: bool) -> Verdict {
    let name = format!("swiglu {n}x{f} backward {backward}");
    let mut random = Random::new(30);
    let wide: Vec<f64> = random.vec(2 * n * f).iter().map(|x| 8.0 * x).collect();
    let (gate_up, dy) = (bench.round(&wide), bench.round(&random.vec(n * f)));
    bench.judge(name, || {
        let mut on = bench.act(&gate_up)?;
        if !backward {
            let mut y = bench.stale_act(n * f)?;
            bench.gpu.mlp(n, f, Mlp::SWIGLU, &on, &mut y);
            let mut want = vec![0.0; n * f];
            bench.cpu.mlp(n, f, Mlp::SWIGLU, &gate_up, &mut want);
            return Ok(vec![output(bench, "y", bench.read_act(&y, n * f), want)]);
        }
        let mut y = bench.act(&dy)?;
        bench.gpu.mlp_bwd(n, f, Mlp::SWIGLU, &mut y, &mut on);
        let (mut want, mut want_y) = (gate_up.clone(), dy.clone());
        bench.cpu.mlp_bwd(n, f, Mlp::SWIGLU, &mut want_y, &mut want);
        Ok(vec![
            output(bench, "gate_up", bench.read_act(&on, 2 * n * f), want),
            output(bench, "y", bench.read_act(&y, n * f), want_y),
        ])
    })
}

fn output(bench: &Bench<'_>, name: &'static str, got: Vec<f32>, want: Vec<f64>) -> Output {
    Output { name, got, want, stored: bench.stored(), sums: (Dtype::F32, 4) }
}

//! Activations of MLPs, forward and backward.

use super::{Bench, Dtype, Output, Random, Verdict};
use crate::backend::gpu::Gpu;
use crate::ops::{Activation, Compute, Mlp};

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        for gated in [false, true] {
            for (n, f) in [(1, 1), (3, 3), (17, 41), (3, 64), (5, 401), (2, 1536)] {
                verdicts.push(case(&bench, n, f, Mlp { activation, gated }));
            }
        }
    }
    verdicts
}

fn case(bench: &Bench<'_>, n: usize, f: usize, mlp: Mlp) -> Verdict {
    let name = format!("activation {n}x{f} {mlp:?}");
    let mut random = Random::new(1);
    let width = n * mlp.width(f);
    let wide: Vec<f64> = random.vec(width).iter().map(|x| 8.0 * x).collect();
    let (x, dy) = (bench.round(&wide), bench.round(&random.vec(n * f)));
    bench.judge(name, || {
        let (mut on, mut y, mut turned) =
            (bench.act(&x)?, bench.stale_act(n * f)?, bench.act(&dy)?);
        bench.gpu.mlp(n, f, mlp, &on, &mut y);
        bench.gpu.mlp_bwd(n, f, mlp, &mut turned, &mut on);
        let (mut want, mut dx, mut again) = (vec![0.0; n * f], x.clone(), dy.clone());
        bench.cpu.mlp(n, f, mlp, &x, &mut want);
        bench.cpu.mlp_bwd(n, f, mlp, &mut again, &mut dx);
        let (stored, sums) = (bench.stored(), (Dtype::F32, 4));
        let (y, turned) = (bench.read_act(&y, n * f), bench.read_act(&turned, n * f));
        // Made again to the bit.
        let first = y.iter().map(|y| f64::from(*y)).collect();
        let exact = (Dtype::F64, 0);
        Ok(vec![
            Output { name: "y", got: y, want, stored, sums },
            Output { name: "y again", got: turned, want: first, stored: Dtype::F64, sums: exact },
            Output { name: "dx", got: bench.read_act(&on, width), want: dx, stored, sums },
        ])
    })
}

//! Elementwise ops: SwiGLU and the other activations of MLPs, forward and backward.

use super::{Bench, Dtype, Output, Random, Verdict};
use crate::backend::cpu::Cpu;
use crate::backend::gpu::{Act, Gpu};
use crate::error::{Error, Result};
use crate::ops::{Activation, Compute, Mlp};

/// Terms of the formula of a number, each with a rounding.
const TERMS: usize = 4;

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for n in [1, 3, 17] {
        for f in [1, 3, 8, 41, 64, 401, 1536] {
            verdicts.extend(swiglu(&bench, n, f));
        }
    }
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        for gated in [false, true] {
            for (n, f) in [(1, 1), (3, 3), (17, 41), (3, 64), (5, 401), (2, 1536)] {
                verdicts.extend(mlp(&bench, n, f, Mlp { activation, gated }));
            }
        }
    }
    verdicts
}

/// Runs an op on buffers of both backends, and compares all of them afterwards. Buffers of NaN are for the op to write.
fn case<const B: usize>(
    bench: &Bench<'_>,
    name: String,
    buffers: [(&'static str, Vec<f64>); B],
    on_gpu: impl Fn(&Gpu, &mut [Act; B]),
    on_cpu: impl Fn(&Cpu<f64>, &mut [Vec<f64>; B]),
) -> Verdict {
    let buffers = buffers.map(|(name, values)| (name, bench.round(&values)));
    bench.judge(name, || {
        let acts = buffers.iter().map(|(_, x)| bench.act(x)).collect::<Result<Vec<_>>>()?;
        let mut got: [Act; B] = acts
            .try_into()
            .map_err(|_| Error::config(format!("a case of {B} buffers has another number")))?;
        let mut want = buffers.clone().map(|(_, x)| x);
        on_gpu(bench.gpu, &mut got);
        on_cpu(&bench.cpu, &mut want);
        let outputs = buffers.iter().zip(&got).zip(want).map(|(((name, x), got), want)| Output {
            name,
            got: bench.read_act(got, x.len()),
            want,
            stored: bench.stored(),
            sums: (Dtype::F32, TERMS),
        });
        Ok(outputs.collect())
    })
}

/// Numbers in (-8, 8), where activations bend.
fn bent(len: usize, random: &mut Random) -> Vec<f64> {
    random.vec(len).iter().map(|x| 8.0 * x).collect()
}

fn swiglu(bench: &Bench<'_>, n: usize, f: usize) -> [Verdict; 2] {
    let mut random = Random::new(30);
    let (gate_up, dy) = (bent(2 * n * f, &mut random), random.vec(n * f));
    let y = vec![f64::NAN; n * f];
    [
        case(
            bench,
            format!("swiglu {n}x{f}"),
            [("gate_up", gate_up.clone()), ("y", y)],
            |gpu, [gate_up, y]| gpu.mlp(n, f, Mlp::SWIGLU, gate_up, y),
            |cpu, [gate_up, y]| cpu.mlp(n, f, Mlp::SWIGLU, gate_up, y),
        ),
        case(
            bench,
            format!("swiglu_bwd {n}x{f}"),
            [("gate_up", gate_up), ("y", dy)],
            |gpu, [gate_up, dy]| gpu.mlp_bwd(n, f, Mlp::SWIGLU, dy, gate_up),
            |cpu, [gate_up, dy]| cpu.mlp_bwd(n, f, Mlp::SWIGLU, dy, gate_up),
        ),
    ]
}

fn mlp(bench: &Bench<'_>, n: usize, f: usize, mlp: Mlp) -> [Verdict; 3] {
    let mut random = Random::new(1);
    let (x, dy) = (bent(n * mlp.width(f), &mut random), random.vec(n * f));
    let y = vec![f64::NAN; n * f];
    let name = |op: &str| format!("{op} {n}x{f} {mlp:?}");
    let [forward, backward] = [
        case(
            bench,
            name("activation"),
            [("x", x.clone()), ("y", y)],
            |gpu, [x, y]| gpu.mlp(n, f, mlp, x, y),
            |cpu, [x, y]| cpu.mlp(n, f, mlp, x, y),
        ),
        case(
            bench,
            name("activation_bwd"),
            [("x", x.clone()), ("y", dy.clone())],
            |gpu, [x, dy]| gpu.mlp_bwd(n, f, mlp, dy, x),
            |cpu, [x, dy]| cpu.mlp_bwd(n, f, mlp, dy, x),
        ),
    ];
    // The backward pass recomputes y to the bit.
    let again = bench.judge(name("activation recomputed"), || {
        let (mut on, mut y, mut dy) =
            (bench.act(&bench.round(&x))?, bench.stale_act(n * f)?, bench.act(&dy)?);
        bench.gpu.mlp(n, f, mlp, &on, &mut y);
        bench.gpu.mlp_bwd(n, f, mlp, &mut dy, &mut on);
        let want = bench.read_act(&y, n * f).into_iter().map(f64::from).collect();
        let got = bench.read_act(&dy, n * f);
        Ok(vec![Output { name: "y", got, want, stored: Dtype::F64, sums: (Dtype::F64, 0) }])
    });
    [forward, backward, again]
}

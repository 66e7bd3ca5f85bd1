//! Embedding rows, forward and backward.

use super::{Bench, Dtype, Output, Random, Verdict, documents, grad};
use crate::backend::cpu::Grad as CpuGrad;
use crate::backend::gpu::{Gpu, Grad};
use crate::ops::{Compute, Memory, StateMode, Transfer};

/// A scale that fp32 and bf16 hold.
const SCALE: f64 = 1.25;

/// Copies a gradient to the host and says how it is judged after `terms` additions and `writes` writes.
pub(crate) fn grad_output(
    gpu: &Gpu,
    grad: &Grad,
    want: &CpuGrad<f64>,
    mode: StateMode,
    sums: (Dtype, usize),
    writes: usize,
) -> Output {
    let mut got = vec![f32::NAN; want.len()];
    gpu.read_grad(grad, &mut got);
    let mut wide = vec![0.0; want.len()];
    want.read(&mut wide);
    let compact = mode == StateMode::Compact;
    // Each write rounds to bf16.
    let sums = if compact && writes > 1 { (Dtype::Bf16, writes) } else { sums };
    let stored = if compact { Dtype::Bf16 } else { Dtype::F32 };
    Output { name: "gradient", got, want: wide, stored, sums }
}

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for lengths in [&[1][..], &[5, 1, 9], &[40]] {
        for (vocab, c) in [(1, 1), (3, 41), (401, 3), (7, 64), (19, 401)] {
            verdicts.push(case(&bench, lengths, (vocab, c), None));
            for mode in [StateMode::Exact, StateMode::Compact] {
                verdicts.push(case(&bench, lengths, (vocab, c), Some(mode)));
            }
        }
    }
    verdicts
}

fn case(
    bench: &Bench<'_>,
    lengths: &[usize],
    (vocab, c): (usize, usize),
    mode: Option<StateMode>,
) -> Verdict {
    let name = format!("embed {lengths:?} {vocab}x{c} gradient {mode:?}");
    let mut random = Random::new(5);
    let data = documents(lengths, vocab, &mut random);
    let n = data.tokens();
    let (table, dx) = (bench.round(&random.vec(vocab * c)), bench.round(&random.vec(n * c)));
    bench.judge(name, || {
        let (mut pack, mut pack_cpu) = (bench.gpu.pack(n)?, bench.cpu.pack(0)?);
        bench.gpu.load_pack(&mut pack, &data);
        bench.cpu.load_pack(&mut pack_cpu, &data);
        let Some(mode) = mode else {
            let (table_on, mut x) = (bench.act(&table)?, bench.stale_act(n * c)?);
            bench.gpu.embed(&pack, c, SCALE, table_on.as_weight(), &mut x);
            let mut want = vec![0.0; n * c];
            bench.cpu.embed(&pack_cpu, c, SCALE, &table, &mut want);
            let (got, stored) = (bench.read_act(&x, n * c), bench.stored());
            return Ok(vec![Output { name: "x", got, want, stored, sums: (Dtype::F32, 1) }]);
        };
        let (on, dx_on) = (&mut grad(bench.gpu, vocab * c, mode)?, bench.act(&dx)?);
        let mut want = CpuGrad::wide(vocab * c);
        for _ in 0..2 {
            bench.gpu.embed_bwd(&pack, c, SCALE, &dx_on, on);
            bench.cpu.embed_bwd(&pack_cpu, c, SCALE, &dx, &mut want);
        }
        Ok(vec![grad_output(bench.gpu, on, &want, mode, (Dtype::F32, n), 2)])
    })
}

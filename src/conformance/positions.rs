//! Learned positions, forward and backward.

use super::embed::grad_output;
use super::{Bench, Dtype, Output, Random, Verdict, documents, grad};
use crate::backend::cpu::Grad as CpuGrad;
use crate::backend::gpu::Gpu;
use crate::ops::{Compute, Memory, StateMode, Transfer};

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for lengths in [&[1][..], &[5, 1, 9], &[40]] {
        // Rows of the table, the first one, C; the table of the last one is too short.
        for shape in [(42, 2, 1), (40, 0, 41), (64, 2, 64), (43, 0, 401), (9, 2, 16)] {
            verdicts.push(case(&bench, lengths, shape, None));
            for mode in [StateMode::Exact, StateMode::Compact] {
                verdicts.push(case(&bench, lengths, shape, Some(mode)));
            }
        }
    }
    verdicts
}

fn case(
    bench: &Bench<'_>,
    lengths: &[usize],
    (rows, first, c): (usize, usize, usize),
    mode: Option<StateMode>,
) -> Verdict {
    let name = format!("positions {lengths:?} {rows}x{c} from {first} gradient {mode:?}");
    let mut random = Random::new(20);
    let data = documents(lengths, 7, &mut random);
    let n = data.tokens();
    let (table, x) = (bench.round(&random.vec(rows * c)), bench.round(&random.vec(n * c)));
    bench.judge(name, || {
        let (mut pack, mut pack_cpu) = (bench.gpu.pack(n)?, bench.cpu.pack(0)?);
        bench.gpu.load_pack(&mut pack, &data);
        bench.cpu.load_pack(&mut pack_cpu, &data);
        let mut on = bench.act(&x)?;
        let Some(mode) = mode else {
            let (table_on, mut want) = (bench.act(&table)?, x.clone());
            bench.gpu.positions(&pack, c, (rows, first), table_on.as_weight(), &mut on);
            bench.cpu.positions(&pack_cpu, c, (rows, first), &table, &mut want);
            let (got, stored) = (bench.read_act(&on, n * c), bench.stored());
            return Ok(vec![Output { name: "x", got, want, stored, sums: (Dtype::F32, 2) }]);
        };
        let (to, mut want) = (&mut grad(bench.gpu, rows * c, mode)?, CpuGrad::wide(rows * c));
        for _ in 0..2 {
            bench.gpu.positions_bwd(&pack, c, (rows, first), &on, to);
            bench.cpu.positions_bwd(&pack_cpu, c, (rows, first), &x, &mut want);
        }
        Ok(vec![grad_output(bench.gpu, to, &want, mode, (Dtype::F32, n), 2)])
    })
}

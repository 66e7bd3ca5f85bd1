//! Mean squared error of hidden states against those of another model or one vector.

use super::{Bench, Dtype, Output, Random, Verdict};
use crate::backend::gpu::Gpu;
use crate::ops::{Compute, Memory, MseArgs, PackData, Toward, Transfer};

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for n in [1, 9, 67] {
        for c in [1, 8, 41, 256, 401, 1027] {
            for (steered, grads) in [(false, true), (true, true), (true, false)] {
                verdicts.push(rows(&bench, n, c, steered, grads));
            }
        }
    }
    verdicts
}

fn rows(bench: &Bench<'_>, n: usize, c: usize, steered: bool, grads: bool) -> Verdict {
    let name = format!("mse {n}x{c} steered {steered} grads {grads}");
    let mut random = Random::new(17);
    let mut data = PackData::default();
    // Rows without a coefficient hold what no sum would bear.
    let left_out = |r: usize| r % 3 == 1;
    data.push(&vec![0; n], |r| if left_out(r) { 0.0 } else { 0.25 + r as f64 });
    let mut x = bench.round(&random.vec(n * c));
    for (r, row) in x.chunks_exact_mut(c).enumerate().filter(|(r, _)| left_out(*r)) {
        row.fill(if r % 2 == 0 { f64::NAN } else { f64::INFINITY });
    }
    let rows = bench.round(&random.vec(n * c));
    let vector: Vec<f64> = random.vec(c).iter().map(|x| f64::from(*x as f32)).collect();
    bench.judge(name, || {
        let gpu = bench.gpu;
        let mut pack = gpu.pack(n)?;
        gpu.load_pack(&mut pack, &data);
        let (x_on, rows_on, vector_on) = (bench.act(&x)?, bench.act(&rows)?, bench.stat(&vector)?);
        let (mut value, mut dx) = (bench.stale_stat(n)?, bench.stale_act(n * c)?);
        let toward = || if steered { Toward::Vector(&vector_on) } else { Toward::Rows(&rows_on) };
        gpu.mse(
            MseArgs { n, c, pack: &pack, x: &x_on },
            toward(),
            &mut value,
            grads.then_some(&mut dx),
        );
        let cpu = &bench.cpu;
        let mut pack = cpu.pack(n)?;
        cpu.load_pack(&mut pack, &data);
        let (mut value_want, mut dx_want) = (vec![f64::NAN; n], vec![f64::NAN; n * c]);
        let toward = if steered { Toward::Vector(&vector) } else { Toward::Rows(&rows) };
        let to = grads.then_some(&mut dx_want);
        cpu.mse(MseArgs { n, c, pack: &pack, x: &x }, toward, &mut value_want, to);
        let got = bench.read_stat(&value, n);
        let mut outputs = vec![Output {
            name: "value",
            got,
            want: value_want,
            stored: Dtype::F32,
            sums: (Dtype::F32, c),
        }];
        if grads {
            outputs.push(Output {
                name: "dx",
                got: bench.read_act(&dx, n * c),
                want: dx_want,
                stored: bench.stored(),
                sums: (Dtype::F32, 1),
            });
        }
        Ok(outputs)
    })
}

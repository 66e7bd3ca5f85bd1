//! Sums over the rows of packs, and weights of documents.

use super::{Bench, Dtype, Output, Random, Verdict};
use crate::backend::gpu::Gpu;
use crate::ops::{DocumentFormula, Memory, PackData, RowCounts, RowStats, Sweep, Transfer};

/// Document lengths: one token, less and more rows than a block has threads, many documents.
const LENGTHS: [&[usize]; 7] =
    [&[1], &[2], &[5, 1, 9], &[256], &[257, 3], &[600, 1, 1], &[7, 7, 7, 7, 7, 7, 7, 7, 7]];

/// Which rows count.
#[derive(Debug, Clone, Copy)]
enum Counting {
    All,
    Some,
    None,
}

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for lengths in LENGTHS {
        for counting in [Counting::All, Counting::Some, Counting::None] {
            verdicts.push(sums(&bench, lengths, counting));
        }
        for (factor, slope) in [(-2.0, 0.1), (1.0, -3.0), (-2.0, 0.0), (0.5, 40.0)] {
            for (shift, against_base, paired) in
                [(0.0, true, false), (-0.5, false, false), (0.0, true, true)]
            {
                let formula = DocumentFormula { factor, slope, shift, against_base, paired };
                verdicts.push(weights(&bench, lengths, formula));
            }
        }
    }
    verdicts
}

fn sums(bench: &Bench<'_>, lengths: &[usize], counting: Counting) -> Verdict {
    let name = format!("row_sums {lengths:?} {counting:?}");
    let mut random = Random::new(22);
    let mut data = PackData::default();
    for &len in lengths {
        data.push_counted(&vec![0; len], len, |_| {
            let mut count = || match counting {
                Counting::All => random.unit(),
                Counting::Some if random.unit() < 0.5 => random.unit(),
                Counting::Some | Counting::None => 0.0,
            };
            RowCounts { coef: 0.0, share: count(), monitor: count() }
        });
    }
    let n = data.tokens();
    // A row that counts nothing may hold anything.
    let rows = |counts: &[f64], random: &mut Random| -> Vec<f64> {
        let draws = random.vec(n);
        counts.iter().zip(draws).map(|(c, x)| if *c == 0.0 { f64::NAN } else { x }).collect()
    };
    let value = rows(&data.shares, &mut random);
    let [nll, hit] = [0, 1].map(|_| rows(&data.monitors, &mut random));
    bench.judge(name, || {
        let gpu = bench.gpu;
        let mut pack = gpu.pack(n)?;
        gpu.load_pack(&mut pack, &data);
        let stats =
            RowStats { nll: bench.stat(&nll)?, value: bench.stat(&value)?, hit: bench.stat(&hit)? };
        let mut tally = gpu.tally_room()?;
        gpu.clear_tally(&mut tally);
        // Twice: the second sweep, in two parts, adds to the first.
        for rows in [0..n, 0..n / 3, n / 3..n] {
            gpu.tally(&pack, rows, &stats, &mut tally);
        }
        let got = gpu.read_tally(&tally);
        let of = |counts: &[f64], rows: &[f64]| -> f64 {
            let counted = counts.iter().zip(rows).filter(|(count, _)| **count != 0.0);
            2.0 * counted.map(|(count, x)| count * x).sum::<f64>()
        };
        let wanted = [of(&data.shares, &value), of(&data.monitors, &nll), of(&data.monitors, &hit)];
        // Sums of terms of both signs may come to nearly nothing: their size is that of the terms.
        let size = data.shares.iter().chain(&data.monitors).sum::<f64>();
        Ok(vec![Output {
            name: "sums",
            got: vec![got.value as f32, got.nll as f32, got.hit as f32, size as f32],
            want: wanted.into_iter().chain([size]).collect(),
            stored: Dtype::F32,
            sums: (Dtype::F32, 1),
        }])
    })
}

fn weights(bench: &Bench<'_>, lengths: &[usize], formula: DocumentFormula) -> Verdict {
    let name = format!("document weights {lengths:?} {formula:?}");
    let mut random = Random::new(23);
    let mut data = PackData::default();
    for &len in lengths {
        // Padded beyond its own length, as in a micro-batch.
        data.push_counted(&vec![0; len], len + 3, |_| RowCounts::default());
    }
    let n = data.tokens();
    let f32s = |x: Vec<f64>| x.into_iter().map(|x| f64::from(x as f32)).collect::<Vec<_>>();
    let (base, nll) = (f32s(random.vec(n)), f32s(random.vec(n)));
    bench.judge(name, || {
        let mut pack = bench.gpu.pack(n)?;
        bench.gpu.load_pack(&mut pack, &data);
        let mut pack_cpu = bench.cpu.pack(n)?;
        bench.cpu.load_pack(&mut pack_cpu, &data);
        let (on_base, on_nll) = (bench.stat(&base)?, bench.stat(&nll)?);
        let mut on = bench.stale_stat(n)?;
        let given = formula.against_base;
        let on_base = given.then_some(&on_base);
        bench.gpu.document_weights(&pack, on_base, &on_nll, formula, &mut on);
        let mut want = vec![f64::NAN; n];
        bench.cpu.document_weights(&pack_cpu, given.then_some(&base), &nll, formula, &mut want);
        let got = bench.read_stat(&on, n);
        let sums = (Dtype::F32, 16);
        Ok(vec![Output { name: "weights", got, want, stored: Dtype::F32, sums }])
    })
}

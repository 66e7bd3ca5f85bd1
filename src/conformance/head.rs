//! The head with both families of losses, with and without gradients.

use super::embed::grad_output;
use super::{Bench, Dtype, Output, Random, Verdict, documents, grad, sm90_tiles, with_tile};
use crate::backend::cpu::Grad as CpuGrad;
use crate::backend::gpu::{Act, Gpu, Grad, Pack, Stat, Tile, Weight};
use crate::ops::{
    Compute, HeadGrads, HeadReference, HeadRows, HeadShape, HeadWeight, Matched, Memory, PackData,
    RowStats, StateMode, TokenFormula, TokenWeight, Transfer,
};

/// Coefficients of rows: on all, on some, on none.
const MASKS: [fn(usize) -> f64; 3] = [|_| 0.5, |row| [0.25, 0.0, -1.0][row % 3], |_| 0.0];
/// Destinations of gradients: none, the rows, the rows and the matrix.
const WAYS: [(bool, Option<StateMode>); 4] =
    [(false, None), (true, None), (true, Some(StateMode::Exact)), (true, Some(StateMode::Compact))];

fn formulas() -> [Option<TokenFormula>; 6] {
    let base = TokenFormula::constant(-1.0);
    [
        Some(TokenFormula::constant(1.0)),
        Some(TokenFormula { p_power: 1.0, pole: Some(0.02), threshold: 0.01, ..base }),
        Some(TokenFormula { p_power: 1.0, pole: Some(0.0), ..base }),
        Some(TokenFormula { p_power: 1.5, q_power: 0.5, pole: Some(1.0), ..base }),
        Some(TokenFormula { q_power: 1.0, threshold: 0.1, ..base }),
        None,
    ]
}

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for (i, (n, c, v)) in [
        (1, 1, 1),
        (5, 8, 3),
        (9, 16, 41),
        (7, 33, 401),
        (12, 24, 1000),
        (3, 16, 4096),
        (2, 8, 4104),
    ]
    .into_iter()
    .enumerate()
    {
        let shape = HeadShape { n, c, v };
        for (j, formula) in formulas().into_iter().enumerate() {
            let job = Job::new(&bench, shape, MASKS[(i + j) % 3], WAYS[(i + j) % 4]);
            verdicts.push(job.onehot(&bench, formula));
        }
        for (j, target) in Matched::ALL.into_iter().enumerate() {
            for own in [false, true] {
                let job = Job::new(&bench, shape, MASKS[(i + j) % 3], WAYS[(i + j + 1) % 4]);
                verdicts.push(job.matched(&bench, target, own));
            }
        }
    }
    capped(&bench, &mut verdicts);
    chunked(&bench, &mut verdicts);
    edges(&bench, &mut verdicts);
    recorded(&bench, &mut verdicts);
    for (n, c, v, first) in [(7, 16, 41, 3), (12, 24, 401, 11), (5, 33, 1000, 1), (9, 8, 3, 5)] {
        verdicts.push(parts(&bench, (n, c, v), first, None));
        for target in Matched::ALL.into_iter().filter(|target| !target.reads_teacher()) {
            verdicts.push(monitored(&bench, (n, c, v), target));
        }
        for target in Matched::ALL {
            verdicts.push(parts(&bench, (n, c, v), first, Some(target)));
        }
    }
    verdicts
}

/// Rows up to `first` and those from there on in two passes, which give the bytes of one; a target-token loss where there
/// is no `target`.
fn parts(
    bench: &Bench<'_>,
    (n, c, v): (usize, usize, usize),
    first: usize,
    target: Option<Matched>,
) -> Verdict {
    let job = Job::new(bench, HeadShape { n, c, v }, MASKS[1], WAYS[1]);
    bench.judge(format!("head parts {n}x{c}x{v} at {first} {target:?}"), || {
        let gpu = bench.gpu;
        let mut pack = gpu.pack(n)?;
        gpu.load_pack(&mut pack, &job.data);
        gpu.reserve(job.shape, true)?;
        let [h, w, w_ref] = [bench.act(&job.h)?, bench.act(&job.w)?, bench.act(&job.w_ref)?];
        // Each part finds the teacher's rows from its own first one on.
        let h_ref = [bench.act(&job.h_ref)?, bench.act(&job.h_ref[first * c..])?];
        let sweep = |ranges: &[(usize, usize, usize)]| {
            let mut stats = RowStats {
                nll: bench.stale_stat(n)?,
                value: bench.stale_stat(n)?,
                hit: bench.stale_stat(n)?,
            };
            let mut dh = bench.stale_act(n * c)?;
            for &(first, n, reference) in ranges {
                let (shape, w) = (HeadShape { n, c, v }, HeadWeight::plain(w.as_weight()));
                let to = Some(HeadGrads { dh: &mut dh, dw: None, db: None });
                match target {
                    None => {
                        let weight = TokenWeight::Formula(TokenFormula::constant(-1.0));
                        gpu.head_onehot(
                            HeadRows { shape, first, pack: &pack, h: &h, w },
                            weight,
                            &mut stats,
                            to,
                        );
                    }
                    Some(target) => {
                        let (h_ref, own) =
                            (&h_ref[reference], Some(HeadWeight::plain(w_ref.as_weight())));
                        let stats = &mut stats;
                        gpu.head_matched(
                            HeadRows { shape, first, pack: &pack, h: &h, w },
                            HeadReference { h: h_ref, w: own },
                            target,
                            stats,
                            to,
                        );
                    }
                }
            }
            let mut all = bench.read_act(&dh, n * c);
            all.extend(bench.read_stat(&stats.value, n));
            if target.is_none_or(|target| !target.reads_teacher()) {
                all.extend(bench.read_stat(&stats.nll, n));
                all.extend(bench.read_stat(&stats.hit, n));
            }
            Ok::<_, crate::Error>(all)
        };
        let want = sweep(&[(0, n, 0)])?.into_iter().map(f64::from).collect();
        let got = sweep(&[(0, first, 0), (first, n - first, 1)])?;
        Ok(vec![Output { name: "rows", got, want, stored: Dtype::F64, sums: (Dtype::F64, 0) }])
    })
}

/// The statistics of targets that a full-vocabulary loss finds, against those of a target-token loss on the device.
fn monitored(bench: &Bench<'_>, (n, c, v): (usize, usize, usize), target: Matched) -> Verdict {
    let job = Job::new(bench, HeadShape { n, c, v }, MASKS[1], WAYS[1]);
    bench.judge(format!("head monitors {n}x{c}x{v} {target:?}"), || {
        let gpu = bench.gpu;
        let mut pack = gpu.pack(n)?;
        gpu.load_pack(&mut pack, &job.data);
        gpu.reserve(job.shape, true)?;
        let [h, h_ref] = [bench.act(&job.h)?, bench.act(&job.h_ref)?];
        let [w, w_ref] = [bench.act(&job.w)?, bench.act(&job.w_ref)?];
        let [w, w_ref] = [&w, &w_ref].map(|w| HeadWeight::plain(w.as_weight()));
        let stats = || -> crate::error::Result<_> {
            let stat = || bench.stale_stat(n);
            Ok(RowStats { nll: stat()?, value: stat()?, hit: stat()? })
        };
        let (mut got, mut want, mut dh) = (stats()?, stats()?, bench.stale_act(n * c)?);
        let to = Some(HeadGrads { dh: &mut dh, dw: None, db: None });
        let own = target.compares().then_some(w_ref);
        gpu.head_matched(
            HeadRows { shape: job.shape, first: 0, pack: &pack, h: &h, w },
            HeadReference { h: &h_ref, w: own },
            target,
            &mut got,
            to,
        );
        let plain = TokenWeight::Formula(TokenFormula::constant(1.0));
        gpu.head_onehot(
            HeadRows { shape: job.shape, first: 0, pack: &pack, h: &h, w },
            plain,
            &mut want,
            None,
        );
        let output = |name, got: &Stat, want: &Stat| Output {
            name,
            got: bench.read_stat(got, n),
            want: bench.read_stat(want, n).into_iter().map(f64::from).collect(),
            stored: Dtype::F32,
            // Both read the same logits; where the device records statistics, they are summed by tiles.
            sums: (Dtype::F32, v),
        };
        Ok(vec![output("nll", &got.nll, &want.nll), output("hit", &got.hit, &want.hit)])
    })
}

/// Logits with a cap that bends most of them: every loss, with gradients but for one.
fn capped(bench: &Bench<'_>, verdicts: &mut Vec<Verdict>) {
    let shapes = [(5, 8, 3), (9, 16, 41), (7, 33, 401), (12, 24, 1000), (2, 8, 4104)];
    for (i, (n, c, v)) in shapes.into_iter().enumerate() {
        let job = |mask: usize, way: usize| {
            let job = Job::new(bench, HeadShape { n, c, v }, MASKS[mask % 3], WAYS[way % 4]);
            Job { cap: Some(1.5), ..job }
        };
        for (j, formula) in formulas().into_iter().enumerate() {
            verdicts.push(job(i + j, i + j).onehot(bench, formula));
        }
        for (j, target) in Matched::ALL.into_iter().enumerate() {
            for own in [false, true] {
                verdicts.push(job(i + j, i + j + 1).matched(bench, target, own));
            }
        }
        // No difference to the teacher.
        let equal = job(0, 2);
        let equal = Job { h_ref: equal.h.clone(), w_ref: equal.w.clone(), ..equal };
        for own in [false, true] {
            verdicts.push(equal.matched(bench, Matched::Kl, own));
        }
    }
}

/// Products whose tiles record statistics, on compute capability 9.0: where the device chooses them by itself, and on
/// narrower shapes, of which some end inside a tile.
fn recorded(bench: &Bench<'_>, verdicts: &mut Vec<Verdict>) {
    if sm90_tiles(bench).is_empty() {
        return;
    }
    let wide = [(3, 16, 8200), (129, 8, 8448)].map(|shape| (shape, None));
    let narrow = [(9, 16, 512), (131, 72, 1000), (5, 8, 4)];
    let narrow = narrow.map(|shape| (shape, Some(Tile::Sm90Large)));
    for (i, ((n, c, v), tile)) in wide.into_iter().chain(narrow).enumerate() {
        for (j, formula) in formulas().into_iter().enumerate() {
            let shape = HeadShape { n, c, v };
            let job = Job::new(bench, shape, MASKS[(i + j) % 3], WAYS[(i + j) % 4]);
            let job = Job { biases: None, ..job };
            let verdict = with_tile(bench, tile, || job.onehot(bench, formula));
            verdicts
                .push(Verdict { case: format!("{} records {tile:?}", verdict.case), ..verdict });
        }
    }
}

/// Sweeps in several chunks, the last one not full.
fn chunked(bench: &Bench<'_>, verdicts: &mut Vec<Verdict>) {
    for (i, (n, c, v, rows)) in
        [(7, 16, 41, 3), (12, 24, 401, 5), (5, 33, 1000, 4), (9, 8, 3, 1)].into_iter().enumerate()
    {
        bench.gpu.cap_head_rows(Some(rows));
        let job = |mask: usize, way: usize| {
            let shape = HeadShape { n, c, v };
            let job = Job::new(bench, shape, MASKS[mask % 3], WAYS[way % 4]);
            Job { chunks: n.div_ceil(rows), ..job }
        };
        for (j, formula) in formulas().into_iter().enumerate() {
            verdicts.push(job(i + j, j).onehot(bench, formula));
        }
        for (j, target) in Matched::ALL.into_iter().enumerate() {
            verdicts.push(job(i + j, i + j).matched(bench, target, false));
            verdicts.push(job(i + j + 1, i + j + 1).matched(bench, target, true));
            // A pack without any coefficient.
            verdicts.push(job(2, 2 + j).matched(bench, target, true));
        }
        verdicts.push(job(2, 2).onehot(bench, formulas()[1]));
    }
    bench.gpu.cap_head_rows(None);
}

/// Rows at which a formula could break down.
fn edges(bench: &Bench<'_>, verdicts: &mut Vec<Verdict>) {
    for (i, v) in [2, 41, 400, 401].into_iter().enumerate() {
        let way = WAYS[2 + i % 2];
        // p -> 1: 1 - p from e^-8 to the smallest normal fp32 number, and one that is 0 there (between them lie sums
        // of few bits, which nothing rests on), under weights with and without a pole there.
        let peaks = Job::logits(v, 5, way, |row, target, random| {
            let gap = [8.0, 17.0, 60.0, 86.0, 128.0][row];
            if target { gap } else { random.below(16) as f64 / 16.0 }
        });
        for formula in &formulas()[..5] {
            verdicts.push(peaks.onehot(bench, *formula));
        }
        // Equal logits: the target is hit where no smaller id has the largest one.
        let ties = Job::logits(v, 9, way, |row, target, random| match row % 3 {
            0 => 1.0,
            1 if target => 2.0,
            _ => random.below(3) as f64,
        });
        verdicts.push(ties.onehot(bench, formulas()[1]));
        // Rows that are left out may have any weight: a document without targets has no mean to take one from.
        let shape = HeadShape { n: 7, c: 24, v };
        let mut job = Job::new(bench, shape, MASKS[1], way);
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for (row, weight) in job.weights.iter_mut().enumerate() {
            if job.data.coefs[row] == 0.0 {
                *weight = odd[row / 3 % 3];
            }
        }
        verdicts.push(job.onehot(bench, None));
        // No difference to the teacher: value and gradient are exactly 0, which any tolerance of nothing demands.
        let mut equal = Job::new(bench, shape, MASKS[0], way);
        equal.h_ref = equal.h.clone();
        equal.w_ref = equal.w.clone();
        for target in [Matched::Kl, Matched::Qkl] {
            for own in [false, true] {
                verdicts.push(equal.matched(bench, target, own));
            }
        }
    }
}

/// Puts a head on the device together.
fn head<'a>(matrix: &'a Act, bias: Option<&'a Act>, cap: Option<f64>) -> HeadWeight<Weight<'a>> {
    HeadWeight { matrix: matrix.as_weight(), bias: bias.map(Act::as_weight), cap }
}

/// The inputs on the device.
struct Side<'a> {
    pack: &'a Pack,
    h: &'a Act,
    h_ref: &'a Act,
    w: HeadWeight<Weight<'a>>,
    w_ref: HeadWeight<Weight<'a>>,
    weights: &'a Stat,
}

/// Inputs of a case.
struct Job {
    shape: HeadShape,
    data: PackData,
    h: Vec<f64>,
    h_ref: Vec<f64>,
    w: Vec<f64>,
    w_ref: Vec<f64>,
    /// The biases of both heads, where they have some.
    biases: Option<[Vec<f64>; 2]>,
    /// The soft cap of logits.
    cap: Option<f64>,
    weights: Vec<f64>,
    way: (bool, Option<StateMode>),
    /// Into how many chunks the device cuts the rows.
    chunks: usize,
}

impl Job {
    fn new(
        bench: &Bench<'_>,
        shape: HeadShape,
        mask: fn(usize) -> f64,
        way: (bool, Option<StateMode>),
    ) -> Self {
        let HeadShape { n, c, v } = shape;
        let mut random = Random::new(9);
        let mut data = documents(&[n], v, &mut random);
        data.coefs = (0..n).map(mask).collect();
        let h = bench.round(&random.vec(n * c));
        let h_ref: Vec<f64> = h.iter().map(|h| h + 0.125 * (2.0 * random.unit() - 1.0)).collect();
        let w = bench.round(&random.vec(v * c));
        let w_ref = bench.round(&random.vec(v * c));
        let weights = random.vec(n).iter().map(|x| f64::from(*x as f32)).collect();
        let h_ref = bench.round(&h_ref);
        let biases = (c % 3 == 0).then(|| [0; 2].map(|_| bench.round(&random.vec(v))));
        Self { shape, data, h, h_ref, w, w_ref, biases, cap: None, weights, way, chunks: 1 }
    }

    /// Rows of given logits, of which `z(row, whether it is the target's, ..)` makes one: multiples of 1/16 of at
    /// most 8 bits, so that they are exact in every precision. Hidden rows are unit vectors.
    fn logits(
        v: usize,
        n: usize,
        way: (bool, Option<StateMode>),
        z: impl Fn(usize, bool, &mut Random) -> f64,
    ) -> Self {
        let mut random = Random::new(10);
        let data = documents(&[n], v, &mut random);
        let target = |row: usize| data.targets[row] as usize;
        let w: Vec<f64> =
            (0..v * n).map(|i| z(i % n, i / n == target(i % n), &mut random)).collect();
        let h: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
        let shape = HeadShape { n, c: n, v };
        let (h_ref, w_ref, weights) = (h.clone(), w.clone(), vec![1.0; n]);
        Self { shape, data, h, h_ref, w, w_ref, biases: None, cap: None, weights, way, chunks: 1 }
    }

    /// Returns the heads on the CPU.
    fn heads(&self) -> [HeadWeight<&[f64]>; 2] {
        let bias = |i: usize| self.biases.as_ref().map(|biases| &biases[i][..]);
        [
            HeadWeight { matrix: &self.w[..], bias: bias(0), cap: self.cap },
            HeadWeight { matrix: &self.w_ref[..], bias: bias(1), cap: self.cap },
        ]
    }

    fn judge(
        &self,
        bench: &Bench<'_>,
        name: String,
        (matched, monitors): (Option<(Dtype, usize)>, bool),
        on_gpu: impl Fn(&Side<'_>, &mut RowStats<Stat>, Option<HeadGrads<'_, Act, Grad>>),
        on_cpu: impl Fn(&mut RowStats<Vec<f64>>, Option<HeadGrads<'_, Vec<f64>, CpuGrad<f64>>>),
    ) -> Verdict {
        let HeadShape { n, c, v } = self.shape;
        let (backward, mode) = self.way;
        bench.judge(
            format!(
                "{name} {n}x{c}x{v} cap={:?} {:?} {:?}",
                self.cap,
                self.way,
                self.data.coefs.first()
            ),
            || {
                let gpu = bench.gpu;
                let mut pack = gpu.pack(n)?;
                gpu.load_pack(&mut pack, &self.data);
                gpu.reserve(self.shape, true)?;
                let [h, h_ref] = [bench.act(&self.h)?, bench.act(&self.h_ref)?];
                let [w, w_ref] = [bench.act(&self.w)?, bench.act(&self.w_ref)?];
                let none = [vec![], vec![]];
                let biases = self.biases.as_ref().unwrap_or(&none);
                let [bias, bias_ref] = [bench.act(&biases[0])?, bench.act(&biases[1])?];
                let biased = self.biases.is_some();
                let weights = bench.stat(&self.weights)?;
                let side = Side {
                    pack: &pack,
                    h: &h,
                    h_ref: &h_ref,
                    w: head(&w, biased.then_some(&bias), self.cap),
                    w_ref: head(&w_ref, biased.then_some(&bias_ref), self.cap),
                    weights: &weights,
                };
                let mut stats = RowStats {
                    nll: bench.stale_stat(n)?,
                    value: bench.stale_stat(n)?,
                    hit: bench.stale_stat(n)?,
                };
                let mut want =
                    RowStats { nll: vec![0.0; n], value: vec![0.0; n], hit: vec![0.0; n] };
                let (mut dh, mut dh_want) = (bench.stale_act(n * c)?, vec![0.0; n * c]);
                let mut dw = grad(gpu, v * c, mode.unwrap_or(StateMode::Exact))?;
                let mut dw_want = CpuGrad::wide(v * c);
                let mut db = grad(gpu, v, mode.unwrap_or(StateMode::Exact))?;
                let mut db_want = CpuGrad::wide(v);
                let trained = mode.filter(|_| biased);
                let to = backward.then(|| HeadGrads {
                    dh: &mut dh,
                    dw: mode.map(|_| &mut dw),
                    db: trained.map(|_| &mut db),
                });
                on_gpu(&side, &mut stats, to);
                let to = backward.then(|| HeadGrads {
                    dh: &mut dh_want,
                    dw: mode.map(|_| &mut dw_want),
                    db: trained.map(|_| &mut db_want),
                });
                on_cpu(&mut want, to);
                let (stored, logits) = (Dtype::F32, (bench.products(), c + v));
                let stat = |name, got: &Stat, mut want: Vec<f64>| {
                    let mut got = bench.read_stat(got, n);
                    // What is no number must be the same one.
                    for (got, want) in got.iter_mut().zip(&mut want) {
                        let same = f64::from(*got) == *want || got.is_nan() && want.is_nan();
                        if !want.is_finite() && same {
                            (*got, *want) = (0.0, 0.0);
                        }
                    }
                    Output { name, got, want, stored, sums: matched.unwrap_or(logits) }
                };
                let mut outputs = vec![stat("value", &stats.value, want.value)];
                if monitors {
                    outputs.push(stat("nll", &stats.nll, want.nll));
                    outputs.push(stat("hit", &stats.hit, want.hit));
                }
                // The gradient at the logits is rounded to storage on its way back.
                let sums = match bench.stored() {
                    Dtype::Bf16 => (Dtype::Bf16, 1),
                    _ => logits,
                };
                if backward {
                    let got = bench.read_act(&dh, n * c);
                    outputs.push(Output {
                        name: "dh",
                        got,
                        want: dh_want,
                        stored: bench.stored(),
                        sums,
                    });
                }
                if let Some(mode) = mode.filter(|_| backward) {
                    outputs.push(grad_output(gpu, &dw, &dw_want, mode, sums, self.chunks));
                }
                if let Some(mode) = trained.filter(|_| backward) {
                    outputs.push(grad_output(gpu, &db, &db_want, mode, sums, self.chunks));
                }
                Ok(outputs)
            },
        )
    }

    fn onehot(&self, bench: &Bench<'_>, formula: Option<TokenFormula>) -> Verdict {
        let mut pack = Default::default();
        bench.cpu.load_pack(&mut pack, &self.data);
        self.judge(
            bench,
            format!("head {formula:?}"),
            (None, true),
            |side, stats, grads| {
                let weight = match formula {
                    Some(formula) => TokenWeight::Formula(formula),
                    None => TokenWeight::PerRow(side.weights),
                };
                let (pack, h, w) = (side.pack, side.h, side.w);
                bench.gpu.head_onehot(
                    HeadRows { shape: self.shape, first: 0, pack, h, w },
                    weight,
                    stats,
                    grads,
                );
            },
            |stats, grads| {
                let weight = match formula {
                    Some(formula) => TokenWeight::Formula(formula),
                    None => TokenWeight::PerRow(&self.weights),
                };
                let (h, [w, _]) = (&self.h, self.heads());
                bench.cpu.head_onehot(
                    HeadRows { shape: self.shape, first: 0, pack: &pack, h, w },
                    weight,
                    stats,
                    grads,
                );
            },
        )
    }

    fn matched(&self, bench: &Bench<'_>, target: Matched, own: bool) -> Verdict {
        let mut pack = Default::default();
        bench.cpu.load_pack(&mut pack, &self.data);
        let HeadShape { c, v, .. } = self.shape;
        let shared = !own && target.compares();
        let value = match bench.stored() {
            // The difference of hidden rows is rounded to storage before its product.
            Dtype::Bf16 if shared => (Dtype::Bf16, 1),
            _ => (bench.products(), c + v),
        };
        self.judge(
            bench,
            format!("head {target:?} own {own}"),
            (Some(value), !target.reads_teacher()),
            |side, stats, grads| {
                let (w, w_ref) = (side.w, own.then_some(side.w_ref));
                let (h, h_ref) = (side.h, side.h_ref);
                bench.gpu.head_matched(
                    HeadRows { shape: self.shape, first: 0, pack: side.pack, h, w },
                    HeadReference { h: h_ref, w: w_ref },
                    target,
                    stats,
                    grads,
                );
            },
            |stats, grads| {
                let [w, w_ref] = self.heads();
                let w_ref = own.then_some(w_ref);
                let (h, h_ref) = (&self.h, &self.h_ref);
                bench.cpu.head_matched(
                    HeadRows { shape: self.shape, first: 0, pack: &pack, h, w },
                    HeadReference { h: h_ref, w: w_ref },
                    target,
                    stats,
                    grads,
                );
            },
        )
    }
}

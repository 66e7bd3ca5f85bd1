//! Head and loss rows: both families, with and without gradients.

use super::embed::{grad, grad_output};
use super::{Bench, Dtype, Output, Random, Verdict, documents};
use crate::backend::cpu::Grad as CpuGrad;
use crate::backend::gpu::{Act, Gpu, Grad, Pack, Stat};
use crate::ops::{
    Compute, HeadGrads, HeadShape, Matched, PackData, RowStats, StateMode, TokenFormula,
    TokenWeight,
};

/// Which rows have a coefficient: all, some, none.
const MASKS: [fn(usize) -> f64; 3] = [|_| 0.5, |row| [0.25, 0.0, -1.0][row % 3], |_| 0.0];
/// Where gradients go: nowhere, to the rows, to the rows and the matrix.
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
        for (j, target) in [Matched::Uniform, Matched::Kl, Matched::Qkl].into_iter().enumerate() {
            for own in [false, true] {
                let job = Job::new(&bench, shape, MASKS[(i + j) % 3], WAYS[(i + j + 1) % 4]);
                verdicts.push(job.matched(&bench, target, own));
            }
        }
    }
    verdicts
}

/// The inputs on the device.
struct Side<'a> {
    pack: &'a Pack,
    h: &'a Act,
    h_ref: &'a Act,
    w: &'a Act,
    w_ref: &'a Act,
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
    weights: Vec<f64>,
    way: (bool, Option<StateMode>),
}

impl Job {
    fn new(
        bench: &Bench<'_>,
        shape: HeadShape,
        mask: fn(usize) -> f64,
        way: (bool, Option<StateMode>),
    ) -> Self {
        let HeadShape { n, c, v } = shape;
        let mut random = Random::new(&format!("head {n} {c} {v}"));
        let mut data = documents(&[n], v, &mut random);
        data.coefs = (0..n).map(mask).collect();
        let h = bench.round(&random.vec(n * c));
        let h_ref: Vec<f64> = h.iter().map(|h| h + 0.125 * (2.0 * random.unit() - 1.0)).collect();
        let w = bench.round(&random.vec(v * c));
        let w_ref = bench.round(&random.vec(v * c));
        let weights = random.vec(n).iter().map(|x| f64::from(*x as f32)).collect();
        Self { shape, data, h, h_ref: bench.round(&h_ref), w, w_ref, weights, way }
    }

    fn judge(
        &self,
        bench: &Bench<'_>,
        name: String,
        matched: Option<(Dtype, usize)>,
        on_gpu: impl Fn(&Side<'_>, &mut RowStats<Stat>, Option<HeadGrads<'_, Act, Grad>>),
        on_cpu: impl Fn(&mut RowStats<Vec<f64>>, Option<HeadGrads<'_, Vec<f64>, CpuGrad<f64>>>),
    ) -> Verdict {
        let HeadShape { n, c, v } = self.shape;
        let (backward, mode) = self.way;
        bench.judge(
            format!("{name} {n}x{c}x{v} {:?} {:?}", self.way, self.data.coefs.first()),
            || {
                let gpu = bench.gpu;
                let mut pack = gpu.pack(n)?;
                gpu.load_pack(&mut pack, &self.data);
                gpu.reserve(self.shape)?;
                let [h, h_ref] = [bench.act(&self.h)?, bench.act(&self.h_ref)?];
                let [w, w_ref] = [bench.act(&self.w)?, bench.act(&self.w_ref)?];
                let weights = bench.stat(&self.weights)?;
                let side = Side {
                    pack: &pack,
                    h: &h,
                    h_ref: &h_ref,
                    w: &w,
                    w_ref: &w_ref,
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
                let to = backward.then(|| HeadGrads { dh: &mut dh, dw: mode.map(|_| &mut dw) });
                on_gpu(&side, &mut stats, to);
                let to = backward
                    .then(|| HeadGrads { dh: &mut dh_want, dw: mode.map(|_| &mut dw_want) });
                on_cpu(&mut want, to);
                let (stored, logits) = (Dtype::F32, (bench.products(), c + v));
                let stat = |name, got: &Stat, want| Output {
                    name,
                    got: bench.read_stat(got, n),
                    want,
                    stored,
                    sums: matched.unwrap_or(logits),
                };
                let mut outputs = vec![stat("value", &stats.value, want.value)];
                if matched.is_none() {
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
                    outputs.push(grad_output(gpu, &dw, &dw_want, mode, sums, 1));
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
            None,
            |side, stats, grads| {
                let weight = match formula {
                    Some(formula) => TokenWeight::Formula(formula),
                    None => TokenWeight::PerRow(side.weights),
                };
                let w = side.w.as_weight();
                bench.gpu.head_onehot(self.shape, side.pack, side.h, w, weight, stats, grads);
            },
            |stats, grads| {
                let weight = match formula {
                    Some(formula) => TokenWeight::Formula(formula),
                    None => TokenWeight::PerRow(&self.weights),
                };
                bench.cpu.head_onehot(self.shape, &pack, &self.h, &self.w, weight, stats, grads);
            },
        )
    }

    fn matched(&self, bench: &Bench<'_>, target: Matched, own: bool) -> Verdict {
        let mut pack = Default::default();
        bench.cpu.load_pack(&mut pack, &self.data);
        let HeadShape { c, v, .. } = self.shape;
        let shared = !own && target != Matched::Uniform;
        let value = match bench.stored() {
            // The difference of hidden rows is rounded to storage before its product.
            Dtype::Bf16 if shared => (Dtype::Bf16, 1),
            _ => (bench.products(), c + v),
        };
        self.judge(
            bench,
            format!("head {target:?} own {own}"),
            Some(value),
            |side, stats, grads| {
                let (w, w_ref) = (side.w.as_weight(), own.then(|| side.w_ref.as_weight()));
                let (h, h_ref) = (side.h, side.h_ref);
                bench
                    .gpu
                    .head_matched(self.shape, side.pack, h, h_ref, w, w_ref, target, stats, grads);
            },
            |stats, grads| {
                let w_ref = own.then_some(&self.w_ref[..]);
                let (h, h_ref) = (&self.h, &self.h_ref);
                bench.cpu.head_matched(
                    self.shape, &pack, h, h_ref, &self.w, w_ref, target, stats, grads,
                );
            },
        )
    }
}

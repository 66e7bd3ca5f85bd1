//! Tokens picked from logits: the largest one, and draws.

use super::{Bench, Dtype, Output, Random, Verdict, tol};
use crate::backend::gpu::Gpu;
use crate::ops::sample::kept_weights;
use crate::ops::{Compute, HeadShape, HeadWeight, LinearArgs, LinearShape, Memory, Sampling};

/// Vocabularies: below and above what a warp, and a warp's share, settles at once; with and without whole quads.
const VOCABS: [usize; 11] = [1, 2, 3, 41, 128, 129, 401, 1000, 2049, 4096, 4099];
/// A row of logits of some kind; all are multiples of 1/16 below 16, which every precision multiplies exactly.
type Kind = (&'static str, fn(usize, usize, &mut Random) -> f64);

const KINDS: [Kind; 4] = [
    ("random", |_, _, random| (random.unit() * 256.0 - 128.0).round() / 16.0),
    ("ties", |_, _, random| random.below(3) as f64),
    ("equal", |_, _, _| -1.5),
    ("peak", |v, id, random| if id == v / 2 { 15.0 } else { random.below(16) as f64 / 16.0 }),
];
/// Logits that are no numbers; these rows are all alike, for infinity times 0 is not 0.
const ODD: [Kind; 6] = [
    ("-inf", |_, id, random| if id % 3 == 0 { f64::NEG_INFINITY } else { random.below(8) as f64 }),
    ("all -inf", |_, _, _| f64::NEG_INFINITY),
    ("inf", |v, id, random| if id == v - 1 { f64::INFINITY } else { random.below(8) as f64 }),
    ("nan", |_, id, random| if id % 2 == 0 { f64::NAN } else { random.below(8) as f64 }),
    ("nan and -inf", |_, id, _| if id % 2 == 0 { f64::NAN } else { f64::NEG_INFINITY }),
    ("all nan", |_, _, _| f64::NAN),
];
/// Temperature and `top_p`: cold, plain and hot; all tokens, most, few, the first one.
const SAMPLINGS: [(f64, f64); 8] = [
    (1.0, 1.0),
    (0.7, 0.9),
    (0.05, 1.0),
    (30.0, 0.5),
    (1e30, 1.0),
    (1e-30, 0.7),
    (1.0, 1e-9),
    (3.0, 0.9999),
];

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for (i, v) in VOCABS.into_iter().enumerate() {
        for (j, kind) in KINDS.into_iter().enumerate() {
            // One row, several, and several chunks of which the last is not full.
            let (n, cap) = [(1, None), (3, None), (7, Some(3))][(i + j) % 3];
            gpu.cap_head_rows(cap);
            let job = Job::rows(v, n, kind);
            verdicts.push(job.judge(&bench, None));
            let at = SAMPLINGS[(i + 2 * j) % SAMPLINGS.len()];
            verdicts.push(job.judge(&bench, Some(at)));
            gpu.cap_head_rows(None);
        }
    }
    for v in [2, 401] {
        for kind in ODD {
            let job = Job::alike(v, 3, kind);
            verdicts.push(job.judge(&bench, None));
            for at in &SAMPLINGS[..2] {
                verdicts.push(job.judge(&bench, Some(*at)));
            }
        }
    }
    for (i, (n, c, v)) in
        [(1, 16, 41), (5, 33, 401), (3, 64, 1000), (4, 41, 4099), (2, 8, 3)].into_iter().enumerate()
    {
        let cap = (i % 2 == 1).then_some(1.5);
        let job = Job { cap, ..Job::products(&bench, HeadShape { n, c, v }) };
        verdicts.push(job.judge(&bench, None));
        for k in [0, 1, 3] {
            verdicts.push(job.judge(&bench, Some(SAMPLINGS[(i + k) % 4])));
        }
    }
    verdicts
}

/// Inputs of a case.
struct Job {
    name: String,
    shape: HeadShape,
    h: Vec<f64>,
    w: Vec<f64>,
    /// The soft cap of logits.
    cap: Option<f64>,
    /// True if GEMMs do not round.
    exact: bool,
}

impl Job {
    /// Rows of their own: hidden rows are unit vectors, and the matrix holds the logits in columns.
    fn rows(v: usize, n: usize, (name, kind): Kind) -> Self {
        let mut random = Random::new(24);
        let h = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
        let w = (0..v * n).map(|i| kind(v, i / n, &mut random)).collect();
        Self {
            name: name.to_string(),
            shape: HeadShape { n, c: n, v },
            h,
            w,
            cap: None,
            exact: true,
        }
    }

    /// Rows that are alike: hidden rows of one 1.
    fn alike(v: usize, n: usize, (name, kind): Kind) -> Self {
        let mut random = Random::new(25);
        let w = (0..v).map(|id| kind(v, id, &mut random)).collect();
        let shape = HeadShape { n, c: 1, v };
        Self { name: name.to_string(), shape, h: vec![1.0; n], w, cap: None, exact: true }
    }

    /// Random hidden rows and a random matrix.
    fn products(bench: &Bench<'_>, shape: HeadShape) -> Self {
        let mut random = Random::new(26);
        let h = bench.round(&random.vec(shape.n * shape.c));
        let w = bench.round(&random.vec(shape.v * shape.c));
        Self { name: "products".to_string(), shape, h, w, cap: None, exact: false }
    }

    /// Picks tokens on both sides, the largest logits or draws.
    ///
    /// The choices must be equal, but for what rounding may change: see [`legal_argmax`] and [`legal_draw`].
    fn judge(&self, bench: &Bench<'_>, at: Option<(f64, f64)>) -> Verdict {
        let Self { name, shape, h, w, cap, exact } = self;
        let HeadShape { n, c, v } = *shape;
        let how = match at {
            Some((temperature, top_p)) => format!("sample t={temperature:e} p={top_p}"),
            None => "argmax".to_string(),
        };
        bench.judge(format!("{how} {name} {n}x{c}x{v} cap={cap:?}"), || {
            let (gpu, cpu) = (bench.gpu, &bench.cpu);
            gpu.reserve(*shape, false)?;
            let (on_gpu, matrix) = (bench.act(h)?, bench.act(w)?);
            let matrix = HeadWeight { cap: *cap, ..HeadWeight::plain(matrix.as_weight()) };
            let w = HeadWeight { cap: *cap, ..HeadWeight::plain(&w[..]) };
            let (mut got, mut want) = (vec![u32::MAX; n], vec![0; n]);
            let mut z = vec![0.0; n * v];
            let map = LinearShape { n, o: v, i: c };
            cpu.linear(LinearArgs { shape: map, x: h, w: w.matrix, bias: None }, None, &mut z);
            let capped = |z: f64| cap.map_or(z, |cap| cap * (z / cap).tanh());
            let z: Vec<f32> = z.into_iter().map(|z| capped(z) as f32).collect();
            let top = z.iter().fold(0.0, |a: f32, z| a.max(z.abs()));
            let error = if *exact { 0.0 } else { tol(bench.products(), c) * f64::from(top) };
            let mut random = Random::new(27);
            // The ends of [0, 1), and what lies between them.
            let draw = |row: usize| match row % 4 {
                1 => 0.0,
                2 => 1.0 - f64::EPSILON / 2.0,
                _ => random.unit(),
            };
            let draws: Vec<f64> = (0..n).map(draw).collect();
            let sampling = at.map(|(temperature, top_p)| Sampling { temperature, top_p });
            match sampling {
                Some(sampling) => {
                    gpu.head_sample(*shape, &on_gpu, matrix, sampling, &draws, &mut got);
                    cpu.head_sample(*shape, h, w, sampling, &draws, &mut want);
                }
                None => {
                    gpu.head_argmax(*shape, &on_gpu, matrix, &mut got);
                    cpu.head_argmax(*shape, h, w, &mut want);
                }
            }
            for (row, (got, want)) in got.iter().zip(&mut want).enumerate() {
                let (z, id) = (&z[row * v..][..v], *got as usize);
                let legal = id < v
                    && match sampling {
                        Some(sampling) => legal_draw(z, sampling, draws[row], id, error),
                        None => legal_argmax(z, id, error),
                    };
                if legal {
                    *want = *got;
                }
            }
            Ok(vec![Output {
                name: "ids",
                got: got.iter().map(|id| *id as f32).collect(),
                want: want.iter().map(|id| f64::from(*id)).collect(),
                stored: Dtype::F64,
                sums: (Dtype::F64, 0),
            }])
        })
    }
}

/// Tells whether a device whose logits are off by `error` at most may find that of `id` the largest.
fn legal_argmax(z: &[f32], id: usize, error: f64) -> bool {
    let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    error > 0.0 && f64::from(z[id]) >= f64::from(top) - 2.0 * error
}

/// Tells whether a device may draw `id` with `u` if its logits are off by `error` at most.
///
/// Where logits are exact, a weight is off by the roundings of its exponent x, 2^-23 |x|, those of the exponential,
/// 2^-22, and the 2^-40 of its unit: with |x| weighed by probability below 13 in these vocabularies, a running share
/// is off by less than 2^-17. `u` may lie that far outside the token's interval, and `top_p` may be off as far. An
/// error of the logits adds four times itself over the temperature; and then tokens whose weights the error does not
/// tell apart from the least one that is kept may stand for one another, so their share is added too.
fn legal_draw(z: &[f32], sampling: Sampling, u: f64, id: usize, error: f64) -> bool {
    let blur = 2.0 * error / sampling.temperature;
    let slack = 2f64.powi(-17) + 2.0 * blur;
    let all = kept_weights(z, Sampling { top_p: 1.0, ..sampling });
    [-slack, 0.0, slack].into_iter().any(|off| {
        let top_p = (sampling.top_p + off).clamp(f64::MIN_POSITIVE, 1.0);
        // All are kept or some are left out; rounding of `top_p` does not change that.
        let top_p = if sampling.top_p < 1.0 { top_p } else { 1.0 };
        let kept = kept_weights(z, Sampling { top_p, ..sampling });
        let total: f64 = kept.iter().sum();
        let least = kept.iter().copied().filter(|w| *w > 0.0).fold(1.0, f64::min);
        let alike = |w: f64| error > 0.0 && (w / least).ln().abs() <= blur;
        let border: f64 = match sampling.top_p < 1.0 {
            true => all.iter().copied().filter(|w| alike(*w)).sum::<f64>() / total,
            false => 0.0,
        };
        let below = kept[..id].iter().sum::<f64>() / total;
        let member = kept[id] > 0.0 || alike(all[id]);
        member && (below - slack - border..below + all[id] / total + slack + border).contains(&u)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_p: 1.0 };

    #[test]
    fn only_neighbours_of_a_border_may_be_drawn_for_one_another() {
        let z = [0.0; 4];
        let legal = |u, id| legal_draw(&z, PLAIN, u, id, 0.0);
        assert!(legal(0.25, 1) && legal(0.25 - 1e-6, 1) && legal(0.25 + 1e-6, 0));
        assert!(!legal(0.25 - 1e-4, 1) && !legal(0.25 + 1e-4, 0) && !legal(0.3, 2));
        // Of equals the first ones are kept.
        let half = Sampling { top_p: 0.4, ..PLAIN };
        assert!(legal_draw(&z, half, 0.9, 1, 0.0) && !legal_draw(&z, half, 0.9, 3, 0.0));
    }

    #[test]
    fn an_argmax_may_be_off_by_the_error_of_two_logits() {
        assert!(legal_argmax(&[1.0, 0.99], 1, 0.01) && !legal_argmax(&[1.0, 0.9], 1, 0.01));
        assert!(!legal_argmax(&[1.0, 1.0], 1, 0.0));
    }
}

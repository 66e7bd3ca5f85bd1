//! The Fisher operator against the Fisher matrix of a model small enough to form it, damped natural-gradient steps by
//! conjugate gradients against the exact ones, the mean teacher's drift against both; probes leave a run as it is.

use crate::support::Random;
use crate::support::model::weights;
use nepenthe::backend::cpu::Cpu;
use nepenthe::data::MicroBatch;
use nepenthe::method::passes::{Passes, Task};
use nepenthe::method::{
    FORGET, Knobs, MeanTeacher, Method, Nll, PENALTIES, Settings, StepReport, WeightRule, find,
};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig, Train};
use nepenthe::ops::{StateMode, TeacherForm};
use nepenthe::optim::Schedule;
use nepenthe::optim::UpdateRule;
use nepenthe::probe::fisher::{Fisher, Point, cosine, distance, dot, norm};
use nepenthe::probe::solve::{Limits, conjugate_gradients, diagonal};
use nepenthe::report::svg::Chart;

const V: usize = 11;
const TOY: &str = r#"{"model_type":"llama","hidden_size":8,"num_attention_heads":2,"num_key_value_heads":1,
    "hidden_act":"silu","vocab_size":11,"num_hidden_layers":1,"intermediate_size":6,"rms_norm_eps":1e-5}"#;

type Ops = Cpu<f64>;

fn model(ops: &Ops, momentum: f64) -> Model<Ops> {
    let config = ModelConfig::parse(TOY).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let keep = Keeping {
        train: Some(Train::Body),
        mode: StateMode::Exact,
        teacher: TeacherForm::Drift,
        rule: UpdateRule::Sgd { momentum },
        seed: 1,
    };
    let weights = weights(&config, 51, folder.path());
    Model::load(ops, config, &weights, &keep).unwrap()
}

fn texts(seed: u64, lengths: &[usize]) -> Vec<MicroBatch> {
    let mut random = Random::new(seed);
    let mut row = |len: &usize| (0..*len).map(|_| random.below(V) as u32).collect::<Vec<_>>();
    vec![MicroBatch::new(lengths.iter().map(&mut row).collect::<Vec<_>>())]
}

/// The Fisher matrix by its definition: the mean over positions of E_y g_y g_y', y drawn from the model and g_y the
/// gradient of -log p_y. Row-major.
fn exact(
    ops: &Ops,
    model: &mut Model<Ops>,
    passes: &mut Passes<Ops>,
    texts: &[MicroBatch],
) -> Vec<f64> {
    let point = Point::take(ops, model).unwrap();
    let n = point.len();
    let (teacher, zeros) = (point.teacher(), vec![0.0; n]);
    let mut matrix = vec![0.0; n * n];
    let rows: Vec<Vec<u32>> =
        texts.iter().flat_map(|b| (0..b.rows()).map(|r| b.row(r).to_vec())).collect();
    // The penalty's mean is over padded positions, as in the reference.
    let positions: usize = texts.iter().map(MicroBatch::padded_positions).sum();
    for row in &rows {
        for end in 1..=row.len() {
            for y in 0..V as u32 {
                // The sum over targets of prefix and y, less that over the prefix's own, is the last target's.
                let prefix = row[..end].to_vec();
                let whole = [prefix.clone(), vec![y]].concat();
                let log_p = *passes.score(ops, model, &[&whole]).unwrap()[0].last().unwrap();
                let mut fisher = Fisher::new(ops, model, passes, &point, teacher.clone(), &[]);
                let mut sum = |ids: Vec<u32>| {
                    let targets = ids.len() - 1;
                    if targets == 0 {
                        return vec![0.0; n];
                    }
                    let batch = [MicroBatch::new([ids])];
                    let g = fisher.gradient(&Nll, &Knobs::default(), &zeros, Some(&batch)).unwrap();
                    g.iter().map(|g| g * targets as f64).collect::<Vec<_>>()
                };
                let (all, before) = (sum(whole), sum(prefix));
                let g: Vec<f64> = all.iter().zip(&before).map(|(a, b)| a - b).collect();
                let weight = log_p.exp() / positions as f64;
                for (i, gi) in g.iter().enumerate().filter(|(_, g)| **g != 0.0) {
                    for (to, gj) in matrix[i * n..(i + 1) * n].iter_mut().zip(&g) {
                        *to += weight * gi * gj;
                    }
                }
            }
        }
    }
    point.restore(ops, model).unwrap();
    matrix
}

fn times(matrix: &[f64], v: &[f64]) -> Vec<f64> {
    matrix.chunks(v.len()).map(|row| row.iter().zip(v).map(|(a, b)| a * b).sum()).collect()
}

/// Solves (scale A + shift I) x = b by Cholesky.
fn solve(matrix: &[f64], scale: f64, shift: f64, b: &[f64]) -> Vec<f64> {
    let n = b.len();
    let mut l = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let inner: f64 = (0..j).map(|k| l[i * n + k] * l[j * n + k]).sum();
            let a = scale * matrix[i * n + j] + if i == j { shift } else { 0.0 };
            l[i * n + j] = if i == j { (a - inner).sqrt() } else { (a - inner) / l[j * n + j] };
        }
    }
    let mut x = b.to_vec();
    for i in 0..n {
        let inner: f64 = (0..i).map(|k| l[i * n + k] * x[k]).sum();
        x[i] = (x[i] - inner) / l[i * n + i];
    }
    for i in (0..n).rev() {
        let inner: f64 = (i + 1..n).map(|k| l[k * n + i] * x[k]).sum();
        x[i] = (x[i] - inner) / l[i * n + i];
    }
    x
}

const ALPHA: f64 = 0.02;
const BETA: f64 = 3.0;
const DAMPING: f64 = 0.5;

#[test]
fn products_and_damped_steps_are_those_of_the_exact_fisher_matrix() {
    let ops = Ops::new();
    let mut model = model(&ops, 0.0);
    let mut passes = Passes::new(&ops, &model, 64, true).unwrap();
    let (retain, forget) = (texts(55, &[5, 3]), texts(56, &[6]));
    let matrix = exact(&ops, &mut model, &mut passes, &retain);
    let point = Point::take(&ops, &model).unwrap();
    let n = point.len();
    let before = nll_bits(&ops, &mut model, &mut passes, &forget);
    let teacher = point.teacher();
    let mut fisher = Fisher::new(&ops, &mut model, &mut passes, &point, teacher.clone(), &retain);
    let v = Random::new(2).vec(n);
    let expected = fisher.calibrate(&v).unwrap();
    let (got, want) = (fisher.product(&v).unwrap(), times(&matrix, &v));
    let error = distance(&got, &want) / norm(&want);
    eprintln!("{n} parameters; product off by {error:e}, expected {expected:e}");
    assert!(error < 1e-6, "product off by {error:e}");
    assert!(expected < 1e-5, "{expected:e}");

    // v^T F v by finite differences of log-probabilities alone, the Gauss-Newton form: the mean over positions of
    // E_y (d log p_y)^2 along v.
    let e = 1e-4 / norm(&v);
    let mut log_p = |sign: f64| {
        let drift: Vec<f64> = v.iter().map(|x| sign * e * x).collect();
        point.load(&ops, &mut model, &teacher, &drift).unwrap();
        let rows: Vec<Vec<u32>> =
            retain.iter().flat_map(|b| (0..b.rows()).map(|r| b.row(r).to_vec())).collect();
        let mut all = Vec::new();
        for row in rows {
            for end in 1..=row.len() {
                for y in 0..V as u32 {
                    let whole = [&row[..end], &[y]].concat();
                    all.push(
                        *passes.score(&ops, &mut model, &[&whole]).unwrap()[0].last().unwrap(),
                    );
                }
            }
        }
        all
    };
    let (forward, backward, at) = (log_p(1.0), log_p(-1.0), log_p(0.0));
    let positions: usize = retain.iter().map(MicroBatch::padded_positions).sum();
    let slopes = forward.iter().zip(&backward).map(|(a, b)| (a - b) / (2.0 * e));
    let sum: f64 = at.iter().zip(slopes).map(|(at, slope)| at.exp() * slope * slope).sum();
    let (quadratic, by_products) = (sum / positions as f64, dot(&v, &got));
    let error = (quadratic - by_products).abs() / by_products;
    eprintln!("v'Fv by differences of log-probabilities off by {error:e}");
    assert!(error < 1e-6, "{quadratic} and {by_products}");

    // Damped steps: conjugate gradients with products, against Cholesky with the matrix.
    let mut fisher = Fisher::new(&ops, &mut model, &mut passes, &point, teacher, &retain);
    fisher.calibrate(&v).unwrap();
    let nlul = find(&FORGET, "", "nlul").unwrap();
    let zeros = vec![0.0; n];
    let g = fisher.gradient(nlul, &Knobs::default(), &zeros, Some(&forget)).unwrap();
    let b: Vec<f64> = g.iter().map(|g| -ALPHA * g).collect();
    let want = solve(&matrix, BETA, DAMPING, &b);
    let shares =
        diagonal(&mut |v| fisher.product(v), n, nepenthe::rng::Stream::new(1, "s"), 8).unwrap();
    let shares: Vec<f64> = shares.iter().map(|f| BETA * f + DAMPING).collect();
    for scale in [None, Some(&shares[..])] {
        let mut product = |v: &[f64]| {
            let fv = fisher.product(v)?;
            Ok(fv.iter().zip(v).map(|(f, v)| BETA * f + DAMPING * v).collect())
        };
        let limits = Limits { tolerance: 1e-9, iterations: 200 };
        let found = conjugate_gradients(&mut product, &b, None, scale, limits).unwrap();
        let error = distance(&found.x, &want) / norm(&want);
        eprintln!("damped step off by {error:e} after {} products", found.residuals.len() - 1);
        assert!(error < 1e-6, "damped step off by {error:e}");
    }
    point.restore(&ops, &mut model).unwrap();
    assert_eq!(nll_bits(&ops, &mut model, &mut passes, &forget), before);
}

fn nll_bits(
    ops: &Ops,
    model: &mut Model<Ops>,
    passes: &mut Passes<Ops>,
    texts: &[MicroBatch],
) -> u64 {
    let sums =
        passes.sweep(ops, model, None, &Knobs::default(), Task::new(&Nll, texts, None)).unwrap();
    sums.nll.to_bits()
}

/// Runs the mean teacher on the same texts at every step; returns the cosine and the relative distance between its drift
/// and the damped step at its teacher.
fn settle(rate: f64, lr: f64, momentum: f64, steps: u64) -> (f64, f64) {
    let ops = Ops::new();
    let start = model(&ops, momentum);
    let passes = Passes::new(&ops, &start, 64, true).unwrap();
    let loss = find(&FORGET, "", "nlul").unwrap();
    let penalty = find(&PENALTIES, "", "qkl").unwrap();
    let beta = WeightRule::Constant(BETA);
    let method = Method::new((loss, ALPHA), [(penalty, beta)], Knobs::default());
    let settings = Settings {
        clip: f64::INFINITY,
        damping: DAMPING,
        teacher_rate: rate,
        schedule: Schedule::constant(lr),
    };
    let mut run = MeanTeacher::new(start, None, passes, method, settings);
    let (retain, forget) = (texts(55, &[5, 3]), texts(56, &[6]));
    for _ in 0..steps {
        let StepReport { skipped, .. } = run.step(&ops, &forget, &retain).unwrap();
        assert!(!skipped);
    }
    let point = Point::take(&ops, &run.model).unwrap();
    let MeanTeacher { model, passes, .. } = &mut run;
    let mut fisher = Fisher::new(&ops, model, passes, &point, point.teacher(), &retain);
    let zeros = vec![0.0; point.len()];
    let g = fisher.gradient(loss, &Knobs::default(), &zeros, Some(&forget)).unwrap();
    fisher.calibrate(&g).unwrap();
    let b: Vec<f64> = g.iter().map(|g| -ALPHA * g).collect();
    let mut product = |v: &[f64]| {
        let fv = fisher.product(v)?;
        Ok(fv.iter().zip(v).map(|(f, v)| BETA * f + DAMPING * v).collect())
    };
    let limits = Limits { tolerance: 1e-8, iterations: 200 };
    let x = conjugate_gradients(&mut product, &b, None, None, limits).unwrap().x;
    let drift = point.drift();
    (cosine(&drift, &x), distance(&drift, &x) / norm(&x))
}

#[test]
fn the_drift_of_a_slow_teacher_is_the_damped_natural_gradient_step() {
    // A student that settles in 100 steps (lr times damping 0.01): beside a teacher that moves as fast its drift is another
    // vector, beside one that takes ten times as long nearly the step. Momentum changes how fast it settles, not where.
    let mut last = (0.0, f64::INFINITY);
    let mut distances = Vec::new();
    for rate in [0.1, 0.01, 0.001] {
        let (cosine, distance) = settle(rate, 0.02, 0.0, 1500);
        eprintln!("teacher rate {rate}: cosine {cosine:.6}, distance {distance:.4}");
        assert!(
            cosine > last.0 && distance < last.1,
            "a slower teacher is nearer: {cosine}, {distance} after {last:?}"
        );
        last = (cosine, distance);
        distances.push(("teacher rate".to_owned(), rate / (0.02 * DAMPING), distance));
    }
    assert!(last.0 > 0.99 && last.1 < 0.1, "{last:?}");
    for (lr, momentum, steps) in [(0.01, 0.0, 3000), (0.01, 0.5, 2000), (0.002, 0.9, 2000)] {
        let (cosine, distance) = settle(0.001, lr, momentum, steps);
        eprintln!("lr {lr}, momentum {momentum}: cosine {cosine:.6}, distance {distance:.4}");
        assert!(cosine > 0.99, "cosine {cosine}");
        let settling = lr * DAMPING / (1.0 - momentum);
        distances.push((format!("momentum {momentum}"), 0.001 / settling, distance));
    }
    for lr in [0.004, 0.002] {
        let (_, distance) = settle(0.001, lr, 0.0, 6000);
        distances.push(("lr".to_owned(), 0.001 / (lr * DAMPING), distance));
    }
    distance_follows_one_number(distances);
    // Where the student is not stable, lr times the largest eigenvalue above 2, the drift is no step at all.
    let (cosine, _) = settle(0.01, 0.3, 0.0, 400);
    eprintln!("lr 0.3, unstable: cosine {cosine:.6}");
    assert!(cosine < 0.9, "cosine {cosine}");
}

/// Whatever is changed, learning rate, momentum or teacher rate: how far drift and step are apart grows with how fast the
/// teacher moves beside the student. The chart is experiments/ngd-toy.svg, which NEPENTHE_BLESS=1 writes.
fn distance_follows_one_number(mut distances: Vec<(String, f64, f64)>) {
    distances.sort_by(|a, b| a.1.total_cmp(&b.1));
    for pair in distances.windows(2) {
        assert!(pair[1].2 >= pair[0].2 * 0.98, "{pair:?}");
    }
    if std::env::var_os("NEPENTHE_BLESS").is_none() {
        return;
    }
    let mut names: Vec<&String> = distances.iter().map(|(name, ..)| name).collect();
    names.sort();
    names.dedup();
    let mut chart = Chart::new(
        "drift of the mean teacher against the damped natural-gradient step",
        "log10 of delta (1 - m) / (lr damp)",
        "relative distance",
    )
    .mark_ends();
    for name in names {
        let of = distances.iter().filter(|(other, ..)| other == name);
        chart = chart.series(name.clone(), of.map(|(_, x, y)| (x.log10(), *y)));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/ngd-toy.svg");
    std::fs::write(path, chart.standalone()).unwrap();
}

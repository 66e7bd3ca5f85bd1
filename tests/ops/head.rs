//! The fused head: every family of loss rows against finite differences.
//!
//! Weights of one-hot rows are detached: no gradient flows through them. What is differentiated is therefore a
//! surrogate, `sum of coef w nll` with w frozen at the point in question, and w comes from a formula written here.

use approx::assert_abs_diff_eq;
use nepenthe::backend::cpu::{Cpu, Grad};
use nepenthe::ops::{
    Compute, HeadGrads, HeadReference, HeadRows, HeadShape, HeadWeight, LinearArgs, LinearShape,
    Matched, PackData, RowStats, Sampling, TokenFormula, TokenWeight,
};

use crate::support::{Dtype, Random, assert_gradient, assert_near, tol};
use crate::{load, read, stale};

/// N, C, V: one chunk of rows and several, and one vocabulary above the size that is swept as a whole.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (3, 3, 1),
    (1, 41, 3),
    (3, 1, 41),
    (41, 3, 401),
    (41, 401, 41),
    (401, 3, 401),
    (3, 3, 8233),
];

/// Which rows count.
#[derive(Debug, Clone, Copy)]
enum Mask {
    All,
    Some,
    None,
}

const MASKS: [Mask; 3] = [Mask::All, Mask::Some, Mask::None];

type Shape = (usize, usize, usize);

/// All shapes with all masks, then all again with one of them and logits capped at `cap`.
fn kinds(cap: f64) -> impl Iterator<Item = (Shape, (&'static [Mask], Option<f64>))> {
    let kinds = [(&MASKS[..], None), (&MASKS[1..2], Some(cap))];
    kinds.into_iter().flat_map(|kind| SHAPES.map(|shape| (shape, kind)))
}

/// Part of the name of a capped case.
fn capped(cap: Option<f64>) -> &'static str {
    if cap.is_some() { " capped" } else { "" }
}

fn pack_data(n: usize, v: usize, mask: Mask, random: &mut Random) -> PackData {
    let mut coef = |t: usize| match mask {
        Mask::All => 0.5 + random.unit(),
        Mask::Some if t.is_multiple_of(3) => 0.0,
        Mask::Some => 0.5 - random.unit(),
        Mask::None => 0.0,
    };
    let coefs = (0..n).map(&mut coef).collect();
    let mut ids = || (0..n).map(|_| random.below(v) as u32).collect::<Vec<_>>();
    PackData {
        ids: ids(),
        positions: (0..n as u32).collect(),
        starts: vec![0, n as u32],
        targets: ids(),
        coefs,
        ..PackData::default()
    }
}

/// Hidden rows that make logits of unit size.
fn rows(n: usize, c: usize, random: &mut Random) -> Vec<f64> {
    random.vec(n * c).iter().map(|x| x / (c as f64).sqrt()).collect()
}

/// A head whose logits may have a cap.
fn head(matrix: &[f64], cap: Option<f64>) -> HeadWeight<&[f64]> {
    HeadWeight { cap, ..HeadWeight::plain(matrix) }
}

fn stats(n: usize) -> RowStats<Vec<f64>> {
    RowStats { nll: stale(n), value: stale(n), hit: stale(n) }
}

fn onehot(
    ops: &Cpu<f64>,
    (n, c, v): (usize, usize, usize),
    data: &PackData,
    h: &[f64],
    w: HeadWeight<&[f64]>,
    weight: TokenWeight<'_, Vec<f64>>,
    grads: Option<(&mut Vec<f64>, Option<&mut Grad<f64>>)>,
) -> RowStats<Vec<f64>> {
    let mut out = stats(n);
    let grads = grads.map(|(dh, dw)| HeadGrads { dh, dw, db: None });
    let shape = HeadShape { n, c, v };
    ops.head_onehot(
        HeadRows { shape, first: 0, pack: &load(ops, data), h: &h.to_vec(), w },
        weight,
        &mut out,
        grads,
    );
    out
}

/// The published objectives that are weights of a one-hot row: a name, the formula, the weight at p.
type Family = (&'static str, TokenFormula, fn(f64) -> f64);

fn formula(
    sign: f64,
    (p_power, q_power): (f64, f64),
    pole: Option<f64>,
    threshold: f64,
) -> TokenFormula {
    TokenFormula { sign, p_power, q_power, pole, threshold }
}

fn families() -> [Family; 9] {
    [
        ("nll", TokenFormula::constant(1.0), |_| 1.0),
        ("ll", TokenFormula::constant(-1.0), |_| -1.0),
        ("nlul", formula(-1.0, (1.0, 0.0), Some(0.02), 0.0), |p| -p / (1.02 - p)),
        ("nlul, tol 0", formula(-1.0, (1.0, 0.0), Some(0.0), 0.0), |p| -p / (1.0 - p)),
        ("nlul, threshold", formula(-1.0, (1.0, 0.0), Some(0.02), 0.03), |p| {
            if p > 0.03 { -p / (1.02 - p) } else { 0.0 }
        }),
        ("uce", formula(-1.0, (1.0, 0.0), Some(1.0), 0.0), |p| -p / (2.0 - p)),
        ("wga", formula(-1.0, (0.5, 0.0), None, 0.0), |p| -p.sqrt()),
        ("satimp", formula(-1.0, (5.0, 1.0), None, 0.0), |p| -p.powi(5) * (1.0 - p)),
        ("focal", formula(1.0, (0.0, 2.0), None, 0.0), |p| (1.0 - p).powi(2)),
    ]
}

#[test]
fn onehot_gradient_is_that_of_the_frozen_surrogate() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(19);
    for ((n, c, v), (masks, cap)) in kinds(0.7) {
        let (h, w) = (rows(n, c, &mut random), random.vec(v * c));
        for &mask in masks {
            let data = pack_data(n, v, mask, &mut random);
            let plain = || TokenWeight::Formula(TokenFormula::constant(1.0));
            let nll = |h: &[f64], w: &[f64]| {
                onehot(&ops, (n, c, v), &data, h, head(w, cap), plain(), None).nll
            };
            let at = nll(&h, &w);
            for (family, formula, weight_at) in families() {
                // A vocabulary of one has p = 1: without a floor its weight is a pole, tested apart.
                if v == 1 && formula.pole == Some(0.0) {
                    continue;
                }
                let name = |of: &str| format!("{family} {n} {c} {v} {mask:?}{}: {of}", capped(cap));
                let weights: Vec<f64> = at.iter().map(|nll| weight_at((-nll).exp())).collect();
                let (mut dh, mut dw) = (stale(n * c), Grad::wide(v * c));
                let shape = (n, c, v);
                let rule = || TokenWeight::Formula(formula);
                let got = onehot(
                    &ops,
                    shape,
                    &data,
                    &h,
                    head(&w, cap),
                    rule(),
                    Some((&mut dh, Some(&mut dw))),
                );
                let cotangent: Vec<f64> =
                    data.coefs.iter().zip(&weights).map(|(c, w)| c * w).collect();
                let value: Vec<f64> = weights.iter().zip(&at).map(|(w, nll)| w * nll).collect();
                let terms = c + v;
                assert_near(&name("value"), &got.value, &value, tol(Dtype::F64, terms));
                let mut by_h = |h: &[f64]| nll(h, &w);
                assert_gradient(&name("dh"), terms, &h, &dh, &cotangent, &mut by_h);
                let dw = read(&dw);
                assert_gradient(&name("dw"), terms + n, &w, &dw, &cotangent, &mut |w| nll(&h, w));
                // A frozen head is swept another way, and must come to the same.
                let mut frozen = stale(n * c);
                let got2 = onehot(
                    &ops,
                    shape,
                    &data,
                    &h,
                    head(&w, cap),
                    rule(),
                    Some((&mut frozen, None)),
                );
                assert_near(&name("frozen"), &frozen, &dh, tol(Dtype::F64, terms));
                assert_near(&name("frozen"), &got2.value, &value, tol(Dtype::F64, terms));
                let per_row = TokenWeight::PerRow(&weights);
                let mut other = stale(n * c);
                onehot(&ops, shape, &data, &h, head(&w, cap), per_row, Some((&mut other, None)));
                assert_near(&name("per row"), &other, &dh, tol(Dtype::F64, terms));
                for (row, coef) in data.coefs.iter().enumerate().filter(|(_, c)| **c == 0.0) {
                    let gone = dh[row * c..(row + 1) * c].iter().all(|g| *g == 0.0);
                    assert!(gone, "{}: row {row} of {coef}", name("mask"));
                }
                if matches!(mask, Mask::None) {
                    assert!(dw.iter().all(|g| *g == 0.0), "{}", name("all masked"));
                }
            }
        }
    }
}

#[test]
fn nlul_gradient_is_that_of_its_closed_form() {
    // -log(1 + tol - p) needs no frozen weight: p / (1 + tol - p) d log p = dp / (1 + tol - p).
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(20);
    for (n, c, v) in SHAPES {
        let (h, w) = (rows(n, c, &mut random), random.vec(v * c));
        let data = pack_data(n, v, Mask::Some, &mut random);
        let rule = formula(-1.0, (1.0, 0.0), Some(0.02), 0.0);
        let mut dh = stale(n * c);
        let weight = TokenWeight::Formula(rule);
        onehot(&ops, (n, c, v), &data, &h, HeadWeight::plain(&w), weight, Some((&mut dh, None)));
        let name = format!("nlul {n} {c} {v}");
        assert_gradient(&name, c + v, &h, &dh, &data.coefs, &mut |h| {
            let plain = TokenWeight::Formula(TokenFormula::constant(1.0));
            let nll = onehot(&ops, (n, c, v), &data, h, HeadWeight::plain(&w), plain, None).nll;
            nll.iter().map(|nll| -(1.02 - (-nll).exp()).ln()).collect()
        });
    }
}

#[test]
fn statistics_do_not_depend_on_the_coefficients() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(21);
    for (n, c, v) in SHAPES {
        let (h, w) = (rows(n, c, &mut random), random.vec(v * c));
        let mut data = pack_data(n, v, Mask::All, &mut random);
        let weight = || TokenWeight::Formula(TokenFormula::constant(1.0));
        let shown = onehot(&ops, (n, c, v), &data, &h, HeadWeight::plain(&w), weight(), None);
        data.coefs.fill(0.0);
        let hidden = onehot(&ops, (n, c, v), &data, &h, HeadWeight::plain(&w), weight(), None);
        assert_eq!(shown.nll, hidden.nll);
        let mut logits = stale(n * v);
        let shape = LinearShape { n, o: v, i: c };
        ops.linear(LinearArgs { shape, x: &h, w: &w[..], bias: None }, None, &mut logits);
        for (row, z) in logits.chunks(v).enumerate() {
            let y = data.targets[row] as usize;
            let total: f64 = z.iter().map(|z| z.exp()).sum();
            let want = total.ln() - z[y];
            // An nll near 0 is a difference of numbers of the logits' size.
            let scale = 1.0 + want.abs() + z[y].abs();
            assert_abs_diff_eq!(shown.nll[row], want, epsilon = tol(Dtype::F64, c + v) * scale);
            let best = z.iter().all(|other| *other <= z[y]);
            assert_eq!(shown.hit[row] == 1.0, best, "row {row}");
        }
    }
}

#[test]
fn rows_without_a_coefficient_have_no_gradient_whatever_their_weight() {
    // A document without targets has no mean to take a weight from.
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(22);
    let (h, w) = (random.vec(3 * 41), random.vec(3 * 41));
    let data = pack_data(3, 3, Mask::None, &mut random);
    let weights = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let (mut dh, mut dw) = (stale(3 * 41), Grad::wide(3 * 41));
    let rule = TokenWeight::PerRow(&weights);
    onehot(
        &ops,
        (3, 41, 3),
        &data,
        &h,
        HeadWeight::plain(&w),
        rule,
        Some((&mut dh, Some(&mut dw))),
    );
    assert!(dh.iter().chain(&read(&dw)).all(|g| *g == 0.0), "{dh:?}");
}

#[test]
fn nlul_without_tol_stays_finite_where_p_is_one() {
    // The weight p / (1 - p) has a pole there, the gradient does not: it falls to e^z of the others over their sum.
    let ops = Cpu::<f32>::new();
    for gap in [10.0f32, 60.0, 88.0, 120.0, 1000.0] {
        for coef in [1.0, 1e-4, 41.0] {
            let data = PackData {
                ids: vec![0],
                positions: vec![0],
                starts: vec![0, 1],
                targets: vec![0],
                coefs: vec![coef],
                ..PackData::default()
            };
            let rule = formula(-1.0, (1.0, 0.0), Some(0.0), 0.0);
            let mut out = RowStats { nll: stale(1), value: stale(1), hit: stale(1) };
            let mut dh = stale(3);
            let grads = Some(HeadGrads { dh: &mut dh, dw: None, db: None });
            // The matrix is the identity: logits are hidden numbers and gradients go back as they are.
            let w = HeadWeight::plain(&[1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0][..]);
            let shape = HeadShape { n: 1, c: 3, v: 3 };
            let weight = TokenWeight::Formula(rule);
            let h = vec![gap, 0.0, 0.0];
            ops.head_onehot(
                HeadRows { shape, first: 0, pack: &load(&ops, &data), h: &h, w },
                weight,
                &mut out,
                grads,
            );
            assert!(dh.iter().all(|g| g.is_finite()), "gap {gap}, coefficient {coef}: {dh:?}");
            assert!(out.value[0].is_finite() && out.nll[0].is_finite(), "{out:?}");
            if gap < 87.0 {
                let want = [coef, -coef / 2.0, -coef / 2.0]
                    .map(|limit| limit / (1.0 + 2.0 * f64::from(-gap).exp()));
                let got: Vec<f64> = dh.iter().map(|g| f64::from(*g)).collect();
                assert_near("tol 0", &got, &want, tol(Dtype::F32, 3));
            }
        }
    }
}

/// A student and a teacher in front of heads that may be one and the same.
struct Pair {
    h: Vec<f64>,
    h_ref: Vec<f64>,
    w: Vec<f64>,
    w_ref: Option<Vec<f64>>,
    /// Cap of the logits of both.
    cap: Option<f64>,
}

fn matched(
    ops: &Cpu<f64>,
    (n, c, v): (usize, usize, usize),
    data: &PackData,
    pair: &Pair,
    target: Matched,
    grads: Option<(&mut Vec<f64>, Option<&mut Grad<f64>>)>,
) -> Vec<f64> {
    let mut out = stats(n);
    let grads = grads.map(|(dh, dw)| HeadGrads { dh, dw, db: None });
    let shape = HeadShape { n, c, v };
    let w_ref = pair.w_ref.as_deref().map(|w| head(w, pair.cap));
    let (pack, Pair { h, h_ref, w, .. }) = (load(ops, data), pair);
    let w = head(w, pair.cap);
    ops.head_matched(
        HeadRows { shape, first: 0, pack: &pack, h, w },
        HeadReference { h: h_ref, w: w_ref },
        target,
        &mut out,
        grads,
    );
    let monitored = [out.nll, out.hit];
    if target.reads_teacher() {
        assert!(monitored.concat().iter().all(|x| x.is_nan()), "a penalty wrote nll or hit");
        return out.value;
    }
    let plain = TokenWeight::Formula(TokenFormula::constant(1.0));
    let want = onehot(ops, (n, c, v), data, h, w, plain, None);
    if target.compares() && w_ref.is_none() {
        // The logits are the sum of their difference and the other model's.
        assert_near("nll", &monitored[0], &want.nll, tol(Dtype::F64, c + v));
        assert_eq!(monitored[1], want.hit, "{target:?}");
    } else {
        assert_eq!(monitored, [want.nll, want.hit], "{target:?}");
    }
    out.value
}

#[test]
fn matched_gradient_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(23);
    for (shape, (masks, cap)) in kinds(1.3) {
        let (n, c, v) = shape;
        for (mask, own_head) in masks.iter().flat_map(|m| [(*m, false), (*m, true)]) {
            let data = pack_data(n, v, mask, &mut random);
            let mut pair = Pair {
                h: rows(n, c, &mut random),
                h_ref: rows(n, c, &mut random),
                w: random.vec(v * c),
                w_ref: own_head.then(|| random.vec(v * c)),
                cap,
            };
            for target in Matched::ALL {
                let name = |of: &str| {
                    format!("{target:?} {n} {c} {v} {mask:?} own {own_head}{}: {of}", capped(cap))
                };
                // The teacher's distribution is the weight of qkl and does not move with the student; what is
                // descended is half of the variance that is returned.
                let share = if target == Matched::Qkl { 0.5 } else { 1.0 };
                let cotangent: Vec<f64> = data.coefs.iter().map(|c| share * c).collect();
                let (mut dh, mut dw) = (stale(n * c), Grad::wide(v * c));
                // With one head for both, the head is frozen.
                let trained = own_head || !target.compares();
                let sink = trained.then_some(&mut dw);
                let value = matched(&ops, shape, &data, &pair, target, Some((&mut dh, sink)));
                // Among many logits two are likely to change places as the largest within a step of the differences. The
                // gradient is that of the logit which is the largest before it.
                let tops = (target == Matched::Flatten).then(|| tops(shape, &pair));
                let eval = |pair: &Pair| match &tops {
                    Some(tops) => flattened(shape, &data, pair, tops),
                    None => matched(&ops, shape, &data, pair, target, None),
                };
                let (at, w) = (pair.h.clone(), pair.w.clone());
                assert_gradient(&name("dh"), c + v, &at, &dh, &cotangent, &mut |h| {
                    pair.h.copy_from_slice(h);
                    eval(&pair)
                });
                pair.h.copy_from_slice(&at);
                if trained {
                    let dw = read(&dw);
                    assert_gradient(&name("dw"), n + c + v, &w, &dw, &cotangent, &mut |w| {
                        pair.w.copy_from_slice(w);
                        eval(&pair)
                    });
                    pair.w.copy_from_slice(&w);
                }
                let want = plain_values(shape, &data, &pair, target);
                // Values are differences of logarithms here, and there of numbers of the logits' size.
                let terms = if target == Matched::LogitKl { v as f64 } else { (v as f64).ln() };
                let size = 1.0 + terms;
                for (got, want) in value.iter().zip(&want) {
                    let off = (got - want).abs();
                    assert!(
                        off <= tol(Dtype::F64, c + v) * (size + want.abs()),
                        "{}",
                        name("value")
                    );
                }
                if matches!(mask, Mask::None) {
                    let all = dh.iter().chain(&value).copied().chain(read(&dw));
                    assert!(all.into_iter().all(|x| x == 0.0), "{}", name("all masked"));
                }
            }
        }
    }
}

/// Returns the student's logits, a row after the other.
fn logits((_, c, _): (usize, usize, usize), pair: &Pair) -> Vec<Vec<f64>> {
    let logit = |row: &[f64], h: &[f64]| {
        let z = row.iter().zip(h).map(|(a, b)| a * b).sum::<f64>();
        pair.cap.map_or(z, |cap| cap * (z / cap).tanh())
    };
    pair.h.chunks(c).map(|h| pair.w.chunks(c).map(|row| logit(row, h)).collect()).collect()
}

/// Returns the index of each row's largest logit, the first of equals.
fn tops(shape: (usize, usize, usize), pair: &Pair) -> Vec<usize> {
    let top = |z: &Vec<f64>| (0..z.len()).rev().max_by(|a, b| z[*a].total_cmp(&z[*b])).unwrap();
    logits(shape, pair).iter().map(top).collect()
}

/// Returns the values of `flatten` with the logit `tops` in the place of each row's largest.
fn flattened(
    shape: (usize, usize, usize),
    data: &PackData,
    pair: &Pair,
    tops: &[usize],
) -> Vec<f64> {
    let rows = logits(shape, pair);
    let value = |((z, top), coef): ((&Vec<f64>, &usize), &f64)| match *coef {
        0.0 => 0.0,
        _ => (z[*top] - z.iter().sum::<f64>() / z.len() as f64).powi(2),
    };
    rows.iter().zip(tops).zip(&data.coefs).map(value).collect()
}

/// Values written down once more from the logits.
fn plain_values(
    (n, c, v): (usize, usize, usize),
    data: &PackData,
    pair: &Pair,
    target: Matched,
) -> Vec<f64> {
    let log_p = |h: &[f64], w: &[f64]| -> (Vec<f64>, Vec<f64>) {
        let logit = |row: &[f64]| {
            let z = row.iter().zip(h).map(|(a, b)| a * b).sum::<f64>();
            pair.cap.map_or(z, |cap| cap * (z / cap).tanh())
        };
        let z: Vec<f64> = w.chunks(c).map(logit).collect();
        let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        (z.iter().map(|z| z - log_sum).collect(), z)
    };
    let row = |r: usize| {
        let at = r * c..(r + 1) * c;
        let (p, z) = log_p(&pair.h[at.clone()], &pair.w);
        let (q, z_ref) = log_p(&pair.h_ref[at], pair.w_ref.as_ref().unwrap_or(&pair.w));
        let d: Vec<f64> = z.iter().zip(&z_ref).map(|(a, b)| a - b).collect();
        let mean: f64 = q.iter().zip(&d).map(|(q, d)| q.exp() * d).sum();
        let expect = |f: &dyn Fn(usize) -> f64| (0..v).map(|i| q[i].exp() * f(i)).sum::<f64>();
        match target {
            Matched::Uniform => -(v as f64).ln() - p.iter().sum::<f64>() / v as f64,
            Matched::Kl => expect(&|i| q[i] - p[i]),
            Matched::Qkl => expect(&|i| (d[i] - mean).powi(2)),
            Matched::Undial { strength } => {
                let y = data.targets[r] as usize;
                let raw = |i: usize| (z_ref[i] - if i == y { strength } else { 0.0 }).exp();
                let total: f64 = (0..v).map(raw).sum();
                (0..v).map(|i| raw(i) / total * ((raw(i) / total).ln() - p[i])).sum::<f64>()
            }
            Matched::LogitRatio { beta } => {
                2.0 / beta * d.iter().map(|d| (beta * d).exp().ln_1p()).sum::<f64>() / v as f64
            }
            Matched::LogitKl => -(0..v).map(|i| z_ref[i].exp() * d[i]).sum::<f64>(),
            Matched::Flatten => {
                let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                (largest - z.iter().sum::<f64>() / v as f64).powi(2)
            }
        }
    };
    (0..n).map(|r| if data.coefs[r] == 0.0 { 0.0 } else { row(r) }).collect()
}

#[test]
fn penalties_of_a_student_like_its_teacher_are_exactly_zero() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(24);
    // The widest is longer than a block of any product's inner loop.
    for shape in [(3, 3, 41), (41, 401, 41), (3, 4001, 41)] {
        let (n, c, v) = shape;
        let data = pack_data(n, v, Mask::All, &mut random);
        let (h, w) = (rows(n, c, &mut random), random.vec(v * c));
        for own_head in [false, true] {
            let w_ref = own_head.then(|| w.clone());
            let mut pair = Pair { h: h.clone(), h_ref: h.clone(), w: w.clone(), w_ref, cap: None };
            let caps = [None, Some(0.7)];
            for (target, cap) in caps.map(|cap| [(Matched::Kl, cap), (Matched::Qkl, cap)]).concat()
            {
                pair.cap = cap;
                let mut dh = stale(n * c);
                let value = matched(&ops, shape, &data, &pair, target, Some((&mut dh, None)));
                let off = dh.iter().chain(&value).filter(|x| **x != 0.0).count();
                assert_eq!(off, 0, "{target:?} {shape:?} own head {own_head}");
            }
        }
    }
}

/// A bias is one more column of the matrix, against rows that are 1 there.
#[test]
fn a_head_with_a_bias_is_one_of_wider_rows() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(25);
    for (n, c, v) in [(3, 3, 1), (41, 3, 401), (3, 3, 8233)] {
        let data = pack_data(n, v, Mask::Some, &mut random);
        let [h, h_ref] = [0; 2].map(|_| rows(n, c, &mut random));
        let heads = [0; 2].map(|_| (random.vec(v * c), random.vec(v)));
        let wide_rows = |h: &[f64]| -> Vec<f64> {
            h.chunks(c).flat_map(|row| row.iter().copied().chain([1.0])).collect()
        };
        let wide_heads = [0, 1].map(|i| {
            let (w, b) = &heads[i];
            let rows = w.chunks(c).zip(b);
            rows.flat_map(|(row, b)| row.iter().copied().chain([*b])).collect::<Vec<f64>>()
        });
        let run = |wide: bool, target: Option<Matched>, own: bool| {
            let c = c + usize::from(wide);
            let of_head = |i: usize| match wide {
                true => HeadWeight::plain(&wide_heads[i][..]),
                false => {
                    HeadWeight { matrix: &heads[i].0[..], bias: Some(&heads[i].1[..]), cap: None }
                }
            };
            let of = |h: &Vec<f64>| if wide { wide_rows(h) } else { h.clone() };
            let (mut out, mut dh) = (stats(n), stale(n * c));
            let (mut dw, mut db) = (Grad::wide(v * c), Grad::wide(v));
            let shape = HeadShape { n, c, v };
            let db_to = (!wide).then_some(&mut db);
            let grads = Some(HeadGrads { dh: &mut dh, dw: Some(&mut dw), db: db_to });
            let (pack, weight) = (load(&ops, &data), TokenFormula::constant(-1.0));
            let (h, h_ref) = (of(&h), of(&h_ref));
            match target {
                Some(target) => {
                    let (own, out) = (own.then(|| of_head(1)), &mut out);
                    ops.head_matched(
                        HeadRows { shape, first: 0, pack: &pack, h: &h, w: of_head(0) },
                        HeadReference { h: &h_ref, w: own },
                        target,
                        out,
                        grads,
                    );
                }
                None => {
                    let weight = TokenWeight::Formula(weight);
                    ops.head_onehot(
                        HeadRows { shape, first: 0, pack: &pack, h: &h, w: of_head(0) },
                        weight,
                        &mut out,
                        grads,
                    );
                }
            }
            let (dw, db) = (read(&dw), read(&db));
            // The gradient of the bias as the last column of the matrix's, and no gradient at the column of ones.
            let (dw, dh) = match wide {
                true => (dw, dh.chunks(c).flat_map(|row| row[..c - 1].to_vec()).collect()),
                false => {
                    let rows = dw.chunks(c).zip(&db);
                    (rows.flat_map(|(r, b)| r.iter().copied().chain([*b])).collect(), dh)
                }
            };
            let mut picked = vec![0; n];
            ops.head_argmax(shape, &h, of_head(0), &mut picked);
            let picked = picked.into_iter().map(f64::from).collect();
            [out.value, dh, dw, picked]
        };
        for target in Matched::ALL.into_iter().map(Some).chain([None]) {
            for own in [false, true] {
                let (got, want): ([Vec<f64>; 4], _) =
                    (run(false, target, own), run(true, target, own));
                for (got, want) in got.iter().zip(&want) {
                    let name = format!("{target:?} own {own} {n} {c} {v}");
                    assert_near(&name, got, want, tol(Dtype::F64, c + v));
                }
            }
        }
    }
}

#[test]
fn capped_logits_are_what_scores_and_draws_read() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(26);
    let (n, v, cap) = (41, 41, 1.3);
    let data = pack_data(n, v, Mask::All, &mut random);
    // The matrix is the identity: logits are hidden numbers.
    let z: Vec<f64> = random.vec(n * v).iter().map(|z| 4.0 * z).collect();
    let w: Vec<f64> = (0..v * v).map(|i| f64::from(u8::from(i / v == i % v))).collect();
    let capped: Vec<f64> = z.iter().map(|z| cap * (z / cap).tanh()).collect();
    let score = |z: &[f64], cap| {
        let weight = TokenWeight::Formula(TokenFormula::constant(1.0));
        let out = onehot(&ops, (n, v, v), &data, z, head(&w, cap), weight, None);
        [out.nll, out.hit]
    };
    let ([nll, hit], [want, want_hit]) = (score(&z, Some(cap)), score(&capped, None));
    assert_near("nll", &nll, &want, tol(Dtype::F64, v));
    assert_eq!(hit, want_hit);
    let draws: Vec<f64> = (0..n).map(|_| random.unit()).collect();
    let pick = |z: &Vec<f64>, cap| {
        let (shape, sampling) =
            (HeadShape { n, c: v, v }, Sampling { temperature: 0.7, top_p: 0.9 });
        let (mut largest, mut drawn) = (vec![0; n], vec![0; n]);
        ops.head_argmax(shape, z, head(&w, cap), &mut largest);
        ops.head_sample(shape, z, head(&w, cap), sampling, &draws, &mut drawn);
        (largest, drawn)
    };
    let got = pick(&z, Some(cap));
    assert_eq!(got, pick(&capped, None));
    assert_ne!(got.1, pick(&z, None).1);
}

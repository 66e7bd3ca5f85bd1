//! Every op in f32 against f64 on the same inputs, and its bytes from run to run and over thread counts.

use nepenthe::backend::cpu::{Cpu, Grad, Real};
use nepenthe::ops::{
    AttentionSaved, Compute, Direction, HeadGrads, HeadReference, HeadRows, HeadShape, HeadWeight,
    Heads, LinearArgs, LinearShape, Matched, Mlp, Norm, NormArgs, NormGrads, PackData, QkNormArgs,
    RopeTable, RowStats, TokenFormula, TokenWeight,
};

use crate::support::{Dtype, Random, assert_near, tol};
use crate::{cast, documents, load, read, stale, wide};

/// Output of an op, and the length of the longest reduction behind it.
struct Output {
    name: String,
    values: Vec<f64>,
    terms: usize,
}

fn output(name: impl Into<String>, values: Vec<f64>, terms: usize) -> Output {
    Output { name: name.into(), values, terms }
}

/// An op with its backward in both precisions.
struct Case {
    name: &'static str,
    single: fn() -> Vec<Output>,
    double: fn() -> Vec<Output>,
}

const CASES: [Case; 7] = [
    Case { name: "linear", single: linear::<f32>, double: linear::<f64> },
    Case { name: "embed", single: embed::<f32>, double: embed::<f64> },
    Case { name: "norms", single: norms::<f32>, double: norms::<f64> },
    Case { name: "attention", single: attention::<f32>, double: attention::<f64> },
    Case { name: "swiglu", single: swiglu::<f32>, double: swiglu::<f64> },
    Case { name: "one-hot", single: onehot::<f32>, double: onehot::<f64> },
    Case { name: "matched", single: matched::<f32>, double: matched::<f64> },
];

#[test]
fn single_precision_follows_double() {
    for case in CASES {
        for (got, want) in (case.single)().iter().zip((case.double)()) {
            let what = format!("{}: {}", case.name, got.name);
            assert_near(&what, &got.values, &want.values, tol(Dtype::F32, want.terms));
        }
    }
}

#[test]
fn bytes_do_not_depend_on_run_or_threads() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for case in CASES {
        for run in [case.single, case.double] {
            let want = run();
            for threads in [1, 2, 2, 3] {
                for (got, want) in pool(threads).install(run).iter().zip(&want) {
                    let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    let same = bits(&got.values) == bits(&want.values);
                    assert!(same, "{}: {}: {threads} threads", case.name, got.name);
                }
            }
        }
    }
}

fn linear<T: Real>() -> Vec<Output> {
    let (ops, mut random) = (Cpu::<T>::new(), Random::new(41));
    let mut all = Vec::new();
    for (n, o, i) in [(1, 401, 41), (41, 3, 401), (401, 401, 41), (41, 1601, 41), (3, 3, 4001)] {
        let mut draw = |len| cast::<T>(&random.vec(len));
        let (x, w, dy) = (draw(n * i), draw(o * i), draw(n * o));
        let (bias, residual) = (draw(o), draw(n * o));
        let (mut y, mut dx) = (stale(n * o), stale(n * i));
        let shape = LinearShape { n, o, i };
        let args = LinearArgs { shape, x: &x, w: &w[..], bias: Some(&bias[..]) };
        ops.linear(args, Some(&residual), &mut y);
        ops.linear_dgrad(shape, &dy, &w, &mut dx);
        let (mut dw, mut db) = (Grad::wide(o * i), Grad::wide(o));
        for _ in 0..2 {
            ops.linear_wgrad(shape, &dy, &x, &mut dw);
            ops.bias_grad(n, o, &dy, &mut db);
        }
        let name = |of: &str| format!("{n} {o} {i} {of}");
        all.push(output(name("y"), wide(&y), i));
        all.push(output(name("dx"), wide(&dx), o));
        all.push(output(name("dw"), read(&dw), n));
        all.push(output(name("db"), read(&db), n));
    }
    all
}

fn embed<T: Real>() -> Vec<Output> {
    let (ops, mut random) = (Cpu::<T>::new(), Random::new(42));
    let data = documents(&[41, 401, 1, 3], 41, &mut random);
    let (pack, n) = (load(&ops, &data), data.tokens());
    let (table, dx) = (cast::<T>(&random.vec(41 * 41)), cast::<T>(&random.vec(n * 41)));
    let (mut x, mut dtable) = (stale(n * 41), Grad::wide(41 * 41));
    ops.embed(&pack, 41, 3.0, &table, &mut x);
    ops.embed_bwd(&pack, 41, 3.0, &dx, &mut dtable);
    vec![output("x", wide(&x), 1), output("dtable", read(&dtable), n)]
}

fn norms<T: Real>() -> Vec<Output> {
    let (ops, mut random) = (Cpu::<T>::new(), Random::new(43));
    let norm = |c| Norm { offset: 0.5, ..Norm::rms(c, 1e-5) };
    let mut all = Vec::new();
    for (n, c) in [(3, 1), (41, 401), (401, 41), (3, 4001)] {
        let mut draw = |len| cast::<T>(&random.vec(len));
        let (x, gain, dy, mut dx) = (draw(n * c), draw(c), draw(n * c), draw(n * c));
        let (mut y, mut rstd, mut dgain) = (stale(n * c), stale(n), Grad::wide(c));
        let args = NormArgs { n, norm: norm(c), x: &x, gain: &gain[..], bias: None };
        ops.norm(args, None, &mut y, &mut rstd);
        let grads = NormGrads { gain: Some(&mut dgain), bias: None };
        ops.norm_bwd(args, &dy, &rstd, &mut dx, grads);
        all.push(output("y", wide(&y), c));
        all.push(output("rstd", wide(&rstd), c));
        all.push(output("dx", wide(&dx), c));
        all.push(output("dgain", read(&dgain), n + c));
    }
    let (n, heads) = (401, Heads { h: 6, g: 2, d: 41, window: None, cap: None });
    let len = n * heads.qkv_width();
    let mut draw = |len| cast::<T>(&random.vec(len));
    let (raw, q, k, mut dqkv) = (draw(len), draw(41), draw(41), draw(len));
    let (mut qkv, mut rstd) = (stale(len), stale(n * 8));
    let gains = [&q[..], &k[..]];
    let args = QkNormArgs { n, heads, norm: norm(41), raw: &raw, gains };
    ops.qk_norm(args, &mut qkv, &mut rstd);
    let (mut dq, mut dk) = (Grad::wide(41), Grad::wide(41));
    ops.qk_norm_bwd(args, &rstd, &mut dqkv, Some([&mut dq, &mut dk]));
    all.push(output("qkv", wide(&qkv), 41));
    all.push(output("dqkv", wide(&dqkv), 41));
    all.push(output("dq", read(&dq), n * 6));
    all.push(output("dk", read(&dk), n * 2));
    all
}

fn attention<T: Real>() -> Vec<Output> {
    let (ops, mut random) = (Cpu::<T>::new(), Random::new(44));
    let mut all = Vec::new();
    for (h, g, d, window) in [(2, 2, 41, None), (6, 2, 3, Some(3)), (2, 1, 41, Some(401))] {
        let heads = Heads { h, g, d, window, cap: None };
        let data = documents(&[41, 1, 401, 3], 41, &mut random);
        let (pack, n) = (load(&ops, &data), data.tokens());
        let mut qkv = cast::<T>(&random.vec(n * heads.qkv_width()));
        let dout = cast::<T>(&random.vec(n * heads.out_width()));
        let table = RopeTable { inv_freq: vec![1.0], scale: 1.0 };
        ops.rope(&pack, heads, &table, Direction::Forward, &mut qkv);
        let (mut out, mut lse) = (stale(n * heads.out_width()), stale(n * h));
        ops.attention(&pack, heads, &qkv, &mut out, &mut lse);
        let mut dqkv = stale(qkv.len());
        ops.attention_bwd(
            &pack,
            heads,
            AttentionSaved { qkv: &qkv, out: &out, lse: &lse },
            &dout,
            &mut dqkv,
        );
        let terms = d + 401;
        all.push(output("rope", wide(&qkv), 2));
        all.push(output("out", wide(&out), terms));
        all.push(output("lse", wide(&lse), terms));
        all.push(output("dqkv", wide(&dqkv), terms));
    }
    all
}

fn swiglu<T: Real>() -> Vec<Output> {
    let (ops, mut random) = (Cpu::<T>::new(), Random::new(45));
    let (n, f) = (41, 401);
    let gates: Vec<f64> = random.vec(n * 2 * f).iter().map(|x| 8.0 * x).collect();
    let (mut gate_up, mut dy) = (cast::<T>(&gates), cast::<T>(&random.vec(n * f)));
    let mut y = stale(n * f);
    ops.mlp(n, f, Mlp::SWIGLU, &gate_up, &mut y);
    ops.mlp_bwd(n, f, Mlp::SWIGLU, &mut dy, &mut gate_up);
    vec![output("y", wide(&y), 1), output("grad", wide(&gate_up), 1)]
}

const SHAPES: [HeadShape; 3] = [
    HeadShape { n: 401, c: 41, v: 401 },
    HeadShape { n: 41, c: 401, v: 3 },
    HeadShape { n: 41, c: 3, v: 8233 },
];

/// Hidden rows of logits of unit size, a matrix, and a pack with a third of its rows masked.
fn head_inputs<T: Real>(shape: HeadShape, random: &mut Random) -> (Vec<T>, Vec<T>, PackData) {
    let HeadShape { n, c, v } = shape;
    let mut data = documents(&[n], v, random);
    data.coefs = (0..n).map(|t| if t % 3 == 1 { 0.0 } else { 1.0 / n as f64 }).collect();
    // A power of two keeps the rows exact in f32.
    let scale = 2f64.powi(-((c as f64).log2() / 2.0).ceil() as i32);
    let h: Vec<f64> = random.vec(n * c).iter().map(|x| x * scale).collect();
    (cast(&h), cast(&random.vec(v * c)), data)
}

fn onehot<T: Real>() -> Vec<Output> {
    let (ops, mut random) = (Cpu::<T>::new(), Random::new(46));
    let mut all = Vec::new();
    let nlul = TokenFormula { p_power: 1.0, pole: Some(0.02), ..TokenFormula::constant(-1.0) };
    let focal = TokenFormula { q_power: 2.0, p_power: 0.5, ..TokenFormula::constant(1.0) };
    for shape in SHAPES {
        let HeadShape { n, c, v } = shape;
        let (h, w, data) = head_inputs::<T>(shape, &mut random);
        for formula in [TokenFormula::constant(1.0), nlul, focal] {
            for trained in [true, false] {
                let mut stats = RowStats { nll: stale(n), value: stale(n), hit: stale(n) };
                let (mut dh, mut dw) = (stale(n * c), Grad::wide(v * c));
                let grads =
                    Some(HeadGrads { dh: &mut dh, dw: trained.then_some(&mut dw), db: None });
                let weight = TokenWeight::Formula(formula);
                let pack = load(&ops, &data);
                let w = HeadWeight::plain(&w[..]);
                ops.head_onehot(
                    HeadRows { shape, first: 0, pack: &pack, h: &h, w },
                    weight,
                    &mut stats,
                    grads,
                );
                all.push(output("nll", wide(&stats.nll), c + v));
                all.push(output("value", wide(&stats.value), c + v));
                all.push(output("dh", wide(&dh), c + v));
                all.push(output("dw", read(&dw), n + c + v));
            }
        }
    }
    all
}

fn matched<T: Real>() -> Vec<Output> {
    let (ops, mut random) = (Cpu::<T>::new(), Random::new(47));
    let mut all = Vec::new();
    for shape in SHAPES {
        let HeadShape { n, c, v } = shape;
        let (h, w, data) = head_inputs::<T>(shape, &mut random);
        // A teacher far off with a head of its own, and one nearby with the same head, where nothing may cancel.
        let (far, own, _) = head_inputs::<T>(shape, &mut random);
        let step = T::from_f64(2f64.powi(-14));
        let near: Vec<T> = h.iter().zip(&far).map(|(h, far)| *h + *far * step).collect();
        let near: Vec<T> = near.iter().map(|x| T::from_f32(x.to_f32())).collect();
        for target in Matched::ALL {
            for (h_ref, w_ref) in [(&far, Some(&own[..])), (&near, None)] {
                let mut stats = RowStats { nll: stale(n), value: stale(n), hit: stale(n) };
                let (mut dh, mut dw) = (stale(n * c), Grad::wide(v * c));
                let sink = w_ref.map(|_| &mut dw);
                let grads = Some(HeadGrads { dh: &mut dh, dw: sink, db: None });
                let pack = load(&ops, &data);
                let out = &mut stats;
                let (w, w_ref) = (HeadWeight::plain(&w[..]), w_ref.map(HeadWeight::plain));
                ops.head_matched(
                    HeadRows { shape, first: 0, pack: &pack, h: &h, w },
                    HeadReference { h: h_ref, w: w_ref },
                    target,
                    out,
                    grads,
                );
                let name = |of: &str| format!("{target:?} {n} {c} {v} {of}");
                all.push(output(name("value"), wide(&stats.value), c + v));
                all.push(output(name("dh"), wide(&dh), c + v));
                all.push(output(name("dw"), read(&dw), n + c + v));
            }
        }
    }
    all
}

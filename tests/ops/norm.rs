//! RMSNorm of rows and of query and key heads against finite differences.

use nepenthe::backend::cpu::{Cpu, Grad};
use nepenthe::ops::{Compute, Heads, Norm, NormArgs, NormGrads, QkNormArgs};

use crate::support::{Dtype, Random, assert_gradient, assert_near, tol};
use crate::{read, stale};

fn rms(c: usize) -> Norm {
    Norm { offset: 0.5, ..Norm::rms(c, 1e-5) }
}

#[test]
fn rmsnorm_backward_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(36);
    for (n, c) in [(1, 1), (3, 3), (41, 41), (3, 401), (401, 3), (401, 41)] {
        let (x, gain, dy) = (random.vec(n * c), random.vec(c), random.vec(n * c));
        let before = random.vec(n * c);
        let eval = |x: &Vec<f64>, gain: &[f64]| {
            let (mut y, mut rstd) = (stale(n * c), stale(n));
            let args = NormArgs { n, norm: rms(c), x, gain, bias: None };
            ops.norm(args, None, &mut y, &mut rstd);
            (y, rstd)
        };
        let (_, rstd) = eval(&x, &gain);
        let name = |of: &str| format!("rmsnorm {n} {c}: {of}");
        // dx is added to: the residual branch is already in it.
        let (mut dx, mut dgain) = (before.clone(), Grad::wide(c));
        let args = NormArgs { n, norm: rms(c), x: &x, gain: &gain[..], bias: None };
        let grads = NormGrads { gain: Some(&mut dgain), bias: None };
        ops.norm_bwd(args, &dy, &rstd, &mut dx, grads);
        let mut alone = vec![0.0; n * c];
        ops.norm_bwd(args, &dy, &rstd, &mut alone, NormGrads::none());
        let sum: Vec<f64> = before.iter().zip(&alone).map(|(a, b)| a + b).collect();
        assert_near(&name("residual"), &dx, &sum, tol(Dtype::F64, 1));
        assert_gradient(&name("dx"), c, &x, &alone, &dy, &mut |x| eval(&x.to_vec(), &gain).0);
        let dgain = read(&dgain);
        assert_gradient(&name("dgain"), n, &gain, &dgain, &dy, &mut |gain| eval(&x, gain).0);
    }
}

#[test]
fn qk_norm_backward_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(37);
    for (n, h, g, d) in [(1, 1, 1, 1), (3, 2, 1, 3), (41, 3, 1, 41), (3, 4, 2, 401), (41, 3, 3, 3)]
    {
        let heads = Heads { h, g, d, window: None, cap: None };
        let len = n * heads.qkv_width();
        let (raw, dy) = (random.vec(len), random.vec(len));
        let (q, k) = (random.vec(d), random.vec(d));
        let eval = |raw: &Vec<f64>, gains: [&[f64]; 2]| {
            let (mut qkv, mut rstd) = (stale(len), stale(n * (h + g)));
            let args = QkNormArgs { n, heads, norm: rms(d), raw, gains };
            ops.qk_norm(args, &mut qkv, &mut rstd);
            (qkv, rstd)
        };
        let (_, rstd) = eval(&raw, [&q, &k]);
        let (mut dqkv, mut dq, mut dk) = (dy.clone(), Grad::wide(d), Grad::wide(d));
        let dgains = Some([&mut dq, &mut dk]);
        let gains = [&q[..], &k[..]];
        let args = QkNormArgs { n, heads, norm: rms(d), raw: &raw, gains };
        ops.qk_norm_bwd(args, &rstd, &mut dqkv, dgains);
        let name = |of: &str| format!("qk norm {n} {heads:?}: {of}");
        let sum = n * h + d;
        assert_gradient(&name("draw"), d, &raw, &dqkv, &dy, &mut |raw| {
            eval(&raw.to_vec(), [&q, &k]).0
        });
        assert_gradient(&name("dq"), sum, &q, &read(&dq), &dy, &mut |q| eval(&raw, [q, &k]).0);
        assert_gradient(&name("dk"), sum, &k, &read(&dk), &dy, &mut |k| eval(&raw, [&q, k]).0);
        let mut frozen = dy.clone();
        ops.qk_norm_bwd(args, &rstd, &mut frozen, None);
        assert_eq!(frozen, dqkv);
    }
}

#[test]
fn rmsnorm_adds_a_residual() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(38);
    let (n, c) = (3, 41);
    let [x, more] = [0; 2].map(|_| random.vec(n * c));
    let gain = random.vec(c);
    let [(alone, _), (added, _)] = [None, Some(&more)].map(|residual| {
        let (mut y, mut rstd) = (stale(n * c), stale(n));
        let args = NormArgs { n, norm: rms(c), x: &x, gain: &gain[..], bias: None };
        ops.norm(args, residual, &mut y, &mut rstd);
        (y, rstd)
    });
    let want: Vec<f64> = alone.iter().zip(&more).map(|(y, x)| y + x).collect();
    assert_eq!(added, want);
}

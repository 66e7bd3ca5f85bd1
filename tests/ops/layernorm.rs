//! LayerNorm against finite differences.

use nepenthe::backend::cpu::{Cpu, Grad};
use nepenthe::ops::{Compute, Norm, NormArgs, NormGrads};

use crate::support::{Dtype, Random, assert_gradient, assert_near, tol};
use crate::{read, stale};

const EPS: f64 = 1e-5;

#[test]
fn layernorm_backward_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(27);
    for (n, c) in [(1, 2), (3, 3), (41, 41), (3, 401), (401, 3), (2, 600)] {
        let [x, dy, before] = [0; 3].map(|_| random.vec(n * c));
        let [gain, bias] = [0; 2].map(|_| random.vec(c));
        let norm = Norm::layer(c, EPS);
        let eval = |x: &Vec<f64>, gain: &[f64], bias: &[f64]| {
            let (mut y, mut stats) = (stale(n * c), stale(2 * n));
            let args = NormArgs { n, norm, x, gain, bias: Some(bias) };
            ops.norm(args, None, &mut y, &mut stats);
            (y, stats)
        };
        let (_, stats) = eval(&x, &gain, &bias);
        let name = |of: &str| format!("layernorm {n} {c}: {of}");
        // dx is added to: the residual branch is already in it.
        let (mut dx, mut dgain, mut dbias) = (before.clone(), Grad::wide(c), Grad::wide(c));
        let args = NormArgs { n, norm, x: &x, gain: &gain[..], bias: Some(&bias[..]) };
        let grads = NormGrads { gain: Some(&mut dgain), bias: Some(&mut dbias) };
        ops.norm_bwd(args, &dy, &stats, &mut dx, grads);
        let mut alone = vec![0.0; n * c];
        ops.norm_bwd(args, &dy, &stats, &mut alone, NormGrads::none());
        let sum: Vec<f64> = before.iter().zip(&alone).map(|(a, b)| a + b).collect();
        assert_near(&name("residual"), &dx, &sum, tol(Dtype::F64, 1));
        let at = |x: &[f64]| eval(&x.to_vec(), &gain, &bias).0;
        assert_gradient(&name("dx"), c, &x, &alone, &dy, &mut |x| at(x));
        let dgain = read(&dgain);
        assert_gradient(&name("dgain"), n, &gain, &dgain, &dy, &mut |g| eval(&x, g, &bias).0);
        let dbias = read(&dbias);
        assert_gradient(&name("dbias"), n, &bias, &dbias, &dy, &mut |b| eval(&x, &gain, b).0);
    }
}

/// Rows far from 0 lose nothing: deviations are summed, not squares.
#[test]
fn layernorm_of_rows_far_from_zero_is_that_of_rows_around_it() {
    let ops = Cpu::<f32>::new();
    let mut random = Random::new(28);
    let c = 401;
    let near: Vec<f32> = random.vec(c).iter().map(|x| (x * 64.0).round() as f32).collect();
    let far: Vec<f32> = near.iter().map(|x| x + 65536.0).collect();
    let (gain, bias) = (vec![1.0; c], vec![0.0; c]);
    let [a, b] = [near, far].map(|x| {
        let (mut y, mut stats) = (stale::<f32>(c), stale::<f32>(2));
        let bias = Some(&bias[..]);
        let args = NormArgs { n: 1, norm: Norm::layer(c, EPS), x: &x, gain: &gain[..], bias };
        ops.norm(args, None, &mut y, &mut stats);
        y
    });
    let off = a.iter().zip(&b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(off < 1e-3, "{off}");
}

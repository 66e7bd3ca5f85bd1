//! Linear maps, embeddings and SwiGLU against finite differences.

use nepenthe::backend::cpu::{Cpu, Grad};
use nepenthe::ops::{Compute, LinearArgs, LinearShape, Mlp};

use crate::support::{Dtype, Random, assert_gradient, assert_near, tol};
use crate::{documents, load, read, stale};

/// Rows, outputs, inputs; the last ones are long enough to be cut into tasks by rows and by columns.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (3, 41, 1),
    (1, 401, 41),
    (41, 1, 401),
    (41, 3, 401),
    (401, 41, 3),
    (41, 401, 41),
    (3, 41, 401),
];

#[test]
fn linear_backward_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(29);
    for (n, o, i) in SHAPES {
        let (x, w, dy) = (random.vec(n * i), random.vec(o * i), random.vec(n * o));
        let (bias, residual) = (random.vec(o), random.vec(n * o));
        let shape = LinearShape { n, o, i };
        let name = |of: &str| format!("linear {n} {o} {i}: {of}");
        for (bias, residual) in [(None, None), (Some(&bias), Some(&residual)), (Some(&bias), None)]
        {
            let eval =
                |x: &Vec<f64>, w: &[f64], bias: Option<&[f64]>, residual: Option<&Vec<f64>>| {
                    let mut y = stale(n * o);
                    ops.linear(LinearArgs { shape, x, w, bias }, residual, &mut y);
                    y
                };
            let b = bias.map(|b| &b[..]);
            let mut dx = stale(n * i);
            ops.linear_dgrad(shape, &dy, &w, &mut dx);
            assert_gradient(&name("dx"), i + o, &x, &dx, &dy, &mut |x| {
                eval(&x.to_vec(), &w, b, residual)
            });
            let mut dw = Grad::wide(o * i);
            ops.linear_wgrad(shape, &dy, &x, &mut dw);
            assert_gradient(&name("dw"), i + n, &w, &read(&dw), &dy, &mut |w| {
                eval(&x, w, b, residual)
            });
            if let Some(bias) = b {
                let mut db = Grad::wide(o);
                ops.bias_grad(n, o, &dy, &mut db);
                assert_gradient(&name("dbias"), i + n, bias, &read(&db), &dy, &mut |b| {
                    eval(&x, &w, Some(b), residual)
                });
            }
            if let Some(r) = residual {
                assert_gradient(&name("dresidual"), i, r, &dy, &dy, &mut |r| {
                    eval(&x, &w, b, Some(&r.to_vec()))
                });
            }
        }
    }
}

#[test]
fn weight_gradients_overwrite_first_and_then_add() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(30);
    let pack = load(&ops, &documents(&[3, 1, 41], 41, &mut random));
    for (n, o, i) in SHAPES {
        let (x, dy) = (random.vec(n * i), random.vec(n * o));
        let shape = LinearShape { n, o, i };
        let table = random.vec(45 * 3);
        for mut grads in [[41 * 3, o * i, o].map(Grad::wide), [41 * 3, o * i, o].map(Grad::bf16)] {
            let bf16 = format!("{:?}", grads[0]).contains("Bf16");
            let [dtable, dw, db] = &mut grads;
            let mut sums = Vec::new();
            // The third round begins a new step on the stale numbers of the one before.
            for round in 0..3 {
                if round == 2 {
                    [&mut *dtable, dw, db].into_iter().for_each(|grad| clear(&ops, grad));
                }
                ops.embed_bwd(&pack, 3, 1.0, &table, dtable);
                ops.linear_wgrad(shape, &dy, &x, dw);
                ops.bias_grad(n, o, &dy, db);
                sums.push([read(dtable), read(dw), read(db)]);
            }
            assert_eq!(sums[0], sums[2]);
            let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F64 };
            for (one, two) in sums[0].iter().zip(&sums[1]) {
                let doubled: Vec<f64> = one.iter().map(|x| 2.0 * x).collect();
                // Rows of equal id are rounded one by one: up to all 45 meet in one.
                assert_near("second write", two, &doubled, tol(dtype, 45));
            }
        }
    }
}

fn clear(ops: &Cpu<f64>, grad: &mut Grad<f64>) {
    use nepenthe::ops::State;
    ops.clear_grad(grad);
}

#[test]
fn embedding_backward_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(31);
    for (lengths, v, c) in
        [(&[1][..], 1, 1), (&[3, 1], 3, 41), (&[41, 1, 3], 41, 3), (&[41, 401, 1], 401, 3)]
    {
        let data = documents(lengths, v, &mut random);
        let (pack, n) = (load(&ops, &data), data.tokens());
        let (table, dx) = (random.vec(v * c), random.vec(n * c));
        let mut dtable = Grad::wide(v * c);
        ops.embed_bwd(&pack, c, 1.5, &dx, &mut dtable);
        let name = format!("embed {n} {v} {c}");
        assert_gradient(&name, n, &table, &read(&dtable), &dx, &mut |table| {
            let mut x = stale(n * c);
            ops.embed(&pack, c, 1.5, table, &mut x);
            x
        });
    }
}

#[test]
fn swiglu_backward_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(32);
    for (n, f) in [(1, 1), (3, 41), (401, 3), (41, 401)] {
        let (gate_up, dy) = (random.vec(n * 2 * f), random.vec(n * f));
        let (mut grad, mut turned, mut y) = (gate_up.clone(), dy.clone(), stale(n * f));
        ops.mlp_bwd(n, f, Mlp::SWIGLU, &mut turned, &mut grad);
        ops.mlp(n, f, Mlp::SWIGLU, &gate_up, &mut y);
        assert_eq!(turned, y, "the output made again");
        assert_gradient(&format!("swiglu {n} {f}"), 1, &gate_up, &grad, &dy, &mut |gate_up| {
            let mut y = stale(n * f);
            ops.mlp(n, f, Mlp::SWIGLU, &gate_up.to_vec(), &mut y);
            y
        });
    }
}

#[test]
fn swiglu_of_huge_gates_stays_finite() {
    for gate in [-1e6f32, -100.0, -88.5, 88.5, 100.0, 3e38] {
        let ops = Cpu::<f32>::new();
        let (mut y, mut grad) = (stale(1), vec![gate, 0.5]);
        ops.mlp(1, 1, Mlp::SWIGLU, &grad, &mut y);
        assert!(y[0].is_finite() && (y[0] == 0.5 * gate.max(0.0) || y[0].abs() < 1e-30), "{y:?}");
        ops.mlp_bwd(1, 1, Mlp::SWIGLU, &mut vec![1.0], &mut grad);
        assert!(grad.iter().all(|g| g.is_finite()), "{gate}: {grad:?}");
    }
}

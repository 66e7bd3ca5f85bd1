//! Activations of MLPs against finite differences and closed forms.

use approx::abs_diff_eq;
use nepenthe::backend::cpu::Cpu;
use nepenthe::ops::{Activation, Compute, Mlp};

use crate::stale;
use crate::support::{Random, assert_gradient};

const ALL: [Activation; 4] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

#[test]
fn activation_backward_matches_differences_and_makes_the_output_again() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(33);
    for activation in ALL {
        for gated in [false, true] {
            let mlp = Mlp { activation, gated };
            for (n, f) in [(1, 1), (3, 41), (41, 3)] {
                let width = mlp.width(f);
                let x: Vec<f64> = random.vec(n * width).iter().map(|x| 4.0 * x).collect();
                let dy = random.vec(n * f);
                let mut eval = |x: &[f64]| {
                    let mut y = stale(n * f);
                    ops.mlp(n, f, mlp, &x.to_vec(), &mut y);
                    y
                };
                let y = eval(&x);
                let (mut grad, mut turned) = (x.clone(), dy.clone());
                ops.mlp_bwd(n, f, mlp, &mut turned, &mut grad);
                assert_eq!(turned, y, "{mlp:?} {n} {f}");
                assert_gradient(&format!("{mlp:?} {n} {f}"), 1, &x, &grad, &dy, &mut eval);
            }
        }
    }
}

/// Values of transformers' functions, as PyTorch 2.11 gives them in f64.
#[test]
fn activations_have_the_values_of_their_definitions() {
    let ops = Cpu::<f64>::new();
    let at = |activation, x: f64| {
        let mut y = vec![f64::NAN];
        ops.mlp(1, 1, Mlp { activation, gated: false }, &vec![x], &mut y);
        y[0]
    };
    for (activation, x, want) in [
        (Activation::Gelu, 1.0, 0.841_344_746_068_543),
        (Activation::Gelu, -3.0, -0.004_049_694_094_890_28),
        (Activation::GeluTanh, 1.0, 0.841_191_990_608_276_8),
        (Activation::GeluTanh, -3.0, -0.003_637_392_081_772_994),
        (Activation::Silu, -1.0, -0.268_941_421_369_995_1),
        (Activation::Relu, -1.0, 0.0),
        (Activation::Relu, 2.5, 2.5),
    ] {
        let got = at(activation, x);
        assert!(abs_diff_eq!(got, want, epsilon = 1e-14), "{activation:?} {x}: {got} {want}");
    }
}

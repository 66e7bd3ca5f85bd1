//! Activations of MLPs, forward and backward.

use super::Real;
use super::rows::{each, each2};
use crate::ops::{Activation, Mlp};

/// A function and its derivative.
trait Function: Sync {
    /// Returns both at `x`; the function's value does not depend on whether the derivative is used.
    fn at<T: Real>(x: T) -> (T, T);
}

struct Silu;
struct Gelu;
struct GeluTanh;
struct Relu;

impl Function for Silu {
    #[inline(always)]
    fn at<T: Real>(x: T) -> (T, T) {
        let e = T::ONE + (-x).exp();
        let s = T::ONE / e;
        (x / e, s + x * s * (T::ONE - s))
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn at<T: Real>(x: T) -> (T, T) {
        let density = T::from_f64(0.398_942_280_401_432_7) * (T::from_f64(-0.5) * x * x).exp();
        let half = T::from_f64(0.5);
        let normal = half + half * (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf();
        (x * normal, normal + x * density)
    }
}

impl Function for GeluTanh {
    #[inline(always)]
    fn at<T: Real>(x: T) -> (T, T) {
        // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), without loss where it is small.
        let (a, b) = (T::from_f64(1.595_769_121_605_730_7), T::from_f64(0.044_715));
        let s = T::ONE / (T::ONE + (-(a * (x + b * x * x * x))).exp());
        let slope = a * (T::ONE + T::from_f64(3.0) * b * x * x);
        (x * s, s + x * s * (T::ONE - s) * slope)
    }
}

impl Function for Relu {
    #[inline(always)]
    fn at<T: Real>(x: T) -> (T, T) {
        if x > T::ZERO { (x, T::ONE) } else { (T::ZERO, T::ZERO) }
    }
}

pub(super) fn forward<T: Real>(n: usize, f: usize, mlp: Mlp, x: &[T], y: &mut [T]) {
    match mlp.activation {
        Activation::Silu => forward_as::<T, Silu>(n, f, mlp.gated, x, y),
        Activation::Gelu => forward_as::<T, Gelu>(n, f, mlp.gated, x, y),
        Activation::GeluTanh => forward_as::<T, GeluTanh>(n, f, mlp.gated, x, y),
        Activation::Relu => forward_as::<T, Relu>(n, f, mlp.gated, x, y),
    }
}

pub(super) fn backward<T: Real>(n: usize, f: usize, mlp: Mlp, dy: &mut [T], x: &mut [T]) {
    match mlp.activation {
        Activation::Silu => backward_as::<T, Silu>(n, f, mlp.gated, dy, x),
        Activation::Gelu => backward_as::<T, Gelu>(n, f, mlp.gated, dy, x),
        Activation::GeluTanh => backward_as::<T, GeluTanh>(n, f, mlp.gated, dy, x),
        Activation::Relu => backward_as::<T, Relu>(n, f, mlp.gated, dy, x),
    }
}

fn forward_as<T: Real, A: Function>(n: usize, f: usize, gated: bool, x: &[T], y: &mut [T]) {
    each(
        n,
        f,
        y,
        #[inline(always)]
        |r, y| {
            if gated {
                let (gate, up) = x[2 * r * f..2 * (r + 1) * f].split_at(f);
                for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                    *y = A::at(*g).0 * *u;
                }
            } else {
                for (y, x) in y.iter_mut().zip(&x[r * f..(r + 1) * f]) {
                    *y = A::at(*x).0;
                }
            }
        },
    );
}

fn backward_as<T: Real, A: Function>(n: usize, f: usize, gated: bool, dy: &mut [T], x: &mut [T]) {
    let width = if gated { 2 * f } else { f };
    each2(
        n,
        (width, f),
        x,
        dy,
        #[inline(always)]
        |_, row, dy| {
            if gated {
                let (gate, up) = row.split_at_mut(f);
                for ((g, u), d) in gate.iter_mut().zip(up).zip(dy) {
                    let (value, slope) = A::at(*g);
                    *g = *d * *u * slope;
                    // As in the forward pass, to the bit.
                    let y = value * *u;
                    *u = *d * value;
                    *d = y;
                }
            } else {
                for (x, d) in row.iter_mut().zip(dy) {
                    let (value, slope) = A::at(*x);
                    *x = *d * slope;
                    *d = value;
                }
            }
        },
    );
}

//! Linear systems and spectra of operators that are known by their products alone.

use crate::error::{Error, Kind, Result};
use crate::rng::Stream;

use super::fisher::{dot, norm};

/// An operator by its products; symmetric.
pub type Product<'a> = &'a mut dyn FnMut(&[f64]) -> Result<Vec<f64>>;

/// A solution and how it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// x.
    pub x: Vec<f64>,
    /// |b - A x| over |b|, before the first iteration and after each.
    pub residuals: Vec<f64>,
}

/// Limits of conjugate gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The relative residual that is good enough.
    pub tolerance: f64,
    /// The most products.
    pub iterations: usize,
}

/// Solves A x = b by conjugate gradients from `start`, preconditioned by `scale`, an estimate of A's diagonal.
///
/// A must be symmetric and positive definite. To go on with a solve, start from what it returned. Errors: those of the
/// products; [`Kind::Numeric`] where A turns out not to be positive in a direction.
pub fn conjugate_gradients(
    product: Product<'_>,
    b: &[f64],
    start: Option<&[f64]>,
    scale: Option<&[f64]>,
    limits: Limits,
) -> Result<Solution> {
    let length = norm(b).max(f64::MIN_POSITIVE);
    let mut x = start.map_or_else(|| vec![0.0; b.len()], <[f64]>::to_vec);
    let mut r = b.to_vec();
    if start.is_some() {
        let ax = product(&x)?;
        r.iter_mut().zip(&ax).for_each(|(r, ax)| *r -= ax);
    }
    let precondition = |r: &[f64]| match scale {
        Some(scale) => r.iter().zip(scale).map(|(r, s)| r / s).collect::<Vec<_>>(),
        None => r.to_vec(),
    };
    let mut z = precondition(&r);
    let mut p = z.clone();
    let mut rz = dot(&r, &z);
    let mut residuals = vec![norm(&r) / length];
    for _ in 0..limits.iterations {
        if residuals.last().is_some_and(|left| *left <= limits.tolerance) {
            break;
        }
        let ap = product(&p)?;
        let curvature = dot(&p, &ap);
        if curvature <= 0.0 {
            return Err(Error::new(
                Kind::Numeric,
                format!("conjugate gradients: curvature {curvature:e} in a direction, wanted more than 0"),
            )
            .hint("raise the damping"));
        }
        let alpha = rz / curvature;
        x.iter_mut().zip(&p).for_each(|(x, p)| *x += alpha * p);
        r.iter_mut().zip(&ap).for_each(|(r, ap)| *r -= alpha * ap);
        z = precondition(&r);
        let next = dot(&r, &z);
        let beta = next / rz;
        rz = next;
        p.iter_mut().zip(&z).for_each(|(p, z)| *p = z + beta * *p);
        residuals.push(norm(&r) / length);
    }
    Ok(Solution { x, residuals })
}

/// Returns numbers of -1 and 1 with equal chances; `draw` tells several apart.
pub fn signs(stream: Stream, draw: u64, len: usize) -> Vec<f64> {
    (0..len as u64)
        .map(|i| if stream.bits(draw, i / 64) >> (i % 64) & 1 == 0 { -1.0 } else { 1.0 })
        .collect()
}

/// Estimates the diagonal of an operator from `draws` products with random signs: the mean of s times A s.
///
/// Negative estimates become 0. Source: Hutchinson, "A stochastic estimator of the trace", 1990; Bekas et al., 2007, for
/// the diagonal.
///
/// Errors: those of the products.
pub fn diagonal(product: Product<'_>, len: usize, stream: Stream, draws: u64) -> Result<Vec<f64>> {
    let mut sum = vec![0.0; len];
    for draw in 0..draws {
        let s = signs(stream, draw, len);
        let a = product(&s)?;
        sum.iter_mut().zip(s.iter().zip(&a)).for_each(|(sum, (s, a))| *sum += s * a);
    }
    Ok(sum.iter().map(|sum| (sum / draws.max(1) as f64).max(0.0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    /// A positive matrix of size 6 with entries 1 / (1 + |i - j|) and i + 1 added to its diagonal.
    fn matrix(v: &[f64]) -> Vec<f64> {
        let entry = |i: usize, j: usize| {
            1.0 / (1.0 + i.abs_diff(j) as f64) + if i == j { i as f64 + 1.0 } else { 0.0 }
        };
        (0..v.len()).map(|i| (0..v.len()).map(|j| entry(i, j) * v[j]).sum()).collect()
    }

    #[test]
    fn conjugate_gradients_solve_in_as_many_products_as_dimensions() {
        let b = [1.0, -2.0, 0.5, 3.0, 0.0, -1.0];
        let limits = Limits { tolerance: 1e-12, iterations: 6 };
        let scale: Vec<f64> = (0..6).map(|i| 2.0 + i as f64).collect();
        for scale in [None, Some(&scale[..])] {
            let found =
                conjugate_gradients(&mut |v| Ok(matrix(v)), &b, None, scale, limits).unwrap();
            let ax = matrix(&found.x);
            assert!(ax.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-11), "{ax:?}");
            assert!(found.residuals.len() <= 7);
        }
    }

    #[test]
    fn a_broken_off_solve_goes_on_where_it_was() {
        let b = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let solve = |start: Option<&[f64]>, iterations| {
            let limits = Limits { tolerance: 1e-12, iterations };
            conjugate_gradients(&mut |v| Ok(matrix(v)), &b, start, None, limits).unwrap()
        };
        let first = solve(None, 2);
        let second = solve(Some(&first.x), 8);
        let last = first.residuals.last().unwrap();
        assert_abs_diff_eq!(second.residuals[0], last, epsilon = 1e-12);
        assert!(second.residuals.last().unwrap() < &1e-12);
    }

    #[test]
    fn a_direction_without_curvature_is_an_error() {
        let limits = Limits { tolerance: 0.0, iterations: 3 };
        let error =
            conjugate_gradients(&mut |v| Ok(vec![0.0; v.len()]), &[1.0], None, None, limits);
        assert_eq!(error.unwrap_err().kind(), Kind::Numeric);
    }

    #[test]
    fn diagonal_of_a_diagonal_matrix_is_exact() {
        let product = |v: &[f64]| Ok(v.iter().enumerate().map(|(i, x)| i as f64 * x).collect());
        let found = diagonal(&mut { product }, 5, Stream::new(1, "signs"), 1).unwrap();
        assert_eq!(found, [0.0, 1.0, 2.0, 3.0, 4.0]);
    }
}

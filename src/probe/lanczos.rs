//! The spectrum of an operator by Lanczos iterations: Ritz values and their weights, a stochastic quadrature of the
//! density of eigenvalues.
//!
//! Source: Golub and Welsch, "Calculation of Gauss quadrature rules", 1969; Ubaru, Chen and Saad, "Fast estimation of
//! tr(f(A)) via stochastic Lanczos quadrature", 2017.

use super::fisher::{dot, norm};
use super::solve::{Product, signs};
use crate::error::Result;
use crate::rng::Stream;

/// Products after which a new direction is taken for nothing but rounding.
const EXHAUSTED: f64 = 1e-12;
/// Rotations a Ritz value is given at most; a few are enough.
const SWEEPS: usize = 60;

/// Ritz values with their weights, ascending; the weights add up to 1.
pub type Nodes = Vec<(f64, f64)>;

/// Runs up to `steps` Lanczos iterations from random signs number `draw`, orthogonalised in full.
///
/// The nodes are the Gauss quadrature of the operator's spectral density seen from that vector; means over draws estimate
/// the density of eigenvalues. Errors: those of the products.
pub fn nodes(
    product: Product<'_>,
    len: usize,
    steps: usize,
    stream: Stream,
    draw: u64,
) -> Result<Nodes> {
    let mut v = signs(stream, draw, len);
    let length = norm(&v);
    v.iter_mut().for_each(|x| *x /= length);
    let (mut basis, mut diagonal, mut beside) = (vec![v], Vec::new(), Vec::new());
    for k in 0..steps.min(len) {
        let mut w = product(&basis[k])?;
        diagonal.push(dot(&w, &basis[k]));
        // Twice is enough.
        for _ in 0..2 {
            for q in &basis {
                let along = dot(&w, q);
                w.iter_mut().zip(q).for_each(|(w, q)| *w -= along * q);
            }
        }
        let length = norm(&w);
        let scale = diagonal.iter().fold(0.0, |top: f64, x: &f64| top.max(x.abs()));
        if k + 1 == steps.min(len) || length <= EXHAUSTED * scale {
            break;
        }
        beside.push(length);
        w.iter_mut().for_each(|x| *x /= length);
        basis.push(w);
    }
    Ok(tridiagonal(diagonal, beside))
}

/// Returns the eigenvalues of a symmetric tridiagonal matrix and the squares of the first entries of its eigenvectors.
///
/// Implicit QL with shifts. Source: EISPACK `tql2`, kept to the first row.
pub fn tridiagonal(mut d: Vec<f64>, mut e: Vec<f64>) -> Nodes {
    let n = d.len();
    e.resize(n, 0.0);
    let mut first = vec![0.0; n];
    if let Some(one) = first.first_mut() {
        *one = 1.0;
    }
    for l in 0..n {
        for _ in 0..SWEEPS {
            let small = |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs());
            let m = (l..n - 1).find(|m| small(*m)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let mut r = g.hypot(1.0);
            g = d[m] - d[l] + e[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut split = false;
            for i in (l..m).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    split = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                g = d[i + 1] - p;
                r = (d[i] - g) * s + 2.0 * c * b;
                p = s * r;
                d[i + 1] = g + p;
                g = c * r - b;
                let (lower, upper) = (first[i], first[i + 1]);
                first[i + 1] = s * lower + c * upper;
                first[i] = c * lower - s * upper;
            }
            if !split {
                d[l] -= p;
                e[l] = g;
                e[m] = 0.0;
            }
        }
    }
    let mut nodes: Nodes = d.into_iter().zip(first.iter().map(|x| x * x)).collect();
    nodes.sort_by(|a, b| a.0.total_cmp(&b.0));
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;

    #[test]
    fn tridiagonal_of_the_second_difference_is_known() {
        let n = 7;
        let found = tridiagonal(vec![2.0; n], vec![-1.0; n - 1]);
        for (k, (value, weight)) in found.iter().enumerate() {
            let angle = std::f64::consts::PI * (k as f64 + 1.0) / (n as f64 + 1.0);
            assert!(abs_diff_eq!(*value, 2.0 - 2.0 * angle.cos(), epsilon = 1e-13), "{k}: {value}");
            let entry = angle.sin() * (2.0 / (n as f64 + 1.0)).sqrt();
            assert!(abs_diff_eq!(*weight, entry * entry, epsilon = 1e-13), "{k}: {weight}");
        }
        assert_eq!(tridiagonal(vec![3.0], vec![]), [(3.0, 1.0)]);
    }

    #[test]
    fn nodes_of_a_diagonal_matrix_are_its_eigenvalues_with_equal_weights() {
        let product =
            |v: &[f64]| Ok(v.iter().enumerate().map(|(i, x)| (i * i) as f64 * x).collect());
        let found = nodes(&mut { product }, 5, 9, Stream::new(1, "signs"), 0).unwrap();
        assert_eq!(found.len(), 5);
        for (i, (value, weight)) in found.iter().enumerate() {
            assert!(
                (value - (i * i) as f64).abs() < 1e-9 && (weight - 0.2).abs() < 1e-9,
                "{found:?}"
            );
        }
    }
}

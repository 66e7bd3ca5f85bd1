//! The subspace that the inputs of a linear map mostly lie in: the leading eigenvectors of the sum of their x^T x.

use rayon::prelude::*;

/// Directions beyond those asked for that the iteration carries along, which make the last ones converge.
const BESIDE: usize = 8;
/// Directions tried first; then twice as many, as long as they do not hold enough.
const FIRST: usize = 32;
/// Iterations: an eigenvalue of half the size of another is damped 2^12-fold beside it.
const ROUNDS: usize = 12;
/// Sweeps of rotations, after which what is off the diagonal is below rounding for any matrix met so far.
const SWEEPS: usize = 30;

/// The subspace found for a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Subspace {
    /// Orthonormal rows [k, n], those of the largest eigenvalues first.
    pub rows: Vec<f64>,
    /// k.
    pub k: usize,
    /// The share of the trace that they hold.
    pub share: f64,
}

/// Finds the fewest leading eigenvectors of the symmetric, positive semidefinite `gram` [n, n] that hold `share` of its
/// trace, at most `most` of them.
///
/// By orthogonal iteration from fixed vectors and Rayleigh and Ritz's projection; exact, up to rounding, where n of them
/// are needed. The work grows with their number (the rotations with its cube), and inputs mostly lie in few directions:
/// so few are tried first. Source: Golub and Van Loan, Matrix Computations, 8.2.4 and 8.5 (Jacobi).
pub fn principal(gram: &[f32], n: usize, share: f64, most: usize) -> Subspace {
    let most = most.min(n);
    let mut tried = FIRST.min(most);
    loop {
        let found = leading(gram, n, share, tried);
        if found.share >= share || tried == most {
            return found;
        }
        tried = (2 * tried).min(most);
    }
}

/// [`principal`] with `most` directions carried along from the start.
fn leading(gram: &[f32], n: usize, share: f64, most: usize) -> Subspace {
    let trace: f64 = (0..n).map(|i| f64::from(gram[i * n + i])).sum();
    let m = (most + BESIDE).min(n);
    let none = Subspace { rows: Vec::new(), k: 0, share: 0.0 };
    if m == 0 || !(trace > 0.0 && trace.is_finite()) {
        return none;
    }
    let stream = crate::rng::Stream::new(0, "subspace");
    let start = |i: usize| stream.uniform(0, i as u64) - 0.5;
    let mut basis: Vec<Vec<f64>> =
        (0..m).map(|r| (0..n).map(|i| start(r * n + i)).collect()).collect();
    orthonormalise(&mut basis);
    let rounds = if m == n { 0 } else { ROUNDS };
    for _ in 0..rounds {
        basis = times(gram, n, &basis);
        orthonormalise(&mut basis);
    }
    let image = times(gram, n, &basis);
    let small: Vec<f64> = (0..m * m).map(|at| dot(&basis[at / m], &image[at % m])).collect();
    let (values, vectors) = eigen(small, m);
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    let mut found = none;
    for j in order.into_iter().take(most) {
        if found.share >= share || values[j] <= 0.0 {
            break;
        }
        let mut row = vec![0.0; n];
        for (i, own) in basis.iter().enumerate() {
            let factor = vectors[i * m + j];
            row.iter_mut().zip(own).for_each(|(x, own)| *x += factor * own);
        }
        found.rows.extend(row);
        found.k += 1;
        found.share += values[j] / trace;
    }
    found
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Multiplies every vector by the symmetric `gram`.
fn times(gram: &[f32], n: usize, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let one = |v: &Vec<f64>| -> Vec<f64> {
        let mut out = vec![0.0; n];
        for (row, x) in gram.chunks_exact(n).zip(v) {
            out.iter_mut().zip(row).for_each(|(out, g)| *out += x * f64::from(*g));
        }
        out
    };
    vectors.par_iter().map(one).collect()
}

/// Makes the vectors orthonormal, each against those before it, twice, so that rounding leaves nothing; one without
/// anything of its own becomes 0.
fn orthonormalise(basis: &mut [Vec<f64>]) {
    for i in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(i);
        let own = &mut rest[0];
        let length = dot(own, own).sqrt();
        for _ in 0..2 {
            let parts: Vec<f64> = before.par_iter().map(|other| dot(own, other)).collect();
            for (part, other) in parts.iter().zip(&*before) {
                own.iter_mut().zip(other).for_each(|(x, other)| *x -= part * other);
            }
        }
        let left = dot(own, own).sqrt();
        let scale = if left > 1e-12 * length { 1.0 / left } else { 0.0 };
        own.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Returns eigenvalues and, in columns, eigenvectors of the symmetric `a` [m, m], by cyclic Jacobi rotations.
fn eigen(mut a: Vec<f64>, m: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; m * m];
    (0..m).for_each(|i| vectors[i * m + i] = 1.0);
    for _ in 0..SWEEPS {
        let off: f64 = (0..m * m).filter(|at| at / m != at % m).map(|at| a[at] * a[at]).sum();
        let all: f64 = a.iter().map(|x| x * x).sum();
        if off <= 1e-30 * all {
            break;
        }
        for p in 0..m {
            for q in p + 1..m {
                let apq = a[p * m + q];
                if apq == 0.0 {
                    continue;
                }
                // The angle that makes the entry 0, the smaller of both.
                let theta = (a[q * m + q] - a[p * m + p]) / (2.0 * apq);
                let tangent = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let cos = 1.0 / (tangent * tangent + 1.0).sqrt();
                let sin = tangent * cos;
                let turn = |x: &mut [f64], i: usize, j: usize| {
                    let (xi, xj) = (x[i], x[j]);
                    x[i] = cos * xi - sin * xj;
                    x[j] = sin * xi + cos * xj;
                };
                (0..m).for_each(|k| turn(&mut a, k * m + p, k * m + q));
                (0..m).for_each(|k| turn(&mut a, p * m + k, q * m + k));
                (0..m).for_each(|k| turn(&mut vectors, k * m + p, k * m + q));
            }
        }
    }
    ((0..m).map(|i| a[i * m + i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use approx::{abs_diff_eq, assert_abs_diff_eq};

    /// Orthonormal vectors and the matrix with them as eigenvectors and `values` as eigenvalues.
    fn made(values: &[f64]) -> (Vec<Vec<f64>>, Vec<f32>) {
        let (n, stream) = (values.len(), Stream::new(1, "made"));
        let mut basis: Vec<Vec<f64>> = (0..n)
            .map(|r| (0..n).map(|i| stream.uniform(r as u64, i as u64) - 0.5).collect())
            .collect();
        orthonormalise(&mut basis);
        let entry = |at: usize| -> f64 {
            (0..n).map(|r| values[r] * basis[r][at / n] * basis[r][at % n]).sum()
        };
        let gram = (0..n * n).map(|at| entry(at) as f32).collect();
        (basis, gram)
    }

    #[test]
    fn the_leading_vectors_are_found_with_their_share() {
        let mut values = vec![0.01; 60];
        values[..5].copy_from_slice(&[50.0, 20.0, 10.0, 5.0, 2.0]);
        let trace: f64 = values.iter().sum();
        let (basis, gram) = made(&values);
        for (share, most, k) in [(0.95, 20, 4), (0.5, 20, 1), (1.0, 3, 3), (0.98, 60, 5)] {
            let found = principal(&gram, 60, share, most);
            assert_eq!(found.k, k, "{share} {most}");
            let want: f64 = values[..k].iter().sum::<f64>() / trace;
            assert!(abs_diff_eq!(found.share, want, epsilon = 1e-5), "{} {want}", found.share);
            for (row, own) in found.rows.chunks_exact(60).zip(&basis) {
                assert_abs_diff_eq!(dot(row, own).abs(), 1.0, epsilon = 1e-6);
            }
        }
    }

    #[test]
    fn more_directions_are_tried_where_few_hold_too_little() {
        let values: Vec<f64> = (0..90).map(|i| 1.0 / (1.0 + f64::from(i))).collect();
        let (_, gram) = made(&values);
        let trace: f64 = values.iter().sum();
        for share in [0.7, 0.85, 0.95, 1.0] {
            let mut held = 0.0;
            let fewest =
                values.iter().take_while(|v| (held < share).then(|| held += *v / trace).is_some());
            let (k, found) = (fewest.count(), principal(&gram, 90, share, 90));
            // Rounding to f32 may move the sum past the share or before it.
            assert!(found.k.abs_diff(k) <= 1, "{share}: {} for {k}", found.k);
            assert!(found.share >= share - 1e-4, "{share}: {}", found.share);
        }
        assert_eq!(principal(&gram, 90, 0.95, 40).k, 40);
    }

    #[test]
    fn a_matrix_of_zeros_has_no_subspace() {
        assert_eq!(principal(&[0.0; 16], 4, 0.9, 4).k, 0);
        assert_eq!(principal(&[1.0], 1, 0.9, 4).rows, [1.0]);
    }
}

//! Products of a few rows with a tall matrix, read where they lie: what attention multiplies, block by block.
//!
//! A general matrix product packs its operands first; at a head's width that costs as much as the product, and it
//! cannot leave out what the causal mask hides.

use std::ops::Range;

use pulp::{Scalar, Simd, WithSimd};

use super::Real;
use super::gemm::Matrix;

/// Rows of a strip: with two registers of columns each, twelve accumulators, which AVX2 has room for.
pub(super) const ROWS: usize = 6;

/// Columns that the widest register holds.
pub(super) const LANES: usize = 16;

/// Computes `c[r, j] (+)= sum over k in inner of a[r, k] b[k, j]` for `rows` rows r and the columns j of `columns`.
///
/// Rows of `b` and of `c` are contiguous; `a` may be strided either way.
///
/// # Safety
/// `a` and `b` must cover rows, columns and inner; `c` (rows `stride` apart) must cover rows and columns, and nobody
/// else may touch it meanwhile.
pub(super) unsafe fn multiply<T: Real>(
    rows: usize,
    columns: Range<usize>,
    inner: Range<usize>,
    a: Matrix<T>,
    b: Matrix<T>,
    (c, stride): (*mut T, usize),
    accumulate: bool,
) {
    pulp::Arch::new().dispatch(Strip { rows, columns, inner, a, b, c, stride, accumulate });
}

/// The arguments of [`multiply`].
struct Strip<T> {
    rows: usize,
    columns: Range<usize>,
    inner: Range<usize>,
    a: Matrix<T>,
    b: Matrix<T>,
    c: *mut T,
    stride: usize,
    accumulate: bool,
}

impl<T: Real> WithSimd for Strip<T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.rows {
            0 => {}
            1 => self.strip::<S, 1>(simd),
            2 => self.strip::<S, 2>(simd),
            3 => self.strip::<S, 3>(simd),
            4 => self.strip::<S, 4>(simd),
            5 => self.strip::<S, 5>(simd),
            ROWS => self.strip::<S, ROWS>(simd),
            rows => unreachable!("{rows} rows of at most {ROWS}"),
        }
    }
}

impl<T: Real> Strip<T> {
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(&self, simd: S) {
        let lanes = size_of::<T::Lanes<S>>() / size_of::<T>();
        let mut j = self.columns.start;
        // SAFETY: the promise made to multiply; tiles stay inside columns.
        unsafe {
            while j + 2 * lanes <= self.columns.end {
                self.tile::<S, R, 2>(simd, j);
                j += 2 * lanes;
            }
            while j + lanes <= self.columns.end {
                self.tile::<S, R, 1>(simd, j);
                j += lanes;
            }
            while j < self.columns.end {
                self.tile::<Scalar, R, 1>(Scalar, j);
                j += 1;
            }
        }
    }

    /// Computes R rows of N registers from column `j` on.
    ///
    /// # Safety
    /// They must be inside b and c.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Indices into registers: iterators here end in memory.
    unsafe fn tile<S: Simd, const R: usize, const N: usize>(&self, simd: S, j: usize) {
        let mut sums = [[T::ZERO.splat(simd); N]; R];
        // SAFETY: the caller's promise; registers are plain numbers, read and written unaligned.
        unsafe {
            for k in self.inner.clone() {
                let from = self.b.at(k, j).cast::<T::Lanes<S>>();
                let mut row = [T::ZERO.splat(simd); N];
                for n in 0..N {
                    row[n] = from.add(n).read_unaligned();
                }
                for r in 0..R {
                    let factor = (*self.a.at(r, k)).splat(simd);
                    for n in 0..N {
                        sums[r][n] = T::mul_add(simd, factor, row[n], sums[r][n]);
                    }
                }
            }
            for r in 0..R {
                let out = self.c.add(r * self.stride + j).cast::<T::Lanes<S>>();
                for n in 0..N {
                    let sum = sums[r][n];
                    let sum = match self.accumulate {
                        true => T::plus(simd, out.add(n).read_unaligned(), sum),
                        false => sum,
                    };
                    out.add(n).write_unaligned(sum);
                }
            }
        }
    }
}

/// Copies the transpose of `n` rows of `d` numbers into `out`, whose rows are `stride` apart.
#[inline(always)]
pub(super) fn transpose<T: Real>(
    rows: &[T],
    width: usize,
    (n, d): (usize, usize),
    out: &mut [T],
    stride: usize,
) {
    for from in (0..n).step_by(LANES) {
        let len = LANES.min(n - from);
        for c in 0..d {
            let out = &mut out[c * stride + from..][..len];
            for (l, out) in out.iter_mut().enumerate() {
                *out = rows[(from + l) * width + c];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 37 % 101) as f64 - 50.0) / 16.0).collect()
    }

    fn check(
        scalar: bool,
        rows: usize,
        columns: Range<usize>,
        inner: Range<usize>,
        transposed: bool,
        add: bool,
    ) {
        let (depth, width) = (inner.end + 1, columns.end + 2);
        let (a, b) = (numbers(rows * depth), numbers(depth * width));
        let mut c = numbers(rows * width);
        let before = c.clone();
        let view = if transposed { Matrix::rows(&a, rows).t() } else { Matrix::rows(&a, depth) };
        let (out, b_view) = (c.as_mut_ptr(), Matrix::rows(&b, width));
        let work = |c| Strip {
            rows,
            columns: columns.clone(),
            inner: inner.clone(),
            a: view,
            b: b_view,
            c,
            stride: width,
            accumulate: add,
        };
        if scalar {
            Scalar.vectorize(work(out));
        } else {
            pulp::Arch::new().dispatch(work(out));
        }
        for r in 0..rows {
            for j in 0..width {
                let at = |k: usize| if transposed { a[k * rows + r] } else { a[r * depth + k] };
                let sum: f64 = inner.clone().map(|k| at(k) * b[k * width + j]).sum();
                let start = before[r * width + j];
                let want = match (columns.contains(&j), add) {
                    (false, _) => start,
                    (true, false) => sum,
                    (true, true) => start + sum,
                };
                // Every product and sum here is exact in f64, whatever the order.
                assert_eq!(
                    c[r * width + j],
                    want,
                    "row {r}, column {j} of {rows} x {columns:?} over {inner:?}"
                );
            }
        }
    }

    #[test]
    fn product_when_ragged_strided_or_empty_equals_the_definition_and_leaves_the_rest_alone() {
        for rows in 0..=ROWS {
            for columns in [0..0, 0..1, 3..20, 16..48, 1..50] {
                for inner in [0..0, 2..3, 1..41] {
                    for (transposed, add) in
                        [(false, false), (true, true), (false, true), (true, false)]
                    {
                        check(true, rows, columns.clone(), inner.clone(), transposed, add);
                        check(false, rows, columns.clone(), inner.clone(), transposed, add);
                    }
                }
            }
        }
    }

    #[test]
    fn transpose_when_ragged_equals_the_definition() {
        let (n, d, width, stride) = (35, 3, 7, 48);
        let rows = numbers(n * width);
        let mut out = vec![0.0; d * stride];
        transpose(&rows, width, (n, d), &mut out, stride);
        for t in 0..n {
            for c in 0..d {
                assert_eq!(out[c * stride + t], rows[t * width + c]);
            }
        }
    }
}

//! Matrix products through the `gemm` crate, cut into tasks by shape alone.

use gemm::Parallelism;
use rayon::prelude::*;

use super::Real;

/// A matrix in memory: where it starts and how far apart rows and columns are.
#[derive(Clone, Copy)]
pub(super) struct Matrix<T> {
    start: *const T,
    row: isize,
    column: isize,
}

// SAFETY: a Matrix is only read, and the slice it was made from outlives the call it is handed to.
unsafe impl<T: Sync> Send for Matrix<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Matrix<T> {}

impl<T> Matrix<T> {
    /// Views `data` as rows `stride` apart.
    pub fn rows(data: &[T], stride: usize) -> Self {
        Self { start: data.as_ptr(), row: stride as isize, column: 1 }
    }

    /// Returns where an entry lies.
    ///
    /// # Safety
    /// The entry must be inside the matrix.
    #[inline(always)]
    pub unsafe fn at(self, row: usize, column: usize) -> *const T {
        // SAFETY: the caller's promise.
        unsafe { self.start.offset(row as isize * self.row + column as isize * self.column) }
    }

    /// Views the transpose.
    pub fn t(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

struct Out<T>(*mut T);
// SAFETY: tasks write disjoint tiles of it.
unsafe impl<T: Send> Send for Out<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Out<T> {}

/// Computes `c[m,n] = a[m,k] b[k,n] (+ c)` in the calling thread; rows of c are `stride` apart.
pub(super) fn serial<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    (c, stride): (&mut [T], usize),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * stride + n <= c.len(), "output of {} for {m} x {n}", c.len());
    // SAFETY: c holds m rows of n numbers (checked), a and b were made from slices that the callers size by the same
    // shapes; none of them overlaps c, which is borrowed mutably.
    unsafe { tile((m, n, k), a, b, c.as_mut_ptr(), stride, accumulate) }
}

/// # Safety
/// `a`, `b` and `c` must cover the shape; `c` must not be touched by anyone else.
unsafe fn tile<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    c: *mut T,
    stride: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise; strides are those of the matrices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            stride as isize,
            accumulate,
            a.start,
            a.column,
            a.row,
            b.start,
            b.column,
            b.row,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Computes `c[m,n] = a[m,k] b[k,n] (+ c)` with the longer side of c cut into tasks; c is dense.
pub(super) fn parallel<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    c: &mut [T],
    accumulate: bool,
) {
    assert!(m * n <= c.len(), "output of {} for {m} x {n}", c.len());
    if m * n * k < 1 << 15 {
        return serial((m, n, k), a, b, (c, n), accumulate);
    }
    let by_rows = 2 * m >= n;
    let side = if by_rows { m } else { n };
    // An even number of tasks of 8-aligned length, a few hundred rows or columns each.
    let tasks = (2 * side.div_ceil(768)).min(side);
    let step = side.div_ceil(tasks).next_multiple_of(8);
    let out = Out(c.as_mut_ptr());
    (0..side.div_ceil(step)).into_par_iter().for_each(|task| {
        let (from, out) = (task * step, &out);
        let len = step.min(side - from);
        // SAFETY: tiles are disjoint and inside the checked bounds of c; a and b are offset within their own.
        unsafe {
            if by_rows {
                let a = Matrix { start: a.start.offset(from as isize * a.row), ..a };
                tile((len, n, k), a, b, out.0.add(from * n), n, accumulate);
            } else {
                let b = Matrix { start: b.start.offset(from as isize * b.column), ..b };
                tile((m, len, k), a, b, out.0.add(from), n, accumulate);
            }
        }
    });
}

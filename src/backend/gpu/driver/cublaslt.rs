//! cuBLASLt, NVIDIA's matrix products, to measure beside ours; loaded at run time, used by nothing that computes.
//!
//! Names, types and numbers are those of cublasLt.h, alike in CUDA 12 and 13.

use std::ffi::{c_int, c_void};
use std::ptr::{from_mut, from_ref, null_mut};
use std::sync::Arc;

use libloading::Library;

use super::Driver;
use crate::error::{Error, Kind, Result};

/// Names of the library, the newest first.
const NAMES: [&str; 5] = [
    "libcublasLt.so.13",
    "libcublasLt.so.12",
    "libcublasLt.so",
    "cublasLt64_13.dll",
    "cublasLt64_12.dll",
];

/// Memory that a product may use on the side, in bytes: what NVIDIA recommends for Hopper.
const WORKSPACE: u64 = 32 << 20;
/// Number of algorithms asked for.
const WAYS: usize = 8;

const CUDA_R_32F: c_int = 0;
const CUDA_R_16BF: c_int = 14;
const CUBLAS_COMPUTE_32F: c_int = 68;
const CUBLAS_COMPUTE_32F_FAST_TF32: c_int = 77;
const CUBLAS_OP_T: c_int = 1;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type DescCreate = unsafe extern "C" fn(*mut Handle, c_int, c_int) -> c_int;
type LayoutCreate = unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> c_int;
type SetAttribute = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> c_int;
type Heuristic = unsafe extern "C" fn(
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    c_int,
    *mut Way,
    *mut c_int,
) -> c_int;
type Matmul = unsafe extern "C" fn(
    Handle,
    Handle,
    *const c_void,
    u64,
    Handle,
    u64,
    Handle,
    *const c_void,
    u64,
    Handle,
    u64,
    Handle,
    *const Algorithm,
    u64,
    usize,
    u64,
) -> c_int;

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Algorithm([u64; 8]);

/// A way of doing a product: `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Way {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

#[derive(Clone, Copy)]
struct Api {
    create: Create,
    destroy: Destroy,
    desc_create: DescCreate,
    desc_destroy: Destroy,
    desc_set: SetAttribute,
    layout_create: LayoutCreate,
    layout_destroy: Destroy,
    preference_create: Create,
    preference_destroy: Destroy,
    preference_set: SetAttribute,
    heuristic: Heuristic,
    matmul: Matmul,
}

/// A product of row-major matrices: `d = a b (+ c)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Multiply {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// True if `a` is stored as `[k, m]` instead of `[m, k]`, and `b` as `[n, k]` instead of `[k, n]`.
    pub transposed: [bool; 2],
    /// True if `c` is added.
    pub adds: bool,
    /// fp32 numbers and TF32 products instead of bf16.
    pub wide: bool,
}

/// An operand as cuBLASLt sees it: column-major, and whether it is transposed before the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Operand {
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl Multiply {
    /// Returns the operands of `d^T = b^T a^T`, which is the same product for a column-major reader.
    fn operands(&self) -> [Operand; 2] {
        let &Self { m, n, k, transposed: [a, b], .. } = self;
        let operand = |outer, transposed| {
            let (rows, columns) = if transposed { (k, outer) } else { (outer, k) };
            Operand { rows, columns, transposed }
        };
        // A row-major [k, m] is a column-major m x k, which is a^T transposed.
        let first = operand(n, b);
        let second = Operand { transposed: a, ..operand(m, !a) };
        [first, second]
    }
}

/// The library and one handle of it.
pub struct CublasLt {
    api: Api,
    handle: Handle,
    driver: Arc<dyn Driver>,
    stream: u64,
    workspace: u64,
    // The functions above live in it.
    _library: Library,
}

impl std::fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CublasLt").finish_non_exhaustive()
    }
}

fn check(call: &str, status: c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(Error::new(Kind::Device, format!("cublasLt: {call}: status {status}"))),
    }
}

/// Finds the library and its functions.
fn load() -> Result<(Library, Api)> {
    let none = |why: String| Error::new(Kind::Device, format!("cublasLt: {why}"));
    // SAFETY: loading NVIDIA's library runs its initialisers, which every program that uses it relies on.
    let library = NAMES
        .iter()
        .find_map(|name| unsafe { Library::new(*name) }.ok())
        .ok_or_else(|| none(format!("no library found ({}, ...)", NAMES[0])))?;
    macro_rules! get {
        ($name:literal) => {
            // SAFETY: the type is that of the declaration in cublasLt.h.
            *unsafe { library.get($name) }.map_err(|e: libloading::Error| none(e.to_string()))?
        };
    }
    let api = Api {
        create: get!(b"cublasLtCreate"),
        destroy: get!(b"cublasLtDestroy"),
        desc_create: get!(b"cublasLtMatmulDescCreate"),
        desc_destroy: get!(b"cublasLtMatmulDescDestroy"),
        desc_set: get!(b"cublasLtMatmulDescSetAttribute"),
        layout_create: get!(b"cublasLtMatrixLayoutCreate"),
        layout_destroy: get!(b"cublasLtMatrixLayoutDestroy"),
        preference_create: get!(b"cublasLtMatmulPreferenceCreate"),
        preference_destroy: get!(b"cublasLtMatmulPreferenceDestroy"),
        preference_set: get!(b"cublasLtMatmulPreferenceSetAttribute"),
        heuristic: get!(b"cublasLtMatmulAlgoGetHeuristic"),
        matmul: get!(b"cublasLtMatmul"),
    };
    Ok((library, api))
}

impl CublasLt {
    /// Loads the library for a device.
    ///
    /// Errors: [`Kind::Device`] where there is none, or none for this device.
    pub fn open(driver: Arc<dyn Driver>) -> Result<Self> {
        let stream = driver
            .stream()
            .ok_or_else(|| Error::new(Kind::Device, "cublasLt: the simulator is no device"))?;
        let (library, api) = load()?;
        // Makes the device's context current, in which the library works.
        let workspace = driver.alloc(WORKSPACE)?;
        let mut handle = null_mut();
        // SAFETY: writes one pointer, which lives on this stack.
        let created = check("create", unsafe { (api.create)(&mut handle) });
        // From here on drop gives back whatever is there.
        let opened = Self { api, handle, driver, stream, workspace, _library: library };
        created.map(|()| opened)
    }

    /// Prepares a product: the ways of doing it, the one that should be fastest first.
    pub fn prepare(&self, job: &Multiply) -> Result<Prepared<'_>> {
        let api = &self.api;
        let (stored, compute) = if job.wide {
            (CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32)
        } else {
            (CUDA_R_16BF, CUBLAS_COMPUTE_32F)
        };
        let mut made = Prepared {
            library: self,
            desc: null_mut(),
            layouts: [null_mut(); 3],
            preference: null_mut(),
            ways: Vec::new(),
            adds: job.adds,
        };
        // SAFETY: each call writes one handle into `made`, which gives them back when it is dropped.
        check("desc", unsafe { (api.desc_create)(&mut made.desc, compute, CUDA_R_32F) })?;
        let operands = job.operands();
        for (attribute, operand) in [DESC_TRANSA, DESC_TRANSB].into_iter().zip(operands) {
            if operand.transposed {
                let value = from_ref(&CUBLAS_OP_T).cast();
                // SAFETY: reads one int.
                check("transpose", unsafe { (api.desc_set)(made.desc, attribute, value, 4) })?;
            }
        }
        let result = Operand { rows: job.n, columns: job.m, transposed: false };
        for (layout, operand) in made.layouts.iter_mut().zip(operands.into_iter().chain([result])) {
            let Operand { rows, columns, .. } = operand;
            // SAFETY: as for the description.
            check("layout", unsafe {
                (api.layout_create)(layout, stored, rows as u64, columns as u64, rows as i64)
            })?;
        }
        // SAFETY: as for the description.
        check("preference", unsafe { (api.preference_create)(&mut made.preference) })?;
        let most = WORKSPACE as usize;
        let (value, size) = (from_ref(&most).cast(), size_of::<usize>());
        // SAFETY: reads one size_t.
        check("workspace", unsafe {
            (api.preference_set)(made.preference, PREF_MAX_WORKSPACE_BYTES, value, size)
        })?;
        let mut ways = [Way::default(); WAYS];
        let mut found = 0;
        let [a, b, c] = made.layouts;
        // SAFETY: all handles are alive; writes at most WAYS results and one int.
        check("heuristic", unsafe {
            let (first, wanted) = (ways.as_mut_ptr(), WAYS as c_int);
            let (desc, preference) = (made.desc, made.preference);
            (api.heuristic)(
                self.handle,
                desc,
                a,
                b,
                c,
                c,
                preference,
                wanted,
                first,
                from_mut(&mut found),
            )
        })?;
        let usable = ways.iter().take(found.max(0) as usize).filter(|way| way.state == 0);
        made.ways = usable.copied().collect();
        Ok(made)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // Work in flight may still use the workspace.
        let _ = self.driver.sync();
        self.driver.free(self.workspace);
        if !self.handle.is_null() {
            // SAFETY: made by `open`, destroyed once.
            let _ = unsafe { (self.api.destroy)(self.handle) };
        }
    }
}

/// A product that is ready to run.
#[derive(Debug)]
pub struct Prepared<'a> {
    library: &'a CublasLt,
    desc: Handle,
    layouts: [Handle; 3],
    preference: Handle,
    ways: Vec<Way>,
    adds: bool,
}

impl Prepared<'_> {
    /// Returns the ways of doing it.
    pub fn ways(&self) -> Vec<Way> {
        self.ways.clone()
    }

    /// Starts the product of the matrices at these device addresses: a, b, c and d.
    pub fn run(&self, way: &Way, [a, b, c, d]: [u64; 4]) -> Result<()> {
        let CublasLt { api, handle, stream, workspace, .. } = self.library;
        let (one, beta) = (1f32, f32::from(u8::from(self.adds)));
        let [first, second, result] = self.layouts;
        // SAFETY: all handles are alive; alpha and beta are read before the call returns; the ranges are the caller's,
        // as with every copy and launch of a driver.
        check("matmul", unsafe {
            (api.matmul)(
                *handle,
                self.desc,
                from_ref(&one).cast(),
                b,
                first,
                a,
                second,
                from_ref(&beta).cast(),
                c,
                result,
                d,
                result,
                &way.algorithm,
                *workspace,
                WORKSPACE as usize,
                *stream,
            )
        })
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        let api = &self.library.api;
        let layouts = self.layouts.map(|layout| (api.layout_destroy, layout));
        let others = [(api.desc_destroy, self.desc), (api.preference_destroy, self.preference)];
        for (destroy, handle) in layouts.into_iter().chain(others) {
            if !handle.is_null() {
                // SAFETY: made by `prepare`, destroyed once.
                let _ = unsafe { destroy(handle) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads entry (row, column) of a column-major operand, transposed where it says so.
    fn entry(of: &Operand, data: &[i64], row: usize, column: usize) -> i64 {
        let (r, c) = if of.transposed { (column, row) } else { (row, column) };
        assert!(r < of.rows && c < of.columns);
        data[c * of.rows + r]
    }

    #[test]
    fn operands_give_the_row_major_product() {
        let (m, n, k) = (2, 3, 4);
        let a: Vec<i64> = (0..8).map(|x| x * x - 3).collect();
        let b: Vec<i64> = (0..12).map(|x| 5 * x + x % 3).collect();
        for transposed in [[false, true], [false, false], [true, false], [true, true]] {
            let job = Multiply { m, n, k, transposed, adds: false, wide: false };
            let [first, second] = job.operands();
            for i in 0..m {
                for j in 0..n {
                    let at = |i, p| if transposed[0] { a[p * m + i] } else { a[i * k + p] };
                    let bt = |p, j| if transposed[1] { b[j * k + p] } else { b[p * n + j] };
                    let want: i64 = (0..k).map(|p| at(i, p) * bt(p, j)).sum();
                    // The result is d^T: rows and columns change places.
                    let got: i64 =
                        (0..k).map(|p| entry(&first, &b, j, p) * entry(&second, &a, p, i)).sum();
                    assert_eq!(got, want, "{transposed:?} {i} {j}");
                }
            }
        }
    }

    #[test]
    fn results_have_the_librarys_size() {
        assert_eq!(size_of::<Way>(), 64 + 8 + 4 + 4 + 16);
    }

    #[test]
    fn a_library_that_is_there_has_every_function() {
        match load() {
            Ok(_) => {}
            Err(error) => eprintln!("skipped: {}", error.message()),
        }
    }
}

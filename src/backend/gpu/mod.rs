//! Every op as a kernel launch: the same code drives an NVIDIA GPU and the simulator.
//!
//! [`driver`] is the machine, [`arena`] its memory, `ops` one file a family of kernels: launch geometry in plain
//! functions, and the launches. [`images`] holds the compiled kernels, [`probe`] what the NVIDIA driver says.
//! All work is in one order on one stream; a failed launch is kept and surfaces at [`crate::ops::Transfer::sync`].

pub mod arena;
mod buffer;
mod compute;
pub mod driver;
pub mod images;
mod memory;
mod ops;
pub mod probe;
pub mod problem;
mod state;
mod sweep;

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

pub use buffer::{Act, Grad, Pack, Stat, Weight};
pub use memory::GpuSizes;
pub use ops::head::chunk_rows;
pub use ops::parts::count as parts;
pub use ops::tile::Tile;
pub use ops::{dynamic_shared, obstacle};
pub use state::Param;
pub use sweep::Tally;

use crate::error::{Error, Kind, Result};
use crate::ops::{Ops, Transfer};
use arena::Arena;
use driver::{Args, Driver, Launch};

/// Storage format of activations, and of weights as kernels read them. Sums are fp32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// bf16 storage, bf16 tensor cores.
    Bf16,
    /// fp32 storage, TF32 tensor cores: for parity with the reference.
    Fp32,
}

impl Precision {
    /// Returns its name, that of the numbers it stores.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp32 => "fp32",
        }
    }

    /// Returns the bytes of a stored number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::Fp32 => 4,
        }
    }
}

/// A GPU, or the simulator in its place.
#[derive(Debug)]
pub struct Gpu {
    driver: Arc<dyn Driver>,
    precision: Precision,
    arena: Arena,
    scratch: Mutex<Scratch>,
    angles: ops::rope::Angles,
    head: Mutex<ops::head::Room>,
    step: state::StepBlock,
    recordings: sweep::Recordings,
    /// Packs made so far: they take turns.
    packs: AtomicUsize,
    tile: Mutex<Option<Tile>>,
    /// True if rows are single tokens of generation.
    few_rows: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// Memory that one op uses and the next one may overwrite; grows to the largest request.
#[derive(Debug, Default)]
struct Scratch {
    address: u64,
    bytes: u64,
}

impl Gpu {
    /// Takes a device into use; `planned` is what the run will allocate in bytes, 0 where nobody knows.
    ///
    /// Errors: [`Kind::Memory`] where the device cannot give it, [`Kind::Device`] where it does not work.
    pub fn new(driver: Arc<dyn Driver>, precision: Precision, planned: u64) -> Result<Self> {
        Self::with_arena(driver.clone(), precision, Arena::new(driver, planned, false)?)
    }

    /// Like [`Gpu::new`], with every buffer an allocation of its own, so that a simulator sees where each one ends.
    pub fn guarded(driver: Arc<dyn Driver>, precision: Precision) -> Result<Self> {
        Self::with_arena(driver.clone(), precision, Arena::new(driver, 0, true)?)
    }

    fn with_arena(driver: Arc<dyn Driver>, precision: Precision, arena: Arena) -> Result<Self> {
        let step = state::StepBlock::new(&arena)?;
        Ok(Self {
            driver,
            precision,
            arena,
            scratch: Mutex::default(),
            angles: ops::rope::Angles::default(),
            head: Mutex::default(),
            step,
            recordings: sweep::Recordings::default(),
            packs: AtomicUsize::new(0),
            tile: Mutex::new(None),
            few_rows: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    /// Returns the precision of storage.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the device.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Bounds the rows of a head chunk, so that small shapes too take several; `None` leaves them to the plan.
    ///
    /// For checks of the device. Reserve room after it; a sweep in more rows than were reserved is refused.
    pub fn cap_head_rows(&self, cap: Option<usize>) {
        ops::head::cap_rows(self, cap);
    }

    /// Returns the bytes held from the device and the bytes handed out to buffers.
    pub fn bytes(&self) -> (u64, u64) {
        self.arena.bytes()
    }

    /// Takes `tile` for every product whose operands are aligned (its portable twin where the device or the rows of
    /// the result do not allow it), or again the fastest one: for the checks and the measurements of single kernels.
    pub fn force_tile(&self, tile: Option<Tile>) {
        *self.tile.lock().unwrap_or_else(PoisonError::into_inner) = tile;
    }

    fn forced_tile(&self) -> Option<Tile> {
        *self.tile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Picks a kernel's name by the precision of storage.
    fn pick(&self, bf16: &'static str, fp32: &'static str) -> &'static str {
        match self.precision {
            Precision::Bf16 => bf16,
            Precision::Fp32 => fp32,
        }
    }

    /// Starts a kernel; a failure is kept for [`crate::ops::Transfer::sync`]. An empty grid is no work.
    fn launch(&self, kernel: &'static str, grid: [u32; 3], block: u32, shared: u32, args: Args) {
        if grid.contains(&0) {
            return;
        }
        if grid[1..].iter().any(|side| *side > MOST_BLOCKS) {
            return self.refuse(format!(
                "{kernel}: grid {}x{}x{}, wanted at most {MOST_BLOCKS} in y and z",
                grid[0], grid[1], grid[2]
            ));
        }
        self.keep(self.driver.launch(Launch { kernel, grid, block, shared, args }));
    }

    /// Keeps the first failure.
    fn keep(&self, result: Result<()>) {
        if let Err(error) = result {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// Keeps what an op that cannot run says.
    fn refuse(&self, what: impl Into<String>) {
        self.keep(Err(Error::new(Kind::Device, what)));
    }

    /// Tells whether a failure is kept.
    fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Puts the kept failure in the place of a later one, which it may well have caused, and forgets it.
    fn first<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|later| self.take_failure().err().unwrap_or(later))
    }

    /// Like [`Arena::alloc`]; a failure that was kept before wins.
    fn alloc(&self, bytes: u64) -> Result<u64> {
        self.first(self.arena.alloc(bytes))
    }

    /// Like [`Driver::upload`]; a failure that was kept before wins.
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.first(self.driver.upload(address, bytes))
    }

    /// Like [`Driver::download`]; a failure that was kept before wins.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.first(self.driver.download(address, bytes))
    }

    /// Like [`Driver::fill`]; a failure that was kept before wins.
    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        self.first(self.driver.fill(address, value, bytes))
    }

    /// Like [`Driver::copy`]; a failure that was kept before wins.
    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        self.first(self.driver.copy(from, to, bytes))
    }

    /// Returns the kept failure, and forgets it.
    fn take_failure(&self) -> Result<()> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Lends at least `bytes` of scratch until the next call; 0 (and a kept failure) where there is no more memory.
    ///
    /// Work is in one order, so an op may overwrite what the one before it still reads as far as the host can tell.
    fn scratch(&self, bytes: u64) -> u64 {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > scratch.bytes {
            match self.alloc(bytes) {
                Ok(address) => *scratch = Scratch { address, bytes },
                Err(error) => {
                    self.keep(Err(error));
                    return 0;
                }
            }
        }
        scratch.address
    }
}

impl Ops for Gpu {
    fn renew(self) -> Result<Self> {
        self.sync()?;
        let (driver, precision) = (self.driver.clone(), self.precision);
        // Its memory goes back first.
        drop(self);
        Self::new(driver, precision, 0)
    }
}

/// Bytes of a device that driver context, kernels and the granularity of allocations take.
pub const RESERVE: u64 = 1 << 30;
/// Most bytes that single ops take for themselves: 16 MiB beside the parts of weight gradients.
pub const OP_SCRATCH: u64 = (16 << 20) + ops::parts::BYTES;
/// Blocks that a grid may have in y and in z, on every device (CUDA C++ Programming Guide, technical specifications).
const MOST_BLOCKS: u32 = 65_535;

/// Returns how many blocks of `each` cover `n`.
fn blocks(n: usize, each: usize) -> u32 {
    n.div_ceil(each) as u32
}

/// Takes the first NVIDIA device into use; CUDA_VISIBLE_DEVICES says which one that is.
///
/// Errors: [`Kind::Device`] with the reason and what to do.
pub fn open() -> Result<Arc<dyn Driver>> {
    #[cfg(feature = "cuda")]
    let opened = driver::cuda::Cuda::open(0).map(|cuda| cuda as Arc<dyn Driver>);
    #[cfg(not(feature = "cuda"))]
    let opened = Err(Error::from(probe::Problem::NotBuilt));
    opened.map_err(|error| error.at("device cuda"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_gives_a_device_or_a_device_error_with_a_hint() {
        let Err(error) = open() else { return };
        assert_eq!(error.kind(), Kind::Device);
        assert_eq!(error.kind().exit_code(), 6);
        assert!(error.message().starts_with("device cuda: "), "{error}");
        assert!(!error.message().contains('\n'), "{error}");
        assert!(error.hint_text().is_some());
    }
}

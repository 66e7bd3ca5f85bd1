//! The interface to a machine: memory, copies, launches. Two implement it: the NVIDIA driver, and
//! the simulator that runs the same kernels on this CPU.

#[cfg(feature = "rivals")]
pub mod cublaslt;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "sim")]
pub mod sim;
mod tensor_map;

use std::fmt;

use crate::error::{Error, Kind, Result};
pub use tensor_map::{Matrix, TensorMap};

/// Properties of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The product's name.
    pub name: String,
    /// The compute capability: major and minor number.
    pub capability: (u32, u32),
    /// Multiprocessors. Never decides the order of a sum.
    pub processors: u32,
    /// Shared memory a block may ask for, in bytes.
    pub shared_bytes: u32,
    /// All memory, in bytes.
    pub total_bytes: u64,
    /// The last cache before memory, in bytes.
    pub cache_bytes: u64,
}

/// Compute capabilities that kernels are for, and the shared memory in bytes that a block may ask for there.
///
/// Source: CUDA C++ Programming Guide, technical specifications per compute capability.
pub const CAPABILITIES: [((u32, u32), u32); 11] = [
    ((8, 0), 163 << 10),
    ((8, 6), 99 << 10),
    ((8, 7), 163 << 10),
    ((8, 9), 99 << 10),
    ((9, 0), 227 << 10),
    ((10, 0), 227 << 10),
    ((10, 1), 227 << 10),
    ((10, 3), 227 << 10),
    ((11, 0), 227 << 10),
    ((12, 0), 99 << 10),
    ((12, 1), 99 << 10),
];

/// Returns the shared memory in bytes that a block may ask for on a device of this compute capability; of one that is not
/// known, the least that any has.
pub fn shared_limit(capability: (u32, u32)) -> u32 {
    let known = CAPABILITIES.iter().find(|(known, _)| *known == capability);
    known.map_or(99 << 10, |(_, bytes)| *bytes)
}

/// The arguments of a kernel, in the order of its parameters.
#[derive(Clone, Copy)]
pub struct Args {
    words: [u64; Args::MAX],
    sizes: [u8; Args::MAX],
    len: usize,
    /// The tensor maps among the arguments; the word of such an argument is an index into these.
    maps: [TensorMap; Args::MAPS],
    map_count: usize,
}

impl Args {
    /// The most arguments a kernel takes.
    pub const MAX: usize = 32;
    /// The most tensor maps among them.
    pub const MAPS: usize = 6;

    /// Starts an empty list.
    pub fn new() -> Self {
        let maps = [TensorMap::default(); Self::MAPS];
        Self { words: [0; Self::MAX], sizes: [0; Self::MAX], len: 0, maps, map_count: 0 }
    }

    fn push(mut self, word: u64, size: u8) -> Self {
        // The longest parameter list is a constant of the kernels; the first launch of a longer one fails a test.
        assert!(self.len < Self::MAX, "a kernel with more than {} arguments", Self::MAX);
        self.words[self.len] = word;
        self.sizes[self.len] = size;
        self.len += 1;
        self
    }

    /// Appends a device address; 0 is the null pointer.
    pub fn ptr(self, address: u64) -> Self {
        self.push(address, 8)
    }

    /// Appends a `uint64_t`.
    pub fn u64(self, value: u64) -> Self {
        self.push(value, 8)
    }

    /// Appends a `uint32_t`.
    pub fn u32(self, value: u32) -> Self {
        self.push(u64::from(value), 4)
    }

    /// Appends an `int32_t`.
    pub fn i32(self, value: i32) -> Self {
        self.push(u64::from(value as u32), 4)
    }

    /// Appends a `float`.
    pub fn f32(self, value: f32) -> Self {
        self.push(u64::from(value.to_bits()), 4)
    }

    /// Appends a `double`.
    pub fn f64(self, value: f64) -> Self {
        self.push(value.to_bits(), 8)
    }

    /// Appends a tensor map.
    pub fn map(mut self, map: TensorMap) -> Self {
        // As in push: the number is a constant of the kernels.
        assert!(self.map_count < Self::MAPS, "a kernel with more than {} tensor maps", Self::MAPS);
        let at = self.map_count;
        self.maps[at] = map;
        self.map_count += 1;
        self.push(at as u64, TensorMap::BYTES)
    }

    /// Returns the sizes of the arguments in bytes.
    pub fn sizes(&self) -> &[u8] {
        &self.sizes[..self.len]
    }

    /// Returns the argument block as cuLaunchKernel takes it: the address of each argument.
    ///
    /// Smaller arguments lie in the low bytes of their word, which come first on the little-endian machines that
    /// CUDA knows. The addresses live as long as `self` stays where it is.
    pub fn addresses(&mut self) -> [*mut std::ffi::c_void; Self::MAX] {
        let mut out = [std::ptr::null_mut(); Self::MAX];
        for (i, to) in out.iter_mut().enumerate() {
            *to = if self.sizes[i] == TensorMap::BYTES {
                std::ptr::from_mut(&mut self.maps[self.words[i] as usize]).cast()
            } else {
                std::ptr::from_mut(&mut self.words[i]).cast()
            };
        }
        out
    }
}

impl Default for Args {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.words[..self.len].iter().zip(self.sizes())).finish()
    }
}

/// One kernel launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// The entry point's name.
    pub kernel: &'static str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// The kernel's arguments.
    pub args: Args,
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.grid;
        let Self { kernel, block, shared, .. } = self;
        write!(f, "{kernel}: grid {x}x{y}x{z}, block {block}, {shared} shared bytes")
    }
}

/// Marks of [`Driver::mark`].
pub const MARKS: usize = 8;

/// A machine that runs kernels. All work is in one order; [`Driver::sync`] waits for it.
pub trait Driver: Send + Sync + fmt::Debug {
    /// Returns what the device says of itself.
    fn identity(&self) -> &Identity;
    /// Returns the free memory in bytes, where the device tells.
    fn free_bytes(&self) -> Option<u64>;
    /// Allocates device memory, aligned to 256 bytes, contents undefined.
    fn alloc(&self, bytes: u64) -> Result<u64>;
    /// Gives back what [`Driver::alloc`] returned.
    fn free(&self, address: u64);
    /// Copies host bytes to the device; `bytes` may be reused when it returns.
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;
    /// Copies host bytes to device addresses beside the work in flight; the bytes may be reused when it returns.
    ///
    /// There are two lanes, 0 and 1, for buffers that take turns. Work started later sees the bytes. The copy waits
    /// for the work that was started before another lane was last staged to, or for all work where the last one was
    /// this very lane: what reads a lane's buffers must be started before the next lane is staged to.
    fn stage(&self, lane: usize, parts: &[(u64, &[u8])]) -> Result<()>;
    /// Waits for the work before it and copies device bytes to the host.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
    /// Sets device bytes to `value`.
    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()>;
    /// Copies device bytes; the ranges do not overlap.
    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()>;
    /// Describes a matrix to the bulk copies of a kernel; no work of the device.
    ///
    /// Errors: [`Kind::Device`] where the matrix breaks a rule of [`Matrix`], or the device has no bulk copies.
    fn tensor_map(&self, matrix: &Matrix) -> Result<TensorMap>;
    /// Starts a kernel.
    fn launch(&self, launch: Launch) -> Result<()>;
    /// Adds the kernels of a PTX text to those that [`Driver::launch`] finds; names of the program's own come first.
    ///
    /// Errors: [`Kind::Device`] where the device refuses the text, or cannot run PTX at all.
    fn load_ptx(&self, ptx: &str) -> Result<()> {
        let _ = ptx;
        Err(Error::new(Kind::Device, format!("{}: runs no PTX", self.identity().name))
            .hint("build with NEPENTHE_EXTRA_KERNELS=FOLDER, which compiles the .cu files in it"))
    }
    /// Waits for all work.
    fn sync(&self) -> Result<()>;
    /// Records the launches, fills and copies that `work` starts, for [`Driver::replay`], and returns their number.
    ///
    /// Nothing of `work` is done. `None` says that the device could not record it, for want of memory or because its
    /// driver refused: the caller does the work then. Addresses and scalars are recorded as they are. Inside `work` nothing may be allocated, given back,
    /// uploaded, downloaded or waited for; that is an error. Do the work once before it is recorded: the first
    /// launch of a kernel may have to load it, which waits for the device.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<u64>>;
    /// Starts what [`Driver::capture`] recorded under this number, in the order of all work.
    fn replay(&self, graph: u64) -> Result<()>;
    /// Notes the time at which the work before it has ended, under a number below [`MARKS`].
    fn mark(&self, at: usize) -> Result<()>;
    /// Returns the seconds between two marks; waits for them.
    fn between_marks(&self, from: usize, to: usize) -> Result<f64>;
    /// Starts `work(0)`, `work(1)` and so on up to `count`, and returns the seconds that the device spends on each;
    /// waits for the last one alone, so that the host can stay ahead of the device.
    fn laps(&self, count: usize, work: &mut dyn FnMut(usize) -> Result<()>) -> Result<Vec<f64>>;
    /// Returns the native handle of the stream, for a library that adds work to it; `None` where there is no such thing.
    fn stream(&self) -> Option<u64>;
}

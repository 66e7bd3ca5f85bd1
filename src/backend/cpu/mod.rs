//! Every op in Rust: the default without a GPU, and the oracle of every kernel.

mod real;

pub use real::Real;

/// The CPU backend computing in `T`: f32 to work, f64 to check.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu<T> {
    marker: std::marker::PhantomData<T>,
}

impl<T> Cpu<T> {
    /// Makes the backend.
    pub fn new() -> Self {
        Self { marker: std::marker::PhantomData }
    }
}

/// A gradient: fp-wide in exact mode, bf16 in compact mode.
#[derive(Debug, Clone)]
pub struct Grad<T> {
    /// The sums so far.
    pub(crate) data: GradData<T>,
    /// Whether the next write overwrites.
    pub(crate) empty: bool,
}

/// The storage of a [`Grad`].
#[derive(Debug, Clone)]
pub(crate) enum GradData<T> {
    /// One compute-type number per entry.
    Wide(Vec<T>),
    /// One bf16 per entry, rounded to nearest even after each accumulation, which itself is done wide.
    Bf16(Vec<u16>),
}

//! The op catalogue: the only door to compute.
//!
//! The model and the method are written once over [`Compute`] (activations), [`Sweep`] (what binds them together) and
//! [`State`] (parameters and their update). Each formula stands here; a backend carries it out. Letters: N packed tokens (rows), C model
//! width, H heads, G kv heads, D head width, F ffn width, V vocabulary, O and I the outputs and inputs of a
//! linear map. Matrices are row-major. Sums are taken in an order that depends on shapes alone.

pub mod compute;
pub mod format;
pub mod mlp;
pub mod sample;
pub mod state;
pub mod sweep;
pub mod weight;

pub use compute::{
    CachePlace, Compute, Direction, HeadGrads, HeadShape, HeadWeight, Heads, PackData, Rms,
    RopeTable, RowCounts, RowStats,
};
pub use mlp::{Activation, Mlp};
pub use sample::Sampling;
pub use state::{Distances, GradScan, ParamSpec, Role, State, StateBytes, StateMode, TeacherForm};
pub use sweep::{Sweep, Tallied, WorkKey};
pub use weight::{DocumentFormula, Matched, TokenFormula, TokenWeight, Toward};

/// A backend that can do everything.
pub trait Ops: Compute + Sweep + State + 'static {
    /// Waits for all work, gives all memory back and starts anew on the same device: what was allocated before means
    /// nothing afterwards.
    ///
    /// Errors: what the work met.
    fn renew(self) -> crate::Result<Self>
    where
        Self: Sized;
}

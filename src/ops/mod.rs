//! The op catalogue: the only door to compute.
//!
//! The model and the method are written once over [`Memory`] (allocation), [`Transfer`] (copies to and from the host),
//! [`Compute`] (ops on activations), [`Sweep`] (what connects the ops of a pass) and [`State`] (parameters and their
//! update). Each formula stands here; a backend carries it out. Letters: N packed tokens (rows), C model width, H heads, G
//! kv heads, D head width, F ffn width, V vocabulary, O and I the outputs and inputs of a linear layer. Matrices are
//! row-major. Sums are taken in an order that depends on shapes alone.

pub mod compute;
pub mod format;
pub mod head;
pub mod heads;
pub mod linear;
pub mod memory;
pub mod mlp;
pub mod norm;
pub mod pack;
pub mod param;
pub mod planes;
pub mod sample;
pub mod state;
pub mod sweep;
pub mod weight;

pub use compute::Compute;
pub use head::{HeadGrads, HeadReference, HeadRows, HeadShape, HeadWeight, RowStats, Tallied};
pub use heads::{AttentionSaved, CachePlace, Direction, Heads, RopeTable};
pub use linear::{LinearArgs, LinearShape, Rotation};
pub use memory::{Memory, Sizes, Transfer};
pub use mlp::{Activation, Mlp};
pub use norm::{Norm, NormArgs, NormGrads, NormKind, QkNormArgs};
pub use pack::{PackData, RowCounts};
pub use param::{ParamSpec, Role, StateBytes, StateMode, TeacherForm};
pub use planes::{Plane, Planes, Stored};
pub use sample::Sampling;
pub use state::{Distances, GradScan, State};
pub use sweep::{Sweep, WorkKey};
pub use weight::{DocumentFormula, Matched, MseArgs, TokenFormula, TokenWeight, Toward};

/// A backend that can do everything.
pub trait Ops: Transfer + Sweep + State + 'static {
    /// Waits for all work, gives all memory back and starts anew on the same device: what was allocated before means
    /// nothing afterwards.
    ///
    /// Errors: what the work met.
    fn renew(self) -> crate::Result<Self>
    where
        Self: Sized;
}

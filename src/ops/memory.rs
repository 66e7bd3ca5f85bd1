//! Buffers of a backend: their allocation, and copies between them and the host.

use super::head::{HeadShape, Tallied};
use super::pack::PackData;
use super::param::{ParamSpec, Role};
use super::planes::{Plane, Planes};
use crate::error::Result;

/// Allocation of everything that a run keeps. Models, passes and methods are built over this trait alone, so that their
/// bytes can be counted without a device.
pub trait Memory {
    /// Activations in the backend's compute type.
    type Act: Send;
    /// Vectors kept in (at least) fp32: statistics, row losses.
    type Stat;
    /// A loaded [`PackData`].
    type Pack;
    /// Sums over rows.
    type Tally;
    /// A gradient buffer; the first write of a step overwrites, later ones add.
    type Grad: Send;
    /// A parameter with its teacher and optimizer state.
    type Param: Send;

    /// Allocates `len` activations.
    fn act(&self, len: usize) -> Result<Self::Act>;
    /// Allocates `len` statistics.
    fn stat(&self, len: usize) -> Result<Self::Stat>;
    /// Allocates room for packs of up to `tokens` tokens.
    fn pack(&self, tokens: usize) -> Result<Self::Pack>;
    /// Returns the number of activations in a buffer.
    fn len(&self, act: &Self::Act) -> usize;
    /// Allocates sums.
    fn tally_room(&self) -> Result<Self::Tally>;
    /// Allocates a parameter and fills it by `init`; the teacher starts equal to it.
    fn param(
        &self,
        spec: &ParamSpec,
        init: &mut dyn FnMut(&mut [f32]) -> Result<()>,
    ) -> Result<Self::Param>;
    /// Allocates the gradient of a parameter.
    fn grad(&self, spec: &ParamSpec) -> Result<Self::Grad>;
    /// Makes room for head sweeps over packs of up to `shape.n` rows, those of matched rows only where asked for, so that
    /// none allocates later.
    fn reserve(&self, shape: HeadShape, matched: bool) -> Result<()>;
    /// Tells whether [`State::view`](super::State::view) of `role` writes to its scratch.
    fn needs_scratch(&self, param: &Self::Param, role: Role) -> bool;
}

/// Copies between the host and the buffers of a backend.
pub trait Transfer: Memory {
    /// Loads `data` into `pack`.
    fn load_pack(&self, pack: &mut Self::Pack, data: &PackData);
    /// Copies the first `out.len()` statistics to the host.
    fn read_stat(&self, stat: &Self::Stat, out: &mut [f64]);
    /// Copies host numbers into the first entries of `stat`.
    fn write_stat(&self, values: &[f64], stat: &mut Self::Stat);
    /// Copies the first `out.len()` activations to the host.
    fn read_act(&self, act: &Self::Act, out: &mut [f32]);
    /// Copies host numbers into the first entries of `act`, rounded to the nearest stored number.
    fn write_act(&self, values: &[f32], act: &mut Self::Act);
    /// Waits for the work before it and returns the sums; 0 after a failure, which [`Transfer::sync`] tells.
    fn read_tally(&self, tally: &Self::Tally) -> Tallied;
    /// Copies a gradient to the host; an empty gradient is all zeros.
    fn read_grad(&self, grad: &Self::Grad, out: &mut [f32]);
    /// Copies student or teacher to the host in fp32, exactly as stored (compact: both planes joined, but
    /// [`Role::Evaluated`] rounded as [`State::view`](super::State::view) shows it).
    fn read_param(&self, param: &Self::Param, role: Role, out: &mut [f32]);
    /// Copies one optimizer buffer (`momentum_buffer`, `exp_avg`, `exp_avg_sq`) to the host; false if absent.
    fn read_moment(&self, param: &Self::Param, name: &str, out: &mut [f32]) -> bool;
    /// Gives the teacher of a trainable parameter weights of its own.
    fn set_teacher(&self, param: &mut Self::Param, values: &[f32]);
    /// Hands every state buffer of a trainable parameter to `write`, by name, as raw little-endian bytes.
    fn save_param(
        &self,
        param: &Self::Param,
        write: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()>;
    /// Restores what [`Transfer::save_param`] wrote; `read(name, bytes)` must fill `bytes` exactly.
    fn load_param(
        &self,
        param: &mut Self::Param,
        read: &mut dyn FnMut(&str, &mut [u8]) -> Result<()>,
    ) -> Result<()>;
    /// Waits for all work and returns the first error it met.
    fn sync(&self) -> Result<()>;
}

/// Bytes that a backend takes for its buffers, by which it allocates.
pub trait Sizes {
    /// Returns the bytes that are taken for a buffer of `bytes`.
    fn taken(&self, bytes: u64) -> u64 {
        bytes
    }
    /// Returns the bytes of an activation.
    fn act(&self) -> usize;
    /// Returns the bytes of a statistic.
    fn stat(&self) -> usize;
    /// Returns the bytes of each buffer of a pack of up to `tokens` tokens.
    fn pack(&self, tokens: usize) -> Vec<u64>;
    /// Returns the bytes of sums.
    fn tally(&self) -> u64;
    /// Returns the buffers of a parameter.
    fn planes(&self, spec: &ParamSpec) -> Planes;
    /// Returns the bytes of what goes with a parameter beside its numbers.
    fn scalars(&self, spec: &ParamSpec) -> u64;
    /// Returns the buffer of a gradient, and the bytes of what goes with it.
    fn gradient(&self, spec: &ParamSpec) -> (Plane, u64);
    /// Returns the bytes of each buffer that [`Memory::reserve`] makes.
    fn head(&self, shape: HeadShape, matched: bool) -> Vec<u64>;
    /// Tells what [`Memory::needs_scratch`] does of a parameter as `spec` describes it.
    fn needs_scratch(&self, spec: &ParamSpec, role: Role) -> bool;
}

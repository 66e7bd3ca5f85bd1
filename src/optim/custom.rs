//! Update rules that a caller brings: what one sees of a tensor, on the host and on a device.
//!
//! A rule turns a gradient into a step. The rest of the update stays where it is: norm and clip, the pull to the
//! teacher, `theta += step`, and the teacher's way after the student.

use rayon::prelude::*;

use super::{UpdateRule, UpdateScalars};
use crate::error::{Error, Result};

/// Numbers that one thread takes at a time.
const CHUNK: usize = 1 << 14;

/// Names of a parameter's buffers beside those of a rule.
const TAKEN: [&str; 6] = ["theta", "teacher", "drift", "scalars", "theta_hi", "theta_lo"];

/// An optimizer of the caller's own.
///
/// It works in fp32 on parameters in exact state ([`crate::ops::StateMode::Exact`]). With `update` alone it runs on both
/// backends, on a device by way of the host; with `launch` it stays on the device.
///
/// ```
/// use nepenthe::Result;
/// use nepenthe::optim::{CustomRule, TensorView, UpdateScalars};
///
/// /// signSGD (arXiv 1802.04434): every weight moves by the learning rate, downhill.
/// struct SignSgd;
///
/// impl CustomRule for SignSgd {
///     fn name(&self) -> &str {
///         "sign_sgd"
///     }
///     fn update(&mut self, tensor: &mut TensorView<'_>, numbers: &UpdateScalars) -> Result<()> {
///         let lr = numbers.lr as f32;
///         tensor.each(|gradient, _weight, _state| {
///             if gradient == 0.0 { 0.0 } else { -lr * gradient.signum() }
///         });
///         Ok(())
///     }
/// }
///
/// let (gradient, weights) = ([0.3, 0.0, -2.0], [1.0; 3]);
/// let mut step = [0.0; 3];
/// let mut tensor = TensorView {
///     name: "model.layers.0.mlp.down_proj.weight",
///     shape: &[3, 1],
///     gradient: &gradient,
///     weights: &weights,
///     drift: &[],
///     state: [&mut [], &mut []],
///     step: &mut step,
/// };
/// let numbers = UpdateScalars { step: 0, lr: 0.5, clip: 1.0, damping: 0.0, teacher_rate: 0.0 };
/// SignSgd.update(&mut tensor, &numbers)?;
/// assert_eq!(step, [-0.5, 0.0, 0.5]);
/// # Ok::<(), nepenthe::Error>(())
/// ```
pub trait CustomRule: Send {
    /// Returns its name, which a checkpoint must share with the run that resumes from it.
    fn name(&self) -> &str;

    /// Returns the names of the state tensors that it wants for every parameter, in shape and size those of the
    /// weights and all zeros at first; empty for none. Checkpoints carry them under these names.
    fn state(&self) -> [&'static str; 2] {
        ["", ""]
    }

    /// Writes the step of one tensor, which is added to its weights, and brings its state up to date.
    ///
    /// Called once a step for each trained tensor, in the order of the model. An error ends the run with the tensors
    /// before this one moved: resume from a checkpoint.
    fn update(&mut self, tensor: &mut TensorView<'_>, numbers: &UpdateScalars) -> Result<()>;

    /// Does the same on a device by launching kernels, and returns true; false (as without this method) has the
    /// numbers copied to the host for [`CustomRule::update`].
    fn launch(&mut self, tensor: &DeviceView<'_>, numbers: &UpdateScalars) -> Result<bool> {
        let _ = (tensor, numbers);
        Ok(false)
    }
}

/// Name and shape of one tensor of the model inside a parameter; those of a parameter lie one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorPlace<'a> {
    /// Its name in the safetensors files.
    pub name: &'a str,
    /// Its shape there.
    pub shape: &'a [usize],
}

impl TensorPlace<'_> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Tells whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One tensor on the host, as a rule sees it: all slices have its number of elements, absent ones are empty.
#[derive(Debug)]
pub struct TensorView<'a> {
    /// Its name in the safetensors files.
    pub name: &'a str,
    /// Its shape there; row-major.
    pub shape: &'a [usize],
    /// The clipped gradient with the pull to the teacher: `c g + damping c (theta - ref)`.
    pub gradient: &'a [f32],
    /// theta before the step.
    pub weights: &'a [f32],
    /// theta - ref before the step; empty without a teacher.
    pub drift: &'a [f32],
    /// The tensors of [`CustomRule::state`]; empty where no name was given.
    pub state: [&'a mut [f32]; 2],
    /// Increment of the weights; zeros at first.
    pub step: &'a mut [f32],
}

impl TensorView<'_> {
    /// Sets each number of the step to `rule(gradient, weight, state)`, in parallel.
    ///
    /// A state tensor that was not asked for reads as 0 and keeps nothing.
    pub fn each(&mut self, rule: impl Fn(f32, f32, [&mut f32; 2]) -> f32 + Sync) {
        let count = self.step.len().div_ceil(CHUNK);
        let [first, second] = &mut self.state;
        let rows: Vec<_> = self
            .step
            .chunks_mut(CHUNK)
            .zip(self.gradient.chunks(CHUNK).zip(self.weights.chunks(CHUNK)))
            .zip(chunks(first, count).into_iter().zip(chunks(second, count)))
            .collect();
        rows.into_par_iter().for_each(|((step, (gradient, weights)), (first, second))| {
            for (i, (step, (gradient, weight))) in
                step.iter_mut().zip(gradient.iter().zip(weights)).enumerate()
            {
                let mut spare = [0.0; 2];
                let [one, two] = &mut spare;
                let state = [first.get_mut(i).unwrap_or(one), second.get_mut(i).unwrap_or(two)];
                *step = rule(*gradient, *weight, state);
            }
        });
    }
}

/// Cuts a state tensor as [`TensorView::each`] cuts the rest; an absent one into `count` empty pieces.
fn chunks(state: &mut [f32], count: usize) -> Vec<&mut [f32]> {
    if state.is_empty() {
        return (0..count).map(|_| &mut [][..]).collect();
    }
    state.chunks_mut(CHUNK).collect()
}

/// One tensor on a device, as a rule sees it: addresses of fp32 numbers, as many as it has elements, aligned to 4
/// bytes; absent ones are 0. They hold what the slices of [`TensorView`] of the same name hold.
#[derive(Clone, Copy)]
pub struct DeviceView<'a> {
    /// Its name in the safetensors files.
    pub name: &'a str,
    /// Its shape there; row-major.
    pub shape: &'a [usize],
    /// The number of elements.
    pub len: usize,
    /// Read-only.
    pub gradient: u64,
    /// Read-only.
    pub weights: u64,
    /// Read-only; 0 without a teacher.
    pub drift: u64,
    /// The tensors of [`CustomRule::state`].
    pub state: [u64; 2],
    /// Increment of the weights; zeros at first.
    pub step: u64,
    /// Launches kernels.
    pub device: &'a dyn Kernels,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum KernelArg {
    /// A device address; 0 is the null pointer.
    Ptr(u64),
    /// A `uint64_t`.
    U64(u64),
    /// A `uint32_t`.
    U32(u32),
    /// An `int32_t`.
    I32(i32),
    /// A `float`.
    F32(f32),
    /// A `double`.
    F64(f64),
}

/// A device that launches kernels by name: those compiled into the program, and those loaded as PTX.
pub trait Kernels {
    /// Starts `kernel` on `grid` blocks of `block` threads with `shared` bytes of dynamic shared memory, behind all
    /// work before it.
    ///
    /// Errors: [`crate::Kind::Device`] for an unknown name, arguments of other sizes than the kernel's (where the
    /// device tells them), more than 32 of them, or a launch that the device refuses.
    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: &[KernelArg],
    ) -> Result<()>;
}

impl UpdateRule {
    /// Makes the rule of parameters that `rule` moves.
    ///
    /// Errors: [`crate::Kind::Config`] for names of state tensors that are taken, equal, not made of letters, digits and
    /// `_`, or a second without a first.
    pub fn custom(rule: &dyn CustomRule) -> Result<Self> {
        let state = rule.state();
        let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let wrong = state.iter().find(|name| TAKEN.contains(name) || !plain(name));
        let [first, second] = state;
        if wrong.is_some() || (first == second && !first.is_empty()) {
            let name = wrong.unwrap_or(&first);
            return Err(Error::config(format!(
                "rule {}: state tensor {name:?}: wanted a name of its own, of letters, digits and _",
                rule.name()
            ))
            .hint(format!("parameters keep their own state as {}", TAKEN.join(", "))));
        }
        if first.is_empty() && !second.is_empty() {
            return Err(Error::config(format!(
                "rule {}: state tensor {second:?} is the second, and there is no first",
                rule.name()
            )));
        }
        Ok(Self::Custom { state })
    }
}

/// Returns the error for an update by a rule that does not know these parameters, or needs another call.
pub(crate) fn other_rule() -> Error {
    Error::config("the parameters of this update were made for another rule")
        .hint("a rule of the caller's own takes UpdateRule::custom(&rule) when they are made, and update_custom after")
}

/// Returns the error for parameters of a custom rule in another state than exact.
pub(crate) fn not_exact(name: &str, mode: &str) -> Error {
    Error::config(format!("{name}: a rule of the caller's own needs exact state, got {mode}"))
        .hint("--set model.state=exact, StateMode::Exact in the library")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named([&'static str; 2]);

    impl CustomRule for Named {
        fn name(&self) -> &str {
            "named"
        }
        fn state(&self) -> [&'static str; 2] {
            self.0
        }
        fn update(&mut self, _: &mut TensorView<'_>, _: &UpdateScalars) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn custom_refuses_names_that_a_checkpoint_could_not_tell_apart() {
        for state in [["", ""], ["m", ""], ["m", "v_2"]] {
            assert_eq!(UpdateRule::custom(&Named(state)).unwrap(), UpdateRule::Custom { state });
        }
        for state in [["theta", ""], ["m", "m"], ["", "v"], ["a/b", ""], ["m", "drift"]] {
            let error = UpdateRule::custom(&Named(state)).unwrap_err();
            assert!(error.message().starts_with("rule named: state tensor"), "{error}");
        }
    }

    #[test]
    fn each_visits_every_number_once_with_and_without_state() {
        let n = CHUNK + 3;
        let gradient: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let weights = vec![0.5; n];
        for kept in [0, n] {
            let (mut first, mut step) = (vec![1.0; kept], vec![0.0; n]);
            let mut view = TensorView {
                name: "w",
                shape: &[n],
                gradient: &gradient,
                weights: &weights,
                drift: &[],
                state: [&mut first, &mut []],
                step: &mut step,
            };
            view.each(|g, w, [m, v]| {
                assert_eq!(*v, 0.0);
                *m += g;
                *m + w
            });
            let start = if kept == 0 { 0.0 } else { 1.0 };
            assert!(step.iter().enumerate().all(|(i, s)| *s == start + i as f32 + 0.5));
            assert!(first.iter().enumerate().all(|(i, m)| *m == 1.0 + i as f32));
        }
    }
}

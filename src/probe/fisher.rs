//! Products with the Fisher matrix of a model on a batch of text, made of gradients of the quadratic KL penalty.
//!
//! With D = z - z_ref and q = softmax(z_ref), half of Var_q(D) has the gradient J^T q (D - E_q D). At ref + e v it is
//! e F v + O(e^2), where F = mean over positions of J^T (diag q - q q^T) J at ref: the Fisher matrix, which for softmax
//! is the Gauss-Newton matrix too. The central difference of both signs of e leaves O(e^2) of F v.
//!
//! A damped natural-gradient step of a model on texts, as `nepenthe probe ngd` makes it:
//!
//! ```
//! use nepenthe::Result;
//! use nepenthe::backend::cpu::Cpu;
//! use nepenthe::data::MicroBatch;
//! use nepenthe::method::passes::{Passes, Task};
//! use nepenthe::method::{Knobs, Nll};
//! use nepenthe::model::params::Keeping;
//! use nepenthe::model::{Model, Train};
//! use nepenthe::ops::{StateMode, TeacherForm};
//! use nepenthe::optim::UpdateRule;
//! use nepenthe::folder::Folder;
//! use nepenthe::probe::fisher::{Fisher, Point, dot};
//! use nepenthe::probe::solve::{Limits, conjugate_gradients};
//!
//! let ops = Cpu::<f32>::new();
//! let folder = Folder::open("tests/golden/data/models/llama-gqa".as_ref())?;
//! let keep = Keeping {
//!     train: Some(Train::Body),
//!     mode: StateMode::Exact,
//!     teacher: TeacherForm::Drift,
//!     rule: UpdateRule::Sgd { momentum: 0.0 },
//!     seed: 1,
//! };
//! let mut model = Model::load(&ops, folder.config, &folder.weights, &keep)?;
//! let mut passes = Passes::new(&ops, &model, 64, true)?;
//! let texts = [MicroBatch::new([vec![3, 14, 15, 92, 65, 35]])];
//!
//! let point = Point::take(&ops, &model)?;
//! let mut fisher = Fisher::new(&ops, &mut model, &mut passes, &point, point.teacher(), &texts);
//! let gradient = fisher.gradient(&Nll, &Knobs::default(), &vec![0.0; point.len()], None)?;
//! let error = fisher.calibrate(&gradient)?;
//! assert!(error < 1e-2, "products are good to {error}");
//!
//! // (F + damping) x = -g.
//! let damping = 0.1;
//! let mut damped = |v: &[f64]| -> Result<Vec<f64>> {
//!     Ok(fisher.product(v)?.iter().zip(v).map(|(fv, v)| fv + damping * v).collect())
//! };
//! let downhill: Vec<f64> = gradient.iter().map(|g| -g).collect();
//! let limits = Limits { tolerance: 1e-2, iterations: 10 };
//! let found = conjugate_gradients(&mut damped, &downhill, None, None, limits)?;
//! assert!(dot(&found.x, &gradient) < 0.0);
//! // The step avoids what the texts' distribution is curved along.
//! let mut curvature = |v: &[f64]| Ok::<_, nepenthe::Error>(dot(v, &fisher.product(v)?) / dot(v, v));
//! assert!(curvature(&found.x)? < curvature(&gradient)?);
//!
//! point.restore(&ops, &mut model)?;
//! # Ok::<(), nepenthe::Error>(())
//! ```

use std::collections::BTreeMap;

use crate::data::MicroBatch;
use crate::error::{Error, Kind, Result};
use crate::method::passes::{Passes, Sums, Task};
use crate::method::{Knobs, Objective, Qkl};
use crate::model::Model;
use crate::ops::Ops;

/// Norms of displacements that [`Fisher::calibrate`] tries, as shares of the norm of all trained parameters.
const SHARES: [f64; 9] = [1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6];

/// Bytes of a parameter's buffers, by name, as [`crate::ops::Transfer::save_param`] hands them out.
type Buffers = BTreeMap<String, Vec<u8>>;

/// Trained parameters of a model in one row of numbers, and where each block of the model lies in it.
///
/// Whatever was loaded is put back by [`Point::restore`], to the bit: student, teacher, moments, counters.
pub struct Point {
    /// By block; empty for a frozen one.
    saved: Vec<Buffers>,
    /// Where the block's numbers begin, and how many there are.
    places: Vec<(usize, usize)>,
}

impl Point {
    /// Keeps all state of the trained parameters of `model`, which must be in exact state.
    ///
    /// Errors: [`Kind::Config`] for another state.
    pub fn take<O: Ops>(ops: &O, model: &Model<O>) -> Result<Self> {
        let (mut saved, mut places, mut start) = (Vec::new(), Vec::new(), 0);
        for (block, param) in model.layout.blocks.iter().zip(&model.params) {
            let len = if block.trainable { block.len() } else { 0 };
            let mut buffers = Buffers::new();
            if block.trainable {
                ops.save_param(param, &mut |name, bytes| {
                    buffers.insert(name.to_owned(), bytes.to_vec());
                    Ok(())
                })?;
                if !buffers.contains_key("theta") {
                    return Err(Error::config(format!(
                        "{}: probes read parameters in exact state only",
                        block.name
                    )));
                }
            }
            saved.push(buffers);
            places.push((start, len));
            start += len;
        }
        Ok(Self { saved, places })
    }

    /// Returns the number of trained parameters.
    pub fn len(&self) -> usize {
        self.places.last().map_or(0, |(start, len)| start + len)
    }

    /// Tells whether nothing trains.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns where the numbers of each block of the model lie; none for a frozen one.
    pub fn places(&self) -> &[(usize, usize)] {
        &self.places
    }

    /// Returns the student's parameters.
    pub fn student(&self) -> Vec<f64> {
        self.read(|buffers| buffers.get("theta").map(Vec::as_slice))
    }

    /// Returns the drift, student less teacher; all zeros without a teacher.
    pub fn drift(&self) -> Vec<f64> {
        let student = self.student();
        let kept = self.read(|buffers| buffers.get("drift").map(Vec::as_slice));
        let teacher = self.read(|buffers| buffers.get("teacher").map(Vec::as_slice));
        let full = self.saved.iter().any(|buffers| buffers.contains_key("teacher"));
        if full { student.iter().zip(&teacher).map(|(s, t)| s - t).collect() } else { kept }
    }

    /// Returns the teacher's parameters.
    pub fn teacher(&self) -> Vec<f64> {
        self.student().iter().zip(&self.drift()).map(|(s, d)| s - d).collect()
    }

    fn read(&self, pick: impl Fn(&Buffers) -> Option<&[u8]>) -> Vec<f64> {
        let mut out = vec![0.0; self.len()];
        for (buffers, &(start, len)) in self.saved.iter().zip(&self.places) {
            if let Some(bytes) = pick(buffers) {
                decode(bytes, &mut out[start..start + len]);
            }
        }
        out
    }

    /// Loads `teacher` and a student that is `drift` away from it; moments and counters are those that were taken.
    ///
    /// Errors: those of the backend.
    pub fn load<O: Ops>(
        &self,
        ops: &O,
        model: &mut Model<O>,
        teacher: &[f64],
        drift: &[f64],
    ) -> Result<()> {
        let places = self.saved.iter().zip(&self.places);
        for ((buffers, &(start, len)), param) in places.zip(&mut model.params) {
            if len == 0 {
                continue;
            }
            let (reference, drift) = (&teacher[start..start + len], &drift[start..start + len]);
            ops.load_param(param, &mut |name, bytes| {
                match name {
                    "theta" => {
                        encode(reference.iter().zip(drift).map(|(r, d)| r + d), len, bytes);
                    }
                    "teacher" => encode(reference.iter().copied(), len, bytes),
                    "drift" => encode(drift.iter().copied(), len, bytes),
                    other => copy(buffers, other, bytes)?,
                }
                Ok(())
            })?;
        }
        ops.sync()
    }

    /// Puts back what was taken.
    ///
    /// Errors: those of the backend.
    pub fn restore<O: Ops>(&self, ops: &O, model: &mut Model<O>) -> Result<()> {
        for (buffers, param) in self.saved.iter().zip(&mut model.params) {
            if !buffers.is_empty() {
                ops.load_param(param, &mut |name, bytes| copy(buffers, name, bytes))?;
            }
        }
        ops.sync()
    }

    /// Returns the gradients of the model in the same order; an empty one is all zeros.
    ///
    /// Errors: those of the backend.
    pub fn gradients<O: Ops>(&self, ops: &O, model: &Model<O>) -> Result<Vec<f64>> {
        let mut out = vec![0.0; self.len()];
        let mut values = Vec::new();
        for (grad, &(start, len)) in model.grads.iter().zip(&self.places) {
            if let Some(grad) = grad {
                values.resize(len, 0f32);
                ops.read_grad(grad, &mut values);
                ops.sync()?;
                let to = out[start..start + len].iter_mut();
                to.zip(&values).for_each(|(to, value)| *to = f64::from(*value));
            }
        }
        Ok(out)
    }
}

fn copy(buffers: &Buffers, name: &str, bytes: &mut [u8]) -> Result<()> {
    match buffers.get(name) {
        Some(saved) if saved.len() == bytes.len() => bytes.copy_from_slice(saved),
        _ => return Err(Error::new(Kind::Model, format!("{name}: state of another shape"))),
    }
    Ok(())
}

/// Reads fp32 or fp64 numbers, whichever fill `out`.
fn decode(bytes: &[u8], out: &mut [f64]) {
    if bytes.len() == 8 * out.len() {
        for (to, word) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *to = f64::from_le_bytes(*word);
        }
    } else {
        for (to, word) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *to = f64::from(f32::from_le_bytes(*word));
        }
    }
}

/// Writes `len` numbers as fp32 or fp64, whichever fill `bytes`.
fn encode(values: impl Iterator<Item = f64>, len: usize, bytes: &mut [u8]) {
    if bytes.len() == 8 * len {
        for (word, value) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(values) {
            *word = value.to_le_bytes();
        }
    } else {
        for (word, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *word = (value as f32).to_le_bytes();
        }
    }
}

/// The Fisher matrix at a reference point on a batch of text, as an operator.
///
/// While it lives, the model's student and teacher are where the last product left them; [`Point::restore`] puts the run
/// back.
pub struct Fisher<'a, O: Ops> {
    ops: &'a O,
    model: &'a mut Model<O>,
    passes: &'a mut Passes<O>,
    point: &'a Point,
    reference: Vec<f64>,
    batches: &'a [MicroBatch],
    /// The model that losses compare with, where they do.
    base: Option<&'a mut Model<O>>,
    /// The norm of a displacement.
    step: f64,
}

impl<'a, O: Ops> Fisher<'a, O> {
    /// Makes the operator at `reference` for the mean over all positions of `batches`; `passes` must be made for training.
    ///
    /// Displacements are a hundredth of the reference's norm until [`Fisher::calibrate`] has found better.
    pub fn new(
        ops: &'a O,
        model: &'a mut Model<O>,
        passes: &'a mut Passes<O>,
        point: &'a Point,
        reference: Vec<f64>,
        batches: &'a [MicroBatch],
    ) -> Self {
        let step = 1e-2 * norm(&reference);
        Self { ops, model, passes, point, reference, batches, base: None, step }
    }

    /// Takes displacements of this share of the reference's norm.
    #[must_use]
    pub fn with_share(mut self, share: f64) -> Self {
        self.step = share * norm(&self.reference);
        self
    }

    /// Lends losses the model that they compare with.
    #[must_use]
    pub fn with_base(mut self, base: Option<&'a mut Model<O>>) -> Self {
        self.base = base;
        self
    }

    /// Goes to another reference; displacements keep their share of its norm.
    pub fn move_to(&mut self, reference: Vec<f64>) {
        self.step *= norm(&reference) / norm(&self.reference).max(f64::MIN_POSITIVE);
        self.reference = reference;
    }

    /// Returns the reference.
    pub fn reference(&self) -> &[f64] {
        &self.reference
    }

    /// Returns the norm of the displacements that products are differences of.
    pub fn step(&self) -> f64 {
        self.step
    }

    /// Returns the gradient of half of Var_q(D) where the student is `drift` away from the reference.
    ///
    /// Errors: those of the backend.
    pub fn penalty_gradient(&mut self, drift: &[f64]) -> Result<Vec<f64>> {
        self.gradient(&Qkl, &Knobs::default(), drift, None)
    }

    /// Returns the gradient of an objective on `batches` (its own where none are given) at reference + `drift`.
    ///
    /// Errors: those of the backend; of a loss that compares with a base model.
    pub fn gradient(
        &mut self,
        objective: &dyn Objective,
        knobs: &Knobs,
        drift: &[f64],
        batches: Option<&[MicroBatch]>,
    ) -> Result<Vec<f64>> {
        let Self { ops, model, passes, point, reference, base, .. } = self;
        point.load(*ops, model, reference, drift)?;
        model.clear_grads(*ops);
        let batches = batches.unwrap_or(self.batches);
        let base = base.as_deref_mut();
        passes.sweep(*ops, model, base, knobs, Task::new(objective, batches, Some(1.0)))?;
        point.gradients(*ops, model)
    }

    /// Returns what an objective comes to on `batches` where the student is `drift` away from the reference.
    ///
    /// Errors: those of [`Fisher::gradient`].
    pub fn sums(
        &mut self,
        objective: &dyn Objective,
        drift: &[f64],
        batches: &[MicroBatch],
    ) -> Result<Sums> {
        let Self { ops, model, passes, point, reference, .. } = self;
        point.load(*ops, model, reference, drift)?;
        passes.sweep(*ops, model, None, &Knobs::default(), Task::new(objective, batches, None))
    }

    /// Returns F v by a central difference at displacements of norm `step`.
    fn difference(&mut self, v: &[f64], step: f64) -> Result<Vec<f64>> {
        let length = norm(v);
        if length == 0.0 {
            return Ok(vec![0.0; v.len()]);
        }
        let e = step / length;
        let forward = self.penalty_gradient(&v.iter().map(|x| e * x).collect::<Vec<_>>())?;
        let backward = self.penalty_gradient(&v.iter().map(|x| -e * x).collect::<Vec<_>>())?;
        Ok(forward.iter().zip(&backward).map(|(a, b)| (a - b) / (2.0 * e)).collect())
    }

    /// Returns F v.
    ///
    /// Errors: those of the backend; [`Kind::Numeric`] where the product is not finite.
    pub fn product(&mut self, v: &[f64]) -> Result<Vec<f64>> {
        let out = self.difference(v, self.step)?;
        if out.iter().all(|x| x.is_finite()) {
            return Ok(out);
        }
        Err(Error::new(Kind::Numeric, "a product with the Fisher matrix is not finite"))
    }

    /// Chooses the displacement for products and returns the relative error to be expected of them.
    ///
    /// Products with `v` at displacements that shrink by three from a tenth of the reference's norm are compared each with
    /// the next one: truncation falls with the square of the displacement, rounding grows with its inverse, and where two
    /// neighbours differ least the smaller one is taken.
    ///
    /// Errors: those of [`Fisher::product`].
    pub fn calibrate(&mut self, v: &[f64]) -> Result<f64> {
        let scale = norm(&self.reference);
        let mut last: Option<Vec<f64>> = None;
        let mut best = (f64::INFINITY, self.step);
        for share in SHARES {
            let product = self.difference(v, share * scale)?;
            if let Some(last) = &last {
                let apart = distance(last, &product) / norm(&product).max(f64::MIN_POSITIVE);
                // A NaN is never less.
                if apart < best.0 {
                    best = (apart, share * scale);
                }
            }
            last = Some(product);
        }
        self.step = best.1;
        Ok(best.0)
    }
}

/// Returns the length of a vector.
pub fn norm(v: &[f64]) -> f64 {
    dot(v, v).sqrt()
}

/// Returns the sum of products.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns the length of a difference.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// Returns the cosine between two vectors; 0 where one is all zeros.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let lengths = norm(a) * norm(b);
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

//! Task vectors: a model less what finetuning on the forget set adds to one.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::folder::export::{Save, write_changed};
use crate::io::safetensors::{Entry, Weights};
use crate::ops::format::noise_seed;
use crate::report::notices;

/// The folders and the factor of a task vector.
#[derive(Debug, Clone, Copy)]
pub struct TaskVector<'a> {
    /// The model that is to forget, W.
    pub model: &'a Path,
    /// A model finetuned on the forget set, W_ft.
    pub finetuned: &'a Path,
    /// The model that it was fine-tuned from, W_0; usually the model itself.
    pub pretrained: &'a Path,
    /// a.
    pub factor: f64,
    /// Format of the result.
    pub save: Save,
}

/// The result of subtracting a task vector.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskVectorSummary {
    /// [`TaskVector::FORMULA`].
    pub formula: &'static str,
    /// The factor.
    pub factor: f64,
    /// Tensors changed.
    pub tensors: usize,
    /// L2 norm of the scaled task vector.
    pub vector_norm: f64,
    /// L2 norm of the model.
    pub model_norm: f64,
    /// Fraction of the change that rounding left.
    pub change_saved: f64,
    /// Notices about the folders.
    pub notices: Vec<String>,
    /// The written folder.
    pub model: PathBuf,
}

impl TaskVector<'_> {
    /// The formula, as reports print it.
    pub const FORMULA: &'static str = "W - factor (W_ft - W_0)";

    /// Writes `W - a (W_ft - W_0)` as the model folder `out`, each number in f64 and rounded once.
    ///
    /// Source: arXiv 2212.04089; muse_bench `task_vector.py`, which takes the differences in bf16. Returns what was done:
    /// tensors, the L2 norms of vector and model, and what rounding left of the change.
    ///
    /// Errors: [`crate::Kind::Config`] for a factor that is no number, a target that is not to be replaced, or equal
    /// models; [`crate::Kind::Model`] where the three do not have the same tensors.
    pub fn write(&self, out: &Path) -> Result<TaskVectorSummary> {
        let Self { model, finetuned, pretrained, factor, save } = *self;
        if !factor.is_finite() {
            return Err(Error::config(format!("--factor: wanted a number, got {factor}")));
        }
        let mut source = Folder::open(model)?;
        let [tuned, start] = [finetuned, pretrained].map(Folder::open);
        let (tuned, start) = (tuned?, start?);
        for other in [&tuned, &start] {
            notices::add(&mut source.notices, other.notices.clone());
        }
        notices::say(&source.notices);
        for (folder, other) in [(finetuned, &tuned.weights), (pretrained, &start.weights)] {
            same_tensors(&source.weights, other).map_err(|e| e.at(folder.display()))?;
        }
        if equal(&tuned.weights, &start.weights)? {
            return Err(Error::config(format!(
                "--finetuned {}: has the weights of {}, so there is no task vector",
                finetuned.display(),
                pretrained.display()
            )));
        }
        let (mut tensors, mut vector, mut whole) = (0usize, 0.0, 0.0);
        let mut change = |weights: &Weights, entry: &Entry, out: &mut Vec<f32>| {
            if !entry.dtype.is_float() {
                return Ok(None);
            }
            let own = weights.read_f64(&entry.name)?;
            let (tuned, start) =
                (tuned.weights.read_f64(&entry.name)?, start.weights.read_f64(&entry.name)?);
            for ((w, tuned), start) in own.iter().zip(tuned).zip(start) {
                let step = factor * (tuned - start);
                vector += step * step;
                whole += w * w;
                out.push((w - step) as f32);
            }
            tensors += 1;
            let place = (noise_seed(&entry.name, save.seed), 0);
            let kept = save.round(entry.dtype, place, out, |before| {
                before.iter_mut().zip(&own).for_each(|(to, w)| *to = *w as f32);
                Ok(())
            })?;
            Ok(Some(kept))
        };
        let kept = write_changed(&source, out, save, &mut change, &mut || {
            json!({
                "program": "nepenthe",
                "version": env!("CARGO_PKG_VERSION"),
                "method": "task vector",
                "formula": Self::FORMULA,
                "factor": factor,
                "model": model.display().to_string(),
                "finetuned": finetuned.display().to_string(),
                "pretrained": pretrained.display().to_string(),
            })
        })?;
        Ok(TaskVectorSummary {
            formula: Self::FORMULA,
            factor,
            tensors,
            vector_norm: f64::sqrt(vector),
            model_norm: f64::sqrt(whole),
            change_saved: kept.share(),
            notices: source.notices,
            model: out.to_owned(),
        })
    }
}

/// Fails where `other` lacks a tensor of `own`, or has it in another shape.
fn same_tensors(own: &Weights, other: &Weights) -> Result<()> {
    for name in own.names() {
        let shape = |weights: &Weights| weights.info(name).map(|info| info.shape.clone());
        let (want, got) = (shape(own), shape(other));
        if want != got {
            let got = got.map_or("nothing".to_owned(), |shape| format!("{shape:?}"));
            let want = want.unwrap_or_default();
            return Err(Error::model(format!("{name}: wanted shape {want:?}, got {got}"))
                .hint("a task vector needs models of one architecture, saved in the same way"));
        }
    }
    Ok(())
}

/// Tells whether two models with the same tensors have the same numbers.
fn equal(a: &Weights, b: &Weights) -> Result<bool> {
    for name in a.names() {
        if a.info(name).is_some_and(|info| info.dtype.is_float())
            && a.read_f64(name)? != b.read_f64(name)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

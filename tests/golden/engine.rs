//! Helpers of the cases: numbers from JSON, models and batches from recorded files, comparisons.

use std::collections::BTreeMap;
use std::path::Path;

use nepenthe::backend::cpu::{Cpu, Real};
use nepenthe::conformance::trajectory;
use nepenthe::data::MicroBatch;
use nepenthe::io::safetensors::Weights;
use nepenthe::method::passes::Passes;
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig, Train};
use nepenthe::ops::{StateMode, TeacherForm};
use nepenthe::optim::UpdateRule;
use serde_json::Value;

use crate::thinned::gradient_distance;

/// A case's verdict: what was compared, or the first difference.
pub type Check<T = ()> = Result<T, String>;

/// Reads a JSON file.
pub fn json(path: &Path) -> Check<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Follows `path` (keys joined by `/`, which no key of the manifest holds) to a number.
pub fn number(value: &Value, path: &[&str]) -> Check<f64> {
    let found = path.iter().try_fold(value, |v, key| v.get(key));
    found.and_then(Value::as_f64).ok_or_else(|| format!("no number at {}", path.join(" / ")))
}

/// Returns the precision's name in tolerances and recorded tensors.
pub fn precision<T: Real>() -> &'static str {
    if size_of::<T>() == 4 { "f32" } else { "f64" }
}

/// Storage of a model for a comparison.
pub fn keeping(train: Option<Train>, teacher: TeacherForm, rule: UpdateRule) -> Keeping {
    Keeping { train, mode: StateMode::Exact, teacher, rule, seed: 1 }
}

/// Loads a recorded model with one of its configuration files.
pub fn load<T: Real>(folder: &Path, config: &str, keep: &Keeping) -> Check<Model<Cpu<T>>> {
    let text = std::fs::read_to_string(folder.join(config)).map_err(|e| e.to_string())?;
    let config = ModelConfig::parse(&text).map_err(|e| e.to_string())?;
    let weights = Weights::open(folder).map_err(|e| e.to_string())?;
    Model::load(&Cpu::new(), config, &weights, keep).map_err(|e| e.to_string())
}

/// Allocates buffers that take `batches` in one pack.
pub fn passes<T: Real>(
    model: &Model<Cpu<T>>,
    batches: &[MicroBatch],
    training: bool,
) -> Check<Passes<Cpu<T>>> {
    let tokens = batches.iter().map(MicroBatch::tokens).sum::<usize>().max(2);
    Passes::new(&Cpu::new(), model, tokens, training).map_err(|e| e.to_string())
}

/// Reads recorded batches; see [`trajectory::batches`].
pub fn batches(file: &Weights, prefix: &str, masked: bool) -> Check<Vec<MicroBatch>> {
    trajectory::batches(file, prefix, masked).map_err(|e| e.to_string())
}

/// Compares two numbers by relative and absolute tolerance.
pub fn near(what: &str, got: f64, want: f64, relative: f64, absolute: f64) -> Check {
    if (got - want).abs() <= relative * want.abs() + absolute {
        return Ok(());
    }
    Err(format!("{what}: got {got:e}, recorded {want:e}, tolerance {relative:e} + {absolute:e}"))
}

/// Returns |a - b| / |b| in the L2 norm, 0 for 0/0.
pub fn relative_l2(a: &[f32], b: &[f64]) -> f64 {
    let diff: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    if diff == 0.0 { 0.0 } else { (diff / norm).sqrt() }
}

/// Compares every gradient of `model` with the recorded tensor `PREFIXname`, per tensor.
pub fn compare_grads<T: Real>(
    model: &Model<Cpu<T>>,
    file: &Weights,
    prefix: &str,
    tolerance: f64,
) -> Check<usize> {
    let mut got = BTreeMap::new();
    model
        .visit_grads(&Cpu::new(), &mut |name, values| {
            got.insert(name.to_owned(), values.to_vec());
            Ok(())
        })
        .map_err(|e| e.to_string())?;
    let mut count = 0;
    for key in file.names().filter(|key| key.starts_with(prefix)) {
        let name = key.strip_prefix(prefix).unwrap_or(key);
        let thinned = name.strip_suffix(".sums");
        let name = thinned.unwrap_or(name);
        // transformers 5 calls the head of GPT-NeoX so in the model, and `embed_out` in its files.
        let other = (name == "lm_head.weight").then_some("embed_out.weight");
        let values = got.get(name).or_else(|| got.get(other?));
        let values = values.ok_or_else(|| format!("no gradient of {name}"))?;
        let want = file.read_f64(key).map_err(|e| e.to_string())?;
        let distance = gradient_distance(values, &want, thinned.is_some())
            .map_err(|why| format!("gradient of {name}: {why}"))?;
        // A recorded gradient of all zeros has no relative distance: zero must come out.
        if distance.is_nan() || distance > tolerance {
            return Err(format!("gradient of {name}: off by {distance:e}, allowed {tolerance:e}"));
        }
        count += 1;
    }
    if count == 0 { Err("no gradient recorded".into()) } else { Ok(count) }
}

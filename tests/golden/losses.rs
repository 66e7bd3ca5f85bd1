//! Every loss and penalty: returned value, monitored NLL, gradients.

use std::path::Path;

use nepenthe::backend::cpu::{Cpu, Real};
use nepenthe::conformance::trajectory::{knobs, loss_name};
use nepenthe::io::safetensors::Weights;
use nepenthe::method;
use nepenthe::model::Train;
use nepenthe::ops::{Ops, TeacherForm};
use nepenthe::optim::UpdateRule;
use serde_json::Value;

use crate::engine::*;

/// Runs a case of kind `loss+gradient` in both precisions.
pub fn run(case: &Value, root: &Path) -> Check<String> {
    one::<f32>(case, root)?;
    let grads = one::<f64>(case, root)?;
    Ok(format!("value and {grads} gradients in f32 and f64"))
}

fn one<T: Real>(case: &Value, root: &Path) -> Check<usize>
where
    Cpu<T>: Ops<Act = Vec<T>>,
{
    let text = |e: nepenthe::Error| e.to_string();
    let path = root.join(case["id"].as_str().ok_or("no id")?);
    let folder = path.parent().ok_or("no folder")?;
    let name = path.file_name().and_then(|n| n.to_str()).ok_or("no name")?;
    let model_name = folder.file_name().ok_or("no model")?;
    // Case names are a loss of the reference and, for variants of it, a suffix.
    let name = if name.split('_').next() == Some("npo") { loss_name("npo") } else { name };
    let all = || method::FORGET.iter().chain(&method::PENALTIES);
    let objective = all()
        .filter(|o| name == o.name() || name.starts_with(&format!("{}_", o.name())))
        .max_by_key(|o| o.name().len())
        .ok_or_else(|| format!("{name}: unknown loss"))?;
    let ops = Cpu::<T>::new();
    let source = root.join("models").join(model_name);
    let rule = UpdateRule::Sgd { momentum: 0.0 };
    let keep = keeping(Some(Train::All), TeacherForm::Full, rule);
    let mut model = load::<T>(&source, "config.json", &keep)?;
    let reference = folder.join("ref_model.safetensors");
    if reference.is_file() {
        model.load_teacher(&ops, &Weights::open_file(&reference).map_err(text)?).map_err(text)?;
    }
    let base_file = folder.join("base_model.safetensors");
    let mut base = None;
    if base_file.is_file() {
        let weights = Weights::open_file(&base_file).map_err(text)?;
        let keep = keeping(None, TeacherForm::None, rule);
        let loaded = nepenthe::model::Model::load(&ops, model.config.clone(), &weights, &keep);
        base = Some(loaded.map_err(text)?);
    }
    let batch = Weights::open_file(&folder.join("batch.safetensors")).map_err(text)?;
    let batches = batches(&batch, "", true)?;
    let mut passes = passes(&model, &batches, true)?;
    let knobs = knobs(&case["args"]);
    let sums = passes
        .sweep(
            &ops,
            &mut model,
            base.as_mut(),
            &knobs,
            nepenthe::method::passes::Task::new(*objective, &batches, Some(1.0)),
        )
        .map_err(text)?;
    let p = precision::<T>();
    let tolerance = number(case, &["tolerance", "loss relative", p])?;
    near(&format!("loss in {p}"), sums.value, number(case, &["loss_f64"])?, tolerance, 0.0)?;
    if let Ok(want) = number(case, &["monitored_nll_f64"]) {
        near(&format!("monitored nll in {p}"), sums.nll, want, tolerance, 0.0)?;
    }
    let file = Weights::open_file(&path.with_extension("safetensors")).map_err(text)?;
    let tolerance = number(case, &["tolerance", "gradient, relative L2 per tensor", p])?;
    compare_grads(&model, &file, "grad.", tolerance).map_err(|e| format!("{p}: {e}"))
}

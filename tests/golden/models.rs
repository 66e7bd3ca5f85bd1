//! Logits, NLL and gradients of recorded models.

use std::path::Path;

use nepenthe::backend::cpu::{Cpu, Real};
use nepenthe::io::safetensors::Weights;
use nepenthe::method::passes::Task;
use nepenthe::method::{self, Knobs};
use nepenthe::model::Train;
use nepenthe::model::layout::is_frozen;
use nepenthe::ops::{
    Compute, LinearArgs, LinearShape, Memory, Ops, PackData, Role, State, TeacherForm, Transfer,
};
use nepenthe::optim::UpdateRule;
use serde_json::Value;

use crate::engine::*;
use crate::thinned::Logits;

/// Runs a case of kind `forward` or `forward+gradient` in both precisions, with both configuration files.
pub fn run(case: &Value, root: &Path) -> Check<String> {
    let folder = root.join(case["id"].as_str().ok_or("no id")?);
    freeze_rule(&folder)?;
    for config in ["config.json", "config_legacy.json"] {
        if folder.join(config).is_file() {
            forward::<f32>(case, &folder, config)?;
            forward::<f64>(case, &folder, config)?;
        }
    }
    let mut grads = 0;
    if folder.join("grad_nll.safetensors").is_file() {
        gradient::<f32>(case, &folder)?;
        grads = gradient::<f64>(case, &folder)?;
    }
    Ok(format!("logits in f32 and f64, {grads} gradients"))
}

/// The recorded freeze rule against ours.
fn freeze_rule(folder: &Path) -> Check {
    let path = folder.join("freeze_rule.json");
    if !path.is_file() {
        return Ok(());
    }
    let rule = json(&path)?;
    for record in rule["parameters"].as_array().ok_or("freeze rule: no list of parameters")? {
        let name = record["name"].as_str().ok_or("freeze rule: no name")?;
        let trained = record["trainable"].as_bool().ok_or("freeze rule: no flag")?;
        if trained == is_frozen(name) {
            let does = if trained { "trains" } else { "freezes" };
            return Err(format!("{name}: the reference {does} it"));
        }
    }
    Ok(())
}

fn forward<T: Real>(case: &Value, folder: &Path, config: &str) -> Check
where
    Cpu<T>: Ops,
    Cpu<T>: Ops + Memory<Act = Vec<T>>,
{
    let ops = Cpu::<T>::new();
    let train = keeping(None, TeacherForm::None, UpdateRule::Sgd { momentum: 0.0 });
    let mut model = load::<T>(folder, config, &train)?;
    let file = Weights::open_file(&folder.join("logits.safetensors")).map_err(|e| e.to_string())?;
    let unmasked = batches(&file, "", false)?;
    let p = precision::<T>();
    let arithmetic = format!("{p} arithmetic");
    let key = "logits max abs difference to logits_f64";
    let tolerance = number(case, &["tolerance", key, &arithmetic])?;
    let v = model.config.vocab;
    let tokens = (0..unmasked[0].rows()).map(|b| unmasked[0].row(b).len()).sum();
    let mut recorded = Logits::read(&file, tokens, v)?;
    let mut passes = passes(&model, &unmasked, false)?;
    for b in 0..unmasked[0].rows() {
        let ids = unmasked[0].row(b);
        let mut data = PackData::default();
        data.push(ids, |_| 0.0);
        let mut pack = ops.pack(ids.len()).map_err(|e| e.to_string())?;
        ops.load_pack(&mut pack, &data);
        model.forward(&ops, &pack, ids.len(), Role::Evaluated, &mut passes.ws);
        let mut z = ops.act(ids.len() * v).map_err(|e| e.to_string())?;
        let mut scratch =
            model.block_scratch(&ops, model.layout.head).map_err(|e| e.to_string())?;
        let w = ops.view(&model.params[model.layout.head], Role::Evaluated, &mut scratch);
        let mut bias_scratch = ops.act(0).map_err(|e| e.to_string())?;
        let bias = model.layout.head_bias;
        let bias = bias.map(|b| ops.view(&model.params[b], Role::Evaluated, &mut bias_scratch));
        let shape = LinearShape { n: ids.len(), o: v, i: model.config.width };
        ops.linear(LinearArgs { shape, x: &passes.ws.h, w, bias }, None, &mut z);
        let mut logits = vec![0.0; ids.len() * v];
        ops.read_act(&z, &mut logits);
        if let Some(cap) = model.config.logit_cap {
            let capped = |z: f32| (cap * (f64::from(z) / cap).tanh()) as f32;
            logits.iter_mut().for_each(|z| *z = capped(*z));
        }
        // Logits reach the host in f32, whatever the arithmetic.
        for logits in logits.chunks(v) {
            recorded.compare(&format!("{config}: {p}"), logits, tolerance)?;
        }
    }
    recorded.finish()?;
    let masked = batches(&file, "", true)?;
    let nll = method::find(&method::FORGET, "loss", "nll").map_err(|e| e.to_string())?;
    let sums = passes
        .sweep(&ops, &mut model, None, &Knobs::default(), Task::new(nll, &masked, None))
        .map_err(|e| e.to_string())?;
    let want = file.read_f64("nll_f64").map_err(|e| e.to_string())?[0];
    near(
        &format!("{config}: nll in {p}"),
        sums.nll,
        want,
        0.0,
        number(case, &["tolerance", "nll abs", p])?,
    )
}

fn gradient<T: Real>(case: &Value, folder: &Path) -> Check<usize>
where
    Cpu<T>: Ops<Act = Vec<T>>,
{
    let ops = Cpu::<T>::new();
    let rule = UpdateRule::Sgd { momentum: 0.0 };
    let keep = keeping(Some(Train::All), TeacherForm::None, rule);
    let mut model = load::<T>(folder, "config.json", &keep)?;
    let file = Weights::open_file(&folder.join("logits.safetensors")).map_err(|e| e.to_string())?;
    let batches = batches(&file, "", true)?;
    let mut passes = passes(&model, &batches, true)?;
    let nll = method::find(&method::FORGET, "loss", "nll").map_err(|e| e.to_string())?;
    passes
        .sweep(&ops, &mut model, None, &Knobs::default(), Task::new(nll, &batches, Some(1.0)))
        .map_err(|e| e.to_string())?;
    let grads =
        Weights::open_file(&folder.join("grad_nll.safetensors")).map_err(|e| e.to_string())?;
    let key = "gradient, relative L2 per tensor";
    compare_grads(&model, &grads, "", number(case, &["tolerance", key, precision::<T>()])?)
}

//! Resuming: the identity of a run, its checkpoints, and a log that goes on where they end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::recipe::Recipe;
use super::watch::Entry;
use crate::data::Corpus;
use crate::error::{Error, Result};
use crate::io::checkpoint::{Checkpoint, Writer};
use crate::method::{MeanTeacher, StepReport};
use crate::model::Model;
use crate::ops::Ops;

/// Returns what a checkpoint must share with the run that resumes from it: the data, and all of the recipe but its logging,
/// the activations saved, and its length, unless the learning rate follows from that.
pub(super) fn identity(
    recipe: &Recipe,
    forget: &Corpus,
    retain: Option<&Corpus>,
    alternate: Option<&Corpus>,
) -> Result<Value> {
    let decays = recipe.optim.schedule.decays();
    let mut recipe = serde_json::to_value(recipe)
        .map_err(|e| Error::config(format!("recipe: {e}")).with_source(e))?;
    if let Some(sections) = recipe.as_object_mut() {
        sections.remove("eval");
        sections.remove("report");
    }
    if let Some(run) = recipe["run"].as_object_mut() {
        for key in ["epochs", "checkpoint_every", "keep_checkpoints", "save"] {
            run.remove(key);
        }
        if !decays {
            run.remove("steps");
        }
    }
    let hash = |corpus: &Corpus| format!("{:032x}", corpus.hash());
    let (retain, alternate) = (retain.map(hash), alternate.map(hash));
    Ok(json!({"recipe": recipe, "forget": hash(forget), "retain": retain, "alternate": alternate}))
}

/// Writes a checkpoint under `root`: all state, the data it belongs to, and the evaluations so far.
pub(super) fn save<O: Ops>(
    ops: &O,
    state: &MeanTeacher<O>,
    entries: &[Entry],
    root: &Path,
    identity: &Value,
    keep: usize,
) -> Result<PathBuf> {
    let mut writer = Writer::create(root, state.step)?;
    for (b, block) in state.model.layout.blocks.iter().enumerate().filter(|(_, b)| b.trainable) {
        ops.save_param(&state.model.params[b], &mut |name, bytes| {
            writer.blob(&format!("{}.{name}", block.name), bytes)
        })?;
    }
    let meta = json!({
        "step": state.step,
        "identity": identity,
        "retain_weight": state.weights.get(1),
        "evaluations": entries,
    });
    writer.finish(meta, keep)
}

/// Values that recipes had before there were settings for them.
const IMPLIED: [(&str, &str, &str); 2] =
    [("optim", "schedule", "\"paper\""), ("optim", "lr_min", "0.0")];

/// Checks that a checkpoint is of the run that `identity` describes.
///
/// Errors: [`crate::Kind::Config`] with every setting that differs and both its values.
pub(super) fn check(checkpoint: &Checkpoint, identity: &Value) -> Result<()> {
    let mut stored = checkpoint.meta()["identity"].clone();
    for (section, key, value) in IMPLIED {
        let section = &mut stored["recipe"][section];
        if section.is_object() && section[key].is_null() {
            section[key] = serde_json::from_str(value).unwrap_or_default();
        }
    }
    if stored == *identity {
        return Ok(());
    }
    let mut differs = Vec::new();
    let (there, here) = (flat(&stored["recipe"]), flat(&identity["recipe"]));
    let keys: BTreeSet<&String> = there.keys().chain(here.keys()).collect();
    for key in keys {
        let show = |value: Option<&Value>| match value {
            None | Some(Value::Null) => "not set".to_owned(),
            Some(Value::String(text)) if text.is_empty() => "empty".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let (old, new) = (there.get(key), here.get(key));
        if old != new {
            differs.push(format!("{key} is {} there, {} here", show(old), show(new)));
        }
    }
    let mut parts = Vec::new();
    if !differs.is_empty() {
        parts.push(format!("its recipe differs: {}", differs.join("; ")));
    }
    for (key, what) in [
        ("forget", "forget set (data.forget)"),
        ("retain", "retain set (data.retain)"),
        ("alternate", "alternatives (data.alternate)"),
        ("rule", "update rule"),
    ] {
        if stored[key] != identity[key] {
            parts.push(format!("its {what} differs"));
        }
    }
    if parts.is_empty() {
        parts.push("its settings differ".to_owned());
    }
    Err(Error::config(format!(
        "{}: is of another run: {}",
        checkpoint.dir().display(),
        parts.join("; ")
    ))
    .hint(
        "--resume with nothing but --out goes on with the recipe of the run; or name another --out",
    ))
}

/// Returns the settings of a recipe by their dotted keys.
fn flat(recipe: &Value) -> BTreeMap<String, Value> {
    let mut settings = BTreeMap::new();
    for (name, value) in recipe.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(section) => {
                settings.extend(section.iter().map(|(key, v)| (format!("{name}.{key}"), v.clone())))
            }
            None => drop(settings.insert(name.clone(), value.clone())),
        }
    }
    settings
}

/// Puts the state of a checkpoint that [`check`] passed back and returns its evaluations.
///
/// Errors: [`crate::Kind::Model`] where its parts do not fit.
pub(super) fn restore<O: Ops>(
    ops: &O,
    state: &mut MeanTeacher<O>,
    checkpoint: &Checkpoint,
) -> Result<Vec<Entry>> {
    let Model { layout, params, .. } = &mut state.model;
    for (block, param) in layout.blocks.iter().zip(params).filter(|(block, _)| block.trainable) {
        ops.load_param(param, &mut |name, bytes| {
            let blob = checkpoint.blob(&format!("{}.{name}", block.name))?;
            if blob.len() != bytes.len() {
                return Err(Error::model(format!(
                    "{}: {}.{name}: {} bytes, wanted {}",
                    checkpoint.dir().display(),
                    block.name,
                    blob.len(),
                    bytes.len()
                )));
            }
            bytes.copy_from_slice(blob);
            Ok(())
        })?;
    }
    state.step = checkpoint.step();
    // Checkpoints from before there were dual variables have a weight that never moves.
    if let (Some(own), Some(stored)) =
        (state.weights.get_mut(1), checkpoint.meta()["retain_weight"].as_f64())
    {
        *own = stored;
    }
    serde_json::from_value(checkpoint.meta()["evaluations"].clone()).map_err(|e| {
        Error::model(format!("{}: evaluations: {e}", checkpoint.dir().display())).with_source(e)
    })
}

/// Reads the lines of a log that hold JSON.
pub(super) fn read_log(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// metrics.jsonl, a line a step.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log and cuts off the lines from `step` on, which a resumed run writes again.
    pub(super) fn open(path: &Path, step: u64) -> Result<Self> {
        let io = |e: std::io::Error| Error::io("open log", path, e);
        let mut kept = 0;
        if step > 0 && path.is_file() {
            let mut reader = BufReader::new(File::open(path).map_err(io)?);
            let mut line = String::new();
            while reader.read_line(&mut line).map_err(io)? > 0 {
                let value: Value = serde_json::from_str(&line).unwrap_or_default();
                if value["global_step"].as_u64().is_none_or(|s| s >= step) {
                    break;
                }
                kept += line.len() as u64;
                line.clear();
            }
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(path).map_err(io)?;
        file.set_len(kept).map_err(io)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds the line of a step.
    pub(super) fn write(&mut self, report: &StepReport, seconds: f64) -> Result<()> {
        let mut value = json!(report);
        value["tokens_per_s"] = json!(report.tokens as f64 / seconds);
        let line = format!("{value}\n");
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }

    /// Puts all lines on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("flush", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_names_what_differs_and_knows_the_schedule_of_runs_before_there_were_several() {
        let of = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
            let recipe = Recipe::assemble(None, None, &sets).unwrap();
            json!({"recipe": recipe, "forget": "00", "retain": null, "alternate": null})
        };
        let paper = ["optim.optimizer=adamw", "optim.schedule=paper"];
        let mut old = of(&paper);
        for key in ["schedule", "lr_min"] {
            old["recipe"]["optim"].as_object_mut().unwrap().remove(key);
        }
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), 3).unwrap();
        writer.blob("x", &[1]).unwrap();
        writer.finish(json!({"identity": old}), 1).unwrap();
        let checkpoint = Checkpoint::latest(dir.path()).unwrap().unwrap();
        check(&checkpoint, &of(&paper)).unwrap();
        let error = check(&checkpoint, &of(&["optim.optimizer=adamw", "seed=2"])).unwrap_err();
        let wanted = "its recipe differs: optim.schedule is paper there, constant here; seed is 0 there, 2 here";
        assert!(error.message().ends_with(wanted), "{error}");
        let mut other = of(&paper);
        other["forget"] = json!("01");
        let error = check(&checkpoint, &other).unwrap_err();
        assert!(error.message().ends_with("its forget set (data.forget) differs"), "{error}");
    }
}

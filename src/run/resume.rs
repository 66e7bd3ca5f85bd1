//! What makes a run resumable: its identity, its checkpoints, and a log that goes on where they end.

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

/// What a checkpoint must share with the run that resumes from it: all of the recipe but its length, its logging
/// and what it keeps of layers, and the data.
pub(super) fn identity(
    recipe: &Recipe,
    forget: &Corpus,
    retain: Option<&Corpus>,
    alternate: Option<&Corpus>,
) -> Result<Value> {
    let mut recipe = serde_json::to_value(recipe)
        .map_err(|e| Error::config(format!("recipe: {e}")).with_source(e))?;
    if let Some(sections) = recipe.as_object_mut() {
        sections.remove("eval");
        sections.remove("report");
    }
    if let Some(run) = recipe["run"].as_object_mut() {
        for key in ["steps", "checkpoint_every", "keep_checkpoints", "save"] {
            run.remove(key);
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
        "retain_weight": state.retain_weight,
        "evaluations": entries,
    });
    writer.finish(meta, keep)
}

/// Puts the state of a checkpoint back and returns its evaluations.
///
/// Errors: [`crate::Kind::Config`] where it is of another run, [`crate::Kind::Model`] where its parts do not fit.
pub(super) fn restore<O: Ops>(
    ops: &O,
    state: &mut MeanTeacher<O>,
    checkpoint: &Checkpoint,
    identity: &Value,
) -> Result<Vec<Entry>> {
    let stored = &checkpoint.meta()["identity"];
    if stored != identity {
        let differs = identity.as_object().into_iter().flatten().find(|(k, v)| stored[*k] != **v);
        let what = differs.map_or("settings", |(key, _)| key.as_str());
        return Err(Error::config(format!(
            "{}: is of another run: its {what} differs",
            checkpoint.dir().display()
        ))
        .hint("resume with the model, data and recipe of the first start, or name another --out"));
    }
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
    let weight = checkpoint.meta()["retain_weight"].as_f64();
    state.retain_weight = weight.unwrap_or(state.settings.retain_weight);
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

//! Writing a trained model the way its source was written.

mod rounding;

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::Folder;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::safetensors::{Entry, INDEX, Weights, write_f32_as, write_file};
use crate::model::Model;
use crate::model::layout::Part;
use crate::model::params::read_part;
use crate::ops::format::noise_seed;
use crate::ops::{Ops, Role};

pub use rounding::{Kept, Save, SaveDtype, SaveRounding};

/// The file that says how a model was unlearned; it marks the folders that were written here.
pub const RECORD: &str = "unlearning.json";

/// The file that describes a model.
const CONFIG: &str = "config.json";

/// Files of a model folder that are copied where they exist, beside licences.
const COMPANIONS: [&str; 11] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Keys of config.json that say which dtype a model is loaded in, the older one first.
const DTYPE_KEYS: [&str; 2] = ["torch_dtype", "dtype"];

/// Refuses a folder `out` that a model must not replace: a file, a folder of something else, the source itself.
///
/// Replacing removes what was there, so only what was written here before, or is empty, may be replaced.
///
/// Errors: [`crate::Kind::Config`]; [`crate::Kind::Io`] if the folder cannot be listed.
pub fn check_target(source: &Path, out: &Path) -> Result<()> {
    let place = out.display();
    let refused = |what: &str| {
        Err(Error::config(format!("{place}: {what}")).hint("give the name of a new folder"))
    };
    let Ok(found) = out.symlink_metadata() else { return Ok(()) };
    if found.is_symlink() {
        return refused("is a link, wanted a folder to write the model to");
    }
    if !found.is_dir() {
        return refused("is a file, wanted a folder to write the model to");
    }
    if source.canonicalize().is_ok_and(|from| out.canonicalize().is_ok_and(|to| from == to)) {
        return refused("is the model to start from, so it is not replaced");
    }
    let mut items = std::fs::read_dir(out).map_err(|e| Error::io("list", out, e))?;
    if out.join(RECORD).is_file() || items.next().is_none() {
        return Ok(());
    }
    refused(&format!("the folder has files but no {RECORD}, so it is not replaced"))
}

/// Returns the names of the files that are copied with the model, sorted.
fn companions(source: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for item in std::fs::read_dir(source).map_err(|e| Error::io("list", source, e))? {
        let item = item.map_err(|e| Error::io("list", source, e))?;
        let name = item.file_name().to_string_lossy().into_owned();
        let wanted = COMPANIONS.contains(&name.as_str()) || name.starts_with("LICENSE");
        // Follows links, since the cache of huggingface_hub consists of them.
        if wanted && item.path().is_file() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Returns the index of `source` for the tensors of `weights` and another total size; whatever else it says is kept.
fn index(source: &Path, weights: &Weights, total: usize) -> Result<Value> {
    let mut index = json(&source.join(INDEX))?;
    if let Some(map) = index["weight_map"].as_object_mut() {
        map.retain(|name, _| weights.info(name).is_some());
    }
    if !index["metadata"].is_object() {
        index["metadata"] = serde_json::json!({});
    }
    index["metadata"]["total_size"] = total.into();
    Ok(index)
}

/// Returns config.json for a folder written from `source`: its very bytes, unless something in it must change.
fn config(source: &Folder, dtype: SaveDtype) -> Result<Vec<u8>> {
    let path = source.dir.join(CONFIG);
    if source.edits.is_empty() && dtype == SaveDtype::Source {
        return read(&path);
    }
    let mut config = json(&path)?;
    if dtype == SaveDtype::F32 {
        // A config that does not name a dtype leaves it to the files.
        for key in DTYPE_KEYS {
            if let Some(dtype) = config.get_mut(key) {
                *dtype = "float32".into();
            }
        }
    }
    if let Some(config) = config.as_object_mut() {
        for (key, value) in &source.edits {
            match value {
                Some(value) => config.insert((*key).to_owned(), value.clone()),
                None => config.shift_remove(*key),
            };
        }
    }
    Ok(pretty(&config).into_bytes())
}

/// Writes the student as the model folder `out`, with the names, layouts and shard map of `source`.
///
/// Numbers are stored as `save` has it. Frozen tensors, and those the model has no use for, are copied from the source,
/// but for a second copy of a tied head. config.json is copied, but for what [`Folder::notices`] names. `record` goes into `unlearning.json`, with `change_saved`, what rounding left of the change. The folder appears whole
/// or not at all, in the place of an older one that was written here.
///
/// Errors: those of [`check_target`] and of reading `source`; [`crate::Kind::Io`] if the file system refuses, and then
/// the older folder stays.
pub fn write_model<O: Ops>(
    ops: &O,
    model: &Model<O>,
    source: &Path,
    out: &Path,
    save: Save,
    record: &Value,
) -> Result<Kept> {
    let source = &Folder::open(source)?;
    let stored = &source.weights;
    let mut places: HashMap<&str, (usize, usize, &Part)> = HashMap::new();
    for (b, block) in model.layout.blocks.iter().enumerate().filter(|(_, block)| block.trainable) {
        let mut start = 0;
        for part in &block.parts {
            places.insert(part.name_in(stored), (b, start, part));
            start += part.len();
        }
    }
    let mut values: Vec<f32> = Vec::new();
    let mut loaded = usize::MAX;
    let mut change = |from: &Weights, entry: &Entry, out: &mut Vec<f32>| {
        let Some(&(b, start, part)) = places.get(entry.name.as_str()) else { return Ok(None) };
        let block = &model.layout.blocks[b];
        if loaded != b {
            values.resize(block.len(), 0.0);
            ops.read_param(&model.params[b], Role::Evaluated, &mut values);
            loaded = b;
        }
        // Before they go into the file's order: noise belongs to the places of the ops.
        let place = (noise_seed(&block.name, save.seed), start);
        let after = &mut values[start..start + part.len()];
        let kept = save.round(entry.dtype, place, after, |before| read_part(from, part, before))?;
        out.resize(part.len(), 0.0);
        part.order.write(&part.shape, after, out);
        Ok(Some(kept))
    };
    write_changed(source, out, save, &mut change, &mut || record.clone())
}

/// Puts the new numbers of a tensor into an empty vector, rounded to the entry's dtype, and tells what that left of the
/// change; `None` leaves the tensor as it is.
pub(crate) type Change<'a> =
    dyn FnMut(&Weights, &Entry, &mut Vec<f32>) -> Result<Option<Kept>> + 'a;

/// Writes the model folder `out` as [`write_model`] does, with the tensors of `source` changed by `change`; `record` is
/// asked for when all of them are written.
pub(crate) fn write_changed(
    source: &Folder,
    out: &Path,
    save: Save,
    change: &mut Change<'_>,
    record: &mut dyn FnMut() -> Value,
) -> Result<Kept> {
    check_target(&source.dir, out)?;
    let weights = &source.weights;
    let companions = companions(&source.dir)?;
    let mut kept = Kept::default();
    atomic::replace_dir(out, |dir| {
        let mut values: Vec<f32> = Vec::new();
        let mut total = 0;
        // A shard may have held nothing but a tensor that is left out.
        for (file, names, metadata) in weights.shards().filter(|(_, names, _)| !names.is_empty()) {
            let entries = names
                .iter()
                .map(|name| {
                    let info = weights.info(name);
                    let info = info.ok_or_else(|| Error::model(format!("{name}: missing")))?;
                    let dtype = save.dtype(info.dtype);
                    Ok(Entry { name: name.clone(), dtype, shape: info.shape.clone() })
                })
                .collect::<Result<Vec<_>>>()?;
            total += entries.iter().map(Entry::bytes).sum::<usize>();
            let path = dir.join(file);
            let mut metadata = metadata.clone();
            // transformers refuses files that do not say which framework's layout they have.
            metadata.entry("format".into()).or_insert_with(|| "pt".into());
            write_file(&path, &entries, &metadata, &mut |entry, to| {
                let io = |e: std::io::Error| Error::io("write", &path, e);
                values.clear();
                if let Some(one) = change(weights, entry, &mut values)? {
                    kept.add(one);
                } else if weights.info(&entry.name).is_some_and(|own| own.dtype == entry.dtype) {
                    return to.write_all(weights.bytes(&entry.name)?).map_err(io);
                } else {
                    values.resize(entry.shape.iter().product(), 0.0);
                    weights.read_f32(&entry.name, &mut values)?;
                }
                write_f32_as(entry.dtype, &values, to).map_err(io)
            })?;
        }
        if source.dir.join(INDEX).is_file() {
            let index = index(&source.dir, weights, total)?;
            write(&dir.join(INDEX), pretty(&index).as_bytes())?;
        }
        for name in &companions {
            // Through bytes and not fs::copy, which would carry over a read-only mode.
            let bytes = match name.as_str() {
                CONFIG => config(source, save.dtype)?,
                _ => read(&source.dir.join(name))?,
            };
            write(&dir.join(name), &bytes)?;
        }
        let mut record = record();
        record["change_saved"] = kept.share().into();
        write(&dir.join(RECORD), pretty(&record).as_bytes())
    })?;
    Ok(kept)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io("read", path, e))
}

fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&read(path)?).map_err(|e| {
        Error::model(format!("{}: not valid JSON: {e}", path.display())).with_source(e)
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::io("write", path, e))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

//! Writing a trained model the way its source was written.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::safetensors::{Entry, INDEX, Weights, write_f32_as, write_file};
use crate::model::Model;
use crate::ops::{Ops, Role};

/// Files of a model folder that are copied byte for byte where they exist.
const COMPANIONS: [&str; 13] = [
    "config.json",
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
    "LICENSE",
    "LICENSE.txt",
];

/// Writes the student as the model folder `out`, with the names, dtypes and shard map of `source`.
///
/// Frozen tensors, and those the model has no use for, are copied from the source byte for byte; `record` goes into
/// `unlearning.json`. The folder appears whole or not at all.
pub fn write_model<O: Ops>(
    ops: &O,
    model: &Model<O>,
    source: &Path,
    out: &Path,
    record: &Value,
) -> Result<()> {
    let weights = Weights::open(source)?;
    let mut places: HashMap<&str, (usize, usize, usize)> = HashMap::new();
    for (b, block) in model.layout.blocks.iter().enumerate().filter(|(_, block)| block.trainable) {
        let mut start = 0;
        for part in &block.parts {
            places.insert(&part.name, (b, start, start + part.len()));
            start += part.len();
        }
    }
    atomic::replace_dir(out, |dir| {
        let mut values: Vec<f32> = Vec::new();
        let mut loaded = usize::MAX;
        let mut map = BTreeMap::new();
        let mut total = 0;
        for (file, names, metadata) in weights.shards() {
            let entries = names
                .iter()
                .map(|name| {
                    let info = weights.info(name);
                    let info = info.ok_or_else(|| Error::model(format!("{name}: missing")))?;
                    map.insert(name.clone(), file.to_owned());
                    let (dtype, shape) = (info.dtype, info.shape.clone());
                    Ok(Entry { name: name.clone(), dtype, shape })
                })
                .collect::<Result<Vec<_>>>()?;
            total += entries.iter().map(Entry::bytes).sum::<usize>();
            let path = dir.join(file);
            write_file(&path, &entries, metadata, &mut |entry, to| {
                let io = |e: std::io::Error| Error::io("write", &path, &e);
                let Some(&(b, start, end)) = places.get(entry.name.as_str()) else {
                    return to.write_all(weights.bytes(&entry.name)?).map_err(io);
                };
                if loaded != b {
                    values.resize(model.layout.blocks[b].len(), 0.0);
                    ops.read_param(&model.params[b], Role::Evaluated, &mut values);
                    loaded = b;
                }
                write_f32_as(entry.dtype, &values[start..end], to).map_err(io)
            })?;
        }
        if source.join(INDEX).is_file() {
            let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
            write(&dir.join(INDEX), pretty(&index).as_bytes())?;
        }
        for name in COMPANIONS {
            let from = source.join(name);
            if from.is_file() {
                let bytes = std::fs::read(&from).map_err(|e| Error::io("read", &from, &e))?;
                write(&dir.join(name), &bytes)?;
            }
        }
        write(&dir.join("unlearning.json"), pretty(record).as_bytes())
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::io("write", path, &e))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

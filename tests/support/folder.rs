//! Model folders: a recorded one with corpora beside it, weights written anew with changes, and loaded.

use std::path::{Path, PathBuf};

use nepenthe::io::safetensors::{Dtype, Entry, Weights, write_f32_as, write_file};
use nepenthe::method::passes::Passes;
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig, Train};
use nepenthe::ops::{Ops, StateMode, TeacherForm};
use nepenthe::optim::UpdateRule;
use serde_json::Value;

/// Copies a recorded model with a tokenizer to `dir`/model, and returns that folder.
pub fn recorded(dir: &Path) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data");
    let model = dir.join("model");
    std::fs::create_dir(&model).unwrap();
    for (from, name) in [
        ("models/llama-gqa", "config.json"),
        ("models/llama-gqa", "model.safetensors"),
        ("tokenizer/bytelevel", "tokenizer.json"),
        ("tokenizer/bytelevel", "tokenizer_config.json"),
    ] {
        std::fs::copy(golden.join(from).join(name), model.join(name)).unwrap();
    }
    model
}

/// Writes `dir`/`name`.jsonl: `documents` rows of token ids of that model, of `shortest` tokens and one more each, which
/// `step` makes others than those of another step.
pub fn corpus(dir: &Path, name: &str, documents: usize, shortest: usize, step: usize) {
    let row = |d: usize| {
        let ids = (0..shortest + d).map(|t| ((t * step + d * 13) % 500 + 2).to_string());
        format!("{{\"input_ids\": [{}]}}\n", ids.collect::<Vec<_>>().join(","))
    };
    let text: String = (0..documents).map(row).collect();
    std::fs::write(dir.join(format!("{name}.jsonl")), text).unwrap();
}

/// Writes the weights of the folder `from`, of one shard, as the file `to`: in `dtype` or their own, each number of a
/// tensor made anew from its index and value.
pub fn rewrite(from: &Path, to: &Path, dtype: Option<Dtype>, change: impl Fn(usize, f32) -> f32) {
    let weights = Weights::open(from).unwrap();
    let (_, names, metadata) = weights.shards().next().unwrap();
    let entry = |name: &String| {
        let info = weights.info(name).unwrap();
        let dtype = dtype.unwrap_or(info.dtype);
        Entry { name: name.clone(), dtype, shape: info.shape.clone() }
    };
    let entries: Vec<Entry> = names.iter().map(entry).collect();
    write_file(to, &entries, metadata, &mut |entry, out| {
        let mut values = vec![0.0; weights.info(&entry.name).unwrap().len()];
        weights.read_f32(&entry.name, &mut values)?;
        values.iter_mut().enumerate().for_each(|(i, x)| *x = change(i, *x));
        write_f32_as(entry.dtype, &values, out).unwrap();
        Ok(())
    })
    .unwrap();
}

/// Writes the model `from` as the folder `to`, all tensors in `dtype` and each number changed.
pub fn convert(from: &Path, to: &Path, dtype: Dtype, change: impl Fn(f32) -> f32) {
    std::fs::create_dir(to).unwrap();
    let mut config = json_of(&from.join("config.json"));
    config["dtype"] = if dtype == Dtype::F32 { "float32" } else { "bfloat16" }.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    rewrite(from, &to.join("model.safetensors"), Some(dtype), |_, x| change(x));
}

/// Reads a file of JSON.
pub fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The log-probabilities of all tokens of some short documents, as bits.
pub fn figures<O: Ops>(ops: &O, model: &mut Model<O>) -> Vec<u64> {
    let documents: Vec<Vec<u32>> =
        (0..6).map(|d| (0..20 + d).map(|t| (t * 7 + d * 13) % 500 + 2).collect()).collect();
    let documents: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    let mut passes = Passes::new(ops, model, 512, false).unwrap();
    let scores = passes.score(ops, model, &documents).unwrap();
    scores.concat().into_iter().map(f64::to_bits).collect()
}

/// Loads the model of a folder.
pub fn load<O: Ops>(ops: &O, folder: &Path, keep: &Keeping) -> Model<O> {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = ModelConfig::parse(&config).unwrap();
    Model::load(ops, config, &Weights::open(folder).unwrap(), keep).unwrap()
}

/// Storage in `mode` of a model that is trained whole.
pub fn trained(mode: StateMode) -> Keeping {
    Keeping {
        train: Some(Train::All),
        mode,
        teacher: TeacherForm::Drift,
        rule: UpdateRule::Sgd { momentum: 0.9 },
        seed: 5,
    }
}

//! Models of random weights.

use std::collections::BTreeMap;
use std::path::Path;

use nepenthe::io::safetensors::{Dtype as Stored, Entry, Weights, write_file};
use nepenthe::model::layout::Layout;
use nepenthe::model::{ModelConfig, Train};

use super::Random;

/// Writes the random weights of `seed` as `folder`/model-`seed`.safetensors: gains and biases of unit size, matrices that keep
/// the size of rows.
pub fn weights(config: &ModelConfig, seed: u64, folder: &Path) -> Weights {
    let path = folder.join(format!("model-{seed}.safetensors"));
    write(config, seed, &path);
    Weights::open_file(&path).unwrap()
}

/// Writes a model folder of random weights with the configuration of a recorded model, whose own weights the package may
/// lack.
pub fn random(recorded: &str, seed: u64, folder: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data/models");
    let text = std::fs::read_to_string(golden.join(recorded).join("config.json")).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), &text).unwrap();
    write(&ModelConfig::parse(&text).unwrap(), seed, &folder.join("model.safetensors"));
}

/// Writes the random weights of `seed` as the file `path`.
pub fn write(config: &ModelConfig, seed: u64, path: &Path) {
    let mut random = Random::new(seed);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for block in Layout::new(config, Train::All).blocks {
        for part in block.parts {
            let width = if part.shape.len() == 2 { part.shape[1] as f64 } else { 1.0 };
            let scale = if part.name.contains("embed") { 1.0 } else { 1.5 / width.sqrt() };
            let values = random.vec(part.len());
            let bytes = values.iter().flat_map(|x| ((x * scale) as f32).to_le_bytes()).collect();
            tensors.insert(part.name, (part.shape, bytes));
        }
    }
    let entry = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<u8>))| Entry {
        name: name.clone(),
        dtype: Stored::F32,
        shape: shape.clone(),
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    write_file(path, &entries, &BTreeMap::new(), &mut |entry, out| {
        out.write_all(&tensors[&entry.name].1).unwrap();
        Ok(())
    })
    .unwrap();
}

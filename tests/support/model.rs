//! Models of random weights.

use std::collections::BTreeMap;

use nepenthe::io::safetensors::{Dtype as Stored, Entry, Weights, write_file};
use nepenthe::model::layout::Layout;
use nepenthe::model::{ModelConfig, Train};

use super::Random;

/// Random weights in a file of their own: gains and biases of unit size, matrices that keep the size of rows.
pub fn weights(config: &ModelConfig, name: &str, folder: &std::path::Path) -> Weights {
    let mut random = Random::new(name);
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
    let path = folder.join(name);
    let entry = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<u8>))| Entry {
        name: name.clone(),
        dtype: Stored::F32,
        shape: shape.clone(),
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    write_file(&path, &entries, &BTreeMap::new(), &mut |entry, out| {
        out.write_all(&tensors[&entry.name].1).unwrap();
        Ok(())
    })
    .unwrap();
    Weights::open_file(&path).unwrap()
}

//! Models of random weights.

use std::collections::BTreeMap;

use nepenthe::io::safetensors::{Dtype as Stored, Entry, Weights, write_file};
use nepenthe::model::layout::Layout;
use nepenthe::model::{ModelConfig, Train};

use super::Random;

/// Writes random weights to `path` and opens them: norm weights and biases of unit size, matrices that keep the size of
/// hidden states.
pub fn weights(config: &ModelConfig, seed: u64, path: &std::path::Path) -> Weights {
    let mut random = Random::new(seed);
    weights_from(config, &mut |len| random.vec(len), path)
}

/// The same from numbers of magnitude 1/4 to 1 that `draw` makes.
pub fn weights_from(
    config: &ModelConfig,
    draw: &mut dyn FnMut(usize) -> Vec<f64>,
    path: &std::path::Path,
) -> Weights {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for block in Layout::new(config, Train::All).blocks {
        for part in block.parts {
            let width = if part.shape.len() == 2 { part.shape[1] as f64 } else { 1.0 };
            let scale = if part.name.contains("embed") { 1.0 } else { 1.5 / width.sqrt() };
            let values = draw(part.len());
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
    Weights::open_file(path).unwrap()
}

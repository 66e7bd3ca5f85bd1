//! A saved model has the figures it was saved with, to the bit.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use nepenthe::backend::cpu::Cpu;
use nepenthe::io::safetensors::{Dtype, Entry, Weights, write_f32_as, write_file};
use nepenthe::method::passes::Passes;
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig, Train};
use nepenthe::ops::{StateMode, TeacherForm, UpdateRule};
use nepenthe::run::export::write_model;
use serde_json::json;
use tempfile::TempDir;

/// Writes the recorded model `from` as the folder `to` with all tensors in `dtype`.
fn convert(from: &Path, to: &Path, dtype: Dtype) {
    std::fs::create_dir(to).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let weights = Weights::open(from).unwrap();
    let (_, names, metadata) = weights.shards().next().unwrap();
    let entries: Vec<Entry> = names
        .iter()
        .map(|name| Entry {
            name: name.clone(),
            dtype,
            shape: weights.info(name).unwrap().shape.clone(),
        })
        .collect();
    write_file(&to.join("model.safetensors"), &entries, metadata, &mut |entry, out| {
        let mut values = vec![0.0; weights.info(&entry.name).unwrap().len()];
        weights.read_f32(&entry.name, &mut values)?;
        write_f32_as(dtype, &values, out).unwrap();
        Ok(())
    })
    .unwrap();
}

fn figures(ops: &Cpu<f32>, model: &mut Model<Cpu<f32>>) -> Vec<u64> {
    let documents: Vec<Vec<u32>> =
        (0..6).map(|d| (0..20 + d).map(|t| (t * 7 + d * 13) % 500 + 2).collect()).collect();
    let documents: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    let mut passes = Passes::new(ops, model, 512, false).unwrap();
    let scores = passes.score(ops, model, &documents).unwrap();
    scores.concat().into_iter().map(f64::to_bits).collect()
}

fn load(ops: &Cpu<f32>, folder: &Path, keep: &Keeping) -> Model<Cpu<f32>> {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = ModelConfig::parse(&config).unwrap();
    Model::load(ops, config, &Weights::open(folder).unwrap(), keep).unwrap()
}

#[test]
fn figures_before_saving_and_after_loading_are_equal_bits() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data/models/llama-gqa");
    let dir = TempDir::new().unwrap();
    let ops = Cpu::<f32>::new();
    for (name, dtype) in [("f32", Dtype::F32), ("bf16", Dtype::Bf16)] {
        let source = dir.path().join(name);
        convert(&golden, &source, dtype);
        for mode in StateMode::ALL {
            let keep = Keeping {
                train: Some(Train::All),
                mode,
                teacher: TeacherForm::Drift,
                rule: UpdateRule::Sgd { momentum: 0.9 },
                seed: 5,
            };
            // The student is the recorded fp32 model, so that it lies between the numbers of a bf16 file, as after
            // training.
            let mut student = load(&ops, &golden, &keep);
            let before = figures(&ops, &mut student);
            let out = dir.path().join(format!("{name}-{mode:?}"));
            write_model(&ops, &student, &source, &out, &json!({})).unwrap();
            let mut saved = load(&ops, &out, &Keeping::inference());
            let after = figures(&ops, &mut saved);
            if (mode, dtype) == (StateMode::Exact, Dtype::Bf16) {
                // An fp32 student has no bf16 figures before it is rounded: those of the file are the ones to report.
                let apart = |(a, b): (&u64, &u64)| (f64::from_bits(*a) - f64::from_bits(*b)).abs();
                let apart = before.iter().zip(&after).map(apart).fold(0.0, f64::max);
                assert!(apart > 0.0 && apart < 0.1, "{apart}");
            } else {
                assert!(before == after, "{name} {mode:?}");
            }
            // Saving what was loaded changes nothing any more.
            let again = dir.path().join(format!("{name}-{mode:?}-again"));
            let mut loaded = load(&ops, &out, &keep);
            assert!(figures(&ops, &mut loaded) == after, "{name} {mode:?} loaded to train");
            write_model(&ops, &loaded, &out, &again, &json!({})).unwrap();
            let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
            assert!(bytes(&again) == bytes(&out), "{name} {mode:?}");
        }
    }
}

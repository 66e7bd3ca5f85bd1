//! A saved model has the figures it was saved with, to the bit.

use approx::abs_diff_eq;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::folder::{convert, figures, json_of, load, trained};
use crate::support::model;
use nepenthe::backend::cpu::Cpu;
use nepenthe::folder::export::{Save, SaveDtype, SaveRounding, write_model};
use nepenthe::io::safetensors::{Dtype, Entry, Weights, write_file};
use nepenthe::method::passes::Passes;
use nepenthe::model::Train;
use nepenthe::model::generate::{Choice, Request};
use nepenthe::model::params::Keeping;
use nepenthe::ops::{StateMode, TeacherForm};
use nepenthe::optim::UpdateRule;
use serde_json::json;
use tempfile::TempDir;

/// Writes a random model with the configuration of the recorded `name`, and returns its folder.
fn source(dir: &TempDir, name: &str) -> PathBuf {
    let folder = dir.path().join("source").join(name);
    model::random(name, 60, &folder);
    folder
}

/// One model whose tensors lie in files as the ops read them, one of transposed matrices, one of interleaved heads.
#[test]
fn figures_before_saving_and_after_loading_are_equal_bits() {
    let dir = TempDir::new().unwrap();
    ["llama-gqa", "gpt2", "gpt_neox"].iter().for_each(|name| check(&source(&dir, name)));
}

fn check(golden: &Path) {
    let dir = TempDir::new().unwrap();
    let ops = Cpu::<f32>::new();
    for (name, dtype) in [("f32", Dtype::F32), ("bf16", Dtype::Bf16)] {
        let source = dir.path().join(name);
        convert(golden, &source, dtype, |x| x);
        let forms =
            [SaveDtype::Source, SaveDtype::F32].map(|form| StateMode::ALL.map(|m| (m, form)));
        for (mode, form) in forms.concat() {
            let case = format!("{name}-{mode:?}-{form:?}");
            let keep = trained(mode);
            // The student is the fp32 model, so that it lies between the numbers of a bf16 file, as after
            // training.
            let mut student = load(&ops, golden, &keep);
            let before = figures(&ops, &mut student);
            let out = dir.path().join(&case);
            let save = Save { dtype: form, rounding: SaveRounding::Nearest, seed: 4 };
            let kept =
                write_model(&ops, &student, &source, &out, save, &json!({})).unwrap().share();
            if form == SaveDtype::F32 {
                assert_eq!(json_of(&out.join("config.json"))["dtype"], "float32");
                let weights = Weights::open(&out).unwrap();
                let mut dtypes = weights.names().map(|name| weights.info(name).unwrap().dtype);
                assert!(dtypes.all(|dtype| dtype == Dtype::F32), "{case}");
            }
            let mut saved = load(&ops, &out, &Keeping::inference());
            let after = figures(&ops, &mut saved);
            if (mode, dtype, form) == (StateMode::Exact, Dtype::Bf16, SaveDtype::Source) {
                // An fp32 student has no bf16 figures before it is rounded: those of the file are the ones to report.
                let apart = |(a, b): (&u64, &u64)| (f64::from_bits(*a) - f64::from_bits(*b)).abs();
                let apart = before.iter().zip(&after).map(apart).fold(0.0, f64::max);
                assert!(apart > 0.0 && apart < 0.1, "{apart}");
                // The student lies nearest to the very numbers of the source, so that nothing of its change is left.
                assert_eq!(kept, 0.0, "{case}");
            } else {
                assert!(before == after, "{case}");
                assert_eq!(kept, 1.0, "{case}");
            }
            // Saving what was loaded changes nothing any more, however it is rounded.
            let again = dir.path().join(format!("{case}-again"));
            let mut loaded = load(&ops, &out, &keep);
            assert!(figures(&ops, &mut loaded) == after, "{case} loaded to train");
            let save = Save { rounding: SaveRounding::Stochastic, ..save };
            write_model(&ops, &loaded, &out, &again, save, &json!({})).unwrap();
            let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
            assert!(bytes(&again) == bytes(&out), "{case}");
        }
    }
}

/// Of a model in bf16 that moved by less than half the distance of two numbers, in every state that holds it.
#[test]
fn a_small_motion_is_in_figures_and_folder() {
    let dir = TempDir::new().unwrap();
    let recorded = source(&dir, "llama-gqa");
    let [source, moved] = ["bf16", "moved"].map(|name| dir.path().join(name));
    convert(&recorded, &source, Dtype::Bf16, |x| x);
    // By a thousandth, a quarter of the distance at most.
    convert(&source, &moved, Dtype::F32, |x| x * 1.001);
    let ops = Cpu::<f32>::new();
    for mode in [StateMode::Exact, StateMode::Compact, StateMode::Tiny] {
        let mut student = load(&ops, &moved, &trained(mode));
        let before = figures(&ops, &mut student);
        let out = dir.path().join(format!("{mode:?}"));
        write_model(&ops, &student, &source, &out, Save::default(), &json!({})).unwrap();
        let [own, written] = [&source, &out].map(|folder| Weights::open(folder).unwrap());
        // The written change over the one to be written, whose mean over all numbers is 1.
        let (mut sum, mut count) = (0.0, 0.0);
        for name in own.names() {
            let [own, written] = [&own, &written].map(|w| w.read_f64(name).unwrap());
            for (w, x) in own.iter().zip(&written).filter(|(w, _)| **w != 0.0) {
                sum += (x - w) / (0.001 * w);
                count += 1.0;
            }
        }
        // It is 0, or at most 2^-7 over 0.001.
        let scatter = f64::sqrt(8.0 / count);
        assert!(
            abs_diff_eq!(sum / count, 1.0, epsilon = 4.0 * scatter),
            "{mode:?}: {} of {count}",
            sum / count
        );
        if mode != StateMode::Exact {
            assert!(figures(&ops, &mut load(&ops, &out, &Keeping::inference())) == before);
        }
    }
}

/// The published files of GPT-2 name no `transformer.`, and hold masks that nothing reads: both stay as they are.
#[test]
fn files_without_the_name_of_the_model_are_read_and_written() {
    let dir = TempDir::new().unwrap();
    let golden = source(&dir, "gpt2");
    let (bare, out) = (dir.path().join("bare"), dir.path().join("out"));
    std::fs::create_dir(&bare).unwrap();
    std::fs::copy(golden.join("config.json"), bare.join("config.json")).unwrap();
    let weights = Weights::open(&golden).unwrap();
    let name_in = |name: &str| format!("transformer.{name}");
    let mut entries: Vec<Entry> = weights
        .names()
        .map(|name| Entry {
            name: name.strip_prefix("transformer.").unwrap().to_owned(),
            dtype: Dtype::F32,
            shape: weights.info(name).unwrap().shape.clone(),
        })
        .collect();
    entries.push(Entry {
        name: "h.0.attn.bias".into(),
        dtype: Dtype::Bool,
        shape: vec![1, 1, 2, 2],
    });
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let to = bare.join("model.safetensors");
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_file(&to, &entries, &metadata, &mut |entry, out| {
        let bytes = weights.bytes(&name_in(&entry.name)).unwrap_or(&[1, 0, 1, 1]);
        out.write_all(bytes).unwrap();
        Ok(())
    })
    .unwrap();
    let ops = Cpu::<f32>::new();
    let keep = Keeping {
        train: Some(Train::Body),
        mode: StateMode::Exact,
        teacher: TeacherForm::None,
        rule: UpdateRule::Sgd { momentum: 0.9 },
        seed: 5,
    };
    let mut model = load(&ops, &bare, &keep);
    let want = figures(&ops, &mut load(&ops, &golden, &Keeping::inference()));
    assert!(figures(&ops, &mut model) == want);
    write_model(&ops, &model, &bare, &out, Save::default(), &json!({})).unwrap();
    assert!(std::fs::read(out.join("model.safetensors")).unwrap() == std::fs::read(to).unwrap());
}

#[test]
fn a_sequence_longer_than_the_table_of_positions_is_refused() {
    let ops = Cpu::<f32>::new();
    let dir = TempDir::new().unwrap();
    for (name, most) in [("gpt2", 128), ("opt", 128)] {
        let mut model = load(&ops, &source(&dir, name), &Keeping::inference());
        let mut passes = Passes::new(&ops, &model, 200, false).unwrap();
        let fits: Vec<u32> = (0..most).collect();
        passes.score(&ops, &mut model, &[&fits]).unwrap();
        let long: Vec<u32> = (0..=most).collect();
        let error = passes.score(&ops, &mut model, &[&long]).unwrap_err();
        assert_eq!(
            error.message(),
            format!(
                "a sequence of {} tokens, but {name} has learned positions for {most}",
                most + 1
            )
        );
        let request =
            Request { max_new_tokens: 9, end_tokens: vec![], choice: Choice::Greedy, batch: 1 };
        let error = passes.generate(&ops, &mut model, &[long[..120].to_vec()], &request);
        assert!(error.unwrap_err().message().starts_with("a sequence of 129 tokens"));
    }
}

//! In the simulator, a saved model has the figures it was saved with, to the bit, though bf16 numbers are too far apart
//! for what it had moved.

use std::path::Path;

use crate::support::folder::{convert, figures, load, trained};
use crate::support::simulated;
use nepenthe::backend::gpu::Precision;
use nepenthe::backend::gpu::driver::sim::Timing;
use nepenthe::folder::export::{Save, write_model};
use nepenthe::io::safetensors::Dtype;
use nepenthe::model::params::Keeping;
use nepenthe::ops::StateMode;
use serde_json::json;
use tempfile::TempDir;

#[test]
fn figures_before_saving_and_after_loading_are_equal_bits() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data/models/llama-gqa");
    let dir = TempDir::new().unwrap();
    let [source, moved] = ["source", "moved"].map(|name| dir.path().join(name));
    convert(&golden, &source, Dtype::Bf16, |x| x);
    // By a thousandth, a quarter of the distance at most.
    convert(&source, &moved, Dtype::F32, |x| x * 1.001);
    let Some(gpu) = simulated(Timing::ALL[0], Precision::Bf16) else { return };
    let unmoved = figures(&gpu, &mut load(&gpu, &source, &Keeping::inference()));
    for mode in [StateMode::Exact, StateMode::Compact] {
        let keep = trained(mode);
        let mut student = load(&gpu, &moved, &keep);
        let before = figures(&gpu, &mut student);
        assert!(before != unmoved, "{mode:?}");
        let out = dir.path().join(format!("{mode:?}"));
        let save = Save { seed: keep.seed, ..Save::default() };
        write_model(&gpu, &student, &source, &out, save, &json!({})).unwrap();
        let mut saved = load(&gpu, &out, &Keeping::inference());
        assert!(figures(&gpu, &mut saved) == before, "{mode:?}");
    }
}

//! `probe` replays a recorded run: in exact state it is the run, in compact state it stays near, and the run folder is not
//! touched, whatever is looked at.

#![allow(clippy::unwrap_used)]

mod support;

use approx::{abs_diff_eq, assert_abs_diff_eq, relative_eq};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use serde_json::{Value, json};
use support::folder;

const STEPS: usize = 3;

fn nepenthe(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(cargo_bin("nepenthe")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

/// Makes a short run of a recorded model, with these options besides, and returns its folder.
fn recorded(dir: &Path, more: &[&str]) -> PathBuf {
    recorded_of(dir, more, |_| ())
}

/// The same of a model whose folder `change` has changed.
fn recorded_of(dir: &Path, more: &[&str], change: impl Fn(&Path)) -> PathBuf {
    change(&folder::recorded(dir));
    for (name, step) in [("forget", 7), ("retain", 11)] {
        folder::corpus(dir, name, 6, 20, step);
    }
    let path = |name: &str| dir.join(name).display().to_string();
    let steps = format!("run.steps={STEPS}");
    let cache = format!("data.cache={}", path("cache"));
    let options = [
        "unlearn",
        "--model",
        &path("model"),
        "--forget",
        &path("forget.jsonl"),
        "--retain",
        &path("retain.jsonl"),
        "--out",
        &path("run"),
        "--set",
        &steps,
        "--set",
        &cache,
        "--set",
        "run.micro_batch=2",
        "--set",
        "optim.lr=0.05",
        "--set",
        "eval.documents=0",
    ];
    let (code, _, stderr) = nepenthe(&[&options[..], more].concat());
    assert_eq!(code, 0, "{stderr}");
    dir.join("run")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All files below a folder but those in a folder called `probe`.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("probe") {
                found.extend(files(&path));
            }
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn ngd_and_gradients_read_the_run_and_leave_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run = recorded(dir.path(), &[]);
    let before = files(&run);
    let shown = run.display().to_string();
    let ngd = [
        "probe",
        "ngd",
        &shown,
        "--at",
        "0,3",
        "--draws",
        "1",
        "--iterations",
        "4",
        "--lanczos",
        "3",
    ];
    let (code, stdout, stderr) =
        nepenthe(&[&ngd[..], &["--losses", "ll,npo", "--steps", "2", "--json"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = nepenthe(&["probe", "gradients", &shown, "--every", "2"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(files(&run), before);
    let out = run.join("probe");
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let compared = lines(&out.join("ngd.jsonl"));
    assert_eq!(summary["ngd"], Value::from(compared.clone()));
    // The student starts where the teacher is: no drift, but a step to make.
    assert_eq!((&compared[0]["steps"], compared[0]["drift"].as_f64()), (&0.into(), Some(0.0)));
    assert!(compared[1]["drift"].as_f64() > Some(0.0) && compared[1]["step"].as_f64() > Some(0.0));
    let share = |line: &Value| line["share"].as_f64().unwrap();
    let parts = compared[1]["parts"].as_array().unwrap();
    assert_abs_diff_eq!(parts.iter().map(share).sum::<f64>(), 1.0, epsilon = 1e-9);
    for line in &compared {
        let residuals = line["residuals"].as_array().unwrap();
        assert!(residuals.last().unwrap().as_f64() < residuals[0].as_f64(), "{line}");
        assert!(line["product_error"].as_f64() < Some(1e-2), "{line}");
    }
    // Probing between its steps does not change the run: its last step is the recorded one, to the bit.
    let logged = lines(&run.join("metrics.jsonl"));
    for key in ["global_step", "loss_tr", "loss_kl", "grad_norm"] {
        assert_eq!(summary["replayed"][key], logged[STEPS - 1][key], "{key}");
    }
    let spectrum = compared[1]["spectrum"].as_array().unwrap();
    assert_eq!(spectrum.len(), 3);
    let weights = spectrum.iter().map(|node| node[1].as_f64().unwrap());
    assert!(abs_diff_eq!(weights.sum::<f64>(), 1.0, epsilon = 1e-9), "{spectrum:?}");
    let places = lines(&out.join("ngd-path.jsonl"));
    assert_eq!(places.len(), 3 * 3);
    let zero = places.iter().filter(|place| place["steps"] == 0);
    assert!(zero.clone().all(|place| place["moved"] == 0.0 && place["kl"] == 0.0));
    assert!(places.iter().filter(|p| p["steps"] == 2).all(|p| p["moved"].as_f64() > Some(0.0)));
    let healths = lines(&out.join("gradients.jsonl"));
    let steps: Vec<&Value> =
        healths.iter().filter(|h| h["loss"] == "nlul").map(|h| &h["steps"]).collect();
    assert_eq!(steps, [0, 2, 3]);
    for name in ["ngd.svg", "ngd-curvature.svg", "ngd-forget.svg", "ngd-kl.svg", "gradients.svg"] {
        let svg = std::fs::read_to_string(out.join(name)).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.contains("polyline") || svg.contains("path"),
            "{name}"
        );
    }
    let elsewhere = dir.path().join("curvature").display().to_string();
    let (code, stdout, stderr) =
        nepenthe(&["probe", "curvature", &shown, &shown, "--out", &elsewhere, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(files(&run), before);
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let [a, b] = [&summary["updates"][0], &summary["updates"][1]];
    assert!(a["curvature"].as_f64() > Some(0.0) && a["length"].as_f64() > Some(0.0), "{a}");
    assert_eq!((&a["curvature"], &a["shares"]), (&b["curvature"], &b["shares"]));
    let (code, _, stderr) = nepenthe(&["probe", "ngd", &shown, "--losses", "nlull"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("nearest is nlul"), "{stderr}");
    // What the run has no layer, and no vector, for is refused before anything is computed with it.
    let (code, _, stderr) = nepenthe(&["probe", "ngd", &shown, "--losses", "rmu", "--steps", "1"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("method.rmu_layer: names layer 7"), "{stderr}");
}

#[test]
fn a_solve_goes_on_where_it_was_left_and_held_out_texts_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let holdout = dir.path().join("holdout.jsonl");
    let row = |d: u64| format!("{{\"input_ids\": [{}, 9, 7, 5, 3]}}", 2 + d);
    std::fs::write(&holdout, (0..3).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let set = format!("eval.holdout={}", holdout.display());
    let run = recorded(dir.path(), &["--set", &set]);
    let (shown, out) = (run.display().to_string(), dir.path().join("kept"));
    let place = out.display().to_string();
    let solve = |more: &[&str]| {
        let options = ["probe", "ngd", &shown, "--at", "2", "--draws", "1", "--iterations", "3"];
        let (code, _, stderr) = nepenthe(&[&options[..], &["--out", &place], more].concat());
        assert_eq!(code, 0, "{stderr}");
        let residuals = &lines(&out.join("ngd.jsonl"))[0]["residuals"];
        let residuals = residuals.as_array().unwrap().iter().map(|r| r.as_f64().unwrap());
        residuals.collect::<Vec<f64>>()
    };
    let first = solve(&["--resume"]);
    assert_eq!((first.len(), first[0]), (4, 1.0));
    let second = solve(&["--resume"]);
    // The residual is made anew there, from other displacements of the products.
    assert!(relative_eq!(second[0], first[3], max_relative = 0.05), "{first:?} {second:?}");
    assert!(second[3] < first[3], "{first:?} {second:?}");
    // Without the option it starts from nothing.
    assert_eq!(solve(&["--losses", "ll", "--steps", "1"])[0], 1.0);
    for place in lines(&out.join("ngd-path.jsonl")) {
        let kl = place["kl_holdout"].as_f64().unwrap();
        assert!(if place["steps"] == 0 { kl == 0.0 } else { kl >= 0.0 }, "{place}");
        assert!(place["loss"] != "ll" || place["steps"] == 0 || kl > 0.0, "{place}");
    }
    std::fs::write(out.join("ngd-2.f64"), [0; 16]).unwrap();
    let (code, _, stderr) =
        nepenthe(&["probe", "ngd", &shown, "--at", "2", "--out", &place, "--resume"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("ngd-2.f64: holds 16 bytes, wanted"), "{stderr}");
}

/// Copies a folder with all that is below it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

/// Copies a run to `to` with the model that it started from inside, as `demo` keeps it.
fn with_its_model(run: &Path, to: &Path) {
    let model = run.with_file_name("model");
    copy(run, to);
    copy(&model, &to.join("input/target"));
    let recipe = to.join("config.resolved.toml");
    let text = std::fs::read_to_string(&recipe).unwrap();
    let path = |at: &Path| format!("path = \"{}\"", at.display());
    let moved = text.replace(&path(&model), &path(&to.join("input/target")));
    assert_ne!(moved, text);
    std::fs::write(recipe, moved).unwrap();
}

#[test]
fn curvature_reads_runs_that_hold_the_model_they_started_from() {
    let dir = tempfile::tempdir().unwrap();
    let run = recorded(dir.path(), &["--set", "run.steps=1"]);
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    with_its_model(&run, &first);
    with_its_model(&run, &second);
    let out = dir.path().join("out");
    let probe = || {
        let paths = [&first, &second, &run, &out].map(|path| path.display().to_string());
        let [first, second, run, out] = [0, 1, 2, 3].map(|i| paths[i].as_str());
        nepenthe(&["probe", "curvature", first, second, run, "--draws", "1", "--out", out])
    };
    let (code, _, stderr) = probe();
    assert_eq!(code, 0, "{stderr}");
    let updates = lines(&out.join("curvature.jsonl"));
    assert_eq!(updates.len(), 3);
    assert!(updates[0]["curvature"].as_f64() > Some(0.0), "{}", updates[0]);
    for update in &updates[1..] {
        assert_eq!(update["shares"], updates[0]["shares"]);
        assert_eq!(update["curvature"], updates[0]["curvature"]);
    }
    // One bit of one weight makes it another model.
    let weights = second.join("input/target/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let (code, _, stderr) = probe();
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("second: it started from ") && stderr.contains("first/input/target"));
}

#[test]
fn precision_replays_the_run_and_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run = recorded(dir.path(), &[]);
    let before = files(&run);
    let shown = run.display().to_string();
    let states = "compact,tiny,approx";
    let (code, stdout, stderr) =
        nepenthe(&["probe", "precision", &shown, "--states", states, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(files(&run), before);
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let (replayed, logged) =
        (lines(&run.join("probe/precision.jsonl")), lines(&run.join("metrics.jsonl")));
    assert_eq!((replayed.len(), logged.len()), (3 * STEPS, STEPS));
    assert_eq!(summary["last"][0], replayed[3 * STEPS - 3]);
    for (three, logged) in replayed.chunks(3).zip(&logged) {
        for (line, (state, bytes, most)) in three.iter().zip([
            ("compact", 10.0, 0.5),
            ("tiny", 9.015625, 0.5),
            ("approx", 8.0, 1e3),
        ]) {
            for key in ["loss_tr", "loss_kl", "grad_norm"] {
                let exact = &line[format!("{key}_exact")];
                assert_eq!(*exact, logged[key], "{key}: exact state is the run");
            }
            assert_eq!(
                (&line["state"], &line["bytes_per_parameter"]),
                (&json!(state), &json!(bytes))
            );
            for key in ["motion_error", "drift_error"] {
                let error = line[key].as_f64().unwrap();
                assert!(error > 1e-5 && error < most, "{state}: {key}: {error}");
            }
            assert_ne!(line["loss_tr"], line["loss_tr_exact"], "{state} state rounds");
        }
    }
    for name in ["precision-parameters.svg", "precision-metrics.svg"] {
        let svg = std::fs::read_to_string(run.join("probe").join(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("compact: "), "{name}");
    }
    let (code, _, stderr) = nepenthe(&["probe", "precision", &shown, "--states", "huge"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("states: huge is no state mode"), "{stderr}");
}

/// What the simulator says, whose products are those of a device: TF32 in fp32 storage.
#[cfg(feature = "sim")]
mod simulated {
    use super::*;
    use nepenthe::conformance::{Dtype, tol};
    use nepenthe::model::ModelConfig;
    use support::model;

    const SIM: [&str; 4] = ["--device", "sim", "--precision", "fp32"];
    const CPU: [&str; 2] = ["--device", "cpu"];
    /// One layer, which has the fewest launches; the vocabulary is the tokenizer's.
    const TINY: &str = r#"{"model_type":"llama","hidden_size":16,"num_attention_heads":1,"num_key_value_heads":1,
        "head_dim":16,"hidden_act":"silu","vocab_size":512,"num_hidden_layers":1,"intermediate_size":16,
        "rms_norm_eps":1e-5}"#;

    /// Puts a small model in the place of the recorded one.
    fn shrink(folder: &Path) {
        std::fs::write(folder.join("config.json"), TINY).unwrap();
        model::write(&ModelConfig::parse(TINY).unwrap(), 57, &folder.join("model.safetensors"));
    }

    /// Probes `run` on a device, and returns what the command printed.
    fn probe(what: &[&str], run: &Path, out: &Path, device: &[&str]) -> Value {
        let (run, out) = (run.display().to_string(), out.display().to_string());
        let (command, options) = what.split_at(1);
        let all = [&["probe"], command, &[&run], options, &["--out", &out, "--json"], device];
        let (code, stdout, stderr) = nepenthe(&all.concat());
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    }

    /// Fails unless what a command printed has at `key` the number that it has on the CPU, within `allowed` of it.
    fn near([there, here]: &[Value; 2], key: &str, allowed: f64) {
        let [there, here] = [there, here].map(|v| v.pointer(key).and_then(Value::as_f64).unwrap());
        assert!(
            abs_diff_eq!(there, here, epsilon = allowed * here.abs()),
            "{key}: {there:e} there, {here:e} here, allowed {allowed:.3}"
        );
    }

    #[test]
    fn probes_say_there_what_they_say_on_the_cpu_and_leave_the_run_alone() {
        let dir = tempfile::tempdir().unwrap();
        // A loss that moves a model of random weights: a drift far above the rounding of TF32.
        let sets = "run.steps=2 run.forget_accum_steps=1 run.kl_accum_steps=1 method.loss=ll \
                    method.forget_weight=1.0 method.damping=1.0 method.teacher_rate=0.1 optim.clip=0.5";
        let sets: Vec<&str> = sets.split_whitespace().flat_map(|set| ["--set", set]).collect();
        let run = recorded_of(dir.path(), &[&SIM[..], &sets].concat(), shrink);
        let (before, logged) = (files(&run), lines(&run.join("metrics.jsonl")));
        let out = |device: &str| dir.path().join(device);
        let said = |what: &str| {
            let what: Vec<&str> = what.split_whitespace().collect();
            [("there", &SIM[..]), ("here", &CPU)]
                .map(|(name, device)| probe(&what, &run, &out(name), device))
        };
        let pairs = |name: &str| {
            let [there, here] = ["there", "here"].map(|device| lines(&out(device).join(name)));
            assert_eq!(there.len(), here.len(), "{name}");
            there.into_iter().zip(here).map(|(there, here)| [there, here]).collect::<Vec<_>>()
        };
        // Sums of one layer's width, in the products of 11 bits.
        let figure = tol(Dtype::Tf32, 16);

        let replayed = said("ngd --at 1,2 --draws 1 --iterations 3 --losses ll,npo --steps 1");
        let compared = pairs("ngd.jsonl");
        assert_eq!(compared.len(), 2);
        for pair in &compared {
            // A product is a difference over a displacement, with the error that it states itself.
            let error = |line: &Value| line["product_error"].as_f64().unwrap();
            let product = error(&pair[0]) + error(&pair[1]);
            assert!(product < 0.1, "a product says little: {}", pair[0]);
            near(pair, "/drift", figure);
            for key in ["/step", "/cosine", "/distance", "/curvature", "/curvature_gradient"] {
                near(pair, key, figure + product);
            }
        }
        let places = pairs("ngd-path.jsonl");
        assert_eq!(places.len(), 2 * 3);
        // In the first step the run's gradient is that of its loss, and so is the clip factor; another loss has another.
        for device in 0..2 {
            let clip = |loss: &str| {
                let mut after = places.iter().map(|pair| &pair[device]).filter(|p| p["steps"] == 1);
                after.find(|place| place["loss"] == loss).unwrap()["clip"].as_f64().unwrap()
            };
            assert!((clip("ll") - clip("run")).abs() < 1e-5 && clip("run") < 1.0, "{places:?}");
            assert!(clip("npo") < 0.5 * clip("run"), "{places:?}");
        }
        for pair in &places {
            near(pair, "/forget_nll", figure);
            near(pair, "/retain_nll", figure);
            near(pair, "/clip", figure);
            near(pair, "/moved", figure);
        }
        said("gradients --every 2 --draws 1");
        let healths = pairs("gradients.jsonl");
        assert!(healths.iter().any(|[there, _]| there["loss"] == "nlul"));
        for pair in &healths {
            near(pair, "/row", figure);
            near(pair, "/weight", figure);
            assert_eq!((&pair[0]["loss"], &pair[0]["flag"]), (&pair[1]["loss"], &pair[1]["flag"]));
        }
        said("precision --states compact");
        let precision = pairs("precision.jsonl");
        for pair in &precision {
            for key in ["/motion", "/drift", "/loss_tr_exact", "/grad_norm_exact", "/loss_tr"] {
                near(pair, key, figure);
            }
            for key in ["/motion_error", "/drift_error"] {
                near(pair, key, 0.1);
            }
        }
        let curved = said("curvature --draws 1");
        for key in ["length", "curvature", "kl", "forget_nll", "retain_nll"] {
            near(&curved, &format!("/updates/0/{key}"), 0.05);
        }

        // Replayed there with probes between its steps, and beside other states, it is the recorded run to the bit.
        assert_eq!(files(&run), before);
        assert_eq!(precision.len(), logged.len());
        for key in ["loss_tr", "loss_kl", "grad_norm"] {
            assert_eq!(replayed[0]["replayed"][key], logged[1][key], "{key}");
            for ([there, _], logged) in precision.iter().zip(&logged) {
                assert_eq!(there[format!("{key}_exact")], logged[key], "{key}");
            }
        }
    }
}

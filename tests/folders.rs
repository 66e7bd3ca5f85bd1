//! Model folders that say one thing and hold another, through the command line.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use nepenthe::folder::Folder;
use nepenthe::io::safetensors::{Dtype, Entry, Weights, write_f32_as, write_file};
use serde_json::{Value, json};
use support::folder::{corpus, json_of, recorded};
use tempfile::TempDir;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<f32>)>;

/// Runs the binary; returns exit code, stdout and stderr.
fn nepenthe(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("nepenthe").unwrap().args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn tensors(folder: &Path) -> Tensors {
    let weights = Weights::open(folder).unwrap();
    let read = |name: &str| {
        let info = weights.info(name).unwrap();
        let mut values = vec![0.0; info.len()];
        weights.read_f32(name, &mut values).unwrap();
        (name.to_owned(), (info.dtype, info.shape.clone(), values))
    };
    weights.names().map(read).collect()
}

fn write(file: &Path, tensors: &Tensors) {
    let entry = |(name, (dtype, shape, _)): (&String, &(Dtype, Vec<usize>, Vec<f32>))| Entry {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_file(file, &entries, &metadata, &mut |entry, out| {
        if entry.dtype.is_float() {
            write_f32_as(entry.dtype, &tensors[&entry.name].2, out).unwrap();
        } else {
            out.write_all(&vec![0; entry.bytes()]).unwrap();
        }
        Ok(())
    })
    .unwrap();
}

/// Changes config.json and the tensors of a recorded model.
fn folder(dir: &Path, change: impl FnOnce(&mut Value, &mut Tensors)) -> PathBuf {
    let model = recorded(dir);
    let mut config = json_of(&model.join("config.json"));
    let mut all = tensors(&model);
    change(&mut config, &mut all);
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    write(&model.join("model.safetensors"), &all);
    model
}

const HEAD: &str = "lm_head.weight";
const EMBED: &str = "model.embed_tokens.weight";

fn tie(config: &mut Value, all: &mut Tensors, copy: bool) {
    config["tie_word_embeddings"] = json!(true);
    if copy {
        all.insert(HEAD.into(), all[EMBED].clone());
    }
}

/// Finetunes all parameters for three steps; returns the written folder.
fn finetune(dir: &Path, model: &Path) -> PathBuf {
    corpus(dir, "data", 4, 20, 3);
    let out = dir.join("run");
    let [model, data, run] =
        [model, &dir.join("data.jsonl"), &out].map(|path| path.display().to_string());
    let mut args = vec!["finetune", "--device", "cpu", "--model", &model, "--data", &data];
    args.extend(["--out", &run, "--set", "run.steps=3", "--set", "optim.lr=0.01"]);
    args.extend(["--set", "model.train=all", "--set", "eval.documents=0"]);
    let (code, _, stderr) = nepenthe(&args);
    assert_eq!(code, 0, "{stderr}");
    out.join("model")
}

fn score(model: &Path) -> (i32, String, String) {
    let model = model.display().to_string();
    nepenthe(&["score", "--json", "--device", "cpu", "--model", &model, "--text", "Alice"])
}

#[test]
fn second_copy_of_a_tied_head_is_not_written_stale() {
    for sharded in [false, true] {
        let dir = TempDir::new().unwrap();
        let model = folder(dir.path(), |config, all| tie(config, all, true));
        if sharded {
            let mut all = tensors(&model);
            let head = BTreeMap::from([(HEAD.to_owned(), all.remove(HEAD).unwrap())]);
            std::fs::remove_file(model.join("model.safetensors")).unwrap();
            write(&model.join("a.safetensors"), &all);
            write(&model.join("b.safetensors"), &head);
            let mut map: BTreeMap<String, &str> =
                all.into_keys().map(|name| (name, "a.safetensors")).collect();
            map.insert(HEAD.into(), "b.safetensors");
            let index = json!({"weight_map": map});
            std::fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
        assert!(Folder::open(&model).unwrap().notices[0].starts_with("lm_head.weight: a second"));
        let out = finetune(dir.path(), &model);
        let (before, after) = (tensors(&model), tensors(&out));
        assert!(!after.contains_key(HEAD));
        assert_ne!(before[EMBED].2, after[EMBED].2);
        assert!(!out.join("b.safetensors").exists());
        assert_eq!(score(&out).0, 0);
    }
}

#[test]
fn different_head_in_a_tied_folder_is_an_untied_head() {
    let dir = TempDir::new().unwrap();
    let model = folder(dir.path(), |config, all| tie(config, all, false));
    let plain = TempDir::new().unwrap();
    let untied = recorded(plain.path());
    let notice = &Folder::open(&model).unwrap().notices[0];
    assert!(
        notice.starts_with("lm_head.weight: differs from model.embed_tokens.weight"),
        "{notice}"
    );
    assert_eq!(score(&model).1, score(&untied).1);
    let out = finetune(dir.path(), &model);
    assert_eq!(json_of(&out.join("config.json"))["tie_word_embeddings"], json!(false));
    assert_ne!(tensors(&out)[HEAD].2, tensors(&model)[HEAD].2);
}

#[test]
fn weights_that_are_not_finite_are_named_with_exit_4() {
    let name = "model.layers.1.mlp.up_proj.weight";
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for bad in [f32::NAN, f32::INFINITY] {
            let dir = TempDir::new().unwrap();
            let model = folder(dir.path(), |_, all| {
                all.values_mut().for_each(|tensor| tensor.0 = dtype);
                all.get_mut(name).unwrap().2[3 * 64 + 4] = bad;
            });
            corpus(dir.path(), "data", 4, 20, 3);
            let model = model.display().to_string();
            let [data, out] =
                ["data.jsonl", "out"].map(|name| dir.path().join(name).display().to_string());
            let commands: [&[&str]; 5] = [
                &["score", "--text", "Alice"],
                &["eval", "--nll", &data],
                &["generate", "--prompt", "Alice"],
                &["finetune", "--data", &data, "--out", &out],
                &["unlearn", "--forget", &data, "--retain", &data, "--out", &out],
            ];
            for command in commands {
                let args = [command, &["--device", "cpu", "--model", &model]].concat();
                let (code, stdout, stderr) = nepenthe(&args);
                assert_eq!((code, stdout.as_str()), (4, ""), "{args:?}: {stderr}");
                let wanted =
                    format!("model.safetensors: {name}: {bad} at [3, 4], 1 of 6144 numbers");
                assert!(stderr.contains(&wanted), "{args:?}: {stderr}");
            }
            assert!(!Path::new(&out).join("model").exists());
        }
    }
}

#[test]
fn quantised_folders_adapters_and_multimodal_models_are_refused_by_name() {
    let o = "model.layers.0.self_attn.o_proj.weight";
    type Damage = Box<dyn Fn(&mut Value, &mut Tensors)>;
    let cases: Vec<(Damage, &str)> = vec![
        (
            Box::new(move |config, all| {
                config["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
                all.insert(o.into(), (Dtype::U8, vec![2048, 1], Vec::new()));
                all.insert(format!("{o}.absmax"), (Dtype::F32, vec![1], vec![0.0]));
            }),
            "quantised with bitsandbytes nf4",
        ),
        (Box::new(move |_, all| all.get_mut(o).unwrap().0 = Dtype::F8E4m3), "quantised with fp8"),
        (
            Box::new(|_, all| {
                all.insert(
                    "model.layers.0.mlp.up_proj.qweight".into(),
                    (Dtype::I32, vec![8, 8], Vec::new()),
                );
            }),
            "quantised with gptq or awq",
        ),
        (Box::new(move |_, all| all.get_mut(o).unwrap().0 = Dtype::F64), "dtype=torch.float32"),
        (
            Box::new(|config, _| {
                config["model_type"] = json!("gemma3");
                config["text_config"] = json!({});
            }),
            "`gemma3` is a multimodal model (text_config inside)",
        ),
    ];
    for (damage, wanted) in cases {
        let dir = TempDir::new().unwrap();
        let (code, _, stderr) = score(&folder(dir.path(), damage));
        assert!(code == 4 && stderr.contains(wanted) && stderr.contains("\nhint: "), "{stderr}");
    }
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), r#"{"base_model_name_or_path":"b"}"#)
        .unwrap();
    let (code, _, stderr) = score(dir.path());
    assert!(
        code == 4 && stderr.contains("is a PEFT adapter for b (adapter_config.json)"),
        "{stderr}"
    );
    assert!(stderr.contains("merge_and_unload"), "{stderr}");
}

#[test]
fn quantisation_that_only_config_claims_is_dropped() {
    let dir = TempDir::new().unwrap();
    let model = folder(dir.path(), |config, _| {
        config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
    });
    let notice = &Folder::open(&model).unwrap().notices[0];
    assert!(notice.starts_with("config.json: quantization_config (gptq), but"), "{notice}");
    let out = finetune(dir.path(), &model);
    assert!(json_of(&out.join("config.json")).get("quantization_config").is_none());
}

#[test]
fn llama_rotates_whole_heads_whatever_the_partial_factor() {
    let dir = TempDir::new().unwrap();
    let plain = TempDir::new().unwrap();
    let model = folder(dir.path(), |config, _| config["partial_rotary_factor"] = json!(0.5));
    let notice = &Folder::open(&model).unwrap().notices[0];
    assert!(notice.starts_with("config.json: partial_rotary_factor: ignored"), "{notice}");
    assert_eq!(score(&model).1, score(&recorded(plain.path())).1);
}

#[test]
fn contradictions_of_config_json_are_refused_by_the_keys() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 3] = [
        (
            |config| {
                config["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0});
                config["rope_scaling"] = json!({"rope_type": "linear", "factor": 4.0});
            },
            "config.json: rope_parameters and rope_scaling differ, wanted one of them",
        ),
        (
            |config| {
                config["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0});
                config["partial_rotary_factor"] = json!(0.5);
            },
            "config.json: partial_rotary_factor: 0.5 with scaled frequencies is not supported, wanted 1",
        ),
        (
            |config| {
                config["model_type"] = json!("qwen3");
                config["layer_types"] = json!(["sliding_attention", "full_attention"]);
            },
            "config.json: layer_types: names sliding_attention, but use_sliding_window is not true",
        ),
    ];
    for (change, wanted) in cases {
        let dir = TempDir::new().unwrap();
        let model = folder(dir.path(), |config, _| change(config));
        let (code, stdout, stderr) = score(&model);
        assert_eq!((code, stdout.as_str()), (4, ""), "{stderr}");
        assert!(stderr.contains(wanted), "{stderr}");
    }
}

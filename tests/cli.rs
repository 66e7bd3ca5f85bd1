//! The command line as a user meets it: exit codes, messages, JSON.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;

use assert_cmd::Command;
use nepenthe::io::safetensors::{Dtype, Entry, write_file};
use nepenthe::model::{Layout, ModelConfig, Train};
use tempfile::TempDir;

const CONFIG: &str = r#"{"model_type":"llama","hidden_act":"silu","hidden_size":8,
    "num_attention_heads":2,"num_hidden_layers":1,"vocab_size":16,"intermediate_size":12}"#;

/// Runs the binary; returns exit code, stdout and stderr.
fn nepenthe(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("nepenthe").unwrap().args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn entries() -> Vec<Entry> {
    let layout = Layout::new(&ModelConfig::parse(CONFIG).unwrap(), Train::Body);
    let parts = layout.blocks.into_iter().flat_map(|block| block.parts);
    parts.map(|p| Entry { name: p.name, dtype: Dtype::F32, shape: p.shape }).collect()
}

fn write(path: &Path, entries: &[Entry]) {
    write_file(path, entries, &BTreeMap::new(), &mut |entry, out| {
        out.write_all(&vec![0; entry.bytes()]).unwrap();
        Ok(())
    })
    .unwrap();
}

/// Makes a model folder that passes every check but has no tokenizer.
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    write(&dir.path().join("model.safetensors"), &entries());
    dir
}

type Break = Box<dyn Fn(&Path)>;

fn config(from: &'static str, to: &'static str) -> Break {
    Box::new(move |dir| {
        assert!(CONFIG.contains(from));
        std::fs::write(dir.join("config.json"), CONFIG.replace(from, to)).unwrap();
    })
}

fn tensors(change: impl Fn(&mut Vec<Entry>) + 'static) -> Break {
    Box::new(move |dir| {
        let mut all = entries();
        change(&mut all);
        write(&dir.join("model.safetensors"), &all);
    })
}

fn shards(index: &'static str) -> Break {
    Box::new(move |dir| {
        std::fs::rename(dir.join("model.safetensors"), dir.join("a.safetensors")).unwrap();
        let mut map: BTreeMap<String, &str> =
            entries().into_iter().map(|e| (e.name, "a.safetensors")).collect();
        map.insert("model.norm.weight".into(), index);
        let text = serde_json::json!({"weight_map": map}).to_string();
        std::fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
    })
}

/// A broken file, the damage, and the message with DIR for the folder.
fn broken() -> Vec<(&'static str, Break, &'static str)> {
    let weights = |bytes: fn(Vec<u8>) -> Vec<u8>| -> Break {
        Box::new(move |dir| {
            let path = dir.join("model.safetensors");
            std::fs::write(&path, bytes(std::fs::read(&path).unwrap())).unwrap();
        })
    };
    let remove = |name: &'static str| -> Break {
        Box::new(move |dir| std::fs::remove_file(dir.join(name)).unwrap())
    };
    vec![
        (
            "missing folder",
            Box::new(|dir| std::fs::remove_dir_all(dir).unwrap()),
            "DIR: no such folder",
        ),
        (
            "a file",
            Box::new(|dir| {
                std::fs::remove_dir_all(dir).unwrap();
                std::fs::write(dir, "x").unwrap();
            }),
            "DIR: is a file, wanted a model folder",
        ),
        ("no config", remove("config.json"), "DIR: config.json is missing"),
        (
            "config not JSON",
            Box::new(|dir| std::fs::write(dir.join("config.json"), "{").unwrap()),
            "DIR: config.json: not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            "missing hidden_size",
            config("hidden_size", "hiden_size"),
            "DIR: config.json: hidden_size is missing",
        ),
        (
            "unknown architecture",
            config("\"llama\"", "\"mamba\""),
            "DIR: config.json: model_type: architecture `mamba` is not supported",
        ),
        (
            "bad heads",
            config("\"num_attention_heads\":2", "\"num_attention_heads\":3"),
            "DIR: config.json: hidden_size 8 is no multiple of num_attention_heads 3, and head_dim is missing",
        ),
        (
            "no weights",
            remove("model.safetensors"),
            "DIR/model.safetensors: cannot open weights: No such file or directory (os error 2)",
        ),
        (
            "truncated weights",
            weights(|mut bytes| {
                bytes.truncate(bytes.len() - 4);
                bytes
            }),
            "DIR/model.safetensors: no safetensors file: ",
        ),
        (
            "garbage header",
            weights(|mut bytes| {
                bytes[8..40].fill(b'#');
                bytes
            }),
            "DIR/model.safetensors: no safetensors file: ",
        ),
        (
            "missing tensor",
            tensors(|all| all.retain(|e| e.name != "model.norm.weight")),
            "DIR: model.norm.weight: missing from the weights, wanted shape [8] by config.json",
        ),
        (
            "wrong shape",
            tensors(|all| all[0].shape = vec![16, 9]),
            "DIR: model.embed_tokens.weight: shape [16, 9] in file, [16, 8] from config.json",
        ),
        (
            "wrong dtype",
            tensors(|all| all[0].dtype = Dtype::I64),
            "DIR: model.embed_tokens.weight: dtype I64 in file, wanted F32, F16 or BF16",
        ),
        (
            "extra tensor",
            tensors(|all| {
                let (dtype, shape) = (Dtype::F32, vec![2]);
                all.push(Entry { name: "model.extra".into(), dtype, shape });
            }),
            "DIR: model.extra: in the weights but not in the architecture of config.json (1 such)",
        ),
        (
            "missing shard",
            shards("b.safetensors"),
            "DIR/b.safetensors: cannot open weights: No such file or directory (os error 2)",
        ),
        (
            "shard outside the folder",
            shards("../a.safetensors"),
            "DIR/model.safetensors.index.json: model.norm.weight: `../a.safetensors` is no plain file name",
        ),
        (
            "tensor in another shard than the index says",
            Box::new(|dir| {
                shards("b.safetensors")(dir);
                let (dtype, shape) = (Dtype::F32, vec![2]);
                write(&dir.join("b.safetensors"), &[Entry { name: "x".into(), dtype, shape }]);
            }),
            "DIR/model.safetensors.index.json: model.norm.weight: not in b.safetensors as the index says, but in a.safetensors",
        ),
    ]
}

#[test]
fn broken_model_folders_exit_4_with_exact_messages() {
    for (what, damage, wanted) in broken() {
        let parent = TempDir::new().unwrap();
        let dir = parent.path().join("model");
        std::fs::rename(folder().keep(), &dir).unwrap();
        damage(&dir);
        let path = dir.display().to_string();
        let (code, stdout, stderr) = nepenthe(&["score", "--model", &path, "--text", "x"]);
        let first = stderr.lines().next().unwrap_or_default();
        let wanted = format!("error: {}", wanted.replace("DIR", &path));
        // Where the sentence ends in another library's words, only its beginning is ours.
        let same =
            if wanted.ends_with(": ") { first.starts_with(&wanted) } else { first == wanted };
        assert!(same, "{what}:\n got {first}\nwant {wanted}");
        assert_eq!((code, stdout.as_str()), (4, ""), "{what}: {stderr}");
    }
}

#[test]
fn folder_without_tokenizer_exits_4() {
    let dir = folder();
    let path = dir.path().display().to_string();
    let (code, _, stderr) = nepenthe(&["score", "--model", &path, "--text", "x"]);
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("tokenizer.json: cannot read the tokenizer"), "{stderr}");
}

const UNLEARN: [&str; 9] =
    ["unlearn", "--model", "m", "--forget", "f.txt", "--retain", "r.txt", "--out", "nepenthe-none"];

#[test]
fn configuration_errors_exit_2_and_name_the_nearest() {
    let cases: [(&[&str], &str); 5] = [
        (&["--preset", "muse-new"], "error: --preset muse-new: unknown"),
        (&["--set", "optim.momentun=1"], "hint: did you mean `optim.momentum`?"),
        (&["--set", "method.loss=nlull"], "nearest is nlul"),
        (&["--preste", "muse-news"], "'--preset'"),
        (&["--device", "cudo"], "'cuda'"),
    ];
    for (more, wanted) in cases {
        let (code, stdout, stderr) = nepenthe(&[&UNLEARN, more].concat());
        assert_eq!((code, stdout.as_str()), (2, ""), "{more:?}: {stderr}");
        assert!(stderr.contains(wanted), "{more:?}: {stderr}");
    }
    let (code, _, stderr) = nepenthe(&["unlern"]);
    assert!(code == 2 && stderr.contains("'unlearn'"), "{stderr}");
}

#[test]
fn out_that_is_not_empty_exits_2_without_resume() {
    let dir = folder();
    let out = dir.path().display().to_string();
    let mut args = UNLEARN;
    args[8] = &out;
    let (code, _, stderr) = nepenthe(&args);
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.contains("exists and is not empty\nhint: resume the run in it (--resume)"),
        "{stderr}"
    );
}

#[test]
fn missing_data_exits_3() {
    let dir = folder();
    let model = dir.path().display().to_string();
    let mut args = UNLEARN;
    (args[2], args[4]) = (&model, "no-such-file.jsonl");
    let (code, _, stderr) = nepenthe(&args);
    assert_eq!(code, 3, "{stderr}");
    assert!(
        stderr.starts_with("error: data.forget: no-such-file.jsonl: no such file\nhint: "),
        "{stderr}"
    );
}

#[test]
fn missing_setting_exits_2() {
    let (code, _, stderr) = nepenthe(&["unlearn", "--out", "nepenthe-none", "--model", "m"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.starts_with("error: data.forget: is not set\nhint: give --forget"), "{stderr}");
}

#[test]
fn plan_that_does_not_fit_exits_5_after_its_table() {
    let args = ["--json", "plan", "--params-preset", "llama-2-7b", "--gpu-memory", "24GiB"];
    let (code, stdout, stderr) = nepenthe(&args);
    assert_eq!(code, 5, "{stderr}");
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["fits"], false);
    assert!(stderr.starts_with("error: plan: state compact: one document of 1024 tokens needs "));
    assert!(stderr.contains("\nhint: ways out: "), "{stderr}");
}

#[test]
fn plan_prints_one_json_value_and_reads_a_folder() {
    let dir = folder();
    let model = dir.path().display().to_string();
    for which in [["--params-preset", "llama-2-7b"], ["--model", &model]] {
        let (code, stdout, stderr) = nepenthe(&[&["plan", "--json"][..], &which].concat());
        assert_eq!(code, 0, "{stderr}");
        let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(value["modes"].as_array().unwrap().len(), 4);
        assert_eq!(value["fits"], true);
    }
}

#[test]
fn plan_with_unknown_model_name_exits_2_with_the_nearest() {
    let (code, _, stderr) = nepenthe(&["plan", "--params-preset", "llama-2-7"]);
    assert!(code == 2 && stderr.contains("'llama-2-7b'"), "{stderr}");
}

#[test]
fn device_cuda_exits_6_before_anything_is_read() {
    for args in [
        &["score", "--model", "m", "--text", "x", "--device", "cuda"][..],
        &["generate", "--model", "m", "--prompt", "x", "--device", "cuda"],
        &["eval", "--model", "m", "--nll", "x.txt", "--device", "cuda"],
        &[&UNLEARN[..], &["--device", "cuda"]].concat(),
    ] {
        let (code, stdout, stderr) = nepenthe(args);
        assert_eq!((code, stdout.as_str()), (6, ""), "{stderr}");
        assert!(stderr.starts_with("error: device cuda: "), "{stderr}");
        assert!(stderr.contains("\nhint: "), "{stderr}");
    }
}

#[cfg(feature = "cuda")]
/// Runs the program where `libcuda.so.1` is a file that is no library, and with `visible` devices.
#[cfg(target_os = "linux")]
fn with_a_broken_driver(args: &[&str], visible: Option<&str>) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("libcuda.so.1"), "").unwrap();
    let mut command = Command::cargo_bin("nepenthe").unwrap();
    command.args(args).env("LD_LIBRARY_PATH", dir.path()).env_remove("CUDA_VISIBLE_DEVICES");
    if let Some(list) = visible {
        command.env("CUDA_VISIBLE_DEVICES", list);
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[cfg(all(target_os = "linux", feature = "cuda"))]
#[test]
fn device_auto_says_why_it_is_the_cpu_where_a_driver_is_and_does_not_work() {
    let note =
        "note: --device auto uses the CPU: device cuda: the NVIDIA driver library does not load: ";
    for args in [
        &["score", "--model", "m", "--text", "x"][..],
        &["generate", "--model", "m", "--prompt", "x"],
        &["eval", "--model", "m", "--nll", "x.txt"],
        &UNLEARN,
    ] {
        let (_, _, stderr) = with_a_broken_driver(args, None);
        let first = stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with(note) && first.contains("; hint: install"), "{args:?}: {stderr}");
        // Whoever hides the devices, or names the CPU, knows.
        let (_, _, stderr) = with_a_broken_driver(args, Some(""));
        assert!(!stderr.contains("--device auto"), "{args:?}: {stderr}");
        let (_, _, stderr) = with_a_broken_driver(&[args, &["--device", "cpu"]].concat(), None);
        assert!(!stderr.contains("--device auto"), "{args:?}: {stderr}");
    }
    let (code, stdout, _) = with_a_broken_driver(&["doctor"], None);
    assert_eq!(code, Some(0));
    let why = "not       device cuda: the NVIDIA driver library does not load: ";
    assert_eq!(stdout.lines().filter(|line| line.starts_with(why)).count(), 1, "{stdout}");
    assert!(stdout.trim_end().ends_with("use --device cpu"), "{stdout}");
}

#[test]
fn plan_says_which_devices_cannot_run_a_model() {
    let plan = |head_dim: usize, more: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            r#"{{"model_type":"llama","hidden_act":"silu","vocab_size":64,"hidden_size":64,"num_hidden_layers":1,
            "num_attention_heads":1,"head_dim":{head_dim},"intermediate_size":64}}"#
        );
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let model = dir.path().display().to_string();
        nepenthe(&[&["plan", "--model", &model], more].concat())
    };
    let (code, stdout, stderr) = plan(256, &[]);
    assert!(code == 0 && !stdout.contains("cannot run"), "{stdout}{stderr}");
    let (code, stdout, stderr) = plan(512, &[]);
    assert_eq!(code, 6, "{stderr}");
    assert!(stdout.contains("cannot run on compute capability 8.0, 8.6, "), "{stdout}");
    assert!(
        stderr.contains("no GPU runs this model: heads of width 512; kernels are for at most 256")
    );
    let (code, _, stderr) = plan(512, &["--device", "cpu", "--memory", "80GiB"]);
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = plan(512, &["--gpu-memory", "1GiB", "--json"]);
    assert_eq!(code, 6, "{stderr}");
}

#[test]
fn plan_tells_needed_memory_from_memory_that_is_just_too_small() {
    let plan = |memory: u64| {
        let memory = memory.to_string();
        nepenthe(&["plan", "--params-preset", "tiny", "--gpu-memory", &memory])
    };
    // The smallest memory that fits, to a byte.
    let (mut too_small, mut fits) = (1u64 << 20, 80 << 30);
    while fits - too_small > 1 {
        let middle = too_small + (fits - too_small) / 2;
        if plan(middle).0 == 0 { fits = middle } else { too_small = middle }
    }
    for memory in [too_small, too_small - 1000, too_small - 1_000_000] {
        let (code, _, stderr) = plan(memory);
        assert_eq!(code, 5, "{stderr}");
        let gib = |before: &str| stderr.split(before).nth(1).unwrap().split(' ').next().unwrap();
        assert_ne!(gib(" needs "), gib("memory is "), "{stderr}");
    }
}

#[test]
fn doctor_prints_one_json_value_and_a_page_for_people() {
    let (code, stdout, _) = nepenthe(&["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, stdout.lines().count()), (0, 1));
    for key in ["build", "cpu", "memory", "driver", "possible"] {
        assert!(value[key].is_object(), "{key}");
    }
    let (code, stdout, _) = nepenthe(&["doctor"]);
    assert!(code == 0 && stdout.starts_with("version   "), "{stdout}");
    assert!(stdout.lines().count() <= 24, "{stdout}");
    // A build either has kernels or says why not; never an image without a name.
    let kernels: Vec<&str> = stdout.lines().filter(|line| line.starts_with("kernels ")).collect();
    let none = value["build"]["kernels"].as_array().unwrap().is_empty();
    assert_eq!((kernels.len(), kernels[0].contains("none: ")), (1, none), "{stdout}");
}

#[test]
fn every_command_has_help_and_no_command_shows_it() {
    let commands = ["unlearn", "finetune", "eval", "generate", "score", "plan", "doctor"];
    for command in commands {
        let (code, stdout, stderr) = nepenthe(&[command, "--help"]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{command}");
        assert!(stdout.contains("Usage:") && stdout.contains("--json"), "{command}: {stdout}");
    }
    let (code, stdout, stderr) = nepenthe(&[]);
    assert!(code == 2 && stdout.is_empty());
    assert!(commands.iter().all(|command| stderr.contains(command)), "{stderr}");
    assert_eq!(nepenthe(&["--version"]).0, 0);
}

#[test]
fn wrong_sampling_settings_exit_2() {
    for (flag, value) in [("--temperature", "-1"), ("--top-p", "0"), ("--temperature", "nan")] {
        let setting = format!("{flag}={value}");
        let (code, _, stderr) = nepenthe(&["generate", "--model", "m", "--prompt", "x", &setting]);
        assert!(code == 2 && stderr.starts_with(&format!("error: {flag}: wanted ")), "{stderr}");
    }
}

/// Returns every command of `--help` with the sentence on it.
fn commands() -> Vec<(String, String)> {
    let (code, help, _) = nepenthe(&["--help"]);
    assert_eq!(code, 0);
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    let one = |line: &str| {
        let (name, about) = line.trim().split_once(' ')?;
        Some((name.to_owned(), about.trim().to_owned())).filter(|(name, _)| name != "help")
    };
    let commands: Vec<_> = lines.filter_map(one).collect();
    assert!(commands.len() > 10, "{help}");
    commands
}

#[test]
fn every_command_has_a_help_and_refuses_flags_that_it_lacks() {
    for (name, about) in commands() {
        let (code, help, _) = nepenthe(&[&name, "--help"]);
        assert!(code == 0 && help.contains("Usage:") && help.contains(&about), "{name}: {help}");
        let (code, stdout, stderr) = nepenthe(&[&name, "--no-such-flag"]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{name}: {stderr}");
        assert!(stderr.contains("--no-such-flag"), "{name}: {stderr}");
    }
}

/// README.md lists every command with the sentence that `--help` has for it; NEPENTHE_BLESS=1 writes the list.
#[test]
fn readme_lists_the_commands_of_the_help() {
    let rows = commands().into_iter().map(|(name, about)| format!("| `{name}` | {about} |"));
    let table: Vec<String> =
        ["| command | |", "|---|---|"].map(str::to_owned).into_iter().chain(rows).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = readme.split_once("<!-- commands -->\n").unwrap();
    let (_, tail) = rest.split_once("<!-- /commands -->").unwrap();
    let wanted = format!("{head}<!-- commands -->\n{}\n<!-- /commands -->{tail}", table.join("\n"));
    if std::env::var_os("NEPENTHE_BLESS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    } else {
        assert!(readme == wanted, "README.md: the table of commands is not that of --help");
    }
}

//! Recipes as a user meets them: hints, refusals, schedules, lengths, resuming and progress, through the command line.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use assert_cmd::Command;
use nepenthe::io::safetensors::Weights;
use serde_json::Value;
use support::{folder, model};
use tempfile::TempDir;

fn nepenthe(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("nepenthe").unwrap().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Plans for a known shape.
fn plan(more: &[&str]) -> (i32, String, String) {
    nepenthe(&[&["plan", "--params-preset", "tiny"], more].concat())
}

fn sets<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|setting| ["--set", *setting]).collect()
}

/// A recorded model with a forget and a retain set of 12 documents each.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        folder::recorded(dir.path());
        folder::corpus(dir.path(), "forget", 12, 20, 7);
        folder::corpus(dir.path(), "retain", 12, 20, 11);
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Runs `unlearn --out OUT` with a few small settings, then `more`.
    fn unlearn(&self, out: &str, more: &[&str]) -> (i32, String, String) {
        let small = sets(&[
            "run.micro_batch=2",
            "run.forget_accum_steps=1",
            "run.kl_accum_steps=1",
            "eval.documents=0",
        ]);
        let (out, cache) = (self.path(out), format!("data.cache={}", self.path("cache")));
        let (model, forget) = (self.path("model"), self.path("forget.jsonl"));
        let retain = self.path("retain.jsonl");
        let mut all = vec!["unlearn", "--device", "cpu", "--model", &model, "--forget", &forget];
        all.extend(["--retain", &retain, "--out", &out, "--set", &cache]);
        nepenthe(&[&all, &small[..], more].concat())
    }

    fn lines(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.0.path().join(out).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn rates(&self, out: &str) -> Vec<f64> {
        self.lines(out).iter().map(|line| line["lr"].as_f64().unwrap()).collect()
    }

    fn json(&self, name: &str) -> Value {
        folder::json_of(&self.0.path().join(name))
    }
}

#[test]
fn unknown_settings_lead_to_what_was_meant() {
    for (set, hint) in [
        ("lr=3", "did you mean `optim.lr`?"),
        ("steps=3", "did you mean `run.steps`?"),
        ("loss=ll", "did you mean `method.loss`?"),
        ("objective=simnpo", "did you mean `method.loss`?"),
        ("optim.momentun=1", "did you mean `optim.momentum`?"),
        ("optim=3", "its settings are optim.optimizer, "),
        ("run.x.y=3", "`nepenthe settings` lists all keys"),
        ("method.loss=lll", "nearest is ll"),
        ("model.train=BODY", "nearest is body"),
    ] {
        let (code, _, stderr) = plan(&["--set", set]);
        assert_eq!(code, 2, "{set}: {stderr}");
        assert!(stderr.contains(hint), "{set}: {stderr}");
        assert!(!stderr.contains("eval.retain"), "{set}: {stderr}");
    }
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("recipe.toml");
    for (text, message) in [
        ("lr = 3", "recipe.toml: unknown key `lr`\nhint: did you mean `optim.lr`?"),
        ("[optim]\nlr = \"high\"", "recipe.toml: optim.lr: wanted a number, got `high`"),
        (
            "[run]\nsteps = true",
            "recipe.toml: run.steps: wanted a whole number, 0 or more, got `true`",
        ),
        ("[method]\nloss = \"l\"", "recipe.toml: method.loss: `l` is unknown\nhint: known are "),
        ("[optimizer]\nlr = 1", "recipe.toml: unknown key `optimizer`"),
        ("[run]\nsteps = 3\nepochs = 2", "recipe.toml: run.epochs: is 2, but run.steps is 3"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, _, stderr) = plan(&["--config", file.to_str().unwrap()]);
        assert_eq!(code, 2, "{text}: {stderr}");
        assert!(stderr.contains(message), "{text}: {stderr}");
    }
}

#[test]
fn one_layer_is_a_number_as_well_as_a_text() {
    let place = Place::new();
    let trained = |out: &str, layers: &str| {
        let more = sets(&["run.steps=1", layers]);
        let (code, _, stderr) = place.unlearn(out, &more);
        assert_eq!(code, 0, "{stderr}");
        std::fs::read(place.0.path().join(out).join("model/model.safetensors")).unwrap()
    };
    let number = trained("number", "model.train_layers=1");
    assert!(number == trained("text", "model.train_layers=\"1\""));
    assert!(number == trained("range", "model.train_layers=1-1"));
    let file = place.path("recipe.toml");
    std::fs::write(&file, "[model]\ntrain_layers = 1\n").unwrap();
    assert_eq!(plan(&["--config", &file]).0, 0);
    std::fs::write(&file, "[model]\ntrain_layers = [1, 2]\n").unwrap();
    let (code, _, stderr) = plan(&["--config", &file]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("wanted a layer or a range of layers, such as 5 or \"5-7\""),
        "{stderr}"
    );
}

/// Recipes in which nothing can train, the setting that is to blame, and what the message says.
const IDLE: [(&[&str], &str); 8] = [
    (&["optim.lr=0"], "optim.lr: is 0, so nothing would train"),
    (
        &["method.forget_weight=0", "method.penalty=none"],
        "method.forget_weight: is 0, and there is no penalty",
    ),
    (
        &["method.forget_weight=0", "method.penalty=nll", "method.retain_weight=0"],
        "method.forget_weight: is 0, and the weight of every penalty (method.retain_weight) is 0",
    ),
    (
        &["method.forget_weight=0"],
        "method.forget_weight: is 0, and penalty qkl compares with the starting model",
    ),
    (
        &["method.forget_weight=0", "method.penalty=kl", "method.second_penalty=kl_tokens"],
        "method.forget_weight: is 0, and penalty kl compares with the starting model",
    ),
    (
        &["method.nlul_threshold=1"],
        "method.nlul_threshold: is 1 or more, so that the loss leaves every token alone",
    ),
    (&["model.train_layers=7-9"], "model.train_layers: names layer 9"),
    (
        &["method.loss=rmu", "method.rmu_layer=0", "model.train_layers=1"],
        "model.train_layers: start at 1, behind layer 0",
    ),
];

#[test]
fn a_recipe_in_which_nothing_can_train_is_refused_by_plan_and_run() {
    let place = Place::new();
    let model = place.path("model");
    for (settings, message) in IDLE {
        let (code, _, stderr) = plan(&sets(settings));
        assert_eq!(code, 2, "{settings:?}: {stderr}");
        assert!(stderr.contains(message), "{settings:?}: {stderr}");
        let (code, _, stderr) = place.unlearn("idle", &sets(settings));
        assert_eq!(code, 2, "{settings:?}: {stderr}");
        assert!(stderr.contains(message), "{settings:?}: {stderr}");
        assert!(!place.0.path().join("idle/model").exists());
    }
    let data = place.path("forget.jsonl");
    let out = place.path("idle");
    let idle = ["finetune", "--model", &model, "--data", &data, "--out", &out];
    let (code, _, stderr) = nepenthe(&[&idle[..], &["--set", "optim.lr=0"]].concat());
    assert!(code == 2 && stderr.contains("optim.lr: is 0"), "{stderr}");
}

#[test]
fn a_weight_of_zero_that_leaves_something_to_train_is_fine() {
    for settings in [
        &["method.forget_weight=0", "method.penalty=nll"][..],
        &["method.forget_weight=0", "method.penalty=kl", "method.second_penalty=nll"],
        &[
            "method.forget_weight=0",
            "method.penalty=nll",
            "method.retain_weight=0",
            "method.dual_rate=1",
        ],
        &["method.retain_weight=0"],
    ] {
        let (code, _, stderr) = plan(&sets(settings));
        assert_eq!(code, 0, "{settings:?}: {stderr}");
    }
}

#[test]
fn a_step_without_a_gradient_and_a_run_without_steps_are_said() {
    let place = Place::new();
    let silent = ["run.steps=2", "method.nlul_threshold=0.999999", "method.penalty=none"];
    let (code, _, stderr) = place.unlearn("silent", &sets(&silent));
    assert_eq!(code, 0, "{stderr}");
    let said = "warning: the gradient of step 0 is zero: no parameter moves";
    assert_eq!(stderr.matches(said).count(), 1, "{stderr}");
    assert!(place.json("silent/summary.json")["notices"].to_string().contains(said));
    let (code, _, stderr) = place.unlearn("none", &sets(&["run.steps=0"]));
    assert!(code == 0 && stderr.contains("warning: run.steps is 0: nothing trains"), "{stderr}");
}

#[test]
fn train_down_without_layers_moves_that_matrix_of_every_layer_and_nothing_else() {
    let place = Place::new();
    let more = sets(&["run.steps=2", "model.train=down", "model.save_dtype=f32", "optim.lr=0.05"]);
    let (code, _, stderr) = place.unlearn("run", &more);
    assert_eq!(code, 0, "{stderr}");
    let before = Weights::open(&place.0.path().join("model")).unwrap();
    let after = Weights::open(&place.0.path().join("run/model")).unwrap();
    let mut moved = 0;
    for name in before.names() {
        let same = before.read_f64(name).unwrap() == after.read_f64(name).unwrap();
        assert_eq!(same, !name.ends_with("down_proj.weight"), "{name}");
        moved += usize::from(!same);
    }
    let layers = place.json("model/config.json")["num_hidden_layers"].as_u64().unwrap();
    assert_eq!(moved as u64, layers);
    let (_, stdout, _) = plan(&["--json", "--set", "model.train=down"]);
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["modes"][0]["trainable"], 5 * 128 * 384);
}

#[test]
fn schedules_warm_up_at_once_and_decay_to_the_end_with_every_optimizer() {
    let place = Place::new();
    let near = |got: &[f64], want: &[f64]| {
        got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12)
    };
    let half = 0.5 * (1.0 + std::f64::consts::FRAC_1_SQRT_2);
    for (i, (settings, wanted)) in [
        (&["optim.optimizer=adamw", "run.steps=2"][..], vec![1.0, 1.0]),
        (&["optim.optimizer=adamw", "optim.warmup=2", "run.steps=3"], vec![0.5, 1.0, 1.0]),
        (&["optim.warmup=2", "run.steps=3"], vec![0.5, 1.0, 1.0]),
        (
            &["optim.schedule=linear", "optim.warmup=1", "run.steps=5"],
            vec![1.0, 1.0, 0.75, 0.5, 0.25],
        ),
        (
            &["optim.schedule=cosine", "optim.optimizer=adamw", "run.steps=4"],
            vec![1.0, half, 0.5, 1.0 - half],
        ),
        (&["optim.schedule=cosine", "optim.lr_min=1e-3", "run.steps=2"], vec![1.0, 1.0]),
        (
            &["optim.schedule=paper", "optim.optimizer=adamw", "optim.warmup=2", "run.steps=5"],
            vec![0.01, 0.01, 0.01, 0.5, 1.0],
        ),
        (&["optim.schedule=paper", "optim.optimizer=adamw", "run.steps=2"], vec![0.01, 1.0]),
        (&["optim.schedule=paper", "run.steps=2"], vec![1.0, 1.0]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("run{i}");
        let (code, _, stderr) =
            place.unlearn(&out, &sets(&[&["optim.lr=1e-3"], settings].concat()));
        assert_eq!(code, 0, "{settings:?}: {stderr}");
        let rates: Vec<f64> = place.rates(&out).iter().map(|rate| rate * 1e3).collect();
        assert!(near(&rates, &wanted), "{settings:?}: {rates:?}");
    }
    for (settings, message) in [
        (&["optim.lr_min=1e-5"][..], "optim.lr_min: is 1e-5, but without a decay it has no effect"),
        (&["optim.schedule=linear", "optim.lr_min=1"], "optim.lr_min: wanted 0 to optim.lr, got 1"),
        (&["optim.weight_decay=-1"], "optim.weight_decay: wanted 0 or more, got -1"),
    ] {
        let (code, _, stderr) = plan(&sets(settings));
        assert!(code == 2 && stderr.contains(message), "{settings:?}: {stderr}");
    }
}

#[test]
fn a_run_that_ends_inside_the_warm_up_says_so_in_plan_and_run() {
    let said = "warning: the learning rate never reaches optim.lr=1e-5: optim.schedule=paper holds lr/100 for 101 \
                steps and reaches optim.lr after 200, but the run has 3";
    let more = ["--preset", "npo-kl", "--set", "run.steps=3"];
    let (code, stdout, _) = plan(&more);
    assert!(code == 0 && stdout.contains(said), "{stdout}");
    let place = Place::new();
    let (code, _, stderr) = place.unlearn("run", &more);
    assert!(code == 0 && stderr.contains(said), "{stderr}");
    let notices = place.json("run/summary.json")["notices"].to_string();
    assert!(notices.contains("never reaches optim.lr"), "{notices}");
    assert!(!plan(&["--preset", "npo-kl"]).1.contains("never reaches"));
}

#[test]
fn epochs_become_steps_that_plan_and_summary_print() {
    let place = Place::new();
    // 12 documents, 2 a step.
    let (code, _, stderr) = place.unlearn("run", &sets(&["run.epochs=2"]));
    assert_eq!(code, 0, "{stderr}");
    let said = "run.epochs=2: 12 steps of 2 forget documents, of which there are 12";
    assert!(stderr.contains(said), "{stderr}");
    let summary = place.json("run/summary.json");
    assert_eq!((&summary["steps"], &summary["epochs"]), (&12.into(), &2.0.into()));
    assert_eq!(place.lines("run").len(), 12);
    let text = std::fs::read_to_string(place.0.path().join("run/config.resolved.toml")).unwrap();
    assert!(text.contains("\nsteps = 12\n") && text.contains("\nepochs = 0\n"), "{text}");

    let (model, forget) = (place.path("model"), place.path("forget.jsonl"));
    let small = sets(&["run.epochs=2", "run.micro_batch=2", "run.forget_accum_steps=1"]);
    let common = ["plan", "--device", "cpu", "--model", &model];
    let (code, stdout, _) = nepenthe(&[&common[..], &["--forget", &forget], &small].concat());
    assert!(code == 0 && stdout.contains(said), "{stdout}");
    let (code, stdout, _) = nepenthe(&[&common[..], &small].concat());
    assert!(code == 0 && stdout.contains("run.epochs=2: the steps follow from"), "{stdout}");
    let (code, _, stderr) = plan(&sets(&["run.epochs=2", "run.steps=3"]));
    assert!(code == 2 && stderr.contains("leave one of them out"), "{stderr}");
    let (_, stdout, _) = plan(&["--json", "--set", "run.steps=3"]);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["steps"], 3);
}

#[test]
fn every_preset_plans_and_those_of_other_methods_run() {
    let place = Place::new();
    for preset in nepenthe::run::recipe::presets::PRESETS {
        // The known shape has five layers, and RMU's preset names the eighth.
        let more = ["--params-preset", "llama-3.2-1b", "--preset", preset.name];
        let (code, _, stderr) = nepenthe(&[&["plan"], &more[..]].concat());
        assert_eq!(code, 0, "{}: {stderr}", preset.name);
    }
    let alternate = format!("data.alternate={}", place.path("retain.jsonl"));
    for preset in ["ga", "graddiff", "idk", "dpo", "npo", "simnpo", "rmu", "finetune"] {
        let mut more = vec!["--preset", preset, "--set", "run.steps=1", "--set", "optim.warmup=0"];
        match preset {
            "dpo" => more.extend(["--set", &alternate]),
            "rmu" => more.extend(sets(&["method.rmu_layer=1", "model.train_layers=0-1"])),
            _ => {}
        }
        let (code, _, stderr) = place.unlearn(preset, &more);
        assert_eq!(code, 0, "{preset}: {stderr}");
        assert!(place.lines(preset)[0]["grad_norm"].as_f64().unwrap() > 0.0, "{preset}");
    }
}

#[test]
fn resume_with_nothing_but_out_goes_on_and_another_recipe_is_told_apart_by_key() {
    let place = Place::new();
    let settings = ["optim.lr=0.05", "method.damping=2", "run.steps=4", "optim.clip=inf"];
    assert_eq!(place.unlearn("whole", &sets(&settings)).0, 0);
    let mut half = settings;
    half[2] = "run.steps=2";
    assert_eq!(place.unlearn("run", &sets(&half)).0, 0);
    let own = place.path("run/config.resolved.toml");
    let first = std::fs::read_to_string(&own).unwrap();
    let out = place.path("run");
    let resume = |more: &[&str]| {
        nepenthe(&[&["unlearn", "--device", "cpu", "--resume", "--out", &out], more].concat())
    };
    let (code, _, stderr) = resume(&[]);
    assert!(code == 0 && stderr.contains("resuming with the recipe of the run"), "{stderr}");
    assert_eq!(place.lines("run").len(), 2);

    let (code, _, stderr) = resume(&sets(&["optim.lr=0.125", "method.damping=3"]));
    assert_eq!(code, 2, "{stderr}");
    for part in ["optim.lr is 0.05 there, 0.125 here", "method.damping is 2.0 there, 3.0 here"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert_eq!(std::fs::read_to_string(&own).unwrap(), first);
    let (model, forget) = (place.path("model"), place.path("retain.jsonl"));
    let paths = ["--model", &model, "--forget", &forget, "--retain", &forget];
    let (code, _, stderr) = resume(&[&paths[..], &["--preset", "npo-kl"]].concat());
    assert_eq!(code, 2, "{stderr}");
    for part in
        ["optim.optimizer is sgd there, adamw here", "method.loss is nlul there, npo_mt here"]
    {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(stderr.contains("forget set (data.forget) differs"), "{stderr}");

    let (code, _, stderr) = resume(&["--set", "run.steps=4"]);
    assert_eq!(code, 0, "{stderr}");
    let bytes = |run: &str| {
        std::fs::read(place.0.path().join(run).join("model/model.safetensors")).unwrap()
    };
    assert!(bytes("run") == bytes("whole"));

    let none = place.path("none");
    let (code, _, stderr) = nepenthe(&["unlearn", "--resume", "--out", &none]);
    assert_eq!(code, 2);
    assert!(stderr.contains("has no config.resolved.toml to go on with"), "{stderr}");
}

#[test]
fn finetune_resumes_with_its_own_recipe_too() {
    let place = Place::new();
    let (model, data) = (place.path("model"), place.path("forget.jsonl"));
    let out = place.path("tuned");
    let cache = format!("data.cache={}", place.path("cache"));
    let start = ["finetune", "--device", "cpu", "--model", &model, "--data", &data, "--out", &out];
    let small = sets(&["run.steps=2", "eval.documents=0", "optim.lr=0.001", &cache]);
    assert_eq!(nepenthe(&[&start[..], &small].concat()).0, 0);
    assert_eq!(place.rates("tuned"), [0.001, 0.001]);
    let resume = ["finetune", "--device", "cpu", "--resume", "--out", &out];
    let (code, _, stderr) = nepenthe(&[&resume[..], &["--set", "run.steps=3"]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(place.lines("tuned").len(), 3);
}

#[test]
fn a_decay_belongs_to_the_length_that_it_was_started_with() {
    let place = Place::new();
    let start = sets(&["optim.schedule=linear", "run.steps=2"]);
    assert_eq!(place.unlearn("run", &start).0, 0);
    let out = place.path("run");
    let (code, _, stderr) =
        nepenthe(&["unlearn", "--resume", "--out", &out, "--set", "run.steps=4"]);
    assert!(code == 2 && stderr.contains("run.steps is 2 there, 4 here"), "{stderr}");
}

#[test]
fn resolved_recipe_explains_every_setting_and_is_a_recipe() {
    let place = Place::new();
    assert_eq!(place.unlearn("run", &sets(&["run.steps=1", "optim.clip=inf"])).0, 0);
    let path = place.path("run/config.resolved.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (mut settings, mut comments) = (0, 0);
    for (before, line) in text.lines().zip(text.lines().skip(1)) {
        assert!(line.len() <= 130 || !line.starts_with('#'), "{line}");
        if line.contains(" = ") && !line.starts_with('#') {
            settings += 1;
            comments += usize::from(before.starts_with("# "));
        }
    }
    let all = nepenthe::run::recipe::settings::SETTINGS.len();
    assert_eq!((settings, comments), (all, all));
    let again = nepenthe(&["plan", "--params-preset", "tiny", "--config", &path]);
    assert_eq!(again.0, 0, "{}", again.2);
}

#[test]
fn stderr_that_is_no_terminal_gets_the_first_and_the_last_step_by_name() {
    let place = Place::new();
    let (_, _, stderr) = place.unlearn("run", &sets(&["run.steps=5"]));
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("step ")).collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert!(
        lines[0].starts_with("step 1/5  nll_forget ") && lines[0].contains("  qkl "),
        "{stderr}"
    );
    assert!(
        lines[1].starts_with("step 5/5  nll_forget ") && lines[1].contains("  norm "),
        "{stderr}"
    );
    let hidden = ["run.steps=1", "method.loss=rmu", "method.rmu_layer=1", "method.penalty=none"];
    let (code, _, stderr) = place.unlearn("rmu", &sets(&hidden));
    assert!(code == 0 && stderr.contains("step 1/1  rmu "), "{stderr}");
}

#[test]
fn plan_says_what_changes_the_result_and_which_contexts_the_model_has_no_positions_for() {
    let (code, stdout, _) = plan(&[]);
    assert_eq!(code, 0);
    assert!(stdout.contains("run.micro_batch is a hyperparameter"), "{stdout}");
    assert!(stdout.contains("400 steps, 40 forget and 40 retain documents each"), "{stdout}");
    let place = Place::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data");
    for name in ["gpt2", "opt"] {
        // A folder with a tokenizer, and documents longer than its positions.
        let dir = place.0.path().join(name);
        model::random(name, 59, &dir);
        let model = dir.display().to_string();
        let (code, stdout, _) = nepenthe(&["plan", "--device", "cpu", "--model", &model]);
        assert_eq!(code, 0);
        for key in
            ["data.forget_context is 1024", "data.retain_context is 512", "--set eval.context=128"]
        {
            assert!(stdout.contains(key), "{name}: {key}: {stdout}");
        }
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(golden.join("tokenizer/bytelevel").join(file), dir.join(file)).unwrap();
        }
        folder::corpus(place.0.path(), "long", 2, 400, 3);
        let long = place.path("long.jsonl");
        let texts = place.path("texts.jsonl");
        std::fs::write(&texts, "{\"text\": \"one two three four five six seven eight\"}\n")
            .unwrap();
        let run = |forget: &str, more: &[&str]| {
            let out = place.path(&format!("{name}-run"));
            let retain = place.path("retain.jsonl");
            let all = ["unlearn", "--device", "cpu", "--model", &model, "--forget", forget];
            let rest = ["--retain", &retain, "--out", &out, "--set", "run.steps=1"];
            nepenthe(&[&all[..], &rest, more].concat())
        };
        let (code, _, stderr) = run(&long, &[]);
        assert!(
            code == 2 && stderr.contains("lower data.forget_context to at most 128"),
            "{stderr}"
        );
        let evaluated = format!("eval.forget={long}");
        let (code, _, stderr) = run(&texts, &["--set", &evaluated]);
        assert!(code == 2 && stderr.contains("lower eval.context to at most 128"), "{stderr}");
        let (code, _, stderr) = run(&texts, &["--set", "eval.max_new_tokens=500"]);
        assert!(code == 2 && stderr.contains("lower eval.max_new_tokens to at most 1"), "{stderr}");
    }
}

//! Settings by name: the paper's, those of other methods' code, plain training, and the demo's.

use toml::Table;

use crate::error::{Error, Result, nearest};

/// Settings to start from.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Loss, penalty, optimizer.
    pub method: &'static str,
    /// Its `optim.schedule`.
    pub schedule: &'static str,
    /// Where its numbers are from, and what to know before use.
    pub notes: &'static str,
    /// The settings.
    pub toml: &'static str,
}

/// Every preset.
///
/// Those of TOFU's family train on whole records, where their code trains on answers alone, and warm up by `lr (s + 1)/w`,
/// where theirs starts at 0.
#[rustfmt::skip]
pub const PRESETS: [Preset; 13] = [
    Preset {
        name: "muse-news",
        method: "NLUL + QKL, mean teacher, SGD",
        schedule: "paper",
        notes: "mt-unlearn, log headers of the News runs, `mt_nlul_qkl.yaml`; steps are the longest run. The paper's settings for many short articles. With SGD the schedule `paper` is a constant rate.",
        toml: r#"
        [data]
        forget_context = 1024
        retain_context = 512
        [method]
        loss = "nlul"
        penalty = "qkl"
        forget_weight = 0.05
        retain_weight = 1.0
        teacher_rate = 0.005
        damping = 5.0
        tol = 0.02
        [optim]
        optimizer = "sgd"
        schedule = "paper"
        lr = 5e-4
        momentum = 0.95
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 10
        kl_accum_steps = 10
        steps = 2000
        "#,
    },
    Preset {
        name: "muse-books",
        method: "NLUL + QKL, mean teacher, SGD",
        schedule: "paper",
        notes: "mt-unlearn, log headers of the Books runs. The paper's settings for long texts: forget documents are chunked. A constant rate, as for muse-news.",
        toml: r#"
        [data]
        forget_context = 1024
        retain_context = 512
        forget_chunking = true
        [method]
        loss = "nlul"
        penalty = "qkl"
        forget_weight = 0.1
        retain_weight = 1.0
        teacher_rate = 0.005
        damping = 5.0
        tol = 0.02
        [optim]
        optimizer = "sgd"
        schedule = "paper"
        lr = 5e-4
        momentum = 0.95
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 10
        kl_accum_steps = 10
        steps = 2000
        "#,
    },
    Preset {
        name: "muse-news-kl",
        method: "NLUL + KL, mean teacher, SGD",
        schedule: "paper",
        notes: "mt-unlearn, log headers of the News runs: KL instead of QKL. A constant rate, as for muse-news.",
        toml: r#"
        [method]
        loss = "nlul"
        penalty = "kl"
        forget_weight = 0.05
        teacher_rate = 0.005
        damping = 5.0
        [optim]
        optimizer = "sgd"
        schedule = "paper"
        lr = 5e-4
        momentum = 0.95
        [run]
        micro_batch = 4
        forget_accum_steps = 10
        kl_accum_steps = 10
        steps = 2000
        "#,
    },
    Preset {
        name: "npo-kl",
        method: "NPO + KL, AdamW",
        schedule: "paper",
        notes: "mt-unlearn, `adamw_npo_kl.yaml`: the paper's NPO baseline. Steps 0 to 100 at lr/100, then a ramp that reaches lr at step 200 of 300: a shorter run needs a shorter optim.warmup or another schedule.",
        toml: r#"
        [method]
        loss = "npo_mt"
        penalty = "kl"
        forget_weight = 0.05
        retain_weight = 1.0
        teacher_rate = 0.0
        damping = 0.0
        beta_npo = 0.1
        [optim]
        optimizer = "adamw"
        schedule = "paper"
        lr = 1e-5
        b1 = 0.9
        b2 = 0.95
        warmup = 100
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 10
        kl_accum_steps = 10
        steps = 300
        "#,
    },
    Preset {
        name: "ga",
        method: "gradient ascent, AdamW",
        schedule: "linear",
        notes: "locuslab/tofu at bdc209ea, `config/forget.yaml` and README (`grad_ascent`): Llama-2-7B, 5 epochs of 32 documents, one epoch of warm-up (12 steps: that of forget10; set optim.warmup for other sets).",
        toml: r#"
        [model]
        train = "all"
        [data]
        order = "epochs"
        forget_context = 500
        retain_context = 500
        retain_chunking = false
        [method]
        loss = "ll"
        penalty = "none"
        forget_weight = 1.0
        teacher_rate = 0.0
        damping = 0.0
        [optim]
        optimizer = "adamw"
        schedule = "linear"
        warmup = 12
        lr = 1e-5
        b1 = 0.9
        b2 = 0.999
        eps = 1e-8
        weight_decay = 0.01
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 8
        epochs = 5
        "#,
    },
    Preset {
        name: "graddiff",
        method: "gradient ascent + NLL on retain documents, AdamW",
        schedule: "linear",
        notes: "locuslab/tofu at bdc209ea (`grad_diff`): as ga, with one retain document for each forget document.",
        toml: r#"
        [model]
        train = "all"
        [data]
        order = "epochs"
        forget_context = 500
        retain_context = 500
        retain_chunking = false
        [method]
        loss = "ll"
        penalty = "nll"
        forget_weight = 1.0
        retain_weight = 1.0
        teacher_rate = 0.0
        damping = 0.0
        [optim]
        optimizer = "adamw"
        schedule = "linear"
        warmup = 12
        lr = 1e-5
        b1 = 0.9
        b2 = 0.999
        eps = 1e-8
        weight_decay = 0.01
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 8
        kl_accum_steps = 8
        epochs = 5
        "#,
    },
    Preset {
        name: "idk",
        method: "NLL on refusals + NLL on retain documents, AdamW",
        schedule: "linear",
        notes: "locuslab/tofu at bdc209ea (`idk`): `--forget` names the questions with refusals for answers. There the mean is over the tokens of both sets together, here the mean of both means.",
        toml: r#"
        [model]
        train = "all"
        [data]
        order = "epochs"
        forget_context = 500
        retain_context = 500
        retain_chunking = false
        [method]
        loss = "nll"
        penalty = "nll"
        forget_weight = 0.5
        retain_weight = 0.5
        teacher_rate = 0.0
        damping = 0.0
        [optim]
        optimizer = "adamw"
        schedule = "linear"
        warmup = 12
        lr = 1e-5
        b1 = 0.9
        b2 = 0.999
        eps = 1e-8
        weight_decay = 0.01
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 8
        kl_accum_steps = 8
        epochs = 5
        "#,
    },
    Preset {
        name: "dpo",
        method: "DPO against refusals + NLL on retain documents, AdamW",
        schedule: "linear",
        notes: "licong-lin/negative-preference-optimization at 1207bbe9 (`dpo_grad_diff`): `data.alternate` names the questions with refusals for answers. 10 epochs; the rest as ga.",
        toml: r#"
        [model]
        train = "all"
        [data]
        order = "epochs"
        forget_context = 500
        retain_context = 500
        retain_chunking = false
        [method]
        loss = "dpo"
        penalty = "nll"
        forget_weight = 1.0
        retain_weight = 1.0
        beta_npo = 0.1
        teacher_rate = 0.0
        damping = 0.0
        [optim]
        optimizer = "adamw"
        schedule = "linear"
        warmup = 12
        lr = 1e-5
        b1 = 0.9
        b2 = 0.999
        eps = 1e-8
        weight_decay = 0.01
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 8
        kl_accum_steps = 8
        epochs = 10
        "#,
    },
    Preset {
        name: "npo",
        method: "NPO + NLL on retain documents, AdamW",
        schedule: "linear",
        notes: "licong-lin/negative-preference-optimization at 1207bbe9, `TOFU/config/forget.yaml` (`npo_grad_diff`): beta 0.1, 10 epochs; the rest as ga.",
        toml: r#"
        [model]
        train = "all"
        [data]
        order = "epochs"
        forget_context = 500
        retain_context = 500
        retain_chunking = false
        [method]
        loss = "npo"
        penalty = "nll"
        forget_weight = 1.0
        retain_weight = 1.0
        beta_npo = 0.1
        teacher_rate = 0.0
        damping = 0.0
        [optim]
        optimizer = "adamw"
        schedule = "linear"
        warmup = 12
        lr = 1e-5
        b1 = 0.9
        b2 = 0.999
        eps = 1e-8
        weight_decay = 0.01
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 8
        kl_accum_steps = 8
        epochs = 10
        "#,
    },
    Preset {
        name: "simnpo",
        method: "SimNPO + NLL on retain documents, AdamW",
        schedule: "linear",
        notes: "OPTML-Group/Unlearn-Simple at f1a355d3, `TOFU/config/forget.yaml` and README: forget10 (for forget05 forget_weight 0.1375, beta_simnpo 2.5). 32 micro-batches of one document; the rest as npo.",
        toml: r#"
        [model]
        train = "all"
        [data]
        order = "epochs"
        forget_context = 500
        retain_context = 500
        retain_chunking = false
        [method]
        loss = "simnpo"
        penalty = "nll"
        forget_weight = 0.125
        retain_weight = 1.0
        beta_simnpo = 4.5
        delta_simnpo = 0.0
        teacher_rate = 0.0
        damping = 0.0
        [optim]
        optimizer = "adamw"
        schedule = "linear"
        warmup = 12
        lr = 1e-5
        b1 = 0.9
        b2 = 0.999
        eps = 1e-8
        weight_decay = 0.01
        clip = 1.0
        [run]
        micro_batch = 1
        forget_accum_steps = 32
        kl_accum_steps = 32
        epochs = 10
        "#,
    },
    Preset {
        name: "rmu",
        method: "RMU, AdamW",
        schedule: "constant",
        notes: "centerforaisafety/wmdp, `run_rmu_zephyr.ipynb` (as repeated by jeanne-s/wmdp_rec): Zephyr-7B, the down matrices of layers 5 to 7. No warm-up, no clipping. There biology and cybersecurity texts alternate and the latter are cut at 768 tokens; here there is one forget set.",
        toml: r#"
        [model]
        train = "down"
        train_layers = "5-7"
        [data]
        order = "epochs"
        forget_context = 512
        retain_context = 512
        retain_chunking = false
        [method]
        loss = "rmu"
        penalty = "rmu_retain"
        forget_weight = 1.0
        retain_weight = 1200.0
        rmu_layer = 7
        rmu_steering = 6.5
        teacher_rate = 0.0
        damping = 0.0
        [optim]
        optimizer = "adamw"
        schedule = "constant"
        lr = 5e-5
        b1 = 0.9
        b2 = 0.999
        eps = 1e-6
        weight_decay = 0.0
        clip = inf
        [run]
        micro_batch = 4
        forget_accum_steps = 1
        kl_accum_steps = 1
        steps = 150
        "#,
    },
    Preset {
        name: "finetune",
        method: "NLL, AdamW",
        schedule: "constant",
        notes: "Ours: ordinary fine-tuning, the preset of `nepenthe finetune`.",
        toml: r#"
        [method]
        loss = "nll"
        penalty = "none"
        forget_weight = 1.0
        retain_weight = 0.0
        teacher_rate = 0.0
        damping = 0.0
        [data]
        order = "epochs"
        [optim]
        optimizer = "adamw"
        schedule = "constant"
        lr = 1e-5
        b1 = 0.9
        b2 = 0.95
        weight_decay = 0.01
        clip = 1.0
        [run]
        micro_batch = 8
        forget_accum_steps = 1
        steps = 200
        "#,
    },
    Preset {
        name: "demo",
        method: "NLUL + QKL, mean teacher, SGD",
        schedule: "constant",
        notes: "Ours, for the embedded model; docs/demo.md says how the settings were found.",
        toml: r#"
        [method]
        loss = "nlul"
        penalty = "qkl"
        forget_weight = 0.05
        retain_weight = 5.0
        teacher_rate = 0.03
        damping = 0.025
        [optim]
        optimizer = "sgd"
        schedule = "constant"
        lr = 0.02
        momentum = 0.9
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 1
        kl_accum_steps = 6
        steps = 120
        checkpoint_every = 0
        [eval]
        every = 5
        max_new_tokens = 96
        batch = 40
        stop_metric = "verbmem_forget"
        stop_val = 0.21
        "#,
    },
];

/// Finds the settings of a preset by name.
///
/// Errors: [`crate::Kind::Config`] with the known names.
pub fn find(name: &str) -> Result<Table> {
    let names = || PRESETS.iter().map(|preset| preset.name);
    let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) else {
        let mut hint = format!("known are {}", names().collect::<Vec<_>>().join(", "));
        if let Some(near) = nearest(name, names()) {
            hint.push_str(&format!("; nearest is {near}"));
        }
        return Err(Error::config(format!("--preset {name}: unknown")).hint(hint));
    };
    preset.toml.parse().map_err(|e| Error::config(format!("preset {name}: {e}")))
}

#[cfg(test)]
mod tests {
    use toml::Value;

    use super::*;
    use crate::run::Recipe;
    use crate::run::recipe::settings;

    #[test]
    fn every_preset_makes_a_recipe_of_known_settings_with_the_schedule_that_it_names() {
        for preset in PRESETS {
            let recipe = Recipe::assemble(Some(preset.name), None, &[]).unwrap();
            let table = find(preset.name).unwrap();
            let schedule = table["optim"]["schedule"].as_str();
            assert_eq!(schedule, Some(preset.schedule), "{}", preset.name);
            assert!(recipe.remarks().is_empty(), "{}: {:?}", preset.name, recipe.remarks());
            for (section, values) in &table {
                for (key, value) in values.as_table().into_iter().flatten() {
                    let setting = settings::find(&format!("{section}.{key}")).unwrap();
                    assert!(setting.accept(Value::clone(value)).is_ok(), "{}: {key}", preset.name);
                }
            }
        }
    }
}

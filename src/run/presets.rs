//! Settings by name: the paper's, plain training, and the demo's.

use toml::Table;

use crate::error::{Error, Result, nearest};

/// Name and TOML of every preset. Source of the first four: the log headers of mt-unlearn (News and Books runs, `mt_nlul_qkl.yaml`,
/// `adamw_npo_kl.yaml`); steps are the longest run of each.
pub const PRESETS: [(&str, &str); 6] = [
    (
        "muse-news",
        r#"
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
        lr = 5e-4
        momentum = 0.95
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 10
        kl_accum_steps = 10
        steps = 2000
        "#,
    ),
    (
        "muse-books",
        r#"
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
        lr = 5e-4
        momentum = 0.95
        clip = 1.0
        [run]
        micro_batch = 4
        forget_accum_steps = 10
        kl_accum_steps = 10
        steps = 2000
        "#,
    ),
    (
        "muse-news-kl",
        r#"
        [method]
        loss = "nlul"
        penalty = "kl"
        forget_weight = 0.05
        teacher_rate = 0.005
        damping = 5.0
        [optim]
        optimizer = "sgd"
        lr = 5e-4
        momentum = 0.95
        [run]
        micro_batch = 4
        forget_accum_steps = 10
        kl_accum_steps = 10
        steps = 2000
        "#,
    ),
    (
        "npo-kl",
        r#"
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
    ),
    (
        "finetune",
        r#"
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
    ),
    // Ours, for the embedded demo: docs/demo.md says how they were found.
    (
        "demo",
        r#"
        [method]
        loss = "nlul"
        penalty = "qkl"
        forget_weight = 0.05
        retain_weight = 5.0
        teacher_rate = 0.03
        damping = 0.025
        [optim]
        optimizer = "sgd"
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
    ),
];

/// Finds a preset by name.
pub fn find(name: &str) -> Result<Table> {
    let names = || PRESETS.iter().map(|(name, _)| *name);
    let Some((_, text)) = PRESETS.iter().find(|(known, _)| *known == name) else {
        let mut hint = format!("known are {}", names().collect::<Vec<_>>().join(", "));
        if let Some(near) = nearest(name, names()) {
            hint.push_str(&format!("; nearest is {near}"));
        }
        return Err(Error::config(format!("--preset {name}: unknown")).hint(hint));
    };
    text.parse().map_err(|e| Error::config(format!("preset {name}: {e}")).with_source(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Recipe;

    #[test]
    fn every_preset_makes_a_recipe() {
        for (name, _) in PRESETS {
            Recipe::assemble(Some(name), None, &[]).unwrap();
        }
    }
}

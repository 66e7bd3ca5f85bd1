//! Suggestions for unknown keys.

use toml::Value;

use super::{SETTINGS, Setting, Type};
use crate::error::Error;

/// Names that other programs and papers give to settings.
const ELSEWHERE: [(&str, &str); 24] = [
    ("learning_rate", "optim.lr"),
    ("lr_scheduler", "optim.schedule"),
    ("lr_scheduler_type", "optim.schedule"),
    ("warmup_steps", "optim.warmup"),
    ("warmup_ratio", "optim.warmup"),
    ("beta1", "optim.b1"),
    ("beta2", "optim.b2"),
    ("adam_beta1", "optim.b1"),
    ("adam_beta2", "optim.b2"),
    ("adam_epsilon", "optim.eps"),
    ("max_grad_norm", "optim.clip"),
    ("max_steps", "run.steps"),
    ("num_epochs", "run.epochs"),
    ("num_train_epochs", "run.epochs"),
    ("batch_size", "run.micro_batch"),
    ("per_device_train_batch_size", "run.micro_batch"),
    ("gradient_accumulation_steps", "run.forget_accum_steps"),
    ("gradient_checkpointing", "run.save"),
    ("max_length", "data.forget_context"),
    ("alpha", "method.forget_weight"),
    ("beta", "method.retain_weight"),
    ("gamma", "method.forget_weight"),
    ("delta", "method.teacher_rate"),
    ("dtype", "model.save_dtype"),
];

/// Returns the error for a key that no setting has; `value`, if there is one, helps to guess what was meant.
pub(in crate::run::recipe) fn unknown(key: &str, value: Option<&Value>) -> Error {
    let inside = super::section(key);
    if !inside.is_empty() {
        let names: Vec<&str> = inside.iter().map(|setting| setting.key).collect();
        return Error::config(format!("`{key}` is a section, not a setting"))
            .hint(format!("its settings are {}", names.join(", ")));
    }
    let error = Error::config(format!("unknown key `{key}`"));
    let meant = meant(key, value);
    error.hint(match meant.as_slice() {
        [] => "`nepenthe settings` lists all keys".to_owned(),
        [one] => format!("did you mean `{}`?", one.key),
        several => {
            let names: Vec<String> = several.iter().map(|s| format!("`{}`", s.key)).collect();
            format!("did you mean {}?", names.join(" or "))
        }
    })
}

/// Returns the settings that an unknown key may mean: first those of the same name in another section, then the one that
/// other programs call so, then the one spelled alike, then the only one that takes such a word.
fn meant(key: &str, value: Option<&Value>) -> Vec<&'static Setting> {
    let key = key.trim().to_lowercase().replace('-', "_");
    let (section, name) = key.rsplit_once('.').unwrap_or(("", &key));
    let named: Vec<_> = SETTINGS.iter().filter(|setting| setting.place().1 == name).collect();
    if !named.is_empty() {
        return named;
    }
    if let Some((_, known)) = ELSEWHERE.iter().find(|(other, _)| *other == name) {
        return SETTINGS.iter().filter(|setting| setting.key == *known).collect();
    }
    // A name in the section that was named needs to be less alike than one elsewhere.
    let alike = |setting: &&'static Setting| {
        let (own, known) = setting.place();
        let least = if !section.is_empty() && own == section { 0.5 } else { 0.65 };
        let score = strsim::normalized_damerau_levenshtein(name, known);
        (score >= least).then_some((score - least, *setting))
    };
    let nearest = SETTINGS.iter().collect::<Vec<_>>();
    let nearest = nearest.iter().filter_map(alike).max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, setting)) = nearest {
        return vec![setting];
    }
    let Some(word) = value.and_then(Value::as_str) else { return Vec::new() };
    let takes = |setting: &&'static Setting| match setting.kind {
        Type::Word(words) => words().contains(&word),
        _ => false,
    };
    let takers: Vec<_> = SETTINGS.iter().filter(takes).collect();
    if takers.len() == 1 { takers } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lead_to_what_was_meant_and_to_nothing_where_nothing_is_near() {
        let hint = |key: &str, value: Option<&str>| {
            let value = value.map(|word| Value::String(word.into()));
            let error = unknown(key, value.as_ref());
            error.hint_text().unwrap().to_owned()
        };
        for (key, wanted) in [
            ("lr", "optim.lr"),
            ("steps", "run.steps"),
            ("loss", "method.loss"),
            ("train.lr", "optim.lr"),
            ("optim.learning_rate", "optim.lr"),
            ("optim.learning-rate", "optim.lr"),
            ("optim.momentun", "optim.momentum"),
            ("optim.warmpu", "optim.warmup"),
            ("modle.train", "model.train"),
            ("stop_metrics", "eval.stop_metric"),
            ("run.epoch", "run.epochs"),
            ("num_train_epochs", "run.epochs"),
        ] {
            assert_eq!(hint(key, None), format!("did you mean `{wanted}`?"), "{key}");
        }
        assert_eq!(hint("context", None), "did you mean `eval.context`?");
        assert_eq!(hint("retain", None), "did you mean `data.retain` or `eval.retain`?");
        assert_eq!(hint("objective", Some("simnpo")), "did you mean `method.loss`?");
        assert!(hint("optim", None).starts_with("its settings are optim.optimizer, optim.lr, "));
        for nonsense in ["x", "zz.q", "foo", ""] {
            assert_eq!(hint(nonsense, None), "`nepenthe settings` lists all keys", "{nonsense}");
        }
    }

    #[test]
    fn names_from_elsewhere_lead_to_settings_and_are_none_here() {
        for (other, known) in ELSEWHERE {
            assert!(SETTINGS.iter().any(|setting| setting.key == known), "{known}");
            assert!(SETTINGS.iter().all(|setting| setting.place().1 != other), "{other}");
        }
    }
}

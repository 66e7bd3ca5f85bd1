//! Metrics of a run's own model: the list of metrics, and the results of one evaluation.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::likelihood::NLL;
use super::metric::Metric;
use super::outcome::Named;
use super::verbatim::{Sample, VERBATIM};

/// Texts that a run measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Texts {
    /// Their name in keys.
    pub key: &'static str,
    /// Their name in reports.
    pub label: &'static str,
}

/// The forget set.
pub const FORGET: Texts = Texts { key: "forget", label: "the forget set" };
/// The retain set.
pub const RETAIN: Texts = Texts { key: "retain", label: "the retain set" };
/// Texts that neither the model nor the run has seen.
pub const HOLDOUT: Texts = Texts { key: "holdout", label: "held-out text" };

/// The metrics of a run, in the order of its output.
const LIST: [(&Metric, Texts); 5] =
    [(&VERBATIM, FORGET), (&VERBATIM, RETAIN), (&NLL, FORGET), (&NLL, RETAIN), (&NLL, HOLDOUT)];

/// A metric of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitored {
    /// The metric.
    pub metric: &'static Metric,
    /// Its key in the run's output.
    pub key: String,
    /// Its name in reports, with its unit.
    pub label: String,
}

static MONITORED: LazyLock<Vec<Monitored>> = LazyLock::new(|| {
    let one = |(metric, texts): (&'static Metric, Texts)| {
        let name = metric.label.unwrap_or(metric.name);
        let label = format!("{name} of {} ({})", texts.label, metric.unit);
        Monitored { metric, key: metric.key(texts.key), label }
    };
    LIST.map(one).into()
});

/// Returns every metric that a run can measure, in the order of its output.
pub fn monitored() -> &'static [Monitored] {
    &MONITORED
}

/// Returns the keys of [`monitored`].
pub fn keys() -> Vec<&'static str> {
    monitored().iter().map(|one| one.key.as_str()).collect()
}

/// Finds a metric of a run by its key.
pub fn find(key: &str) -> Option<&'static Monitored> {
    monitored().iter().find(|one| one.key == key)
}

/// Returns the name of the metric `key` in reports: the key itself, where it is not of a run.
pub fn label(key: &str) -> &str {
    find(key).map_or(key, |one| &one.label)
}

/// Results of one evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The results, by the keys of [`monitored`].
    pub figures: BTreeMap<String, f64>,
    /// The first continuations of the forget set's prompts.
    pub samples: Vec<Sample>,
}

impl Measured {
    /// Returns the results in the order of [`monitored`].
    pub fn named(&self) -> Named<f64> {
        let known = monitored().iter().filter_map(|one| self.figures.get_key_value(&one.key));
        known.map(|(key, value)| (key.clone(), *value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_name_texts_and_unit() {
        assert_eq!(label("nll_holdout"), "NLL of held-out text (nats per token)");
        assert_eq!(label("verbmem_forget"), "verbatim memory of the forget set (ROUGE-L F1)");
        assert_eq!(label("privleak"), "privleak");
        let all = monitored();
        assert!(all.iter().enumerate().all(|(i, a)| all[..i].iter().all(|b| a.key != b.key)));
    }
}

//! Results of a run.

use std::path::PathBuf;

use serde::Serialize;

use crate::eval::monitored::{Measured, Monitored, monitored};
use crate::eval::outcome::Named;
use crate::eval::verbatim::Sample;
use crate::method::StepReport;

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Steps done.
    pub steps: u64,
    /// Passes over the forget set.
    pub epochs: f64,
    /// Steps whose gradient was clipped.
    pub clipped_steps: usize,
    /// True if the stop metric ended the run.
    pub stopped_early: bool,
    /// Fraction of the squared inputs that the subspaces of a gradient projection hold.
    pub shielded: Option<f64>,
    /// The step of the best model, where a stop metric is set and was reached from above.
    pub best_step: Option<u64>,
    /// Seconds in steps.
    pub seconds: f64,
    /// The last step; `None` where this process did none.
    pub last: Option<StepReport>,
    /// L2 distance of the student from the start.
    pub student_from_start: f64,
    /// L2 distance of the teacher from the start.
    pub teacher_from_start: f64,
    /// L2 distance of the student from the teacher.
    pub student_from_teacher: f64,
    /// Fraction of the change of the weights that rounding left in the written model; `None` before it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_saved: Option<f64>,
    /// Metrics of the start model, by the keys of [`monitored`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Named<f64>>,
    /// Metrics of the written model, loaded again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Named<f64>>,
    /// Metrics of a model that was never trained on the forget set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrain: Option<Named<f64>>,
    /// The first prompts of the forget set with their continuations.
    pub samples: Vec<Continuations>,
    /// Notices about model and data.
    pub notices: Vec<String>,
    /// The written model folder.
    pub model: PathBuf,
}

/// Continuations of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Continuations {
    /// The prompt.
    pub prompt: String,
    /// The true continuation.
    pub gt: String,
    /// That of the start model.
    pub before: String,
    /// That of the written model.
    pub after: String,
    /// That of the model that was never trained on the forget set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrain: Option<String>,
}

impl Continuations {
    /// Pairs the samples of the models.
    pub(super) fn pair(
        before: &Measured,
        after: &Measured,
        retrain: Option<&Measured>,
    ) -> Vec<Self> {
        let pairs = before.samples.iter().zip(&after.samples).enumerate();
        let one = |(i, (before, after)): (usize, (&Sample, &Sample))| Self {
            prompt: before.prompt.clone(),
            gt: before.gt.clone(),
            before: before.response.clone(),
            after: after.response.clone(),
            retrain: retrain.and_then(|one| Some(one.samples.get(i)?.response.clone())),
        };
        pairs.map(one).collect()
    }
}

impl Summary {
    /// Lays the metrics out: a heading row, then for each metric a row of its values before, after and retrained; empty
    /// where nothing was measured.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let Self { before, after, retrain, .. } = self;
        let columns = [("before", before), ("after", after), ("retrained without it", retrain)];
        let columns: Vec<(&str, &Named<f64>)> =
            columns.into_iter().filter_map(|(name, one)| Some((name, one.as_ref()?))).collect();
        if columns.is_empty() {
            return Vec::new();
        }
        let head = std::iter::once(String::new());
        let head = head.chain(columns.iter().map(|(name, _)| (*name).to_owned())).collect();
        let row = |one: &Monitored| {
            let value = |(_, figures): &(&str, &Named<f64>)| figures.get(&one.key).copied();
            columns.iter().any(|column| value(column).is_some()).then(|| {
                let cell = |column| value(column).map_or("-".to_owned(), |v| format!("{v:.3}"));
                let name = std::iter::once(one.label.clone());
                name.chain(columns.iter().map(cell)).collect()
            })
        };
        std::iter::once(head).chain(monitored().iter().filter_map(row)).collect()
    }
}

//! report.html: what a run did, as one page that opens offline.

use std::path::Path;

use serde_json::{Value, json};

use super::recipe::Recipe;
use super::watch::Watch;
use crate::error::Result;
use crate::eval::metric::Metric;
use crate::eval::monitored::{Measured, Monitored, monitored};
use crate::eval::verbatim::Sample;
use crate::io::atomic::write_file_atomic;
use crate::method::Method;
use crate::report::html::Page;
use crate::report::svg::Chart;

/// What was logged and measured in a run and around it.
#[derive(Debug)]
pub struct Outcome {
    /// The lines of metrics.jsonl.
    pub lines: Vec<Value>,
    /// The evaluations inside the run; the first is of the untouched model.
    pub watch: Watch,
    /// The written model.
    pub after: Option<Measured>,
    /// The model that never saw the forget set.
    pub retrain: Option<Measured>,
}

impl Outcome {
    /// Returns the first prompts with their continuations before, after and by the retrained model.
    pub fn samples(&self) -> Value {
        let (Some(before), Some(after)) = (self.watch.entries.first(), &self.after) else {
            return json!([]);
        };
        let pairs = before.measured.samples.iter().zip(&after.samples).enumerate();
        let sample = |(i, (old, new)): (usize, (&Sample, &Sample))| {
            let mut value = json!({
                "prompt": old.prompt, "gt": old.gt, "before": old.response, "after": new.response,
            });
            if let Some(retrain) = self.retrain.as_ref().and_then(|one| one.samples.get(i)) {
                value["retrain"] = json!(retrain.response);
            }
            value
        };
        pairs.map(sample).collect()
    }
}

/// Lays the figures of a summary out: a heading row, then a row a figure with its value before, after and retrained.
pub fn rows(summary: &Value) -> Vec<Vec<String>> {
    let columns: Vec<(&str, &str)> =
        [("before", "before"), ("after", "after"), ("retrain", "retrained without it")]
            .into_iter()
            .filter(|(key, _)| summary[*key].is_object())
            .collect();
    if columns.is_empty() {
        return Vec::new();
    }
    let head = std::iter::once(String::new());
    let head = head.chain(columns.iter().map(|(_, name)| (*name).to_owned())).collect();
    let row = |one: &Monitored| {
        let value = |key: &str| summary[key][&one.key].as_f64();
        columns.iter().any(|(key, _)| value(key).is_some()).then(|| {
            let cell = |(key, _): &(&str, &str)| {
                value(key).map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"))
            };
            let name = std::iter::once(one.label.clone());
            name.chain(columns.iter().map(cell)).collect()
        })
    };
    std::iter::once(head).chain(monitored().iter().filter_map(row)).collect()
}

/// What a person or [`super::recorded`] wants to know of a run that its other files do not say.
fn record(method: &Method, summary: &Value) -> Value {
    let mut record = summary.clone();
    record["loss_formula"] = json!(method.loss().formula());
    record["penalty_formula"] = json!(method.penalty().map(|penalty| penalty.formula()));
    record["second_penalty_formula"] = json!(method.second().map(|penalty| penalty.formula()));
    record["peak_memory"] = json!(peak_memory());
    record
}

/// Returns the most memory that this process ever held on the host, in bytes; `None` where the system does not tell.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Writes report.html and summary.json into the run folder.
pub fn write(
    out: &Path,
    recipe: &Recipe,
    method: &Method,
    summary: &Value,
    outcome: &Outcome,
) -> Result<()> {
    let record = format!("{:#}\n", record(method, summary));
    write_file_atomic(&out.join("summary.json"), record.as_bytes())?;
    let lines = &outcome.lines;
    let curve = |key: &str| -> Vec<(f64, f64)> {
        lines
            .iter()
            .filter_map(|line| Some((line["global_step"].as_f64()?, line[key].as_f64()?)))
            .collect()
    };
    let chart = |title: &str, unit: &str, key: &str| {
        Chart::new(title, "step", unit).series(key, curve(key))
    };
    let number = |key: &str| match summary[key].as_f64() {
        Some(value) => format!("{value:.6}"),
        None => "-".to_owned(),
    };
    let penalty = method.penalty().map_or("none", |penalty| penalty.formula());
    let mut page = Page::new("nepenthe: report of a run");
    if let [head, body @ ..] = rows(summary).as_slice() {
        page = page.heading("Before and after").table(head, body).paragraph(
            "The figures after are those of the written model folder, loaded again. Documents and prompts are those \
             named under [eval] of the recipe below, else taken from the training corpora.",
        );
    }
    page = samples(page, summary);
    page = page.heading("The run").facts(&[
        ("steps", summary["steps"].to_string()),
        ("stopped by its metric", summary["stopped_early"].to_string()),
        ("seconds in steps", number("seconds")),
        ("seed", recipe.seed.to_string()),
        ("student's distance from start (L2)", number("student_from_start")),
        ("teacher's distance from start (L2)", number("teacher_from_start")),
        ("student's distance from teacher (L2)", number("student_from_teacher")),
        ("steps with clipping active", format!("{} of {}", summary["clipped_steps"], lines.len())),
    ]);
    let notices = summary["notices"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let notices: Vec<Vec<&str>> = notices.map(|text| vec![text]).collect();
    if !notices.is_empty() {
        page = page.heading("Notices").table(&["about model and data"], &notices);
    }
    page = page
        .heading("What was minimised")
        .formula(&format!("forget loss {}: {}", method.loss().name(), method.loss().formula()))
        .formula(&format!("penalty {}: {penalty}", recipe.method.penalty));
    if let Some(second) = method.second() {
        page = page.formula(&format!("second penalty {}: {}", second.name(), second.formula()));
    }
    if let Some(share) = summary["shielded"].as_f64() {
        page = page.formula(&format!(
            "of the loss's gradients off a subspace: {share:.3} of the inputs' squares"
        ));
    }
    page = page.heading("Curves");
    page = evaluations(page, outcome);
    let hidden = method.loss().rows(&method.knobs).hidden();
    let unit = if hidden { "mean squared distance" } else { "NLL, nats per token" };
    let page = page
        .chart(&chart("Forget documents of each step", unit, "loss_tr"))
        .chart(&chart("Penalty before its weight", "nats per position", "loss_kl"))
        .chart(&chart("Gradient norm before clipping", "L2 norm", "grad_norm").log_y())
        .chart(&chart("Clip factor", "factor", "clip_coef"))
        .folded("Recipe", &recipe.to_toml()?);
    write_file_atomic(&out.join("report.html"), page.finish().as_bytes())
}

/// Adds the continuations of the same prompts before and after.
fn samples(page: Page, summary: &Value) -> Page {
    let mut page = page;
    for (i, sample) in summary["samples"].as_array().into_iter().flatten().enumerate() {
        if i == 0 {
            page = page.heading("Continuations of forget documents");
        }
        let texts: Vec<(&str, &str)> = [
            ("before", "before"),
            ("after", "after"),
            ("retrained without it", "retrain"),
            ("true text", "gt"),
        ]
        .into_iter()
        .filter_map(|(name, key)| Some((name, sample[key].as_str()?)))
        .collect();
        page = page.samples(sample["prompt"].as_str().unwrap_or_default(), &texts);
    }
    page
}

/// Adds the curves of the evaluations inside the run, where there is more than the first.
fn evaluations(page: Page, outcome: &Outcome) -> Page {
    let entries = &outcome.watch.entries;
    if entries.len() < 2 {
        return page;
    }
    let mut page = page;
    for group in monitored().chunk_by(|a, b| a.metric == b.metric) {
        let metric = group[0].metric;
        let mut chart = Chart::new(title(metric), "step", metric.unit);
        for Monitored { key, .. } in group {
            let point = |entry: &super::watch::Entry| {
                Some((entry.step as f64, *entry.measured.figures.get(key)?))
            };
            let points: Vec<(f64, f64)> = entries.iter().filter_map(point).collect();
            if !points.is_empty() {
                chart = chart.series(key, points);
            }
        }
        let stop = outcome.watch.stop.as_ref();
        if let Some(stop) = stop.filter(|stop| group.iter().any(|one| one.key == stop.metric)) {
            chart = chart.mark_y(stop.bound, "stop");
        }
        page = page.chart(&chart);
    }
    page
}

/// Returns the name of a metric as a title.
fn title(metric: &Metric) -> String {
    capitalized(metric.label.unwrap_or(metric.name))
}

/// Returns `text` with its first letter in upper case.
pub(super) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

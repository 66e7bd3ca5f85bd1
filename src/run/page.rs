//! report.html: what a run did, as one page that opens offline.

use std::path::Path;

use serde_json::{Value, json};

use super::recipe::Recipe;
use super::summary::{Continuations, Summary};
use super::watch::Watch;
use crate::error::Result;
use crate::eval::metric::Metric;
use crate::eval::monitored::{Monitored, monitored};
use crate::io::atomic::write_file_atomic;
use crate::method::Method;
use crate::report::html::Page;
use crate::report::svg::Chart;

/// The logs of a run.
#[derive(Debug)]
pub(super) struct Logs {
    /// The lines of metrics.jsonl.
    pub(super) lines: Vec<Value>,
    /// The evaluations inside the run; the first is of the untouched model.
    pub(super) watch: Watch,
}

/// Returns the content of summary.json, which [`super::recorded`] reads: the summary, formulas, and peak memory.
fn record(method: &Method, summary: &Summary) -> Value {
    let mut record = json!(summary);
    if let Some(entries) = record.as_object_mut() {
        entries.shift_remove("model");
    }
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
pub(super) fn write(
    out: &Path,
    recipe: &Recipe,
    method: &Method,
    summary: &Summary,
    logs: &Logs,
) -> Result<()> {
    let record = format!("{:#}\n", record(method, summary));
    write_file_atomic(&out.join("summary.json"), record.as_bytes())?;
    let lines = &logs.lines;
    let curve = |key: &str| -> Vec<(f64, f64)> {
        lines
            .iter()
            .filter_map(|line| Some((line["global_step"].as_f64()?, line[key].as_f64()?)))
            .collect()
    };
    let chart = |title: &str, unit: &str, key: &str| {
        Chart::new(title, "step", unit).series(key, curve(key))
    };
    // JSON has no numbers that are not finite.
    let number = |value: f64| match value.is_finite() {
        true => format!("{value:.6}"),
        false => "-".to_owned(),
    };
    let penalty = method.penalty().map_or("none", |penalty| penalty.formula());
    let mut page = Page::new("nepenthe: report of a run");
    if let [head, body @ ..] = summary.rows().as_slice() {
        page = page.heading("Before and after").table(head, body).paragraph(
            "The figures after are those of the written model folder, loaded again. Documents and prompts are those \
             named under [eval] of the recipe below, else taken from the training corpora.",
        );
    }
    page = samples(page, &summary.samples);
    page = page.heading("The run").facts(&[
        ("steps", summary.steps.to_string()),
        ("stopped by its metric", summary.stopped_early.to_string()),
        ("seconds in steps", number(summary.seconds)),
        ("seed", recipe.seed.to_string()),
        ("student's distance from start (L2)", number(summary.student_from_start)),
        ("teacher's distance from start (L2)", number(summary.teacher_from_start)),
        ("student's distance from teacher (L2)", number(summary.student_from_teacher)),
        ("steps with clipping active", format!("{} of {}", summary.clipped_steps, lines.len())),
    ]);
    let notices: Vec<Vec<&str>> = summary.notices.iter().map(|text| vec![text.as_str()]).collect();
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
    if let Some(share) = summary.shielded {
        page = page.formula(&format!(
            "of the loss's gradients off a subspace: {share:.3} of the inputs' squares"
        ));
    }
    page = page.heading("Curves");
    page = evaluations(page, &logs.watch);
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
fn samples(mut page: Page, samples: &[Continuations]) -> Page {
    if !samples.is_empty() {
        page = page.heading("Continuations of forget documents");
    }
    for sample in samples {
        let texts = [
            ("before", Some(&sample.before)),
            ("after", Some(&sample.after)),
            ("retrained without it", sample.retrain.as_ref()),
            ("true text", Some(&sample.gt)),
        ];
        let texts: Vec<(&str, &str)> =
            texts.into_iter().filter_map(|(name, text)| Some((name, text?.as_str()))).collect();
        page = page.samples(&sample.prompt, &texts);
    }
    page
}

/// Adds the curves of the evaluations inside the run, where there is more than the first.
fn evaluations(page: Page, watch: &Watch) -> Page {
    let entries = &watch.entries;
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
        let stop = watch.stop.as_ref();
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

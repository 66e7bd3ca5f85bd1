//! report.html: what a run did, as one page that opens offline.

use std::path::Path;

use serde_json::Value;

use super::recipe::Recipe;
use crate::error::{Error, Result};
use crate::io::atomic::write_file_atomic;
use crate::method::Method;
use crate::report::html::Page;
use crate::report::svg::Chart;

/// Writes report.html into the run folder from its metrics.jsonl and its summary.
pub fn write(out: &Path, recipe: &Recipe, method: &Method, summary: &Value) -> Result<()> {
    let path = out.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
    let lines: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
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
    let clipped = curve("clip_coef").iter().filter(|(_, c)| *c < 1.0).count();
    let penalty = method.penalty.map_or("none", |penalty| penalty.formula());
    let page = Page::new("nepenthe: report of a run")
        .facts(&[
            ("steps", summary["steps"].to_string()),
            ("seconds in steps", number("seconds")),
            ("seed", recipe.seed.to_string()),
            ("student's distance from start (L2)", number("student_from_start")),
            ("teacher's distance from start (L2)", number("teacher_from_start")),
            ("student's distance from teacher (L2)", number("student_from_teacher")),
            ("steps with clipping active", format!("{clipped} of {}", lines.len())),
        ])
        .heading("What was minimised")
        .formula(&format!("forget loss {}: {}", method.loss.name(), method.loss.formula()))
        .formula(&format!("penalty {}: {penalty}", recipe.method.penalty))
        .heading("Curves")
        .chart(&chart("Forget documents", "NLL, nats per token", "loss_tr"))
        .chart(&chart("Penalty before its weight", "nats per position", "loss_kl"))
        .chart(&chart("Gradient norm before clipping", "L2 norm", "grad_norm").log_y())
        .chart(&chart("Clip factor", "factor", "clip_coef"))
        .folded("Recipe", &recipe.to_toml()?);
    write_file_atomic(&out.join("report.html"), page.finish().as_bytes())
}

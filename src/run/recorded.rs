//! Run folders read back: what a finished or a broken-off run says of itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use toml::Table;

use super::resume::read_log;
use crate::error::{Error, Result};
use crate::eval::monitored;
use crate::eval::suite::direction;

/// A run as its folder tells it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its name beside others.
    pub name: String,
    /// Every key of its recipe, dotted, with its value.
    pub settings: BTreeMap<String, String>,
    /// The lines of metrics.jsonl, one a step.
    pub lines: Vec<Value>,
    /// The lines of evaluations.jsonl.
    pub evaluations: Vec<Value>,
    /// summary.json; null where the run did not end.
    pub summary: Value,
    /// The figures of its eval.json, which `nepenthe eval --json` printed: dotted names with values.
    pub scored: BTreeMap<String, f64>,
    /// Those of the retrained model beside it, where eval.json is of a suite that was given one.
    pub scored_retrain: BTreeMap<String, f64>,
}

/// Time and tokens of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// The median step, seconds.
    pub seconds: f64,
    /// Student tokens a second over all steps.
    pub tokens_per_second: f64,
}

impl Recorded {
    /// Reads the run folder `dir`.
    ///
    /// Only config.resolved.toml must be there. Errors: [`crate::Kind::Config`] where it is not, [`crate::Kind::Data`]
    /// where a file of the folder does not parse.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.resolved.toml");
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::config(format!(
                "{}: no run folder: config.resolved.toml is missing",
                dir.display()
            ))
            .hint("name folders that --out of unlearn, finetune or demo named")
            .with_source(e)
        })?;
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            Error::data(format!("{}: {e}", path.display())).with_source(e)
        })?;
        let mut settings = BTreeMap::new();
        flatten_settings("", &table, &mut settings);
        // What lies in the run folder itself is the same file in every copy of the run.
        for value in settings.values_mut() {
            if let Ok(inside) = Path::new(value.as_str()).strip_prefix(dir) {
                *value = Path::new("RUN").join(inside).display().to_string();
            }
        }
        let log = |name: &str| match dir.join(name) {
            path if path.is_file() => read_log(&path),
            _ => Ok(Vec::new()),
        };
        let eval = json_file(&dir.join("eval.json"))?;
        Ok(Self {
            name: dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned(),
            settings,
            lines: log("metrics.jsonl")?,
            evaluations: log("evaluations.jsonl")?,
            summary: json_file(&dir.join("summary.json"))?,
            scored: scored(&eval, false),
            scored_retrain: scored(&eval, true),
        })
    }

    /// Reads several run folders and gives them names that tell them apart.
    ///
    /// Errors: those of [`Recorded::read`].
    pub fn read_all<P: AsRef<Path>>(dirs: &[P]) -> Result<Vec<Self>> {
        let mut runs = Vec::with_capacity(dirs.len());
        for dir in dirs {
            runs.push(Self::read(dir.as_ref())?);
        }
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for ((run, dir), name) in runs.iter_mut().zip(dirs).zip(&names) {
            if names.iter().filter(|other| *other == name).count() > 1 {
                run.name = dir.as_ref().display().to_string();
            }
        }
        Ok(runs)
    }

    /// Returns the curve of `key` over steps, from metrics.jsonl or evaluations.jsonl.
    pub fn curve(&self, key: &str) -> Vec<(f64, f64)> {
        let point = |line: &Value| Some((line["global_step"].as_f64()?, line[key].as_f64()?));
        self.lines.iter().chain(&self.evaluations).filter_map(point).collect()
    }

    /// Returns the path of the evaluations through the plane of two figures.
    pub fn path(&self, x: &str, y: &str) -> Vec<(f64, f64)> {
        let point = |line: &Value| Some((line[x].as_f64()?, line[y].as_f64()?));
        self.evaluations.iter().filter_map(point).collect()
    }

    /// Returns a figure of the state `before`, `after` or `retrain`.
    ///
    /// Without a summary, `before` is the first and `after` the last evaluation inside the run.
    pub fn figure(&self, state: &str, name: &str) -> Option<f64> {
        let inside = match state {
            "before" => self.evaluations.first(),
            "after" if self.summary.is_null() => self.evaluations.last(),
            _ => None,
        };
        let scored = || match state {
            "after" => self.scored.get(name).copied(),
            "retrain" => self.scored_retrain.get(name).copied(),
            _ => None,
        };
        self.summary[state][name].as_f64().or_else(|| inside?[name].as_f64()).or_else(scored)
    }

    /// Returns the names of its figures: those of runs first, then those of eval.json.
    pub fn figures(&self) -> Vec<&str> {
        let states = ["before", "after", "retrain"];
        let own = monitored::keys().into_iter();
        let own = own.filter(|key| states.iter().any(|s| self.figure(s, key).is_some()));
        own.chain(self.scored.keys().map(String::as_str)).collect()
    }

    /// Returns what its steps took, where any was logged.
    pub fn cost(&self) -> Option<Cost> {
        let step = |line: &Value| {
            let (tokens, rate) = (line["tokens"].as_f64()?, line["tokens_per_s"].as_f64()?);
            (rate > 0.0).then(|| (tokens, tokens / rate))
        };
        let steps: Vec<(f64, f64)> = self.lines.iter().filter_map(step).collect();
        let mut seconds: Vec<f64> = steps.iter().map(|(_, seconds)| *seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let all: f64 = seconds.iter().sum();
        let tokens: f64 = steps.iter().map(|(tokens, _)| tokens).sum();
        let median = *seconds.get(seconds.len() / 2)?;
        Some(Cost { seconds: median, tokens_per_second: tokens / all })
    }
}

fn json_file(path: &Path) -> Result<Value> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    serde_json::from_str(&text).map_err(|e| {
        Error::data(format!("{}: not valid JSON: {e}", path.display()))
            .with_source(e)
            .hint("write it again, or move it out of the run folder")
    })
}

fn dotted(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

fn flatten_settings(prefix: &str, table: &Table, into: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let name = dotted(prefix, key);
        match value {
            toml::Value::Table(inner) => flatten_settings(&name, inner, into),
            toml::Value::String(text) => {
                into.insert(name, text.clone());
            }
            other => {
                into.insert(name, other.to_string());
            }
        }
    }
}

/// Returns the figures in what `nepenthe eval --json` printed, of the retrained model or of the other.
///
/// A suite prints a list of models; of several that are not retrained, the first counts.
fn scored(eval: &Value, retrained: bool) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    if eval["suite"].is_string() {
        let models = eval["models"].as_array().map_or(&[][..], Vec::as_slice);
        if let Some(model) = models.iter().find(|model| model["retrained"] == retrained) {
            flatten_figures("", &model["figures"], &mut figures);
        }
    } else if !retrained {
        flatten_figures("", eval, &mut figures);
    }
    figures
}

/// Collects the numbers that are of a known metric, by its key; items of a list go by the stem of their `file`.
fn flatten_figures(prefix: &str, value: &Value, into: &mut BTreeMap<String, f64>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                flatten_figures(&dotted(prefix, key), inner, into);
            }
        }
        Value::Array(items) => {
            for item in items {
                if let Some(stem) = item["file"].as_str().and_then(|f| Path::new(f).file_stem()) {
                    flatten_figures(&dotted(prefix, &stem.to_string_lossy()), item, into);
                }
            }
        }
        Value::Number(number) if direction(prefix).is_some() => {
            into.extend(number.as_f64().map(|number| (prefix.to_owned(), number)));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn flatten_figures_names_files_and_leaves_counts_out() {
        let value = json!({
            "model": "m", "privleak": -12.5, "steps": 3,
            "nll": [{"file": "a/retain.jsonl", "documents": 4, "tokens": 9, "nll": 0.5}],
        });
        let mut figures = BTreeMap::new();
        flatten_figures("", &value, &mut figures);
        let wanted = [("nll.retain.nll".to_owned(), 0.5), ("privleak".to_owned(), -12.5)];
        assert_eq!(figures.into_iter().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn scored_tells_the_models_of_a_suite_apart() {
        let model = |retrained, leak| json!({"retrained": retrained, "figures": {"privleak": leak, "ppl_retain": null}});
        let eval = json!({"suite": "muse", "models": [model(true, 0.0), model(false, -9.0), model(false, 3.0)]});
        assert_eq!(scored(&eval, false), BTreeMap::from([("privleak".to_owned(), -9.0)]));
        assert_eq!(scored(&eval, true), BTreeMap::from([("privleak".to_owned(), 0.0)]));
        assert!(scored(&json!({"privleak": 1.0}), true).is_empty());
    }

    #[test]
    fn read_without_a_recipe_says_what_a_run_folder_is() {
        let dir = tempfile::tempdir().unwrap();
        let error = Recorded::read(dir.path()).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Config);
        assert!(error.message().ends_with("no run folder: config.resolved.toml is missing"));
    }
}

//! Runs side by side, as one page that opens offline: settings, curves, figures, samples, cost.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::page::capitalized;
use super::recorded::Recorded;
use super::train::DISTANCES;
use crate::error::{Error, Result};
use crate::eval::likelihood::NLL;
use crate::eval::metric::membership::PRIVLEAK;
use crate::eval::metric::{Direction, Metric};
use crate::eval::monitored::{FORGET, Monitored, RETAIN, label, monitored};
use crate::eval::outcome::Named;
use crate::eval::suite::direction;
use crate::eval::verbatim::VERBATIM;
use crate::io::atomic::write_file_atomic;
use crate::report::bars::{Bars, number};
use crate::report::html::{Cell, Mark, Page};
use crate::report::svg::Chart;

/// The keys of metrics.jsonl that are drawn: key, title, unit, logarithmic.
const CURVES: [(&str, &str, &str, bool); 4] = [
    ("loss_tr", "Forget documents of each step", "NLL, nats per token", false),
    ("loss_kl", "Penalty before its weight", "nats per position", true),
    ("grad_norm", "Gradient norm before clipping", "L2 norm", true),
    ("clip_coef", "Clip factor", "factor", false),
];

/// The metrics of the forget set that are drawn against the NLL of the retain set.
const FRONTIERS: [&Metric; 2] = [&VERBATIM, &NLL];

/// The settings that metrics depend on besides the method: model, data, evaluation.
const SUBJECT: [&str; 12] = [
    "model.path",
    "data.forget",
    "data.retain",
    "eval.documents",
    "eval.forget",
    "eval.retain",
    "eval.holdout",
    "eval.verbmem_forget",
    "eval.verbmem_retain",
    "eval.context",
    "eval.max_new_tokens",
    "eval.retrain",
];

/// Prompts whose continuations are shown.
const PROMPTS: usize = 3;

/// The runs of one comparison.
#[derive(Debug)]
pub struct Comparison {
    runs: Vec<Recorded>,
}

/// A row of the table of figures.
struct Row {
    name: String,
    direction: Option<Direction>,
    before: Option<f64>,
    retrained: Option<f64>,
    after: Vec<Option<f64>>,
}

impl Comparison {
    /// Puts runs side by side, in their order.
    pub fn new(runs: Vec<Recorded>) -> Self {
        Self { runs }
    }

    /// Splits the runs by what their metrics depend on besides the method: runs of different groups are not comparable.
    ///
    /// Each group comes with the values that set it apart, empty where there is one group.
    pub fn groups(&self) -> Vec<(String, Self)> {
        let value = |run: &Recorded, key: &str| run.settings.get(key).cloned().unwrap_or_default();
        let subject = |run: &Recorded| SUBJECT.map(|key| value(run, key));
        let mut groups: Vec<Self> = Vec::new();
        for run in &self.runs {
            match groups.iter_mut().find(|group| subject(&group.runs[0]) == subject(run)) {
                Some(group) => group.runs.push(run.clone()),
                None => groups.push(Self { runs: vec![run.clone()] }),
            }
        }
        let differs = |key: &&str| {
            groups.iter().any(|group| value(&group.runs[0], key) != value(&self.runs[0], key))
        };
        let keys: Vec<&str> = SUBJECT.iter().copied().filter(|key| differs(key)).collect();
        let label = |group: &Self| {
            let parts = keys.iter().map(|key| format!("{key} = {}", value(&group.runs[0], key)));
            parts.collect::<Vec<_>>().join(", ")
        };
        let labels: Vec<String> = groups.iter().map(label).collect();
        labels.into_iter().zip(groups).collect()
    }

    /// Returns the names of the runs, in their order.
    pub fn names(&self) -> Vec<&str> {
        self.runs.iter().map(|run| run.name.as_str()).collect()
    }

    /// Returns the one value that all runs which have it share; NaN where they disagree.
    fn shared(&self, state: &str, name: &str) -> Option<f64> {
        let mut values = self.runs.iter().filter_map(|run| run.figure(state, name));
        let first = values.next()?;
        Some(if values.all(|value| value == first) { first } else { f64::NAN })
    }

    fn rows(&self) -> Vec<Row> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.runs.iter().flat_map(Recorded::figures) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let row = |name: &&str| Row {
            name: (*name).to_owned(),
            direction: direction(name),
            before: self.shared("before", name),
            retrained: self.shared("retrain", name),
            after: self.runs.iter().map(|run| run.figure("after", name)).collect(),
        };
        names.iter().map(row).collect()
    }

    /// Lays the figures out: a heading row, then a row a figure with the best of the runs marked.
    pub fn figures(&self) -> Vec<Vec<Cell>> {
        let plain = |text: &str| (text.to_owned(), None);
        let mut head: Vec<Cell> =
            ["", "good is", "before", "retrained without it"].map(plain).into();
        head.extend(self.runs.iter().map(|run| plain(&run.name)));
        let mut table = vec![head];
        for row in self.rows() {
            let distances: Vec<Option<f64>> = row
                .after
                .iter()
                .map(|value| row.direction?.distance((*value)?, row.retrained))
                .collect();
            let best = distances.iter().flatten().copied().reduce(f64::min);
            let compared = distances.iter().flatten().any(|distance| Some(*distance) != best);
            let mut cells = vec![
                plain(label(&row.name)),
                plain(row.direction.map_or("", Direction::label)),
                plain(&shown(row.before)),
                plain(&shown(row.retrained)),
            ];
            cells.extend(row.after.iter().zip(&distances).map(|(value, distance)| {
                let is_best = compared && distance.is_some() && *distance == best;
                (shown(*value), is_best.then_some(Mark::Best))
            }));
            table.push(cells);
        }
        table
    }

    /// Lays means and sample deviations out where runs differ in nothing but their seed; empty where none do.
    pub fn over_seeds(&self) -> Vec<Vec<String>> {
        let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut order = Vec::new();
        for (i, run) in self.runs.iter().enumerate() {
            let mut settings = run.settings.clone();
            settings.remove("seed");
            let key = format!("{settings:?}");
            if !groups.contains_key(&key) {
                order.push(key.clone());
            }
            groups.entry(key).or_default().push(i);
        }
        let groups: Vec<&Vec<usize>> = order.iter().filter_map(|key| groups.get(key)).collect();
        if groups.iter().all(|group| group.len() < 2) {
            return Vec::new();
        }
        let name = |group: &&Vec<usize>| {
            let first = group.first().map_or("", |i| self.runs[*i].name.as_str());
            format!("{first} ({} seeds)", group.len())
        };
        let head = ["".to_owned(), "good is".to_owned()].into_iter();
        let mut table = vec![head.chain(groups.iter().map(name)).collect::<Vec<_>>()];
        for row in self.rows() {
            let cell = |group: &&Vec<usize>| {
                let values: Vec<f64> = group.iter().filter_map(|i| row.after[*i]).collect();
                spread(&values)
            };
            let direction = row.direction.map_or("", Direction::label).to_owned();
            let names = [label(&row.name).to_owned(), direction].into_iter();
            table.push(names.chain(groups.iter().map(cell)).collect());
        }
        table
    }

    /// Lays all settings out, those that differ first and marked.
    fn settings(&self) -> Vec<Vec<Cell>> {
        let mut keys: Vec<&String> = self.runs.iter().flat_map(|run| run.settings.keys()).collect();
        keys.sort();
        keys.dedup();
        let (mut differing, mut alike) = (Vec::new(), Vec::new());
        for key in keys {
            let values: Vec<&str> = self
                .runs
                .iter()
                .map(|run| run.settings.get(key).map_or("-", String::as_str))
                .collect();
            let differs = values.windows(2).any(|pair| pair[0] != pair[1]);
            let mark = differs.then_some(Mark::Differs);
            let cells = values.into_iter().map(|value| (value.to_owned(), mark));
            let row: Vec<Cell> = std::iter::once((key.clone(), None)).chain(cells).collect();
            if differs { differing.push(row) } else { alike.push(row) }
        }
        differing.extend(alike);
        differing
    }

    /// Returns every chart that has something to show: what is logged each step, measured, and traded.
    pub fn charts(&self) -> Vec<Chart> {
        let with = |mut chart: Chart, points: &dyn Fn(&Recorded) -> Vec<(f64, f64)>| {
            for run in &self.runs {
                let points = points(run);
                // Also without points, so that a run keeps its colour from chart to chart.
                chart = chart.series(&run.name, points);
            }
            chart
        };
        let mut charts = Vec::new();
        for metric in FRONTIERS {
            let (x, y) = (&NLL.key(RETAIN.key), &metric.key(FORGET.key));
            let name = capitalized(metric.label.unwrap_or(metric.name));
            let title = format!("{name} of {} against the cost on {}", FORGET.label, RETAIN.label);
            let mut chart = Chart::new(title, label(x), metric.unit).mark_ends();
            if let Some(value) = self.shared("retrain", y).filter(|value| value.is_finite()) {
                chart = chart.mark_y(value, "retrained without it");
            }
            charts.push(with(chart, &|run| run.path(x, y)));
        }
        for Monitored { metric, key, label } in monitored() {
            let mut chart = Chart::new(label, "step", metric.unit);
            if let Some(value) = self.shared("retrain", key).filter(|value| value.is_finite()) {
                chart = chart.mark_y(value, "retrained without it");
            }
            charts.push(with(chart, &|run| run.curve(key)));
        }
        for name in DISTANCES {
            let title = format!("Distance: {}", name.replace('_', " "));
            charts.push(with(Chart::new(title, "step", "L2 norm"), &|run| run.curve(name)));
        }
        for (key, title, unit, log) in CURVES {
            let chart = Chart::new(title, "step", unit);
            let chart = if log { chart.log_y() } else { chart };
            charts.push(with(chart, &|run| run.curve(key)));
        }
        charts.retain(Chart::has_points);
        charts
    }

    /// Returns the bars that have something to show: seconds, memory, privacy leakage.
    pub fn bars(&self) -> Vec<Bars> {
        let of = |title: &str, value: &dyn Fn(&Recorded) -> Option<f64>| {
            let bars = self.runs.iter().filter_map(|run| Some((&run.name, value(run)?)));
            bars.fold(Bars::new(title), |bars, (name, value)| bars.bar(name, value))
        };
        let leakage = |run: &Recorded| {
            let (_, value) = run.scored.iter().find(|(name, _)| name.contains(PRIVLEAK.name))?;
            Some(*value)
        };
        let (name, good) = (PRIVLEAK.label.unwrap_or(PRIVLEAK.name), PRIVLEAK.direction.label());
        let leakage_title = format!("{name}, per cent (good is {good})");
        let mut bars = vec![
            of(&leakage_title, &leakage),
            of("Median step, seconds", &|run| Some(run.cost()?.seconds)),
            of("Peak memory of the host, MiB", &|run| memory(run)),
        ];
        bars.retain(|one| !one.is_empty());
        bars
    }

    fn cost(&self) -> Vec<Vec<String>> {
        let line = |name: &str, cell: &dyn Fn(&Recorded) -> Option<f64>| {
            let cells = self.runs.iter().map(|run| shown(cell(run)));
            std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>()
        };
        let summary = |key: &'static str| move |run: &Recorded| run.summary[key].as_f64();
        vec![
            line("steps", &|run| Some(run.lines.len() as f64)),
            line("steps with clipping active", &summary("clipped_steps")),
            line("seconds a step (median)", &|run| Some(run.cost()?.seconds)),
            line("student tokens a second", &|run| Some(run.cost()?.tokens_per_second)),
            line("peak memory of the host, MiB", &memory),
            line("student's distance from start (L2)", &summary(DISTANCES[0])),
            line("teacher's distance from start (L2)", &summary(DISTANCES[1])),
            line("student's distance from teacher (L2)", &summary(DISTANCES[2])),
        ]
    }

    fn samples(&self, mut page: Page) -> Page {
        let of = |run: &Recorded| -> Vec<Value> {
            run.summary["samples"].as_array().cloned().unwrap_or_default()
        };
        // Prompts of the first run that has any; a run with other prompts shows nothing for them.
        let all: Vec<(&str, Vec<Value>)> =
            self.runs.iter().map(|run| (run.name.as_str(), of(run))).collect();
        let Some((_, shown)) = all.iter().find(|(_, samples)| !samples.is_empty()) else {
            return page;
        };
        page = page.heading("Continuations of forget documents");
        for sample in shown.iter().take(PROMPTS) {
            let text = |value: &Value, key: &str| value[key].as_str().map(str::to_owned);
            let mut texts: Vec<(&str, String)> = Vec::new();
            texts.extend(text(sample, "gt").map(|text| ("true text", text)));
            texts.extend(text(sample, "before").map(|text| ("before", text)));
            for (name, samples) in &all {
                let same = samples.iter().find(|other| other["prompt"] == sample["prompt"]);
                texts.extend(same.and_then(|s| text(s, "after")).map(|text| (*name, text)));
            }
            texts.extend(text(sample, "retrain").map(|text| ("retrained without it", text)));
            page = page.samples(sample["prompt"].as_str().unwrap_or_default(), &texts);
        }
        page
    }

    /// Lays the whole page out.
    pub fn page(&self) -> String {
        let names: Vec<&str> =
            std::iter::once("").chain(self.runs.iter().map(|run| run.name.as_str())).collect();
        let mut page = Page::new(match self.runs.as_slice() {
            [one] => format!("nepenthe: {}", one.name),
            runs => format!("nepenthe: {} runs compared", runs.len()),
        });
        let groups = self.groups();
        let several = groups.len() > 1;
        for (i, (label, group)) in groups.iter().enumerate() {
            let mut figures = group.figures();
            let head: Vec<String> = figures.remove(0).into_iter().map(|(text, _)| text).collect();
            if figures.is_empty() {
                continue;
            }
            page = page.heading(&match several {
                true => format!("Metrics after each run, group {}", i + 1),
                false => "Metrics after each run".to_owned(),
            });
            if several {
                page =
                    page.paragraph(&format!("These runs share {label}. Groups are not compared."));
            }
            page = page.marked_table(&head, &figures).paragraph(
                "Underlined is the best of the runs in this table, where the metric alone tells. A metric that is good as \
                 retrained is judged by its distance from a model that never saw the forget set. What differs between \
                 the runs is not shown as before or retrained (varies).",
            );
        }
        if let [head, rows @ ..] = self.over_seeds().as_slice() {
            page = page.heading("Over seeds: mean ± sample deviation").table(head, rows);
        }
        page = page.heading("Settings").marked_table(&names, &self.settings());
        for run in &self.runs {
            let formula = |key: &str| run.summary[key].as_str().map(str::to_owned);
            if let Some(loss) = formula("loss_formula") {
                let penalty = formula("penalty_formula").unwrap_or_else(|| "none".into());
                let second = formula("second_penalty_formula")
                    .map_or(String::new(), |second| format!("\nsecond penalty: {second}"));
                page = page.formula(&format!(
                    "{}\nforget loss: {loss}\npenalty: {penalty}{second}",
                    run.name
                ));
            }
        }
        page = page.heading("Curves");
        for chart in self.charts() {
            page = page.chart(&chart);
        }
        page = self.samples(page);
        page = page.heading("Cost").table(&names, &self.cost());
        for bars in self.bars() {
            page = page.bars(&bars);
        }
        page.finish()
    }

    /// Writes every chart into the folder `dir`, each a file under its title.
    ///
    /// Errors: [`crate::Kind::Io`] if the file system refuses.
    pub fn write_figures(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("make folder", dir, e))?;
        let charts = self.charts();
        let bars = self.bars();
        let charts = charts.iter().map(|chart| (chart.title(), chart.standalone()));
        for (title, svg) in charts.chain(bars.iter().map(|bars| (bars.title(), bars.standalone())))
        {
            write_file_atomic(&dir.join(format!("{}.svg", slug(title))), svg.as_bytes())?;
        }
        Ok(())
    }

    /// Returns names, metrics, cost and settings of all runs.
    pub fn results(&self) -> Vec<RunResults> {
        let run = |run: &Recorded| {
            let state = |state: &str| -> Named<f64> {
                let keys = run.figures().into_iter();
                keys.filter_map(|key| Some((key, run.figure(state, key)?))).collect()
            };
            RunResults {
                name: run.name.clone(),
                steps: run.lines.len(),
                before: state("before"),
                after: state("after"),
                retrain: state("retrain"),
                seconds_per_step: run.cost().map(|c| c.seconds),
                tokens_per_s: run.cost().map(|c| c.tokens_per_second),
                peak_memory: run.summary["peak_memory"].as_u64(),
                settings: run.settings.clone(),
            }
        };
        self.runs.iter().map(run).collect()
    }
}

/// One run in a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunResults {
    /// Its name next to others.
    pub name: String,
    /// Steps done.
    pub steps: usize,
    /// The metrics of the model that it started from, by key.
    pub before: Named<f64>,
    /// Those of the written model.
    pub after: Named<f64>,
    /// Those of a model that never saw the forget set.
    pub retrain: Named<f64>,
    /// The median step, seconds.
    pub seconds_per_step: Option<f64>,
    /// Student tokens a second.
    pub tokens_per_s: Option<f64>,
    /// The most memory that its process held on the host, bytes.
    pub peak_memory: Option<u64>,
    /// Every key of its recipe, dotted, with its value.
    pub settings: BTreeMap<String, String>,
}

fn memory(run: &Recorded) -> Option<f64> {
    Some(run.summary["peak_memory"].as_f64()? / f64::from(1 << 20))
}

/// Writes a value for a table.
fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value.is_nan() => "varies".into(),
        Some(value) if value.fract() == 0.0 && value.abs() < 1e6 => format!("{value:.0}"),
        Some(value) => number(value),
    }
}

/// Writes mean and sample deviation; of one value the value alone.
fn spread(values: &[f64]) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    match values {
        [] => "-".into(),
        [one] => number(*one),
        _ => {
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            format!("{} ± {}", number(mean), number((squares / (n - 1.0)).sqrt()))
        }
    }
}

/// A file name of lower-case letters, digits and dashes.
fn slug(title: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
    let words: String = title.chars().map(plain).collect();
    words.split_whitespace().collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::check::{HOSTILE, balanced};

    fn run(name: &str, seed: u64, lr: &str, forget: f64) -> Recorded {
        Recorded {
            name: name.into(),
            settings: [("seed".into(), seed.to_string()), ("optim.lr".into(), lr.into())].into(),
            lines: vec![
                json!({"global_step": 0, "loss_tr": 1.0, "tokens": 10, "tokens_per_s": 5.0}),
            ],
            evaluations: vec![
                json!({"global_step": 0, "nll_retain": 0.2, "verbmem_forget": 0.9}),
                json!({"global_step": 5, "nll_retain": 0.3, "verbmem_forget": forget}),
            ],
            summary: json!({
                "before": {"verbmem_forget": 0.9}, "after": {"verbmem_forget": forget},
                "retrain": {"verbmem_forget": 0.3},
                "samples": [{"prompt": name, "gt": name, "before": name, "after": name}],
            }),
            scored: [("privleak".to_owned(), -forget)].into(),
            scored_retrain: BTreeMap::new(),
        }
    }

    #[test]
    fn page_of_hostile_names_is_balanced_and_offline() {
        for text in HOSTILE {
            let page = Comparison::new(vec![run(text, 1, text, 0.5), run("b", 1, "2", 0.4)]).page();
            balanced(&page);
            assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="));
        }
    }

    #[test]
    fn figures_mark_the_better_run_and_settings_what_differs() {
        let both = Comparison::new(vec![run("a", 1, "1", 0.5), run("b", 1, "2", 0.4)]);
        let figures = both.figures();
        let row =
            figures.iter().find(|row| row[0].0.starts_with("verbatim memory of the f")).unwrap();
        let texts: Vec<&str> = row[1..].iter().map(|cell| cell.0.as_str()).collect();
        assert_eq!(texts, ["as retrained", "0.900", "0.300", "0.500", "0.400"]);
        assert_eq!((row[4].1, row[5].1), (None, Some(Mark::Best)));
        let settings = both.settings();
        assert_eq!(settings[0][0].0, "optim.lr");
        assert!(settings[0][1..].iter().all(|cell| cell.1 == Some(Mark::Differs)));
        assert_eq!(settings[1][1], ("1".to_owned(), None));
    }

    #[test]
    fn runs_of_different_models_are_not_compared() {
        let mut other = run("b", 1, "2", 0.4);
        other.settings.insert("model.path".into(), "other".into());
        let all = Comparison::new(vec![run("a", 1, "1", 0.5), other, run("c", 1, "3", 0.6)]);
        let groups = all.groups();
        let names = |group: &Comparison| -> Vec<String> {
            group.runs.iter().map(|run| run.name.clone()).collect()
        };
        assert_eq!(groups.len(), 2);
        assert_eq!(
            (groups[0].0.as_str(), names(&groups[0].1)),
            ("model.path = ", vec!["a".into(), "c".into()])
        );
        assert_eq!(
            (groups[1].0.as_str(), names(&groups[1].1)),
            ("model.path = other", vec!["b".into()])
        );
        let marks = |group: &Comparison| {
            group.figures().iter().flatten().filter(|cell| cell.1 == Some(Mark::Best)).count()
        };
        assert!(marks(&groups[0].1) > 0);
        assert_eq!(marks(&groups[1].1), 0);
    }

    #[test]
    fn over_seeds_groups_what_differs_in_the_seed_alone() {
        let runs = vec![run("a1", 1, "1", 0.5), run("a2", 2, "1", 0.3), run("b", 1, "2", 0.4)];
        let table = Comparison::new(runs).over_seeds();
        assert_eq!(table[0][2..], ["a1 (2 seeds)", "b (1 seeds)"]);
        assert_eq!(table[1][2..], ["0.400 ± 0.141", "0.400"]);
        assert!(Comparison::new(vec![run("a", 1, "1", 0.5)]).over_seeds().is_empty());
    }
}

//! `eval --suite`: benchmarks on one model or several, with a file of results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, StyledStr, TypedValueParser};
use serde::Serialize;
use serde_json::Value;

use super::engine::{self, DeviceArgs, Engine, Job};
use super::output::{Output, note, table};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::metric::Direction;
use crate::eval::metric::membership::{AUC_RETRAIN_BOOKS, AUC_RETRAIN_NEWS};
use crate::eval::outcome::{Named, Outcome};
use crate::eval::suite::record::{Entry, Found, Key, Record, model_hash};
use crate::eval::suite::{Kind, Options, Prepared, Retrained, SUITES, Subject, Suite, muse, tofu};
use crate::folder::Folder;
use crate::method::passes::Passes;
use crate::model::Model;
use crate::model::params::Keeping;
use crate::ops::Ops;
use crate::report::notices;
use crate::run::plan::Plan;

/// A sequence of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Series {
    /// Requests one after the other: sustainability.
    Sust,
    /// Growing forget sets: scalability.
    Scal,
}

impl From<Series> for muse::Series {
    fn from(series: Series) -> Self {
        match series {
            Series::Sust => Self::Sust,
            Series::Scal => Self::Scal,
        }
    }
}

/// Which tokens of an answer are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum AnswerTokens {
    /// OpenUnlearning's rule: those after as many tokens as the question has alone.
    Benchmark,
    /// All that the answer has a part in.
    All,
}

impl From<AnswerTokens> for tofu::AnswerTokens {
    fn from(rule: AnswerTokens) -> Self {
        match rule {
            AnswerTokens::Benchmark => Self::Benchmark,
            AnswerTokens::All => Self::All,
        }
    }
}

/// Options of `eval --suite`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// A benchmark; reads its files from --data
    #[arg(long, value_parser = kinds(), requires = "data")]
    pub(super) suite: Option<&'static Kind>,
    /// The benchmark's folder: that of one corpus of MUSE or mini-MUSE, or of TOFU's files
    #[arg(long, value_name = "DIR", requires = "suite")]
    data: Option<PathBuf>,
    /// A model trained without the forget set: measured too, and the reference of privleak and forget_quality
    #[arg(long, value_name = "DIR", requires = "suite")]
    retrain: Option<PathBuf>,
    /// Instead of --retrain, its area under the ROC curve (muse): a number, or news or books for the benchmark's own
    /// Llama-2-7B
    #[arg(long, value_name = "AREA", value_parser = area, conflicts_with = "retrain", requires = "suite")]
    retrain_auc: Option<f64>,
    #[arg(long, value_name = "NAME", requires = "suite", help = metric_help())]
    metric: Vec<String>,
    /// Look at the first N items of every file
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "suite")]
    limit: Option<u64>,
    /// Examples before a question (muse); all of the file by default
    #[arg(long, value_name = "N", requires = "suite")]
    shots: Option<usize>,
    /// Models are those after request 1, 2, ... of a sequence (muse): also measure the perplexity of each request
    #[arg(long, value_enum, requires = "suite")]
    series: Option<Series>,
    /// The forget set (tofu), such as forget05; by default the one in the folder
    #[arg(long, value_name = "NAME", requires = "suite")]
    forget_set: Option<String>,
    /// Prompt format of questions (tofu): qa, llama2, or a text with {question}
    #[arg(long, default_value = "qa")]
    template: String,
    /// Answer tokens that are scored (tofu): by the rule of the benchmark, which can leave the first one out, or all
    #[arg(long, value_enum, default_value = "benchmark")]
    answer_tokens: AnswerTokens,
    /// Results file: results for the same model, data and settings are reused, all results are written to it, and
    /// those of other models on the same data and settings stay
    #[arg(long, value_name = "FILE", requires = "suite")]
    out: Option<PathBuf>,
    /// Measure again what --out already has
    #[arg(long, requires = "out")]
    fresh: bool,
}

/// Reads the name of a benchmark.
fn kinds() -> impl TypedValueParser<Value = &'static Kind> {
    let names = SUITES.map(|kind| PossibleValue::new(kind.name).help(kind.about));
    PossibleValuesParser::new(names)
        .try_map(|name| SUITES.into_iter().find(|kind| kind.name == name).ok_or("no such suite"))
}

fn metric_help() -> StyledStr {
    let names = |kind: &Kind| format!("{}: {}", kind.name, kind.part_names().join(", "));
    let all = SUITES.map(names).join("; ");
    format!("Measure only this metric; can be repeated. {all}").into()
}

fn area(text: &str) -> std::result::Result<f64, String> {
    match text {
        "news" => Ok(AUC_RETRAIN_NEWS),
        "books" => Ok(AUC_RETRAIN_BOOKS),
        _ => text
            .parse()
            .ok()
            .filter(|area| *area > 0.0 && *area <= 1.0)
            .ok_or_else(|| "wanted news, books, or a number above 0 and up to 1".to_owned()),
    }
}

/// Options of both kinds of `eval`.
pub(super) struct Common<'a> {
    pub(super) models: &'a [PathBuf],
    pub(super) device: &'a DeviceArgs,
    pub(super) batch: usize,
    pub(super) context: usize,
}

/// A model to be measured.
struct Candidate<'a> {
    path: &'a Path,
    retrained: bool,
    folder: Folder,
    tokenizer: Tokenizer,
    key: Key,
}

pub(super) fn run(kind: &Kind, args: &Args, common: &Common<'_>, out: &Output) -> Result<()> {
    let engine = common.device.open()?;
    let suite = args.open(kind, common)?;
    let suite = suite.as_ref();
    let mut record = Record::new(Vec::new());
    if let Some(path) = &args.out {
        record = Record::open(path)?;
    }
    for missing in suite.missing() {
        note(&format!("not measured, since its files are not there: {missing}"));
    }
    // Everything is opened before the first model is measured.
    let settings = settings(suite, &engine, common);
    let models = common.models.iter().map(|path| (path.as_path(), false));
    let retrain = args.retrain.iter().map(|path| (path.as_path(), true));
    let mut candidates = Vec::new();
    for (path, retrained) in retrain.chain(models) {
        let mut folder = Folder::open(path)?;
        let tokenizer = folder.tokenizer()?;
        let key =
            Key { model: model_hash(&folder)?, data: suite.hashes(), settings: settings.clone() };
        candidates.push(Candidate { path, retrained, folder, tokenizer, key });
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(candidates.len());
    let mut reused = Vec::with_capacity(candidates.len());
    let mut said = Vec::new();
    for candidate in candidates {
        let shown = candidate.path.display().to_string();
        let Candidate { retrained, key, .. } = &candidate;
        let (retrained, key) = (*retrained, key.clone());
        let kept = match (record.find(&shown, &key), args.fresh) {
            (Found::Same(outcome), false) => {
                note(&format!(
                    "{shown}: model, data and settings are those of the file of results, its figures are used again \
                     (--fresh measures anew)"
                ));
                Some(outcome.clone())
            }
            (Found::Other(parts), _) => {
                note(&format!(
                    "{shown}: measured anew, the file of results is of other {}",
                    parts.join(" and ")
                ));
                None
            }
            _ => None,
        };
        reused.push(kept.is_some());
        let outcome = match kept {
            Some(outcome) => outcome,
            None => measure(&engine, suite, candidate, common.batch, &mut said)?,
        };
        entries.push(Entry { model: shown, retrained, key, outcome });
    }
    let retrained = match (entries.iter().find(|entry| entry.retrained), args.retrain_auc) {
        (Some(entry), _) => Retrained::Measured(Box::new(entry.outcome.clone())),
        (None, Some(area)) => Retrained::Area(area),
        (None, None) => Retrained::Unknown,
    };
    for entry in &mut entries {
        suite.conclude(&mut entry.outcome, &retrained).map_err(|e| e.at(&entry.model))?;
    }
    if let Some(path) = &args.out {
        // What was measured of other models on the same terms stays, compared with what these are compared with.
        let mut all = entries.clone();
        for mut old in record.entries {
            let same = |entry: &Entry| {
                entry.key.data == old.key.data && entry.key.settings == old.key.settings
            };
            if entries.iter().all(|entry| same(entry) && entry.model != old.model) {
                old.retrained = false;
                suite.conclude(&mut old.outcome, &retrained).map_err(|e| e.at(&old.model))?;
                all.push(old);
            }
        }
        Record::new(all).write(path)?;
    }
    let shown = |(entry, reused): (&'_ Entry, &bool)| Measured {
        model: entry.model.clone(),
        retrained: entry.retrained,
        reused: *reused,
        model_hash: entry.key.model.clone(),
        figures: entry.outcome.figures.clone(),
    };
    let first = entries.first();
    let results = Results {
        suite: kind.name,
        data: first.map(|entry| entry.key.data.clone()),
        good: first
            .map(|entry| entry.outcome.figures.names().map(|key| (key, good(kind, key))).collect()),
        settings,
        notices: said,
        models: entries.iter().zip(&reused).map(shown).collect(),
    };
    out.result(&results, || match results.settings["answer_tokens"].as_str() {
        Some(rule) => format!("{}answer tokens: {rule} (--answer-tokens)\n", text(kind, &entries)),
        None => text(kind, &entries),
    })
}

/// Output of `eval --suite`.
#[derive(Debug, Serialize)]
struct Results {
    suite: &'static str,
    data: Option<BTreeMap<String, String>>,
    settings: Value,
    good: Option<Named<&'static str>>,
    notices: Vec<String>,
    models: Vec<Measured>,
}

/// Output on one model.
#[derive(Debug, Serialize)]
struct Measured {
    model: String,
    retrained: bool,
    reused: bool,
    model_hash: String,
    figures: Named<Option<f64>>,
}

/// Returns the direction in which a metric of the suite is good, in the words of a report.
fn good(kind: &Kind, key: &str) -> &'static str {
    kind.direction(key).map_or("-", Direction::label)
}

impl Args {
    fn open(&self, kind: &Kind, common: &Common<'_>) -> Result<Box<dyn Suite>> {
        let dir = self.data.as_deref().unwrap_or(Path::new("."));
        if !dir.is_dir() {
            return Err(Error::data(format!("{}: no such folder", dir.display()))
                .hint("--data takes the folder of a benchmark's files"));
        }
        self.refuse_foreign(kind)?;
        let options = Options {
            metrics: self.metric.clone(),
            limit: self.limit.and_then(|n| usize::try_from(n).ok()),
            shots: self.shots,
            series: self.series.map(Into::into),
            context: common.context,
            forget_set: self.forget_set.clone(),
            template: Some(self.template.clone()),
            answer_tokens: self.answer_tokens.into(),
        };
        let suite = (kind.open)(dir, options)?;
        match suite.models() {
            Some(wanted) if wanted != common.models.len() => Err(Error::config(format!(
                "--series: {} models for {wanted} requests",
                common.models.len()
            ))
            .hint("give one --model for each request, in their order")),
            _ => Ok(suite),
        }
    }

    /// Refuses options of another suite: they would do nothing.
    fn refuse_foreign(&self, kind: &Kind) -> Result<()> {
        let given = [
            ("--forget-set", "", self.forget_set.is_some()),
            ("--answer-tokens", " all", self.answer_tokens != AnswerTokens::Benchmark),
            ("--shots", "", self.shots.is_some()),
            ("--series", "", self.series.is_some()),
            ("--retrain-auc", "", self.retrain_auc.is_some()),
        ];
        for (option, value, _) in given.into_iter().filter(|(.., given)| *given) {
            let owner = SUITES.into_iter().find(|suite| suite.options.contains(&option));
            if let Some(other) = owner.filter(|owner| owner.name != kind.name) {
                let message = format!("{option}{value}: is of --suite {}", other.name);
                return Err(Error::config(message).hint("leave it out, or name that suite"));
            }
        }
        Ok(())
    }
}

/// Everything that decides figures beside model and data.
fn settings(suite: &dyn Suite, engine: &Engine, common: &Common<'_>) -> Value {
    let mut settings = suite.settings();
    if let Value::Object(map) = &mut settings {
        map.insert("batch".into(), common.batch.into());
        map.insert("device".into(), engine.name().into());
        map.insert("precision".into(), engine.precision_name().into());
        map.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        map.insert("commit".into(), env!("NEPENTHE_COMMIT").into());
    }
    settings
}

fn measure(
    engine: &Engine,
    suite: &dyn Suite,
    candidate: Candidate<'_>,
    batch: usize,
    said: &mut Vec<String>,
) -> Result<Outcome> {
    let Candidate { path, mut folder, tokenizer, .. } = candidate;
    note(&format!("{}: measuring", path.display()));
    let prepared = suite.prepare(&tokenizer).map_err(|e| e.at(path.display()))?;
    notices::add(&mut folder.notices, prepared.notices().iter().cloned());
    folder.check_length("the longest sequence", prepared.longest(), "--context")?;
    notices::say_more(said, std::mem::take(&mut folder.notices));
    let end_tokens = folder.end_tokens(&tokenizer)?;
    let job =
        Measuring { folder, tokenizer: &tokenizer, prepared: prepared.as_ref(), end_tokens, batch };
    engine::compute(engine, job).map_err(|e| e.at(path.display()))
}

struct Measuring<'a> {
    folder: Folder,
    tokenizer: &'a Tokenizer,
    prepared: &'a dyn Prepared,
    end_tokens: Vec<u32>,
    batch: usize,
}

impl Job for Measuring<'_> {
    type Out = Outcome;

    fn run<O: Ops>(self, ops: O, _plan: Option<&Plan>) -> Result<Outcome> {
        let Folder { config, weights, .. } = self.folder;
        let mut model = Model::load(&ops, config, &weights, &Keeping::inference())?;
        let mut passes = Passes::new(&ops, &model, self.prepared.longest().max(1024), false)?;
        let mut subject = Subject {
            ops: &ops,
            model: &mut model,
            passes: &mut passes,
            tokenizer: self.tokenizer,
            end_tokens: &self.end_tokens,
            batch: self.batch,
        };
        self.prepared.measure(&mut subject, &mut |what| note(what))
    }
}

/// Lays figures out as rows and models as columns.
fn text(kind: &Kind, entries: &[Entry]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in entries.iter().flat_map(|entry| entry.outcome.figures.names()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut head = vec!["figure".to_owned(), "good".to_owned()];
    head.extend(entries.iter().map(|entry| match entry.retrained {
        true => format!("{} (retrained)", entry.model),
        false => entry.model.clone(),
    }));
    let mut rows = vec![head];
    for name in names {
        let cell = |entry: &Entry| match entry.outcome.get(name) {
            Some(value) if value != 0.0 && value.abs() < 1e-3 => format!("{value:.3e}"),
            Some(value) => format!("{value:.4}"),
            None => "-".to_owned(),
        };
        let mut row = vec![name.to_owned(), good(kind, name).to_owned()];
        row.extend(entries.iter().map(cell));
        rows.push(row);
    }
    table(&rows)
}

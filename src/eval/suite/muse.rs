//! MUSE: verbatim and knowledge memorisation, privacy leakage, utility, and sequences of requests.
//!
//! Source: `muse_bench` of the reference, `eval.py` and `metrics/*.py`; the figures are its headline numbers, in percent.
//! Exact memorisation and extraction strength are OpenUnlearning's, on the prompts of verbatim memorisation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    Completion, EXTRACTION, EXTRACTION_METRICS, Kind, LanguageModel, Options, Outcome, Part,
    Retrained, Suite, check_parts, extraction, find, hashes, uncounted, unscored,
};
use crate::data::{Table, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::finite;
use crate::eval::likelihood::{PERPLEXITY, PPL_SCAL, PPL_SUST, perplexity};
use crate::eval::metric::Metric;
use crate::eval::metric::membership::{
    AUC_FORGET_HOLDOUT, HEADLINE_KEY, PRIVLEAK, QUANTITIES, Quantities, TextScores, auc_table,
    privleak as leak,
};
use crate::eval::metric::muse::{
    self, Choices, Continuations, KNOWMEM_F, KNOWMEM_R, MMLU_VAL, VERBMEM_F,
};
use crate::eval::metric::rouge::Scorer;
use crate::eval::outcome::{Detail, Named};

/// MUSE.
pub const MUSE: Kind = Kind {
    name: "muse",
    about: "Verbatim and knowledge memorisation, privacy leakage, MMLU",
    parts: &[
        Part { name: VERBMEM_F.name, metrics: &[(&VERBMEM_F, &[])] },
        Part { name: EXTRACTION, metrics: EXTRACTION_METRICS },
        Part { name: KNOWMEM_F.name, metrics: &[(&KNOWMEM_F, &[])] },
        Part { name: KNOWMEM_R.name, metrics: &[(&KNOWMEM_R, &[])] },
        Part {
            name: PRIVLEAK.name,
            metrics: &[(&PERPLEXITY, &SPLITS), (&AUC_FORGET_HOLDOUT, &[]), (&PRIVLEAK, &[])],
        },
        Part { name: MMLU_VAL.name, metrics: &[(&MMLU_VAL, &[])] },
    ],
    derived: &[(&PPL_SUST, &["K"]), (&PPL_SCAL, &["K"])],
    options: &["--shots", "--series", "--retrain-auc"],
    open: |dir, options| Ok(Box::new(Muse::open(dir, options)?)),
};

/// The splits of privacy leakage.
const SPLITS: [&str; 3] = ["forget", "retain", "holdout"];

/// A sequence of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// Requests one after the other: sustainability.
    Sust,
    /// Growing forget sets: scalability.
    Scal,
}

impl Series {
    /// Returns the name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sust => "sust",
            Self::Scal => "scal",
        }
    }

    /// Returns the metric of its requests, which are counted from 1.
    fn metric(self) -> &'static Metric {
        match self {
            Self::Sust => &PPL_SUST,
            Self::Scal => &PPL_SCAL,
        }
    }
}

/// Tokens of a continuation that exact memorisation and extraction strength look at (OpenUnlearning, `CompletionDataset`).
const LONGEST_COMPLETION: usize = 2048;

/// Questions and the examples before them.
struct Questions {
    metric: &'static Metric,
    asked: Table,
    examples: Option<Table>,
}

/// The files of the benchmark, read.
pub struct Muse {
    dir: PathBuf,
    options: Options,
    verbmem: Option<Table>,
    questions: Vec<Questions>,
    privleak: Option<[Table; 3]>,
    mmlu: Option<(Table, Table)>,
    /// The requests of a sequence, each with its key in the results.
    requests: Vec<(String, Table)>,
    /// Metrics that are left out because their files are missing.
    missing: Vec<&'static str>,
}

/// Where a file lies in the folders that people have: MUSE's own, mini-MUSE's, and flat ones. The questions of MMLU are
/// beside the corpora.
fn places(part: &str, names: &[&str]) -> Vec<String> {
    let of = |name: &&str| {
        let beside = (part == "mmlu").then(|| format!("../{part}/{name}"));
        let within = ["{part}/{name}", "eval/{part}_{name}", "{part}_{name}"];
        let within = within.map(|form| form.replace("{part}", part).replace("{name}", name));
        within.into_iter().chain(beside).collect::<Vec<_>>()
    };
    names.iter().flat_map(of).collect()
}

impl Muse {
    /// Reads the files of the folder `dir` that the options ask for.
    ///
    /// Errors: [`crate::Kind::Config`] for an unknown metric, [`crate::Kind::Data`] where a file is broken, one that was
    /// asked for by name is not there, or none is there at all.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        check_parts(&options.metrics, &MUSE)?;
        let mut files = Files { dir, options: &options, missing: Vec::new() };
        let mut verbmem = None;
        for name in [VERBMEM_F.name, EXTRACTION] {
            if let Some([table]) = files.open(name, [("verbmem", &["forget"])])? {
                verbmem = Some(table);
            }
        }
        let mut questions = Vec::new();
        for (metric, sets) in
            [(&KNOWMEM_F, &["forget_qa"][..]), (&KNOWMEM_R, &["retain_qa", "retain2_qa"])]
        {
            let name = metric.name;
            let Some([asked]) = files.open(name, [("knowmem", sets)])? else { continue };
            let examples = match options.shots {
                Some(0) => None,
                _ => {
                    let sets: Vec<String> = sets.iter().map(|set| format!("{set}_icl")).collect();
                    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
                    Some(files.must(name, "knowmem", &sets)?)
                }
            };
            questions.push(Questions { metric, asked, examples });
        }
        let privleak = files.open(
            PRIVLEAK.name,
            [
                ("privleak", &["forget"][..]),
                ("privleak", &["retain", "retain2"]),
                ("privleak", &["holdout"]),
            ],
        )?;
        let mmlu = files
            .open(MMLU_VAL.name, [("mmlu", &["mmlu_all_val"][..]), ("mmlu", &["mmlu_icl"])])?
            .map(|[asked, examples]| (asked, examples));
        let requests = files.requests()?;
        let missing = files.missing;
        let muse = Self {
            dir: dir.to_owned(),
            options,
            verbmem,
            questions,
            privleak,
            mmlu,
            requests,
            missing,
        };
        if muse.tables().next().is_none() {
            return Err(Error::data(format!("{}: holds no file of MUSE", dir.display())).hint(
                "--data takes the folder of one corpus, with verbmem/forget.json, knowmem/forget_qa.json, \
                 privleak/forget.json and the like, or with eval/verbmem_forget.json as mini-MUSE has them",
            ));
        }
        Ok(muse)
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        let questions =
            self.questions.iter().flat_map(|q| std::iter::once(&q.asked).chain(&q.examples));
        let mmlu = self.mmlu.iter().flat_map(|(asked, examples)| [asked, examples]);
        let privleak = self.privleak.iter().flatten();
        let requests = self.requests.iter().map(|(_, table)| table);
        self.verbmem.iter().chain(questions).chain(privleak).chain(mmlu).chain(requests)
    }
}

impl Suite for Muse {
    fn hashes(&self) -> BTreeMap<String, String> {
        hashes(&self.dir, self.tables())
    }

    fn settings(&self) -> Value {
        let Options { metrics, limit, shots, series, context, .. } = &self.options;
        let series = series.map(|series| json!({"name": series.name(), "context": context}));
        json!({"suite": MUSE.name, "metrics": metrics, "limit": limit, "shots": shots, "series": series})
    }

    fn missing(&self) -> Vec<&'static str> {
        self.missing.clone()
    }

    fn models(&self) -> Option<usize> {
        Some(self.requests.len()).filter(|requests| *requests > 0)
    }

    fn prepare(&self, tokenizer: &Tokenizer) -> Result<Box<dyn super::Prepared>> {
        let mut prepared = Prepared::default();
        if let Some(table) = &self.verbmem {
            let (prompts, truths) = (table.texts("prompt")?, table.texts("gt")?);
            if self.options.wants(VERBMEM_F.name) {
                let truth = |text: &&str| {
                    let new = muse::VERBMEM_NEW_TOKENS;
                    let decode = |ids: &[u32]| tokenizer.decode(ids, true);
                    muse::verbmem_truth(text, new, |text| tokenizer.encode(text), decode)
                };
                prepared.verbmem = Some(Asked {
                    prompts: tokenizer.encode_batch(&prompts)?,
                    truths: truths.iter().map(truth).collect::<Result<_>>()?,
                });
            }
            if self.options.wants(EXTRACTION) {
                let pairs = prompts.iter().zip(&truths);
                let rows = pairs.map(|(prompt, gt)| completion(tokenizer, prompt, gt));
                prepared.extraction = rows.collect::<Result<_>>()?;
                let full = |row: &&Completion| row.ids.len() == row.start + LONGEST_COMPLETION;
                let cut = prepared.extraction.iter().filter(full).count();
                if cut > 0 {
                    prepared.notices.push(format!(
                        "{}: {EXTRACTION} looks at the first {LONGEST_COMPLETION} tokens of {cut} of {} continuations",
                        table.path().display(),
                        truths.len()
                    ));
                }
            }
        }
        for Questions { metric, asked, examples } in &self.questions {
            let mut shown = Vec::new();
            if let Some(table) = examples {
                let pairs = table.texts("question")?.into_iter().zip(table.texts("answer")?);
                shown.extend(pairs.take(self.options.shots.unwrap_or(usize::MAX)).map(
                    |(question, answer)| muse::Question {
                        question: question.to_owned(),
                        answer: answer.to_owned(),
                    },
                ));
            }
            let prompt = |question: &&str| muse::knowmem_prompt(&shown, question);
            let prompts: Vec<String> = asked.texts("question")?.iter().map(prompt).collect();
            let truths = asked.texts("answer")?.into_iter().map(str::to_owned).collect();
            prepared
                .knowmem
                .push((metric, Asked { prompts: tokenizer.encode_batch(&prompts)?, truths }));
        }
        if let Some(tables) = &self.privleak {
            for (name, table) in SPLITS.into_iter().zip(tables) {
                let texts = table.texts("text")?;
                let lower: Vec<String> = texts.iter().map(|text| text.to_lowercase()).collect();
                let rows = tokenizer.encode_batch(&texts)?;
                if let Some(i) = rows.iter().position(|ids| ids.len() < 2) {
                    return Err(Error::data(format!(
                        "{}: record {i}: the text has fewer than two tokens, nothing to predict",
                        table.path().display()
                    )));
                }
                prepared.splits.push(Split {
                    name,
                    texts: texts.into_iter().map(str::to_owned).collect(),
                    rows,
                    lower: tokenizer.encode_batch(&lower)?,
                });
            }
        }
        if let Some((asked, examples)) = &self.mmlu {
            let examples = examples.texts("text")?.concat();
            let (questions, choices) = (asked.texts("question")?, asked.lists("choices")?);
            let pairs = questions.iter().zip(&choices);
            let prompt = |(question, choices): (&&str, &Vec<&str>)| {
                muse::mmlu_prompt(&examples, question, choices)
            };
            let prompts: Vec<String> = pairs.map(prompt).collect();
            prepared.mmlu = Some((tokenizer.encode_batch(&prompts)?, asked.indices("answer", 3)?));
        }
        for (key, table) in &self.requests {
            let mut rows = tokenizer.encode_batch(&table.texts("text")?)?;
            let (context, documents) = (self.options.context, rows.len());
            let long = rows.iter().filter(|ids| ids.len() > context).count();
            if long > 0 {
                prepared.notices.push(format!(
                    "warning: {}: {long} of {documents} documents truncated to the context of {context} tokens (--context)",
                    table.path().display()
                ));
            }
            rows.iter_mut().for_each(|ids| ids.truncate(context));
            prepared.requests.push((key.clone(), rows));
        }
        for (metric, asked) in prepared
            .verbmem
            .iter()
            .map(|asked| (&VERBMEM_F, asked))
            .chain(prepared.knowmem.iter().map(|(metric, asked)| (*metric, asked)))
        {
            prepared.notices.extend(unscored(metric.name, &asked.truths));
        }
        let single = prepared.extraction.iter().filter(|row| row.ids.len() <= row.start + 1);
        prepared.notices.extend(uncounted(single.count(), prepared.extraction.len()));
        Ok(Box::new(prepared))
    }

    fn conclude(&self, outcome: &mut Outcome, retrained: &Retrained) -> Result<()> {
        outcome.remove(PRIVLEAK.name);
        let retrained = match retrained {
            Retrained::Measured(other) => other.get(AUC_FORGET_HOLDOUT.name),
            Retrained::Area(area) => Some(*area),
            Retrained::Unknown => None,
        };
        if let (Some(area), Some(retrained)) = (outcome.get(AUC_FORGET_HOLDOUT.name), retrained) {
            outcome.set(PRIVLEAK.name, leak(area, retrained));
        }
        Ok(())
    }
}

/// The folder while it is read.
struct Files<'a> {
    dir: &'a Path,
    options: &'a Options,
    missing: Vec<&'static str>,
}

impl Files<'_> {
    /// Opens the files of one metric, each by the names it may have; `None` where it is not wanted or not there.
    fn open<const N: usize>(
        &mut self,
        metric: &'static str,
        files: [(&str, &[&str]); N],
    ) -> Result<Option<[Table; N]>> {
        let named = self.options.metrics.iter().any(|name| name == metric);
        if !named && !self.options.metrics.is_empty() {
            return Ok(None);
        }
        let there =
            |(part, names): &(&str, &[&str])| find(self.dir, &places(part, names)).is_some();
        if !named && !files.iter().all(there) {
            self.missing.push(metric);
            return Ok(None);
        }
        let tables: Vec<Table> = files
            .iter()
            .map(|(part, names)| self.must(metric, part, names))
            .collect::<Result<_>>()?;
        Ok(<[Table; N]>::try_from(tables).ok())
    }

    /// Opens a file that has to be there.
    fn must(&self, metric: &str, part: &str, names: &[&str]) -> Result<Table> {
        let Some(path) = find(self.dir, &places(part, names)) else {
            let wanted: Vec<String> =
                names.iter().map(|name| format!("{part}/{name}.json")).collect();
            return Err(Error::data(format!(
                "{}: {metric} needs {}, which is not there",
                self.dir.display(),
                wanted.join(" or ")
            ))
            .hint("also read are eval/PART_NAME and PART_NAME, and .jsonl and .parquet; --shots 0 asks without examples"));
        };
        let mut table = Table::open(&path)?;
        if let Some(limit) = self.options.limit.filter(|_| !names[0].ends_with("icl")) {
            table.truncate(limit);
        }
        Ok(table)
    }

    /// Opens `SERIES/forget_1`, `SERIES/forget_2` and so on.
    fn requests(&self) -> Result<Vec<(String, Table)>> {
        let Some(series) = self.options.series else { return Ok(Vec::new()) };
        let name = series.name();
        let mut tables = Vec::new();
        loop {
            let number = tables.len() + 1;
            let Some(path) = Table::find(self.dir, &format!("{name}/forget_{number}")) else {
                break;
            };
            let mut table = Table::open(&path)?;
            table.truncate(self.options.limit.unwrap_or(usize::MAX));
            tables.push((series.metric().key(&number.to_string()), table));
        }
        if tables.is_empty() {
            return Err(Error::data(format!(
                "{}: --series {name} needs {name}/forget_1.json and on, which are not there",
                self.dir.display()
            )));
        }
        Ok(tables)
    }
}

/// Tokenises prompt, a blank and truth; the truth starts where the prompt alone ends.
fn completion(tokenizer: &Tokenizer, prompt: &str, gt: &str) -> Result<Completion> {
    let start = tokenizer.encode(prompt)?.len().max(1);
    let mut ids = tokenizer.encode(&format!("{prompt} {gt}"))?;
    ids.truncate(start + LONGEST_COMPLETION);
    if ids.len() <= start {
        return Err(Error::data(format!(
            "the prompt {prompt:?} has no continuation left to predict"
        )));
    }
    Ok(Completion { ids, start })
}

/// Prompts and the texts that should follow.
struct Asked {
    prompts: Vec<Vec<u32>>,
    truths: Vec<String>,
}

/// The texts of one split of privacy leakage.
struct Split {
    name: &'static str,
    texts: Vec<String>,
    rows: Vec<Vec<u32>>,
    lower: Vec<Vec<u32>>,
}

/// The benchmark, tokenised for one model.
#[derive(Default)]
struct Prepared {
    verbmem: Option<Asked>,
    extraction: Vec<Completion>,
    knowmem: Vec<(&'static Metric, Asked)>,
    splits: Vec<Split>,
    mmlu: Option<(Vec<Vec<u32>>, Vec<usize>)>,
    requests: Vec<(String, Vec<Vec<u32>>)>,
    /// Notices about what was cut or cannot be scored.
    notices: Vec<String>,
}

impl super::Prepared for Prepared {
    fn longest(&self) -> usize {
        let long = |rows: &[Vec<u32>], new| rows.iter().map(|ids| ids.len() + new).max();
        let asked = self.verbmem.iter().map(|a| long(&a.prompts, muse::VERBMEM_NEW_TOKENS));
        let knowmem = self.knowmem.iter().map(|(_, a)| long(&a.prompts, muse::KNOWMEM_NEW_TOKENS));
        let mmlu = self.mmlu.iter().map(|(rows, _)| long(rows, muse::MMLU_NEW_TOKENS));
        let splits = self.splits.iter().flat_map(|s| [long(&s.rows, 0), long(&s.lower, 0)]);
        let requests = self.requests.iter().map(|(_, rows)| long(rows, 0));
        let all = asked.chain(knowmem).chain(mmlu).chain(splits).chain(requests).flatten();
        all.chain(self.extraction.iter().map(|row| row.ids.len())).max().unwrap_or(1)
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn measure(&self, model: &mut dyn LanguageModel, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let scorer = Scorer::new();
        if let Some(asked) = &self.verbmem {
            say(&format!("{}: {} prompts", VERBMEM_F.name, asked.prompts.len()));
            let outputs = model.answers(&asked.prompts, muse::VERBMEM_NEW_TOKENS)?;
            let pairs = asked.truths.iter().zip(&outputs);
            let scored = pairs.map(|(truth, output)| muse::verbmem_score(&scorer, truth, output));
            rouge(&mut outcome, &VERBMEM_F, &asked.truths, &scored.collect::<Vec<_>>());
        }
        if !self.extraction.is_empty() {
            say(&format!("{EXTRACTION}: {} prompts", self.extraction.len()));
            extraction(&mut outcome, &model.completions(&self.extraction)?);
        }
        for (metric, asked) in &self.knowmem {
            say(&format!("{}: {} questions", metric.name, asked.prompts.len()));
            let outputs = model.answers(&asked.prompts, muse::KNOWMEM_NEW_TOKENS)?;
            let pairs = asked.truths.iter().zip(&outputs);
            let scored = pairs.map(|(truth, output)| muse::knowmem_score(&scorer, truth, output));
            rouge(&mut outcome, metric, &asked.truths, &scored.collect::<Vec<_>>());
        }
        if !self.splits.is_empty() {
            self.membership(model, say, &mut outcome)?;
        }
        if let Some((prompts, answers)) = &self.mmlu {
            say(&format!("{}: {} questions", MMLU_VAL.name, prompts.len()));
            let outputs = model.answers(prompts, muse::MMLU_NEW_TOKENS)?;
            let read: Vec<Option<usize>> = outputs.iter().map(|o| muse::mmlu_answer(o)).collect();
            let accuracy = muse::accuracy(read.iter().copied().zip(answers.iter().copied()));
            outcome.set(MMLU_VAL.name, 100.0 * accuracy);
            outcome.details.insert(MMLU_VAL.name, Detail::Choices(Choices { outputs, read }));
        }
        for (key, rows) in &self.requests {
            say(&format!("{key}: {} documents", rows.len()));
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let scores = model.scores(&rows)?;
            outcome.set(key, perplexity(scores.iter().map(|s| &s.log_probs[..])));
        }
        Ok(outcome)
    }
}

impl Prepared {
    fn membership(
        &self,
        model: &mut dyn LanguageModel,
        say: &mut dyn FnMut(&str),
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut all = Vec::new();
        let mut texts = Named::default();
        for split in &self.splits {
            say(&format!("{}: {} texts of {}", PRIVLEAK.name, split.texts.len(), split.name));
            let [plain, lower] = [&split.rows, &split.lower].map(|rows| {
                let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
                model.scores(&rows)
            });
            let (plain, lower) = (plain?, lower?);
            outcome.set(
                PERPLEXITY.key(split.name),
                perplexity(plain.iter().map(|s| &s.log_probs[..])),
            );
            let triples = split.texts.iter().zip(plain.iter().zip(&lower));
            let scores: Vec<TextScores> = triples
                .map(|(text, (plain, lower))| {
                    TextScores::new(text, &plain.log_probs, &lower.log_probs)
                })
                .collect();
            let values: Vec<Quantities> =
                scores.iter().map(|scores| scores.values.map(finite)).collect();
            texts.insert(split.name, values);
            all.push((split.name, scores));
        }
        let splits: Vec<(&str, &[TextScores])> =
            all.iter().map(|(name, scores)| (*name, scores.as_slice())).collect();
        let areas: Named<Option<f64>> = auc_table(&splits).into_iter().collect();
        let area = areas.get(HEADLINE_KEY).copied().flatten();
        outcome.figures.insert(AUC_FORGET_HOLDOUT.name, area);
        outcome.details.insert("auc", Detail::Areas(areas));
        let columns = QUANTITIES.map(str::to_owned).into();
        outcome.details.insert("quantities", Detail::Columns(columns));
        outcome.details.insert("texts", Detail::Quantities(texts));
        Ok(())
    }
}

/// Sets the headline of `metric` and keeps the items.
fn rouge(outcome: &mut Outcome, metric: &Metric, truths: &[String], scored: &[muse::Scored]) {
    // Where no true text has a token, 0 would say that all is forgotten.
    let defined = truths.iter().any(|truth| Scorer::new().defined(truth));
    outcome.set(metric.name, if defined { muse::headline(scored) } else { f64::NAN });
    let items = Continuations::new(truths, scored);
    outcome.details.insert(metric.name, Detail::Continuations(items));
}

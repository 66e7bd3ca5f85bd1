//! MUSE: verbatim and knowledge memorisation, privacy leakage, utility, and sequences of requests.
//!
//! Source: `muse_bench` of the reference, `eval.py` and `metrics/*.py`; the figures are its headline numbers, in percent.
//! Exact memorisation and extraction strength are OpenUnlearning's, on the prompts of verbatim memorisation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Completion, Outcome, Subject, check_metrics, find, hashes, uncounted, unscored};
use crate::data::{Table, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::extraction::{exact_memorisation, extraction_strength};
use crate::eval::membership::{HEADLINE_KEY, TextScores, auc_table, mean_nll, privleak as leak};
use crate::eval::rouge::Scorer;
use crate::eval::{mean, muse};
use crate::ops::Ops;

/// What can be measured.
pub const METRICS: [&str; 6] =
    ["verbmem_f", "extraction", "knowmem_f", "knowmem_r", "privleak", "mmlu_val"];

/// The splits of privacy leakage.
const SPLITS: [&str; 3] = ["forget", "retain", "holdout"];

/// Tokens of a continuation that exact memorisation and extraction strength look at (OpenUnlearning, `CompletionDataset`).
const LONGEST_COMPLETION: usize = 2048;

/// What is measured, and of how much.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Names of [`METRICS`]; empty for all whose files are there.
    pub metrics: Vec<String>,
    /// The first items of every file that are looked at.
    pub limit: Option<usize>,
    /// Examples before a question of knowledge memorisation; all that the file has by default.
    pub shots: Option<usize>,
    /// A sequence of requests, `sust` or `scal`: the perplexity of each is measured too.
    pub series: Option<String>,
    /// Tokens of a document of such a request; longer ones are cut.
    pub context: usize,
}

/// Questions and the examples before them.
struct Questions {
    name: &'static str,
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
    requests: Vec<Table>,
    /// What is not measured since its files are not there.
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
        check_metrics(&options.metrics, &METRICS)?;
        let mut files = Files { dir, options: &options, missing: Vec::new() };
        let mut verbmem = None;
        for name in ["verbmem_f", "extraction"] {
            if let Some([table]) = files.open(name, [("verbmem", &["forget"])])? {
                verbmem = Some(table);
            }
        }
        let mut questions = Vec::new();
        for (name, sets) in
            [("knowmem_f", &["forget_qa"][..]), ("knowmem_r", &["retain_qa", "retain2_qa"])]
        {
            let Some([asked]) = files.open(name, [("knowmem", sets)])? else { continue };
            let examples = match options.shots {
                Some(0) => None,
                _ => {
                    let sets: Vec<String> = sets.iter().map(|set| format!("{set}_icl")).collect();
                    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
                    Some(files.must(name, "knowmem", &sets)?)
                }
            };
            questions.push(Questions { name, asked, examples });
        }
        let privleak = files.open(
            "privleak",
            [
                ("privleak", &["forget"][..]),
                ("privleak", &["retain", "retain2"]),
                ("privleak", &["holdout"]),
            ],
        )?;
        let mmlu = files
            .open("mmlu_val", [("mmlu", &["mmlu_all_val"][..]), ("mmlu", &["mmlu_icl"])])?
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
        self.verbmem.iter().chain(questions).chain(privleak).chain(mmlu).chain(&self.requests)
    }

    /// Returns the hashes of all files, by their paths within the folder.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        hashes(&self.dir, self.tables())
    }

    /// Returns what is not measured, since its files are not there.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// Returns the number of requests of the sequence that was asked for.
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// Returns everything that decides the figures beside model and data.
    pub fn settings(&self) -> Value {
        let Options { metrics, limit, shots, series, context } = &self.options;
        let series = series.as_ref().map(|name| json!({"name": name, "context": context}));
        json!({"suite": "muse", "metrics": metrics, "limit": limit, "shots": shots, "series": series})
    }

    fn wants(&self, name: &str) -> bool {
        self.options.metrics.is_empty() || self.options.metrics.iter().any(|m| m == name)
    }

    /// Tokenises everything for one model.
    pub fn prepare(&self, tokenizer: &Tokenizer) -> Result<Prepared> {
        let mut prepared = Prepared::default();
        if let Some(table) = &self.verbmem {
            let (prompts, truths) = (table.texts("prompt")?, table.texts("gt")?);
            if self.wants("verbmem_f") {
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
            if self.wants("extraction") {
                let pairs = prompts.iter().zip(&truths);
                let rows = pairs.map(|(prompt, gt)| completion(tokenizer, prompt, gt));
                prepared.extraction = rows.collect::<Result<_>>()?;
                let full = |row: &&Completion| row.ids.len() == row.start + LONGEST_COMPLETION;
                let cut = prepared.extraction.iter().filter(full).count();
                if cut > 0 {
                    prepared.notices.push(format!(
                        "{}: extraction looks at the first {LONGEST_COMPLETION} tokens of {cut} of {} continuations",
                        table.path().display(),
                        truths.len()
                    ));
                }
            }
        }
        for Questions { name, asked, examples } in &self.questions {
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
                .push((name, Asked { prompts: tokenizer.encode_batch(&prompts)?, truths }));
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
        for table in &self.requests {
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
            prepared.requests.push(rows);
        }
        for (name, asked) in prepared
            .verbmem
            .iter()
            .map(|asked| ("verbmem_f", asked))
            .chain(prepared.knowmem.iter().map(|(name, asked)| (*name, asked)))
        {
            prepared.notices.extend(unscored(name, &asked.truths));
        }
        let single = prepared.extraction.iter().filter(|row| row.ids.len() <= row.start + 1);
        prepared.notices.extend(uncounted(single.count(), prepared.extraction.len()));
        prepared.series = self.options.series.clone().unwrap_or_default();
        Ok(prepared)
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
    fn requests(&self) -> Result<Vec<Table>> {
        let Some(series) = &self.options.series else { return Ok(Vec::new()) };
        let mut tables = Vec::new();
        while let Some(path) =
            Table::find(self.dir, &format!("{series}/forget_{}", tables.len() + 1))
        {
            let mut table = Table::open(&path)?;
            table.truncate(self.options.limit.unwrap_or(usize::MAX));
            tables.push(table);
        }
        if tables.is_empty() {
            return Err(Error::data(format!(
                "{}: --series {series} needs {series}/forget_1.json and on, which are not there",
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
pub struct Prepared {
    verbmem: Option<Asked>,
    extraction: Vec<Completion>,
    knowmem: Vec<(&'static str, Asked)>,
    splits: Vec<Split>,
    mmlu: Option<(Vec<Vec<u32>>, Vec<usize>)>,
    series: String,
    requests: Vec<Vec<Vec<u32>>>,
    /// Notices about what was cut or cannot be scored.
    pub(super) notices: Vec<String>,
}

impl Prepared {
    /// Returns the length of the longest sequence, tokens, new ones included.
    pub fn longest(&self) -> usize {
        let long = |rows: &[Vec<u32>], new| rows.iter().map(|ids| ids.len() + new).max();
        let asked = self.verbmem.iter().map(|a| long(&a.prompts, muse::VERBMEM_NEW_TOKENS));
        let knowmem = self.knowmem.iter().map(|(_, a)| long(&a.prompts, muse::KNOWMEM_NEW_TOKENS));
        let mmlu = self.mmlu.iter().map(|(rows, _)| long(rows, muse::MMLU_NEW_TOKENS));
        let splits = self.splits.iter().flat_map(|s| [long(&s.rows, 0), long(&s.lower, 0)]);
        let requests = self.requests.iter().map(|rows| long(rows, 0));
        let all = asked.chain(knowmem).chain(mmlu).chain(splits).chain(requests).flatten();
        all.chain(self.extraction.iter().map(|row| row.ids.len())).max().unwrap_or(1)
    }

    /// Measures everything; `say` hears what is done next.
    pub fn measure<O: Ops>(
        &self,
        subject: &mut Subject<'_, O>,
        say: &mut dyn FnMut(&str),
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let scorer = Scorer::new();
        if let Some(asked) = &self.verbmem {
            say(&format!("verbmem_f: {} prompts", asked.prompts.len()));
            let outputs = subject.answers(&asked.prompts, muse::VERBMEM_NEW_TOKENS)?;
            let pairs = asked.truths.iter().zip(&outputs);
            let scored = pairs.map(|(truth, output)| muse::verbmem_score(&scorer, truth, output));
            rouge(&mut outcome, "verbmem_f", &asked.truths, &scored.collect::<Vec<_>>());
        }
        if !self.extraction.is_empty() {
            say(&format!("extraction: {} prompts", self.extraction.len()));
            extraction(
                &mut outcome,
                subject.completions(&self.extraction)?.iter().map(|s| &s.hits[..]),
            );
        }
        for (name, asked) in &self.knowmem {
            say(&format!("{name}: {} questions", asked.prompts.len()));
            let outputs = subject.answers(&asked.prompts, muse::KNOWMEM_NEW_TOKENS)?;
            let pairs = asked.truths.iter().zip(&outputs);
            let scored = pairs.map(|(truth, output)| muse::knowmem_score(&scorer, truth, output));
            rouge(&mut outcome, name, &asked.truths, &scored.collect::<Vec<_>>());
        }
        if !self.splits.is_empty() {
            self.membership(subject, say, &mut outcome)?;
        }
        if let Some((prompts, answers)) = &self.mmlu {
            say(&format!("mmlu_val: {} questions", prompts.len()));
            let outputs = subject.answers(prompts, muse::MMLU_NEW_TOKENS)?;
            let read: Vec<Option<usize>> = outputs.iter().map(|o| muse::mmlu_answer(o)).collect();
            let accuracy = muse::accuracy(read.iter().copied().zip(answers.iter().copied()));
            outcome.figure("mmlu_val", 100.0 * accuracy);
            outcome.details.insert("mmlu_val".into(), json!({"outputs": outputs, "read": read}));
        }
        for (k, rows) in self.requests.iter().enumerate() {
            let name = format!("ppl_{}_{}", self.series, k + 1);
            say(&format!("{name}: {} documents", rows.len()));
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let scores = subject.scores(&rows)?;
            outcome.figure(name, perplexity(scores.iter().map(|s| &s.log_probs[..])));
        }
        Ok(outcome)
    }

    fn membership<O: Ops>(
        &self,
        subject: &mut Subject<'_, O>,
        say: &mut dyn FnMut(&str),
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut all = Vec::new();
        let mut texts = Map::new();
        for split in &self.splits {
            say(&format!("privleak: {} texts of {}", split.texts.len(), split.name));
            let [plain, lower] = [&split.rows, &split.lower].map(|rows| {
                let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
                subject.scores(&rows)
            });
            let (plain, lower) = (plain?, lower?);
            outcome.figure(
                format!("ppl_{}", split.name),
                perplexity(plain.iter().map(|s| &s.log_probs[..])),
            );
            let triples = split.texts.iter().zip(plain.iter().zip(&lower));
            let scores: Vec<TextScores> = triples
                .map(|(text, (plain, lower))| {
                    TextScores::new(text, &plain.log_probs, &lower.log_probs)
                })
                .collect();
            let values: Vec<_> = scores.iter().map(|scores| scores.values).collect();
            texts.insert(split.name.into(), json!(values));
            all.push((split.name, scores));
        }
        let splits: Vec<(&str, &[TextScores])> =
            all.iter().map(|(name, scores)| (*name, scores.as_slice())).collect();
        let areas: Map<String, Value> =
            auc_table(&splits).into_iter().map(|(name, area)| (name, json!(area))).collect();
        outcome.figures.insert("auc_forget_holdout".into(), areas[HEADLINE_KEY].clone());
        outcome.details.insert("auc".into(), Value::Object(areas));
        outcome.details.insert("quantities".into(), json!(crate::eval::membership::QUANTITIES));
        outcome.details.insert("texts".into(), Value::Object(texts));
        Ok(())
    }
}

/// exp of the mean NLL over all tokens.
fn perplexity<'a>(log_probs: impl Iterator<Item = &'a [f64]>) -> f64 {
    let all: Vec<f64> = log_probs.flatten().copied().collect();
    mean_nll(&all).exp()
}

/// Sets the headline of `name` and keeps the items.
fn rouge(outcome: &mut Outcome, name: &str, truths: &[String], scored: &[muse::Scored]) {
    // Where no true text has a token, 0 would say that all is forgotten.
    let defined = truths.iter().any(|truth| Scorer::new().defined(truth));
    outcome.figure(name, if defined { muse::headline(scored) } else { f64::NAN });
    let all = muse::aggregate(scored);
    let items: Vec<Value> = truths
        .iter()
        .zip(scored)
        .map(|(truth, one)| {
            json!({"gt": truth, "response": one.response, "rougeL": one.rouge.rouge_l.f1,
                "rougeL_recall": one.rouge.rouge_l.recall, "rouge1": one.rouge.rouge1.f1,
                "rouge1_recall": one.rouge.rouge1.recall})
        })
        .collect();
    let value = json!({
        "mean_rougeL": all.mean_rouge_l, "mean_rougeL_recall": all.mean_rouge_l_recall,
        "mean_rouge1": all.mean_rouge1, "mean_rouge1_recall": all.mean_rouge1_recall, "items": items,
    });
    outcome.details.insert(name.into(), value);
}

/// Sets exact memorisation and extraction strength; the last token of each row is not looked at (the reference takes it
/// for the end mark).
pub(super) fn extraction<'a>(outcome: &mut Outcome, hits: impl Iterator<Item = &'a [bool]>) {
    let hits: Vec<&[bool]> = hits.map(|hits| &hits[..hits.len().saturating_sub(1)]).collect();
    let exact: Vec<f64> = hits.iter().filter_map(|hits| exact_memorisation(hits)).collect();
    let strength: Vec<f64> = hits.iter().filter_map(|hits| extraction_strength(hits)).collect();
    outcome.figure("exact_memorization", mean(exact.iter().copied()));
    outcome.figure("extraction_strength", mean(strength.iter().copied()));
    outcome.details.insert("exact_memorization".into(), json!(exact));
    outcome.details.insert("extraction_strength".into(), json!(strength));
}

/// Adds the leak of a model with `outcome` against the area of a model that never saw the forget set.
pub fn conclude(outcome: &mut Outcome, retrained: f64) {
    if let Some(area) = outcome.get("auc_forget_holdout") {
        outcome.figure("privleak", leak(area, retrained));
    }
}

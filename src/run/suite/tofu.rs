//! TOFU: probability, ROUGE and truth ratio of answers, model utility, forget quality.
//!
//! Source: OpenUnlearning, `configs/eval/tofu_metrics` and `src/evals/metrics`, by the names it gives the figures. Its
//! probability of an answer counts the end mark; ROUGE is the recall of ROUGE-L with stemming on up to 200 greedy tokens.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::muse::extraction;
use super::{Completion, Outcome, Subject, check_metrics, hashes, uncounted, unscored};
use crate::data::{Table, Tokenizer, clean_up_tokenization};
use crate::error::{Error, Result};
use crate::eval::ks::ks_test;
use crate::eval::membership::mean_nll;
use crate::eval::rouge::Scorer;
use crate::eval::{mean, tofu};
use crate::ops::Ops;

/// What can be measured: `probability` includes truth ratios.
pub const METRICS: [&str; 3] = ["probability", "rouge", "extraction"];

/// How a question is put; `{question}` stands for it.
pub const TEMPLATES: [(&str, &str); 2] =
    [("qa", "Question: {question}\nAnswer: "), ("llama2", "[INST] {question} [/INST]")];

/// Where the scored part of an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AnswerTokens {
    /// After as many tokens as the question has alone, as OpenUnlearning has it. Where the blank that ends the question
    /// becomes a part of the answer's first token, that token is not scored.
    #[default]
    Benchmark,
    /// At the first token that the answer has a part in.
    All,
}

impl AnswerTokens {
    /// Returns its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Benchmark => "benchmark",
            Self::All => "all",
        }
    }
}

/// What is measured, and of how much.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Names of [`METRICS`]; empty for all.
    pub metrics: Vec<String>,
    /// The first questions of every file that are asked.
    pub limit: Option<usize>,
    /// The forget set, such as `forget10`; by default the one that the folder has.
    pub forget_set: Option<String>,
    /// A name of [`TEMPLATES`], or a text with `{question}`.
    pub template: String,
    /// Where the scored part of an answer begins.
    pub answer_tokens: AnswerTokens,
}

/// The questions of one file.
struct Set {
    name: &'static str,
    table: Table,
}

/// The files of the benchmark, read.
pub struct Tofu {
    dir: PathBuf,
    options: Options,
    template: String,
    sets: Vec<Set>,
}

/// Files of what is to be kept, and the names of their figures.
const KEPT: [(&str, &str); 3] = [
    ("retain", "retain_perturbed"),
    ("ra", "real_authors_perturbed"),
    ("wf", "world_facts_perturbed"),
];
/// Forget sets, the largest first.
const FORGET_SETS: [&str; 3] = ["forget10", "forget05", "forget01"];

impl Tofu {
    /// Reads `FORGET_perturbed`, and `retain_perturbed`, `real_authors_perturbed`, `world_facts_perturbed` where they are
    /// there, of the folder `dir`.
    ///
    /// Errors: [`crate::Kind::Config`] for settings that cannot work, [`crate::Kind::Data`] where there is no forget set,
    /// or a file is broken.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        check_metrics(&options.metrics, &METRICS)?;
        let known = TEMPLATES.iter().find(|(name, _)| *name == options.template);
        let template = known.map_or(options.template.as_str(), |(_, text)| text).to_owned();
        if !template.contains("{question}") {
            return Err(Error::config(format!(
                "--template: {:?} has no {{question}} in it",
                options.template
            ))
            .hint("known are qa and llama2; or write how a question is put, with {question} in its place"));
        }
        let find = |name: &str| Table::find(dir, &format!("{name}_perturbed"));
        let path = match &options.forget_set {
            Some(name) => find(name),
            None => FORGET_SETS.iter().find_map(|name| find(name)),
        };
        let path = path.ok_or_else(|| {
            let wanted = options.forget_set.as_deref().unwrap_or("forget10");
            Error::data(format!("{}: holds no {wanted}_perturbed.json", dir.display()))
                .hint("--data takes the folder of TOFU's files; --forget-set names another set, such as forget05")
        })?;
        let mut sets = vec![Set { name: "forget", table: Table::open(&path)? }];
        for (name, stem) in KEPT {
            if let Some(path) = Table::find(dir, stem) {
                sets.push(Set { name, table: Table::open(&path)? });
            }
        }
        let limit = options.limit.unwrap_or(usize::MAX);
        sets.iter_mut().for_each(|set| set.table.truncate(limit));
        Ok(Self { dir: dir.to_owned(), options, template, sets })
    }

    /// Returns the hashes of all files, by their paths within the folder.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        hashes(&self.dir, self.sets.iter().map(|set| &set.table))
    }

    /// Returns the names of files of what is to be kept that are not there: without them there is no model utility.
    pub fn missing(&self) -> Vec<&'static str> {
        let there = |name: &str| self.sets.iter().any(|set| set.name == name);
        KEPT.iter().filter(|(name, _)| !there(name)).map(|(_, stem)| *stem).collect()
    }

    /// Returns everything that decides the figures beside model and data.
    pub fn settings(&self) -> Value {
        let Options { metrics, limit, forget_set, answer_tokens, .. } = &self.options;
        json!({"suite": "tofu", "metrics": metrics, "limit": limit, "forget_set": forget_set,
            "template": self.template, "answer_tokens": answer_tokens.name()})
    }

    fn wants(&self, name: &str) -> bool {
        self.options.metrics.is_empty() || self.options.metrics.iter().any(|m| m == name)
    }

    /// Tokenises everything for one model.
    pub fn prepare(&self, tokenizer: &Tokenizer) -> Result<Prepared> {
        let mut prepared = Prepared {
            rouge: self.wants("rouge"),
            extraction: self.wants("extraction"),
            sets: Vec::new(),
            notices: Vec::new(),
        };
        for Set { name, table } in &self.sets {
            let questions: Vec<String> = table
                .texts("question")?
                .iter()
                .map(|question| self.template.replace("{question}", question))
                .collect();
            let rule = self.options.answer_tokens;
            let counts = Counts::default();
            let row = |(i, (question, answer)): (usize, (&String, &str))| {
                completion(tokenizer, question, answer, rule, &counts)
                    .map_err(|e| e.at(format!("{}: record {i}", table.path().display())))
            };
            let rows = |answers: Vec<&str>| -> Result<Vec<Completion>> {
                questions.iter().zip(answers).enumerate().map(row).collect()
            };
            let prompts = tokenizer.encode_batch(&questions)?;
            let answers = rows(table.texts("answer")?)?;
            let mut truths = Vec::with_capacity(answers.len());
            for (prompt, row) in prompts.iter().zip(&answers) {
                let [asked, all] = [prompt, &row.ids].map(|ids| readable(tokenizer, ids));
                let (asked, all) = (asked?, all?);
                truths.push(match asked.is_empty() {
                    true => all.trim().to_owned(),
                    false => all.replace(&asked, "").trim().to_owned(),
                });
            }
            let mut set = Asked { name, prompts, truths, answers, right: None, wrong: Vec::new() };
            if self.wants("probability") {
                // Real authors and world facts have no paraphrase: the answer itself stands against the wrong ones.
                if table.has("paraphrased_answer") && !["ra", "wf"].contains(name) {
                    set.right = Some(rows(table.texts("paraphrased_answer")?)?);
                }
                for (i, (question, wrong)) in
                    questions.iter().zip(table.lists("perturbed_answer")?).enumerate()
                {
                    let pairs = wrong.into_iter().map(|answer| row((i, (question, answer))));
                    set.wrong.push(pairs.collect::<Result<_>>()?);
                }
            }
            prepared.notices.extend(counts.notices(&table.path().display().to_string()));
            if prepared.rouge {
                prepared.notices.extend(unscored(&format!("{name}_Q_A_ROUGE"), &set.truths));
            }
            if prepared.extraction && *name == "forget" {
                let single = set.answers.iter().filter(|row| row.ids.len() <= row.start + 1);
                prepared.notices.extend(uncounted(single.count(), set.answers.len()));
            }
            prepared.sets.push(set);
        }
        Ok(prepared)
    }
}

/// What happened to the answers of one file.
#[derive(Default)]
struct Counts {
    answers: Cell<usize>,
    /// Those cut at [`tofu::LONGEST`].
    cut: Cell<usize>,
    /// Those whose first token is not scored.
    unscored: Cell<usize>,
    /// Those with a special token twice.
    doubled: Cell<usize>,
}

impl Counts {
    fn notices(&self, name: &str) -> Vec<String> {
        let all = self.answers.get();
        let lines = [
            (self.cut.get(), format!("answers are cut where question and answer exceed {} tokens", tofu::LONGEST)),
            (
                self.doubled.get(),
                "questions begin or end with a special token that the tokenizer adds too".to_owned(),
            ),
            (
                self.unscored.get(),
                "answers have their first token unscored, as in the benchmark, since it begins with the blank that ends \
                 the question; --answer-tokens all scores it"
                    .to_owned(),
            ),
        ];
        let lines = lines.into_iter().filter(|(n, _)| *n > 0);
        lines.map(|(n, what)| format!("warning: {name}: {n} of {all} {what}")).collect()
    }
}

/// Tokenises a question and an answer, closes it with the end mark, and cuts it at [`tofu::LONGEST`].
fn completion(
    tokenizer: &Tokenizer,
    question: &str,
    answer: &str,
    rule: AnswerTokens,
    counts: &Counts,
) -> Result<Completion> {
    let count = |cell: &Cell<usize>, is: bool| cell.set(cell.get() + usize::from(is));
    let asked = tokenizer.encode(question)?;
    let plain = tokenizer.encode_plain(&format!("{question}{answer}"))?;
    let mut ids = [tokenizer.prefix(), &plain, tokenizer.suffix()].concat();
    // The question alone may end in tokens that with the answer become others.
    let common = asked.iter().zip(&ids).take_while(|(a, b)| a == b).count();
    let start = match rule {
        AnswerTokens::Benchmark => asked.len(),
        AnswerTokens::All => common,
    };
    let start = start.clamp(1, tofu::LONGEST);
    count(&counts.answers, true);
    count(&counts.cut, ids.len() > tofu::LONGEST);
    count(&counts.doubled, tokenizer.doubles(&plain));
    count(&counts.unscored, common.max(1) < start);
    ids.truncate(tofu::LONGEST);
    if let Some(eos) = tokenizer.eos().filter(|eos| ids.last() != Some(eos)) {
        ids.push(eos);
    }
    if ids.len() <= start {
        return Err(Error::data("no token of the answer is left to predict")
            .hint(format!("a question with its answer is cut at {} tokens", tofu::LONGEST)));
    }
    Ok(Completion { ids, start })
}

/// Decodes as the reference does: no special tokens, blanks before punctuation removed.
fn readable(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    Ok(clean_up_tokenization(&tokenizer.decode(ids, true)?))
}

/// The questions of one file, tokenised.
struct Asked {
    name: &'static str,
    prompts: Vec<Vec<u32>>,
    truths: Vec<String>,
    answers: Vec<Completion>,
    /// Paraphrased answers, where they stand for the right one in truth ratios.
    right: Option<Vec<Completion>>,
    wrong: Vec<Vec<Completion>>,
}

/// The benchmark, tokenised for one model.
pub struct Prepared {
    rouge: bool,
    extraction: bool,
    sets: Vec<Asked>,
    /// Notices about what was cut or is not scored.
    pub(super) notices: Vec<String>,
}

impl Prepared {
    /// Returns the length of the longest sequence, tokens, new ones included.
    pub fn longest(&self) -> usize {
        let new = if self.rouge { tofu::NEW_TOKENS } else { 0 };
        let prompts =
            self.sets.iter().flat_map(|set| set.prompts.iter().map(|ids| ids.len() + new));
        let rows = self.sets.iter().flat_map(|set| {
            set.answers.iter().chain(set.right.iter().flatten()).chain(set.wrong.iter().flatten())
        });
        prompts.chain(rows.map(|row| row.ids.len())).max().unwrap_or(1)
    }

    /// Measures everything; `say` hears what is done next.
    pub fn measure<O: Ops>(
        &self,
        subject: &mut Subject<'_, O>,
        say: &mut dyn FnMut(&str),
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for set in &self.sets {
            say(&format!("{}: {} questions", set.name, set.prompts.len()));
            if !set.wrong.is_empty() {
                set.probabilities(subject, &mut outcome)?;
            }
            if self.rouge {
                set.rouge(subject, &mut outcome)?;
            }
            if self.extraction && set.name == "forget" {
                let scores = subject.completions(&set.answers)?;
                extraction(&mut outcome, scores.iter().map(|s| &s.hits[..]));
            }
        }
        const UTILITY: [&str; 9] = [
            "retain_Q_A_Prob",
            "retain_Q_A_ROUGE",
            "retain_Truth_Ratio",
            "ra_Q_A_Prob_normalised",
            "ra_Q_A_ROUGE",
            "ra_Truth_Ratio",
            "wf_Q_A_Prob_normalised",
            "wf_Q_A_ROUGE",
            "wf_Truth_Ratio",
        ];
        let figures: Option<Vec<f64>> = UTILITY.iter().map(|name| outcome.get(name)).collect();
        if let Some(figures) = figures {
            outcome.figure("model_utility", tofu::model_utility(&figures));
        }
        Ok(outcome)
    }
}

/// The mean NLL of each row from where the answer starts, nats per token.
fn losses<O: Ops>(subject: &mut Subject<'_, O>, rows: &[Completion]) -> Result<Vec<f64>> {
    Ok(subject.completions(rows)?.iter().map(|scores| mean_nll(&scores.log_probs)).collect())
}

impl Asked {
    fn probabilities<O: Ops>(
        &self,
        subject: &mut Subject<'_, O>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let answers = losses(subject, &self.answers)?;
        let right = match &self.right {
            Some(rows) => losses(subject, rows)?,
            None => answers.clone(),
        };
        let flat: Vec<Completion> = self.wrong.concat();
        let mut flat = losses(subject, &flat)?.into_iter();
        let wrong: Vec<Vec<f64>> =
            self.wrong.iter().map(|rows| flat.by_ref().take(rows.len()).collect()).collect();
        let each = |right: &[f64], f: fn(f64, &[f64]) -> f64| -> Vec<f64> {
            right.iter().zip(&wrong).map(|(right, wrong)| f(*right, wrong)).collect()
        };
        let ratios = each(&right, tofu::truth_ratio);
        let name = self.name;
        outcome.figure(
            format!("{name}_Q_A_Prob"),
            mean(answers.iter().map(|nll| tofu::probability(*nll))),
        );
        let all = match name {
            "forget" => tofu::forget_truth_ratio(&ratios),
            _ => tofu::kept_truth_ratio(&ratios),
        };
        if ["ra", "wf"].contains(&name) {
            let among = each(&answers, tofu::probability_among);
            outcome.figure(format!("{name}_Q_A_Prob_normalised"), mean(among));
        }
        outcome.figure(format!("{name}_Truth_Ratio"), all);
        outcome.details.insert(
            format!("{name}_probability"),
            json!({"answer_nll": answers, "right_nll": right, "wrong_nll": wrong, "truth_ratios": ratios}),
        );
        Ok(())
    }

    fn rouge<O: Ops>(&self, subject: &mut Subject<'_, O>, outcome: &mut Outcome) -> Result<()> {
        let scorer = Scorer::stemming();
        let outputs = subject.answers(&self.prompts, tofu::NEW_TOKENS)?;
        let mut items = Vec::with_capacity(outputs.len());
        let mut recalls = Vec::with_capacity(outputs.len());
        for (truth, output) in self.truths.iter().zip(&outputs) {
            let response = clean_up_tokenization(output).trim().to_owned();
            let scores = scorer.score(truth, &response);
            recalls.push(scores.rouge_l.recall);
            items.push(json!({"gt": truth, "response": response,
                "rougeL_recall": scores.rouge_l.recall, "rougeL_f1": scores.rouge_l.f1,
                "rouge1_recall": scores.rouge1.recall}));
        }
        // Where no true text has a token, 0 would say that all is forgotten.
        let defined = self.truths.iter().any(|truth| scorer.defined(truth));
        let score = if defined { mean(recalls) } else { f64::NAN };
        outcome.figure(format!("{}_Q_A_ROUGE", self.name), score);
        outcome.details.insert(format!("{}_ROUGE", self.name), json!(items));
        Ok(())
    }
}

/// Adds the forget quality of a model with `outcome` against a model that never saw the forget set: the p-value of the
/// KS test on the truth ratios of both.
///
/// Errors: [`crate::Kind::Numeric`] where a truth ratio is not a number.
pub fn conclude(outcome: &mut Outcome, retrained: &Outcome) -> Result<()> {
    let ratios = |outcome: &Outcome| -> Option<Vec<f64>> {
        let all = outcome.details.get("forget_probability")?.get("truth_ratios")?.as_array()?;
        Some(all.iter().map(|ratio| ratio.as_f64().unwrap_or(f64::NAN)).collect())
    };
    let (Some(own), Some(other)) = (ratios(outcome), ratios(retrained)) else { return Ok(()) };
    let test = ks_test(&own, &other).ok_or_else(|| {
        Error::new(crate::Kind::Numeric, "a truth ratio of the forget set is not a number")
    })?;
    outcome.figure("forget_quality", test.p);
    outcome.details.insert("forget_quality".into(), json!({"ks_distance": test.distance}));
    Ok(())
}

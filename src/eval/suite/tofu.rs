//! TOFU: probability, ROUGE and truth ratio of answers, model utility, forget quality.
//!
//! Source: OpenUnlearning, `configs/eval/tofu_metrics` and `src/evals/metrics`, by the names it gives the figures. Its
//! probability of an answer counts the end mark; ROUGE is the recall of ROUGE-L with stemming on up to 200 greedy tokens.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    Completion, EXTRACTION, EXTRACTION_METRICS, Kind, LanguageModel, Options, Outcome, Part,
    Retrained, Suite, check_parts, extraction, hashes, uncounted, unscored,
};
use crate::data::{Table, Tokenizer, clean_up_tokenization};
use crate::error::{Error, Result};
use crate::eval::metric::Metric;
use crate::eval::metric::ks::{Distance, FORGET_QUALITY, ks_test};
use crate::eval::metric::membership::mean_nll;
use crate::eval::metric::rouge::Scorer;
use crate::eval::metric::tofu::{
    self, Answer, MODEL_UTILITY, Probabilities, Q_A_PROB, Q_A_PROB_NORMALISED, Q_A_ROUGE,
    TRUTH_RATIO,
};
use crate::eval::outcome::Detail;
use crate::eval::{finite, mean};

/// TOFU.
pub const TOFU: Kind = Kind {
    name: "tofu",
    about: "Probability, ROUGE, truth ratio, model utility, forget quality",
    parts: &[
        Part {
            name: PROBABILITY,
            metrics: &[
                (&Q_A_PROB, &SETS),
                (&Q_A_PROB_NORMALISED, &GENERAL),
                (&TRUTH_RATIO, &SETS),
                (&FORGET_QUALITY, &[]),
            ],
        },
        Part { name: ROUGE, metrics: &[(&Q_A_ROUGE, &SETS)] },
        Part { name: EXTRACTION, metrics: EXTRACTION_METRICS },
    ],
    derived: &[(&MODEL_UTILITY, &[])],
    options: &["--forget-set", "--answer-tokens"],
    open: |dir, options| Ok(Box::new(Tofu::open(dir, options)?)),
};

/// The part of probabilities and truth ratios.
const PROBABILITY: &str = "probability";
/// The part of generated answers.
const ROUGE: &str = "rouge";

/// The forget set in keys.
const FORGET: &str = "forget";
/// Real authors and world facts in keys: their questions have no paraphrased answer.
const GENERAL: [&str; 2] = ["ra", "wf"];
/// All sets of questions in keys.
const SETS: [&str; 4] = [FORGET, "retain", "ra", "wf"];

/// The results that model utility is the mean of: those of all sets but the forget set.
fn utility_keys() -> Vec<String> {
    let of = |set: &&'static str| {
        let general = GENERAL.contains(set);
        let probability = if general { &Q_A_PROB_NORMALISED } else { &Q_A_PROB };
        [probability, &Q_A_ROUGE, &TRUTH_RATIO].map(|metric: &Metric| metric.key(set))
    };
    SETS.iter().filter(|set| **set != FORGET).flat_map(of).collect()
}

/// The key of the NLLs of a set in the details.
fn probability_key(set: &str) -> String {
    format!("{set}_probability")
}

/// Template of a question; `{question}` stands for it.
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
        check_parts(&options.metrics, &TOFU)?;
        let asked = options.template.as_deref().unwrap_or(TEMPLATES[0].0);
        let known = TEMPLATES.iter().find(|(name, _)| *name == asked);
        let template = known.map_or(asked, |(_, text)| text).to_owned();
        if !template.contains("{question}") {
            return Err(Error::config(format!("--template: {asked:?} has no {{question}} in it"))
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
        let mut sets = vec![Set { name: FORGET, table: Table::open(&path)? }];
        for (name, stem) in KEPT {
            if let Some(path) = Table::find(dir, stem) {
                sets.push(Set { name, table: Table::open(&path)? });
            }
        }
        let limit = options.limit.unwrap_or(usize::MAX);
        sets.iter_mut().for_each(|set| set.table.truncate(limit));
        Ok(Self { dir: dir.to_owned(), options, template, sets })
    }
}

impl Suite for Tofu {
    fn hashes(&self) -> BTreeMap<String, String> {
        hashes(&self.dir, self.sets.iter().map(|set| &set.table))
    }

    fn settings(&self) -> Value {
        let Options { metrics, limit, forget_set, answer_tokens, .. } = &self.options;
        json!({"suite": TOFU.name, "metrics": metrics, "limit": limit, "forget_set": forget_set,
            "template": self.template, "answer_tokens": answer_tokens.name()})
    }

    /// Without the files of what is to be kept there is no model utility.
    fn missing(&self) -> Vec<&'static str> {
        let there = |name: &str| self.sets.iter().any(|set| set.name == name);
        KEPT.iter().filter(|(name, _)| !there(name)).map(|(_, stem)| *stem).collect()
    }

    fn prepare(&self, tokenizer: &Tokenizer) -> Result<Box<dyn super::Prepared>> {
        let mut prepared = Prepared {
            rouge: self.options.wants(ROUGE),
            extraction: self.options.wants(EXTRACTION),
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
            if self.options.wants(PROBABILITY) {
                // Real authors and world facts have no paraphrase: the answer itself stands against the wrong ones.
                if table.has("paraphrased_answer") && !GENERAL.contains(name) {
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
                prepared.notices.extend(unscored(&Q_A_ROUGE.key(name), &set.truths));
            }
            if prepared.extraction && *name == FORGET {
                let single = set.answers.iter().filter(|row| row.ids.len() <= row.start + 1);
                prepared.notices.extend(uncounted(single.count(), set.answers.len()));
            }
            prepared.sets.push(set);
        }
        Ok(Box::new(prepared))
    }

    fn conclude(&self, outcome: &mut Outcome, retrained: &Retrained) -> Result<()> {
        outcome.remove(FORGET_QUALITY.name);
        let ratios = |outcome: &Outcome| -> Option<Vec<f64>> {
            match outcome.details.get(&probability_key(FORGET))? {
                Detail::Probabilities(Probabilities { truth_ratios, .. }) => {
                    Some(truth_ratios.iter().map(|ratio| ratio.unwrap_or(f64::NAN)).collect())
                }
                _ => None,
            }
        };
        let Retrained::Measured(other) = retrained else { return Ok(()) };
        let (Some(own), Some(other)) = (ratios(outcome), ratios(other)) else { return Ok(()) };
        let test = ks_test(&own, &other).ok_or_else(|| {
            Error::new(crate::Kind::Numeric, "a truth ratio of the forget set is not a number")
        })?;
        outcome.set(FORGET_QUALITY.name, test.p);
        let distance = Distance { ks_distance: test.distance };
        outcome.details.insert(FORGET_QUALITY.name, Detail::Distance(distance));
        Ok(())
    }
}

/// Statistics of the answers in one file.
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
struct Prepared {
    rouge: bool,
    extraction: bool,
    sets: Vec<Asked>,
    /// Notices about what was cut or is not scored.
    notices: Vec<String>,
}

impl super::Prepared for Prepared {
    fn longest(&self) -> usize {
        let new = if self.rouge { tofu::NEW_TOKENS } else { 0 };
        let prompts =
            self.sets.iter().flat_map(|set| set.prompts.iter().map(|ids| ids.len() + new));
        let rows = self.sets.iter().flat_map(|set| {
            set.answers.iter().chain(set.right.iter().flatten()).chain(set.wrong.iter().flatten())
        });
        prompts.chain(rows.map(|row| row.ids.len())).max().unwrap_or(1)
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn measure(&self, model: &mut dyn LanguageModel, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for set in &self.sets {
            say(&format!("{}: {} questions", set.name, set.prompts.len()));
            if !set.wrong.is_empty() {
                set.probabilities(model, &mut outcome)?;
            }
            if self.rouge {
                set.rouge(model, &mut outcome)?;
            }
            if self.extraction && set.name == FORGET {
                extraction(&mut outcome, &model.completions(&set.answers)?);
            }
        }
        let kept: Option<Vec<f64>> = utility_keys().iter().map(|key| outcome.get(key)).collect();
        if let Some(kept) = kept {
            outcome.set(MODEL_UTILITY.name, tofu::model_utility(&kept));
        }
        Ok(outcome)
    }
}

/// The mean NLL of each row from where the answer starts, nats per token.
fn losses(model: &mut dyn LanguageModel, rows: &[Completion]) -> Result<Vec<f64>> {
    Ok(model.completions(rows)?.iter().map(|scores| mean_nll(&scores.log_probs)).collect())
}

fn all_finite(values: &[f64]) -> Vec<Option<f64>> {
    values.iter().copied().map(finite).collect()
}

impl Asked {
    fn probabilities(&self, model: &mut dyn LanguageModel, outcome: &mut Outcome) -> Result<()> {
        let answers = losses(model, &self.answers)?;
        let right = match &self.right {
            Some(rows) => losses(model, rows)?,
            None => answers.clone(),
        };
        let flat: Vec<Completion> = self.wrong.concat();
        let mut flat = losses(model, &flat)?.into_iter();
        let wrong: Vec<Vec<f64>> =
            self.wrong.iter().map(|rows| flat.by_ref().take(rows.len()).collect()).collect();
        let each = |right: &[f64], f: fn(f64, &[f64]) -> f64| -> Vec<f64> {
            right.iter().zip(&wrong).map(|(right, wrong)| f(*right, wrong)).collect()
        };
        let ratios = each(&right, tofu::truth_ratio);
        let name = self.name;
        let probabilities = answers.iter().map(|nll| tofu::probability(*nll));
        outcome.set(Q_A_PROB.key(name), mean(probabilities));
        let all = match name {
            FORGET => tofu::forget_truth_ratio(&ratios),
            _ => tofu::kept_truth_ratio(&ratios),
        };
        if GENERAL.contains(&name) {
            let among = each(&answers, tofu::probability_among);
            outcome.set(Q_A_PROB_NORMALISED.key(name), mean(among));
        }
        outcome.set(TRUTH_RATIO.key(name), all);
        let probabilities = Probabilities {
            answer_nll: all_finite(&answers),
            right_nll: all_finite(&right),
            wrong_nll: wrong.iter().map(|nlls| all_finite(nlls)).collect(),
            truth_ratios: all_finite(&ratios),
        };
        outcome.details.insert(probability_key(name), Detail::Probabilities(probabilities));
        Ok(())
    }

    fn rouge(&self, model: &mut dyn LanguageModel, outcome: &mut Outcome) -> Result<()> {
        let scorer = Scorer::stemming();
        let outputs = model.answers(&self.prompts, tofu::NEW_TOKENS)?;
        let mut items = Vec::with_capacity(outputs.len());
        let mut recalls = Vec::with_capacity(outputs.len());
        for (truth, output) in self.truths.iter().zip(&outputs) {
            let response = clean_up_tokenization(output).trim().to_owned();
            let scores = scorer.score(truth, &response);
            recalls.push(scores.rouge_l.recall);
            items.push(Answer {
                gt: truth.clone(),
                response,
                rouge_l_recall: scores.rouge_l.recall,
                rouge_l_f1: scores.rouge_l.f1,
                rouge1_recall: scores.rouge1.recall,
            });
        }
        // Where no true text has a token, 0 would say that all is forgotten.
        let defined = self.truths.iter().any(|truth| scorer.defined(truth));
        let score = if defined { mean(recalls) } else { f64::NAN };
        outcome.set(Q_A_ROUGE.key(self.name), score);
        outcome.details.insert(format!("{}_ROUGE", self.name), Detail::Answers(items));
        Ok(())
    }
}

//! mini-MUSE: splits in which target, retrain and holdout make sense, from a user's own copy of MUSE's evaluation files.
//!
//! MUSE's evaluation data names texts that its models were trained on and others that they were not, but not the
//! training sets themselves. Of each corpus (`news`, `books`) this makes a benchmark that is whole by itself:
//!
//! | split | documents | use |
//! |---|---|---|
//! | `forget.jsonl` | all verbmem texts (prompt and truth), then all privleak forget texts | the target trains on it; to be forgotten |
//! | `retain1.jsonl` | the first 70 % of the privleak retain texts that are left | target and retrain train on it |
//! | `retain2.jsonl` | the others | never trained: utility |
//! | `holdout.jsonl` | privleak holdout texts, the first 4,000 characters | never trained: non-members |
//! | `eval/` | verbmem, knowmem and privleak files in MUSE's form, texts of up to 3,000 characters | |
//! | `small/` | the same of fewer and shorter texts | a CPU |
//!
//! Retain and holdout texts that share more than 1 % of their word 12-grams with forget texts are left out. 12-grams of
//! four or more texts do not count: they are boilerplate of a news site. The files are byte for byte those of the
//! Python script that the benchmark was first built with, hence the care for its character and blank rules.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::data::Tokenizer;
use crate::data::json::kind;
use crate::error::{Error, Result};

/// The corpora of MUSE.
pub const CORPORA: [&str; 2] = ["news", "books"];
/// Words that must agree in a row before texts overlap.
const WORDS: usize = 12;
/// Texts that must hold a 12-gram before it counts as boilerplate.
const COMMON: u32 = 4;
/// The share of its 12-grams that a text may have in common with the forget texts.
const SHARE: f64 = 0.01;
/// Characters of a holdout text.
const HOLDOUT: usize = 4000;
/// Characters of a text of the privacy measurement.
const PRIVLEAK: usize = 3000;
/// Characters of a text of the small profile.
const SMALL: usize = 1000;
/// Characters of a prompt of the small profile.
const PROMPT: usize = 400;
/// Texts of a split of the small profile; retain1 has twice as many.
const FEW: usize = 20;

/// The files of one corpus, parsed.
struct Source {
    verbmem: Vec<Value>,
    forget: Vec<String>,
    retain: Vec<String>,
    holdout: Vec<String>,
    /// Questions and examples in context, of the forget and of the retain set.
    knowmem: [(Vec<Value>, Vec<Value>); 2],
}

/// Overlap of the texts of one split with the forget texts, or with others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Overlap {
    /// Texts compared.
    pub documents: usize,
    /// The share of all their 12-grams that occur in the other texts.
    pub share: f64,
    /// Texts with one such 12-gram or more.
    pub touching: usize,
    /// Texts of whose 12-grams more than half are such.
    pub mostly: usize,
}

/// A written split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Split {
    /// Its file, relative to the corpus.
    pub file: String,
    /// Documents.
    pub documents: usize,
    /// Unicode characters.
    pub characters: usize,
    /// Tokens, special ones included.
    pub tokens: usize,
    /// Bytes of the file.
    pub bytes: usize,
}

/// Summary of what was built from one corpus.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Built {
    /// `news` or `books`.
    pub corpus: String,
    /// Retain texts left out since they overlap with forget texts.
    pub dropped_retain: usize,
    /// Holdout texts left out for the same reason.
    pub dropped_holdout: usize,
    /// Forget questions left out since they are examples in context too, then retain questions.
    pub dropped_questions: [usize; 2],
    /// verbmem texts against privleak forget texts: windows of the same sources.
    pub verbmem_in_forget: Overlap,
    /// All privleak retain texts against the forget texts.
    pub retain_in_forget: Overlap,
    /// All privleak holdout texts against the forget texts.
    pub holdout_in_forget: Overlap,
    /// The splits.
    pub splits: Vec<Split>,
}

/// Builds every corpus that the folder `muse` holds into the folder `out`, whose parents must exist.
///
/// `muse` has `CORPUS/verbmem/forget.json`, `CORPUS/privleak/{forget,retain,holdout}.json` and
/// `CORPUS/knowmem/{forget,retain}_qa{,_icl}.json`. `tokenizer` only counts.
///
/// Errors: [`crate::Kind::Data`] where a file is missing or has not the form of MUSE's, [`crate::Kind::Io`] if the file
/// system refuses.
pub fn build(muse: &Path, out: &Path, tokenizer: &Tokenizer) -> Result<Vec<Built>> {
    let mut built = Vec::new();
    for corpus in CORPORA.into_iter().filter(|corpus| muse.join(corpus).is_dir()) {
        let source = Source::read(&muse.join(corpus))?;
        built.push(source.build(corpus, &out.join(corpus), tokenizer)?);
    }
    if built.is_empty() {
        return Err(Error::data(format!("{}: holds neither news/ nor books/", muse.display()))
            .hint("--muse takes the data folder of muse_bench, with news/verbmem/forget.json and the like"));
    }
    Ok(built)
}

impl Source {
    fn read(dir: &Path) -> Result<Self> {
        let texts = |name: &str| -> Result<Vec<String>> {
            let path = dir.join(format!("privleak/{name}.json"));
            let items = list(&path)?;
            items.iter().enumerate().map(|(i, item)| string(&path, i, item, "text")).collect()
        };
        let questions = |set: &str| -> Result<(Vec<Value>, Vec<Value>)> {
            let qa = dir.join(format!("knowmem/{set}_qa.json"));
            let icl = dir.join(format!("knowmem/{set}_qa_icl.json"));
            let pair = (list(&qa)?, list(&icl)?);
            for (path, items) in [(&qa, &pair.0), (&icl, &pair.1)] {
                for (i, item) in items.iter().enumerate() {
                    string(path, i, item, "question")?;
                }
            }
            Ok(pair)
        };
        let path = dir.join("verbmem/forget.json");
        let verbmem = list(&path)?;
        for (i, item) in verbmem.iter().enumerate() {
            string(&path, i, item, "prompt")?;
            string(&path, i, item, "gt")?;
        }
        Ok(Self {
            verbmem,
            forget: texts("forget")?,
            retain: texts("retain")?,
            holdout: texts("holdout")?,
            knowmem: [questions("forget")?, questions("retain")?],
        })
    }

    fn build(self, corpus: &str, out: &Path, tokenizer: &Tokenizer) -> Result<Built> {
        let Self { verbmem, forget, retain, holdout, knowmem } = self;
        let field = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let whole: Vec<String> =
            verbmem.iter().map(|item| field(item, "prompt") + &field(item, "gt")).collect();
        let grams = |texts: &[String]| texts.iter().map(|text| shingles(text)).collect::<Vec<_>>();
        let [verbs, forgets, retains, holdouts] =
            [grams(&whole), grams(&forget), grams(&retain), grams(&holdout)];
        let mut texts_with: HashMap<u128, u32> = HashMap::new();
        for gram in verbs.iter().chain(&forgets).chain(&retains).chain(&holdouts).flatten() {
            *texts_with.entry(*gram).or_default() += 1;
        }
        let to_forget: HashSet<u128> = verbs.iter().chain(&forgets).flatten().copied().collect();
        let rare = |gram: &&u128| texts_with.get(*gram).is_none_or(|n| *n < COMMON);
        let leaks = |grams: &HashSet<u128>| {
            let shared = grams.intersection(&to_forget).filter(rare).count();
            shared as f64 > SHARE * grams.len().max(1) as f64
        };
        let clean = |texts: &[String], grams: &[HashSet<u128>]| -> Vec<String> {
            let kept = texts.iter().zip(grams).filter(|(_, grams)| !leaks(grams));
            kept.map(|(text, _)| text.clone()).collect()
        };
        let (kept, held) = (clean(&retain, &retains), clean(&holdout, &holdouts));
        let (retain1, retain2) = kept.split_at((kept.len() as f64 * 0.7) as usize);
        let all_of_forget: HashSet<u128> = forgets.iter().flatten().copied().collect();
        let mut built = Built {
            corpus: corpus.to_owned(),
            dropped_retain: retain.len() - kept.len(),
            dropped_holdout: holdout.len() - held.len(),
            dropped_questions: [0; 2],
            verbmem_in_forget: overlap(&verbs, &all_of_forget),
            retain_in_forget: overlap(&retains, &to_forget),
            holdout_in_forget: overlap(&holdouts, &to_forget),
            splits: Vec::new(),
        };
        let folder = Folder { dir: out, tokenizer };
        let cut_all = |texts: &[String], n: usize| {
            texts.iter().map(|t| cut(t, n).to_owned()).collect::<Vec<_>>()
        };
        let few = |texts: &[String], n: usize| cut_all(&texts[..texts.len().min(n)], SMALL);
        let full = [
            ("forget", [whole.as_slice(), &forget].concat()),
            ("retain1", retain1.to_vec()),
            ("retain2", retain2.to_vec()),
            ("holdout", cut_all(&held, HOLDOUT)),
        ];
        for (name, texts) in full {
            built.splits.push(folder.split(name, &texts)?);
        }
        folder.list("eval/verbmem_forget", &verbmem)?;
        folder.texts("eval/privleak_forget", &cut_all(&forget, PRIVLEAK))?;
        folder.texts("eval/privleak_retain", &cut_all(retain1, PRIVLEAK))?;
        folder.texts("eval/privleak_holdout", &cut_all(&held, PRIVLEAK))?;
        for (i, (set, (questions, examples))) in
            ["forget", "retain"].into_iter().zip(&knowmem).enumerate()
        {
            let shown: HashSet<&str> =
                examples.iter().filter_map(|e| e["question"].as_str()).collect();
            let asked = |q: &&Value| q["question"].as_str().is_none_or(|q| !shown.contains(q));
            let kept: Vec<Value> = questions.iter().filter(asked).cloned().collect();
            built.dropped_questions[i] = questions.len() - kept.len();
            folder.list(&format!("eval/knowmem_{set}_qa"), &kept)?;
            folder.list(&format!("eval/knowmem_{set}_qa_icl"), examples)?;
        }
        let short: Vec<Value> = apart(&verbs, FEW)
            .into_iter()
            .map(|i| json!({"prompt": tail(&field(&verbmem[i], "prompt")), "gt": field(&verbmem[i], "gt")}))
            .collect();
        let short_texts: Vec<String> =
            short.iter().map(|item| field(item, "prompt") + &field(item, "gt")).collect();
        let small = [
            ("small/forget", [short_texts, few(&forget, FEW)].concat()),
            ("small/retain1", few(retain1, 2 * FEW)),
            ("small/retain2", few(retain2, FEW)),
            ("small/holdout", few(&held, FEW)),
        ];
        for (name, texts) in small {
            built.splits.push(folder.split(name, &texts)?);
        }
        folder.list("small/eval/verbmem_forget", &short)?;
        folder.texts("small/eval/privleak_forget", &few(&forget, FEW))?;
        folder.texts("small/eval/privleak_retain", &few(retain1, FEW))?;
        folder.texts("small/eval/privleak_holdout", &few(&held, FEW))?;
        Ok(built)
    }
}

/// Where the files of a corpus go.
struct Folder<'a> {
    dir: &'a Path,
    tokenizer: &'a Tokenizer,
}

impl Folder<'_> {
    fn write(&self, file: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Error::io("make folder", parent, e))?;
        }
        std::fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))
    }

    /// Writes a .jsonl file of texts.
    fn split(&self, name: &str, texts: &[String]) -> Result<Split> {
        let mut bytes = Vec::new();
        for text in texts {
            python_json(&json!({"text": text}), &mut bytes)?;
            bytes.push(b'\n');
        }
        let file = format!("{name}.jsonl");
        self.write(&file, &bytes)?;
        let ids = self.tokenizer.encode_batch(texts)?;
        Ok(Split {
            file,
            documents: texts.len(),
            characters: texts.iter().map(|text| text.chars().count()).sum(),
            tokens: ids.iter().map(Vec::len).sum(),
            bytes: bytes.len(),
        })
    }

    /// Writes a .json list.
    fn list(&self, name: &str, items: &[Value]) -> Result<()> {
        let mut bytes = Vec::new();
        python_json(&json!(items), &mut bytes)?;
        self.write(&format!("{name}.json"), &bytes)
    }

    fn texts(&self, name: &str, texts: &[String]) -> Result<()> {
        let items: Vec<Value> = texts.iter().map(|text| json!({"text": text})).collect();
        self.list(name, &items)
    }
}

/// JSON as Python's `json.dumps(..., ensure_ascii=False)` lays it out: a blank behind every comma and colon.
struct PythonLayout;

impl serde_json::ser::Formatter for PythonLayout {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> std::io::Result<()> {
        to.write_all(b": ")
    }
}

fn python_json(value: &Value, out: &mut Vec<u8>) -> Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(out, PythonLayout);
    value
        .serialize(&mut serializer)
        .map_err(|e| Error::data(format!("cannot write JSON: {e}")).with_source(e))
}

fn list(path: &Path) -> Result<Vec<Value>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::data(format!("{name}: cannot read: {e}"))
            .with_source(e)
            .hint("--muse takes the data folder of muse_bench, whole")
    })?;
    match serde_json::from_str(&text) {
        Ok(Value::Array(items)) if !items.is_empty() => Ok(items),
        Ok(Value::Array(_)) => Err(Error::data(format!("{name}: the list is empty"))),
        Ok(other) => Err(Error::data(format!("{name}: is {}, wanted a list", kind(&other)))),
        Err(e) => Err(Error::data(format!("{name}: not valid JSON: {e}")).with_source(e)),
    }
}

fn string(path: &Path, index: usize, item: &Value, key: &str) -> Result<String> {
    item[key].as_str().map(str::to_owned).ok_or_else(|| {
        let got = item.get(key).map_or("missing", kind);
        Error::data(format!(
            "{}: item {index}: \"{key}\" is {got}, wanted a string",
            path.display()
        ))
        .hint("the files must have the form of MUSE's own")
    })
}

/// Python's `str.isspace`, which also knows the four information separators.
fn blank(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The set of 12-grams of words, each as a hash of 128 bits; empty for shorter texts.
fn shingles(text: &str) -> HashSet<u128> {
    let words: Vec<&str> = text.split(blank).filter(|word| !word.is_empty()).collect();
    words.windows(WORDS).map(|window| xxh3_128(window.join(" ").as_bytes())).collect()
}

fn overlap(texts: &[HashSet<u128>], others: &HashSet<u128>) -> Overlap {
    let shared: Vec<usize> = texts.iter().map(|grams| grams.intersection(others).count()).collect();
    let all: usize = texts.iter().map(HashSet::len).sum();
    let mostly = shared.iter().zip(texts).filter(|(n, grams)| 2 * **n > grams.len());
    Overlap {
        documents: texts.len(),
        share: shared.iter().sum::<usize>() as f64 / all.max(1) as f64,
        touching: shared.iter().filter(|n| **n > 0).count(),
        mostly: mostly.count(),
    }
}

/// Picks up to `most` texts, in order, each with at most 1 % of its 12-grams in those picked before it.
fn apart(texts: &[HashSet<u128>], most: usize) -> Vec<usize> {
    let mut seen: HashSet<u128> = HashSet::new();
    let mut picked = Vec::new();
    for (i, grams) in texts.iter().enumerate() {
        if picked.len() == most {
            break;
        }
        if grams.intersection(&seen).count() as f64 <= SHARE * grams.len() as f64 {
            picked.push(i);
            seen.extend(grams);
        }
    }
    picked
}

/// The first `n` characters without the last word, which may be cut: `text[:n].rsplit(' ', 1)[0]`.
fn cut(text: &str, n: usize) -> &str {
    let end = text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    text[..end].rsplit_once(' ').map_or(&text[..end], |(head, _)| head)
}

/// The last [`PROMPT`] characters, from the first whole word where a blank shows one soon.
fn tail(text: &str) -> &str {
    let skipped = text.chars().count().saturating_sub(PROMPT);
    let start = text.char_indices().nth(skipped).map_or(text.len(), |(at, _)| at);
    let end = &text[start..];
    match end.char_indices().take(60).find(|(_, c)| *c == ' ') {
        Some((at, _)) => &end[at + 1..],
        None => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn cut_and_tail_count_characters_and_keep_whole_words() {
        assert_eq!(cut("äbc def ghi", 9), "äbc def");
        assert_eq!(cut("one two", 100), "one");
        assert_eq!(cut("oneword", 3), "one");
        let long = format!("x{} {}", "y".repeat(20), "z".repeat(390));
        assert_eq!(tail(&long), "z".repeat(390));
        assert_eq!(tail(&"ü".repeat(401)), "ü".repeat(400));
        assert_eq!(tail("short text"), "text");
    }

    #[test]
    fn python_json_lays_out_as_python_does() {
        let mut bytes = Vec::new();
        let value = json!([{"text": "é\u{7f}\n\"\\\u{1}", "n": [1, true, null]}, {}]);
        python_json(&value, &mut bytes).unwrap();
        let wanted = "[{\"text\": \"é\u{7f}\\n\\\"\\\\\\u0001\", \"n\": [1, true, null]}, {}]";
        assert_eq!(String::from_utf8(bytes).unwrap(), wanted);
    }

    #[test]
    fn shingles_of_thirteen_words_are_two_and_blanks_do_not_matter() {
        let words: Vec<String> = (0..13).map(|i| i.to_string()).collect();
        assert_eq!(shingles(&words.join(" ")), shingles(&words.join("\u{a0}\n\x1f")));
        assert_eq!(shingles(&words.join(" ")).len(), 2);
        assert!(shingles(&words[..11].join(" ")).is_empty());
    }

    #[test]
    fn apart_skips_what_repeats_and_overlap_counts_it() {
        let text = |from: usize| (from..from + 30).map(|i| format!("w{i} ")).collect::<String>();
        let texts: Vec<_> =
            [text(0), text(100), text(5), text(200)].iter().map(|t| shingles(t)).collect();
        assert_eq!(apart(&texts, 20), [0, 1, 3]);
        assert_eq!(apart(&texts, 2), [0, 1]);
        // 19 grams a text; the third shares the 14 that begin at words 5 to 18.
        let first: HashSet<u128> = texts[0].clone();
        let of = overlap(&texts[1..], &first);
        assert_eq!((of.documents, of.touching, of.mostly), (3, 1, 1));
        assert_abs_diff_eq!(of.share, 14.0 / 57.0, epsilon = 1e-15);
    }
}

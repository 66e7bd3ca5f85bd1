//! Runs the text-only metrics of the crate against one recorded `metrics/*.json` file.

use std::path::Path;

use nepenthe::eval::metric::{extraction, ks, membership, muse, rouge, tofu, zlib};
use serde_json::Value;

type Check<T = ()> = Result<T, String>;

/// Runs the file and returns what was compared, or the first difference.
///
/// `None` stands for a kind of file that needs a model or the data layer and is checked elsewhere.
pub fn run(case_file: &Path, golden_root: &Path) -> Option<Check<String>> {
    let check = match case_file.file_stem()?.to_str()? {
        "rouge" => |v: &Value, _: &Path| rouge_file(v),
        "knowmem" => |v: &Value, _: &Path| knowmem_file(v),
        "verbmem" => verbmem_file,
        "mmlu" => |v: &Value, _: &Path| mmlu_file(v),
        "auc" => |v: &Value, _: &Path| auc_file(v),
        "privleak" => |v: &Value, _: &Path| privleak_file(v),
        "tofu" => |v: &Value, _: &Path| tofu_file(v),
        _ => return None,
    };
    Some(read(case_file).and_then(|value| {
        check(&value, golden_root).map_err(|e| format!("{}: {e}", case_file.display()))
    }))
}

/// Text metrics are counted and divided, so that only the last bits may differ.
const EXACT: f64 = 1e-12;
/// transformers returns the loss in f32, also of a model that runs in f64.
const LOSS_IN_F32: f64 = 1e-6;

fn read(path: &Path) -> Check<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn list<'a>(value: &'a Value, key: &str) -> Check<&'a Vec<Value>> {
    value[key].as_array().ok_or_else(|| format!("no list {key}"))
}

fn text<'a>(value: &'a Value, key: &str) -> Check<&'a str> {
    value[key].as_str().ok_or_else(|| format!("no text {key}"))
}

fn number(value: &Value, key: &str) -> Check<f64> {
    value[key].as_f64().ok_or_else(|| format!("no number {key}"))
}

fn numbers(value: &Value, key: &str) -> Check<Vec<f64>> {
    let one = |v: &Value| v.as_f64().ok_or_else(|| format!("{key} holds no number"));
    list(value, key)?.iter().map(one).collect()
}

fn near(what: &str, got: f64, want: f64, tolerance: f64) -> Check {
    let near = (got - want).abs() <= tolerance * want.abs().max(1.0);
    if near { Ok(()) } else { Err(format!("{what}: got {got}, recorded {want}")) }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Check {
    if got == want { Ok(()) } else { Err(format!("{what}: got {got:?}, recorded {want:?}")) }
}

/// Compares each recorded rouge number that `item` holds.
fn rouge_scores(what: &str, item: &Value, got: &rouge::Rouge) -> Check {
    for (key, value) in [
        ("rouge1", got.rouge1.f1),
        ("rouge1_recall", got.rouge1.recall),
        ("rouge1_precision", got.rouge1.precision),
        ("rougeL", got.rouge_l.f1),
        ("rougeL_recall", got.rouge_l.recall),
        ("rougeL_precision", got.rouge_l.precision),
        ("rouge2_fmeasure", got.rouge2.f1),
        ("rougeLsum_fmeasure", got.rouge_lsum.f1),
    ] {
        if let Some(want) = item[key].as_f64() {
            near(&format!("{what}: {key}"), value, want, EXACT)?;
        }
    }
    Ok(())
}

fn rouge_file(file: &Value) -> Check<String> {
    let scorer = rouge::Scorer::new();
    let mut all = vec![];
    for (i, pair) in list(file, "pairs")?.iter().enumerate() {
        let got = scorer.score(text(pair, "gt")?, text(pair, "output")?);
        rouge_scores(&format!("pair {i}"), pair, &got)?;
        all.push(got);
    }
    let stemmer = rouge::Scorer::stemming();
    for (i, pair) in file["stemmed"].as_array().into_iter().flatten().enumerate() {
        let got = stemmer.score(text(pair, "gt")?, text(pair, "output")?);
        rouge_scores(&format!("stemmed pair {i}"), pair, &got)?;
    }
    let a = rouge::Aggregate::of(&all);
    for (key, value) in [
        ("mean_rougeL", a.mean_rouge_l),
        ("mean_rougeL_recall", a.mean_rouge_l_recall),
        ("mean_rouge1", a.mean_rouge1),
        ("mean_rouge1_recall", a.mean_rouge1_recall),
        ("max_rougeL", a.max_rouge_l),
        ("max_rougeL_recall", a.max_rouge_l_recall),
        ("max_rouge1", a.max_rouge1),
        ("max_rouge1_recall", a.max_rouge1_recall),
    ] {
        near(key, value, number(&file["aggregate"], key)?, EXACT)?;
    }
    let texts = list(file, "tokenization")?;
    for entry in texts {
        let source = text(entry, "text")?;
        let want: Vec<_> = list(entry, "tokens")?.iter().filter_map(Value::as_str).collect();
        same(source, scorer.tokens(source).iter().map(String::as_str).collect(), want)?;
    }
    Ok(format!("{} pairs, {} tokenised texts", all.len(), texts.len()))
}

fn headlines(file: &Value, scored: &[muse::Scored]) -> Check {
    near("mean", muse::aggregate(scored).mean_rouge_l, number(file, "mean_rougeL")?, EXACT)?;
    near("headline", muse::headline(scored), number(file, "headline")?, EXACT)
}

fn knowmem_file(file: &Value) -> Check<String> {
    let question = |v: &Value| -> Check<muse::Question> {
        let (question, answer) = (text(v, "question")?.into(), text(v, "answer")?.into());
        Ok(muse::Question { question, answer })
    };
    let examples = list(file, "icl")?.iter().map(question).collect::<Check<Vec<_>>>()?;
    let words: Vec<_> = list(file, "cut_words")?.iter().filter_map(Value::as_str).collect();
    same("cut words", muse::CUT_WORDS.to_vec(), words)?;
    same("new tokens", muse::KNOWMEM_NEW_TOKENS as f64, number(file, "max_new_tokens")?)?;
    let scorer = rouge::Scorer::new();
    let mut scored = vec![];
    for (i, item) in list(file, "items")?.iter().enumerate() {
        let prompt = muse::knowmem_prompt(&examples, text(item, "question")?);
        same(&format!("item {i}: prompt"), prompt.as_str(), text(item, "prompt")?)?;
        let got = muse::knowmem_score(&scorer, text(item, "answer")?, text(item, "raw_output")?);
        same(&format!("item {i}: response"), got.response.as_str(), text(item, "response")?)?;
        rouge_scores(&format!("item {i}"), item, &got.rouge)?;
        scored.push(got);
    }
    headlines(file, &scored)?;
    Ok(format!("{} questions", scored.len()))
}

fn verbmem_file(file: &Value, root: &Path) -> Check<String> {
    let path = root.join(text(file, "tokenizer")?).join("tokenizer.json");
    let tokenizer =
        tokenizers::Tokenizer::from_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let bad = |e: tokenizers::Error| nepenthe::Error::data(e.to_string());
    let encode = |t: &str| Ok(tokenizer.encode(t, true).map_err(bad)?.get_ids().to_vec());
    let decode = |ids: &[u32]| tokenizer.decode(ids, true).map_err(bad);
    same("new tokens", muse::VERBMEM_NEW_TOKENS as f64, number(file, "max_new_tokens")?)?;
    let scorer = rouge::Scorer::new();
    let mut scored = vec![];
    for (i, item) in list(file, "items")?.iter().enumerate() {
        let truth =
            muse::verbmem_truth(text(item, "gt")?, muse::VERBMEM_NEW_TOKENS, encode, decode)
                .map_err(|e| e.to_string())?;
        same(&format!("item {i}: truth"), truth.as_str(), text(item, "gt_used")?)?;
        let got = muse::verbmem_score(&scorer, &truth, text(item, "raw_output")?);
        rouge_scores(&format!("item {i}"), item, &got.rouge)?;
        scored.push(got);
    }
    headlines(file, &scored)?;
    Ok(format!("{} continuations", scored.len()))
}

fn mmlu_file(file: &Value) -> Check<String> {
    same("new tokens", muse::MMLU_NEW_TOKENS as f64, number(file, "max_new_tokens")?)?;
    let examples = text(file, "icl_prompt")?;
    let mut answers = vec![];
    for (i, item) in list(file, "items")?.iter().enumerate() {
        let choices: Vec<_> = list(item, "choices")?.iter().filter_map(Value::as_str).collect();
        let prompt = muse::mmlu_prompt(examples, text(item, "question")?, &choices);
        let want = format!("{examples}{}", text(item, "prompt_tail")?);
        same(&format!("item {i}: prompt"), prompt, want)?;
        let got = muse::mmlu_answer(text(item, "raw_output")?);
        let index = got.map_or(-1.0, |g| g as f64);
        same(&format!("item {i}: answer"), index, number(item, "predicted_index")?)?;
        answers.push((got, number(item, "answer")? as usize));
    }
    let accuracy = muse::accuracy(answers.iter().copied());
    near("accuracy", accuracy, number(file, "accuracy")?, EXACT)?;
    near("headline", 100.0 * accuracy, number(file, "headline")?, EXACT)?;
    Ok(format!("{} questions", answers.len()))
}

fn auc_file(file: &Value) -> Check<String> {
    let cases = file.as_array().ok_or("no list at the top")?;
    for (i, case) in cases.iter().enumerate() {
        let (non, mem) = (numbers(case, "nonmember_scores")?, numbers(case, "member_scores")?);
        let undefined = || format!("case {i}: no area");
        let area = membership::auc(&non, &mem).ok_or_else(undefined)?;
        near(&format!("case {i}: auc"), area, number(case, "auc")?, EXACT)?;
        let roc = membership::Roc::new(&non, &mem).ok_or_else(undefined)?;
        let best = number(case, "best_balanced_accuracy")?;
        near(&format!("case {i}: balanced"), roc.best_balanced_accuracy(), best, EXACT)?;
        for (key, got) in [("fpr", &roc.false_positive), ("tpr", &roc.true_positive)] {
            let want = numbers(case, key)?;
            same(&format!("case {i}: points of {key}"), got.len(), want.len())?;
            for (g, w) in got.iter().zip(want) {
                near(&format!("case {i}: {key}"), *g, w, EXACT)?;
            }
        }
    }
    Ok(format!("{} areas", cases.len()))
}

fn privleak_file(file: &Value) -> Check<String> {
    let mut splits: Vec<(&str, Vec<membership::TextScores>)> = vec![];
    let items = list(file, "items")?;
    for (i, item) in items.iter().enumerate() {
        let source = text(item, "text")?;
        same(&format!("item {i}: lower"), source.to_lowercase().as_str(), text(item, "lower")?)?;
        let length = zlib::compressed_len(source.as_bytes()) as f64;
        same(&format!("item {i}: zlib"), length, number(item, "zlib_level6_length")?)?;
        let log_probs = numbers(item, "token_logprobs_f64")?;
        let recorded = &item["scores_f64"];
        // The file has no log-probabilities of the lower-cased text; its mean NLL follows from the ratio.
        let lower_nll = number(recorded, "PPL")? / number(recorded, "PPL/lower")?;
        let mut scores = membership::TextScores::new(source, &log_probs, &[-lower_nll]);
        for (name, got) in membership::QUANTITIES.iter().zip(&mut scores.values) {
            let tolerance = if name.starts_with("PPL") { LOSS_IN_F32 } else { EXACT };
            let want = number(recorded, name)?;
            near(&format!("item {i}: {name}"), *got, want, tolerance)?;
            // The table below must see the recorded ties.
            *got = want;
        }
        let split = text(item, "split")?;
        match splits.iter_mut().find(|(name, _)| *name == split) {
            Some((_, texts)) => texts.push(scores),
            None => splits.push((split, vec![scores])),
        }
    }
    let borrowed: Vec<_> = splits.iter().map(|(name, texts)| (*name, texts.as_slice())).collect();
    let table = membership::auc_table(&borrowed);
    same("areas", table.len(), file["auc_f64"].as_object().map_or(0, |o| o.len()))?;
    let mut headline = None;
    for (name, area) in &table {
        let area = area.ok_or_else(|| format!("{name}: no area"))?;
        near(name, area, number(&file["auc_f64"], name)?, EXACT)?;
        if name == membership::HEADLINE_KEY {
            headline = Some(area);
        }
    }
    let retrain = |corpus: &str| match corpus {
        "news" => Ok(membership::AUC_RETRAIN_NEWS),
        "books" => Ok(membership::AUC_RETRAIN_BOOKS),
        other => Err(format!("no retrained area for corpus {other}")),
    };
    let headline = headline.ok_or("no headline area")?;
    for corpus in ["news", "books"] {
        let recorded = number(&file["auc_retrain"][corpus], membership::HEADLINE_KEY)?;
        same("retrained area", retrain(corpus)?, recorded)?;
        let got = membership::privleak(headline, retrain(corpus)?);
        near("headline", got, number(&file["headline_privleak_f64"], corpus)?, EXACT)?;
    }
    for case in list(file, "privleak_formula")? {
        let got = membership::privleak(number(case, "auc")?, retrain(text(case, "corpus")?)?);
        near("formula", got, number(case, "expected")?, EXACT)?;
    }
    min_k_and_zlib(file)?;
    Ok(format!("{} texts, {} areas", items.len(), table.len()))
}

fn min_k_and_zlib(file: &Value) -> Check {
    for case in list(file, "min_k")? {
        let log_probs = numbers(case, "token_logprobs")?;
        for (name, ratio) in membership::QUANTITIES[3..].iter().zip(membership::MIN_K_RATIOS) {
            let want = &case["expected"][*name];
            let what = format!("{name} of {} tokens", log_probs.len());
            let count = membership::min_k_count(log_probs.len(), ratio) as f64;
            same(&what, count, number(want, "k")?)?;
            let got = membership::min_k(&log_probs, ratio);
            match want["value"].as_f64() {
                Some(value) => near(&what, got, value, EXACT)?,
                None => same(&what, got.is_nan(), true)?,
            }
        }
    }
    for case in list(file, "zlib_entropy")? {
        let source = text(case, "text")?;
        let length = zlib::compressed_len(source.as_bytes()) as f64;
        same("zlib length", length, number(case, "length")?)?;
    }
    Ok(())
}

/// Compares each ratio and their mean with what is recorded under `key`.
fn ratios(what: &str, set: &Value, key: &str, items: &[f64], all: f64) -> Check {
    let recorded = numbers(&set[key], "items")?;
    same(&format!("{what}: {key}"), items.len(), recorded.len())?;
    for (got, want) in items.iter().zip(recorded) {
        near(&format!("{what}: {key}"), *got, want, EXACT)?;
    }
    near(&format!("{what}: mean of {key}"), all, number(&set[key], "mean")?, EXACT)
}

fn tofu_file(file: &Value) -> Check<String> {
    let (sets, tests) = (list(file, "sets")?, list(file, "ks")?);
    for (i, set) in sets.iter().enumerate() {
        let what = format!("set {i}");
        let wrong = (0..list(set, "wrong")?.len()).map(|j| {
            list(set, "wrong")?[j].as_array().map_or(Err("no list".to_owned()), |losses| {
                losses.iter().map(|x| x.as_f64().ok_or("no loss".to_owned())).collect()
            })
        });
        let wrong: Vec<Vec<f64>> = wrong.collect::<Check<_>>()?;
        let right = numbers(set, "correct")?;
        let each = |f: fn(f64, &[f64]) -> f64| -> Vec<f64> {
            right.iter().zip(&wrong).map(|(right, wrong)| f(*right, wrong)).collect()
        };
        let mean = |items: &[f64]| nepenthe::eval::mean(items.iter().copied());
        let all = each(tofu::truth_ratio);
        ratios(&what, set, "closer_to_1_better", &all, tofu::forget_truth_ratio(&all))?;
        ratios(&what, set, "true_better", &all, tofu::kept_truth_ratio(&all))?;
        let all = each(tofu::truth_share);
        ratios(&what, set, "prob_mean", &all, mean(&all))?;
        let all = each(tofu::probability_among);
        ratios(&what, set, "with_options", &all, mean(&all))?;
    }
    for (i, case) in list(file, "utility")?.iter().enumerate() {
        let got = tofu::model_utility(&numbers(case, "values")?);
        near(&format!("utility {i}"), got, number(case, "mean")?, EXACT)?;
    }
    for (i, case) in tests.iter().enumerate() {
        let got = ks::ks_test(&numbers(case, "a")?, &numbers(case, "b")?).ok_or("no test")?;
        near(&format!("test {i}: distance"), got.distance, number(case, "d")?, EXACT)?;
        // Relative, as p-values may be tiny.
        let want = number(case, "p")?;
        near(&format!("test {i}: p over {want}"), got.p / want, 1.0, 1e-10)?;
    }
    for (i, case) in list(file, "hits")?.iter().enumerate() {
        let hits: Vec<bool> = list(case, "hits")?.iter().map(|hit| hit == true).collect();
        let exact = extraction::exact_memorisation(&hits).ok_or("nothing to remember")?;
        near(&format!("hits {i}: exact"), exact, number(case, "exact_memorization")?, EXACT)?;
        let strength = extraction::extraction_strength(&hits).ok_or("nothing to extract")?;
        near(
            &format!("hits {i}: strength"),
            strength,
            number(case, "extraction_strength")?,
            EXACT,
        )?;
    }
    Ok(format!("{} sets of ratios, {} tests", sets.len(), tests.len()))
}

//! The text side of the MUSE tasks: prompts, cutting of outputs, scores.
//!
//! The model side (greedy decoding) stands elsewhere; these functions take its raw output. The odd parts
//! (a prompt that ends in a space, "Quesion", one newline before it) are the benchmark's and change scores.

use serde::{Deserialize, Serialize};

use super::rouge::{Aggregate, Rouge, Scorer};
use super::{Direction, Metric};
use crate::error::Result;
use crate::eval::finite;

/// [`headline`] of continuations of the forget set.
pub const VERBMEM_F: Metric = Metric {
    name: "verbmem_f",
    label: None,
    unit: "%",
    definition: "100 times the mean ROUGE-L F1 of greedy continuations (128 tokens) of forget prompts against the true text, \
                 of which the first 128 ids count, including BOS",
    direction: Direction::Retrained,
    on_forget: None,
};

/// [`headline`] of answers to questions on the forget set.
pub const KNOWMEM_F: Metric = Metric {
    name: "knowmem_f",
    definition: "100 times the mean ROUGE-L F1 of greedy answers (32 tokens) to questions on the forget set; the prompt is \
                 `Question: q\\nAnswer: a\\n\\n` for each example, then `Question: q\\nAnswer: ` with the trailing space; the \
                 answer ends at the first empty line, `\\nQuestion` or `Question:` and is not stripped",
    ..VERBMEM_F
};

/// [`headline`] of answers to questions on the retain set.
pub const KNOWMEM_R: Metric = Metric {
    name: "knowmem_r",
    definition: "the same for questions on the retain set",
    direction: Direction::Higher,
    ..VERBMEM_F
};

/// [`accuracy`] in percent.
pub const MMLU_VAL: Metric = Metric {
    name: "mmlu_val",
    definition: "accuracy: examples, one newline, `Quesion: ...` (spelled so in the benchmark), four choices, `Correct \
                 answer:`; 4 greedy tokens, cut as above, stripped; only the first character counts, so `(A)` is wrong and \
                 `AB` counts as A",
    direction: Direction::Higher,
    ..VERBMEM_F
};

/// Continuations of prompts or answers to questions: means over all, and each of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Continuations {
    /// Mean ROUGE-L F1.
    #[serde(rename = "mean_rougeL")]
    pub mean_rouge_l: Option<f64>,
    /// Mean ROUGE-L recall.
    #[serde(rename = "mean_rougeL_recall")]
    pub mean_rouge_l_recall: Option<f64>,
    /// Mean ROUGE-1 F1.
    pub mean_rouge1: Option<f64>,
    /// Mean ROUGE-1 recall.
    pub mean_rouge1_recall: Option<f64>,
    /// The continuations, in the order of the file.
    pub items: Vec<Continuation>,
}

impl Continuations {
    /// Keeps scored items with the texts they were scored against.
    pub fn new(truths: &[String], scored: &[Scored]) -> Self {
        let all = aggregate(scored);
        let item = |(truth, one): (&String, &Scored)| Continuation {
            gt: truth.clone(),
            response: one.response.clone(),
            rouge_l: one.rouge.rouge_l.f1,
            rouge_l_recall: one.rouge.rouge_l.recall,
            rouge1: one.rouge.rouge1.f1,
            rouge1_recall: one.rouge.rouge1.recall,
        };
        Self {
            mean_rouge_l: finite(all.mean_rouge_l),
            mean_rouge_l_recall: finite(all.mean_rouge_l_recall),
            mean_rouge1: finite(all.mean_rouge1),
            mean_rouge1_recall: finite(all.mean_rouge1_recall),
            items: truths.iter().zip(scored).map(item).collect(),
        }
    }
}

/// A continuation or an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// The true text.
    pub gt: String,
    /// The text that was scored.
    pub response: String,
    /// ROUGE-L F1.
    #[serde(rename = "rougeL")]
    pub rouge_l: f64,
    /// ROUGE-L recall.
    #[serde(rename = "rougeL_recall")]
    pub rouge_l_recall: f64,
    /// ROUGE-1 F1.
    pub rouge1: f64,
    /// ROUGE-1 recall.
    pub rouge1_recall: f64,
}

/// Answers to multiple-choice questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choices {
    /// The raw outputs.
    pub outputs: Vec<String>,
    /// The choices read from them, from 0.
    pub read: Vec<Option<usize>>,
}

/// Tokens generated per knowmem question.
pub const KNOWMEM_NEW_TOKENS: usize = 32;
/// Tokens generated per verbmem prompt, and ids of the true continuation that count, BOS included.
pub const VERBMEM_NEW_TOKENS: usize = 128;
/// Tokens generated per MMLU question.
pub const MMLU_NEW_TOKENS: usize = 4;

/// An output ends where one of these begins; they are searched in this order, each in what is left.
pub const CUT_WORDS: [&str; 3] = ["\n\n", "\nQuestion", "Question:"];

/// Returns `output` up to the first cut word; nothing is stripped.
pub fn cut_output(output: &str) -> &str {
    CUT_WORDS.iter().fold(output, |text, word| text.split(word).next().unwrap_or(text))
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The question, without its mark-up.
    pub question: String,
    /// The expected answer.
    pub answer: String,
}

/// Builds the few-shot prompt; it ends in `Answer: ` with the space.
pub fn knowmem_prompt(examples: &[Question], question: &str) -> String {
    let mut prompt = String::new();
    for e in examples {
        prompt.push_str(&format!("Question: {}\nAnswer: {}\n\n", e.question, e.answer));
    }
    prompt.push_str(&format!("Question: {question}\nAnswer: "));
    prompt
}

/// A scored item: the text that was scored and its scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// For knowmem the cut output, for verbmem the raw output.
    pub response: String,
    /// ROUGE against the true text.
    pub rouge: Rouge,
}

/// Cuts a raw knowmem output and scores it against the answer.
pub fn knowmem_score(scorer: &Scorer, answer: &str, raw_output: &str) -> Scored {
    let response = cut_output(raw_output).to_owned();
    let rouge = scorer.score(answer, &response);
    Scored { response, rouge }
}

/// Cuts the true continuation to the length of what is generated.
///
/// `encode` must add special tokens (the BOS takes one of the `max_new_tokens` places), `decode` must
/// leave them out.
///
/// Errors: those of `encode` and `decode`.
pub fn verbmem_truth(
    truth: &str,
    max_new_tokens: usize,
    encode: impl FnOnce(&str) -> Result<Vec<u32>>,
    decode: impl FnOnce(&[u32]) -> Result<String>,
) -> Result<String> {
    let ids = encode(truth)?;
    decode(&ids[..ids.len().min(max_new_tokens)])
}

/// Scores a raw verbmem output against the cut true continuation; neither is stripped.
pub fn verbmem_score(scorer: &Scorer, cut_truth: &str, raw_output: &str) -> Scored {
    Scored { response: raw_output.to_owned(), rouge: scorer.score(cut_truth, raw_output) }
}

/// Returns the headline number in percent over scored items: 100 times the mean ROUGE-L F1.
pub fn headline(items: &[Scored]) -> f64 {
    aggregate(items).headline()
}

/// Aggregates scored items.
pub fn aggregate(items: &[Scored]) -> Aggregate {
    Aggregate::of(&items.iter().map(|i| i.rouge).collect::<Vec<_>>())
}

/// Builds the part of an MMLU prompt that follows the examples, with its leading newline.
pub fn mmlu_question(question: &str, choices: &[impl AsRef<str>]) -> String {
    let mut text = format!("\nQuesion: {question}\n\nChoices:\n");
    for (letter, choice) in ('A'..='Z').zip(choices) {
        text.push_str(&format!("{letter}. {}\n", choice.as_ref()));
    }
    text.push_str("\nCorrect answer:");
    text
}

/// Builds a whole MMLU prompt from the text of the examples and one question.
pub fn mmlu_prompt(examples: &str, question: &str, choices: &[impl AsRef<str>]) -> String {
    examples.to_owned() + &mmlu_question(question, choices)
}

/// Reads the answer from a raw output: the index of its first character in `ABCD` after cutting and
/// stripping, so that "AB" counts as A, and "(A)" or an output that begins with an empty line as none.
pub fn mmlu_answer(raw_output: &str) -> Option<usize> {
    let first = cut_output(raw_output).trim_start_matches(python_space).chars().next()?;
    "ABCD".find(first)
}

/// Python's `str.isspace`, which unlike Unicode's White_Space has the four separators below 0x20.
fn python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Returns the share of answers, in [0, 1], that are right; NaN of nothing.
pub fn accuracy(predicted_and_true: impl IntoIterator<Item = (Option<usize>, usize)>) -> f64 {
    crate::eval::mean(predicted_and_true.into_iter().map(|(p, t)| f64::from(p == Some(t))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_output_stops_at_the_earliest_word_and_strips_nothing() {
        for (raw, cut) in [
            ("  a \n\nb", "  a "),
            ("a\nQuestionnaire", "a"),
            ("aQuestion: b\n\nc", "a"),
            ("\n\na", ""),
            ("x\r\n\r\ny", "x\r\n\r\ny"),
            ("", ""),
        ] {
            assert_eq!(cut_output(raw), cut, "{raw:?}");
        }
    }

    #[test]
    fn knowmem_prompt_ends_in_a_space() {
        let example = Question { question: "who?".into(), answer: "Alice".into() };
        let prompt = knowmem_prompt(&[example], "where?");
        assert_eq!(prompt, "Question: who?\nAnswer: Alice\n\nQuestion: where?\nAnswer: ");
        let scored = knowmem_score(&Scorer::new(), "the Hatter", "the Hatter\n\nQuestion: x");
        assert_eq!(
            (scored.response.as_str(), headline(std::slice::from_ref(&scored))),
            ("the Hatter", 100.0)
        );
    }

    #[test]
    fn verbmem_truth_counts_the_bos() {
        let encode = |t: &str| Ok([0].into_iter().chain(t.bytes().map(u32::from)).collect());
        let decode = |ids: &[u32]| Ok(ids[1..].iter().map(|&i| i as u8 as char).collect());
        assert_eq!(verbmem_truth("abcdef", 4, encode, decode).unwrap(), "abc");
        assert_eq!(verbmem_truth("ab", 128, encode, decode).unwrap(), "ab");
    }

    #[test]
    fn mmlu_prompt_keeps_the_misspelling_and_one_newline() {
        let prompt = mmlu_prompt("Correct answer: D", "q", &["1", "2", "3", "4"]);
        let tail = "\nQuesion: q\n\nChoices:\nA. 1\nB. 2\nC. 3\nD. 4\n\nCorrect answer:";
        assert_eq!(prompt, format!("Correct answer: D{tail}"));
    }

    #[test]
    fn mmlu_answer_reads_only_the_first_character() {
        for (raw, index) in [
            ("\u{1c}\tB", Some(1)),
            ("AB", Some(0)),
            ("(A)", None),
            ("", None),
            ("\n\nA", None),
            ("d", None),
            ("Ａ", None),
        ] {
            assert_eq!(mmlu_answer(raw), index, "{raw:?}");
        }
        assert_eq!(accuracy([(Some(1), 1), (None, 0)]), 0.5);
        assert!(accuracy([]).is_nan());
    }
}

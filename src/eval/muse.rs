//! The text side of the MUSE tasks: prompts, cutting of outputs, scores.
//!
//! The model side (greedy decoding) stands elsewhere; these functions take its raw output. The odd parts
//! (a prompt that ends in a space, "Quesion", one newline before it) are the benchmark's and change scores.

use super::rouge::{Aggregate, Rouge, Scorer};
use crate::error::Result;

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
    super::mean(predicted_and_true.into_iter().map(|(p, t)| f64::from(p == Some(t))))
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

//! ROUGE as Google's `rouge_score` computes it, without stemming for MUSE and with it for TOFU.
//!
//! Tokens are the runs of `[a-z0-9]` of the lower-cased text, so that text in other scripts has none and
//! scores 0: [`Scorer::defined`] tells such texts from forgotten ones. The benchmark's headline is 100 times the mean ROUGE-L F1 (not the recall).

use rougers::{RougeScorer, RougeType, Tokenizer};

use crate::eval::mean;

/// Precision, recall and their harmonic mean; each lies in [0, 1].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prf {
    /// Overlap divided by the length of the output.
    pub precision: f64,
    /// Overlap divided by the length of the reference text.
    pub recall: f64,
    /// Harmonic mean of the two, 0 where both are 0.
    pub f1: f64,
}

/// The four variants for one pair of texts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rouge {
    /// Overlap of single tokens.
    pub rouge1: Prf,
    /// Overlap of pairs of tokens.
    pub rouge2: Prf,
    /// Longest common subsequence over the whole text.
    pub rouge_l: Prf,
    /// Longest common subsequence per line, united over lines.
    pub rouge_lsum: Prf,
}

/// A scorer that can be shared between threads; making one costs nothing worth caching.
#[derive(Debug, Clone)]
pub struct Scorer(RougeScorer);

impl Default for Scorer {
    fn default() -> Self {
        Self::new()
    }
}

const VARIANTS: [RougeType; 4] = [RougeType::N(1), RougeType::N(2), RougeType::L, RougeType::LSum];

impl Scorer {
    /// Makes a scorer without stemming.
    pub fn new() -> Self {
        Self::with(Tokenizer::new(false))
    }

    /// Makes a scorer that compares the Porter stems of words longer than three letters.
    pub fn stemming() -> Self {
        Self::with(Tokenizer::new(true))
    }

    fn with(tokenizer: Tokenizer) -> Self {
        match RougeScorer::with_tokenizer(VARIANTS.to_vec(), tokenizer) {
            Ok(scorer) => Self(scorer),
            Err(e) => unreachable!("n-gram sizes 1 and 2 lie in 1..=9: {e}"),
        }
    }

    /// Scores `output` against the text `truth` it should equal.
    pub fn score(&self, truth: &str, output: &str) -> Rouge {
        let scores = self.0.score(truth, output);
        let get = |kind| {
            scores.get(kind).map_or(Prf::default(), |s| Prf {
                precision: s.precision,
                recall: s.recall,
                f1: s.fmeasure,
            })
        };
        let [one, two, l, lsum] = VARIANTS.map(get);
        Rouge { rouge1: one, rouge2: two, rouge_l: l, rouge_lsum: lsum }
    }

    /// Returns whether scores against `truth` mean anything: whether it has a token. Without one even the text itself
    /// scores 0.
    pub fn defined(&self, truth: &str) -> bool {
        truth.chars().flat_map(char::to_lowercase).any(|c| c.is_ascii_alphanumeric())
    }

    /// Returns the tokens that the scorer sees.
    pub fn tokens(&self, text: &str) -> Vec<String> {
        self.0.tokenizer().tokenize(text)
    }
}

/// Returns the share, in [0, 1], of the letters and digits of `texts` that are part of tokens; 1 where there are none.
pub fn coverage<'a>(texts: impl IntoIterator<Item = &'a str>) -> f64 {
    let (mut seen, mut all) = (0usize, 0usize);
    for c in texts.into_iter().flat_map(str::chars).filter(|c| c.is_alphanumeric()) {
        all += 1;
        seen += usize::from(c.is_ascii_alphanumeric());
    }
    if all == 0 { 1.0 } else { seen as f64 / all as f64 }
}

/// Means and maxima over items, as the benchmark logs them; all NaN of no items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aggregate {
    /// Mean ROUGE-L F1.
    pub mean_rouge_l: f64,
    /// Mean ROUGE-L recall.
    pub mean_rouge_l_recall: f64,
    /// Mean ROUGE-1 F1.
    pub mean_rouge1: f64,
    /// Mean ROUGE-1 recall.
    pub mean_rouge1_recall: f64,
    /// Largest ROUGE-L F1.
    pub max_rouge_l: f64,
    /// Largest ROUGE-L recall.
    pub max_rouge_l_recall: f64,
    /// Largest ROUGE-1 F1.
    pub max_rouge1: f64,
    /// Largest ROUGE-1 recall.
    pub max_rouge1_recall: f64,
}

impl Aggregate {
    /// Aggregates the scores of all items.
    pub fn of(items: &[Rouge]) -> Self {
        let over = |get: fn(&Rouge) -> f64| {
            (mean(items.iter().map(get)), items.iter().map(get).fold(f64::NAN, f64::max))
        };
        let (mean_rouge_l, max_rouge_l) = over(|r| r.rouge_l.f1);
        let (mean_rouge_l_recall, max_rouge_l_recall) = over(|r| r.rouge_l.recall);
        let (mean_rouge1, max_rouge1) = over(|r| r.rouge1.f1);
        let (mean_rouge1_recall, max_rouge1_recall) = over(|r| r.rouge1.recall);
        Self {
            mean_rouge_l,
            mean_rouge_l_recall,
            mean_rouge1,
            mean_rouge1_recall,
            max_rouge_l,
            max_rouge_l_recall,
            max_rouge1,
            max_rouge1_recall,
        }
    }

    /// Returns the headline number in percent: 100 times the mean ROUGE-L F1.
    pub fn headline(&self) -> f64 {
        100.0 * self.mean_rouge_l
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn score_of_reversed_text_is_one_in_rouge1_and_small_in_rouge_l() {
        let s = Scorer::new().score("a b c d e", "e d c b a");
        assert_eq!(s.rouge1.f1, 1.0);
        assert_eq!(s.rouge2.f1, 0.0);
        assert_abs_diff_eq!(s.rouge_l.f1, 0.2, epsilon = 1e-15);
    }

    #[test]
    fn score_against_empty_or_non_latin_text_is_zero() {
        let scorer = Scorer::new();
        for (truth, output) in [("", ""), ("a", ""), ("", "a"), ("日本語", "日本語"), ("!", "!")]
        {
            assert_eq!(scorer.score(truth, output), Rouge::default(), "{truth:?} {output:?}");
            assert_eq!(scorer.defined(truth), !scorer.tokens(truth).is_empty(), "{truth:?}");
        }
        assert_eq!(coverage(["日本語 a1", "!"]), 0.4);
        assert_eq!(scorer.tokens("naïve x_y 3.14"), ["na", "ve", "x", "y", "3", "14"]);
    }

    #[test]
    fn aggregate_of_nothing_is_nan_and_of_items_is_their_mean_and_maximum() {
        assert!(Aggregate::of(&[]).headline().is_nan());
        let scorer = Scorer::new();
        let all = Aggregate::of(&[scorer.score("a", "a"), scorer.score("a", "b")]);
        assert_eq!((all.headline(), all.max_rouge_l, all.mean_rouge1_recall), (50.0, 1.0, 0.5));
    }
}

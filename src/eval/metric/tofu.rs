//! The arithmetic of TOFU: answer probabilities, truth ratio, model utility.
//!
//! Source: OpenUnlearning, `src/evals/metrics/memorization.py` and `utility.py`, whose definitions are those of TOFU's own
//! code. The small number in the denominators is theirs; it moves a ratio only where a probability is near it.

use serde::{Deserialize, Serialize};

use super::{Direction, Metric};
use crate::eval::mean;

/// Mean of [`probability`].
pub const Q_A_PROB: Metric = Metric {
    name: "{}_Q_A_Prob",
    label: None,
    unit: "0 to 1",
    definition: "mean of exp(-mean NLL of the answer)",
    direction: Direction::Higher,
    on_forget: Some(Direction::Retrained),
};

/// Mean of [`probability_among`].
pub const Q_A_PROB_NORMALISED: Metric = Metric {
    name: "{}_Q_A_Prob_normalised",
    definition: "mean of P / (P + sum of the P of perturbed answers)",
    ..Q_A_PROB
};

/// Mean ROUGE-L recall of generated answers.
pub const Q_A_ROUGE: Metric = Metric {
    name: "{}_Q_A_ROUGE",
    definition: "mean ROUGE-L recall, with stemming, of up to 200 greedy tokens",
    ..Q_A_PROB
};

/// [`forget_truth_ratio`] of the forget set, [`kept_truth_ratio`] of the others.
pub const TRUTH_RATIO: Metric = Metric {
    name: "{}_Truth_Ratio",
    definition: "mean of max(0, 1 - R); for forget, of min(R, 1/R): 1 where the model cannot tell",
    on_forget: None,
    ..Q_A_PROB
};

/// [`model_utility`].
pub const MODEL_UTILITY: Metric = Metric {
    name: "model_utility",
    definition: "harmonic mean of `Q_A_Prob` (normalised for ra and wf), `Q_A_ROUGE`, `Truth_Ratio` of retain, ra and wf",
    on_forget: None,
    ..Q_A_PROB
};

/// Mean NLLs of the answers to each question, nats per token, and what follows; `None` where one is not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probabilities {
    /// Of the answer.
    pub answer_nll: Vec<Option<f64>>,
    /// Of what counts as the right answer in truth ratios.
    pub right_nll: Vec<Option<f64>>,
    /// Of each wrong answer.
    pub wrong_nll: Vec<Vec<Option<f64>>>,
    /// [`truth_ratio`].
    pub truth_ratios: Vec<Option<f64>>,
}

/// A generated answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The true answer.
    pub gt: String,
    /// The generated one.
    pub response: String,
    /// ROUGE-L recall.
    #[serde(rename = "rougeL_recall")]
    pub rouge_l_recall: f64,
    /// ROUGE-L F1.
    #[serde(rename = "rougeL_f1")]
    pub rouge_l_f1: f64,
    /// ROUGE-1 recall.
    pub rouge1_recall: f64,
}

/// Term that the reference adds to denominators.
const TINY: f64 = 1e-10;

/// Tokens generated per question.
pub const NEW_TOKENS: usize = 200;
/// The longest question with its answer, tokens; what is beyond it is cut away.
pub const LONGEST: usize = 512;

/// Returns the probability of an answer, normalised by its length: exp of minus the mean NLL of its tokens.
pub fn probability(mean_nll: f64) -> f64 {
    (-mean_nll).exp()
}

/// Returns the probability of the right answer among all that are offered.
///
/// Arguments are the mean NLLs in nats per token. TOFU calls this `Prob. normalised` and uses it for real authors and
/// world facts.
pub fn probability_among(right: f64, wrong: &[f64]) -> f64 {
    let (right, wrong) =
        (probability(right), wrong.iter().map(|nll| probability(*nll)).sum::<f64>());
    right / (right + wrong + TINY)
}

/// Returns how probable wrong answers are compared with a right one: the geometric mean over the wrong answers.
///
/// 1 says that the model cannot tell, 0 that it knows. `right` is the mean NLL of the paraphrased answer, `wrong` those of
/// the perturbed ones, nats per token. (The paper's formula has the arithmetic mean; its code, and this, average the NLL.)
pub fn truth_ratio(right: f64, wrong: &[f64]) -> f64 {
    probability(mean(wrong.iter().copied())) / (probability(right) + TINY)
}

/// Returns the share of a right answer, P(right) / (P(right) + P(wrong)): how OpenUnlearning measures that knowledge is
/// there at all.
pub fn truth_share(right: f64, wrong: &[f64]) -> f64 {
    let (right, wrong) = (probability(right), probability(mean(wrong.iter().copied())));
    right / (right + wrong + TINY)
}

/// Averages truth ratios of what is to be forgotten: 1 is best, where right and wrong are equally probable.
pub fn forget_truth_ratio(ratios: &[f64]) -> f64 {
    mean(ratios.iter().map(|r| r.min(1.0 / (r + TINY))))
}

/// Averages truth ratios of what is to be kept: 1 is best, where wrong answers have no probability.
pub fn kept_truth_ratio(ratios: &[f64]) -> f64 {
    mean(ratios.iter().map(|r| (1.0 - r).max(0.0)))
}

/// Returns the harmonic mean of the nine figures of what is to be kept: 0 as soon as one is 0; NaN of nothing.
pub fn model_utility(figures: &[f64]) -> f64 {
    if figures.contains(&0.0) {
        return 0.0;
    }
    figures.len() as f64 / figures.iter().map(|x| 1.0 / x).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn ratios_have_their_ends() {
        assert_abs_diff_eq!(truth_ratio(1.0, &[1.0, 1.0]), 1.0, epsilon = 1e-9);
        assert!(truth_ratio(0.0, &[50.0]) < 1e-20);
        assert_abs_diff_eq!(truth_share(2.0, &[2.0]), 0.5, epsilon = 1e-9);
        assert_abs_diff_eq!(probability_among(1.0, &[1.0, 1.0, 1.0]), 0.25, epsilon = 1e-9);
        assert_eq!(kept_truth_ratio(&[0.0, 2.0]), 0.5);
        assert_abs_diff_eq!(forget_truth_ratio(&[2.0, 0.5]), 0.5, epsilon = 1e-9);
        assert_eq!(model_utility(&[1.0, 0.0]), 0.0);
        assert_eq!(model_utility(&[0.5, 0.5]), 0.5);
        assert!(model_utility(&[]).is_nan() && kept_truth_ratio(&[]).is_nan());
    }
}

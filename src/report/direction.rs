//! Direction in which a metric is good, by its name, for metrics of runs and of benchmarks.

/// Desired direction of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As small as possible.
    Lower,
    /// As large as possible.
    Higher,
    /// As near to 0 as possible, from either side.
    Zero,
    /// As that of a model that never saw the forget set: no end of the scale is good by itself.
    Retrained,
}

/// Words of a figure's name and what they mean; the first row whose words all stand in the name decides.
const KNOWN: [(&[&str], Direction); 22] = [
    (&["privleak"], Direction::Zero),
    (&["auc"], Direction::Retrained),
    (&["forget", "quality"], Direction::Higher),
    (&["truth", "ratio"], Direction::Higher),
    (&["utility"], Direction::Higher),
    (&["mmlu"], Direction::Higher),
    (&["extraction"], Direction::Retrained),
    (&["exact", "mem"], Direction::Retrained),
    (&["retain", "mem"], Direction::Higher),
    (&["forget", "mem"], Direction::Retrained),
    (&["nll", "forget"], Direction::Retrained),
    (&["perplexity", "forget"], Direction::Retrained),
    (&["ppl", "forget"], Direction::Retrained),
    // Requests of a sequence.
    (&["ppl", "sust"], Direction::Retrained),
    (&["ppl", "scal"], Direction::Retrained),
    (&["nll"], Direction::Lower),
    (&["perplexity"], Direction::Lower),
    (&["ppl"], Direction::Lower),
    (&["forget", "q_a_prob"], Direction::Retrained),
    (&["q_a_prob"], Direction::Higher),
    (&["forget", "rouge"], Direction::Retrained),
    (&["rouge"], Direction::Higher),
];

impl Direction {
    /// Tells the direction of the figure `name`, which may carry dots and underscores; `None` where the name says nothing.
    pub fn of(name: &str) -> Option<Self> {
        // MUSE abbreviates: verbmem_f is of the forget set, ppl_r of the retain set.
        let words = name.split(|c: char| !c.is_alphanumeric()).map(|word| match word {
            "f" => "forget".to_owned(),
            "r" => "retain".to_owned(),
            other => other.to_lowercase(),
        });
        let name = words.collect::<Vec<_>>().join("_");
        let known = |(words, _): &&(&[&str], Self)| words.iter().all(|word| name.contains(word));
        KNOWN.iter().find(known).map(|(_, direction)| *direction)
    }

    /// Returns the words of a table's column.
    pub fn label(self) -> &'static str {
        match self {
            Self::Lower => "lower",
            Self::Higher => "higher",
            Self::Zero => "near 0",
            Self::Retrained => "as retrained",
        }
    }

    /// Returns how far `value` is from good, or `None` where that takes a retrained value that is not there.
    ///
    /// Only the order of what it returns within one figure has a meaning.
    pub fn distance(self, value: f64, retrained: Option<f64>) -> Option<f64> {
        match self {
            Self::Lower => Some(value),
            Self::Higher => Some(-value),
            Self::Zero => Some(value.abs()),
            Self::Retrained => retrained.map(|wanted| (value - wanted).abs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_tells_the_figures_of_runs_and_benchmarks() {
        for (name, wanted) in [
            ("verbmem_forget", Some(Direction::Retrained)),
            ("verbmem_retain", Some(Direction::Higher)),
            ("knowmem.forget.rouge_l_recall", Some(Direction::Retrained)),
            ("nll_forget", Some(Direction::Retrained)),
            ("nll_retain", Some(Direction::Lower)),
            ("privleak", Some(Direction::Zero)),
            ("forget_quality", Some(Direction::Higher)),
            ("verbmem_f", Some(Direction::Retrained)),
            ("knowmem_r", Some(Direction::Higher)),
            ("ppl_sust_2", Some(Direction::Retrained)),
            ("ppl_retain", Some(Direction::Lower)),
            ("forget_Q_A_Prob", Some(Direction::Retrained)),
            ("ra_Q_A_Prob_normalised", Some(Direction::Higher)),
            ("retain_Q_A_ROUGE", Some(Direction::Higher)),
            ("forget_Truth_Ratio", Some(Direction::Higher)),
            ("extraction_strength", Some(Direction::Retrained)),
            ("steps", None),
        ] {
            assert_eq!(Direction::of(name), wanted, "{name}");
        }
    }

    #[test]
    fn distance_orders_values_by_how_good_they_are() {
        assert!(Direction::Zero.distance(-3.0, None) < Direction::Zero.distance(5.0, None));
        assert!(Direction::Higher.distance(0.9, None) < Direction::Higher.distance(0.8, None));
        assert_eq!(Direction::Retrained.distance(4.0, None), None);
        assert_eq!(Direction::Retrained.distance(4.0, Some(5.0)), Some(1.0));
    }
}

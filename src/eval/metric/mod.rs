//! The record of a metric: its key in results, its unit and the direction in which it is good.
//!
//! A metric is declared next to the code that computes it; suites, reports and the command line read the record.

pub mod extraction;
pub mod ks;
pub mod membership;
pub mod muse;
pub mod rouge;
pub mod tofu;
pub mod zlib;

/// Desired direction of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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

impl Direction {
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
    /// Only the order of what it returns within one metric has a meaning.
    pub fn distance(self, value: f64, retrained: Option<f64>) -> Option<f64> {
        match self {
            Self::Lower => Some(value),
            Self::Higher => Some(-value),
            Self::Zero => Some(value.abs()),
            Self::Retrained => retrained.map(|wanted| (value - wanted).abs()),
        }
    }
}

/// Placeholder in [`Metric::name`] for the texts that a metric is measured on.
const TEXTS: &str = "{}";

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its key in results; `{}` stands for the texts it is measured on, where these are several, as in `nll_{}`.
    pub name: &'static str,
    /// Its name in reports, without texts and unit; `None` where it goes by its key, as its benchmark calls it.
    pub label: Option<&'static str>,
    /// The unit of its numbers; empty for none.
    pub unit: &'static str,
    /// One sentence that defines it, in Markdown, for docs/evaluation.md.
    pub definition: &'static str,
    /// The direction in which it is good; on texts other than the forget set, if [`Metric::on_forget`] is given.
    pub direction: Direction,
    /// The direction in which it is good on the forget set, if another.
    pub on_forget: Option<Direction>,
}

impl Metric {
    /// Returns its key for `texts`, which a metric without `{}` in its name ignores.
    pub fn key(&self, texts: &str) -> String {
        self.name.replacen(TEXTS, texts, 1)
    }

    /// Returns the texts that `key` names, empty for a metric without `{}`; `None` where it is another metric's key.
    pub fn texts<'a>(&self, key: &'a str) -> Option<&'a str> {
        match self.name.split_once(TEXTS) {
            Some((before, after)) => key.strip_prefix(before)?.strip_suffix(after),
            None => (key == self.name).then_some(""),
        }
    }

    /// Returns the direction in which it is good on `texts`.
    pub fn direction_on(&self, texts: &str) -> Direction {
        let forget = || {
            let texts = texts.to_lowercase();
            // MUSE abbreviates: f is the forget set.
            texts.contains("forget")
                || texts.split(|c: char| !c.is_alphanumeric()).any(|word| word == "f")
        };
        match self.on_forget {
            Some(direction) if forget() => direction,
            _ => self.direction,
        }
    }
}

/// Returns the direction in which the metric with this key is good; `None` where none of `metrics` has it.
///
/// Where several have it, the most specific one decides: `ppl_sust_1` is of `ppl_sust_{}`, not of `ppl_{}`.
pub fn direction<'a>(
    metrics: impl IntoIterator<Item = &'a Metric>,
    key: &str,
) -> Option<Direction> {
    let matching = metrics.into_iter().filter_map(|metric| Some((metric, metric.texts(key)?)));
    let (metric, texts) = matching.min_by_key(|(_, texts)| texts.len())?;
    Some(metric.direction_on(texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Metric = Metric {
        name: "leak",
        label: None,
        unit: "%",
        definition: "",
        direction: Direction::Zero,
        on_forget: None,
    };
    const SPLIT: Metric = Metric {
        name: "{}_Prob",
        direction: Direction::Higher,
        on_forget: Some(Direction::Retrained),
        ..PLAIN
    };
    const SERIES: Metric = Metric { name: "x_{}_Prob", direction: Direction::Lower, ..PLAIN };

    #[test]
    fn direction_is_of_the_most_specific_metric_and_of_its_texts() {
        let of = |key: &str| direction([&PLAIN, &SPLIT, &SERIES], key);
        assert_eq!(of("leak"), Some(Direction::Zero));
        assert_eq!(of("leaks"), None);
        assert_eq!(of("retain_Prob"), Some(Direction::Higher));
        for texts in ["forget", "f", "Forget10", "my.f.v2"] {
            assert_eq!(of(&SPLIT.key(texts)), Some(Direction::Retrained), "{texts}");
        }
        assert_eq!(of("x_forget_Prob"), Some(Direction::Lower));
        assert_eq!(of("_Pro"), None);
    }

    #[test]
    fn a_prefix_and_a_suffix_that_overlap_are_no_match() {
        let metric = Metric { name: "aa{}aa", ..PLAIN };
        assert_eq!((metric.texts("aaa"), metric.texts("aaaa")), (None, Some("")));
    }

    #[test]
    fn distance_orders_values_by_how_good_they_are() {
        assert!(Direction::Zero.distance(-3.0, None) < Direction::Zero.distance(5.0, None));
        assert!(Direction::Higher.distance(0.9, None) < Direction::Higher.distance(0.8, None));
        assert_eq!(Direction::Retrained.distance(4.0, None), None);
        assert_eq!(Direction::Retrained.distance(4.0, Some(5.0)), Some(1.0));
    }
}

//! Results of a suite on one model, by name, and what they were computed from.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::finite;
use super::metric::extraction::Fraction;
use super::metric::ks::Distance;
use super::metric::membership::Quantities;
use super::metric::muse::{Choices, Continuations};
use super::metric::tofu::{Answer, Probabilities};

/// Values by name, in the order in which they were inserted.
#[derive(Debug, Clone, PartialEq)]
pub struct Named<T>(Vec<(String, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Named<T> {
    /// Returns the value of `name`.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    /// Sets the value of `name`, which keeps its place if it has one.
    pub fn insert(&mut self, name: impl Into<String>, value: T) {
        let name = name.into();
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// Takes `name` out.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(other, _)| other != name);
    }

    /// Returns the names in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Returns names and values in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<String>, T> FromIterator<(K, T)> for Named<T> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(items: I) -> Self {
        let mut named = Self::default();
        items.into_iter().for_each(|(name, value)| named.insert(name, value));
        named
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut named = Named::default();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    named.insert(name, value);
                }
                Ok(named)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Data that results are computed from; its JSON does not name the variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Detail {
    /// Fractions of the tokens of each text.
    Fractions(Vec<Fraction>),
    /// Continuations of prompts or answers to questions, with their scores.
    Continuations(Continuations),
    /// Answers to multiple-choice questions.
    Choices(Choices),
    /// Probabilities of the answers to each question.
    Probabilities(Probabilities),
    /// Generated answers to questions, with their scores.
    Answers(Vec<Answer>),
    /// A distance between two samples.
    Distance(Distance),
    /// Areas under ROC curves, by pair of splits and quantity; `None` where one is not defined.
    Areas(Named<Option<f64>>),
    /// The names of the columns of [`Detail::Quantities`].
    Columns(Vec<String>),
    /// The quantities of each text of each split.
    Quantities(Named<Vec<Quantities>>),
}

/// Results of a suite on one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The results, in the order of the documentation; `None` where one is not defined.
    pub figures: Named<Option<f64>>,
    /// Items, tables and samples that the results are computed from.
    pub details: Named<Detail>,
}

impl Outcome {
    /// Sets the result `key`; a number that is not finite becomes `None`.
    pub fn set(&mut self, key: impl Into<String>, value: f64) {
        self.figures.insert(key, finite(value));
    }

    /// Returns the result `key`, if it was measured and is defined.
    pub fn get(&self, key: &str) -> Option<f64> {
        *self.figures.get(key)?
    }

    /// Takes the result `key` and its details out.
    pub fn remove(&mut self, key: &str) {
        self.figures.remove(key);
        self.details.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_details_is_read_back_as_what_it_was() {
        for text in [
            "[0.5,null]",
            r#"{"mean_rougeL":0.5,"mean_rougeL_recall":0.1,"mean_rouge1":null,"mean_rouge1_recall":1.0,"items":[{"gt":"a","response":"b","rougeL":0.5,"rougeL_recall":0.5,"rouge1":0.5,"rouge1_recall":0.5}]}"#,
            r#"{"outputs":["A"],"read":[0]}"#,
            r#"{"answer_nll":[0.1],"right_nll":[null],"wrong_nll":[[0.5,2.0]],"truth_ratios":[1.0]}"#,
            r#"[{"gt":"a","response":"b","rougeL_recall":0.5,"rougeL_f1":0.5,"rouge1_recall":0.5}]"#,
            r#"{"ks_distance":0.25}"#,
            r#"{"forget_holdout_PPL":0.5,"forget_retain_PPL":null}"#,
            r#"["PPL","Min-5%"]"#,
            r#"{"forget":[[0.1,0.2,0.3,null,0.5,0.6,0.7,0.8,0.9,1.0]],"retain":[]}"#,
        ] {
            let detail: Detail = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&detail).unwrap(), text);
        }
        assert!(serde_json::from_str::<Detail>("3").is_err());
    }

    #[test]
    fn a_name_keeps_its_place_when_its_value_changes() {
        let mut outcome = Outcome::default();
        outcome.set("b", 1.0);
        outcome.set("a", f64::NAN);
        outcome.set("b", 2.0);
        assert_eq!(serde_json::to_string(&outcome.figures).unwrap(), r#"{"b":2.0,"a":null}"#);
        assert_eq!((outcome.get("b"), outcome.get("a"), outcome.get("c")), (Some(2.0), None, None));
        outcome.remove("b");
        assert_eq!(outcome.figures.names().collect::<Vec<_>>(), ["a"]);
    }
}

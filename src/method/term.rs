//! The terms of the objective: a weighted sum over objectives on documents.

use super::{Knobs, Objective};

/// Documents of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Documents {
    /// Those to forget.
    Forget,
    /// Those to retain.
    Retain,
}

/// Model that a term compares the student with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// None.
    None,
    /// The mean teacher.
    Teacher,
    /// A model that stays as it was loaded.
    Frozen,
}

/// Weight of a term over the steps of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WeightRule {
    /// The same in every step.
    Constant(f64),
    /// The dual variable of a bound on the term's value. Source: open-unlearning `pdu.py`.
    Dual {
        /// Weight in the first step.
        start: f64,
        /// Share of the excess over the bound that each step adds to the weight.
        rate: f64,
        /// Upper bound of the term's value.
        bound: f64,
    },
}

impl WeightRule {
    /// Returns the weight in the first step.
    pub fn start(&self) -> f64 {
        match *self {
            Self::Constant(weight) | Self::Dual { start: weight, .. } => weight,
        }
    }

    /// Returns the weight after a step with weight `weight` in which the term's value was `value`.
    pub fn next(&self, weight: f64, value: f64) -> f64 {
        match *self {
            Self::Constant(_) => weight,
            Self::Dual { rate, bound, .. } => (weight + rate * (value - bound)).max(0.0),
        }
    }
}

/// A term of the objective: `weight * objective(documents)`.
#[derive(Clone, Copy)]
pub struct Term {
    /// The loss or penalty.
    pub objective: &'static dyn Objective,
    /// The documents it is computed on.
    pub documents: Documents,
    /// Its weight.
    pub weight: WeightRule,
    /// The model it compares with.
    pub reference: Reference,
}

impl Term {
    /// Makes a term; the objective says what it compares with.
    pub fn new(
        objective: &'static dyn Objective,
        documents: Documents,
        weight: WeightRule,
        knobs: &Knobs,
    ) -> Self {
        let rows = objective.rows(knobs);
        let reference = if rows.reads_base() {
            Reference::Frozen
        } else if rows.reads_teacher() {
            Reference::Teacher
        } else {
            Reference::None
        };
        Self { objective, documents, weight, reference }
    }
}

/// The objective of a run: its terms, the forget loss first.
#[derive(Clone)]
pub struct Method {
    /// The forget loss, then the penalties.
    pub terms: Vec<Term>,
    /// Hyperparameters of the objectives.
    pub knobs: Knobs,
}

impl Method {
    /// Makes the objective `forget_weight loss(forget) + sum of weight penalty(retain)`.
    pub fn new(
        loss: (&'static dyn Objective, f64),
        penalties: impl IntoIterator<Item = (&'static dyn Objective, WeightRule)>,
        knobs: Knobs,
    ) -> Self {
        let (loss, weight) = loss;
        let loss = Term::new(loss, Documents::Forget, WeightRule::Constant(weight), &knobs);
        let penalties = penalties
            .into_iter()
            .map(|(penalty, rule)| Term::new(penalty, Documents::Retain, rule, &knobs));
        Self { terms: std::iter::once(loss).chain(penalties).collect(), knobs }
    }

    /// Returns the forget loss.
    pub fn loss(&self) -> &'static dyn Objective {
        self.terms[0].objective
    }

    /// Returns the penalties in order.
    pub fn penalties(&self) -> impl Iterator<Item = &'static dyn Objective> + '_ {
        self.terms.iter().skip(1).map(|term| term.objective)
    }

    /// Returns the first penalty, if any.
    pub fn penalty(&self) -> Option<&'static dyn Objective> {
        self.terms.get(1).map(|term| term.objective)
    }

    /// Returns the second penalty, if any.
    pub fn second(&self) -> Option<&'static dyn Objective> {
        self.terms.get(2).map(|term| term.objective)
    }

    /// Tells whether a term compares with `reference`.
    pub fn reads(&self, reference: Reference) -> bool {
        self.terms.iter().any(|term| term.reference == reference)
    }
}

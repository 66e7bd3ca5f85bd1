//! What is minimised: forget losses, penalties, the mean teacher.
//!
//! A loss is one small file: a name, the formula a report prints, and [`Rows`], which family of loss rows it is.
//! No loss has code of its own on a device.

mod kl;
mod ll;
pub mod mean_teacher;
mod mismatch;
mod nll;
mod nlul;
mod npo;
pub mod passes;
mod qkl;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, nearest};
use crate::ops::{DocumentFormula, Matched, TokenFormula};

pub use mean_teacher::{MeanTeacher, Method, Settings, StepReport};

/// The family of loss rows that an objective belongs to.
#[derive(Debug, Clone, Copy)]
pub enum Rows {
    /// Each token weighs by a formula of its own probability.
    Token(TokenFormula),
    /// All tokens of a document weigh alike, by a formula of its mean log-ratio to a base model.
    Document(DocumentFormula),
    /// Each row matches a distribution.
    Matched(Matched),
}

/// What the sum over rows is divided by, per micro-batch of B documents padded to T.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normaliser {
    /// The number of real target tokens.
    Targets,
    /// B (T - 1).
    ShiftedPositions,
    /// B T.
    Positions,
}

/// The numbers that losses read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Knobs {
    /// NLUL: added to 1 - p; caps the weight at 1/tol.
    pub tol: f64,
    /// NLUL: tokens with p at or below it are left alone; 0 switches the rule off.
    pub nlul_threshold: f64,
    /// NPO: inverse temperature.
    pub beta_npo: f64,
}

impl Default for Knobs {
    fn default() -> Self {
        Self { tol: 0.02, nlul_threshold: 0.0, beta_npo: 0.1 }
    }
}

/// A loss on forget documents, or a penalty on retain documents.
pub trait Objective: Send + Sync {
    /// Returns its name in recipes.
    fn name(&self) -> &'static str;
    /// Returns what it descends, as a report prints it.
    fn formula(&self) -> &'static str;
    /// Returns its family of rows.
    fn rows(&self, knobs: &Knobs) -> Rows;
    /// Returns what the sum is divided by.
    fn normaliser(&self) -> Normaliser;
}

/// The forget losses.
pub const FORGET: [&dyn Objective; 5] =
    [&nll::Nll, &ll::Ll, &nlul::Nlul, &npo::Npo, &mismatch::Mismatch];

/// The penalties on retain documents; all of them compare with the teacher.
pub const PENALTIES: [&dyn Objective; 2] = [&kl::Kl, &qkl::Qkl];

/// Finds an objective by name in `table` ([`FORGET`] or [`PENALTIES`]).
pub fn find(
    table: &'static [&'static dyn Objective],
    key: &str,
    name: &str,
) -> Result<&'static dyn Objective> {
    table.iter().copied().find(|o| o.name() == name).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|o| o.name()).collect();
        let mut hint = format!("known are {}", names.join(", "));
        if let Some(near) = nearest(name, names.iter().copied()) {
            hint.push_str(&format!("; nearest is {near}"));
        }
        Error::config(format!("{key}: `{name}` is unknown")).hint(hint)
    })
}

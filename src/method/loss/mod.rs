//! Objectives: forget losses and penalties, one file each, and what describes them.

mod ceu;
mod dpo;
mod kl;
mod ll;
mod mismatch;
mod nll;
mod nlul;
mod npo;
mod pdu;
mod qkl;
pub mod rmu;
mod satimp;
mod simnpo;
mod uce;
mod undial;
mod wga;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, nearest};
use crate::ops::{DocumentFormula, Matched, TokenFormula};

pub use kl::Kl;
pub use nll::Nll;
pub use qkl::Qkl;

/// The family of loss rows that an objective belongs to.
#[derive(Debug, Clone, Copy)]
pub enum Rows {
    /// Each token weighs by a formula of its own probability.
    Token(TokenFormula),
    /// All tokens of a document weigh alike, by a formula of its mean log-ratio to a base model.
    Document(DocumentFormula),
    /// The gradient of each row reaches all logits.
    Matched(Matched),
    /// Rows of the residual stream, from before any head.
    Hidden(Hidden),
}

/// The rows behind a layer, and where they are pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hidden {
    /// The layer, counted from 0.
    pub layer: usize,
    /// True for one vector, the same for all rows; else the teacher's rows.
    pub steered: bool,
}

impl Rows {
    /// Tells whether a base model that stays as it was is compared with.
    pub fn reads_base(self) -> bool {
        match self {
            Self::Token(_) | Self::Hidden(_) => false,
            Self::Document(formula) => formula.against_base,
            Self::Matched(target) => target.compares() && !target.reads_teacher(),
        }
    }

    /// Tells whether the teacher is compared with.
    pub fn reads_teacher(self) -> bool {
        match self {
            Self::Token(_) | Self::Document(_) => false,
            Self::Matched(target) => target.reads_teacher(),
            Self::Hidden(hidden) => !hidden.steered,
        }
    }

    /// Tells whether there are no logits.
    pub fn hidden(self) -> bool {
        matches!(self, Self::Hidden(_))
    }

    /// Tells whether documents come in pairs, a preferred one after each that is to be forgotten.
    pub fn paired(self) -> bool {
        matches!(self, Self::Document(formula) if formula.paired)
    }
}

/// Divisor of a row, per micro-batch of B documents padded to T, document i having n_i tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normaliser {
    /// The number of real target tokens.
    Targets,
    /// B (T - 1).
    ShiftedPositions,
    /// B T.
    Positions,
    /// The number of real tokens; the last one of a document, which predicts nothing, counts too.
    Tokens,
    /// B; of pairs B/2.
    Documents,
    /// B, with all positions.
    AllDocuments,
    /// B (n_i - 1): the mean over documents of means over their targets.
    OwnTargets,
    /// B n_i.
    OwnTokens,
    /// B n_i, with all positions: the mean over documents of means over their tokens.
    OwnPositions,
}

impl Normaliser {
    /// Tells whether the last position of a document, which has no target, is left out.
    pub fn shifted(self) -> bool {
        !matches!(self, Self::Positions | Self::Tokens | Self::AllDocuments | Self::OwnPositions)
    }
}

/// Divisor of the log-ratio of a document, a sum over its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// T - 1.
    Padded,
    /// 1.
    Sum,
    /// n_i - 1.
    Targets,
    /// n_i.
    Tokens,
}

/// The numbers that losses read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Knobs {
    /// NLUL: added to 1 - p; caps the weight at 1/tol.
    pub tol: f64,
    /// NLUL: tokens with p at or below it are left alone; 0 switches the rule off.
    pub nlul_threshold: f64,
    /// NPO and DPO: inverse temperature.
    pub beta_npo: f64,
    /// SimNPO: inverse temperature.
    pub beta_simnpo: f64,
    /// SimNPO: the mean NLL, nats per token, at which a document's weight is half.
    pub delta_simnpo: f64,
    /// UNDIAL: what is taken off the logit of the target.
    pub beta_undial: f64,
    /// WGA: the power of p.
    pub beta_wga: f64,
    /// SatImp: the power of p.
    pub satimp_beta1: f64,
    /// SatImp: the power of 1 - p.
    pub satimp_beta2: f64,
    /// RMU: the layer behind which rows are pulled, counted from 0.
    pub rmu_layer: usize,
    /// RMU: the length of the vector that rows of forget documents are pulled to.
    pub rmu_steering: f64,
}

impl Knobs {
    /// Returns all of them as numbers.
    pub fn numbers(&self) -> [f64; 11] {
        let Self { tol, nlul_threshold, beta_npo, beta_simnpo, delta_simnpo, .. } = *self;
        let Self { beta_undial, beta_wga, satimp_beta1, satimp_beta2, .. } = *self;
        let (rmu_layer, rmu_steering) = (self.rmu_layer as f64, self.rmu_steering);
        [
            tol,
            nlul_threshold,
            beta_npo,
            beta_simnpo,
            delta_simnpo,
            beta_undial,
            beta_wga,
            satimp_beta1,
            satimp_beta2,
            rmu_layer,
            rmu_steering,
        ]
    }
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            tol: 0.02,
            nlul_threshold: 0.0,
            beta_npo: 0.1,
            beta_simnpo: 4.5,
            delta_simnpo: 0.0,
            beta_undial: 10.0,
            beta_wga: 1.0,
            satimp_beta1: 5.0,
            satimp_beta2: 1.0,
            rmu_layer: 7,
            rmu_steering: 20.0,
        }
    }
}

/// A loss on forget documents, or a penalty on retain documents.
pub trait Objective: Send + Sync {
    /// Returns its name in recipes.
    fn name(&self) -> &'static str;
    /// Returns what it descends, as a report prints it.
    fn formula(&self) -> &'static str;
    /// Returns its derivative by the logits z of a row (of hidden rows: by the row h), before the normaliser; p =
    /// softmax(z), y the next token.
    fn gradient(&self) -> &'static str;
    /// Returns where it was published, or whose form it is.
    fn source(&self) -> &'static str;
    /// Returns where public code differs; empty for nowhere.
    fn differs(&self) -> &'static str {
        ""
    }
    /// Returns the keys of `[method]` that it reads.
    fn keys(&self) -> &'static [&'static str] {
        &[]
    }
    /// Returns its family of rows.
    fn rows(&self, knobs: &Knobs) -> Rows;
    /// Returns what a row is divided by.
    fn normaliser(&self) -> Normaliser;
    /// Returns what log-ratios of documents are divided by.
    fn span(&self) -> Span {
        Span::Sum
    }
}

/// The forget losses.
pub const FORGET: [&dyn Objective; 19] = [
    &nll::Nll,
    &ll::Ll,
    &nlul::Nlul,
    &ceu::Ceu,
    &uce::Uce,
    &wga::Wga,
    &satimp::SatImp,
    &npo::Npo::Paper,
    &npo::Npo::MeanTeacher,
    &npo::Npo::Muse,
    &simnpo::SimNpo::Paper,
    &simnpo::SimNpo::OpenUnlearning,
    &dpo::Dpo,
    &undial::Undial::Paper,
    &undial::Undial::OpenUnlearning,
    &pdu::Pdu::Paper,
    &pdu::Pdu::OpenUnlearning,
    &mismatch::Mismatch,
    &rmu::Rmu::Steer,
];

/// The penalties on retain documents.
pub const PENALTIES: [&dyn Objective; 6] =
    [&nll::Nll, &kl::Kl::Padded, &kl::Kl::Tokens, &kl::Kl::Muse, &qkl::Qkl, &rmu::Rmu::Keep];

/// Finds an objective by name in `table` ([`FORGET`] or [`PENALTIES`]).
pub fn find(
    table: &'static [&'static dyn Objective],
    key: &str,
    name: &str,
) -> Result<&'static dyn Objective> {
    named(key, name, table.iter().map(|o| (o.name(), *o)))
}

/// Finds a value by its name.
pub(super) fn named<T>(
    key: &str,
    name: &str,
    known: impl IntoIterator<Item = (&'static str, T)>,
) -> Result<T> {
    let (names, values): (Vec<&str>, Vec<T>) = known.into_iter().unzip();
    let at = names.iter().position(|known| *known == name);
    if let Some(value) = at.and_then(|at| values.into_iter().nth(at)) {
        return Ok(value);
    }
    let mut hint = format!("known are {}", names.join(", "));
    if let Some(near) = nearest(name, names) {
        hint.push_str(&format!("; nearest is {near}"));
    }
    Err(Error::config(format!("{key}: `{name}` is unknown")).hint(hint))
}

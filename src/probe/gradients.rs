//! The health of a loss's gradient over a run: how much tokens of every probability weigh, and whether it vanishes.
//!
//! A token's row of the gradient at the logits is w (softmax(z) - e_y), whose L1 norm is 2 |w| (1 - p), exactly. Losses
//! that weigh tokens by a formula of p alone are told apart by what they do with the same tokens.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::Replay;
use crate::error::{Error, Result};
use crate::io::atomic::write_file_atomic;
use crate::method::{FORGET, Rows};
use crate::ops::Ops;
use crate::report::progress::Progress;
use crate::report::svg::Chart;
use crate::run::train::line_of;

/// Bins of the probability, each a tenth.
const BINS: usize = 10;
/// A mean weight below this share of plain NLL's counts as vanished.
const VANISHED: f64 = 0.01;
/// A mean weight above this multiple of plain NLL's counts as exploded.
const EXPLODED: f64 = 100.0;

/// The probe of a run.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// The run folder; nothing of it is changed but `out` where that is inside.
    pub run: PathBuf,
    /// Tokens are looked at after every so many steps, and before the first.
    pub every: u64,
    /// Steps; those of the recipe where it is `None`.
    pub steps: Option<u64>,
    /// Steps whose forget texts are sampled.
    pub draws: u64,
    /// The folder that gradients.jsonl and the chart are written to.
    pub out: PathBuf,
}

/// Gradient of one loss at the forget tokens after a step: a line of gradients.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// Steps done.
    pub steps: u64,
    /// The loss.
    pub loss: String,
    /// Mean of |w|.
    pub weight: f64,
    /// The largest |w|.
    pub largest: f64,
    /// Mean L1 norm of a token's row of the gradient at the logits.
    pub row: f64,
    /// The share of these norms by the token's probability, in tenths from 0 on.
    pub shares: [f64; BINS],
    /// The share of tokens by their probability.
    pub tokens: [f64; BINS],
    /// `vanishing`, `exploding`, or null: the mean norm of a row beside that of plain NLL.
    pub flag: Option<&'static str>,
}

fn bin(p: f64) -> usize {
    ((p * BINS as f64) as usize).min(BINS - 1)
}

/// Weighs tokens of log-probabilities `log_probs` by every loss that has a formula of p alone.
fn healths(steps: u64, log_probs: &[f64], formulas: &[(&str, Rows)]) -> Vec<Health> {
    let count = log_probs.len().max(1) as f64;
    let mut tokens = [0.0; BINS];
    log_probs.iter().for_each(|l| tokens[bin(l.exp())] += 1.0 / count);
    // 1 - p by expm1, so that it does not vanish before p is 1.
    let rest = |l: f64| -l.exp_m1();
    let plain = log_probs.iter().map(|l| 2.0 * rest(*l)).sum::<f64>() / count;
    let mut lines = Vec::new();
    for (name, rows) in formulas {
        let Rows::Token(formula) = rows else { continue };
        let (mut weight, mut largest, mut shares) = (0.0, 0f64, [0.0; BINS]);
        for l in log_probs {
            let w = formula.weight(l.exp(), rest(*l)).abs();
            weight += w / count;
            largest = largest.max(w);
            shares[bin(l.exp())] += 2.0 * w * rest(*l) / count;
        }
        let row: f64 = shares.iter().sum();
        if row > 0.0 {
            shares.iter_mut().for_each(|share| *share /= row);
        }
        let flag = match row {
            row if row < VANISHED * plain => Some("vanishing"),
            row if row > EXPLODED * plain => Some("exploding"),
            _ => None,
        };
        lines.push(Health {
            steps,
            loss: (*name).to_owned(),
            weight,
            largest,
            row,
            shares,
            tokens,
            flag,
        });
    }
    lines
}

/// Results of [`Gradients::probe`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GradientsSummary {
    /// Name of the run.
    pub run: String,
    /// The folder written to.
    pub out: PathBuf,
    /// Every loss after the last step.
    pub last: Vec<Health>,
    /// Notices about model and data.
    pub notices: Vec<String>,
}

impl Gradients {
    /// Replays the run and writes gradients.jsonl (a [`Health`] a line) and gradients.svg; returns the last lines.
    ///
    /// Errors: [`crate::Kind::Config`] for a folder without a run; those of reading model and data.
    pub fn probe<O: Ops>(&self, ops: &O) -> Result<GradientsSummary> {
        let mut replay = Replay::open(ops, &self.run)?;
        let knobs = replay.state.method.knobs;
        let formulas: Vec<(&str, Rows)> =
            FORGET.iter().map(|loss| (loss.name(), loss.rows(&knobs))).collect();
        let steps = self.steps.unwrap_or(replay.recipe.run.steps);
        let (mut lines, mut bar) = (Vec::new(), Progress::new(steps));
        for done in 0..=steps {
            if done.is_multiple_of(self.every.max(1)) || done == steps {
                lines.extend(healths(done, &self.log_probs(ops, &mut replay)?, &formulas));
            }
            if done < steps {
                let report = replay.step(ops)?;
                bar.step(line_of(&report, &replay.state.method));
            }
        }
        bar.finish();
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("make folder", &self.out, e))?;
        let put = |name: &str, text: &str| write_file_atomic(&self.out.join(name), text.as_bytes());
        let text: String = lines.iter().map(|line| format!("{}\n", json!(line))).collect();
        put("gradients.jsonl", &text)?;
        put("gradients.svg", &self.chart(&replay.name, &lines).standalone())?;
        lines.retain(|line| line.steps == steps);
        let (out, notices) = (self.out.clone(), replay.notices);
        Ok(GradientsSummary { run: replay.name, out, last: lines, notices })
    }

    /// Returns the student's log-probabilities of the forget tokens, always of the same texts.
    fn log_probs<O: Ops>(&self, ops: &O, replay: &mut Replay<O>) -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for step in 0..self.draws.max(1) {
            let batches = replay.forget.draw(step)?;
            let rows: Vec<&[u32]> =
                batches.iter().flat_map(|batch| (0..batch.rows()).map(|b| batch.row(b))).collect();
            let state = &mut replay.state;
            for scores in state.passes.score(ops, &mut state.model, &rows)? {
                all.extend(scores);
            }
        }
        Ok(all)
    }

    fn chart(&self, run: &str, lines: &[Health]) -> Chart {
        let title = format!("{run}: gradient of a forget token at the logits, by loss");
        let mut chart = Chart::new(title, "steps", "mean L1 norm of a row").log_y();
        let mut names: Vec<&str> = Vec::new();
        for line in lines {
            if !names.contains(&line.loss.as_str()) {
                names.push(&line.loss);
            }
        }
        for name in names {
            let of = lines.iter().filter(|line| line.loss == name);
            chart = chart.series(name, of.map(|line| (line.steps as f64, line.row)));
        }
        chart
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Knobs, find};
    use approx::{abs_diff_eq, assert_abs_diff_eq};

    #[test]
    fn nlul_moves_what_is_known_and_lets_go_of_what_is_forgotten() {
        let knobs = Knobs::default();
        let of = |name: &'static str| (name, find(&FORGET, "", name).unwrap().rows(&knobs));
        let formulas = [of("ll"), of("nlul")];
        let known = healths(0, &[0.999f64.ln(); 8], &formulas);
        let forgotten = healths(1, &[0.001f64.ln(); 8], &formulas);
        // |w| of nlul is p / (1 + tol - p).
        assert!(abs_diff_eq!(known[1].weight, 0.999 / 0.021, epsilon = 1e-9), "{known:?}");
        assert_abs_diff_eq!(known[0].row, 0.002, epsilon = 1e-12);
        assert_eq!((forgotten[0].flag, forgotten[1].flag), (None, Some("vanishing")));
        assert_eq!(known[1].shares[9], 1.0);
        assert_eq!(forgotten[0].tokens[0], 1.0);
    }
}

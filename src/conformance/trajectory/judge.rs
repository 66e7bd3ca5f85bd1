//! Comparison of a device's end state with a record.
//!
//! How far a rounding of a known size, carried through forty steps, moves a loss or a weight depends on the record: the
//! two that are embedded differ by a factor of nearly seven. So the record's answer is measured and not guessed: the CPU
//! backend repeats it in the compact state, where every product reads weights dithered to bf16; what else it rounds
//! (gradients, moments) hardly counts (docs/numerics.md). A device is allowed that answer times the ratio of its own
//! roundings to this one, times a margin.
//!
//! The ratio: a dither has a variance of 1/6 of the squared spacing on average, a rounding to nearest 1/12. In bf16 the
//! device reads the same dithered weights and rounds about six values to nearest on the way through a product, three
//! forward (operand, result, residual) and three backward: (1/6 + 6/12) / (1/6) = 2^2. In fp32 it rounds two operands
//! of each product forward and two backward, to TF32, whose spacing is 1/8 of bf16's: (4/12) / (1/6) / 8^2 = 0.18^2.
//! In the simulator (2026-11-25) the final states of both records came to 1.5 to 2.1 and to 0.12 to 0.19.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use super::{Figure, Gap, Plan, Recorded, Trace, run};
use crate::backend::cpu::Cpu;
use crate::backend::gpu::Precision;
use crate::error::Result;
use crate::ops::{StateMode, TeacherForm};

/// The figures of a step that depend on the device's arithmetic and that every step has.
const FIGURES: [&str; 6] = [
    "loss_tr",
    "loss_kl",
    "grad_norm",
    "dist_student_teacher",
    "dist_student_initial",
    "dist_teacher_initial",
];

/// The first steps are judged by themselves too: an error there has no history that could excuse it.
const FIRST: usize = 5;

/// Runs that a response is the root mean square of; their seeds are none that a device takes.
const SEEDS: Range<u64> = 2..6;

/// Over the ratio of roundings: a figure is one number a step, and over five steps one draw of noise is up to 2.6
/// times another's root mean square (seen: `loss_kl`, whose floor grows with the square of the rounding).
const FIGURE_MARGIN: f64 = 4.0;

/// Over the ratio of roundings: thousands of weights average a draw of noise out.
const STATE_MARGIN: f64 = 2.0;

/// A deviation in two parts, relative: of a figure over the first steps and over all, of a final state in its values
/// and in their change since the start.
pub type Parts = [f64; 2];

/// Response of a record to weights that are dithered to bf16: the deviations of the CPU backend's compact state.
#[derive(Debug, Clone, PartialEq)]
pub struct Response(BTreeMap<String, Parts>);

/// One line of the table: deviations and what is allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// A figure of the log, or a group of the final state.
    pub what: String,
    /// True for a metric, whose parts are the first steps and all steps; else the parts are values and change.
    pub figure: bool,
    /// The deviation that was measured.
    pub deviation: Parts,
    /// The deviation that is allowed.
    pub allowed: Parts,
}

impl Row {
    /// Tells whether a deviation is more than is allowed, or no number.
    pub fn failed(&self) -> bool {
        !self.deviation.iter().zip(&self.allowed).all(|(got, allowed)| got <= allowed)
    }
}

/// Returns how a device keeps its state in `precision`: fp32 exactly, bf16 compactly.
pub fn plan(precision: Precision) -> Plan {
    let mode = match precision {
        Precision::Fp32 => StateMode::Exact,
        Precision::Bf16 => StateMode::Compact,
    };
    Plan { mode, teacher: TeacherForm::Drift, seed: 1 }
}

/// Returns the size of a device's roundings over that of a bf16 dither of the weights alone.
fn ratio(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => 2f64.sqrt() / 8.0,
        Precision::Bf16 => 2.0,
    }
}

impl Response {
    /// Repeats a record on the CPU in the compact state, once a seed.
    pub fn measure(case: &Recorded) -> Result<Self> {
        let mut sums: BTreeMap<String, Parts> = BTreeMap::new();
        let count = SEEDS.count() as f64;
        for seed in SEEDS {
            let plan = Plan { seed, ..plan(Precision::Bf16) };
            let trace = run(&Cpu::<f32>::new(), case, plan)?;
            for (name, parts) in deviations(case, &trace)? {
                let sum = sums.entry(name).or_default();
                sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part * part / count);
            }
        }
        Ok(Self(sums.into_iter().map(|(name, sum)| (name, sum.map(f64::sqrt))).collect()))
    }

    /// Holds what a device made of the record to what it may.
    pub fn judge(&self, case: &Recorded, precision: Precision, trace: &Trace) -> Result<Vec<Row>> {
        let ratio = ratio(precision);
        let rows = deviations(case, trace)?.into_iter().map(|(what, deviation)| {
            let figure = FIGURES.contains(&what.as_str());
            let margin = if figure { FIGURE_MARGIN } else { STATE_MARGIN };
            // What the CPU's run lacks has no response, and nothing is allowed.
            let response = self.0.get(&what).copied().unwrap_or_default();
            Row { figure, deviation, allowed: response.map(|part| margin * ratio * part), what }
        });
        Ok(rows.collect())
    }
}

/// Measures every figure and every group of the final state, figures first.
fn deviations(case: &Recorded, trace: &Trace) -> Result<Vec<(String, Parts)>> {
    let mut all: Vec<(String, Parts)> = FIGURES
        .iter()
        .map(|name| {
            let over = |steps: Range<usize>| relative(&trace.figures, name, steps);
            (name.to_string(), [over(0..FIRST), over(0..case.steps())])
        })
        .collect();
    let gaps = case.gaps(&|key| trace.tensor(key))?;
    all.extend(gaps.into_iter().map(|(group, Gap { whole, change })| (group, [whole, change])));
    Ok(all)
}

/// Returns the root mean square of a figure's error over some steps, over that of the recorded figure.
fn relative(figures: &[Figure], name: &str, steps: Range<usize>) -> f64 {
    let among = || figures.iter().filter(|f| f.name == name && steps.contains(&f.step));
    let off: f64 = among().map(|f| (f.got - f.want).powi(2)).sum();
    let size: f64 = among().map(|f| f.want.powi(2)).sum();
    (off / size).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failed(rows: &[Row]) -> Vec<&str> {
        rows.iter().filter(|row| row.failed()).map(|row| row.what.as_str()).collect()
    }

    /// The CPU stands in for a device: exact state for fp32, compact for bf16.
    fn rows(case: &Recorded, response: &Response, precision: Precision) -> Vec<Row> {
        let trace = run(&Cpu::<f32>::new(), case, plan(precision)).unwrap();
        response.judge(case, precision, &trace).unwrap()
    }

    #[test]
    fn wrong_numbers_and_wrong_losses_are_found_in_both_precisions() {
        let cases = || Recorded::embedded().unwrap();
        for at in 0..cases().len() {
            let response = Response::measure(&cases()[at]).unwrap();
            for precision in [Precision::Fp32, Precision::Bf16] {
                let right = rows(&cases()[at], &response, precision);
                assert_eq!(failed(&right), [""; 0], "{} {precision:?}", cases()[at].name);
                let args = &cases()[at].args;
                let times = |key: &'static str, factor: f64| {
                    (key, json!(args[key].as_f64().unwrap() * factor))
                };
                let penalty = if args["penalty"] == "kl" { "qkl" } else { "kl" };
                for (key, value) in [
                    times("delta", 1.03),
                    times("damp", 1.1),
                    ("loss", json!("nll")),
                    ("penalty", json!(penalty)),
                ] {
                    let mut wrong = cases().swap_remove(at);
                    wrong.args[key] = value;
                    let found = rows(&wrong, &response, precision);
                    // Half the variance is KL to second order: where the student stays near its teacher, as in the
                    // SGD record, bf16 cannot tell the two apart.
                    let same = penalty == "kl" && precision == Precision::Bf16;
                    let what = format!("{} {precision:?}: {key}", wrong.name);
                    assert!(!failed(&found).is_empty() || key == "penalty" && same, "{what}");
                }
            }
        }
    }

    #[test]
    fn a_deviation_that_is_no_number_fails() {
        let row = |deviation| Row { what: "x".into(), figure: true, deviation, allowed: [1.0; 2] };
        assert!(row([0.0, f64::NAN]).failed());
        assert!(row([1.5, 0.0]).failed());
        assert!(!row([1.0, 0.0]).failed());
    }
}

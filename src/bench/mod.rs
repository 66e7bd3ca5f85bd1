//! Kernels and whole steps beside what the device could do: what `nepenthe bench` runs.
//!
//! A family is one file: it makes operands of random numbers for the shapes of a [`Preset`], runs the op through the
//! same interface as training, and hands back [`Measurement`]s. Roofs are measured first, in the same process.

mod attention;
pub mod floors;
mod fused;
mod gemm;
mod generate;
mod head;
mod lab;
pub mod predict;
mod preset;
mod rival;
mod roof;
mod rows;
mod step;
mod update;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

pub use lab::Lab;
pub use preset::{MODELS, Preset};

use crate::backend::gpu::Precision;
use crate::error::{Error, Kind, Result};

/// One line of results; a rate is `null` where the thing does not exist.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// The family.
    pub kind: &'static str,
    /// Model and op.
    pub name: String,
    /// The op's sizes, in the order that docs/bench.md gives for its family.
    pub shape: String,
    /// Number format of the op's operands.
    pub dtype: &'static str,
    /// Median of the repetitions, microseconds.
    pub median_us: f64,
    /// Work per second.
    pub rate: f64,
    /// The unit of every rate here.
    pub unit: &'static str,
    /// The rate at which the op's floor would be met.
    pub roof: Option<f64>,
    /// The rate over the roof.
    pub roof_share: Option<f64>,
    /// Name of the competing library, if any.
    pub rival: Option<&'static str>,
    /// The rival's rate, measured beside ours on the same operands.
    pub rival_rate: Option<f64>,
    /// The rate that an H100 is predicted to reach: [`predict`], in bf16.
    pub predicted: Option<f64>,
    /// Where and what this was.
    #[serde(flatten)]
    pub origin: Origin,
    /// Memory, of whole steps.
    #[serde(flatten)]
    pub memory: Option<Memory>,
}

/// Where, when and of which source a measurement is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The device's name.
    pub device: String,
    /// Its driver.
    pub driver: String,
    /// The day, UTC.
    pub date: String,
    /// The commit that this binary was built from.
    pub commit: &'static str,
}

impl Origin {
    /// Describes a measurement of today by this binary.
    pub fn new(device: &str, driver: &str) -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Self {
            device: device.to_owned(),
            driver: driver.to_owned(),
            date: date(seconds / 86400),
            commit: env!("NEPENTHE_COMMIT"),
        }
    }
}

/// The memory of a whole step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Device memory allocated by the run, in bytes; nothing is freed before the end.
    pub peak_bytes: u64,
    /// Device memory according to the plan, in bytes.
    pub planned_bytes: u64,
}

/// Peak rates of the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofs {
    /// Floating-point operations of a matrix product, per second.
    pub flops: f64,
    /// Bytes read and written, per second.
    pub bytes: f64,
}

/// A family of ops and the function that measures it at the shapes of a preset.
pub type Family = (&'static str, fn(&Lab, &Preset) -> Result<Vec<Measurement>>);

/// The name of the roofs themselves, which every run measures first.
pub const ROOF: &str = "roof";

/// All families that are measured for each model.
pub const FAMILIES: &[Family] = &[
    ("gemm", gemm::run),
    ("attention", attention::run),
    ("norm", rows::norm),
    ("rope", rows::rope),
    ("swiglu", rows::swiglu),
    ("embed", rows::embed),
    ("head", head::run),
    ("update", update::run),
    ("generate", generate::run),
    ("step", step::run),
];

/// Event of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// A family begins at the shapes of a model.
    Begins(&'static str, &'a str),
    /// Something was measured.
    Measured(&'a Measurement),
    /// The device's memory does not hold a family at the shapes of a model.
    LeftOut(&'static str, &'a str, Error),
}

/// Measures the roofs, and then each family (all, or the one named by `only`) for each preset.
///
/// Errors: those of the device, but for memory, which leaves a family out; those of `tell`.
pub fn run(
    lab: &mut Lab,
    presets: &[Preset],
    only: Option<&str>,
    tell: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    let wanted = |family: &str| only.is_none_or(|only| only == family);
    let Some(first) = presets.first() else { return Ok(()) };
    tell(Event::Begins(ROOF, &first.name))?;
    let (roofs, lines) = roof::measure(lab, first)?;
    lab.roofs = roofs;
    if wanted(ROOF) {
        lines.iter().try_for_each(|line| tell(Event::Measured(line)))?;
    }
    for preset in presets {
        let predicted = match lab.precision() {
            Precision::Bf16 => predict::predict(preset),
            Precision::Fp32 => Vec::new(),
        };
        let with = |line: &Measurement| Measurement {
            predicted: predicted
                .iter()
                .find(|p| (p.kind, &p.name) == (line.kind, &line.name))
                .map(|p| line.rate * line.median_us / 1e6 / p.seconds),
            ..line.clone()
        };
        for (family, measure) in FAMILIES.iter().filter(|(family, _)| wanted(family)) {
            tell(Event::Begins(family, &preset.name))?;
            match measure(lab, preset) {
                Ok(lines) => {
                    lines.iter().try_for_each(|line| tell(Event::Measured(&with(line))))?;
                }
                Err(error) if error.kind() == Kind::Memory => {
                    tell(Event::LeftOut(family, &preset.name, error))?;
                }
                Err(error) => return Err(error.at(format!("bench {family}, {}", &preset.name))),
            }
        }
    }
    Ok(())
}

/// Returns the middle of `values`, the upper one of two; 0 for none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Writes the day that is `days` after 1970-01-01.
///
/// Source: Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
fn date(days: u64) -> String {
    // Years begin in March here, so that the leap day is the last one; eras are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, late) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 3.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn date_knows_leap_years() {
        assert_eq!(
            [0, 59, 11_016, 11_017].map(date),
            ["1970-01-01", "1970-03-01", "2000-02-29", "2000-03-01"]
        );
        assert_eq!(date(20_782), "2026-11-25");
    }
}

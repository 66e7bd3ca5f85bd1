//! `bench`.

use clap::builder::{PossibleValue, PossibleValuesParser};

use super::engine::{DeviceArgs, Engine};
use super::output::{Output, note, table};
use crate::backend::gpu::probe;
use crate::bench::{self, Event, FAMILIES, Lab, MODELS, Measurement, Origin, Preset, ROOF};
use crate::error::{Error, Result};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Only this family
    #[arg(long, value_name = "FAMILY",
        value_parser = PossibleValuesParser::new(FAMILIES.iter().map(|(name, _)| *name).chain([ROOF])))]
    only: Option<String>,
    /// Only the shapes of this model
    #[arg(long, value_name = "NAME",
        value_parser = PossibleValuesParser::new(models()))]
    model: Option<String>,
    /// Repetitions per kernel; full steps run a tenth as often
    #[arg(long, value_name = "N", default_value_t = 50)]
    repeat: usize,
}

/// The models, and one small enough for the simulator.
fn models() -> impl Iterator<Item = PossibleValue> {
    MODELS.into_iter().map(PossibleValue::new).chain([PossibleValue::new("tiny").hide(true)])
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let (engine, problem) = args.device.open_or_why()?;
    let Engine::Gpu(driver, precision, name) = engine else {
        // No failure: a script that measures where it can need not ask first.
        let why = problem.as_ref().map_or("--device cpu", Error::message);
        note(&format!("skipped: no CUDA device: {why}"));
        return Ok(());
    };
    let simulated = name != "cuda";
    let origin = if simulated {
        Origin::new("simulated", "simulator")
    } else {
        Origin::new(&driver.identity().name, &driver_version())
    };
    let names: Vec<&str> = match (&args.model, simulated) {
        (Some(name), _) => vec![name],
        // The simulator needs hours for a real model's shapes.
        (None, true) => vec!["tiny"],
        (None, false) => MODELS.to_vec(),
    };
    let presets = names.into_iter().map(Preset::new).collect::<Result<Vec<_>>>()?;
    let mut lab = Lab::new(driver, precision, args.repeat, origin);
    if let Some(why) = lab.why_no_rival() {
        note(&format!("no rival: {why}"));
    }
    let mut lines: Vec<Measurement> = Vec::new();
    bench::run(&mut lab, &presets, args.only.as_deref(), &mut |event| {
        match event {
            Event::Begins(family, model) => note(&format!("{family}, {model}")),
            Event::LeftOut(family, model, error) => {
                note(&format!("{family}, {model}: left out: {error}"));
            }
            Event::Measured(line) => {
                out.line(|| serde_json::to_value(line).unwrap_or_default())?;
                lines.push(line.clone());
            }
        }
        Ok(())
    })?;
    out.text(|| text(&lines))
}

/// Names the driver: its own version where the system tells, and the CUDA version that it speaks.
fn driver_version() -> String {
    let cuda = probe::probe().version.map_or("CUDA".to_owned(), |v| format!("CUDA {v}"));
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    match module_version(&text) {
        Some(own) => format!("{own}, {cuda}"),
        None => cuda,
    }
}

/// Finds the first word of the form 1.2 or 1.2.3.
fn module_version(text: &str) -> Option<&str> {
    let version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(version)
}

/// Lays measurements out, under what is the same for all of them.
fn text(lines: &[Measurement]) -> String {
    let Some(first) = lines.first() else { return String::new() };
    let head = ["name", "kind", "shape", "dtype", "median us", "rate", "unit", "roof", "share"];
    let head = head.into_iter().chain(["rival", "its rate", "predicted"]);
    let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
    let rate = |rate: f64| format!("{rate:.1}");
    let maybe = |x: Option<f64>| x.map_or("-".to_owned(), rate);
    let mut memory = String::new();
    for line in lines {
        rows.push(vec![
            line.name.clone(),
            line.kind.to_owned(),
            line.shape.clone(),
            line.dtype.to_owned(),
            rate(line.median_us),
            rate(line.rate),
            line.unit.to_owned(),
            maybe(line.roof),
            line.roof_share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share)),
            line.rival.unwrap_or("-").to_owned(),
            maybe(line.rival_rate),
            maybe(line.predicted),
        ]);
        if let Some(of) = line.memory {
            let [peak, planned] =
                [of.peak_bytes, of.planned_bytes].map(crate::report::units::bytes);
            memory.push_str(&format!("{} step: {peak} in buffers, {planned} planned\n", line.name));
        }
    }
    let origin = &first.origin;
    format!(
        "{}, driver {}, {}, commit {}\n\n{}{memory}",
        origin.device,
        origin.driver,
        origin.date,
        origin.commit,
        table(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_version_is_found_in_both_of_its_forms() {
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build";
        assert_eq!(module_version(open), Some("580.65.06"));
        assert_eq!(
            module_version("Kernel Module 535.54 Wed\nGCC version: gcc 12.3.0"),
            Some("535.54")
        );
        assert_eq!(module_version(""), None);
    }
}

//! `probe`.

use std::path::PathBuf;

use serde_json::Value;

use super::engine::{DeviceArgs, Job, compute};
use super::output::Output;
use crate::error::Result;
use crate::model::{Level, Saving};
use crate::ops::Ops;
use crate::run::precision::{Precision, default_out};

/// What is looked at.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Probe {
    /// Replay a run in exact and in compact state side by side, and plot how far they come apart
    Precision(PrecisionArgs),
}

/// Options of `probe precision`.
#[derive(Debug, clap::Args)]
pub(super) struct PrecisionArgs {
    /// The run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The state modes that are compared with exact state
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "compact")]
    states: Vec<String>,
    /// How many steps [default: those of the run's recipe]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Compare after every so many steps, and after the last
    #[arg(long, value_name = "N", default_value_t = 1)]
    every: u64,
    /// The folder to write to [default: RUN/probe]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Job for Precision {
    type Out = Value;

    fn run<O: Ops>(self, ops: O, _: Option<&crate::run::plan::Plan>) -> Result<Value> {
        self.replay(&ops, Saving::same(Level::All))
    }
}

pub(super) fn run(probe: &Probe, out: &Output) -> Result<()> {
    match probe {
        Probe::Precision(args) => precision(args, out),
    }
}

fn precision(args: &PrecisionArgs, out: &Output) -> Result<()> {
    let engine = args.device.open()?;
    let folder = args.out.clone().unwrap_or_else(|| default_out(&args.run));
    let job = Precision {
        run: args.run.clone(),
        states: args.states.clone(),
        steps: args.steps,
        every: args.every,
        out: folder.clone(),
    };
    let done = compute(&engine, job)?;
    out.result(&done, || {
        let mut text = String::new();
        for line in done["last"].as_array().into_iter().flatten() {
            let percent = |key: &str| match line[key].as_f64() {
                Some(share) => format!("{:.2} %", 100.0 * share),
                None => "none".to_owned(),
            };
            text += &format!(
                "{} ({} bytes a parameter) after {} steps: motion off by {}, drift off by {}\n",
                line["state"].as_str().unwrap_or_default(),
                line["bytes_per_parameter"],
                line["steps"],
                percent("motion_error"),
                percent("drift_error")
            );
        }
        text + &format!("figures: {}\n", folder.display())
    })
}

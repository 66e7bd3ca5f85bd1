//! `probe`.

use std::path::PathBuf;

use super::engine::{DeviceArgs, Job, compute};
use super::output::{Output, table};
use crate::error::Result;
use crate::model::{Level, Saving};
use crate::ops::Ops;
use crate::probe::curvature::{Curvature, CurvatureSummary, Update};
use crate::probe::default_out;
use crate::probe::gradients::{Gradients, GradientsSummary};
use crate::probe::ngd::{Ngd, NgdSummary};
use crate::probe::precision::{Precision, PrecisionSummary};
use crate::probe::solve::Limits;

/// The probes.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Probe {
    /// Replay a run in exact state and in smaller ones, and plot how far they diverge
    Precision(PrecisionArgs),
    /// Compare a run's drift with the damped natural-gradient step, and follow slow natural-gradient descent
    Ngd(NgdArgs),
    /// Show how each loss distributes its gradient over forget tokens by probability, over a run
    Gradients(GradientsArgs),
    /// Measure the curvature along the updates of several runs, and by block
    Curvature(CurvatureArgs),
}

/// Options of `probe curvature`.
#[derive(Debug, clap::Args)]
pub(super) struct CurvatureArgs {
    /// Run folders that started from the same model; the texts of the first are used
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Steps whose texts the results are averaged over
    #[arg(long, value_name = "N", default_value_t = 4)]
    draws: u64,
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Options of `probe ngd`.
#[derive(Debug, clap::Args)]
pub(super) struct NgdArgs {
    /// The run folder; its recipe must have a penalty and damping
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Steps after which to compare
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,5,20")]
    at: Vec<u64>,
    /// Steps whose texts gradient and Fisher matrix are averaged over
    #[arg(long, value_name = "N", default_value_t = 4)]
    draws: u64,
    /// Take at most so many micro-batches of each step's penalty texts [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    retain_batches: Option<u64>,
    /// Relative residual that ends a solve
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    tolerance: f64,
    /// Maximum number of products per solve
    #[arg(long, value_name = "N", default_value_t = 50)]
    iterations: usize,
    /// Products used to estimate the diagonal preconditioner
    #[arg(long, value_name = "N", default_value_t = 0)]
    diagonal: u64,
    /// Lanczos iterations for the spectrum of the Fisher matrix; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0)]
    lanczos: usize,
    /// Also follow slow natural-gradient descent of these losses
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    losses: Vec<String>,
    /// Steps to follow them for
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: u64,
    /// Store the solution of each comparison in --out (8 bytes per parameter), and continue from an existing one
    #[arg(long)]
    resume: bool,
    /// The folder to write to [default: RUN/probe]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Options of `probe gradients`.
#[derive(Debug, clap::Args)]
pub(super) struct GradientsArgs {
    /// The run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Steps between samples
    #[arg(long, value_name = "N", default_value_t = 5)]
    every: u64,
    /// Steps [default: those of the run's recipe]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Steps whose forget texts are sampled
    #[arg(long, value_name = "N", default_value_t = 2)]
    draws: u64,
    /// The folder to write to [default: RUN/probe]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Job for Ngd {
    type Out = NgdSummary;

    fn run<O: Ops>(self, ops: O, _: Option<&crate::run::plan::Plan>) -> Result<NgdSummary> {
        self.probe(&ops)
    }
}

impl Job for Curvature {
    type Out = CurvatureSummary;

    fn run<O: Ops>(self, ops: O, _: Option<&crate::run::plan::Plan>) -> Result<CurvatureSummary> {
        self.probe(&ops)
    }
}

impl Job for Gradients {
    type Out = GradientsSummary;

    fn run<O: Ops>(self, ops: O, _: Option<&crate::run::plan::Plan>) -> Result<GradientsSummary> {
        self.probe(&ops)
    }
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
    /// Steps [default: those of the run's recipe]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Steps between comparisons; the last step is always compared
    #[arg(long, value_name = "N", default_value_t = 1)]
    every: u64,
    /// The folder to write to [default: RUN/probe]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Job for Precision {
    type Out = PrecisionSummary;

    fn run<O: Ops>(self, ops: O, _: Option<&crate::run::plan::Plan>) -> Result<PrecisionSummary> {
        self.replay(&ops, Saving::same(Level::All))
    }
}

/// Writes a number of a table; "-" where it is not finite.
fn number(x: f64) -> String {
    if x.is_finite() { format!("{x:.4e}") } else { "-".to_owned() }
}

pub(super) fn run(probe: &Probe, out: &Output) -> Result<()> {
    match probe {
        Probe::Precision(args) => precision(args, out),
        Probe::Ngd(args) => ngd(args, out),
        Probe::Gradients(args) => gradients(args, out),
        Probe::Curvature(args) => curvature(args, out),
    }
}

fn ngd(args: &NgdArgs, out: &Output) -> Result<()> {
    let engine = args.device.open()?;
    let folder = args.out.clone().unwrap_or_else(|| default_out(&args.run));
    let job = Ngd {
        run: args.run.clone(),
        at: args.at.clone(),
        draws: args.draws,
        retain_batches: args.retain_batches.map_or(usize::MAX, |n| n as usize),
        limits: Limits { tolerance: args.tolerance, iterations: args.iterations },
        diagonal: args.diagonal,
        lanczos: args.lanczos,
        losses: args.losses.clone(),
        steps: args.steps,
        resume: args.resume,
        out: folder.clone(),
    };
    let done = compute(&engine, job)?;
    out.result(&done, || {
        let mut head =
            vec!["steps", "cosine", "distance", "|drift|", "|step|", "products", "residual"];
        let mut rows = vec![head.drain(..).map(str::to_owned).collect::<Vec<_>>()];
        for line in &done.ngd {
            let residuals = &line.residuals;
            let last = residuals.last().copied().unwrap_or(f64::NAN);
            rows.push(vec![
                line.steps.to_string(),
                number(line.cosine),
                number(line.distance),
                number(line.drift),
                number(line.step),
                residuals.len().saturating_sub(1).to_string(),
                format!("{last:.1e}"),
            ]);
        }
        format!("{}files: {}\n", table(&rows), folder.display())
    })
}

fn curvature(args: &CurvatureArgs, out: &Output) -> Result<()> {
    let engine = args.device.open()?;
    let job = Curvature { runs: args.runs.clone(), draws: args.draws, out: args.out.clone() };
    let done = compute(&engine, job)?;
    out.result(&done, || {
        let head = ["run", "d'Fd / d'd", "|d|", "KL", "forget NLL", "retain NLL"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for line in &done.updates {
            let Update { curvature, length, kl, forget_nll, retain_nll, .. } = *line;
            let numbers = [curvature, length, kl, forget_nll, retain_nll].map(number);
            rows.push(std::iter::once(line.run.clone()).chain(numbers).collect());
        }
        format!("{}files: {}\n", table(&rows), args.out.display())
    })
}

fn gradients(args: &GradientsArgs, out: &Output) -> Result<()> {
    let engine = args.device.open()?;
    let folder = args.out.clone().unwrap_or_else(|| default_out(&args.run));
    let job = Gradients {
        run: args.run.clone(),
        every: args.every,
        steps: args.steps,
        draws: args.draws,
        out: folder.clone(),
    };
    let done = compute(&engine, job)?;
    out.result(&done, || {
        let head = ["loss", "mean weight", "largest", "mean row", "flag"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for line in &done.last {
            let numbers = [line.weight, line.largest, line.row].map(|x| format!("{x:.3e}"));
            let flag = line.flag.unwrap_or("-").to_owned();
            let loss = std::iter::once(line.loss.clone());
            rows.push(loss.chain(numbers).chain([flag]).collect());
        }
        format!("{}files: {}\n", table(&rows), folder.display())
    })
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
        for line in &done.last {
            let percent = |share: Option<f64>| match share {
                Some(share) => format!("{:.2} %", 100.0 * share),
                None => "none".to_owned(),
            };
            text += &format!(
                "{} ({} bytes a parameter) after {} steps: motion off by {}, drift off by {}\n",
                line.state,
                format_args!("{:?}", line.bytes_per_parameter),
                line.steps,
                percent(Some(line.motion_error)),
                percent(line.drift_error)
            );
        }
        text + &format!("figures: {}\n", folder.display())
    })
}

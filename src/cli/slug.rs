//! `slug`.

use std::path::PathBuf;

use super::engine::{self, DeviceArgs, Engine, Job};
use super::output::{Output, warn_rounded};
use super::unlearn::Sources;
use crate::edit::{Slug, SlugSummary};
use crate::error::Result;
use crate::eval::likelihood::NLL;
use crate::eval::monitored::{FORGET, RETAIN, Texts};
use crate::eval::outcome::Named;
use crate::folder;
use crate::ops::Ops;
use crate::run::Recipe;
use crate::run::checks::check_data;
use crate::run::plan::Plan;

/// Options of `slug`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    sources: Sources,
    /// Allowed rise of the NLL of retain documents, nats per token
    #[arg(long, value_name = "NATS", default_value_t = 0.1)]
    budget: f64,
    /// The NLL of the forget documents that is enough, nats per token [default: as much as the budget allows]
    #[arg(long, value_name = "NATS")]
    forget_nll: Option<f64>,
    /// Step sizes tried per matrix
    #[arg(long, value_name = "N", default_value_t = 10)]
    evaluations: usize,
    /// Matrices tried, of the Pareto front of importance and alignment
    #[arg(long, value_name = "N", default_value_t = 4)]
    candidates: usize,
    /// Documents of each set, the first ones, used for gradients and metrics
    #[arg(long, value_name = "N", default_value_t = 64)]
    documents: usize,
    /// The model folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A recipe; only model, data and batches are read
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// One setting, applied on top of the recipe; can be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

struct Search<'a> {
    slug: Slug,
    out: &'a PathBuf,
}

impl Job for Search<'_> {
    type Out = SlugSummary;

    fn plan(&self, engine: &Engine) -> Result<Option<Plan>> {
        let mut recipe = self.slug.plain();
        // A second gradient is kept beside the first one, as where they are combined.
        recipe.method.combine = "min_norm".into();
        recipe.method.penalty = "nll".into();
        engine.plan(&folder::config(&recipe.model.path)?, &recipe)
    }

    fn run<O: Ops>(self, ops: O, _plan: Option<&Plan>) -> Result<SlugSummary> {
        self.slug.write(&ops, self.out)
    }
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let mut recipe = Recipe::assemble(None, args.config.as_deref(), &args.set)?;
    args.sources.lay(&mut recipe, true)?;
    check_data("data.forget", &recipe.data.forget)?;
    check_data("data.retain", &recipe.data.retain)?;
    let engine = args.device.open()?;
    let slug = Slug {
        recipe,
        budget: args.budget,
        forget_nll: args.forget_nll.unwrap_or(f64::INFINITY),
        evaluations: args.evaluations,
        candidates: args.candidates,
        documents: args.documents,
    };
    let done = engine::compute(&engine, Search { slug, out: &args.out })?;
    warn_rounded(done.change_saved);
    out.result(&done, || {
        let nll = |at: &Named<f64>, texts: Texts| {
            at.get(&NLL.key(texts.key)).copied().unwrap_or(f64::NAN)
        };
        format!(
            "{}: {} moved by {:.4e} times its gradient, {} steps tried\n\
             NLL of forget documents {:.4} to {:.4}, of retain documents {:.4} to {:.4}\n",
            args.out.display(),
            done.matrix,
            done.step,
            done.trials.len(),
            nll(&done.before, FORGET),
            nll(&done.after, FORGET),
            nll(&done.before, RETAIN),
            nll(&done.after, RETAIN),
        )
    })
}

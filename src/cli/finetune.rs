//! `finetune`.

use std::path::PathBuf;

use super::output::Output;
use super::unlearn::{RunArgs, lay, wanted};
use crate::error::Result;

/// Options of `finetune`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder to start from
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The training text: .jsonl, .json or .txt
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    /// Settings to start from
    #[arg(long, value_name = "NAME", default_value = "finetune")]
    preset: String,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let mut recipe = args.run.recipe(Some(&args.preset))?;
    lay(&mut recipe.model.path, &args.model);
    lay(&mut recipe.data.forget, &args.data);
    wanted("--model", "model.path", &recipe.model.path)?;
    wanted("--data", "data.forget", &recipe.data.forget)?;
    args.run.start(recipe, out)
}

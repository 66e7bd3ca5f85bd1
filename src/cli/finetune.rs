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
    /// Settings to start from [default: finetune]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let mut recipe = args.run.recipe(args.preset.as_deref(), Some("finetune"))?;
    lay(&mut recipe.model.path, &args.model);
    lay(&mut recipe.data.forget, &args.data);
    wanted("--model", "model.path", &recipe.model.path)
        .and_then(|()| wanted("--data", "data.forget", &recipe.data.forget))
        .map_err(|e| args.run.nothing_to_resume(e))?;
    args.run.start(recipe, out)
}

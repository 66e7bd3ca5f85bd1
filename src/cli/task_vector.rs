//! `task-vector`.

use std::path::PathBuf;

use super::output::Output;
use crate::edit::TaskVector;
use crate::error::Result;
use crate::folder::export::{Save, SaveDtype};

/// Options of `task-vector`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder to edit
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A model fine-tuned on the forget set
    #[arg(long, value_name = "DIR")]
    finetuned: PathBuf,
    /// The model it was finetuned from [default: --model]
    #[arg(long, value_name = "DIR")]
    pretrained: Option<PathBuf>,
    /// Factor of the difference that is subtracted
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0, allow_negative_numbers = true)]
    factor: f64,
    /// Write fp32 instead of the dtypes of --model
    #[arg(long)]
    f32: bool,
    /// The model folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let vector = TaskVector {
        model: &args.model,
        finetuned: &args.finetuned,
        pretrained: args.pretrained.as_ref().unwrap_or(&args.model),
        factor: args.factor,
        save: Save {
            dtype: if args.f32 { SaveDtype::F32 } else { SaveDtype::Source },
            ..Save::default()
        },
    };
    let done = vector.write(&args.out)?;
    out.result(&done, || {
        format!(
            "{}: {} in {} tensors, factor {}; the vector's norm is {:.6} beside the model's {:.6}\n",
            args.out.display(),
            TaskVector::FORMULA,
            done.tensors,
            args.factor,
            done.vector_norm,
            done.model_norm
        )
    })
}

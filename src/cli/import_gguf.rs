//! `import-gguf`.

use std::path::PathBuf;

use super::engine;
use super::folder::check_out;
use super::output::Output;
use crate::error::{Error, Result};

/// Options of `import-gguf`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The GGUF file: Llama architecture; F32, F16, BF16, Q8_0, Q4_0 or Q4_1
    #[arg(value_name = "IN.gguf")]
    file: PathBuf,
    /// The model folder to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    if !args.file.is_file() {
        return Err(Error::model(format!("{}: no such file", args.file.display()))
            .hint("the first argument is a GGUF file, the second the folder to write"));
    }
    check_out(&args.out, false)?;
    let written = engine::import_gguf(&args.file, &args.out)?;
    out.result(&written, || format!("wrote {}", args.out.display()))
}

//! `import-gguf`.

use std::path::PathBuf;

use serde_json::json;

use super::output::{Output, bytes};
use crate::error::Result;
use crate::run::import::import;

/// Options of `import-gguf`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The GGUF file: architecture llama, qwen2 or qwen3; F32, F16, BF16, Q8_0, Q4_0 or Q4_1
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// The model folder to write
    #[arg(value_name = "OUT_DIR")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let done = import(&args.file, &args.out)?;
    let value = json!({
        "out": args.out.display().to_string(),
        "architecture": done.architecture,
        "parameters": done.parameters,
        "layers": done.layers,
        "tensors": done.tensors,
        "tied": done.tied,
        "formats": done.formats,
        "tokens": done.tokens,
        "pre_tokenizer": done.pre_tokenizer,
        "bytes": done.bytes,
        "name": done.name,
        "license": done.license,
    });
    out.result(&value, || {
        let formats: Vec<String> =
            done.formats.iter().map(|(format, n)| format!("{n} {format}")).collect();
        let text = |text: &Option<String>| match text {
            Some(text) => text.escape_debug().to_string(),
            None => "not stated".into(),
        };
        format!(
            "{}: {} with {} layers, {} parameters in {} tensors ({}) from {}\n\
             tokenizer: {} tokens, {}\nname: {}\nlicense: {}\n",
            args.out.display(),
            done.architecture,
            done.layers,
            done.parameters,
            done.tensors,
            bytes(done.bytes),
            formats.join(", "),
            done.tokens,
            done.pre_tokenizer,
            text(&done.name),
            text(&done.license),
        )
    })
}

//! `import-gguf`.

use std::path::PathBuf;

use serde_json::json;

use super::output::Output;
use crate::error::Result;
use crate::folder::import::import;
use crate::io::safetensors::Dtype;
use crate::report::units::bytes;

/// Options of `import-gguf`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The GGUF file: architecture llama, qwen2 or qwen3; F32, F16, BF16, Q8_0, Q4_0 or Q4_1
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// The model folder to write
    #[arg(value_name = "OUT_DIR")]
    out: PathBuf,
    /// The dtype of the weights written; `auto` is that of the file's matrices, bf16 for quantised ones
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    dtype: Numbers,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Numbers {
    Auto,
    F32,
    F16,
    Bf16,
}

impl Numbers {
    fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::Bf16),
        }
    }
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let done = import(&args.file, &args.out, args.dtype.dtype())?;
    let value = json!({
        "out": args.out.display().to_string(),
        "architecture": done.architecture,
        "parameters": done.parameters,
        "layers": done.layers,
        "tensors": done.tensors,
        "tied": done.tied,
        "dtype": done.dtype.to_string(),
        "rounded": done.rounded,
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
        let rounded = match done.rounded {
            0 => String::new(),
            n => format!(", which rounded {n} of the parameters (--dtype f32 keeps them)"),
        };
        format!(
            "{}: {} with {} layers, {} parameters in {} tensors ({}) from {}\n\
             dtype: {}{rounded}\n\
             tokenizer: {} tokens, {}\nname: {}\nlicense: {}\n",
            args.out.display(),
            done.architecture,
            done.layers,
            done.parameters,
            done.tensors,
            bytes(done.bytes),
            formats.join(", "),
            done.dtype,
            done.tokens,
            done.pre_tokenizer,
            text(&done.name),
            text(&done.license),
        )
    })
}

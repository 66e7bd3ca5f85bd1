//! From a GGUF file to a Hugging Face model folder.
//!
//! All weights get one dtype: that of the file's matrices, with bf16 for quantised ones, or what the caller names. They are
//! converted row by row, so that no more than a few rows are in memory; numbers that the dtype rounds are counted.
//! llama.cpp rotates neighbouring elements of a head, Hugging Face elements half a head apart: for the architecture `llama` converters to GGUF reorder
//! the rows of the query and key matrices, and this is undone here. With D the head width, row b D/2 + a of a head
//! (a < D/2, b < 2) is row 2a + b of the file.

mod config;
mod rope;
mod tokenizer;

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::data::Tokenizer;
use crate::error::{Error, Kind, Result};
use crate::io::atomic;
use crate::io::gguf::{Format, Gguf, Tensor, show};
use crate::io::safetensors::{Dtype, Entry, SINGLE, write_f32_as, write_file};
use crate::model::layout::Part;
use crate::model::{Layout, ModelConfig, Train};
use config::{Keys, ROPE_FREQS};

/// The file that marks a folder as written by [`import`], and says from what.
pub const RECORD: &str = "import.json";

/// All files of such a folder.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    RECORD,
    SINGLE,
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Elements that are converted at a time, unless a row is longer.
const CHUNK: usize = 1 << 16;

/// Summary of an import.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The architecture, in the words of config.json.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of tensors written.
    pub tensors: usize,
    /// True if the head is the embedding matrix.
    pub tied: bool,
    /// The dtype of every tensor written.
    pub dtype: Dtype,
    /// Number of parameters that changed when they were rounded to `dtype`.
    pub rounded: usize,
    /// Number of tensors of the file by number format.
    pub formats: BTreeMap<String, usize>,
    /// Number of tokens.
    pub tokens: usize,
    /// Pre-tokenizer, as `tokenizer.ggml.pre` names it.
    pub pre_tokenizer: String,
    /// Bytes of the weights file.
    pub bytes: u64,
    /// `general.name`, where the file has it.
    pub name: Option<String>,
    /// `general.license`, where the file has it.
    pub license: Option<String>,
}

/// Converts the GGUF file `source` into the model folder `out`, which appears whole or not at all.
///
/// `dtype` is that of the weights written, one of F32, F16 and BF16; without it, that of the matrices in the file: F32 if
/// any is or if F16 and BF16 are mixed, and BF16 for quantised ones. An existing folder is replaced only if it is empty or
/// was written by this function.
///
/// Errors: [`crate::Kind::Config`] for a folder that may not be replaced and a dtype that is not one of the three, [`crate::Kind::Model`] naming the key or
/// tensor for a file that is damaged or describes what this crate does not compute, [`crate::Kind::Io`] if the file
/// system refuses.
pub fn import(source: &Path, out: &Path, dtype: Option<Dtype>) -> Result<Imported> {
    if let Some(other) = dtype.filter(|dtype| config_name(*dtype).is_none()) {
        return Err(Error::config(format!("dtype {other}: wanted F32, F16 or BF16")));
    }
    check_out(out)?;
    let file = Gguf::open(source)?;
    let dtype = dtype.unwrap_or_else(|| own_dtype(&file));
    convert(&file, source, out, dtype).map_err(|e| match e.kind() {
        Kind::Model => e.at(source.display()),
        _ => e,
    })
}

/// Returns the dtype that holds the numbers of all matrices in the file; quantised ones count as bf16.
fn own_dtype(file: &Gguf) -> Dtype {
    let matrices = file.tensors().filter(|tensor| tensor.shape.len() > 1);
    let dtypes = matrices.map(|tensor| match tensor.format {
        Format::F32 => Dtype::F32,
        Format::F16 => Dtype::F16,
        Format::Bf16 | Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => Dtype::Bf16,
    });
    // Neither of two 16-bit formats holds the other's numbers.
    dtypes.reduce(|a, b| if a == b { a } else { Dtype::F32 }).unwrap_or(Dtype::F32)
}

/// Returns the name that config.json has for a dtype of weights.
fn config_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::Bf16 => Some("bfloat16"),
        _ => None,
    }
}

/// Fails where `out` holds anything that an import did not write.
fn check_out(out: &Path) -> Result<()> {
    let wrong = |what: &str| {
        Error::config(format!("{}: {what}", out.display()))
            .hint("name a folder that does not exist yet")
    };
    let list = match std::fs::read_dir(out) {
        Ok(list) => list,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(_) if !out.is_dir() => return Err(wrong("is no folder")),
        Err(e) => return Err(Error::io("list", out, e)),
    };
    let mut names = Vec::new();
    for item in list {
        names.push(item.map_err(|e| Error::io("list", out, e))?.file_name());
    }
    let ours = || {
        let record = std::fs::read(out.join(RECORD)).ok();
        let record = record.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        record.is_some_and(|json| json["written_by"].as_str().is_some_and(|by| by == written_by()))
    };
    match names.iter().find(|name| !FILES.iter().any(|file| *name == file)) {
        _ if names.is_empty() => Ok(()),
        None if ours() => Ok(()),
        None => Err(wrong("exists and was not written by import-gguf")),
        Some(name) => {
            let name = show(&name.to_string_lossy());
            Err(wrong(&format!("exists and holds `{name}`, which import-gguf does not write")))
        }
    }
}

fn written_by() -> &'static str {
    "nepenthe import-gguf"
}

/// A tensor of the model folder and where it comes from.
struct Job<'a> {
    part: Part,
    from: &'a Tensor,
    /// Head width, where the rows of heads are to be reordered.
    reorder: Option<usize>,
}

fn convert(file: &Gguf, source: &Path, out: &Path, dtype: Dtype) -> Result<Imported> {
    let keys = Keys::new(file)?;
    let json = keys.config(config_name(dtype))?;
    let config = ModelConfig::parse(&json.to_string())?;
    let jobs = jobs(file, &config)?;
    let tokenizer = tokenizer::build(&keys, config.vocab, &json["max_position_embeddings"])?;
    let generation = keys.generation()?;
    let entries: Vec<Entry> = jobs
        .iter()
        .map(|job| {
            let (name, shape) = (job.part.name.clone(), job.part.shape.clone());
            Entry { name, dtype, shape }
        })
        .collect();
    let mut formats = BTreeMap::new();
    for tensor in file.tensors() {
        *formats.entry(tensor.format.to_string()).or_insert(0) += 1;
    }
    let text = |key: &str| Ok::<_, Error>(file.text(key)?.map(str::to_owned));
    let mut done = Imported {
        architecture: config.architecture.model_type.to_owned(),
        parameters: jobs.iter().map(|job| job.part.len()).sum(),
        layers: config.layers,
        tensors: jobs.len(),
        tied: config.tied,
        dtype,
        rounded: 0,
        formats,
        tokens: tokenizer.size,
        pre_tokenizer: tokenizer.pre.to_owned(),
        bytes: 0,
        name: text("general.name")?,
        license: text("general.license")?,
    };
    let record = json!({
        "written_by": written_by(),
        "version": env!("CARGO_PKG_VERSION"),
        "source": source.file_name().map(|name| name.to_string_lossy()),
        "gguf_version": file.version(),
        "formats": done.formats,
        "name": done.name,
        "license": done.license,
    });
    atomic::replace_dir(out, |dir| {
        let path = dir.join(SINGLE);
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut next = jobs.iter();
        done.rounded = 0;
        write_file(&path, &entries, &metadata, &mut |_, to| {
            if let Some(job) = next.next() {
                done.rounded += copy(file, job, dtype, &path, to)?;
            }
            Ok(())
        })?;
        done.bytes = std::fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.len();
        let files = [
            ("config.json", &json),
            ("generation_config.json", &generation),
            ("tokenizer_config.json", &tokenizer.config),
            (RECORD, &record),
        ];
        for (name, value) in files {
            write(&dir.join(name), &format!("{value:#}\n"))?;
        }
        write(&dir.join("tokenizer.json"), &tokenizer.tokenizer.to_string())?;
        // What the file says may still be no tokenizer; better to fail here than at the first use.
        Tokenizer::open(dir).map(drop).map_err(|e| {
            let place = format!("{}{}", dir.display(), std::path::MAIN_SEPARATOR);
            Error::model(e.message().replace(&place, ""))
        })
    })?;
    Ok(done)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io("write", path, e))
}

/// Finds the source of every tensor of the model, sorted by name; checks shapes and that nothing is left over.
fn jobs<'a>(file: &'a Gguf, config: &ModelConfig) -> Result<Vec<Job<'a>>> {
    let layout = Layout::new(config, Train::Body);
    let mut used: HashSet<&str> = HashSet::from([ROPE_FREQS]);
    let mut jobs = Vec::new();
    for part in layout.blocks.into_iter().flat_map(|block| block.parts) {
        let name = gguf_name(&part.name)
            .ok_or_else(|| Error::model(format!("{}: has no name in GGUF", part.name)))?;
        let Some(from) = file.tensor(&name) else {
            return Err(Error::model(format!(
                "tensor {name} is missing, wanted shape {:?}",
                part.shape
            ))
            .hint("the file is one shard of several, or not of the architecture that it names"));
        };
        if from.shape != part.shape {
            return Err(Error::model(format!(
                "tensor {name}: shape {:?} in the file, {:?} by its keys",
                from.shape, part.shape
            )));
        }
        let halves = name.ends_with("attn_q.weight")
            || name.ends_with("attn_k.weight")
            || name.ends_with("attn_q.bias")
            || name.ends_with("attn_k.bias");
        let reorder =
            (halves && config.architecture.model_type == "llama").then_some(config.head_width);
        used.insert(&from.name);
        jobs.push(Job { part, from, reorder });
    }
    if let Some(extra) = file.tensors().find(|tensor| !used.contains(tensor.name.as_str())) {
        return Err(Error::model(format!(
            "tensor {}: not in a model of architecture {} with these keys",
            show(&extra.name),
            config.architecture
        ))
        .hint("the file is of a variant that this version does not compute"));
    }
    jobs.sort_by(|a, b| a.part.name.cmp(&b.part.name));
    Ok(jobs)
}

/// Returns the name in GGUF of a tensor of a model folder.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, tail) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{tail}"))
}

/// Writes a tensor as `dtype`; returns how many of its numbers that rounds.
fn copy(
    file: &Gguf,
    job: &Job<'_>,
    dtype: Dtype,
    path: &Path,
    to: &mut dyn Write,
) -> Result<usize> {
    let Job { from, reorder, .. } = job;
    // A bias of heads is one row, but its elements are what the rows of the matrix are.
    if from.shape.len() == 1 {
        let mut values = vec![0.0; from.row()];
        file.read_row(from, 0, &mut values)?;
        if let Some(d) = *reorder {
            values = (0..values.len()).map(|r| values[source_row(r, d)]).collect();
        }
        return put(&values, from, dtype, path, to);
    }
    let row = from.row();
    let mut values = vec![0.0; row * (CHUNK / row).max(1).min(from.rows())];
    let (mut r, mut rounded) = (0, 0);
    while r < from.rows() {
        let mut filled = 0;
        for out in values.chunks_exact_mut(row).take(from.rows() - r) {
            file.read_row(from, reorder.map_or(r, |d| source_row(r, d)), out)?;
            filled += row;
            r += 1;
        }
        rounded += put(&values[..filled], from, dtype, path, to)?;
    }
    Ok(rounded)
}

/// Returns where row `r` of a reordered matrix is in the file, for heads of `d` rows.
fn source_row(r: usize, d: usize) -> usize {
    let (head, within, half) = (r / d, r % d, d / 2);
    head * d + 2 * (within % half) + within / half
}

/// Writes numbers as `dtype`; returns how many of them that rounds.
fn put(
    values: &[f32],
    from: &Tensor,
    dtype: Dtype,
    path: &Path,
    to: &mut dyn Write,
) -> Result<usize> {
    let stored = |x: f32| match dtype {
        Dtype::F16 => half::f16::from_f32(x).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
        _ => x,
    };
    if let Some(x) = values.iter().find(|x| !stored(**x).is_finite()) {
        let error = Error::model(format!(
            "tensor {}: holds {x}, wanted a finite number within {dtype}",
            show(&from.name)
        ));
        return Err(error.hint(if x.is_finite() {
            "--dtype f32 has the range for it"
        } else {
            "the file is damaged; copy or download it again"
        }));
    }
    let rounded = values.iter().filter(|x| stored(**x) != **x).count();
    write_f32_as(dtype, values, to).map_err(|e| Error::io("write", path, e))?;
    Ok(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_row_undoes_the_converters_reordering() {
        let d = 8;
        // The converter reads a head as [2, D/2] and writes it as [D/2, 2].
        let stored: Vec<usize> =
            (0..2 * d).map(|i| (i / d) * d + (i % 2) * d / 2 + (i % d) / 2).collect();
        let back: Vec<usize> = (0..2 * d).map(|r| stored[source_row(r, d)]).collect();
        assert_eq!(back, (0..2 * d).collect::<Vec<_>>());
    }

    #[test]
    fn gguf_name_covers_every_tensor_of_a_layout() {
        let config = r#"{"model_type":"qwen3","hidden_act":"silu","hidden_size":8,"num_attention_heads":2,
            "num_hidden_layers":1,"vocab_size":16,"intermediate_size":12,"attention_bias":true,"mlp_bias":true}"#;
        let layout = Layout::new(&ModelConfig::parse(config).unwrap(), Train::Body);
        let names: Vec<String> =
            layout.blocks.iter().flat_map(|b| &b.parts).map(|p| p.name.clone()).collect();
        let mapped: HashSet<String> = names.iter().map(|name| gguf_name(name).unwrap()).collect();
        assert_eq!(mapped.len(), names.len());
        assert_eq!(gguf_name("model.layers.0.mlp.router.weight"), None);
    }

    #[test]
    fn check_out_when_folder_is_of_others_refuses() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("model");
        check_out(&out).unwrap();
        std::fs::create_dir(&out).unwrap();
        check_out(&out).unwrap();
        std::fs::write(out.join("config.json"), "{}").unwrap();
        let message = |e: Error| e.message().rsplit_once(": ").unwrap().1.to_owned();
        assert_eq!(
            message(check_out(&out).unwrap_err()),
            "exists and was not written by import-gguf"
        );
        std::fs::write(out.join(RECORD), format!("{{\"written_by\": \"{}\"}}", written_by()))
            .unwrap();
        check_out(&out).unwrap();
        std::fs::write(out.join("notes"), "mine").unwrap();
        assert_eq!(
            message(check_out(&out).unwrap_err()),
            "exists and holds `notes`, which import-gguf does not write"
        );
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(message(check_out(&file).unwrap_err()), "is no folder");
    }
}

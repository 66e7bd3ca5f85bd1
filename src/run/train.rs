//! The loop of a run: draw, step, log, checkpoint, and the model folder at the end.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::export::{check_target, write_model};
use super::page;
use super::recipe::{OrderKey, Recipe};
use super::signals::StopFlag;
use crate::data::{Chunking, Corpus, CorpusOptions, MicroBatch, Order, Sampler, Tokenizer, draw};
use crate::error::{Error, Kind, Result};
use crate::io::atomic::{recover_all, write_file_atomic};
use crate::io::checkpoint::{Checkpoint, Writer};
use crate::io::safetensors::Weights;
use crate::method::passes::Passes;
use crate::method::{MeanTeacher, StepReport};
use crate::model::params::Keeping;
use crate::model::{Layout, Model, ModelConfig};
use crate::ops::Ops;
use crate::report::progress::{Progress, StepLine};

/// A corpus with the order its documents are drawn in.
struct Stream {
    corpus: Corpus,
    sampler: Sampler,
    accum: usize,
    micro_batch: usize,
}

impl Stream {
    fn draw(&self, step: u64) -> Result<Vec<MicroBatch>> {
        draw(&self.corpus, &self.sampler, step, self.accum, self.micro_batch)
    }
}

/// Runs `recipe` and writes everything into `out`; with `resume` from its newest complete checkpoint.
///
/// `out` then holds config.resolved.toml, metrics.jsonl (a line a step, the reference's names), checkpoints/, model/
/// and report.html. Returns a summary.
///
/// Errors: those of reading model and data; [`Kind::Numeric`] after `run.max_skipped` gradients in a row that are not
/// finite; [`Kind::Interrupted`] after a signal, with a checkpoint written.
pub fn run<O: Ops>(ops: &O, recipe: &Recipe, out: &Path, resume: bool) -> Result<Value> {
    let stop = StopFlag::listen()?;
    let source = &recipe.model.path;
    let folder = out.join("model");
    // Before the first step, not after the last one.
    check_target(source, &folder)?;
    let tokenizer = Tokenizer::open(source)?;
    let config = read_config(source)?;
    let weights = Weights::open(source)?;
    if tokenizer.vocab_size() > config.vocab {
        return Err(Error::model(format!(
            "{}: tokenizer.json has ids up to {}, vocab_size is {}",
            source.display(),
            tokenizer.vocab_size() - 1,
            config.vocab
        )));
    }
    let method = recipe.method()?;
    let forget = stream(recipe, &tokenizer, &config, true)?;
    let retain = match method.penalty {
        Some(_) => Some(stream(recipe, &tokenizer, &config, false)?),
        None => None,
    };
    let trainable = Layout::new(&config, recipe.train()).trainable();
    let mode = recipe.state_mode(trainable);
    let keep = Keeping {
        train: Some(recipe.train()),
        mode,
        teacher: recipe.teacher(mode),
        rule: recipe.optim.rule(),
        seed: recipe.seed,
    };
    let model = Model::load(ops, config, &weights, &keep)?;
    let longest = retain.iter().chain([&forget]).map(|s| s.corpus.longest()).max().unwrap_or(0);
    let passes = Passes::new(ops, &model, recipe.run.pack_tokens.max(longest), true)?;
    let base = match recipe.method.loss.as_str() {
        "npo" => Some(base_model(ops, recipe)?),
        _ => None,
    };
    let mut state = MeanTeacher::new(model, base, passes, method, recipe.settings());

    std::fs::create_dir_all(out).map_err(|e| Error::io("make folder", out, &e))?;
    recover_all(out)?;
    let identity = identity(recipe, &forget, retain.as_ref())?;
    let checkpoints = out.join("checkpoints");
    if resume && let Some(checkpoint) = Checkpoint::latest(&checkpoints)? {
        restore(ops, &mut state, &checkpoint, &identity)?;
    }
    write_file_atomic(&out.join("config.resolved.toml"), recipe.to_toml()?.as_bytes())?;
    let mut log = Log::open(&out.join("metrics.jsonl"), state.step)?;
    let mut bar = Progress::new(recipe.run.steps).resume_at(state.step);
    let (mut seconds, mut skipped, mut last) = (0.0, 0, None);
    while state.step < recipe.run.steps {
        let step = state.step;
        let start = Instant::now();
        let retained = retain.as_ref().map_or(Ok(Vec::new()), |stream| stream.draw(step))?;
        let report = state.step(ops, &forget.draw(step)?, &retained)?;
        let took = start.elapsed().as_secs_f64();
        seconds += took;
        log.write(&report, took)?;
        bar.step(StepLine {
            loss: report.loss_tr,
            penalty: report.loss_kl,
            norm: report.grad_norm,
            clip: report.clip_coef,
            tokens: report.tokens as u64,
        });
        skipped = if report.skipped { skipped + 1 } else { 0 };
        if skipped > recipe.run.max_skipped {
            return Err(state.nonfinite(step));
        }
        last = Some(report);
        let every = recipe.run.checkpoint_every;
        let due = every > 0 && state.step.is_multiple_of(every);
        if due || stop.asked() || state.step == recipe.run.steps {
            log.sync()?;
            save(ops, &state, &checkpoints, &identity, recipe.run.keep_checkpoints)?;
        }
        if stop.asked() && state.step < recipe.run.steps {
            bar.finish();
            return Err(Error::new(
                Kind::Interrupted,
                format!("interrupted after step {step}; the checkpoint is complete"),
            )
            .hint("the same command with --resume goes on"));
        }
    }
    bar.finish();
    let distances = state.model.distances(ops, &weights)?;
    let mut summary = json!({
        "steps": state.step,
        "seconds": seconds,
        "last": last,
        "student_from_start": distances.student_initial,
        "teacher_from_start": distances.teacher_initial,
        "student_from_teacher": distances.student_teacher,
    });
    let record = json!({
        "program": "nepenthe",
        "version": env!("CARGO_PKG_VERSION"),
        "seed": recipe.seed,
        "loss": method.loss.name(),
        "loss_formula": method.loss.formula(),
        "penalty": method.penalty.map(|p| p.name()),
        "penalty_formula": method.penalty.map(|p| p.formula()),
        "recipe": recipe,
        "identity": identity,
        "metrics": summary,
    });
    write_model(ops, &state.model, source, &folder, &record)?;
    page::write(out, recipe, &method, &summary)?;
    summary["model"] = json!(folder.display().to_string());
    Ok(summary)
}

fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
    ModelConfig::parse(&text)
}

/// Loads the model that the loss compares with.
fn base_model<O: Ops>(ops: &O, recipe: &Recipe) -> Result<Model<O>> {
    let own = recipe.model.base.as_os_str().is_empty();
    let folder = if own { &recipe.model.path } else { &recipe.model.base };
    Model::load(ops, read_config(folder)?, &Weights::open(folder)?, &Keeping::inference())
}

fn stream(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    config: &ModelConfig,
    forget: bool,
) -> Result<Stream> {
    let data = &recipe.data;
    let (path, context, chunk, accum, name) = if forget {
        let accum = recipe.run.forget_accum_steps;
        (&data.forget, data.forget_context, data.forget_chunking, accum, "forget")
    } else {
        let accum = recipe.run.kl_accum_steps;
        (&data.retain, data.retain_context, data.retain_chunking, accum, "retain")
    };
    let options = CorpusOptions {
        context,
        chunking: if chunk { Chunking::Chunk } else { Chunking::Truncate },
        cache_dir: (!data.cache.as_os_str().is_empty()).then(|| data.cache.clone()),
    };
    let corpus = Corpus::open(path, tokenizer, &options)?;
    corpus.check_ids(path, config.vocab)?;
    let order = match data.order {
        OrderKey::Replacement => Order::Replacement,
        OrderKey::Epochs => Order::Epochs,
    };
    let sampler = Sampler::new(order, recipe.seed, name, corpus.len())?;
    Ok(Stream { corpus, sampler, accum, micro_batch: recipe.run.micro_batch })
}

/// What a checkpoint must share with the run that resumes from it: all of the recipe but its length and its logging,
/// and the data.
fn identity(recipe: &Recipe, forget: &Stream, retain: Option<&Stream>) -> Result<Value> {
    let mut recipe =
        serde_json::to_value(recipe).map_err(|e| Error::config(format!("recipe: {e}")))?;
    if let Some(run) = recipe["run"].as_object_mut() {
        for key in ["steps", "checkpoint_every", "keep_checkpoints"] {
            run.remove(key);
        }
    }
    let hash = |stream: &Stream| format!("{:032x}", stream.corpus.hash());
    Ok(json!({"recipe": recipe, "forget": hash(forget), "retain": retain.map(hash)}))
}

fn save<O: Ops>(
    ops: &O,
    state: &MeanTeacher<O>,
    root: &Path,
    identity: &Value,
    keep: usize,
) -> Result<PathBuf> {
    let mut writer = Writer::create(root, state.step)?;
    for (b, block) in state.model.layout.blocks.iter().enumerate().filter(|(_, b)| b.trainable) {
        ops.save_param(&state.model.params[b], &mut |name, bytes| {
            writer.blob(&format!("{}.{name}", block.name), bytes)
        })?;
    }
    writer.finish(json!({"step": state.step, "identity": identity}), keep)
}

fn restore<O: Ops>(
    ops: &O,
    state: &mut MeanTeacher<O>,
    checkpoint: &Checkpoint,
    identity: &Value,
) -> Result<()> {
    let stored = &checkpoint.meta()["identity"];
    if stored != identity {
        let differs = identity.as_object().into_iter().flatten().find(|(k, v)| stored[*k] != **v);
        let what = differs.map_or("settings", |(key, _)| key.as_str());
        return Err(Error::config(format!(
            "{}: is of another run: its {what} differs",
            checkpoint.dir().display()
        ))
        .hint("resume with the model, data and recipe of the first start, or name another --out"));
    }
    let Model { layout, params, .. } = &mut state.model;
    for (block, param) in layout.blocks.iter().zip(params).filter(|(block, _)| block.trainable) {
        ops.load_param(param, &mut |name, bytes| {
            let blob = checkpoint.blob(&format!("{}.{name}", block.name))?;
            if blob.len() != bytes.len() {
                return Err(Error::model(format!(
                    "{}: {}.{name}: {} bytes, wanted {}",
                    checkpoint.dir().display(),
                    block.name,
                    blob.len(),
                    bytes.len()
                )));
            }
            bytes.copy_from_slice(blob);
            Ok(())
        })?;
    }
    state.step = checkpoint.step();
    Ok(())
}

/// metrics.jsonl, a line a step.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log and cuts off the lines from `step` on, which a resumed run writes again.
    fn open(path: &Path, step: u64) -> Result<Self> {
        let io = |e: std::io::Error| Error::io("open log", path, &e);
        let mut kept = 0;
        if step > 0 && path.is_file() {
            let mut reader = BufReader::new(File::open(path).map_err(io)?);
            let mut line = String::new();
            while reader.read_line(&mut line).map_err(io)? > 0 {
                let value: Value = serde_json::from_str(&line).unwrap_or_default();
                if value["global_step"].as_u64().is_none_or(|s| s >= step) {
                    break;
                }
                kept += line.len() as u64;
                line.clear();
            }
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(path).map_err(io)?;
        file.set_len(kept).map_err(io)?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, report: &StepReport, seconds: f64) -> Result<()> {
        let mut value = json!(report);
        value["tokens_per_s"] = json!(report.tokens as f64 / seconds);
        let line = format!("{value}\n");
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, &e))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("flush", &self.path, &e))
    }
}

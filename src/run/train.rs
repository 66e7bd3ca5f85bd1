//! The loop of a run: draw, step, log, evaluate, checkpoint, and the model folder at the end.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::monitor::Monitor;
use super::page;
use super::recipe::Recipe;
use super::resume::{self, Log};
use super::setup::load;
use super::signals::StopFlag;
use super::stream::{Stream, overlap, stream};
use super::summary::{Continuations, Summary};
use super::watch::Watch;
use crate::data::MicroBatch;
use crate::error::{Error, Kind, Result};
use crate::eval::monitored::Measured;
use crate::folder::Folder;
use crate::folder::export::{Kept, RECORD, check_target, write_model};
use crate::io::atomic::{recover_all, write_file_atomic};
use crate::io::checkpoint::Checkpoint;
use crate::method::passes::Passes;
use crate::method::{Combination, MeanTeacher, Method, StepReport};
use crate::model::params::Keeping;
use crate::model::{Layout, Level, Model, Saving};
use crate::ops::Ops;
use crate::optim::{CustomRule, UpdateRule};
use crate::report::notices;
use crate::report::progress::{Progress, StepLine};
use crate::report::tensorboard::Events;

/// The recipe of a run, in its folder.
pub const RESOLVED: &str = "config.resolved.toml";
/// The folder of the last model in a run folder.
const MODEL: &str = "model";
/// The folder of the best model, where there is one.
const BEST: &str = "best";
/// The folder of event files, where the recipe wants them.
const TENSORBOARD: &str = "tensorboard";

/// Names of the distances among the figures of an evaluation.
pub const DISTANCES: [&str; 3] =
    ["student_from_start", "teacher_from_start", "student_from_teacher"];

/// Options of a run beside its recipe.
pub struct Options<'a> {
    /// The run folder.
    pub out: &'a Path,
    /// Activations saved of each layer for the backward pass; changes memory and time alone.
    pub saving: Saving,
    /// True to go on from the newest complete checkpoint in `out`.
    pub resume: bool,
    /// A rule in place of the recipe's optimizer, of which only learning rate, schedule, warm-up and clip then count.
    pub rule: Option<Box<dyn CustomRule>>,
    /// Called after every step.
    pub on_step: Option<&'a mut dyn FnMut(&StepReport)>,
}

impl<'a> Options<'a> {
    /// Writes into `out`, recomputes nothing, and follows the recipe's optimizer.
    pub fn new(out: &'a Path) -> Self {
        let saving = Saving::same(Level::All);
        Self { out, saving, resume: false, rule: None, on_step: None }
    }
}

/// Runs `recipe` and writes everything into the run folder.
///
/// It then holds config.resolved.toml, metrics.jsonl (a [`StepReport`] a line), evaluations.jsonl, checkpoints/, model/,
/// best/ (where a stop metric is set and was reached from above), summary.json and report.html. The `after` metrics of the
/// summary are those of the written folder, loaded again.
///
/// Errors: those of reading model and data; [`Kind::Numeric`] after `run.max_skipped` gradients in a row that are not
/// finite; [`Kind::Interrupted`] after a signal, with a checkpoint written; [`Kind::Config`] for a rule with parameters in
/// compact state.
pub fn run<O: Ops>(ops: O, recipe: &Recipe, options: Options<'_>) -> Result<Summary> {
    let mut run = Run::prepare(&ops, recipe, options)?;
    run.steps(&ops)?;
    run.finish(ops)
}

/// A run between its first and its last step.
struct Run<'a, O: Ops> {
    /// The recipe, its steps computed.
    recipe: Recipe,
    out: &'a Path,
    folder: Folder,
    method: Method,
    forget: Stream,
    retain: Option<Stream>,
    state: MeanTeacher<O>,
    suite: Monitor,
    watch: Watch,
    identity: Value,
    interrupt: StopFlag,
    events: Option<Events>,
    /// Seconds spent in steps by this process.
    seconds: f64,
    last: Option<StepReport>,
    /// The step of the newest checkpoint.
    saved: Option<u64>,
    best: Option<u64>,
    stopped: bool,
    on_step: Option<&'a mut dyn FnMut(&StepReport)>,
}

impl<'a, O: Ops> Run<'a, O> {
    fn prepare(ops: &O, recipe: &Recipe, options: Options<'a>) -> Result<Self> {
        let Options { out, saving, resume, rule, on_step } = options;
        let mut recipe = recipe.clone();
        let interrupt = StopFlag::listen()?;
        // Before the first step, not after the last one.
        for name in [MODEL, BEST] {
            check_target(&recipe.model.path, &out.join(name))?;
        }
        let mut folder = Folder::open(&recipe.model.path)?;
        recipe.check_model(&folder.config)?;
        let tokenizer = folder.tokenizer()?;
        let method = recipe.method()?;
        let loss = method.loss().rows(&method.knobs);
        if loss.paired() && recipe.data.alternate.as_os_str().is_empty() {
            return Err(Error::config(format!(
                "data.alternate: is not set, and loss {} compares each forget document with another",
                method.loss().name()
            ))
            .hint("name a file with one preferred document for each forget document, in order"));
        }
        let forget = stream(&recipe, &mut folder, &tokenizer, true)?;
        let length = recipe.settle_steps(forget.corpus.len());
        notices::add(&mut folder.notices, length.into_iter().chain(recipe.remarks()));
        let retain = recipe.reads_retain();
        let retain = retain.then(|| stream(&recipe, &mut folder, &tokenizer, false)).transpose()?;
        let shared = retain.as_ref().and_then(|retain| overlap(&recipe, &forget, retain));
        notices::add(&mut folder.notices, shared);
        let suite = Monitor::open(&recipe, &mut folder, tokenizer)?;
        notices::say(&folder.notices);
        let trainable = Layout::new(&folder.config, recipe.train()).trainable();
        let mut keep = recipe.keeping(recipe.state_mode(trainable));
        if let Some(rule) = &rule {
            keep.rule = UpdateRule::custom(rule.as_ref())?;
        }
        let longest = retain.iter().chain([&forget]).map(Stream::longest);
        let longest = longest.chain([suite.longest()]).max().unwrap_or(0);
        let tokens = recipe.run.pack_tokens.max(longest);
        let retained = retain.as_ref().map(|stream| &stream.corpus);
        let alternate = forget.alternate.as_ref();
        let mut identity = resume::identity(&recipe, &forget.corpus, retained, alternate)?;
        if let Some(rule) = &rule {
            identity["rule"] = json!(rule.name());
        }
        // Before the model is loaded: a run that cannot go on is told so at once.
        recover_all(out)?;
        let checkpoints = out.join("checkpoints");
        let checkpoint = if resume { Checkpoint::latest(&checkpoints)? } else { None };
        if let Some(checkpoint) = &checkpoint {
            resume::check(checkpoint, &identity)?;
        }
        let mut state = load(ops, &recipe, &mut folder, &keep, tokens, saving, retain.as_ref())?;
        std::fs::create_dir_all(out).map_err(|e| Error::io("make folder", out, e))?;
        if let Some(rule) = rule {
            state.follow(rule);
        }
        let mut watch =
            Watch { every: recipe.eval.every, stop: recipe.stop(), entries: Vec::new() };
        let mut saved = None;
        if let Some(checkpoint) = &checkpoint {
            watch.entries = resume::restore(ops, &mut state, checkpoint)?;
            // An evaluation of this very step may have ended the run: it is made, and judged, again.
            watch.entries.pop_if(|last| last.step == state.step);
            saved = Some(state.step);
        }
        let events = recipe.report.tensorboard;
        let events =
            events.then(|| Events::create(&out.join(TENSORBOARD), state.step)).transpose()?;
        write_file_atomic(&out.join(RESOLVED), recipe.to_commented_toml()?.as_bytes())?;
        Ok(Self {
            recipe,
            out,
            folder,
            method,
            forget,
            retain,
            state,
            suite,
            watch,
            identity,
            interrupt,
            events,
            seconds: 0.0,
            last: None,
            saved,
            best: None,
            stopped: false,
            on_step,
        })
    }

    /// Draws the forget and the retain documents of a step.
    fn draw(&self, step: u64) -> Result<(Vec<MicroBatch>, Vec<MicroBatch>)> {
        let retain = self.retain.as_ref().filter(|_| self.method.penalty().is_some());
        let retained = retain.map_or(Ok(Vec::new()), |from| from.draw(step))?;
        Ok((self.forget.draw(step)?, retained))
    }

    fn steps(&mut self, ops: &O) -> Result<()> {
        let settings = self.recipe.run.clone();
        let mut log = Log::open(&self.out.join("metrics.jsonl"), self.state.step)?;
        let mut bar = Progress::new(settings.steps).resume_at(self.state.step);
        let (mut skipped, mut ahead) = (0, None);
        let first = self.state.step;
        loop {
            if self.watch.due(self.state.step) && self.suite.names().next().is_some() {
                self.evaluate(ops, &bar)?;
            }
            if self.stopped || self.state.step >= settings.steps {
                break;
            }
            let step = self.state.step;
            let start = Instant::now();
            let (forget, retained) = ahead.take().map_or_else(|| self.draw(step), Ok)?;
            let started = self.state.start(ops, &forget, &retained)?;
            // While a device works on this step.
            ahead = (step + 1 < settings.steps).then(|| self.draw(step + 1)).transpose()?;
            let report = self.state.finish(ops, started)?;
            let took = start.elapsed().as_secs_f64();
            self.seconds += took;
            log.write(&report, took)?;
            if let Some(events) = &mut self.events {
                let rate = report.tokens as f64 / took;
                events.scalars(
                    step,
                    &[
                        ("loss_tr", report.loss_tr),
                        ("loss_kl", report.loss_kl),
                        ("grad_norm", report.grad_norm),
                        ("clip_coef", report.clip_coef),
                        ("lr", report.lr),
                        ("tokens_per_s", rate),
                    ],
                )?;
            }
            bar.step(line_of(&report, &self.method));
            if let Some(on_step) = &mut self.on_step {
                on_step(&report);
            }
            if step == first && report.grad_norm == 0.0 {
                let text = format!(
                    "{}the gradient of step {step} is zero: no parameter moves unless later documents have one",
                    notices::WARNING
                );
                notices::say_more(&mut self.folder.notices, [text]);
            }
            skipped = if report.skipped { skipped + 1 } else { 0 };
            if skipped > settings.max_skipped {
                return Err(self.state.nonfinite(ops, step));
            }
            self.last = Some(report);
            let every = settings.checkpoint_every;
            let due = every > 0 && self.state.step.is_multiple_of(every);
            let interrupted = self.interrupt.asked() && self.state.step < settings.steps;
            if due || interrupted {
                log.sync()?;
                self.save(ops)?;
            }
            if interrupted {
                bar.finish();
                return Err(Error::new(
                    Kind::Interrupted,
                    format!("interrupted after step {step}; the checkpoint is complete"),
                )
                .hint("the same command with --resume goes on"));
            }
        }
        bar.finish();
        log.sync()?;
        if self.saved != Some(self.state.step) {
            self.save(ops)?;
        }
        Ok(())
    }

    fn save(&mut self, ops: &O) -> Result<()> {
        let (root, keep) = (self.out.join("checkpoints"), self.recipe.run.keep_checkpoints);
        resume::save(ops, &self.state, &self.watch.entries, &root, &self.identity, keep)?;
        self.saved = Some(self.state.step);
        Ok(())
    }

    /// Measures the student, keeps it where it is the best so far, and stops the run where the recipe says so.
    fn evaluate(&mut self, ops: &O, bar: &Progress) -> Result<()> {
        let MeanTeacher { model, passes, step, .. } = &mut self.state;
        let mut measured = self.suite.measure(ops, model, passes)?;
        let figures: Vec<String> =
            measured.figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        bar.println(&format!("after {step} steps: {}", figures.join(", ")));
        let step = *step;
        if let Some(events) = &mut self.events {
            let figures = measured.figures.iter().map(|(name, value)| (name.as_str(), *value));
            events.scalars(step, &figures.collect::<Vec<_>>())?;
        }
        let distances = self.state.model.distances(ops, &self.folder.weights)?;
        for (name, value) in DISTANCES.into_iter().zip([
            distances.student_initial,
            distances.teacher_initial,
            distances.student_teacher,
        ]) {
            measured.figures.insert(name.to_owned(), value);
        }
        let verdict = self.watch.record(step, measured);
        let lines = self.watch.entries.iter().map(|entry| {
            let mut line = json!({"global_step": entry.step});
            for (name, value) in entry.measured.named().iter() {
                line[name] = json!(value);
            }
            for name in DISTANCES {
                line[name] = json!(entry.measured.figures.get(name));
            }
            format!("{line}\n")
        });
        let lines: String = lines.collect();
        write_file_atomic(&self.out.join("evaluations.jsonl"), lines.as_bytes())?;
        if verdict.best {
            let summary = json!({"steps": step, "after": self.watch.entries.last().map(|e| e.measured.named())});
            let record = self.record(&summary);
            self.write(ops, &self.out.join(BEST), &record)?;
            self.best = Some(step);
        }
        self.stopped = verdict.stop;
        Ok(())
    }

    /// Writes model and report; measures the written folder.
    fn finish(self, mut ops: O) -> Result<Summary> {
        let distances = self.state.model.distances(&ops, &self.folder.weights)?;
        let lines = resume::read_log(&self.out.join("metrics.jsonl"))?;
        let clipped =
            lines.iter().filter(|line| line["clip_coef"].as_f64().is_some_and(|c| c < 1.0));
        let target = self.out.join(MODEL);
        let mut summary = Summary {
            steps: self.state.step,
            epochs: self.recipe.passes(self.state.step, self.forget.corpus.len()),
            clipped_steps: clipped.count(),
            stopped_early: self.stopped,
            shielded: self.state.prepared.get("shielded").copied(),
            best_step: self.best,
            seconds: self.seconds,
            last: self.last,
            student_from_start: distances.student_initial,
            teacher_from_start: distances.teacher_initial,
            student_from_teacher: distances.student_teacher,
            change_saved: None,
            before: None,
            after: None,
            retrain: None,
            samples: Vec::new(),
            notices: Vec::new(),
            model: target.clone(),
        };
        let record_of = |summary: &Summary| self.record(&metrics(summary));
        summary.change_saved = Some(self.write(&ops, &target, &record_of(&summary))?.share());
        let Self { recipe, out, folder, method, suite, watch, state, identity, .. } = self;
        let mut notices = folder.notices;
        // The trained state goes before the written folder comes: two models never need to fit.
        drop(state);
        ops = ops.renew()?;
        if let Some(before) = watch.entries.first().map(|entry| &entry.measured) {
            let after = measure_folder(&ops, &suite, &target, &mut Vec::new())?;
            summary.before = Some(before.named());
            summary.after = Some(after.named());
            let mut retrain = None;
            if !recipe.eval.retrain.as_os_str().is_empty() {
                ops = ops.renew()?;
                retrain = Some(measure_folder(&ops, &suite, &recipe.eval.retrain, &mut notices)?);
                summary.retrain = retrain.as_ref().map(Measured::named);
            }
            let record = record(&recipe, &method, &identity, &metrics(&summary));
            write_file_atomic(&target.join(RECORD), format!("{record:#}\n").as_bytes())?;
            summary.samples = Continuations::pair(before, &after, retrain.as_ref());
        }
        summary.notices = notices;
        page::write(out, &recipe, &method, &summary, &page::Logs { lines, watch })?;
        Ok(summary)
    }

    /// Writes the student as the model folder `out`.
    fn write(&self, ops: &O, out: &Path, record: &Value) -> Result<Kept> {
        write_model(ops, &self.state.model, &self.folder.dir, out, self.recipe.save(), record)
    }

    fn record(&self, summary: &Value) -> Value {
        record(&self.recipe, &self.method, &self.identity, summary)
    }
}

/// Returns the line of progress of a step.
pub(crate) fn line_of(report: &StepReport, method: &Method) -> StepLine {
    let hidden = method.loss().rows(&method.knobs).hidden();
    StepLine {
        name: if hidden { method.loss().name() } else { "nll_forget" },
        value: report.loss_tr,
        penalty: method.penalty().map(|penalty| (penalty.name(), report.loss_kl)),
        norm: report.grad_norm,
        clip: report.clip_coef,
        tokens: report.tokens as u64,
    }
}

/// Returns the figures of a summary that go with the model: all but samples, notices and its place.
fn metrics(summary: &Summary) -> Value {
    let mut value = json!(summary);
    if let Some(entries) = value.as_object_mut() {
        for key in ["samples", "notices", "model"] {
            entries.shift_remove(key);
        }
    }
    value
}

/// Returns the content of unlearning.json.
fn record(recipe: &Recipe, method: &Method, identity: &Value, summary: &Value) -> Value {
    json!({
        "program": "nepenthe",
        "version": env!("CARGO_PKG_VERSION"),
        "seed": recipe.seed,
        "loss": method.loss().name(),
        "loss_formula": method.loss().formula(),
        "penalty": method.penalty().map(|p| p.name()),
        "penalty_formula": method.penalty().map(|p| p.formula()),
        "second_penalty": method.second().map(|p| p.name()),
        "second_penalty_formula": method.second().map(|p| p.formula()),
        "direction": recipe.combination().map_or("", Combination::formula),
        "recipe": recipe,
        "identity": identity,
        "metrics": summary,
        "change_saved": summary["change_saved"],
    })
}

/// Loads a model folder, says what is new in its notices, and measures it.
fn measure_folder<O: Ops>(
    ops: &O,
    suite: &Monitor,
    folder: &Path,
    notices: &mut Vec<String>,
) -> Result<Measured> {
    let folder = Folder::open(folder)?;
    notices::say_more(notices, folder.notices);
    let mut model = Model::load(ops, folder.config, &folder.weights, &Keeping::inference())?;
    let mut passes = Passes::new(ops, &model, suite.longest().max(1), false)?;
    suite.measure(ops, &mut model, &mut passes)
}

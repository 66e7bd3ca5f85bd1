//! Is the mean teacher a slow natural gradient? What a run's drift is beside the damped natural-gradient step, and where
//! slow natural-gradient descent goes from the same start.
//!
//! Where the student has settled beside a teacher that stands still, alpha grad L + beta F (theta - ref) + damp (theta -
//! ref) = 0: its drift is x = -(beta F + damp I)^-1 alpha grad L, all at ref, and the teacher follows x at its own rate.
//! Source: arXiv 2504.13388, the derivation of the mean teacher.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::Replay;
use super::fisher::{Fisher, Point, cosine, distance, dot, norm};
use super::lanczos::{Nodes, nodes};
use super::solve::{Limits, conjugate_gradients, diagonal};
use crate::data::{Chunking, CorpusOptions, MicroBatch, first};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::io::atomic::write_file_atomic;
use crate::method::{FORGET, Kl, Knobs, Nll, Objective, StepReport, find};
use crate::model::Model;
use crate::ops::Ops;
use crate::optim::clip_factor;
use crate::report::notices;
use crate::report::progress::Progress;
use crate::report::svg::Chart;
use crate::rng::Stream as Random;
use crate::run::setup::base_model;
use crate::run::train::line_of;

/// The probe of a run.
#[derive(Debug, Clone)]
pub struct Ngd {
    /// The run folder; nothing of it is changed but `out` where that is inside.
    pub run: PathBuf,
    /// After how many steps of the run its drift is compared with the damped natural-gradient step.
    pub at: Vec<u64>,
    /// Steps whose texts the gradient and the Fisher matrix are averaged over.
    pub draws: u64,
    /// The most micro-batches of penalty texts that the Fisher matrix of a step is a mean over; products cost by their
    /// number.
    pub retain_batches: usize,
    /// Limits of a solve.
    pub limits: Limits,
    /// Products that the diagonal preconditioner is estimated from; 0 for none.
    pub diagonal: u64,
    /// Lanczos iterations for the spectrum; 0 for none.
    pub lanczos: usize,
    /// The forget losses whose slow natural-gradient descent is followed beside the run; none to leave it out.
    pub losses: Vec<String>,
    /// Steps that they are followed for.
    pub steps: u64,
    /// True to store the solution of each comparison in the folder, and to continue from one that is there.
    pub resume: bool,
    /// The folder that ngd.jsonl, ngd-path.jsonl and the charts are written to.
    pub out: PathBuf,
}

/// The drift of one block of the model beside the step's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// The block: layer and matrix.
    pub name: String,
    /// Cosine between drift and step.
    pub cosine: f64,
    /// |drift| over |step|.
    pub ratio: f64,
    /// The block's share of the squared length of the drift.
    pub share: f64,
}

/// A run's drift beside the damped natural-gradient step at its teacher: a line of ngd.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Steps done.
    pub steps: u64,
    /// |theta - ref|.
    pub drift: f64,
    /// |x|.
    pub step: f64,
    /// Cosine between them.
    pub cosine: f64,
    /// |x - drift| over |x|.
    pub distance: f64,
    /// d^T F d / d^T d of the drift.
    pub curvature: f64,
    /// The same of the gradient of the forget loss.
    pub curvature_gradient: f64,
    /// The same of x.
    pub curvature_step: f64,
    /// The relative error that is expected of a product.
    pub product_error: f64,
    /// The relative residual before the first iteration of the solve and after each.
    pub residuals: Vec<f64>,
    /// Eigenvalues of F and their weights in its density, by Lanczos iterations from one vector of random signs.
    pub spectrum: Nodes,
    /// By block.
    pub parts: Vec<Part>,
}

/// Where slow natural-gradient descent is beside the run: a line of ngd-path.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// Steps done.
    pub steps: u64,
    /// The forget loss that is descended; `run` for the run's own teacher.
    pub loss: String,
    /// The clip factor of the step that led here; 1 at the start.
    pub clip: f64,
    /// |w - w_0|.
    pub moved: f64,
    /// |w - teacher|, over the way that the teacher has gone.
    pub apart: f64,
    /// KL from the teacher of the run to w on retain texts, nats per position.
    pub kl: f64,
    /// The same on texts that nobody was trained on, where the recipe's `eval.holdout` names some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_holdout: Option<f64>,
    /// NLL of forget texts, nats per token.
    pub forget_nll: f64,
    /// NLL of retain texts, nats per token.
    pub retain_nll: f64,
}

/// The texts of a comparison: forget and retain.
struct Texts {
    forget: Vec<MicroBatch>,
    retain: Vec<MicroBatch>,
}

impl Texts {
    fn draw<O: Ops>(replay: &Replay<O>, first: u64, wanted: &Ngd) -> Result<Self> {
        let (mut forget, mut retain) = (Vec::new(), Vec::new());
        for step in first..first + wanted.draws.max(1) {
            forget.extend(replay.forget.draw(step)?);
            if let Some(stream) = &replay.retain {
                retain.extend(stream.draw(step)?.into_iter().take(wanted.retain_batches));
            }
        }
        Ok(Self { forget, retain })
    }
}

/// The numbers of the system that is solved.
#[derive(Clone, Copy)]
struct System {
    alpha: f64,
    beta: f64,
    damping: f64,
}

impl System {
    /// Returns x of (beta F + damping) x = -alpha g, with the residuals of the solve.
    fn solve<O: Ops>(
        self,
        fisher: &mut Fisher<'_, O>,
        gradient: &[f64],
        start: Option<&[f64]>,
        scale: Option<&[f64]>,
        limits: Limits,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let b: Vec<f64> = gradient.iter().map(|g| -self.alpha * g).collect();
        let mut product = |v: &[f64]| {
            let fv = fisher.product(v)?;
            Ok(fv.iter().zip(v).map(|(fv, v)| self.beta * fv + self.damping * v).collect())
        };
        let found = conjugate_gradients(&mut product, &b, start, scale, limits)?;
        Ok((found.x, found.residuals))
    }

    /// Estimates the diagonal of the system's matrix; `None` where no draws are wanted.
    fn diagonal<O: Ops>(
        self,
        fisher: &mut Fisher<'_, O>,
        len: usize,
        draws: u64,
    ) -> Result<Option<Vec<f64>>> {
        if draws == 0 {
            return Ok(None);
        }
        let random = Random::new(0, "probe.diagonal");
        let found = diagonal(&mut |v| fisher.product(v), len, random, draws)?;
        Ok(Some(found.iter().map(|f| self.beta * f + self.damping).collect()))
    }
}

/// Results of [`Ngd::probe`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NgdSummary {
    /// Name of the run.
    pub run: String,
    /// The folder written to.
    pub out: PathBuf,
    /// The comparisons.
    pub ngd: Vec<Comparison>,
    /// The last point of slow natural-gradient descent, where it was followed.
    pub path: Option<Place>,
    /// The last step that was replayed.
    pub replayed: Option<StepReport>,
    /// Notices about model and data.
    pub notices: Vec<String>,
}

impl Ngd {
    /// Replays the run and writes ngd.jsonl (a [`Comparison`] a line), ngd-path.jsonl (a [`Place`] a line) and charts;
    /// returns the lines, and the report of the last step that was replayed.
    ///
    /// The run is replayed in exact state; probing does not change it. Errors: [`crate::Kind::Config`] for a folder without
    /// a run, or a run without a teacher and damping; those of reading model and data.
    pub fn probe<O: Ops>(&self, ops: &O) -> Result<NgdSummary> {
        let mut replay = Replay::open(ops, &self.run)?;
        let settings = replay.state.settings;
        if settings.damping <= 0.0 || replay.retain.is_none() {
            return Err(Error::config(format!(
                "{}: its recipe has no penalty or no damping, wanted both",
                self.run.display()
            ))
            .hint("the drift of a run is a damped step where optim.damping is above 0"));
        }
        let holdout = if self.losses.is_empty() { Vec::new() } else { self.held_out(&mut replay)? };
        let (mut paths, mut places) = (self.paths(ops, &replay)?, Vec::new());
        let mut lines = Vec::new();
        let start = Point::take(ops, &replay.state.model)?.teacher();
        let following = if self.losses.is_empty() { 0 } else { self.steps };
        let last = self.at.iter().copied().max().unwrap_or(0).max(following);
        let (mut bar, mut replayed) = (Progress::new(last), None);
        for done in 0..=last {
            let point = Point::take(ops, &replay.state.model)?;
            let followed = done <= following && !paths.is_empty();
            if self.at.contains(&done) {
                lines.push(self.compare(ops, &mut replay, &point, done)?);
            }
            if followed {
                let clip = replayed.as_ref().map_or(1.0, |report: &StepReport| report.clip_coef);
                let now = (done, clip);
                places.extend(self.places(
                    ops,
                    &mut replay,
                    &point,
                    &start,
                    (&paths, &holdout),
                    now,
                )?);
            }
            // Solves take long: a probe that is broken off leaves what it has found.
            if followed || self.at.contains(&done) || done == last {
                self.write(&replay.name, &lines, &places)?;
            }
            let report = if done < last { Some(replay.step(ops)?) } else { None };
            if done < following {
                let after = Point::take(ops, &replay.state.model)?;
                self.follow(ops, &mut replay, &after, &mut paths, done)?;
            }
            report.iter().for_each(|report| bar.step(line_of(report, &replay.state.method)));
            replayed = report.or(replayed);
        }
        bar.finish();
        Ok(NgdSummary {
            run: replay.name,
            out: self.out.clone(),
            ngd: lines,
            path: places.pop(),
            replayed,
            notices: replay.notices,
        })
    }

    /// Solves at the run's teacher and compares.
    fn compare<O: Ops>(
        &self,
        ops: &O,
        replay: &mut Replay<O>,
        point: &Point,
        done: u64,
    ) -> Result<Comparison> {
        let texts = Texts::draw(replay, done, self)?;
        let system = System {
            alpha: replay.state.weights[0],
            beta: replay.state.weights[1],
            damping: replay.state.settings.damping,
        };
        let (method, drift) = (replay.state.method.clone(), point.drift());
        let zeros = vec![0.0; point.len()];
        let state = &mut replay.state;
        let mut fisher = Fisher::new(
            ops,
            &mut state.model,
            &mut state.passes,
            point,
            point.teacher(),
            &texts.retain,
        )
        .with_base(state.base.as_mut());
        let gradient =
            fisher.gradient(method.loss(), &method.knobs, &zeros, Some(&texts.forget))?;
        let product_error = fisher.calibrate(&gradient)?;
        let scale = system.diagonal(&mut fisher, point.len(), self.diagonal)?;
        let kept = self.kept(done, point.len())?;
        let (x, residuals) =
            system.solve(&mut fisher, &gradient, kept.as_deref(), scale.as_deref(), self.limits)?;
        self.keep(done, &x)?;
        let mut curvature = |d: &[f64]| -> Result<f64> {
            let length = dot(d, d);
            Ok(if length > 0.0 { dot(d, &fisher.product(d)?) / length } else { 0.0 })
        };
        let curvatures = [curvature(&drift)?, curvature(&gradient)?, curvature(&x)?];
        let random = Random::new(0, "probe.lanczos");
        let spectrum = nodes(&mut |v| fisher.product(v), point.len(), self.lanczos, random, 0)?;
        point.restore(ops, &mut state.model)?;
        let all = dot(&drift, &drift).max(f64::MIN_POSITIVE);
        let blocks = state.model.layout.blocks.iter().zip(point.places());
        let parts = blocks.filter(|(_, (_, len))| *len > 0).map(|(block, &(start, len))| {
            let (d, x) = (&drift[start..start + len], &x[start..start + len]);
            Part {
                name: block.name.clone(),
                cosine: cosine(d, x),
                ratio: norm(d) / norm(x).max(f64::MIN_POSITIVE),
                share: dot(d, d) / all,
            }
        });
        Ok(Comparison {
            steps: done,
            drift: norm(&drift),
            step: norm(&x),
            cosine: cosine(&drift, &x),
            distance: distance(&drift, &x) / norm(&x).max(f64::MIN_POSITIVE),
            curvature: curvatures[0],
            curvature_gradient: curvatures[1],
            curvature_step: curvatures[2],
            product_error,
            residuals,
            spectrum,
            parts: parts.collect(),
        })
    }

    fn place_of(&self, done: u64) -> PathBuf {
        self.out.join(format!("ngd-{done}.f64"))
    }

    /// Reads the solution that an earlier probe kept, where this one is to go on from it.
    ///
    /// A start is a guess: that of other texts or numbers costs iterations and changes nothing else.
    fn kept(&self, done: u64, len: usize) -> Result<Option<Vec<f64>>> {
        let path = self.place_of(done);
        if !self.resume || !path.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        if bytes.len() != 8 * len {
            return Err(Error::config(format!(
                "{}: holds {} bytes, wanted {len} numbers of 8",
                path.display(),
                bytes.len()
            ))
            .hint("it is of another model: remove it, or name another --out"));
        }
        let number = |chunk: &[u8]| f64::from_le_bytes(chunk.try_into().unwrap_or_default());
        Ok(Some(bytes.chunks_exact(8).map(number).collect()))
    }

    fn keep(&self, done: u64, x: &[f64]) -> Result<()> {
        if !self.resume {
            return Ok(());
        }
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("make folder", &self.out, e))?;
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        write_file_atomic(&self.place_of(done), &bytes)
    }

    /// Reads the first held-out documents of the run's recipe, as many as of a step's retain texts; none where it names none.
    fn held_out<O: Ops>(&self, replay: &mut Replay<O>) -> Result<Vec<MicroBatch>> {
        let recipe = &replay.recipe;
        if recipe.eval.holdout.as_os_str().is_empty() {
            return Ok(Vec::new());
        }
        let mut folder = Folder::open(&recipe.model.path)?;
        let options = CorpusOptions {
            context: recipe.eval.context.min(replay.state.passes.ws.tokens()),
            chunking: Chunking::Truncate,
            cache_dir: recipe.data.cache_dir(),
        };
        let tokenizer = folder.tokenizer()?;
        let corpus = folder.corpus(&recipe.eval.holdout, &tokenizer, &options, "eval.context")?;
        notices::say_more(&mut replay.notices, folder.notices);
        let size = recipe.run.micro_batch;
        let wanted = self.retain_batches.min(recipe.run.kl_accum_steps).saturating_mul(size);
        first(&corpus, wanted, size)
    }

    /// Begins a path for each loss at the run's start.
    fn paths<O: Ops>(&self, ops: &O, replay: &Replay<O>) -> Result<Vec<Path<O>>> {
        let start = Point::take(ops, &replay.state.model)?.teacher();
        let mut said = replay.notices.clone();
        let begin = |name: &String| {
            let loss = find(&FORGET, "--losses", name)?;
            let knobs = replay.state.method.knobs;
            let reads_base = loss.rows(&knobs).reads_base();
            let config = &replay.state.model.config;
            let base = reads_base
                .then(|| base_model(ops, &replay.recipe, config, &mut said))
                .transpose()?;
            let (name, w) = (name.clone(), start.clone());
            Ok(Path { name, loss, knobs, base, w, clip: 1.0, share: None })
        };
        self.losses.iter().map(begin).collect()
    }

    /// Moves every path by one step at the teacher's rate.
    ///
    /// As in a step of the mean teacher the rate is scaled by a clip factor: that of alpha times the path's own gradient,
    /// which is all of the gradient there, as the penalty's vanishes where the student is the teacher.
    fn follow<O: Ops>(
        &self,
        ops: &O,
        replay: &mut Replay<O>,
        point: &Point,
        paths: &mut [Path<O>],
        done: u64,
    ) -> Result<()> {
        let texts = Texts::draw(replay, done, self)?;
        let settings = replay.state.settings;
        let system = System {
            alpha: replay.state.weights[0],
            beta: replay.state.weights[1],
            damping: settings.damping,
        };
        let state = &mut replay.state;
        let zeros = vec![0.0; point.len()];
        for path in paths {
            let Path { loss, knobs, base, w, clip, share, .. } = path;
            let mut fisher = Fisher::new(
                ops,
                &mut state.model,
                &mut state.passes,
                point,
                w.clone(),
                &texts.retain,
            )
            .with_base(base.as_mut());
            let gradient = fisher.gradient(*loss, knobs, &zeros, Some(&texts.forget))?;
            if let Some(share) = *share {
                fisher = fisher.with_share(share);
            } else {
                fisher.calibrate(&gradient)?;
                *share = Some(fisher.step() / norm(w));
            }
            // From nothing: iterates are then never longer than the solution, whatever the last texts were.
            let (x, _) = system.solve(&mut fisher, &gradient, None, None, self.limits)?;
            *clip = clip_factor(system.alpha * norm(&gradient), settings.clip);
            let rate = settings.teacher_rate * *clip;
            w.iter_mut().zip(&x).for_each(|(w, x)| *w += rate * x);
        }
        point.restore(ops, &mut state.model)
    }

    /// Returns where the run's teacher and every path are.
    fn places<O: Ops>(
        &self,
        ops: &O,
        replay: &mut Replay<O>,
        point: &Point,
        start: &[f64],
        (paths, holdout): (&[Path<O>], &[MicroBatch]),
        (done, clip): (u64, f64),
    ) -> Result<Vec<Place>> {
        let mut places = Vec::with_capacity(1 + paths.len());
        let texts = Texts::draw(replay, 0, self)?;
        let teacher = point.teacher();
        let zeros = vec![0.0; point.len()];
        let way = distance(&teacher, start);
        let state = &mut replay.state;
        let mut fisher = Fisher::new(
            ops,
            &mut state.model,
            &mut state.passes,
            point,
            teacher.clone(),
            &texts.retain,
        );
        let own = ("run", &teacher, clip);
        let others = paths.iter().map(|path| (&*path.name, &path.w, path.clip));
        for (loss, w, clip) in std::iter::once(own).chain(others) {
            let drift: Vec<f64> = w.iter().zip(&teacher).map(|(w, t)| w - t).collect();
            fisher.move_to(teacher.clone());
            let kl = fisher.sums(&Kl::Tokens, &drift, &texts.retain)?.value;
            let kl_holdout = match holdout {
                [] => None,
                texts => Some(fisher.sums(&Kl::Tokens, &drift, texts)?.value),
            };
            fisher.move_to(w.clone());
            let forget_nll = fisher.sums(&Nll, &zeros, &texts.forget)?.nll;
            let retain_nll = fisher.sums(&Nll, &zeros, &texts.retain)?.nll;
            places.push(Place {
                steps: done,
                loss: loss.to_owned(),
                clip,
                moved: distance(w, start),
                apart: if way > 0.0 { norm(&drift) / way } else { 0.0 },
                kl,
                kl_holdout,
                forget_nll,
                retain_nll,
            });
        }
        point.restore(ops, &mut state.model)?;
        Ok(places)
    }

    fn write(&self, run: &str, lines: &[Comparison], places: &[Place]) -> Result<()> {
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("make folder", &self.out, e))?;
        let put = |name: &str, text: &str| write_file_atomic(&self.out.join(name), text.as_bytes());
        let text: String = lines.iter().map(|line| format!("{}\n", json!(line))).collect();
        put("ngd.jsonl", &text)?;
        let at = |line: &Comparison| line.steps as f64;
        let chart = Chart::new(
            format!("{run}: drift beside the damped natural-gradient step"),
            "steps",
            "cosine; relative distance",
        )
        .series("cosine", lines.iter().map(|l| (at(l), l.cosine)))
        .series("distance", lines.iter().map(|l| (at(l), l.distance)));
        put("ngd.svg", &chart.standalone())?;
        let chart = Chart::new(format!("{run}: curvature"), "steps", "d'Fd / d'd")
            .log_y()
            .series("drift", lines.iter().map(|l| (at(l), l.curvature)))
            .series("gradient", lines.iter().map(|l| (at(l), l.curvature_gradient)))
            .series("damped step", lines.iter().map(|l| (at(l), l.curvature_step)));
        put("ngd-curvature.svg", &chart.standalone())?;
        if places.is_empty() {
            return Ok(());
        }
        let text: String = places.iter().map(|place| format!("{}\n", json!(place))).collect();
        put("ngd-path.jsonl", &text)?;
        let names = std::iter::once("run").chain(self.losses.iter().map(String::as_str));
        let (mut forget, mut retain) = (
            Chart::new(format!("{run}: forget texts"), "steps", "NLL, nats per token"),
            Chart::new(format!("{run}: KL to the run's teacher"), "steps", "nats per position"),
        );
        for name in names {
            let of = || places.iter().filter(|place| place.loss == name);
            let label =
                if name == "run" { "mean teacher".to_owned() } else { format!("slow NGD, {name}") };
            forget = forget.series(label.clone(), of().map(|p| (p.steps as f64, p.forget_nll)));
            if name != "run" {
                retain = retain.series(label, of().map(|p| (p.steps as f64, p.kl)));
            }
        }
        put("ngd-forget.svg", &forget.standalone())?;
        put("ngd-kl.svg", &retain.standalone())
    }
}

/// Slow natural-gradient descent of one loss.
struct Path<O: Ops> {
    name: String,
    loss: &'static dyn Objective,
    knobs: Knobs,
    base: Option<Model<O>>,
    w: Vec<f64>,
    /// The clip factor of the last step.
    clip: f64,
    /// The displacements of products, as a share of the norm of w; chosen at the first step.
    share: Option<f64>,
}

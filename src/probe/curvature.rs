//! Curvature along the updates of several runs: how much of their length lies where the model's
//! distribution on retain texts is curved, and in which blocks they live.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::fisher::{Fisher, Point, dot, norm};
use super::{Replay, recipe_of};
use crate::error::{Error, Result};
use crate::eval::suite::record::model_hash;
use crate::folder::Folder;
use crate::io::atomic::write_file_atomic;
use crate::method::{Kl, Nll};
use crate::model::Layout;
use crate::model::params::read_block;
use crate::ops::Ops;
use crate::report::svg::Chart;
use crate::run::recorded::Recorded;

/// The probe of several runs that started from the same model.
#[derive(Debug, Clone)]
pub struct Curvature {
    /// The run folders, with a model each; the texts of all figures are those of the first, which needs a penalty.
    pub runs: Vec<PathBuf>,
    /// Steps whose texts results are averaged over.
    pub draws: u64,
    /// The folder that curvature.jsonl and the chart are written to.
    pub out: PathBuf,
}

/// The update of one run, from the model it started with to the one it wrote: a line of curvature.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Update {
    /// The run.
    pub run: String,
    /// |d|.
    pub length: f64,
    /// d^T F d / d^T d, F being that of the start on retain texts.
    pub curvature: f64,
    /// KL from the start to the run's model on retain texts, nats per position.
    pub kl: f64,
    /// NLL of forget texts, nats per token.
    pub forget_nll: f64,
    /// NLL of retain texts, nats per token.
    pub retain_nll: f64,
    /// The share of d^T d of every block that trains, in the model's order.
    pub shares: Vec<(String, f64)>,
}

/// Results of [`Curvature::probe`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurvatureSummary {
    /// The folder written to.
    pub out: PathBuf,
    /// The update of each run.
    pub updates: Vec<Update>,
    /// Notices about model and data.
    pub notices: Vec<String>,
}

impl Curvature {
    /// Measures all runs and writes curvature.jsonl (an [`Update`] a line) and curvature.svg; returns the lines.
    ///
    /// Errors: [`crate::Kind::Config`] for runs that started from different models, or a first one without a penalty;
    /// [`crate::Kind::Model`] for a run that wrote no model; those of reading model and data.
    pub fn probe<O: Ops>(&self, ops: &O) -> Result<CurvatureSummary> {
        let Some(first) = self.runs.first() else {
            return Err(Error::config("no run is named, wanted one or more"));
        };
        let mut replay = Replay::open(ops, first)?;
        let Some(stream) = &replay.retain else {
            return Err(Error::config(format!(
                "{}: has no penalty, whose texts all runs are measured on",
                first.display()
            ))
            .hint("name a run with a penalty first"));
        };
        let (mut forget, mut retain) = (Vec::new(), Vec::new());
        for step in 0..self.draws.max(1) {
            forget.extend(replay.forget.draw(step)?);
            retain.extend(stream.draw(step)?);
        }
        let point = Point::take(ops, &replay.state.model)?;
        let start = point.teacher();
        let layout = replay.state.model.layout.clone();
        let mut updates = Vec::new();
        let first = Folder::open(&replay.recipe.model.path)?;
        for (run, recorded) in self.runs.iter().zip(Recorded::read_all(&self.runs)?) {
            let own = recipe_of(run)?.model.path;
            if own != first.dir && model_hash(&Folder::open(&own)?)? != model_hash(&first)? {
                return Err(Error::config(format!(
                    "{}: it started from {}, which is not the model {} of the first run",
                    run.display(),
                    own.display(),
                    first.dir.display()
                ))
                .hint("compare runs that started from the same files"));
            }
            let end = trained(&layout, &point, &run.join("model"))?;
            updates.push((recorded.name, end));
        }
        let state = &mut replay.state;
        let mut fisher =
            Fisher::new(ops, &mut state.model, &mut state.passes, &point, start.clone(), &retain);
        let mut lines = Vec::new();
        for (run, end) in updates {
            let d: Vec<f64> = end.iter().zip(&start).map(|(end, start)| end - start).collect();
            let squared = dot(&d, &d).max(f64::MIN_POSITIVE);
            fisher.calibrate(&d)?;
            let curvature = dot(&d, &fisher.product(&d)?) / squared;
            let blocks = layout.blocks.iter().zip(point.places());
            let shares = blocks.filter(|(_, (_, len))| *len > 0).map(|(block, &(at, len))| {
                let part = &d[at..at + len];
                (block.name.clone(), dot(part, part) / squared)
            });
            lines.push(Update {
                run,
                length: norm(&d),
                curvature,
                kl: fisher.sums(&Kl::Tokens, &d, &retain)?.value,
                forget_nll: fisher.sums(&Nll, &d, &forget)?.nll,
                retain_nll: fisher.sums(&Nll, &d, &retain)?.nll,
                shares: shares.collect(),
            });
        }
        self.write(&lines)?;
        Ok(CurvatureSummary { out: self.out.clone(), updates: lines, notices: replay.notices })
    }

    fn write(&self, lines: &[Update]) -> Result<()> {
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("make folder", &self.out, e))?;
        let put = |name: &str, text: &str| write_file_atomic(&self.out.join(name), text.as_bytes());
        let text: String = lines.iter().map(|line| format!("{}\n", json!(line))).collect();
        put("curvature.jsonl", &text)?;
        let title = "where the updates live: squared length by block of the model";
        let mut chart = Chart::new(title, "block, in the model's order", "share");
        for line in lines {
            let shares = line.shares.iter().enumerate().map(|(i, (_, share))| (i as f64, *share));
            chart = chart.series(line.run.clone(), shares);
        }
        put("curvature.svg", &chart.standalone())
    }
}

/// Reads the parameters that train from a model folder, in the order of `point`.
fn trained(layout: &Layout, point: &Point, folder: &Path) -> Result<Vec<f64>> {
    let folder = Folder::open(folder)?;
    layout.check(&folder.weights)?;
    let (mut out, mut values) = (Vec::with_capacity(point.len()), Vec::new());
    for block in layout.blocks.iter().filter(|block| block.trainable) {
        values.resize(block.len(), 0f32);
        read_block(&folder.weights, block, &mut values)?;
        out.extend(values.iter().map(|value| f64::from(*value)));
    }
    Ok(out)
}

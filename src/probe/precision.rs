//! The error of a state mode: one run replayed in exact state and in others at once, on the same documents.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::recipe_of;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::io::atomic::write_file_atomic;
use crate::method::MeanTeacher;
use crate::model::{Layout, Saving};
use crate::ops::{Ops, Role, StateBytes, StateMode, TeacherForm};
use crate::report::notices;
use crate::report::progress::Progress;
use crate::report::svg::Chart;
use crate::run::recipe::Recipe;
use crate::run::recorded::Recorded;
use crate::run::setup::load;
use crate::run::stream::stream;
use crate::run::train::line_of;

/// The run to replay, and the state modes.
#[derive(Debug, Clone)]
pub struct Precision {
    /// The run folder; only its config.resolved.toml is read, and nothing of it is changed but `out` where that is inside.
    pub run: PathBuf,
    /// The state modes beside exact state, by name.
    pub states: Vec<String>,
    /// Steps; those of the recipe where it is `None`.
    pub steps: Option<u64>,
    /// Parameters are compared after every so many steps, and after the last.
    pub every: u64,
    /// The folder that precision.jsonl and the charts are written to.
    pub out: PathBuf,
}

/// Distance of one state mode from exact state after a step: a line of precision.jsonl. Lengths are L2 norms over all
/// trained parameters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Steps done.
    pub steps: u64,
    /// The state mode.
    pub state: String,
    /// Bytes of state and gradient per trained parameter.
    pub bytes_per_parameter: f64,
    /// |theta - theta_0|, in exact state.
    pub motion: f64,
    /// |theta - theta exact| over the motion.
    pub motion_error: f64,
    /// |theta - ref|, in exact state; absent without a teacher.
    pub drift: Option<f64>,
    /// |drift - drift exact| over the drift.
    pub drift_error: Option<f64>,
    /// Monitored NLL of the forget documents of the step, nats per token.
    pub loss_tr: f64,
    /// The same in exact state.
    pub loss_tr_exact: f64,
    /// Penalty before its weight.
    pub loss_kl: f64,
    /// The same in exact state.
    pub loss_kl_exact: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// The same in exact state.
    pub grad_norm_exact: f64,
}

/// Finds a state mode by its name.
///
/// Errors: [`crate::Kind::Config`] for a name that is none, and for `exact`, which all are compared with.
fn mode(name: &str) -> Result<StateMode> {
    match StateMode::ALL.into_iter().find(|mode| mode.name() == name) {
        Some(StateMode::Exact) => {
            Err(Error::config("states: exact is what the others are compared with"))
        }
        Some(mode) => Ok(mode),
        None => Err(Error::config(format!("states: {name} is no state mode"))
            .hint("compare compact, tiny, approx")),
    }
}

/// Bytes of state and gradient per trained parameter.
fn bytes_per_parameter(mode: StateMode, teacher: bool, moments: u64) -> f64 {
    let StateBytes { weights, teacher: reference, moment, gradient } = mode.bytes();
    weights + if teacher { reference } else { 0.0 } + moments as f64 * moment + gradient
}

/// Squared sums over the trained parameters.
#[derive(Default)]
struct Sums {
    motion: f64,
    motion_error: f64,
    drift: f64,
    drift_error: f64,
}

/// Student and teacher of one parameter, in fp32.
#[derive(Default)]
struct Pair {
    student: Vec<f32>,
    teacher: Vec<f32>,
}

impl Pair {
    fn read<O: Ops>(&mut self, ops: &O, state: &MeanTeacher<O>, b: usize) {
        let len = state.model.layout.blocks[b].len();
        for (role, to) in [(Role::Student, &mut self.student), (Role::Teacher, &mut self.teacher)] {
            to.resize(len, 0.0);
            ops.read_param(&state.model.params[b], role, to);
        }
    }
}

/// Compares a state with the exact one; `start` are the parameters before the first step.
fn compare<O: Ops>(
    ops: &O,
    exact: &MeanTeacher<O>,
    other: &MeanTeacher<O>,
    start: &[Vec<f32>],
) -> Result<Sums> {
    let (mut sums, mut a, mut b) = (Sums::default(), Pair::default(), Pair::default());
    for (i, start) in start.iter().enumerate().filter(|(_, start)| !start.is_empty()) {
        a.read(ops, exact, i);
        b.read(ops, other, i);
        ops.sync()?;
        for (k, start) in start.iter().enumerate() {
            let [ours, wanted] =
                [&b, &a].map(|p| [p.student[k], p.teacher[k], *start].map(f64::from));
            let motion = wanted[0] - wanted[2];
            let drift = wanted[0] - wanted[1];
            sums.motion += motion * motion;
            sums.motion_error += (ours[0] - wanted[0]).powi(2);
            sums.drift += drift * drift;
            sums.drift_error += (ours[0] - ours[1] - drift).powi(2);
        }
    }
    Ok(sums)
}

/// Results of [`Precision::replay`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrecisionSummary {
    /// Name of the run.
    pub run: String,
    /// The folder written to.
    pub out: PathBuf,
    /// Each state mode after the last step.
    pub last: Vec<Divergence>,
}

impl Precision {
    /// Replays the run and writes precision.jsonl (a [`Divergence`] a line), precision-parameters.svg and
    /// precision-metrics.svg; returns a summary with the last line of each state mode.
    ///
    /// Exact state and every other mode stand in memory together. Errors: [`crate::Kind::Config`] for an unknown state
    /// mode, or a folder that holds no run; those of reading model and data.
    pub fn replay<O: Ops>(&self, ops: &O, saving: Saving) -> Result<PrecisionSummary> {
        let modes: Vec<StateMode> = self.states.iter().map(|s| mode(s)).collect::<Result<_>>()?;
        let name = Recorded::read(&self.run)?.name;
        let recipe = recipe_of(&self.run)?;
        let lines = self.lines(ops, &recipe, &modes, saving)?;
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("make folder", &self.out, e))?;
        let text: String = lines.iter().map(|line| format!("{}\n", json!(line))).collect();
        self.write("precision.jsonl", &text)?;
        self.write("precision-parameters.svg", &self.parameters(&name, &lines).render())?;
        self.write("precision-metrics.svg", &self.metrics(&name, &lines).render())?;
        let last = |state: &String| lines.iter().rfind(|line| line.state == *state);
        let last = self.states.iter().filter_map(last).cloned().collect();
        Ok(PrecisionSummary { run: name, out: self.out.clone(), last })
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_file_atomic(&self.out.join(name), text.as_bytes())
    }

    fn lines<O: Ops>(
        &self,
        ops: &O,
        recipe: &Recipe,
        modes: &[StateMode],
        saving: Saving,
    ) -> Result<Vec<Divergence>> {
        let mut folder = Folder::open(&recipe.model.path)?;
        let tokenizer = folder.tokenizer()?;
        let forget = stream(recipe, &mut folder, &tokenizer, true)?;
        let retain = recipe.reads_retain();
        let retain = retain.then(|| stream(recipe, &mut folder, &tokenizer, false)).transpose()?;
        notices::say(&folder.notices);
        let longest = retain.iter().chain([&forget]).map(|s| s.longest()).max().unwrap_or(0);
        let tokens = recipe.run.pack_tokens.max(longest);
        let mut open = |mode| {
            let keep = recipe.keeping(mode);
            load(ops, recipe, &mut folder, &keep, tokens, saving, retain.as_ref())
        };
        let mut exact = open(StateMode::Exact)?;
        let mut others: Vec<MeanTeacher<O>> =
            modes.iter().map(|mode| open(*mode)).collect::<Result<_>>()?;
        let start = trained(ops, &exact)?;
        let keep = recipe.keeping(StateMode::Exact);
        let teacher = keep.teacher != TeacherForm::None;
        let moments = keep.rule.moments();
        let steps = self.steps.unwrap_or(recipe.run.steps);
        let (mut lines, mut bar) = (Vec::new(), Progress::new(steps));
        for step in 0..steps {
            let retained = retain.as_ref().map_or(Ok(Vec::new()), |from| from.draw(step))?;
            let drawn = forget.draw(step)?;
            let wanted = exact.step(ops, &drawn, &retained)?;
            bar.step(line_of(&wanted, &exact.method));
            for ((other, mode), state) in others.iter_mut().zip(modes).zip(&self.states) {
                let got = other.step(ops, &drawn, &retained)?;
                if got.skipped || wanted.skipped {
                    return Err(other.nonfinite(ops, step));
                }
                let done = step + 1;
                if !done.is_multiple_of(self.every.max(1)) && done < steps {
                    continue;
                }
                let sums = compare(ops, &exact, other, &start)?;
                let share = |error: f64, of: f64| if of > 0.0 { (error / of).sqrt() } else { 0.0 };
                lines.push(Divergence {
                    steps: done,
                    state: state.clone(),
                    bytes_per_parameter: bytes_per_parameter(*mode, teacher, moments as u64),
                    motion: sums.motion.sqrt(),
                    motion_error: share(sums.motion_error, sums.motion),
                    drift: teacher.then_some(sums.drift.sqrt()),
                    drift_error: teacher.then_some(share(sums.drift_error, sums.drift)),
                    loss_tr: got.loss_tr,
                    loss_tr_exact: wanted.loss_tr,
                    loss_kl: got.loss_kl,
                    loss_kl_exact: wanted.loss_kl,
                    grad_norm: got.grad_norm,
                    grad_norm_exact: wanted.grad_norm,
                });
            }
        }
        bar.finish();
        Ok(lines)
    }

    /// Draws the errors of parameters and drift over steps.
    fn parameters(&self, run: &str, lines: &[Divergence]) -> Chart {
        let title = format!("{run}: distance from exact state");
        let mut chart = Chart::new(title, "steps", "error, share of the length").log_y();
        for state in &self.states {
            let of = || lines.iter().filter(|line| line.state == *state);
            let motion = of().map(|l| (l.steps as f64, l.motion_error));
            chart = chart.series(format!("{state}: motion"), motion);
            let drift = of().filter_map(|l| Some((l.steps as f64, l.drift_error?)));
            chart = chart.series(format!("{state}: drift"), drift);
        }
        chart
    }

    /// Draws how far the logged figures of a step are from those in exact state.
    fn metrics(&self, run: &str, lines: &[Divergence]) -> Chart {
        let title = format!("{run}: figures of a step against exact state");
        let mut chart = Chart::new(title, "steps", "relative difference").log_y();
        type Figure = fn(&Divergence) -> [f64; 2];
        let figures: [(&str, Figure); 3] = [
            ("forget NLL", |l| [l.loss_tr, l.loss_tr_exact]),
            ("penalty", |l| [l.loss_kl, l.loss_kl_exact]),
            ("gradient norm", |l| [l.grad_norm, l.grad_norm_exact]),
        ];
        for state in &self.states {
            for (name, figure) in figures {
                let of = lines.iter().filter(|line| line.state == *state);
                let points = of.map(|line| {
                    let [got, wanted] = figure(line);
                    (line.steps as f64, ((got - wanted) / wanted).abs())
                });
                chart = chart.series(format!("{state}: {name}"), points);
            }
        }
        chart
    }
}

/// Reads the trained parameters; an empty list stands for one that is frozen.
fn trained<O: Ops>(ops: &O, state: &MeanTeacher<O>) -> Result<Vec<Vec<f32>>> {
    let Layout { blocks, .. } = &state.model.layout;
    let read = |(b, param): (usize, &O::Param)| {
        let mut values = vec![0.0; if blocks[b].trainable { blocks[b].len() } else { 0 }];
        if blocks[b].trainable {
            ops.read_param(param, Role::Student, &mut values);
        }
        values
    };
    let all = state.model.params.iter().enumerate().map(read).collect();
    ops.sync()?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_refuses_what_is_not_there_by_its_name() {
        assert_eq!(mode("compact").unwrap(), StateMode::Compact);
        assert_eq!(mode("tiny").unwrap(), StateMode::Tiny);
        let error = mode("huge").unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Config);
        assert!(error.message().contains("huge"), "{error}");
        assert!(mode("exact").is_err());
    }

    #[test]
    fn bytes_are_those_of_the_state_modes() {
        let bytes = |mode| bytes_per_parameter(mode, true, 1);
        assert_eq!(StateMode::ALL.map(bytes), [16.0, 10.0, 9.015625, 8.0]);
        assert_eq!(bytes_per_parameter(StateMode::Compact, false, 2), 10.0);
    }
}

//! Whole recorded runs: every step's numbers, the final student, teacher and optimizer state.

use std::collections::BTreeMap;
use std::path::Path;

use nepenthe::backend::cpu::{Cpu, Real};
use nepenthe::conformance::trajectory::{self, Gap, Plan, Recorded};
use nepenthe::io::safetensors::Weights;
use nepenthe::ops::{Ops, StateMode, TeacherForm};
use serde_json::Value;

use crate::engine::*;

/// Runs a case of kind `trajectory` in both precisions, the teacher kept as weights and as drift.
pub fn run(case: &Value, root: &Path) -> Check<String> {
    let name = case["id"].as_str().and_then(|id| id.split('/').next_back()).ok_or("no id")?;
    let recorded = Recorded::open(root, name).map_err(|e| e.to_string())?;
    let folder = root.join("trajectories").join(name);
    one::<f32>(case, &recorded, &folder, TeacherForm::Full)?;
    one::<f32>(case, &recorded, &folder, TeacherForm::Drift)?;
    one::<f64>(case, &recorded, &folder, TeacherForm::Full)?;
    Ok(format!("{} steps, f32 (full teacher and drift) and f64", recorded.steps()))
}

struct Tolerance {
    relative: BTreeMap<&'static str, f64>,
    kl_absolute: f64,
    student: f64,
    change: Option<f64>,
}

impl Tolerance {
    fn read<T: Real>(case: &Value) -> Check<Self> {
        if precision::<T>() == "f64" {
            let at = |key: &str| number(case, &["tolerance", "f64 arithmetic", key]);
            let all = at("per step relative")?;
            return Ok(Self {
                relative: ["loss_tr", "loss_kl", "grad_norm"].map(|key| (key, all)).into(),
                // At the first step the penalty of a model with itself is rounding noise there, 0 here.
                kl_absolute: 1e-14,
                student: at("final student relative L2 (file is rounded to f32)")?,
                change: None,
            });
        }
        let table = "f32 arithmetic, against the f64 run";
        let at = |path: &[&str]| number(case, &[&["tolerance", table], path].concat());
        Ok(Self {
            relative: [
                ("loss_tr", at(&["loss_tr relative"])?),
                ("loss_kl", at(&["loss_kl", "relative"])?),
                ("grad_norm", at(&["grad_norm relative"])?),
            ]
            .into(),
            kl_absolute: at(&["loss_kl", "plus absolute"])?,
            student: at(&["final student, relative L2"])?,
            change: Some(at(&["final student CHANGE (student - initial), relative L2"])?),
        })
    }

    /// Returns what a figure of a step may be off by: relative, and absolute.
    fn of<T: Real>(&self, figure: &str) -> (f64, f64) {
        let loss = self.relative["loss_tr"];
        match figure {
            "loss_kl" => (self.relative["loss_kl"], self.kl_absolute),
            "clip_coef" => (self.relative["grad_norm"], 0.0),
            "lr" => (1e-12, 0.0),
            // fp32 cannot tell distances below its own spacing around the weights.
            "dist_student_teacher" | "dist_student_initial" | "dist_teacher_initial" => {
                (self.change.unwrap_or(1e-6), if size_of::<T>() == 4 { 2e-5 } else { 1e-12 })
            }
            // Of these two the record holds f32 numbers.
            "eval_loss_pt" => (loss.max(1e-5), 0.0),
            "eval_acc" => (1e-6, 0.0),
            "eval_loss" => (loss, 0.0),
            other => (self.relative[other], 0.0),
        }
    }
}

fn one<T: Real>(case: &Value, recorded: &Recorded, folder: &Path, teacher: TeacherForm) -> Check
where
    Cpu<T>: Ops,
{
    let text = |e: nepenthe::Error| e.to_string();
    let p = precision::<T>();
    let tolerance = Tolerance::read::<T>(case)?;
    let plan = Plan { mode: StateMode::Exact, teacher, seed: 1 };
    let trace = trajectory::run(&Cpu::<T>::new(), recorded, plan).map_err(text)?;
    for figure in &trace.figures {
        let (relative, absolute) = tolerance.of::<T>(figure.name);
        let what = format!("{p} step {}: {}", figure.step, figure.name);
        near(&what, figure.got, figure.want, relative, absolute)?;
    }
    let own = match Weights::open_file(&folder.join("final_f32.safetensors")) {
        Ok(file) => recorded.gaps(&|key| file.read_f64(key)).map_err(text)?,
        // Not kept in the repository's copy: then the student's tolerance for its change stands in.
        Err(_) => BTreeMap::new(),
    };
    for (group, gap) in recorded.gaps(&|key| trace.tensor(key)).map_err(text)? {
        // Only the student has a tolerance in the manifest; what else there is may be off by three times as much as
        // the reference's own f32 run is from its f64 run.
        let change = tolerance.change.unwrap_or(1e-6);
        let own = own.get(&group).copied().unwrap_or(Gap { whole: change, change });
        let allowed = match group.as_str() {
            "student" => {
                Gap { whole: tolerance.student, change: tolerance.change.unwrap_or(f64::INFINITY) }
            }
            _ if p == "f64" => Gap { whole: 1e-6, change: f64::INFINITY },
            _ => Gap { whole: 3.0 * own.whole, change: 3.0 * own.change },
        };
        if !(gap.whole <= allowed.whole && gap.change <= allowed.change) {
            return Err(format!("{p} {teacher:?}: final {group}: {gap:?}, allowed {allowed:?}"));
        }
    }
    Ok(())
}

//! Whole recorded runs: every step's numbers, the final student, teacher and optimizer state.

use std::collections::BTreeMap;
use std::path::Path;

use nepenthe::backend::cpu::{Cpu, Real};
use nepenthe::data::MicroBatch;
use nepenthe::io::safetensors::Weights;
use nepenthe::method::{self, MeanTeacher, Method, Settings};
use nepenthe::model::{Model, Train};
use nepenthe::ops::state::Distances;
use nepenthe::ops::{Ops, Role, TeacherForm};
use nepenthe::optim::{OptimConfig, Optimizer};
use serde_json::Value;

use crate::engine::*;
use crate::losses::knobs;

/// Runs a case of kind `trajectory` in both precisions, the teacher kept as weights and as drift.
pub fn run(case: &Value, root: &Path) -> Check<String> {
    one::<f32>(case, root, TeacherForm::Full)?;
    one::<f32>(case, root, TeacherForm::Drift)?;
    let steps = one::<f64>(case, root, TeacherForm::Full)?;
    Ok(format!("{steps} steps, f32 (full teacher and drift) and f64"))
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
}

fn one<T: Real>(case: &Value, root: &Path, form: TeacherForm) -> Check<usize>
where
    Cpu<T>: Ops<Act = Vec<T>>,
{
    let text = |e: nepenthe::Error| e.to_string();
    let p = precision::<T>();
    let ops = Cpu::<T>::new();
    let folder = root.join(case["id"].as_str().ok_or("no id")?);
    let source = root.join("models").join(case["model"].as_str().ok_or("no model")?);
    let args = &case["args"];
    let arg = |key: &str| number(args, &[key]);
    let name = |key: &str| args[key].as_str().ok_or_else(|| format!("no {key}"));
    let optim = OptimConfig {
        optimizer: if name("optimizer")? == "sgd" { Optimizer::Sgd } else { Optimizer::Adamw },
        lr: arg("lr")?,
        momentum: arg("momentum")?,
        b1: arg("b1")?,
        b2: arg("b2")?,
        warmup: arg("warmup")? as u64,
        clip: arg("clip")?,
        ..OptimConfig::default()
    };
    let method = Method {
        loss: method::find(&method::FORGET, "loss", name("loss")?).map_err(text)?,
        penalty: Some(method::find(&method::PENALTIES, "penalty", name("penalty")?).map_err(text)?),
        knobs: knobs(args),
    };
    let settings = Settings {
        forget_weight: arg("alpha")?,
        retain_weight: arg("beta")?,
        clip: optim.clip,
        damping: arg("damp")?,
        teacher_rate: arg("delta")?,
        schedule: optim.schedule(),
    };
    let train = if case["frozen"] == true { Train::Body } else { Train::All };
    let model = load::<T>(&source, "config.json", &keeping(Some(train), form, optim.rule()))?;
    let inference = keeping(None, TeacherForm::None, optim.rule());
    let base = match name("loss")? {
        "npo" => Some(load::<T>(&source, "config.json", &inference)?),
        _ => None,
    };
    let file = Weights::open_file(&folder.join("batches.safetensors")).map_err(text)?;
    let forget = batches(&file, "forget.", true)?;
    let penalty = batches(&file, "penalty.", true)?;
    let evals = ["eval_forget.", "eval_penalty."].map(|prefix| {
        Ok::<_, String>([batches(&file, prefix, true)?, batches(&file, prefix, false)?])
    });
    let [eval_forget, eval_penalty] = evals;
    let (eval_forget, eval_penalty) = (eval_forget?, eval_penalty?);
    let (a, k) = (arg("forget_accum_steps")? as usize, arg("kl_accum_steps")? as usize);
    let longest: Vec<MicroBatch> =
        [&forget[..a], &penalty[..k], &eval_forget[1][..1], &eval_penalty[1][..1]].concat();
    let passes = passes(&model, &longest, true)?;
    let mut run = MeanTeacher::new(model, base, passes, method, settings);
    let recorded = json(&folder.join("trajectory.json"))?;
    let steps = recorded["steps_f64"].as_array().ok_or("no steps_f64")?;
    let tolerance = Tolerance::read::<T>(case)?;
    let initial = Weights::open(&source).map_err(text)?;
    let mut evaluation = 0;
    for (s, want) in steps.iter().enumerate() {
        let (f, r) = (&forget[s * a..(s + 1) * a], &penalty[s * k..(s + 1) * k]);
        let report = run.step(&ops, f, r).map_err(text)?;
        for (key, got) in [
            ("loss_tr", report.loss_tr),
            ("loss_kl", report.loss_kl),
            ("grad_norm", report.grad_norm),
        ] {
            let absolute = if key == "loss_kl" { tolerance.kl_absolute } else { 0.0 };
            let what = format!("{p} step {s}: {key}");
            near(&what, got, number(want, &[key])?, tolerance.relative[key], absolute)?;
        }
        let c = number(want, &["clip_coef"])?;
        near(
            &format!("{p} step {s}: clip_coef"),
            report.clip_coef,
            c,
            tolerance.relative["grad_norm"],
            0.0,
        )?;
        near(&format!("{p} step {s}: lr"), report.lr, number(want, &["lr"])?, 1e-12, 0.0)?;
        let change = tolerance.change.unwrap_or(1e-6);
        compare_distances(&ops, &run.model, &initial, want, change, &format!("{p} step {s}"))?;
        if want.get("eval_loss").is_some() {
            let pick = |set: &[Vec<MicroBatch>; 2]| set.each_ref().map(|b| b[evaluation].clone());
            let sets = [pick(&eval_forget), pick(&eval_penalty)];
            compare_evaluation(&ops, &mut run, &sets, want, tolerance.relative["loss_tr"])
                .map_err(|e| format!("{p} step {s}: {e}"))?;
            evaluation += 1;
        }
    }
    let open = |name: &str| Weights::open_file(&folder.join(name)).map_err(text);
    let finals = open("final_f64_rounded.safetensors")?;
    let recorded = match open("final_f32.safetensors") {
        Ok(file) => group_errors(&finals, &initial, &|key| file.read_f64(key).map_err(text))?,
        // Not kept in the repository's copy: then the student's tolerance for its change stands in.
        Err(_) => BTreeMap::new(),
    };
    let got = final_state(&ops, &run.model)?;
    let ours = group_errors(&finals, &initial, &|key| {
        let values = got.get(key).ok_or_else(|| format!("no {key}"))?;
        Ok(values.iter().map(|x| f64::from(*x)).collect())
    })?;
    for (group, [whole, moved]) in ours {
        // Only the student has a tolerance in the manifest; what else there is may be off by three times as much as
        // the reference's own f32 run is from its f64 run.
        let change = tolerance.change.unwrap_or(1e-6);
        let own = recorded.get(&group).copied().unwrap_or([change; 2]);
        let [whole_there, moved_there] = own.map(|error| 3.0 * error);
        let f32_change = tolerance.change.unwrap_or(f64::INFINITY);
        let [whole_allowed, moved_allowed] = match group.as_str() {
            "student" => [tolerance.student, f32_change],
            _ if p == "f64" => [1e-6, f64::INFINITY],
            _ => [whole_there, moved_there],
        };
        if whole > whole_allowed || moved > moved_allowed {
            return Err(format!(
                "{p} {form:?}: final {group}: off by {whole:e} and its change by {moved:e}, allowed {whole_allowed:e} and {moved_allowed:e}"
            ));
        }
    }
    Ok(steps.len())
}

/// L2 distances over all parameters after the step.
fn compare_distances<T: Real>(
    ops: &Cpu<T>,
    model: &Model<Cpu<T>>,
    initial: &Weights,
    want: &Value,
    tolerance: f64,
    place: &str,
) -> Check
where
    Cpu<T>: Ops,
{
    let got: Distances = model.distances(ops, initial).map_err(|e| e.to_string())?;
    // fp32 cannot tell distances below its own spacing around the weights.
    let absolute = if size_of::<T>() == 4 { 2e-5 } else { 1e-12 };
    for (key, got) in [
        ("dist_student_teacher", got.student_teacher),
        ("dist_student_initial", got.student_initial),
        ("dist_teacher_initial", got.teacher_initial),
    ] {
        near(&format!("{place}: {key}"), got, number(want, &[key])?, tolerance, absolute)?;
    }
    Ok(())
}

/// The figures of an evaluation step: background NLL with padding as text, forget NLL and accuracy.
fn compare_evaluation<T: Real>(
    ops: &Cpu<T>,
    run: &mut MeanTeacher<Cpu<T>>,
    [forget, penalty]: &[[MicroBatch; 2]; 2],
    want: &Value,
    tolerance: f64,
) -> Check
where
    Cpu<T>: Ops,
{
    let nll = run.method.knobs;
    let loss = method::find(&method::FORGET, "loss", "nll").map_err(|e| e.to_string())?;
    let mut sweep = |batch: &MicroBatch| {
        let batch = std::slice::from_ref(batch);
        let sums = run.passes.sweep(ops, &mut run.model, None, loss, &nll, batch, None);
        sums.map_err(|e| e.to_string())
    };
    let background = sweep(&penalty[1])?;
    near(
        "eval_loss_pt",
        background.nll,
        number(want, &["eval_loss_pt"])?,
        tolerance.max(1e-5),
        0.0,
    )?;
    let sums = sweep(&forget[0])?;
    near("eval_loss", sums.nll, number(want, &["eval_loss"])?, tolerance, 0.0)?;
    // The recorded accuracy is an f32 division.
    near("eval_acc", sums.accuracy, number(want, &["eval_acc"])?, 1e-6, 0.0)
}

/// Every tensor of student, teacher and optimizer state, keyed as recorded.
fn final_state<T: Real>(ops: &Cpu<T>, model: &Model<Cpu<T>>) -> Check<BTreeMap<String, Vec<f32>>>
where
    Cpu<T>: Ops,
{
    let text = |e: nepenthe::Error| e.to_string();
    let mut got = BTreeMap::new();
    for (group, role) in [("student", Role::Evaluated), ("teacher", Role::Teacher)] {
        model
            .visit_weights(ops, role, &mut |name, values| {
                got.insert(format!("{group}.{name}"), values.to_vec());
                Ok(())
            })
            .map_err(text)?;
    }
    for group in ["momentum_buffer", "exp_avg", "exp_avg_sq"] {
        model
            .visit_moments(ops, group, &mut |name, values| {
                got.insert(format!("{group}.{name}"), values.to_vec());
                Ok(())
            })
            .map_err(text)?;
    }
    Ok(got)
}

/// Relative L2 error of each group (student, teacher, a moment) over all its tensors together: of the values, and of
/// their change since the start.
fn group_errors(
    finals: &Weights,
    initial: &Weights,
    read: &dyn Fn(&str) -> Check<Vec<f64>>,
) -> Check<BTreeMap<String, [f64; 2]>> {
    let mut sums: BTreeMap<String, [f64; 3]> = BTreeMap::new();
    for key in finals.names() {
        let (group, name) = key.split_once('.').ok_or_else(|| format!("{key}: no group"))?;
        let want = finals.read_f64(key).map_err(|e| e.to_string())?;
        let start = match group {
            "student" | "teacher" => initial.read_f64(name).map_err(|e| e.to_string())?,
            _ => vec![0.0; want.len()],
        };
        let sum = sums.entry(group.to_owned()).or_default();
        for ((got, want), start) in read(key)?.iter().zip(&want).zip(&start) {
            sum[0] += (got - want).powi(2);
            sum[1] += want * want;
            sum[2] += (want - start).powi(2);
        }
    }
    let relative = |[off, size, moved]: [f64; 3]| [(off / size).sqrt(), (off / moved).sqrt()];
    Ok(sums.into_iter().map(|(group, sum)| (group, relative(sum))).collect())
}

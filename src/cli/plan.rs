//! `plan`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use serde::Serialize;
use serde_json::json;

use super::doctor::host_memory;
use super::engine::{Device, Storage};
use super::output::{Output, table};
use super::unlearn::lay;
use crate::backend::gpu::driver::CAPABILITIES;
use crate::backend::gpu::{Precision, obstacle, probe};
use crate::error::{Error, Kind, Result};
use crate::folder;
use crate::model::{ModelConfig, Saving};
use crate::ops::StateMode;
use crate::report::units::bytes;
use crate::run::checks::check_data;
use crate::run::plan::{ATTENTION_RATE, MODELS, Need, PRODUCT_RATE, Plan, Target, model};
use crate::run::{Recipe, stream};

/// Options of `plan`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder; only its config.json is read
    #[arg(long, value_name = "DIR", required_unless_present = "params_preset")]
    model: Option<PathBuf>,
    /// A model whose shape is known
    #[arg(long, value_name = "NAME", conflicts_with = "model",
        value_parser = PossibleValuesParser::new(MODELS.map(|(name, _)| name)))]
    params_preset: Option<String>,
    /// Compute device
    #[arg(long, value_enum, default_value = "cuda")]
    device: Device,
    /// Activation precision on a GPU; the CPU computes in fp32
    #[arg(long, value_enum, default_value = "bf16")]
    precision: Storage,
    /// Device memory: 80GiB, 139GiB, 24000MiB, or auto for what is free on this machine now
    #[arg(
        long,
        visible_alias = "memory",
        value_name = "SIZE",
        default_value = "80GiB",
        default_value_if("device", "cpu", Some("auto"))
    )]
    gpu_memory: String,
    /// The forget set; only read to turn run.epochs into steps
    #[arg(long, value_name = "FILE", requires = "model")]
    forget: Option<PathBuf>,
    /// Longest forget document, in tokens
    #[arg(long, value_name = "N")]
    forget_tokens: Option<usize>,
    /// Longest retain document, in tokens
    #[arg(long, value_name = "N")]
    retain_tokens: Option<usize>,
    /// Settings to start from
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// A recipe, applied on top of the preset
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// One setting, applied on top of preset and recipe, as in --set model.state=exact; can be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let mut sets = args.set.clone();
    let contexts = [("forget", args.forget_tokens), ("retain", args.retain_tokens)];
    sets.extend(
        contexts.into_iter().filter_map(|(set, n)| Some(format!("data.{set}_context={}", n?))),
    );
    let mut recipe = Recipe::assemble(args.preset.as_deref(), args.config.as_deref(), &sets)?;
    let (name, config) = match (&args.model, &args.params_preset) {
        (Some(dir), _) => (dir.display().to_string(), folder::config(dir)?),
        (None, Some(name)) => (name.clone(), model(name)?),
        (None, None) => return Err(Error::config("--model: is not set")),
    };
    recipe.check_model(&config)?;
    lay(&mut recipe.data.forget, &args.forget);
    let mut length = length(args, &mut recipe)?;
    length.remarks.extend(recipe.long_contexts(&config));
    let target = match args.device {
        Device::Cpu => Target::Cpu,
        Device::Auto | Device::Cuda => Target::gpu(args.precision.into()),
        #[cfg(feature = "sim")]
        Device::Sim | Device::Sim90 => Target::gpu(args.precision.into()),
    };
    let (memory, device) = memory(&args.gpu_memory, target)?;
    let obstacles = obstacles(&config, target, args.precision.into(), device.as_ref());
    let plans: Vec<Plan> = StateMode::ALL
        .iter()
        .map(|mode| Plan::new(&config, &recipe, *mode, target, memory))
        .collect::<Result<_>>()?;
    let mode = recipe.state_mode(plans[0].trainable as usize);
    let used = plans.iter().find(|plan| plan.mode == mode.name()).unwrap_or(&plans[0]);
    let value = json!({
        "model": name, "device": target, "memory_bytes": memory, "state": used.mode,
        "steps": length.steps, "length": length.said, "remarks": length.remarks,
        "fits": used.fits, "modes": plans, "smallest": plans[1].need(), "cannot_run": obstacles,
        "assumed_rates": {"product": PRODUCT_RATE, "attention": ATTENTION_RATE},
    });
    let remarks: String = length.remarks.iter().map(|line| format!("{line}\n")).collect();
    out.result(&value, || {
        let plan = text(&name, target, &plans, used) + &unfit(&obstacles);
        format!("{plan}{}\n{MICRO_BATCH}\n{remarks}", length.said)
    })?;
    let checked = device.as_ref().map_or(CAPABILITIES.len(), |_| 1);
    if let Some(obstacle) = obstacles.first().filter(|_| obstacles.len() == checked) {
        let device = device.map_or("no GPU runs this model".to_owned(), |device| {
            format!("{} cannot run this model", device.name)
        });
        return Err(Error::new(Kind::Device, format!("plan: {device}: {}", obstacle.why))
            .hint("use --device cpu"));
    }
    used.require()
}

/// Note against reading documents in a pack as a micro-batch.
const MICRO_BATCH: &str = "run.micro_batch is a hyperparameter: losses are averaged over each micro-batch, so changing it changes \
    the result. For memory and speed change run.pack_tokens, which does not";

/// The length of the run, and the settings that it leaves without effect.
struct Length {
    /// `None` where it depends on data that is not named.
    steps: Option<u64>,
    said: String,
    remarks: Vec<String>,
}

/// Computes the steps of a run, from its forget set where it is measured in passes over that.
fn length(args: &Args, recipe: &mut Recipe) -> Result<Length> {
    let run = &recipe.run;
    let each = format!(
        "{} forget and {} retain documents each",
        recipe.forget_per_step(),
        if recipe.method.penalty == "none" { 0 } else { run.micro_batch * run.kl_accum_steps }
    );
    let named = !recipe.data.forget.as_os_str().is_empty();
    let derived = match (&args.model, run.epochs) {
        (Some(dir), 1..) if named => {
            check_data("data.forget", &recipe.data.forget)?;
            let documents = stream::forget_documents(dir, recipe)?;
            recipe.settle_steps(documents)
        }
        _ => None,
    };
    let (steps, said) = match (derived, recipe.run.epochs) {
        (Some(derived), _) => (Some(recipe.run.steps), format!("{derived}; {each}")),
        (None, 0) => (Some(recipe.run.steps), format!("{} steps, {each}", recipe.run.steps)),
        (None, epochs) => (
            None,
            format!(
                "run.epochs={epochs}: the steps follow from the number of forget documents (name them with --forget); \
                 {each}"
            ),
        ),
    };
    Ok(Length { steps, said, remarks: recipe.remarks() })
}

/// Why devices of a compute capability cannot run a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Obstacle {
    capability: String,
    why: String,
}

/// Checks what the kernels of a model need of a block against the device, or against every compute capability where none
/// is known.
fn obstacles(
    config: &ModelConfig,
    target: Target,
    precision: Precision,
    device: Option<&probe::Device>,
) -> Vec<Obstacle> {
    if target == Target::Cpu {
        return Vec::new();
    }
    let all = match device {
        Some(device) => vec![(device.capability, device.shared_bytes)],
        None => CAPABILITIES.to_vec(),
    };
    let heads = (config.head_width, config.score_cap.is_some());
    all.into_iter()
        .filter_map(|((major, minor), shared)| {
            let why = obstacle((major, minor), shared, precision, heads)?;
            Some(Obstacle { capability: format!("{major}.{minor}"), why })
        })
        .collect()
}

/// Says which devices cannot run a model, one line for each reason.
fn unfit(obstacles: &[Obstacle]) -> String {
    let mut text = String::new();
    for (i, Obstacle { why, .. }) in obstacles.iter().enumerate() {
        if obstacles[..i].iter().any(|before| before.why == *why) {
            continue;
        }
        let same = obstacles.iter().filter(|other| other.why == *why);
        let names: Vec<&str> = same.map(|other| other.capability.as_str()).collect();
        text.push_str(&format!("cannot run on compute capability {}: {why}\n", names.join(", ")));
    }
    text
}

fn text(name: &str, target: Target, plans: &[Plan], used: &Plan) -> String {
    let mut rows =
        vec![std::iter::once("").chain(plans.iter().map(|p| p.mode)).map(str::to_owned).collect()];
    let mut row = |label: &str, cell: &dyn Fn(&Plan) -> String| {
        rows.push(
            std::iter::once(label.to_owned()).chain(plans.iter().map(cell)).collect::<Vec<_>>(),
        );
    };
    for (i, category) in used.resident.iter().enumerate() {
        row(category.name, &|p| p.resident.get(i).map_or(String::new(), |c| bytes(c.bytes)));
    }
    row("resident", &|p| bytes(p.resident_bytes));
    row("per token", &|p| bytes(p.bytes_per_token));
    row("generation beside them", &|p| bytes(p.evaluation_bytes));
    row("largest pack, tokens", &|p| p.max_tokens.to_string());
    row("forget documents in it", &|p| p.forget_documents.to_string());
    row("retain documents in it", &|p| p.retain_documents.to_string());
    let Need { state, save, tokens, bytes: least } = plans[1].need();
    format!(
        "{name}: {} parameters, {} train; memory {}; the recipe uses state {}\n\n{}\n{}\n{}\n\
         the smallest run takes {}: state {state}, run.save={}, packs of {tokens} tokens\n",
        used.parameters,
        used.trainable,
        bytes(used.memory_bytes),
        used.mode,
        table(&rows),
        levels(used, target),
        chosen(used, target),
        bytes(least),
        save.name(),
    )
}

/// Lays out what each level of run.save would cost.
fn levels(plan: &Plan, target: Target) -> String {
    let head = ["run.save", "per token", "largest pack, tokens", "made again a step"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(plan.levels.iter().map(|choice| {
        vec![
            choice.saving.rest.name().to_owned(),
            bytes(choice.bytes_per_token),
            choice.max_tokens.to_string(),
            again(choice.again_flop, choice.again_seconds, target),
        ]
    }));
    table(&rows)
}

/// Says what is kept of which layers, and what that takes.
fn chosen(plan: &Plan, target: Target) -> String {
    let Saving { first, level, rest } = plan.saving;
    let kept = match first {
        0 => format!("{} of every layer", rest.name()),
        _ => format!("{} of the first {first} layers, {} of the rest", level.name(), rest.name()),
    };
    let mut text = format!(
        "kept for the backward pass: {kept}; packs of {} tokens then take {}; made again a step: {}\n",
        plan.pack_tokens,
        bytes(plan.pack_bytes),
        again(plan.again_flop, plan.again_seconds, target),
    );
    if plan.evaluation_bytes > 0 {
        text.push_str(&format!(
            "of these {} are for generation inside the run, beside the rows that it borrows\n",
            bytes(plan.evaluation_bytes)
        ));
    }
    if target == Target::Cuda && plan.again_flop > 0.0 {
        text.push_str(&format!(
            "seconds are those of {:.0} TFLOP/s for products and {:.0} for attention, which are assumed\n",
            PRODUCT_RATE / 1e12,
            ATTENTION_RATE / 1e12
        ));
    }
    text
}

fn again(flop: f64, seconds: f64, target: Target) -> String {
    match flop > 0.0 {
        false => "nothing".to_owned(),
        true if target == Target::Cuda => format!("{:.0} TFLOP, {seconds:.2} s", flop / 1e12),
        true => format!("{:.0} TFLOP", flop / 1e12),
    }
}

/// Reads a size, or looks at this machine for `auto`; then with the device that a run would take.
fn memory(text: &str, target: Target) -> Result<(u64, Option<probe::Device>)> {
    if text != "auto" {
        return Ok((size(text)?, None));
    }
    if target == Target::Cpu {
        let (_, available) = host_memory();
        return available.map(|bytes| (bytes, None)).ok_or_else(|| {
            Error::config("--gpu-memory auto: this system does not say what memory is free")
                .hint("name a size, as in --gpu-memory 16GiB")
        });
    }
    let probe = probe::probe();
    if let Some(problem) = probe.problem {
        let error = Error::from(problem).at("--gpu-memory auto");
        return Err(error.hint("name a size, as in --gpu-memory 80GiB"));
    }
    let device = probe.devices.into_iter().find(|d| d.supported()).ok_or_else(|| {
        Error::new(Kind::Device, "--gpu-memory auto: no device of compute capability 8.0 or more")
            .hint("name a size, as in --gpu-memory 80GiB")
    })?;
    Ok((device.free_bytes.unwrap_or(device.total_bytes), Some(device)))
}

fn size(text: &str) -> Result<u64> {
    const UNITS: [(&str, f64); 5] =
        [("GiB", 1073741824.0), ("MiB", 1048576.0), ("GB", 1e9), ("MB", 1e6), ("", 1.0)];
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = UNITS.iter().find(|(known, _)| known.eq_ignore_ascii_case(unit.trim()));
    match (number.trim().parse::<f64>(), factor) {
        (Ok(number), Some((_, factor))) if number > 0.0 && number.is_finite() => {
            Ok((number * factor) as u64)
        }
        _ => Err(Error::config(format!("--gpu-memory: `{text}` is no size"))
            .hint("as in 80GiB, 24000MiB, 40GB, a number of bytes, or auto")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_reads_units_and_refuses_the_rest() {
        assert_eq!(size("80GiB").unwrap(), 80 << 30);
        assert_eq!(size("1.5 mib").unwrap(), 3 << 19);
        assert!(size("2e3").is_err());
        assert_eq!(size("4096").unwrap(), 4096);
        for bad in ["", "GiB", "-1GiB", "0", "3TB", "80 Gibi"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unfit_names_the_devices_of_each_reason_once() {
        let obstacle = |capability: &str, why: &str| Obstacle {
            capability: capability.to_owned(),
            why: why.to_owned(),
        };
        let text = unfit(&[obstacle("8.6", "a"), obstacle("9.0", "b"), obstacle("8.9", "a")]);
        assert_eq!(
            text,
            "cannot run on compute capability 8.6, 8.9: a\ncannot run on compute capability 9.0: b\n"
        );
        assert_eq!(unfit(&[]), "");
    }
}

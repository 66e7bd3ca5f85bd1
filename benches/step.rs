//! A whole mean-teacher step (NLUL + QKL, SGD, clip, damping, teacher) on a model of random weights.
//!
//! Prints one JSON line: seconds a step beside the floor of its products on this machine, measured in the same run,
//! and the peak memory of the process. `benches/compare_cpu.sh` runs it beside PyTorch.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use clap::Parser;
use nepenthe::backend::cpu::{Cpu, on_worker};
use nepenthe::bench::floors;
use nepenthe::data::MicroBatch;
use nepenthe::method::passes::Passes;
use nepenthe::method::{FORGET, MeanTeacher, Method, PENALTIES, Settings, WeightRule, find};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Block, Model, Train};
use nepenthe::ops::{StateMode, TeacherForm};
use nepenthe::optim::Schedule;
use nepenthe::optim::UpdateRule;
use nepenthe::rng::Stream;
use nepenthe::run::plan;
use serde_json::json;

/// Times mean-teacher steps
#[derive(Debug, Parser)]
struct Args {
    /// A model whose shape is known: tiny, smollm2-135m, ...
    #[arg(long, default_value = "tiny")]
    model: String,
    #[arg(long, default_value_t = 4)]
    forget_batch: usize,
    #[arg(long, default_value_t = 8)]
    retain_batch: usize,
    /// Tokens of every document
    #[arg(long, default_value_t = 192)]
    seq: usize,
    /// Tokens run at once
    #[arg(long, default_value_t = 768)]
    pack_tokens: usize,
    /// exact or compact
    #[arg(long, default_value = "exact")]
    state: String,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    #[arg(long, default_value_t = 8)]
    steps: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Draws weights of scale 0.02; norms start at 1.
fn fill(block: &Block, out: &mut [f32]) {
    if block.name.contains("norm") {
        return out.fill(1.0);
    }
    let stream = Stream::new(1, &block.name);
    for (i, x) in out.iter_mut().enumerate() {
        *x = 0.07 * (stream.uniform(0, i as u64) - 0.5) as f32;
    }
}

fn batch(stream: &Stream, step: u64, rows: usize, seq: usize, vocab: usize) -> MicroBatch {
    let id = |i: usize| (stream.uniform(step, i as u64) * vocab as f64) as u32;
    MicroBatch::new((0..rows).map(|b| (0..seq).map(|t| id(b * seq + t)).collect::<Vec<_>>()))
}

/// The best rate of a plain product on all threads, FLOP/s: the roof.
fn roof() -> f64 {
    let n = 1536;
    let (a, b) = (vec![1.0f32; n * n], vec![1.0f32; n * n]);
    let mut c = vec![0.0f32; n * n];
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        // SAFETY: three dense n x n matrices.
        unsafe {
            gemm::gemm(
                n,
                n,
                n,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                1,
                n as isize,
                b.as_ptr(),
                1,
                n as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (n * n * n) as f64 / best
}

/// The most memory the process ever had resident, MiB.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

fn main() {
    let args = Args::parse();
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global().unwrap();
    let roof = roof();
    let config = plan::model(&args.model).unwrap();
    let ops = Cpu::<f32>::new();
    let mode = match args.state.as_str() {
        "exact" => StateMode::Exact,
        "compact" => StateMode::Compact,
        other => panic!("--state {other}: known are exact, compact"),
    };
    let keep = Keeping {
        train: Some(Train::Body),
        mode,
        teacher: if mode == StateMode::Exact { TeacherForm::Full } else { TeacherForm::Drift },
        rule: UpdateRule::Sgd { momentum: 0.9 },
        seed: 1,
    };
    let mut weights = |block: &Block, out: &mut [f32]| {
        fill(block, out);
        Ok(())
    };
    let model = Model::make(&ops, config.clone(), &keep, &mut weights).unwrap();
    let passes = Passes::new(&ops, &model, args.pack_tokens.max(args.seq), true).unwrap();
    let loss = find(&FORGET, "loss", "nlul").unwrap();
    let penalty = (find(&PENALTIES, "penalty", "qkl").unwrap(), WeightRule::Constant(1.0));
    let method = Method::new((loss, 0.05), [penalty], Default::default());
    let settings = Settings {
        clip: 1.0,
        damping: 5.0,
        teacher_rate: 0.005,
        schedule: Schedule::constant(5e-4),
    };
    let mut state = MeanTeacher::new(model, None, passes, method, settings);
    let ids = [Stream::new(1, "forget"), Stream::new(1, "retain")];
    let mut times = Vec::new();
    let mut phases = [Vec::new(), Vec::new()];
    for step in 0..(args.warmup + args.steps) as u64 {
        let forget = [batch(&ids[0], step, args.forget_batch, args.seq, config.vocab)];
        let retain = [batch(&ids[1], step, args.retain_batch, args.seq, config.vocab)];
        let start = Instant::now();
        let report = on_worker(|| state.step(&ops, &forget, &retain)).unwrap();
        assert!(!report.skipped);
        if step >= args.warmup as u64 {
            times.push(start.elapsed().as_secs_f64());
            phases[0].push(report.time_tr);
            phases[1].push(report.time_kl);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let seconds = median(&mut times);
    let [mut tr, mut kl] = phases;
    let flop = floors::step(&config, (args.forget_batch, args.seq), (args.retain_batch, args.seq));
    let tokens = (args.forget_batch + args.retain_batch) * args.seq;
    let line = json!({
        "kind": "step", "program": "nepenthe", "version": env!("CARGO_PKG_VERSION"), "preset": args.model,
        "state": args.state, "threads": args.threads, "forget": [args.forget_batch, args.seq],
        "retain": [args.retain_batch, args.seq], "pack_tokens": args.pack_tokens, "steps": args.steps,
        "median_ms": seconds * 1e3, "min_ms": times[0] * 1e3, "max_ms": times[times.len() - 1] * 1e3,
        "tokens_per_s": tokens as f64 / seconds, "model_gflop": flop / 1e9,
        "gflop_per_s": flop / seconds / 1e9, "roof_gflop_per_s": roof / 1e9,
        "floor_ms": flop / roof * 1e3, "time_over_floor": seconds * roof / flop, "peak_mb": peak_mib(),
        "phases_ms": {"forget_and_update": median(&mut tr) * 1e3, "teacher_and_retain": median(&mut kl) * 1e3},
    });
    println!("{line}");
}

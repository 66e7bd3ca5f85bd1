//! A whole mean-teacher step (NLUL + QKL, SGD, clip, damping, teacher) on a model of random weights.
//!
//! Prints one JSON line: seconds a step beside the floor of its products on this machine, measured in the same run,
//! and the peak memory of the process. `benches/compare_cpu.sh` runs it beside PyTorch.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use clap::Parser;
use nepenthe::backend::cpu::{Cpu, on_worker};
use nepenthe::data::MicroBatch;
use nepenthe::io::safetensors::{Dtype, Entry, Weights, write_file};
use nepenthe::method::passes::Passes;
use nepenthe::method::{FORGET, MeanTeacher, Method, PENALTIES, Settings, find};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Layout, Model, ModelConfig, Train};
use nepenthe::ops::{StateMode, TeacherForm, UpdateRule};
use nepenthe::optim::Schedule;
use nepenthe::rng::Stream;
use serde_json::{Value, json};

/// Times mean-teacher steps
#[derive(Debug, Parser)]
struct Args {
    /// tiny or smollm2-135m
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

fn config(name: &str) -> Value {
    let llama = |width, layers, heads, kv, ffn, vocab, theta: f64| {
        json!({
            "model_type": "llama", "hidden_act": "silu", "hidden_size": width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": ffn,
            "vocab_size": vocab, "rope_theta": theta, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "max_position_embeddings": 2048,
        })
    };
    match name {
        "tiny" => llama(128, 5, 4, 2, 384, 1024, 1e4),
        "smollm2-135m" => llama(576, 30, 9, 3, 1536, 49152, 1e5),
        _ => panic!("--model {name}: known are tiny, smollm2-135m"),
    }
}

/// Writes weights of scale 0.02 in bf16, which the run maps like any model folder.
fn write_weights(dir: &Path, config: &ModelConfig) {
    let layout = Layout::new(config, Train::Body);
    let entries: Vec<Entry> = layout
        .blocks
        .iter()
        .flat_map(|block| &block.parts)
        .map(|part| Entry {
            name: part.name.clone(),
            dtype: Dtype::Bf16,
            shape: part.shape.clone(),
        })
        .collect();
    let (stream, mut tensor) = (Stream::new(1, "bench"), 0);
    write_file(&dir.join("model.safetensors"), &entries, &BTreeMap::new(), &mut |entry, out| {
        tensor += 1;
        let gain = entry.name.contains("norm");
        let bytes: Vec<u8> = (0..entry.bytes() as u64 / 2)
            .flat_map(|i| {
                let x = if gain { 1.0 } else { 0.07 * (stream.uniform(tensor, i) - 0.5) };
                ((x as f32).to_bits() >> 16).to_le_bytes().into_iter().take(2)
            })
            .collect();
        out.write_all(&bytes).unwrap();
        Ok(())
    })
    .unwrap();
}

fn batch(stream: &Stream, step: u64, rows: usize, seq: usize, vocab: usize) -> MicroBatch {
    let id = |i: usize| (stream.uniform(step, i as u64) * vocab as f64) as u32;
    MicroBatch::new((0..rows).map(|b| (0..seq).map(|t| id(b * seq + t)).collect::<Vec<_>>()))
}

/// Products of a step, in FLOP: forward 1, backward 2 (head 1: it is frozen), teacher 1, causal attention half.
fn flop(config: &ModelConfig, args: &Args) -> f64 {
    let heads = config.heads(0);
    let (c, f) = (config.width as f64, config.ffn as f64);
    let qkv = (heads.h + 2 * heads.g) as f64 * heads.d as f64;
    let out = heads.h as f64 * heads.d as f64;
    let linear = 2.0 * config.layers as f64 * (c * qkv + c * out + 3.0 * c * f);
    let head = 2.0 * c * config.vocab as f64;
    let attention = 2.0 * args.seq as f64 * out * config.layers as f64;
    let student = 3.0 * linear + 2.0 * head + 3.5 * attention;
    let teacher = linear + head + attention;
    let (forget, retain) = (args.forget_batch * args.seq, args.retain_batch * args.seq);
    (forget + retain) as f64 * student + retain as f64 * teacher
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
    let config = ModelConfig::parse(&config(&args.model).to_string()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_weights(dir.path(), &config);
    let weights = Weights::open(dir.path()).unwrap();
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
    let model = Model::load(&ops, config.clone(), &weights, &keep).unwrap();
    let passes = Passes::new(&ops, &model, args.pack_tokens.max(args.seq), true).unwrap();
    let method = Method {
        loss: find(&FORGET, "loss", "nlul").unwrap(),
        penalty: Some(find(&PENALTIES, "penalty", "qkl").unwrap()),
        knobs: Default::default(),
    };
    let settings = Settings {
        forget_weight: 0.05,
        retain_weight: 1.0,
        clip: 1.0,
        damping: 5.0,
        teacher_rate: 0.005,
        schedule: Schedule { lr: 5e-4, warmup: None },
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
    let flop = flop(&config, &args);
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

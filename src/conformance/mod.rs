//! Every op of a device against the CPU backend, at odd shapes: what `doctor` and the test suite both run.
//!
//! A family is one file with its shapes. Each case runs on the device twice, which must give equal bytes, and once on
//! the CPU in f64; outputs start as NaN, so that an entry nobody wrote is found.

mod attention;
mod decode;
mod elementwise;
mod embed;
mod fused;
mod head;
mod layernorm;
mod linear;
mod mse;
mod norm;
mod positions;
mod rope;
mod row_sums;
mod sample;
mod state;
mod tolerance;
pub mod trajectory;

pub use tolerance::{Dtype, tol};

use serde::Serialize;

use crate::backend::cpu::Cpu;
use crate::backend::gpu::{Act, Gpu, Grad, Precision, Stat, Tile};
use crate::error::Result;
use crate::ops::{Memory, PackData, ParamSpec, StateMode, TeacherForm, Transfer};
use crate::optim::UpdateRule;
use crate::rng::Stream;

/// A family of ops and the function that runs its cases.
pub type Family = (&'static str, fn(&Gpu) -> Vec<Verdict>);

/// All families, in the order in which a step needs them.
pub const FAMILIES: &[Family] = &[
    ("embed", embed::run),
    ("positions", positions::run),
    ("norm", norm::run),
    ("layernorm", layernorm::run),
    ("linear", linear::run),
    ("rope", rope::run),
    ("attention", attention::run),
    ("elementwise", elementwise::run),
    ("fused", fused::run),
    ("head", head::run),
    ("mse", mse::run),
    ("row_sums", row_sums::run),
    ("decode", decode::run),
    ("sample", sample::run),
    ("state", state::run),
];

/// The result of one case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The op and the shape.
    pub case: String,
    /// The largest error of any output over what its tolerance allows.
    pub worst: f64,
    /// The failure, if any.
    pub failure: Option<String>,
}

/// One output of an op: what the device gave and what the CPU says.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its name.
    pub name: &'static str,
    /// The device's numbers.
    pub got: Vec<f32>,
    /// The CPU's numbers in f64.
    pub want: Vec<f64>,
    /// Storage type on the device.
    pub stored: Dtype,
    /// Type to which GEMMs on the way round, and the length of the longest sum.
    pub sums: (Dtype, usize),
}

/// The device at test and the oracle.
pub struct Bench<'a> {
    /// The device.
    pub gpu: &'a Gpu,
    /// The oracle.
    pub cpu: Cpu<f64>,
}

impl<'a> Bench<'a> {
    /// Puts both together.
    pub fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, cpu: Cpu::new() }
    }

    /// Returns what activations are stored in.
    pub fn stored(&self) -> Dtype {
        match self.gpu.precision() {
            Precision::Bf16 => Dtype::Bf16,
            Precision::Fp32 => Dtype::F32,
        }
    }

    /// Returns what the operands of matrix products are rounded to beyond their storage.
    pub fn products(&self) -> Dtype {
        match self.gpu.precision() {
            // Products of two bf16 are exact in fp32.
            Precision::Bf16 => Dtype::F32,
            Precision::Fp32 => Dtype::Tf32,
        }
    }

    /// Rounds to what the device stores, so that both sides start from equal numbers.
    pub fn round(&self, x: &[f64]) -> Vec<f64> {
        x.iter()
            .map(|x| match self.gpu.precision() {
                Precision::Bf16 => {
                    f64::from(crate::ops::format::widen(crate::ops::format::narrow_even(*x as f32)))
                }
                Precision::Fp32 => f64::from(*x as f32),
            })
            .collect()
    }

    /// Puts numbers on the device.
    pub fn act(&self, x: &[f64]) -> Result<Act> {
        let mut act = self.gpu.act(x.len())?;
        let narrow: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        self.gpu.write_act(&narrow, &mut act);
        Ok(act)
    }

    /// Makes activations of NaN, for an op to overwrite.
    pub fn stale_act(&self, len: usize) -> Result<Act> {
        self.act(&vec![f64::NAN; len])
    }

    /// Puts statistics on the device.
    pub fn stat(&self, x: &[f64]) -> Result<Stat> {
        let mut stat = self.gpu.stat(x.len())?;
        self.gpu.write_stat(x, &mut stat);
        Ok(stat)
    }

    /// Makes statistics of NaN, for an op to overwrite.
    pub fn stale_stat(&self, len: usize) -> Result<Stat> {
        self.stat(&vec![f64::NAN; len])
    }

    /// Copies the first `len` activations to the host.
    pub fn read_act(&self, act: &Act, len: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; len];
        self.gpu.read_act(act, &mut out);
        out
    }

    /// Copies the first `len` statistics to the host.
    pub fn read_stat(&self, stat: &Stat, len: usize) -> Vec<f32> {
        let mut out = vec![f64::NAN; len];
        self.gpu.read_stat(stat, &mut out);
        out.into_iter().map(|x| x as f32).collect()
    }

    /// Runs a case twice and judges it.
    pub fn judge(&self, case: String, run: impl Fn() -> Result<Vec<Output>>) -> Verdict {
        let once = || {
            let outputs = run()?;
            self.gpu.sync()?;
            Ok::<_, crate::Error>(outputs)
        };
        match once().and_then(|first| Ok((first, once()?))) {
            Ok((first, second)) => {
                let mut verdict = Verdict { case, worst: 0.0, failure: None };
                for (a, b) in first.iter().zip(&second) {
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    if bits(&a.got) != bits(&b.got) {
                        verdict.fail(format!("{}: two runs differ", a.name));
                    }
                }
                first.iter().for_each(|output| verdict.compare(output));
                verdict
            }
            Err(error) => Verdict { case, worst: f64::INFINITY, failure: Some(error.to_string()) },
        }
    }
}

impl Verdict {
    fn fail(&mut self, text: String) {
        self.failure.get_or_insert(text);
    }

    /// Holds an output to its tolerance, relative to the largest number wanted.
    fn compare(&mut self, output: &Output) {
        let Output { name, got, want, stored, sums } = output;
        if got.len() != want.len() {
            return self.fail(format!("{name}: {} numbers, wanted {}", got.len(), want.len()));
        }
        let scale = want.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        let allowed = tol(sums.0, sums.1) + tol(*stored, 0) / 8.0;
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            let share = if error == 0.0 { 0.0 } else { error / (allowed * scale) };
            if share.is_nan() || share > 1.0 {
                self.worst = f64::INFINITY;
                return self.fail(format!(
                    "{name}: entry {i}: got {got:e}, want {want:e}, scale {scale:e}, allowed {allowed:e}"
                ));
            }
            self.worst = self.worst.max(share);
        }
    }
}

/// Numbers that depend on a seed and on how many were drawn before. Each case states its seed, so that a new name or shape
/// of another case changes nothing here.
pub struct Random {
    stream: Stream,
    drawn: u64,
}

impl Random {
    /// Starts the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { stream: Stream::new(seed, "conformance"), drawn: 0 }
    }

    fn next(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    /// Draws a number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        let at = self.next();
        self.stream.uniform(0, at)
    }

    /// Draws a whole number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        let at = self.next();
        self.stream.below(0, at, bound as u64) as usize
    }

    /// Draws numbers in (-1, 1).
    pub fn vec(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| 2.0 * self.unit() - 1.0).collect()
    }
}

/// Makes an empty gradient on the device.
pub(crate) fn grad(gpu: &Gpu, len: usize, mode: StateMode) -> Result<Grad> {
    gpu.grad(&ParamSpec {
        name: "gradient".to_string(),
        len,
        trainable: true,
        mode,
        teacher: TeacherForm::None,
        rule: UpdateRule::Sgd { momentum: 0.0 },
        seed: 0,
    })
}

/// The tiles that [`Gpu::force_tile`] can ask for on every device; `None` is the one that a run would take.
const TILES: [Option<Tile>; 4] = [None, Some(Tile::Large), Some(Tile::Medium), Some(Tile::Small)];

/// Every tile, and the kernels for few rows of generation, which no tile is forced on.
fn with_few_rows(
    tiles: impl IntoIterator<Item = Option<Tile>>,
) -> impl Iterator<Item = (Option<Tile>, bool)> {
    tiles.into_iter().map(|tile| (tile, false)).chain([(None, true)])
}

/// The tiles that compute capability 9.0 has besides, in bf16.
const SM90_TILES: [Tile; 2] = [Tile::Sm90Large, Tile::Sm90Medium];

/// Returns the tiles of `SM90_TILES` that the device has.
fn sm90_tiles(bench: &Bench<'_>) -> &'static [Tile] {
    let has = bench.gpu.driver().identity().capability == (9, 0);
    if has && bench.gpu.precision() == Precision::Bf16 { &SM90_TILES } else { &[] }
}

/// Runs `case` on a device that takes `tile` for its products.
fn with_tile(bench: &Bench<'_>, tile: Option<Tile>, case: impl FnOnce() -> Verdict) -> Verdict {
    bench.gpu.force_tile(tile);
    let verdict = case();
    bench.gpu.force_tile(None);
    verdict
}

/// Lays documents of the given lengths end to end, with random ids and coefficient 1.
pub fn documents(lengths: &[usize], vocab: usize, random: &mut Random) -> PackData {
    let mut data = PackData::default();
    for &len in lengths {
        let ids: Vec<u32> = (0..len).map(|_| random.below(vocab) as u32).collect();
        data.push(&ids, |_| 1.0);
    }
    data
}

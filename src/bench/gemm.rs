//! The products of a layer: forward, input gradient and weight gradient of each linear map, alone and with what
//! follows them.

use super::floors::{self, Floor};
use super::lab::Case;
use super::rival::Product;
use super::{Lab, Measurement, Preset, fused};
use crate::backend::gpu::{Act, Grad};
use crate::conformance::grad;
use crate::error::Result;
use crate::ops::{Compute, LinearArgs, LinearShape, Memory};

/// Purpose of a linear map's GEMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// `y = x w^T`.
    Forward,
    /// `dx = dy w`.
    Input,
    /// `dw += dy^T x`.
    Weight,
}

impl Pass {
    /// Returns which operands are stored the other way round than `[m, k] [k, n]`.
    fn transposed(self) -> [bool; 2] {
        match self {
            Self::Forward => [false, true],
            Self::Input => [false, false],
            Self::Weight => [true, false],
        }
    }
}

/// A product and what is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub pass: Pass,
    /// Forward: a residual is added. A weight gradient always adds to itself, as all but the first of a step do.
    pub residual: bool,
    /// True if the rows are single tokens of generation.
    pub few: bool,
}

impl Form {
    /// A plain `x w^T`.
    pub(super) const FORWARD: Self = Self { pass: Pass::Forward, residual: false, few: false };

    /// Returns whether the product is added to something.
    pub(super) fn adds(self) -> bool {
        self.residual || self.pass == Pass::Weight
    }
}

/// Measures every product of a layer.
pub(super) fn run(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let (config, n) = (&preset.config, preset.tokens());
    let (heads, c, f) = (config.heads(0), config.width, config.ffn);
    let maps = [
        ("qkv", heads.qkv_width(), c, false),
        ("out", c, heads.out_width(), true),
        ("gate and up", 2 * f, c, false),
        ("down", c, f, true),
    ];
    let mut lines = Vec::new();
    for (map, o, i, residual) in maps {
        for (pass, label, shape) in [
            (Pass::Forward, "forward", (n, o, i)),
            (Pass::Input, "input gradient", (n, i, o)),
            (Pass::Weight, "weight gradient", (o, i, n)),
        ] {
            let residual = residual && pass == Pass::Forward;
            let form = Form { pass, residual, few: false };
            let floor = floors::product(shape, lab.stored(), lab.stored(), form.adds());
            let name = format!("{} {map} {label}", preset.name);
            lines.push(measure(lab, "gemm", name, shape, form, floor)?);
        }
        // A token of each sequence, as generation has them: the weights' bytes are all that counts.
        let shape = (preset.cached.0, o, i);
        let form = Form { residual, few: true, ..Form::FORWARD };
        let floor = floors::product(shape, lab.stored(), lab.stored(), residual);
        let name = format!("{} {map} decode", preset.name);
        lines.push(measure(lab, "gemm", name, shape, form, floor)?);
    }
    lines.extend(fused::run(lab, preset)?);
    Ok(lines)
}

/// Operands and result of a product.
struct Set {
    a: Act,
    b: Act,
    result: Sink,
    residual: Option<Act>,
}

/// Where a product goes.
enum Sink {
    Act(Act),
    Grad(Grad),
}

impl Sink {
    fn address(&self) -> u64 {
        match self {
            Self::Act(act) => act.address(),
            Self::Grad(grad) => grad.address(),
        }
    }
}

/// Measures the product `[m, k] [k, n]` in the form of a pass, and the rival's.
pub(super) fn measure(
    lab: &Lab,
    kind: &'static str,
    name: String,
    (m, n, k): (usize, usize, usize),
    form: Form,
    floor: Floor,
) -> Result<Measurement> {
    let gpu = lab.gpu(0)?;
    gpu.single_tokens(form.few);
    let mut sets = lab.sets(floor, |_| {
        Ok(Set {
            a: lab.act(&gpu, m * k, 1.0)?,
            b: lab.act(&gpu, n * k, 0.02)?,
            result: if form.pass == Pass::Weight {
                Sink::Grad(grad(&gpu, m * n, lab.mode())?)
            } else {
                Sink::Act(gpu.act(m * n)?)
            },
            residual: form.residual.then(|| lab.act(&gpu, m * n, 1.0)).transpose()?,
        })
    })?;
    let seconds = lab.time(&gpu, &mut sets, |set| {
        let Set { a, b, result, residual } = set;
        match (form.pass, result) {
            (Pass::Forward, Sink::Act(y)) => {
                let shape = LinearShape { n: m, o: n, i: k };
                let args = LinearArgs { shape, x: &*a, w: b.as_weight(), bias: None };
                gpu.linear(args, residual.as_ref(), y);
            }
            (_, Sink::Act(dx)) => {
                gpu.linear_dgrad(LinearShape { n: m, o: k, i: n }, a, b.as_weight(), dx);
            }
            (_, Sink::Grad(dw)) => gpu.linear_wgrad(LinearShape { n: k, o: m, i: n }, a, b, dw),
        }
        Ok(())
    })?;
    if let Some(set) = sets.first() {
        match &set.result {
            Sink::Act(act) => lab.check_act(&gpu, &name, act, m * n)?,
            Sink::Grad(grad) => lab.check_grad(&gpu, &name, grad, m * n)?,
        }
    }
    let product = Product {
        shape: (m, n, k),
        transposed: form.pass.transposed(),
        adds: form.adds(),
        wide: lab.stored() > 2.0,
    };
    let addresses = |set: &Set| {
        let c = set.residual.as_ref().map_or(set.result.address(), Act::address);
        [set.a.address(), set.b.address(), c, set.result.address()]
    };
    let rival = lab.rival.time(&product, &mut sets, addresses, &|sets, repeat, run| {
        lab.laps(&gpu, sets, repeat.unwrap_or(lab.repeat()), run, None)
    })?;
    let shape = format!("{m}x{n}x{k}");
    Ok(lab.record(Case { kind, name, shape, floor }, seconds, rival))
}

//! The head with its loss rows: statistics alone, NLUL with its gradient, QKL with its gradient.

use super::floors;
use super::lab::Case;
use super::{Lab, Measurement, Preset};
use crate::conformance::{Random, documents};
use crate::error::Result;
use crate::method::{FORGET, Rows, find};
use crate::ops::{
    Compute, HeadGrads, HeadReference, HeadRows, HeadShape, HeadWeight, Matched, Memory, RowStats,
    TokenFormula, TokenWeight, Transfer,
};

/// Measures the sweeps of the paper's step and of an evaluation.
pub(super) fn run(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let (gpu, n) = (lab.gpu(0)?, preset.tokens());
    let (c, v) = (preset.config.width, preset.config.vocab);
    let shape = HeadShape { n, c, v };
    let mut pack = gpu.pack(n)?;
    let mut data = documents(&preset.lengths(), v, &mut Random::new(34));
    data.coefs.fill(1.0 / n as f64);
    gpu.load_pack(&mut pack, &data);
    gpu.reserve(shape, true)?;
    let w = lab.act(&gpu, v * c, 0.02)?;
    let mut stats = RowStats { nll: gpu.stat(n)?, value: gpu.stat(n)?, hit: gpu.stat(n)? };
    let plain = TokenFormula::constant(1.0);
    let nlul = match find(&FORGET, "bench", "nlul")?.rows(&preset.recipe.method.knobs) {
        Rows::Token(formula) => formula,
        _ => plain,
    };
    let mut lines = Vec::new();
    for (name, products) in [("statistics", 1), ("nlul", 2), ("qkl", 3)] {
        let floor = floors::head(shape, products, lab.stored());
        let mut sets = lab.sets(floor, |_| {
            let act = || lab.act(&gpu, n * c, 1.0);
            Ok((act()?, act()?, act()?))
        })?;
        let seconds = lab.time(&gpu, &mut sets, |(h, h_ref, dh)| {
            let (w, grads) =
                (HeadWeight::plain(w.as_weight()), |dh| Some(HeadGrads { dh, dw: None, db: None }));
            let stats = &mut stats;
            match products {
                1 => gpu.head_onehot(
                    HeadRows { shape, first: 0, pack: &pack, h, w },
                    TokenWeight::Formula(plain),
                    stats,
                    None,
                ),
                2 => {
                    let weight = TokenWeight::Formula(nlul);
                    gpu.head_onehot(
                        HeadRows { shape, first: 0, pack: &pack, h, w },
                        weight,
                        stats,
                        grads(dh),
                    );
                }
                _ => {
                    let target = Matched::Qkl;
                    gpu.head_matched(
                        HeadRows { shape, first: 0, pack: &pack, h, w },
                        HeadReference { h: h_ref, w: None },
                        target,
                        stats,
                        grads(dh),
                    );
                }
            }
            Ok(())
        })?;
        let name = format!("{} {name}", preset.name);
        if let Some((_, _, dh)) = sets.first() {
            lab.check_act(&gpu, &name, dh, n * c)?;
        }
        let mut values = vec![0.0; n];
        gpu.read_stat(&stats.value, &mut values);
        lab.check(&name, &values.iter().map(|x| *x as f32).collect::<Vec<_>>())?;
        let shape = format!("{n}x{v}x{c}");
        lines.push(lab.record(Case { kind: "head", name, shape, floor }, seconds, None));
    }
    Ok(lines)
}

//! The roofs: what the device copies and what it multiplies at best, measured like everything else.

use super::floors::{Floor, product};
use super::gemm::{self, Form};
use super::lab::Case;
use super::{Lab, Measurement, Preset, ROOF, Roofs};
use crate::error::Result;

/// Measures both roofs; the rate of products is the better one of ours and the rival's.
pub(super) fn measure(lab: &Lab, preset: &Preset) -> Result<(Roofs, Vec<Measurement>)> {
    let copy = copy(lab, preset.copied)?;
    let side = preset.side;
    let floor = product((side, side, side), lab.stored(), lab.stored(), false);
    let name = "square product".to_owned();
    let product = gemm::measure(lab, ROOF, name, (side, side, side), Form::FORWARD, floor)?;
    let best = product.rival_rate.map_or(product.rate, |rival| rival.max(product.rate));
    let roofs = Roofs { flops: best * 1e12, bytes: copy.rate * 1e9 };
    Ok((roofs, vec![copy, product]))
}

/// Times the driver's own copy inside device memory.
fn copy(lab: &Lab, bytes: usize) -> Result<Measurement> {
    let gpu = lab.gpu(0)?;
    let len = bytes / lab.stored() as usize;
    let floor = Floor { flop: 0.0, bytes: 2.0 * bytes as f64 };
    let mut sets = lab.sets(floor, |_| Ok((lab.act(&gpu, len, 1.0)?, lab.act(&gpu, len, 1.0)?)))?;
    let seconds = lab.time(&gpu, &mut sets, |(from, to)| {
        lab.driver().copy(from.address(), to.address(), bytes as u64)
    })?;
    let case = Case { kind: ROOF, name: "copy".to_owned(), shape: bytes.to_string(), floor };
    Ok(lab.record(case, seconds, None))
}

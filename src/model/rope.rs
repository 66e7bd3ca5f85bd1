//! Rotary frequencies of a model.

use super::config::{RopeConfig, RopeScaling};
use crate::ops::RopeTable;

/// Computes the frequencies in f64.
///
/// Source: transformers `modeling_rope_utils.py`, `_compute_default_rope_parameters`,
/// `_compute_linear_scaling_rope_parameters`, `_compute_llama3_parameters`.
pub fn table(config: &RopeConfig) -> RopeTable {
    let plain =
        (0..config.width / 2).map(|i| config.theta.powf(-((2 * i) as f64) / config.width as f64));
    let inv_freq = match config.scaling {
        RopeScaling::Default => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 { factor, low, high, original } => plain
            .map(|f| {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                if wavelength < original / high {
                    f
                } else if wavelength > original / low {
                    f / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            })
            .collect(),
    };
    RopeTable { inv_freq, scale: 1.0 }
}

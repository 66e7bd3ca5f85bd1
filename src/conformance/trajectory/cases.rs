//! The records that this binary carries, so that a copied one can check a device.

use super::{Recorded, parse};
use crate::error::Result;
use crate::io::safetensors::Weights;

/// The files of a record and of the model it starts from.
struct Files {
    name: &'static str,
    record: &'static str,
    batches: &'static [u8],
    finals: &'static [u8],
    config: &'static str,
    model: &'static [u8],
}

macro_rules! golden {
    ($include:ident, $($part:literal),+) => {
        $include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/data/", $($part),+))
    };
}

macro_rules! files {
    ($name:literal from $model:literal) => {
        Files {
            name: $name,
            record: golden!(include_str, "trajectories/", $name, "/trajectory.json"),
            batches: golden!(include_bytes, "trajectories/", $name, "/batches.safetensors"),
            finals: golden!(
                include_bytes,
                "trajectories/",
                $name,
                "/final_f64_rounded.safetensors"
            ),
            config: golden!(include_str, "models/", $model, "/config.json"),
            model: golden!(include_bytes, "models/", $model, "/model.safetensors"),
        }
    };
}

static EMBEDDED: [Files; 2] =
    [files!("a_sgd_nlul_qkl" from "llama-gqa"), files!("f_adamw_nlul_kl_damped" from "llama-mha")];

impl Recorded {
    /// Reads the records that this binary carries.
    pub fn embedded() -> Result<Vec<Self>> {
        EMBEDDED
            .iter()
            .map(|files| {
                Self::new(
                    files.name,
                    parse(files.name, files.record)?,
                    files.config,
                    Weights::from_bytes("model.safetensors", files.model)?,
                    Weights::from_bytes("batches.safetensors", files.batches)?,
                    Weights::from_bytes("final_f64_rounded.safetensors", files.finals)?,
                )
            })
            .collect()
    }
}

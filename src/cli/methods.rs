//! `methods`.

use serde_json::{Value, json};

use super::output::{Output, table};
use crate::error::Result;
use crate::method::{FORGET, Objective, PENALTIES};

/// Options of `methods`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args, out: &Output) -> Result<()> {
    let object = |one: &&dyn Objective| json!({"name": one.name(), "formula": one.formula()});
    let losses: Vec<Value> = FORGET.iter().map(object).collect();
    let penalties: Vec<Value> = PENALTIES.iter().map(object).collect();
    out.result(&json!({"losses": losses, "penalties": penalties}), || {
        let row = |kind: &str, one: &dyn Objective| {
            [kind, one.name(), one.formula()].map(str::to_owned).to_vec()
        };
        let losses = FORGET.iter().map(|one| row("method.loss", *one));
        let rows: Vec<Vec<String>> =
            losses.chain(PENALTIES.iter().map(|one| row("method.penalty", *one))).collect();
        table(&rows)
    })
}

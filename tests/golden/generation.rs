//! Greedy decoding: single prompts, whole batches, end tokens.

use std::path::Path;

use nepenthe::backend::cpu::Cpu;
use nepenthe::io::safetensors::Weights;
use nepenthe::method::{self, Knobs};
use nepenthe::model::generate::{Choice, Request, generate};
use nepenthe::ops::TeacherForm;
use nepenthe::optim::UpdateRule;
use serde_json::Value;

use crate::engine::*;

fn ids(value: &Value) -> Check<Vec<u32>> {
    let list = value.as_array().ok_or("no list of ids")?;
    list.iter().map(|v| v.as_u64().map(|id| id as u32).ok_or("no id".to_owned())).collect()
}

fn lists(value: &Value) -> Check<Vec<Vec<u32>>> {
    value.as_array().ok_or("no list of lists")?.iter().map(ids).collect()
}

/// Runs `greedy_generation.json`.
pub fn greedy(file: &Path, root: &Path) -> Check<String> {
    let mut outputs = 0;
    let recorded = json(file)?;
    for record in recorded.as_array().ok_or("no list of models")? {
        let folder = root.join(record["model"].as_str().ok_or("no model")?);
        let ops = Cpu::<f32>::new();
        let keep = keeping(None, TeacherForm::None, UpdateRule::Sgd { momentum: 0.0 });
        let mut model = load::<f32>(&folder, "config.json", &keep)?;
        let max_new_tokens = number(record, &["max_new_tokens"])? as usize;
        let mut run = |prompts: &[Vec<u32>], end_tokens: &[u32], batch: usize| {
            let end_tokens = end_tokens.to_vec();
            let request = Request { max_new_tokens, end_tokens, choice: Choice::Greedy, batch };
            generate(&ops, &mut model, prompts, &request).map_err(|e| e.to_string())
        };
        let single = record["no_end_token"].as_array().ok_or("no single prompts")?;
        let prompts = single.iter().map(|r| ids(&r["prompt"])).collect::<Check<Vec<_>>>()?;
        let want = single.iter().map(|r| ids(&r["new_ids"])).collect::<Check<Vec<_>>>()?;
        let batched = &record["batch_left_padded"];
        // Left padding is what the recorded program needed; here the same prompts are packed.
        let masks = lists(&batched["attention_mask"])?;
        let padded: Vec<Vec<u32>> = lists(&batched["input_ids"])?
            .iter()
            .zip(&masks)
            .map(|(row, mask)| {
                row.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect()
            })
            .collect();
        let end = &record["with_end_token"];
        let eos = number(end, &["eos_token_id"])? as u32;
        let pad = number(end, &["pad_token_id"])? as u32;
        let strip = |rows: Vec<Vec<u32>>| -> Vec<Vec<u32>> {
            let cut = |mut row: Vec<u32>| {
                if let Some(at) = row.iter().position(|id| *id == eos) {
                    let filled = row[at + 1..].iter().all(|id| *id == pad);
                    row.truncate(if filled { at + 1 } else { row.len() });
                }
                row
            };
            rows.into_iter().map(cut).collect()
        };
        let checks = [
            ("one at a time", run(&prompts, &[], 1)?, want),
            ("in one batch", run(&padded, &[], padded.len())?, lists(&batched["new_ids"])?),
            ("with end token", run(&prompts, &[eos], 1)?, lists(&end["new_ids_single"])?),
            (
                "batch with end token",
                run(&prompts, &[eos], 5)?,
                strip(lists(&end["new_ids_batch"])?),
            ),
        ];
        for (what, got, want) in checks {
            if got != want {
                let at = got.iter().zip(&want).position(|(g, w)| g != w);
                return Err(format!("{what}: prompt {at:?} differs"));
            }
            outputs += got.len();
        }
    }
    Ok(format!("{outputs} outputs, ids equal"))
}

/// Runs `nll_and_acc.json`.
pub fn nll_and_acc(file: &Path, root: &Path) -> Check<String> {
    let record = json(file)?;
    let folder = root.join(record["model"].as_str().ok_or("no model")?);
    let ops = Cpu::<f32>::new();
    let keep = keeping(None, TeacherForm::None, UpdateRule::Sgd { momentum: 0.0 });
    let mut model = load::<f32>(&folder, "config.json", &keep)?;
    let batch = root.join(record["batch"].as_str().ok_or("no batch")?);
    let batch = Weights::open_file(&batch).map_err(|e| e.to_string())?;
    let batches = batches(&batch, "", true)?;
    let mut passes = passes(&model, &batches, false)?;
    let nll = method::find(&method::FORGET, "loss", "nll").map_err(|e| e.to_string())?;
    let sums = passes
        .sweep(
            &ops,
            &mut model,
            None,
            &Knobs::default(),
            nepenthe::method::passes::Task::new(nll, &batches, None),
        )
        .map_err(|e| e.to_string())?;
    for value in record["values"].as_array().ok_or("no values")? {
        near("loss", sums.nll, number(value, &["loss"])?, 0.0, 2e-5)?;
        near("accuracy", sums.accuracy, number(value, &["accuracy"])?, 0.0, 1e-7)?;
    }
    Ok("loss and accuracy".into())
}

//! The training state of a run before its first step: models, buffers, and what the method prepares.

use std::path::PathBuf;

use super::recipe::Recipe;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::method::loss::rmu;
use crate::method::passes::Passes;
use crate::method::{MeanTeacher, Reference, projection};
use crate::model::params::Keeping;
use crate::model::{Model, ModelConfig, Saving};
use crate::ops::Ops;
use crate::report::notices;

/// Loads what a recipe trains, with buffers for packs of `tokens` tokens; `retain` is what a shield is found from.
pub(crate) fn load<O: Ops>(
    ops: &O,
    recipe: &Recipe,
    folder: &mut Folder,
    keep: &Keeping,
    tokens: usize,
    saving: Saving,
    retain: Option<&Stream>,
) -> Result<MeanTeacher<O>> {
    recipe.check_model(&folder.config)?;
    let method = recipe.method()?;
    let model = Model::load(ops, folder.config.clone(), &folder.weights, keep)?;
    let passes = Passes::saving(ops, &model, tokens, Some(saving))?;
    let base = method.reads(Reference::Frozen);
    let base = base.then(|| base_model(ops, recipe, &model.config, &mut folder.notices));
    let mut state = MeanTeacher::new(model, base.transpose()?, passes, method, recipe.settings());
    rmu::prepare(ops, &mut state, recipe.seed)?;
    let terms = state.method.terms.len();
    state.combine = recipe.combination()?.prepare(ops, &state.model, keep, terms)?;
    if let (Some(setup), Some(retain)) = (recipe.projection(tokens), retain) {
        projection::prepare(
            ops,
            &mut state,
            setup,
            &retain.first(recipe.method.shield_documents)?,
        )?;
    }
    Ok(state)
}

/// Loads the model that the loss compares with the one of `config`; says what is new in its notices.
pub(crate) fn base_model<O: Ops>(
    ops: &O,
    recipe: &Recipe,
    config: &ModelConfig,
    notices: &mut Vec<String>,
) -> Result<Model<O>> {
    let own = recipe.model.base.as_os_str().is_empty();
    let folder: &PathBuf = if own { &recipe.model.path } else { &recipe.model.base };
    let folder = Folder::open(folder)?;
    notices::say_more(notices, folder.notices);
    let (cap, wanted) = (folder.config.logit_cap, config.logit_cap);
    if cap != wanted {
        let show = |cap: Option<f64>| cap.map_or("no cap".into(), |cap| format!("a cap of {cap}"));
        return Err(Error::config(format!(
            "model.base: its logits have {}, those of model.path {}",
            show(cap),
            show(wanted)
        ))
        .hint("compare models of one architecture"));
    }
    Model::load(ops, folder.config, &folder.weights, &Keeping::inference())
}

//! Checks of paths before anything is read.

use std::path::Path;

use super::Recipe;
use crate::error::{Error, Result};

/// Fails where no path is set for `key`.
pub(crate) fn wanted(key: &str, path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::config(format!("{key}: is not set")));
    }
    Ok(())
}

/// Fails where `out` holds something already and the run is not to be resumed; `name` is what the caller calls it.
pub(crate) fn check_out(name: &str, out: &Path, resume: bool) -> Result<()> {
    if !out.exists() || resume {
        return Ok(());
    }
    let mut entries = std::fs::read_dir(out).map_err(|_| {
        Error::config(format!("{name} {}: is not a folder", out.display()))
            .hint("name a folder that does not exist yet")
    })?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::config(format!("{name} {}: exists and is not empty", out.display()))
            .hint("resume the run in it (--resume), or name another folder")),
    }
}

/// Fails where a file of texts that the recipe reads is not readable.
pub(crate) fn check_texts(recipe: &Recipe) -> Result<()> {
    let data = &recipe.data;
    check_data("data.forget", &data.forget)?;
    if recipe.reads_retain() {
        check_data("data.retain", &data.retain)?;
    }
    if !data.alternate.as_os_str().is_empty() {
        check_data("data.alternate", &data.alternate)?;
    }
    Ok(())
}

/// Fails where `path` is not a readable file; `flag` names it.
pub(crate) fn check_data(flag: &str, path: &Path) -> Result<()> {
    crate::data::source::open(path).map(drop).map_err(|e| e.at(flag))
}

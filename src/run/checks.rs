//! Checks of paths before anything is read.

use std::path::Path;

use crate::error::{Error, Result};

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

/// Fails where `path` is not a readable file; `flag` names it.
pub(crate) fn check_data(flag: &str, path: &Path) -> Result<()> {
    crate::data::source::open(path).map(drop).map_err(|e| e.at(flag))
}

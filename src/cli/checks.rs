//! Checks of paths that several commands make before anything is read.

use std::path::Path;

use crate::error::{Error, Result};

/// Fails where `out` holds something already and the run is not to be resumed.
pub(super) fn check_out(out: &Path, resume: bool) -> Result<()> {
    if !out.exists() || resume {
        return Ok(());
    }
    let mut entries = std::fs::read_dir(out).map_err(|_| {
        Error::config(format!("--out {}: is no folder", out.display()))
            .hint("name a folder that does not exist yet")
    })?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::config(format!("--out {}: exists and is not empty", out.display()))
            .hint("add --resume to go on with the run in it, or name another folder")),
    }
}

/// Fails where `path` is not a readable file; `flag` names it.
pub(super) fn check_data(flag: &str, path: &Path) -> Result<()> {
    crate::data::source::open(path).map(drop).map_err(|e| e.at(flag))
}

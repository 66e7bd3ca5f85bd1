//! Files and folders that are replaced whole or not at all.
//!
//! Everything is written under a temporary name beside its place, synchronised to disk, and renamed into
//! place. Replacing a folder takes two renames, because no portable call swaps folders: the old one
//! becomes `.NAME.old-PID...`, then the new one takes the name. A crash before the first rename leaves the old folder; a
//! crash after the second leaves the new one; between the two, both are complete under their hidden names, and
//! the next [`replace_dir`] or [`recover_dir`] puts the old one back. So no moment loses the last good one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// A folder in the making, under a temporary name beside its place; removed again if it is dropped uncommitted.
#[derive(Debug)]
pub struct Staged {
    temp: PathBuf,
    target: PathBuf,
    name: OsString,
    parent: PathBuf,
}

impl Staged {
    /// Makes an empty temporary folder for `target`, and the folders above it; clears up after dead processes first.
    ///
    /// Errors: [`crate::Kind::Io`] if the file system refuses, [`crate::Kind::Config`] if `target` has no name.
    pub fn new(target: &Path) -> Result<Self> {
        let (parent, name) = split(target)?;
        fs::create_dir_all(&parent).map_err(|e| Error::io("create", &parent, e))?;
        recover_dir(target)?;
        let temp = parent.join(hidden(&name, "tmp"));
        fs::create_dir(&temp).map_err(|e| Error::io("create", &temp, e))?;
        Ok(Self { temp, target: target.to_path_buf(), name, parent })
    }

    /// Returns the temporary folder to write into.
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Synchronises the folder to disk and puts it in its place; an old one there is removed afterwards.
    ///
    /// Errors: [`crate::Kind::Io`] if the file system refuses; the old one then stays.
    pub fn commit(self) -> Result<()> {
        sync_tree(&self.temp)?;
        if self.target.symlink_metadata().is_err() {
            rename(&self.temp, &self.target)?;
            return sync_dir(&self.parent);
        }
        let old = self.parent.join(hidden(&self.name, "old"));
        rename(&self.target, &old)?;
        if let Err(e) = rename(&self.temp, &self.target) {
            rename(&old, &self.target)?;
            return Err(e);
        }
        sync_dir(&self.parent)?;
        remove(&old)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Nothing is there after a commit; after a failure the first error is the one to report.
        let _ = remove(&self.temp);
    }
}

/// Writes a folder through `write`, which gets an empty temporary folder, and then puts it in the place of `target`.
///
/// Leftovers of dead processes beside it are removed first. On failure the temporary folder is removed and what was
/// at `target` stays.
///
/// Errors: [`crate::Kind::Io`] if the file system refuses, and whatever `write` returns.
pub fn replace_dir(target: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let staged = Staged::new(target)?;
    write(staged.path())?;
    staged.commit()
}

/// Removes a folder so that a crash meanwhile leaves it whole or not there at all.
///
/// Errors: [`crate::Kind::Io`] if the file system refuses.
pub fn remove_dir(target: &Path) -> Result<()> {
    let (parent, name) = split(target)?;
    // As a temporary one it is cleared by the next recovery, never put back.
    let temp = parent.join(hidden(&name, "tmp"));
    rename(target, &temp)?;
    remove(&temp)
}

/// Clears up after processes that died while they replaced `target`: puts the old folder back if they left none in its
/// place, and removes their temporary folders.
///
/// Errors: [`crate::Kind::Io`] if the file system refuses.
pub fn recover_dir(target: &Path) -> Result<()> {
    let (parent, name) = split(target)?;
    recover(&parent, Some(&name))
}

/// Does what [`recover_dir`] does for every name in the folder `parent`; a missing folder is fine.
///
/// Errors: [`crate::Kind::Io`] if the file system refuses.
pub fn recover_all(parent: &Path) -> Result<()> {
    recover(parent, None)
}

fn recover(parent: &Path, only: Option<&OsStr>) -> Result<()> {
    let Ok(list) = fs::read_dir(parent) else { return Ok(()) };
    let mut left: Vec<(PathBuf, PathBuf, bool)> = Vec::new();
    for item in list.flatten() {
        let file = item.file_name();
        let Some(hidden) = parse_hidden(&file) else { continue };
        if only.is_none_or(|name| name == hidden.name) && !alive(hidden.pid, hidden.start) {
            left.push((item.path(), parent.join(hidden.name), hidden.old));
        }
    }
    // Sorted, so that which of several old ones comes back does not depend on the directory's order.
    left.sort();
    for (path, target, old) in left {
        if old && target.symlink_metadata().is_err() {
            rename(&path, &target)?;
        } else {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Writes `bytes` to `path` through a temporary file beside it, so that a reader sees the old or the new content.
///
/// Errors: [`crate::Kind::Io`] if the file system refuses; the old content then stays.
pub fn write_file_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let (parent, name) = split(path)?;
    let temp = parent.join(hidden(&name, "tmp"));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    };
    let done = write().map_err(|e| Error::io("write", path, e)).and_then(|()| sync_dir(&parent));
    if done.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temp);
    }
    done
}

/// Synchronises every file and folder under `dir` to disk, the innermost first.
///
/// Errors: [`crate::Kind::Io`] if the file system refuses.
pub fn sync_tree(dir: &Path) -> Result<()> {
    let list = fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    for item in list {
        let item = item.map_err(|e| Error::io("list", dir, e))?;
        let path = item.path();
        let kind = item.file_type().map_err(|e| Error::io("read", &path, e))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
            file.sync_all().map_err(|e| Error::io("synchronise", &path, e))?;
        }
    }
    sync_dir(dir)
}

/// Synchronises the entries of `dir` to disk, so that a rename in it survives a power cut.
///
/// Errors: [`crate::Kind::Io`] if the file system refuses.
pub fn sync_dir(dir: &Path) -> Result<()> {
    // Only Unix opens folders as files; elsewhere a rename is journalled by the file system.
    if cfg!(unix) {
        let handle = File::open(dir).map_err(|e| Error::io("open", dir, e))?;
        handle.sync_all().map_err(|e| Error::io("synchronise", dir, e))?;
    }
    Ok(())
}

/// Removes a file or a folder with all that is in it; none there is fine.
///
/// Errors: [`crate::Kind::Io`] if the file system refuses.
pub fn remove(path: &Path) -> Result<()> {
    let done = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match done {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|e| Error::io("remove", path, e)),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io(&format!("rename to {}", to.display()), from, e))
}

fn split(path: &Path) -> Result<(PathBuf, OsString)> {
    let name = path.file_name().ok_or_else(|| {
        Error::config(format!("{}: not a path that can be written to", path.display()))
            .hint("give the name of a file or folder, not . or .. or /")
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_os_string()))
}

/// Returns `.NAME.KIND-PID-START-COUNT`: the start time tells a dead owner from a later process that got the
/// same id (in containers the ids repeat), the count keeps threads apart.
fn hidden(name: &OsStr, kind: &str) -> OsString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{kind}-{}-{}-{count}", std::process::id(), own_start()));
    hidden
}

struct Hidden<'a> {
    name: &'a str,
    old: bool,
    pid: u32,
    start: u64,
}

/// Takes a name apart that [`hidden`] made.
fn parse_hidden(file: &OsStr) -> Option<Hidden<'_>> {
    let (name, tail) = file.to_str()?.strip_prefix('.')?.rsplit_once('.')?;
    let parts: Vec<&str> = tail.split('-').collect();
    let [kind @ ("tmp" | "old"), pid, start, count] = parts[..] else { return None };
    count.parse::<u64>().ok()?;
    Some(Hidden { name, old: kind == "old", pid: pid.parse().ok()?, start: start.parse().ok()? })
}

/// Says whether the process that started then may be alive; in doubt it is, so that nothing in use is removed.
fn alive(pid: u32, start: u64) -> bool {
    if pid == std::process::id() {
        return start == own_start();
    }
    match start_of(&pid.to_string()) {
        Some(found) => found == start,
        None => start_of("self").is_none(),
    }
}

fn own_start() -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    *START.get_or_init(|| {
        let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos() as u64);
        start_of("self").unwrap_or_else(clock)
    })
}

/// Returns when a process started, in clock ticks since boot; `None` without procfs or such a process.
fn start_of(process: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Field 22 of proc(5); the second one, the program's name, may hold spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(dir: &Path) -> String {
        fs::read_to_string(dir.join("a")).unwrap()
    }

    fn put(text: &str) -> impl FnOnce(&Path) -> Result<()> + '_ {
        move |dir| fs::write(dir.join("a"), text).map_err(|e| Error::io("write", dir, e))
    }

    /// Returns the id of a process that has ended and been waited for.
    fn dead() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        pid
    }

    #[test]
    fn replace_dir_when_target_exists_leaves_only_the_new_one() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("deep/model");
        replace_dir(&target, put("one")).unwrap();
        fs::write(target.join("extra"), "x").unwrap();
        replace_dir(&target, put("two")).unwrap();
        assert_eq!(content(&target), "two");
        assert!(!target.join("extra").exists());
        assert_eq!(fs::read_dir(root.path().join("deep")).unwrap().count(), 1);
    }

    #[test]
    fn replace_dir_when_writer_fails_keeps_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model");
        replace_dir(&target, put("one")).unwrap();
        let failed = replace_dir(&target, |dir| {
            put("half")(dir)?;
            Err(Error::data("stop"))
        });
        assert_eq!(failed.unwrap_err().message(), "stop");
        assert_eq!(content(&target), "one");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn replace_dir_when_writer_panics_is_cleared_by_the_next_process() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model");
        let pid = dead();
        fs::create_dir(root.path().join(format!(".model.tmp-{pid}-5-0"))).unwrap();
        fs::create_dir(root.path().join(format!(".model.old-{pid}-5-1"))).unwrap();
        fs::create_dir(root.path().join(format!(".other.tmp-{pid}-5-0"))).unwrap();
        // The same id, once with another start time (a container started again) and once this very process.
        let me = std::process::id();
        fs::create_dir(root.path().join(format!(".model.tmp-{me}-7-0"))).unwrap();
        let mine = format!(".model.tmp-{me}-{}-999", own_start());
        fs::create_dir(root.path().join(&mine)).unwrap();
        replace_dir(&target, put("new")).unwrap();
        assert_eq!(content(&target), "new");
        let mut left: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|i| i.unwrap().file_name()).collect();
        left.sort();
        let other = format!(".other.tmp-{pid}-5-0");
        let mut wanted = [mine.as_str(), other.as_str(), "model"];
        wanted.sort();
        assert_eq!(left, wanted);
    }

    #[test]
    fn recover_dir_when_killed_between_the_renames_puts_the_old_one_back() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model");
        let old = root.path().join(format!(".model.old-{}-5-1", dead()));
        fs::create_dir(&old).unwrap();
        put("old")(&old).unwrap();
        recover_dir(&target).unwrap();
        assert_eq!(content(&target), "old");
    }

    #[test]
    fn write_file_atomic_when_parent_is_missing_is_an_io_error() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        write_file_atomic(&path, b"one").unwrap();
        write_file_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let error = write_file_atomic(&root.path().join("no/a"), b"x").unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Io);
        assert!(error.message().contains("no/a: cannot write: No such file"));
        assert_eq!(
            write_file_atomic(Path::new("/"), b"x").unwrap_err().kind(),
            crate::Kind::Config
        );
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn write_file_atomic_when_target_is_a_folder_keeps_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        fs::create_dir(&path).unwrap();
        assert!(write_file_atomic(&path, b"x").is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}

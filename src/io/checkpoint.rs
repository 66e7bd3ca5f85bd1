//! Checkpoints: folders `step-00000100` of named raw files with a manifest of sizes and hashes.
//!
//! A checkpoint is written under a hidden name, manifest last, synchronised and renamed into place, so a
//! folder that has its name is complete unless the disk failed; the hashes (XXH3, 128 bits) find that out.
//! The manifest holds its own hash too, so any changed byte of any file is detected.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::atomic::{self, Staged};
use crate::error::{Error, Kind, Result};

/// The version of the layout that is written; no other is read.
pub const FORMAT: u32 = 1;
/// The name of the manifest in a checkpoint's folder.
pub const MANIFEST: &str = "manifest.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Blob {
    bytes: u64,
    xxh3: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    blobs: BTreeMap<String, Blob>,
    meta: Value,
}

const HEAD: &str = "{\"xxh3\":\"";
const MIDDLE: &str = "\",\"manifest\":";
const TAIL: &str = "}\n";

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

/// Returns the manifest's file: a JSON object of a hash and the manifest, the hash over the manifest's very bytes.
fn manifest_text(manifest: &Manifest) -> Result<String> {
    let body = serde_json::to_string_pretty(manifest).map_err(|e| {
        Error::new(Kind::Io, format!("cannot write the manifest: {e}")).with_source(e)
    })?;
    Ok(format!("{HEAD}{}{MIDDLE}{body}{TAIL}", hex(xxh3_128(body.as_bytes()))))
}

/// Parses what [`manifest_text`] made; the reason in words if any byte is different.
fn parse_manifest(text: &[u8]) -> Result<Manifest, String> {
    let broken = || "manifest.json is damaged".to_string();
    let rest = text.strip_prefix(HEAD.as_bytes()).ok_or_else(broken)?;
    let (hash, rest) = rest.split_at_checked(32).ok_or_else(broken)?;
    let body = rest.strip_prefix(MIDDLE.as_bytes()).ok_or_else(broken)?;
    let body = body.strip_suffix(TAIL.as_bytes()).ok_or_else(broken)?;
    if hex(xxh3_128(body)).as_bytes() != hash {
        return Err(broken());
    }
    // A later format may have other fields; its number says more than a complaint about them.
    let value: Value = serde_json::from_slice(body).map_err(|e| format!("manifest.json: {e}"))?;
    let format = value.get("format").and_then(Value::as_u64);
    if format != Some(u64::from(FORMAT)) {
        let format = format.map_or("unknown".into(), |n| n.to_string());
        return Err(format!("format {format}, this version reads format {FORMAT}"));
    }
    serde_json::from_value(value).map_err(|e| format!("manifest.json: {e}"))
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Returns the step of a folder's name, if it is one of ours.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Returns the steps and folders of the checkpoints in `root`, intact or not, the newest first.
///
/// Errors: [`Kind::Io`] if `root` cannot be listed; none if it is not there.
pub fn list(root: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let items = match fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        items => items.map_err(|e| Error::io("list", root, e))?,
    };
    let mut found = Vec::new();
    for item in items {
        let item = item.map_err(|e| Error::io("list", root, e))?;
        if let Some(step) = item.file_name().to_str().and_then(step_of) {
            found.push((step, item.path()));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// A checkpoint in the making; nothing of it is seen before [`Writer::finish`], and dropping it removes it.
#[derive(Debug)]
pub struct Writer {
    staged: Staged,
    root: PathBuf,
    target: PathBuf,
    step: u64,
    blobs: BTreeMap<String, Blob>,
}

impl Writer {
    /// Starts the checkpoint of `step` in the folder `root`, which is made if need be.
    ///
    /// Errors: [`Kind::Io`] if the file system refuses.
    pub fn create(root: &Path, step: u64) -> Result<Self> {
        atomic::recover_all(root)?;
        let target = root.join(folder_name(step));
        let staged = Staged::new(&target)?;
        Ok(Self { staged, root: root.to_path_buf(), target, step, blobs: BTreeMap::new() })
    }

    /// Writes `bytes` as the blob `name` (letters, digits, `.`, `_` and `-`).
    ///
    /// Errors: as [`Writer::blob_with`].
    pub fn blob(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.blob_with(name, &mut |out| {
            // In pieces, so that hashing finds what was just written in the cache.
            bytes.chunks(1 << 18).try_for_each(|piece| out.write_all(piece)).map_err(write_error)
        })
    }

    /// Writes whatever `fill` writes as the blob `name` (letters, digits, `.`, `_` and `-`).
    ///
    /// Errors: [`Kind::Config`] for a name that is not allowed or given twice, [`Kind::Io`] if the file system
    /// refuses, and whatever `fill` returns.
    pub fn blob_with(
        &mut self,
        name: &str,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        if !allowed(name) || self.blobs.contains_key(name) {
            return Err(Error::config(format!(
                "checkpoint of step {}: blob name {name:?} is given twice or not allowed",
                self.step
            )));
        }
        let path = self.staged.path().join(format!("{name}.bin"));
        let refused = |e: io::Error| Error::io("write", &path, e);
        let file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut out =
            Hashed { out: BufWriter::with_capacity(1 << 18, file), hash: Xxh3::new(), bytes: 0 };
        fill(&mut out).map_err(|e| e.at(path.display()))?;
        out.flush().map_err(refused)?;
        // Before the manifest is written, so that it never vouches for what is not on disk.
        out.out.get_ref().sync_all().map_err(refused)?;
        let blob = Blob { bytes: out.bytes, xxh3: hex(out.hash.digest128()) };
        self.blobs.insert(name.to_string(), blob);
        Ok(())
    }

    /// Writes the manifest with `meta`, puts the checkpoint in its place, and removes all older ones but
    /// `keep - 1`; returns its folder.
    ///
    /// A checkpoint of the same step is replaced. Those of later steps stay, and so may win in
    /// [`Checkpoint::latest`]; they are there only if they were found damaged or belong to another run. Numbers in
    /// `meta` come back exactly; JSON has no infinities and no NaN.
    ///
    /// Errors: [`Kind::Io`] if the file system refuses.
    pub fn finish(self, meta: Value, keep: usize) -> Result<PathBuf> {
        let manifest = Manifest { format: FORMAT, step: self.step, blobs: self.blobs, meta };
        let path = self.staged.path().join(MANIFEST);
        let text = manifest_text(&manifest)?;
        fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
        self.staged.commit()?;
        prune(&self.root, self.step, keep)?;
        Ok(self.target)
    }
}

/// Removes the checkpoints before `step` but for the `keep - 1` newest; damaged ones do not count as kept.
fn prune(root: &Path, step: u64, keep: usize) -> Result<()> {
    let mut kept = 1;
    for (older, path) in list(root)?.into_iter().filter(|(s, _)| *s < step) {
        // The sizes only: a hash of every old file at every checkpoint would cost as much as writing it.
        if kept < keep && read_manifest(&path, older).is_ok_and(|m| sizes(&path, &m).is_ok()) {
            kept += 1;
        } else {
            atomic::remove_dir(&path)?;
        }
    }
    Ok(())
}

fn allowed(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(plain)
}

fn write_error(e: io::Error) -> Error {
    Error::new(Kind::Io, format!("cannot write: {e}")).with_source(e)
}

struct Hashed {
    out: BufWriter<File>,
    hash: Xxh3,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn read_manifest(dir: &Path, step: u64) -> Result<Manifest, String> {
    let text = fs::read(dir.join(MANIFEST)).map_err(|e| format!("{MANIFEST}: {e}"))?;
    let manifest = parse_manifest(&text)?;
    if manifest.step != step {
        return Err(format!("the manifest is of step {}", manifest.step));
    }
    match manifest.blobs.keys().find(|name| !allowed(name)) {
        Some(name) => Err(format!("blob name {name:?} is not allowed")),
        None => Ok(manifest),
    }
}

fn sizes(dir: &Path, manifest: &Manifest) -> Result<(), String> {
    for (name, blob) in &manifest.blobs {
        let meta = fs::metadata(dir.join(format!("{name}.bin")));
        let got = meta.map_err(|e| format!("{name}.bin: {e}"))?.len();
        if got != blob.bytes {
            return Err(format!("{name}.bin: {got} bytes, {} wanted", blob.bytes));
        }
    }
    Ok(())
}

/// A complete checkpoint whose hashes were all checked; its blobs are memory-mapped.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    manifest: Manifest,
    maps: BTreeMap<String, Mmap>,
    /// Faults of newer checkpoints that [`Checkpoint::latest`] skipped, one line each.
    pub skipped: Vec<String>,
}

impl Checkpoint {
    /// Opens the newest intact checkpoint in `root`; `None` if there are none at all.
    ///
    /// Clears up what dead processes left there, if it can.
    ///
    /// Errors: [`Kind::Io`] if there are checkpoints but none is intact, or `root` cannot be listed.
    pub fn latest(root: &Path) -> Result<Option<Self>> {
        // A folder that may only be read can still be resumed from.
        let _ = atomic::recover_all(root);
        let mut skipped = Vec::new();
        for (_, dir) in list(root)? {
            match Self::open(&dir) {
                Ok(found) => return Ok(Some(Self { skipped, ..found })),
                Err(e) => skipped.push(e.message().to_string()),
            }
        }
        if skipped.is_empty() {
            return Ok(None);
        }
        Err(Error::new(
            Kind::Io,
            format!("{}: no checkpoint is intact: {}", root.display(), skipped.join("; ")),
        )
        .hint("remove this folder to start from the beginning"))
    }

    /// Opens the checkpoint in the folder `dir` and checks every size and hash.
    ///
    /// Errors: [`Kind::Io`] if anything is missing or damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let damaged = |what: String| Error::new(Kind::Io, format!("{}: {what}", dir.display()));
        let name = dir.file_name().and_then(|n| n.to_str());
        let step = name
            .and_then(step_of)
            .ok_or_else(|| damaged("not the name of a checkpoint, such as step-00000100".into()))?;
        let manifest = read_manifest(dir, step).map_err(damaged)?;
        sizes(dir, &manifest).map_err(damaged)?;
        let open = |(name, blob): (&String, &Blob)| -> Result<(String, Mmap), String> {
            let fault = |e: io::Error| format!("{name}.bin: {e}");
            let file = File::open(dir.join(format!("{name}.bin"))).map_err(fault)?;
            // SAFETY: the map is only read, as bytes, for which every value is valid; a finished
            // checkpoint is never written again, and removing it leaves the mapped file alone.
            let map = unsafe { Mmap::map(&file) }.map_err(fault)?;
            if map.len() as u64 != blob.bytes || hex(xxh3_128(&map)) != blob.xxh3 {
                return Err(format!("{name}.bin is damaged: its hash differs from the manifest's"));
            }
            Ok((name.clone(), map))
        };
        let blobs: Vec<(&String, &Blob)> = manifest.blobs.iter().collect();
        let maps: Result<BTreeMap<_, _>, String> = blobs.into_par_iter().map(open).collect();
        let maps = maps.map_err(damaged)?;
        Ok(Self { dir: dir.to_path_buf(), manifest, maps, skipped: Vec::new() })
    }

    /// Returns the step after which it was written.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// Returns what [`Writer::finish`] was given.
    pub fn meta(&self) -> &Value {
        &self.manifest.meta
    }

    /// Returns its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the names of its blobs, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.maps.keys().map(String::as_str)
    }

    /// Returns the bytes of blob `name`, whose hash was checked when the checkpoint was opened; they start at a page.
    ///
    /// Errors: [`Kind::Io`] if there is no such blob.
    pub fn blob(&self, name: &str) -> Result<&[u8]> {
        self.maps
            .get(name)
            .map(|map| &map[..])
            .ok_or_else(|| Error::new(Kind::Io, format!("{}: no blob {name}", self.dir.display())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn write(root: &Path, step: u64, keep: usize) -> PathBuf {
        let mut writer = Writer::create(root, step).unwrap();
        writer.blob("theta", &step.to_le_bytes().repeat(40)).unwrap();
        writer.blob("empty", &[]).unwrap();
        let fill = &mut |out: &mut dyn Write| {
            out.write_all(b"mo").and_then(|()| out.write_all(b"mentum")).map_err(write_error)
        };
        writer.blob_with("u.0", fill).unwrap();
        writer.finish(json!({"lr": 0.1, "z": [step], "a": null}), keep).unwrap()
    }

    fn steps(root: &Path) -> Vec<u64> {
        list(root).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn checkpoint_when_finished_comes_back_whole() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("checkpoints");
        assert!(Checkpoint::latest(&root).unwrap().is_none());
        for step in [1, 20, 300] {
            write(&root, step, 2);
        }
        write(&root, 300, 2);
        assert_eq!(steps(&root), [300, 20]);
        let found = Checkpoint::latest(&root).unwrap().unwrap();
        assert_eq!(found.step(), 300);
        assert_eq!(found.dir(), root.join("step-00000300"));
        assert!(found.skipped.is_empty());
        assert_eq!(found.names().collect::<Vec<_>>(), ["empty", "theta", "u.0"]);
        assert_eq!(found.blob("theta").unwrap(), 300u64.to_le_bytes().repeat(40));
        assert_eq!(found.blob("u.0").unwrap(), b"momentum");
        assert_eq!(found.blob("empty").unwrap(), b"");
        assert_eq!(found.meta().to_string(), r#"{"lr":0.1,"z":[300],"a":null}"#);
        assert!(found.blob("v").unwrap_err().message().ends_with("step-00000300: no blob v"));
    }

    #[test]
    fn latest_when_the_newest_is_damaged_skips_it_and_says_why() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for step in 1..=4 {
            write(root, step, 9);
        }
        fs::write(root.join("step-00000004/theta.bin"), b"short").unwrap();
        fs::remove_file(root.join("step-00000003/manifest.json")).unwrap();
        let found = Checkpoint::latest(root).unwrap().unwrap();
        assert_eq!(found.step(), 2);
        assert!(found.skipped[0].ends_with("step-00000004: theta.bin: 5 bytes, 320 wanted"));
        assert!(found.skipped[1].contains("step-00000003: manifest.json: No such file"));
        for step in 1..=2 {
            fs::remove_file(root.join(format!("step-{step:08}/u.0.bin"))).unwrap();
        }
        let error = Checkpoint::latest(root).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.message().contains("no checkpoint is intact"));
    }

    #[test]
    fn prune_when_old_ones_are_damaged_keeps_enough_intact_ones() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for step in 1..=4 {
            write(root, step, 9);
        }
        fs::remove_file(root.join("step-00000004/theta.bin")).unwrap();
        write(root, 5, 3);
        assert_eq!(steps(root), [5, 3, 2]);
        // Going back below a damaged later one must not remove what was just written.
        write(root, 4, 1);
        assert_eq!(steps(root), [5, 4]);
    }

    #[test]
    fn writer_when_dropped_or_given_bad_names_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(root.path(), 7).unwrap();
        writer.blob("a", b"x").unwrap();
        for name in ["a", "", "../b", "b/c", ".d", "e f", "manifest\0"] {
            assert_eq!(writer.blob(name, b"x").unwrap_err().kind(), Kind::Config, "{name}");
        }
        let stop = &mut |_: &mut dyn Write| Err(Error::new(Kind::Numeric, "stop"));
        assert_eq!(writer.blob_with("n", stop).unwrap_err().kind(), Kind::Numeric);
        drop(writer);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn manifest_of_another_format_is_named() {
        let manifest = Manifest { format: 2, step: 1, blobs: BTreeMap::new(), meta: Value::Null };
        let text = manifest_text(&manifest).unwrap();
        let error = parse_manifest(text.as_bytes()).unwrap_err();
        assert_eq!(error, "format 2, this version reads format 1");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["manifest"]["step"], 1);
    }

    proptest! {
        #[test]
        fn any_changed_byte_of_any_file_is_detected(at: prop::sample::Index, flip in 1u8..) {
            let root = tempfile::tempdir().unwrap();
            let dir = write(root.path(), 3, 1);
            let mut all = Vec::new();
            for item in fs::read_dir(&dir).unwrap() {
                let path = item.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                all.extend((0..bytes.len()).map(|i| (path.clone(), i)));
            }
            let (path, i) = at.get(&all);
            let mut bytes = fs::read(path).unwrap();
            bytes[*i] ^= flip;
            fs::write(path, bytes).unwrap();
            prop_assert!(Checkpoint::open(&dir).is_err());
        }

        #[test]
        fn manifest_parser_never_panics(noise: Vec<u8>, body in ".{0,80}", cut: prop::sample::Index) {
            prop_assert!(parse_manifest(&noise).is_err());
            let text = format!("{HEAD}{}{MIDDLE}{body}{TAIL}", hex(xxh3_128(body.as_bytes())));
            prop_assert!(parse_manifest(text.as_bytes()).is_err());
            prop_assert!(parse_manifest(&text.as_bytes()[..cut.index(text.len())]).is_err());
        }
    }
}

//! State on disk after a kill or on a full disk: the last good one, whole.

#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nepenthe::Kind;
use nepenthe::io::atomic::{replace_dir, write_file_atomic};
use nepenthe::io::checkpoint::{Checkpoint, Writer};
use nepenthe::io::safetensors::{Dtype, Entry, write_file};
use serde_json::json;

/// Set to the folder to work in when a test runs itself as the process that is to die.
const CHILD: &str = "NEPENTHE_CRASH_TEST_DIR";

/// Returns a shell command that runs the test `name` of this file as a child that works in `dir`.
fn child(name: &str, dir: &Path, before: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn work_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(Into::into)
}

fn blob(step: u64) -> Vec<u8> {
    step.to_le_bytes().repeat(5000)
}

fn checkpoint(root: &Path, step: u64) -> nepenthe::Result<()> {
    let mut writer = Writer::create(root, step)?;
    for name in ["theta", "drift", "momentum"] {
        writer.blob(name, &blob(step))?;
    }
    writer.finish(json!({ "step": step }), 2).map(drop)
}

fn put(dir: &Path, text: &str) -> nepenthe::Result<()> {
    for name in ["a", "b"] {
        write_file_atomic(&dir.join(name), text.as_bytes())?;
    }
    Ok(())
}

#[test]
fn checkpoints_and_folders_survive_kills_at_any_moment() {
    if let Some(dir) = work_dir() {
        let done = Checkpoint::latest(&dir.join("checkpoints")).unwrap().map_or(0, |c| c.step());
        for step in done + 1.. {
            checkpoint(&dir.join("checkpoints"), step).unwrap();
            replace_dir(&dir.join("model"), |d| put(d, &step.to_string())).unwrap();
        }
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let (mut last, mut last_model) = (0, 0);
    for round in 0..40u64 {
        let mut process =
            child("checkpoints_and_folders_survive_kills_at_any_moment", dir, "").spawn().unwrap();
        std::thread::sleep(Duration::from_micros(3000 + round * 7919 % 60_000));
        process.kill().unwrap();
        let output = process.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let Some(found) = Checkpoint::latest(&dir.join("checkpoints")).unwrap() else { continue };
        assert!(found.step() >= last && found.skipped.is_empty(), "{:?}", found.skipped);
        assert_eq!(found.meta(), &json!({ "step": found.step() }));
        for name in ["theta", "drift", "momentum"] {
            assert_eq!(found.blob(name).unwrap(), blob(found.step()));
        }
        last = found.step();
        nepenthe::io::atomic::recover_dir(&dir.join("model")).unwrap();
        // Gone only if it was never there.
        if last_model > 0 || dir.join("model").exists() {
            let text = fs::read_to_string(dir.join("model/a")).unwrap();
            assert_eq!(text, fs::read_to_string(dir.join("model/b")).unwrap());
            let model: u64 = text.parse().unwrap();
            assert!(last_model <= model && model <= last, "{last_model} {model} {last}");
            last_model = model;
        }
    }
    assert!(last > 1, "no process got anywhere");
    checkpoint(&dir.join("checkpoints"), last + 1).unwrap();
    replace_dir(&dir.join("model"), |d| put(d, "end")).unwrap();
    // No leftovers of the killed ones.
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2);
    assert_eq!(fs::read_dir(dir.join("checkpoints")).unwrap().count(), 2);
}

fn checkpoint_of(root: &Path, bytes: &[u8]) -> nepenthe::Result<()> {
    let mut writer = Writer::create(root, 2)?;
    writer.blob("big", bytes)?;
    writer.finish(json!(null), 1).map(drop)
}

#[test]
fn full_disk_keeps_the_last_good_state_and_cleans_up() {
    if let Some(dir) = work_dir() {
        let big = vec![0u8; 1 << 20];
        let tensor = Entry { name: "w".into(), dtype: Dtype::F32, shape: vec![big.len() / 4] };
        let errors = [
            checkpoint_of(&dir.join("checkpoints"), &big).unwrap_err(),
            write_file_atomic(&dir.join("file"), &big).unwrap_err(),
            replace_dir(&dir.join("model"), |d| {
                let one = std::slice::from_ref(&tensor);
                write_file(&d.join("w"), one, &BTreeMap::new(), &mut |_, out| {
                    out.write_all(&big).map_err(|e| nepenthe::Error::io("write", d, e))
                })
            })
            .unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), Kind::Io);
            assert!(error.message().contains("File too large"), "{error}");
        }
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    checkpoint(&dir.join("checkpoints"), 1).unwrap();
    write_file_atomic(&dir.join("file"), b"good").unwrap();
    replace_dir(&dir.join("model"), |d| put(d, "good")).unwrap();
    // A limit on the size of files stands in for a full disk: writes fail half-way in the same manner.
    let limit = "ulimit -f 100; trap '' XFSZ;";
    let output = child("full_disk_keeps_the_last_good_state_and_cleans_up", dir, limit)
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 3);
    assert_eq!(fs::read_dir(dir.join("checkpoints")).unwrap().count(), 1);
    assert_eq!(Checkpoint::latest(&dir.join("checkpoints")).unwrap().unwrap().step(), 1);
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"good");
    assert_eq!(fs::read(dir.join("model/a")).unwrap(), b"good");
}

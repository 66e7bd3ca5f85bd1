//! The file of a tokenised corpus: written once as a stream, then memory-mapped.
//!
//! Layout, native byte order: header (128 bytes) | token ids u32\[tokens\] | padding to 8 bytes |
//! offsets u64\[rows + 1\] | the report as JSON. The header's checksum covers all but the ids, its content hash the
//! ids. Offsets and report come last because they are known last; 8 bytes a row are held in memory while writing.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;
use xxhash_rust::xxh3::Xxh3;

use super::report::Report;
use crate::error::{Error, Result};

/// Changes whenever the layout or the meaning of the ids does; part of every key.
pub(super) const VERSION: u64 = 3;
const MAGIC: [u8; 8] = *b"nepcorp\0";
const HEADER: usize = size_of::<Header>();

/// The fixed start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Header {
    magic: [u8; 8],
    version: u64,
    checksum: u64,
    /// Hash of source hash, tokenizer hash, options and version.
    pub key: [u64; 2],
    pub source_hash: [u64; 2],
    content_hash: [u64; 2],
    pub source_bytes: u64,
    /// Nanoseconds since 1970; 0 where the time cannot vouch for the content.
    pub source_time: u64,
    rows: u64,
    tokens: u64,
    longest: u64,
    /// The largest id plus one; 0 without tokens.
    bound: u64,
    /// Bytes of the report.
    report: u64,
}

pub(super) fn halves(hash: u128) -> [u64; 2] {
    [hash as u64, (hash >> 64) as u64]
}

pub(super) fn whole(halves: [u64; 2]) -> u128 {
    u128::from(halves[0]) | u128::from(halves[1]) << 64
}

impl Header {
    /// Returns the checksum of the header and of `tail`, what follows the ids.
    fn sum(&self, tail: &[u8]) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(bytemuck::bytes_of(&Self { checksum: 0, ..*self }));
        hash.update(tail);
        hash.digest()
    }
}

/// Hashes rows one by one; the digest depends on the rows alone, however they are stored.
#[derive(Default)]
pub(super) struct ContentHash(Xxh3);

impl ContentHash {
    pub fn add(&mut self, row: &[u32]) {
        self.0.update(&(row.len() as u64).to_le_bytes());
        self.0.update(bytemuck::cast_slice(row));
    }

    pub fn finish(&self) -> u128 {
        self.0.digest128()
    }
}

/// A mapped cache file whose sizes, checksum and offsets have been checked.
#[derive(Debug)]
pub(super) struct Stored {
    map: Mmap,
    header: Header,
    ids: Range<usize>,
    offsets: Range<usize>,
    report: Report,
}

impl Stored {
    /// Maps the file; the error says in a few words what is wrong with it.
    pub fn open(path: &Path) -> std::io::Result<Result<Self, String>> {
        let file = File::open(path)?;
        // SAFETY: files are complete before they get this name and only their header is ever rewritten,
        // which is copied here; other programs have no business in the cache folder.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self::check(map))
    }

    fn check(map: Mmap) -> Result<Self, String> {
        let bytes: &[u8] = &map;
        let header: Header = match bytes.get(..HEADER) {
            Some(head) => bytemuck::pod_read_unaligned(head),
            None => return Err(format!("{} bytes are no header", bytes.len())),
        };
        if header.magic != MAGIC {
            return Err("it does not begin like a corpus cache".into());
        }
        if header.version != VERSION {
            return Err(format!("version {} in file, {VERSION} wanted", header.version));
        }
        let (ids, offsets) = layout(header.rows, header.tokens)
            .filter(|(_, offsets)| {
                let report = bytes.len().checked_sub(offsets.end);
                report.is_some_and(|len| len as u64 == header.report)
            })
            .ok_or_else(|| {
                format!(
                    "{} bytes do not fit {} rows of {} tokens",
                    bytes.len(),
                    header.rows,
                    header.tokens
                )
            })?;
        if header.sum(&bytes[offsets.start..]) != header.checksum {
            return Err("its checksum does not match".into());
        }
        let report = serde_json::from_slice(&bytes[offsets.end..])
            .map_err(|e| format!("its report is not valid JSON: {e}"))?;
        let stored = Self { map, header, ids, offsets, report };
        let list = stored.offsets();
        let rising = list.windows(2).all(|pair| pair[0] <= pair[1]);
        if list.first() != Some(&0) || list.last() != Some(&header.tokens) || !rising {
            return Err("its offsets do not rise from 0 to the number of tokens".into());
        }
        Ok(stored)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns what was read and what was odd about it.
    pub fn report(&self) -> Report {
        Report { from_cache: true, ..self.report.clone() }
    }

    pub fn content_hash(&self) -> u128 {
        whole(self.header.content_hash)
    }

    pub fn longest(&self) -> usize {
        self.header.longest as usize
    }

    pub fn bound(&self) -> u64 {
        self.header.bound
    }

    pub fn ids(&self) -> &[u32] {
        // The map begins on a page and the header is a multiple of 8 bytes, so both casts are aligned.
        bytemuck::cast_slice(&self.map[self.ids.clone()])
    }

    pub fn offsets(&self) -> &[u64] {
        bytemuck::cast_slice(&self.map[self.offsets.clone()])
    }

    /// Notes that the source of this content now has another time, so that it need not be hashed again.
    pub fn refresh(&self, path: &Path, source_time: u64) -> std::io::Result<()> {
        let mut header = Header { source_time, ..self.header };
        header.checksum = header.sum(&self.map[self.offsets.start..]);
        let mut file = File::options().write(true).open(path)?;
        // A torn write fails the checksum and costs a rebuild, nothing else.
        file.write_all(bytemuck::bytes_of(&header))
    }
}

/// Returns the byte ranges of ids and offsets, if they exist at all.
fn layout(rows: u64, tokens: u64) -> Option<(Range<usize>, Range<usize>)> {
    let (rows, tokens) = (usize::try_from(rows).ok()?, usize::try_from(tokens).ok()?);
    let ids = HEADER..tokens.checked_mul(4)?.checked_add(HEADER)?;
    let start = ids.end.checked_next_multiple_of(8)?;
    let end = rows.checked_add(1)?.checked_mul(8)?.checked_add(start)?;
    Some((ids, start..end))
}

/// Writes a cache file beside its final name; dropped unfinished, it leaves nothing behind.
///
/// The file stays locked while it is written, so that [`clear_stale`] can tell one in use from one left by a kill. Ids
/// of processes would not do: machines and containers that share the folder have each their own.
pub(super) struct Writer {
    file: BufWriter<File>,
    temporary: PathBuf,
    offsets: Vec<u64>,
    content: ContentHash,
    longest: usize,
    bound: u64,
}

/// An unfinished file younger than this is left alone: its writer may not have locked it yet.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// Removes the unfinished files in `folder` that nobody writes any more; what cannot be removed stays.
fn clear_stale(folder: &Path) {
    for item in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = item.path();
        let stem = path.file_stem().map(Path::new).and_then(Path::extension);
        if path.extension() != Some(OsStr::new("tmp")) || stem != Some(OsStr::new("corpus")) {
            continue;
        }
        let old = item.metadata().is_ok_and(|m| {
            let age = m.modified().ok().and_then(|time| time.elapsed().ok());
            m.is_file() && age.is_some_and(|age| age > STALE_AFTER)
        });
        // Where locks are not supported, nothing is known and nothing is removed.
        if old && File::options().write(true).open(&path).is_ok_and(|f| f.try_lock().is_ok()) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

impl Writer {
    pub fn create(path: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let started = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos());
        let (id, name) = (std::process::id(), path.file_stem().unwrap_or_default());
        let name = name.to_string_lossy();
        let temporary = path.with_file_name(format!("{name}-{id}-{unique}-{started:x}.corpus.tmp"));
        let failed = |e| {
            Error::io("write the corpus cache", &temporary, e)
                .hint("choose another folder by data.cache_dir")
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        clear_stale(folder);
        let file = File::create_new(&temporary).map_err(failed)?;
        // Only a later clearing looks at the lock; where there are none, leftovers stay.
        let _ = file.try_lock();
        let mut writer = Self {
            file: BufWriter::with_capacity(1 << 20, file),
            temporary: temporary.clone(),
            offsets: vec![0],
            content: ContentHash::default(),
            longest: 0,
            bound: 0,
        };
        writer.file.write_all(&[0; HEADER]).map_err(failed)?;
        Ok(writer)
    }

    pub fn add(&mut self, row: &[u32]) -> Result<()> {
        self.content.add(row);
        self.longest = self.longest.max(row.len());
        self.bound = row.iter().fold(self.bound, |bound, id| bound.max(u64::from(*id) + 1));
        let end = self.offsets.last().copied().unwrap_or(0) + row.len() as u64;
        self.offsets.push(end);
        self.file
            .write_all(bytemuck::cast_slice(row))
            .map_err(|e| Error::io("write the corpus cache", &self.temporary, e))
    }

    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Completes the file with `header` (key and source set by the caller) and `report`, and gives it its name.
    pub fn finish(mut self, mut header: Header, report: &Report, path: &Path) -> Result<Stored> {
        let report = serde_json::to_vec(report)
            .map_err(|e| Error::data(format!("the report of a corpus: {e}")).with_source(e))?;
        header.magic = MAGIC;
        header.version = VERSION;
        header.content_hash = halves(self.content.finish());
        header.rows = self.rows() as u64;
        header.tokens = self.offsets.last().copied().unwrap_or(0);
        header.longest = self.longest as u64;
        header.bound = self.bound;
        header.report = report.len() as u64;
        let tail = [bytemuck::cast_slice(&self.offsets), &report].concat();
        header.checksum = header.sum(&tail);
        let padding = [0; 4];
        let padding = if header.tokens % 2 == 1 { &padding[..] } else { &[] };
        let file = &mut self.file;
        let written = file
            .write_all(padding)
            .and_then(|()| file.write_all(&tail))
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(bytemuck::bytes_of(&header)))
            .and_then(|()| file.flush())
            .and_then(|()| file.get_ref().sync_all())
            .and_then(|()| std::fs::rename(&self.temporary, path))
            .and_then(|()| sync_folder(path))
            .and_then(|()| Stored::open(path));
        match written {
            Ok(Ok(stored)) => Ok(stored),
            Ok(Err(why)) => Err(Error::new(
                crate::Kind::Io,
                format!(
                    "{}: the corpus cache was written but cannot be read: {why}",
                    path.display()
                ),
            )),
            Err(e) => Err(Error::io("write the corpus cache", path, e)),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; a failure here leaves a stray file, no wrong one.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(rows: &[&[u32]]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.corpus");
        let mut writer = Writer::create(&path).unwrap();
        rows.iter().for_each(|row| writer.add(row).unwrap());
        writer.finish(Header::zeroed(), &Report::default(), &path).unwrap();
        (dir, path)
    }

    #[test]
    fn written_rows_are_read_back() {
        let (dir, path) = written(&[&[1, 2, 3], &[], &[4, 5]]);
        let stored = Stored::open(&path).unwrap().unwrap();
        assert_eq!(stored.ids(), [1, 2, 3, 4, 5]);
        assert_eq!(stored.offsets(), [0, 3, 3, 5]);
        assert_eq!((stored.longest(), stored.bound()), (3, 6));
        stored.refresh(&path, 77).unwrap();
        assert_eq!(Stored::open(&path).unwrap().unwrap().header().source_time, 77);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_left_by_a_kill_are_removed_and_those_in_use_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let in_use = Writer::create(&place("used.corpus")).unwrap();
        let leftover = |name: &str, seconds| {
            let file = File::create(place(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        leftover("old-7-0-1f.corpus.tmp", 3600);
        leftover("young-7-0-1f.corpus.tmp", 1);
        leftover("other.tmp", 3600);
        leftover("whole.corpus", 3600);
        let used = in_use.temporary.clone();
        File::options()
            .write(true)
            .open(&used)
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        drop(Writer::create(&place("next.corpus")).unwrap());
        let there = |name: &str| place(name).exists();
        assert!(!there("old-7-0-1f.corpus.tmp") && there("young-7-0-1f.corpus.tmp"));
        assert!(there("other.tmp") && there("whole.corpus") && used.exists());
        drop(in_use);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn unfinished_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(&dir.path().join("x.corpus")).unwrap();
        writer.add(&[1]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_of_header_and_offsets_is_found() {
        let (_dir, path) = written(&[&[1, 2, 3], &[4, 5]]);
        let good = std::fs::read(&path).unwrap();
        for len in 0..good.len() {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(Stored::open(&path).unwrap().is_err(), "{len} bytes");
        }
        let ids = HEADER..HEADER + 24;
        for at in (0..good.len()).filter(|at| !ids.contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, bad).unwrap();
            assert!(Stored::open(&path).unwrap().is_err(), "byte {at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_header_is_read_or_refused(
            words in prop::collection::vec(any::<u64>(), HEADER / 8),
            rows in 0u64..3, tokens in 0u64..3, sizes in any::<bool>(), tail in 0usize..40,
        ) {
            let mut header: Header = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words));
            (header.magic, header.version) = (MAGIC, VERSION);
            if sizes {
                (header.rows, header.tokens) = (rows, tokens);
            }
            let ends = layout(header.rows, header.tokens).map(|(_, offsets)| offsets);
            if let Some(report) = ends.as_ref().and_then(|o| (HEADER + tail).checked_sub(o.end)) {
                header.report = report as u64;
            }
            let mut bytes = bytemuck::bytes_of(&header).to_vec();
            bytes.resize(HEADER + tail, 1);
            if let Some(offsets) = ends
                && let Some(tail) = bytes.get(offsets.start..)
            {
                // A right checksum lets the later checks be reached.
                header.checksum = header.sum(tail);
                bytes[..HEADER].copy_from_slice(bytemuck::bytes_of(&header));
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            let _ = Stored::open(file.path()).unwrap();
        }
    }
}

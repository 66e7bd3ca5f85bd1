//! A tokenised corpus: rows of ids, made once, kept in a memory-mapped cache file.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytemuck::Zeroable;
use rayon::prelude::*;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::cache::{ContentHash, Header, Stored, VERSION, Writer, halves, whole};
use super::chunk::{Chunking, Cutter, Rows};
use super::document::Document;
use super::records;
use super::report::Report;
use super::source::{self, Format};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Options for turning a source into rows, and the place of their cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusOptions {
    /// The longest row, in tokens, special tokens included; `input_ids` in the source are never cut.
    pub context: usize,
    /// Treatment of longer documents.
    pub chunking: Chunking,
    /// The folder of cache files; `None` means [`default_cache_dir`].
    pub cache_dir: Option<PathBuf>,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self { context: 1024, chunking: Chunking::default(), cache_dir: None }
    }
}

/// Returns `nepenthe` in the user's cache folder (XDG_CACHE_HOME, else HOME/.cache, else the temporary folder).
pub fn default_cache_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("nepenthe")
}

/// Rows of token ids, in memory or mapped from a cache file.
#[derive(Debug)]
pub struct Corpus {
    rows: Storage,
    hash: u128,
    longest: usize,
    /// The largest id plus one; 0 without tokens.
    bound: u64,
    report: Report,
}

#[derive(Debug)]
enum Storage {
    Owned { ids: Vec<u32>, offsets: Vec<u64> },
    Mapped(Box<Stored>),
}

impl Corpus {
    /// Opens the tokenised rows of the file `source`, from the cache where it holds them, else by tokenising.
    ///
    /// The cache is keyed by the hashes of source and tokenizer, context, chunking and format version. The
    /// source is hashed again only where its size or time differ from those recorded. A broken cache file is
    /// rebuilt; [`Report::note`] says why. Tokenising holds at most a few thousand documents in memory.
    ///
    /// Errors: `Kind::Data` for a broken source, `Kind::Config` for a context without room for text, `Kind::Io`
    /// for a cache folder that cannot be written.
    pub fn open(source: &Path, tokenizer: &Tokenizer, options: &CorpusOptions) -> Result<Self> {
        let (format, file) = source::open(source)?;
        let cutter = Cutter::new(
            tokenizer.prefix(),
            tokenizer.suffix(),
            tokenizer.side(),
            options.context,
            options.chunking,
        )?;
        let job = Job { source, format, tokenizer, options, cutter };
        let path = job.cache_path();
        let stamp = Stamp::of(source, &file)?;
        let note = match Stored::open(&path) {
            Ok(Ok(stored)) => {
                if job.is_current(&stored, &stamp, &path)? {
                    let report = stored.report();
                    return Ok(Self::mapped(stored, report));
                }
                Some("the source changed since the cache was made".to_owned())
            }
            Ok(Err(why)) => Some(why),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => Some(e.to_string()),
        };
        let note = note.map(|why| format!("corpus cache rebuilt ({}): {why}", path.display()));
        let (stored, report) = job.build(file, &stamp, &path)?;
        Ok(Self::mapped(stored, Report { note, ..report }))
    }

    /// Keeps `docs` in memory as they are.
    pub fn from_docs(docs: Vec<Vec<u32>>) -> Self {
        let mut hash = ContentHash::default();
        let mut offsets = vec![0];
        let mut ids = Vec::with_capacity(docs.iter().map(Vec::len).sum());
        for doc in &docs {
            hash.add(doc);
            ids.extend_from_slice(doc);
            offsets.push(ids.len() as u64);
        }
        let single_token = docs.iter().filter(|doc| doc.len() == 1).count() as u64;
        Self {
            hash: hash.finish(),
            longest: docs.iter().map(Vec::len).max().unwrap_or(0),
            bound: ids.iter().max().map_or(0, |id| u64::from(*id) + 1),
            report: Report { records: docs.len() as u64, single_token, ..Report::default() },
            rows: Storage::Owned { ids, offsets },
        }
    }

    fn mapped(stored: Stored, report: Report) -> Self {
        let (hash, longest, bound) = (stored.content_hash(), stored.longest(), stored.bound());
        Self { rows: Storage::Mapped(Box::new(stored)), hash, longest, bound, report }
    }

    fn parts(&self) -> (&[u32], &[u64]) {
        match &self.rows {
            Storage::Owned { ids, offsets } => (ids, offsets),
            Storage::Mapped(stored) => (stored.ids(), stored.offsets()),
        }
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.parts().1.len() - 1
    }

    /// Returns whether there are no rows; never true for a corpus that was opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the ids of row `i`; panics if `i` is not below [`Corpus::len`], as slices do.
    pub fn doc(&self, i: usize) -> &[u32] {
        let (ids, offsets) = self.parts();
        &ids[offsets[i] as usize..offsets[i + 1] as usize]
    }

    /// Returns the number of tokens in all rows.
    pub fn tokens(&self) -> usize {
        self.parts().0.len()
    }

    /// Returns the number of tokens in the longest row.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Returns the largest id of all rows, `None` without tokens; known without reading them.
    pub fn largest_id(&self) -> Option<u32> {
        self.bound.checked_sub(1).and_then(|id| u32::try_from(id).ok())
    }

    /// Refuses a corpus with an id that a model of `vocab` tokens has no row for; `source` names it.
    ///
    /// Errors: `Kind::Data`.
    pub fn check_ids(&self, source: &Path, vocab: usize) -> Result<()> {
        match self.largest_id() {
            Some(id) if id as usize >= vocab => Err(Error::data(format!(
                "{}: token id {id}, the model's vocab_size is {vocab}",
                source.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the ids of row `i` as [`Corpus::doc`] does, once they are seen to be within [`Corpus::largest_id`].
    ///
    /// Errors: `Kind::Data` if they are not: the cache was damaged after it was written.
    pub fn checked_doc(&self, i: usize) -> Result<&[u32]> {
        let doc = self.doc(i);
        match doc.iter().find(|id| u64::from(**id) >= self.bound) {
            None => Ok(doc),
            Some(id) => Err(Error::data(format!(
                "cached row {i} has id {id}, the largest written was {}",
                self.bound.saturating_sub(1)
            ))
            .hint("delete the corpus cache and start again")),
        }
    }

    /// Returns the xxh3-128 hash of the rows, the same in memory and mapped.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Returns how many rows equal a row of `other` in their first `most` ids.
    pub fn shared_rows(&self, other: &Self, most: usize) -> usize {
        let hash = |row: &[u32]| xxh3_64(bytemuck::cast_slice(&row[..row.len().min(most)]));
        let rows: HashSet<u64> = (0..other.len()).map(|i| hash(other.doc(i))).collect();
        (0..self.len()).filter(|i| rows.contains(&hash(self.doc(*i)))).count()
    }

    /// Reads every id and compares with [`Corpus::hash`]: the check that opening leaves out for speed.
    ///
    /// Errors: `Kind::Data` if the cached ids are not those that were written.
    pub fn verify(&self) -> Result<()> {
        let mut hash = ContentHash::default();
        (0..self.len()).for_each(|i| hash.add(self.doc(i)));
        let got = hash.finish();
        if got == self.hash {
            return Ok(());
        }
        Err(Error::data(format!("cached ids have hash {got:032x}, wanted {:032x}", self.hash))
            .hint("delete the corpus cache and start again"))
    }

    /// Returns what was read and what was odd about it.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

/// Size and time of a source: while they stay, its hash is taken to stay.
struct Stamp {
    bytes: u64,
    time: u64,
}

impl Stamp {
    fn of(path: &Path, file: &File) -> Result<Self> {
        let metadata = file.metadata().map_err(|e| Error::io("read the size", path, e))?;
        // A file written within the resolution of its time can change again without it changing.
        let settled = |time: &SystemTime| {
            SystemTime::now().duration_since(*time).is_ok_and(|age| age > Duration::from_secs(2))
        };
        let time = metadata.modified().ok().filter(settled);
        let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let time = time.and_then(|time| u64::try_from(time.as_nanos()).ok()).unwrap_or(0);
        Ok(Self { bytes: metadata.len(), time })
    }
}

/// Everything that decides what a corpus holds.
struct Job<'a> {
    source: &'a Path,
    format: Format,
    tokenizer: &'a Tokenizer,
    options: &'a CorpusOptions,
    cutter: Cutter<'a>,
}

impl Job<'_> {
    /// Names the cache by the source's place, so that finding it needs no hash of the source.
    fn cache_path(&self) -> PathBuf {
        let place = self.source.canonicalize().unwrap_or_else(|_| self.source.to_owned());
        // Not by the version: another one's file is then found, and replaced instead of left behind.
        const NAMING: u64 = 1;
        let name = self.key(xxh3_128(place.as_os_str().as_encoded_bytes()), NAMING);
        let stem = self.source.file_stem().unwrap_or_default().to_string_lossy();
        let stem: String = stem
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
            .take(40)
            .collect();
        let folder = self.options.cache_dir.clone().unwrap_or_else(default_cache_dir);
        folder.join(format!("{stem}-{name:032x}.corpus"))
    }

    fn key(&self, source: u128, version: u64) -> u128 {
        let chunking = match self.options.chunking {
            Chunking::Truncate => 0,
            Chunking::Chunk => 1,
            Chunking::ChunkFull => 2,
        };
        let words = [
            source,
            self.tokenizer.hash(),
            self.options.context as u128,
            chunking,
            self.format as u128,
            version.into(),
        ];
        xxh3_128(&words.map(u128::to_le_bytes).concat())
    }

    fn is_current(&self, stored: &Stored, stamp: &Stamp, path: &Path) -> Result<bool> {
        let header = stored.header();
        if header.source_bytes != stamp.bytes {
            return Ok(false);
        }
        if stamp.time != 0 && header.source_time == stamp.time {
            return Ok(header.key == halves(self.key(whole(header.source_hash), VERSION)));
        }
        let hash = File::open(self.source)
            .and_then(records::hash)
            .map_err(|e| Error::io("read", self.source, e))?;
        let current = header.key == halves(self.key(hash, VERSION));
        if current && stamp.time != 0 {
            // A read-only cache stays usable; it only costs the hash each time.
            let _ = stored.refresh(path, stamp.time);
        }
        Ok(current)
    }

    fn build(&self, file: File, stamp: &Stamp, path: &Path) -> Result<(Stored, Report)> {
        const BATCH_DOCUMENTS: usize = 4096;
        const BATCH_BYTES: usize = 16 << 20;
        let mut writer = Writer::create(path)?;
        let mut counts = Report::default();
        let mut batch = Vec::new();
        let mut bytes = 0;
        let name = self.source.display().to_string();
        let vocab_size = self.tokenizer.vocab_size();
        let summary = source::read_file(self.format, &name, file, vocab_size, &mut |document| {
            bytes += match &document {
                Document::Text(text) => text.len(),
                Document::Question { question, answer } => question.len() + answer.len(),
                Document::Ids(ids) => 4 * ids.len(),
            };
            batch.push(document);
            if batch.len() >= BATCH_DOCUMENTS || bytes >= BATCH_BYTES {
                bytes = 0;
                self.write(&mut batch, &mut writer, &mut counts)?;
            }
            Ok(())
        })?;
        self.write(&mut batch, &mut writer, &mut counts)?;
        if writer.rows() == 0 {
            let e = if counts.dropped_short > 0 {
                Error::data(format!(
                    "{name}: no document fills a row of {} tokens",
                    self.options.context
                ))
                .hint("choose a smaller context or keep short rows")
            } else {
                Error::data(format!("{name}: no document has a token"))
                    .hint("fill the documents with text")
            };
            return Err(e);
        }
        let report = Report {
            without_tokens: counts.without_tokens,
            single_token: counts.single_token,
            truncated: counts.truncated,
            cut_tokens: counts.cut_tokens,
            long_ids: counts.long_ids,
            doubled_special: counts.doubled_special,
            dropped_short: counts.dropped_short,
            ..summary.report
        };
        let mut header = Header::zeroed();
        header.key = halves(self.key(summary.hash, VERSION));
        header.source_hash = halves(summary.hash);
        header.source_bytes = summary.bytes;
        header.source_time = if summary.bytes == stamp.bytes { stamp.time } else { 0 };
        Ok((writer.finish(header, &report, path)?, report))
    }

    /// Tokenises `batch` on all threads, writes its rows in order and leaves it empty.
    fn write(
        &self,
        batch: &mut Vec<Document>,
        writer: &mut Writer,
        counts: &mut Report,
    ) -> Result<()> {
        let rows = |document: &Document| {
            let Some(text) = document.text() else {
                let ids = if let Document::Ids(ids) = document { ids.clone() } else { Vec::new() };
                return Ok((Rows { rows: vec![ids], ..Rows::default() }, false, true));
            };
            let plain = self.tokenizer.encode_plain(&text)?;
            Ok((self.cutter.cut(&plain), self.tokenizer.doubles(&plain), false))
        };
        let rows: Vec<(Rows, bool, bool)> = batch.par_iter().map(rows).collect::<Result<_>>()?;
        for (document, doubled, given) in rows {
            counts.truncated += u64::from(document.cut > 0);
            counts.cut_tokens += document.cut as u64;
            counts.doubled_special += u64::from(doubled);
            let long = document.rows.iter().any(|row| row.len() > self.options.context);
            counts.long_ids += u64::from(given && long);
            counts.dropped_short += u64::from(document.dropped);
            for row in document.rows {
                match row.len() {
                    0 => counts.without_tokens += 1,
                    len => {
                        counts.single_token += u64::from(len == 1);
                        writer.add(&row)?;
                    }
                }
            }
        }
        batch.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::tests::{CONFIG, tokenizer};

    struct Folder {
        dir: tempfile::TempDir,
        tokenizer: Tokenizer,
    }

    impl Folder {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), tokenizer: tokenizer(CONFIG).unwrap() }
        }

        fn source(&self, text: &str) -> PathBuf {
            let path = self.dir.path().join("alice.jsonl");
            std::fs::write(&path, text).unwrap();
            path
        }

        fn open(&self, context: usize, chunking: Chunking) -> Result<Corpus> {
            let cache_dir = Some(self.dir.path().join("cache"));
            let options = CorpusOptions { context, chunking, cache_dir };
            Corpus::open(&self.dir.path().join("alice.jsonl"), &self.tokenizer, &options)
        }

        fn caches(&self) -> Vec<PathBuf> {
            let entries = std::fs::read_dir(self.dir.path().join("cache")).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        }
    }

    fn rows(corpus: &Corpus) -> Vec<Vec<u32>> {
        (0..corpus.len()).map(|i| corpus.doc(i).to_vec()).collect()
    }

    const THREE: &str = "{\"text\": \"a b c d\"}\n{\"text\": \"\"}\n{\"text\": \"e\"}\n";

    #[test]
    fn second_open_reads_the_cache_and_equals_the_first() {
        let folder = Folder::new();
        folder.source(THREE);
        let first = folder.open(4, Chunking::Truncate).unwrap();
        assert_eq!(rows(&first), [vec![0, 3, 4, 5], vec![0], vec![0, 7]]);
        assert_eq!((first.tokens(), first.longest(), first.is_empty()), (7, 4, false));
        assert_eq!(first.largest_id(), Some(7));
        first.check_ids(Path::new("a"), 8).unwrap();
        assert_eq!(
            first.check_ids(Path::new("a"), 7).unwrap_err().message(),
            "a: token id 7, the model's vocab_size is 7"
        );
        assert_eq!(
            first.report().notices("a", 4),
            [
                "warning: a: 1 of 3 documents truncated to the context of 4 tokens; 1 token not used",
                "a: 1 row with a single token, in which nothing is predicted",
                "a: 1 document with an empty text",
            ]
        );
        let second = folder.open(4, Chunking::Truncate).unwrap();
        assert!(!first.report().from_cache && second.report().from_cache);
        assert_eq!(second.report(), &Report { from_cache: true, ..first.report().clone() });
        assert_eq!(rows(&second), rows(&first));
        assert_eq!(second.hash(), first.hash());
        let owned = Corpus::from_docs(rows(&first));
        assert_eq!((owned.hash(), owned.largest_id()), (first.hash(), first.largest_id()));
        assert_eq!(Corpus::from_docs(Vec::new()).largest_id(), None);
        second.verify().unwrap();
    }

    #[test]
    fn other_options_have_their_own_cache() {
        let folder = Folder::new();
        folder.source(THREE);
        folder.open(4, Chunking::Truncate).unwrap();
        let chunks = folder.open(4, Chunking::Chunk).unwrap();
        assert!(!chunks.report().from_cache);
        assert_eq!(rows(&chunks), [vec![0, 3, 4, 5], vec![0, 6], vec![0], vec![0, 7]]);
        let full = folder.open(4, Chunking::ChunkFull).unwrap();
        assert_eq!(rows(&full), [[0, 3, 4, 5]]);
        assert_eq!(full.report().dropped_short, 3);
        assert_eq!(folder.caches().len(), 3);
    }

    #[test]
    fn changed_source_is_tokenised_again_even_at_the_same_size() {
        let folder = Folder::new();
        folder.source(THREE);
        folder.open(4, Chunking::Truncate).unwrap();
        folder.source(&THREE.replace('e', "f").replace("tfxt", "text"));
        let changed = folder.open(4, Chunking::Truncate).unwrap();
        assert_eq!(changed.doc(2), [0, 8]);
        let note = changed.report().note.clone().unwrap();
        assert!(note.ends_with("the source changed since the cache was made"), "{note}");
        assert_eq!(folder.caches().len(), 1);
    }

    #[test]
    fn settled_source_is_recognised_by_its_time_and_hashed_after_a_touch() {
        let folder = Folder::new();
        let source = folder.source(THREE);
        let touch = |seconds| {
            let time = SystemTime::now() - Duration::from_secs(seconds);
            File::options().write(true).open(&source).unwrap().set_modified(time).unwrap();
        };
        touch(100);
        folder.open(4, Chunking::Truncate).unwrap();
        let stored_time =
            || Stored::open(&folder.caches()[0]).unwrap().unwrap().header().source_time;
        let before = stored_time();
        assert_ne!(before, 0);
        touch(50);
        assert!(folder.open(4, Chunking::Truncate).unwrap().report().from_cache);
        assert!(stored_time() > before);
        assert!(folder.open(4, Chunking::Truncate).unwrap().report().from_cache);
    }

    #[test]
    fn broken_cache_is_rebuilt_with_a_note() {
        let folder = Folder::new();
        folder.source(THREE);
        let good = rows(&folder.open(4, Chunking::Truncate).unwrap());
        let path = folder.caches().remove(0);
        let bytes = std::fs::read(&path).unwrap();
        let short = format!("{} bytes do not fit 3 rows of 7 tokens", bytes.len() - 1);
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut older = bytes.clone();
        older[8] = 1;
        for (broken, why) in [
            (&bytes[..bytes.len() - 1], short.as_str()),
            (&bytes[..10], "10 bytes are no header"),
            (b"", "0 bytes are no header"),
            (&flipped, "its checksum does not match"),
            (&older, "version 1 in file, 3 wanted"),
        ] {
            std::fs::write(&path, broken).unwrap();
            let corpus = folder.open(4, Chunking::Truncate).unwrap();
            let note = corpus.report().note.clone().unwrap();
            assert_eq!(note, format!("corpus cache rebuilt ({}): {why}", path.display()));
            assert_eq!(rows(&corpus), good);
        }
        assert!(folder.open(4, Chunking::Truncate).unwrap().report().from_cache);
    }

    #[test]
    fn verify_finds_changed_ids() {
        let folder = Folder::new();
        folder.source(THREE);
        folder.open(4, Chunking::Truncate).unwrap();
        let path = folder.caches().remove(0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[size_of::<Header>()] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let corpus = folder.open(4, Chunking::Truncate).unwrap();
        assert!(corpus.verify().unwrap_err().message().starts_with("cached ids have hash "));
        corpus.checked_doc(0).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[size_of::<Header>() + 3] = 1;
        std::fs::write(&path, bytes).unwrap();
        let corpus = folder.open(4, Chunking::Truncate).unwrap();
        assert_eq!(
            corpus.checked_doc(0).unwrap_err().message(),
            "cached row 0 has id 16777217, the largest written was 7"
        );
    }

    #[test]
    fn ids_are_used_as_they_are() {
        let folder = Folder::new();
        folder.source("{\"input_ids\": [5, 6, 7, 8]}\n{\"input_ids\": []}\n");
        let corpus = folder.open(2, Chunking::Truncate).unwrap();
        assert_eq!(rows(&corpus), [[5, 6, 7, 8]]);
        assert_eq!(corpus.report().without_tokens, 1);
    }

    #[test]
    fn order_of_rows_survives_parallel_batches_and_failed_builds_leave_nothing() {
        let folder = Folder::new();
        let letters: String = (0..10_000)
            .map(|i| format!("{{\"text\": \"{}\"}}\n", (b'a' + (i % 26) as u8) as char))
            .collect();
        folder.source(&format!("{letters}oops"));
        folder.open(4, Chunking::Truncate).unwrap_err();
        assert!(folder.caches().is_empty());
        folder.source(&letters);
        let corpus = folder.open(4, Chunking::Truncate).unwrap();
        assert_eq!(corpus.len(), 10_000);
        assert!((0..10_000).all(|i| corpus.doc(i) == [0, 3 + (i % 26) as u32]));
    }
}

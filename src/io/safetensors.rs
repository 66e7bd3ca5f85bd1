//! Safetensors files, mapped into memory for reading and streamed for writing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::Metadata;

use crate::error::{Error, Result};

/// Number formats of tensors that are read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// IEEE double.
    F64,
    /// A byte that is 0 or 1.
    Bool,
    /// A byte.
    U8,
    /// A signed byte; of quantised weights.
    I8,
    /// 8-bit float of 4 exponent bits; of quantised weights.
    F8E4m3,
    /// 8-bit float of 5 exponent bits; of quantised weights.
    F8E5m2,
}

impl Dtype {
    /// Returns the bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4m3 | Self::F8E5m2 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// Tells whether model weights may have this type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Returns `x` as it is stored in this type (floats only), rounded to nearest even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
            _ => x,
        }
    }

    fn from_file(dtype: safetensors::Dtype) -> Option<Self> {
        Some(match dtype {
            safetensors::Dtype::F32 => Self::F32,
            safetensors::Dtype::F16 => Self::F16,
            safetensors::Dtype::BF16 => Self::Bf16,
            safetensors::Dtype::I32 => Self::I32,
            safetensors::Dtype::I64 => Self::I64,
            safetensors::Dtype::F64 => Self::F64,
            // Masks that older exporters left in files; nothing here reads them.
            safetensors::Dtype::BOOL => Self::Bool,
            safetensors::Dtype::U8 => Self::U8,
            safetensors::Dtype::I8 => Self::I8,
            safetensors::Dtype::F8_E4M3 => Self::F8E4m3,
            safetensors::Dtype::F8_E5M2 => Self::F8E5m2,
            _ => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::F64 => "F64",
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E4m3 => "F8_E4M3",
            Self::F8E5m2 => "F8_E5M2",
        })
    }
}

/// Type, shape and place of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its number format.
    pub dtype: Dtype,
    /// Its shape, slowest axis first.
    pub shape: Vec<usize>,
    shard: usize,
    start: usize,
    end: usize,
}

impl TensorInfo {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        (self.end - self.start) / self.dtype.size()
    }

    /// Tells whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// Where the bytes of a file are.
enum Bytes {
    Mapped(Mmap),
    /// In the binary.
    Embedded(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

/// One file of a model's weights.
struct Shard {
    path: PathBuf,
    file: String,
    bytes: Bytes,
    names: Vec<String>,
    metadata: BTreeMap<String, String>,
}

/// All tensors of one safetensors file or of a sharded folder.
pub struct Weights {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// The single-file name of a model's weights.
pub const SINGLE: &str = "model.safetensors";
/// The name of the index of sharded weights.
pub const INDEX: &str = "model.safetensors.index.json";

impl Weights {
    /// Opens the weights of a model folder: the index and its shards, or the single file.
    ///
    /// Errors: [`crate::Kind::Model`] naming the file for anything truncated, overlapping, missing or doubled.
    pub fn open(dir: &Path) -> Result<Self> {
        let index = dir.join(INDEX);
        if !index.is_file() {
            let single = dir.join(SINGLE);
            return match other_weights(dir) {
                Some(e) if !single.exists() => Err(e),
                _ => Self::open_file(&single),
            };
        }
        let wrong = |what: String| Error::model(format!("{}: {what}", index.display()));
        let text = std::fs::read(&index).map_err(|e| Error::io("read", &index, e))?;
        let json: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|e| wrong(format!("not valid JSON: {e}")).with_source(e))?;
        let map = json
            .get("weight_map")
            .and_then(|map| map.as_object())
            .ok_or_else(|| wrong("weight_map is missing or no object".into()))?;
        if map.is_empty() {
            return Err(wrong("weight_map is empty".into()));
        }
        let mut files = BTreeSet::new();
        for (name, file) in map {
            let file = file
                .as_str()
                .ok_or_else(|| wrong(format!("{name}: wanted a file name, got {file}")))?;
            // A shard is written under the same name by export, so it must stay inside the folder on every system.
            let plain = Path::new(file).file_name().is_some_and(|f| f == file)
                && !file.contains(['\\', ':', '\0']);
            if !plain {
                return Err(wrong(format!("{name}: `{file}` is no plain file name")));
            }
            files.insert(file);
        }
        let mut weights = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        for file in files {
            weights.add(&dir.join(file))?;
        }
        for (name, file) in map {
            let found = weights.tensors.get(name).map(|t| weights.shards[t.shard].file.as_str());
            let file = file.as_str().unwrap_or_default();
            if found != Some(file) {
                return Err(wrong(format!(
                    "{name}: not in {file} as the index says{}",
                    found.map(|f| format!(", but in {f}")).unwrap_or_default()
                )));
            }
        }
        match weights.tensors.keys().find(|name| !map.contains_key(*name)) {
            Some(name) => Err(wrong(format!("{name}: in a shard but not in the index"))),
            None => Ok(weights),
        }
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut weights = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        weights.add(path)?;
        Ok(weights)
    }

    /// Reads a safetensors file that this binary carries; `name` stands for its path in messages.
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut weights = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        weights.add_bytes(Path::new(name), Bytes::Embedded(bytes))?;
        Ok(weights)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|e| Error::io("open weights", path, e))?;
        // SAFETY: the map is read-only; as with every mapped file, nobody may truncate it while it is in use.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map weights", path, e))?;
        self.add_bytes(path, Bytes::Mapped(map))
    }

    fn add_bytes(&mut self, path: &Path, bytes: Bytes) -> Result<()> {
        let wrong = |what: String| {
            Error::model(format!("{}: {what}", path.display()))
                .hint("the file is damaged or incomplete; download it again")
        };
        let (data, metadata) = parse_header(&bytes).map_err(|e| e.at(path.display()))?;
        let shard = self.shards.len();
        let mut found: Vec<(usize, String)> = Vec::new();
        for (name, info) in metadata.tensors() {
            let dtype = Dtype::from_file(info.dtype).ok_or_else(|| {
                Error::model(format!(
                    "{}: {name}: dtype {:?} is not supported, wanted F32, F16 or BF16",
                    path.display(),
                    info.dtype
                ))
                .hint("if the weights are quantised, start from the unquantised model")
            })?;
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            if end > bytes.len() {
                return Err(wrong(format!("{name}: ends at byte {end} of {}", bytes.len())));
            }
            let tensor = TensorInfo { dtype, shape: info.shape.clone(), shard, start, end };
            found.push((start, name.clone()));
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(wrong(format!("{name}: is in two files")));
            }
        }
        found.sort();
        let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        let file = path.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
        let names = found.into_iter().map(|(_, name)| name).collect();
        self.shards.push(Shard { path: path.to_owned(), file, bytes, names, metadata });
        Ok(())
    }

    /// Returns all tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Leaves a tensor out, as if the files did not hold it.
    pub fn leave_out(&mut self, name: &str) {
        if let Some(info) = self.tensors.remove(name) {
            self.shards[info.shard].names.retain(|other| other != name);
        }
    }

    /// Returns what is known of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Returns every file with its tensors in file order and its metadata.
    pub fn shards(&self) -> impl Iterator<Item = (&str, &[String], &BTreeMap<String, String>)> {
        self.shards.iter().map(|s| (s.file.as_str(), s.names.as_slice(), &s.metadata))
    }

    fn find(&self, name: &str) -> Result<&TensorInfo> {
        self.info(name).ok_or_else(|| Error::model(format!("{name}: missing from the weights")))
    }

    /// Returns the raw bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let info = self.find(name)?;
        Ok(&self.shards[info.shard].bytes[info.start..info.end])
    }

    /// Reads a float tensor into `out`, which must have its length.
    ///
    /// Errors: [`crate::Kind::Model`] for a tensor that is missing, no float, of another length, or holds a NaN or an
    /// infinity.
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let (info, bytes) = (self.find(name)?, self.bytes(name)?);
        let size = info.dtype.size();
        if bytes.len() != out.len() * size {
            return Err(Error::model(format!(
                "{name}: {} elements in file, wanted {}",
                info.len(),
                out.len()
            )));
        }
        let convert: fn(&[u8]) -> f32 = match info.dtype {
            Dtype::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::F16 => |b| half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Dtype::Bf16 => |b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            other => return Err(Error::model(format!("{name}: dtype {other} is no weight"))),
        };
        const CHUNK: usize = 1 << 16;
        let convert = |(out, bytes): (&mut [f32], &[u8])| {
            let mut finite = true;
            for (x, b) in out.iter_mut().zip(bytes.chunks_exact(size)) {
                *x = convert(b);
                finite &= x.is_finite();
            }
            finite
        };
        let chunks = out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size));
        // Every chunk is converted: only a bad file is read twice.
        let finite = chunks.map(convert).reduce(|| true, |a, b| a && b);
        self.release(info);
        if finite { Ok(()) } else { Err(self.not_finite(name, info, out)) }
    }

    /// Names the first number of a tensor that is not finite.
    fn not_finite(&self, name: &str, info: &TensorInfo, values: &[f32]) -> Error {
        let bad = values.iter().filter(|x| !x.is_finite()).count();
        let at = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
        let (mut place, mut rest) = (Vec::new(), at);
        for d in info.shape.iter().rev() {
            place.push(rest % d);
            rest /= d;
        }
        place.reverse();
        Error::model(format!(
            "{}: {name}: {} at {place:?}, {bad} of {} numbers are not finite",
            self.shards[info.shard].path.display(),
            values[at],
            values.len()
        ))
        .hint("the file is damaged, or the training that wrote it diverged; start from an intact model")
    }

    /// Drops a tensor's pages from this process: converted weights are in memory already, and a whole model of mapped
    /// bytes would stay resident beside them. Whoever reads the tensor again gets it from the page cache or the disk.
    #[cfg_attr(not(unix), allow(unused_variables))]
    fn release(&self, info: &TensorInfo) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.shards[info.shard].bytes {
            // SAFETY: the map is read-only and of a file, so a dropped page comes back with the same bytes. The range
            // lies inside the map; memmap2 widens it to whole pages. A kernel that refuses costs memory alone.
            let _ = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    info.start,
                    info.end - info.start,
                )
            };
        }
    }

    /// Reads an F32 or F64 tensor as f64.
    pub fn read_f64(&self, name: &str) -> Result<Vec<f64>> {
        let info = self.find(name)?;
        if info.dtype == Dtype::F64 {
            let bytes = self.bytes(name)?;
            return Ok(bytes
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect());
        }
        let mut out = vec![0.0; info.len()];
        self.read_f32(name, &mut out)?;
        Ok(out.into_iter().map(f64::from).collect())
    }

    /// Reads an I32 or I64 tensor.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let (info, bytes) = (self.find(name)?, self.bytes(name)?);
        match info.dtype {
            Dtype::I64 => Ok(bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect()),
            Dtype::I32 => Ok(bytes
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect()),
            other => Err(Error::model(format!("{name}: dtype {other}, wanted I32 or I64"))),
        }
    }
}

/// Names weights of another kind that a folder without safetensors holds, and says what to do about them.
fn other_weights(dir: &Path) -> Option<Error> {
    let there = |name: &str| dir.join(name).exists();
    let place = dir.display();
    if there("pytorch_model.bin") || there("pytorch_model.bin.index.json") {
        return Some(
            Error::model(format!("{place}: weights only as pytorch_model.bin, wanted {SINGLE}"))
                .hint("convert them: AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)"),
        );
    }
    None
}

/// Parses and checks the header of a whole file given as bytes; returns where the tensors begin, and the header.
fn parse_header(file: &[u8]) -> Result<(usize, Metadata)> {
    // The limit of the reference implementation.
    const LONGEST: u64 = 100_000_000;
    if file.starts_with(b"version https://git-lfs") {
        return Err(Error::model("a Git LFS pointer, not the tensors it stands for")
            .hint("run git lfs pull in the folder"));
    }
    let wrong = |what: String| {
        Error::model(format!("no safetensors file: {what}"))
            .hint("the file is damaged or incomplete; download it again")
    };
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(wrong(format!("{} bytes, a header needs at least 8", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST {
        return Err(wrong(format!("header of {length} bytes, at most {LONGEST} allowed")));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(wrong(format!(
            "header of {length} bytes, but only {} bytes follow",
            rest.len()
        )));
    };
    // The crate checks shape times dtype against the offsets, gaps and overlaps included.
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|e| wrong(format!("broken header: {e}")).with_source(e))?;
    if metadata.data_len() != data.len() {
        return Err(wrong(format!(
            "the header describes {} bytes of tensors, the file has {}",
            metadata.data_len(),
            data.len()
        )));
    }
    Ok((8 + header.len(), metadata))
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its number format.
    pub dtype: Dtype,
    /// Its shape, slowest axis first.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Returns its size in bytes; the largest `usize` where that overflows.
    pub fn bytes(&self) -> usize {
        self.shape.iter().fold(self.dtype.size(), |n, d| n.saturating_mul(*d))
    }
}

/// Writes a safetensors file in the order of `entries`, tensor by tensor, and flushes it to disk.
///
/// `fill` writes the bytes of each entry.
///
/// Errors: [`crate::Kind::Model`] for a name that is given twice or reserved, sizes that overflow, or `fill` writing
/// more or fewer bytes than the entry has; [`crate::Kind::Io`] if the disk refuses; and whatever `fill` returns.
pub fn write_file(
    path: &Path,
    entries: &[Entry],
    metadata: &BTreeMap<String, String>,
    fill: &mut dyn FnMut(&Entry, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut seen = HashSet::from(["__metadata__"]);
    let mut offset = 0usize;
    for entry in entries {
        let wrong =
            |what: &str| Error::model(format!("{}: {}: {what}", path.display(), entry.name));
        if !seen.insert(&entry.name) {
            return Err(wrong("the name is given twice or reserved"));
        }
        let end = offset
            .checked_add(entry.bytes())
            .filter(|end| *end < usize::MAX)
            .ok_or_else(|| wrong("the size of the file overflows"))?;
        let value = serde_json::json!({
            "dtype": entry.dtype.to_string(), "shape": entry.shape, "data_offsets": [offset, end],
        });
        header.insert(entry.name.clone(), value);
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // Data then starts at a multiple of 8, so that any dtype can be mapped in place.
    header.resize(header.len().next_multiple_of(8), b' ');
    let io = |e: std::io::Error| Error::io("write", path, e);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    for entry in entries {
        let mut counted = Counted { inner: &mut file, path, bytes: 0 };
        fill(entry, &mut counted)?;
        if counted.bytes != entry.bytes() {
            return Err(Error::model(format!(
                "{}: {}: {} bytes written, wanted {}",
                path.display(),
                entry.name,
                counted.bytes,
                entry.bytes()
            )));
        }
    }
    let file = file.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(io)
}

struct Counted<'a> {
    inner: &'a mut BufWriter<File>,
    path: &'a Path,
    bytes: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.bytes += n;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl fmt::Debug for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes into {}", self.bytes, self.path.display())
    }
}

/// Writes fp32 numbers as `dtype` (floats only), rounding to nearest even.
pub fn write_f32_as(dtype: Dtype, values: &[f32], out: &mut dyn Write) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 16);
    for chunk in values.chunks(1 << 14) {
        buffer.clear();
        for &x in chunk {
            match dtype {
                Dtype::F16 => buffer.extend(half::f16::from_f32(x).to_le_bytes()),
                Dtype::Bf16 => buffer.extend(half::bf16::from_f32(x).to_le_bytes()),
                _ => buffer.extend(x.to_le_bytes()),
            }
        }
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// Returns the path of the file that holds a folder's weights, for messages.
pub fn weights_path(dir: &Path) -> PathBuf {
    let index = dir.join(INDEX);
    if index.is_file() { index } else { dir.join(SINGLE) }
}

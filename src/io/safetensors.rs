//! Tensors in files: memory-mapped safetensors, in one file or in shards, and a streaming writer.
//!
//! Layout of a file: 8 bytes header length (little-endian), a JSON header, the tensors back to back.
//! The header is checked before a tensor is touched, so a lookup can neither panic nor leave the file.
//! Source: the format of <https://github.com/huggingface/safetensors>; unlike that crate's writer,
//! which sorts by dtype and name, [`write_file`] keeps the order it is given.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype as FileDtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result, nearest};

/// The name of a model's weights in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of the index of a model's weights in shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The longest header that is read, in bytes (the limit of the reference implementation).
const MAX_HEADER: u64 = 100_000_000;
/// Elements a task converts at a time: 256 KiB of f32, which stays in a core's cache.
const CHUNK: usize = 1 << 16;
/// Elements converted through the stack at a time.
const BLOCK: usize = 1024;

/// The element type of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit bfloat.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed byte.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned byte.
    U8,
    /// Truth value in a byte.
    Bool,
}

const DTYPES: [(Dtype, FileDtype, &str, usize); 13] = [
    (Dtype::F64, FileDtype::F64, "F64", 8),
    (Dtype::F32, FileDtype::F32, "F32", 4),
    (Dtype::F16, FileDtype::F16, "F16", 2),
    (Dtype::BF16, FileDtype::BF16, "BF16", 2),
    (Dtype::I64, FileDtype::I64, "I64", 8),
    (Dtype::I32, FileDtype::I32, "I32", 4),
    (Dtype::I16, FileDtype::I16, "I16", 2),
    (Dtype::I8, FileDtype::I8, "I8", 1),
    (Dtype::U64, FileDtype::U64, "U64", 8),
    (Dtype::U32, FileDtype::U32, "U32", 4),
    (Dtype::U16, FileDtype::U16, "U16", 2),
    (Dtype::U8, FileDtype::U8, "U8", 1),
    (Dtype::Bool, FileDtype::BOOL, "BOOL", 1),
];

impl Dtype {
    fn from_file(dtype: FileDtype) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == dtype).map(|row| row.0)
    }

    /// Returns the bytes of one element.
    pub fn size(self) -> usize {
        DTYPES[self as usize].3
    }

    /// Returns the name that safetensors headers use, such as `BF16`.
    pub fn name(self) -> &'static str {
        DTYPES[self as usize].2
    }

    /// Says whether [`Weights::read_f32`] and [`write_f32_as`] take this type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a file says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The element type.
    pub dtype: Dtype,
    /// The shape, slowest dimension first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Which of [`Weights::shards`] holds it.
    pub shard: usize,
    /// Where it starts in that shard's file, in bytes from the file's start.
    pub offset: usize,
    /// How long it is, in bytes.
    pub bytes: usize,
}

impl TensorInfo {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.bytes / self.dtype.size()
    }

    /// Says whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

#[derive(Debug)]
struct Shard {
    file: String,
    path: PathBuf,
    map: Mmap,
    names: Vec<String>,
    metadata: BTreeMap<String, String>,
}

/// The memory-mapped tensors of a model folder or of one file.
///
/// The files must not be cut short by others while this lives (a rename over them is safe).
#[derive(Debug)]
pub struct Weights {
    place: PathBuf,
    shards: Vec<Shard>,
    tensors: HashMap<String, TensorInfo>,
    index: Option<Map<String, Value>>,
}

impl Weights {
    /// Opens `model.safetensors` of the folder `dir`, or the shards of its `model.safetensors.index.json`.
    ///
    /// Errors: [`Kind::Model`] for anything wrong with the contents, [`Kind::Io`] for an unreadable file.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join(SINGLE_FILE);
        if single.exists() {
            return Self::open_file(&single);
        }
        let index = dir.join(INDEX_FILE);
        if index.exists() {
            return Self::open_index(dir, &index);
        }
        Err(Error::model(format!(
            "{}: neither {SINGLE_FILE} nor {INDEX_FILE} found",
            dir.display()
        )))
    }

    /// Opens one safetensors file.
    ///
    /// Errors: as [`Weights::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        let file = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let mut weights = Self {
            place: path.to_path_buf(),
            shards: Vec::new(),
            tensors: HashMap::new(),
            index: None,
        };
        weights.add_shard(file, path)?;
        Ok(weights)
    }

    fn open_index(dir: &Path, path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
        let (index, placed) = parse_index(&text).map_err(|e| e.at(path.display()))?;
        let mut weights = Self {
            place: dir.to_path_buf(),
            shards: Vec::new(),
            tensors: HashMap::new(),
            index: Some(index),
        };
        let mut files: Vec<&String> = placed.values().collect();
        files.sort_unstable();
        files.dedup();
        for file in files {
            let shard = dir.join(file);
            if !shard.exists() {
                return Err(Error::model(format!(
                    "{}: shard {file} is named here but missing from the folder",
                    path.display()
                ))
                .hint("download the folder again; every shard of the index is needed"));
            }
            weights.add_shard(file.clone(), &shard)?;
        }
        for (name, file) in &placed {
            let found = weights.tensors.get(name).map(|info| &weights.shards[info.shard].file);
            if found != Some(file) {
                let got = found.map_or("no shard has it".to_string(), |f| format!("it is in {f}"));
                return Err(Error::model(format!(
                    "{}: tensor {name} should be in {file}, but {got}",
                    path.display()
                )));
            }
        }
        for shard in &weights.shards {
            if let Some(name) = shard.names.iter().find(|name| !placed.contains_key(*name)) {
                return Err(Error::model(format!(
                    "{}: tensor {name} of {} is not in weight_map",
                    path.display(),
                    shard.file
                )));
            }
        }
        Ok(weights)
    }

    fn add_shard(&mut self, file: String, path: &Path) -> Result<()> {
        let handle = File::open(path).map_err(|e| Error::io("open", path, &e))?;
        let meta = handle.metadata().map_err(|e| Error::io("read", path, &e))?;
        if !meta.is_file() {
            return Err(Error::model(format!("{}: not a regular file", path.display())));
        }
        // SAFETY: the map is only read, as bytes, for which every value is valid. A writer that cuts
        // the file short meanwhile would be a fault; the type's documentation rules it out.
        let map = unsafe { Mmap::map(&handle) }.map_err(|e| Error::io("map", path, &e))?;
        let header = parse_header(&map).map_err(|e| e.at(path.display()))?;
        let shard = self.shards.len();
        let mut names = Vec::with_capacity(header.tensors.len());
        for (name, mut info) in header.tensors {
            info.shard = shard;
            if let Some(other) = self.tensors.insert(name.clone(), info) {
                return Err(Error::model(format!(
                    "{}: tensor {name} is in {} too",
                    path.display(),
                    self.shards[other.shard].file
                )));
            }
            names.push(name);
        }
        let metadata = header.metadata;
        self.shards.push(Shard { file, path: path.to_path_buf(), map, names, metadata });
        Ok(())
    }

    /// Returns the names of all tensors, by shard and then by place in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().flat_map(|shard| shard.names.iter().map(String::as_str))
    }

    /// Returns what the files say of tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Returns what the files say of tensor `name`.
    ///
    /// Errors: [`Kind::Model`] with the nearest name if there is no such tensor.
    pub fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.info(name).ok_or_else(|| {
            let error = Error::model(format!("{}: tensor {name} is missing", self.place.display()));
            match nearest(name, self.names()) {
                Some(near) => error.hint(format!("the nearest name there is {near}")),
                None => error,
            }
        })
    }

    /// Returns the raw little-endian bytes of tensor `name`, at any alignment.
    ///
    /// Errors: [`Kind::Model`] if there is no such tensor.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let info = self.require(name)?;
        let map = &self.shards[info.shard].map;
        map.get(info.offset..info.offset + info.bytes)
            .ok_or_else(|| self.tensor_error(name, info, "its bytes lie outside of the file"))
    }

    /// Reads tensor `name` (F32, F16 or BF16) into `out`, one f32 an element.
    ///
    /// Errors: [`Kind::Model`] for another dtype, another number of elements, or no such tensor.
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let info = self.require(name)?;
        let bytes = self.bytes(name)?;
        if out.len() != info.len() {
            let what = format!(
                "shape {:?} in file has {} elements, {} wanted",
                info.shape,
                info.len(),
                out.len()
            );
            return Err(self.tensor_error(name, info, &what));
        }
        let convert: fn(&[u8], &mut [f32]) = match info.dtype {
            Dtype::F32 => f32_from_le,
            Dtype::F16 => |src, dst| {
                halves_from_le(src, dst, |bits, out| {
                    bytemuck::cast_slice::<u16, f16>(bits).convert_to_f32_slice(out)
                })
            },
            Dtype::BF16 => |src, dst| {
                halves_from_le(src, dst, |bits, out| {
                    bytemuck::cast_slice::<u16, bf16>(bits).convert_to_f32_slice(out)
                })
            },
            other => {
                let what = format!("dtype {other} in file, F32, F16 or BF16 wanted");
                return Err(self.tensor_error(name, info, &what));
            }
        };
        out.par_chunks_mut(CHUNK)
            .zip(bytes.par_chunks(CHUNK * info.dtype.size()))
            .for_each(|(dst, src)| convert(src, dst));
        Ok(())
    }

    /// Returns tensor `name` (I64 or I32) as 64-bit integers.
    ///
    /// Errors: [`Kind::Model`] for another dtype or no such tensor.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.require(name)?;
        let bytes = self.bytes(name)?;
        match info.dtype {
            Dtype::I64 => Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            Dtype::I32 => {
                Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect())
            }
            other => {
                let what = format!("dtype {other} in file, I64 or I32 wanted");
                Err(self.tensor_error(name, info, &what))
            }
        }
    }

    /// Returns each file's name with the names of its tensors in file order.
    pub fn shards(&self) -> Vec<(&str, Vec<&str>)> {
        self.shards
            .iter()
            .map(|shard| (shard.file.as_str(), shard.names.iter().map(String::as_str).collect()))
            .collect()
    }

    /// Returns the `__metadata__` of shard `shard`, empty if it has none or there is no such shard.
    pub fn metadata(&self, shard: usize) -> BTreeMap<String, String> {
        self.shards.get(shard).map_or_else(BTreeMap::new, |shard| shard.metadata.clone())
    }

    /// Returns the parsed index of a sharded model, `None` for one file.
    pub fn index(&self) -> Option<&Map<String, Value>> {
        self.index.as_ref()
    }

    /// Returns the bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.bytes as u64).sum()
    }

    fn tensor_error(&self, name: &str, info: &TensorInfo, what: &str) -> Error {
        Error::model(format!("{}: {name}: {what}", self.shards[info.shard].path.display()))
    }
}

fn f32_from_le(src: &[u8], dst: &mut [f32]) {
    for (x, b) in dst.iter_mut().zip(src.as_chunks().0) {
        *x = f32::from_le_bytes(*b);
    }
}

// Goes through an aligned block, because a tensor may start at an odd byte of its file.
fn halves_from_le(src: &[u8], dst: &mut [f32], convert: impl Fn(&[u16], &mut [f32])) {
    let mut bits = [0u16; BLOCK];
    for (dst, src) in dst.chunks_mut(BLOCK).zip(src.chunks(2 * BLOCK)) {
        let bits = &mut bits[..dst.len()];
        for (x, b) in bits.iter_mut().zip(src.as_chunks().0) {
            *x = u16::from_le_bytes(*b);
        }
        convert(bits, dst);
    }
}

#[derive(Debug)]
struct Header {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

/// Parses and checks the header of a whole file given as bytes.
fn parse_header(file: &[u8]) -> Result<Header> {
    let broken = "the file is cut short or no safetensors file; download it again";
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(
            Error::model(format!("{} bytes, a header needs at least 8", file.len())).hint(broken)
        );
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(Error::model(format!(
            "header of {length} bytes, at most {MAX_HEADER} allowed"
        ))
        .hint(broken));
    }
    let length = length as usize;
    let Some((header, data)) = rest.split_at_checked(length) else {
        return Err(Error::model(format!(
            "header of {length} bytes, but only {} bytes follow",
            rest.len()
        ))
        .hint(broken));
    };
    // The crate parses and checks shape * dtype against the offsets, gaps and overlaps included.
    let parsed: Metadata =
        serde_json::from_slice(header).map_err(|e| Error::model(format!("broken header: {e}")))?;
    if parsed.data_len() != data.len() {
        return Err(Error::model(format!(
            "the header describes {} bytes of tensors, the file has {}",
            parsed.data_len(),
            data.len()
        ))
        .hint(broken));
    }
    let mut tensors = Vec::new();
    for (name, info) in parsed.tensors() {
        let dtype = Dtype::from_file(info.dtype).ok_or_else(|| {
            Error::model(format!("{name}: dtype {:?} is not supported", info.dtype))
                .hint("convert the model to F32, F16 or BF16")
        })?;
        let (start, end) = info.data_offsets;
        let shape = info.shape.clone();
        let info =
            TensorInfo { dtype, shape, shard: 0, offset: 8 + length + start, bytes: end - start };
        tensors.push((name, info));
    }
    // By name too, since empty tensors share an offset and the crate hands out a hash map.
    tensors.sort_by(|a, b| (a.1.offset, a.1.bytes, &a.0).cmp(&(b.1.offset, b.1.bytes, &b.0)));
    let metadata = parsed.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
    let metadata = metadata.collect();
    Ok(Header { tensors, metadata })
}

type Index = (Map<String, Value>, BTreeMap<String, String>);

/// Parses an index; returns it whole, and the file of each tensor.
fn parse_index(text: &[u8]) -> Result<Index> {
    let index: Map<String, Value> = serde_json::from_slice(text)
        .map_err(|e| Error::model(format!("not a JSON object: {e}")))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::model("no object weight_map"))?;
    if map.is_empty() {
        return Err(Error::model("weight_map is empty"));
    }
    let mut placed = BTreeMap::new();
    for (name, file) in map {
        let file = file.as_str().ok_or_else(|| {
            Error::model(format!("weight_map: {name}: wanted a file name, got {file}"))
        })?;
        let plain = file.ends_with(".safetensors")
            && !file.contains(['/', '\\', '\0', ':'])
            && !file.starts_with('.');
        if !plain {
            return Err(Error::model(format!(
                "weight_map: {name}: {file:?} is not a plain .safetensors file name"
            ))
            .hint("shards must lie in the model folder itself"));
        }
        placed.insert(name.clone(), file.to_string());
    }
    Ok((index, placed))
}

/// One tensor to be written by [`write_file`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name; each one once.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The shape, slowest dimension first.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Returns the bytes of the tensor.
    ///
    /// Errors: [`Kind::Model`] if they overflow.
    pub fn bytes(&self) -> Result<usize> {
        self.shape
            .iter()
            .try_fold(self.dtype.size(), |n, d| n.checked_mul(*d))
            .ok_or_else(|| Error::model(format!("{}: shape {:?} overflows", self.name, self.shape)))
    }
}

/// Writes a safetensors file with `entries` in the order given; `fill` writes the little-endian bytes of each.
///
/// The header is padded to 8 bytes, the file is synchronised to disk, and removed again on failure.
///
/// Errors: [`Kind::Io`] if the disk refuses, [`Kind::Model`] for names given twice or `fill` writing more or
/// fewer bytes than the entry has, and whatever `fill` returns.
pub fn write_file(
    path: &Path,
    entries: &[Entry],
    metadata: &BTreeMap<String, String>,
    fill: &mut dyn FnMut(&Entry, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let header = build_header(entries, metadata).map_err(|e| e.at(path.display()))?;
    let file = File::create(path).map_err(|e| Error::io("create", path, &e))?;
    let written = write_body(path, &file, &header, entries, fill);
    if written.is_err() {
        // The first error is the one to report; a leftover is refused by the reader anyway.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn build_header(entries: &[Entry], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let map = metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str())));
        header.insert("__metadata__".into(), Value::Object(map.collect()));
    }
    let mut seen = HashSet::from(["__metadata__"]);
    let mut start = 0usize;
    for entry in entries {
        if !seen.insert(&entry.name) {
            return Err(Error::model(format!(
                "{}: tensor name given twice or reserved",
                entry.name
            )));
        }
        let end = start.checked_add(entry.bytes()?).ok_or_else(|| {
            Error::model(format!("{}: the size of the file overflows", entry.name))
        })?;
        let value = serde_json::json!({
            "dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": [start, end],
        });
        header.insert(entry.name.clone(), value);
        start = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER {
        return Err(Error::model(format!("header of {} bytes, at most {MAX_HEADER}", text.len())));
    }
    let mut all = (text.len() as u64).to_le_bytes().to_vec();
    all.append(&mut text);
    Ok(all)
}

fn write_body(
    path: &Path,
    file: &File,
    header: &[u8],
    entries: &[Entry],
    fill: &mut dyn FnMut(&Entry, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let refused = |e: io::Error| Error::io("write", path, &e);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(header).map_err(refused)?;
    for entry in entries {
        let wanted = entry.bytes()? as u64;
        let mut counted = Counted { out: &mut out, count: 0 };
        fill(entry, &mut counted).map_err(|e| e.at(&entry.name).at(path.display()))?;
        let got = counted.count;
        if got != wanted {
            return Err(Error::model(format!(
                "{}: {}: {got} bytes written, {wanted} wanted for {} {:?}",
                path.display(),
                entry.name,
                entry.dtype,
                entry.shape
            )));
        }
    }
    out.flush().map_err(refused)?;
    drop(out);
    file.sync_all().map_err(refused)
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    count: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes `values` as little-endian `dtype` (F32, F16 or BF16), rounding to nearest, ties to even.
///
/// Errors: [`Kind::Io`] if `out` refuses, [`Kind::Model`] for another dtype.
pub fn write_f32_as(dtype: Dtype, values: &[f32], out: &mut dyn Write) -> Result<()> {
    let mut bytes = vec![0u8; values.len().min(CHUNK) * dtype.size()];
    for values in values.chunks(CHUNK) {
        let bytes = &mut bytes[..values.len() * dtype.size()];
        match dtype {
            Dtype::F32 => {
                for (b, x) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *b = x.to_le_bytes();
                }
            }
            Dtype::F16 => halves_to_le(values, bytes, |x, bits| {
                bytemuck::cast_slice_mut::<u16, f16>(bits).convert_from_f32_slice(x)
            }),
            Dtype::BF16 => halves_to_le(values, bytes, |x, bits| {
                bytemuck::cast_slice_mut::<u16, bf16>(bits).convert_from_f32_slice(x)
            }),
            other => {
                return Err(Error::model(format!("cannot write f32 values as dtype {other}")));
            }
        }
        out.write_all(bytes)
            .map_err(|e| Error::new(Kind::Io, format!("cannot write tensor data: {e}")))?;
    }
    Ok(())
}

fn halves_to_le(values: &[f32], bytes: &mut [u8], convert: impl Fn(&[f32], &mut [u16])) {
    let mut bits = [0u16; BLOCK];
    for (values, bytes) in values.chunks(BLOCK).zip(bytes.chunks_mut(2 * BLOCK)) {
        let bits = &mut bits[..values.len()];
        convert(values, bits);
        for (b, x) in bytes.as_chunks_mut().0.iter_mut().zip(bits.iter()) {
            *b = x.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtype_table_is_in_declaration_order() {
        for (i, row) in DTYPES.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            assert_eq!(Dtype::from_file(row.1), Some(row.0));
            assert_eq!(row.0.name(), format!("{:?}", row.1));
            assert_eq!(row.0.size() * 8, row.1.bitsize());
        }
    }

    #[test]
    fn index_parser_never_panics_on_garbled_text() {
        use proptest::prelude::*;
        let good = br#"{"metadata":{"total_size":8},"weight_map":{"a":"m-1.safetensors"}}"#;
        assert!(parse_index(good).is_ok());
        proptest!(|(at in 0..good.len(), byte: u8, cut in 0..good.len(), noise: Vec<u8>)| {
            let mut text = good.to_vec();
            text[at] = byte;
            let _ = parse_index(&text);
            let _ = parse_index(&text[..cut]);
            let _ = parse_index(&noise);
        });
    }

    #[test]
    fn header_parser_never_panics_and_never_leaves_the_file() {
        use proptest::prelude::*;
        let text = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}"#;
        let mut good = (text.len() as u64).to_le_bytes().to_vec();
        good.extend_from_slice(text);
        good.extend_from_slice(&[0; 9]);
        assert_eq!(parse_header(&good).unwrap().tensors.len(), 2);
        let check = |file: &[u8]| {
            if let Ok(header) = parse_header(file) {
                assert!(header.tensors.iter().all(|(_, t)| t.offset + t.bytes <= file.len()));
            }
        };
        let config = ProptestConfig { cases: 2000, ..ProptestConfig::default() };
        proptest!(config, |(at in 0..good.len(), byte: u8, digit in b'0'..=b'9', cut in 0..good.len(), noise: Vec<u8>)| {
            let mut file = good.clone();
            file[at] = byte;
            check(&file);
            file[at] = digit;
            check(&file);
            check(&file[..cut]);
            check(&noise);
            let mut framed = (noise.len() as u64).to_le_bytes().to_vec();
            framed.extend_from_slice(&noise);
            check(&framed);
        });
    }
}

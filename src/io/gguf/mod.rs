//! GGUF files, versions 2 and 3, mapped into memory.
//!
//! A file is: magic, version, number of tensors, number of keys; the keys with their values; name, dimensions, format
//! and offset of every tensor; then, aligned, the data. Nothing in it is believed: every count and length is held
//! against the bytes that are left before anything is allocated for it, so the memory used is bounded by a small
//! multiple of the file's size, whatever the file says. Strings and arrays stay in the map and are decoded when asked for.
//!
//! Source: the GGUF specification (ggml, docs/gguf.md).

pub mod quant;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};
pub use quant::Format;

/// Where the data starts unless `general.alignment` says otherwise, bytes.
const ALIGNMENT: u64 = 32;
/// The longest name that the specification allows, bytes.
const LONGEST_NAME: usize = 65_535;
/// The fewest bytes of a key (length, type, one byte of value) and of a tensor (length, axes, one axis, format, offset).
const SMALLEST: [usize; 2] = [13, 32];

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// Whole number without sign, of so many bytes.
    Unsigned(usize),
    /// Whole number with sign, of so many bytes.
    Signed(usize),
    /// Floating-point number, of so many bytes.
    Float(usize),
    Bool,
    Text,
    Array,
}

impl Type {
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::Unsigned(n) | Self::Signed(n) | Self::Float(n) => n,
            Self::Bool => 1,
            // Their lengths, of 8 bytes, and more.
            Self::Text | Self::Array => 8,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned(_) | Self::Signed(_) => "whole number",
            Self::Float(_) => "number",
            Self::Bool => "bool",
            Self::Text => "string",
            Self::Array => "array",
        })
    }
}

/// A value of the header.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Whole(i128),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array { item: Type, count: usize, bytes: Range<usize> },
}

impl Value {
    fn describe(&self) -> String {
        match self {
            Self::Whole(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Text(_) => "a string".into(),
            Self::Array { item, count, .. } => format!("an array of {count} {item}s"),
        }
    }
}

/// Name, shape, format and place of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape, slowest axis first (the file lists the fastest first).
    pub shape: Vec<usize>,
    /// Its number format.
    pub format: Format,
    place: Range<usize>,
}

impl Tensor {
    /// Returns the number of elements of a row, the fastest axis.
    pub fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Returns the number of rows, all other axes together.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
}

/// An open GGUF file whose header has been checked in full.
pub struct Gguf {
    bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
    version: u32,
    keys: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (keys, tensors) = (self.keys.len(), self.tensors.len());
        write!(f, "GGUF version {} with {keys} keys and {tensors} tensors", self.version)
    }
}

impl Gguf {
    /// Opens the file at `path`.
    ///
    /// Errors: [`crate::Kind::Io`] if it cannot be read, else as [`Gguf::from_bytes`], with the path.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let meta = file.metadata().map_err(|e| Error::io("read", path, e))?;
        if meta.is_dir() {
            return Err(Error::model(format!("{}: is a folder, wanted a file", path.display())));
        }
        // SAFETY: the map is read-only; as with every mapped file, nobody may truncate it while it is in use.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Self::from_bytes(map).map_err(|e| e.at(path.display()))
    }

    /// Reads a file that is in memory.
    ///
    /// Errors: [`crate::Kind::Model`], naming the key or tensor, for anything that is not as the specification says:
    /// another version, counts or lengths beyond the end, doubled names, overlapping or misplaced tensors, formats
    /// that cannot be read.
    pub fn from_bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        let mut cursor = Cursor { bytes: bytes.as_ref(), at: 0 };
        let magic = cursor.take(4, "the magic")?;
        if magic != b"GGUF" {
            let magic = magic.escape_ascii();
            return Err(Error::model(format!(
                "no GGUF file: starts with `{magic}`, wanted `GGUF`"
            )));
        }
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(wrong_version(version));
        }
        let [tensors, keys] = [SMALLEST[1], SMALLEST[0]].map(|smallest| {
            let what = if smallest == SMALLEST[0] { "keys" } else { "tensors" };
            cursor.count(smallest, what)
        });
        let (tensors, count) = (tensors?, keys?);
        // Both lists are in the file, so their smallest sizes count together.
        cursor.check_room(count * SMALLEST[0] + tensors * SMALLEST[1], "keys and tensors")?;
        let mut keys = BTreeMap::new();
        for i in 0..count {
            let name = cursor.name(&format!("key {i}"))?;
            let value = cursor.value(&name)?;
            if keys.insert(name.clone(), value).is_some() {
                return Err(Error::model(format!("key {}: is there twice", show(&name))));
            }
        }
        let alignment = alignment(&keys)?;
        let mut infos = Vec::new();
        for i in 0..tensors {
            infos.push(cursor.tensor(i)?);
        }
        let data = (cursor.at as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let tensors = place(infos, data, alignment, cursor.bytes.len())?;
        Ok(Self { bytes: Box::new(bytes), version, keys, tensors })
    }

    /// Returns the version of the file format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Returns all keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Returns all tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// Returns the tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Reads row `row` of a tensor of this file into `out`.
    pub fn read_row(&self, tensor: &Tensor, row: usize, out: &mut [f32]) -> Result<()> {
        let bytes = tensor.format.bytes(tensor.row()).and_then(|size| {
            let start = tensor.place.start.checked_add(row.checked_mul(size)?)?;
            let end = start.checked_add(size)?;
            (end <= tensor.place.end).then(|| self.slice(&(start..end)))
        });
        let bytes = bytes.ok_or_else(|| {
            Error::model(format!("{}: row {row} of {}", show(&tensor.name), tensor.rows()))
        })?;
        tensor.format.read(bytes, out).map_err(|e| e.at(show(&tensor.name)))
    }

    fn slice(&self, range: &Range<usize>) -> &[u8] {
        (*self.bytes).as_ref().get(range.clone()).unwrap_or_default()
    }

    /// Reads a key as a whole number that is not negative.
    pub fn whole(&self, key: &str) -> Result<Option<u64>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Whole(n)) if u64::try_from(*n).is_ok() => Ok(Some(*n as u64)),
            Some(other) => Err(wrong(key, "a whole number", other)),
        }
    }

    /// Reads a key as a finite number.
    ///
    /// A single is given as the double of its shortest decimal form, which is the number that was meant: 1e-5, not
    /// 9.999999747378752e-6.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Whole(n)) => Ok(Some(*n as f64)),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(other) => Err(wrong(key, "a finite number", other)),
        }
    }

    /// Reads a key as true or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong(key, "true or false", other)),
        }
    }

    /// Reads a key as a string.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => std::str::from_utf8(self.slice(range))
                .map(Some)
                .map_err(|_| Error::model(format!("key {}: is no UTF-8", show(key)))),
            Some(other) => Err(wrong(key, "a string", other)),
        }
    }

    /// Reads a key as a list of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let (count, range) = match self.keys.get(key) {
            None => return Ok(None),
            Some(Value::Array { item: Type::Text, count, bytes }) => (*count, bytes.clone()),
            Some(other) => return Err(wrong(key, "an array of strings", other)),
        };
        let mut cursor = Cursor { bytes: self.slice(&range), at: 0 };
        let mut texts = Vec::with_capacity(count);
        for i in 0..count {
            let bytes = cursor.sized("a string")?;
            texts.push(
                std::str::from_utf8(bytes).map_err(|_| {
                    Error::model(format!("key {}: string {i} is no UTF-8", show(key)))
                })?,
            );
        }
        Ok(Some(texts))
    }

    /// Reads a key as a list of whole numbers.
    pub fn wholes(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let (item, range) = match self.keys.get(key) {
            None => return Ok(None),
            Some(Value::Array {
                item: item @ (Type::Unsigned(_) | Type::Signed(_)),
                bytes,
                ..
            }) => (*item, bytes.clone()),
            Some(other) => return Err(wrong(key, "an array of whole numbers", other)),
        };
        let number = |bytes: &[u8]| match scalar(item, bytes) {
            Some(Value::Whole(n)) => n as i64,
            _ => 0,
        };
        Ok(Some(self.slice(&range).chunks_exact(item.size()).map(number).collect()))
    }
}

fn wrong(key: &str, wanted: &str, got: &Value) -> Error {
    Error::model(format!("key {}: wanted {wanted}, got {}", show(key), got.describe()))
}

fn wrong_version(version: u32) -> Error {
    let error = Error::model(format!("GGUF version {version} is not supported, wanted 2 or 3"));
    match version {
        1 => error.hint("convert the model again with a current converter"),
        v if (1..=3).contains(&v.swap_bytes()) => {
            error.hint("the file is big-endian; only little-endian is read")
        }
        _ => error.hint("the file is damaged, or newer than this program"),
    }
}

fn alignment(keys: &BTreeMap<String, Value>) -> Result<u64> {
    match keys.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(Value::Whole(n)) if (1..=1 << 30).contains(n) && (*n as u64).is_power_of_two() => {
            Ok(*n as u64)
        }
        Some(other) => Err(wrong("general.alignment", "a power of two", other)),
    }
}

/// Shortens and escapes a name from a file, so that it stays on one line of a terminal.
pub(crate) fn show(name: &str) -> String {
    const LONGEST: usize = 96;
    let mut text: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        text.push_str("...");
    }
    text
}

/// Reads a number or truth value from just its bytes.
fn scalar(kind: Type, bytes: &[u8]) -> Option<Value> {
    let mut wide = [0u8; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let n = u64::from_le_bytes(wide);
    let shift = 64 - 8 * bytes.len() as u32;
    Some(match kind {
        Type::Unsigned(_) => Value::Whole(n.into()),
        Type::Signed(_) => Value::Whole((((n << shift) as i64) >> shift).into()),
        Type::Float(4) => {
            let single = f32::from_bits(n as u32);
            Value::Float(single.to_string().parse().unwrap_or(f64::NAN))
        }
        Type::Float(_) => Value::Float(f64::from_bits(n)),
        Type::Bool if n <= 1 => Value::Bool(n == 1),
        Type::Bool | Type::Text | Type::Array => return None,
    })
}

/// A tensor as the header names it, with its offset in the data.
struct Info {
    name: String,
    shape: Vec<usize>,
    format: Format,
    offset: u64,
    bytes: usize,
}

/// Puts the tensors into the file and checks that they lie in it, aligned and apart from each other.
fn place(
    mut infos: Vec<Info>,
    data: u64,
    alignment: u64,
    len: usize,
) -> Result<BTreeMap<String, Tensor>> {
    infos.sort_by_key(|info| info.offset);
    let mut tensors = BTreeMap::new();
    let mut last: Option<(String, usize)> = None;
    for Info { name, shape, format, offset, bytes } in infos {
        let at = |what: String| Error::model(format!("tensor {}: {what}", show(&name)));
        if !offset.is_multiple_of(alignment) {
            return Err(at(format!("offset {offset} is no multiple of the alignment {alignment}")));
        }
        let start = data.checked_add(offset).and_then(|start| usize::try_from(start).ok());
        let place = start.and_then(|start| Some(start..start.checked_add(bytes)?));
        let Some(place) = place.filter(|place| place.end <= len) else {
            return Err(at(format!(
                "its {bytes} bytes at offset {offset} of the data end outside the file of {len} bytes"
            ))
            .hint("the file is incomplete; copy or download it again"));
        };
        if let Some((other, end)) = &last
            && place.start < *end
        {
            return Err(at(format!("overlaps tensor {}", show(other))));
        }
        last = Some((name.clone(), place.end));
        let tensor = Tensor { name: name.clone(), shape, format, place };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Error::model(format!("tensor {}: is there twice", show(&name))));
        }
    }
    Ok(tensors)
}

/// Reads the file from front to back.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn check_room(&self, wanted: usize, what: &str) -> Result<()> {
        if wanted <= self.left() {
            return Ok(());
        }
        let (at, left) = (self.at, self.left());
        Err(Error::model(format!(
            "truncated: {what} at byte {at} need {wanted} bytes, {left} are left"
        ))
        .hint("the file is incomplete or damaged; copy or download it again"))
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            let (at, left) = (self.at, self.left());
            return Err(Error::model(format!(
                "truncated: {what} at byte {at} needs {n} bytes, {left} are left"
            ))
            .hint("the file is incomplete or damaged; copy or download it again"));
        }
        let bytes = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let b = self.take(8, what)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    /// Reads how many `what` follow, each of which takes at least `smallest` bytes.
    fn count(&mut self, smallest: usize, what: &str) -> Result<usize> {
        let n = self.u64(&format!("the number of {what}"))?;
        match usize::try_from(n).ok().filter(|n| *n <= self.left() / smallest) {
            Some(n) => Ok(n),
            None => {
                Err(Error::model(format!("{n} {what} do not fit the {} bytes left", self.left()))
                    .hint("the file is incomplete or damaged; copy or download it again"))
            }
        }
    }

    /// Reads a length and so many bytes.
    fn sized(&mut self, what: &str) -> Result<&'a [u8]> {
        let n = self.u64(what)?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX), what)
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let bytes = self.sized(&format!("the name of {what}"))?;
        if bytes.len() > LONGEST_NAME {
            let n = bytes.len();
            return Err(Error::model(format!(
                "{what}: a name of {n} bytes, at most {LONGEST_NAME}"
            )));
        }
        let name = std::str::from_utf8(bytes);
        name.map(str::to_owned).map_err(|_| Error::model(format!("{what}: its name is no UTF-8")))
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let what = format!("key {}", show(key));
        let kind = self.kind(&what)?;
        match kind {
            Type::Text => {
                let len = self.sized(&what)?.len();
                Ok(Value::Text(self.at - len..self.at))
            }
            Type::Array => {
                let item = self.kind(&what)?;
                if item == Type::Array {
                    return Err(Error::model(format!(
                        "{what}: arrays of arrays are not supported"
                    )));
                }
                let count = self.count(item.size(), &format!("{item}s of {what}"))?;
                let start = self.at;
                if item == Type::Text {
                    for _ in 0..count {
                        self.sized(&what)?;
                    }
                } else {
                    self.take(count * item.size(), &what)?;
                }
                Ok(Value::Array { item, count, bytes: start..self.at })
            }
            kind => {
                let bytes = self.take(kind.size(), &what)?;
                scalar(kind, bytes).ok_or_else(|| {
                    Error::model(format!("{what}: wanted 0 or 1 for a bool, got {}", bytes[0]))
                })
            }
        }
    }

    fn kind(&mut self, what: &str) -> Result<Type> {
        let id = self.u32(what)?;
        Type::from_id(id)
            .ok_or_else(|| Error::model(format!("{what}: type {id} is unknown, wanted 0 to 12")))
    }

    fn tensor(&mut self, i: usize) -> Result<Info> {
        let name = self.name(&format!("tensor {i}"))?;
        let what = format!("tensor {}", show(&name));
        let wrong = |text: String| Error::model(format!("{what}: {text}"));
        let axes = self.u32(&what)?;
        if !(1..=4).contains(&axes) {
            return Err(wrong(format!("{axes} dimensions, wanted 1 to 4")));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.push(self.u64(&what)?);
        }
        let (id, offset) = (self.u32(&what)?, self.u64(&what)?);
        let format = Format::from_id(id).ok_or_else(|| {
            let known = quant::foreign_name(id).map(|n| format!(" ({n})")).unwrap_or_default();
            let list = Format::ALL.map(|format| format.to_string()).join(", ");
            wrong(format!("ggml type {id}{known} is not supported")).hint(format!(
                "known are {list}; take such a file of this model, or one quantised to Q8_0 or F16"
            ))
        })?;
        let row = shape.first().and_then(|n| usize::try_from(*n).ok());
        let row_bytes = row.filter(|n| *n > 0).map(|n| (n, format.bytes(n)));
        if let Some((n, None)) = row_bytes {
            let block = format.block();
            return Err(wrong(format!("rows of {n} elements, wanted a multiple of {block}")));
        }
        let bytes = row_bytes.and_then(|(_, bytes)| {
            let rest = shape.iter().skip(1);
            rest.map(|n| usize::try_from(*n).ok().filter(|n| *n > 0))
                .try_fold(bytes?, |bytes, n| bytes.checked_mul(n?))
        });
        let Some(bytes) = bytes else {
            return Err(wrong(format!("dimensions {shape:?} are zero or too large")));
        };
        let shape = shape.into_iter().rev().map(|n| n as usize).collect();
        Ok(Info { name, shape, format, offset, bytes })
    }
}

#[cfg(test)]
mod tests;

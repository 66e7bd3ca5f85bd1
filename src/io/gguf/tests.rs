//! The parser on small files written byte by byte.

use super::*;
use proptest::prelude::*;

/// A file with two keys and two F32 tensors.
fn sample() -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    out.extend(3u64.to_le_bytes());
    text(&mut out, "n");
    out.extend(4u32.to_le_bytes());
    out.extend(7u32.to_le_bytes());
    text(&mut out, "eps");
    out.extend(6u32.to_le_bytes());
    out.extend(1e-5f32.to_le_bytes());
    text(&mut out, "words");
    out.extend(9u32.to_le_bytes());
    out.extend(8u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    text(&mut out, "one");
    text(&mut out, "é");
    tensor(&mut out, "a", &[2, 3], 0, 0);
    tensor(&mut out, "b", &[4], 0, 32);
    out.resize(out.len().next_multiple_of(32), 0);
    for i in 0..12 {
        out.extend((i as f32).to_le_bytes());
    }
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn tensor(out: &mut Vec<u8>, name: &str, dims: &[u64], id: u32, offset: u64) {
    text(out, name);
    out.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(id.to_le_bytes());
    out.extend(offset.to_le_bytes());
}

fn message(bytes: Vec<u8>) -> String {
    Gguf::from_bytes(bytes).unwrap_err().message().to_owned()
}

/// Returns the sample with the bytes at the place of `from` replaced by `to`, which is as long.
fn patched(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = sample();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn from_bytes_reads_keys_and_tensors() {
    let file = Gguf::from_bytes(sample()).unwrap();
    assert_eq!(format!("{file:?}"), "GGUF version 3 with 3 keys and 2 tensors");
    assert_eq!(file.keys().collect::<Vec<_>>(), ["eps", "n", "words"]);
    assert_eq!(file.whole("n").unwrap(), Some(7));
    assert_eq!(file.number("eps").unwrap(), Some(1e-5));
    assert_eq!(file.texts("words").unwrap().unwrap(), ["one", "é"]);
    assert_eq!(file.whole("none").unwrap(), None);
    let a = file.tensor("a").unwrap();
    assert_eq!((a.shape.as_slice(), a.rows(), a.row()), ([3, 2].as_slice(), 3, 2));
    let mut row = [0.0; 2];
    file.read_row(a, 2, &mut row).unwrap();
    assert_eq!(row, [4.0, 5.0]);
    assert_eq!(file.read_row(a, 3, &mut row).unwrap_err().message(), "a: row 3 of 3");
    let mut row = [0.0; 4];
    file.read_row(file.tensor("b").unwrap(), 0, &mut row).unwrap();
    assert_eq!(row, [8.0, 9.0, 10.0, 11.0]);
}

#[test]
fn keys_of_another_type_are_named() {
    let file = Gguf::from_bytes(sample()).unwrap();
    let message = |e: Error| e.message().to_owned();
    assert_eq!(message(file.text("n").unwrap_err()), "key n: wanted a string, got 7");
    assert_eq!(
        message(file.whole("words").unwrap_err()),
        "key words: wanted a whole number, got an array of 2 strings"
    );
    assert_eq!(
        message(file.wholes("words").unwrap_err()),
        "key words: wanted an array of whole numbers, got an array of 2 strings"
    );
    assert_eq!(message(file.flag("n").unwrap_err()), "key n: wanted true or false, got 7");
    assert_eq!(
        message(file.texts("eps").unwrap_err()),
        "key eps: wanted an array of strings, got 0.00001"
    );
}

#[test]
fn broken_headers_are_named() {
    let mut bytes = sample();
    bytes[0] = b'g';
    assert_eq!(message(bytes), "no GGUF file: starts with `gGUF`, wanted `GGUF`");
    for (version, hint) in [
        (1u32, "convert the model again with a current converter"),
        (3 << 24, "the file is big-endian; only little-endian is read"),
        (9, "the file is damaged, or newer than this program"),
    ] {
        let mut bytes = sample();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        let error = Gguf::from_bytes(bytes).unwrap_err();
        let wanted = format!("GGUF version {version} is not supported, wanted 2 or 3");
        assert_eq!((error.message(), error.hint_text()), (wanted.as_str(), Some(hint)));
    }
    let mut bytes = sample();
    bytes[4] = 2;
    assert_eq!(Gguf::from_bytes(bytes).unwrap().version(), 2);
    assert_eq!(message(Vec::new()), "truncated: the magic at byte 0 needs 4 bytes, 0 are left");
    let len = sample().len();
    for (at, what) in [(8, "tensors"), (16, "keys")] {
        let mut bytes = sample();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let wanted = format!("{} {what} do not fit the {} bytes left", u64::MAX, len - at - 8);
        assert_eq!(message(bytes), wanted);
    }
}

#[test]
fn broken_keys_are_named() {
    assert_eq!(
        message(patched(b"n\x04\0\0\0", b"n\x0d\0\0\0")),
        "key n: type 13 is unknown, wanted 0 to 12"
    );
    assert_eq!(
        message(patched(b"n\x04\0\0\0", b"n\x07\0\0\0")),
        "key n: wanted 0 or 1 for a bool, got 7"
    );
    assert_eq!(message(patched(b"\x03\0\0\0\0\0\0\0eps", b"\xff\xff\xff\xff\0\0\0\0eps")), {
        let left = sample().len() - 24 - 8 - 1 - 8 - 8;
        format!("truncated: the name of key 1 at byte 49 needs 4294967295 bytes, {left} are left")
    });
    assert_eq!(message(patched(b"eps", b"e\xffs")), "key 1: its name is no UTF-8");
    assert_eq!(
        message(patched(b"words\x09\0\0\0\x08", b"words\x09\0\0\0\x09")),
        "key words: arrays of arrays are not supported"
    );
    let count = u64::MAX / 8;
    let mut to = b"words\x09\0\0\0\x08\0\0\0".to_vec();
    to.extend(count.to_le_bytes());
    let error = message(patched(b"words", &to));
    assert!(error.starts_with(&format!("{count} strings of key words do not fit the ")), "{error}");
    let file = Gguf::from_bytes(patched(b"one", b"o\xffe")).unwrap();
    let error = file.texts("words").unwrap_err();
    assert_eq!(error.message(), "key words: string 0 is no UTF-8");
    // Control characters of a damaged name stay off the terminal.
    assert_eq!(
        message(patched(b"n\x04\0\0\0", b"\x1b\x0d\0\0\0")),
        "key \\u{1b}: type 13 is unknown, wanted 0 to 12"
    );
}

/// Returns a file without keys that has these tensors and 64 bytes of data.
fn with_tensors(tensors: &[(&str, &[u64], u32, u64)]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(0u64.to_le_bytes());
    for (name, dims, id, offset) in tensors {
        tensor(&mut out, name, dims, *id, *offset);
    }
    out.resize(out.len().next_multiple_of(32) + 64, 0);
    out
}

#[test]
fn broken_tensors_are_named() {
    let one = |dims: &[u64], id, offset| message(with_tensors(&[("t", dims, id, offset)]));
    assert_eq!(one(&[8], 5, 0), "tensor t: ggml type 5 is not supported");
    let error = Gguf::from_bytes(with_tensors(&[("t", &[256], 12, 0)])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor t: ggml type 12 (Q4_K) is not supported\n\
         hint: known are F32, F16, BF16, Q8_0, Q4_0, Q4_1; \
         take such a file of this model, or one quantised to Q8_0 or F16"
    );
    assert_eq!(one(&[1; 5], 0, 0), "tensor t: 5 dimensions, wanted 1 to 4");
    assert_eq!(one(&[8, 0], 0, 0), "tensor t: dimensions [8, 0] are zero or too large");
    assert_eq!(one(&[0, 8], 0, 0), "tensor t: dimensions [0, 8] are zero or too large");
    assert_eq!(
        one(&[1 << 40, 1 << 40], 0, 0),
        "tensor t: dimensions [1099511627776, 1099511627776] are zero or too large"
    );
    assert_eq!(one(&[48, 2], 8, 0), "tensor t: rows of 48 elements, wanted a multiple of 32");
    assert_eq!(one(&[8], 0, 8), "tensor t: offset 8 is no multiple of the alignment 32");
    let outside = |bytes: u64, offset: u64, len: usize| {
        format!(
            "tensor t: its {bytes} bytes at offset {offset} of the data end outside the file of {len} bytes"
        )
    };
    assert_eq!(one(&[16], 0, 32), outside(64, 32, 128));
    assert_eq!(one(&[8], 0, u64::MAX - 31), outside(32, u64::MAX - 31, 128));
    let two = |a: u64, b: u64| message(with_tensors(&[("a", &[9], 0, a), ("b", &[7], 0, b)]));
    assert_eq!(two(0, 32), "tensor b: overlaps tensor a");
    assert_eq!(two(0, 0), "tensor b: overlaps tensor a");
    let twice = with_tensors(&[("a", &[8], 0, 0), ("a", &[8], 0, 32)]);
    assert_eq!(message(twice), "tensor a: is there twice");
}

#[test]
fn alignment_that_is_no_power_of_two_is_named() {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(0u64.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    text(&mut out, "general.alignment");
    out.extend(4u32.to_le_bytes());
    let with = |n: u32| [out.as_slice(), &n.to_le_bytes()].concat();
    for n in [0, 48, u32::MAX] {
        let wanted = format!("key general.alignment: wanted a power of two, got {n}");
        assert_eq!(message(with(n)), wanted);
    }
    assert!(Gguf::from_bytes(with(64)).is_ok());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample();
    for len in 0..bytes.len() {
        let error = Gguf::from_bytes(bytes[..len].to_vec()).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Model);
        let known = ["truncated: ", "do not fit the", "end outside the file of"];
        assert!(known.iter().any(|known| error.message().contains(known)), "{error}");
    }
}

#[test]
fn every_scalar_type_is_read() {
    let read = |kind: Type, bytes: &[u8]| scalar(kind, bytes).unwrap();
    assert_eq!(read(Type::Unsigned(1), &[255]), Value::Whole(255));
    assert_eq!(read(Type::Signed(1), &[255]), Value::Whole(-1));
    assert_eq!(read(Type::Signed(2), &[0, 128]), Value::Whole(-32768));
    assert_eq!(read(Type::Signed(8), &[255; 8]), Value::Whole(-1));
    assert_eq!(read(Type::Unsigned(8), &[255; 8]), Value::Whole(u64::MAX.into()));
    assert_eq!(read(Type::Float(8), &0.1f64.to_le_bytes()), Value::Float(0.1));
    assert_eq!(read(Type::Float(4), &0.1f32.to_le_bytes()), Value::Float(0.1));
    assert_eq!(read(Type::Bool, &[1]), Value::Bool(true));
    assert_eq!(scalar(Type::Bool, &[2]), None);
}

/// Opens a file and uses all that it holds, as an importer would.
fn exercise(bytes: Vec<u8>) {
    let Ok(file) = Gguf::from_bytes(bytes) else { return };
    for key in file.keys() {
        let _ = (file.whole(key), file.number(key), file.flag(key), file.text(key));
        let _ = (file.texts(key), file.wholes(key));
    }
    for tensor in file.tensors() {
        let mut row = vec![0.0; tensor.row()];
        for r in 0..tensor.rows() {
            file.read_row(tensor, r, &mut row).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        exercise([b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
        exercise(bytes);
    }

    #[test]
    fn mutated_files_never_panic(
        changes in prop::collection::vec((0..sample().len(), any::<u8>()), 1..6),
        wide in (0..sample().len() - 8, prop_oneof![Just(u64::MAX), Just(1 << 63), 0..400u64]),
        widen in any::<bool>(),
    ) {
        let mut bytes = sample();
        changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
        if widen {
            bytes[wide.0..wide.0 + 8].copy_from_slice(&wide.1.to_le_bytes());
        }
        exercise(bytes);
    }
}

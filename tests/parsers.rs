//! Every parser of files we own, fed random and damaged bytes: it reads or refuses, in one line, within the memory
//! that the file's size justifies.

#![allow(missing_docs, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nepenthe::data::source::{Format, read};
use nepenthe::data::{Chunking, Corpus, CorpusOptions, Tokenizer};
use nepenthe::io::checkpoint::{Checkpoint, Writer};
use nepenthe::io::safetensors::{Dtype, Entry, INDEX, SINGLE, Weights, write_f32_as, write_file};
use nepenthe::model::config::end_tokens;
use nepenthe::model::{ARCHITECTURES, ModelConfig};
use nepenthe::{Error, Result};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_128;

/// Counts what each thread holds, so that a test can tell how much a parser took at most.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn note(change: isize) {
    // A thread that is ending has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Buffers of fixed size and messages.
const FIXED: usize = 4 << 20;
/// Bytes a parser may take per byte of its file: a list of JSON numbers, two bytes each, is the worst.
const PER_BYTE: usize = 200;

/// Runs a parser on files of `bytes` together; checks memory and message, and returns what it did.
fn within<T>(bytes: usize, parse: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = HELD.get();
    MOST.set(before);
    let outcome = parse();
    let took = (MOST.get() - before) as usize;
    let allowed = FIXED + PER_BYTE * bytes;
    assert!(took <= allowed, "{took} bytes taken for a file of {bytes}, {allowed} allowed");
    if let Err(e) = &outcome {
        one_line(e);
    }
    outcome
}

fn one_line(e: &Error) {
    let message = e.message();
    assert!(!message.is_empty() && message.len() < 4100, "{} bytes", message.len());
    assert!(!message.contains(char::is_control), "{message:?}");
}

/// Ways of damaging good bytes: bytes changed, a piece cut out, a piece doubled, noise put in, the end cut off.
#[derive(Debug, Clone)]
struct Damage {
    flips: Vec<(prop::sample::Index, u8)>,
    cut: Option<(prop::sample::Index, usize)>,
    doubled: Option<(prop::sample::Index, usize)>,
    noise: Option<(prop::sample::Index, Vec<u8>)>,
    end: Option<prop::sample::Index>,
}

/// Bytes that mean something to some parser, and any other.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![prop::sample::select(b"{}[]\",:0123456789-.eE\\ntf \n".to_vec()), any::<u8>()]
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    (
        prop::collection::vec((at(), byte()), 0..4),
        prop::option::weighted(0.2, (at(), 1usize..40)),
        prop::option::weighted(0.2, (at(), 1usize..40)),
        prop::option::weighted(0.2, (at(), prop::collection::vec(byte(), 1..30))),
        prop::option::weighted(0.2, at()),
    )
        .prop_map(|(flips, cut, doubled, noise, end)| Damage {
            flips,
            cut,
            doubled,
            noise,
            end,
        })
}

impl Damage {
    fn of(&self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for (at, byte) in &self.flips {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some((at, len)) = &self.doubled {
            let start = at.index(bytes.len());
            let end = (start + len).min(bytes.len());
            let piece = bytes[start..end].to_vec();
            bytes.splice(start..start, piece);
        }
        if let Some((at, noise)) = &self.noise {
            let at = at.index(bytes.len());
            bytes.splice(at..at, noise.iter().copied());
        }
        if let Some((at, len)) = &self.cut {
            let start = at.index(bytes.len());
            let end = (start + len).min(bytes.len());
            bytes.drain(start..end);
        }
        if let Some(end) = &self.end {
            let end = end.index(bytes.len() + 1);
            bytes.truncate(end);
        }
        bytes
    }
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(byte(), 0..300)
}

/// Numbers at the edges of what sizes can be, as text.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "0",
            "1",
            "-1",
            "2",
            "8",
            "255",
            "4096",
            "65536",
            "2147483647",
            "2147483648",
            "4294967295",
            "4294967296",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "1e308",
            "1e-308",
            "1e999",
            "0.5",
            "null",
            "\"8\"",
            "[]",
            "true",
        ])
        .prop_map(str::to_owned),
        any::<u64>().prop_map(|n| n.to_string()),
    ]
}

fn cases(cases: u32) -> ProptestConfig {
    // The damaged files are found by their seed; a file of them in the source tree would be noise.
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Reads every tensor that was opened, as a model would.
fn use_all(weights: &Weights, size: usize) {
    for name in weights.names() {
        let (info, bytes) = (weights.info(name).unwrap(), weights.bytes(name).unwrap());
        assert!(bytes.len() <= size);
        assert_eq!(info.len() * info.dtype.size(), bytes.len());
        let mut out = vec![0.0; info.len()];
        assert_eq!(weights.read_f32(name, &mut out).is_ok(), info.dtype.is_float());
        let _ = (weights.read_f64(name), weights.read_i64(name));
    }
    for (_, names, _) in weights.shards() {
        assert!(names.iter().all(|name| weights.info(name).is_some()));
    }
}

fn open_weights(file: &Path, bytes: &[u8]) {
    std::fs::write(file, bytes).unwrap();
    if let Ok(weights) = within(bytes.len(), || Weights::open_file(file)) {
        use_all(&weights, bytes.len());
    }
}

fn framed(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn safetensors_headers_are_read_or_refused() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("w.safetensors");
    let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}}"#;
    let good = framed(header, 12);
    std::fs::write(&file, &good).unwrap();
    assert_eq!(Weights::open_file(&file).unwrap().names().count(), 2);
    let text = String::from_utf8(header.to_vec()).unwrap();
    proptest!(cases(600), |(damage in damage(), noise in noise(), length: u64, numbers in [number(), number(), number()], pick in 0usize..3)| {
        open_weights(&file, &damage.of(&good));
        open_weights(&file, &noise);
        open_weights(&file, &framed(&noise, 12));
        // A whole frame, so that damage reaches the JSON; and sizes at the edges.
        open_weights(&file, &framed(&damage.of(header), 12));
        let [a, b, c] = &numbers;
        let sizes = match pick {
            0 => text.replace("[2],", &format!("[{a},{b}],")),
            1 => text.replace("[0,8]", &format!("[{a},{b}]")),
            _ => text.replace("[2,1]", &format!("[{a},{b},{c}]")).replace("[8,12]", &format!("[8,{c}]")),
        };
        open_weights(&file, &framed(sizes.as_bytes(), 12));
        let mut lies = good.clone();
        lies[..8].copy_from_slice(&length.to_le_bytes());
        open_weights(&file, &lies);
    });
    for (bytes, wanted) in [
        (vec![], "no safetensors file: 0 bytes, a header needs at least 8"),
        (b"short".to_vec(), "no safetensors file: 5 bytes, a header needs at least 8"),
        (b"version https://git-lfs".to_vec(), "a Git LFS pointer, not the tensors it stands for"),
        (
            [[255; 8], [0; 8]].concat(),
            "no safetensors file: header of 18446744073709551615 bytes, at most 100000000 allowed",
        ),
        (good[..20].to_vec(), "no safetensors file: header of 142 bytes, but only 12 bytes follow"),
        (
            good[..good.len() - 1].to_vec(),
            "no safetensors file: the header describes 12 bytes of tensors, the file has 11",
        ),
        (
            framed(br#"{"a":{"dtype":"F8_E8M0","shape":[8],"data_offsets":[0,8]}}"#, 8),
            "a: dtype F8_E8M0 is not supported, wanted F32, F16 or BF16",
        ),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let error = Weights::open_file(&file).err().unwrap();
        assert_eq!(error.message(), format!("{}: {wanted}", file.display()));
        assert_eq!(error.kind(), nepenthe::Kind::Model);
    }
}

#[test]
fn indices_of_shards_are_read_or_refused() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for (file, name) in [("m-1.safetensors", "a"), ("m-2.safetensors", "b")] {
        let entry = Entry { name: name.into(), dtype: Dtype::F32, shape: vec![2] };
        write_file(&dir.join(file), &[entry], &BTreeMap::new(), &mut |_, out| {
            write_f32_as(Dtype::F32, &[1.0, 2.0], out).map_err(|e| Error::io("write", dir, e))
        })
        .unwrap();
    }
    let index = dir.join(INDEX);
    let good = br#"{"metadata":{"total_size":16},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#;
    let open = |bytes: &[u8]| {
        std::fs::write(&index, bytes).unwrap();
        within(bytes.len() + 200, || Weights::open(dir))
    };
    use_all(&open(good).unwrap(), 8);
    proptest!(cases(600), |(damage in damage(), noise in noise(), place in "[a-z./\\\\:]{0,12}")| {
        for bytes in [damage.of(good), noise] {
            if let Ok(weights) = open(&bytes) {
                use_all(&weights, 8);
            }
        }
        let moved = json!({"weight_map": {"a": "m-1.safetensors", "b": place}}).to_string();
        prop_assert!(open(moved.as_bytes()).is_err());
    });
    for (text, wanted) in [
        ("[]", "weight_map is missing or no object"),
        (r#"{"weight_map": {}}"#, "weight_map is empty"),
        (r#"{"weight_map": {"a": 2}}"#, "a: wanted a file name, got 2"),
        (r#"{"weight_map": {"a": "a\\b"}}"#, r"a: `a\b` is no plain file name"),
        (
            r#"{"weight_map": {"a": "m-1.safetensors", "c": "m-1.safetensors"}}"#,
            "c: not in m-1.safetensors as the index says",
        ),
        (
            r#"{"weight_map": {"a": "/m-1.safetensors"}}"#,
            "a: `/m-1.safetensors` is no plain file name",
        ),
    ] {
        let error = open(text.as_bytes()).err().unwrap();
        assert_eq!(error.message(), format!("{}: {wanted}", index.display()));
    }
}

#[test]
fn folders_with_other_weights_say_how_to_convert_them() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    let error = Weights::open(dir.path()).err().unwrap();
    let wanted = "weights only as pytorch_model.bin, wanted model.safetensors";
    assert_eq!(error.message(), format!("{}: {wanted}", dir.path().display()));
    assert!(error.hint_text().is_some());
    // Beside real weights they do not matter.
    std::fs::write(dir.path().join(SINGLE), framed(b"{}", 0)).unwrap();
    Weights::open(dir.path()).unwrap();
}

#[test]
fn write_file_when_names_or_sizes_are_wrong_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("w.safetensors");
    let entry = |name: &str, shape: &[usize]| Entry {
        name: name.into(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    };
    let (w, huge) = (entry("w", &[2]), entry("w", &[usize::MAX, 2]));
    for (entries, wanted) in [
        (vec![w.clone(), w.clone()], "w: the name is given twice or reserved"),
        (vec![entry("__metadata__", &[1])], "__metadata__: the name is given twice or reserved"),
        (vec![huge.clone()], "w: the size of the file overflows"),
        (
            vec![entry("v", &[usize::MAX / 8]), entry("w", &[usize::MAX / 8]), entry("x", &[9])],
            "x: the size of the file overflows",
        ),
    ] {
        let error = write_file(&path, &entries, &BTreeMap::new(), &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.message(), format!("{}: {wanted}", path.display()));
    }
    for bytes in [7, 9] {
        let error = write_file(&path, std::slice::from_ref(&w), &BTreeMap::new(), &mut |_, out| {
            out.write_all(&vec![0; bytes]).map_err(|e| Error::io("write", &path, e))
        });
        assert_eq!(
            error.unwrap_err().message(),
            format!("{}: w: {bytes} bytes written, wanted 8", path.display())
        );
    }
}

/// Configurations with keys that no recorded one has.
const MORE_CONFIGS: [&str; 3] = [
    r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":64,"num_attention_heads":4,"num_hidden_layers":3,"vocab_size":512,"intermediate_size":96,"sliding_window":32,"use_sliding_window":true,"max_window_layers":1,"tie_word_embeddings":true}"#,
    r#"{"model_type":"qwen3","hidden_act":"silu","hidden_size":64,"num_attention_heads":4,"head_dim":32,"num_hidden_layers":2,"vocab_size":512,"intermediate_size":96,"rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":1e6},"layer_types":["sliding_attention","full_attention"],"use_sliding_window":true,"sliding_window":8}"#,
    r#"{"model_type":"gemma3_text","hidden_activation":"gelu_pytorch_tanh","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":1,"head_dim":32,"num_hidden_layers":2,"vocab_size":512,"intermediate_size":96,"query_pre_attn_scalar":16,"sliding_window":8,"_sliding_window_pattern":2,"rope_theta":1e6,"rope_local_base_freq":1e4}"#,
];

/// Returns the config.json files of the recorded models, at least one of each family, and [`MORE_CONFIGS`], without spaces.
fn configs() -> Vec<String> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data/models");
    let mut texts: Vec<String> = MORE_CONFIGS.map(str::to_owned).into();
    for model in std::fs::read_dir(models).unwrap() {
        let model = model.unwrap().path();
        let files = ["config.json", "config_legacy.json"].map(|name| model.join(name));
        texts.extend(files.iter().filter_map(|file| std::fs::read_to_string(file).ok()));
    }
    texts.sort();
    let compact =
        |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap().to_string();
    let texts: Vec<String> = texts.iter().map(compact).collect();
    for family in ARCHITECTURES {
        let mark = format!("\"model_type\":\"{family}\"");
        assert!(texts.iter().any(|text| text.contains(&mark)), "{family}: no recorded config.json");
    }
    texts
}

/// Parses a config.json and lays its model out, as every command does before it looks at the weights.
fn config(text: &str) {
    if let Ok(config) = within(text.len(), || ModelConfig::parse(text)) {
        let small = ModelConfig { layers: config.layers.min(8), ..config.clone() };
        let layout = nepenthe::model::Layout::new(&small, nepenthe::model::Train::All);
        assert!(layout.trainable() == layout.parameters() && layout.parameters() > 0);
        assert_eq!(config.windows.len(), config.layers);
        let rope = nepenthe::model::rope::table(&config.rope);
        assert!(rope.inv_freq.iter().all(|f| f.is_finite()), "{text}");
    }
}

#[test]
fn model_configurations_are_read_or_refused() {
    let configs = configs();
    for good in &configs {
        ModelConfig::parse(good).unwrap();
        config(good);
    }
    let keys: Vec<(usize, usize, usize)> = configs
        .iter()
        .enumerate()
        .flat_map(|(which, text)| {
            // The place of every number.
            let bytes = text.as_bytes();
            let digit = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'-');
            (1..bytes.len()).filter_map(move |at| {
                let starts = bytes[at - 1] == b':' && bytes[at].is_ascii_digit();
                let len = bytes[at..].iter().take_while(|b| digit(**b)).count();
                starts.then_some((which, at, at + len))
            })
        })
        .collect();
    assert!(keys.len() > 20);
    proptest!(cases(2000), |(damage in damage(), noise in noise(), which in 0usize..configs.len(), pick: prop::sample::Index, number in number())| {
        config(&String::from_utf8_lossy(&damage.of(configs[which].as_bytes())));
        config(&String::from_utf8_lossy(&noise));
        let (which, start, end) = *pick.get(&keys);
        let text = &configs[which];
        config(&format!("{}{number}{}", &text[..start], &text[end..]));
    });
}

#[test]
fn generation_configurations_are_read_or_refused() {
    let good =
        br#"{"bos_token_id": 1, "eos_token_id": [2, 128009], "temperature": 0.6, "top_p": 0.9}"#;
    assert_eq!(end_tokens(std::str::from_utf8(good).unwrap()).unwrap(), [2, 128_009]);
    proptest!(cases(2000), |(damage in damage(), noise in noise(), number in number())| {
        for text in [
            String::from_utf8_lossy(&damage.of(good)).into_owned(),
            String::from_utf8_lossy(&noise).into_owned(),
            format!("{{\"eos_token_id\": {number}}}"),
            format!("{{\"eos_token_id\": [1, {number}]}}"),
        ] {
            let _ = within(text.len(), || end_tokens(&text));
        }
    });
}

#[test]
fn checkpoints_are_read_whole_or_refused() {
    let root = TempDir::new().unwrap();
    let mut writer = Writer::create(root.path(), 3).unwrap();
    writer.blob("a.theta", &[7; 40]).unwrap();
    writer.blob("b", b"").unwrap();
    let dir = writer.finish(json!({"step": 3, "identity": {"seed": 1}}), 1).unwrap();
    let manifest = dir.join("manifest.json");
    let good = std::fs::read(&manifest).unwrap();
    let start = good.windows(12).position(|w| w == b"\"manifest\":{").unwrap() + 11;
    let body = &good[start..good.len() - 2];
    let open = |bytes: &[u8]| {
        std::fs::write(&manifest, bytes).unwrap();
        within(bytes.len() + 40, || Checkpoint::open(&dir))
    };
    // The hash is made right, so that damage reaches the parser behind it.
    let vouched = |body: &[u8]| {
        let hash = format!("{:032x}", xxh3_128(body));
        [b"{\"xxh3\":\"", hash.as_bytes(), b"\",\"manifest\":", body, b"}\n"].concat()
    };
    assert_eq!(vouched(body), good);
    let text = String::from_utf8(body.to_vec()).unwrap();
    proptest!(cases(400), |(damage in damage(), noise in noise(), number in number())| {
        let damaged = damage.of(&good);
        prop_assert!(open(&damaged).is_err() || damaged == good);
        prop_assert!(open(&noise).is_err());
        prop_assert!(open(&vouched(&noise)).is_err());
        if let Ok(found) = open(&vouched(&damage.of(body))) {
            // Whatever passes has sizes and hashes of what is on disk.
            prop_assert!(found.names().all(|name| found.blob(name).is_ok()));
        }
        for key in ["format", "step", "bytes"] {
            let at = text.find(&format!("\"{key}\": ")).unwrap() + key.len() + 4;
            let len = text[at..].bytes().take_while(u8::is_ascii_digit).count();
            let lies = format!("{}{number}{}", &text[..at], &text[at + len..]);
            if let Ok(found) = open(&vouched(lies.as_bytes())) {
                prop_assert_eq!(lies, text.clone());
                prop_assert_eq!(found.step(), 3);
            }
        }
        for name in ["../a", "/etc/passwd", "", ".", "a/b"] {
            let moved = text.replace("\"b\"", &json!(name).to_string());
            prop_assert!(open(&vouched(moved.as_bytes())).is_err());
        }
    });
    open(&good).unwrap();
}

/// A word-level tokenizer: `<s>` 0, `<unk>` 1, a to z as 2 to 27.
fn tokenizer(dir: &Path) -> Tokenizer {
    let words =
        ["<s>", "<unk>"].map(str::to_owned).into_iter().chain(('a'..='z').map(String::from));
    let vocab: serde_json::Map<String, serde_json::Value> =
        words.zip(0..).map(|(word, id)| (word, serde_json::Value::from(id))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::open(dir).unwrap()
}

#[test]
fn corpus_caches_are_used_or_rebuilt() {
    let dir = TempDir::new().unwrap();
    let tokenizer = tokenizer(dir.path());
    let source = dir.path().join("a.jsonl");
    std::fs::write(&source, "{\"text\": \"a b c\"}\n{\"text\": \"d\"}\n{\"text\": \"e f\"}\n")
        .unwrap();
    let options = CorpusOptions {
        context: 8,
        chunking: Chunking::Truncate,
        cache_dir: Some(dir.path().join("cache")),
    };
    let open = || Corpus::open(&source, &tokenizer, &options);
    let rows = |corpus: &Corpus| -> Vec<Vec<u32>> {
        (0..corpus.len()).map(|i| corpus.doc(i).to_vec()).collect()
    };
    let wanted = rows(&open().unwrap());
    let cache: PathBuf =
        std::fs::read_dir(dir.path().join("cache")).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&cache).unwrap();
    proptest!(cases(200), |(damage in damage(), noise in noise())| {
        for bytes in [damage.of(&good), noise, [&good[..208], &good[208 + 8..]].concat()] {
            std::fs::write(&cache, &bytes).unwrap();
            let corpus = within(bytes.len() + good.len(), open).unwrap();
            // The ids themselves are not read when a cache is opened; using them tells.
            if corpus.verify().is_ok() {
                prop_assert_eq!(rows(&corpus), wanted.clone());
            } else {
                prop_assert!(corpus.report().from_cache);
                for i in 0..corpus.len() {
                    let ids = corpus.checked_doc(i).unwrap_or(&[]);
                    prop_assert!(ids.iter().all(|id| Some(*id) <= corpus.largest_id()));
                }
            }
            drop(corpus);
            std::fs::write(&cache, &good).unwrap();
        }
    });
    assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), 1);
}

fn data(format: Format, bytes: &[u8]) {
    let outcome = within(bytes.len(), || {
        let mut documents = 0;
        let summary = read(format, "x", bytes, 100, &mut |_| {
            documents += 1;
            Ok(())
        })?;
        Ok((documents, summary))
    });
    match outcome {
        Ok((documents, summary)) => {
            assert_eq!((summary.report.records, summary.bytes), (documents, bytes.len() as u64));
        }
        Err(e) => assert_eq!(e.kind(), nepenthe::Kind::Data),
    }
}

#[test]
fn data_files_are_read_or_refused() {
    let lines = "\u{feff}{\"text\": \"Alice was \\u00e9 \\ud83d\\ude00\", \"id\": 1}\n\n{\"text\": \"\"}\r\n{\"text\": \"beginning\"}";
    let ids = "{\"input_ids\": [1, 2, 99], \"attention_mask\": [1, 1, 1]}\n{\"input_ids\": [0]}\n";
    let questions = "{\"question\": \"Who?\", \"answer\": \"Alice\"}\n";
    let list = "[\"a\", {\"text\": \"b\"},\n\"\\ud83d\\ude00\"]\n";
    let objects = "[{\"input_ids\": [1]}, {\"input_ids\": [2, 3]}]";
    let formats = [Format::JsonLines, Format::JsonList, Format::Text];
    for format in formats {
        for good in [lines, ids, questions, list, objects] {
            data(format, good.as_bytes());
        }
        // Few bytes that make many values, and nesting deeper than a stack.
        for (open, middle, close) in [
            ("[", "1,", "1]"),
            ("[", "[],", "[]]"),
            ("{\"input_ids\":[", "1,", "1]}"),
            ("[", "[", "]"),
        ] {
            data(format, format!("{open}{}{close}", middle.repeat(200_000)).as_bytes());
        }
    }
    proptest!(cases(500), |(damage in damage(), noise in noise(), number in number())| {
        for format in formats {
            for good in [lines, ids, questions, list, objects] {
                data(format, &damage.of(good.as_bytes()));
            }
            data(format, &noise);
            data(format, ids.replace("99", &number).as_bytes());
        }
    });
}

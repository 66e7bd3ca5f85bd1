//! GGUF files become model folders: weights, configuration, tokenizer, and messages for files that do not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod dtype;
mod writer;

use std::alloc::{GlobalAlloc, System};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use assert_cmd::Command;
use half::{bf16, f16};
use nepenthe::Kind;
use nepenthe::data::Tokenizer;
use nepenthe::folder::import::{Imported, import};
use nepenthe::io::safetensors::{Dtype, Entry, Weights, write_f32_as, write_file};
use nepenthe::model::config::RopeScaling;
use nepenthe::model::{Layout, ModelConfig, Train};
use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;
use writer::*;

/// Keeps the largest size that any allocation of this process asked for.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: std::alloc::Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: std::alloc::Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: std::alloc::Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

fn try_import(bytes: &[u8]) -> (TempDir, nepenthe::Result<Imported>) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.gguf");
    std::fs::write(&file, bytes).unwrap();
    let done = import(&file, &dir.path().join("hf"), None);
    (dir, done)
}

/// Imports a file that must be good; the folder is `hf` in the one returned.
fn imported(writer: &Writer) -> (TempDir, Imported) {
    let (dir, done) = try_import(&writer.bytes(3));
    (dir, done.unwrap())
}

fn json(dir: &TempDir, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.path().join("hf").join(file)).unwrap()).unwrap()
}

fn stored(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Returns the numbers of every tensor under the names of the model folder, by hand.
fn by_hand(writer: &Writer, reorder: bool, dtype: Dtype) -> BTreeMap<String, Vec<f32>> {
    const NAMES: [(&str, &str); 14] = [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk", "model.layers"),
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let mut all = BTreeMap::new();
    for (name, tensor) in &writer.tensors {
        let words: Vec<&str> = name
            .split('.')
            .map(|word| match NAMES.iter().find(|(from, _)| *from == word) {
                Some((_, to)) => to,
                None if word == "output" => "lm_head",
                None => word,
            })
            .collect();
        let mut values = tensor.values();
        if reorder && (name.contains("attn_q.") || name.contains("attn_k.")) {
            let row = values.len() / tensor.shape[0];
            let mut out = vec![0.0; values.len()];
            for h in 0..tensor.shape[0] / HEAD {
                for (a, b) in (0..HEAD / 2).flat_map(|a| [(a, 0), (a, 1)]) {
                    let (to, from) = (h * HEAD + b * HEAD / 2 + a, h * HEAD + 2 * a + b);
                    out[to * row..][..row].copy_from_slice(&values[from * row..][..row]);
                }
            }
            values = out;
        }
        values.iter_mut().for_each(|x| *x = stored(dtype, *x));
        all.insert(words.join("."), values);
    }
    all
}

fn check_weights(dir: &TempDir, wanted: &BTreeMap<String, Vec<f32>>, dtype: Dtype) {
    let hf = dir.path().join("hf");
    let weights = Weights::open(&hf).unwrap();
    let config = std::fs::read_to_string(hf.join("config.json")).unwrap();
    Layout::new(&ModelConfig::parse(&config).unwrap(), Train::Body).check(&weights).unwrap();
    assert!(weights.names().eq(wanted.keys().map(String::as_str)));
    for (name, wanted) in wanted {
        assert_eq!(weights.info(name).unwrap().dtype, dtype);
        let mut values = vec![0.0; wanted.len()];
        weights.read_f32(name, &mut values).unwrap();
        assert_eq!(&values, wanted, "{name}");
    }
}

#[test]
fn other_architectures_keep_the_order_of_rows() {
    for arch in ["qwen2", "qwen3"] {
        let mut writer = Writer::model(arch, Q8_0);
        writer.add("output.weight", &[tokens().len(), WIDTH], Q4_0);
        let (dir, done) = imported(&writer);
        check_weights(&dir, &by_hand(&writer, false, Dtype::Bf16), Dtype::Bf16);
        assert!(!done.tied);
        assert_eq!(json(&dir, "config.json")["model_type"], arch);
    }
}

#[test]
fn llama_with_biases_reorders_them_like_rows() {
    let mut writer = Writer::model("llama", F32);
    for l in 0..LAYERS {
        for (name, n) in [
            ("attn_q", HEADS * HEAD),
            ("attn_k", KV_HEADS * HEAD),
            ("attn_v", KV_HEADS * HEAD),
            ("attn_output", WIDTH),
        ] {
            writer.add(&format!("blk.{l}.{name}.bias"), &[n], F32);
        }
    }
    let (dir, _) = imported(&writer);
    check_weights(&dir, &by_hand(&writer, true, Dtype::F32), Dtype::F32);
}

#[test]
fn version_2_gives_the_same_folder() {
    let writer = Writer::model("llama", Q4_1);
    let (two, done) = try_import(&writer.bytes(2));
    done.unwrap();
    let (three, _) = imported(&writer);
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let read = |dir: &TempDir| std::fs::read(dir.path().join("hf").join(file)).unwrap();
        assert_eq!(read(&two), read(&three), "{file}");
    }
}

#[test]
fn scores_equal_those_of_a_folder_written_by_hand() {
    let writer = Writer::model("llama", Q4_1);
    let (dir, _) = imported(&writer);
    let hand = dir.path().join("hand");
    std::fs::create_dir(&hand).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(dir.path().join("hf").join(file), hand.join(file)).unwrap();
    }
    let values = by_hand(&writer, true, Dtype::Bf16);
    let config = std::fs::read_to_string(hand.join("config.json")).unwrap();
    let layout = Layout::new(&ModelConfig::parse(&config).unwrap(), Train::Body);
    let entries: Vec<Entry> = (layout.blocks.into_iter().flat_map(|block| block.parts))
        .map(|p| Entry { name: p.name, dtype: Dtype::F32, shape: p.shape })
        .collect();
    let path = hand.join("model.safetensors");
    write_file(&path, &entries, &BTreeMap::new(), &mut |entry, to| {
        write_f32_as(Dtype::F32, &values[&entry.name], to).unwrap();
        Ok(())
    })
    .unwrap();
    let score = |folder: &Path| {
        let args =
            ["score", "--json", "--text", "Alice was beginning to get very tired", "--model"];
        let output =
            Command::cargo_bin("nepenthe").unwrap().args(args).arg(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let (a, b) = (score(&dir.path().join("hf")), score(&hand));
    assert!(!a.is_empty());
    assert_eq!(a, b);
}

#[test]
fn config_says_what_the_keys_say() {
    let mut writer = Writer::model("llama", F16);
    writer.set("tokenizer.ggml.eot_token_id", V::U32(0));
    let (dir, _) = imported(&writer);
    let config = json(&dir, "config.json");
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(config["head_dim"], HEAD);
    assert_eq!(config["rope_parameters"]["rope_type"], "default");
    assert_eq!((&config["bos_token_id"], &config["pad_token_id"]), (&1.into(), &Value::Null));
    assert_eq!(json(&dir, "generation_config.json")["eos_token_id"], serde_json::json!([2, 0]));
    let tokenizer = json(&dir, "tokenizer_config.json");
    assert_eq!(tokenizer["chat_template"], "{{ messages }}\n");
    assert_eq!(
        (&tokenizer["bos_token"], &tokenizer["eos_token"]),
        (&"<|im_start|>".into(), &"<|im_end|>".into())
    );
}

fn scaling(writer: &Writer) -> RopeScaling {
    let (dir, _) = imported(writer);
    let text = std::fs::read_to_string(dir.path().join("hf/config.json")).unwrap();
    ModelConfig::parse(&text).unwrap().rope.scaling
}

fn factors(writer: &mut Writer, factors: &[f32]) {
    let bytes = factors.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensor = T { shape: vec![factors.len()], id: F32, bytes };
    writer.tensors.insert("rope_freqs.weight".into(), tensor);
}

#[test]
fn rope_factors_become_llama3_scaling() {
    let mut writer = Writer::model("llama", F32);
    writer.set("llama.rope.freq_base", V::F32(500_000.0));
    // As a converter computes them, in single precision, for factor 8, low 1, high 4, original 8192.
    let list: Vec<f32> = (0..HEAD / 2)
        .map(|i| {
            let f = 1.0 / 500_000f32.powf(2.0 * i as f32 / HEAD as f32);
            let wavelength = 2.0 * std::f32::consts::PI / f;
            if wavelength < 2048.0 {
                1.0
            } else if wavelength > 8192.0 {
                8.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / 8.0 + smooth)
            }
        })
        .collect();
    factors(&mut writer, &list);
    let wanted = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
    assert_eq!(scaling(&writer), wanted);
    factors(&mut writer, &[1.0; HEAD / 2]);
    assert_eq!(scaling(&writer), RopeScaling::Default);
    writer.tensors.remove("rope_freqs.weight");
    writer.text("llama.rope.scaling.type", "linear");
    writer.set("llama.rope.scaling.factor", V::F32(2.5));
    assert_eq!(scaling(&writer), RopeScaling::Linear { factor: 2.5 });
}

#[test]
fn pre_tokenizers_split_digits_each_in_its_way() {
    for (pre, wanted) in [
        ("smollm", ["1", "2", "3", "4"].as_slice()),
        ("qwen2", &["1", "2", "3", "4"]),
        ("gpt-2", &["1234"]),
        ("llama-bpe", &["123", "4"]),
    ] {
        let mut writer = Writer::model("llama", F16);
        writer.text("tokenizer.ggml.pre", pre);
        let (dir, done) = imported(&writer);
        assert_eq!(done.pre_tokenizer, pre);
        let tokenizer = Tokenizer::open(&dir.path().join("hf")).unwrap();
        let pieces = |text: &str| -> Vec<String> {
            let ids = tokenizer.encode_plain(text).unwrap();
            ids.iter().map(|id| tokenizer.decode(&[*id], false).unwrap()).collect()
        };
        assert_eq!(pieces("1234"), wanted, "{pre}");
        assert_eq!(pieces("the the"), ["t", "he", " the"], "{pre}");
        assert_eq!(pieces("<|im_end|>the<tool>"), ["<|im_end|>", "t", "he", "<tool>"], "{pre}");
        let bos: &[u32] = if pre == "llama-bpe" { &[1] } else { &[] };
        assert_eq!(tokenizer.prefix(), bos, "{pre}");
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
        // Only Qwen composes characters first.
        let accent = tokenizer.encode_plain("e\u{301}").unwrap().len();
        assert_eq!(accent, if pre == "qwen2" { 2 } else { 3 }, "{pre}");
        for text in
            ["", " ", "a\n\n b\t", "Żółć 日本語 🙂\u{200d}", "I'll  say, \"it's\" 3.14!\r\n"]
        {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{pre}");
        }
    }
}

#[test]
fn bos_and_eos_flags_put_tokens_around_texts() {
    let mut writer = Writer::model("llama", F16);
    writer.set("tokenizer.ggml.add_bos_token", V::Bool(true));
    writer.set("tokenizer.ggml.add_eos_token", V::Bool(true));
    let (dir, _) = imported(&writer);
    let tokenizer = Tokenizer::open(&dir.path().join("hf")).unwrap();
    assert_eq!((tokenizer.prefix(), tokenizer.suffix()), ([1].as_slice(), [2].as_slice()));
    let mut writer = Writer::model("llama", F16);
    writer.text("tokenizer.ggml.pre", "llama-bpe");
    writer.set("tokenizer.ggml.add_bos_token", V::Bool(false));
    let (dir, _) = imported(&writer);
    assert!(Tokenizer::open(&dir.path().join("hf")).unwrap().prefix().is_empty());
}

type Break = Box<dyn Fn(&mut Writer)>;

/// Changes to a good file, and what is then said of it.
fn broken() -> Vec<(Break, String)> {
    fn case(change: impl Fn(&mut Writer) + 'static, message: &str) -> (Break, String) {
        (Box::new(change), message.to_owned())
    }
    fn set(key: &'static str, value: V, message: &str) -> (Break, String) {
        case(move |w| w.set(key, value.clone()), message)
    }
    fn text(key: &'static str, value: &'static str, message: &str) -> (Break, String) {
        case(move |w| w.text(key, value), message)
    }
    let n = tokens().len();
    let mut cases = vec![
        text(
            "general.architecture",
            "gemma2",
            "key general.architecture: architecture `gemma2` is not supported",
        ),
        set(
            "llama.block_count",
            V::U32(1 << 30),
            "key llama.block_count: 1073741824 layers, but the file has only 20 tensors",
        ),
        set(
            "llama.block_count",
            V::U32(1),
            "tensor blk.1.attn_k.weight: not in a model of architecture llama with these keys",
        ),
        set(
            "llama.embedding_length",
            V::U32(32),
            "tensor token_embd.weight: shape [266, 64] in the file, [266, 32] by its keys",
        ),
        set(
            "llama.vocab_size",
            V::U32(300),
            "tensor token_embd.weight: shape [266, 64] in the file, [300, 64] by its keys",
        ),
        set(
            "llama.attention.head_count",
            V::U32(0),
            "key llama.attention.head_count: wanted a whole number from 1 to 2^31, got 0",
        ),
        set(
            "llama.attention.head_count_kv",
            V::I32s(vec![2, 2]),
            "key llama.attention.head_count_kv: wanted a whole number, got an array of 2 whole numbers",
        ),
        set(
            "llama.attention.head_count_kv",
            V::U32(3),
            "config.json: num_attention_heads 4 is no multiple of num_key_value_heads 3",
        ),
        set(
            "llama.rope.dimension_count",
            V::U32(8),
            "tensor blk.0.attn_q.weight: shape [64, 64] in the file, [32, 64] by its keys",
        ),
        set(
            "llama.attention.value_length",
            V::U32(8),
            "key llama.attention.value_length: 8 is not supported, wanted the head width 16",
        ),
        set(
            "llama.attention.key_length",
            V::U32(15),
            "key llama.attention.key_length: head width 15 is odd",
        ),
        set("llama.rope.freq_base", V::F32(-1.0), "key llama.rope.freq_base: -1 must be positive"),
        set(
            "llama.attention.layer_norm_rms_epsilon",
            V::F32(f32::NAN),
            "key llama.attention.layer_norm_rms_epsilon: wanted a finite number, got NaN",
        ),
        set(
            "llama.expert_count",
            V::U32(8),
            "key llama.expert_count: 8 is not supported, wanted 0",
        ),
        text(
            "llama.rope.scaling.type",
            "yarn",
            "key llama.rope.scaling.type: rope scaling `yarn` is not supported",
        ),
        case(
            |w| factors(w, &[1.0, 2.0, 1.5, 3.0, 1.0, 1.0, 1.0, 1.0]),
            "tensor rope_freqs.weight: its 8 factors are neither linear nor llama3 scaling",
        ),
        case(|w| factors(w, &[1.0; 3]), "tensor rope_freqs.weight: shape [3], wanted [8]"),
        case(
            |w| drop(w.tensors.remove("blk.1.ffn_up.weight")),
            "tensor blk.1.ffn_up.weight is missing, wanted shape [96, 64]",
        ),
        case(
            |w| drop(w.tensors.remove("token_embd.weight")),
            "tensor token_embd.weight is missing",
        ),
        case(
            |w| w.add("blk.0.ffn_gate_inp.weight", &[4, 64], F32),
            "tensor blk.0.ffn_gate_inp.weight: not in a model of architecture llama with these keys",
        ),
        case(
            |w| {
                // An infinite scale times one.
                let bytes = &mut w.tensors.get_mut("blk.0.attn_v.weight").unwrap().bytes;
                bytes[..3].copy_from_slice(&[0, 0x7c, 1]);
            },
            "tensor blk.0.attn_v.weight: holds inf, wanted a finite number within BF16",
        ),
        text(
            "tokenizer.ggml.model",
            "llama",
            "key tokenizer.ggml.model: tokenizer `llama` is not supported, wanted `gpt2`",
        ),
        text(
            "tokenizer.ggml.pre",
            "tekken",
            "key tokenizer.ggml.pre: pre-tokenizer `tekken` is not supported",
        ),
        set(
            "tokenizer.ggml.token_type",
            V::I32s(vec![1; 7]),
            &format!("key tokenizer.ggml.token_type: 7 types for {n} tokens"),
        ),
        set(
            "tokenizer.ggml.tokens",
            V::Texts(vec!["a".into(); 2]),
            "key tokenizer.ggml.tokens: `a` is there twice, again as 1",
        ),
        set(
            "tokenizer.ggml.tokens",
            V::Texts(vec!["a".into(); n + 1]),
            &format!("key tokenizer.ggml.tokens: {} tokens, token_embd.weight has {n} rows", n + 1),
        ),
        set(
            "tokenizer.ggml.merges",
            V::Texts(vec!["h".into()]),
            "key tokenizer.ggml.merges: merge 0: wanted two tokens, got `h`",
        ),
        set(
            "tokenizer.ggml.merges",
            V::Texts(vec!["h e".into(), "z z".into()]),
            "key tokenizer.ggml.merges: merge 1: no token is `zz`",
        ),
        set(
            "tokenizer.ggml.eos_token_id",
            V::U32(999),
            &format!("eos token id 999: there are only {n} tokens"),
        ),
        case(
            |w| {
                w.set("tokenizer.ggml.add_bos_token", V::Bool(true));
                w.keys.remove("tokenizer.ggml.bos_token_id");
            },
            "key tokenizer.ggml.bos_token_id is missing",
        ),
    ];
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
    ] {
        let message = format!("key {key} is missing");
        cases.push(case(move |w| drop(w.keys.remove(key)), &message));
    }
    cases
}

#[test]
fn broken_files_get_exact_messages_and_leave_nothing() {
    for (change, wanted) in broken() {
        let mut writer = Writer::model("llama", Q8_0);
        change(&mut writer);
        let (dir, done) = try_import(&writer.bytes(3));
        let error = done.unwrap_err();
        let file = dir.path().join("m.gguf");
        assert_eq!(error.message(), format!("{}: {wanted}", file.display()));
        assert_eq!(error.kind(), Kind::Model);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{wanted}");
    }
}

#[test]
fn truncated_files_are_refused_wherever_they_end() {
    let bytes = Writer::model("llama", Q4_0).bytes(3);
    for len in (0..bytes.len()).step_by(101).chain(bytes.len() - 40..bytes.len()) {
        let (dir, done) = try_import(&bytes[..len]);
        assert_eq!(done.unwrap_err().kind(), Kind::Model, "{len}");
        assert!(!dir.path().join("hf").exists());
    }
}

#[test]
fn command_prints_a_summary_replaces_its_own_folder_and_no_other() {
    let dir = TempDir::new().unwrap();
    let (file, out) = (dir.path().join("m.gguf"), dir.path().join("hf"));
    let writer = Writer::model("llama", Q4_1);
    std::fs::write(&file, writer.bytes(3)).unwrap();
    let run = |json: bool| {
        let mut command = Command::cargo_bin("nepenthe").unwrap();
        command.arg("import-gguf").arg(&file).arg(&out);
        if json {
            command.arg("--json");
        }
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, stdout, stderr) = run(false);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let exact = by_hand(&writer, true, Dtype::F32);
    let rounded = exact.values().flatten().filter(|x| stored(Dtype::Bf16, **x) != **x).count();
    let first = format!("{}: llama with 2 layers, ", out.display());
    assert!(stdout.starts_with(&first), "{stdout}");
    let dtype = format!(
        "\ndtype: BF16, which rounded {} of the parameters (--dtype f32 keeps them)\n",
        rounded
    );
    assert!(stdout.contains(&dtype), "{stdout}");
    assert!(stdout.ends_with("\ntokenizer: 266 tokens, smollm\nname: Tiny\nlicense: not stated\n"));
    let (code, stdout, _) = run(true);
    assert_eq!(code, Some(0));
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&json["tensors"], &json["formats"]["Q4_1"]), (&20.into(), &15.into()));
    std::fs::write(out.join("thesis.txt"), "mine").unwrap();
    let (code, stdout, stderr) = run(false);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert_eq!(
        stderr,
        format!(
            "error: {}: exists and holds `thesis.txt`, which import-gguf does not write\n\
             hint: name a folder that does not exist yet\n",
            out.display()
        )
    );
    let missing = dir.path().join("none.gguf");
    let error = import(&missing, &dir.path().join("new"), None).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn mutated_files_never_panic_nor_allocate_wildly(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        count in prop::option::of((any::<prop::sample::Index>(), 8u32..64)),
        header in any::<bool>(),
    ) {
        let mut bytes = Writer::model("llama", Q8_0).bytes(3);
        // The header is a small part of the file and the one where changes matter.
        let len = if header { 2000 } else { bytes.len() };
        for (at, byte) in changes {
            bytes[at.index(len)] = byte;
        }
        // Large powers of two where lengths and counts stand.
        if let Some((at, power)) = count {
            bytes[at.index(2000)..][..8].copy_from_slice(&(1u64 << power).to_le_bytes());
        }
        let _ = try_import(&bytes);
        prop_assert!(LARGEST.load(Ordering::Relaxed) < 16 << 20);
    }
}

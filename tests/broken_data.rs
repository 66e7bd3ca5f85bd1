//! Broken data files: each is answered with one exact message, and a large corpus opens from its cache.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use nepenthe::data::{Chunking, Corpus, CorpusOptions, Tokenizer};
use serde_json::{Map, Value, json};

/// A word-level tokenizer: `<s>` 0, `</s>` 1, `<unk>` 2, then a to z as 3 to 28; BOS is prepended if asked for.
fn tokenizer(dir: &Path, bos: bool) -> Tokenizer {
    let special = ["<s>", "</s>", "<unk>"].map(str::to_owned).into_iter();
    let words = special.chain(('a'..='z').map(String::from));
    let vocab: Map<String, Value> =
        words.zip(0..).map(|(word, id)| (word, Value::from(id))).collect();
    let post = json!({
        "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    });
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": bos.then_some(post),
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    let config = json!({"bos_token": "<s>"});
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::open(dir).unwrap()
}

/// Writes `bytes` as `name`, opens it and returns the error with the folder cut off.
fn refusal(name: &str, bytes: &[u8], chunking: Chunking) -> String {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), false);
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    opened(&path, &tokenizer, dir.path(), chunking)
}

fn opened(path: &Path, tokenizer: &Tokenizer, dir: &Path, chunking: Chunking) -> String {
    let options = CorpusOptions { context: 8, chunking, cache_dir: Some(dir.join("cache")) };
    let error = Corpus::open(path, tokenizer, &options).unwrap_err();
    assert_eq!(error.kind(), nepenthe::Kind::Data, "{error}");
    error.to_string().replace(&format!("{}/", dir.display()), "")
}

#[test]
fn broken_files_are_answered_with_exact_messages() {
    let cases: &[(&str, &[u8], &str)] = &[
        (
            "a.jsonl",
            b"",
            "a.jsonl: the file is empty, wanted at least one document\n\
            hint: check that the export that wrote it finished",
        ),
        (
            "a.jsonl",
            b"\n \r\n",
            "a.jsonl: no documents in the file, wanted at least one document\n\
            hint: check that the export that wrote it finished",
        ),
        (
            "a.json",
            b"[]",
            "a.json: no documents in the file, wanted at least one document\n\
            hint: check that the export that wrote it finished",
        ),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": \"b\n",
            "a.jsonl:2: not valid JSON at column 11: \
            EOF while parsing a string\n\
            hint: every line of a .jsonl file is one whole JSON object",
        ),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n\n{\"text\": \"\xFF\"}\n",
            "a.jsonl:3: byte 11 of the line is not valid UTF-8\n\
            hint: convert the file to UTF-8, for example with iconv -t utf-8",
        ),
        (
            "a.txt",
            b"one\r\ntwo \xC3\x28",
            "a.txt:2: byte 5 of the line is not valid UTF-8\n\
            hint: convert the file to UTF-8, for example with iconv -t utf-8",
        ),
        (
            "a.jsonl",
            b"[\"a\"]\n",
            "a.jsonl:1: the line is a list, wanted an object\n\
            hint: write {\"text\": ...}; a file that is one JSON list is named .json",
        ),
        (
            "a.jsonl",
            b"{\"Txt\": \"a\", \"id\": 1}\n",
            "a.jsonl:1: record has keys \"Txt\", \"id\", wanted \"text\", or \
            \"question\" and \"answer\", or \"input_ids\"\n\
            hint: rename \"Txt\" to \"text\"",
        ),
        (
            "a.jsonl",
            b"{}\n",
            "a.jsonl:1: record has no keys, wanted \"text\", or \"question\" and \"answer\", or \
            \"input_ids\"\n\
            hint: rename the key that holds the document to \"text\"",
        ),
        (
            "a.jsonl",
            b"{\"question\": \"a\"}\n",
            "a.jsonl:1: record has \"question\" but no \"answer\", wanted both",
        ),
        (
            "a.jsonl",
            b"{\"answer\": \"a\"}\n",
            "a.jsonl:1: record has \"answer\" but no \"question\", wanted both",
        ),
        ("a.jsonl", b"{\"text\": null}\n", "a.jsonl:1: \"text\" is null, wanted a string"),
        (
            "a.jsonl",
            b"{\"question\": \"a\", \"answer\": [\"b\"]}\n",
            "a.jsonl:1: \"answer\" is a list, wanted a string",
        ),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"input_ids\": [1]}\n",
            "a.jsonl:2: record has \"input_ids\", wanted \"text\" as \
            in line 1\n\
            hint: keep one kind of record per file",
        ),
        (
            "a.jsonl",
            b"{\"text\": \"a\", \"input_ids\": [3]}\n",
            "a.jsonl:1: record has both \"text\" and \"input_ids\", \
            wanted one of them\n\
            hint: keep the key to train on and remove or rename the other",
        ),
        (
            "a.jsonl",
            b"{\"input_ids\": [1, -1]}\n",
            "a.jsonl:1: \"input_ids\"[1] is -1, wanted an id from 0 to 28\n\
            hint: the ids must come from the tokenizer of this model",
        ),
        (
            "a.jsonl",
            b"{\"input_ids\": [29]}\n",
            "a.jsonl:1: \"input_ids\"[0] is 29, wanted an id from 0 to 28\n\
            hint: the ids must come from the tokenizer of this model",
        ),
        (
            "a.jsonl",
            b"{\"input_ids\": [1.5]}\n",
            "a.jsonl:1: \"input_ids\"[0] is 1.5, wanted an id from 0 to 28\n\
            hint: the ids must come from the tokenizer of this model",
        ),
        (
            "a.jsonl",
            b"{\"input_ids\": [[1]]}\n",
            "a.jsonl:1: \"input_ids\"[0] is a list, wanted an id from 0 to 28\n\
            hint: the ids must come from the tokenizer of this model",
        ),
        (
            "a.jsonl",
            b"{\"input_ids\": \"1 2\"}\n",
            "a.jsonl:1: \"input_ids\" is a string, wanted a list of ids",
        ),
        (
            "a.jsonl",
            b"{\"input_ids\": [3, 4], \"attention_mask\": [1, 0]}\n",
            "a.jsonl:1: \"attention_mask\"[1] is 0, \
            wanted 1 throughout\n\
            hint: write the ids without padding, and a document per record",
        ),
        (
            "a.jsonl",
            b"{\"input_ids\": [3, 4], \"attention_mask\": [1]}\n",
            "a.jsonl:1: \"attention_mask\" has 1 values, \
            wanted 2 as \"input_ids\"",
        ),
        (
            "a.jsonl",
            b"{\"input_ids\": []}\n",
            "a.jsonl: no document has a token\n\
            hint: fill the documents with text",
        ),
        ("a.json", b"\n{\"text\": [\"a\"]}", "a.json:2: \"text\" is a list, wanted a string"),
        (
            "a.json",
            b"{\"text\": \"a\"}\n{\"text\"",
            "a.json:2: not valid JSON at column 7: EOF while parsing an object",
        ),
        (
            "a.json",
            b"\"a\"",
            "a.json:1: the file is not a list, wanted a list of strings or objects",
        ),
        (
            "a.json",
            b"[\"a\",\n 7]",
            "a.json:2: the record is a number, wanted a string or an object",
        ),
        (
            "a.json",
            b"[\"a\",\n \"b\"",
            "a.json:2: not valid JSON at column 4: EOF while parsing a list",
        ),
        (
            "a.json",
            b"[\"a\"]\n[\"b\"]",
            "a.json:2: not valid JSON at column 1: trailing characters",
        ),
        (
            "a.json",
            b"[\"a\", \"\xFF\"]",
            "a.json:1: not valid JSON at column 8: invalid unicode code point",
        ),
        (
            "a.csv",
            b"a,b",
            "a.csv: unknown extension \"csv\", wanted .jsonl, .json, .txt or .parquet\n\
            hint: convert the file to .jsonl, one {\"text\": ...} per line",
        ),
        (
            "a",
            b"a",
            "a: no extension, wanted .jsonl, .json, .txt or .parquet\n\
            hint: rename the file to say what it holds",
        ),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .map(|(name, bytes, wanted)| (refusal(name, bytes, Chunking::Truncate), wanted))
        .filter(|(got, wanted)| got != *wanted)
        .map(|(got, wanted)| format!("wanted {wanted}\n   got {got}"))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    println!("{} broken files", cases.len());
}

#[test]
fn short_documents_alone_do_not_fill_rows() {
    assert_eq!(
        refusal("a.json", b"[\"a b\", \"c\"]", Chunking::ChunkFull),
        "a.json: no document fills a row of 8 tokens\nhint: choose a smaller context or keep short rows"
    );
}

#[test]
fn missing_file_and_folder_are_answered_with_exact_messages() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), true);
    let open =
        |name: &str| opened(&dir.path().join(name), &tokenizer, dir.path(), Chunking::Truncate);
    assert_eq!(
        open("none.jsonl"),
        "none.jsonl: no such file\nhint: paths in a recipe are relative to the working directory"
    );
    std::fs::create_dir(dir.path().join("set.json")).unwrap();
    assert_eq!(
        open("set.json"),
        "set.json: is a folder, wanted a .jsonl, .json, .txt or .parquet file\n\
         hint: a datasets folder becomes one file by load_from_disk(folder).to_json(\"data.jsonl\")"
    );
}

#[test]
fn large_corpus_comes_from_the_cache_the_second_time() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path(), true);
    let source = dir.path().join("many.jsonl");
    let letter = |i: usize| char::from(b'a' + (i * i % 26) as u8);
    let lines: String = (0..200_000)
        .map(|i| format!("{{\"text\": \"{} {}\"}}\n", letter(i), letter(i + 1)))
        .collect();
    std::fs::write(&source, lines).unwrap();
    let options = CorpusOptions { cache_dir: Some(dir.path().join("cache")), ..Default::default() };
    let first = Corpus::open(&source, &tokenizer, &options).unwrap();
    assert!(!first.report().from_cache);
    let second = Corpus::open(&source, &tokenizer, &options).unwrap();
    assert!(second.report().from_cache && second.report().note.is_none());
    assert_eq!((second.len(), second.tokens()), (200_000, 600_000));
    assert_eq!(second.hash(), first.hash());
    second.verify().unwrap();
    assert_eq!(second.doc(199_999), first.doc(199_999));
}

/// Seconds, and the most memory in MiB, of opening a corpus in a process of its own; set to the folder to work in.
const CHILD: &str = "NEPENTHE_CORPUS_TEST_DIR";

/// Writes and tokenises a million documents; run with `--ignored --nocapture`.
#[test]
#[ignore = "takes tens of seconds"]
fn million_documents_start_in_seconds_the_second_time() {
    let name = "million_documents_start_in_seconds_the_second_time";
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        let tokenizer = tokenizer(dir, true);
        let options =
            CorpusOptions { cache_dir: Some(dir.join("cache")), ..CorpusOptions::default() };
        let start = std::time::Instant::now();
        let corpus = Corpus::open(&dir.join("many.jsonl"), &tokenizer, &options).unwrap();
        corpus.check_ids(dir, 29).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(corpus.len(), 1_000_000);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let most = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("?").trim();
        println!("{} {seconds:.3} s, most memory {most}", corpus.report().from_cache);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let letter = |i: usize| char::from(b'a' + (i * i % 26) as u8);
    let lines: String = (0..1_000_000usize)
        .map(|i| {
            let words: Vec<String> = (0..40).map(|w| letter(i + w).to_string()).collect();
            format!("{{\"text\": \"{}\"}}\n", words.join(" "))
        })
        .collect();
    std::fs::write(dir.path().join("many.jsonl"), lines).unwrap();
    // Else the time of the source cannot vouch for it, and it is hashed again.
    std::thread::sleep(std::time::Duration::from_secs(3));
    for wanted in ["false", "true", "true"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture"])
            .env(CHILD, dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let line = text.lines().find(|l| l.contains(" s, most")).unwrap();
        println!("from the cache: {line}");
        let line = line.split_once("true ").or(line.split_once("false ")).unwrap().1;
        assert!(text.contains(&format!("{wanted} {line}")), "{text}");
        let seconds: f64 = line.split(' ').next().unwrap().parse().unwrap();
        assert!(wanted == "false" || seconds < 5.0, "{seconds} s");
    }
}

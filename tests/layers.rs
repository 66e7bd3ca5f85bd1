//! Rules of the source tree that the compiler does not check: the order of the layers, the length of files, and
//! that nothing is left unwritten without an issue.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the top; a module uses its own layer and those below it.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["run"],
    &["method", "optim", "eval", "data", "report"],
    &["model"],
    &["backend"],
    &["ops"],
    &["io", "rng", "error"],
];

const MAX_LINES: usize = 650;

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&module))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| endings.iter().any(|end| e == *end)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    let mut all = vec![root().join("build.rs")];
    for folder in ["src", "tests", "benches", "kernels", "examples"] {
        all.extend(files(folder, &["rs", "cu", "cuh"]));
    }
    all
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Blanks comments out, so that links in documentation may point upwards; keeps the lines.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut depth = 0;
    for line in text.lines() {
        let mut rest = line;
        while !rest.is_empty() {
            if depth > 0 {
                let Some(end) = rest.find("*/") else { break };
                depth -= 1;
                rest = &rest[end + 2..];
                continue;
            }
            let (line_at, block_at) = (rest.find("//"), rest.find("/*"));
            match (line_at, block_at) {
                (Some(at), block) if block.is_none_or(|b| at < b) => {
                    code.push_str(&rest[..at]);
                    break;
                }
                (_, Some(at)) => {
                    code.push_str(&rest[..at]);
                    depth += 1;
                    rest = &rest[at + 2..];
                }
                _ => {
                    code.push_str(rest);
                    break;
                }
            }
        }
        code.push('\n');
    }
    code
}

fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Returns the names that follow `crate::` in `code`, groups in braces opened, each with its line from 1.
fn crate_names(code: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    for (at, matched) in code.match_indices("crate::") {
        let inside_word =
            code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        if inside_word {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + matched.len()..];
        let Some(group) = rest.trim_start().strip_prefix('{') else {
            names.push((line, identifier(rest)));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    names.push((line, identifier(&group[start..i])));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    names.retain(|(_, name)| !name.is_empty());
    names
}

/// Returns what is wrong with the `crate::` paths of one file of module `module`.
fn upward(module: &str, code: &str) -> Vec<String> {
    let Some(own) = layer(module) else {
        return vec![format!("module {module} is in no layer; add it to tests/layers.rs")];
    };
    crate_names(code)
        .into_iter()
        .filter_map(|(line, name)| match layer(name) {
            Some(other) if other < own => {
                Some(format!("line {line}: {module} uses crate::{name}, which stands above it"))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn modules_use_only_their_own_layer_and_lower_ones() {
    let mut wrong = Vec::new();
    let src = root().join("src");
    for path in files("src", &["rs"]) {
        let inside = path.strip_prefix(&src).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let module = first.strip_suffix(".rs").unwrap_or(&first);
        if inside.components().count() == 1 && ["lib", "main"].contains(&module) {
            continue;
        }
        let code = code_of(&fs::read_to_string(&path).unwrap());
        wrong.extend(
            upward(module, &code).into_iter().map(|text| format!("{}: {text}", shown(&path))),
        );
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn source_files_stay_below_the_line_limit() {
    let long: Vec<String> = sources()
        .iter()
        .map(|path| (path, fs::read_to_string(path).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines, at most {MAX_LINES}", shown(path)))
        .collect();
    assert!(long.is_empty(), "\n{}", long.join("\n"));
}

#[test]
fn nothing_is_left_unwritten_without_an_issue() {
    // Put together here, so that this file does not find itself.
    let (mark, macros) =
        (concat!("TO", "DO"), [concat!("to", "do!("), concat!("unimple", "mented!(")]);
    let mut wrong = Vec::new();
    for path in sources() {
        for (i, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let place = format!("{}:{}", shown(&path), i + 1);
            if macros.iter().any(|name| line.contains(name)) {
                wrong.push(format!("{place}: unwritten code"));
            }
            for (at, _) in line.match_indices(mark) {
                let number = line[at + mark.len()..].strip_prefix("(#").map(identifier);
                if !number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
                    wrong.push(format!("{place}: {mark} without (#issue)"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn upward_finds_plain_paths_groups_and_expressions_but_no_comments() {
    let text = "use crate::error::Error;\nuse crate::{io, cli::{a, b}, rng};\n\
                //! [`crate::run`]\nfn f() { crate::run::go() } /* crate::cli */\n";
    assert_eq!(
        upward("ops", &code_of(text)),
        [
            "line 2: ops uses crate::cli, which stands above it",
            "line 4: ops uses crate::run, which stands above it"
        ]
    );
    assert!(upward("run", "use crate::{ops, Error};\nuse mycrate::cli;").is_empty());
    assert!(upward("backend", "use crate::ops::Backend;").is_empty());
    assert_eq!(upward("attic", "").len(), 1);
}

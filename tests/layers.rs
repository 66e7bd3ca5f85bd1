//! Rules of the source tree that the compiler does not check: the order of the layers, that no two files import each
//! other, the length of files, and that nothing is left unwritten without an issue.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the top; a module uses those below its own layer, and nothing beside it.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["edit", "probe", "bench"],
    &["run"],
    &["eval", "conformance"],
    &["folder", "method"],
    &["model"],
    &["backend"],
    &["ops"],
    &["optim", "data", "report", "io"],
    &["rng", "error"],
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
            Some(other) if other == own && name != module => {
                Some(format!("line {line}: {module} uses crate::{name}, which stands beside it"))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn modules_use_only_lower_layers() {
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

/// Opens the groups of a `use` tree: `a::{b, c::{d as e}}` becomes `a::b` and `a::c::d`.
fn leaves(tree: &str) -> Vec<String> {
    let plain = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let Some((head, rest)) = tree.split_once('{') else { return vec![plain(tree)] };
    let group = rest.rsplit_once('}').unwrap_or((rest, "")).0;
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    let head: String = head.split_whitespace().collect();
    let inner = parts.into_iter().filter(|part| !part.trim().is_empty()).flat_map(leaves);
    inner.map(|leaf| format!("{head}{leaf}")).collect()
}

/// Returns the paths within the crate that the code of the module `own` names, from the root of the crate.
fn paths(own: &str, code: &str) -> Vec<String> {
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap();
    let mut found = Vec::new();
    let mut rest = String::new();
    for (i, statement) in code.split("use ").enumerate() {
        let starts =
            i > 0 && ["crate::", "super::", "self::"].iter().any(|s| statement.starts_with(s));
        let Some((tree, after)) = statement.split_once(';').filter(|_| starts) else {
            rest.push_str(statement);
            continue;
        };
        found.extend(leaves(tree));
        rest.push_str(after);
    }
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let inline = rest
        .split(|c| !word(c))
        .filter(|path| path.starts_with("crate::") || path.starts_with("super::"));
    found.extend(inline.map(str::to_owned));
    let absolute = |path: String| {
        let mut at: Vec<&str> = own.split("::").collect();
        let mut parts = path.split("::").filter(|part| !part.is_empty()).peekable();
        match parts.peek() {
            Some(&"crate") => {
                parts.next();
                at.clear();
            }
            Some(&"self") => drop(parts.next()),
            _ => {
                while parts.next_if_eq(&"super").is_some() {
                    at.pop();
                }
            }
        }
        at.extend(parts);
        at.join("::")
    };
    found.into_iter().map(absolute).collect()
}

/// Returns the re-exports of the module `own`: the path of each and what it stands for.
fn exports(own: &str, code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for statement in code.split("pub use ").skip(1) {
        let Some((tree, _)) = statement.split_once(';') else { continue };
        if ["crate::", "super::"].iter().any(|start| tree.starts_with(start)) {
            continue;
        }
        for leaf in leaves(tree.trim_start_matches("self::")) {
            let name = leaf.rsplit("::").next().unwrap_or_default();
            found.push((format!("{own}::{name}"), format!("{own}::{leaf}")));
        }
    }
    found
}

/// Returns the files of each module that another one imports, parents and their own children left out.
fn imports(modules: &BTreeMap<String, String>) -> BTreeMap<&str, BTreeSet<&str>> {
    let exports: BTreeMap<String, String> =
        modules.iter().flat_map(|(own, code)| exports(own, code)).collect();
    let owner = |path: &str| {
        let path = exports.get(path).map_or(path, String::as_str);
        let ends = path.match_indices("::").map(|(at, _)| at).chain([path.len()]);
        let owners = ends.filter_map(|end| modules.get_key_value(&path[..end]));
        owners.last().map(|(name, _)| name.as_str())
    };
    let related = |a: &str, b: &str| {
        a == b || a.starts_with(&format!("{b}::")) || b.starts_with(&format!("{a}::"))
    };
    let of = |(own, code): (&'_ String, &String)| {
        paths(own, code)
            .iter()
            .filter_map(|path| owner(path))
            .filter(|to| !related(own, to))
            .collect()
    };
    modules.iter().map(|entry| (entry.0.as_str(), of(entry))).collect()
}

/// Returns a module and what it imports that leads back to it, for each module of a cycle.
fn cycles(imports: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<String> {
    let reached = |from: &str| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(at) = left.pop() {
            for to in imports.get(at).into_iter().flatten() {
                if seen.insert(*to) {
                    left.push(*to);
                }
            }
        }
        seen
    };
    let all: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|from| (*from, reached(from))).collect();
    let mut wrong = Vec::new();
    for (from, to) in imports.iter().flat_map(|(from, tos)| tos.iter().map(move |to| (from, to))) {
        if all[to].contains(from) {
            wrong.push(format!("{from} imports {to}, which leads back to it"));
        }
    }
    wrong
}

#[test]
fn no_two_files_import_each_other() {
    let src = root().join("src");
    let mut modules = BTreeMap::new();
    for path in files("src", &["rs"]) {
        let inside = path.strip_prefix(&src).unwrap().with_extension("");
        let parts: Vec<String> =
            inside.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
        let name = parts.join("::");
        if ["lib", "main"].contains(&name.as_str()) {
            continue;
        }
        let code = code_of(&fs::read_to_string(&path).unwrap());
        modules.insert(name.strip_suffix("::mod").unwrap_or(&name).to_owned(), code);
    }
    let wrong = cycles(&imports(&modules));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn cycles_finds_files_through_groups_and_re_exports_but_no_parents() {
    let of = |files: &[(&str, &str)]| {
        let modules = files.iter().map(|(name, code)| ((*name).to_owned(), (*code).to_owned()));
        cycles(&imports(&modules.collect()))
    };
    let back =
        ["a::b imports a::c, which leads back to it", "a::c imports a::b, which leads back to it"];
    let (up, down) = ("use super::{\n    c::{self, D},\n};\n", "fn f() { crate::a::b::go() }");
    assert_eq!(of(&[("a", ""), ("a::b", up), ("a::c", down)]), back);
    let through = "use super::D;\n";
    assert_eq!(of(&[("a", "pub use c::{D, E};\n"), ("a::b", through), ("a::c", down)]), back);
    assert!(of(&[("a", "use self::b::X;\n"), ("a::b", "use super::Y;\n")]).is_empty());
    let tests = "#[cfg(test)]\nmod tests { use super::super::c::X; }";
    assert!(of(&[("a", ""), ("a::b", tests), ("a::c", down)]).is_empty());
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
    assert_eq!(upward("edit", "use crate::probe::go;").len(), 1);
    assert!(upward("backend", "use crate::ops::Backend;").is_empty());
    assert_eq!(upward("attic", "").len(), 1);
}

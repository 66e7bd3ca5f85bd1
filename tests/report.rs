//! `report` on run folders, its page in a browser where one is installed, and the event files of a run.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

fn nepenthe(args: &[&str]) -> std::process::Output {
    Command::cargo_bin("nepenthe").unwrap().args(args).output().unwrap()
}

/// Writes a run folder as `unlearn` leaves it, without running anything.
fn run_folder(root: &Path, name: &str, seed: u64, lr: f64) -> PathBuf {
    let dir = root.join(name);
    fs::create_dir(&dir).unwrap();
    let recipe =
        format!("seed = {seed}\n[optim]\nlr = {lr}\n[data]\nforget = {:?}\n", dir.join("f.jsonl"));
    fs::write(dir.join("config.resolved.toml"), recipe).unwrap();
    let step = |i: u64| {
        json!({"global_step": i, "loss_tr": i as f64 * lr, "loss_kl": 1e-4, "grad_norm": 0.5,
               "clip_coef": 1.0, "tokens": 100, "tokens_per_s": 50.0})
    };
    let lines: String = (0..20).map(|i| format!("{}\n", step(i))).collect();
    fs::write(dir.join("metrics.jsonl"), lines).unwrap();
    let evaluation = |i: u64| {
        json!({"global_step": 5 * i, "verbmem_forget": 1.0 - lr * i as f64,
               "nll_retain": 0.2 + 0.01 * i as f64, "student_from_start": 0.1 * i as f64})
    };
    let lines: String = (0..5).map(|i| format!("{}\n", evaluation(i))).collect();
    fs::write(dir.join("evaluations.jsonl"), lines).unwrap();
    let sample = json!({"prompt": "Alice <b>was", "gt": "tired", "before": "tired", "after": name});
    let summary = json!({
        "before": {"verbmem_forget": 1.0, "nll_retain": 0.2},
        "after": {"verbmem_forget": 1.0 - 4.0 * lr, "nll_retain": 0.24},
        "retrain": {"verbmem_forget": 0.15}, "samples": [sample], "clipped_steps": 3,
        "loss_formula": "log p_y", "penalty_formula": null, "peak_memory": 1 << 30,
    });
    fs::write(dir.join("summary.json"), summary.to_string()).unwrap();
    fs::write(dir.join("eval.json"), json!({"privleak": -40.0 * lr}).to_string()).unwrap();
    dir
}

fn page(root: &Path) -> PathBuf {
    let runs = [("a1", 1, 0.1), ("a2", 2, 0.1), ("b", 1, 0.2)];
    let runs = runs.map(|(name, seed, lr)| run_folder(root, name, seed, lr).display().to_string());
    let [out, figures] = ["report.html", "figures"].map(|name| root.join(name));
    let mut args = vec!["--json", "report"];
    args.extend(runs.iter().map(String::as_str));
    args.extend(["--out", out.to_str().unwrap(), "--figures", figures.to_str().unwrap()]);
    let output = nepenthe(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["runs"][2]["after"]["privleak"], json!(-8.0));
    assert_eq!(value["runs"][0]["seconds_per_step"], json!(2.0));
    out
}

#[test]
fn report_says_what_differs_what_is_better_and_what_it_cost() {
    let root = TempDir::new().unwrap();
    let html = fs::read_to_string(page(root.path())).unwrap();
    for part in [
        // The settings that differ, and one inside the run folder that does not.
        "<th scope=\"row\">optim.lr</th><td class=\"differs\">0.1</td>",
        "<th scope=\"row\">data.forget</th><td>RUN/f.jsonl</td><td>RUN/f.jsonl</td>",
        // Good is lower; the third run has the lowest.
        "<td>as retrained</td><td>1</td><td>0.150</td><td>0.600</td><td>0.600</td><td class=\"best\">0.200</td>",
        "a1 (2 seeds)",
        "Alice &lt;b&gt;was",
        "<th scope=\"row\">student tokens a second</th><td>50</td>",
        "<th scope=\"row\">peak memory of the host, MiB</th><td>1024</td>",
        "Privacy leakage",
        "Distance: student from start",
    ] {
        assert!(html.contains(part), "{part} is not in the page");
    }
    let figures = fs::read_dir(root.path().join("figures")).unwrap().count();
    assert!(figures >= 10, "{figures} figures");
}

#[test]
fn runs_of_other_data_are_judged_apart() {
    let root = TempDir::new().unwrap();
    let runs: Vec<String> = [("a", 0.1), ("b", 0.15), ("c", 0.2)]
        .map(|(name, lr)| run_folder(root.path(), name, 1, lr).display().to_string())
        .into();
    // The third, with the lowest memory of all, forgot another file.
    let config = root.path().join("c/config.resolved.toml");
    let text = fs::read_to_string(&config).unwrap().replace("f.jsonl", "other.jsonl");
    fs::write(&config, text).unwrap();
    let out = root.path().join("report.html");
    let mut args = vec!["report", "--json"];
    args.extend(runs.iter().map(String::as_str));
    args.extend(["--out", out.to_str().unwrap()]);
    let output = nepenthe(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names = |group: usize| value["groups"][group]["runs"].clone();
    assert_eq!((names(0), names(1)), (json!(["a", "b"]), json!(["c"])));
    assert_eq!(value["groups"][0]["of"], "data.forget = RUN/f.jsonl");
    let html = fs::read_to_string(&out).unwrap();
    // Best of two, and no best where there is one alone.
    assert!(html.contains("<td>0.600</td><td class=\"best\">0.400</td></tr>"), "{html}");
    assert!(!html.contains("class=\"best\">0.200"), "{html}");
}

#[test]
fn report_of_no_run_folder_says_so_and_exits_with_2() {
    let root = TempDir::new().unwrap();
    let output = nepenthe(&["report", root.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no run folder: config.resolved.toml is missing\nhint: "), "{error}");
}

/// Finds a Chromium: what NEPENTHE_CHROMIUM names, else one of the usual names in PATH.
fn chromium() -> Option<PathBuf> {
    const NAMES: [&str; 5] = [
        "chromium-headless-shell",
        "chromium",
        "chromium-browser",
        "google-chrome",
        "headless_shell",
    ];
    if let Some(named) = std::env::var_os("NEPENTHE_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    NAMES.iter().find_map(|name| folders.iter().map(|f| f.join(name)).find(|p| p.is_file()))
}

/// Result of rendering a page in a browser.
struct Visit {
    pixels: Vec<[u8; 3]>,
    console: Vec<String>,
    requests: Vec<String>,
}

fn visit(browser: &Path, page: &Path, scheme: u8) -> Visit {
    let dir = TempDir::new().unwrap();
    let (shot, log) = (dir.path().join("shot.png"), dir.path().join("net.json"));
    let output = Process::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000"])
        .args(["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg(format!("--screenshot={}", shot.display()))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let console =
        stderr.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    let log: Value = serde_json::from_str(&fs::read_to_string(log).unwrap()).unwrap();
    // A full browser also runs errands of its own (updates, dictionaries): no origin asks for them.
    let url = |event: &Value| {
        let request = &event["params"];
        let asked_for = request["initiator"].as_str()? != "not an origin";
        asked_for.then(|| request["url"].as_str().map(str::to_owned))?
    };
    let requests = log["events"].as_array().unwrap().iter().filter_map(url);
    let requests = requests.filter(|url| url.starts_with("http")).collect();
    Visit { pixels: png(&fs::read(shot).unwrap()), console, requests }
}

/// Decodes a PNG of 8-bit RGB or RGBA without interlacing: what browsers write.
fn png(bytes: &[u8]) -> Vec<[u8; 3]> {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (width, depth, kind) = (word(16), bytes[24], bytes[25]);
    let pixel = match (depth, kind) {
        (8, 2) => 3,
        (8, 6) => 4,
        other => unreachable!("a PNG of depth and kind {other:?}"),
    };
    let (mut at, mut packed) = (8, Vec::new());
    while at < bytes.len() {
        if &bytes[at + 4..at + 8] == b"IDAT" {
            packed.extend(&bytes[at + 8..at + 8 + word(at)]);
        }
        at += 12 + word(at);
    }
    let mut raw = Vec::new();
    flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_end(&mut raw).unwrap();
    let mut above = vec![0u8; width * pixel];
    let mut pixels = Vec::new();
    for line in raw.chunks_exact(1 + width * pixel) {
        let mut row = line[1..].to_vec();
        for i in 0..row.len() {
            let left = if i < pixel { 0 } else { row[i - pixel] };
            let corner = if i < pixel { 0 } else { above[i - pixel] };
            let up = above[i];
            let (a, b, c) = (i16::from(left), i16::from(up), i16::from(corner));
            let (pa, pb, pc) = ((b - c).abs(), (a - c).abs(), (a + b - 2 * c).abs());
            row[i] = row[i].wrapping_add(match line[0] {
                0 => 0,
                1 => left,
                2 => up,
                3 => ((a + b) / 2) as u8,
                _ if pa <= pb && pa <= pc => left,
                _ if pb <= pc => up,
                _ => corner,
            });
        }
        pixels.extend(row.chunks_exact(pixel).map(|p| [p[0], p[1], p[2]]));
        above = row;
    }
    pixels
}

#[test]
fn page_in_a_browser_asks_for_nothing_complains_of_nothing_and_follows_the_theme() {
    let Some(browser) = chromium() else {
        eprintln!("skipped: no Chromium in PATH, and NEPENTHE_CHROMIUM names none");
        return;
    };
    let root = TempDir::new().unwrap();
    let page = page(root.path());
    let mut grey = Vec::new();
    // Blink's numbers of the preferred scheme: 0 is dark, 1 is light.
    for scheme in [0, 1] {
        let Visit { pixels, console, requests } = visit(&browser, &page, scheme);
        assert!(console.is_empty(), "{console:?}");
        assert!(requests.is_empty(), "{requests:?}");
        let sum: u64 = pixels.iter().flatten().map(|v| u64::from(*v)).sum();
        grey.push(sum / (3 * pixels.len() as u64));
        // Lines in the colours of the first and of the second run.
        for color in [[0x00, 0x72, 0xb2], [0xd5, 0x5e, 0x00]] {
            let drawn = pixels.iter().filter(|p| **p == color).count();
            assert!(drawn > 100, "{drawn} pixels of {color:?} under scheme {scheme}");
        }
    }
    assert!(grey[0] < 64 && grey[1] > 192, "mean grey, dark and light: {grey:?}");
    // What the checks above would not miss.
    let bad = root.path().join("bad.html");
    fs::write(&bad, "<img src=\"http://nepenthe.invalid/a.png\"><script>console.error(1)</script>")
        .unwrap();
    let seen = visit(&browser, &bad, 1);
    assert!(!seen.console.is_empty() && !seen.requests.is_empty());
}

/// The CRC32C of RFC 3720, bit by bit from the polynomial's unreflected form: independent of the writer's.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            crc = if crc >> 31 == 1 { (crc << 1) ^ 0x1edc_6f41 } else { crc << 1 };
        }
    }
    (!crc).reverse_bits()
}

/// A protobuf field: its number, and its content where it has a length, else its 8-byte or variable number.
type Field = (u64, Vec<u8>, u64);

fn fields(mut bytes: &[u8]) -> Vec<Field> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (content, number) = match key & 7 {
            0 => (Vec::new(), varint(&mut bytes)),
            wire => {
                let length = match wire {
                    1 => 8,
                    5 => 4,
                    _ => varint(&mut bytes) as usize,
                };
                let (content, rest) = bytes.split_at(length);
                bytes = rest;
                (content.to_vec(), 0)
            }
        };
        out.push((key >> 3, content, number));
    }
    out
}

/// Reads an event file: of every record its step and its other fields, all checksums checked.
fn events(path: &Path) -> Vec<(u64, Vec<Field>)> {
    let bytes = fs::read(path).unwrap();
    let check = |part: &[u8], stored: &[u8]| {
        let crc = crc32c(part);
        let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked.to_le_bytes(), stored);
    };
    let (mut at, mut out) = (0, Vec::new());
    while at < bytes.len() {
        check(&bytes[at..at + 8], &bytes[at + 8..at + 12]);
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let (payload, end) = (&bytes[at + 12..at + 12 + length], at + 12 + length);
        check(payload, &bytes[end..end + 4]);
        let all = fields(payload);
        assert_eq!((all[0].0, all[0].1.len()), (1, 8), "wall time");
        let step = all.iter().find(|field| field.0 == 2).map_or(0, |field| field.2);
        out.push((step, all.into_iter().filter(|field| field.0 > 2).collect()));
        at = end + 4;
    }
    out
}

/// Returns the scalars of an event: tag and value.
fn scalars(event: &[Field]) -> Vec<(String, f32)> {
    let summaries = event.iter().filter(|field| field.0 == 5).flat_map(|field| fields(&field.1));
    let scalar = |value: Field| {
        let parts = fields(&value.1);
        let tag = String::from_utf8(parts[0].1.clone()).unwrap();
        (tag, f32::from_le_bytes(parts[1].1.as_slice().try_into().unwrap()))
    };
    summaries.map(scalar).collect()
}

#[test]
fn event_files_hold_what_the_log_holds_also_after_a_resume() {
    let root = TempDir::new().unwrap();
    let run = root.path().join("run");
    let dir = run.to_str().unwrap();
    let shrink = [
        "run.steps=2",
        "run.kl_accum_steps=1",
        "eval.every=1",
        "eval.max_new_tokens=2",
        "report.tensorboard=true",
        "eval.retrain=",
    ];
    let mut args = vec!["demo", "--device", "cpu", "--out", dir];
    shrink.iter().for_each(|set| args.extend(["--set", set]));
    let output = nepenthe(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let recipe = run.join("config.resolved.toml");
    let output = nepenthe(&[
        "unlearn",
        "--device",
        "cpu",
        "--config",
        recipe.to_str().unwrap(),
        "--out",
        dir,
        "--resume",
        "--set",
        "run.steps=3",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = fs::read_dir(run.join("tensorboard")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let all: Vec<_> = files.iter().map(|path| events(path)).collect();
    assert_eq!(all.len(), 2);
    for file in &all {
        assert_eq!((file[0].1[0].0, file[0].1[0].1.as_slice()), (3, b"brain.Event:2".as_slice()));
    }
    // The second file begins by taking back what others say of its steps.
    assert_eq!(
        (all[1][1].0, all[1][1].1[0].0, all[1][1].1[0].1.as_slice()),
        (2, 7, [8, 1].as_slice())
    );
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    for line in &lines {
        for tag in ["loss_tr", "loss_kl", "grad_norm", "clip_coef", "lr"] {
            let found = all.iter().flatten().find_map(|(step, event)| {
                let same = Some(*step) == line["global_step"].as_u64();
                let scalar = scalars(event).into_iter().find(|(name, _)| same && name == tag);
                scalar.map(|(_, value)| value)
            });
            assert_eq!(found, line[tag].as_f64().map(|value| value as f32), "{tag}");
        }
    }
    assert!(all[0].iter().any(|(_, event)| scalars(event).iter().any(|s| s.0 == "verbmem_forget")));
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(run.join("summary.json")).unwrap()).unwrap();
    assert!(summary["peak_memory"].is_null() || summary["peak_memory"].as_u64() > Some(1 << 20));
    assert!(summary["loss_formula"].as_str().unwrap().contains("log"));
}

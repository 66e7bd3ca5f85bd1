//! The table of docs/kernels.md: registers, shared memory, spills and occupancy of every kernel, from what ptxas said.
//!
//! `NEPENTHE_BLESS=1 cargo test --test kernels_table` regenerates it. Registers are the compiler's choice, so the table
//! names its version and is compared with that version alone; with any other one, names and spills are.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use nepenthe::backend::gpu::dynamic_shared;
use nepenthe::backend::gpu::images::{IMAGES, Image, Kernel, NVCC_VERSION, WHY_EMPTY};

/// The lines around the generated part.
const BEGIN: &str = "<!-- begin: written by tests/kernels_table.rs -->";
const END: &str = "<!-- end -->";
/// The head width at which kernels for every width are shown.
const WIDTH: usize = 128;

/// Resources of a multiprocessor: CUDA C++ Programming Guide, technical specifications per compute capability. Both have
/// 65536 registers and room for 64 warps and 32 blocks.
struct Processor {
    name: &'static str,
    /// Shared memory in bytes.
    shared: u32,
}

const PROCESSORS: [Processor; 2] = [
    Processor { name: "sm_80", shared: 164 * 1024 },
    Processor { name: "sm_90a", shared: 228 * 1024 },
];

/// Report of ptxas on a kernel for one architecture, bytes but for the registers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Usage {
    registers: u32,
    shared: u32,
    stack: u32,
    /// Stores and loads together.
    spills: u32,
}

/// Warps that a processor can hold, and what keeps it from holding more.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Occupancy {
    warps: u32,
    limit: &'static str,
}

/// Reads the number in front of `unit`, 0 where the line has none.
fn before(line: &str, unit: &str) -> u32 {
    let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let unit: Vec<&str> = unit.split(' ').collect();
    let at = (1..words.len()).find(|&at| words[at..].starts_with(&unit));
    at.map_or(0, |at| words[at - 1].parse().unwrap())
}

/// Reads a log of `ptxas -v`: usage by architecture and kernel.
fn parse(log: &str) -> BTreeMap<(String, String), Usage> {
    let mut found: BTreeMap<_, Usage> = BTreeMap::new();
    let mut key = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let (kernel, rest) = rest.split_once('\'').unwrap();
            let target = rest.split('\'').nth(1).unwrap();
            key = Some((target.to_owned(), kernel.to_owned()));
        }
        let Some(usage) = key.clone().map(|key| found.entry(key).or_default()) else { continue };
        if line.contains("bytes stack frame") {
            usage.stack = before(line, "bytes stack frame");
            usage.spills = before(line, "bytes spill stores") + before(line, "bytes spill loads");
        }
        if line.contains(" registers") {
            usage.registers = before(line, "registers");
            usage.shared = before(line, "bytes smem");
        }
    }
    found
}

/// Counts the warps of blocks of `threads` that a processor holds at once, as NVIDIA's occupancy calculator does.
fn occupancy(processor: &Processor, threads: u32, registers: u32, shared: u32) -> Occupancy {
    let warps = threads.div_ceil(32);
    // Registers go to a warp by 256, and a processor's four quarters each hold whole warps.
    let by_registers = 65536 / (registers * 32).next_multiple_of(256) / 4 * 4 / warps;
    // Shared memory goes to a block by 128 bytes; the system takes 1 KiB of each block's.
    let by_shared = processor.shared / (shared.next_multiple_of(128) + 1024);
    // The order says which of several equal limits is named.
    let limits =
        [(64 / warps, "warps"), (32, "blocks"), (by_registers, "registers"), (by_shared, "shared")];
    let (blocks, limit) = limits.into_iter().min_by_key(|(blocks, _)| *blocks).unwrap();
    Occupancy { warps: blocks * warps, limit }
}

/// A kernel's line of the table, and its occupancy by processor.
fn row(image: &Image, at: usize) -> (String, [Option<Occupancy>; 2]) {
    let usages = parse(image.log);
    let Kernel { name: kernel, threads, dynamic: uses, .. } = image.kernels[at];
    let dynamic = dynamic_shared(kernel, WIDTH);
    assert_eq!(dynamic > 0, uses, "{kernel}: dynamic shared memory, host and kernel");
    let usage = PROCESSORS.each_ref().map(|p| {
        let known = image.architectures().contains(&p.name);
        known.then(|| (p, usages[&(p.name.to_owned(), kernel.to_owned())]))
    });
    let held =
        usage.map(|of| of.map(|(p, u)| occupancy(p, threads, u.registers, u.shared + dynamic)));
    let show =
        |text: [Option<String>; 2]| text.map(|text| text.unwrap_or("-".to_owned())).join(" | ");
    // All architectures compile the same arrays.
    let fixed = usage.iter().flatten().map(|(_, u)| u.shared).max().unwrap();
    let line = format!(
        "| `{kernel}` | {} | {threads} | {} | {fixed} | {dynamic} | {} | {} |",
        image.file,
        show(usage.map(|of| of.map(|(_, u)| u.registers.to_string()))),
        show(usage.map(|of| of.map(|(_, u)| (u.spills + u.stack).to_string()))),
        show(held.map(|of| of.map(|held| format!("{} {}", held.warps, held.limit)))),
    );
    (line, held)
}

/// Writes the generated part: the version, a line a file, a line a kernel.
fn render() -> String {
    let mut kernels = String::from(
        "| kernel | file | threads | registers sm_80 | sm_90a | static shared | dynamic shared | spilled sm_80 | sm_90a | warps sm_80 | sm_90a |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut files = String::from(
        "| file | contents | kernels | warps of 64, sm_80 | warps of 64, sm_90a | limited by |\n|---|---|---|---|---|---|\n",
    );
    for image in IMAGES {
        let rows: Vec<_> = (0..image.kernels.len()).map(|at| row(image, at)).collect();
        rows.iter().for_each(|(line, _)| writeln!(kernels, "{line}").unwrap());
        let range = |side: usize| {
            let warps = rows.iter().filter_map(|(_, held)| held[side].map(|held| held.warps));
            match (warps.clone().min(), warps.max()) {
                (Some(low), Some(high)) if low == high => low.to_string(),
                (Some(low), Some(high)) => format!("{low} to {high}"),
                _ => "-".to_owned(),
            }
        };
        let mut limits: Vec<&str> = rows
            .iter()
            .flat_map(|(_, held)| held.iter().flatten().map(|held| held.limit))
            .collect();
        limits.sort_unstable();
        limits.dedup();
        writeln!(
            files,
            "| {} | {} | {} | {} | {} | {} |",
            image.file,
            title(image.file),
            rows.len(),
            range(0),
            range(1),
            limits.join(", ")
        )
        .unwrap();
    }
    let version = NVCC_VERSION.unwrap_or_default();
    format!("nvcc {version}, {} kernels.\n\n{files}\n{kernels}", names(&kernels).len())
}

/// Returns the title of a file of kernels/: its leading comment up to the first period, colon or semicolon.
fn title(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let comment = text.lines().map_while(|line| line.strip_prefix("// ")).collect::<Vec<_>>();
    let comment = comment.join(" ") + " ";
    let end = [". ", ": ", "; "].iter().filter_map(|end| comment.find(end)).min();
    let end = end.unwrap_or_else(|| panic!("{file}: no title in its leading comment"));
    comment[..end].to_owned()
}

/// Reads the kernels that the lines of a table name.
fn names(table: &str) -> Vec<&str> {
    table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.md")
}

/// Cuts the document into what stands before, between and behind the two marks.
fn cut(text: &str) -> [&str; 3] {
    let (before, rest) = text.split_once(BEGIN).expect("docs/kernels.md has no begin mark");
    let (table, after) = rest.split_once(END).expect("docs/kernels.md has no end mark");
    [before, table, after]
}

#[test]
fn the_committed_table_is_that_of_this_build() {
    if IMAGES.is_empty() {
        let required = std::env::var("NEPENTHE_REQUIRE_NVCC").is_ok_and(|value| value != "0");
        assert!(
            !required,
            "NEPENTHE_REQUIRE_NVCC is set, but this build has no kernels: {WHY_EMPTY}"
        );
        eprintln!("skipped: {WHY_EMPTY}");
        return;
    }
    let text = std::fs::read_to_string(document()).unwrap();
    let [before, committed, after] = cut(&text);
    let fresh = render();
    if std::env::var_os("NEPENTHE_BLESS").is_some() {
        let blessed = format!("{before}{BEGIN}\n{fresh}{END}{after}");
        std::fs::write(document(), blessed).unwrap();
        return;
    }
    for image in IMAGES {
        assert_eq!(image.spills(), [""; 0], "{}: spills or a stack frame", image.file);
    }
    let again = "NEPENTHE_BLESS=1 cargo test --test kernels_table regenerates the table";
    let [listed, built] = [committed, fresh.as_str()].map(names);
    let missing = |from: &[&str], of: &[&str]| {
        of.iter()
            .filter(|name| !from.contains(name))
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(missing(&listed, &built), [""; 0], "kernels that the table lacks; {again}");
    assert_eq!(missing(&built, &listed), [""; 0], "kernels that only the table has; {again}");
    let version = committed.trim().strip_prefix("nvcc ").and_then(|rest| rest.split(',').next());
    if version != NVCC_VERSION {
        eprintln!(
            "names and spills compared alone: the table is of nvcc {version:?}, this build of {NVCC_VERSION:?}"
        );
        return;
    }
    let (committed, fresh) = (committed.trim(), fresh.trim());
    for (old, new) in committed.lines().zip(fresh.lines()) {
        assert_eq!(old, new, "the table has changed; {again}");
    }
    assert_eq!(committed, fresh, "the table has changed; {again}");
}

#[test]
fn a_log_gives_usage_by_architecture_and_kernel() {
    let log = "ptxas info    : Compiling entry function 'k' for 'sm_80'\n\
               ptxas info    : Function properties for k\n    \
               8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
               ptxas info    : Used 40 registers, used 1 barriers, 64 bytes smem, 396 bytes cmem[0]\n\
               ptxas info    : Compiling entry function 'k' for 'sm_90a'\n    \
               0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
               ptxas info    : Used 17 registers, used 0 barriers\n";
    let usages = parse(log);
    let of = |target: &str| usages[&(target.to_owned(), "k".to_owned())];
    assert_eq!(of("sm_80"), Usage { registers: 40, shared: 64, stack: 8, spills: 16 });
    assert_eq!(of("sm_90a"), Usage { registers: 17, ..Usage::default() });
}

#[test]
fn occupancy_is_the_smallest_of_four_limits() {
    let [old, new] = &PROCESSORS;
    let of = |p, threads, registers, shared| {
        let held = occupancy(p, threads, registers, shared);
        (held.warps, held.limit)
    };
    // The examples of NVIDIA's calculator: 32 registers fill a processor, 33 take 40 each.
    assert_eq!(of(old, 256, 32, 0), (64, "warps"));
    assert_eq!(of(old, 256, 33, 0), (48, "registers"));
    assert_eq!(of(old, 256, 255, 0), (8, "registers"));
    assert_eq!(of(old, 32, 16, 0), (32, "blocks"));
    // 164 KiB hold one block of 99 KiB and its own KiB, 228 KiB two.
    assert_eq!(of(old, 128, 64, 99 * 1024), (4, "shared"));
    assert_eq!(of(new, 128, 64, 99 * 1024), (8, "shared"));
}

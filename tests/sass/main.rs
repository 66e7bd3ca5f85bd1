//! Machine code of the kernels of compute capability 9.0: no fence of the whole GPU, no invalidation of the L1 and no
//! spill in a hot loop, and exponentials that run while products do. And the table of docs/sass.md.
//!
//! `NEPENTHE_BLESS=1 cargo test --release --test sass` regenerates the table. Needs nvdisasm and cuobjdump, which
//! scripts/install-nvcc.sh installs beside nvcc. The table is ptxas's choice like that of docs/kernels.md: with a compiler of
//! another version only the checks of hot loops apply.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod listing;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use listing::{Figures, read};
use nepenthe::backend::gpu::images::{IMAGES, Image, NVCC_VERSION, WHY_EMPTY};

/// The lines around the generated part.
const BEGIN: &str = "<!-- begin: written by tests/sass -->";
const END: &str = "<!-- end -->";
/// The kernels as they were at commit 631e911, by nvcc 13.0.88: a line each, its name and [`Figures::fields`].
const BEFORE: &str = include_str!("before.txt");
/// Names a folder of cubins whose lines, as in before.txt, `prints_the_lines_of_cubins` prints.
const CUBINS: &str = "NEPENTHE_CUBINS";

/// Finds a program of the CUDA toolkit: next to the nvcc that build.rs would take, or in the PATH.
fn tool(name: &str) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cuda/nvidia/cu13/bin");
    let path = variable("PATH").unwrap_or_default();
    homes
        .map(|home| home.join("bin"))
        .chain([installed])
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Runs a program in `folder` and returns what it prints.
fn run(program: &Path, folder: &Path, arguments: &[&str]) -> String {
    let result = Command::new(program).current_dir(folder).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "{} {arguments:?}: {text}", program.display());
    String::from_utf8(result.stdout).unwrap()
}

/// Counts in all cubins of a folder, by kernel.
fn measure(nvdisasm: &Path, folder: &Path) -> BTreeMap<String, Figures> {
    let cubins: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "cubin"))
        .collect();
    assert!(!cubins.is_empty(), "{}: no .cubin file", folder.display());
    let mut all = BTreeMap::new();
    for cubin in cubins {
        let text = run(nvdisasm, folder, &["-c", cubin.to_str().unwrap()]);
        for listing in read(&text) {
            let figures = listing.figures();
            let figures = figures.unwrap_or_else(|| panic!("{}: no loop", listing.kernel));
            all.insert(listing.kernel, figures);
        }
    }
    all
}

/// Counts in this build's kernels for compute capability 9.0 alone; `None`, said why, where that is impossible here.
fn measured() -> Option<BTreeMap<String, Figures>> {
    let required = std::env::var("NEPENTHE_REQUIRE_NVCC").is_ok_and(|value| value != "0");
    let skip = |why: &str| {
        assert!(!required, "NEPENTHE_REQUIRE_NVCC is set, but {why}");
        eprintln!("skipped: {why}");
    };
    if IMAGES.is_empty() {
        skip(WHY_EMPTY);
        return None;
    }
    let (Some(nvdisasm), Some(cuobjdump)) = (tool("nvdisasm"), tool("cuobjdump")) else {
        skip("there is no nvdisasm or no cuobjdump; scripts/install-nvcc.sh installs both");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    for image in IMAGES.iter().filter(|image| image.sm90) {
        let name = image.file.replace('/', "_");
        let fatbin = folder.path().join(format!("{name}.fatbin"));
        std::fs::write(&fatbin, image.fatbin).unwrap();
        run(&cuobjdump, folder.path(), &["-xelf", "all", fatbin.to_str().unwrap()]);
    }
    let all = measure(&nvdisasm, folder.path());
    let kernels = |image: &'static Image| image.kernels.iter().map(|kernel| kernel.name);
    for name in IMAGES.iter().filter(|image| image.sm90).flat_map(kernels) {
        assert!(all.contains_key(name), "{name}: not in what cuobjdump extracts");
    }
    Some(all)
}

/// Reads before.txt.
fn before() -> BTreeMap<String, Figures> {
    let line = |line: &str| {
        let (kernel, fields) = line.split_once(' ').unwrap();
        let fields: Vec<usize> = fields.split(' ').map(|field| field.parse().unwrap()).collect();
        (kernel.to_owned(), Figures::from_fields(fields.try_into().unwrap()))
    };
    BEFORE.lines().map(line).collect()
}

/// Writes the generated part of docs/sass.md.
fn render(now: &BTreeMap<String, Figures>) -> String {
    let before = before();
    let mut text = format!(
        "nvcc {}.\n\n\
         | kernel | instructions | hot loop | GPU fences | in the loop | L1 flushes | in the loop | regions | divisions | EX2 overlapped |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
        NVCC_VERSION.unwrap_or_default(),
    );
    for (kernel, new) in now {
        let old = before.get(kernel);
        let cell = |field: fn(&Figures) -> String| {
            let (old, new) = (old.map(field), field(new));
            match old {
                Some(old) if old != new => format!("{old} -> {new}"),
                _ => new,
            }
        };
        let cells = [
            cell(|of| of.instructions.to_string()),
            cell(|of| of.hot.to_string()),
            cell(|of| of.fences.to_string()),
            cell(|of| of.hot_fences.to_string()),
            cell(|of| of.flushes.to_string()),
            cell(|of| of.hot_flushes.to_string()),
            cell(|of| of.regions.to_string()),
            cell(|of| (of.divisions / 2).to_string()),
            cell(|of| match of.exponentials {
                0 => "-".to_owned(),
                all => format!("{}/{all}", of.overlapped),
            }),
        ];
        writeln!(text, "| `{kernel}` | {} |", cells.join(" | ")).unwrap();
    }
    text
}

#[test]
fn hot_loops_have_no_fence_no_flush_no_spill_and_overlap_their_exponentials() {
    let Some(all) = measured() else { return };
    for (kernel, of) in &all {
        assert_eq!(of.fences, 0, "{kernel}: a fence of the whole GPU");
        assert_eq!(of.hot_flushes, 0, "{kernel}: invalidates the L1 in its hot loop");
        assert_eq!(of.local, 0, "{kernel}: local memory");
        assert_eq!(of.divisions, 0, "{kernel}: divides between its products and their results");
        assert_eq!(of.overlapped, of.exponentials, "{kernel}: exponentials behind the products");
        assert_eq!(of.exponentials > 0, kernel.starts_with("attention"), "{kernel}: exponentials");
    }
}

#[test]
fn the_committed_table_is_that_of_this_build() {
    let Some(all) = measured() else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sass.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("docs/sass.md has no begin mark");
    let (committed, tail) = rest.split_once(END).expect("docs/sass.md has no end mark");
    let fresh = render(&all);
    if std::env::var_os("NEPENTHE_BLESS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}\n{fresh}{END}{tail}")).unwrap();
        return;
    }
    let version = committed.trim().strip_prefix("nvcc ").and_then(|rest| rest.split(".\n").next());
    if version != NVCC_VERSION {
        eprintln!("not compared: the table is of nvcc {version:?}, this build of {NVCC_VERSION:?}");
        return;
    }
    let again = "NEPENTHE_BLESS=1 cargo test --release --test sass regenerates the table";
    assert_eq!(committed.trim(), fresh.trim(), "{again}");
}

/// Where before.txt is from: `NEPENTHE_CUBINS=FOLDER cargo test --release --test sass -- --ignored --nocapture`.
#[test]
#[ignore = "prints the lines of other kernels' cubins, those of an older commit"]
fn prints_the_lines_of_cubins() {
    let folder = PathBuf::from(std::env::var_os(CUBINS).expect("NEPENTHE_CUBINS names no folder"));
    let nvdisasm = tool("nvdisasm").expect("there is no nvdisasm");
    for (kernel, figures) in measure(&nvdisasm, &folder) {
        println!("{kernel} {}", figures.fields().map(|field| field.to_string()).join(" "));
    }
}

#[test]
fn a_listing_gives_the_figures_of_its_hot_loop() {
    let text = "\t.section\t.text.k,\"ax\",@progbits\n.text.k:\n\
        .L_x_1:\n /*0000*/  MEMBAR.ALL.GPU ;\n\
        .L_x_2:\n /*0010*/  HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;\n\
        /*0020*/  @P0 MUFU.EX2 R1, R2 ;\n /*0030*/  CCTL.IVALL ;\n\
        /*0040*/  WARPGROUP.DEPBAR.LE gsb0, 0x1 ;\n /*0050*/  MUFU.EX2 R1, R2 ;\n\
        /*0060*/  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\n /*0070*/  MUFU.EX2 R1, R2 ;\n\
        /*0080*/  @!P1 BRA `(.L_x_2) ;\n /*0090*/  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\n\
        /*00a0*/  IMAD.HI.U32 R1, R2, R3, R4 ;\n /*00b0*/  SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R4], R5 ;\n\
        /*00c0*/  IMAD.HI.U32 R1, R2, R3, R4 ;\n /*00d0*/  @P2 BRA `(.L_x_1) ;\n\
        /*00e0*/  @P2 BRA `(.L_x_3) ;\n.L_x_3:\n /*00f0*/  STL [R1], R2 ;\n\
        \t.section\t.nv.info\n /*0000*/  EXIT ;\n";
    let all = read(text);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].kernel, "k");
    let wanted = Figures {
        instructions: 16,
        hot: 8,
        fences: 1,
        hot_fences: 0,
        flushes: 1,
        hot_flushes: 1,
        local: 1,
        regions: 0,
        divisions: 1,
        exponentials: 3,
        overlapped: 2,
    };
    assert_eq!(all[0].figures(), Some(wanted));
    assert_eq!(Figures::from_fields(wanted.fields()), wanted);
}

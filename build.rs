//! Compiles kernels/*.cu into fatbins and writes the table that `src/backend/gpu/images.rs` includes.
//!
//! A machine without CUDA, or without a C++ compiler for nvcc to drive, gets an empty table and one warning: a
//! build for the CPU needs neither. A kernel that a working nvcc refuses is a build error with nvcc's text.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SM90: &str = "arch=compute_90a,code=sm_90a";
const TARGETS: [&str; 3] = ["arch=compute_80,code=sm_80", SM90, "arch=compute_80,code=compute_80"];

/// Names a folder with kernels of the user's own, compiled like those of kernels/.
const EXTRA: &str = "NEPENTHE_EXTRA_KERNELS";

struct Compiled {
    /// Unique among all, and an identifier.
    name: String,
    /// The source, from kernels/ on.
    file: String,
    /// Whether its code is for sm_90a alone.
    sm90: bool,
    kernels: Vec<Kernel>,
}

/// An entry point.
struct Kernel {
    name: String,
    /// Its launch bound; 0 for none.
    threads: u32,
    /// Whether it uses dynamic shared memory.
    dynamic: bool,
    /// Whether its code for sm_90a waits for the kernels before it by itself.
    waits: bool,
}

fn main() {
    // `.cuda` cannot be watched: a watched path that does not exist makes cargo rebuild every time. The script that
    // fills it touches build.rs instead.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=tests/simulator");
    for name in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
        "NVCC_CCBIN",
        "CXX",
        "NEPENTHE_NVCC",
        "NEPENTHE_REQUIRE_NVCC",
        EXTRA,
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(variable("OUT_DIR").unwrap_or_default());
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR").unwrap_or_default());
    println!("cargo:rustc-env=NEPENTHE_COMMIT={}", commit(&root).unwrap_or("unknown".to_string()));
    simulator(&root, &out);
    let table = match working_nvcc(&root, &out) {
        Ok((nvcc, version)) => {
            let kernels = kernel_sources(&root).and_then(|files| {
                if files.is_empty() {
                    return Err("kernels/: no .cu file".to_string());
                }
                compile_all(&nvcc, &files, &out)
            });
            match kernels {
                Ok(kernels) => render(&kernels, &out, Some(&version), ""),
                Err(text) => fail(&text),
            }
        }
        Err(why) => {
            if variable("NEPENTHE_REQUIRE_NVCC").is_some_and(|value| value != "0") {
                fail(&format!("NEPENTHE_REQUIRE_NVCC is set, but {why}"));
            }
            println!("cargo:warning=building without GPU kernels: {why}");
            render(&[], &out, None, &why)
        }
    };
    if let Err(cause) = fs::write(out.join("images.rs"), table) {
        fail(&format!("{}: cannot write: {cause}", out.join("images.rs").display()));
    }
}

/// Returns the commit of this checkout, where it is one and git can say.
fn commit(root: &Path) -> Option<String> {
    // A source archive inside somebody else's repository is not at its commit.
    if !root.join(".git").exists() {
        return None;
    }
    let git = |arguments: &[&str]| {
        let result = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        let text = String::from_utf8(result.stdout).ok()?;
        result.status.success().then(|| text.trim().to_string())
    };
    let head = root.join(git(&["rev-parse", "--git-path", "HEAD"])?);
    println!("cargo:rerun-if-changed={}", head.display());
    git(&["rev-parse", "--short", "HEAD"])
}

/// Compiles kernels/sim/ and every kernel with a C++ compiler into one library, for the feature `sim`.
///
/// A machine without such a compiler gets none, and the tests that need it say why they are skipped.
fn simulator(root: &Path, out: &Path) {
    let (library, why) = match build_simulator(root, out) {
        Ok(library) => (library.display().to_string(), String::new()),
        Err(why) => (String::new(), why),
    };
    if !why.is_empty() && variable("CARGO_FEATURE_SIM").is_some() {
        println!("cargo:warning=building without the simulator: {why}");
    }
    println!("cargo:rustc-env=NEPENTHE_SIM_LIBRARY={library}");
    println!("cargo:rustc-env=NEPENTHE_SIM_WHY_NONE={why}");
}

fn build_simulator(root: &Path, out: &Path) -> Result<PathBuf, String> {
    if variable("CARGO_FEATURE_SIM").is_none() {
        return Err("the feature sim is off".to_string());
    }
    if variable("CARGO_CFG_TARGET_ARCH").as_deref() != Some("x86_64") {
        return Err("it switches threads in x86-64 assembly".to_string());
    }
    let compiler = match variable("CXX") {
        Some(named) => named,
        None => ["g++", "c++"]
            .into_iter()
            .find(|name| in_path(name).is_some())
            .ok_or("no C++ compiler (g++) found")?
            .to_string(),
    };
    let kernels = root.join("kernels");
    let mut files = kernel_sources(root)?;
    // The kernels of the simulator's own tests.
    files.extend(sources(&root.join("tests/simulator"), "cu")?);
    files.extend(sources(&kernels.join("sim"), "cpp")?);
    let threads = variable("NUM_JOBS").and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize).max(1);
    let mut objects = Vec::new();
    for batch in files.chunks(threads) {
        std::thread::scope(|scope| {
            let running: Vec<_> = batch
                .iter()
                .map(|file| {
                    let (compiler, kernels) = (&compiler, &kernels);
                    scope.spawn(move || {
                        let object = out.join(format!("sim_{}.o", unit(file)));
                        let mut command = Command::new(compiler);
                        command.args(simulator_flags(file)).arg("-I").arg(kernels);
                        run(command.arg("-c").arg("-o").arg(&object).arg(file)).map(|()| object)
                    })
                })
                .collect();
            for handle in running {
                let object = handle.join().map_err(|_| "a compiler thread panicked".to_string())?;
                // The compiler works and refuses a kernel: an error, not a machine without a compiler.
                objects.push(object.unwrap_or_else(|text| fail(&text)));
            }
            Ok::<(), String>(())
        })?;
    }
    let library = out.join("libnepenthe_sim.so");
    run(Command::new(&compiler)
        .args(["-shared", "-Wl,-Bsymbolic", "-o"])
        .arg(&library)
        .args(&objects)
        .arg("-lpthread"))?;
    Ok(library)
}

/// Returns the flags for one file of the simulator's library.
fn simulator_flags(file: &Path) -> Vec<&'static str> {
    // The red zone off: a fiber's stack is switched in the middle of a leaf function.
    let mut flags = vec!["-x", "c++", "-std=c++17", "-DSIM", "-g1", "-fPIC", "-march=native"];
    flags.extend(["-mno-red-zone", "-Wno-unknown-pragmas", "-Wno-psabi"]);
    if file.extension().is_some_and(|ext| ext == "cu") {
        // Contraction off: the *_rn intrinsics are plain operators there and must not fuse. Aliasing off: kernels
        // view packs as vectors, as nvcc lets them.
        flags.extend(["-O2", "-ffp-contract=off", "-fno-strict-aliasing"]);
        // A call before each access to memory; kernels/sim/access.cpp answers it.
        flags.extend(["-fsanitize=kernel-address,alignment,bounds"]);
        flags.extend(["--param", "asan-instrumentation-with-call-threshold=0"]);
        flags.extend(["--param", "asan-stack=0", "--param", "asan-globals=0"]);
        flags.push("-fno-sanitize-address-use-after-scope");
    } else {
        flags.extend(["-O3", "-fno-semantic-interposition"]);
        let tensor = file.file_stem().is_some_and(|stem| stem == "tensor" || stem == "warpgroup");
        flags.push(if tensor { "-ffp-contract=fast" } else { "-ffp-contract=off" });
    }
    flags
}

/// Runs a compiler; fails with what it says.
fn run(command: &mut Command) -> Result<(), String> {
    let result = command.output().map_err(|cause| format!("{command:?}: cannot run: {cause}"))?;
    if result.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&result.stderr)))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn fail(text: &str) -> ! {
    eprintln!("{text}");
    std::process::exit(1)
}

/// Returns an nvcc that compiles for every target here, and its version; else why there is none.
fn working_nvcc(root: &Path, out: &Path) -> Result<(PathBuf, String), String> {
    if variable("CARGO_FEATURE_CUDA").is_none() {
        return Err("the feature cuda is off".to_string());
    }
    if variable("NEPENTHE_NVCC").is_some_and(|value| value == "off") {
        return Err("NEPENTHE_NVCC is off".to_string());
    }
    let nvcc = find_nvcc(root)?;
    let version = Command::new(&nvcc)
        .arg("--version")
        .output()
        .map_err(|cause| format!("{}: cannot run: {cause}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    let version = text
        .split_once(", V")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .ok_or_else(|| format!("{}: --version names no version", nvcc.display()))?
        .to_string();
    // nvcc drives a host compiler even for device code. One trial tells that apart from a broken kernel.
    let trial = out.join("trial.cu");
    fs::write(&trial, "#include <cuda_bf16.h>\nextern \"C\" __global__ void trial() {}\n")
        .map_err(|cause| format!("{}: cannot write: {cause}", trial.display()))?;
    if let Err(text) = compile(&nvcc, &trial, out) {
        if text.contains("host compiler") || text.contains("g++") {
            return Err(format!("{} finds no C++ compiler (g++) to drive", nvcc.display()));
        }
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| {
                line.contains("error") || line.contains("fatal") || line.contains("not found")
            })
            .or_else(|| text.lines().nth(1))
            .unwrap_or("no message");
        return Err(format!("{} {version} cannot compile here: {line}", nvcc.display()));
    }
    println!("cargo:rerun-if-changed={}", nvcc.display());
    Ok((nvcc, version))
}

fn find_nvcc(root: &Path) -> Result<PathBuf, String> {
    let program = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
    // A named compiler that is not there must not be replaced by another one in silence.
    if let Some(named) = variable("NVCC") {
        let path = PathBuf::from(&named);
        let found = if path.components().count() > 1 {
            path.is_file().then_some(path)
        } else {
            in_path(&named)
        };
        return found.ok_or_else(|| format!("NVCC names {named}, which does not exist"));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    homes
        .map(|home| PathBuf::from(home).join("bin").join(program))
        .find(|path| path.is_file())
        .or_else(|| in_path(program))
        .or_else(|| {
            let installed = root.join(".cuda/nvidia/cu13/bin").join(program);
            installed.is_file().then_some(installed)
        })
        .ok_or_else(|| "no nvcc found; scripts/install-nvcc.sh installs one".to_string())
}

fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Names what is made of a source file: its stem, behind that of its folder where that is sm90.
fn unit(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    if is_sm90(file) {
        format!("sm90_{stem}")
    } else if is_extra(file) {
        // Any file name becomes an identifier.
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        format!("extra_{}", stem.chars().map(plain).collect::<String>())
    } else {
        stem.into_owned()
    }
}

fn is_extra(file: &Path) -> bool {
    variable(EXTRA).is_some_and(|folder| file.parent() == Some(Path::new(&folder)))
}

fn is_sm90(file: &Path) -> bool {
    file.parent().is_some_and(|folder| folder.ends_with("sm90"))
}

/// Returns the kernels for every device, those that only sm_90a has the instructions for, and the user's own.
fn kernel_sources(root: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = sources(&root.join("kernels"), "cu")?;
    files.extend(sources(&root.join("kernels/sm90"), "cu")?);
    if let Some(folder) = variable(EXTRA) {
        println!("cargo:rerun-if-changed={folder}");
        let own = sources(Path::new(&folder), "cu").map_err(|text| format!("{EXTRA}: {text}"))?;
        if own.is_empty() {
            return Err(format!("{EXTRA}: {folder}: no .cu file"));
        }
        files.extend(own);
    }
    Ok(files)
}

fn sources(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder)
        .map_err(|cause| format!("{}: cannot read: {cause}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == extension))
        .collect();
    files.sort();
    Ok(files)
}

/// Compiles `files` on as many threads as cargo grants; keeps their order.
fn compile_all(nvcc: &Path, files: &[PathBuf], out: &Path) -> Result<Vec<Compiled>, String> {
    let threads = variable("NUM_JOBS").and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize).max(1);
    let mut all = Vec::with_capacity(files.len());
    for batch in files.chunks(threads) {
        std::thread::scope(|scope| {
            let running: Vec<_> =
                batch.iter().map(|file| scope.spawn(move || compile(nvcc, file, out))).collect();
            for handle in running {
                all.push(handle.join().map_err(|_| "a compiler thread panicked".to_string())??);
            }
            Ok::<(), String>(())
        })?;
    }
    Ok(all)
}

/// Compiles one file to OUT_DIR/NAME.fatbin, and keeps what ptxas says in OUT_DIR/NAME.log.
fn compile(nvcc: &Path, file: &Path, out: &Path) -> Result<Compiled, String> {
    let (name, sm90) = (unit(file), is_sm90(file));
    // The PTX is kept for the launch bounds, which ptxas does not report.
    let kept = out.join(format!("{name}.kept"));
    fs::create_dir_all(&kept)
        .map_err(|cause| format!("{}: cannot make: {cause}", kept.display()))?;
    let mut command = Command::new(nvcc);
    // A warning of the front end or of ptxas is an error. A spill is none, or an nvcc of another version that spills
    // could not build at all; tests look for those.
    command.args(["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v", "--fatbin"]);
    command.arg("--keep").arg("--keep-dir").arg(&kept);
    let targets = if sm90 { &[SM90] } else { &TARGETS[..] };
    for target in targets {
        command.args(["-gencode", target]);
    }
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR").unwrap_or_default());
    command.arg("-I").arg(root.join("kernels"));
    command.arg("-o").arg(out.join(format!("{name}.fatbin"))).arg(file);
    let result =
        command.output().map_err(|cause| format!("{}: cannot run: {cause}", nvcc.display()))?;
    let text = [result.stdout.as_slice(), result.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    // Not a warning to ptxas, but half of a kernel's speed: products that wait for one another.
    let serialized = text.contains("wgmma.mma_async instructions are serialized");
    if !result.status.success() || serialized {
        return Err(format!("{}: nvcc failed:\n{text}", file.display()));
    }
    // Times differ from run to run; without them equal sources give an equal log.
    let log: String = text
        .lines()
        .filter(|line| !line.contains("Compile time"))
        .flat_map(|l| [l, "\n"])
        .collect();
    let path = out.join(format!("{name}.log"));
    fs::write(&path, &log).map_err(|cause| format!("{}: cannot write: {cause}", path.display()))?;
    let mut names: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("Compiling entry function '")?.1.split('\'').next())
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut ptx = Vec::new();
    for path in sources(&kept, "ptx")? {
        let text = fs::read_to_string(&path)
            .map_err(|cause| format!("{}: cannot read: {cause}", path.display()))?;
        ptx.push(text);
    }
    let kernels = names
        .iter()
        .map(|name| {
            // One text a target; they differ in what only a later device has.
            let texts: Vec<&str> = ptx.iter().map(|text| entry(text, name)).collect();
            // The array behind ptx::dyn_smem(); its declaration may follow an entry point that does not use it.
            let uses = |line: &str| line.contains("dyn_smem_raw") && !line.contains(".extern");
            let any =
                |found: &dyn Fn(&str) -> bool| texts.iter().any(|text| text.lines().any(found));
            Kernel {
                name: name.to_string(),
                threads: texts.iter().map(|text| launch_bound(text)).max().unwrap_or(0),
                dynamic: any(&uses),
                waits: any(&|line| line.contains("griddepcontrol.wait")),
            }
        })
        .collect();
    // A second run must not read what this one kept.
    fs::remove_dir_all(&kept)
        .map_err(|cause| format!("{}: cannot remove: {cause}", kept.display()))?;
    let stem = file.file_name().unwrap_or_default().to_string_lossy();
    let file = match (sm90, is_extra(file)) {
        (true, _) => format!("sm90/{stem}"),
        (_, true) => format!("extra/{stem}"),
        _ => stem.into_owned(),
    };
    Ok(Compiled { name, file, sm90, kernels })
}

/// Cuts the text of an entry point out of PTX.
fn entry<'a>(ptx: &'a str, kernel: &str) -> &'a str {
    ptx.split(".entry ")
        .skip(1)
        .find(|text| text.split('(').next().is_some_and(|name| name.trim() == kernel))
        .unwrap_or_default()
}

/// Finds the most threads of a block of an entry point: `.maxntid X, Y, Z` before its body.
fn launch_bound(entry: &str) -> u32 {
    let head = entry.split('{').next().unwrap_or_default();
    let bound = head.split_once(".maxntid").map_or("", |(_, rest)| rest.trim_start());
    let digits = bound.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

fn render(images: &[Compiled], out: &Path, nvcc: Option<&str>, why: &str) -> String {
    let mut text = String::from("// Written by build.rs.\n");
    for image in images {
        // cuModuleLoadData reads the header of an image in 8-byte words, which include_bytes alone does not align.
        let _ = writeln!(
            text,
            "static {}: &Aligned<[u8]> = &Aligned(*include_bytes!({:?}));",
            image.name.to_uppercase(),
            out.join(format!("{}.fatbin", image.name)).display().to_string(),
        );
    }
    let _ = writeln!(text, "/// The images of this build, in the order of their names.");
    let _ = writeln!(text, "pub static IMAGES: &[Image] = &[");
    for image in images {
        let _ = writeln!(
            text,
            "    Image {{ file: {:?}, fatbin: &{}.0, sm90: {}, log: include_str!({:?}), kernels: &[",
            image.file,
            image.name.to_uppercase(),
            image.sm90,
            out.join(format!("{}.log", image.name)).display().to_string(),
        );
        for Kernel { name, threads, dynamic, waits } in &image.kernels {
            let fields = format!("threads: {threads}, dynamic: {dynamic}, waits: {waits}");
            let _ = writeln!(text, "        Kernel {{ name: {name:?}, {fields} }},");
        }
        let _ = writeln!(text, "    ] }},");
    }
    let _ = writeln!(text, "];");
    let _ = writeln!(
        text,
        "/// The version of the nvcc that compiled the images, where there are any."
    );
    let _ = writeln!(text, "pub static NVCC_VERSION: Option<&str> = {nvcc:?};");
    let _ = writeln!(text, "/// Why the table is empty; empty itself where it is not.");
    let _ = writeln!(text, "pub static WHY_EMPTY: &str = {why:?};");
    text
}

//! Bugs that were planted in tests/simulator/planted.cu: each is caught, each control passes.

use std::fmt::Write as _;

use super::{Args, Buffer, Driver, Launch, Timing, open, start};

const THREADS: usize = 128;

/// One kernel with one bug.
pub struct Plant {
    pub kernel: &'static str,
    bug: &'static str,
    /// Text that the report must have; none where the numbers are wrong and nothing else shows it.
    says: Option<&'static str>,
}

pub const fn plant(kernel: &'static str, bug: &'static str, says: &'static str) -> Plant {
    Plant { kernel, bug, says: if says.is_empty() { None } else { Some(says) } }
}

const CONTROLS: [&str; 5] = [
    "plant_exchange_none",
    "plant_warp_exchange_none",
    "plant_copy_none",
    "plant_tiles_none",
    "plant_collectives_none",
];

#[rustfmt::skip]
const PLANTS: [Plant; 31] = [
    plant("plant_exchange_no_barrier", "no barrier between write and read", "shared memory"),
    plant("plant_exchange_no_last_barrier", "no barrier between read and next write", "race: "),
    plant("plant_exchange_shared_outside", "shared memory, one element too far", "byte 512 of 512 bytes of dynamic shared memory"),
    plant("plant_warp_exchange_no_syncwarp", "no __syncwarp between write and read", "shared memory"),
    plant("plant_warp_exchange_array_outside", "static array, one element too far", "array index 128 is out of bounds"),
    plant("plant_copy_far_outside", "global read, 60 MB too far", "out of bounds"),
    plant("plant_copy_one_outside", "global read, one element too far", "byte 600 of an allocation of 600 bytes"),
    plant("plant_copy_before_start", "global read, one element too early", "out of bounds"),
    plant("plant_copy_write_outside", "global write, one element too far", "byte 1200 of an allocation of 1200 bytes"),
    plant("plant_copy_null", "null pointer", "no memory of the device"),
    plant("plant_copy_unaligned", "vector load off its alignment", "is not aligned to"),
    plant("plant_copy_unwritten", "output that nobody writes", ""),
    plant("plant_copy_read_unwritten", "read of what nobody wrote", "that nobody wrote"),
    plant("plant_tiles_no_barrier", "cp.async: no barrier behind the wait", "shared memory"),
    plant("plant_tiles_no_last_barrier", "cp.async: no barrier before the stage is used again", "race: overwrites"),
    plant("plant_tiles_weak_wait", "cp.async: waits for one group too few", "its wait has not been reached"),
    plant("plant_tiles_no_wait", "cp.async: no wait", "its wait has not been reached"),
    plant("plant_tiles_swizzle", "reader and writer swizzle differently", ""),
    plant("plant_tiles_copy_outside", "cp.async reads 16 bytes too far", "of an allocation of 6144 bytes"),
    plant("plant_tiles_copy_unaligned", "cp.async from an odd address", "cp.async: global address"),
    plant("plant_tiles_row_unaligned", "ldmatrix from an odd address", "ldmatrix: row address"),
    plant("plant_tiles_row_outside", "ldmatrix behind the shared memory", "ldmatrix out of bounds"),
    plant("plant_tiles_alignment", "relies on shared memory aligned to 512", ""),
    plant("plant_collectives_divergent", "half of a warp skips the barrier", "deadlock: "),
    plant("plant_collectives_exit", "a warp returns before the barrier", "deadlock: "),
    plant("plant_collectives_count", "barrier counts differ", "barrier 1: count"),
    plant("plant_collectives_deadlock", "two groups wait for one another", "deadlock: "),
    plant("plant_collectives_mask", "a lane outside the mask it names", "not in its own mask 0000ffff"),
    plant("plant_collectives_foreign_lane", "shuffle from a lane outside the mask", "which is not in mask"),
    plant("plant_collectives_split_warp", "lanes of a warp at two collectives", "divergent warp"),
    plant("plant_collectives_stack", "runaway recursion", "local variables"),
];

/// Result of a launch.
pub enum Outcome {
    Right,
    Wrong,
    Report(String),
}

/// The numbers 0, 1, 2, ... as bf16, exact up to 256.
fn input(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7 % 251) as f32).collect()
}

/// Launches a kernel on `driver` and compares what it wrote with what it should have.
fn outcome(driver: &dyn Driver, kernel: &'static str) -> Outcome {
    let kind = kernel.trim_start_matches("plant_");
    let (len, want, grid, shared): (usize, Vec<f32>, u32, u32) = if kind.starts_with("exchange") {
        let x = input(3 * THREADS);
        let sum = |t: usize| (0..3).map(|round| x[round * THREADS + (t + 33) % THREADS]).sum();
        (x.len(), (0..THREADS).map(sum).collect(), 1, 512)
    } else if kind.starts_with("warp_exchange") {
        let x = input(3 * THREADS);
        let from = |t: usize| t / 32 * 32 + (t + 5) % 32;
        let sum = |t: usize| (0..3).map(|round| x[round * THREADS + from(t)]).sum();
        (x.len(), (0..THREADS).map(sum).collect(), 1, 0)
    } else if kind.starts_with("copy") {
        (300, input(300), 3, 0)
    } else if kind.starts_with("tiles") {
        let x = input(3 * 1024);
        let sum = |t: usize| {
            let (lane, warp) = (t % 32, t / 32);
            let each = |tile: usize, i: usize| {
                let at = tile * 1024 + (8 * i + lane / 4) * 32 + 8 * warp + 2 * (lane % 4);
                x[at] + 3.0 * x[at + 1]
            };
            (0..3).map(|tile| (0..4).map(|i| each(tile, i)).sum::<f32>()).sum()
        };
        (x.len(), (0..THREADS).map(sum).collect(), 1, 2 * 32 * 64)
    } else {
        let x = input(THREADS);
        let sum = |t: usize| x[t] + x[t / 32 * 32..][..32].iter().sum::<f32>();
        (x.len(), (0..THREADS).map(sum).collect(), 1, 0)
    };
    let bits: Vec<u16> = input(len).iter().map(|x| (x.to_bits() >> 16) as u16).collect();
    let from = Buffer::of(driver, bytemuck::cast_slice(&bits));
    let out = Buffer::new(driver, 4 * want.len());
    let args = Args::new().ptr(from.at).ptr(out.at).u32(len as u32);
    let launch = Launch { kernel, grid: [grid, 1, 1], block: THREADS as u32, shared, args };
    match driver.launch(launch).and_then(|()| driver.sync()) {
        Err(error) => Outcome::Report(error.to_string()),
        // NaN, which unwritten memory holds, is not equal to anything.
        Ok(()) if out.floats() == want => Outcome::Right,
        Ok(()) => Outcome::Wrong,
    }
}

/// Runs kernels without a bug in every corner.
pub fn pass(controls: &[&'static str], outcome: impl Fn(Timing, &'static str) -> Option<Outcome>) {
    for timing in Timing::ALL {
        for kernel in controls {
            match outcome(timing, kernel) {
                None => return,
                Some(Outcome::Right) => {}
                Some(Outcome::Wrong) => panic!("{kernel}, {timing:?}: wrong numbers"),
                Some(Outcome::Report(text)) => panic!("{kernel}, {timing:?}: {text}"),
            }
        }
    }
}

/// Runs kernels with bugs in every corner, and compares what is caught with the table of docs/simulator.md. A report
/// must name a line of `file`.
pub fn judge(
    plants: &[Plant],
    file: &str,
    outcome: impl Fn(Timing, &'static str) -> Option<Outcome>,
) {
    let mut table = String::from(
        "| planted bug | rising, lazy | falling, lazy | rising, eager | falling, eager | random | moved by 128 |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut unsaid = Vec::new();
    for Plant { kernel, bug, says } in plants {
        let _ = write!(table, "| {bug} |");
        let mut caught = 0;
        for timing in Timing::ALL {
            let cell = match outcome(timing, kernel) {
                None => return,
                Some(Outcome::Right) => "-",
                Some(Outcome::Wrong) => "numbers",
                Some(Outcome::Report(text)) => {
                    let says = says.unwrap_or_default();
                    let named = format!("kernel {kernel}, block (");
                    for part in [says, named.as_str(), "thread (", file] {
                        if !text.contains(part) {
                            unsaid.push(format!("{kernel}, {timing:?}: no {part:?} in: {text}"));
                        }
                    }
                    "report"
                }
            };
            caught += usize::from(cell != "-");
            let _ = write!(table, " {cell} |");
        }
        table.push('\n');
        if caught == 0 {
            unsaid.push(format!("{kernel}: not caught"));
        }
    }
    assert!(unsaid.is_empty(), "{}\n{table}", unsaid.join("\n"));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/simulator.md");
    let manual = std::fs::read_to_string(path).unwrap();
    assert!(manual.contains(&table), "docs/simulator.md has another table than this run:\n{table}");
}

fn run(timing: Timing, kernel: &'static str) -> Option<Outcome> {
    open(timing).map(|driver| outcome(&*driver, kernel))
}

#[test]
fn controls_pass_in_every_corner() {
    pass(&CONTROLS, run);
}

#[test]
fn planted_bugs_are_caught_and_the_manual_says_where() {
    judge(&PLANTS, "planted.cu:", run);
}

#[test]
fn freed_memory_is_out_of_bounds() {
    let Some(driver) = open(Timing::ALL[0]) else { return };
    let driver: &dyn Driver = &*driver;
    let out = Buffer::new(driver, 4 * 128);
    let gone = Buffer::of(driver, &[0; 256]).at;
    let args = Args::new().ptr(gone).ptr(out.at).u32(128);
    let error = start(driver, "plant_copy_none", 128, 0, args).unwrap_err().to_string();
    assert!(error.contains("reads 2 bytes out of bounds"), "{error}");
    assert!(driver.upload(gone, &[0; 4]).is_err());
    assert!(driver.upload(out.at + 500, &[0; 16]).is_err());
}

#[test]
fn launches_on_several_threads_do_not_meet() {
    std::thread::scope(|scope| {
        for timing in Timing::ALL {
            scope.spawn(move || {
                let Some(driver) = open(timing) else { return };
                for _ in 0..20 {
                    assert!(matches!(outcome(&*driver, "plant_tiles_none"), Outcome::Right));
                    let Outcome::Report(text) = outcome(&*driver, "plant_copy_one_outside") else {
                        panic!("not caught")
                    };
                    assert!(text.contains("kernel plant_copy_one_outside"), "{text}");
                }
            });
        }
    });
}

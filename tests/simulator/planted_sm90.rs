//! Bugs that were planted in tests/simulator/planted_sm90.cu: each is caught, each control passes.

use super::instructions::small;
use super::planted::{Outcome, Plant, judge, pass, plant};
use super::sm90::{bits, matrix};
use super::{Args, Buffer, Driver, Launch, Matrix, Timing, open_sm90};

const CONTROLS: [&str; 2] = ["plant_product_none", "plant_pair_none"];

#[rustfmt::skip]
const PLANTS: [Plant; 22] = [
    plant("plant_product_no_full_wait", "multiplies before its stage is loaded", "its mbarrier"),
    plant("plant_product_no_empty_wait", "loads into a stage that is still read", ""),
    plant("plant_product_few_bytes", "expects fewer bytes than it loads", "bytes of bulk loads more than were expected"),
    plant("plant_product_many_bytes", "expects more bytes than it loads", "lacks 0 of 1 arrivals and 128 bytes"),
    plant("plant_product_few_arrivals", "a warp never releases its stages", "lacks 1 of 4 arrivals"),
    plant("plant_product_early_release", "releases a stage while products read it", ""),
    plant("plant_product_weak_wait", "waits for one group of products too few", ""),
    plant("plant_product_early_sums", "uses sums before the wait for them", ""),
    plant("plant_product_unnamed_sums", "waits for products and names other sums", ""),
    plant("plant_product_no_fence", "no wgmma.fence", "no wgmma_fence"),
    plant("plant_product_no_proxy_fence", "no fence.proxy.async before a bulk store", "with no fence_async"),
    plant("plant_product_no_init_fence", "no fence.mbarrier_init", "has no fence_mbar_init"),
    plant("plant_product_no_read_wait", "writes where a bulk store still reads", "race: "),
    plant("plant_product_no_last_read_wait", "exits where a bulk store still reads", "exits without a wait"),
    plant("plant_product_swapped", "lead and stride of a descriptor swapped", ""),
    plant("plant_product_alignment", "tile that relies on shared memory aligned to 1024", "multiple of 1024"),
    plant("plant_product_overwritten_bar", "writes over an mbarrier", "part of an mbarrier"),
    plant("plant_product_registers", "warpgroups ask for more registers than there are", "setmaxnreg: "),
    plant("plant_pair_no_peer_arrival", "cluster: no arrival at the other block's barrier", "lacks 4 of 8 arrivals"),
    plant("plant_pair_peer_not_awaited", "cluster: loads into the other block's stage while it is read", ""),
    plant("plant_pair_no_multicast", "cluster: keeps its half of a stage to itself", "deadlock: "),
    plant("plant_pair_no_last_sync", "cluster: exits while the other block needs it", "has exited"),
];

/// Multiplies 64 rows a block, and compares.
fn outcome(driver: &dyn Driver, kernel: &'static str) -> Outcome {
    let pair = kernel.starts_with("plant_pair");
    let (steps, blocks) = (5, if pair { 2 } else { 1 });
    let (rows, depth) = (64 * blocks, 64 * steps);
    let a = small(rows * depth);
    let b: Vec<f32> = small(depth * 128 + 3)[3..].to_vec();
    let left = Buffer::of(driver, bytemuck::cast_slice(&bits(&a)));
    let right = Buffer::of(driver, bytemuck::cast_slice(&bits(&b)));
    let out = Buffer::new(driver, rows * 128 * 4);
    let map = |matrix: Matrix| driver.tensor_map(&matrix).unwrap();
    let result = Matrix { pitch: 512, wide: true, ..matrix(&out, rows, 128, 64) };
    let args = Args::new()
        .map(map(matrix(&left, rows, depth, 64)))
        .map(map(matrix(&right, depth, 128, 64)))
        .map(map(result))
        .u32(steps as u32);
    let shared = 2 * 3 * 64 * 128 + 64 * 128 + 32 + 1024;
    let launch = Launch { kernel, grid: [blocks as u32, 1, 1], block: 384, shared, args };
    if let Err(error) = driver.launch(launch).and_then(|()| driver.sync()) {
        return Outcome::Report(error.to_string());
    }
    let right = out.floats().into_iter().enumerate().all(|(i, got)| {
        let (row, column) = (i / 128, i % 128);
        let sum: f32 = (0..depth).map(|k| a[row * depth + k] * b[k * 128 + column]).sum();
        got == sum
    });
    if right { Outcome::Right } else { Outcome::Wrong }
}

fn run(timing: Timing, kernel: &'static str) -> Option<Outcome> {
    open_sm90(timing).map(|driver| outcome(&*driver, kernel))
}

#[test]
fn controls_pass_in_every_corner() {
    pass(&CONTROLS, run);
}

#[test]
fn planted_bugs_are_caught_and_the_manual_says_where() {
    judge(&PLANTS, "planted_sm90.cu:", run);
}

//! Every function of kernels/sm90/ptx.cuh against a formula written from the PTX manual.

use super::instructions::small;
use super::{Args, Buffer, Driver, Launch, Matrix, Timing, open_sm90, start};

fn on_all(check: impl Fn(&dyn Driver)) {
    for timing in Timing::ALL {
        if let Some(driver) = open_sm90(timing) {
            check(&*driver);
        }
    }
}

/// Shared memory for `bytes` from the next multiple of 1024 on, and a barrier.
const fn room(bytes: u32) -> u32 {
    bytes + 1024 + 8
}

pub fn bits(x: &[f32]) -> Vec<u16> {
    x.iter().map(|x| (x.to_bits() >> 16) as u16).collect()
}

/// A matrix of bf16 on the device, row by row.
pub fn matrix(buffer: &Buffer<'_>, rows: usize, columns: usize, box_rows: usize) -> Matrix {
    Matrix { address: buffer.at, rows, columns, pitch: 2 * columns as u64, wide: false, box_rows }
}

/// Multiplies 64 x 64 and 64 x `n`; `outer_a` and `outer_b` say which of them lie with k as their slow index.
fn product(driver: &dyn Driver, kernel: &'static str, n: usize, outer_a: bool, outer_b: bool) {
    let a = small(64 * 64);
    let b: Vec<f32> = small(64 * n + 5)[5..].to_vec();
    let at_a = |m: usize, k: usize| if outer_a { a[k * 64 + m] } else { a[m * 64 + k] };
    let at_b = |k: usize, j: usize| if outer_b { b[k * n + j] } else { b[j * 64 + k] };
    let left = Buffer::of(driver, bytemuck::cast_slice(&bits(&a)));
    let right = Buffer::of(driver, bytemuck::cast_slice(&bits(&b)));
    let out = Buffer::new(driver, 64 * n * 4);
    let right_map = if outer_b { matrix(&right, 64, n, 64) } else { matrix(&right, n, 64, n) };
    let right_map = driver.tensor_map(&right_map).unwrap();
    let (args, start_at) = if kernel.contains("_rs_") {
        (Args::new().ptr(left.at), 0.0)
    } else {
        (Args::new().map(driver.tensor_map(&matrix(&left, 64, 64, 64)).unwrap()), 1.0)
    };
    let args = args.map(right_map).ptr(out.at);
    start(driver, kernel, 128, room((64 + n as u32) * 128), args).unwrap();
    for (i, got) in out.floats().into_iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let sum: f32 = (0..64).map(|k| at_a(row, k) * at_b(k, column)).sum();
        assert_eq!(got, start_at + sum, "{kernel}: row {row}, column {column}");
    }
}

#[test]
fn wgmma_adds_the_product_in_both_majors_of_both_operands() {
    on_all(|driver| {
        product(driver, "probe_wgmma_64_00", 64, false, false);
        product(driver, "probe_wgmma_64_01", 64, false, true);
        product(driver, "probe_wgmma_64_10", 64, true, false);
        product(driver, "probe_wgmma_64_11", 64, true, true);
        product(driver, "probe_wgmma_128_00", 128, false, false);
        product(driver, "probe_wgmma_128_11", 128, true, true);
        product(driver, "probe_wgmma_256_00", 256, false, false);
        product(driver, "probe_wgmma_256_11", 256, true, true);
    });
}

#[test]
fn wgmma_takes_the_left_operand_from_registers() {
    on_all(|driver| {
        product(driver, "probe_wgmma_rs_64_0", 64, false, false);
        product(driver, "probe_wgmma_rs_64_1", 64, false, true);
        product(driver, "probe_wgmma_rs_128_1", 128, false, true);
        product(driver, "probe_wgmma_rs_256_0", 256, false, false);
    });
}

/// Where byte `at` of a box's row lies in it: 16-byte units change places with the row's number in eight.
fn swizzled(row: usize, at: usize) -> usize {
    row * 128 + (at ^ (row % 8) << 4)
}

#[test]
fn tma_load_swizzles_and_fills_with_zeros_outside() {
    on_all(|driver| {
        let (rows, columns, box_rows) = (37usize, 72usize, 24usize);
        let x: Vec<u16> = (0..rows * columns).map(|i| i as u16 + 1).collect();
        let from = Buffer::of(driver, bytemuck::cast_slice(&x));
        let map = driver.tensor_map(&matrix(&from, rows, columns, box_rows)).unwrap();
        for (left, top) in [(0, 0), (8, 13), (-5, -3), (64, 30), (200, 0), (0, -24), (3, 36)] {
            let out = Buffer::new(driver, box_rows * 128);
            let args = Args::new().map(map).i32(left).i32(top).u32(box_rows as u32).ptr(out.at);
            start(driver, "probe_tma_load", 32, room(box_rows as u32 * 128), args).unwrap();
            let got = out.words();
            let got: &[u16] = bytemuck::cast_slice(&got);
            for row in 0..box_rows {
                for column in 0..64 {
                    let (y, x_at) = (top as i64 + row as i64, left as i64 + column as i64);
                    let inside =
                        (0..rows as i64).contains(&y) && (0..columns as i64).contains(&x_at);
                    let want = if inside { x[y as usize * columns + x_at as usize] } else { 0 };
                    let at = swizzled(row, 2 * column) / 2;
                    assert_eq!(got[at], want, "box at ({left}, {top}): row {row}, column {column}");
                }
            }
        }
    });
}

#[test]
fn more_blocks_than_there_are_stacks_exit_while_a_load_is_under_way() {
    on_all(|driver| {
        let x = bits(&small(64));
        let memory = Buffer::of(driver, bytemuck::cast_slice(&x));
        let map = driver.tensor_map(&matrix(&memory, 1, 64, 1)).unwrap();
        let (kernel, blocks) = ("probe_exit_before_load", 1100);
        let out = Buffer::new(driver, 4 * blocks as usize);
        let args = Args::new().map(map).ptr(out.at);
        let grid = [blocks, 1, 1];
        driver.launch(Launch { kernel, grid, block: 64, shared: room(128), args }).unwrap();
        driver.sync().unwrap();
        let first = u32::from(x[0]) | u32::from(x[1]) << 16;
        assert_eq!(out.words(), vec![first; blocks as usize]);
    });
}

/// Stores or adds a box at (left, top) of a matrix and compares all of the matrix.
fn store(driver: &dyn Driver, add: bool, wide: bool, left: i32, top: i32) {
    let (rows, columns, box_rows) = (37usize, 72usize, 24usize);
    let size = if wide { 4 } else { 2 };
    let before = small(rows * columns);
    let across = 128 / size;
    let add_to: Vec<f32> = small(box_rows * across).iter().map(|x| x * 0.5 + 3.0).collect();
    let pack = |x: &[f32]| -> Vec<u8> {
        match wide {
            true => bytemuck::cast_slice(x).to_vec(),
            false => bytemuck::cast_slice(&bits(x)).to_vec(),
        }
    };
    let plain = pack(&add_to);
    let mut lying = vec![0u8; plain.len()];
    for (i, byte) in plain.iter().enumerate() {
        lying[swizzled(i / 128, i % 128)] = *byte;
    }
    let to = Buffer::of(driver, &pack(&before));
    let from = Buffer::of(driver, &lying);
    let map =
        Matrix { pitch: (size * columns) as u64, wide, ..matrix(&to, rows, columns, box_rows) };
    let map = driver.tensor_map(&map).unwrap();
    let kernel = if add { "probe_tma_add" } else { "probe_tma_store" };
    let args = Args::new().map(map).i32(left).i32(top).u32(box_rows as u32).ptr(from.at);
    start(driver, kernel, 32, room(box_rows as u32 * 128), args).unwrap();
    let mut want = before;
    for (i, x) in add_to.iter().enumerate() {
        let (y, x_at) = (top as i64 + (i / across) as i64, left as i64 + (i % across) as i64);
        if (0..rows as i64).contains(&y) && (0..columns as i64).contains(&x_at) {
            let at = &mut want[y as usize * columns + x_at as usize];
            *at = if add { *at + x } else { *x };
        }
    }
    let got = to.words();
    assert_eq!(
        bytemuck::cast_slice::<u32, u8>(&got),
        &pack(&want)[..],
        "{kernel} at ({left}, {top}), wide: {wide}"
    );
}

#[test]
fn tma_store_and_add_write_what_lies_inside() {
    on_all(|driver| {
        for (left, top) in [(0, 0), (8, 13), (-5, -3), (64, 30), (200, 0)] {
            for wide in [false, true] {
                store(driver, false, wide, left, top);
                store(driver, true, wide, left, top);
            }
        }
    });
}

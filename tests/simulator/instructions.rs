//! Every function of kernels/ptx.cuh against a formula written from the PTX manual, lane by lane.

use super::{Args, Buffer, Driver, Timing, open, start};

fn on_all(check: impl Fn(&dyn Driver)) {
    for timing in Timing::ALL {
        if let Some(driver) = open(timing) {
            check(&*driver);
        }
    }
}

/// Numbers without a pattern, the same in every run.
pub fn draw(count: usize) -> Vec<u32> {
    let mut x = 0x9E37_79B9u32;
    (0..count)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x
        })
        .collect()
}

/// Small whole numbers: sums of their products are exact in any order.
pub fn small(count: usize) -> Vec<f32> {
    draw(count).into_iter().map(|x| (x % 17) as f32 - 8.0).collect()
}

fn bf16(x: f32) -> u32 {
    x.to_bits() >> 16
}

fn ldmatrix(driver: &dyn Driver, kernel: &'static str, transposed: bool) {
    let matrix: Vec<u16> = (0..256).collect();
    // Rows in no order, with gaps.
    let order: Vec<u32> = (0..32).map(|row| (row * 13 % 32) * 48).collect();
    let from = Buffer::of(driver, bytemuck::cast_slice(&matrix));
    let places = Buffer::of_words(driver, &order);
    let out = Buffer::new(driver, 32 * 16);
    let args = Args::new().ptr(from.at).ptr(places.at).ptr(out.at);
    start(driver, kernel, 32, 32 * 48, args).unwrap();
    let got = out.words();
    for lane in 0..32 {
        for i in 0..4 {
            // Element (r, c) of matrix i is row 8 i + r of the whole.
            let element = |r: usize, c: usize| u32::from(matrix[(8 * i + r) * 8 + c]);
            let (g, t) = (lane / 4, lane % 4);
            let (low, high) = if transposed {
                (element(2 * t, g), element(2 * t + 1, g))
            } else {
                (element(g, 2 * t), element(g, 2 * t + 1))
            };
            assert_eq!(got[4 * lane + i], low | high << 16, "{kernel}: lane {lane}, matrix {i}");
        }
    }
}

#[test]
fn ldmatrix_gives_each_lane_its_elements() {
    on_all(|driver| ldmatrix(driver, "probe_ldmatrix", false));
}

#[test]
fn ldmatrix_trans_gives_each_lane_its_elements() {
    on_all(|driver| ldmatrix(driver, "probe_ldmatrix_trans", true));
}

const TILES_M: usize = 2;
const TILES_N: usize = 3;

/// Multiplies `a` (32 x depth) and `b` (depth x 24) through registers; `word` packs two neighbours in k, or one.
fn mma(driver: &dyn Driver, kernel: &'static str, depth: usize, packed: bool) {
    let a = small(16 * TILES_M * depth);
    let b = small(8 * TILES_N * depth);
    let c = small(16 * TILES_M * 8 * TILES_N);
    let at_a = |m: usize, k: usize| a[m * depth + k];
    let at_b = |k: usize, n: usize| b[n * depth + k];
    let word = |x: f32, next: f32| if packed { bf16(x) | bf16(next) << 16 } else { x.to_bits() };
    // k of register half h of lane t.
    let k_of = |t: usize, h: usize| if packed { 8 * h + 2 * t } else { 4 * h + t };
    let (mut a_r, mut b_r, mut c_r) = (Vec::new(), Vec::new(), Vec::new());
    let place = |lane: usize, m: usize, n: usize, i: usize| {
        (16 * m + lane / 4 + 8 * (i / 2), 8 * n + 2 * (lane % 4) + i % 2)
    };
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for m in 0..TILES_M {
            for i in 0..4 {
                let (row, k) = (16 * m + g + 8 * (i % 2), k_of(t, i / 2));
                a_r.push(word(at_a(row, k), at_a(row, (k + 1) % depth)));
            }
        }
        for n in 0..TILES_N {
            for i in 0..2 {
                let k = k_of(t, i);
                b_r.push(word(at_b(k, 8 * n + g), at_b((k + 1) % depth, 8 * n + g)));
            }
        }
        for m in 0..TILES_M {
            for n in 0..TILES_N {
                for i in 0..4 {
                    let (row, col) = place(lane, m, n, i);
                    c_r.push(c[row * 8 * TILES_N + col].to_bits());
                }
            }
        }
    }
    let (a_d, b_d, c_d) = (
        Buffer::of_words(driver, &a_r),
        Buffer::of_words(driver, &b_r),
        Buffer::of_words(driver, &c_r),
    );
    let args = Args::new().ptr(a_d.at).ptr(b_d.at).ptr(c_d.at);
    start(driver, kernel, 32, 0, args).unwrap();
    let mut got = c_d.floats().into_iter();
    for lane in 0..32 {
        for m in 0..TILES_M {
            for n in 0..TILES_N {
                for i in 0..4 {
                    let (row, col) = place(lane, m, n, i);
                    let products: f32 = (0..depth).map(|k| at_a(row, k) * at_b(k, col)).sum();
                    let want = c[row * 8 * TILES_N + col] + products;
                    assert_eq!(got.next(), Some(want), "{kernel}: row {row}, column {col}");
                }
            }
        }
    }
}

#[test]
fn mma_bf16_adds_the_product_of_its_tiles() {
    on_all(|driver| mma(driver, "probe_mma_bf16", 16, true));
}

#[test]
fn mma_tf32_adds_the_product_of_its_tiles() {
    on_all(|driver| mma(driver, "probe_mma_tf32", 8, false));
}

#[test]
fn cp_async_copies_and_fills_with_zeros() {
    on_all(|driver| {
        let from: Vec<u8> = (0..640u32).map(|i| (i % 251 + 1) as u8).collect();
        let sizes16: Vec<u32> = (0..32).map(|lane| lane % 17).collect();
        let sizes4: Vec<u32> = (0..32).map(|lane| lane % 5).collect();
        let source = Buffer::of(driver, &from);
        let (wide, narrow) =
            (Buffer::of_words(driver, &sizes16), Buffer::of_words(driver, &sizes4));
        let out = Buffer::new(driver, 32 * 20);
        let args = Args::new().ptr(source.at).ptr(wide.at).ptr(narrow.at).ptr(out.at);
        start(driver, "probe_cp_async", 32, 640, args).unwrap();
        let got = out.words();
        let got: &[u8] = bytemuck::cast_slice(&got);
        for lane in 0..32 {
            for i in 0..20 {
                let (at, inside) = if i < 16 {
                    (16 * lane + i, i < sizes16[lane] as usize)
                } else {
                    (512 + 4 * lane + i - 16, i - 16 < sizes4[lane] as usize)
                };
                let want = if inside { from[at] } else { 0 };
                assert_eq!(got[20 * lane + i], want, "lane {lane}, byte {i}");
            }
        }
    });
}

#[test]
fn warp_collectives_exchange_and_combine() {
    on_all(|driver| {
        let x: Vec<u32> = draw(32).into_iter().map(|x| x % 500).collect();
        let from = Buffer::of_words(driver, &x);
        let out = Buffer::new(driver, 32 * 32);
        start(driver, "probe_warp", 32, 0, Args::new().ptr(from.at).ptr(out.at)).unwrap();
        let ballot = x.iter().enumerate().fold(0, |all, (lane, x)| all | (x & 1) << lane);
        for (lane, got) in out.words().chunks(8).enumerate() {
            let want = [
                x[lane / 2],
                x[lane ^ 5],
                if lane % 8 + 3 < 8 { x[lane + 3] } else { x[lane] },
                if lane % 16 >= 3 { x[lane - 3] } else { x[lane] },
                ballot,
                x.iter().sum(),
                u32::from(x.contains(&77)) * 2 + 1,
                x.iter().copied().max().unwrap(),
            ];
            assert_eq!(got, want, "lane {lane}");
        }
    });
}

#[test]
fn scalars_round_to_tf32_and_raise_two() {
    on_all(|driver| {
        let mut x: Vec<f32> = (0..29).map(|i| (i as f32 - 14.0) * 1.000_37).collect();
        // Halfway between two tf32 numbers: away from zero.
        x.extend([1.0 + 2f32.powi(-11), f32::NEG_INFINITY, -1.0 - 2f32.powi(-11)]);
        let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
        let from = Buffer::of_words(driver, &bits);
        let (tf32, exp2) = (Buffer::new(driver, 128), Buffer::new(driver, 128));
        let args = Args::new().ptr(from.at).ptr(tf32.at).ptr(exp2.at);
        start(driver, "probe_scalar", 32, 0, args).unwrap();
        for ((x, tf32), exp2) in x.iter().zip(tf32.floats()).zip(exp2.floats()) {
            if x.is_finite() {
                assert_eq!(tf32.to_bits() & 0x1FFF, 0, "{x}: more than 10 fraction bits");
                let step = 2f64.powi(x.abs().max(f32::MIN_POSITIVE).log2().floor() as i32 - 10);
                let away = (f64::from(x.abs()) / step + 0.5).floor() * step;
                assert_eq!(f64::from(tf32.abs()), away, "{x}");
            }
            let want = f64::from(*x).exp2();
            assert!((f64::from(exp2) - want).abs() <= want * 2.5e-7, "2^{x}: {exp2}");
        }
    });
}

#[test]
fn barriers_of_a_part_and_of_all_order_shared_memory() {
    on_all(|driver| {
        let out = Buffer::new(driver, 128 * 4);
        start(driver, "probe_barrier", 64, 256, Args::new().ptr(out.at)).unwrap();
        let got = out.words();
        for t in 0..64u32 {
            assert_eq!(got[t as usize], 100 + (t ^ 1));
            assert_eq!(got[64 + t as usize], 100 + (t ^ 32));
        }
    });
}

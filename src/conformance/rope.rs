//! Rotary positions, forth and back.

use super::{Bench, Dtype, Output, Random, Verdict, documents};
use crate::backend::gpu::Gpu;
use crate::ops::{Compute, Direction, Heads, Memory, RopeTable, Transfer};

/// Runs all cases.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let bench = Bench::new(gpu);
    let mut verdicts = Vec::new();
    for lengths in [&[1][..], &[5, 1, 9], &[70]] {
        // Heads, key heads, head width, pairs: whole heads, part of a head, odd widths.
        for (h, g, d, half) in [
            (1, 1, 2, 1),
            (4, 2, 64, 32),
            (2, 1, 128, 64),
            (3, 1, 10, 5),
            (2, 2, 41, 9),
            (2, 1, 16, 0),
            (4, 1, 32, 8),
        ] {
            let heads = Heads { h, g, d, window: None, cap: None };
            for direction in [Direction::Forward, Direction::Backward] {
                verdicts.push(case(&bench, lengths, heads, half, direction));
            }
        }
    }
    verdicts
}

fn case(
    bench: &Bench<'_>,
    lengths: &[usize],
    heads: Heads,
    half: usize,
    direction: Direction,
) -> Verdict {
    let name = format!("rope {lengths:?} {heads:?} half {half} {direction:?}");
    let mut random = Random::new(21);
    let data = documents(lengths, 7, &mut random);
    let len = data.tokens() * heads.qkv_width();
    let qkv = bench.round(&random.vec(len));
    let inv_freq = (0..half).map(|i| 1e4f64.powf(-(i as f64) / half as f64)).collect();
    let table = RopeTable { inv_freq, scale: 1.25 };
    bench.judge(name, || {
        let (mut pack, mut pack_cpu) = (bench.gpu.pack(data.tokens())?, bench.cpu.pack(0)?);
        bench.gpu.load_pack(&mut pack, &data);
        bench.cpu.load_pack(&mut pack_cpu, &data);
        let (mut on, mut want) = (bench.act(&qkv)?, qkv.clone());
        bench.gpu.rope(&pack, heads, &table, direction, &mut on);
        bench.cpu.rope(&pack_cpu, heads, &table, direction, &mut want);
        let got = bench.read_act(&on, len);
        Ok(vec![Output { name: "qkv", got, want, stored: bench.stored(), sums: (Dtype::F32, 2) }])
    })
}

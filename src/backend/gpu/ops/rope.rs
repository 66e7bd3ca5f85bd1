//! Rotary positions: kernels/rope.cu.

use std::sync::{Mutex, PoisonError};

use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Pack, blocks};
use crate::error::Result;
use crate::ops::{Direction, Heads, RopeTable};

/// Cosines and sines on the device, made once a table and as far as positions go.
#[derive(Debug, Default)]
pub(in crate::backend::gpu) struct Angles(Mutex<Vec<Known>>);

#[derive(Debug)]
struct Known {
    table: RopeTable,
    positions: usize,
    cosines: u64,
    sines: u64,
}

impl Angles {
    /// Returns the addresses of the cosines and the sines, fp32 `[positions, R/2]` each.
    ///
    /// The addresses are 0 (and a failure is kept) where there is no more memory.
    pub(in crate::backend::gpu) fn tables(
        &self,
        gpu: &Gpu,
        table: &RopeTable,
        positions: usize,
    ) -> (u64, u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().position(|k| k.table == *table);
        if let Some(k) = found.map(|i| &known[i]).filter(|k| k.positions >= positions) {
            return (k.cosines, k.sines);
        }
        let positions = positions.next_power_of_two();
        match upload(gpu, table, positions) {
            Ok((cosines, sines)) => {
                let made = Known { table: table.clone(), positions, cosines, sines };
                match found {
                    Some(i) => known[i] = made,
                    None => known.push(made),
                }
                (cosines, sines)
            }
            Err(error) => {
                gpu.keep(Err(error));
                (0, 0)
            }
        }
    }
}

fn upload(gpu: &Gpu, table: &RopeTable, positions: usize) -> Result<(u64, u64)> {
    let make = |f: fn(f64) -> f64| -> Result<u64> {
        let numbers: Vec<f32> = (0..positions)
            .flat_map(|p| table.inv_freq.iter().map(move |w| p as f64 * w))
            .map(|angle| (f(angle) * table.scale) as f32)
            .collect();
        let at = gpu.alloc(4 * numbers.len() as u64)?;
        gpu.upload(at, bytemuck::cast_slice(&numbers))?;
        Ok(at)
    };
    Ok((make(f64::cos)?, make(f64::sin)?))
}

/// Returns the blocks that turn all pairs, eight a thread.
fn plan(n: usize, heads: usize, half: usize) -> u32 {
    blocks(n * heads * half.div_ceil(8), 256)
}

/// Returns the addresses of cosines and sines that reach all positions of the pack; `None` where it is empty or
/// memory ran out.
pub(super) fn angles(gpu: &Gpu, pack: &Pack, table: &RopeTable) -> Option<(u64, u64)> {
    if pack.reach == 0 {
        return None;
    }
    let (cosines, sines) = gpu.angles.tables(gpu, table, pack.reach);
    (cosines != 0).then_some((cosines, sines))
}

pub(in crate::backend::gpu) fn rotate(
    gpu: &Gpu,
    pack: &Pack,
    heads: Heads,
    table: &RopeTable,
    direction: Direction,
    qkv: &mut Act,
) {
    let half = table.inv_freq.len();
    if half == 0 {
        return;
    }
    let Some((cosines, sines)) = angles(gpu, pack, table) else { return };
    let (n, turned) = (pack.data.tokens(), heads.h + heads.g);
    let args = Args::new()
        .ptr(qkv.at)
        .ptr(pack.positions)
        .ptr(cosines)
        .ptr(sines)
        .u32(n as u32)
        .u32(heads.qkv_width() as u32)
        .u32(turned as u32)
        .u32(heads.d as u32)
        .u32(half as u32)
        .f32(if direction == Direction::Forward { 1.0 } else { -1.0 });
    gpu.launch(gpu.pick("rope_bf16", "rope_f32"), [plan(n, turned, half), 1, 1], 256, 0, args);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_covers_ragged_halves() {
        assert_eq!(plan(1, 1, 1), 1);
        assert_eq!(plan(4096, 40, 64), 4096 * 40 * 8 / 256);
        assert_eq!(plan(129, 2, 9), 3);
    }
}

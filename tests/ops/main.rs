//! Every op on the CPU: its backward against finite differences, f32 against f64, equal bytes.

#![allow(clippy::unwrap_used)]

mod attention;
mod head;
mod layernorm;
mod linear;
mod mlp;
mod model;
mod norm;
mod positions;
mod precision;
#[path = "../support/mod.rs"]
mod support;

use nepenthe::backend::cpu::{Cpu, Grad, Pack, Real};
use nepenthe::ops::{Memory, PackData, Transfer};

/// Fills what an op must overwrite.
fn stale<T: Real>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// Rounds to the compute type.
fn cast<T: Real>(x: &[f64]) -> Vec<T> {
    x.iter().map(|x| T::from_f64(*x)).collect()
}

/// Widens to f64, which changes nothing.
fn wide<T: Real>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Copies a gradient out.
fn read<T: Real>(grad: &Grad<T>) -> Vec<f64> {
    let mut out = vec![T::ZERO; grad.len()];
    grad.read(&mut out);
    wide(&out)
}

/// Lays documents of the given lengths end to end.
fn documents(lengths: &[usize], vocab: usize, random: &mut support::Random) -> PackData {
    let mut data = PackData::default();
    for &len in lengths {
        let ids: Vec<u32> = (0..len).map(|_| random.below(vocab) as u32).collect();
        data.push(&ids, |_| 1.0);
    }
    data
}

/// Loads a pack.
fn load<T: Real>(ops: &Cpu<T>, data: &PackData) -> Pack {
    let mut pack = ops.pack(data.tokens()).unwrap();
    ops.load_pack(&mut pack, data);
    pack
}

//! Generation: the cache of keys and values, decode attention, gathered rows: kernels/generate.cu.

use crate::backend::gpu::{Act, Gpu, Pack};
use crate::error::Result;
use crate::ops::Heads;

/// Keys and values of one layer: `[slots, capacity, G, D]` each, in the precision of storage.
#[derive(Debug)]
pub struct Cache {
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) capacity: usize,
}

pub(in crate::backend::gpu) fn cache(
    gpu: &Gpu,
    slots: usize,
    capacity: usize,
    heads: Heads,
) -> Result<Cache> {
    let bytes = (slots * capacity * heads.g * heads.d) as u64 * gpu.precision().bytes();
    Ok(Cache { keys: gpu.arena.alloc(bytes)?, values: gpu.arena.alloc(bytes)?, capacity })
}

pub(in crate::backend::gpu) fn store(
    gpu: &Gpu,
    _pack: &Pack,
    _heads: Heads,
    _qkv: &Act,
    _cache: &mut Cache,
) {
    gpu.refuse("cache store: not written");
}

pub(in crate::backend::gpu) fn attention(
    gpu: &Gpu,
    _pack: &Pack,
    _heads: Heads,
    _qkv: &Act,
    _cache: &Cache,
    _out: &mut Act,
) {
    gpu.refuse("decode attention: not written");
}

pub(in crate::backend::gpu) fn gather(gpu: &Gpu, _c: usize, _rows: &[u32], _x: &Act, _y: &mut Act) {
    gpu.refuse("gather: not written");
}

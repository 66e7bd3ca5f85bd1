//! Generation: the cache of keys and values, decode attention, gathered rows: kernels/decode.cu.

use super::attention::{cap, window};
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Pack, Precision, blocks};
use crate::ops::{CachePlace, Heads};

/// Cached positions of a partial result (`decode::kSpan`).
const SPAN: usize = 128;
/// Query heads of a block (`decode::kHeads`).
const HEADS: usize = 4;
/// Threads of an elementwise block (`kBlock`).
const BLOCK: usize = 256;
/// The widest head that the kernels know (`attn::kMaxWidth`).
const MAX_WIDTH: usize = 256;

/// Returns the addresses of keys and values; keeps a failure where they do not lie inside `room`.
fn addresses(gpu: &Gpu, room: &Act, cache: CachePlace, heads: Heads) -> Option<[u64; 2]> {
    if room.len < cache.start + cache.len(heads) {
        gpu.refuse("generation: a cache outside its room");
        return None;
    }
    let at = |numbers: usize| room.at + numbers as u64 * gpu.precision().bytes();
    Some([at(cache.start), at(cache.start + cache.half(heads))])
}

/// Returns how many elements of rows of `width` are moved at once: 16 bytes, or one.
fn pack_of(precision: Precision, width: usize) -> usize {
    let whole = 16 / precision.bytes() as usize;
    if width.is_multiple_of(whole) { whole } else { 1 }
}

/// Tells whether all documents of the pack lie inside the cache; keeps a failure where one does not.
fn fits(gpu: &Gpu, pack: &Pack, cache: CachePlace) -> bool {
    let documents = pack.data.starts.len().saturating_sub(1);
    let slots = pack.data.slots.get(..documents);
    let inside = slots.is_some_and(|slots| slots.iter().all(|slot| (*slot as usize) < cache.slots))
        && pack.data.positions.iter().all(|position| (*position as usize) < cache.capacity);
    if !inside {
        gpu.refuse(format!(
            "generation: a token outside the cache of {} slots of {} tokens",
            cache.slots, cache.capacity
        ));
    }
    inside
}

pub(in crate::backend::gpu) fn store(
    gpu: &Gpu,
    pack: &Pack,
    heads: Heads,
    qkv: &Act,
    room: &mut Act,
    cache: CachePlace,
) {
    let n = pack.data.tokens();
    if n == 0 || !fits(gpu, pack, cache) {
        return;
    }
    let Some([keys, values]) = addresses(gpu, room, cache, heads) else { return };
    let Heads { h, g, d, .. } = heads;
    let args = Args::new().ptr(pack.starts).ptr(pack.slots).ptr(pack.positions).ptr(qkv.at);
    let args = args.ptr(keys).ptr(values).u32(n as u32);
    let args = args.u32(pack.data.starts.len() as u32 - 1).u32(cache.capacity as u32);
    let args = args.u32(h as u32).u32(g as u32).u32(d as u32);
    let packs = n * 2 * g * d / pack_of(gpu.precision(), d);
    let name = gpu.pick("cache_store_bf16", "cache_store_f32");
    gpu.launch(name, [blocks(packs, BLOCK), 1, 1], BLOCK as u32, 0, args);
}

/// The launches of a decode attention.
#[derive(Debug, PartialEq, Eq)]
struct Decode {
    /// Spans of the longest document.
    spans: usize,
    /// Blocks of the kernel that makes partial results.
    blocks: u32,
    /// Floats of partial results: two a token, head and span.
    partial: usize,
    /// Floats of their sums over values.
    sums: usize,
}

/// Plans for tokens at `positions`. The spans' borders depend on nothing, so neither does a result.
fn decode(positions: &[u32], heads: Heads) -> Decode {
    let spans = positions.iter().max().map_or(0, |last| *last as usize / SPAN + 1);
    let results = positions.len() * heads.h * spans;
    let quarters = (heads.h / heads.g).div_ceil(HEADS);
    Decode {
        spans,
        blocks: (positions.len() * heads.g * quarters * spans) as u32,
        partial: 2 * results,
        sums: results * heads.d,
    }
}

pub(in crate::backend::gpu) fn attention(
    gpu: &Gpu,
    pack: &Pack,
    heads: Heads,
    qkv: &Act,
    room: &Act,
    cache: CachePlace,
    out: &mut Act,
) {
    let Heads { h, g, d, .. } = heads;
    if !(1..=MAX_WIDTH).contains(&d) {
        return gpu.refuse(format!("decode: heads of width {d}, at most {MAX_WIDTH} are possible"));
    }
    let n = pack.data.tokens();
    if n == 0 || !fits(gpu, pack, cache) {
        return;
    }
    let Some([keys, values]) = addresses(gpu, room, cache, heads) else { return };
    let plan = decode(&pack.data.positions, heads);
    let partial = gpu.scratch(4 * (plan.partial + plan.sums) as u64);
    if partial == 0 {
        return;
    }
    let sums = partial + 4 * plan.partial as u64;
    let name = match (gpu.precision(), pack_of(gpu.precision(), d)) {
        (Precision::Bf16, 1) => "decode_any_bf16",
        (Precision::Bf16, _) => "decode_wide_bf16",
        (Precision::Fp32, 1) => "decode_any_f32",
        (Precision::Fp32, _) => "decode_wide_f32",
    };
    let shape = |args: Args| args.u32(h as u32).u32(g as u32).u32(d as u32).u32(window(heads));
    let args = Args::new().ptr(pack.slots).ptr(pack.positions).ptr(qkv.at);
    let args = args.ptr(keys).ptr(values).ptr(partial).ptr(sums);
    let args = shape(args.u32(cache.capacity as u32)).u32(plan.spans as u32);
    let args = args.f32((1.0 / (d as f64).sqrt()) as f32).f32(cap(heads));
    gpu.launch(name, [plan.blocks, 1, 1], 128, 0, args);
    let args = Args::new().ptr(pack.positions).ptr(partial).ptr(sums).ptr(out.at).u32(n as u32);
    let args = shape(args).u32(plan.spans as u32);
    let name = gpu.pick("decode_merge_bf16", "decode_merge_f32");
    gpu.launch(name, [blocks(n * heads.out_width(), BLOCK), 1, 1], BLOCK as u32, 0, args);
}

pub(in crate::backend::gpu) fn gather(gpu: &Gpu, c: usize, rows: &[u32], x: &Act, y: &mut Act) {
    if rows.is_empty() {
        return;
    }
    let ids = gpu.scratch(4 * rows.len() as u64);
    if ids == 0 {
        return;
    }
    gpu.keep(gpu.upload(ids, bytemuck::cast_slice(rows)));
    let args = Args::new().ptr(ids).ptr(x.at).ptr(y.at).u32(rows.len() as u32).u32(c as u32);
    let packs = rows.len() * c / pack_of(gpu.precision(), c);
    let name = gpu.pick("gather_rows_bf16", "gather_rows_f32");
    gpu.launch(name, [blocks(packs, BLOCK), 1, 1], BLOCK as u32, 0, args);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_has_a_block_for_every_span_of_four_heads() {
        let heads = Heads { h: 10, g: 2, d: 3, window: None, cap: None };
        let plan = decode(&[0, 128, 7], heads);
        assert_eq!(plan, Decode { spans: 2, blocks: 3 * 2 * 2 * 2, partial: 120, sums: 180 });
        assert_eq!(decode(&[127], heads).spans, 1);
        assert_eq!(decode(&[], heads).blocks, 0);
    }

    #[test]
    fn pack_of_moves_16_bytes_where_rows_allow() {
        assert_eq!(pack_of(Precision::Bf16, 64), 8);
        assert_eq!(pack_of(Precision::Bf16, 12), 1);
        assert_eq!(pack_of(Precision::Fp32, 12), 4);
        assert_eq!(pack_of(Precision::Fp32, 41), 1);
    }
}

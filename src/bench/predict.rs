//! Predicted results of every measurement on an H100: a model of each kernel, to be confirmed or refuted.
//!
//! A prediction is the time that the kernel's design allows: cycles of the tensor pipe for whole tiles and whole rounds
//! of blocks, bytes at a share of a copy's rate, and what a launch costs. The constants are assumptions; each says
//! where it is from. A measurement far from its prediction names the next thing to look at.

use super::floors::{self, Floor};
use super::{Preset, Roofs};
use crate::backend::gpu::parts;
use crate::model::Layout;
use crate::ops::{HeadShape, Heads, StateMode};

/// Multiprocessors of an H100 SXM.
const PROCESSORS: f64 = 132.0;
/// bf16 operations of a multiprocessor's tensor pipe in a clock.
const FLOP_PER_CLOCK: f64 = 4096.0;
/// Roofs measured on an H100 SXM by others: cuBLAS on 8192 x 8192 random numbers, and a copy, read and written.
pub const ROOFS: Roofs = Roofs { flops: 798e12, bytes: 3.0e12 };
/// The share of the tensor pipe that cuBLAS is believed to use at that rate; the rest is the clock under load.
const PIPE_SHARE: f64 = 0.97;
/// The share that the main loop of tiles of 128 x 256 should reach: a stage's barriers and late operands cost the rest.
const LOOP_SHARE: f64 = 0.90;
/// Fraction of that which tiles of 128 x 128 reach: in the 512 clocks of a stage, wgmma reads 48 KB of shared memory and
/// bulk copies write 32 KB, 160 bytes a clock where it has 128.
const SQUARE_SHARE: f64 = 0.80;
/// Seconds from the end of a kernel to the first work of the next one, where it was placed ahead of that end.
const LAUNCH: f64 = 1.0e-6;
/// Clocks of a tile of a product that no product hides: the last sums to shared memory, the first stage to arrive.
const TILE_CLOCKS: f64 = 1200.0;
/// Extra time of a tile of 128 x 256 whose product ends in another op: a turn of query and key heads, SwiGLU,
/// SwiGLU's gradient with gates and ups to read, the statistics of the head (two exponentials for each of the special
/// function unit's clocks, and their maxima). Half for a tile of half the columns.
const ROPE_CLOCKS: f64 = 3500.0;
const SWIGLU_CLOCKS: f64 = 5000.0;
const UNGATED_CLOCKS: f64 = 8500.0;
const STATISTICS_CLOCKS: f64 = 4000.0;
/// The share of a copy's rate of kernels that read and write rows once, with 16 bytes a thread in flight.
const ROWS_SHARE: f64 = 0.90;
/// The same where rows are gathered or weights stream through few rows.
const STREAM_SHARE: f64 = 0.80;
/// The share of the tensor pipe of attention's whole tiles: exponentials and masks of one warpgroup hide behind the
/// products of the other in part.
const FORWARD_SHARE: f64 = 0.63;
const BACKWARD_SHARE: f64 = 0.54;
/// Clocks of an item of 128 rows and a head that nothing hides: its first scores, its last product, its rows to memory;
/// backward in each of two kernels.
const FORWARD_ITEM: f64 = 3600.0;
const BACKWARD_ITEM: f64 = 2.0 * 4400.0;
/// Rows of keys or queries of attention's tiles.
const ATTENTION_TILE: usize = 128;

/// The predicted time of one measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Family and name of the measurement.
    pub kind: &'static str,
    /// Model and op.
    pub name: String,
    /// FLOP and byte floor of the op; for a whole step or generation, the sum over its parts.
    pub floor: Floor,
    /// The seconds below which it cannot be done with [`ROOFS`].
    pub floor_seconds: f64,
    /// The seconds that it should take.
    pub seconds: f64,
    /// Amount of work: operations, bytes or tokens.
    pub amount: f64,
    /// True if the unit is tokens.
    pub tokens: bool,
}

/// Clocks a second of a loaded device: at [`ROOFS`] with [`PIPE_SHARE`].
fn clock() -> f64 {
    ROOFS.flops / (PROCESSORS * FLOP_PER_CLOCK * PIPE_SHARE)
}

/// Seconds of a product by tiles of 128 x 256 or 128 x 128, whichever is done first: rounds of blocks, each with the
/// clocks of its whole tile, or the bytes at a stream's rate.
fn product(shape: (usize, usize, usize), bytes: f64) -> f64 {
    fused(shape, 0.0, bytes)
}

/// Seconds of a product that ends in another op, which adds `more` clocks to a tile of 128 x 256.
fn fused(shape: (usize, usize, usize), more: f64, bytes: f64) -> f64 {
    let clocks = clocks(shape, 256, more).min(clocks(shape, 128, more));
    LAUNCH + (clocks / clock()).max(bytes / (ROOFS.bytes * STREAM_SHARE))
}

/// Clocks of a product by tiles of 128 rows and `columns` columns; a tile of 256 has `more` that nothing hides.
fn clocks((m, n, k): (usize, usize, usize), columns: usize, more: f64) -> f64 {
    let rounds = (m.div_ceil(128) * n.div_ceil(columns)) as f64 / PROCESSORS;
    let pipe = (128 * columns * 2 * k.next_multiple_of(64)) as f64 / FLOP_PER_CLOCK;
    let share = if columns == 128 { LOOP_SHARE * SQUARE_SHARE } else { LOOP_SHARE };
    rounds.ceil() * (pipe / share + TILE_CLOCKS + more * columns as f64 / 256.0)
}

/// Seconds of a weight gradient: of its product, or of the parts that its k is cut in and the pass that adds them.
fn weight((m, n, k): (usize, usize, usize), bytes: f64) -> f64 {
    let parts = parts(m, n, k);
    if parts == 1 {
        return product((m, n, k), bytes);
    }
    // Rows of a part are whole clusters. Most of what the second kernel reads is still in the L2; it counts whole.
    let stacked = (parts * m.next_multiple_of(256), n, k.div_ceil(parts));
    let partial = 4.0 * (parts * m * n) as f64;
    let gradient = 2.0 * 2.0 * (m * n) as f64;
    product(stacked, bytes - gradient + partial) + memory(partial + gradient, STREAM_SHARE)
}

/// Seconds of a pass over memory.
fn memory(bytes: f64, share: f64) -> f64 {
    LAUNCH + bytes / (ROOFS.bytes * share)
}

/// Operations of causal attention where every tile that is touched counts whole; `products` of them a tile.
fn tiles(lengths: &[usize], width: usize, products: f64) -> f64 {
    let pairs = |t: &usize| {
        let side = t.div_ceil(ATTENTION_TILE) as f64;
        side * (side + 1.0) / 2.0 * (ATTENTION_TILE * ATTENTION_TILE) as f64
    };
    products * 2.0 * width as f64 * lengths.iter().map(pairs).sum::<f64>()
}

/// Seconds of causal attention, launches apart: the pipe's share of whole tiles, and `item` clocks for each 128 rows of a
/// query head.
fn attention(lengths: &[usize], heads: Heads, products: f64, share: f64, item: f64) -> f64 {
    let pipe = tiles(lengths, heads.out_width(), products) / FLOP_PER_CLOCK / share;
    let items: usize = lengths.iter().map(|t| t.div_ceil(ATTENTION_TILE) * heads.h).sum();
    (pipe + item * items as f64) / (PROCESSORS * clock())
}

/// Collects predictions under the names that measurements have.
struct List<'a> {
    preset: &'a Preset,
    all: Vec<Prediction>,
}

impl List<'_> {
    /// Adds one and returns its seconds.
    fn add(&mut self, kind: &'static str, what: &str, floor: Floor, seconds: f64) -> f64 {
        let amount = if floor.flop > 0.0 { floor.flop } else { floor.bytes };
        let name = format!("{} {what}", self.preset.name);
        let floor_seconds = floor.seconds(&ROOFS);
        self.all.push(Prediction {
            kind,
            name,
            floor,
            floor_seconds,
            seconds,
            amount,
            tokens: false,
        });
        seconds
    }

    /// Adds a product.
    fn product(&mut self, what: &str, shape: (usize, usize, usize), floor: Floor) -> f64 {
        self.fused(what, shape, 0.0, floor)
    }

    /// Adds a product that ends in another op; see [`fused`].
    fn fused(&mut self, what: &str, shape: (usize, usize, usize), more: f64, floor: Floor) -> f64 {
        self.add("gemm", what, floor, fused(shape, more, floor.bytes))
    }

    /// Adds a pass over rows.
    fn rows(&mut self, kind: &'static str, what: &str, floor: Floor) -> f64 {
        self.add(kind, what, floor, memory(floor.bytes, ROWS_SHARE))
    }
}

/// Seconds of the parts of a layer for one pack.
#[derive(Debug, Default)]
struct Layer {
    /// The student's forward pass; a teacher's is the same but for what it does not keep.
    forward: f64,
    backward: f64,
}

/// Predicts every measurement of a preset in bf16, under its name.
pub fn predict(preset: &Preset) -> Vec<Prediction> {
    let mut list = List { preset, all: Vec::new() };
    let layer = layers(&mut list);
    let sweeps = head(&mut list);
    let (update, teacher) = updates(&mut list);
    generation(&mut list);
    step(&mut list, &layer, sweeps, update, teacher);
    list.all
}

/// Products, attention and rows of a layer, and the embedding.
fn layers(list: &mut List<'_>) -> Layer {
    let (config, n, stored) = (&list.preset.config, list.preset.tokens(), 2.0);
    let (heads, c, f) = (config.heads(0), config.width, config.ffn);
    let (lengths, cached) = (list.preset.lengths(), list.preset.cached);
    let width = heads.qkv_width();
    let mut layer = Layer::default();
    for (map, o, i, residual) in [
        ("qkv", width, c, false),
        ("out", c, heads.out_width(), true),
        ("gate and up", 2 * f, c, false),
        ("down", c, f, true),
    ] {
        let floor = |shape, adds| floors::product(shape, stored, stored, adds);
        let forward =
            list.product(&format!("{map} forward"), (n, o, i), floor((n, o, i), residual));
        let input =
            list.product(&format!("{map} input gradient"), (n, i, o), floor((n, i, o), false));
        let of_weights = floor((o, i, n), true);
        let seconds = weight((o, i, n), of_weights.bytes);
        let weight = list.add("gemm", &format!("{map} weight gradient"), of_weights, seconds);
        let few = (cached.0, o, i);
        let bytes = floor(few, residual);
        list.add("gemm", &format!("{map} decode"), bytes, memory(bytes.bytes, STREAM_SHARE));
        // Where another op is fused behind a product, that kernel runs instead.
        layer.forward += if residual { forward } else { 0.0 };
        layer.backward += weight + if map == "down" { 0.0 } else { input };
    }
    let config = &list.preset.config;
    let rope = floors::linear_rope(n, c, heads, stored);
    layer.forward += list.fused("qkv forward with rope", (n, width, c), ROPE_CLOCKS, rope);
    let kept = floors::linear_swiglu(n, (f, c), stored, true);
    let shape = (n, 2 * f, c);
    layer.forward += list.fused("gate and up forward with swiglu", shape, SWIGLU_CLOCKS, kept);
    let dropped = floors::linear_swiglu(n, (f, c), stored, false);
    list.fused("gate and up forward with swiglu, teacher", shape, SWIGLU_CLOCKS, dropped);
    let back = floors::linear_dgrad_swiglu(n, (c, f), stored);
    layer.backward +=
        list.fused("down input gradient with swiglu", (n, f, c), UNGATED_CLOCKS, back);

    let forward = floors::attention(&lengths, heads, stored);
    let seconds = attention(&lengths, heads, 2.0, FORWARD_SHARE, FORWARD_ITEM);
    layer.forward += list.add("attention", "forward", forward, LAUNCH + seconds);
    let backward = floors::attention_bwd(&lengths, heads, stored);
    // Scores are made in both of its kernels: seven products.
    let seconds = attention(&lengths, heads, 7.0, BACKWARD_SHARE, BACKWARD_ITEM);
    layer.backward += list.add("attention", "backward", backward, 4.0 * LAUNCH + seconds);
    let decode = floors::decode(&vec![cached.1; cached.0], heads, stored);
    list.add("attention", "decode", decode, LAUNCH + memory(decode.bytes, STREAM_SHARE));

    let norm = list.rows("norm", "forward", floors::rmsnorm(n, c, stored));
    let norm_bwd = list.rows("norm", "backward", floors::rmsnorm_bwd(n, c, stored));
    let rope = list.rows("rope", "forward", floors::rope(n, heads, stored));
    list.rows("swiglu", "forward", floors::swiglu(n, f, stored));
    list.rows("swiglu", "backward", floors::swiglu_bwd(n, f, stored));
    // As many different ids as a draw of n from V leaves on average.
    let v = config.vocab as f64;
    let distinct = (v * (1.0 - (1.0 - 1.0 / v).powi(n as i32))) as usize;
    let embed = floors::embed(n, distinct, c, stored);
    list.add("embed", "forward", embed, memory(embed.bytes, STREAM_SHARE));
    let embed = floors::embed_bwd(n, distinct, c, stored, stored);
    list.add("embed", "backward", embed, memory(embed.bytes, STREAM_SHARE));
    layer.forward += 2.0 * norm;
    // The norms' outputs are made again, and the rotation is undone.
    layer.backward += 2.0 * (norm + norm_bwd) + rope;
    layer
}

/// Sweeps of the head over the rows of a pack: of the loss and of the penalty.
fn head(list: &mut List<'_>) -> [f64; 2] {
    let (n, c, v) = (list.preset.tokens(), list.preset.config.width, list.preset.config.vocab);
    let logits = (n * v) as f64;
    let mut sweep = |name: &str, products: usize, bytes: f64| {
        let floor = floors::head(HeadShape { n, c, v }, products, 2.0);
        // The one-hot losses' product leaves statistics; the penalty has a product for each of two models.
        let out = match products {
            3 => 2.0 * product((n, v, c), 0.0),
            _ => fused((n, v, c), STATISTICS_CLOCKS, 0.0),
        };
        let back = if products > 1 { product((n, c, v), 0.0) } else { 0.0 };
        list.add("head", name, floor, out + back + memory(bytes * logits, ROWS_SHARE))
    };
    // One-hot losses find a record of 16 bytes for 256 logits beside them, and read fp32 logits for a gradient alone; the
    // penalty reads its own and the teacher's more than once, in part from the L2.
    let record = 16.0 / 256.0;
    sweep("statistics", 1, record);
    [sweep("nlul", 2, record + 4.0 + 2.0), sweep("qkl", 3, 26.0)]
}

/// The update of all trained weights and the making of the teacher's, as far as a step has them.
fn updates(list: &mut List<'_>) -> (f64, f64) {
    let preset = list.preset;
    let layout = Layout::new(&preset.config, preset.recipe.train());
    let (len, trained) = (super::update::weights(&layout, preset.updated), layout.trainable());
    let whole = |bytes: f64, len: usize| trained as f64 / len as f64 * bytes;
    let mut step = (0.0, 0.0);
    for (i, (mode, rule, name)) in super::update::cases().enumerate() {
        let floor = floors::update(len, mode, &rule);
        list.rows("update", &name, floor);
        if i == 0 {
            let teacher = floors::teacher(len, 2.0);
            list.rows("update", "teacher weights", teacher);
            step = (
                memory(whole(floor.bytes, len), ROWS_SHARE),
                memory(whole(teacher.bytes, len), ROWS_SHARE),
            );
        }
    }
    step
}

/// All prompts of the preset.
fn generation(list: &mut List<'_>) {
    let preset = list.preset;
    let (prompts, _, new) = preset.prompts;
    let [first, rest] = floors::generation(&preset.config, preset.prompts, 2.0);
    // Ten kernels a layer, and the head's.
    let launches = (new * (10 * preset.config.layers + 4)) as f64 * LAUNCH;
    let passes = first.flop / (0.9 * ROOFS.flops) + rest.bytes / (STREAM_SHARE * ROOFS.bytes);
    list.all.push(Prediction {
        kind: "generate",
        name: format!("{} greedy", preset.name),
        floor: Floor { flop: first.flop + rest.flop, bytes: first.bytes + rest.bytes },
        floor_seconds: first.seconds(&ROOFS) + rest.seconds(&ROOFS),
        seconds: passes + launches,
        amount: (prompts * new) as f64,
        tokens: true,
    });
}

/// The step of the preset's recipe from the parts of a layer, in packs of the preset's size.
fn step(list: &mut List<'_>, layer: &Layer, sweeps: [f64; 2], update: f64, teacher: f64) {
    let preset = list.preset;
    let (data, runs) = (&preset.recipe.data, &preset.recipe.run);
    let forget = (runs.micro_batch * runs.forget_accum_steps, data.forget_context);
    let retain = (runs.micro_batch * runs.kl_accum_steps, data.retain_context);
    let packs = |(count, len): (usize, usize)| (count * len) as f64 / preset.tokens() as f64;
    let (forgotten, retained) = (packs(forget), packs(retain));
    let layers = preset.config.layers as f64;
    let student = (forgotten + retained) * layers * (layer.forward + layer.backward);
    let seconds = student
        + retained * layers * layer.forward
        + forgotten * sweeps[0]
        + retained * sweeps[1]
        + update
        + teacher;
    let flop = floors::step(&preset.config, forget, retain);
    let layout = Layout::new(&preset.config, preset.recipe.train());
    let rule = preset.recipe.optim.rule();
    let written = floors::update(layout.trainable(), StateMode::Compact, &rule);
    list.all.push(Prediction {
        kind: "step",
        name: preset.name.clone(),
        floor: Floor { flop, bytes: written.bytes },
        floor_seconds: flop / ROOFS.flops + written.seconds(&ROOFS),
        seconds,
        amount: (forget.0 * forget.1 + retain.0 * retain.1) as f64,
        tokens: true,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(model: &str, name: &str) -> Prediction {
        let all = predict(&Preset::new(model).unwrap());
        all.into_iter().find(|p| p.name == format!("{model} {name}") || p.name == name).unwrap()
    }

    #[test]
    fn nothing_is_predicted_below_its_floor_or_twice() {
        for model in crate::bench::MODELS {
            let all = predict(&Preset::new(model).unwrap());
            let mut names: Vec<_> = all.iter().map(|p| (p.kind, &p.name)).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all.len(), "{model}");
            for p in &all {
                assert!(p.seconds > p.floor_seconds, "{p:?}");
            }
        }
    }

    #[test]
    fn a_product_pays_for_whole_rounds_of_whole_tiles() {
        // 512 tiles of 128 x 256 are 3.9 rounds, a few more rows a fifth one.
        let four = product((4096, 4096, 4096), 0.0);
        assert!(product((4352, 4096, 4096), 0.0) > 1.1 * four);
        let rate = 2.0 * 4096f64.powi(3) / four;
        assert!((680e12..ROOFS.flops).contains(&rate), "{rate:e}");
    }

    #[test]
    fn rates_are_those_that_the_kernels_design_allows() {
        let clock_rate = PROCESSORS * FLOP_PER_CLOCK * clock();
        let rate = |(m, n, k): (usize, usize, usize), seconds: f64| {
            2.0 * (m * n * k) as f64 / (seconds - LAUNCH)
        };
        // One round of each tile.
        let square = (128 * 132, 128, 8192);
        let share = rate(square, LAUNCH + clocks(square, 128, 0.0) / clock()) / clock_rate;
        assert!((0.58..0.80).contains(&share), "{share}");
        let wide = (128 * 132, 256, 4096);
        let plain = rate(wide, product(wide, 0.0));
        assert!((690e12..740e12).contains(&plain), "{plain:e}");
        for (more, range) in
            [(ROPE_CLOCKS, 0.94..0.96), (SWIGLU_CLOCKS, 0.92..0.95), (UNGATED_CLOCKS, 0.88..0.91)]
        {
            let share = rate(wide, fused(wide, more, 0.0)) / plain;
            assert!(range.contains(&share), "{more}: {share}");
        }
        for (k, range) in [(4096, 690e12..730e12), (576, 430e12..500e12)] {
            let shape = (128 * 132, 256, k);
            let head = rate(shape, fused(shape, STATISTICS_CLOCKS, 0.0));
            assert!(range.contains(&head), "k {k}: {head:e}");
        }
        // Whole rounds of documents of 1024 and 8192 tokens, by head width.
        for (d, length, forward, backward) in [
            (128, 1024, 340e12..400e12, 220e12..270e12),
            (128, 8192, 460e12..530e12, 280e12..330e12),
            (64, 1024, 280e12..330e12, 180e12..270e12),
        ] {
            let heads = Heads { h: 132, g: 132, d, window: None, cap: None };
            let useful = 2.0 * (d * 132) as f64 * (length * (length + 1) / 2) as f64;
            let of = |products, counted: f64, share, item| {
                counted * useful / attention(&[length], heads, products, share, item)
            };
            let rate = of(2.0, 2.0, FORWARD_SHARE, FORWARD_ITEM);
            assert!(forward.contains(&rate), "forward, {d}, {length}: {rate:e}");
            let rate = of(7.0, 5.0, BACKWARD_SHARE, BACKWARD_ITEM);
            assert!(backward.contains(&rate), "backward, {d}, {length}: {rate:e}");
        }
    }

    #[test]
    fn the_papers_step_is_predicted_near_the_design_s_target() {
        let seconds = of("llama-2-7b", "llama-2-7b").seconds;
        assert!((3.9..4.9).contains(&seconds), "{seconds}");
    }
}

//! The tensors of a model: their names, their blocks, and the parameters that train.

mod order;

use std::collections::HashSet;

pub use order::Order;

use super::config::ModelConfig;
use super::family::{Architecture, Names, Storage};
use crate::error::{Error, Result};
use crate::io::safetensors::{Dtype, Weights};
use crate::ops::{Norm, NormKind};
use crate::optim::TensorPlace;

/// The parameters that are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Train {
    /// All but embeddings, head and norms: the reference's rule.
    #[default]
    Body,
    /// Everything.
    All,
    /// Of the layers `first` to `last`, counted from 0, all that `Body` trains, or their down matrices alone.
    Layers {
        /// The first layer.
        first: usize,
        /// The last one.
        last: usize,
        /// Restriction to the down matrices of their MLPs.
        down: bool,
    },
}

/// One tensor of the model folder inside a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name in the safetensors files.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Its shape as the ops read it.
    pub laid: Vec<usize>,
    /// Order of its numbers in the files.
    pub order: Order,
}

impl Part {
    fn new(name: String, shape: Vec<usize>, order: Order) -> Self {
        Self { laid: order.laid(&shape), name, shape, order }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Tells whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns its name in `weights`: some files leave out the name of the model without its head, which stands in front.
    pub fn name_in<'a>(&'a self, weights: &Weights) -> &'a str {
        match self.name.split_once('.') {
            Some((_, bare))
                if weights.info(&self.name).is_none() && weights.info(bare).is_some() =>
            {
                bare
            }
            _ => &self.name,
        }
    }
}

/// A parameter as the ops see it: tensors that are multiplied together stand together (q, k, v; gate, up).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub name: String,
    /// The tensors it is made of, one behind the other.
    pub parts: Vec<Part>,
    /// True if it is trained.
    pub trainable: bool,
}

impl Block {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// Tells whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Block numbers of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormBlocks {
    /// Weight, C numbers.
    pub gain: usize,
    /// Bias of a LayerNorm, C numbers.
    pub bias: Option<usize>,
}

/// Block numbers of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerBlocks {
    /// The norm before attention.
    pub norm1: NormBlocks,
    /// Query, key and value matrices, [(H + 2G) D, C].
    pub qkv: usize,
    /// Their biases.
    pub qkv_bias: Option<usize>,
    /// Weights of query and key norms, D numbers each.
    pub qk_norm: Option<[usize; 2]>,
    /// Output matrix, [C, H D].
    pub out: usize,
    /// Its bias.
    pub out_bias: Option<usize>,
    /// The norm before the MLP; that before attention where both read the same hidden states.
    pub norm2: NormBlocks,
    /// The norms of the outputs of attention and MLP.
    pub post: Option<[NormBlocks; 2]>,
    /// Gate and up matrices, [2F, C]; without gates the up matrix alone, [F, C].
    pub gate_up: usize,
    /// Their biases.
    pub gate_up_bias: Option<usize>,
    /// Down matrix, [C, F].
    pub down: usize,
    /// Its bias.
    pub down_bias: Option<usize>,
}

impl LayerBlocks {
    /// Returns all of them.
    pub fn all(&self) -> impl Iterator<Item = usize> {
        let norms = [Some(self.norm1), Some(self.norm2)].into_iter().chain(match self.post {
            Some(post) => post.map(Some),
            None => [None; 2],
        });
        let norms = norms.flatten().flat_map(|norm| [Some(norm.gain), norm.bias]);
        let heads = match self.qk_norm {
            Some(gains) => gains.map(Some),
            None => [None; 2],
        };
        let maps = [
            Some(self.qkv),
            self.qkv_bias,
            Some(self.out),
            self.out_bias,
            Some(self.gate_up),
            self.gate_up_bias,
            Some(self.down),
            self.down_bias,
        ];
        norms.chain(heads).chain(maps).flatten()
    }

    /// Returns its matrices and the width of the inputs of each.
    pub fn matrices(&self, config: &ModelConfig) -> [(usize, usize); 4] {
        let hd = config.heads * config.head_width;
        let (c, f) = (config.width, config.ffn);
        [(self.qkv, c), (self.out, hd), (self.gate_up, c), (self.down, f)]
    }
}

/// All blocks of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The family whose names these are.
    pub architecture: &'static Architecture,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Number of the embedding block, [V, C].
    pub embed: usize,
    /// Number of the block of learned positions, [rows, C].
    pub positions: Option<usize>,
    /// Blocks of each layer.
    pub layers: Vec<LayerBlocks>,
    /// The final norm.
    pub norm: NormBlocks,
    /// Number of the head block, [V, C]; equal to `embed` where tied.
    pub head: usize,
    /// Number of its bias, V numbers.
    pub head_bias: Option<usize>,
}

/// Tells whether the reference freezes the parameter of this name.
///
/// Source: mt-unlearn `networks.py`, a plain suffix test; so `input_layernorm.weight` is caught by `norm`, and neither the
/// last norm of GPT-2 nor the embedding of GPT-NeoX is. The head of GPT-NeoX is `embed_out` in files, `lm_head` there.
pub fn is_frozen(name: &str) -> bool {
    const FROZEN: [&str; 10] = [
        "wte",
        "wpe",
        "embed_tokens",
        "embed_positions",
        "rotary_emb",
        "lm_head",
        "embed_out",
        "norm",
        "ln_1",
        "ln_2",
    ];
    let stem = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias"));
    stem.is_some_and(|stem| FROZEN.iter().any(|end| stem.ends_with(end)))
}

struct Builder {
    blocks: Vec<Block>,
    train: Train,
}

impl Builder {
    fn add(&mut self, name: String, parts: Vec<Part>) -> usize {
        let trainable = self.train == Train::All || !parts.iter().all(|p| is_frozen(&p.name));
        self.blocks.push(Block { name, parts, trainable });
        self.blocks.len() - 1
    }

    fn one(&mut self, name: String, shape: &[usize]) -> usize {
        self.stored(name, shape, Order::Same)
    }

    fn stored(&mut self, name: String, shape: &[usize], order: Order) -> usize {
        self.add(name.clone(), vec![Part::new(name, shape.to_vec(), order)])
    }

    fn norm(&mut self, name: &str, norm: &Norm) -> NormBlocks {
        let gain = self.one(format!("{name}.weight"), &[norm.width]);
        let bias =
            (norm.kind == NormKind::Layer).then(|| self.one(format!("{name}.bias"), &[norm.width]));
        NormBlocks { gain, bias }
    }

    /// Adds the matrix of a linear map, [o, i] as the ops read it, and its bias where there is one.
    fn linear(
        &mut self,
        name: &str,
        (o, i): (usize, usize),
        order: Order,
        bias: bool,
    ) -> (usize, Option<usize>) {
        let matrix = self.stored(format!("{name}.weight"), &stored((o, i), order), order);
        (matrix, bias.then(|| self.one(format!("{name}.bias"), &[o])))
    }
}

/// Returns the order in files of the matrices of a layer, and those of the matrix and the bias of query, key and value.
fn orders(names: &Names, config: &ModelConfig) -> (Order, [Order; 2]) {
    let (heads, width) = (config.heads, config.head_width);
    match names.storage {
        Storage::Plain => (Order::Same, [Order::Same; 2]),
        Storage::Transposed => (Order::Transposed, [Order::Transposed, Order::Same]),
        Storage::ByHead => (Order::Same, [Order::ByHead { heads, width }; 2]),
    }
}

/// Returns the shape in files of a matrix [o, i].
fn stored((o, i): (usize, usize), order: Order) -> [usize; 2] {
    if order == Order::Transposed { [i, o] } else { [o, i] }
}

impl Layout {
    /// Returns the tensors of each block as a custom update rule sees them.
    pub fn places(&self) -> Vec<Vec<TensorPlace<'_>>> {
        fn place(part: &Part) -> TensorPlace<'_> {
            TensorPlace { name: &part.name, shape: &part.laid }
        }
        self.blocks.iter().map(|block| block.parts.iter().map(place).collect()).collect()
    }

    /// Lists the blocks of a model of this configuration.
    pub fn new(config: &ModelConfig, train: Train) -> Self {
        let mut b = Builder { blocks: Vec::new(), train };
        let names = &config.architecture.names;
        let (matrix_order, [order, bias_order]) = orders(names, config);
        let (c, d, f) = (config.width, config.head_width, config.ffn);
        let (hd, gd) = (config.heads * d, config.kv_heads * d);
        let weight = |module: &str| format!("{module}.weight");
        let embed = b.one(weight(names.embed), &[config.vocab, c]);
        let learned = config.learned.as_ref();
        let positions = learned
            .zip(names.positions)
            .map(|(learned, name)| b.one(weight(name), &[learned.rows, c]));
        let layers: Vec<LayerBlocks> = (0..config.layers)
            .map(|l| {
                let at = |tail: &str| format!("{}.{l}.{tail}", names.layers);
                // Matrices with the same inputs form one block.
                let parts = |modules: &[&str], rows: &[usize], i: Option<usize>, order: Order| {
                    let rows = if modules.len() == 1 { &[rows.iter().sum()][..] } else { rows };
                    let part = |(module, o): (&&str, &usize)| match i {
                        Some(i) => {
                            let shape = stored((*o, i), order).to_vec();
                            Part::new(at(&format!("{module}.weight")), shape, order)
                        }
                        None => Part::new(at(&format!("{module}.bias")), vec![*o], order),
                    };
                    modules.iter().zip(rows).map(part).collect::<Vec<_>>()
                };
                let (qkv, up) = ([hd, gd, gd], &[f; 2][..names.up.len()]);
                let norm1 = b.norm(&at(names.norm1), &config.norm);
                let qkv_parts = parts(names.qkv, &qkv, Some(c), order);
                let matrix = b.add(at("qkv.weight"), qkv_parts);
                let qkv_bias = config
                    .qkv_bias
                    .then(|| b.add(at("qkv.bias"), parts(names.qkv, &qkv, None, bias_order)));
                let qk_norm =
                    names.qk_norm.map(|names| names.map(|name| b.one(at(&weight(name)), &[d])));
                let bias = config.out_bias;
                let (out, out_bias) = b.linear(&at(names.out), (c, hd), matrix_order, bias);
                let norm2 = match names.norm2 {
                    Some(name) => b.norm(&at(name), &config.norm),
                    None => norm1,
                };
                let up_parts = parts(names.up, up, Some(c), matrix_order);
                let gate_up = b.add(at("gate_up.weight"), up_parts);
                let gate_up_bias = config
                    .mlp_bias
                    .then(|| b.add(at("gate_up.bias"), parts(names.up, up, None, Order::Same)));
                let bias = config.mlp_bias;
                let (down, down_bias) = b.linear(&at(names.down), (c, f), matrix_order, bias);
                let post =
                    names.post.map(|names| names.map(|name| b.norm(&at(name), &config.norm)));
                LayerBlocks {
                    norm1,
                    qkv: matrix,
                    qkv_bias,
                    qk_norm,
                    out,
                    out_bias,
                    norm2,
                    post,
                    gate_up,
                    gate_up_bias,
                    down,
                    down_bias,
                }
            })
            .collect();
        let norm = b.norm(names.norm, &config.norm);
        let head = if config.tied { embed } else { b.one(weight(names.head), &[config.vocab, c]) };
        let head_bias =
            config.head_bias.then(|| b.one(format!("{}.bias", names.head), &[config.vocab]));
        let mut blocks = b.blocks;
        if let Train::Layers { first, last, down } = train {
            let chosen: Vec<usize> = layers
                .iter()
                .enumerate()
                .filter(|(layer, _)| (first..=last).contains(layer))
                .flat_map(|(_, l)| match down {
                    true => vec![l.down],
                    false => l.all().collect(),
                })
                .collect();
            for (i, block) in blocks.iter_mut().enumerate() {
                block.trainable &= chosen.contains(&i);
            }
        }
        let architecture = config.architecture;
        Self { architecture, blocks, embed, positions, layers, norm, head, head_bias }
    }

    /// Returns the number of parameters that train.
    pub fn trainable(&self) -> usize {
        self.blocks.iter().filter(|b| b.trainable).map(Block::len).sum()
    }

    /// Returns the lowest layer of which something trains, or that of a trained embedding, which is all: 0; the number of
    /// layers where none does.
    pub fn lowest_trained(&self) -> usize {
        let trains = |b: usize| self.blocks[b].trainable;
        if trains(self.embed) || self.positions.is_some_and(trains) {
            return 0;
        }
        let any = |blocks: &LayerBlocks| blocks.all().any(trains);
        self.layers.iter().position(any).unwrap_or(self.layers.len())
    }

    /// Returns the number of parameters.
    pub fn parameters(&self) -> usize {
        self.blocks.iter().map(Block::len).sum()
    }

    /// Returns the length of the longest block of the layers.
    pub fn longest_layer_block(&self) -> usize {
        let ends = [Some(self.embed), Some(self.head), self.head_bias, self.positions];
        let inner = |(i, b): (usize, &Block)| (!ends.contains(&Some(i))).then(|| b.len());
        self.blocks.iter().enumerate().filter_map(inner).max().unwrap_or(0)
    }

    /// Checks name, shape and dtype of every tensor before anything large is allocated.
    ///
    /// Tensors that the model does not have are refused too, except for [`Layout::leftovers`].
    pub fn check(&self, weights: &Weights) -> Result<()> {
        for part in self.parts() {
            let Some(info) = weights.info(part.name_in(weights)) else {
                let head = self.head != self.embed && self.blocks[self.head].parts[0] == *part;
                let hint = match head {
                    true => {
                        "if the model has no head of its own, set tie_word_embeddings to true in config.json"
                    }
                    false => {
                        "the files are of another architecture than config.json says, or a shard is missing"
                    }
                };
                return Err(Error::model(format!(
                    "{}: missing from the weights, wanted shape {:?} by config.json",
                    part.name, part.shape
                ))
                .hint(hint));
            };
            if info.shape != part.shape {
                return Err(Error::model(format!(
                    "{}: shape {:?} in file, {:?} from config.json",
                    part.name, info.shape, part.shape
                )));
            }
            if !info.dtype.is_float() {
                let hint = match info.dtype {
                    Dtype::F64 => {
                        "store it as float32: from_pretrained(..., dtype=torch.float32), then save_pretrained(...)"
                    }
                    _ => "if the weights are quantised, start from the unquantised model",
                };
                return Err(Error::model(format!(
                    "{}: dtype {} in file, wanted F32, F16 or BF16",
                    part.name, info.dtype
                ))
                .hint(hint));
            }
        }
        let extra = self.extra(weights).filter(|name| !self.is_leftover(name));
        let extra: Vec<&str> = extra.collect();
        match extra.first() {
            None => Ok(()),
            Some(first) => Err(Error::model(format!(
                "{first}: in the weights but not in the architecture of config.json ({} such)",
                extra.len()
            ))),
        }
    }

    /// Returns the tensors that no computation reads: masks and frequencies that older exporters left in the files.
    pub fn leftovers<'a>(&'a self, weights: &'a Weights) -> impl Iterator<Item = &'a str> {
        self.extra(weights).filter(|name| self.is_leftover(name))
    }

    fn is_leftover(&self, name: &str) -> bool {
        let masks = self.architecture.names.masks;
        name.ends_with("rotary_emb.inv_freq") || masks.iter().any(|mask| name.ends_with(mask))
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.blocks.iter().flat_map(|block| &block.parts)
    }

    /// Returns the tensors of the files that the model does not have.
    fn extra<'a>(&'a self, weights: &'a Weights) -> impl Iterator<Item = &'a str> {
        let known: HashSet<&str> = self.parts().map(|part| part.name_in(weights)).collect();
        weights.names().filter(move |name| !known.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freeze_rule_catches_layer_norms_by_suffix() {
        assert!(is_frozen("model.layers.0.input_layernorm.weight"));
        assert!(is_frozen("model.layers.0.self_attn.q_norm.weight"));
        assert!(is_frozen("lm_head.weight"));
        assert!(!is_frozen("model.layers.0.self_attn.q_proj.bias"));
        assert!(!is_frozen("transformer.ln_f.weight"));
        assert!(is_frozen("embed_out.weight") && !is_frozen("gpt_neox.embed_in.weight"));
    }
}

//! Which tensors a model has, under which names, and which of them train.

use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::io::safetensors::Weights;
use crate::ops::TensorPlace;

/// Which parameters are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Train {
    /// All but embeddings, head and norms: the reference's rule.
    #[default]
    Body,
    /// Everything.
    All,
}

/// One tensor of the model folder inside a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name in the safetensors files.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
}

impl Part {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Tells whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A parameter as the ops see it: tensors that are multiplied together stand together (q, k, v; gate, up).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub name: String,
    /// The tensors it is made of, one behind the other.
    pub parts: Vec<Part>,
    /// Whether it is trained.
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

/// Block numbers of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerBlocks {
    /// Gain of the norm before attention, C numbers.
    pub norm1: usize,
    /// Query, key and value matrices, [(H + 2G) D, C].
    pub qkv: usize,
    /// Their biases.
    pub qkv_bias: Option<usize>,
    /// Gains of query and key norms, D numbers each.
    pub qk_norm: Option<[usize; 2]>,
    /// Output matrix, [C, H D].
    pub out: usize,
    /// Its bias.
    pub out_bias: Option<usize>,
    /// Gain of the norm before the MLP, C numbers.
    pub norm2: usize,
    /// Gate and up matrices, [2F, C].
    pub gate_up: usize,
    /// Their biases.
    pub gate_up_bias: Option<usize>,
    /// Down matrix, [C, F].
    pub down: usize,
    /// Its bias.
    pub down_bias: Option<usize>,
}

/// All blocks of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Number of the embedding block, [V, C].
    pub embed: usize,
    /// Blocks of each layer.
    pub layers: Vec<LayerBlocks>,
    /// Number of the final norm's gain, C numbers.
    pub norm: usize,
    /// Number of the head block, [V, C]; equal to `embed` where tied.
    pub head: usize,
}

/// Tells whether the reference freezes the parameter of this name.
///
/// Source: mt-unlearn `networks.py`, a plain suffix test; so `input_layernorm.weight` is caught by `norm`.
pub fn is_frozen(name: &str) -> bool {
    const FROZEN: [&str; 9] = [
        "wte",
        "wpe",
        "embed_tokens",
        "embed_positions",
        "rotary_emb",
        "lm_head",
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

    fn one(&mut self, name: &str, shape: &[usize]) -> usize {
        self.add(name.to_owned(), vec![Part { name: name.to_owned(), shape: shape.to_vec() }])
    }
}

impl Layout {
    /// Returns the tensors of each block as a rule of the caller's own is told of them.
    pub fn places(&self) -> Vec<Vec<TensorPlace<'_>>> {
        fn place(part: &Part) -> TensorPlace<'_> {
            TensorPlace { name: &part.name, shape: &part.shape }
        }
        self.blocks.iter().map(|block| block.parts.iter().map(place).collect()).collect()
    }

    /// Lists the blocks of a model of this configuration.
    pub fn new(config: &ModelConfig, train: Train) -> Self {
        let mut b = Builder { blocks: Vec::new(), train };
        let (c, d, f) = (config.width, config.head_width, config.ffn);
        let (hd, gd) = (config.heads * d, config.kv_heads * d);
        let embed = b.one("model.embed_tokens.weight", &[config.vocab, c]);
        let layers = (0..config.layers)
            .map(|l| {
                let at = |tail: &str| format!("model.layers.{l}.{tail}");
                let parts =
                    |module: &str, tail: &str, items: &[(&str, usize)], i: Option<usize>| {
                        items
                            .iter()
                            .map(|(name, o)| Part {
                                name: at(&format!("{module}.{name}_proj.{tail}")),
                                shape: std::iter::once(*o).chain(i).collect(),
                            })
                            .collect::<Vec<_>>()
                    };
                let qkv = [("q", hd), ("k", gd), ("v", gd)];
                let gate_up = [("gate", f), ("up", f)];
                LayerBlocks {
                    norm1: b.one(&at("input_layernorm.weight"), &[c]),
                    qkv: b.add(at("qkv.weight"), parts("self_attn", "weight", &qkv, Some(c))),
                    qkv_bias: config
                        .qkv_bias
                        .then(|| b.add(at("qkv.bias"), parts("self_attn", "bias", &qkv, None))),
                    qk_norm: config.qk_norm.then(|| {
                        ["q", "k"].map(|x| b.one(&at(&format!("self_attn.{x}_norm.weight")), &[d]))
                    }),
                    out: b.one(&at("self_attn.o_proj.weight"), &[c, hd]),
                    out_bias: config.out_bias.then(|| b.one(&at("self_attn.o_proj.bias"), &[c])),
                    norm2: b.one(&at("post_attention_layernorm.weight"), &[c]),
                    gate_up: b.add(at("gate_up.weight"), parts("mlp", "weight", &gate_up, Some(c))),
                    gate_up_bias: config
                        .mlp_bias
                        .then(|| b.add(at("gate_up.bias"), parts("mlp", "bias", &gate_up, None))),
                    down: b.one(&at("mlp.down_proj.weight"), &[c, f]),
                    down_bias: config.mlp_bias.then(|| b.one(&at("mlp.down_proj.bias"), &[c])),
                }
            })
            .collect();
        let norm = b.one("model.norm.weight", &[c]);
        let head = if config.tied { embed } else { b.one("lm_head.weight", &[config.vocab, c]) };
        Self { blocks: b.blocks, embed, layers, norm, head }
    }

    /// Returns the number of parameters that train.
    pub fn trainable(&self) -> usize {
        self.blocks.iter().filter(|b| b.trainable).map(Block::len).sum()
    }

    /// Returns the number of parameters.
    pub fn parameters(&self) -> usize {
        self.blocks.iter().map(Block::len).sum()
    }

    /// Returns the length of the longest block of the layers.
    pub fn longest_layer_block(&self) -> usize {
        let ends = [self.embed, self.head];
        let inner = |(i, b): (usize, &Block)| (!ends.contains(&i)).then(|| b.len());
        self.blocks.iter().enumerate().filter_map(inner).max().unwrap_or(0)
    }

    /// Checks name, shape and dtype of every tensor before anything large is allocated.
    ///
    /// Tensors the model does not have are refused too, apart from those that older exporters left behind.
    pub fn check(&self, weights: &Weights) -> Result<()> {
        let parts = || self.blocks.iter().flat_map(|b| &b.parts);
        for part in parts() {
            let Some(info) = weights.info(&part.name) else {
                return Err(Error::model(format!(
                    "{}: missing from the weights, wanted shape {:?} by config.json",
                    part.name, part.shape
                ))
                .hint("the files are of another architecture than config.json says, or a shard is missing"));
            };
            if info.shape != part.shape {
                return Err(Error::model(format!(
                    "{}: shape {:?} in file, {:?} from config.json",
                    part.name, info.shape, part.shape
                )));
            }
            if !info.dtype.is_float() {
                return Err(Error::model(format!(
                    "{}: dtype {} in file, wanted F32, F16 or BF16",
                    part.name, info.dtype
                ))
                .hint("quantised weights cannot be trained; start from the unquantised model"));
            }
        }
        let known: std::collections::HashSet<&str> = parts().map(|p| p.name.as_str()).collect();
        let extra: Vec<&str> = weights
            .names()
            .filter(|name| !known.contains(name) && !name.ends_with("rotary_emb.inv_freq"))
            .filter(|name| !(*name == "lm_head.weight" && self.head == self.embed))
            .collect();
        match extra.first() {
            None => Ok(()),
            Some(first) => Err(Error::model(format!(
                "{first}: in the weights but not in the architecture of config.json ({} such)",
                extra.len()
            ))),
        }
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
    }
}

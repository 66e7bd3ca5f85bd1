//! config.json and generation_config.json from the keys of a GGUF file.

use serde_json::{Map, Value, json};

use super::rope;
use crate::error::{Error, Result, nearest};
use crate::io::gguf::{Gguf, show};
use crate::model::config::RopeScaling;

/// The architectures that can be imported.
pub(super) const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Name of the tensor of rotary factors.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Keys whose setting changes the computation in a way that config.json cannot say, and the values that change nothing.
const NEUTRAL: [(&str, &[f64]); 8] = [
    ("expert_count", &[0.0]),
    ("logit_scale", &[1.0, 0.0]),
    ("embedding_scale", &[1.0, 0.0]),
    ("residual_scale", &[1.0, 0.0]),
    ("attention.scale", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
];

/// The keys of one architecture, read with errors that name them.
pub(super) struct Keys<'a> {
    pub(super) file: &'a Gguf,
    pub(super) architecture: &'static str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(file: &'a Gguf) -> Result<Self> {
        let name = file
            .text("general.architecture")?
            .ok_or_else(|| Error::model("key general.architecture is missing"))?;
        match ARCHITECTURES.into_iter().find(|known| *known == name) {
            Some(architecture) => Ok(Self { file, architecture }),
            None => {
                let known = ARCHITECTURES.join(", ");
                let near = nearest(name, ARCHITECTURES);
                let near = near.map(|n| format!("; nearest is {n}")).unwrap_or_default();
                let name = show(name);
                Err(Error::model(format!(
                    "key general.architecture: architecture `{name}` is not supported"
                ))
                .hint(format!("known are {known}{near}")))
            }
        }
    }

    fn key(&self, tail: &str) -> String {
        format!("{}.{tail}", self.architecture)
    }

    fn optional_size(&self, tail: &str) -> Result<Option<usize>> {
        let key = self.key(tail);
        match self.file.whole(&key)? {
            None => Ok(None),
            Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
            Some(n) => Err(Error::model(format!(
                "key {key}: wanted a whole number from 1 to 2^31, got {n}"
            ))),
        }
    }

    fn size(&self, tail: &str) -> Result<usize> {
        let value = self.optional_size(tail)?;
        value.ok_or_else(|| Error::model(format!("key {} is missing", self.key(tail))))
    }

    fn number(&self, tail: &str) -> Result<Option<f64>> {
        self.file.number(&self.key(tail))
    }

    fn has(&self, tensor: &str) -> bool {
        self.file.tensor(tensor).is_some()
    }

    fn check_neutral(&self) -> Result<()> {
        for (tail, values) in NEUTRAL {
            if let Some(x) = self.number(tail)?
                && !values.contains(&x)
            {
                let wanted = values[0];
                return Err(Error::model(format!(
                    "key {}: {x} is not supported, wanted {wanted}",
                    self.key(tail)
                )));
            }
        }
        let window = self.number("attention.sliding_window")?.unwrap_or(0.0);
        let context = self.number("context_length")?.unwrap_or(0.0);
        if window > 0.0 && window < context {
            return Err(Error::model(format!(
                "key {}: a sliding window of {window} is not supported",
                self.key("attention.sliding_window")
            )));
        }
        Ok(())
    }

    /// Returns config.json; `vocab` is the number of rows of the embedding.
    pub(super) fn config(&self, dtype: Option<&str>) -> Result<Value> {
        self.check_neutral()?;
        let layers = self.size("block_count")?;
        // Every layer has at least nine tensors: larger counts would only cost memory before they fail.
        if layers > self.file.tensors().len() / 9 {
            return Err(Error::model(format!(
                "key {}: {layers} layers, but the file has only {} tensors",
                self.key("block_count"),
                self.file.tensors().len()
            )));
        }
        let width = self.size("embedding_length")?;
        let heads = self.size("attention.head_count")?;
        let kv_heads = self.optional_size("attention.head_count_kv")?.unwrap_or(heads);
        let rotated = self.optional_size("rope.dimension_count")?;
        let head_width = match self.optional_size("attention.key_length")?.or(rotated) {
            Some(d) => d,
            None if width.is_multiple_of(heads) => width / heads,
            None => {
                return Err(Error::model(format!(
                    "key {}: missing, and {width} wide rows are no multiple of {heads} heads",
                    self.key("attention.key_length")
                )));
            }
        };
        let values = self.optional_size("attention.value_length")?.unwrap_or(head_width);
        for (tail, n) in
            [("rope.dimension_count", rotated), ("attention.value_length", Some(values))]
        {
            if let Some(n) = n.filter(|n| *n != head_width) {
                return Err(Error::model(format!(
                    "key {}: {n} is not supported, wanted the head width {head_width}",
                    self.key(tail)
                )));
            }
        }
        if !head_width.is_multiple_of(2) {
            let key = self.key("attention.key_length");
            return Err(Error::model(format!("key {key}: head width {head_width} is odd")));
        }
        let embed = self.file.tensor("token_embd.weight");
        let rows = embed.ok_or_else(|| Error::model("tensor token_embd.weight is missing"))?.rows();
        let vocab = self.optional_size("vocab_size")?.unwrap_or(rows);
        let context = self.size("context_length")?;
        let eps = self.number("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
            let key = self.key("attention.layer_norm_rms_epsilon");
            Error::model(format!("key {key} is missing"))
        })?;
        // llama.cpp takes this base too where the key is missing.
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        if theta <= 0.0 {
            let key = self.key("rope.freq_base");
            return Err(Error::model(format!("key {key}: {theta} must be positive")));
        }
        let rope = rope_json(theta, &self.rope_scaling(theta, head_width)?);
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        let class = match self.architecture {
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            _ => "LlamaForCausalLM",
        };
        put("architectures", json!([class]));
        put("model_type", json!(self.architecture));
        put("hidden_size", json!(width));
        put("num_hidden_layers", json!(layers));
        put("num_attention_heads", json!(heads));
        put("num_key_value_heads", json!(kv_heads));
        put("head_dim", json!(head_width));
        put("intermediate_size", json!(self.size("feed_forward_length")?));
        put("vocab_size", json!(vocab));
        put("max_position_embeddings", json!(context));
        put("rms_norm_eps", json!(eps));
        put("rope_theta", json!(theta));
        // transformers 5 reads the first, transformers 4 the second.
        if rope["rope_type"] != "default" {
            let mut scaling = rope.clone();
            scaling.remove("rope_theta");
            put("rope_scaling", Value::Object(scaling));
        }
        put("rope_parameters", Value::Object(rope));
        put("hidden_act", json!("silu"));
        let llama = self.architecture == "llama";
        if self.architecture != "qwen2" {
            // Qwen2 always has these biases; its config has no word for them.
            put("attention_bias", json!(llama && self.has("blk.0.attn_q.bias")));
        }
        if llama {
            put("mlp_bias", json!(self.has("blk.0.ffn_gate.bias")));
        } else {
            put("use_sliding_window", json!(false));
        }
        put("attention_dropout", json!(0.0));
        put("tie_word_embeddings", json!(!self.has("output.weight")));
        for name in ["bos", "eos", "pad"] {
            if let Some(id) = self.token(name)? {
                put(&format!("{name}_token_id"), json!(id));
            }
        }
        put("dtype", json!(dtype));
        put("torch_dtype", json!(dtype));
        put("use_cache", json!(true));
        Ok(Value::Object(config))
    }

    /// Returns generation_config.json.
    pub(super) fn generation(&self) -> Result<Value> {
        let mut config = Map::new();
        if let Some(id) = self.token("bos")? {
            config.insert("bos_token_id".into(), json!(id));
        }
        // Chat models may end a turn with another token than a text; generation must stop at both.
        let (eos, eot) = (self.token("eos")?, self.token("eot")?);
        match (eos, eot.filter(|id| Some(*id) != eos)) {
            (Some(eos), None) => config.insert("eos_token_id".into(), json!(eos)),
            (Some(eos), Some(eot)) => config.insert("eos_token_id".into(), json!([eos, eot])),
            (None, eot) => eot.and_then(|id| config.insert("eos_token_id".into(), json!(id))),
        };
        if let Some(id) = self.token("pad")? {
            config.insert("pad_token_id".into(), json!(id));
        }
        config.insert("do_sample".into(), json!(false));
        Ok(Value::Object(config))
    }

    /// Returns the id of the special token `name`: bos, eos, pad, unk or eot.
    pub(super) fn token(&self, name: &str) -> Result<Option<u64>> {
        let long = match name {
            "pad" => "padding",
            "unk" => "unknown",
            other => other,
        };
        self.file.whole(&format!("tokenizer.ggml.{long}_token_id"))
    }

    fn rope_scaling(&self, theta: f64, width: usize) -> Result<RopeScaling> {
        let key = self.key("rope.scaling.type");
        let linear = match self.file.text(&key)? {
            Some("linear") => {
                let factor = self.number("rope.scaling.factor")?.ok_or_else(|| {
                    Error::model(format!("key {} is missing", self.key("rope.scaling.factor")))
                })?;
                Some(factor)
            }
            None => self.number("rope.scale_linear")?,
            Some("none") => None,
            Some(other) => {
                return Err(Error::model(format!(
                    "key {key}: rope scaling `{}` is not supported",
                    show(other)
                ))
                .hint("known are none, linear, and llama3 as a tensor of factors"));
            }
        };
        if let Some(factor) = linear.filter(|factor| *factor <= 0.0) {
            return Err(Error::model(format!("key {key}: factor {factor} must be positive")));
        }
        let linear = linear.filter(|factor| *factor != 1.0);
        let Some(tensor) = self.file.tensor(ROPE_FREQS) else {
            return Ok(linear.map_or(RopeScaling::Default, |factor| RopeScaling::Linear { factor }));
        };
        if linear.is_some() {
            return Err(Error::model(format!(
                "tensor {ROPE_FREQS}: is there beside {key} = linear, only one is supported"
            )));
        }
        if tensor.shape != [width / 2] {
            return Err(Error::model(format!(
                "tensor {ROPE_FREQS}: shape {:?}, wanted [{}]",
                tensor.shape,
                width / 2
            )));
        }
        let mut factors = vec![0.0; tensor.row()];
        self.file.read_row(tensor, 0, &mut factors)?;
        rope::reconstruct(theta, width, &factors).ok_or_else(|| {
            Error::model(format!(
                "tensor {ROPE_FREQS}: its {} factors are neither linear nor llama3 scaling",
                factors.len()
            ))
            .hint("config.json cannot describe them; start from the original model folder")
        })
    }
}

fn rope_json(theta: f64, scaling: &RopeScaling) -> Map<String, Value> {
    let value = match scaling {
        RopeScaling::Default => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low, high, original } => {
            // transformers wants a whole number here, and complains about others.
            let original = match original.fract() == 0.0 {
                true => json!(*original as u64),
                false => json!(original),
            };
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            })
        }
    };
    let mut map = value.as_object().cloned().unwrap_or_default();
    map.insert("rope_theta".into(), json!(theta));
    map
}

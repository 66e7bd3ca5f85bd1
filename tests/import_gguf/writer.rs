//! Writes small GGUF files and knows what their blocks hold, independently of the crate.

use std::collections::BTreeMap;

use half::{bf16, f16};

/// A value of the header.
#[derive(Clone)]
pub enum V {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

/// A tensor: shape with the slowest axis first, ggml's number of the format, bytes.
#[derive(Clone)]
pub struct T {
    pub shape: Vec<usize>,
    pub id: u32,
    pub bytes: Vec<u8>,
}

/// A file in the making.
#[derive(Clone)]
pub struct Writer {
    pub keys: BTreeMap<String, V>,
    pub tensors: BTreeMap<String, T>,
}

pub const WIDTH: usize = 64;
pub const HEAD: usize = 16;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const FFN: usize = 96;
pub const LAYERS: usize = 2;
pub const MERGES: [&str; 6] = ["Ġ t", "h e", "Ġt he", "1 2", "12 3", "123 4"];

pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_0: u32 = 2;
pub const Q4_1: u32 = 3;
pub const Q8_0: u32 = 8;
pub const BF16: u32 = 30;

/// A generator of test numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number between -1 and 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Makes a tensor of this format out of random blocks.
    pub fn tensor(&mut self, shape: &[usize], id: u32) -> T {
        let len: usize = shape.iter().product();
        let mut bytes = Vec::new();
        let scale = |x: f32| f16::from_f32(x).to_le_bytes();
        match id {
            F32 => (0..len).for_each(|_| bytes.extend((0.2 * self.unit()).to_le_bytes())),
            F16 => (0..len).for_each(|_| bytes.extend(scale(0.2 * self.unit()))),
            BF16 => {
                (0..len)
                    .for_each(|_| bytes.extend(bf16::from_f32(0.2 * self.unit()).to_le_bytes()));
            }
            _ => {
                assert!(shape.last().unwrap().is_multiple_of(32));
                for _ in 0..len / 32 {
                    let (d, m) = (self.unit(), self.unit());
                    let n = match id {
                        Q8_0 => {
                            bytes.extend(scale(0.002 * d));
                            32
                        }
                        Q4_0 => {
                            bytes.extend(scale(0.03 * d));
                            16
                        }
                        _ => {
                            bytes.extend(scale(0.02 * d));
                            bytes.extend(scale(0.15 * m));
                            16
                        }
                    };
                    bytes.extend((0..n).map(|_| self.next() as u8));
                }
            }
        }
        T { shape: shape.to_vec(), id, bytes }
    }
}

impl T {
    /// Returns the numbers, computed in the plainest way.
    pub fn values(&self) -> Vec<f32> {
        let b = &self.bytes;
        let f16_at = |i: usize| f16::from_le_bytes([b[i], b[i + 1]]).to_f32();
        let len: usize = self.shape.iter().product();
        (0..len)
            .map(|i| {
                let (block, j) = (i / 32, i % 32);
                let nibble = |start: usize| {
                    let byte = b[start + j % 16];
                    if j < 16 { byte & 15 } else { byte >> 4 }
                };
                match self.id {
                    F32 => f32::from_le_bytes(b[4 * i..4 * i + 4].try_into().unwrap()),
                    F16 => f16_at(2 * i),
                    BF16 => bf16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32(),
                    Q8_0 => f16_at(34 * block) * f32::from(b[34 * block + 2 + j] as i8),
                    Q4_0 => f16_at(18 * block) * (f32::from(nibble(18 * block + 2)) - 8.0),
                    Q4_1 => {
                        let (d, m) = (f16_at(20 * block), f16_at(20 * block + 2));
                        d * f32::from(nibble(20 * block + 4)) + m
                    }
                    _ => unreachable!(),
                }
            })
            .collect()
    }
}

/// Returns GPT-2's letters for the 256 bytes.
fn alphabet() -> Vec<String> {
    let plain = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    (0..256)
        .map(|b| {
            let code = if plain(b) {
                b
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect()
}

pub fn tokens() -> Vec<String> {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"];
    let merged = MERGES.iter().map(|merge| merge.replace(' ', ""));
    special.iter().map(|s| (*s).to_owned()).chain(alphabet()).chain(merged).collect()
}

impl Writer {
    /// A model of architecture `arch`; tensors with rows of 32s have format `id`, the others F32.
    pub fn model(arch: &str, id: u32) -> Self {
        let mut keys = BTreeMap::new();
        let mut put = |key: &str, v: V| keys.insert(key.replace("ARCH", arch), v);
        let tokens = tokens();
        let vocab = tokens.len();
        put("general.architecture", V::Text(arch.into()));
        put("general.name", V::Text("Tiny".into()));
        put("ARCH.block_count", V::U32(LAYERS as u32));
        put("ARCH.context_length", V::U32(128));
        put("ARCH.embedding_length", V::U32(WIDTH as u32));
        put("ARCH.feed_forward_length", V::U32(FFN as u32));
        put("ARCH.attention.head_count", V::U32(HEADS as u32));
        put("ARCH.attention.head_count_kv", V::U32(KV_HEADS as u32));
        put("ARCH.attention.layer_norm_rms_epsilon", V::F32(1e-5));
        put("ARCH.rope.freq_base", V::F32(10_000.0));
        put("tokenizer.ggml.model", V::Text("gpt2".into()));
        put("tokenizer.ggml.pre", V::Text("smollm".into()));
        let mut kinds = vec![1; vocab];
        kinds[..4].copy_from_slice(&[3, 3, 3, 4]);
        put("tokenizer.ggml.token_type", V::I32s(kinds));
        put("tokenizer.ggml.tokens", V::Texts(tokens));
        put("tokenizer.ggml.merges", V::Texts(MERGES.map(str::to_owned).to_vec()));
        put("tokenizer.ggml.bos_token_id", V::U32(1));
        put("tokenizer.ggml.eos_token_id", V::U32(2));
        put("tokenizer.chat_template", V::Text("{{ messages }}\n".into()));
        let mut random = Random(u64::from(id) + 1);
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], id: u32| {
            tensors.insert(name, random.tensor(shape, id));
        };
        add("token_embd.weight".into(), &[vocab, WIDTH], id);
        add("output_norm.weight".into(), &[WIDTH], F32);
        for l in 0..LAYERS {
            let at = |name: &str| format!("blk.{l}.{name}");
            let (q, kv) = (HEADS * HEAD, KV_HEADS * HEAD);
            add(at("attn_norm.weight"), &[WIDTH], F32);
            add(at("ffn_norm.weight"), &[WIDTH], F32);
            add(at("attn_q.weight"), &[q, WIDTH], id);
            add(at("attn_k.weight"), &[kv, WIDTH], id);
            add(at("attn_v.weight"), &[kv, WIDTH], id);
            add(at("attn_output.weight"), &[WIDTH, q], id);
            add(at("ffn_gate.weight"), &[FFN, WIDTH], id);
            add(at("ffn_up.weight"), &[FFN, WIDTH], id);
            add(at("ffn_down.weight"), &[WIDTH, FFN], id);
            if arch == "qwen2" {
                add(at("attn_q.bias"), &[q], F32);
                add(at("attn_k.bias"), &[kv], F32);
                add(at("attn_v.bias"), &[kv], F32);
            }
            if arch == "qwen3" {
                add(at("attn_q_norm.weight"), &[HEAD], F32);
                add(at("attn_k_norm.weight"), &[HEAD], F32);
            }
        }
        Self { keys, tensors }
    }

    pub fn set(&mut self, key: &str, value: V) {
        self.keys.insert(key.into(), value);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.set(key, V::Text(value.into()));
    }

    pub fn add(&mut self, name: &str, shape: &[usize], id: u32) {
        let tensor = Random(name.len() as u64).tensor(shape, id);
        self.tensors.insert(name.into(), tensor);
    }

    /// Returns the file.
    pub fn bytes(&self, version: u32) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            match value {
                V::U32(n) => out.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
                V::F32(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
                V::Bool(b) => out.extend([7, 0, 0, 0, u8::from(*b)]),
                V::Text(s) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, s);
                }
                V::Texts(list) => {
                    out.extend([9, 0, 0, 0, 8, 0, 0, 0]);
                    out.extend((list.len() as u64).to_le_bytes());
                    list.iter().for_each(|s| text(&mut out, s));
                }
                V::I32s(list) => {
                    out.extend([9, 0, 0, 0, 5, 0, 0, 0]);
                    out.extend((list.len() as u64).to_le_bytes());
                    list.iter().for_each(|n| out.extend(n.to_le_bytes()));
                }
            }
        }
        let mut offset = 0u64;
        for (name, tensor) in &self.tensors {
            text(&mut out, name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
            out.extend(tensor.id.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + tensor.bytes.len() as u64).next_multiple_of(32);
        }
        for tensor in self.tensors.values() {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

//! Generation with a small model, in the simulator and on the CPU: the same tokens, greedy and drawn.

use crate::configs::{LLAMA, NEOX};
use crate::support::model::weights;
use crate::support::{Random, simulated};
use nepenthe::backend::cpu::Cpu;
use nepenthe::backend::gpu::Precision;
use nepenthe::backend::gpu::driver::sim::Timing;
use nepenthe::conformance::{Dtype, tol};
use nepenthe::model::generate::{Choice, Request, generate};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig, Workspace};
use nepenthe::ops::{
    Compute, LinearArgs, LinearShape, Memory, Ops, PackData, Role, Sampling, State, Transfer,
};

/// Biases, head norms, a head width without tensor-core attention, a tied head.
const QWEN3: &str = r#"{"model_type":"qwen3","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
    "head_dim":12,"hidden_act":"silu","vocab_size":404,"num_hidden_layers":2,"intermediate_size":41,
    "rms_norm_eps":1e-5,"tie_word_embeddings":true}"#;
/// LayerNorm, learned positions, transposed matrices, the tanh form of GELU, biases everywhere.
const GPT2: &str = r#"{"model_type":"gpt2","n_embd":64,"n_head":2,"n_layer":2,"n_inner":88,"n_positions":26,
    "activation_function":"gelu_new","vocab_size":404}"#;

/// Capped scores and logits, layers of two kinds.
const GEMMA2: &str = r#"{"model_type":"gemma2","hidden_size":64,"num_attention_heads":4,
    "num_key_value_heads":2,"head_dim":16,"hidden_activation":"gelu_pytorch_tanh","vocab_size":101,
    "num_hidden_layers":3,"intermediate_size":88,"query_pre_attn_scalar":20,"sliding_window":5,
    "attn_logit_softcapping":2.0,"final_logit_softcapping":3.0}"#;

fn prompts(vocab: usize) -> Vec<Vec<u32>> {
    let mut random = Random::new(6);
    let mut prompt = |len: usize| (0..len).map(|_| random.below(vocab) as u32).collect();
    [5, 1, 17, 3, 9].map(&mut prompt).to_vec()
}

fn load<O: Ops>(ops: &O, config: &str) -> Model<O> {
    let config = ModelConfig::parse(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = weights(&config, 54, folder.path());
    Model::load(ops, config, &file, &Keeping::inference()).unwrap()
}

fn continued<O: Ops>(ops: &O, config: &str, request: &Request) -> Vec<Vec<u32>> {
    let mut model = load(ops, config);
    let prompts = prompts(model.config.vocab);
    generate(ops, &mut model, &prompts, request).unwrap()
}

/// Returns the CPU's logits after `ids`.
fn logits(config: &str, ids: &[u32]) -> Vec<f32> {
    let ops = Cpu::<f32>::new();
    let model = load(&ops, config);
    let (n, v) = (ids.len(), model.config.vocab);
    let mut ws = Workspace::new(&ops, &model, n, None).unwrap();
    let mut data = PackData::default();
    data.push(ids, |_| 0.0);
    let mut pack = ops.pack(n).unwrap();
    ops.load_pack(&mut pack, &data);
    model.forward(&ops, &pack, n, Role::Evaluated, &mut ws);
    let mut scratch = model.block_scratch(&ops, model.layout.head).unwrap();
    let w = ops.view(&model.params[model.layout.head], Role::Evaluated, &mut scratch);
    let mut z = ops.act(n * v).unwrap();
    let shape = LinearShape { n, o: v, i: model.config.width };
    ops.linear(LinearArgs { shape, x: &ws.h, w, bias: None }, None, &mut z);
    z[(n - 1) * v..n * v].to_vec()
}

/// Returns the length of what two lists have in common at their start.
fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Holds the tokens of the simulator to those of the CPU.
///
/// Activations are rounded differently there, so a token may be another one where two are about equally probable (or
/// a draw falls between two), and all that follows it then is. A greedy one must be such a token; of all tokens two
/// thirds must be equal, where a wrong draw, slot or position would leave next to none.
fn compare(config: &str, choice: Choice, precision: Precision) {
    let Some(ops) = simulated(Timing::ALL[0], precision) else { return };
    let request = Request { max_new_tokens: 9, end_tokens: vec![], choice, batch: 2 };
    let got = continued(&ops, config, &request);
    let want = continued(&Cpu::<f32>::new(), config, &request);
    let name = format!("{choice:?} {precision:?}");
    let mut equal = 0;
    for ((prompt, got), want) in
        prompts(ModelConfig::parse(config).unwrap().vocab).iter().zip(&got).zip(&want)
    {
        assert_eq!((got.len(), want.len()), (9, 9), "{name}");
        let same = shared(got, want);
        equal += same;
        if choice == Choice::Greedy && same < 9 {
            let z = logits(config, &[prompt, &want[..same]].concat());
            let dtype = if precision == Precision::Bf16 { Dtype::Bf16 } else { Dtype::Tf32 };
            let top = z.iter().fold(0.0, |a: f32, z| a.max(z.abs()));
            let off = z[want[same] as usize] - z[got[same] as usize];
            let allowed = 2.0 * tol(dtype, 64) * f64::from(top);
            eprintln!(
                "{name}: token {same} of {prompt:?}: {off} below the largest, {allowed} allowed"
            );
            assert!(f64::from(off) <= allowed, "{name}");
        }
    }
    assert!(equal >= 5 * 9 * 2 / 3, "{name}: got {got:?}, want {want:?}");
    // One prompt ends in the middle while others go on, all in one batch: the rest stays the same.
    let end = got[2][4];
    let ended = Request { end_tokens: vec![end], batch: 5, ..request };
    let cut: Vec<Vec<u32>> = got
        .into_iter()
        .map(|ids| match ids.iter().position(|id| *id == end) {
            Some(at) => ids[..=at].to_vec(),
            None => ids,
        })
        .collect();
    assert_eq!(continued(&ops, config, &ended), cut, "{name}");
}

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    for config in [LLAMA, QWEN3, GPT2, NEOX, GEMMA2] {
        compare(config, Choice::Greedy, Precision::Fp32);
        compare(config, Choice::Greedy, Precision::Bf16);
    }
}

#[test]
fn drawn_tokens_are_those_of_the_cpu() {
    for (temperature, top_p) in [(1.0, 1.0), (0.7, 0.8)] {
        let choice = Choice::Sample { sampling: Sampling { temperature, top_p }, seed: 3 };
        compare(LLAMA, choice, Precision::Fp32);
        compare(QWEN3, choice, Precision::Fp32);
        compare(GEMMA2, choice, Precision::Fp32);
    }
}

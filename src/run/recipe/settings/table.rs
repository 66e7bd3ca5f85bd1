//! The settings themselves, in the order of the structs.

use super::Type::{Count, Layers, Number, Path, Switch, Word};
use super::{Setting, Type, combinations, losses, metrics, penalties};

const fn s(
    key: &'static str,
    kind: Type,
    default: &'static str,
    unit: &'static str,
    meaning: &'static str,
    when: &'static str,
) -> Setting {
    Setting { key, kind, default, unit, meaning, when }
}

const EMPTY: &str = "\"\"";
const DUAL: &str = "with method.dual_rate above 0";
const SHIELD: &str = "with method.shield above 0";
const ADAMW: &str = "with optim.optimizer=adamw";

/// Every setting, section by section.
#[rustfmt::skip]
pub const SETTINGS: [Setting; 78] = [
    s("seed", Count, "0", "", "Root seed of sampling and rounding. Runs of equal settings and seed give equal bytes on the same backend.", ""),

    s("model.path", Path, EMPTY, "", "The model folder to start from; `--model` sets it.", ""),
    s("model.base", Path, EMPTY, "", "The base model that some losses compare with; empty: the starting model.", "with a loss that reads a base model (docs/methods.md lists them)"),
    s("model.train", Word(|| vec!["body", "all", "down"]), "\"body\"", "", "What trains. `body`, the default, freezes the embeddings, the head and the norms and trains everything else; `all` trains everything; `down` trains only the matrices that end the MLPs.", ""),
    s("model.train_layers", Layers, EMPTY, "", "The layers that train, counted from 0: one, as 5, or a range, as \"5-7\"; empty: all.", "with model.train=body or down"),
    s("model.state", Word(|| vec!["auto", "exact", "compact", "tiny", "approx"]), "\"auto\"", "", "How weights, teacher and optimizer state are stored. `exact`: fp32, 16 bytes per trained parameter with SGD; `compact`: 10 bytes; `tiny`: 9, SGD only; `approx`: 8, loses most of small steps; `auto`: compact from 3e9 trained parameters up, else exact.", ""),
    s("model.teacher", Word(|| vec!["full", "drift"]), "\"full\"", "", "How the teacher is stored: `full`, as weights of its own, or `drift`, as the difference to the student. All states but exact store the drift.", "with a teacher and exact state"),
    s("model.save_dtype", Word(|| vec!["source", "f32"]), "\"source\"", "", "The dtype of the written model: `source`, that of each tensor in the starting folder, or `f32`.", ""),
    s("model.save_rounding", Word(|| vec!["stochastic", "nearest"]), "\"stochastic\"", "", "How weights are rounded to 16 bits when written: `stochastic` preserves small changes on average, `nearest` loses changes below half a step.", "for 16-bit models"),

    s("data.forget", Path, EMPTY, "", "The forget set; `--forget` sets it. For `finetune` the training set.", ""),
    s("data.retain", Path, EMPTY, "", "The retain set; `--retain` sets it.", "with a penalty or method.shield above 0"),
    s("data.alternate", Path, EMPTY, "", "A preferred document for each forget document, in order.", "with method.loss=dpo"),
    s("data.forget_context", Count, "1024", "tokens", "Longest forget document; longer ones are truncated, or split with data.forget_chunking.", ""),
    s("data.retain_context", Count, "512", "tokens", "Longest retain document; longer ones are split with data.retain_chunking, else truncated.", "with a penalty or method.shield above 0"),
    s("data.forget_chunking", Switch, "false", "", "Split longer forget documents into chunks instead of truncating them.", ""),
    s("data.retain_chunking", Switch, "true", "", "Split longer retain documents into chunks instead of truncating them.", "with a penalty or method.shield above 0"),
    s("data.order", Word(|| vec!["replacement", "epochs"]), "\"replacement\"", "", "How documents are sampled. `replacement`, the default, samples every document of a batch at random from the whole set, so that some are seen twice before others are seen once; `epochs` goes through all documents in a random order, then through the next.", ""),
    s("data.cache", Path, EMPTY, "", "The folder of cached token files; empty: the user's cache folder.", ""),

    s("method.loss", Word(losses), "\"nlul\"", "", "The loss on forget documents, minimized; docs/methods.md has the formulas. Gradient ascent is `ll`.", ""),
    s("method.penalty", Word(penalties), "\"qkl\"", "", "The penalty on retain documents, or `none`.", ""),
    s("method.second_penalty", Word(penalties), "\"none\"", "", "A second penalty on the same documents, or `none`.", "with a first penalty"),
    s("method.forget_weight", Number, "0.05", "", "Weight of the loss (alpha in the paper).", ""),
    s("method.retain_weight", Number, "1.0", "", "Weight of the penalty (beta in the paper); its starting value with method.dual_rate above 0.", "with a penalty"),
    s("method.second_weight", Number, "1.0", "", "Weight of the second penalty.", "with a second penalty"),
    s("method.teacher_rate", Number, "0.005", "share per step", "The part of the way to the student that the teacher moves each step (delta in the paper); 0 freezes the teacher at the start.", "with a penalty that reads the teacher, or damping"),
    s("method.damping", Number, "5.0", "", "How strongly the student is pulled towards the teacher; 0: not at all.", ""),
    s("method.combine", Word(combinations), "\"sum\"", "", "How the gradients of loss and penalties become one direction.", "with a penalty"),
    s("method.shield", Number, "0.0", "", "Gradient projection (PGU): the share of the inputs of each matrix on retain documents that the loss leaves alone; 0: none.", ""),
    s("method.shield_rank", Count, "256", "directions", "The most directions of each matrix's inputs that are left alone.", SHIELD),
    s("method.shield_documents", Count, "64", "documents", "Number of retain documents, the first ones, from which these directions are computed.", SHIELD),
    s("method.dual_rate", Number, "0.0", "", "Step size of the penalty's weight as a dual variable (PDU); 0 keeps the weight constant.", "with a penalty"),
    s("method.dual_bound", Number, "0.0", "unit of the penalty", "The value that the penalty is to stay below.", DUAL),
    s("method.tol", Number, "0.02", "", "NLUL: added to 1 - p; caps the weight of a token at 1/tol.", "with method.loss=nlul"),
    s("method.nlul_threshold", Number, "0.0", "probability", "NLUL: tokens with p at or below it are left alone; 0: none.", "with method.loss=nlul"),
    s("method.beta_npo", Number, "0.1", "", "NPO and DPO: inverse temperature.", "with method.loss=npo, npo_mt, npo_muse or dpo"),
    s("method.beta_simnpo", Number, "4.5", "", "SimNPO: inverse temperature.", "with method.loss=simnpo or simnpo_ou"),
    s("method.delta_simnpo", Number, "0.0", "nats per token", "SimNPO: the mean NLL at which the weight of a document is half of its maximum.", "with method.loss=simnpo or simnpo_ou"),
    s("method.beta_undial", Number, "10.0", "", "UNDIAL: what is subtracted from the logit of the target.", "with method.loss=undial or undial_ou"),
    s("method.beta_wga", Number, "1.0", "", "WGA: the power of p.", "with method.loss=wga"),
    s("method.satimp_beta1", Number, "5.0", "", "SatImp: the power of p.", "with method.loss=satimp"),
    s("method.satimp_beta2", Number, "1.0", "", "SatImp: the power of 1 - p.", "with method.loss=satimp"),
    s("method.rmu_layer", Count, "7", "layer, counted from 0", "RMU: the layer after which hidden states are compared.", "with method.loss=rmu or method.penalty=rmu_retain"),
    s("method.rmu_steering", Number, "20.0", "", "RMU: the length of the vector that hidden states of forget documents are moved to.", "with method.loss=rmu"),

    s("optim.optimizer", Word(|| vec!["sgd", "adamw"]), "\"sgd\"", "", "The optimizer: `sgd` with momentum, or `adamw`.", ""),
    s("optim.lr", Number, "5e-4", "", "Learning rate.", ""),
    s("optim.schedule", Word(|| vec!["constant", "linear", "cosine", "paper"]), "\"constant\"", "", "The learning rate over steps. `constant`, `linear` and `cosine` warm up over optim.warmup steps w, step s (from 0) at lr (s+1)/w, then stay or decay to optim.lr_min at the end of the run. `paper` is the schedule of the paper's code: with AdamW, lr/100 for w+1 steps, then a ramp that reaches lr at step 2w, even w=0 having its first step at lr/100; with SGD a constant rate.", ""),
    s("optim.warmup", Count, "0", "steps", "Warm-up steps w; 0: none.", "with optim.schedule=constant, linear or cosine, or with optim.optimizer=adamw"),
    s("optim.lr_min", Number, "0.0", "", "The learning rate at the end of the decay.", "with optim.schedule=linear or cosine"),
    s("optim.momentum", Number, "0.95", "", "SGD momentum.", "with optim.optimizer=sgd"),
    s("optim.b1", Number, "0.9", "", "Decay rate of AdamW's first moment.", ADAMW),
    s("optim.b2", Number, "0.95", "", "Decay rate of AdamW's second moment. (PyTorch's default is 0.999.)", ADAMW),
    s("optim.eps", Number, "1e-8", "", "Added to the root of AdamW's second moment.", ADAMW),
    s("optim.weight_decay", Number, "0.01", "", "AdamW's decoupled weight decay.", ADAMW),
    s("optim.clip", Number, "1.0", "L2 norm", "Gradients of a larger norm are scaled down to it; `inf`: no clipping.", ""),

    s("run.steps", Count, "400", "optimizer steps", "Length of the run; 0 only measures the start model.", "with run.epochs=0"),
    s("run.epochs", Count, "0", "passes over the forget documents", "Length of the run in passes over the forget documents; the number of steps is then computed and printed, and run.steps must not be set too. 0: run.steps counts.", ""),
    s("run.micro_batch", Count, "4", "documents", "Documents in a micro-batch. Losses are averaged over a micro-batch, so with documents of unequal length it changes the result, as other hyperparameters do; for memory change run.pack_tokens.", ""),
    s("run.forget_accum_steps", Count, "10", "micro-batches per step", "Forget micro-batches per optimizer step.", ""),
    s("run.kl_accum_steps", Count, "10", "micro-batches per step", "Retain micro-batches per optimizer step, whatever the penalty (the name is that of the paper's code).", "with a penalty"),
    s("run.pack_tokens", Count, "1024", "tokens", "Tokens that are processed at once. Changes memory and speed only, not the result.", ""),
    s("run.save", Word(|| vec!["auto", "all", "attention", "residual", "input"]), "\"auto\"", "", "Activation checkpointing: what is kept of each layer for the backward pass, the rest being recomputed. `auto`: on a GPU as much as fits, on the CPU all; `all`; `attention`: all but gate and up; `residual`: also without q, k and v; `input`: only the input of each layer. Changes memory and speed only, not the result.", ""),
    s("run.checkpoint_every", Count, "100", "steps", "Steps between checkpoints; 0: only the last.", ""),
    s("run.keep_checkpoints", Count, "2", "checkpoints", "Checkpoints kept.", ""),
    s("run.max_skipped", Count, "3", "steps", "Steps in a row that may be skipped because of a non-finite gradient before the run stops.", ""),

    s("eval.every", Count, "0", "steps", "Steps between evaluations; 0: before and after the run only.", ""),
    s("eval.documents", Count, "32", "documents", "Documents taken from the forget and the retain set where no file is named below. 0 turns these evaluations off: only the files named below are measured, and with none nothing is.", ""),
    s("eval.forget", Path, EMPTY, "", "Documents of `nll_forget`, all of them; empty: from the forget set.", ""),
    s("eval.retain", Path, EMPTY, "", "Documents of `nll_retain`; empty: from the retain set.", ""),
    s("eval.holdout", Path, EMPTY, "", "Documents of `nll_holdout`; empty: not measured.", ""),
    s("eval.verbmem_forget", Path, EMPTY, "", "Prompts of `verbmem_forget`, a .json list of {prompt, gt}; empty: halves of documents.", ""),
    s("eval.verbmem_retain", Path, EMPTY, "", "Prompts of `verbmem_retain`; empty: halves of documents.", ""),
    s("eval.context", Count, "1024", "tokens", "Longest document that is measured.", ""),
    s("eval.max_new_tokens", Count, "128", "tokens", "Tokens generated for each prompt.", ""),
    s("eval.batch", Count, "16", "prompts", "Prompts generated at once.", ""),
    s("eval.retrain", Path, EMPTY, "", "A model that never saw the forget set, measured once for comparison.", ""),
    s("eval.stop_metric", Word(metrics), EMPTY, "", "The metric that ends the run: below eval.stop_val for verbatim memorization (ROUGE-L F1, 0 to 1), above it for an NLL (nats per token); empty: none.", "with eval.every above 0"),
    s("eval.stop_val", Number, "0.0", "unit of the metric", "The bound of eval.stop_metric.", "with eval.stop_metric"),

    s("report.tensorboard", Switch, "false", "", "Also write TensorBoard event files, under tensorboard/ of the run folder.", ""),
];

//! docs/methods.md, generated from the descriptions of the losses and penalties.

use super::{FORGET, Knobs, Normaliser, Objective, PENALTIES, Rows, Span};

const HEAD: &str = "\
# Methods

Generated from the code by `tests/methods_page.rs`; `NEPENTHE_BLESS=1 cargo test --test methods_page` regenerates it.

A run minimizes `method.forget_weight` times a loss on forget documents plus `method.retain_weight` times a penalty on retain
documents, plus `method.second_weight` times a second penalty on the same documents if `method.second_penalty` names one. Every
loss can be combined with every penalty, and with `method.penalty = \"none\"`. The mean teacher is on if `method.teacher_rate` or
`method.damping` is above 0; with both at 0 the teacher stays the starting model, the frozen reference model of other
implementations. The report and `unlearning.json` print the formulas of a run.

`dz` is the gradient at the logits of a token before normalization (`dh` the gradient at a hidden state), with p = softmax(z), y
the next token, V the vocabulary, B documents in a micro-batch, T the longest of them, n the length of one. Where public code
differs from the published method, its variant has a name of its own.

## Published methods

| name | settings |
|---|---|
| gradient ascent | `loss = \"ll\"`, `penalty = \"none\"` |
| GradDiff | `loss = \"ll\"`, `penalty = \"nll\"` |
| KL | `loss = \"ll\"`, `penalty = \"kl\"`, teacher off |
| MUSE `ga_gdr`, `npo_gdr` | `loss = \"ll\"` or `\"npo_muse\"`, `penalty = \"nll\"` |
| MUSE `ga_klr`, `npo_klr` | `loss = \"ll\"` or `\"npo_muse\"`, `penalty = \"kl_muse\"`, teacher off |
| mean teacher + NLUL | `loss = \"nlul\"`, `penalty = \"qkl\"`, teacher on |
| IDK, AltPO | `loss = \"dpo\"`, `data.alternate` with refusals or other answers |
| PDU | `loss = \"pdu\"`, `penalty = \"nll\"`, `dual_rate` above 0 |
| RMU | `loss = \"rmu\"`, `penalty = \"rmu_retain\"`, teacher off, `model.train = \"down\"`, `model.train_layers` of `rmu_layer` and the two before |
| MOLLM | `loss = \"uce\"`, `penalty = \"kl\"`, `second_penalty = \"nll\"`, `combine = \"min_norm\"`, teacher off |
| PGU | `loss = \"ll\"`, `penalty = \"none\"`, `shield` above 0 |
| SLUG | `nepenthe slug`, below |

Gradient ascent, GradDiff, IDK, DPO, NPO, SimNPO and RMU have presets with the settings of their code ([settings.md](settings.md)).
";

const DUAL: &str = "
## The dual variable

With `method.dual_rate` above 0 the weight of the penalty is a dual variable: it starts at `method.retain_weight` and after each
step becomes `max(0, weight + dual_rate (penalty - dual_bound))`, where the penalty is its logged value. It is part of every
checkpoint and of each line of metrics.jsonl. Source: open-unlearning `pdu.py`, with one update per step; a step with a
non-finite gradient leaves it unchanged.
";

const SLUG: &str = "
## SLUG: one step on one matrix

`nepenthe slug --model W --forget FILE --retain FILE --out DIR` computes two gradients once, of the NLL of forget and of retain
documents. For each matrix (q, k and v count as one, and so do gate and up) importance is |g_forget|/|W| and alignment
|cos(g_forget, g_retain)|; up to `--candidates` matrices of the Pareto front are tried. The step of `W + step g_forget` starts
at a tenth of |W|/|g_forget|, doubles while the retain NLL rises by at most `--budget` and the forget NLL is below
`--forget-nll`, and is then bisected, `--evaluations` times. The trial that forgets most within the budget is written;
unlearning.json has all matrices and trials. Source: arXiv 2407.11867, algorithm 1; its code uses image accuracies, and leaves
the choice from the front to the reader.
";

const TASK_VECTOR: &str = "
## Task vectors

`nepenthe task-vector --model W --finetuned W_FT --factor A --out DIR` writes `W - A (W_ft - W_0)`, where W_0 is the model that was
fine-tuned: `--pretrained`, or the model itself. No training; `nepenthe finetune` on the forget set makes W_ft. Each weight is
computed in f64 and rounded once, to W's dtype or, with `--f32`, to fp32. Source: arXiv 2212.04089; muse_bench
`task_vector.py`, which computes the differences in bf16 and whose scripts use A = 5.
";

const COMBINE: &str = "
## Multi-objective combination

`method.combine` sets how the gradients of the loss, f, and of one or two penalties, r and s, all with their weights, become the
descent direction. All but `sum` keep the gradient of each penalty in separate buffers (as many bytes again as the gradients
take) and need the three or six inner products of a step; metrics.jsonl then has the cosine of f and r and the factors. They
require a penalty.

| `method.combine` | direction | source |
|---|---|---|
| `sum` | f + r (+ s) | |
| `project` | f minus its component opposing r, then minus the remaining component opposing s, + r (+ s) | arXiv 2001.06782 (PCGrad), projecting only the loss |
| `min_norm` | a f + b r (+ c s) of minimum norm, with a, b, c at least 0 and summing to 1 | arXiv 1810.04650 (MGDA); arXiv 2412.20412 (MOLLM) |

The minimum is exact, from the Gram matrix in f64: the best of all vertices, edges and the interior. Terms with zero gradient (a
divergence from the starting model at the first step) are already optimal and are excluded; otherwise the combination would
never move.
";

const SHIELD: &str = "
## Gradient projection

With `method.shield` above 0, the component of the loss's gradient (not of a penalty's) in a subspace of each linear layer's
inputs is projected out: dW = dy^T x becomes dy^T x (1 - U^T U). U are the leading eigenvectors of the sum of x^T x over the first
`shield_documents` retain documents in the starting model, as few as capture the fraction `shield` of its trace, at most
`shield_rank`; a step then does not change how a matrix maps inputs within the subspace. Biases and other parameters are not
projected. The inputs are projected, by two GEMMs of rank `shield_rank`, so no buffer of the gradients' size is needed. The
summary of a run has the fraction reached (`shielded`). Source: PGU (Hoang et al., WACV 2024, section 3.2), there for
convolutions, with a singular value decomposition and thresholds from 0.9 to 0.99 per layer.
";

/// The text of docs/methods.md.
pub fn page() -> String {
    let mut text = HEAD.to_owned();
    text +=
        "\n## Losses\n\n| `method.loss` | extra forward passes | other models |\n|---|---|---|\n";
    FORGET.iter().for_each(|objective| text += &line(*objective));
    text += "\n## Penalties\n\n| `method.penalty` | extra forward passes | other models |\n|---|---|---|\n";
    PENALTIES.iter().for_each(|objective| text += &line(*objective));
    FORGET.iter().for_each(|objective| text += &section("loss", *objective));
    let others = PENALTIES.iter().filter(|p| FORGET.iter().all(|f| f.name() != p.name()));
    others.for_each(|objective| text += &section("penalty", *objective));
    text + DUAL + COMBINE + SHIELD + SLUG + TASK_VECTOR
}

/// Returns the forward passes and the models that an objective needs in addition to the student's.
fn needs(objective: &dyn Objective) -> (&'static str, &'static str) {
    let rows = objective.rows(&Knobs::default());
    if rows.reads_teacher() {
        ("1, the teacher's", "teacher")
    } else if rows.reads_base() {
        ("1, the base model's", "base model, `model.base`")
    } else {
        ("none", "none")
    }
}

fn line(objective: &dyn Objective) -> String {
    let (forwards, models) = needs(objective);
    format!("| `{}` | {forwards} | {models} |\n", objective.name())
}

fn section(key: &str, objective: &dyn Objective) -> String {
    let rows = objective.rows(&Knobs::default());
    let family = match rows {
        Rows::Token(_) => "target-token loss, each token weighted by its own probability",
        Rows::Document(formula) if formula.paired => {
            "target-token loss, pairs of documents weighted by their log-ratios (one more pass through the head)"
        }
        Rows::Document(_) => {
            "target-token loss, documents weighted by their log-ratios (one more pass through the head)"
        }
        Rows::Matched(_) => "full-vocabulary loss",
        Rows::Hidden(_) => {
            "loss on hidden states: forward and backward stop at their layer, and no logits are computed"
        }
    };
    let divided = match objective.normaliser() {
        Normaliser::Targets => "the number of targets in the micro-batch",
        Normaliser::ShiftedPositions => "B (T - 1)",
        Normaliser::Positions => "B T, including the last position of each document",
        Normaliser::Tokens => {
            "the number of tokens in the micro-batch, including the last one of each document"
        }
        Normaliser::Documents if rows.paired() => "the number of pairs",
        Normaliser::Documents => "B",
        Normaliser::AllDocuments => "B, including the last position of each document",
        Normaliser::OwnTargets => "B (n - 1)",
        Normaliser::OwnTokens => "B n",
        Normaliser::OwnPositions => "B n, including the last position of each document",
    };
    let mut text = format!("\n### `{key} = \"{}\"`\n\n", objective.name());
    let mut item = |what: &str, said: &str| text += &format!("- {what}: {said}\n");
    item("minimizes", objective.formula());
    let derivative = if rows.hidden() { "dh" } else { "dz" };
    item(derivative, &format!("`{}`", objective.gradient()));
    item("family", family);
    item("divided by", divided);
    if matches!(rows, Rows::Document(_)) {
        let span = match objective.span() {
            Span::Padded => "T - 1",
            Span::Sum => "nothing (it is a sum)",
            Span::Targets => "n - 1",
            Span::Tokens => "n",
        };
        item("log-ratio of a document divided by", span);
    }
    if rows.paired() {
        item("needs", "`data.alternate`: a preferred document for each forget document, in order");
    }
    let mut keys: Vec<String> = objective.keys().iter().map(|k| format!("`method.{k}`")).collect();
    if rows.reads_base() {
        keys.push("`model.base`".into());
    }
    if !keys.is_empty() {
        item("keys", &keys.join(", "));
    }
    item("source", objective.source());
    if !objective.differs().is_empty() {
        item("difference in public code", objective.differs());
    }
    text
}

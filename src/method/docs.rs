//! docs/methods.md, written from what the losses and penalties say of themselves.

use super::{FORGET, Knobs, Normaliser, Objective, PENALTIES, Rows, Span};

const HEAD: &str = "\
# Methods

Written from the code by `tests/methods_page.rs`; `NEPENTHE_BLESS=1 cargo test --test methods_page` writes it anew.

A run descends `method.forget_weight` times a loss on forget documents plus `method.retain_weight` times a penalty on
retain documents, plus `method.second_weight` times a second one on the same documents where `method.second_penalty` names
it. Every loss goes with every penalty, and with `method.penalty = \"none\"`. The mean teacher is on where
`method.teacher_rate` or `method.damping` is above 0; with both at 0 the teacher stays the starting model, which is the
frozen reference of other codes. A report and `unlearning.json` print the formulas of a run.

`dz` is the derivative by the logits of a row before it is divided (`dh` that by a row of the residual stream), with p = softmax(z), y the next token, V the
vocabulary, B documents in a micro-batch, T the longest of them, n the length of one. Where public code differs from a method as published, its form has a name of its own.

## Combinations by their published names

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
";

const DUAL: &str = "
## The dual variable

With `method.dual_rate` above 0 the weight of the penalty is a dual variable: it starts at `method.retain_weight` and
after each step becomes `max(0, weight + dual_rate (penalty - dual_bound))`, the penalty being its logged value. It is
part of a checkpoint and of each line of metrics.jsonl. Source: open-unlearning `pdu.py`, updates by step; a step whose
gradient is not finite leaves it alone.
";

const SLUG: &str = "
## One matrix, one step

`nepenthe slug --model W --forget FILE --retain FILE --out DIR` makes two gradients once, of the NLL of forget and of
retain documents. Of each matrix (q, k and v count as one, so do gate and up) importance is |g_forget|/|W| and alignment
|cos(g_forget, g_retain)|; of those that no other beats in both, up to `--candidates` are tried. The step of `W + step
g_forget` starts at a tenth of |W|/|g_forget|, doubles while the retain NLL rises by at most `--budget` and the forget NLL
is below `--forget-nll`, and is halved in from then on, `--evaluations` times. What forgets most within the budget is
written; unlearning.json has all matrices and trials. Source: arXiv 2407.11867, algorithm 1; its code looks at accuracies
of images, and leaves the choice from the front to the reader.
";

const TASK_VECTOR: &str = "
## Task vectors

`nepenthe task-vector --model W --finetuned W_FT --factor A --out DIR` writes `W - A (W_ft - W_0)`, W_0 being what was
finetuned: `--pretrained`, or the model itself. No training; `nepenthe finetune` makes W_ft of the forget set. Each number
is made in f64 and rounded once, to W's dtype or, with `--f32`, to fp32. Source: arXiv 2212.04089; muse_bench
`task_vector.py`, which takes the differences in bf16 and whose scripts use A = 5.
";

const COMBINE: &str = "
## Combinations of gradients

`method.combine` says how the gradients of loss, f, and of one or two penalties, r and s, all with their weights, become
the direction that is descended. All but `sum` keep each penalty's in buffers of its own (as many bytes again as gradients
take) and wait for the inner products of a step, three or six; metrics.jsonl then has the cosine of f and r and the
factors. They need a penalty.

| `method.combine` | direction | source |
|---|---|---|
| `sum` | f + r (+ s) | |
| `project` | f less its part against r, then less what is left against s, + r (+ s) | arXiv 2001.06782 (PCGrad), of which only the loss gives way |
| `min_norm` | a f + b r (+ c s) of least length, a, b, c at least 0 and of sum 1 | arXiv 1810.04650 (MGDA); arXiv 2412.20412 (MOLLM) |

The least length is found exactly, from the Gram matrix in f64: the best of all corners, edges and the face. What has no
gradient (a divergence from the starting model at the first step) is left out of the mixture, which else would never move.
";

const SHIELD: &str = "
## What the loss leaves alone

With `method.shield` above 0 the gradient of the loss (not those of penalties) is taken off a subspace of each linear
map's inputs: dW = dy^T x becomes dy^T x (1 - U^T U). U are the leading eigenvectors of the sum of x^T x over the first
`shield_documents` retain documents in the model that the run starts from, as few as hold the share `shield` of its trace,
`shield_rank` at most; the step then changes nothing of what a matrix makes of inputs inside. Biases, and what else trains,
are not shielded. The inputs are projected, by two products of rows with `shield_rank` numbers, so U needs no room of the
gradients' size. The summary of a run has the share that was reached (`shielded`). Source: PGU (Hoang et al., WACV 2024,
section 3.2), there of convolutions, by a singular value decomposition, with bounds from 0.9 to 0.99 a layer.
";

/// Writes docs/methods.md.
pub fn page() -> String {
    let mut text = HEAD.to_owned();
    text += "\n## Losses\n\n| `method.loss` | forwards beside the student's | other models |\n|---|---|---|\n";
    FORGET.iter().for_each(|objective| text += &line(*objective));
    text += "\n## Penalties\n\n| `method.penalty` | forwards beside the student's | other models |\n|---|---|---|\n";
    PENALTIES.iter().for_each(|objective| text += &line(*objective));
    FORGET.iter().for_each(|objective| text += &section("loss", *objective));
    let others = PENALTIES.iter().filter(|p| FORGET.iter().all(|f| f.name() != p.name()));
    others.for_each(|objective| text += &section("penalty", *objective));
    text + DUAL + COMBINE + SHIELD + SLUG + TASK_VECTOR
}

/// Returns the forward passes over its documents and the models that an objective needs beside the student.
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
        Rows::Token(_) => "one-hot rows, each token weighed by its own probability",
        Rows::Document(formula) if formula.paired => {
            "one-hot rows, documents weighed in pairs by their log-ratios (a sweep over the head before)"
        }
        Rows::Document(_) => {
            "one-hot rows, documents weighed by their log-ratios (a sweep over the head before)"
        }
        Rows::Matched(_) => "rows that reach all logits",
        Rows::Hidden(_) => {
            "rows of the residual stream: forward and backward end at their layer, and there are no logits"
        }
    };
    let divided = match objective.normaliser() {
        Normaliser::Targets => "the number of targets in the micro-batch",
        Normaliser::ShiftedPositions => "B (T - 1)",
        Normaliser::Positions => "B T, the last position of a document counting too",
        Normaliser::Tokens => {
            "the number of tokens in the micro-batch, the last of a document counting too"
        }
        Normaliser::Documents if rows.paired() => "the number of pairs",
        Normaliser::Documents => "B",
        Normaliser::AllDocuments => "B, the last position of a document counting too",
        Normaliser::OwnTargets => "B (n - 1)",
        Normaliser::OwnTokens => "B n",
        Normaliser::OwnPositions => "B n, the last position of a document counting too",
    };
    let mut text = format!("\n### `{key} = \"{}\"`\n\n", objective.name());
    let mut item = |what: &str, said: &str| text += &format!("- {what}: {said}\n");
    item("descends", objective.formula());
    let derivative = if rows.hidden() { "dh" } else { "dz" };
    item(derivative, &format!("`{}`", objective.gradient()));
    item("family", family);
    item("rows are divided by", divided);
    if matches!(rows, Rows::Document(_)) {
        let span = match objective.span() {
            Span::Padded => "T - 1",
            Span::Sum => "nothing: it is the sum",
            Span::Targets => "n - 1",
            Span::Tokens => "n",
        };
        item("the log-ratio of a document is divided by", span);
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
        item("where public code differs", objective.differs());
    }
    text
}

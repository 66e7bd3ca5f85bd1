#!/usr/bin/env bash
# Every forget loss that the binary knows, on mini-MUSE or on the embedded demo, with the same search budget for each.
#
#   MUSE=DIR MODEL=SmolLM2-135M experiments/mini_muse.sh OUT   the benchmark, from a copy of MUSE's data
#   experiments/mini_muse.sh --tiny OUT                        the embedded model and text, on any machine
#
# Beside the losses, by themselves: ascent (gradient ascent without penalty; the loss ll has the form's), graddiff (with
# plain training on the retain documents as penalty), mollm (UCE, the form's penalty and plain training on the retain
# documents, the mixture of their gradients of least norm), pgu (gradient ascent off the subspace of the retain documents'
# inputs, with the form's penalty), rmu with its own penalty in place of the form's, and pdu with plain training on the
# retain documents, whose weight is the dual variable of a bound on their NLL. Two methods are no runs and have one form,
# `edit`: task_vector (the target less FACTOR times what AdamW's steps on the forget documents add to it) and slug
# (`nepenthe slug` with FACTOR times BUDGET; it draws nothing, so that its seeds are one).
#
# dpo prefers a refusal to each forget document, and to each answer of one that is made of questions.
#
# Settings, by environment: NEPENTHE (the binary; built in release where not given), CORPUS (news or books), PROFILE
# (full or small), DEVICE, LOSSES (all), FORMS ("adamw teacher"), SEEDS ("1 2 3"), SEARCH_SEED (0), RATES (factors on the
# learning rate that each method tries), ADAMW_RATE and SGD_RATE (what they are factors on), TEACHER_WEIGHTS (forget
# weight, retain weight, teacher rate and damping of the mean teacher), STEPS, EVERY (steps between measurements; 0 for
# none, and then only the NLL of the retain documents before and after), SAVE_DTYPE (f32, since what is compared are methods
# and not what a 16-bit folder keeps of their steps, or source, the model's own dtypes), MICRO (documents in a batch), ACCUM
# and RETAIN_ACCUM (batches of forget and of retain documents a step), UTILITY (retain2, never trained on, or retain1, which
# the penalty sees, as with --tiny always), SLUG_DOCUMENTS (of each set, 64), TARGET and RETRAIN (folders of models made
# before), or TRAIN_STEPS and TRAIN_RATE of those to be made.
#
# The stages: prepare; target and retrain by `finetune`; for each loss in each form a search over RATES with
# SEARCH_SEED; the chosen setting again with each of SEEDS; eval; report. The forms are AdamW with the frozen model as
# teacher and the KL penalty, and the mean teacher: SGD, QKL, damping and averaging, no clipping, so that both act at
# full strength as in the paper's runs. A search run is judged on every second prompt, question and document; what is
# reported is measured on the others, privacy leakage alone on all texts (OUT/selection.tsv has all that was tried). Of
# the rates whose NLL on the retain documents rises by BUDGET (0.1 nats) at most, the one with the least memory is
# chosen: the mean of verbmem_f and, where the data has questions, knowmem_f. Where none stays within it, the one with
# the smallest rise.
#
# Memory, knowledge and leakage are those of `nepenthe eval --suite muse`. OUT/table.md has means and sample deviations
# over seeds, OUT/table.tsv every run.
#
# A stage is left out where OUT/.done holds the hash of its command, of the binary, of this script and of all it reads;
# a run that was broken off goes on from its checkpoint.
set -euo pipefail

usage() { sed -n '2,9p' "$0" >&2; exit 2; }
tiny=false
if [ "${1:-}" = --tiny ]; then tiny=true; shift; fi
[ $# = 1 ] || usage
mkdir -p "$1"
out=$(realpath "$1")
for path in MUSE MODEL NEPENTHE TARGET RETRAIN; do
    if [ -n "${!path:-}" ]; then declare "$path=$(realpath "${!path}")"; fi
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v python3 > /dev/null || { echo "python3 is needed to halve files and to choose" >&2; exit 2; }

if [ -z "${NEPENTHE:-}" ]; then
    cargo build --release --locked
    NEPENTHE=target/release/nepenthe
fi
nepenthe=$(realpath "$NEPENTHE")
binary=$(sha256sum "$nepenthe" | cut -d' ' -f1)
device=${DEVICE:-auto} corpus=${CORPUS:-books} profile=${PROFILE:-full} seeds=${SEEDS:-1 2 3}
search_seed=${SEARCH_SEED:-0} budget=${BUDGET:-0.1} both=${FORMS:-adamw teacher} micro=${MICRO:-4} context=512
slug_documents=${SLUG_DOCUMENTS:-64} save_dtype=${SAVE_DTYPE:-f32}
mkdir -p "$out/.done"
# What a stage depends on beside its command and its inputs: this script, and the settings of every run.
script=$(sha256sum "experiments/mini_muse.sh" | cut -d' ' -f1) settings=""

# Hashes files, and folders with all that is in them.
hash_of() { find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1; }

# stage NAME INPUTS -- COMMAND...: runs COMMAND unless it is done with these very inputs.
stage() {
    local name=$1 inputs=() key mark
    shift
    while [ "$1" != -- ]; do inputs+=("$1"); shift; done
    shift
    key=$({ echo "$binary $script $settings $*"; hash_of "${inputs[@]}"; } | sha256sum | cut -d' ' -f1)
    mark=$out/.done/${name//\//.}
    if [ "$(cat "$mark" 2> /dev/null)" = "$key" ]; then return; fi
    # A run of the same key that was broken off keeps its checkpoints; anything else starts anew.
    if [ "$(cat "$mark.started" 2> /dev/null)" != "$key" ]; then rm -rf "${out:?}/$name"; fi
    rm -f "$mark"
    echo "$key" > "$mark.started"
    echo "== $name" >&2
    "$@"
    mv "$mark.started" "$mark"
}

# Runs a training command into $out/NAME, from its checkpoint where there is one.
train() {
    local name=$1 resume=()
    shift
    if [ -d "$out/$name/checkpoints" ]; then resume=(--resume); else rm -rf "${out:?}/$name"; fi
    "$nepenthe" "$@" --device "$device" --out "$out/$name" "${resume[@]}" > /dev/null
    # Six to eight times the model's bytes, and of no more use.
    rm -rf "${out:?}/$name/checkpoints"
}

# halve FILE...: a file's even items become FILE.select.EXT, its odd ones FILE.report.EXT.
halve() {
    python3 - "$@" <<'PY'
import pathlib, sys
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    for start, part in enumerate(["select", "report"]):
        lines = path.read_text().splitlines(keepends=True)[start::2]
        path.with_suffix(f".{part}{path.suffix}").write_text("".join(lines))
PY
}

# halve_suite EVAL: the suite's files in EVAL, halved, into OUT/suite/select and OUT/suite/report. Examples are shown to
# both; the texts of privacy leakage go whole to the second, which alone is asked for it.
halve_suite() {
    rm -rf "$out/suite"
    python3 - "$1" "$out/suite" <<'PY'
import json, pathlib, sys
source, suite = map(pathlib.Path, sys.argv[1:])
for start, part in enumerate(["select", "report"]):
    (suite / part).mkdir(parents=True)
    for path in sorted(source.glob("*.json")):
        items = json.loads(path.read_text())
        if path.name.startswith("privleak"):
            if part == "select":
                continue
        elif not path.stem.endswith("icl"):
            items = items[start::2]
        (suite / part / path.name).write_text(json.dumps(items, ensure_ascii=False))
PY
}

# demo_suite DATA EVAL: the demo's texts as files of the suite. Passages are the texts of privacy leakage; questions and
# answers are those inside the documents that the target was trained on.
demo_suite() {
    rm -rf "$2"
    mkdir "$2"
    cp "$1/verbmem_forget.json" "$2"
    python3 - "$1" "$2" <<'PY'
import json, pathlib, sys
data, target = map(pathlib.Path, sys.argv[1:])
for name in ["forget", "retain", "holdout"]:
    texts = [json.loads(line)["text"] for line in open(data / f"{name}.jsonl")]
    questions = [t for t in texts if t.startswith("Question: ")]
    passages = [{"text": t} for t in texts if not t.startswith("Question: ")]
    (target / f"privleak_{name}.json").write_text(json.dumps(passages))
    blocks = [b.removeprefix("Question: ").partition("\nAnswer:  ") for t in questions for b in t.split("\n\n")]
    if blocks:
        pairs = [{"question": q, "answer": a} for q, mark, a in blocks if mark]
        (target / f"knowmem_{name}_qa.json").write_text(json.dumps(pairs))
PY
}

if $tiny; then
    steps=${STEPS:-100} every=${EVERY:-50} new_tokens=${NEW_TOKENS:-96} accum=${ACCUM:-1} retain_accum=${RETAIN_ACCUM:-2}
    rates=${RATES:-0.5 1.5 4.5} adamw_rate=${ADAMW_RATE:-3e-4} adamw_weight=0.05 sgd_rate=${SGD_RATE:-0.02} sgd_momentum=0.9
    weights=${TEACHER_WEIGHTS:-0.05 5 0.03 0.025} rmu_layer=2 rmu_steering=10 dual_bound=0.3
    # The demo unpacks its models and texts; its own run is cut short.
    unpack() {
        rm -rf "${out:?}/demo"
        "$nepenthe" demo --device cpu --out "$out/demo" --set run.steps=1 --set eval.every=0 \
            --set eval.stop_metric= --set eval.max_new_tokens=1 > /dev/null
    }
    stage demo experiments/mini_muse.sh -- unpack
    data=$out/demo/input/data target=$out/demo/input/target retrain=$out/demo/input/retrain
    forget=$data/forget.jsonl retain=$data/retain.jsonl utility=$data/retain.jsonl holdout=$data/holdout.jsonl
    eval=$out/eval shots=(--shots 0)
    stage eval "$data" -- demo_suite "$data" "$eval"
else
    : "${MUSE:?MUSE must name a copy of the data folder of muse_bench}" "${MODEL:?MODEL must name a model folder}"
    steps=${STEPS:-400} every=${EVERY:-20} new_tokens=${NEW_TOKENS:-128} accum=${ACCUM:-2} retain_accum=${RETAIN_ACCUM:-2}
    rates=${RATES:-0.25 0.5 1 2} adamw_rate=${ADAMW_RATE:-1e-5} adamw_weight=0.05 sgd_rate=${SGD_RATE:-5e-4} sgd_momentum=0.95
    weights=${TEACHER_WEIGHTS:-0.1 1 0.005 5} rmu_layer=7 rmu_steering=20 dual_bound=0.2
    prepare() { rm -rf "${out:?}/data"; "$nepenthe" prepare mini-muse --muse "$MUSE" --tokenizer "$MODEL" --out "$out/data"; }
    stage data "$MUSE" "$MODEL/tokenizer.json" -- prepare
    data=$out/data/$corpus
    if [ "$profile" = small ]; then data=$data/small; fi
    forget=$data/forget.jsonl retain=$data/retain1.jsonl utility=$data/${UTILITY:-retain2}.jsonl holdout=$data/holdout.jsonl
    eval=$data/eval shots=()
    cat "$forget" "$retain" > "$out/target.jsonl"
    learn=(finetune --model "$MODEL" --set optim.schedule=paper --set "data.forget_context=$context" --set data.forget_chunking=true
        --set "run.steps=${TRAIN_STEPS:-600}" --set "optim.lr=${TRAIN_RATE:-5e-5}" --set eval.documents=0
        --set "data.cache=$out/cache")
    target=${TARGET:-$out/target/model} retrain=${RETRAIN:-$out/retrain/model}
    if [ -z "${TARGET:-}" ]; then
        stage target "$MODEL" "$out/target.jsonl" -- train target "${learn[@]}" --data "$out/target.jsonl"
    fi
    if [ -z "${RETRAIN:-}" ]; then
        stage retrain "$MODEL" "$retain" -- train retrain "${learn[@]}" --data "$retain"
    fi
fi
read -r -a weights <<< "$weights"
mean_teacher=(method.{forget_weight,retain_weight,teacher_rate,damping})
for i in "${!mean_teacher[@]}"; do mean_teacher[i]+="=${weights[i]:?TEACHER_WEIGHTS has four numbers}"; done
halve "$utility"
stage suite "$eval" -- halve_suite "$eval"
half() { echo "${1%.*}.$2.${1##*.}"; }

# alternatives FORGET FILE: a refusal for each forget document, and for each answer of one that is made of questions.
alternatives() {
    python3 - "$@" <<'PY'
import json, re, sys
forget, alternate = sys.argv[1:]
refusals = ["I don't know.", "I have no information on that.", "I can't answer that.", "That is unknown to me."]
with open(alternate, "w") as f:
    for i, line in enumerate(open(forget)):
        text, refusal = json.loads(line)["text"], refusals[i % len(refusals)]
        if text.startswith("Question: "):
            refusal = re.sub(r"(?m)^(Answer: +).*", lambda m: m[1] + refusal, text)
        print(json.dumps({"text": refusal}), file=f)
PY
}
stage alternate.jsonl "$forget" -- alternatives "$forget" "$out/alternate.jsonl"

# What the binary can minimise, less what is no method by itself: nll learns what is to be forgotten.
skipped=" nll "
losses=${LOSSES:-$("$nepenthe" --json methods | python3 -c '
import json, sys
print(*(loss["name"] for loss in json.load(sys.stdin)["losses"]))') ascent graddiff mollm pgu task_vector slug}

settings="$steps $every $new_tokens $micro $accum $retain_accum $context $adamw_rate $adamw_weight $sgd_rate $sgd_momentum ${mean_teacher[*]} $rmu_layer $rmu_steering $dual_bound $slug_documents $save_dtype
$device"

# unlearn NAME LOSS FORM FACTOR SEED PART: one run, measured on PART (select or report).
unlearn() {
    local name=$1 loss=$2 form=$3 factor=$4 seed=$5 part=$6 sets
    sets=(seed="$seed" method.loss="$loss" run.steps="$steps" run.micro_batch=$micro run.forget_accum_steps=$accum
        run.kl_accum_steps=$retain_accum data.forget_context=$context data.retain_context=$context
        run.checkpoint_every="$every" run.keep_checkpoints=1 data.cache="$out/cache" eval.every="$every"
        eval.retain="$(half "$utility" "$part")" eval.documents=0 model.save_dtype="$save_dtype")
    if [ "$every" -gt 0 ]; then
        sets+=(eval.forget="$forget" eval.holdout="$holdout" eval.max_new_tokens="$new_tokens"
            eval.verbmem_forget="$out/suite/$part/verbmem_forget.json")
    fi
    case $form in
    adamw)
        sets+=(method.penalty=kl method.teacher_rate=0 method.damping=0 method.forget_weight=$adamw_weight
            method.retain_weight=1 optim.optimizer=adamw optim.schedule=paper optim.lr="$(times $adamw_rate "$factor")") ;;
    teacher)
        sets+=(method.penalty=qkl "${mean_teacher[@]}" optim.optimizer=sgd optim.momentum=$sgd_momentum
            optim.clip=inf optim.lr="$(times $sgd_rate "$factor")") ;;
    esac
    # What is no loss of that name alone.
    case $loss in
    rmu) sets+=(method.penalty=rmu_retain method.rmu_layer=$rmu_layer method.rmu_steering=$rmu_steering) ;;
    # All of one weight, as published: the shortest mixture of gradients is mostly the one that a weight made short.
    mollm) sets+=(method.loss=uce method.second_penalty=nll method.combine=min_norm method.forget_weight=1
        method.retain_weight=1) ;;
    pdu | pdu_ou) sets+=(method.penalty=nll method.retain_weight=1 method.dual_rate=1 method.dual_bound=$dual_bound) ;;
    ascent) sets+=(method.loss=ll method.penalty=none) ;;
    graddiff) sets+=(method.loss=ll method.penalty=nll) ;;
    pgu) sets+=(method.loss=ll method.shield=0.9) ;;
    dpo) sets+=(data.alternate="$out/alternate.jsonl") ;;
    esac
    if [ "$part" = report ] && [ "$every" -gt 0 ]; then sets+=(eval.retrain="$retrain"); fi
    train "$name" unlearn --model "$target" --forget "$forget" --retain "$retain" "${sets[@]/#/--set=}"
}

# nll MODEL PART FILE: the NLL of PART of the utility documents, nats per token, as a number in FILE.
nll() {
    "$nepenthe" --json eval --model "$1" --nll "$(half "$utility" "$2")" --context "$context" --device "$device" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["nll"][0]["nll"])' > "$3"
}

# edit NAME METHOD FACTOR SEED PART: a model made otherwise than by a run, and of a run's summary what is read here.
edit() {
    local name=$1 method=$2 factor=$3 seed=$4 part=$5 wide=()
    if [ "$save_dtype" = f32 ]; then wide=(--f32); fi
    rm -rf "${out:?}/$name"
    mkdir -p "$out/$name"
    case $method in
    task_vector)
        "$nepenthe" task-vector --model "$target" --finetuned "$out/vectors/s$seed/model" --factor "$factor" \
            "${wide[@]}" --out "$out/$name/model" > /dev/null ;;
    slug)
        "$nepenthe" slug --model "$target" --forget "$forget" --retain "$retain" --device "$device" \
            --budget "$(times "$budget" "$factor")" --documents "$slug_documents" --set "data.forget_context=$context" \
            --set "data.retain_context=$context" --set "model.save_dtype=$save_dtype" \
            --out "$out/$name/model" > /dev/null ;;
    esac
    nll "$out/$name/model" "$part" "$out/$name/nll"
    printf '{"before": {"nll_retain": %s}, "after": {"nll_retain": %s}}\n' "$(cat "$out/nll.$part")" \
        "$(cat "$out/$name/nll")" > "$out/$name/summary.json"
}

# vector SEED: the target trained further on what it is to forget.
vector() {
    local name=vectors/s$1
    stage "$name" "$target" "$forget" -- train "$name" finetune --model "$target" --data "$forget" --set "seed=$1" \
        --set "run.steps=$steps" --set run.micro_batch=$micro --set "run.forget_accum_steps=$accum" \
        --set optim.schedule=paper --set optim.lr=$adamw_rate --set "data.forget_context=$context" --set eval.documents=0 \
        --set "model.save_dtype=$save_dtype" --set "data.cache=$out/cache"
}

# produce NAME LOSS FORM FACTOR SEED PART: the model of a stage, whichever way it is made.
produce() {
    if [ "$3" = edit ]; then edit "$1" "$2" "$4" "$5" "$6"; else unlearn "$@"; fi
}
times() { python3 -c 'import sys; print(float(sys.argv[1]) * float(sys.argv[2]))' "$1" "$2"; }

# measure MODEL PART FILE: the suite's figures of MODEL on PART, beside those of the retrained model.
measure() {
    "$nepenthe" --json eval --suite muse --device "$device" --data "$out/suite/$2" "${shots[@]}" \
        --model "$1" --retrain "$retrain" --out "$out/suite/$2.results.json" > "$3"
}

# choose LOSS FORM: the factor of the search run to go on with; every run tried is a line of selection.tsv.
choose() {
    python3 - "$out" "$1" "$2" "$budget" $rates <<'PY'
import json, sys
out, loss, form, budget, *rates = sys.argv[1:]
tried = []
for rate in rates:
    run = f"{out}/search/{loss}-{form}-{rate}"
    summary = json.load(open(f"{run}/summary.json"))
    rise = summary["after"]["nll_retain"] - summary["before"]["nll_retain"]
    model = next(m for m in json.load(open(f"{run}/eval.json"))["models"] if not m["retrained"])
    kinds = [model["figures"][name] for name in ("verbmem_f", "knowmem_f") if name in model["figures"]]
    tried.append((sum(kinds) / len(kinds), rise, rate, kinds))
within = [t for t in tried if t[1] <= float(budget)]
best = min(within) if within else min(tried, key=lambda t: t[1])
with open(f"{out}/selection.tsv", "a") as f:
    for memory, rise, rate, kinds in tried:
        kinds = "+".join(f"{kind:.1f}" for kind in kinds)
        print(loss, form, rate, kinds, f"{memory:.2f}", f"{rise:+.4f}", "chosen" if rate == best[2] else "", sep="\t", file=f)
print(best[2])
PY
}

# tables FOLDER...: OUT/table.tsv and OUT/table.md, from the files of runs and edits and the JSON of `report` on stdin.
tables() {
    python3 - "$out" "$@" 3<&0 <<'PY'
import json, math, os, pathlib, statistics, sys
out, *folders = sys.argv[1:]
report = json.load(os.fdopen(3))["runs"]
seconds = {run["name"]: run["seconds_per_step"] for run in report}
figures = ["verbmem_f", "knowmem_f", "knowmem_r", "privleak", "ppl_forget", "ppl_retain", "ppl_holdout", "extraction_strength"]
rows = {}
for folder in map(pathlib.Path, folders):
    method, seed = folder.name.rsplit("-s", 1)
    read = lambda file: json.loads((folder / file).read_text())
    summary, known = read("summary.json"), next(m for m in read("eval.json")["models"] if not m["retrained"])["figures"]
    row = {name: known[name] for name in figures if name in known}
    row["rise of nll_retain"] = summary["after"]["nll_retain"] - summary["before"]["nll_retain"]
    # An edit takes no steps.
    row["s/step"], row["clipped steps, %"] = seconds.get(folder.name, math.nan), math.nan
    if (log := folder / "metrics.jsonl").exists():
        steps = [json.loads(line) for line in log.open()]
        row["clipped steps, %"] = 100 * sum(step["clip_coef"] < 1 for step in steps) / len(steps)
    rows.setdefault(method, []).append((seed, row))
names = list(next(iter(rows.values()))[0][1])
with open(f"{out}/table.tsv", "w") as f:
    print("method", "seed", *names, sep="\t", file=f)
    for method, all in rows.items():
        for seed, row in all:
            print(method, seed, *(f"{row[name]:.6g}" for name in names), sep="\t", file=f)
def cell(values):
    if any(map(math.isnan, values)):
        return ""
    mean = statistics.mean(values)
    digits = 1 if max(map(abs, values)) >= 10 else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"
with open(f"{out}/table.md", "w") as f:
    print("| method |", " | ".join(names), "|", file=f)
    print("|---" * (len(names) + 1) + "|", file=f)
    for model in json.load(open(f"{out}/target.json"))["models"]:
        title, known = "retrained" if model["retrained"] else "target", model["figures"]
        print(f"| {title} |", " | ".join(cell([known[n]]) if n in known else "" for n in names), "|", file=f)
    for method, all in rows.items():
        print(f"| {method} |", " | ".join(cell([row[name] for _, row in all]) for name in names), "|", file=f)
PY
}

printf 'loss\tform\tfactor\tverbmem_f+knowmem_f (selection half)\tmean\trise of nll_retain\t\n' > "$out/selection.tsv"
stage target.json "$target" "$retrain" "$out/suite/report" -- measure "$target" report "$out/target.json"
runs=() all=()
for loss in $losses; do
    if [[ $skipped = *" $loss "* ]]; then echo "left out: $loss" >&2; continue; fi
    forms=$both drawn=$seeds
    case $loss in
    task_vector) forms=edit; for seed in $search_seed $seeds; do vector "$seed"; done ;;
    slug) forms=edit drawn=${seeds%% *} ;;
    esac
    if [ "$forms" = edit ]; then
        for part in select report; do
            stage "nll.$part" "$target" "$(half "$utility" "$part")" -- nll "$target" "$part" "$out/nll.$part"
        done
    fi
    for form in $forms; do
        for factor in $rates; do
            name=search/$loss-$form-$factor
            stage "$name" "$target" "$data" "$out/alternate.jsonl" -- produce "$name" "$loss" "$form" "$factor" "$search_seed" select
            stage "$name/eval.json" "$out/$name/model" "$retrain" "$out/suite/select" -- measure "$out/$name/model" select "$out/$name/eval.json"
        done
        factor=$(choose "$loss" "$form")
        for seed in $drawn; do
            name=runs/$loss-$form-s$seed
            stage "$name" "$target" "$retrain" "$data" "$out/alternate.jsonl" -- produce "$name" "$loss" "$form" "$factor" "$seed" report
            stage "$name/eval.json" "$out/$name/model" "$retrain" "$out/suite/report" -- measure "$out/$name/model" report "$out/$name/eval.json"
            all+=("$out/$name")
            if [ "$form" != edit ]; then runs+=("$out/$name"); fi
        done
    done
done
if [ ${#runs[@]} -gt 0 ]; then
    "$nepenthe" report "${runs[@]}" --out "$out/report.html" --figures "$out/figures" > "$out/table.txt"
    "$nepenthe" --json report "${runs[@]}" --out "$out/report.html" | tables "${all[@]}"
else
    tables "${all[@]}" <<< '{"runs": []}'
fi
cat "$out/table.md"

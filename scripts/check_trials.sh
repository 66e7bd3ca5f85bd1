#!/usr/bin/env bash
# Runs every fault that a new user once met against the binary, and says which are still there.
# Usage: scripts/check_trials.sh [BINARY]; by default target/release/nepenthe. Needs python3 and nothing else.
# Each case makes its own input from the embedded demo model, runs one or two commands, and checks exit code and output.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
binary=$(realpath "${1:-target/release/nepenthe}")
[[ -x $binary ]] || { echo "check_trials: $binary: no such program; cargo build --release makes it" >&2; exit 2; }
assets=$PWD/assets/demo
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

failed=0
total=0
# Commands of a case leave these.
code=0
shown=""

# Runs the binary; leaves its exit code in $code and both outputs in $shown, stdout alone in out.txt.
np() {
    "$binary" "$@" >out.txt 2>err.txt </dev/null
    code=$?
    shown=$(cat out.txt err.txt)
}

# check NAME CONDITION...: counts a case and prints one line.
check() {
    local name=$1
    shift
    total=$((total + 1))
    if "$@"; then
        printf 'ok      %s\n' "$name"
    else
        failed=$((failed + 1))
        printf 'FAILED  %s\n        exit code %s\n' "$name" "$code"
        sed 's/^/        /' <<<"${shown:0:1500}"
    fi
}

# says CODE WORD...: the last command ended with CODE and printed every WORD.
says() {
    local want=$1 word
    shift
    [[ $code == "$want" ]] || return 1
    for word in "$@"; do
        grep -qiF -- "$word" <<<"$shown" || { shown="missing: $word"$'\n'"$shown"; return 1; }
    done
}

# Copies the demo model to FOLDER; a Python program on stdin may then edit `config` and `tensors`
# (name -> [dtype, shape, bytes]); setting a value to None drops it.
model() {
    mkdir -p "$1"
    cp "$assets"/{config,generation_config,tokenizer,tokenizer_config}.json "$1"
    cp "$assets/target.safetensors" "$1/model.safetensors"
    python3 - "$1" "$(cat)" <<'PY'
import json, struct, sys
folder, edit = sys.argv[1:]
path = f"{folder}/model.safetensors"
data = open(path, "rb").read()
(size,) = struct.unpack("<Q", data[:8])
header = json.loads(data[8 : 8 + size])
meta = header.pop("__metadata__", {})
tensors = {
    name: [h["dtype"], h["shape"], data[8 + size + h["data_offsets"][0] : 8 + size + h["data_offsets"][1]]]
    for name, h in header.items()
}
config = json.load(open(f"{folder}/config.json"))
exec(edit)
json.dump({k: v for k, v in config.items() if v is not None}, open(f"{folder}/config.json", "w"))
header, at = {"__metadata__": meta}, 0
for name, (dtype, shape, content) in sorted(tensors.items()):
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
    at += len(content)
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(path, "wb") as out:
    out.write(struct.pack("<Q", len(text)) + text)
    for name, (_, _, content) in sorted(tensors.items()):
        out.write(content)
PY
}

# Prints the value that the Python EXPRESSION has, with the helper functions below at hand.
value() {
    python3 - "$1" <<'PY'
import json, struct, sys

def tensor(path, name):
    data = open(path, "rb").read()
    (size,) = struct.unpack("<Q", data[:8])
    at = json.loads(data[8 : 8 + size]).get(name)
    return None if at is None else data[8 + size + at["data_offsets"][0] : 8 + size + at["data_offsets"][1]]

def dtypes(path):
    data = open(path, "rb").read()
    (size,) = struct.unpack("<Q", data[:8])
    return sorted({h["dtype"] for n, h in json.loads(data[8 : 8 + size]).items() if n != "__metadata__"})

def lines(path):
    return [json.loads(line) for line in open(path)]

def read(path):
    return json.load(open(path))

print(eval(sys.argv[1]))
PY
}

# Whether the Python EXPRESSION is true.
holds() { [[ $(value "$1") == True ]] || { shown="not true: $1"$'\n'"$shown"; return 1; }; }

records() { python3 -c "import json, sys; [print(json.dumps(r)) for r in eval(sys.argv[1])]" "$1"; }

# Two steps are enough to see what a run does.
short=(--set run.steps=2 --set run.micro_batch=2 --set run.forget_accum_steps=1 --set run.kl_accum_steps=1
    --set run.checkpoint_every=0 --set eval.documents=2 --set eval.max_new_tokens=4 --device cpu)
forget=$assets/forget.jsonl
retain=$assets/retain.jsonl
model plain <<<""
records '[{"text": "Another retain document about rivers."}, {"text": "A second one, about mountains."}]' >two.jsonl

# 1. A recipe in which nothing can train.
np unlearn --model plain --forget "$forget" --retain "$retain" --out r1 --set model.train=down "${short[@]}"
check "1 train=down moves down_proj of every layer" holds \
    "all(tensor('plain/model.safetensors', n) != tensor('r1/model/model.safetensors', n) for n in [f'model.layers.{l}.mlp.down_proj.weight' for l in range(5)])"
np unlearn --model plain --forget "$forget" --retain "$retain" --out r1b "${short[@]}" \
    --set method.forget_weight=0 --set method.retain_weight=0
check "1 a recipe without any loss is refused" says 2 "forget_weight"
np plan --model plain --device cpu --set optim.lr=0
check "1 plan refuses a rate of 0" says 2 "optim.lr"

# 2, 3. Tied models whose file holds a head (case 01).
model tied_same <<<"tensors['lm_head.weight'] = list(tensors['model.embed_tokens.weight'])"
np finetune --model tied_same --data two.jsonl --out r2 "${short[@]}" --set optim.lr=0.01 --set model.train=all
check "2 the written folder has no stale head" holds \
    "tensor('r2/model/model.safetensors', 'lm_head.weight') in (None, tensor('r2/model/model.safetensors', 'model.embed_tokens.weight'))"
model tied_other <<<"h = tensors['model.embed_tokens.weight']; tensors['lm_head.weight'] = [h[0], h[1], h[2][256:] + h[2][:256]]"
np score --model plain --text "hello there" --json
plain_score=$(value "json.loads(open('out.txt').readline())")
np score --model tied_other --text "hello there" --json
check "3 another head in the file is used, and said" says 0 "lm_head.weight"
check "3 its scores differ from the tied ones" test "$plain_score" != "$(value "json.loads(open('out.txt').readline())")"

# 4. Truncation (case 18), in a run and in an evaluation.
records '[{"text": "The mean teacher forgets. " * 4000}]' >huge.jsonl
np unlearn --model plain --forget huge.jsonl --retain two.jsonl --out r4 "${short[@]}" \
    --set data.forget_context=256 --set data.retain_context=256 --set eval.context=256
check "4 unlearn says what was cut" says 0 "truncated" "huge.jsonl"
check "4 summary.json keeps it" holds "any('truncated' in n for n in read('r4/summary.json')['notices'])"
check "4 the report shows it" grep -q truncated r4/report.html
np eval --model plain --nll huge.jsonl --context 256
check "4 eval says what was cut" says 0 "truncated"

# 5. Labels (case 04), and every other key that would change what is trained.
records '[{"input_ids": [1, 262, 80, 283], "labels": [-100, -100, 80, 283], "attention_mask": [1, 1, 1, 1]}]' >labels.jsonl
np eval --json --model plain --nll labels.jsonl
check "5 masked labels are refused" says 3 "labels"
for key in '"attention_mask": [0, 1, 1, 1]' '"loss_mask": [0, 0, 1, 1]' '"position_ids": [1, 2, 3, 4]'; do
    records "[{\"input_ids\": [1, 262, 80, 283], $key}]" >masked.jsonl
    np eval --model plain --nll masked.jsonl
    check "5 refused: $key" says 3 "${key:1:9}"
done

# 6. Verbatim memory of text that ROUGE has no tokens for.
records '[{"text": "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 6} for _ in range(4)]' >russian.jsonl
np unlearn --model plain --forget russian.jsonl --retain "$retain" --out r6 "${short[@]}" \
    --set eval.every=1 --set eval.stop_metric=verbmem_forget --set eval.stop_val=0.2
check "6 a stop that can't be measured is refused" test "$code" = 3 -o "$code" = 2

# 7. Warm-up (case 19).
adamw=(--set optim.optimizer=adamw --set optim.lr=0.001)
np unlearn --model plain --forget "$forget" --retain "$retain" --out r7 "${short[@]}" "${adamw[@]}" --set optim.warmup=0
check "7 warm-up 0 begins at the full rate" holds "[m['lr'] for m in lines('r7/metrics.jsonl')] == [0.001, 0.001]"
np unlearn --model plain --forget "$forget" --retain "$retain" --out r7b "${short[@]}" "${adamw[@]}" --set optim.warmup=2
check "7 warm-up rises at once" holds "[round(m['lr'], 9) for m in lines('r7b/metrics.jsonl')] == [0.0005, 0.001]"

# 8. Weights that are not finite.
model nan <<<"t = tensors['model.layers.1.self_attn.k_proj.weight']; t[2] = b'\xc0\x7f' + t[2][2:]"
for command in "score --text x" "eval --nll two.jsonl" "generate --prompt x" \
    "unlearn --forget two.jsonl --retain two.jsonl --out r8 ${short[*]}"; do
    # shellcheck disable=SC2086 # The words of the command are meant to be split.
    np ${command%% *} --model nan ${command#* }
    check "8 ${command%% *} names the tensor" says 4 "model.layers.1.self_attn.k_proj.weight"
done

# 9. Flags of tokenizer_config.json that transformers ignores.
model flags <<<""
python3 - <<'PY'
import json
c = json.load(open("flags/tokenizer_config.json"))
c.update(add_bos_token=True, add_eos_token=True)
json.dump(c, open("flags/tokenizer_config.json", "w"))
PY
np score --model flags --text "hello there" --json
check "9 add_bos_token and add_eos_token change nothing" test "$plain_score" = "$(value "json.loads(open('out.txt').readline())")"

# 10. Runs that can't be compared.
np report r1 r4 --out compared.html --json
check "10 runs on other data are other groups" holds "len(json.load(open('out.txt'))['groups']) == 2"

# 11. F32 and F16 in a GGUF file. Its tokenizer has the bytes alone.
gguf() {
    python3 - "$1" "$2" <<'PY'
import random, struct, sys
path, kind = sys.argv[1:]
random.seed(11)
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
alphabet = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
tokens, c, f = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet], 32, 64
text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
u32 = lambda n: struct.pack("<II", 4, n)
array = lambda kind, items: struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
keys = {
    "general.architecture": struct.pack("<I", 8) + text("llama"), "llama.block_count": u32(1),
    "llama.context_length": u32(64), "llama.embedding_length": u32(c), "llama.feed_forward_length": u32(f),
    "llama.attention.head_count": u32(2), "llama.attention.head_count_kv": u32(2),
    "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", 6, 1e-5),
    "llama.rope.freq_base": struct.pack("<If", 6, 1e4),
    "tokenizer.ggml.model": struct.pack("<I", 8) + text("gpt2"),
    "tokenizer.ggml.pre": struct.pack("<I", 8) + text("smollm"),
    "tokenizer.ggml.tokens": array(8, [text(t) for t in tokens]), "tokenizer.ggml.merges": array(8, [text("t h")]),
    "tokenizer.ggml.token_type": array(5, [struct.pack("<i", 3 if i < 3 else 1) for i in range(len(tokens))]),
    "tokenizer.ggml.bos_token_id": u32(1), "tokenizer.ggml.eos_token_id": u32(2),
}
keys["tokenizer.ggml.tokens"] = array(8, [text(t) for t in [*tokens, "th"]])
keys["tokenizer.ggml.token_type"] = array(5, [struct.pack("<i", 3 if i < 3 else 1) for i in range(len(tokens) + 1)])
shapes = {"token_embd": (len(tokens) + 1, c), "output_norm": (c,), "blk.0.attn_norm": (c,), "blk.0.ffn_norm": (c,)}
shapes |= {f"blk.0.attn_{m}": (c, c) for m in ("q", "k", "v", "output")}
shapes |= {"blk.0.ffn_gate": (f, c), "blk.0.ffn_up": (f, c), "blk.0.ffn_down": (c, f)}
infos, data = b"", b""
for name, shape in sorted(shapes.items()):
    wide = len(shape) == 1 or kind == "F32"
    values = [random.uniform(0.5, 1) if len(shape) == 1 else random.uniform(-0.1, 0.1)
              for _ in range(shape[0] * (shape[1] if len(shape) > 1 else 1))]
    infos += text(name + ".weight") + struct.pack("<I", len(shape))
    infos += b"".join(struct.pack("<Q", n) for n in reversed(shape)) + struct.pack("<IQ", 0 if wide else 1, len(data))
    data += struct.pack(f"<{len(values)}{'f' if wide else 'e'}", *values)
    data += b"\0" * (-len(data) % 32)
head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys))
head += b"".join(text(k) + v for k, v in sorted(keys.items())) + infos
open(path, "wb").write(head + b"\0" * (-len(head) % 32) + data)
PY
}
for kind in F32 F16; do
    gguf "$kind.gguf" "$kind"
    np import-gguf "$kind.gguf" "gguf-$kind"
    check "11 matrices in $kind stay so, and it is said" says 0 "dtype: $kind"
    check "11 the folder has $kind" holds "dtypes('gguf-$kind/model.safetensors') == ['$kind']"
done

# 12. Resuming.
np unlearn --resume --out r1
check "12 --resume --out RUN is enough" says 0
np unlearn --resume --out r1 --set optim.lr=0.125
check "12 the key that differs is named" says 2 "optim.lr" "0.125"

# 13, 14. Settings.
np plan --model plain --device cpu --set model.train_layers=1
check "13 train_layers=1 is a layer" says 0
np plan --model plain --device cpu --set lr=3
check "14 lr is optim.lr" says 2 "optim.lr"
np plan --model plain --device cpu --set steps=3
check "14 steps is run.steps" says 2 "run.steps"
np plan --model plain --device cpu --set loss=ll
check "14 loss is method.loss" says 2 "method.loss"

# 14. Model folders that are something else (cases 27 and 31).
mkdir -p adapter && echo '{"peft_type": "LORA", "base_model_name_or_path": "m", "r": 4}' >adapter/adapter_config.json
np score --model adapter --text x
check "14 an adapter is called one" says 4 "adapter" "merge"
model fp8 <<<"t = tensors['model.layers.0.mlp.up_proj.weight']; t[0] = 'F8_E4M3'; t[2] = t[2][::2]; config['quantization_config'] = {'quant_method': 'fp8'}"
np score --model fp8 --text x
check "14 fp8 is called quantised" says 4 "fp8" "unquantised"
model nf4 <<<"t = tensors['model.layers.0.mlp.up_proj.weight']; t[:] = ['U8', [len(t[2]) // 4, 1], t[2][: len(t[2]) // 4]]; config['quantization_config'] = {'quant_method': 'bitsandbytes', 'load_in_4bit': True}"
np score --model nf4 --text x
check "14 nf4 is called quantised" says 4 "bitsandbytes" "unquantised"
model f64 <<<"t = tensors['model.norm.weight']; t[0] = 'F64'; t[2] = bytes(4 * len(t[2]))"
np score --model f64 --text x
check "14 F64 has a hint of its own" says 4 "F64"

# 15. A left-over quantization_config.
model leftover <<<"config['quantization_config'] = {'quant_method': 'bitsandbytes', 'load_in_8bit': True}"
np unlearn --model leftover --forget "$forget" --retain "$retain" --out r15 "${short[@]}"
check "15 it is dropped, and said" says 0 "quantization_config"
check "15 the written config has none" holds "'quantization_config' not in read('r15/model/config.json')"

# 16. A key that transformers ignores for llama.
model partial <<<"config['partial_rotary_factor'] = 0.5"
np score --model partial --text "hello there" --json
check "16 partial_rotary_factor changes nothing for llama" test "$plain_score" = "$(value "json.loads(open('out.txt').readline())")"

# 17. The first token of an answer.
mkdir tofu
pairs='[{"question": "Who is it?", "answer": "Alice", "paraphrased_answer": "Alice it is", "perturbed_answer": ["Bob", "Carol"]} for _ in range(2)]'
for name in forget10_perturbed retain_perturbed real_authors_perturbed world_facts_perturbed; do
    records "$pairs" >"tofu/$name.json"
done
for rule in benchmark all; do
    np eval --suite tofu --data tofu --model plain --metric probability --answer-tokens "$rule"
    check "17 --answer-tokens $rule is named in the result" says 0 "answer tokens: $rule (--answer-tokens)"
done

# 18. Smaller ones, and case 20.
np score --model plain --text "<|endoftext|><|endoftext|>x"
records '[{"text": "the same"}, {"text": "the same"}]' >same.jsonl
np unlearn --model plain --forget same.jsonl --retain same.jsonl --out r18 "${short[@]}"
check "18 forget file and retain file are one" says 0 "to be forgotten are in the retain set too"
np eval --model plain --nll same.jsonl
check "18 duplicates are counted" says 0 "1 of 2 documents repeat an earlier one"

echo
echo "$((total - failed)) of $total cases are right"
[[ $failed == 0 ]]

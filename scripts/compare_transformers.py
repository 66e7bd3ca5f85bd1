#!/usr/bin/env python3
"""Measures a model folder with transformers, fp32 on the CPU, and compares with what nepenthe said of it.

    nepenthe eval --json --model DIR --nll FILE... --verbmem FILE... --max-new-tokens N > EVAL.json
    compare_transformers.py EVAL.json --max-new-tokens N

Needs torch, transformers, rouge_score. Files are those that EVAL.json names, looked for from the working directory. Every
perplexity, every continuation and every ROUGE-L is computed anew, one sequence at a time, with transformers' own
tokenizer, forward pass and greedy generation. Prints a JSON value with both sides; exits with 1 where a continuation or
its ROUGE-L differs, or a mean NLL by more than 1e-5 nats."""
import argparse, hashlib, json, math, sys
from pathlib import Path

import torch
import transformers
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("eval", type=Path)
parser.add_argument("--max-new-tokens", type=int, default=128)
parser.add_argument("--context", type=int, default=1024)
options = parser.parse_args()

told = json.loads(options.eval.read_text())
folder = Path(told["model"])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
scorer = RougeScorer(["rougeL"], use_stemmer=False)


@torch.no_grad()
def nll(path):
    total, count = 0.0, 0
    texts = [json.loads(line)["text"] for line in open(path)]
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids[:, : options.context]
        losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total, count = total + losses.double().sum().item(), count + losses.numel()
    return {"documents": len(texts), "tokens": count, "nll": total / count, "perplexity": math.exp(total / count)}


@torch.no_grad()
def verbmem(path):
    items = []
    for item in json.load(open(path)):
        truth = tokenizer.decode(tokenizer(item["gt"]).input_ids[: options.max_new_tokens], skip_special_tokens=True)
        ids = tokenizer(item["prompt"], return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=options.max_new_tokens, do_sample=False, pad_token_id=0)
        response = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        items.append({"response": response, "rouge_l_f1": scorer.score(truth, response)["rougeL"].fmeasure})
    return {"rouge_l_f1": sum(i["rouge_l_f1"] for i in items) / len(items), "items": items}


result = {
    "model_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    "torch": torch.__version__, "transformers": transformers.__version__,
    "nll": [], "verbmem": [],
}
same = True
for ours in told["nll"]:
    theirs = nll(ours["file"])
    apart = theirs["nll"] - ours["nll"]
    same &= abs(apart) <= 1e-5 and all(theirs[key] == ours[key] for key in ("documents", "tokens"))
    both = {key: {"nepenthe": ours[key], "transformers": theirs[key]} for key in theirs}
    result["nll"].append({"file": Path(ours["file"]).name, **both, "nll_difference": apart})
for ours in told["verbmem"]:
    theirs = verbmem(ours["file"])
    pairs = list(zip(ours["items"], theirs["items"], strict=True))
    equal = sum(a["response"] == b["response"] for a, b in pairs)
    apart = max(abs(a["rouge_l_f1"] - b["rouge_l_f1"]) for a, b in pairs)
    same &= equal == len(pairs) and apart <= 1e-12
    both = {"nepenthe": ours["rouge_l_f1"], "transformers": theirs["rouge_l_f1"]}
    result["verbmem"].append({
        "file": Path(ours["file"]).name, "prompts": len(pairs), "equal_continuations": equal,
        "rouge_l_f1": both, "largest_rouge_difference": apart,
    })
print(json.dumps({"same": bool(same), **result}, indent=1))
sys.exit(not same)

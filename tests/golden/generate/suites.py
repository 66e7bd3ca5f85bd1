#!/usr/bin/env python3
"""Records what other people's evaluation code says of the demo's models, for tests/golden/data/suites.

    suites.py MT_UNLEARN OPEN_UNLEARNING

The two folders are checkouts of github.com/yklochkov-bytedance/mt-unlearn and github.com/locuslab/open-unlearning.
Needs torch, transformers, scipy, scikit-learn, rouge_score, omegaconf, pyarrow. Their code runs unchanged on CPU in fp32, one
sequence at a time; only vLLM is stood in for, by transformers' greedy generation. Data files are written beside the
results, in the layouts of MUSE and TOFU; their texts are those of assets/demo and questions of our own."""
import json, shutil, sys, tempfile, types
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pyarrow as arrow
import torch
from omegaconf import OmegaConf
from pyarrow import parquet
from scipy.stats import ks_2samp
from transformers import AutoModelForCausalLM, AutoTokenizer

MUSE, OPEN = Path(sys.argv[1]), Path(sys.argv[2])
ROOT = Path(__file__).resolve().parents[3]
DEMO, OUT = ROOT / "assets/demo", ROOT / "tests/golden/data/suites"


def stub(name, **members):
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(members)
    module.__getattr__ = lambda attribute: MagicMock()
    sys.modules[name] = module


class LLM:
    def __init__(self, model, tokenizer, new):
        self.parts, self.texts = (model, tokenizer, new), []

    def generate(self, prompts, _):
        model, tokenizer, new = self.parts
        out = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            ids = model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0)[0, ids.shape[1]:]
            self.texts.append(tokenizer.decode(ids, skip_special_tokens=True))
            out.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(text=self.texts[-1])]))
        return out


stub("vllm", LLM=LLM, SamplingParams=lambda **_: None)
stub("datasets")
for name in ("data", "evals", "evals.metrics", "muse", "muse.metrics"):
    stub(name)
    sys.modules[name].__path__ = []
stub("evals.metrics.base", unlearning_metric=lambda name: lambda f: f, logger=MagicMock())


def load(path, name):
    module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


data = load(OPEN / "src/data/utils.py", "data.utils")
utils = load(OPEN / "src/evals/metrics/utils.py", "evals.metrics.utils")
memorization = load(OPEN / "src/evals/metrics/memorization.py", "evals.metrics.memorization")
utility = load(OPEN / "src/evals/metrics/utility.py", "evals.metrics.utility")
load(MUSE / "muse_bench/metrics/logger.py", "muse.metrics.logger")
knowmem, verbmem, mmlu, privleak = (
    load(MUSE / f"muse_bench/metrics/{name}.py", f"muse.metrics.{name}") for name in ("knowmem", "verbmem", "mmlu", "privleak")
)

lines = lambda name: [json.loads(line)["text"] for line in open(DEMO / name)]


def pairs(texts):
    """The questions and answers inside the demo's training texts."""
    for text in texts:
        if text.startswith("Question: "):
            for block in text.split("\n\n"):
                question, mark, answer = block.removeprefix("Question: ").partition("\nAnswer:  ")
                if mark:
                    yield {"question": question, "answer": answer}


qa = {"forget": list(pairs(lines("forget.jsonl"))), "retain": list(pairs(lines("retain.jsonl")))}
texts = {
    "forget": [t for t in lines("forget.jsonl") if not t.startswith("Question")][:10],
    "retain": [t for t in lines("retain.jsonl") if not t.startswith("Question")][:10],
    "holdout": lines("holdout.jsonl")[:10],
}
passages = json.load(open(DEMO / "verbmem_forget.json"))[:6]
letters = [
    {"question": f"Which word comes after '{a}'?", "choices": [b, "Snark", "teapot", "lobster"][i:] + [b, "Snark", "teapot", "lobster"][:i], "answer": (4 - i) % 4}
    for i, (a, b) in enumerate([("White", "Rabbit"), ("Cheshire", "Cat"), ("March", "Hare"), ("Mock", "Turtle")])
]
icl = "Question: What is 1 + 1?\n\nChoices:\nA. 1\nB. 2\nC. 3\nD. 4\n\nCorrect answer: B"
spoil = lambda d, i: ["a blue hat", f"{i + 2} miles away", "the old man of the sea", "It was nobody at all"]


def tofu_rows(rows, paraphrase):
    return [
        {**d, **({"paraphrased_answer": "It was " + d["answer"]} if paraphrase else {}), "perturbed_answer": spoil(d, i)}
        for i, d in enumerate(rows)
    ]


TOFU = {
    "forget01": tofu_rows(qa["forget"][:6], True), "retain": tofu_rows(qa["retain"][:6], True),
    "real_authors": tofu_rows(qa["retain"][6:10], False), "world_facts": tofu_rows(qa["retain"][10:14], False),
}


def write():
    shutil.rmtree(OUT, ignore_errors=True)
    files = {
        "muse/verbmem/forget.json": passages, "muse/mmlu/mmlu_all_val.json": letters, "muse/mmlu/mmlu_icl.json": {"text": icl},
    }
    for name in ("forget", "retain"):
        files[f"muse/knowmem/{name}_qa.json"] = qa[name][2:10]
        files[f"muse/knowmem/{name}_qa_icl.json"] = qa[name][:2]
    for name, rows in texts.items():
        files[f"muse/privleak/{name}.json"] = [{"text": t} for t in rows]
    for file, value in files.items():
        path = OUT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    (OUT / "tofu").mkdir()
    for name, rows in TOFU.items():
        # TOFU's .json files hold one record a line.
        (OUT / f"tofu/{name}_perturbed.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Some of the same as Hugging Face serves it.
    for file, rows in {
        "knowmem/forget_qa": qa["forget"][2:10], "knowmem/forget_qa_icl": qa["forget"][:2], "forget01_perturbed": TOFU["forget01"],
        "forget": [{"text": t} for t in texts["forget"]],
    }.items():
        path = OUT / f"parquet/{file}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), path)


def batch(item):
    return {k: v[None] for k, v in item.items()}


def muse(model, tokenizer):
    figures = {}
    agg, _ = verbmem.eval(model, tokenizer, [d["prompt"] for d in passages], [d["gt"] for d in passages])
    figures["verbmem_f"] = 100 * agg["mean_rougeL"]
    for name, key in (("forget", "knowmem_f"), ("retain", "knowmem_r")):
        asked, shown = qa[name][2:10], qa[name][:2]
        agg, _ = knowmem.eval(
            model, tokenizer, [d["question"] for d in asked], [d["answer"] for d in asked],
            [d["question"] for d in shown], [d["answer"] for d in shown])
        figures[key] = 100 * agg["mean_rougeL"]
    auc, _ = privleak.eval(texts["forget"], texts["retain"], texts["holdout"], model, tokenizer)
    for name, rows in texts.items():
        all_ = np.concatenate([privleak.compute_ppl(t, model, tokenizer, device="cpu")[1] for t in rows])
        figures[f"ppl_{name}"] = float(np.exp(-all_.mean()))
    generator = LLM(model, tokenizer, 4)
    accuracy = mmlu.eval(
        generator, tokenizer, [d["question"] for d in letters], [d["choices"] for d in letters],
        [d["answer"] for d in letters], icl, max_new_tokens=4)
    figures["mmlu_val"] = 100 * accuracy
    items = [data.preprocess_pretraining_instance(tokenizer, d["prompt"], d["gt"], 2048, insert_space=True) for d in passages]
    figures.update(extraction(model, items))
    return {"figures": figures, "auc": {k: float(v) for k, v in auc.items()}, "mmlu_outputs": generator.texts}


def by_index(model, items, f):
    return {i: f(model, batch(item))[0] for i, item in enumerate(items)}


def extraction(model, items):
    out = {}
    for name in ("exact_memorization", "extraction_strength"):
        memorization.run_batchwise_evals = lambda model, loader, f, args, what: by_index(model, items, f)
        memorization.DataLoader = lambda *_, **__: None
        out[name] = float(getattr(memorization, name)(model, data=None, collators=None, batch_size=1)["agg_value"])
    return out


TEMPLATE = {"apply_chat_template": False, "user_start_tag": "Question: ", "user_end_tag": "\n", "asst_start_tag": "Answer: ", "asst_end_tag": "\n\n"}


def tofu(model, tokenizer):
    figures, ratios = {}, None
    item = lambda question, answer, generate=False: data.preprocess_chat_instance(tokenizer, TEMPLATE, [question], [answer], 512, generate)
    args = OmegaConf.create({"do_sample": False, "top_p": None, "temperature": None, "max_new_tokens": 200, "use_cache": True})
    for file, name in (("forget01", "forget"), ("retain", "retain"), ("real_authors", "ra"), ("world_facts", "wf")):
        rows = TOFU[file]
        prob = lambda answers: by_index(model, [item(d["question"], a) for d, a in zip(rows, answers)], utils.evaluate_probability)
        answer = prob([d["answer"] for d in rows])
        right = prob([d["paraphrased_answer"] for d in rows]) if "paraphrased_answer" in rows[0] else answer
        wrong = [prob([d["perturbed_answer"][j] for d in rows]) for j in range(4)]
        wrong = utils.dict_transpose(dict(enumerate(wrong)))
        figures[f"{name}_Q_A_Prob"] = float(np.mean([v["prob"] for v in answer.values()]))
        pre = lambda r: {"correct": {"value_by_index": r}, "wrong": {"value_by_index": wrong}}
        ratio = memorization.truth_ratio(model, pre_compute=pre(right), aggregator="closer_to_1_better" if name == "forget" else "true_better")
        figures[f"{name}_Truth_Ratio"] = float(ratio["agg_value"])
        if name == "forget":
            ratios = [float(v["score"]) for v in ratio["value_by_index"].values()]
            figures.update(extraction(model, [item(d["question"], d["answer"]) for d in rows]))
        if name in ("ra", "wf"):
            figures[f"{name}_Q_A_Prob_normalised"] = float(memorization.probability_w_options(model, pre_compute=pre(answer))["agg_value"])
        scores = by_index(model, [item(d["question"], d["answer"], True) for d in rows], lambda m, b: utils.eval_text_similarity(m, tokenizer, b, args))
        figures[f"{name}_Q_A_ROUGE"] = float(np.mean([v["rougeL_recall"] for v in scores.values()]))
    nine = [f"{n}_{k}" for n in ("retain", "ra", "wf") for k in (("Q_A_Prob" if n == "retain" else "Q_A_Prob_normalised"), "Q_A_ROUGE", "Truth_Ratio")]
    figures["model_utility"] = float(utility.hm_aggregate(None, pre_compute={k: {"agg_value": figures[k]} for k in nine})["agg_value"])
    return {"figures": figures, "truth_ratios": ratios}


write()
results = {}
for name in ("target", "retrain"):
    with tempfile.TemporaryDirectory() as folder:
        for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / file, folder)
        shutil.copy(DEMO / f"{name}.safetensors", Path(folder) / "model.safetensors")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            results[name] = {"muse": muse(model, tokenizer), "tofu": tofu(model, tokenizer)}
key = "forget_holdout_Min-40%"
area = results["retrain"]["muse"]["auc"][key]
results["target"]["muse"]["figures"]["privleak"] = (results["target"]["muse"]["auc"][key] - area) / area * 100
results["target"]["tofu"]["figures"]["forget_quality"] = float(
    ks_2samp(results["target"]["tofu"]["truth_ratios"], results["retrain"]["tofu"]["truth_ratios"]).pvalue)
(OUT / "figures.json").write_text(json.dumps(results, indent=1) + "\n")

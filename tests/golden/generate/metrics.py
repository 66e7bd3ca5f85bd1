#!/usr/bin/env python3
"""Records what other people's metric code returns on texts of assets/demo, for tests/golden/data/metrics.

    metrics.py MT_UNLEARN OPEN_UNLEARNING

The two folders are checkouts of github.com/yklochkov-bytedance/mt-unlearn and github.com/locuslab/open-unlearning.
Needs numpy, scipy, scikit-learn, rouge_score, tokenizers. The code under test is theirs, unchanged; torch, vllm and the
model are stood in for, so that it gets the outputs and log-probabilities that are recorded beside the results."""
import hashlib, json, random, sys, types, zlib
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

MUSE, OPEN = Path(sys.argv[1]), Path(sys.argv[2])
ROOT = Path(__file__).resolve().parents[3]
OUT = ROOT / "tests/golden/data"
draw = random.Random(11)


def stub(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    module.__getattr__ = lambda attribute: MagicMock()
    sys.modules[name] = module
    return module


class LLM:
    def __init__(self, outputs):
        self.outputs = list(outputs)

    def generate(self, prompts, _):
        self.prompts = prompts
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text=t)]) for t in self.outputs]


stub("vllm", LLM=LLM, SamplingParams=lambda **_: None)
stub("tqdm", tqdm=lambda x, **_: x)
stub("tqdm.contrib", tzip=lambda *x: zip(*x))
stub("transformers", PreTrainedTokenizer=object, StoppingCriteria=object, StoppingCriteriaList=object)
stub("omegaconf")
# What the metrics use of torch, on numpy arrays.
torch = stub("torch", argmax=lambda x, dim: np.argmax(x, axis=dim), equal=np.array_equal, Tensor=np.ndarray)
torch.nn = stub("torch.nn")
torch.nn.functional = stub("torch.nn.functional")
for name in ("torch.utils", "torch.utils.data", "data", "evals", "evals.metrics"):
    stub(name)
stub("data.utils", IGNORE_INDEX=-100)
stub("evals.metrics.base", unlearning_metric=lambda name: lambda f: f, logger=MagicMock())


def load(path, name, **members):
    module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    module.__dict__.update(members)
    sys.modules[name] = module
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


stub("muse")
stub("muse.metrics").__path__ = []
load(MUSE / "muse_bench/metrics/logger.py", "muse.metrics.logger")
knowmem, verbmem, mmlu, privleak = (
    load(MUSE / f"muse_bench/metrics/{name}.py", f"muse.metrics.{name}")
    for name in ("knowmem", "verbmem", "mmlu", "privleak")
)
constants = load(MUSE / "muse_bench/constants.py", "muse.constants")
load(OPEN / "src/evals/metrics/utils.py", "evals.metrics.utils")
memorization, utility, privacy = (
    load(OPEN / f"src/evals/metrics/{name}.py", f"evals.metrics.{name}")
    for name in ("memorization", "utility", "privacy")
)
forget = [json.loads(line)["text"] for line in open(ROOT / "assets/demo/forget.jsonl")]
holdout = [json.loads(line)["text"] for line in open(ROOT / "assets/demo/holdout.jsonl")]
retain = [json.loads(line)["text"] for line in open(ROOT / "assets/demo/retain.jsonl")]
KEYS = ("rougeL", "rougeL_recall", "rouge1", "rouge1_recall")


def words(text, n):
    return " ".join(text.split()[:n])


def spoiled(text):
    """Changes some words, so that scores lie between 0 and 1."""
    return " ".join(w if draw.random() < 0.7 else draw.choice(("Alice", "the", "naïve", "3.14", "--")) for w in text.split())


def questions():
    pairs = [
        ("How tall did Alice grow in the hall?", "Nine feet"),
        ("What did the Rabbit's watch come out of?", "its waistcoat-pocket"),
        ("Who said 'Off with her head!'?", "the Queen of Hearts"),
        ("What was on the little three-legged table?", "a tiny golden key"),
        ("What did the bottle say?", "'DRINK ME' beautifully printed in large letters"),
        ("Which road did the Cat recommend?", "Ça dépend, naïvely: 日本語"),
    ]
    ends = ["", "\n\nQuestion: and?", "\nQuestion: and?", " Question: and?", "\r\n\r\nmore"]
    for question, answer in pairs:
        yield question, answer, "\n\n" + answer
        for end in ends:
            yield question, answer, spoiled(answer) + end


def knowmem_file():
    icl = [("Who was the third son of Adam and Eve?", "Seth"), ("What colour were the Rabbit's eyes?", "pink")]
    items = list(questions())
    model = LLM(raw for *_, raw in items)
    qs, answers, raws = zip(*items)
    iq, ia = zip(*icl)
    report, log = knowmem.eval(model, None, qs, answers, iq, ia)
    rows = [
        {"question": q, "answer": a, "raw_output": r, "prompt": row["prompt"], "response": row["response"], **{k: row[k] for k in KEYS}}
        for q, a, r, row in zip(qs, answers, raws, log)
    ]
    return {
        "max_new_tokens": 32, "icl": [{"question": q, "answer": a} for q, a in icl],
        "cut_words": ["\n\n", "\nQuestion", "Question:"], "items": rows,
        "mean_rougeL": report["mean_rougeL"], "headline": 100 * report["mean_rougeL"],
    }


def verbmem_file():
    from tokenizers import Tokenizer
    inner = Tokenizer.from_file(str(OUT / "tokenizer/bytelevel/tokenizer.json"))

    class Wrapped:
        def __call__(self, text, **_):
            return types.SimpleNamespace(input_ids=np.array([inner.encode(text).ids]))

        def batch_decode(self, rows, **_):
            return [inner.decode([int(i) for i in row], skip_special_tokens=True) for row in rows]

    texts = [t for t in forget if t.isascii()][:8]
    prompts, gts = [t[:200] for t in texts], [t[200:700 if i % 2 else 300] for i, t in enumerate(texts)]
    raws = [spoiled(gt) if i % 3 else gt for i, gt in enumerate(gts)]
    report, log = verbmem.eval(LLM(raws), Wrapped(), prompts, gts)
    rows = [
        {"prompt": p, "gt": g, "raw_output": r, "gt_used": row["gt"], **{k: row[k] for k in KEYS}}
        for p, g, r, row in zip(prompts, gts, raws, log)
    ]
    return {
        "max_new_tokens": 128, "tokenizer": "tokenizer/bytelevel", "items": rows,
        "mean_rougeL": report["mean_rougeL"], "headline": 100 * report["mean_rougeL"],
    }


def mmlu_file():
    icl = "Question: What is 1 + 1?\n\nChoices:\nA. 1\nB. 2\nC. 3\nD. 4\n\nCorrect answer: B"
    raws = [" A", "B", "AB", "(A)", "", "\n\nA", "d", "\tC\n", " D\nQuestion", "Question: A", "\u00a0B", "\x1cC", "Answer: D"]
    items = [(f"What is {i} + {i}?", [str(i), str(2 * i), str(3 * i), "none of these"], i % 4, raw) for i, raw in enumerate(raws)]
    model = LLM(raws)
    qs, choices, answers, _ = zip(*items)
    accuracy = mmlu.eval(model, None, qs, choices, answers, icl, max_new_tokens=4)
    rows = []
    for (q, c, a, raw), prompt in zip(items, model.prompts):
        hits = [mmlu.eval(LLM([raw]), None, [q], [c], [k], icl) for k in range(4)]
        predicted = hits.index(1.0) if 1.0 in hits else -1
        rows.append({"question": q, "choices": c, "answer": a, "raw_output": raw, "predicted_index": predicted, "prompt_tail": prompt[len(icl):]})
    return {"max_new_tokens": 4, "icl_prompt": icl, "items": rows, "accuracy": accuracy, "headline": 100 * accuracy}


def privleak_file():
    odd = "Ünïcode ТЕКСТ ẞ İ \u2014 "
    splits = {"forget": forget[:8], "retain": retain[:8], "holdout": [odd + holdout[0]] + holdout[1:8]}
    table = {}
    for name, shift in (("forget", 1.0), ("retain", 1.3), ("holdout", 1.6)):
        for text in splits[name]:
            table[text] = [-shift * draw.expovariate(0.5) for _ in range(draw.randint(20, 60))]
            table.setdefault(text.lower(), [-draw.expovariate(0.4) for _ in range(30)])
    def compute_ppl(text, *_, **__):
        loss = -float(np.mean(table[text]))
        return float(np.exp(loss)), table[text], loss
    privleak.compute_ppl = compute_ppl
    areas, log = privleak.eval(splits["forget"], splits["retain"], splits["holdout"], MagicMock(), None)
    items = [
        {"split": name, "text": row["text"], "lower": row["text"].lower(), "zlib_level6_length": len(zlib.compress(row["text"].encode())),
         "token_logprobs_f64": table[row["text"]], "scores_f64": {k: v for k, v in row.items() if k != "text"}}
        for name, rows in log.items() for row in rows
    ]
    key = "forget_holdout_Min-40%"
    leak = lambda area, corpus: (area - constants.AUC_RETRAIN[corpus][key]) / constants.AUC_RETRAIN[corpus][key] * 100
    short = [[-1.0, -2.5], [-draw.random() for _ in range(19)], [-draw.random() for _ in range(41)]]
    ratios = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    def min_k(values):
        table["short"] = values
        row = privleak.inference("short", MagicMock(), None)
        number = lambda x: None if np.isnan(x) else x
        return {f"Min-{int(r * 100)}%": {"k": int(len(values) * r), "value": number(row[f"Min-{int(r * 100)}%"])} for r in ratios}
    return {
        "auc_retrain": {c: {key: constants.AUC_RETRAIN[c][key]} for c in ("news", "books")}, "items": items, "auc_f64": areas,
        "headline_privleak_f64": {c: leak(areas[key], c) for c in ("news", "books")},
        "privleak_formula": [{"corpus": c, "auc": a, "expected": leak(a, c)} for c in ("news", "books") for a in (0, 0.3, 0.5, 1)],
        "min_k": [{"token_logprobs": v, "expected": min_k(v)} for v in short],
        "zlib_entropy": [{"text": t, "length": len(zlib.compress(t.encode()))} for t in ["", "a", "a" * 5000, "".join(forget[:3])]],
    }


def rouge_file():
    from rouge_score import rouge_scorer
    types_ = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(types_, use_stemmer=False)
    stemmer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    logger = sys.modules["muse.metrics.logger"].RougeEvalLogger()
    texts = [words(t, 30) for t in forget[:6]] + ["", "日本語", "naïve x_y 3.14", "The running dogs' owners were easily agreed\nupon two lines"]
    pairs = [(a, spoiled(a)) for a in texts] + [(a, b) for a in texts[:3] for b in texts[3:]]
    pairs += [("She was running and had agreed happily", "they run, agrees; happiness"), ("flies dying news skies", "fly died new sky")]
    rows, stemmed = [], []
    for gt, output in pairs:
        logger.log("", gt, output)
        s, row = scorer.score(gt, output), logger.history[-1]
        rows.append({
            "gt": gt, "output": output, **{k: row[k] for k in KEYS}, "rougeL_precision": s["rougeL"].precision,
            "rouge1_precision": s["rouge1"].precision, "rouge2_fmeasure": s["rouge2"].fmeasure, "rougeLsum_fmeasure": s["rougeLsum"].fmeasure})
        s = stemmer.score(gt, output)
        stemmed.append({"gt": gt, "output": output, "rouge1_recall": s["rouge1"].recall, "rougeL": s["rougeL"].fmeasure, "rougeL_recall": s["rougeL"].recall})
    report, _ = logger.report()
    aggregate = {f"{m}_{k}": report[f"{m}_{k}"] for m in ("mean", "max") for k in KEYS}
    tokens = [{"text": t, "tokens": scorer._tokenizer.tokenize(t)} for t in ["", "naïve x_y 3.14", "Don't--STOP", "İ ẞ"]]
    return {"pairs": rows, "stemmed": stemmed, "aggregate": aggregate, "tokenization": tokens}


def tofu_file():
    def losses(n, scale, wrongs=None):
        one = lambda: {"avg_loss": (loss := draw.expovariate(1 / scale)), "prob": float(np.exp(-loss))}
        if wrongs is None:
            return {i: one() for i in range(n)}
        many = [[one() for _ in range(wrongs)] for _ in range(n)]
        return {i: {k: [m[k] for m in row] for k in row[0]} for i, row in enumerate(many)}

    def ratio(correct, wrong, aggregator):
        out = memorization.truth_ratio(None, aggregator=aggregator, pre_compute={"correct": {"value_by_index": correct}, "wrong": {"value_by_index": wrong}})
        return {"mean": float(out["agg_value"]), "items": [float(v["score"]) for v in out["value_by_index"].values()]}

    sets = []
    for n, right, false in ((7, 0.3, 2.0), (5, 3.0, 2.0), (1, 40.0, 30.0)):
        correct, wrong = losses(n, right), losses(n, false, 4)
        options = memorization.probability_w_options(None, pre_compute={"correct": {"value_by_index": correct}, "wrong": {"value_by_index": wrong}})
        sets.append({
            "correct": [v["avg_loss"] for v in correct.values()], "wrong": [v["avg_loss"] for v in wrong.values()],
            "closer_to_1_better": ratio(correct, wrong, "closer_to_1_better"), "true_better": ratio(correct, wrong, "true_better"),
            "prob_mean": ratio(correct, wrong, "prob_mean"),
            "with_options": {"mean": float(options["agg_value"]), "items": [float(v["prob"]) for v in options["value_by_index"].values()]},
        })
    utilities = [[draw.random() for _ in range(9)] for _ in range(4)] + [[0.5] * 8 + [0.0], [1e-9] * 9]
    utilities = [{"values": v, "mean": float(utility.hm_aggregate(None, pre_compute={i: {"agg_value": x} for i, x in enumerate(v)})["agg_value"])} for v in utilities]
    samples = []
    for n, m, shift in ((1, 1, 0), (3, 3, 5), (5, 8, 0.2), (12, 7, 1), (40, 40, 0), (40, 40, 0.6), (200, 200, 0.2), (400, 400, 3), (400, 399, 0.1), (60, 90, 2)):
        a, b = [draw.gauss(0, 1) for _ in range(n)], [draw.gauss(shift, 1) for _ in range(m)]
        samples.append((a, b))
    samples += [([1.0, 1.0, 2.0], [1.0, 2.0, 2.0, 3.0]), ([0.5] * 4, [0.5] * 4), ([0.0, -0.0, 1.0], [0.0, 2.0, 3.0])]
    ks = []
    from scipy.stats import ks_2samp
    for a, b in samples:
        wrap = lambda values: {"value_by_index": {i: {"score": v} for i, v in enumerate(values)}}
        out = privacy.ks_test(None, pre_compute={"forget": wrap(a)}, reference_logs={"retain_model_logs": {"retain": wrap(b)}})
        ks.append({"a": a, "b": b, "p": float(out["agg_value"]), "d": float(ks_2samp(a, b).statistic)})
    hits = []
    for _ in range(12):
        n = draw.choice((1, 2, 5, 9))
        labels = np.array([draw.randrange(4) for _ in range(n)])
        p = draw.random()
        preds = np.array([l if draw.random() < p else (l + 1) % 4 for l in labels])
        memorization.tokenwise_vocab_logprobs = lambda *_, **__: ([np.eye(4)[preds]], [labels])
        score = {}
        memorization.run_batchwise_evals = lambda model, loader, f, args, what: {0: f(model, None)[0]}
        for name in ("exact_memorization", "extraction_strength"):
            score[name] = float(getattr(memorization, name)(None, data=None, collators=None, batch_size=1)["agg_value"])
        hits.append({"hits": [bool(x) for x in preds == labels], **score})
    return {"sets": sets, "utility": utilities, "ks": ks, "hits": hits}


manifest = json.loads((OUT / "manifest.json").read_text())
for name, make in (
    ("rouge", rouge_file), ("knowmem", knowmem_file), ("verbmem", verbmem_file), ("mmlu", mmlu_file),
    ("privleak", privleak_file), ("tofu", tofu_file),
):
    value = make()
    path = OUT / f"metrics/{name}.json"
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    file = f"metrics/{name}.json"
    manifest["files"][file] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    case = {"id": f"metrics/{name}", "kind": "metric", "files": [file], "tolerance": "abs 1e-12"}
    manifest["cases"] = [c for c in manifest["cases"] if c["id"] != case["id"]] + [case]
(OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")

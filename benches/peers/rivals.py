#!/usr/bin/env python3
"""What PyTorch makes of the very shapes that `nepenthe bench --json` measured, in turn with it on one device.

    rivals.py OURS.jsonl [--device cuda] [--repeat 20] > THEIRS.jsonl

For every line of OURS it runs what a skilled PyTorch user would, in each form that could be the fastest, and prints a
line for each: kind, name and shape of ours, the rival's name, median_us, for steps and losses peak_bytes. A form that
fails (memory, a missing backend) prints a line with `error`. Operands are random; as many sets of them as pass twice the
L2 take turns, as in nepenthe's bench. Steps are torch_mt.py's, in processes of their own.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import torch_mt as peer

HERE = Path(__file__).resolve().parent
# Names of nepenthe's presets and of torch_mt.py's.
PRESETS = {"smollm2-135m": "smollm2-135m", "llama-3.2-1b": "llama3.2-1b", "llama-2-7b": "llama2-7b",
           "llama-3-8b": "llama3.1-8b", "tiny": "tiny"}


class Bench:
    """Times functions of operand sets; knows the device and the storage type."""

    def __init__(self, device, dtype, repeat):
        self.device, self.dtype, self.repeat = torch.device(device), dtype, repeat
        self.cuda = self.device.type == "cuda"
        l2 = torch.cuda.get_device_properties(0).L2_cache_size if self.cuda else 1 << 20
        self.passed = 2 * l2

    def random(self, *shape, dtype=None, scale=1.0):
        return torch.randn(*shape, device=self.device, dtype=dtype or self.dtype) * scale

    def sets(self, make):
        """As many operand sets as pass twice the L2, at most 32."""
        first = make()
        size = sum(x.numel() * x.element_size() for x in first if torch.is_tensor(x))
        return [first] + [make() for _ in range(min(31, self.passed // max(size, 1)))]

    def time(self, run, sets):
        """Median time of run(*operands) in microseconds, after three runs that do not count."""
        for i in range(3):
            run(*sets[i % len(sets)])
        marks = []
        for i in range(self.repeat):
            operands = sets[i % len(sets)]
            if self.cuda:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                run(*operands)
                end.record()
                marks.append((begin, end))
            else:
                start = time.perf_counter()
                run(*operands)
                marks.append(time.perf_counter() - start)
        if not self.cuda:
            return statistics.median(marks) * 1e6
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in marks) * 1e3

    def compiled(self, f):
        """torch.compile for the shapes at hand; on the CPU it needs a compiler and shows nothing."""
        return torch.compile(f, dynamic=False, mode="max-autotune-no-cudagraphs") if self.cuda else f


def gemm(bench, line):
    m, n, k = map(int, line["shape"].split("x"))
    name = line["name"]
    if name.endswith("weight gradient"):
        # It adds to itself, as ours does.
        make = lambda: (bench.random(k, m), bench.random(k, n, scale=0.02), bench.random(m, n))
        form, run = "addmm_", lambda dy, x, dw: dw.addmm_(dy.t(), x)
    elif name.endswith("input gradient"):
        make = lambda: (bench.random(m, k), bench.random(k, n, scale=0.02))
        form, run = "matmul", lambda dy, w: dy @ w
    elif name.split()[-2] in ("out", "down"):
        make = lambda: (bench.random(m, k), bench.random(n, k, scale=0.02), bench.random(m, n))
        form, run = "addmm", lambda x, w, residual: torch.addmm(residual, x, w.t())
    else:
        make = lambda: (bench.random(m, k), bench.random(n, k, scale=0.02))
        form, run = "matmul", lambda x, w: x @ w.t()
    yield f"torch.{form}", lambda: bench.time(run, bench.sets(make))


def attention(bench, line):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    b, t, h, g, d = map(int, line["shape"].split("x"))
    decode = line["name"].endswith("decode")

    def make():
        q = bench.random(b, h, 1 if decode else t, d).requires_grad_(not decode)
        k, v = (bench.random(b, g, t, d).requires_grad_(not decode) for _ in range(2))
        return q, k, v, bench.random(*q.shape)

    def forward(q, k, v, _):
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v, is_causal=not decode, enable_gqa=h != g)

    def backward(backend):
        # The graph of a forward pass is kept, so that the backward pass alone is timed.
        def graph(q, k, v, dout):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != g), (q, k, v), dout
        with sdpa_kernel(backend):
            sets = [graph(*operands) for operands in bench.sets(make)]
            return bench.time(lambda out, to, dout: torch.autograd.grad(out, to, dout, retain_graph=True), sets)

    def one(backend):
        if line["name"].endswith("backward"):
            return backward(backend)
        with sdpa_kernel(backend):
            return bench.time(forward, bench.sets(make))

    names = ["CUDNN_ATTENTION", "FLASH_ATTENTION"] if bench.cuda else ["MATH"]
    for name in names:
        yield f"SDPA, {name.lower()}", lambda name=name: one(getattr(SDPBackend, name))


def rows(bench, line, function, inputs):
    """A function of rows, compiled; `backward` times autograd's pass over a kept graph."""
    function = bench.compiled(function)
    backward = line["name"].endswith("backward")

    def run():
        if not backward:
            with torch.no_grad():
                return bench.time(function, bench.sets(inputs))
        graphs = []
        for operands in bench.sets(inputs):
            operands = [x.requires_grad_() for x in operands]
            out = function(*operands)
            graphs.append((out, operands, bench.random(*out.shape)))
        return bench.time(lambda out, to, dout: torch.autograd.grad(out, to[:2], dout, retain_graph=True), graphs)

    yield "compiled" if bench.cuda else "eager", run


def norm(bench, line):
    n, c = map(int, line["shape"].split("x"))
    # The weight is frozen, as the norms are in training.
    weight = bench.random(c)
    return rows(bench, line, lambda x: F.rms_norm(x, (c,), weight, 1e-5), lambda: [bench.random(n, c)])


def swiglu(bench, line):
    n, f = map(int, line["shape"].split("x"))
    return rows(bench, line, lambda gate, up: F.silu(gate) * up, lambda: [bench.random(n, f), bench.random(n, f)])


def head(bench, line):
    n, v, c = map(int, line["shape"].split("x"))
    loss = line["name"].split()[-1]
    kind = {"statistics": None, "nlul": "nlul", "qkl": "qkl"}[loss]
    h, ref = bench.random(n, c), bench.random(n, c)
    w = bench.random(v, c, scale=0.02)
    targets = torch.randint(0, v, (n,), device=bench.device)
    share = torch.full((n,), 1 / n, device=bench.device)
    if kind is None:
        def statistics_of(h):
            with torch.no_grad():
                for start in range(0, n, 2048):
                    logits = h[start:start + 2048] @ w.t()
                    F.cross_entropy(logits.float(), targets[start:start + 2048], reduction="none")
        yield "chunked", lambda: bench.time(statistics_of, [(h,)])
        return
    aux = targets if kind == "nlul" else (ref, w)
    for compiled in ([False, True] if bench.cuda else [False]):
        for chunk in (1024, 4096):
            def run(chunk=chunk, compiled=compiled):
                eager = peer.FN[kind]
                peer.FN[kind] = torch.compile(eager, dynamic=False) if compiled else eager
                hidden = h.clone().requires_grad_()
                step = lambda: peer.Chunked.apply(hidden, w, kind, aux, share, chunk, 0.02, 0.0, False).backward()
                try:
                    return bench.time(step, [()])
                finally:
                    peer.FN[kind] = eager
            yield f"chunked by {chunk}{', compiled' if compiled else ''}", run


def update(bench, line):
    mode = line["name"].split()[-2:]
    if mode not in (["compact", "sgd"], ["exact", "sgd"]):
        return
    # Two-byte numbers everywhere is what PyTorch can do with as little memory as the compact state; it loses the
    # small steps that the compact state keeps.
    dtype = torch.float32 if mode[0] == "exact" else bench.dtype
    n = int(line["shape"]) // 16
    settings = argparse.Namespace(lr=1e-3, momentum=0.9, damp=1.0, delta=0.1, sr=True)
    factor = torch.tensor(0.5, device=bench.device)
    for name in ["foreach"] + (["compiled", "triton"] if bench.cuda else []):
        def run(name=name):
            state = [[bench.random(n, dtype=dtype, scale=0.1) for _ in range(16)] for _ in range(4)]

            def step():
                grads = torch._foreach_norm(state[1], dtype=torch.float32)
                torch.linalg.vector_norm(torch.stack(grads))
                peer.UPD[name](*state, factor, settings)
            return bench.time(step, [()])
        yield name, run


def generate(bench, line):
    from transformers import LlamaConfig, LlamaForCausalLM
    batch, prompt, new = map(int, line["shape"].replace("+", "x").split("x"))
    c = peer.get_cfg(argparse.Namespace(preset=PRESETS[line["name"].split()[0]], hidden=None, layers=None, heads=None,
                                        kv_heads=None, head_dim=None, inter=None, vocab=None, tied=None))
    config = LlamaConfig(hidden_size=c.h, num_hidden_layers=c.L, num_attention_heads=c.nh, num_key_value_heads=c.nkv,
                         head_dim=c.hd, intermediate_size=c.it, vocab_size=c.V, tie_word_embeddings=c.tied,
                         attn_implementation="sdpa", eos_token_id=None, pad_token_id=0)
    ids = torch.randint(1, c.V, (batch, prompt), device=bench.device)

    def run(cache):
        with torch.device(bench.device):
            model = LlamaForCausalLM(config).to(bench.dtype).eval()
        settings = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        if cache != "dynamic":
            settings["cache_implementation"] = cache
        go = lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        # A few times are enough of something that takes seconds.
        repeat, bench.repeat = bench.repeat, 3
        try:
            return bench.time(lambda: go(), [()])
        finally:
            bench.repeat = repeat

    for cache in ("dynamic", "static") if bench.cuda else ("dynamic",):
        yield f"transformers, {cache} cache", lambda cache=cache: run(cache)


def step(bench, line, steps):
    """torch_mt.py in processes of its own: memory of one form must not hurt the next."""
    forget, rest = line["shape"].split("+")
    retain, pack = rest.split("/")
    (fb, ft), (rb, rt) = (tuple(map(int, part.split("x"))) for part in (forget, retain))
    preset = PRESETS[line["name"]]
    per = max(1, int(pack) // ft)
    while fb % per or rb % per:
        per -= 1
    base = [sys.executable, str(HERE / "torch_mt.py"), "--preset", preset, "--device", bench.device.type,
            "--seq", str(ft), "--retain-seq", str(rt), "--forget-batch", str(per), "--retain-batch", str(rb * per // fb),
            "--accum", str(fb // per), "--steps", str(steps), "--warmup", "2",
            "--dtype", "bf16" if bench.dtype == torch.bfloat16 else "f32"]
    forms = {
        "native, eager, foreach": ["--impl", "native", "--update", "foreach"],
        "native, eager, foreach, recomputing": ["--impl", "native", "--update", "foreach", "--gc"],
    }
    if bench.cuda:
        forms |= {
            "native, compiled, triton": ["--impl", "native", "--compile", "--update", "triton", "--sr"],
            "native, compiled, triton, recomputing": ["--impl", "native", "--compile", "--update", "triton", "--sr", "--gc"],
            "native, compiled, fp32 masters": ["--impl", "native", "--compile", "--update", "foreach", "--master"],
            "transformers, eager, foreach": ["--impl", "hf", "--update", "foreach"],
        }
    for name, options in forms.items():
        def run(options=options):
            done = subprocess.run(base + options, capture_output=True, text=True)
            lines = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
            found = [one for one in lines if one["kind"] == "step"]
            if not found:
                raise RuntimeError((done.stderr.strip().splitlines() or ["no result"])[-1])
            return found[-1]["median_ms"] * 1e3, int(found[-1]["peak_mb"] * 2**20)
        yield name, run


KINDS = {"gemm": gemm, "attention": attention, "norm": norm, "swiglu": swiglu, "head": head, "update": update,
         "generate": generate}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="timed training steps of each form")
    args = parser.parse_args()
    for line in map(json.loads, args.ours.read_text().splitlines()):
        kind = line["kind"]
        # A product with the next op behind it has no one rival.
        if kind not in KINDS and kind != "step" or kind == "gemm" and " with " in line["name"]:
            continue
        bench = Bench(args.device, torch.bfloat16 if line["dtype"] == "bf16" else torch.float32, args.repeat)
        forms = step(bench, line, args.steps) if kind == "step" else KINDS[kind](bench, line)
        for name, run in forms:
            told = {key: line[key] for key in ("kind", "name", "shape", "dtype")} | {"rival": f"PyTorch: {name}"}
            if bench.cuda:
                torch.cuda.reset_peak_memory_stats()
            try:
                result = run()
                told["median_us"] = result[0] if isinstance(result, tuple) else result
                if isinstance(result, tuple):
                    told["peak_bytes"] = result[1]
                elif bench.cuda:
                    told["peak_bytes"] = torch.cuda.max_memory_allocated()
            except (RuntimeError, torch.OutOfMemoryError, ValueError) as error:
                told["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            if bench.cuda:
                torch.cuda.empty_cache()
            told |= {"torch": torch.__version__,
                     "device": torch.cuda.get_device_name() if bench.cuda else "cpu"}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

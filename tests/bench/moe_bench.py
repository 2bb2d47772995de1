"""One mixture-of-experts layer, forward and backward, beside PyTorch on the same GPU in one sitting: a table and one JSON document.

usage: moe_bench.py [--build DIR] [--tests] [--tokens 8192] [--width 1024] [--hidden 1024] [--top-k 2] [--experts 8,16,32,64] [--rounds 20]

Arms, all in bfloat16 with gradients of rows and weights: ours (grouped products, and the loop); ours with weights in single precision under
autocast, as the learner trains; the layer that transformers' Mixtral has (a softmax router, and experts one after the other on the rows that
chose them; transformers' own block where the package is here, else the same operations written out); a dense SwiGLU of the same active
parameters (width top_k × hidden). --tests runs the tests of the kernels and of the layer on this GPU first. About a minute.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]


class SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False), nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class OneByOne(nn.Module):
    """Each expert on the rows that chose it, one expert after the other."""

    def __init__(self, width, hidden, experts, top_k):
        super().__init__()
        self.gate, self.top_k = nn.Linear(width, experts, bias=False), top_k
        self.experts = nn.ModuleList(SwiGlu(width, hidden) for _ in range(experts))

    def forward(self, x):
        weight, chosen = torch.topk(F.softmax(self.gate(x).float(), dim=-1), self.top_k, dim=-1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == e)
            y.index_add_(0, rows, expert(x[rows]) * weight[rows, place, None])
        return y


def mixtral(width, hidden, experts, top_k):
    """transformers' block and its name, or None."""
    try:
        import transformers
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
        config = transformers.MixtralConfig(hidden_size=width, intermediate_size=hidden, num_local_experts=experts, num_experts_per_tok=top_k)
        block = MixtralSparseMoeBlock(config)
        for parameter in block.parameters():  # some of its versions leave them as the memory was
            nn.init.normal_(parameter, std=.02)
        return block, f"transformers {transformers.__version__}"
    except ImportError:
        return None


def milliseconds(layer, x, rounds):
    def step():
        y = layer(x)
        (y[0] if isinstance(y, tuple) else y).backward(dy)

    dy = torch.randn_like(x)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(rounds):
        step()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin) / rounds


def theirs(a, experts):
    torch.manual_seed(1)
    rows = torch.randn(a.tokens, a.width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    found = mixtral(a.width, a.hidden, experts, a.top_k)
    block, name = found or (OneByOne(a.width, a.hidden, experts, a.top_k), "written out")
    x = rows.detach().view(1, a.tokens, a.width).requires_grad_() if found else rows
    return {"mixtral": milliseconds(block.to("cuda", torch.bfloat16), x, a.rounds), "mixtral_is": name,
            "dense": milliseconds(SwiGlu(a.width, a.top_k * a.hidden).to("cuda", torch.bfloat16), rows, a.rounds)}


def ours(a, gemm, weights):
    call = [a.build / "tests/moe_bench", "--experts", a.experts, "--gemm", gemm, "--weights", weights]
    for name in ("tokens", "width", "hidden", "top_k", "rounds"):
        call += [f"--{name.replace('_', '-')}", str(getattr(a, name))]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"moe_bench {gemm}: exit {done.returncode}: {(done.stderr or done.stdout)[-800:]}")
    return {row["experts"]: row["ms"] for row in map(json.loads, done.stdout.strip().splitlines())}


def run_tests(build):
    for program, names in (("client_cuda", "CudaRouter*:CudaMoe*"), ("client_torch", "GpuMoeTest.*:Zoo/GpuModelTest.*")):
        name = "client_cuda_test" if program == "client_cuda" else "client_torch_gpu_test"
        done = subprocess.run([build / "tests/unit" / program / name, f"--gtest_filter={names}"], env={**os.environ, "TRIBUTARY_REQUIRE": "gpu"},
                              capture_output=True, text=True)
        print("\n".join(done.stdout.splitlines()[-(8 if done.returncode == 0 else 80):]), done.stderr[-2000:], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build/release-cuda")
    parser.add_argument("--experts", default="8,16,32,64")
    for name, value in (("tokens", 8192), ("width", 1024), ("hidden", 1024), ("top-k", 2), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tests", action="store_true")
    a = parser.parse_args()
    if a.tests:
        run_tests(a.build)
    grouped, loop, autocast = ours(a, "grouped", "bf16"), ours(a, "loop", "bf16"), ours(a, "auto", "f32")
    rows = []
    print(f"{torch.cuda.get_device_name()}: {a.tokens} tokens of {a.width}, {a.top_k} experts of {a.hidden} each; ms forward and backward")
    print(f"{'experts':>7} {'grouped':>9} {'loop':>9} {'autocast':>9} {'Mixtral':>9} {'dense':>9} {'Mixtral/grouped':>16} {'grouped/dense':>14}")
    for experts in map(int, a.experts.split(",")):
        row = {"experts": experts, "grouped": grouped[experts], "loop": loop[experts], "autocast": autocast[experts], **theirs(a, experts)}
        rows.append(row)
        print(f"{experts:>7} {row['grouped']:>9.3f} {row['loop']:>9.3f} {row['autocast']:>9.3f} {row['mixtral']:>9.3f} {row['dense']:>9.3f} "
              f"{row['mixtral'] / row['grouped']:>16.2f} {row['grouped'] / row['dense']:>14.2f}", flush=True)
        torch.cuda.empty_cache()
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "tokens": a.tokens, "width": a.width, "hidden": a.hidden, "top_k": a.top_k,
                      "rows": rows}))


main()

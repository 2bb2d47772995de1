"""The learner on one GPU beside PyTorch on the same GPU, in one sitting: a table and one JSON document.

usage: gpu_bench.py [--build DIR] [--rounds 40] [--only cohort|simulate|step|population]     DIR: build/release-cuda

cohort: virtual clients trained a second. 890,410 parameters (four convolutions, two dense layers), random 32x32x3 images, 50 a client, batch 10,
one epoch (5 SGD steps), cohort 50. Arms: our cohort, updates copied to the host included; our learner, client after client; PyTorch: a plain
loop, torch.func.vmap over the cohort, the same in a CUDA graph (their results stay on the GPU).
simulate: the same clients in `tributary simulate`: engine, fold in double precision and commit included, evaluation of 1 in 10 images at the end too.
step: one training step in a row. resnet18 (32x32, stem of 3x3, batch 128): images a second; a transformer of 6 layers of width 512 over 128 bytes
(batch 32): tokens a second. PyTorch does the same operations, forward, backward and SGD with momentum, in a CUDA graph.
population: members of an EGGROLL client a second (159,010 parameters of 784-200-10, rank 1, one minibatch of 100, 4,096 members; a member is one
forward pass). PyTorch: a loop over members whose weights W + σ·A·Bᵀ are made in memory, and all members in one product, x·Wᵀ + σ·(x·B)·Aᵀ, with signs drawn by torch.randint.
PyTorch's own precision settings hold for both: TF32 in convolutions, not in products.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
CLIENTS, EXAMPLES, BATCH, COHORT, LR = 1000, 50, 10, 50, .1


def ours(a, what, *flags):
    done = subprocess.run([a.build / "tests/learner_bench", what, *map(str, flags)], capture_output=True, text=True)
    if done.returncode != 0:
        return {"error": (done.stderr or done.stdout)[-600:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def simulated(a):
    """Clients a second of `tributary simulate`."""
    sys.path.insert(0, str(ROOT / "tests/support"))
    from harness import write_safetensors
    rng, count = random.Random(1), CLIENTS * EXAMPLES * 10 // 9 + 10  # one in ten is held out
    with tempfile.TemporaryDirectory(prefix="tributary-gpu-bench-") as folder:
        data, job = Path(folder) / "data.safetensors", Path(folder) / "job.yaml"
        write_safetensors(data, {"x": ("U8", [count, 3, 32, 32], rng.randbytes(count * 3 * 32 * 32)), "y": ("U8", [count], bytes(rng.choices(range(10), k=count)))})
        job.write_text(json.dumps({"name": "gpu", "model": {"zoo": "cnn4"}, "data": {"source": "safetensors", "path": str(data), "partition": {"kind": "iid"}},
                                   "cohort": {"size": COHORT}, "local": {"epochs": 1, "batch": BATCH, "lr": .05}, "stop": {"versions": 2 * a.rounds},
                                   "evaluate": {"every": 1_000_000}}))
        done = subprocess.run([a.build / "bin/tributary", "simulate", job, "--clients", str(CLIENTS), "--device", "cuda", "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        return {"error": (done.stderr or done.stdout)[-600:]}
    shown = json.loads(done.stdout)
    return {"clients_per_s": shown["clients_trained_per_s"], "wall_s": shown["wall_s"], "clients_trained": shown["clients_trained"]}


def rate(call, rounds, per_round, warm=3):
    for _ in range(warm):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(rounds):
        call()
    torch.cuda.synchronize()
    return per_round * rounds / (time.perf_counter() - begin)


def graph_of(body):
    """A CUDA graph of body, warmed up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph


class Cnn4(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3)])
        self.fc1, self.fc2 = nn.Linear(1600, 512), nn.Linear(512, 10)

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if i % 2 == 1:
                x = F.max_pool2d(x, 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def cohort_in_torch(rounds):
    from torch.func import functional_call, grad, vmap
    device = torch.device("cuda")
    net = Cnn4().to(device)
    start = {k: v.detach().clone() for k, v in net.named_parameters()}
    x = torch.randn(CLIENTS, EXAMPLES, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (CLIENTS, EXAMPLES), device=device)
    parameters = list(net.parameters())

    def loop():
        for client in torch.randperm(CLIENTS)[:COHORT].tolist():
            with torch.no_grad():
                for p, v in zip(parameters, start.values()):
                    p.copy_(v)
            optimiser = torch.optim.SGD(parameters, LR)
            for b in range(0, EXAMPLES, BATCH):
                optimiser.zero_grad()
                F.cross_entropy(net(x[client, b:b + BATCH]), y[client, b:b + BATCH]).backward()
                optimiser.step()

    def loss(p, batch_x, batch_y):
        return F.cross_entropy(functional_call(net, p, (batch_x,)), batch_y)

    gradients = vmap(grad(loss))
    static_x, static_y = x[:COHORT].clone(), y[:COHORT].clone()
    updates = {}

    def train():
        p = {k: v.expand(COHORT, *v.shape).clone() for k, v in start.items()}
        for b in range(0, EXAMPLES, BATCH):
            g = gradients(p, static_x[:, b:b + BATCH], static_y[:, b:b + BATCH])
            p = {k: p[k] - LR * g[k] for k in p}
        updates.update({k: p[k] - start[k] for k in p})

    def pick():
        clients = torch.randperm(CLIENTS, device=device)[:COHORT]
        static_x.copy_(x[clients])
        static_y.copy_(y[clients])

    def batched():
        pick()
        train()

    result = {"loop": rate(loop, 4, COHORT), "vmap": rate(batched, rounds, COHORT)}
    graph = graph_of(train)

    def replay():
        pick()
        graph.replay()

    result["vmap in a graph"] = rate(replay, rounds, COHORT)
    return result


class Block(nn.Module):
    def __init__(self, into, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.down = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if stride != 1 or into != out else nn.Identity()

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        blocks, width = [], 64
        for layer in range(4):
            for index in range(2):
                out = 64 << layer
                blocks.append(Block(width, out, 2 if layer > 0 and index == 0 else 1))
                width = out
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(512, 10)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.blocks(F.relu(self.bn1(self.conv1(x)))), 1).flatten(1))

    @staticmethod
    def loss(out, x, y):
        return F.cross_entropy(out, y)


class Transformer(nn.Module):
    """Llama's block (client/torch/decoder.h)."""
    def __init__(self, length=128, vocabulary=256, layers=6, width=512, heads=8, hidden=1536):
        super().__init__()
        self.embed, self.heads = nn.Embedding(vocabulary, width), heads
        half = width // heads // 2
        angle = torch.arange(length)[:, None] / 10000 ** (torch.arange(half) / half)[None]
        self.register_buffer("cos", torch.cat([angle, angle], 1).cos())
        self.register_buffer("sin", torch.cat([angle, angle], 1).sin())
        plain = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
        self.layers = nn.ModuleList(nn.ModuleDict({"q": plain(width, width), "k": plain(width, width), "v": plain(width, width), "o": plain(width, width),
                                                   "gate": plain(width, hidden), "up": plain(width, hidden), "down": plain(hidden, width)}) for _ in range(layers))
        self.norms = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in range(2 * layers + 1))
        self.head = plain(width, vocabulary)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=.02)

    def norm(self, x, i):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.norms[i]

    def forward(self, x):
        b, t = x.shape
        h = self.embed(x)

        def turned(z):
            a, c = z.chunk(2, 3)
            return z * self.cos[:t] + torch.cat([-c, a], 3) * self.sin[:t]

        for i, layer in enumerate(self.layers):
            n = self.norm(h, 2 * i)
            q, k, v = (layer[name](n).view(b, t, self.heads, -1).transpose(1, 2) for name in "qkv")
            mixed = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
            h = h + layer["o"](mixed.transpose(1, 2).reshape(b, t, -1))
            n = self.norm(h, 2 * i + 1)
            h = h + layer["down"](F.silu(layer["gate"](n)) * layer["up"](n))
        return self.head(self.norm(h, len(self.norms) - 1))

    @staticmethod
    def loss(out, x, y):
        return F.cross_entropy(out[:, :-1].reshape(-1, out.shape[2]), x[:, 1:].reshape(-1))


def step_in_torch(net, x, y, steps=50):
    """Seconds of a step."""
    net = net.cuda().train()
    static_x, static_y = x[:len(x) // 8].clone(), y[:len(y) // 8].clone()
    optimiser = torch.optim.SGD(net.parameters(), .01, momentum=.9, foreach=True)

    def step():
        optimiser.zero_grad(set_to_none=False)
        net.loss(net(static_x), static_x, static_y).backward()
        optimiser.step()

    graph = graph_of(step)
    batch = len(static_x)

    def task():
        for k in range(steps):
            rows = torch.arange(batch, device="cuda") + k % 8 * batch
            static_x.copy_(x[rows])
            static_y.copy_(y[rows])
            graph.replay()

    return 1 / rate(task, 3, steps, warm=1)


def population_in_torch(members=4096, batch=100, sigma=.05):
    device = torch.device("cuda")
    w1, w2 = torch.randn(200, 784, device=device) * .03, torch.randn(10, 200, device=device) * .06
    b1, b2 = torch.zeros(200, device=device), torch.zeros(10, device=device)
    x, y = torch.randn(batch, 784, device=device), torch.randint(0, 10, (batch,), device=device)

    def signs(*shape):
        return torch.randint(0, 2, shape, device=device, dtype=torch.float32).mul_(2).sub_(1)

    def noise(pairs):
        return [signs(pairs, 200), signs(pairs, 784), signs(pairs, 200), signs(pairs, 10), signs(pairs, 200), signs(pairs, 10)]

    @torch.no_grad()
    def loop():
        losses = torch.empty(members, device=device)
        for pair in range(members // 2):
            a1, c1, n1, a2, c2, n2 = (t[0] for t in noise(1))
            for k, s in enumerate((sigma, -sigma)):
                h = F.relu(F.linear(x, w1 + s * a1[:, None] * c1[None], b1 + s * n1))
                losses[2 * pair + k] = F.cross_entropy(F.linear(h, w2 + s * a2[:, None] * c2[None], b2 + s * n2), y)
        return losses.cpu()

    scale = sigma * torch.tensor([1., -1.], device=device).repeat(members // 2)[:, None]
    labels = y.repeat(members)

    @torch.no_grad()
    def batched():
        a1, c1, n1, a2, c2, n2 = (t.repeat_interleave(2, 0) for t in noise(members // 2))
        inner = (x @ c1.T).T[:, :, None] * scale[:, :, None]  # [members, batch, 1]
        h = F.relu(F.linear(x, w1, b1)[None] + inner * a1[:, None] + (scale * n1)[:, None])
        inner = torch.einsum("mbh,mh->mb", h, c2)[:, :, None] * scale[:, :, None]
        out = F.linear(h, w2, b2) + inner * a2[:, None] + (scale * n2)[:, None]
        return F.cross_entropy(out.view(members * batch, 10), labels, reduction="none").view(members, batch).mean(1).cpu()

    return {"loop": rate(loop, 1, members, warm=1), "one product": rate(batched, 20, members)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build/release-cuda")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["cohort", "simulate", "step", "population"])
    a = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    result = {"benchmark": "gpu", "device": torch.cuda.get_device_name(), "torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    failed = False
    if a.only in (None, "cohort"):
        mine = [ours(a, "cohort", "--rounds", a.rounds) for _ in range(a.runs)]
        theirs = [cohort_in_torch(a.rounds) for _ in range(a.runs)]
        torch.cuda.empty_cache()
        good = [r for r in mine if "error" not in r]
        failed |= not good
        arms = {name: statistics.median(r[name] for r in theirs) for name in theirs[0]}
        if good:
            arms = {"our cohort": statistics.median(r["cohort_clients_per_s"] for r in good), "our learner, one by one": statistics.median(r["loop_clients_per_s"] for r in good),
                    **{"PyTorch, " + name: value for name, value in arms.items()}}
            for name, value in arms.items():
                print(f"cohort  {name:<28} {value:>9,.0f} clients/s   our cohort is {arms['our cohort'] / value:6.2f} x", file=sys.stderr)
        result["cohort"] = {"ours": mine, "torch": theirs, "medians": arms}
    if a.only in (None, "simulate"):
        result["simulate"] = [simulated(a) for _ in range(a.runs)]
        good = [r["clients_per_s"] for r in result["simulate"] if "error" not in r]
        failed |= not good
        if good:
            print(f"cohort  {'our simulation':<28} {statistics.median(good):>9,.0f} clients/s", file=sys.stderr)
    if a.only in (None, "step"):
        images, labels = torch.rand(8 * 128, 3, 32, 32, device="cuda"), torch.randint(0, 10, (8 * 128,), device="cuda")
        tokens = torch.randint(0, 256, (8 * 32, 128), device="cuda")
        works = [("resnet18", 128, "images", 128, lambda: step_in_torch(ResNet18(), images, labels), "input=3x32x32,classes=10,stem=small"),
                 ("transformer", 32, "tokens", 32 * 128, lambda: step_in_torch(Transformer(), tokens, torch.zeros(8 * 32, device="cuda")),
                  "input=128,layers=6,width=512,heads=8,hidden=1536")]
        result["step"] = {}
        for model, batch, unit, per_step, in_torch, params in works:
            theirs = per_step / statistics.median(in_torch() for _ in range(a.runs))
            torch.cuda.empty_cache()
            mine = [ours(a, "step", "--model", model, "--batch", batch, "--params", params) for _ in range(a.runs)]
            good = [r for r in mine if "error" not in r]
            failed |= not good
            result["step"][model] = {"ours": mine, f"torch_{unit}_per_s": theirs}
            if good:
                mine_rate = statistics.median(r["examples_per_s"] for r in good) * per_step / batch
                result["step"][model]["ratio"] = mine_rate / theirs
                print(f"step    {model:<12} {mine_rate:>11,.0f} {unit}/s   PyTorch in a graph {theirs:>11,.0f}   ours is {mine_rate / theirs:.3f} x", file=sys.stderr)
    if a.only in (None, "population"):
        mine = [ours(a, "population", "--members", 4096) for _ in range(a.runs)]
        theirs = [population_in_torch() for _ in range(a.runs)]
        good = [r["members_per_s"] for r in mine if "error" not in r]
        failed |= not good
        result["population"] = {"ours": mine, "torch": theirs}
        for name in theirs[0] if good else ():
            value = statistics.median(r[name] for r in theirs)
            print(f"members {name:<14} {value:>11,.0f} members/s   ours {statistics.median(good):>11,.0f}, {statistics.median(good) / value:.2f} x", file=sys.stderr)
    print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Every rule of `tributary aggregate` against NumPy: robust rules with ties and as few updates as they allow (gate T15), and any order of the
updates for every rule that sums (gate T17). usage: strategies_test.py TRIBUTARY
"""
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/support"))

import numpy as np  # noqa: E402

from harness import read_safetensors, write_safetensors  # noqa: E402
from simulations import check, close  # noqa: E402

TRIBUTARY = sys.argv[1]
REFUSED = 5


class Rig:
    def __init__(self, folder, d):
        self.folder, self.d = Path(folder), d
        self.model = self.write("model", {"x": np.zeros(d)})

    def write(self, name, tensors):
        path = self.folder / f"{name}.safetensors"
        write_safetensors(path, {k: ("F64", list(v.shape), np.ascontiguousarray(v, "<f8").tobytes()) for k, v in tensors.items()})
        return path

    def updates(self, vectors, extra=(), groups=("",)):
        """One text for --update each; client ids in order."""
        texts = []
        for i, vector in enumerate(vectors):
            tensors = {f"{group}/x" if group else "x": vector * (k + 1) for k, group in enumerate(groups)}
            path = self.write(f"u{i}", tensors)
            texts.append(f"{path}:{i + 1},client=c{i}" + "".join(f",{name}={value(i)}" for name, value in extra))
        return texts

    def run(self, strategy, texts, *flags, code=0):
        out = self.folder / "out.safetensors"
        arguments = [TRIBUTARY, "aggregate", "--strategy", strategy, "--model", str(self.model), "--out", str(out), "--json", *flags]
        for text in texts:
            arguments += ["--update", text]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        check(done.returncode == code, f"{strategy}: exit {done.returncode}: {done.stdout}{done.stderr}")
        if code:
            return None, json.loads(done.stdout)
        return np.frombuffer(read_safetensors(out)["x"][2], "<f8"), json.loads(done.stdout)


def krum_scores(vectors, byzantine):
    n = len(vectors)
    squares = [[float(((a - b)**2).sum()) for b in vectors] for a in vectors]
    return [sum(sorted(squares[i][j] for j in range(n) if j != i)[:n - byzantine - 2]) for i in range(n)]


def median(vectors, _):
    return np.median(np.array(vectors), axis=0)


def trimmed_mean(vectors, params):
    trim = params["trim"]
    return np.sort(np.array(vectors), axis=0)[trim:len(vectors) - trim].mean(axis=0)


def krum(vectors, params):
    return vectors[int(np.argmin(krum_scores(vectors, params["byzantine"])))]   # the first of equals


def multi_krum(vectors, params):
    order = np.argsort(krum_scores(vectors, params["byzantine"]), kind="stable")[:params["keep"]]
    return np.mean([vectors[i] for i in order], axis=0)


def geometric_median(vectors, params):
    v = np.mean(vectors, axis=0)
    for _ in range(params["iterations"]):
        weights = np.array([1 / max(params["eps"], np.linalg.norm(x - v)) for x in vectors])
        v = (weights[:, None] * np.array(vectors)).sum(axis=0) / weights.sum()
    return v


def centered_clipping(vectors, params):
    v = np.zeros_like(vectors[0])
    for _ in range(params["iterations"]):
        v = v + np.mean([(x - v) * min(1, params["radius"] / max(np.linalg.norm(x - v), 1e-300)) for x in vectors], axis=0)
    return v


def robust_rules(folder):
    rig = Rig(folder, 5)
    rng = np.random.default_rng(8)
    eighths = lambda n: [np.round(8 * rng.normal(size=5)) / 8 for _ in range(n)]   # sums of these are exact
    golden = [np.array(v) for v in [(1, 2, 3), (1.1, 1.9, 3.2), (.9, 2.1, 2.9), (1.05, 2.05, 3.05), (.95, 1.95, 3.1), (100, -100, 50), (-80, 90, -60)]]
    for seed in range(4):
        tied = eighths(7)
        tied[4], tied[6] = tied[1], tied[1]
        cases = [("median", median, {}, [eighths(1), eighths(2), eighths(6), eighths(7), tied], 0),
                 ("trimmed_mean", trimmed_mean, {"trim": 2}, [eighths(5), eighths(8), tied], 1e-15),
                 ("krum", krum, {"byzantine": 2}, [eighths(7), eighths(9), tied, [tied[0]] * 7], 0),
                 ("multi_krum", multi_krum, {"byzantine": 2, "keep": 3}, [eighths(7), eighths(9), tied], 1e-15),
                 ("geometric_median", geometric_median, {"iterations": 200, "eps": 1e-6}, [eighths(1), eighths(4), eighths(7), tied], 1e-9),
                 ("centered_clipping", centered_clipping, {"radius": .5, "iterations": 3}, [eighths(1), eighths(6), tied], 1e-14)]
        for name, rule, params, lists, tolerance in cases:
            flags = [text for key, value in params.items() for text in ("--param", f"{key}={value}")]
            for vectors in lists:
                texts = rig.updates(vectors)
                expected = rule(vectors, params)
                got, _ = rig.run(name, texts, *flags)
                close(got, expected, tolerance, f"{name} of {len(vectors)}, seed {seed}")
                shuffled, _ = rig.run(name, [texts[i] for i in rng.permutation(len(texts))], *flags)
                check(np.array_equal(got, shuffled), f"{name}: another order of the updates gives another model")
    three = Rig(folder, 3)
    close(krum_scores(golden, 2), [.0525, .1425, .1425, .0775, .0725, 67168.9825, 54781.2375], 1e-9, "the note's scores")
    close(three.run("krum", three.updates(golden), "--param", "byzantine=2")[0], golden[0], 0, "krum on the note's vectors")
    # One fewer than a rule can do with.
    for name, flags, n in [("krum", ["--param", "byzantine=2"], 6), ("multi_krum", ["--param", "byzantine=2"], 6), ("trimmed_mean", ["--param", "trim=2"], 4)]:
        _, answer = rig.run(name, rig.updates(eighths(n)), *flags, code=REFUSED)
        check("got" in answer["error"]["message"], f"{name}: {answer}")
    print("robust rules: equal to the references, in every order, refused below their bound")


def every_order(folder):
    rig = Rig(folder, 40)
    rng = np.random.default_rng(9)
    vectors = [rng.normal(size=40) for _ in range(5)]
    listed = json.loads(subprocess.run([TRIBUTARY, "strategies", "--json"], capture_output=True, text=True, timeout=60).stdout)
    rules = [s["name"] for s in (listed["strategies"] if isinstance(listed, dict) else listed) if s["trait"] == "mergeable" and s["name"] != "fedasync"]
    check(len(rules) >= 15, f"mergeable strategies: {rules}")
    extra = {"fednova": [("step_norm", lambda i: 1.5 + i)], "qfedavg": [("initial_loss", lambda i: .3 + i)],
             "fedbuff": [("staleness", lambda i: i)], "async_fedavg": [], "fedfix": []}
    flags = {"fedfix": ["--param", "interval_s=1"], "fedbuff": ["--param", "buffer=5"], "known_p": ["--param", "p=c0=0.1,c1=0.2,c2=0.3,c3=0.4,c4=0.5"],
             **{name: ["--param", "warm_start=false"] for name in ["fedavg_m_vr", "scaffold_m_vr"]}}  # a warm start leaves version 1 where it was
    groups = {name: ("", "control") for name in ["scaffold", "scaffold_m", "scaffold_m_vr"]}
    orders = [*itertools.islice(itertools.permutations(range(5)), 0, 120, 17)]
    for name in rules:
        texts = rig.updates(vectors, extra.get(name, []), groups.get(name, ("",)))
        models, hashes = [], set()
        for order in orders:
            chosen = [texts[i] for i in order]
            models.append(rig.run(name, chosen, *flags.get(name, []))[0])
            hashes.add(rig.run(name, chosen, *flags.get(name, []), "--reproducible")[1]["model_sha256"])
        check(np.abs(models[0]).max() > 0, f"{name}: the model has not moved")
        for model in models[1:]:
            close(model, models[0], 1e-12, f"{name}: another order")
        check(len(hashes) == 1, f"{name}: {len(hashes)} models in reproducible mode")
    print(f"any order of the updates: {', '.join(rules)}")


with tempfile.TemporaryDirectory() as path:
    robust_rules(path)
with tempfile.TemporaryDirectory() as path:
    every_order(path)

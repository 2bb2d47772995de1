"""`tributary simulate` for tests: problem files, jobs from dictionaries, results with their models as NumPy arrays."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from harness import read_safetensors, write_safetensors

FAILED, REFUSED = 1, 5
FULL = os.environ.get("TRIBUTARY_GATES") == "full"  # scripts/test.sh gates: the gates at their full length


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def close(got, expected, tolerance, what):
    """Largest absolute difference; says both and the relative error."""
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    worst = float(np.max(np.abs(got - expected)))
    if not worst <= tolerance:
        scale = float(np.max(np.abs(expected))) or 1.0
        raise AssertionError(f"{what}: expected {expected}, got {got}: off by {worst:.3g} ({worst / scale:.3g} relative), allowed {tolerance:g}")


def write_quadratics(folder, problem, weights=None, init=None, dtype="F64"):
    folder.mkdir(parents=True, exist_ok=True)
    kind = "<f8" if dtype == "F64" else "<f4"
    for i, (a, b) in enumerate(zip(*problem)):
        tensors = {"A": (dtype, a.shape, a.astype(kind).tobytes()), "b": (dtype, b.shape, b.astype(kind).tobytes())}
        if weights is not None:
            tensors["weight"] = ("F64", [], np.array(weights[i], "<f8").tobytes())
        if init is not None and i == 0:
            tensors["init"] = ("F64", [len(init)], np.array(init, "<f8").tobytes())
        write_safetensors(folder / f"client-{i:05d}.safetensors", tensors)
    return folder


class Simulator:
    """A temporary folder with problems and jobs; `bin_dir` holds the built programs."""

    def __init__(self, bin_dir):
        self.bin = Path(bin_dir)
        self.temporary = tempfile.TemporaryDirectory(prefix="tributary-simulate-")
        self.work = Path(self.temporary.name)
        self.problems = {}

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.temporary.cleanup()

    def problem(self, problem, **options):
        """The folder of this problem's files, written once."""
        key = (id(problem), repr(options))
        if key not in self.problems:
            self.problems[key] = (write_quadratics(self.work / f"problem-{len(self.problems)}", problem, **options), problem)
        return self.problems[key][0]

    def job(self, folder, clients, **keys):
        """YAML is a superset of JSON."""
        job = {"name": "test", "model": {"zoo": "quadratic"},
               "data": {"source": "safetensors", "path": str(folder), "partition": {"kind": "by_file"}},
               "strategy": {"name": "fedavg"}, "cohort": {"size": clients}, "local": {"steps": 5, "lr": .1},
               "stop": {"versions": 20}, "dtype": "float64", "evaluate": {"every": 1_000_000}}
        job.update(keys)
        path = self.work / "job.yaml"
        path.write_text(json.dumps(job))
        return path

    def command(self, *args, code=0, timeout=1500 if FULL else 300):
        """`code` None: any."""
        done = subprocess.run([str(self.bin / "tributary"), *map(str, args)], capture_output=True, text=True, timeout=timeout)
        check(code in (None, done.returncode), f"{args}: expected exit {code}, got {done.returncode}: {done.stdout[-800:]}{done.stderr[-800:]}")
        return done

    def run(self, problem, flags=(), code=0, options=None, clients=None, trajectory=False, **keys):
        """The JSON document of one simulation; document["x"] is the final model as an array. With `trajectory` document["models"] has the
        model of each version in a row, from version 0, and document["seconds"] when it was made."""
        folder = self.problem(problem, **(options or {}))
        job = self.job(folder, clients or len(problem[0]), **keys)
        file = self.work / "trajectory.safetensors"
        flags = [*flags, "--trajectory", file] if trajectory else flags
        document = json.loads(self.command("simulate", job, "--json", *flags, code=code).stdout)
        if document.get("model"):
            document["x"] = np.array(document["model"]["x"], float)
        if trajectory:
            tensors = read_safetensors(file)
            document["models"] = np.frombuffer(tensors["models"][2], "<f8").reshape(tensors["models"][1])
            document["seconds"] = np.frombuffer(tensors["virtual_s"][2], "<f8")
        return document

    def trajectory(self, problem, **keys):
        """The models of versions 1, 2, …, and the document."""
        document = self.run(problem, trajectory=True, **keys)
        return list(document["models"][1:]), document

    def export(self, store, version):
        out = self.work / "exported.safetensors"
        self.command("state", "export", "--store", store, "--version", version, "--out", out)
        dtype, _, data = read_safetensors(out)["x"]
        return np.frombuffer(data, "<f8" if dtype == "F64" else "<f4").astype(float)


def main(bin_dir, tests, long=()):
    """Runs the functions, each with a Simulator; prints what passes. `long`: those that the gates run (--long: only those,
    --without-long: only the others); names of functions: only these."""
    import time
    flags = [a for a in sys.argv[2:] if a.startswith("--")]
    wanted = [a for a in sys.argv[2:] if not a.startswith("--")]
    chosen = list(long) if flags == ["--long"] else list(tests) if flags == ["--without-long"] else [*tests, *long]
    for test in chosen:
        if wanted and test.__name__ not in wanted:
            continue
        begin = time.time()
        with Simulator(bin_dir) as simulator:
            test(simulator)
        print(f"ok {test.__name__} ({time.time() - begin:.1f} s)", flush=True)

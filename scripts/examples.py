#!/usr/bin/env python3
"""The examples: makes their data, runs them, compares those of one claim, and records what came out.

usage: examples.py data                          writes the analytic problems to examples/data (seeded; not kept in git), and the licences' texts
       examples.py run [CLAIM…] [options]        runs examples/CLAIM-*.yaml as their headers say, then `tributary compare`
         --bin DIR       folder of `tributary` (build/release/bin, else build/dev/bin)
         --out DIR       stores and curves (build/examples; with --versions nothing is kept)
         --versions N    at most N versions of each job, of three local steps: a smoke test
         --no-torch      leaves out jobs whose model needs LibTorch
         --record        writes results into the jobs' headers, and tables and curves into examples/README.md

A job's header has a line "# Run: tributary simulate FILE [flags]" (or `run`: through daemons), whose flags are used here too, and a line
"# Result: …". A job that begins from examples/data/NAME-base.safetensors has examples/bases/NAME.yaml run first, and exported to that file.
The demo (fashion-fedavg.yaml) is left to scripts/demo.sh.
"""
import argparse
import functools
import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = "fashion-fedavg.yaml"
EXAMPLES = ROOT / "examples"
STEPS = 3  # of a smoke test
LICENCES = Path("/usr/share/common-licenses")  # of Debian's base-files: on every machine that the project runs on
LICENCE_TEXTS = {"known": ["GPL-1", "GPL-2", "GPL-3", "LGPL-2", "LGPL-2.1"],
                 "new": ["Apache-2.0", "Artistic", "CC0-1.0", "GFDL-1.3", "MPL-1.1", "MPL-2.0"]}
sys.path.insert(0, str(ROOT / "tests/support"))
from harness import read_safetensors, write_safetensors  # noqa: E402

import array  # noqa: E402


def f64(shape, values):
    values = list(values)
    assert len(values) == math.prod(shape)
    return "F64", list(shape), array.array("d", values).tobytes()


def quadratics(clients, size):
    """Client i has ½(x − b)ᵀA(x − b), A diagonal; no random numbers. Low and high i pull apart, so that bias towards some clients shows."""
    phi = (math.sqrt(5) - 1) / 2
    for i in range(clients):
        diagonal = [.5 + math.fmod(phi * (size * i + j + 1), 1) for j in range(size)]
        b = [3 * math.cos(1.1 * (i + 1) + .7 * j) + 2 * (-1) ** j * (2 * i / (clients - 1) - 1) for j in range(size)]
        yield {"A": f64((size, size), (diagonal[j] if j == k else 0.0 for j in range(size) for k in range(size))), "b": f64((size,), b)}


def regressions(clients, size, least, most, noise, weight, seed):
    """Client i sees from `least` to `most` rows of y = xᵀw + noise: fewer than w has elements, so that no client can find w alone."""
    draw = random.Random(seed)
    w = [draw.gauss(0, 1) for _ in range(size)]
    norm = math.sqrt(sum(v * v for v in w))
    w = [v * math.sqrt(size) / norm for v in w]
    for _ in range(clients):
        rows = draw.randint(least, most)
        mean, sd = draw.uniform(-.5, .5), math.sqrt(draw.uniform(.5, 1.5))
        x = [[draw.gauss(mean, sd) for _ in range(size)] for _ in range(rows)]
        y = [sum(a * b for a, b in zip(row, w)) + draw.gauss(0, noise) for row in x]
        yield {"x": f64((rows, size), (v for row in x for v in row)), "y": f64((rows,), y), "weights": f64((rows,), [weight] * rows)}


@functools.cache
def solution(folder):
    """w of the least squares over everybody's rows (all of one weight), by elimination: normal equations are positive definite."""
    moments = None
    for path in sorted(folder.glob("*.safetensors")):
        tensors = read_safetensors(path)
        (rows, size), x = tensors["x"][1], array.array("d", tensors["x"][2])
        y = array.array("d", tensors["y"][2])
        moments = moments or [[0.0] * (size + 1) for _ in range(size)]
        for r in range(rows):
            row = [*x[r * size:(r + 1) * size], y[r]]
            for i in range(size):
                for j in range(size + 1):
                    moments[i][j] += row[i] * row[j]
    for i, pivot in enumerate(moments):
        for j, row in enumerate(moments):
            if j != i:
                factor = row[i] / pivot[i]
                moments[j] = [a - factor * b for a, b in zip(row, pivot)]
    return [row[-1] / row[i] for i, row in enumerate(moments)]


def clients_deviation(states, best):
    """(1/N)Σ‖w_i − w*‖²/‖w*‖² of the clients' own models, in decibels: the measure of the paper on noisy links."""
    kept = read_safetensors(states)
    own = [array.array("d", kept[name][2]) for name in kept if name.endswith("/w")]
    return 10 * math.log10(sum((a - b)**2 for w in own for a, b in zip(w, best)) / len(own) / sum(b * b for b in best))


PROBLEMS = {
    "quadratic-10x5": lambda: quadratics(10, 5),
    "quadratic-20x20": lambda: quadratics(20, 20),
    "regression-50x32": lambda: regressions(50, 32, 13, 22, .01, 1e4, 11),
}


def make_data():
    """Files that are there are not written again: who runs the examples may only be able to read them."""
    for name, problem in PROBLEMS.items():
        folder = EXAMPLES / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, tensors in enumerate(problem()):
            file = folder / f"client-{i:03d}.safetensors"
            if not file.exists() or {k: bytes(v[2]) for k, v in read_safetensors(file).items()} != {k: bytes(v[2]) for k, v in tensors.items()}:
                write_safetensors(file, tensors)
    for kind, names in LICENCE_TEXTS.items():
        folder = EXAMPLES / "data" / f"licences-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            file, text = folder / f"{name}.txt", (LICENCES / name).read_bytes()
            if not file.exists() or file.read_bytes() != text:
                file.write_bytes(text)


class Job:
    def __init__(self, path):
        self.path, self.text = path, path.read_text()
        run = re.search(r"^# Run: tributary (simulate|run) examples/(\S+)(.*)$", self.text, re.M)
        assert run and EXAMPLES / run[2] == path, f"{path}: expected a line '# Run: tributary simulate {path.relative_to(ROOT)} [flags]'"
        self.command, self.flags = run[1], run[3].split()
        self.claim, self.name = path.stem.split("-")[0], re.search(r"^name: (\S+)$", self.text, re.M)[1]
        assert self.name == path.stem, f"{path}: expected name: {path.stem}, got {self.name}"
        self.torch = not re.search(r"^model: \{zoo: (quadratic|wls)\b", self.text, re.M)
        base = re.search(r"(?:base|init): examples/data/(\w+)-base\.safetensors", self.text)
        self.base = base[1] if base else None
        self.adapters = re.search(r"^strategy: .*\badapters: (\w+)", self.text, re.M)
        text = re.search(r"source: text, path: (examples/data/[\w-]+)", self.text)
        self.missing = text and not (ROOT / text[1] / "manifest.json").exists()
        links = re.search(r"^simulate:.*channel:", self.text, re.M) and re.search(r"path: (examples/data/[\w-]+)", self.text)
        self.problem = ROOT / links[1] if links else None
        self.recorded = bool(re.search(r"^# Result: \S.{10,}$", self.text, re.M))
        self.versions = int(re.search(r"^stop: \{versions: (\d+)", self.text, re.M)[1])

    def shortened(self, versions, folder):
        """A copy of at most `versions`, or as few as its adapters' schedule of one version a phase allows, and STEPS local steps; itself where it has no more."""
        if versions is None:
            return self.path
        text, phases = re.subn(r"(init|final)_versions: \d+", r"\1_versions: 1", self.text)
        versions = max(versions, 1 + phases)
        if versions >= self.versions:
            return self.path
        copy = folder / self.path.name
        text = re.sub(r"^(local: .*\bsteps: )(\d+)", lambda m: m[1] + str(min(int(m[2]), STEPS)), text, flags=re.M)
        copy.write_text(re.sub(r"^stop: \{versions: \d+", f"stop: {{versions: {versions}", text, flags=re.M))
        return copy

    def record(self, result):
        self.path.write_text(re.sub(r"^# Result: .*$", lambda _: f"# Result: {result}", self.text, flags=re.M))


def store_of(job, out):
    """Simulations of a claim share one; daemons make one of their own in a folder."""
    return out / job.claim if job.command == "simulate" else out / job.claim / job.name / "store"


def run_job(program, job, out, versions):
    """What came out of one job: in words, and its document."""
    begin = time.time()
    folder = store_of(job, out) if job.command == "simulate" else store_of(job, out).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    states = out / f"{job.name}.safetensors"
    # Clients of these jobs keep models of their own, and those hear the noise.
    flags = [*job.flags, *(["--client-state", str(states)] if job.problem else [])]
    done = subprocess.run([program, job.command, str(job.shortened(versions, out)), *flags, "--out", str(folder), "--json"], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{job.path.name}: exit {done.returncode}: {done.stdout}{done.stderr}")
    document = json.loads(done.stdout)
    last = document["metrics"][-1]
    result = f"loss {last['loss']:.5g}"
    if last.get("accuracy") is not None:
        result += f", accuracy {last['accuracy']:.4f}"
    result += f" after {document['version']} versions"
    if "virtual_s" in document:
        result += f" and {document['virtual_s']:.6g} s of virtual time"
    if document.get("privacy"):
        epsilon = document["privacy"]["epsilon"]
        result += f", epsilon {'infinite' if epsilon is None else format(epsilon, '.3g')}"
    if job.adapters:
        result += f"; {bytes_up(document) / 1024:.1f} KiB up an update"
    if job.problem:
        result += f"; clients' own models {clients_deviation(states, solution(job.problem)):.2f} dB"
    if "moe" in last:
        result += "; MaxVio {max_vio:.2f} ({client_max_vio:.2f} a client), specialisation {specialisation:.3f}".format(**last["moe"])
    print(f"{job.name:<28} {result} ({time.time() - begin:.1f} s)", flush=True)
    return result, document


def make_base(program, name, out, versions):
    """Trains what jobs begin from, and exports it to where they look for it."""
    job = Job(EXAMPLES / "bases" / f"{name}.yaml")
    shutil.rmtree(out / job.claim, ignore_errors=True)
    result, _ = run_job(program, job, out, versions)
    done = subprocess.run([program, "state", "export", job.name, "--store", str(store_of(job, out)), "--out", str(EXAMPLES / "data" / f"{name}-base.safetensors")],
                          capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{job.path.name}: {done.stdout}{done.stderr}")
    return job, result


def bytes_up(document):
    return document["bytes_up"] / document["updates_committed"]


def adapter_table(jobs, documents):
    """Of a claim on adapters: what an update takes beside one of the whole model, and what the aggregation loses."""
    whole = max(map(bytes_up, documents))
    lines = [f"{'JOB':<20} {'ADAPTERS':<10} {'LOSS':>8} {'BYTES UP':>10} {'FEWER':>7} {'ERROR: LARGEST':>15} {'LAST':>10}"]
    for job, document in zip(jobs, documents):
        errors = [m["adapter_error"] for m in document["metrics"] if "adapter_error" in m]
        shown = [f"{error:.2g}" for error in (max(errors), errors[-1])] if errors else ["exact" if job.adapters else "-"] * 2
        lines.append(f"{job.name:<20} {job.adapters[1] if job.adapters else '-':<10} {document['metrics'][-1]['loss']:>8.4f} {bytes_up(document):>10.0f} "
                     f"{whole / bytes_up(document):>6.1f}x {shown[0]:>15} {shown[1]:>10}")
    return "\n".join(lines) + "\n"


def compare(program, claim, jobs, out):
    plot = out / f"{claim}.svg"
    stores = dict.fromkeys(str(store_of(job, out)) for job in jobs)
    call = [program, "compare", *(job.name for job in jobs), *(word for store in stores for word in ("--store", store)), "--plot", str(plot)]
    shown = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    if shown.returncode != 0:
        sys.exit(f"compare {claim}: {shown.stdout}{shown.stderr}")
    print(shown.stdout, flush=True)
    return shown.stdout, plot


def record(claim, jobs, results, table, plot):
    for job, result in zip(jobs, results):
        job.record(result)
    (EXAMPLES / "plots").mkdir(exist_ok=True)
    shutil.copy(plot, EXAMPLES / "plots" / f"{claim}.svg")
    readme = EXAMPLES / "README.md"
    text, table = readme.read_text(), "\n".join(line.rstrip() for line in table.splitlines() if not line.startswith("curves in"))
    block = f"<!-- results of {claim} -->\n```\n{table}\n```\n![curves](plots/{claim}.svg)\n<!-- end -->"
    pattern = re.compile(rf"<!-- results of {claim} -->.*?<!-- end -->", re.S)
    assert pattern.search(text), f"examples/README.md has no '<!-- results of {claim} --> … <!-- end -->'"
    readme.write_text(pattern.sub(lambda _: block, text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "run"])
    parser.add_argument("claims", nargs="*")
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--versions", type=int)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--record", action="store_true")
    a = parser.parse_args()
    make_data()
    if a.what == "data":
        return
    folders = [a.bin] if a.bin else [ROOT / "build/release/bin", ROOT / "build/dev/bin"]
    program = next((str(f.resolve() / "tributary") for f in folders if (f / "tributary").exists()), None)
    if program is None:
        sys.exit(f"examples.py: no program 'tributary' in {', '.join(map(str, folders))}: build it, or name its folder with --bin")
    with tempfile.TemporaryDirectory(prefix="tributary-examples-") as folder:
        a.out = a.out or (Path(folder) if a.versions else ROOT / "build/examples")
        a.out.mkdir(parents=True, exist_ok=True)
        run(program, a)


def run(program, a):
    files = [path for path in sorted(EXAMPLES.glob("*.yaml")) if path.name != DEMO]
    jobs = [job for job in map(Job, files) if not (a.no_torch and job.torch)]
    if any(job.missing for job in jobs if not a.claims or job.claim in a.claims):
        fetched = subprocess.run([ROOT / "scripts/data.sh", "languages", EXAMPLES / "data/languages"])
        if fetched.returncode != 0 and "languages" in a.claims:
            sys.exit(fetched.returncode)
        if fetched.returncode != 0:
            print("examples.py: languages-* are left out: their text could not be fetched", flush=True)
            jobs = [job for job in jobs if not job.missing]
    claims = sorted({job.claim for job in jobs})
    unknown = set(a.claims) - set(claims)
    if unknown:
        sys.exit(f"examples.py: no example of claim {', '.join(sorted(unknown))}; there are: {', '.join(claims)}")
    if not a.record:
        missing = [job.path.name for job in jobs if not job.recorded]
        missing += [f"examples/README.md: {claim}" for claim in claims if f"plots/{claim}.svg" not in (EXAMPLES / "README.md").read_text()]
        if missing:
            sys.exit(f"examples.py: no recorded result: {', '.join(missing)}; run it with --record")
    for claim in a.claims or claims:
        shutil.rmtree(a.out / claim, ignore_errors=True)
        mine = [job for job in jobs if job.claim == claim]
        bases = [make_base(program, name, a.out, a.versions) for name in sorted({job.base for job in mine if job.base})]
        results, documents = zip(*(run_job(program, job, a.out, a.versions) for job in mine))
        table, plot = compare(program, claim, mine, a.out)
        if any(job.adapters for job in mine):
            adapters = adapter_table(mine, documents)
            print(adapters, flush=True)
            table += "\n" + adapters
        if a.record:
            record(claim, mine, results, table, plot)
            for job, result in bases:
                job.record(result)


if __name__ == "__main__":
    main()

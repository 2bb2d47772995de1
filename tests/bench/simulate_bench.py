"""Simulation beside Flower's and pfl's, in one sitting: clients trained per second. Prints a table and one JSON document.

usage: simulate_bench.py [--bin DIR] [--peers PYTHON] [--runs 3] [--quick] [--only cnn|quadratic]

Works (simulate_peers/work.py, the same for all): 1,000 clients with the CNN on Fashion-MNIST, 100 a round; 10,000 clients with a quadratic
of ten dimensions, 1,000 a round. PYTHON ($TRIBUTARY_SIMULATION_PEERS, else the peers are left out and said so) is the interpreter of a virtual
environment with the packages of simulate_peers/requirements.txt. Programs take turns; medians of the runs. What is counted: for the peers
from the end of the first round to the end of the last; for Tributary the whole simulation, first round and evaluation included. Reading the
data and starting processes are counted for nobody.

What each does: Tributary trains a cohort on as many threads as there are cores, one client each, inside the aggregator's own round engine
(admission, fold in double precision, commit) and draws who takes part. Flower (run_simulation) has a Ray actor a core, which unpickles
a client's message, runs its ClientApp and sends a message back. pfl has one process that trains the cohort's users in turn; the better
of one and as many LibTorch threads as cores counts.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(HERE / "simulate_peers")]

COHORT = {"cnn": 100, "quadratic": 1000}


def write_problem(folder):
    """The quadratics as files, one a client."""
    import array
    import math
    from harness import write_safetensors
    clients, size, phi = 10_000, 10, (math.sqrt(5) - 1) / 2
    folder.mkdir()
    for i in range(clients):
        diagonal = [.5 + math.fmod(phi * (size * i + j + 1), 1) for j in range(size)]
        b = [3 * math.cos(1.1 * (i + 1) + .7 * j) + 2 * (-1) ** j * (2 * i / (clients - 1) - 1) for j in range(size)]
        full = array.array("d", (diagonal[j] if j == k else 0.0 for j in range(size) for k in range(size)))
        write_safetensors(folder / f"{i:05d}.safetensors", {"A": ("F64", [size, size], full.tobytes()), "b": ("F64", [size], array.array("d", b).tobytes())})


def tributary(a, work, rounds, folder):
    job = {"name": work, "cohort": {"size": COHORT[work]}, "stop": {"versions": rounds}, "evaluate": {"every": 1_000_000}, "seed": a.seed}
    if work == "cnn":
        job.update(model={"zoo": "cnn"}, data={"source": "fashion-mnist", "partition": {"kind": "iid"}}, local={"epochs": 1, "batch": 20, "lr": .05})
        flags = ["--clients", "1000"]
    else:
        if not (folder / "quadratic").exists():
            write_problem(folder / "quadratic")
        job.update(model={"zoo": "quadratic"}, data={"source": "safetensors", "path": str(folder / "quadratic"), "partition": {"kind": "by_file"}},
                   local={"steps": 5, "lr": .1}, dtype="float64")
        flags = []
    file = folder / f"{work}.yaml"
    file.write_text(json.dumps(job))
    shown = json.loads(subprocess.run([a.bin / "tributary", "simulate", file, *flags, "--json"], capture_output=True, text=True, check=True).stdout)
    last = shown["metrics"][-1]
    reached = {"accuracy": last["accuracy"]} if work == "cnn" else {"loss": last["loss"]}
    return {"program": "tributary", "work": work, "clients_per_s": shown["clients_trained_per_s"], "events_per_s": shown["engine_events_per_s"],
            "seconds": shown["wall_s"], "rounds": rounds, **reached}


def peer(a, program, work, rounds, *flags):
    env = dict(os.environ, FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_DEDUP_LOGS="0", RAY_USAGE_STATS_ENABLED="0",
               PYTHONPATH=str(HERE / "simulate_peers"))
    done = subprocess.run([a.peers, HERE / "simulate_peers" / f"with_{program}.py", work, str(COHORT[work]), str(rounds), *flags],
                          capture_output=True, text=True, env=env, cwd=HERE / "simulate_peers")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        return {"program": program, "work": work, "error": (done.stderr or done.stdout)[-600:]}
    return {**json.loads(lines[-1]), "rounds": rounds + 1}  # the first is not timed


def measure(a, work, folder):
    """One result a program: that of the median run."""
    cores = len(os.sched_getaffinity(0))
    rounds = {"cnn": 2 if a.quick else 10, "quadratic": 5 if a.quick else 100}[work]
    slow = 1 if a.quick else {"cnn": 4, "quadratic": 2}[work]  # of programs for which a round takes a second or more
    arms = {"tributary": lambda: tributary(a, work, rounds, folder)}
    if a.peers:
        arms["flower"] = lambda: peer(a, "flower", work, slow)
        arms["pfl, 1 thread"] = lambda: peer(a, "pfl", work, slow)
        if work == "cnn":
            arms[f"pfl, {cores} threads"] = lambda: peer(a, "pfl", work, slow, "--threads", str(cores))
    seen = {arm: [] for arm in arms}
    for run in range(a.runs):
        for arm, call in arms.items():
            result = call()
            print(f"  {work}, run {run + 1}, {arm}: {result.get('error') or format(result['clients_per_s'], ',.1f') + ' clients/s'}", file=sys.stderr, flush=True)
            seen[arm].append(result)
    results = []
    for arm, runs in seen.items():
        good = [r for r in runs if "error" not in r]
        if not good:
            results.append({**runs[0], "arm": arm})
            continue
        middle = sorted(good, key=lambda r: r["clients_per_s"])[len(good) // 2]
        results.append({**middle, "arm": arm, "all_clients_per_s": [round(r["clients_per_s"], 1) for r in runs if "error" not in r]})
    return results


def table(results):
    lines = [f"{'WORK':<10} {'PROGRAM':<16} {'CLIENTS/S':>12} {'EVENTS/S':>12} {'ROUNDS':>7} {'REACHED':>18} {'TRIBUTARY IS':>14}"]
    ours = {r["work"]: r["clients_per_s"] for r in results if r["program"] == "tributary"}
    for r in results:
        if "error" in r:
            lines.append(f"{r['work']:<10} {r['arm']:<16} failed: {r['error'].strip().splitlines()[-1]}")
            continue
        reached = f"accuracy {r['accuracy']:.3f}" if "accuracy" in r else f"loss {r['loss']:.6g}"
        events = f"{r['events_per_s']:,.0f}" if "events_per_s" in r else "-"
        ratio = "-" if r["program"] == "tributary" else f"{ours[r['work']] / r['clients_per_s']:.1f} x"
        lines.append(f"{r['work']:<10} {r['arm']:<16} {r['clients_per_s']:>12,.1f} {events:>12} {r['rounds']:>7} {reached:>18} {ratio:>14}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "build/release/bin")
    parser.add_argument("--peers", default=os.environ.get("TRIBUTARY_SIMULATION_PEERS"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=list(COHORT))
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if not a.peers:
        print("without the peers: TRIBUTARY_SIMULATION_PEERS names no Python (simulate_peers/requirements.txt says what it needs)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="tributary-simulate-bench-") as folder:
        results = [r for work in COHORT if a.only in (None, work) for r in measure(a, work, Path(folder))]
    print(table(results), file=sys.stderr)
    print(json.dumps({"benchmark": "simulate", "cores": len(os.sched_getaffinity(0)), "load_1min": os.getloadavg()[0], "results": results}))
    return 1 if any("error" in r for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What it brings that a large update leaves while it is made and stored. Prints a table and one JSON document.

usage: upload_bench.py [--bin DIR] [--size-mb 44] [--rates 1gbit 10gbit none] [--versions 10] [--runs 5] [--state DIR]

One client without training returns SIZE_MB MiB (codec f32) to an aggregator over gRPC, in a network namespace of its own whose loopback carries
RATE (tc tbf; none: as it is). Two arms in turn, RUNS times: updates that leave early, and updates that are durable before their first byte goes
out (--early-upload-bytes above their size). Of each task the client's log says how long it took to keep the update and then to have it
answered; their sum is what is compared, medians over all tasks but each run's first. The client's outbox lies under --state (a disk, for the
outbox waits for it). Needs root.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
sys.path.insert(0, str(ROOT / "tests/bench"))
from harness import Federation  # noqa: E402
from round_bench import write_model  # noqa: E402

IN_NAMESPACE = "TRIBUTARY_UPLOAD_BENCH"


def run(a, early):
    with Federation(a.bin, workers=1, aggregator_flags=["--local-transfer", "off"]) as federation:
        write_model(federation.work / "model.safetensors", a.size_mb, 16)
        federation.start_aggregator()
        with tempfile.TemporaryDirectory(prefix="tributary-upload-", dir=a.state) as state:
            (federation.work / "clients").symlink_to(state)
            federation.start_client("site", "--learner", "offset", "--log-level", "debug", *([] if early else ["--early-upload-bytes", 1 << 40]))
            job = federation.submit(json.dumps({"name": "upload", "model": {"tensors": str(federation.work / "model.safetensors")}, "cohort": {"size": 1},
                                                "stop": {"versions": a.versions + 1}, "durability": "ephemeral"}))
            shown = federation.wait_job(job, timeout=600)
            assert shown["state"] == "done", shown
            log = federation.log("site.log", lines=1 << 20)
    kept, uploaded = ([float(x) for x in re.findall(pattern, log)][1:] for pattern in (r"kept in the outbox in ([\d.]+) s", r"uploaded in ([\d.]+) s"))
    assert len(kept) == len(uploaded) == a.versions, (len(kept), len(uploaded))
    return list(zip(kept, uploaded))


def shape(rate):
    if rate != "none":
        subprocess.run(["tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", rate, "burst", "1mb", "latency", "50ms"], check=True)


def measure(a, rate):
    shape(rate)
    arms = {"early": [], "kept first": []}
    for _ in range(a.runs):
        for arm in arms:
            arms[arm] += run(a, arm == "early")
    if rate != "none":
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)
    out = {"rate": rate}
    for arm, tasks in arms.items():
        sums = [k + u for k, u in tasks]
        out[arm] = {"kept_s": statistics.median(k for k, _ in tasks), "answered_after_s": statistics.median(u for _, u in tasks), "out_s": statistics.median(sums),
                    "iqr_s": [round(q, 4) for q in statistics.quantiles(sums, n=4)[::2]]}
    out["ratio"] = out["kept first"]["out_s"] / out["early"]["out_s"]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "build/release/bin")
    parser.add_argument("--size-mb", type=float, default=44)
    parser.add_argument("--rates", nargs="+", default=["1gbit", "10gbit", "none"])
    parser.add_argument("--versions", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--state", type=Path, default=ROOT / "build")
    a = parser.parse_args()
    if IN_NAMESPACE not in os.environ:
        if os.geteuid() != 0:
            sys.exit("upload_bench: a network namespace needs root")
        os.execvpe("unshare", ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv], {**os.environ, IN_NAMESPACE: "1"})
    results = [measure(a, rate) for rate in a.rates]
    print(f"{'RATE':>8} {'EARLY':>9} {'KEPT FIRST':>11} {'RATIO':>6}   kept + answered after", file=sys.stderr)
    for r in results:
        parts = ", ".join(f"{arm} {1000 * r[arm]['kept_s']:.0f} + {1000 * r[arm]['answered_after_s']:.0f} ms" for arm in ("early", "kept first"))
        print(f"{r['rate']:>8} {1000 * r['early']['out_s']:>6.0f} ms {1000 * r['kept first']['out_s']:>8.0f} ms {r['ratio']:>6.2f}   {parts}", file=sys.stderr)
    print(json.dumps({"benchmark": "upload", "size_mb": a.size_mb, "runs": a.runs, "versions": a.versions, "rates": results}))


if __name__ == "__main__":
    main()

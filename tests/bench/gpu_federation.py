"""A federation whose clients train on one GPU: one daemon with 16 identities beside 16 daemons with one. Prints a table and one JSON document.

usage: gpu_federation.py [--bin DIR] [--identities 16] [--versions 20] [--examples 500] [--codec int8] [--model JSON] [--local-transfer on|off]

Both arms run the same job over the same aggregator program on this machine: cnn4 (890,410 parameters) or another MODEL, random 32x32x3
images, EXAMPLES a client, batch 10, one epoch, all identities in each round; the first three rounds are not timed. Clients a second are updates committed a second.
Where a round's time goes is what the clients' logs say of each task: fetching the model, training (of a cohort: all of it), encoding and
storing, uploading; the rest is the aggregator's and waiting. Of updates that leave while they are made (4 MiB or more) also how much had left
when the last block was made.
"""
import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
from harness import Federation, write_safetensors  # noqa: E402

WARM = 3
STAGES = {"fetch": r"version \d+ here in ([\d.]+) s", "train": r"trained in ([\d.]+) s, (\d+) clients together", "store": r"kept in the outbox in ([\d.]+) s",
          "upload": r"uploaded in ([\d.]+) s"}


def write_data(path, a):
    count = a.identities * a.examples
    rng = random.Random(1)
    write_safetensors(path, {"x": ("U8", [count, 3, 32, 32], rng.randbytes(count * 3 * 32 * 32)), "y": ("U8", [count], bytes(rng.choices(range(10), k=count)))})


def measure(a, data, daemons):
    with Federation(a.bin, workers=2, aggregator_flags=["--local-transfer", a.local_transfer]) as federation:
        federation.start_aggregator()
        each = a.identities // daemons
        for d in range(daemons):
            federation.start_client(f"gpu-{d}" if daemons > 1 else "gpu", "--device", a.device, "--threads", 1, "--identities", each, "--shards", a.identities, "--first-shard",
                                    d * each, "--data-dir", data, "--log-level", "debug", program="tributary-client")
        job = federation.submit(json.dumps({
            "name": "gpu", "model": a.model, "data": {"source": "safetensors", "path": str(data), "partition": {"kind": "iid"}}, "cohort": {"size": a.identities},
            "local": {"epochs": 1, "batch": 10, "lr": .05}, "stop": {"versions": a.versions + WARM}, "evaluate": {"every": 1_000_000}, "codec": a.codec}))
        federation.wait_version(job, WARM, timeout=180)
        begin = time.time()
        shown = federation.wait_job(job, timeout=240)
        seconds = time.time() - begin
        assert shown["state"] == "done", shown
        client = federation.cli("clients", "show", "gpu-0")
        logs = "\n".join((federation.work / f"{name}.log").read_text() for name in federation.clients)
        stages = {}
        for stage, pattern in STAGES.items():
            values = [float(m.group(1)) for m in re.finditer(pattern, logs)]
            stages[stage] = statistics.median(values) if values else None
        left = [int(m.group(1)) / int(m.group(2)) for m in re.finditer(r"(\d+) of (\d+) bytes had left when the last was made", logs)]
        together = [int(m.group(2)) for m in re.finditer(STAGES["train"], logs)]
        return {"daemons": daemons, "round_s": seconds / a.versions, "clients_per_s": a.identities * a.versions / seconds, "stages_s": stages,
                "most_together": max(together), "left_when_made": statistics.median(left) if left else None, "device": client["device"], "device_usage": client["device_usage"], "bytes_up": shown["bytes_up"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "build/release-cuda/bin")
    parser.add_argument("--identities", type=int, default=16)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=json.loads, default={"zoo": "cnn4"})
    parser.add_argument("--local-transfer", choices=["on", "off"], default="on")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tributary-gpu-") as folder:
        data = Path(folder) / "data.safetensors"
        write_data(data, a)
        arms = [measure(a, data, daemons) for daemons in (1, a.identities)]
    print(f"{'DAEMONS':>7} {'IDENTITIES':>10} {'ROUND':>9} {'CLIENTS/S':>10}   one task: fetch, train (so many together), store, upload", file=sys.stderr)
    for arm in arms:
        stages = ", ".join("-" if v is None else f"{1000 * v:.1f} ms" for v in arm["stages_s"].values())
        print(f"{arm['daemons']:>7} {a.identities:>10} {1000 * arm['round_s']:>6.0f} ms {arm['clients_per_s']:>10.1f}   {stages} ({arm['most_together']})"
              + ("" if arm["left_when_made"] is None else f", {100 * arm['left_when_made']:.0f} % had left when the last was made"), file=sys.stderr)
    print(f"one daemon is {arms[0]['clients_per_s'] / arms[1]['clients_per_s']:.1f} x", file=sys.stderr)
    print(json.dumps({"benchmark": "gpu_federation", "model": a.model, "identities": a.identities, "codec": a.codec, "local_transfer": a.local_transfer, "arms": arms}))


if __name__ == "__main__":
    main()

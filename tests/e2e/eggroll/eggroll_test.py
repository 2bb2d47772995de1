"""A perceptron learns Fashion-MNIST without a backward pass, through daemons: at most 32 KB go up a version, where a model goes up once a client otherwise. Its record,
folded again, gives the same bits; and what a population cannot be spread over is refused when the job is submitted.
usage: eggroll_test.py BIN_DIR
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.argv[1])
VERSIONS, POPULATION, CLIENTS = 80, 1000, 5

JOB = """
name: forward
model: {{zoo: mlp, params: {{hidden: 32}}}}
data: {{source: fashion-mnist, partition: {{kind: iid}}, seed: 7}}
strategy: {{name: eggroll, population: {population}, sigma: 0.02, lr: 0.5, center: client}}
cohort: {{size: {clients}}}
local: {{solver: eggroll, steps: 1, batch: 64}}
evaluate: {{every: 20}}
stop: {{versions: {versions}}}
record: true
{more}
"""


def tributary(*args, code=0):
    # One thread each: several processes share the machine.
    done = subprocess.run([str(BIN / "tributary"), *map(str, args)], capture_output=True, text=True, timeout=280, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stdout + done.stderr


def main():
    with tempfile.TemporaryDirectory(prefix="tributary-eggroll-") as work:
        job, out = Path(work) / "job.yaml", Path(work) / "out"
        job.write_text(JOB.format(population=POPULATION, clients=CLIENTS, versions=VERSIONS, more=""))
        shown = json.loads(tributary("run", job, "--clients", CLIENTS, "--out", out, "--json"))
        assert shown["state"] == "done" and shown["updates_committed"] == CLIENTS * VERSIONS and not shown["updates_rejected"], shown
        assert shown["bytes_up"] == 4 * POPULATION * VERSIONS <= 32 * 1024 * VERSIONS, shown["bytes_up"]
        accuracy = {m["version"]: m["accuracy"] for m in shown["metrics"]}
        assert accuracy[VERSIONS] > .65 and accuracy[VERSIONS] > accuracy[20], accuracy
        replayed = json.loads(tributary("replay", shown["id"], "--store", out / "store", "--json"))
        assert len(replayed["versions"]) == VERSIONS and all(v["sha256"] == v["recorded_sha256"] for v in replayed["versions"]), replayed
        for case, (more, words) in enumerate((("hierarchy: {shape: tree}", "eggroll"), ("hierarchy: {shape: shard}", "eggroll"), ("codec: bf16", "codec"),
                                                  ("privacy: {clip: 1, noise_multiplier: 1, delta: 1e-5}", "looks at every update"))):
            job.write_text(JOB.format(population=POPULATION, clients=CLIENTS, versions=VERSIONS, more=more))
            said = tributary("run", job, "--clients", CLIENTS, "--out", Path(work) / f"refused-{case}", code=5)
            assert words in said, (more, said)
        print(f"{VERSIONS} versions of {4 * POPULATION} bytes up: accuracy {accuracy}", flush=True)


if __name__ == "__main__":
    main()

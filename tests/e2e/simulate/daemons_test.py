"""The same job by daemons and by `simulate` with zero delay and the same seed: equal model bits in reproducible mode.
usage: daemons_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import json  # noqa: E402

import generate as reference  # noqa: E402
from simulations import check, main  # noqa: E402


def same_bits(simulator, what, problem, clients, **keys):
    keys = {"reproducible": True, "stop": {"versions": 8}, "evaluate": {"every": 1}, **keys}
    simulated = simulator.run(problem, clients=keys.pop("cohort_size", clients), **keys)
    job = simulator.work / "job.yaml"   # the one just simulated
    daemons = json.loads(simulator.command("run", job, "--clients", clients, "--out", simulator.work / what.replace(" ", "-"), "--json").stdout)
    check(daemons["state"] == "done" and daemons["version"] == 8, f"{what}: the daemons ended {daemons['state']}: {daemons['state_reason']}")
    check(daemons["model_sha256"] == simulated["model_sha256"],
          f"{what}: daemons {daemons['model_sha256']}, simulation {simulated['model_sha256']}")
    losses = [{m["version"]: m["loss"] for m in document["metrics"]} for document in (daemons, simulated)]
    check(losses[0] == losses[1], f"{what}: the evaluations differ: {losses}")


def daemons_and_simulation_agree_bit_for_bit(simulator):
    q4 = reference.q4()
    for strategy in [{"name": "fedavg"}, {"name": "fedprox", "mu": .3}, {"name": "fednova"}, {"name": "qfedavg"}, {"name": "fedavgm"},
                     {"name": "fedadam", "server_lr": .1}, {"name": "fedau"}]:
        same_bits(simulator, strategy["name"], q4, 4, strategy=strategy, local={"steps": [1, 2, 3, 4], "lr": .1})
    same_bits(simulator, "float32", q4, 4, dtype="float32")


if __name__ == "__main__":
    main(sys.argv[1], [daemons_and_simulation_agree_bit_for_bit])

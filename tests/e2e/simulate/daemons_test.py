"""The same job by daemons and by `simulate` with zero delay and the same seed: equal model bits in reproducible mode, for every strategy whose
result does not depend on which client is quicker (e2e.client_state.restart has the others, and all of them over kills).
usage: daemons_test.py BIN_DIR [TEST…]
"""
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import generate as reference  # noqa: E402
from every_strategy import CLIENTS, SGD, jobs  # noqa: E402
from harness import Federation  # noqa: E402
from simulations import check, main  # noqa: E402

VERSIONS = 8


def start(federation):
    """With the evaluator there before the first job: one that comes later does not measure the versions before it."""
    federation.start_aggregator()
    federation.start_client("client", "--identities", CLIENTS, "--train-threads", 2, program="tributary-client")
    federation.start_client("evaluator", "--evaluator", program="tributary-client")
    end = time.time() + 60
    while len(federation.cli("clients", "ls")["clients"]) <= CLIENTS:
        assert time.time() < end, federation.log("evaluator.log")
        time.sleep(.05)


def same_bits(simulator, federation, what, problem, **keys):
    keys = {"reproducible": True, "stop": {"versions": VERSIONS}, "evaluate": {"every": 1}, "cohort": {"size": CLIENTS}, **keys}
    simulated = simulator.run(problem, clients=CLIENTS, **keys)
    # The job just simulated.
    daemons = federation.wait_job(federation.cli("submit", simulator.work / "job.yaml")["id"])
    check(daemons["state"] == "done" and daemons["version"] == VERSIONS, f"{what}: the daemons ended {daemons['state']}: {daemons['state_reason']}")
    check(daemons["model_sha256"] == simulated["model_sha256"],
          f"{what}: daemons {daemons['model_sha256']}, simulation {simulated['model_sha256']}")
    losses = [{m["version"]: m["loss"] for m in document["metrics"]} for document in (daemons, simulated)]
    check(losses[0] == losses[1], f"{what}: the evaluations differ: {losses}")
    check(daemons["bytes_up"] == simulated["bytes_up"], f"{what}: up: daemons {daemons['bytes_up']}, simulation {simulated['bytes_up']} bytes")


def daemons_and_simulation_agree_bit_for_bit(simulator):
    problem = reference.g(CLIENTS, 4)
    names = [entry["name"] for entry in json.loads(simulator.command("strategies", "--json").stdout)["strategies"]]
    with Federation(simulator.bin) as federation:
        start(federation)
        for what, keys in jobs(names):
            if keys["cohort"]["size"] == CLIENTS:
                same_bits(simulator, federation, what, problem, **keys)
        same_bits(simulator, federation, "float32", problem, dtype="float32", **SGD)
        same_bits(simulator, federation, "scaffold, float32", problem, dtype="float32", strategy={"name": "scaffold"}, **SGD)
        same_bits(simulator, federation, "unequal steps", problem, strategy={"name": "fednova"}, local={"steps": [1, 2, 3, 4, 5], "lr": .1})


def noise_codes_and_draws_agree_bit_for_bit(simulator):
    """Under insecure_seed a daemon's noise follows from the seed, as a simulation's always does."""
    problem = reference.g(CLIENTS, 300)
    uniform = {"strategy": {"name": "fedavg", "weighting": "uniform"}, "local": {"steps": 3, "lr": .1}, "dtype": "float32"}
    private = {"clip": .5, "noise_multiplier": .4, "delta": 1e-5, "insecure_seed": True}
    with Federation(simulator.bin) as federation:
        start(federation)
        for what, keys in [("central int8", {"codec": "int8", "privacy": private, "cohort": {"size": 3, "population": CLIENTS}}),
                           ("poisson, adaptive", {"privacy": {**private, "adaptive_clip": {"count_stddev": 1}},
                                                  "cohort": {"sampling": "poisson", "rate": .4, "population": CLIENTS}}),
                           ("local int4", {"codec": "int4", "privacy": {**private, "placement": "local"}}),
                           ("distributed", {"privacy": {**private, "placement": "distributed"}}),
                           ("topk", {"codec": {"kind": "topk", "fraction": .1}, "cohort": {"size": 2, "population": CLIENTS}})]:
            same_bits(simulator, federation, what, problem, **uniform, **keys)


if __name__ == "__main__":
    main(sys.argv[1], [daemons_and_simulation_agree_bit_for_bit, noise_codes_and_draws_agree_bit_for_bit])

"""Weights do not travel after the first fetch: over TCP a client of an EGGROLL job makes every version itself, from the fitness of the one before, with the
server's bits, over deaths of the server and of the client; a client whose own weights went wrong is found out, and fetches.

usage: fitness_log_test.py BIN_DIR
"""
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import generate as reference  # noqa: E402
from harness import Federation  # noqa: E402
from simulations import Simulator, check  # noqa: E402

CLIENTS, PARAMETERS, POPULATION, VERSIONS, DEATH = 4, 600, 40, 80, 10
MODEL = 8 * PARAMETERS
LOG = 8 * CLIENTS + 4 * POPULATION // 2
DIGEST = 16


def clients_of(federation):
    return federation.start_client("client", "--identities", CLIENTS, program="tributary-client")


def versions_of(federation, job):
    return {v["version"]: v["sha256"] for v in federation.cli("state", "ls", job)["versions"]}


def main(bin_dir):
    with Simulator(bin_dir) as simulator:
        def job_file(server, versions):
            return simulator.job(simulator.problem(reference.g(CLIENTS, PARAMETERS)), CLIENTS, stop={"versions": versions}, cohort={"size": CLIENTS},
                                 strategy={"name": "eggroll", "population": POPULATION, "lr": .3, "server": server}, local={"solver": "eggroll"})

        file = job_file("sgd", VERSIONS)
        simulated = json.loads(simulator.command("simulate", file, "--clients", CLIENTS, "--out", simulator.work / "store", "--json").stdout)
        down = MODEL + (VERSIONS - 1) * (LOG + DIGEST)
        check(simulated["bytes_down"] == CLIENTS * down, f"simulation: expected {CLIENTS} times {down} bytes down, got {simulated['bytes_down']}")
        listed = json.loads(simulator.command("state", "ls", "--store", simulator.work / "store", "--json").stdout)
        expected = {v["version"]: v["sha256"] for v in listed["versions"]}

        with Federation(bin_dir, aggregator_flags=["--local-transfer", "off"]) as federation:
            federation.start_aggregator()
            clients_of(federation)
            job = federation.cli("submit", file)["id"]
            shown = federation.wait_job(job)
            check(versions_of(federation, job) == expected, "the daemons' versions are not the simulation's")
            check(shown["bytes_down"] == down, f"expected one model of {MODEL} bytes and {VERSIONS - 1} logs of {LOG + DIGEST}, {down} bytes, got {shown['bytes_down']}")
            check("another model" not in federation.log("client.log"), federation.log("client.log"))

            # AdamW's moments are the server's.
            shown = federation.wait_job(federation.cli("submit", job_file("adamw", 3))["id"])
            check(shown["bytes_down"] == 3 * MODEL, f"adamw: expected {3 * MODEL} bytes down, got {shown['bytes_down']}")

        # The logs outlive the server; a client that begins anew fetches once.
        with Federation(bin_dir, aggregator_flags=["--local-transfer", "off"]) as federation:
            federation.start_aggregator()
            client = clients_of(federation)
            job = federation.cli("submit", job_file("sgd", VERSIONS))["id"]
            end = time.time() + 60
            while federation.cli("jobs", "show", job)["version"] < DEATH:
                check(time.time() < end, f"version {DEATH} does not come")
            federation.kill_aggregator()
            federation.start_aggregator()
            check(federation.cli("jobs", "show", job)["version"] < VERSIONS, "the job was over before the server died")
            client.kill()
            client.wait()
            clients_of(federation)
            shown = federation.wait_job(job)
            check(versions_of(federation, job) == expected, "deaths changed a version")
            most = 3 * MODEL + VERSIONS * (LOG + DIGEST)
            check(shown["bytes_down"] <= most, f"expected at most three models and logs, {most} bytes down, got {shown['bytes_down']}")
            check("another model" not in federation.log("client.log"), federation.log("client.log"))
        print(f"{VERSIONS} versions of a model of {MODEL} bytes by logs of {LOG}: {down} bytes down, {VERSIONS * MODEL} as models")


if __name__ == "__main__":
    main(sys.argv[1])

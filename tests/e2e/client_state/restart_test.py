"""Gate T18: server and clients killed (SIGKILL) in mid-run and started again; every version's bits are those of the simulation of the same
job, for every strategy of the table: c_i, g, m, v, counters of participation, rows, x⁻, open buffers, λ_i, h_i, w_i, the last s. Error
feedback and drawn cohorts, which differ from a simulation's, are compared with daemons that nobody disturbed.

Three deaths a run: the aggregator at a crash point in one round, at its death all clients with it, wherever they are; then the clients at
a crash point of their own.

usage: restart_test.py BIN_DIR [WORD…]     only jobs whose name has one of the words
"""
import concurrent.futures
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import generate as reference  # noqa: E402
from every_strategy import CLIENTS, SGD, jobs  # noqa: E402
from harness import Federation  # noqa: E402
from simulations import Simulator, check  # noqa: E402

VERSIONS = 7
AT_ONCE = 3
# Where the aggregator dies, in turn, and in which passage; the first four once a version, the others once an update.
SERVER_POINTS = ["round_before_server_step:3", "round_after_server_step:3", "commit_before_sync:4", "commit_after_sync:4",
                 "ingress_before_answer:12", "publish_before_committed_message:13", "ingress_before_seal:14"]
ONE_CLIENT_POINTS = ["round_before_server_step:3", "round_after_server_step:3", "commit_after_sync:4", "ingress_before_answer:4",
                     "publish_before_committed_message:3"]
CLIENT_POINTS = ["client_before_outbox_drop:6", "outbox_after_rename:7", "outbox_before_rename:6", "upload_after_answer:7"]
ONE_CLIENT_CLIENT_POINTS = ["client_before_outbox_drop:2", "outbox_after_rename:2", "outbox_before_rename:2", "upload_after_answer:2"]


class Run:
    """One job on an aggregator and one client daemon with all identities."""

    def __init__(self, bin_dir, job, clients):
        self.federation, self.job_file, self.clients = Federation(bin_dir), job, clients

    def start_clients(self, crash=None):
        return self.federation.start_client("client", "--identities", self.clients, "--train-threads", 2, program="trib-analytic-client",
                                            env={"TRIBUTARY_CRASH": crash} if crash else None)

    def await_death(self, process, what, timeout=40):
        end = time.time() + timeout
        while process.poll() is None:
            assert time.time() < end, f"{what} did not come to its crash point:\n{self.federation.log('aggregator.log')}\n{self.federation.log('client.log')}"
            time.sleep(.005)

    def versions(self, job):
        listed = self.federation.cli("state", "ls", job)["versions"]
        return {v["version"]: v["sha256"] for v in listed}

    def finish(self, job):
        shown = self.federation.wait_job(job, timeout=60)
        assert shown["state"] == "done" and shown["version"] == VERSIONS, shown
        return self.versions(job)

    def undisturbed(self):
        with self.federation:
            self.federation.start_aggregator()
            self.start_clients()
            return self.finish(self.federation.cli("submit", self.job_file)["id"])

    def disturbed(self, server_point, client_point):
        with self.federation as federation:
            federation.start_aggregator(env={"TRIBUTARY_CRASH": server_point})
            job = federation.cli("submit", self.job_file)["id"]
            clients = self.start_clients()
            self.await_death(federation.aggregator, f"the aggregator ({server_point})")
            clients.kill()
            clients.wait()
            federation.start_aggregator()
            clients = self.start_clients(crash=client_point)
            self.await_death(clients, f"the clients ({client_point})")
            self.start_clients()
            return self.finish(job)


def same(what, got, expected):
    check(got.keys() == expected.keys(), f"{what}: expected versions {sorted(expected)}, got {sorted(got)}")
    for version in sorted(expected):
        check(got[version] == expected[version], f"{what}: version {version}: {got[version]}, undisturbed {expected[version]}")


def simulated(simulator, number, job, clients):
    out = simulator.work / f"store-{number}"
    simulator.command("simulate", job, "--clients", clients, "--out", out, "--json")
    listed = json.loads(simulator.command("state", "ls", "--store", out, "--json").stdout)
    return {v["version"]: v["sha256"] for v in listed["versions"]}


def main(bin_dir, words):
    with Simulator(bin_dir) as simulator:
        problem = reference.g(CLIENTS, 4)
        table = json.loads(simulator.command("strategies", "--json").stdout)
        names = [entry["name"] for entry in (table["strategies"] if isinstance(table, dict) else table)]
        # (what, keys, whether `simulate` runs the same job)
        todo = [(what, keys, True) for what, keys in jobs(names)]
        drawn = {"cohort": {"size": 2, "population": CLIENTS}, **SGD}
        for strategy in [{"name": "scaffold"}, {"name": "scaffold_m_vr"}, {"name": "fedadmm"}, {"name": "rerce_admm", "continual": True}]:
            todo.append((f"{strategy['name']} with drawn cohorts", {"strategy": strategy, **drawn}, False))
        todo.append(("fedavg with error feedback", {"codec": {"kind": "topk", "fraction": .5}, "dtype": "float32", "cohort": {"size": CLIENTS}, **SGD}, False))
        todo = [item for item in todo if not words or any(word in item[0] for word in words)]

        prepared = []
        for what, keys, _ in todo:
            file = simulator.job(simulator.problem(problem), CLIENTS, reproducible=True, stop={"versions": VERSIONS}, **keys)
            prepared.append(file.rename(simulator.work / f"job-{len(prepared)}.yaml"))

        def one(number):
            what, keys, by_simulation = todo[number]
            begin, clients = time.time(), keys["cohort"]["size"] if keys["cohort"]["size"] == 1 else CLIENTS
            drawn_run = "population" in keys["cohort"]
            few = clients == 1 or drawn_run
            server = (ONE_CLIENT_POINTS if few else SERVER_POINTS)[number % len(ONE_CLIENT_POINTS if few else SERVER_POINTS)]
            client = (ONE_CLIENT_CLIENT_POINTS if few else CLIENT_POINTS)[number % len(CLIENT_POINTS)]
            expected = simulated(simulator, number, prepared[number], clients) if by_simulation else Run(bin_dir, prepared[number], clients).undisturbed()
            same(f"{what} ({server}, {client})", Run(bin_dir, prepared[number], clients).disturbed(server, client), expected)
            print(f"ok {what} ({server}, {client}; {time.time() - begin:.1f} s)", flush=True)

        with concurrent.futures.ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            failures = [f.exception() for f in [pool.submit(one, n) for n in range(len(todo))]]
        for failure in failures:
            if failure is not None:
                print(failure, file=sys.stderr)
        check(not any(failures), f"{sum(f is not None for f in failures)} of {len(todo)} runs failed")
        print(f"{len(todo)} jobs, {3 * len(todo)} processes killed: every version has the undisturbed bits")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

"""Gate T20 for strategies whose clients keep a state, through the daemons: a state that is lost or older than it should be, an update that
is dropped with what was staged for it, unequal numbers of steps. SCAFFOLD and ADMM still end at the optimum, and a record of such a job is
replayed bit for bit.

usage: bad_days_test.py BIN_DIR [TEST…]
"""
import os
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from harness import Federation, read_safetensors  # noqa: E402
from simulations import check, close, main  # noqa: E402

Q4 = reference.q4()
OPTIMUM = reference.optimum(*Q4)
N = 4


class Daemons:
    """An aggregator and a client daemon with all identities, for one job on Q4."""

    def __init__(self, simulator, **keys):
        self.federation = Federation(simulator.bin)
        self.file = simulator.job(simulator.problem(Q4), N, **keys)

    def __enter__(self):
        self.federation.start_aggregator()
        self.job = self.federation.cli("submit", self.file)["id"]
        return self

    def __exit__(self, *unused):
        self.federation.close()

    def start(self, *flags, crash=None, name="client"):
        flags = flags or ("--identities", N)
        return self.federation.start_client(name, *flags, program="trib-analytic-client", env={"TRIBUTARY_CRASH": crash} if crash else None)

    def await_death(self, process):
        end = time.time() + 40
        while process.poll() is None:
            assert time.time() < end, f"no crash:\n{self.federation.log('aggregator.log')}\n{self.federation.log('client.log')}"
            time.sleep(.005)

    def state_file(self, identity):
        """Its state of the last counted update, and the version that counted it."""
        files = list((self.federation.work / "clients/client" / identity / "state" / self.job).glob("strategy.v*"))
        newest = max(files, key=lambda file: int(file.suffix[2:]))
        return newest, int(newest.suffix[2:])

    def finish(self):
        shown = self.federation.wait_job(self.job, timeout=90)
        check(shown["state"] == "done", shown)
        out = self.federation.work / "model.safetensors"
        self.federation.cli("state", "export", self.job, "--out", out)
        return np.frombuffer(read_safetensors(out)["x"][2], "<f8"), self.federation.cli("state", "ls", self.job)["versions"]


def a_lost_or_older_state_makes_all_begin_anew(simulator):
    """Resetting c_i alone would end elsewhere: the reference shows by how much."""
    a, b = Q4
    x, c, own = np.zeros(2), np.zeros(2), np.zeros((N, 2))
    for r in range(300):
        delta, change = np.zeros(2), np.zeros(2)
        if r == 10:
            own[1] = 0
        for i in range(N):
            y, total = x.copy(), np.zeros(2)
            for _ in range(5):
                gradient = a[i] @ (y - b[i])
                total += gradient / 5
                y = y - .1 * (gradient - own[i] + c)
            delta, change, own[i] = delta + (y - x) / N, change + (total - own[i]) / N, total
        x, c = x + delta, c + change
    check(np.linalg.norm(x - OPTIMUM) > 1e-2, f"without a new beginning the limit would be {x}, the optimum is {OPTIMUM}")

    for strategy, local in [({"name": "scaffold"}, {"steps": 5, "lr": .1}), ({"name": "scaffold", "uplink": "full"}, {"steps": 5, "lr": .1}),
                            ({"name": "scaffold_m_vr", "beta": .5}, {"steps": 5, "lr": .1}), ({"name": "rerce_admm"}, {"solver": "exact"}),
                            ({"name": "rerce_admm", "continual": True}, {"solver": "exact"})]:
        for older in [False, True]:
            with Daemons(simulator, strategy=strategy, local=local, stop={"versions": 130}, record=True, reproducible=True) as daemons:
                daemons.await_death(daemons.start(crash=f"client_before_outbox_drop:{10 * N + 1}"))
                file, version = daemons.state_file("client-1")
                if older:
                    for staged in set(file.parent.iterdir()) - {file}:
                        staged.unlink()
                    file.rename(file.with_suffix(f".v{version - 1}"))
                else:
                    shutil.rmtree(file.parent)
                daemons.start()
                x, versions = daemons.finish()
                epochs = sorted({v["state_epoch"] for v in versions})
                check(len(epochs) == 2 and version < epochs[1] <= version + 2, f"{strategy}: states began at {epochs}, the loss was after version {version}")
                check("is lost" in daemons.federation.log("client.log", lines=10_000), daemons.federation.log("client.log"))
                close(x, OPTIMUM, 1e-9, f"{strategy}, {'older' if older else 'lost'} state")
                daemons.federation.aggregator.terminate()
                daemons.federation.aggregator.wait()
                again = daemons.federation.cli("replay", daemons.job, "--store", daemons.federation.work / "store", server=False)
                check(again["equal"] and len(again["versions"]) == 130, f"{strategy}: replayed with the new beginning at {epochs[1]}, the hashes differ")


def a_client_of_fedadmm_that_lost_its_state_begins_anew_alone(simulator):
    with Daemons(simulator, strategy={"name": "fedadmm"}, local={"solver": "exact"}, stop={"versions": 130}) as daemons:
        daemons.await_death(daemons.start(crash=f"client_before_outbox_drop:{10 * N + 1}"))
        shutil.rmtree(daemons.state_file("client-1")[0].parent)
        daemons.start()
        x, versions = daemons.finish()
        check({v["state_epoch"] for v in versions} == {0}, "its row is replaced by the next one: nobody else is concerned")
        check("is lost" in daemons.federation.log("client.log", lines=10_000), daemons.federation.log("client.log"))
        close(x, OPTIMUM, 1e-9, "fedadmm, lost state")


def a_lost_state_is_handed_back_where_the_server_mirrors_it(simulator):
    for strategy in [{"name": "scaffold", "client_state": "mirrored"}, {"name": "scaffold_m", "uplink": "full", "client_state": "mirrored", "beta": .5}]:
        with Daemons(simulator, strategy=strategy, local={"steps": 5, "lr": .1}, stop={"versions": 130}) as daemons:
            daemons.await_death(daemons.start(crash=f"client_before_outbox_drop:{10 * N + 1}"))
            shutil.rmtree(daemons.state_file("client-1")[0].parent)
            daemons.start()
            x, versions = daemons.finish()
            check({v["state_epoch"] for v in versions} == {0}, f"{strategy}: nobody needs to begin anew")
            check("takes the server's copy" in daemons.federation.log("client.log", lines=10_000), daemons.federation.log("client.log"))
            close(x, OPTIMUM, 1e-9, f"{strategy}, lost state")


def what_was_staged_for_a_dropped_update_is_dropped(simulator):
    keys = {"cohort": {"size": N, "quorum": N - 1, "deadline_s": 3}, "strategy": {"name": "scaffold", "uplink": "full"}, "stop": {"versions": 100}}
    with Daemons(simulator, local={"steps": 5, "lr": .1}, **keys) as daemons:
        for i in range(N):
            crash = "outbox_after_rename:6:stop" if i == 2 else None
            daemons.start("--shards", N, "--first-shard", i, name=f"client-{i}", crash=crash)
        stopped = daemons.federation.clients["client-2"]
        end = time.time() + 30
        while Path(f"/proc/{stopped.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            assert time.time() < end, "the client does not stop"
            time.sleep(.01)
        held = daemons.federation.cli("jobs", "show", daemons.job)["version"]
        daemons.federation.wait_version(daemons.job, held + 1)   # committed without it, after the deadline
        os.kill(stopped.pid, signal.SIGCONT)
        x, versions = daemons.finish()
        without = [v["version"] for v in versions if v["version"] > 0 and len(v["contributors"]) < N]
        check(without, "every version has all clients: no update was dropped")
        check("expired" in daemons.federation.log("client-2.log", lines=10_000), daemons.federation.log("client-2.log"))
        check({v["state_epoch"] for v in versions} == {0}, "nothing was lost, and yet states began anew")
        close(x, OPTIMUM, 1e-9, "scaffold with a dropped update")


def unequal_numbers_of_steps_end_at_the_optimum(simulator):
    with Daemons(simulator, strategy={"name": "scaffold"}, local={"steps": [1, 2, 5, 10], "lr": .1}, stop={"versions": 150}) as daemons:
        daemons.start()
        close(daemons.finish()[0], OPTIMUM, 1e-9, "scaffold, K_i = 1, 2, 5, 10")


if __name__ == "__main__":
    main(sys.argv[1], [a_lost_or_older_state_makes_all_begin_anew, a_client_of_fedadmm_that_lost_its_state_begins_anew_alone,
                       a_lost_state_is_handed_back_where_the_server_mirrors_it,
                       what_was_staged_for_a_dropped_update_is_dropped, unequal_numbers_of_steps_end_at_the_optimum])

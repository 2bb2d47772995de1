"""kill -9 of the aggregator, a worker or a client daemon, at random times or at each named crash point: no acknowledged update is
lost, none is counted twice, every job finishes, and the final model is bit-identical to an undisturbed run's.

Oracle (reliability.md section 4): client i's update for version v is 1.0 at a coordinate of its own, plus integers elsewhere that
depend on (client, version) only; weight 1; cohorts of 4. So final model x 4 is the count vector: 0 is a loss, 2 a duplicate.

usage: chaos_test.py BIN_DIR [--kills N] [--points crash_points.def] [--seed S]
"""
import argparse
import concurrent.futures
import os
import random
import re
import signal
import sys
import time
import json
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, from_f32, read_safetensors, write_safetensors  # noqa: E402

CLIENTS = 4
ELEMENTS = 1 << 17          # 512 KiB: several chunks an upload
STRIDE = ELEMENTS // 2 // CLIENTS
TRAIN_MS = 15
STRAGGLER_MS = 2600         # longer than the 2 s between two journals, so that partials are journalled before each commit
JOB_TIMEOUT_S = 150
AT_ONCE = 3
# None of it may show in a reproducible model. The first is what a job gets that says nothing.
HIERARCHIES = ["{}", '{shape: tree, plan: "static:2", timing: eager}', '{shape: tree, plan: "static:2", timing: lazy}',
               "{shape: tree, plan: ewma, timing: jit, reuse: off}", "{shape: flat, timing: lazy}"]
REPLANNED = "{shape: tree, plan: {kind: ewma, period_s: 0.1}, timing: eager}"
TREE_POINTS = ("role_", "partial_", "worker_before_merge", "worker_in_merge", "worker_before_partial", "worker_after_partial")


class Chaos:
    def __init__(self, bin_dir, rng, one_process, durability, straggler=False, transfer=None, record=False, early=None):
        self.rng, self.one_process, self.durability, self.straggler, self.record = rng, one_process, durability, straggler, record
        # Updates as file descriptors, or over gRPC as from other hosts.
        self.transfer = transfer or rng.choice(["on", "off"])
        # Updates that leave while they are stored, as large ones do, or only then.
        self.early_bytes = 1 if (rng.random() < 0.5 if early is None else early) else ELEMENTS * 4 + 1
        self.federation = Federation(bin_dir, workers=2, aggregator_flags=["--local-transfer", self.transfer])
        self.work = self.federation.work
        self.kills = {"aggregator": 0, "worker": 0, "client": 0}
        write_safetensors(self.work / "model.safetensors", {"w": ("F32", [ELEMENTS], f32([0.0] * ELEMENTS))})

    def start_client(self, i, env=None):
        train_ms = STRAGGLER_MS if self.straggler and i == CLIENTS - 1 else TRAIN_MS
        flags = ["--learner", "onehot", "--train-ms", train_ms, "--early-upload-bytes", self.early_bytes, "--ledger", self.work / "ledger"]
        if self.one_process:
            self.federation.start_client("site", "--identities", CLIENTS, *flags, env=env)
        else:
            self.federation.start_client(f"site-{i}", "--shards", CLIENTS, "--first-shard", i, *flags, env=env)

    def names(self):
        return ["site"] if self.one_process else [f"site-{i}" for i in range(CLIENTS)]

    def start(self):
        self.federation.start_aggregator()
        for i in range(len(self.names())):
            self.start_client(i)

    def submit(self, versions, hierarchy=HIERARCHIES[0]):
        return self.federation.submit(
            f"name: chaos\nmodel: {{tensors: {self.work}/model.safetensors}}\nstrategy: fedavg\ncohort: {{size: {CLIENTS}}}\n"
            f"stop: {{versions: {versions}}}\nreproducible: true\ndurability: {self.durability}\nhierarchy: {hierarchy}\nrecord: {str(self.record).lower()}\n")

    def state(self, job):
        code, shown, _ = self.federation.cli("jobs", "show", job, check=False)
        return shown if code == 0 else None

    def workers(self):
        pids = []
        for task in Path(f"/proc/{self.federation.aggregator.pid}/task").glob("*/children"):
            try:
                pids += [int(pid) for pid in task.read_text().split()]
            except OSError:
                pass
        return pids

    def kill_one(self):
        victim = self.rng.choice(["aggregator", "worker", "client"])
        if victim == "aggregator":
            self.federation.kill_aggregator()
            if self.rng.random() < 0.5:
                time.sleep(self.rng.uniform(0, 0.3))
            self.federation.start_aggregator()
        elif victim == "worker":
            pids = self.workers()
            if not pids:
                return
            try:
                os.kill(self.rng.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                return
        else:
            i = self.rng.randrange(len(self.names()))
            process = self.federation.clients[self.names()[i]]
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.start_client(i)
        self.kills[victim] += 1

    def ensure_alive(self):
        """A process may only end because it was killed."""
        assert self.federation.aggregator.poll() is None, "the aggregator died by itself:\n" + self.federation.log("aggregator.log")
        for name, process in self.federation.clients.items():
            assert process.poll() is None, f"client {name} died by itself ({process.returncode}):\n" + self.federation.log(f"{name}.log")

    def finish(self, job):
        end = time.time() + JOB_TIMEOUT_S
        while True:
            shown = self.state(job)
            if shown and shown["state"] not in ("queued", "running"):
                return shown
            self.ensure_alive()
            assert time.time() < end, (f"the job does not finish: {shown and (shown['version'], shown['waiting_for'])}\n"
                                       + self.federation.log("aggregator.log") + "\n" + self.federation.log(f"{self.names()[0]}.log"))
            time.sleep(0.05)

    def ledger(self, job):
        """(update, state) -> line, for one job. A line that was cut by a kill would be the last of its writer; none may be half."""
        lines = [json.loads(line) for line in (self.work / "ledger").read_text().splitlines()]
        return [line for line in lines if line["job"] == job]

    def check(self, job, shown, versions):
        assert shown["state"] == "done", shown
        assert shown["version"] == versions, shown
        contributors = {}   # update id -> (version, client)
        expected = [0] * (ELEMENTS // 2)
        for version in range(1, versions + 1):
            info = self.federation.cli("state", "get", job, "--version", version)
            seen = set()
            for entry in info["contributors"]:
                update, client = entry["update_id"], entry["client"]
                assert update not in contributors, f"update {update} is in versions {contributors[update][0]} and {version}"
                assert client not in seen, f"client {client} is twice in version {version}"
                seen.add(client)
                contributors[update] = (version, client)
                expected[int(client.rsplit("-", 1)[1]) * STRIDE + version - 1] += 1
            assert len(seen) == CLIENTS, f"version {version} has contributors {seen}"
        committed = {line["update"]: line["version"] for line in self.ledger(job) if line["state"] == "committed"}
        for update, version in committed.items():
            assert update in contributors, f"update {update} was reported committed in version {version}; no version has it"
            assert contributors[update][0] == version, f"update {update}: reported in {version}, found in {contributors[update][0]}"
        assert len(committed) >= CLIENTS * versions * 0.5, f"only {len(committed)} commits were reported"
        out = self.work / "out.safetensors"
        self.federation.cli("state", "export", job, "--out", out)
        values = from_f32(read_safetensors(out)["w"][2])
        for coordinate in range(ELEMENTS // 2):
            count = values[coordinate] * CLIENTS
            assert count == expected[coordinate], f"coordinate {coordinate}: counted {count} times, expected {expected[coordinate]}"
        assert any(values[ELEMENTS // 2:]), "the second half is empty: updates had no integers"
        verified = self.federation.cli("state", "verify", job, check=False)
        assert verified[0] == 0, verified
        return len(committed)

    def close(self):
        self.federation.close()


def undisturbed(bin_dir, versions):
    chaos = Chaos(bin_dir, random.Random(0), one_process=True, durability="durable")
    try:
        chaos.start()
        job = chaos.submit(versions)
        shown = chaos.finish(job)
        chaos.check(job, shown, versions)
        return shown["model_sha256"]
    finally:
        chaos.close()


def side_by_side(what, items):
    """what(item) for all items, a few at a time: a federation that recovers mostly waits. The first failure ends it all."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        futures = [pool.submit(what, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def random_kills(bin_dir, kills, seed):
    references = dict(zip((24, 5), side_by_side(lambda versions: undisturbed(bin_dir, versions), (24, 5))))
    modes = [(one_process, durability, False) for durability in ("durable", "ephemeral") for one_process in (True, False)]
    modes.append((False, "durable", True))

    def run(number):
        one_process, durability, straggler = modes[number]
        rng = random.Random(seed * 1000 + number)
        versions = 5 if straggler else 24
        hierarchy, jobs, updates = None, 0, 0
        chaos = Chaos(bin_dir, rng, one_process, durability, straggler)
        try:
            chaos.start()
            while sum(chaos.kills.values()) * len(modes) < kills:
                hierarchy = HIERARCHIES[(number + seed + jobs) % len(HIERARCHIES)]
                job = chaos.submit(versions, hierarchy)
                while True:
                    time.sleep(rng.uniform(0.01, 0.5))
                    shown = chaos.state(job)
                    if shown and shown["state"] not in ("queued", "running"):
                        break
                    chaos.ensure_alive()
                    if sum(chaos.kills.values()) * len(modes) >= kills:
                        break
                    chaos.kill_one()
                shown = chaos.finish(job)
                updates += chaos.check(job, shown, versions)
                assert shown["model_sha256"] == references[versions], f"model {shown['model_sha256']}, undisturbed {references[versions]}"
                jobs += 1
        except AssertionError:
            print(f"seed {seed}, one process {one_process}, {durability}, straggler {straggler}, hierarchy {hierarchy}, kills so far {chaos.kills}", file=sys.stderr)
            raise
        finally:
            chaos.close()
        return chaos.kills, jobs, updates

    results = side_by_side(run, range(len(modes)))
    total = {victim: sum(kills_of[victim] for kills_of, _, _ in results) for victim in ("aggregator", "worker", "client")}
    print(f"{sum(total.values())} kills {total} over {sum(r[1] for r in results)} jobs: {sum(r[2] for r in results)} commits reported, "
          "0 lost, 0 counted twice, every model hash equals the undisturbed run's")


CLIENT_POINTS = ("outbox_", "upload_", "early_upload_", "client_")


def start_and_submit(chaos, versions, env, on_client, hierarchy):
    """(job, died): the point may already be passed while the aggregator starts, or in the middle of the submission."""
    def start_clients(client_env=None):
        for i in range(len(chaos.names())):
            chaos.start_client(i, env=client_env)

    try:
        chaos.federation.start_aggregator(env={} if on_client else env)
    except AssertionError:
        assert chaos.federation.aggregator.poll() == -signal.SIGKILL, "the aggregator did not start"
        chaos.federation.start_aggregator()
        start_clients()
        return None, True
    start_clients(env if on_client else None)
    try:
        return chaos.submit(versions, hierarchy), False
    except AssertionError:
        assert not on_client and chaos.federation.aggregator.wait(10) == -signal.SIGKILL, "the submission failed by itself"
        return None, True


def submitted_or_again(chaos, versions):
    """After a submission whose answer was lost: the job is there, whole, or not at all."""
    jobs = chaos.federation.cli("jobs", "ls")
    jobs = jobs["jobs"] if isinstance(jobs, dict) else jobs
    assert len(jobs) <= 1, jobs
    return jobs[0]["id"] if jobs else chaos.submit(versions)


def crash_points(bin_dir, definition, seed):
    names = [name for name in re.findall(r"^TRIB_CRASH_POINT_NAME\((\w+)\)", Path(definition).read_text(), re.M)
             if not name.startswith("relay_")]  # of several nodes: tests/e2e/relay
    references = dict(zip((12, 3), side_by_side(lambda versions: undisturbed(bin_dir, versions), (12, 3))))

    def died_at(number):
        """Whether a process died there."""
        name = names[number]
        rng = random.Random(seed * 1000 + number)
        journal = name.startswith("journal_")  # needs a version that stays open
        versions = 3 if journal else 12
        chaos = Chaos(bin_dir, rng, one_process=not journal, durability="durable", straggler=journal,
                      transfer="off" if name == "upload_after_first_chunk" else None, early=name.startswith("early_upload_") or None)
        try:
            env = {"TRIBUTARY_CRASH": f"{name}:{1 if journal else rng.randint(1, 3)}"}
            on_client = name.startswith(CLIENT_POINTS)
            hierarchy = REPLANNED if name.startswith("replan_") else HIERARCHIES[1] if name.startswith(TREE_POINTS) else HIERARCHIES[0]
            job, died = start_and_submit(chaos, versions, env, on_client, hierarchy)
            victim = chaos.federation.clients[chaos.names()[0]] if on_client else chaos.federation.aggregator
            workers = set(chaos.workers())
            end = time.time() + 20
            while time.time() < end and not died:
                died = victim.poll() is not None or (not on_client and not workers <= set(chaos.workers()))
                time.sleep(0.02)
                shown = None if died else chaos.state(job)
                if shown and shown["state"] == "done":
                    break
            # Whatever still carries the point in its environment is replaced by a healthy one.
            if on_client:
                victim.kill()
                victim.wait()
                chaos.start_client(0)
            else:
                chaos.federation.kill_aggregator()
                chaos.federation.start_aggregator()
            job = job or submitted_or_again(chaos, versions)
            shown = chaos.finish(job)
            chaos.check(job, shown, versions)
            assert shown["model_sha256"] == references[versions], f"model {shown['model_sha256']}, undisturbed {references[versions]}"
            return died
        except AssertionError:
            print(f"crash point {name} ({env})", file=sys.stderr)
            raise
        finally:
            chaos.close()

    died = side_by_side(died_at, range(len(names)))
    missed = [name for name, dead in zip(names, died) if not dead]
    print(f"killed at {sum(died)} of {len(names)} crash points, 0 updates lost, 0 counted twice; never reached: {missed or 'none'}")
    assert sum(died) >= 0.8 * len(names), f"points that this test no longer reaches: {missed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin_dir", type=Path)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--points", type=Path)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    if args.points:
        crash_points(args.bin_dir, args.points, args.seed)
    else:
        random_kills(args.bin_dir, args.kills, args.seed)


if __name__ == "__main__":
    main()

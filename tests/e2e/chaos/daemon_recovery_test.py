"""kill -9 of the aggregator daemon, in which ingress runs, at named points and at random: the job ends with the undisturbed hash, the next
daemon is at work again within a second, and nothing of the dead one stays: no process, no name in /dev/shm, no program in the kernel.

usage: daemon_recovery_test.py BIN_DIR [--kills N] [--mib MIB] [--seed S]
"""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, free_gib, transports, write_safetensors  # noqa: E402

CLIENTS = 3
# Where a daemon dies: ingress in the middle of an upload, with all of it, and after the hand-over; the node daemon around a commit; anywhere.
POINTS = ["ingress_after_reserve", "ingress_after_chunk", "ingress_before_seal", "ingress_before_answer", "round_before_server_step",
          "commit_after_shards", "commit_before_sync", "commit_after_sync", "publish_before_committed_message", "replan_before_goals",
          "replan_after_goals", None]
SHARD, TREE = "{}", "{shape: tree, plan: {kind: ewma, period_s: 0.1}, timing: eager}"


def workers_of(pid):
    pids = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids += [int(child) for child in task.read_text().split()]
        except OSError:
            pass
    return pids


def shared_memory_names():
    # Folders are other tests' stores; segments and slabs would be files.
    return {path.name for path in Path("/dev/shm").iterdir() if path.is_file()} if Path("/dev/shm").is_dir() else set()


def orphans():
    """Verdict programs in the kernel that no process has, by id; nothing where that cannot be asked."""
    tool = shutil.which("bpftool") or next((path for path in ("/usr/sbin/bpftool", "/sbin/bpftool") if os.path.exists(path)), None)
    if tool is None:
        return set()
    done = subprocess.run([tool, "--json", "prog", "show"], capture_output=True, text=True)
    if done.returncode:
        return set()
    programs = {program["id"] for program in json.loads(done.stdout) if program.get("type") == "sk_msg"}
    for info in Path("/proc").glob("[0-9]*/fdinfo/*") if programs else ():
        try:
            programs -= {int(line.split()[1]) for line in info.read_text().splitlines() if line.startswith("prog_id:")}
        except OSError:
            pass  # gone meanwhile
    return programs


def job_yaml(federation, versions, hierarchy):
    return (f"name: k\nmodel: {{tensors: {federation.work}/model.safetensors}}\ncohort: {{size: {CLIENTS}}}\nstop: {{versions: {versions}}}\n"
            f"reproducible: true\nhierarchy: {hierarchy}\n")


def start_clients(federation, train_ms):
    for i in range(CLIENTS):
        federation.start_client(f"site-{i}", "--shards", CLIENTS, "--first-shard", i, "--learner", "onehot", "--train-ms", train_ms)


def waited_for_a_core(pid):
    """Seconds that the main thread, which starts everything, was ready to run and did not: the machine's share of a slow start."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) * 1e-9


def at_work(federation, job, since, timeout=30):
    """Seconds from the kill until the new daemon has the job open, its workers, and its clients back."""
    while True:
        code, node, _ = federation.cli("nodes", "show", check=False)
        if code == 0 and any(row["job"] == job for row in node["jobs"]) and all(w["pid"] > 0 for w in node["workers"]):
            return time.time() - since
        code, shown, _ = federation.cli("jobs", "show", job, check=False)
        if code == 0 and shown["state"] == "done":
            return time.time() - since
        assert time.time() - since < timeout, federation.log("aggregator.log")
        time.sleep(0.002)


def run(bin_dir, kills, elements, rng, transport, hierarchy, points):
    recoveries, done_kills, gone = [], 0, []
    pool_mb = max(64, elements * 4 // 2**20 * 16)
    with Federation(bin_dir, workers=2, aggregator_flags=["--transport", transport, "--pool-mb", pool_mb]) as federation:
        federation.aggregator_flags = [str(flag) for flag in federation.aggregator_flags]
        write_safetensors(federation.work / "model.safetensors", {"w": ("F32", [elements], f32([0.0]) * elements)})
        federation.start_aggregator()
        start_clients(federation, 5)
        # As many versions as kills that need one each, and some.
        versions = kills + 4
        job = federation.submit(job_yaml(federation, versions, hierarchy))
        while done_kills < kills:
            point = points[done_kills % len(points)]
            if hierarchy == SHARD and point and point.startswith("replan_"):  # a shard has nothing to plan anew
                point = None
            old = federation.aggregator
            if point is None:
                time.sleep(rng.uniform(0.02, 0.4))
            else:
                # Only a daemon that was started with the point dies at it.
                federation.kill_aggregator()
                federation.start_aggregator(env={"TRIBUTARY_CRASH": f"{point}:{1 if elements > 2**21 else rng.randint(1, 2)}"})
                old = federation.aggregator
                end = time.time() + 60
                while old.poll() is None and time.time() < end:
                    code, shown, _ = federation.cli("jobs", "show", job, check=False)
                    if code == 0 and shown["state"] == "done":
                        break
                    time.sleep(0.002)
                if old.poll() is None:
                    code, shown, _ = federation.cli("jobs", "show", job, check=False)
                    if code == 0 and shown["state"] == "done":
                        break
                    raise AssertionError(f"nobody died at {point}")
            workers = workers_of(old.pid)
            if old.poll() is None:
                old.send_signal(signal.SIGKILL)
            old.wait()
            killed = time.time()
            federation.start_aggregator()
            seconds = at_work(federation, job, killed)
            recoveries.append((seconds, waited_for_a_core(federation.aggregator.pid)))
            gone += workers
            done_kills += 1
        shown = federation.wait_job(job, timeout=300)
        assert shown["state"] == "done" and shown["version"] == versions, shown
        for version in range(1, versions + 1):
            info = federation.cli("state", "get", job, "--version", version)
            assert len({entry["client"] for entry in info["contributors"]}) == CLIENTS == len(info["contributors"]), info["contributors"]
        left = [pid for pid in gone if Path(f"/proc/{pid}/exe").exists() and "tributary-worker" in os.readlink(f"/proc/{pid}/exe")
                and pid not in workers_of(federation.aggregator.pid)]
        assert not left, f"workers outlived their daemon: {left}"
        return versions, shown["model_sha256"], recoveries


def undisturbed(bin_dir, versions, elements):
    with Federation(bin_dir, workers=2, aggregator_flags=["--pool-mb", str(max(64, elements * 4 // 2**20 * 16))]) as federation:
        write_safetensors(federation.work / "model.safetensors", {"w": ("F32", [elements], f32([0.0]) * elements)})
        federation.start_aggregator()
        start_clients(federation, 0)
        return federation.wait_job(federation.submit(job_yaml(federation, versions, SHARD)), timeout=300)["model_sha256"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin_dir", type=Path)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--mib", type=float, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    rng = random.Random(args.seed)
    elements = int(args.mib * 2**18)
    assert free_gib("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp") > args.mib / 20, "not enough room for the stores"
    ways = transports(args.bin_dir)
    names_before, orphans_before = shared_memory_names(), orphans()
    points = POINTS[:]
    if args.kills < len(points):
        rng.shuffle(points)
    recoveries, waits = [], []
    settings = [(way, hierarchy) for way in ways for hierarchy in (SHARD, TREE)]
    if args.kills < 2 * len(settings):
        settings = [(ways[-1], TREE)]
    share = -(-args.kills // len(settings))
    for transport, hierarchy in settings:
        versions, got, seconds = run(args.bin_dir, share, elements, rng, transport, hierarchy, points)
        wanted = undisturbed(args.bin_dir, versions, elements)
        assert got == wanted, f"{transport}, {hierarchy}: model {got}, undisturbed {wanted}"
        recoveries += [second for second, _ in seconds]
        waits += [wait for _, wait in seconds]
        points = points[share % len(points):] + points[:share % len(points)]
        print(f"{transport}, {hierarchy}: {len(seconds)} kills, worst {max(seconds)[0]:.3f} s, {max(seconds)[1]:.3f} s of it waiting for a core", flush=True)
    assert shared_memory_names() <= names_before, shared_memory_names() - names_before
    end = time.time() + 10  # the kernel takes programs away a little later
    while not orphans() <= orphans_before:
        assert time.time() < end, f"verdict programs left: {orphans() - orphans_before}"
        time.sleep(0.2)
    recoveries.sort()
    quantile = lambda q: recoveries[min(len(recoveries) - 1, int(q * len(recoveries)))]
    print(f"{len(recoveries)} kills of the daemon, model of {args.mib} MiB: every hash is the undisturbed run's; from the kill until the job is open "
          f"and the workers are there: p50 {quantile(0.5):.3f} s, p99 {quantile(0.99):.3f} s, max {recoveries[-1]:.3f} s, of which "
          f"the new daemon waited for a core (others were running) {sorted(waits)[len(waits) // 2]:.3f} s in the median; nothing left behind")
    assert quantile(0.99) < (1 if len(recoveries) >= 50 else 10), recoveries


if __name__ == "__main__":
    main()

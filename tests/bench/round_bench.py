"""Time of an aggregation round without training: K client processes return S MiB each. Prints one JSON line.

usage: round_bench.py K SIZE_MB ROUNDS [--transfer local|grpc] [--codec int8] [--tensors 16] [--bin DIR] [--workers W] [--pool-mb P] [--stages]
                     [--timeout S] [--keep]

A round runs from its first task being issued to the new model being available in the aggregator, as the aggregator measures
it; writing the version to the state store follows; the round up to its end is reported apart (round_with_commit_s_median). The state store and the clients'
outboxes lie on /dev/shm ("state_on"), because the frameworks this is compared with write neither. Server memory is the PSS of all
server processes, so pages they share count once.

--transfer local (the default of clients on the aggregator's host) passes models and updates as file descriptors; grpc is what clients
on other hosts do.
"""
import argparse
import array
import json
import os
import random
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def busy_seconds():
    fields = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICK


def wait_quiet(limit=0.25, window=2.0):
    """Waits (at most $QUIET_WAIT seconds) for other users of the machine to be quiet. Returns (cores in use, seconds waited)."""
    most, start = float(os.environ.get("QUIET_WAIT", "20")), time.time()
    while True:
        before, at = busy_seconds(), time.time()
        time.sleep(window)
        load = (busy_seconds() - before) / (time.time() - at)
        if load < limit or time.time() - start > most:
            return round(load, 2), round(time.time() - start, 1)


def cpu_seconds(pid):
    try:
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    except OSError:
        return 0.0


def pss_bytes(pid):
    try:
        for line in open(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def children(pid):
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in open(f"/proc/{pid}/task/{task}/children").read().split():
                found += [int(child)] + children(int(child))
    except OSError:
        pass
    return found


class Sampler(threading.Thread):
    """Peak PSS and CPU seconds of process trees, by role."""

    def __init__(self, period=0.25):
        super().__init__(daemon=True)
        self.period, self.roots, self.peak, self.cpu, self.stopped = period, {}, {}, {}, threading.Event()
        self.lock = threading.Lock()

    def sample(self):
        with self.lock:
            memory = {}
            for role, pids in self.roots.items():
                for root in pids:
                    for pid in [root] + children(root):
                        memory[role] = memory.get(role, 0) + pss_bytes(pid)
                        used = cpu_seconds(pid)
                        if used:
                            self.cpu[(role, pid)] = used
            for role, size in memory.items():
                self.peak[role] = max(self.peak.get(role, 0), size)

    def run(self):
        while not self.stopped.is_set():
            self.sample()
            self.stopped.wait(self.period)

    def cpu_by_role(self):
        total = {}
        for (role, _), used in list(self.cpu.items()):
            total[role] = total.get(role, 0.0) + used
        return total


def write_model(path, size_mb, tensors):
    """A safetensors file of `tensors` F32 tensors, `size_mb` MiB in all, with random values."""
    count = int(size_mb * 1048576) // 4
    rng = random.Random(0)
    block = array.array("f", (rng.random() for _ in range(65536))).tobytes()
    header, offset = {}, 0
    for i in range(tensors):
        elements = count // tensors + (i < count % tensors)
        header[f"tensor{i:02d}"] = {"dtype": "F32", "shape": [elements], "data_offsets": [offset, offset + 4 * elements]}
        offset += 4 * elements
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        left = offset
        while left:
            left -= f.write(block[: min(left, len(block))])


# What the programs log at level debug, and what we call it. A client's stages are medians over all tasks, the aggregator's over all rounds.
STAGES = {
    "client*.log": {"model here": r"version \d+ here in ([\d.]+) s", "trained": r"trained in ([\d.]+) s",
                    "kept in the outbox": r"kept in the outbox in ([\d.]+) s", "uploaded": r"uploaded in ([\d.]+) s"},
    "aggregator.log": {"first task to last update": r"([\d.]+) s after its first task the last update was in",
                       "server step": r"server step ([\d.]+) s", "hashes and store": r"hashes and store ([\d.]+) s"},
}


def stages(work):
    result = {}
    for logs, patterns in STAGES.items():
        text = "".join(log.read_text() for log in sorted(work.glob(logs)))
        for name, pattern in patterns.items():
            seen = [float(x) for x in re.findall(pattern, text)]
            result[name] = round(statistics.median(seen), 4) if seen else None
    return result


def settings(binaries, given, names):
    """What the aggregator makes of these flags: {name: number}."""
    shown = subprocess.run([str(binaries / "tributary-aggregator"), *map(str, given), "--print-config"], capture_output=True, text=True, check=True)
    values = dict(line.split(":", 1) for line in shown.stdout.splitlines() if ":" in line)
    return {name: int(values[name].split("#")[0]) for name in names}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("k", type=int)
    parser.add_argument("size_mb", type=float)
    parser.add_argument("rounds", type=int)
    parser.add_argument("--tensors", type=int, default=16)
    parser.add_argument("--transfer", choices=["local", "grpc"], default="local")
    parser.add_argument("--bin", type=Path, default=Path(__file__).resolve().parents[2] / "build/release/bin")
    parser.add_argument("--workers", type=int, help="of the aggregator; without it the aggregator's own default")
    parser.add_argument("--codec", default="f32", help="of the updates: f32, bf16, f16, int8, int4 or topk")
    parser.add_argument("--transport", default="auto", help="of the aggregator: auto, ring, skmsg or skmsg-inline")
    parser.add_argument("--pool-mb", type=int, help="of the aggregator; without it the aggregator's own default")
    parser.add_argument("--stages", action="store_true", help="also say where the time goes, from the programs' debug logs: stages_s, medians")
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--keep", action="store_true", help="keep the working folder with all logs")
    a = parser.parse_args()

    shm = "/dev/shm" if shutil.disk_usage("/dev/shm").free > 3 * a.k * a.size_mb * 1048576 else None
    work = Path(tempfile.mkdtemp(prefix="tributary-round-", dir=shm))
    out = {"peer": "tributary", "version": None, "transport": a.transfer, "k": a.k, "size_mb": a.size_mb, "rounds": a.rounds,
           "tensors": a.tensors, "ok": False, "error": None,
           "state_on": "tmpfs" if shm else "disk"}
    processes, sampler, level = [], Sampler(), "debug" if a.stages else "warn"

    def start(role, log, *command):
        process = subprocess.Popen([str(c) for c in command], stdout=open(work / log, "a"), stderr=subprocess.STDOUT)
        processes.append(process)
        with sampler.lock:
            sampler.roots.setdefault(role, []).append(process.pid)
        return process

    def tributary(*command):
        done = subprocess.run([str(a.bin / "tributary"), "--server", server, *map(str, command), "--json"],
                              capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"tributary {' '.join(map(str, command))} failed: {done.stdout[-300:]} {done.stderr[-300:]}")
        return json.loads(done.stdout)

    try:
        write_model(work / "model.safetensors", a.size_mb, a.tensors)
        (work / "job.yaml").write_text(
            f"name: round-bench\nmodel: {{tensors: {work}/model.safetensors}}\nstrategy: {{name: fedavg, weighting: uniform}}\n"
            f"cohort: {{size: {a.k}}}\nstop: {{versions: {a.rounds}}}\ndurability: ephemeral\ncodec: {a.codec}\n")
        out["version"] = subprocess.run([str(a.bin / "tributary"), "--version"], capture_output=True, text=True).stdout.strip()
        out["quiet_before_cores"], out["quiet_waited_s"] = wait_quiet()
        busy0, own0, t0 = busy_seconds(), sum(os.times()[:4]), time.time()
        sampler.start()
        given = [*(["--workers", a.workers] if a.workers else []), *(["--pool-mb", a.pool_mb] if a.pool_mb else [])]
        out.update(settings(a.bin, given, ("workers", "pool_mb")))
        start("server", "aggregator.log", a.bin / "tributary-aggregator", "--listen", "127.0.0.1:0", "--store", work / "store",
              "--port-file", work / "port", "--transport", a.transport, "--log-level", level,
              "--local-transfer", "on" if a.transfer == "local" else "off",
              *given)
        while not (work / "port").exists():
            if processes[0].poll() is not None or time.time() - t0 > 20:
                raise RuntimeError("aggregator did not start: " + (work / "aggregator.log").read_text()[-500:])
            time.sleep(0.005)
        server = (work / "port").read_text().strip()
        out["server_up_s"] = round(time.time() - t0, 3)
        for i in range(a.k):
            start("clients", f"client{i}.log", a.bin / "trib-scripted-client", "--server", server, "--name", f"bench-{i:02d}",
                  "--state", work / f"client{i}", "--learner", "offset", "--offset", i + 1, "--log-level", level)
        submitted = time.time()
        job = tributary("submit", work / "job.yaml")["id"]
        cpu0, shown = None, {}
        while True:
            shown = tributary("jobs", "show", job)
            if cpu0 is None and shown["state"] == "running":
                sampler.sample()
                cpu0 = sampler.cpu_by_role()
            if shown["state"] in ("done", "failed", "cancelled"):
                break
            if time.time() - submitted > a.timeout:
                raise RuntimeError(f"timeout after {a.timeout} s: {shown.get('waiting_for')}")
            time.sleep(0.25)
        sampler.sample()
        cpu1 = sampler.cpu_by_role()
        if shown["state"] != "done":
            raise RuntimeError(f"job {shown['state']}: {shown.get('state_reason')}")
        rounds = [r for r in shown["rounds"] if r["version"] > 0]
        times = [r["aggregate_s"] for r in rounds]
        short = [r["version"] for r in rounds if r["updates"] != a.k]
        median = statistics.median(times)
        first = shown["started_us"] / 1e6
        out.update(
            round_s=[round(t, 4) for t in times], round_s_median=round(median, 4),
            round_with_commit_s_median=round(statistics.median(r["commit_s"] for r in rounds), 4),
            agg_MBps=round(a.k * a.size_mb * 1048576 / median / 1e6, 1),
            submit_to_round1_s=round(first - submitted, 3), cold_start_to_round1_s=round(first - t0, 3),
            submit_to_first_result_s=round(first + times[0] - submitted, 3),
            cpu_per_round_s={r: round((cpu1[r] - cpu0.get(r, 0)) / a.rounds, 3) for r in cpu1},
            updates_committed=shown["updates_committed"], codec=a.codec, bytes_up=shown["bytes_up"])
        if a.stages:
            out["stages_s"] = stages(work)
        if short:
            out["error"] = f"rounds with missing replies: {short}"
        out["ok"] = len(times) == a.rounds and not out["error"]
    except Exception as error:  # the line is printed whatever happens; ok is false then
        out["error"] = f"{type(error).__name__}: {error}"
    finally:
        sampler.sample()
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        deadline = time.time() + 15
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        sampler.stopped.set()
        if sampler.is_alive():
            sampler.join()
        out["wall_s"] = round(time.time() - t0, 1) if "t0" in locals() else None
        if "t0" in locals():
            own = sum(os.times()[:4]) - own0
            out["foreign_cores"] = round(max(0.0, busy_seconds() - busy0 - own) / (time.time() - t0), 2)
        out["peak_rss_MB"] = {role: round(size / 1e6) for role, size in sampler.peak.items()}
        out["cpu_s"] = {role: round(used, 2) for role, used in sampler.cpu_by_role().items()}
        out["left_running"] = len(children(os.getpid()))
        if a.keep:
            out["workdir"] = str(work)
        else:
            shutil.rmtree(work, ignore_errors=True)
        print(json.dumps(out))
    return 0 if out["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

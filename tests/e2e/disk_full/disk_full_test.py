"""R11: a disk that is really full, in the middle of a job. Four arms, each with a small tmpfs of its own that is filled up:
  watermark  of the aggregator's store: it refuses early and by name, answers reads, and goes on when there is room again
  inodes     no watermark, and no new file can be made although bytes are free: every commit fails with ENOSPC, by name
  gasping    no watermark, and what little is free comes and goes many times a second: ENOSPC at any moment of any write; the last of
             these records its updates, and is replayed
  outbox     of the clients: they decline their tasks by name, and go on when there is room again
Without a watermark RocksDB may end the process; the test then starts it again, as a supervisor would.
Afterwards no acknowledged update is lost or counted twice, and the model is bit-identical to an undisturbed run's (chaos_test.py).

The mounts need root; they are made in a mount namespace of the test's own. TRIBUTARY_REQUIRE=mount makes a skip a failure.
usage: disk_full_test.py BIN_DIR
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))
sys.path.insert(0, str(HERE.parent / "chaos"))
from chaos_test import CLIENTS, Chaos, undisturbed  # noqa: E402

VERSIONS = 12
MIB = 1 << 20


def skip(reason):
    print(f"needs mount: {reason}")
    sys.exit(1 if "mount" in os.environ.get("TRIBUTARY_REQUIRE", "").split(",") else 77)


class Disk:
    """A tmpfs of `mib` with at most 2,000 files at `folder`, and ballast on it."""

    def __init__(self, folder, mib):
        self.folder, self.ballast, self.many = folder, folder / "ballast", folder / "many"
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,nr_inodes=2000,mode=700", "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode != 0:
            skip(done.stderr.strip())

    def free(self):
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def fill(self, leave=0):
        """Leaves about `leave` bytes; with 0 not one, whatever others write or delete meanwhile."""
        with open(self.ballast, "ab", buffering=0) as file:
            while True:
                free = self.free() - leave
                if free <= 0 and leave:
                    return
                try:
                    file.write(b"\1" * min(max(free, 4096), MIB))
                except OSError:
                    if self.free() == 0:
                        return

    def take_inodes(self):
        self.many.mkdir()
        try:
            for i in range(2000):
                (self.many / str(i)).touch()
        except OSError:
            return
        raise AssertionError("2,000 files fit: the test fills nothing")

    def gasp(self, free):
        """Lets go of `free` bytes of a full disk."""
        os.truncate(self.ballast, max(0, self.ballast.stat().st_size - free))

    def empty(self):
        self.ballast.unlink(missing_ok=True)
        shutil.rmtree(self.many, ignore_errors=True)

    def close(self):
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


def version(chaos, job):
    shown = chaos.state(job)
    return shown["version"] if shown else -1


def await_that(what, condition, timeout=30):
    end = time.time() + timeout
    while not condition():
        assert time.time() < end, f"within {timeout} s: {what}"
        time.sleep(0.05)


def opened(bin_dir, folder, mib, flags=(), durability="durable", record=False):
    """A federation with work/`folder` on a disk of its own, its clients there."""
    chaos = Chaos(bin_dir, random.Random(1), one_process=True, durability=durability, record=record)
    chaos.federation.aggregator_flags += flags
    disk = Disk(chaos.work / folder, mib)
    chaos.start()
    await_that("the clients attach", lambda: len(chaos.federation.cli("clients", "ls")["clients"]) == CLIENTS)
    return chaos, disk


def started(*args, **kwargs):
    """The same, at least two versions into its job."""
    chaos, disk = opened(*args, **kwargs)
    job = chaos.submit(VERSIONS)
    await_that("two versions", lambda: version(chaos, job) >= 2)
    return chaos, disk, job


def finished(chaos, job, reference):
    shown = chaos.finish(job)
    chaos.check(job, shown, VERSIONS)
    assert shown["model_sha256"] == reference, f"model {shown['model_sha256']}, undisturbed {reference}"
    return shown


def ended(chaos, disk):
    chaos.close()
    disk.close()
    shutil.rmtree(chaos.work, ignore_errors=True)


def watermark(bin_dir, reference):
    chaos, disk, job = started(bin_dir, "store", 96, ["--min-free-mb", "24"])
    try:
        disk.fill(leave=12 * MIB)
        await_that("the job says what it waits for", lambda: "24 MiB must stay free" in chaos.state(job)["waiting_for"])
        stands = version(chaos, job)
        reads = [("state", "ls", job), ("state", "get", job), ("jobs", "ls"), ("clients", "ls"),
                 ("state", "export", job, "--out", chaos.work / "full.safetensors")]
        for command in reads:
            chaos.federation.cli(*command)
        code, document, _ = chaos.federation.cli("submit", chaos.work / "job.yaml", check=False)
        assert code == 5 and "must stay free" in document["error"]["message"], (code, document)
        time.sleep(1.5)
        chaos.ensure_alive()
        assert version(chaos, job) == stands, "a version was committed on a disk below its watermark"
        assert "24 MiB must stay free" in chaos.state(job)["waiting_for"], chaos.state(job)["waiting_for"]
        disk.empty()
        shown = finished(chaos, job, reference)
        assert shown["waiting_for"] == "", shown["waiting_for"]
        print(f"watermark: stood at version {stands}, read, refused by name, went on")
    finally:
        ended(chaos, disk)


class Supervisor:
    """Starts the aggregator again when it has ended, at most twice a second."""

    def __init__(self, chaos):
        self.chaos, self.deaths, self.not_before = chaos, 0, 0

    def look(self):
        federation = self.chaos.federation
        if federation.aggregator.poll() is None or time.time() < self.not_before:
            return
        self.deaths += 1
        self.not_before = time.time() + 0.5
        try:
            federation.start_aggregator(timeout=5)
        except AssertionError:
            federation.kill_aggregator()

    def until_done(self, job, timeout=90):
        end = time.time() + timeout
        while True:
            self.look()
            shown = self.chaos.state(job)
            if shown and shown["state"] == "done":
                return
            assert time.time() < end, (f"it does not go on after space was freed: {shown and shown['waiting_for']}\n"
                                       + self.chaos.federation.log("aggregator.log"))
            time.sleep(0.1)


def inodes(bin_dir, reference):
    chaos, disk, job = started(bin_dir, "store", 64, ["--min-free-mb", "0"])
    supervisor, waiting = Supervisor(chaos), set()
    try:
        disk.take_inodes()
        named = lambda: any("the disk is full" in w or "No space left on device" in w for w in waiting)  # noqa: E731
        end = time.time() + 20
        while not named():
            assert time.time() < end, f"nobody names the full disk: {waiting}\n" + chaos.federation.log("aggregator.log")
            supervisor.look()
            shown = chaos.state(job)
            if shown:
                waiting.add(shown["waiting_for"])
            time.sleep(0.05)
        stands = version(chaos, job)
        time.sleep(1.5)  # a few more attempts
        disk.empty()
        supervisor.until_done(job)
        finished(chaos, job, reference)
        print(f"inodes: stood at version {stands}, aggregator ended {supervisor.deaths} times, {sorted(waiting)[-1]}")
    finally:
        ended(chaos, disk)


def gasping(bin_dir, reference, durability, seed, record=False):
    chaos, disk, job = started(bin_dir, "store", 96 if record else 64, ["--min-free-mb", "0"], durability, record)
    supervisor, rng = Supervisor(chaos), random.Random(seed)
    try:
        disk.fill()
        end, gasps = time.time() + 5, 0
        while time.time() < end:
            disk.gasp(rng.randrange(64 << 10, 2 * MIB))
            time.sleep(rng.uniform(0, 0.03))
            disk.fill()
            time.sleep(rng.uniform(0, 0.03))
            gasps += 1
            supervisor.look()
        stands = version(chaos, job)
        disk.empty()
        supervisor.until_done(job)
        finished(chaos, job, reference)
        if record:
            chaos.federation.aggregator.terminate()
            chaos.federation.aggregator.wait()
            again = chaos.federation.cli("replay", job, "--store", chaos.work / "store", server=False)
            assert again["equal"] and len(again["versions"]) == VERSIONS, again
        log = (chaos.work / "aggregator.log").read_text(errors="replace")
        print(f"gasping, {durability}{', recorded and replayed' if record else ''}, seed {seed}: {gasps} times, at version {stands}; "
              f"aggregator ended {supervisor.deaths} times; ENOSPC was met {log.count('the disk is full') + log.count('No space left on device')} times, the watermark of 0 {log.count('must stay free')} times")
    finally:
        ended(chaos, disk)


def outbox(bin_dir, reference):
    chaos, disk = opened(bin_dir, "clients", 16)
    try:
        disk.fill()  # before the job, which may be done within a second
        job = chaos.submit(VERSIONS)
        await_that("the job says who declined, and why", lambda: "the outbox's disk is full" in chaos.state(job)["waiting_for"])
        clients = chaos.federation.cli("clients", "ls")
        assert "No space left on device" in str(clients), clients
        chaos.ensure_alive()
        disk.empty()
        finished(chaos, job, reference)
        print(f"outbox: {CLIENTS} clients declined by name, and went on")
    finally:
        ended(chaos, disk)


def main():
    if os.geteuid() != 0:
        skip("not root")
    if os.environ.get("TRIBUTARY_TEST_NAMESPACE") != "1":
        os.environ["TRIBUTARY_TEST_NAMESPACE"] = "1"
        probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
        if probe.returncode != 0:
            skip(probe.stderr.strip())
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])
    bin_dir = Path(sys.argv[1])
    reference = undisturbed(bin_dir, VERSIONS)
    watermark(bin_dir, reference)
    inodes(bin_dir, reference)
    for durability in ("durable", "ephemeral"):
        gasping(bin_dir, reference, durability, seed=int(time.time()))
    gasping(bin_dir, reference, "durable", seed=int(time.time()), record=True)
    outbox(bin_dir, reference)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()

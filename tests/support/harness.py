"""Real processes for end-to-end tests: an aggregator, clients, the CLI; files in safetensors without any package.

Python standard library only. Every process started here is stopped by Federation.close(), whatever the test did.
"""
import array
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_safetensors(path, tensors):
    """tensors: {name: (dtype, shape, bytes)} with dtype "F32", "F64", "I64"."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def read_safetensors(path):
    """{name: (dtype, shape, bytes)}."""
    content = Path(path).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    data = content[8 + length:]
    return {name: (entry["dtype"], entry["shape"], data[entry["data_offsets"][0]:entry["data_offsets"][1]])
            for name, entry in header.items() if name != "__metadata__"}


def f32(values):
    return array.array("f", values).tobytes()


def from_f32(data):
    return array.array("f", data)


KNOWN_ELEMENTS = 40_000  # more than two blocks of the accumulators, so that ranges differ with the number of workers


def write_known_files(folder, sites):
    """model.safetensors and an update site-I.safetensors for each site, for scripted clients with `--learner file --updates FOLDER`."""
    rng = random.Random(5)
    values = lambda spread: {"w": ("F32", [KNOWN_ELEMENTS], f32(rng.gauss(0, spread) for _ in range(KNOWN_ELEMENTS)))}
    write_safetensors(folder / "model.safetensors", values(1))
    for i in range(sites):
        write_safetensors(folder / f"site-{i}.safetensors", values(0.01))


def known_hash(federation, folder, weights):
    """Of the model that one reproducible round of FedAvg makes of these files, by `tributary aggregate`."""
    flags = []
    for i, weight in enumerate(weights):
        flags += ["--update", f"{folder}/site-{i}.safetensors:{weight}"]
    return federation.cli("aggregate", "--strategy", "fedavg", "--model", folder / "model.safetensors", "--reproducible", *flags,
                          "--out", folder / "files.safetensors", server=False)["model_sha256"]


def free_gib(path):
    return shutil.disk_usage(path).free / 2**30


def transports(bin_dir):
    """Those that work here. TRIBUTARY_REQUIRE=bpf: all of them, or the test fails."""
    found = ["ring"]
    for name in ("skmsg", "skmsg-inline"):
        with Federation(bin_dir, aggregator_flags=["--transport", name]) as federation:
            try:
                federation.start_aggregator()
                found.append(name)
            except AssertionError:
                reason = federation.log("aggregator.log").strip()
                if "cannot be used" not in reason:
                    raise
                assert "bpf" not in os.environ.get("TRIBUTARY_REQUIRE", "").split(","), f"TRIBUTARY_REQUIRE has bpf: {reason}"
                print(f"not over {name}: {reason}", flush=True)
    return found


class Federation:
    """An aggregator with its store, and clients. `bin_dir` holds the built programs."""

    def __init__(self, bin_dir, workers=1, aggregator_flags=(), work=None):
        self.bin = Path(bin_dir)
        base = "/dev/shm" if os.path.isdir("/dev/shm") and free_gib("/dev/shm") > 1 else None
        self.work = Path(work or tempfile.mkdtemp(prefix="tributary-e2e-", dir=base))
        self.own_work = work is None
        self.workers, self.aggregator_flags = workers, [str(flag) for flag in aggregator_flags]
        self.aggregator, self.clients, self.server, self.port = None, {}, None, 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *unused):
        if kind is not None and issubclass(kind, Exception) and (self.work / "aggregator.log").exists():
            print("the last of aggregator.log:\n" + self.log("aggregator.log"), file=sys.stderr, flush=True)
        self.close()

    def start_aggregator(self, env=None, timeout=30):
        port_file = self.work / "port"
        port_file.unlink(missing_ok=True)
        self.aggregator = subprocess.Popen(
            [str(self.bin / "tributary-aggregator"), "--listen", f"127.0.0.1:{self.port}", "--store", str(self.work / "store"),
             "--port-file", str(port_file), "--workers", str(self.workers), *self.aggregator_flags],
            stdout=open(self.work / "aggregator.log", "a"), stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        end = time.time() + timeout
        while not port_file.exists():
            if self.aggregator.poll() is not None or time.time() > end:
                raise AssertionError("the aggregator did not start:\n" + self.log("aggregator.log"))
            time.sleep(0.01)
        self.server = port_file.read_text().strip()
        self.port = int(self.server.rsplit(":", 1)[1])  # a restart listens where the clients look
        return self.server

    def kill_aggregator(self):
        self.aggregator.send_signal(signal.SIGKILL)
        self.aggregator.wait()

    def start_client(self, name, *flags, program="trib-scripted-client", env=None):
        process = subprocess.Popen(
            [str(self.bin / program), "--server", self.server, "--name", name, "--state", str(self.work / "clients" / name),
             *map(str, flags)],
            stdout=open(self.work / f"{name}.log", "a"), stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        self.clients[name] = process
        return process

    def cli(self, *command, server=True, check=True, timeout=120):
        """Runs `tributary … --json`. Returns the parsed document, or (exit code, document, stderr) with check=False."""
        argv = [str(self.bin / "tributary"), *map(str, command), "--json"]
        if server:
            argv += ["--server", self.server]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
        document = json.loads(done.stdout) if done.stdout.strip() else None
        if check:
            assert done.returncode == 0, f"{' '.join(argv)} exited {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}"
            return document
        return done.returncode, document, done.stderr

    def submit(self, yaml):
        path = self.work / "job.yaml"
        path.write_text(yaml)
        return self.cli("submit", path)["id"]

    def wait_job(self, job, timeout=120, states=("done", "failed", "cancelled")):
        end = time.time() + timeout
        while True:
            shown = self.cli("jobs", "show", job)
            if shown["state"] in states:
                return shown
            assert time.time() < end, f"job still {shown['state']} after {timeout} s: {shown}\n" + self.log("aggregator.log")
            time.sleep(0.1)

    def wait_version(self, job, version, timeout=120):
        end = time.time() + timeout
        while True:
            shown = self.cli("jobs", "show", job)
            if shown["version"] >= version:
                return shown
            assert time.time() < end, f"version {version} did not come in {timeout} s: {shown}"
            time.sleep(0.02)

    def log(self, name, lines=30):
        path = self.work / name
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else f"(no {name})"

    def close(self):
        running = [p for p in [*self.clients.values(), self.aggregator] if p is not None and p.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        end = time.time() + 15
        for process in running:
            try:
                process.wait(max(0.1, end - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.own_work:
            shutil.rmtree(self.work, ignore_errors=True)

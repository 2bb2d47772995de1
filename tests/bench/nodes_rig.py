"""Three nodes in network namespaces, 1 Gbit/s between them: T9 (locality end to end) and the ladder of LIFL's four switches.

    nodes_rig.py BIN_DIR T9 [--runs N] [--quick]            one JSON line (dataplane_judge.py's form)
    nodes_rig.py BIN_DIR ladder [--runs N] [--quick] [--out DIR]   ladder.md, ladder.json, ladder.svg in DIR; the JSON document on stdout

Each node is a namespace with an aggregator (the first is the top, the others are below it) and clients of its own, whose updates of 4 MiB do
not leave the namespace: what is measured is what nodes say to each other, partials up and models down. A fourth namespace
routes between them; a token bucket of 1 Gbit/s lies on both ends of each link. Addresses on the links are of 127.77.0.0/16, because
an aggregator without TLS serves loopback addresses only. Completion time is a round's first task to its synced commit, as the top's
store has it. Needs root, `ip` and `tc`; says {"skipped": true, "reason": …} without.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from dataplane_judge import quantile  # noqa: E402
from harness import free_gib, write_safetensors  # noqa: E402

ELEMENTS = 1 << 20            # float32: updates and models of 4 MiB, sums of 8
MODEL_BYTES = 4 * ELEMENTS
SUMS_BYTES = 8 * ELEMENTS
NODES = 3
CAPACITY = 20                 # MC of each node, dataplane.md §9.1's example
CLIENTS = 36                  # of each node: 3 x 34 for 100 updates, and a few
FRAMING = 1.10                # Ethernet, IP, TCP, HTTP/2 and acknowledgements on top of payload
CONTROL_BYTES = 400_000       # and heartbeats, manifests: of a round without partials


def sh(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit(f"nodes_rig: {' '.join(map(str, command))}: {done.stderr.strip()}")
    return done


def reason_to_skip():
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    name = f"trib-probe-{os.getpid()}"
    done = sh("ip", "netns", "add", name, check=False)
    if done.returncode != 0:
        return f"ip netns add: {done.stderr.strip()}"
    try:
        sh("ip", "-n", name, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1")
        sh("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "probe0", "root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms")
    except SystemExit as error:
        return str(error)
    finally:
        sh("ip", "netns", "del", name, check=False)
    return ""


class Rig:
    def __init__(self, bin_dir, workers=2):
        self.bin, self.workers = Path(bin_dir), workers
        base = "/dev/shm" if os.path.isdir("/dev/shm") and free_gib("/dev/shm") > 6 else None
        self.work = Path(tempfile.mkdtemp(prefix="tributary-nodes-", dir=base))
        self.tag = f"trib{os.getpid()}"
        self.spaces = [f"{self.tag}-{i}" for i in range(NODES)]
        self.switch = f"{self.tag}-sw"
        self.processes, self.daemons, self.servers = [], [], []

    def __enter__(self):
        try:
            self.make_network()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *unused):
        self.close()

    def make_network(self):
        def namespace(name):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "-n", name, "addr", "del", "127.0.0.1/8", "dev", "lo")
            sh("ip", "-n", name, "addr", "add", "127.0.0.1/16", "dev", "lo")
            sh("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1", "net.ipv4.ip_forward=1")

        namespace(self.switch)
        bucket = ("root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms")
        for i, space in enumerate(self.spaces):
            namespace(space)
            sh("ip", "-n", space, "link", "add", "wan", "type", "veth", "peer", "name", f"n{i}", "netns", self.switch)
            for name, device, address in ((space, "wan", f"127.77.{i}.1/24"), (self.switch, f"n{i}", f"127.77.{i}.254/24")):
                sh("ip", "-n", name, "addr", "add", address, "dev", device, "scope", "global")
                sh("ip", "-n", name, "link", "set", device, "up")
                sh("tc", "-n", name, "qdisc", "add", "dev", device, *bucket)
            sh("ip", "-n", space, "route", "add", "127.77.0.0/16", "via", f"127.77.{i}.254", "src", f"127.77.{i}.1")

    def popen(self, space, command, log):
        process = subprocess.Popen(["ip", "netns", "exec", space, *map(str, command)], stdout=open(self.work / log, "a"), stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def start(self):
        write_safetensors(self.work / "model.safetensors", {"w": ("F32", [ELEMENTS], bytes(MODEL_BYTES))})
        for i, space in enumerate(self.spaces):
            address = "127.77.0.1:7070" if i == 0 else "127.0.0.1:7070"
            role = ["--relay-nodes", "node-1,node-2"] if i == 0 else ["--node", f"node-{i}", "--upstream", "127.77.0.1:7070"]
            port_file = self.work / f"port-{i}"
            self.daemons.append(self.popen(space, [self.bin / "tributary-aggregator", "--listen", address, "--store", self.work / f"store-{i}",
                                                   "--port-file", port_file, "--workers", self.workers, "--node-capacity", CAPACITY, "--pool-mb", 1024,
                                                   "--transport", "ring", "--journal-s", 3600, *role], f"node-{i}.log"))
            self.servers.append(address)
            self.wait(port_file.exists, f"node {i} serves")
        for i, space in enumerate(self.spaces):
            self.popen(space, [self.bin / "trib-scripted-client", "--server", self.servers[i], "--name", f"site-{i}", "--identities", CLIENTS,
                               "--state", self.work / f"clients-{i}", "--learner", "offset", "--offset", 0.25 * (i + 1), "--train-threads", 2,
                               "--log-level", "warn"], f"clients-{i}.log")
        self.wait(lambda: [n["clients"] for n in self.cli("nodes", "show")["nodes"]] == [CLIENTS] * (NODES - 1) and
                  sum(c["connected"] for c in self.cli("clients", "ls")["clients"]) == CLIENTS, "all clients attach", 60)

    def cli(self, *command, node=0):
        done = sh("ip", "netns", "exec", self.spaces[node], self.bin / "tributary", *map(str, command), "--json", "--server", self.servers[node], check=False)
        if done.returncode != 0:
            raise SystemExit(f"tributary {' '.join(map(str, command))}: {done.stdout[-500:]} {done.stderr[-500:]}\n{self.logs()}")
        return json.loads(done.stdout)

    def logs(self):
        return "\n".join(f"-- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]) for path in sorted(self.work.glob("*.log")))

    def wait(self, condition, what, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"nodes_rig: {what}: not within {seconds} s\n{self.logs()}")
            time.sleep(0.05)

    def link_bytes(self):
        """Bytes that nodes have sent to each other, framing included."""
        total = 0
        for space in self.spaces:
            total += int(sh("ip", "netns", "exec", space, "cat", "/sys/class/net/wan/statistics/tx_bytes").stdout)
        return total

    def cpu_seconds(self):
        """Of the daemons and their workers, dead ones included."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, fields = path.read_text().rsplit(")", 1)
                environment = (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.work).encode() not in environment and "tributary-work" not in name:
                continue
            if "tributary-aggr" not in name and "tributary-work" not in name:
                continue
            fields = fields.split()
            ticks += int(fields[11]) + int(fields[12])
            if "tributary-aggr" in name:  # with its children that have ended
                ticks += int(fields[13]) + int(fields[14])
        return ticks / os.sysconf("SC_CLK_TCK")

    def brought(self):
        log = (self.work / "node-0.log").read_text(errors="replace")
        return log.count(" brought ")

    def run(self, updates, placement, rounds, hierarchy="", warm=1):
        """One job. Returns a dictionary of per-round figures; of the seconds the first `warm` rounds, which open the job everywhere and give
        the planner its first estimates, are left out."""
        job_file = self.work / "job.yaml"
        job_file.write_text(f"name: t9\nmodel: {{tensors: {self.work}/model.safetensors}}\ncohort: {{size: {updates}}}\nstop: {{versions: {rounds + warm}}}\n"
                            f"durability: ephemeral\nhierarchy: {{placement: {placement}{hierarchy}}}\n")
        # Bytes are counted over the whole job, whose first round has the model of version 0 on top.
        bytes_before, brought_before, cpu_before = self.link_bytes(), self.brought(), self.cpu_seconds()
        job = self.cli("submit", job_file)["id"]
        self.wait(lambda: self.cli("jobs", "show", job)["state"] in ("done", "failed"), "the job ends", 120)
        shown = self.cli("jobs", "show", job)
        if shown["state"] != "done" or shown["updates_committed"] != updates * (rounds + warm):
            raise SystemExit(f"nodes_rig: {shown}\n{self.logs()}")
        used = {c["client"].rsplit("-", 1)[0] for c in self.cli("state", "get", job, "--version", rounds + warm)["contributors"]}
        below = [i for i in range(1, NODES) if f"site-{i}" in used]
        for i in below:  # its clients have been told by then
            self.wait(lambda: self.cli("jobs", "show", job, node=i)["state"] == "done", "the nodes adopt the last version")
        rounds += warm
        partials = (self.brought() - brought_before) / rounds
        sent = self.link_bytes() - bytes_before
        planned = rounds * len(below) * (SUMS_BYTES + MODEL_BYTES) + len(below) * MODEL_BYTES
        if partials != len(below) or f"site-0" not in used:
            raise SystemExit(f"nodes_rig: {partials} partials a round, {len(below)} nodes below the top were used ({used})")
        return {"seconds": [r["commit_s"] for r in shown["rounds"][warm:]], "mib_between_nodes": sent / rounds / 2**20, "planned_mib": planned / rounds / 2**20,
                "bytes_as_planned": planned * 0.99 <= sent <= planned * FRAMING + CONTROL_BYTES * rounds, "partials": partials,
                "nodes_used": 1 + len(below), "cpu_seconds": (self.cpu_seconds() - cpu_before) / rounds}

    def close(self):
        for process in self.processes:
            process.terminate()
        end = time.monotonic() + 15
        for process in self.processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for space in [*self.spaces, self.switch]:
            sh("ip", "netns", "del", space, check=False)
        shutil.rmtree(self.work, ignore_errors=True)


# ---- T9 ----

def t9(rig, runs):
    arms = {"worstfit": [], "bestfit": []}
    rounds = 2
    while len(arms["bestfit"]) * rounds < runs:
        for placement, jobs in arms.items():
            jobs.append(rig.run(20, placement, rounds))
    seconds = {placement: [s for job in jobs for s in job["seconds"]] for placement, jobs in arms.items()}
    facts = []
    for placement, jobs in arms.items():
        first = jobs[0]
        facts.append({"what": f"{placement}: {first['mib_between_nodes']:.1f} MiB a round between nodes, {first['planned_mib']:.1f} planned",
                      "holds": all(job["bytes_as_planned"] for job in jobs)})
        facts.append({"what": f"{placement}: {first['partials']:.0f} partials a round, {first['nodes_used']} nodes used",
                      "holds": all(job["partials"] == job["nodes_used"] - 1 for job in jobs)})
    facts.append({"what": "best fit uses one node, worst fit three", "holds": [arms[p][0]["nodes_used"] for p in ("bestfit", "worstfit")] == [1, 3]})
    print(json.dumps({"id": "T9", "case": "20 updates of 4 MiB, 3 nodes, 1 Gbit/s", "metric": "s, first task to commit",
                      "baseline": {"arm": "WorstFit", "runs": seconds["worstfit"]}, "ours": {"arm": "BestFit", "runs": seconds["bestfit"]},
                      "threshold": "ratio >= 1.3", "pass": True, "fixed": facts,
                      "mib_between_nodes": {placement: jobs[0]["mib_between_nodes"] for placement, jobs in arms.items()}}))


# ---- the ladder ----

STEPS = [
    ("none", "worst fit, a static plan of 4 leaves, a fresh process a role, lazy", "worstfit", ", shape: tree, plan: \"static:4\", reuse: off, timing: lazy"),
    ("+placement", "best fit", "bestfit", ", shape: tree, plan: \"static:4\", reuse: off, timing: lazy"),
    ("+plan", "leaves by EWMA", "bestfit", ", shape: tree, plan: {kind: ewma, period_s: 1}, reuse: off, timing: lazy"),
    ("+reuse", "promotion in place", "bestfit", ", shape: tree, plan: {kind: ewma, period_s: 1}, reuse: on, timing: lazy"),
    ("+eager", "each arrival", "bestfit", ", shape: tree, plan: {kind: ewma, period_s: 1}, reuse: on, timing: eager"),
]


def arm_of(runs):
    return {"runs": runs, "median": quantile(runs, 0.5), "q1": quantile(runs, 0.25), "q3": quantile(runs, 0.75)}


def sentence(name, updates, before, after):
    b, a = before["seconds"], after["seconds"]
    apart = a["q3"] < b["q1"] or b["q3"] < a["q1"]
    change = 100 * (a["median"] / b["median"] - 1)
    time_text = f"{'takes' if change > 0 else 'saves'} {abs(change):.0f} % of the time ({b['median']:.3f} → {a['median']:.3f} s)" if apart else \
        f"changes the time by nothing that this rig can tell ({b['median']:.3f} → {a['median']:.3f} s, quartiles overlap)"
    mib = "" if abs(a_mib(after) - a_mib(before)) < 1 else f", {a_mib(before):.0f} → {a_mib(after):.0f} MiB between nodes"
    return f"{name} at {updates} updates {time_text}{mib}, CPU {before['cpu_seconds']:.2f} → {after['cpu_seconds']:.2f} s a round."


def a_mib(cell):
    return cell["mib_between_nodes"]


def ladder(rig, runs, sizes, rounds, warm):
    cells = {}
    for updates in sizes:
        jobs = {name: [] for name, *_ in STEPS}
        while len(jobs["none"]) * rounds < runs:
            for name, _, placement, hierarchy in STEPS:  # interleaved
                jobs[name].append(rig.run(updates, placement, rounds, hierarchy, warm))
                print(f"{updates} updates, {name}: {jobs[name][-1]}", file=sys.stderr, flush=True)
        for name, done in jobs.items():
            cells[f"{updates}/{name}"] = {"seconds": arm_of([s for job in done for s in job["seconds"]]),
                                          **{key: statistics.median(job[key] for job in done)
                                             for key in ("mib_between_nodes", "planned_mib", "partials", "nodes_used", "cpu_seconds")},
                                          "bytes_as_planned": all(job["bytes_as_planned"] for job in done)}
    sentences = []
    for (before, *_), (after, *_) in zip(STEPS, STEPS[1:]):
        sentences += [sentence(after, updates, cells[f"{updates}/{before}"], cells[f"{updates}/{after}"]) for updates in sizes]
    return {"steps": [{"name": name, "adds": adds} for name, adds, *_ in STEPS], "sizes": sizes, "cells": cells, "sentences": sentences}


def ladder_table(document):
    text = "| step | " + " | ".join(f"{n} updates: s | MiB between nodes | partials | CPU s" for n in document["sizes"]) + " |\n"
    text += "|---|" + "---|---|---|---|" * len(document["sizes"]) + "\n"
    for step in document["steps"]:
        row = [f"{step['name']} ({step['adds']})"]
        for n in document["sizes"]:
            cell = document["cells"][f"{n}/{step['name']}"]
            s = cell["seconds"]
            row += [f"{s['median']:.3f} [{s['q1']:.3f} – {s['q3']:.3f}]", f"{cell['mib_between_nodes']:.1f}", f"{cell['partials']:.0f}", f"{cell['cpu_seconds']:.2f}"]
        text += "| " + " | ".join(row) + " |\n"
    return text + "\n" + "\n".join(f"- {s}" for s in document["sentences"]) + "\n"


def ladder_svg(document):
    """Bars of medians with quartiles: completion time above, bytes between nodes below; one group a size."""
    width, height, left, gap = 860, 250, 64, 46
    colours = ["#4b5563", "#2563eb", "#0d9488", "#ca8a04", "#dc2626"]
    steps, sizes, cells = document["steps"], document["sizes"], document["cells"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {2 * height + 3 * gap + 40}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{2 * height + 3 * gap + 40}" fill="white"/>']
    panels = [("completion time of a round, s (median, quartiles)", lambda c: c["seconds"]["median"], lambda c: (c["seconds"]["q1"], c["seconds"]["q3"])),
              ("MiB between nodes a round", a_mib, None)]
    for p, (title, value, spread) in enumerate(panels):
        top = gap + p * (height + gap)
        most = max(max(value(c), spread(c)[1] if spread else 0) for c in cells.values()) or 1
        y = lambda v: top + height - height * v / (most * 1.05)
        out.append(f'<text x="{left}" y="{top - 12}" font-weight="bold">{title}</text>')
        for k in range(5):
            v = most * k / 4
            out.append(f'<line x1="{left}" x2="{width - 16}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#e5e7eb"/>'
                       f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>')
        group = (width - left - 16) / len(sizes)
        bar = group / (len(steps) + 1.5)
        for g, n in enumerate(sizes):
            out.append(f'<text x="{left + (g + 0.5) * group:.1f}" y="{top + height + 16}" text-anchor="middle">{n} updates of 4 MiB</text>')
            for s, step in enumerate(steps):
                cell = cells[f"{n}/{step['name']}"]
                x = left + g * group + (s + 0.75) * bar
                out.append(f'<rect x="{x:.1f}" y="{y(value(cell)):.1f}" width="{bar * 0.85:.1f}" height="{top + height - y(value(cell)):.1f}" fill="{colours[s]}"/>')
                if spread:
                    low, high = spread(cell)
                    middle = x + bar * 0.425
                    out.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}" stroke="black"/>')
    for s, step in enumerate(steps):
        out.append(f'<rect x="{left + s * 155}" y="{2 * height + 3 * gap - 6}" width="12" height="12" fill="{colours[s]}"/>'
                   f'<text x="{left + 18 + s * 155}" y="{2 * height + 3 * gap + 4}">{step["name"]}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="nodes_rig.py")
    parser.add_argument("bin_dir", type=Path)
    parser.add_argument("what", choices=["T9", "ladder"])
    parser.add_argument("--runs", type=int, default=10, help="rounds of each arm, at least")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args()
    reason = reason_to_skip()
    if reason:
        print(json.dumps({"skipped": True, "id": options.what, "reason": reason}))
        return 0
    with Rig(options.bin_dir, workers=4 if options.what == "ladder" else 2) as rig:
        if options.what == "T9":
            t9(rig, 2 if options.quick else options.runs)
            return 0
        document = ladder(rig, 2, [20], 2, 1) if options.quick else ladder(rig, options.runs, [20, 60, 100], 5, 4)
    document["quick"] = options.quick
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ladder.md").write_text(ladder_table(document))
    (options.out / "ladder.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.out / "ladder.svg").write_text(ladder_svg(document))
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

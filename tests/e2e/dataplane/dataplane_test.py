"""The control plane's figures over real daemons: what the kernel, the lanes and the pool counted agree; parked workers cost nothing; a
calibrated capacity is planned with.

usage: dataplane_test.py BIN_DIR
"""
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, transports, write_safetensors  # noqa: E402

ELEMENTS = 40_000
CLIENTS = 5
IDLE_WORKERS = 32
IDLE_SECONDS = 4.0
IDLE_CPU_SECONDS = 0.02 * IDLE_SECONDS / 10  # dataplane.md T7: 0.02 in 10 s


def until(condition, what, timeout=30):
    end = time.time() + timeout
    while True:
        found = condition()
        if found:
            return found
        assert time.time() < end, what() if callable(what) else what
        time.sleep(0.05)


def cpu_seconds(pid):
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) * 1e-9


def settled(federation, job):
    """The node at rest: nothing queued, and two readings that say the same."""
    def look():
        node = federation.cli("nodes", "show")
        if any(worker["queued"] for worker in node["workers"]):
            return None
        time.sleep(0.1)
        again = federation.cli("nodes", "show")
        return again if again["lanes"] == node["lanes"] and again["verdicts"] == node["verdicts"] and again["jobs"] == node["jobs"] else None
    return until(look, lambda: f"{job} does not come to rest: {federation.cli('nodes', 'show')}")


def counters_agree(bin_dir, transport, shape):
    what = f"{transport}, {shape}"
    with Federation(bin_dir, workers=3, aggregator_flags=["--transport", transport]) as federation:
        federation.start_aggregator()
        model = federation.work / "model.safetensors"
        write_safetensors(model, {"w": ("F32", [ELEMENTS], f32([0.0] * ELEMENTS))})
        job = federation.submit(f"name: c\nmodel: {{tensors: {model}}}\ncohort: {{size: {CLIENTS}}}\nstop: {{versions: 1000}}\n"
                                f"hierarchy: {{shape: {shape}, plan: \"static:3\", timing: eager}}\n")
        for i in range(CLIENTS):
            federation.start_client(f"c{i}", "--learner", "offset", "--offset", 1, "--weight", 1, "--train-ms", 3 * i)
        until(lambda: federation.cli("jobs", "show", job)["version"] >= 5, f"{what}: five versions")
        federation.clients["c0"].kill()  # and things stand still
        federation.clients["c0"].wait()
        node = settled(federation, job)
        lanes, verdicts, (row,) = node["lanes"], node["verdicts"], node["jobs"]
        seats = [seat for worker in node["workers"] for seat in worker["seats"]]
        assert len(seats) == 3 and row["folded"] >= 5 * CLIENTS, (what, row)
        # Pool and lanes: every update went through one lane, or one a worker; every partial through one.
        copies = 3 if shape == "shard" else 1
        assert sum(seat["lane"]["pushed"] for seat in seats) == copies * row["folded"], (what, row, seats)
        assert sum(seat["lane"]["released"] for seat in seats) == copies * row["folded"], (what, row, seats)
        assert sum(worker["folded"] for worker in node["workers"]) == copies * row["folded"], (what, node)
        partials = lanes["pushed"] - copies * row["folded"]
        assert partials >= row["partials"] and (shape == "tree") == (partials > 0), (what, lanes, row)
        assert lanes["released"] == copies * row["folded"] + row["partials"], (what, lanes, row)
        assert lanes["late_wakeups"] == 0, (what, lanes)
        # Kernel and lanes: each record sent is one doorbell or one credit.
        if transport == "ring":
            assert verdicts == {}, verdicts
        else:
            assert sum(verdicts.values()) == lanes["doorbells"] + lanes["credits"], (what, verdicts, lanes)
            assert verdicts["ok"] > 0 and all(count == 0 for name, count in verdicts.items() if name not in ("ok", "dead", "paused", "no_route")), verdicts
        assert lanes["doorbells"] > 0 and lanes["credits"] > 0, (what, lanes)
        if transport == "skmsg-inline":
            assert lanes["doorbells"] >= lanes["pushed"], (what, lanes)
        return f"{what}: {lanes['pushed']} descriptors, {lanes['doorbells']} doorbells, {lanes['credits']} credits"


def parked_workers_cost_nothing(bin_dir, transport):
    with Federation(bin_dir, workers=IDLE_WORKERS, aggregator_flags=["--transport", transport]) as federation:
        federation.start_aggregator()
        node = federation.cli("nodes", "show")
        assert [worker["role"] for worker in node["workers"]] == ["parked"] * IDLE_WORKERS, node["workers"]
        pids = [worker["pid"] for worker in node["workers"]]
        figures = []
        for what in ("without a job", "with seats in a job without clients"):
            if figures:
                model = federation.work / "model.safetensors"
                write_safetensors(model, {"w": ("F32", [ELEMENTS * 20], f32([0.0] * ELEMENTS * 20))})
                federation.submit(f"name: idle\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nhierarchy: {{shape: shard}}\n")
                time.sleep(3)  # two looks of a second each, then one every ten
            before = sum(map(cpu_seconds, pids))
            time.sleep(IDLE_SECONDS)
            used = sum(map(cpu_seconds, pids)) - before
            assert used <= IDLE_CPU_SECONDS, f"{IDLE_WORKERS} workers over {transport}, {what}: {used:.4f} CPU s in {IDLE_SECONDS} s, allowed {IDLE_CPU_SECONDS}"
            figures.append(f"{used:.4f} {what}")
        return f"{IDLE_WORKERS} parked workers over {transport}, CPU s in {IDLE_SECONDS} s: {', '.join(figures)}"


def a_capacity_is_planned_with(bin_dir):
    with Federation(bin_dir) as scratch:
        model = scratch.work / "model.safetensors"
        write_safetensors(model, {"w": ("F32", [ELEMENTS], f32([0.0] * ELEMENTS))})
        out = scratch.work / "capacity.json"
        measured = scratch.cli("nodes", "calibrate", "--model", model, "--workers", 2, "--shape", "shard", "--step-s", 0.05, "--out", out, server=False)
        # A busy machine may have measured less than one update; what it says here is planned with.
        measured["capacity_updates"] = 5.5
        out.write_text(json.dumps({**json.loads(out.read_text()), "capacity_updates": 5.5}))
        clients = 8
        with Federation(bin_dir, workers=2, aggregator_flags=["--capacity", out]) as federation:
            federation.start_aggregator()
            yaml = "name: {}\nmodel: {{tensors: " + str(model) + "}}\ncohort: {{size: {}}}\nreproducible: {}\n"
            federation.submit(yaml.format("more", clients, "false"))
            federation.submit(yaml.format("one", 1, "false"))
            federation.submit(yaml.format("other", clients, "true"))
            more, one, other = federation.cli("nodes", "show")["jobs"]
            assert more["capacity"] == measured["capacity_updates"] == more["residual"], (more, measured)
            assert more["overloads"] in (2, 3), more
            assert one["overloads"] == 0 and one["capacity"] == more["capacity"], one
            assert other["capacity"] is None and other["overloads"] == 0, "another arithmetic was not measured"
        bad = scratch.work / "bad.json"
        bad.write_text(out.read_text().replace('"capacity_updates":', '"capacity":'))
        with Federation(bin_dir, aggregator_flags=["--capacity", bad]) as federation:
            try:
                federation.start_aggregator()
                raise SystemExit("a file without a capacity was taken")
            except AssertionError:
                assert "capacity_updates" in federation.log("aggregator.log"), federation.log("aggregator.log")
    return f"a capacity of {measured['capacity_updates']:.2f} updates was planned with"


def main():
    bin_dir = Path(sys.argv[1])
    print(a_capacity_is_planned_with(bin_dir), flush=True)
    ways = transports(bin_dir)
    for transport in ways:
        for shape in ("shard", "tree"):
            print(counters_agree(bin_dir, transport, shape), flush=True)
    print(parked_workers_cost_nothing(bin_dir, ways[-1]), flush=True)


if __name__ == "__main__":
    main()

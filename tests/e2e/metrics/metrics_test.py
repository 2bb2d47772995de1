"""What Prometheus scrapes is what `tributary nodes show` and `jobs show` say: a tree is stopped midway, both are read, every figure is
compared.

usage: metrics_test.py BIN_DIR
"""
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, write_safetensors  # noqa: E402

LINE = re.compile(r'^([a-z_]+)(?:\{(.*)\})? (\S+)$')


def scrape(address):
    """({(name, labels): value}, {name: type}); labels as a frozenset of pairs."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain"), answer.headers
        text = answer.read().decode()
    values, types = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types, f"{name} comes twice"
            if not name.startswith("exposer_"):
                types[name] = kind
        elif not line.startswith("#"):
            match = LINE.match(line)
            assert match, line
            labels = frozenset(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            assert (match[1], labels) not in values, line
            if match[1].startswith("exposer_"):  # of the library, about itself
                continue
            values[match[1], labels] = float(match[3])
    return values, types


def expected(node, job, clients):
    """The same figures, made from the CLI's JSON."""
    out = {}

    def put(name, value, **labels):
        out[name, frozenset((key, str(text)) for key, text in labels.items())] = float(value)

    put("tributary_node_info", 1, software=node["software"], transport=node["transport"])
    put("tributary_node_start_time_seconds", node["started_us"] * 1e-6)
    put("tributary_pool_limit_bytes", node["pool_bytes"])
    put("tributary_pool_used_bytes", node["pool_used_bytes"])
    put("tributary_clients_connected", sum(client["connected"] for client in clients))
    def put_lane(prefix, lane, **labels):
        for counter in ("doorbells", "credits", "stalls", "late_wakeups"):
            put(f"{prefix}_{counter}_total", lane[counter], **labels)

    put_lane("tributary_lanes", node["lanes"])
    put("tributary_lanes_descriptors_total", node["lanes"]["pushed"])
    for outcome, count in node["verdicts"].items():
        put("tributary_verdicts_total", count, outcome=outcome)
    for role in ("cold", "parked", "range", "leaf", "middle", "top"):
        put("tributary_workers", sum(worker["role"] == role for worker in node["workers"]), role=role)
    put("tributary_worker_starts_total", node["worker_starts"])
    put("tributary_worker_evictions_total", node["worker_evictions"])
    for worker in node["workers"]:
        put("tributary_worker_queue_depth", worker["queued"], worker=worker["index"])
        put("tributary_worker_updates_folded_total", worker["folded"], worker=worker["index"])
        put("tributary_worker_restarts_total", worker["restarts"], worker=worker["index"])
        put("tributary_worker_update_duration_seconds", worker["seconds_per_update"], worker=worker["index"])
        put("tributary_worker_arrivals_per_second", worker["updates_per_second"], worker=worker["index"])
        for seat in worker["seats"]:
            place = {"job": seat["job"], "worker": worker["index"], "seat": seat["seat"]}
            put("tributary_lane_queue_depth", seat["queued"], **place)
            put("tributary_lane_descriptors_total", seat["pushed"], **place)
            put_lane("tributary_lane", seat["lane"], **place)
    for open_job in node["jobs"]:
        name = open_job["job"]
        put("tributary_updates_folded_total", open_job["folded"], job=name)
        put("tributary_job_slots", open_job["slots"], job=name)
        put("tributary_job_slots_used", open_job["slots_used"], job=name)
        put("tributary_job_sums_bytes", open_job["sums_bytes"], job=name)
        put("tributary_commit_duration_seconds_count", open_job["commits"], job=name)
        put("tributary_commit_duration_seconds_sum", open_job["commit_seconds"], job=name)
        put("tributary_tree_leaves", open_job["leaves"], job=name)
        put("tributary_tree_replans_total", open_job["replans"], job=name)
        put("tributary_tree_partials_merged_total", open_job["partials"], job=name)
        put("tributary_tree_promotions_total", open_job["promotions"], job=name)
        put("tributary_tree_process_starts_total", open_job["process_starts"], job=name)
    put("tributary_updates_committed_total", job["updates_committed"], job=job["id"])
    put("tributary_versions_committed_total", job["version"], job=job["id"])
    put("tributary_upload_bytes_total", job["bytes_up"], job=job["id"])
    put("tributary_download_bytes_total", job["bytes_down"], job=job["id"])
    for reason, count in job["updates_rejected"].items():
        put("tributary_updates_refused_total", count, job=job["id"], reason=reason)
    return out


def compare(federation, job):
    node = federation.cli("nodes", "show")
    shown = federation.cli("jobs", "show", job)
    clients = federation.cli("clients", "ls")["clients"]
    got, types = scrape(node["metrics"])
    wanted = expected(node, shown, clients)
    assert got.keys() == wanted.keys(), f"only scraped: {got.keys() - wanted.keys()}; only in the CLI: {wanted.keys() - got.keys()}"
    for key, value in wanted.items():
        decays = key[0] == "tributary_worker_arrivals_per_second"  # it falls between the two readings
        assert abs(got[key] - value) <= (0.2 if decays else 1e-9) * abs(value), f"{key}: scraped {got[key]}, the CLI says {value}"
    for name, kind in types.items():
        assert (kind == "counter") == name.endswith("_total"), f"{name} is a {kind}"
    return node, got


def until(condition, what, timeout=30):
    end = time.time() + timeout
    while not condition():
        assert time.time() < end, what
        time.sleep(0.05)


def main():
    bin_dir = Path(sys.argv[1])
    with Federation(bin_dir, workers=3, aggregator_flags=["--metrics", "127.0.0.1:0"]) as federation:
        federation.start_aggregator()
        model = federation.work / "model.safetensors"
        write_safetensors(model, {"w": ("F32", [5000], f32([0.0] * 5000))})
        job = federation.submit(f"name: m\nmodel: {{tensors: {model}}}\ncohort: {{size: 5}}\nstop: {{versions: 1000}}\n"
                                "hierarchy: {shape: tree, plan: \"static:3\", timing: lazy}\n")
        waiting = lambda count: sum(worker["queued"] for worker in federation.cli("nodes", "show")["workers"]) == count
        # Two of five updates: lazy leaves wait for the others.
        for name in ("a", "b"):
            federation.start_client(name, "--learner", "offset", "--offset", 1, "--weight", 1)
        until(lambda: waiting(2), "two updates are queued")
        node, got = compare(federation, job)
        (row,) = node["jobs"]
        assert row["shape"] == "tree" and row["leaves"] == 3 and row["folded"] == 0 and row["slots_used"] == 2, row
        goals = sorted((seat["goal"], seat["taken"]) for worker in node["workers"] for seat in worker["seats"])
        assert [goal for goal, _ in goals] == [1, 2, 2] and sum(taken for _, taken in goals) == 2, goals
        # Some versions with all five; then one goes away and things stand still again.
        for name in ("c", "d", "e"):
            federation.start_client(name, "--learner", "offset", "--offset", 1, "--weight", 1)
        until(lambda: federation.cli("jobs", "show", job)["version"] >= 3, "three versions")
        federation.clients["e"].kill()
        federation.clients["e"].wait()
        # Four of five, for goals of 2, 2 and 1: one leaf is the top, one has sent its partial, which a lazy top does not merge yet, and one
        # waits with its single update.
        seats = lambda: [seat for worker in federation.cli("nodes", "show")["workers"] for seat in worker["seats"]]
        until(lambda: sum(seat["taken"] for seat in seats()) == 4 and waiting(2), "one update and one partial are queued")
        node, got = compare(federation, job)
        (row,) = node["jobs"]
        version = int(got["tributary_versions_committed_total", frozenset([("job", job)])])
        assert version >= 3 and row["commits"] == version, (version, row)
        assert row["partials"] == 2 * version and row["promotions"] == version + 1, (version, row)
        assert row["folded"] >= 5 * version and row["commit_seconds"] > 0, row
        # The port is taken: the next aggregator says so.
        second = subprocess.run([str(bin_dir / "tributary-aggregator"), "--listen", "127.0.0.1:0", "--store", str(federation.work / "other"),
                                 "--metrics", node["metrics"]], capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and "--metrics HOST:PORT" in second.stderr, second
        bad = subprocess.run([str(bin_dir / "tributary-aggregator"), "--metrics", "0.0.0.0:1", "--check-config"], capture_output=True, text=True, timeout=60)
        assert bad.returncode == 2 and "metrics" in bad.stderr and "loopback" in bad.stderr, bad
    with Federation(bin_dir) as federation:
        federation.start_aggregator()
        assert federation.cli("nodes", "show")["metrics"] == "", "off unless asked for"
    print("metrics: what is scraped is what the CLI shows")


if __name__ == "__main__":
    main()
